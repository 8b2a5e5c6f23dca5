"""``logd elect``: run a command while leading; see and watch who leads."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import click

from logd.cli.display import cell_text, cells_of, print_json, say, text_or_base64
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    IntegerType,
    bootstrap_option,
    hold_option,
    namespace_option,
    output_option,
    protect_option,
    ttl_option,
    wait_option,
)

if TYPE_CHECKING:
    from logd.cli.holding import Job, Signals
    from logd_client import Client
    from logd_client.coordination.elections import Leader, Leadership

RESIGN_TIMEOUT_S: Final = 10.0
"""How long `elect resign` waits until somebody else leads, or nobody."""

STAND_AGAIN_S: Final = 1.0
"""How long `elect run --again` rests between two leaderships."""


@click.group(cls=NounGroup)
def elect() -> None:
    """Run a command while leading; see and watch who leads."""


@elect.command("run")
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@ttl_option
@wait_option
@protect_option
@click.option("--data", default="", help="Shown to observers; for example an address.")
@click.option(
    "--again", is_flag=True, help="Stand again whenever it has ended, until a signal comes."
)
@hold_option
@bootstrap_option
def run(
    name: str,
    command: tuple[str, ...],
    ttl_s: float,
    wait_s: float | None,
    protects: tuple[str, ...],
    data: str,
    again: bool,
    hold_s: float,
    bootstrap: str,
) -> None:
    """Stand for election NAME, and run COMMAND while leading.

    In the crontab of each of several machines, to run a job on one of them:

    0 3 * * * logd elect run nightly --wait 0 --hold 60 -- ./nightly.sh

    COMMAND finds LOGD_FENCE_ID, LOGD_FENCE_TOKEN and both as LOGD_FENCE in its environment, and is
    ended when leadership is lost, or when somebody says `logd elect resign NAME`.

    Exits with COMMAND's code; 0 if it was asked to resign; 4 if somebody else leads (with --wait),
    or leadership was lost.
    """
    if again and wait_s is not None:
        raise click.UsageError("--again stands for ever: it does not go with --wait")
    from logd.cli.holding import Job, client_name, leave_with, open_signals
    from logd.cli.session import connected, run_async
    from logd.cli.waiting import not_to_be_had, obtain_telling
    from logd.errors import LeaseLostError, WouldWaitError

    job = Job(command=command, bootstrap=bootstrap, ttl_s=ttl_s, hold_s=hold_s)

    async def stand() -> int:
        async with (
            connected(bootstrap, client_id=client_name()) as client,
            open_signals() as signals,
        ):
            election = client.election(name, protects=protects, ttl_s=ttl_s)
            while True:
                try:
                    campaign = election.campaign(data, timeout_s=wait_s)
                    win: Callable[[], Awaitable[Leadership | None]] = campaign.win_now
                    if wait_s != 0:
                        win = partial(
                            obtain_telling, campaign.win, name, "led", election.candidates
                        )
                    leadership = await signals.obtain(win)
                    if leadership is None:
                        found = await election.candidates()
                        raise WouldWaitError(not_to_be_had(name, "led", found))
                    code = await _lead(client, leadership, job, signals)
                except LeaseLostError as error:
                    if not again:
                        raise
                    say(f"logd: {error}: standing again")
                else:
                    if not again:
                        return code
                # A command that fails at once would be elected hundreds of times a second; and
                # somebody else may have better luck.
                await signals.obtain(partial(anyio.sleep, STAND_AGAIN_S))

    leave_with(run_async(stand))


async def _lead(client: Client, leadership: Leadership, job: Job, signals: Signals) -> int:
    """One leadership, and the command's exit code."""
    from logd_client.background import task_group

    code = 0
    try:
        async with task_group() as tasks:
            tasks.start_soon(_listen_for_resignation, client, leadership, tasks.cancel_scope)
            code = await job.run(leadership, signals=signals)
            tasks.cancel_scope.cancel()
    finally:
        await leadership.release()
    return code


def _resignation_key(name: str) -> tuple[str, str]:
    """Namespace and key by which a leader is asked to resign."""
    from logd_client.coordination.names import parse_name

    parsed = parse_name(name)
    return parsed.namespace, f"logd.resign/{parsed.name}"


async def _listen_for_resignation(
    client: Client, leadership: Leadership, scope: anyio.CancelScope
) -> None:
    namespace, key = _resignation_key(leadership.name)
    kv = client.kv(namespace)
    async with kv.watch(key, tells_gaps=True) as events:
        while True:
            asked = await kv.get(key)
            if asked is not None and asked.value == str(leadership.token).encode():
                say("logd: asked to resign: ending the command")
                scope.cancel()
                return
            await events.next()


@elect.command("resign")
@click.argument("name")
@bootstrap_option
@output_option
def resign(name: str, bootstrap: str, output: str) -> None:
    """Have the `logd elect run` that leads NAME end its command, and let the next one lead."""
    from logd.cli.session import connected, run_async
    from logd.errors import RequestTimeoutError, UnknownNameError

    async def ask() -> int:
        async with connected(bootstrap) as client:
            election = client.election(name)
            async with election.observe() as leaders:
                leader = await leaders.next()
                if leader is None:
                    raise UnknownNameError(f"nobody leads {name}")
                namespace, key = _resignation_key(name)
                await client.kv(namespace).put(key, str(leader.token).encode(), ephemeral=True)
                with anyio.move_on_after(RESIGN_TIMEOUT_S):
                    while True:
                        found = await leaders.next()
                        if found is None or found.token != leader.token:
                            return leader.token
        raise RequestTimeoutError(
            f"the leader of {name} (token {leader.token}) did not resign within "
            f"{RESIGN_TIMEOUT_S:g} s: is it a `logd elect run`?"
        )

    token = run_async(ask)
    if output == "json":
        print_json({"election": name, "token": token})
    else:
        click.echo(f"leader with token {token} has resigned")


@elect.command("list")
@namespace_option
@bootstrap_option
@output_option
def list_elections(namespace: str, bootstrap: str, output: str) -> None:
    """Elections of a namespace that somebody leads or stands for."""
    from logd.cli.holders import show_holders

    show_holders("election", namespace, bootstrap, output)


@elect.command("describe")
@click.argument("name")
@bootstrap_option
@output_option
def describe(name: str, bootstrap: str, output: str) -> None:
    """Who leads NAME, and who stands in line."""
    from logd.cli.holders import describe_holders

    describe_holders("election", name, bootstrap, output)


@elect.command("observe")
@click.argument("name")
@click.option("--count", type=IntegerType(min=1), help="Stop after so many leaders.")
@bootstrap_option
@output_option
def observe(name: str, count: int | None, bootstrap: str, output: str) -> None:
    """Leaders as they come, the present one first; nothing leads between two."""
    from logd.cli.session import connected, run_async

    async def follow() -> None:
        told = 0
        async with connected(bootstrap) as client, client.election(name).observe() as leaders:
            async for leader in leaders:
                show_leader(leader, output)
                told += leader is not None
                if told == count:
                    return

    run_async(follow)


def show_leader(leader: Leader | None, output: str) -> None:
    """One line."""
    row: dict[str, Any] = {"leader": leader is not None}
    if leader is not None:
        row |= {"token": leader.token, "session": leader.session, "ticket": leader.ticket}
        row |= text_or_base64("data", leader.data)
    if output == "json":
        print_json(row)
    elif leader is None:
        click.echo("nobody leads")
    else:
        (data,) = cells_of(row, ("data",))
        click.echo(f"token {leader.token}  {cell_text(data)}".rstrip())
    sys.stdout.flush()
