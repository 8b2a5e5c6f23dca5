"""``logd assign``: shards spread over the members of a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import click

from logd.cli.display import print_json, print_table, say
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    IntegerType,
    bootstrap_option,
    output_option,
    ttl_option,
    watch_options,
)
from logd.limits import SHARDS_PER_GROUP_MAX
from logd.wording import count_of

if TYPE_CHECKING:
    from logd.errors import LeaseLostError
    from logd_client.coordination.assignments import OwnedShard


@click.group(cls=NounGroup)
def assign() -> None:
    """Spread shards over the members of a group."""


@assign.command("set")
@click.argument("group")
@click.argument("shards", nargs=-1)
@click.option(
    "--count",
    type=IntegerType(0, SHARDS_PER_GROUP_MAX),
    help="So many shards named 0, 1, 2 … instead of named ones.",
)
@bootstrap_option
@output_option
def set_shards(
    group: str, shards: tuple[str, ...], count: int | None, bootstrap: str, output: str
) -> None:
    """Spread SHARDS over the members of GROUP from now on; --count 0 ends it.

    What need not move stays where it is.
    """
    if bool(shards) == (count is not None):
        raise click.UsageError("name shards, or say how many with --count")
    twice = [shard for shard, times in Counter(shards).items() if times > 1]
    if twice:
        raise click.UsageError(f"named more than once: {', '.join(twice)}")
    from logd.cli.session import connected, run_async

    names: Sequence[str] = shards or [str(number) for number in range(count or 0)]

    async def change() -> None:
        async with connected(bootstrap) as client:
            await client.assignments(group).set(names)
        if output == "json":
            print_json({"group": group, "shards": names})
        else:
            click.echo(f"{group}: {count_of(len(names), 'shard')}")

    run_async(change)


@assign.command("list")
@click.argument("group")
@bootstrap_option
@output_option
def list_shards(group: str, bootstrap: str, output: str) -> None:
    """Which shard of GROUP is whose."""
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            found = await client.assignments(group).list()
        if output == "json":
            print_json({"group": group, "revision": found.revision, "shards": found.shards})
        else:
            columns = ("shard", "owner", "token", "revoked")
            rows = [[row.shard, row.owner, row.token, row.revoked] for row in found.shards]
            print_table(columns, rows, empty="no shards")

    run_async(fetch)


@assign.command("watch")
@click.argument("group")
@watch_options
@bootstrap_option
@output_option
def watch(group: str, revision: int | None, count: int | None, bootstrap: str, output: str) -> None:
    """Shards as they are revoked and get new owners."""
    from logd.cli.events import show_watch

    show_watch(lambda client: client.assignments(group).watch(revision), count, bootstrap, output)


@assign.command("work")
@click.argument("group")
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@ttl_option
@bootstrap_option
def work(group: str, name: str, command: tuple[str, ...], ttl_s: float, bootstrap: str) -> None:
    """Be the member NAME of GROUP, and run one COMMAND for each shard that is NAME's.

    COMMAND finds LOGD_SHARD, LOGD_FENCE_ID, LOGD_FENCE_TOKEN and LOGD_FENCE in its environment.
    It is asked to end (SIGTERM) when its shard is to move, and when this worker is told to end, by
    Ctrl-C or another signal; the shard moves once it has ended.
    """
    from logd.cli.holding import (
        client_name,
        fence_environment,
        leave_with,
        run_until_signalled,
        run_while_held,
    )
    from logd.cli.session import connected, run_async

    async def run_shard(shard: OwnedShard) -> None:
        environment = fence_environment(
            bootstrap, f"{group}/{shard.shard}", shard.fence.id, shard.token
        )
        environment["LOGD_SHARD"] = shard.shard
        held = _Owned(shard)
        code = await run_while_held(command, environment, held, ttl_s, signals=None)
        say(f"logd: the command of shard {shard.shard} ended with code {code}")

    async def stay() -> None:
        async with connected(bootstrap, client_id=client_name()) as client:
            assignments = client.assignments(group, ttl_s=ttl_s)
            if not (await assignments.list()).shards:
                say(f"logd: {group} has no shards yet: `logd assign set {group}` names them")
            await assignments.work(name, run_shard)

    leave_with(run_async(run_until_signalled, stay))


class _Owned:
    """A shard, for ``run_while_held``: the worker cancels its task when it is to end."""

    def __init__(self, shard: OwnedShard) -> None:
        self._shard = shard

    @property
    def is_lost(self) -> bool:
        return self._shard.is_lost

    async def wait_until_over(self) -> None:
        await anyio.sleep_forever()

    def lost_error(self) -> LeaseLostError:
        from logd.errors import LeaseLostError

        return LeaseLostError(f"shard {self._shard.shard} is lost")
