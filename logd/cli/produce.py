"""``logd produce``: lines in, records out.

Files and pipes are read in large blocks in a thread, cut at newlines and appended in chunks
as they were read; nothing is done per line that a block can do.  A pipe's lines are sent as
they come, so typing into it works too.

A line over the record limit is reported by its number and left out; the others go on, and
the command ends with exit code 1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import click
import msgspec

from logd.cli import streams
from logd.cli.display import count_of, print_json, say
from logd.cli.exits import ExitCode
from logd.cli.lines import LineCutter
from logd.cli.options import FENCE, TOPIC, IntegerType, bootstrap_option, output_option
from logd.cli.progress import RecordProgress
from logd.cli.streams import STANDARD_INPUT

if TYPE_CHECKING:
    from logd_client import AckRange

DELIVERY_TIMEOUT_MS: Final = 30_000
"""An outage longer than this ends the command, which then says what was not appended."""

Compression = Literal["zstd", "none"]


class PartitionSummary(msgspec.Struct, kw_only=True):
    """What one partition took."""

    partition: int
    records: int
    first_offset: int
    last_offset: int


class Summary:
    """Counts acknowledgements."""

    def __init__(self) -> None:
        self.partitions: dict[int, PartitionSummary] = {}
        self.lines_read = 0

    @property
    def records(self) -> int:
        return sum(one.records for one in self.partitions.values())

    def add(self, acks: Sequence[AckRange]) -> None:
        """Count what one call appended."""
        for ack in acks:
            first, last = ack.base_offset, ack.base_offset + ack.count - 1
            known = self.partitions.get(ack.partition)
            if known is None:
                self.partitions[ack.partition] = PartitionSummary(
                    partition=ack.partition,
                    records=ack.count,
                    first_offset=first,
                    last_offset=last,
                )
                continue
            known.records += ack.count
            known.first_offset = min(known.first_offset, first)
            known.last_offset = max(known.last_offset, last)


@click.command()
@click.argument("topic", type=TOPIC)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--key-separator", help="What stands before it in a line is the record's key.")
@click.option("--partition", type=IntegerType(min=0), help="Default: by key, else in turn.")
@click.option(
    "--compression",
    type=click.Choice(["zstd", "none"]),
    default="none",
    show_default=True,
    help="Of what this command sends; brokers store it as it comes.",
)
@click.option(
    "--fence",
    type=FENCE,
    help="Refused once the topic has seen a newer token: $LOGD_FENCE of `logd lock run`.",
)
@bootstrap_option
@output_option
@click.pass_context
def produce(
    context: click.Context,
    topic: str,
    files: tuple[str, ...],
    key_separator: str | None,
    partition: int | None,
    compression: Compression,
    fence: tuple[int, int] | None,
    bootstrap: str,
    output: str,
) -> None:
    """Append every line of the FILES (default: standard input) to TOPIC.

    A line is any bytes up to a newline, at most 1 MiB; longer ones are reported and left out.
    """
    if key_separator == "":
        raise click.BadParameter("must not be empty", param_hint="--key-separator")
    from logd.cli.session import run_async

    separator = None if key_separator is None else os.fsencode(key_separator)
    began = time.monotonic()
    summary = Summary()
    names = files or (STANDARD_INPUT,)
    try:
        oversized_count = run_async(
            _produce, bootstrap, topic, names, separator, partition, compression, fence, summary
        )
    except BaseException:
        if summary.lines_read:
            read = count_of(summary.lines_read, "line")
            say(f"logd: ended early, after {read}; acknowledged until then:")
            _report(topic, summary, time.monotonic() - began, 0, output)
        raise
    _report(topic, summary, time.monotonic() - began, oversized_count, output)
    if oversized_count:
        context.exit(ExitCode.FAILED)


async def _produce(
    bootstrap: str,
    topic: str,
    files: Sequence[str],
    separator: bytes | None,
    partition: int | None,
    compression: Compression,
    fence: tuple[int, int] | None,
    summary: Summary,
) -> int:
    """Append all lines, counted in ``summary``; return how many lines were too long."""
    import anyio

    from logd.cli import patience
    from logd.cli.appending import RECORDS_PER_CALL_MAX, AppendLane
    from logd.cli.session import connected, require_partition
    from logd_client.coordination.fences import Fence

    carried = None if fence is None else Fence(*fence)
    oversized_count = 0
    is_typed = STANDARD_INPUT in files and streams.is_typed()
    async with connected(bootstrap) as client:
        if partition is not None:
            await require_partition(client, topic, partition)
        # A bar would be drawn over what is being typed.
        with RecordProgress(f"produce {topic}", is_shown=not is_typed) as progress:

            def count(acks: Sequence[AckRange], _: float) -> None:
                summary.add(acks)
                progress.advance(sum(ack.count for ack in acks))

            async with (
                client.producer(
                    topic, compression=compression, delivery_timeout_ms=DELIVERY_TIMEOUT_MS
                ) as producer,
                anyio.create_task_group() as watching,
            ):
                watching.start_soon(
                    partial(
                        patience.watch,
                        producer,
                        say=progress.say,
                        has_begun=lambda: summary.records > 0,
                        gives_up=True,
                    )
                )
                async with anyio.create_task_group() as tasks:
                    lane = AppendLane(producer, tasks, count, carried)
                    for name in files:
                        cutter = LineCutter()
                        async for lines in streams.lines_of(name, cutter):
                            for first in range(0, len(lines), RECORDS_PER_CALL_MAX):
                                part = lines[first : first + RECORDS_PER_CALL_MAX]
                                keys, values = split_keys(part, separator)
                                summary.lines_read += len(part)
                                await lane.append(values, keys=keys, partition=partition)
                        streams.report_oversized(name, cutter, "the record limit")
                        oversized_count += len(cutter.oversized)
                watching.cancel_scope.cancel()
    return oversized_count


def split_keys(
    lines: list[bytes], separator: bytes | None
) -> tuple[Sequence[bytes | None] | None, Sequence[bytes]]:
    """Keys and values; a line without the separator has no key."""
    if separator is None:
        return None, lines
    keys: list[bytes | None] = []
    values: list[bytes] = []
    for line in lines:
        before, found, after = line.partition(separator)
        keys.append(before if found else None)
        values.append(after if found else line)
    return keys, values


def _report(
    topic: str, summary: Summary, seconds: float, oversized_count: int, output: str
) -> None:
    partitions = [summary.partitions[number] for number in sorted(summary.partitions)]
    rate = summary.records / seconds if seconds > 0 else 0.0
    if output == "json":
        print_json(
            {
                "topic": topic,
                "records": summary.records,
                "records_per_s": round(rate, 1),
                "oversized": oversized_count,
                "partitions": partitions,
            }
        )
        return
    say(f"{count_of(summary.records, 'record')} to {topic} in {seconds:.2f} s ({rate:,.0f}/s)")
    for one in partitions:
        say(
            f"  partition {one.partition}: {count_of(one.records, 'record')}, "
            f"offsets {one.first_offset} to {one.last_offset}"
        )
