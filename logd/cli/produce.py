"""``logd produce``: lines in, records out.

Files and pipes are read in large blocks in a thread, cut at newlines and appended in chunks
as they were read; nothing is done per line that a block can do.  A pipe's lines are sent as
they come, so typing into it works too.

A line over the record limit is reported by its number and left out; the others go on, and
the command ends with exit code 1.

With ``--input json`` a line is a record as ``consume`` prints it (``json_records.py``).  Those
are appended one by one, and a line that is none ends the command.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import click
import msgspec

from logd.cli import streams
from logd.cli.display import print_json, say
from logd.cli.exits import ExitCode
from logd.cli.lines import LineCutter
from logd.cli.options import FENCE, TOPIC, IntegerType, bootstrap_option, output_option
from logd.cli.progress import RecordProgress
from logd.cli.streams import STANDARD_INPUT
from logd.errors import UsageError
from logd.wording import are, count_of

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from logd.cli.appending import LineLane
    from logd.cli.json_records import RecordLane
    from logd_client import AckRange, Producer

DELIVERY_TIMEOUT_MS: Final = 30_000
"""An outage longer than this ends the command, which then says what was not appended."""

Compression = Literal["zstd", "none"]
Form = Literal["lines", "json"]


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
@click.option(
    "--input",
    "form",
    type=click.Choice(["lines", "json"]),
    default="lines",
    show_default=True,
    help="What a line is: a value, or a record as `logd consume --output json` prints it, of which "
    "key, value, headers and timestamp are taken.",
)
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
    form: Form,
    key_separator: str | None,
    partition: int | None,
    compression: Compression,
    fence: tuple[int, int] | None,
    bootstrap: str,
    output: str,
) -> None:
    """Append every line of the FILES (default: standard input) to TOPIC.

    A line is any bytes up to a newline, at most 1 MiB; longer ones are reported and left out.
    What `logd consume --output json` has printed is put back by --input json.
    """
    if key_separator == "":
        raise click.BadParameter("must not be empty", param_hint="--key-separator")
    if key_separator is not None and form == "json":
        raise click.UsageError("--key-separator is for lines; with --input json keys are there")
    from logd.cli.session import run_async

    wanted = Wanted(
        topic=topic,
        files=files or (STANDARD_INPUT,),
        form=form,
        separator=None if key_separator is None else os.fsencode(key_separator),
        partition=partition,
        compression=compression,
        fence=fence,
    )
    began = time.monotonic()
    summary = Summary()
    try:
        oversized_count = run_async(_produce_unless_told_to_end, bootstrap, wanted, summary)
    except BaseException:
        if summary.lines_read:
            read = count_of(summary.lines_read, "line")
            known = f"{summary.records:,} of {read} read {are(summary.records)} known to be in"
            say(f"logd: ended early; {known}:")
            _report(topic, summary, time.monotonic() - began, 0, output)
        raise
    _report(topic, summary, time.monotonic() - began, oversized_count, output)
    if oversized_count:
        context.exit(ExitCode.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command was asked to append."""

    topic: str
    files: Sequence[str]
    form: Form
    separator: bytes | None
    partition: int | None
    compression: Compression
    fence: tuple[int, int] | None


async def _produce_unless_told_to_end(bootstrap: str, wanted: Wanted, summary: Summary) -> int:
    """What was appended is told to whoever ends us by SIGTERM, too."""
    from logd.cli.holding import open_signals

    async with open_signals() as signals:
        return await signals.obtain(partial(_produce, bootstrap, wanted, summary))


async def _produce(bootstrap: str, wanted: Wanted, summary: Summary) -> int:
    """Append all lines, counted in ``summary``; return how many lines were too long."""
    import anyio

    from logd.cli import patience
    from logd.cli.session import connected, require_partition

    topic = wanted.topic
    is_typed = STANDARD_INPUT in wanted.files and streams.is_typed()
    async with connected(bootstrap) as client:
        if wanted.partition is not None:
            await require_partition(client, topic, wanted.partition)
        # A bar would be drawn over what is being typed.
        with RecordProgress(f"produce {topic}", is_shown=not is_typed) as progress:

            def count(acks: Sequence[AckRange]) -> None:
                summary.add(acks)
                progress.advance(sum(ack.count for ack in acks))

            async with (
                client.producer(
                    topic, compression=wanted.compression, delivery_timeout_ms=DELIVERY_TIMEOUT_MS
                ) as producer,
                anyio.create_task_group() as watching,
            ):
                watching.start_soon(
                    partial(
                        patience.watch,
                        producer,
                        say=progress.say,
                        progress=lambda: summary.records,
                        gives_up=True,
                    )
                )
                async with anyio.create_task_group() as tasks:
                    lane = _lane(wanted, producer, tasks, count)
                    oversized_count = await _append_files(wanted.files, lane, summary)
                watching.cancel_scope.cancel()
    return oversized_count


async def _append_files(files: Sequence[str], lane: LineLane | RecordLane, summary: Summary) -> int:
    """Append all lines but those that are too long; how many those were."""
    oversized_count = 0
    for name in files:
        cutter = LineCutter(lane.line_bytes_max)
        async for lines in streams.lines_of(name, cutter):
            summary.lines_read += len(lines)
            with told_where(name, cutter):
                await lane.append(lines)
        streams.report_oversized(name, cutter, lane.line_limit)
        oversized_count += len(cutter.oversized)
    await lane.finish()
    return oversized_count


@contextmanager
def told_where(name: str, cutter: LineCutter) -> Iterator[None]:
    """Say which line of the file is no record, of those that ``cutter`` gave last."""
    from logd.cli.json_records import NoRecordError

    try:
        yield
    except NoRecordError as error:
        number = cutter.number_of(error.at)
        raise UsageError(f"{streams.name_of(name)}, line {number}: {error}") from error


def _lane(
    wanted: Wanted,
    producer: Producer,
    tasks: TaskGroup,
    count: Callable[[Sequence[AckRange]], None],
) -> LineLane | RecordLane:
    from logd.cli.appending import AppendLane, LineLane
    from logd.cli.json_records import RecordLane
    from logd_client.coordination.fences import Fence

    fence = None if wanted.fence is None else Fence(*wanted.fence)
    if wanted.form == "json":
        return RecordLane(producer, tasks, count, partition=wanted.partition, fence=fence)
    lane = AppendLane(producer, tasks, lambda acks, _: count(acks), fence)
    return LineLane(lane, separator=wanted.separator, partition=wanted.partition)


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
