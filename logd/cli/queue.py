"""``logd queue``: put, claim, complete, and look after work queues."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli import streams
from logd.cli.claims import claim, complete, release, renew, tell_done
from logd.cli.display import (
    cells_of,
    moment_text,
    print_facts,
    print_json,
    print_table,
    say,
    text_or_base64,
)
from logd.cli.exits import ExitCode
from logd.cli.lazy import NounGroup
from logd.cli.lines import LineCutter
from logd.cli.options import (
    IntegerType,
    SecondsType,
    bootstrap_option,
    output_option,
    ttl_option,
)
from logd.limits import (
    ANSWER_ENTRIES_MAX,
    ATTEMPTS_MAX,
    COMMAND_BYTES_MAX,
    DEAD_ITEMS_MAX,
    DELAY_MS_MAX,
    ITEMS_PER_COMMAND_MAX,
    KEY_BYTES_MAX,
    MIB,
    NUMBER_MAX,
    PRIORITY_MAX,
    VALUE_BYTES_MAX,
    VISIBILITY_MS_MAX,
    VISIBILITY_MS_MIN,
)
from logd.wording import count_of

if TYPE_CHECKING:
    from logd.wire.coordination import QueueOptions, QueueStatistics
    from logd_client.coordination.queues import Claim

PUT_BYTES_MAX: Final = MIB
"""Payloads that are put together."""

assert PUT_BYTES_MAX + ITEMS_PER_COMMAND_MAX * KEY_BYTES_MAX <= COMMAND_BYTES_MAX


@click.group(cls=NounGroup)
def queue() -> None:
    """Put, claim and work on the items of queues."""


for by_hand in (claim, complete, release, renew):
    queue.add_command(by_hand)


# --- putting and working ------------------------------------------------------------------


@queue.command("put")
@click.argument("name")
@click.argument("payloads", nargs=-1)
@click.option("--key", default="", help="Items of one key are worked on one at a time, in order.")
@click.option(
    "--delay", "delay_s", type=SecondsType(min=0), default=0, metavar="SECONDS",
    help="Not handed out before.",
)  # fmt: skip
@click.option(
    "--priority", type=IntegerType(-PRIORITY_MAX, PRIORITY_MAX), default=0,
    help="Higher ones first.",
)  # fmt: skip
@bootstrap_option
@output_option
def put(
    name: str,
    payloads: tuple[str, ...],
    key: str,
    delay_s: float,
    priority: int,
    bootstrap: str,
    output: str,
) -> None:
    """Put an item for each PAYLOAD, or for each line of standard input."""
    from logd.cli.session import connected, run_async

    ids: list[int] = []
    cutter = LineCutter(VALUE_BYTES_MAX)

    async def put_all() -> None:
        from logd_client.coordination.queues import make_item

        make = partial(make_item, key=os.fsencode(key), delay_s=delay_s, priority=priority)
        make(b"")  # What is wrong with the options is told before anything is connected to.
        async with connected(bootstrap) as client:
            wanted = client.queue(name)
            async for some in _some_at_a_time(payloads, cutter):
                ids.extend(await wanted.put_many([make(payload) for payload in some]))

    def report() -> None:
        if output == "json":
            print_json({"items": ids})
        else:
            click.echo(f"put {count_of(len(ids), 'item')} into {name}")

    try:
        run_async(put_all)
    except BaseException:
        if ids:
            say("logd: ended early; put until then:")
            report()
        raise
    report()
    streams.report_oversized(streams.STANDARD_INPUT, cutter, "the limit of an item")
    if cutter.oversized:
        raise click.exceptions.Exit(ExitCode.FAILED)


async def _some_at_a_time(
    payloads: Sequence[str], cutter: LineCutter
) -> AsyncIterator[Sequence[bytes]]:
    """The payloads, or the lines of standard input, as many as one command may have."""
    if payloads:
        for some in commands_of([os.fsencode(payload) for payload in payloads]):
            yield some
        return
    lines_read = streams.lines_of(
        streams.STANDARD_INPUT, cutter, instead="give the payloads behind the name"
    )
    async for lines in lines_read:
        for some in commands_of(lines):
            yield some


def commands_of(payloads: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """``payloads`` in parts, each of which one command can put."""
    some: list[bytes] = []
    some_bytes = 0
    for payload in payloads:
        if some and (
            len(some) == ITEMS_PER_COMMAND_MAX or some_bytes + len(payload) > PUT_BYTES_MAX
        ):
            yield some
            some, some_bytes = [], 0
        some.append(payload)
        some_bytes += len(payload)
    if some:
        yield some


@queue.command("work")
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@click.option(
    "--concurrency", type=IntegerType(1, ITEMS_PER_COMMAND_MAX), default=1, show_default=True,
    help="Commands that run at the same time.",
)  # fmt: skip
@click.option("--until-empty", is_flag=True, help="End when nothing is due.")
@ttl_option
@bootstrap_option
@output_option
def work(
    name: str,
    command: tuple[str, ...],
    concurrency: int,
    until_empty: bool,
    ttl_s: float,
    bootstrap: str,
    output: str,
) -> None:
    """Run COMMAND for each item: its payload on standard input, its id in LOGD_ITEM.

    Code 0 completes the item.  Any other gives it back, to be tried again after the queue's
    back-off, and to be a dead letter after too many attempts; what COMMAND wrote to its standard
    error is the reason.

    Told to end, by Ctrl-C or another signal, it asks each COMMAND to end (SIGTERM), and kills it
    after a tenth of the time to live, or of the queue's visibility if that is shorter.  Code 0
    still completes the item; else it is given back at once, and that is none of its attempts.

    When it ends it says how many items it has completed, how many attempts have failed, and how
    many items it has given back without that.  With --until-empty it exits with 1 if the last
    attempt of any item has failed: the item is due later, or dead.
    """
    from logd.cli.holding import client_name, leave_with, require_command, run_until_signalled
    from logd.cli.item_command import run_for
    from logd.cli.session import connected, run_async
    from logd.errors import UnknownNameError
    from logd_client.coordination.queues import WorkTally

    # Else each item would use up its attempts for what is no fault of its own.
    require_command(command)
    tally = WorkTally()

    async def run_all() -> None:
        async with connected(
            bootstrap, client_id=client_name(), session_ttl_ms=int(ttl_s * 1000)
        ) as client:
            wanted = client.queue(name)
            try:
                await wanted.statistics()
            except UnknownNameError as error:
                # It may have to be there before its first item; or it is called otherwise.
                say(f"logd: {error} yet: the first item that is put makes it")
            await wanted.work(
                run_one, concurrency=concurrency, until_empty=until_empty, tally=tally
            )

    undone: set[int] = set()
    """Items whose last attempt here has failed."""

    async def run_one(claim: Claim) -> None:
        undone.add(claim.id)
        await run_for(claim, command, name, bootstrap, ttl_s)
        undone.discard(claim.id)

    def report() -> None:
        if output == "json":
            print_json(asdict(tally))
            return
        parts = [f"completed {count_of(tally.completed, 'item')}"]
        parts += [f"{count_of(tally.failed, 'attempt')} failed"] if tally.failed else []
        parts += [f"gave back {count_of(tally.released, 'item')}"] if tally.released else []
        parts += [f"lost {count_of(tally.unsettled, 'claim')}"] if tally.unsettled else []
        say("; ".join(parts))

    try:
        code = run_async(run_until_signalled, run_all)
    except BaseException:
        if any(asdict(tally).values()):
            say("logd: ended early; until then:")
            report()
        raise
    report()
    if until_empty and code == ExitCode.OK and undone:
        code = ExitCode.FAILED
    leave_with(code)


# --- looking after it ---------------------------------------------------------------------


@queue.command("list")
@click.option("--namespace", default="default", show_default=True, help="Where to look.")
@bootstrap_option
@output_option
def list_queues(namespace: str, bootstrap: str, output: str) -> None:
    """The queues of a namespace, and how full they are."""
    from logd.cli.session import connected, run_async

    columns = ("name", "ready", "delayed", "in_flight", "dead", "completed", "oldest_ms")

    async def fetch() -> list[dict[str, Any]]:
        rows = []
        async with connected(bootstrap) as client:
            for one in await client.list_names("queue", namespace):
                found = await client.queue(f"{namespace}/{one}").statistics()
                row = {column: getattr(found, column) for column in columns[1:]}
                rows.append({"name": f"{namespace}/{one}", **row})
        return rows

    rows = run_async(fetch)
    if output == "json":
        print_json(rows)
    else:
        cells = [list(row.values()) for row in rows]
        print_table(columns, cells, empty=f"no queues in namespace {namespace}", whole=("name",))


@queue.command("stats")
@click.argument("name")
@bootstrap_option
@output_option
def stats(name: str, bootstrap: str, output: str) -> None:
    """How full NAME is, how old its oldest item, and its options."""
    import msgspec

    from logd.cli.session import connected, run_async

    async def fetch() -> QueueStatistics:
        async with connected(bootstrap) as client:
            return await client.queue(name).statistics()

    found = run_async(fetch)
    facts = {
        "queue": name,
        "ready": found.ready,
        "delayed": found.delayed,
        "in_flight": found.in_flight,
        "dead": found.dead,
        "completed": found.completed,
        "oldest_ms": found.oldest_ms,
        **msgspec.structs.asdict(found.options),
    }
    if output == "json":
        print_json(facts)
    else:
        print_facts(list(facts.items()))


@queue.command("configure")
@click.argument("name")
@click.option(
    "--attempts-max",
    type=IntegerType(1, ATTEMPTS_MAX),
    help="After so many an item is dead.  Of a new queue: 10.",
)
@click.option(
    "--backoff-ms",
    type=IntegerType(0, DELAY_MS_MAX),
    help="Before the second attempt.  Of a new queue: 1000.",
)
@click.option(
    "--backoff-max-ms",
    type=IntegerType(0, DELAY_MS_MAX),
    help="It is doubled up to this.  Of a new queue: 60000.",
)
@click.option(
    "--visibility-ms",
    type=IntegerType(VISIBILITY_MS_MIN, VISIBILITY_MS_MAX),
    help="How long a claim holds that is not renewed.  Of a new queue: 30000.",
)
@click.option(
    "--dead-items-max",
    type=IntegerType(0, DEAD_ITEMS_MAX),
    help="The oldest go first.  Of a new queue: 10000.",
)
@bootstrap_option
@output_option
def configure(name: str, bootstrap: str, output: str, **options: int | None) -> None:
    """Make queue NAME, or change its options: what is not given stays as it is."""
    import msgspec

    from logd.cli.session import connected, run_async

    async def change() -> QueueOptions:
        async with connected(bootstrap) as client:
            return await client.queue(name).configure(**options)

    configured = run_async(change)
    if output == "json":
        print_json({"queue": name, **msgspec.structs.asdict(configured)})


@queue.command("dead")
@click.argument("name")
@click.option(
    "--count", type=IntegerType(1, ANSWER_ENTRIES_MAX), default=100, show_default=True,
    help="At most so many.",
)  # fmt: skip
@bootstrap_option
@output_option
def dead(name: str, count: int, bootstrap: str, output: str) -> None:
    """Items that were given up, the newest first, each with why."""
    from logd.cli.session import connected, run_async

    async def fetch() -> list[dict[str, Any]]:
        async with connected(bootstrap) as client:
            found = await client.queue(name).dead_letters(count)
        return [
            {
                "item": one.item,
                "attempts": one.attempts,
                "died_ms": one.died_ms,
                "reason": one.reason,
                **text_or_base64("key", one.key),
                **text_or_base64("payload", one.payload),
            }
            for one in found
        ]

    rows = run_async(fetch)
    if output == "json":
        print_json(rows)
    else:
        columns = ("item", "attempts", "died", "reason", "key", "payload")
        shown = [row | {"died": moment_text(row["died_ms"])} for row in rows]
        print_table(columns, [cells_of(row, columns) for row in shown], empty="no dead items")


@queue.command("redrive")
@click.argument("name")
@click.argument("items", type=IntegerType(1, NUMBER_MAX), nargs=-1)
@click.option("--all", "all_items", is_flag=True, help="All dead items.")
@bootstrap_option
@output_option
def redrive(
    name: str, items: tuple[int, ...], all_items: bool, bootstrap: str, output: str
) -> None:
    """Let dead items begin anew.  Exits with 3 if none of ITEMS is dead."""
    if bool(items) == all_items:
        raise click.UsageError("name items, or say --all")
    from logd.cli.session import connected, run_async

    async def begin() -> list[int]:
        async with connected(bootstrap) as client:
            return await client.queue(name).redrive(*items)

    begun = run_async(begin)
    if items and not begun:
        say(f"logd: no dead item of {name} is called {', '.join(map(str, items))}")
        raise click.exceptions.Exit(ExitCode.NOT_FOUND)
    if output == "json":
        print_json({"items": begun})
        return
    begin_anew = "begins anew" if len(begun) == 1 else "begin anew"
    click.echo(f"{count_of(len(begun), 'item')} of {name} {begin_anew}")


@queue.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@bootstrap_option
@output_option
def delete(name: str, yes: bool, bootstrap: str, output: str) -> None:
    """Delete NAME with all its items.  Exits with 3 if there is no such queue."""
    from logd.cli.session import connected, run_async

    async def look() -> QueueStatistics:
        async with connected(bootstrap) as client:
            return await client.queue(name).statistics()

    if not yes:
        streams.confirm(f"{lost_with(name, run_async(look))}; delete it?")

    async def remove() -> None:
        async with connected(bootstrap) as client:
            await client.queue(name).delete()

    run_async(remove)
    tell_done("deleted", name, output)


def lost_with(name: str, found: QueueStatistics) -> str:
    """What is lost with a queue; the items that were completed are gone already."""
    waiting = found.ready + found.delayed
    return (
        f"queue {name} holds {count_of(waiting, 'item')} to do, {found.in_flight:,} being worked "
        f"on and {found.dead:,} dead"
    )
