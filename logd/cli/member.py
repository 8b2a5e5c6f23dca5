"""``logd member``: be a member of a group; see and watch who is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from logd.cli.display import cells_of, print_json, print_table, say, text_or_base64
from logd.cli.lazy import NounGroup
from logd.cli.options import bootstrap_option, output_option, ttl_option, watch_options

if TYPE_CHECKING:
    from logd.wire.coordination import Member


@click.group(cls=NounGroup)
def member() -> None:
    """Be a member of a group; see and watch who is."""


@member.command("join")
@click.argument("group")
@click.argument("name")
@click.argument("command", nargs=-1)
@click.option("--data", default="", help="Shown to whoever lists; for example an address.")
@ttl_option
@bootstrap_option
def join(
    group: str, name: str, command: tuple[str, ...], data: str, ttl_s: float, bootstrap: str
) -> None:
    """Be the member NAME of GROUP while COMMAND runs, or until Ctrl-C.

    logd member join web host-1 --data 10.0.0.1:80 -- ./serve

    Exits with COMMAND's code; 4 if another has that name, or the membership was lost.
    """
    from logd.cli.holding import (
        client_name,
        leave_with,
        open_signals,
        run_while_held,
    )
    from logd.cli.session import connected, run_async

    async def stay() -> int:
        async with (
            connected(bootstrap, client_id=client_name()) as client,
            open_signals() as signals,
        ):
            membership = client.members(group, ttl_s=ttl_s).join(name, data)
            await signals.obtain(membership.join)
            try:
                if command:
                    environment = {
                        "LOGD_BOOTSTRAP": bootstrap,
                        "LOGD_GROUP": group,
                        "LOGD_MEMBER": name,
                    }
                    return await run_while_held(
                        command, environment, membership, ttl_s, signals=signals
                    )
                say(f"member {name} of {group}; Ctrl-C leaves")
                code = await signals.run(membership.wait_until_over)
                if membership.is_lost:
                    raise membership.lost_error()
                return code
            finally:
                await membership.leave()

    leave_with(run_async(stay))


@member.command("list")
@click.argument("group")
@bootstrap_option
@output_option
def list_members(group: str, bootstrap: str, output: str) -> None:
    """Who is in GROUP."""
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            found = await client.members(group).list()
        rows = [_row(one) for one in found.members]
        if output == "json":
            print_json({"group": group, "revision": found.revision, "members": rows})
        else:
            columns = ("member", "client", "session", "joined", "data")
            print_table(columns, [cells_of(row, columns) for row in rows], empty="no members")

    run_async(fetch)


def _row(one: Member) -> dict[str, Any]:
    return {
        "member": one.member,
        "client": one.client,
        "session": one.session,
        "joined": one.joined,
        **text_or_base64("data", one.data),
    }


@member.command("watch")
@click.argument("group")
@watch_options
@bootstrap_option
@output_option
def watch(group: str, revision: int | None, count: int | None, bootstrap: str, output: str) -> None:
    """Who joins, changes and leaves, as it happens."""
    from logd.cli.events import show_watch

    show_watch(lambda client: client.members(group).watch(revision), count, bootstrap, output)
