"""``logd consume``: records out, as lines or as JSON.

Without ``--follow`` it reads up to what was committed when it began and ends: a log that is
still written to would otherwise never end.  Values go out in whole batches, joined once;
nothing is done per record that a batch can do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from logd.cli import streams
from logd.cli.display import named_output, say, text_or_base64
from logd.cli.options import BROKER_ID, TOPIC, IntegerType, bootstrap_option
from logd.cli.start import FromEnd, FromOffset, FromStart, FromTime, Start, parse_start
from logd.wording import named

if TYPE_CHECKING:
    from logd_client import Batch, Client, Consumer

    Encode = Callable[[Batch, slice], bytes]


class StartType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """``--from``."""

    name = "start|end|offset|timestamp|-15m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or say what was expected."""
        if not isinstance(value, str):
            return value
        try:
            return parse_start(value, datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("topic", type=TOPIC)
@click.option("--partition", type=IntegerType(min=0), help="Only this one.  Default: all.")
@click.option(
    "--from",
    "start",
    type=StartType(),
    metavar="start|end|OFFSET|TIMESTAMP|-15m",
    help="start, end, an offset, a timestamp with zone, or an age (-15m).  "
    "Default: start, or end with --follow.",
)
@click.option("--follow", is_flag=True, help="Go on with what is committed from now on.")
@click.option("--count", type=IntegerType(min=0), help="End after this many records.")
@click.option("--replica", type=BROKER_ID, help="Read from this broker's replica.")
@click.option(
    "--on-trimmed",
    type=click.Choice(["fail", "earliest"]),
    default="fail",
    show_default=True,
    help="Where retention has removed what comes next: fail, or go on with what is left.",
)
@click.option(
    "--on-malformed",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Where a batch is intact and cannot be read: fail, or go on behind it and say on "
    "standard error which offsets were skipped.",
)
@click.option(
    "--output",
    type=click.Choice(["value", "json"]),
    default="value",
    show_default=True,
    help="The value and a newline, or one JSON object per line.",
)
@bootstrap_option
def consume(
    topic: str,
    partition: int | None,
    start: Start | None,
    follow: bool,
    count: int | None,
    replica: int | None,
    on_trimmed: str,
    on_malformed: str,
    output: str,
    bootstrap: str,
) -> None:
    """Read the records of TOPIC."""
    from logd.cli.session import run_async

    if streams.is_output_closed():
        raise click.UsageError("standard output is closed")
    if start is None:
        start = FromEnd() if follow else FromStart()
    encode = encode_json_lines if output == "json" else encode_values
    wanted = Wanted(
        topic=topic,
        partition=partition,
        start=start,
        follow=follow,
        count=count,
        replica=replica,
        leaps=on_trimmed == "earliest",
        skips_malformed=on_malformed == "skip",
    )
    run_async(_consume, bootstrap, wanted, encode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command was asked to read."""

    topic: str
    partition: int | None
    start: Start
    follow: bool
    count: int | None
    replica: int | None
    leaps: bool
    """Over what was trimmed."""
    skips_malformed: bool


async def _consume(bootstrap: str, wanted: Wanted, encode: Encode) -> None:
    """Find out where that begins and ends, and read it."""
    import anyio

    from logd.cli import patience
    from logd.cli.session import connected

    topic, start, replica = wanted.topic, wanted.start, wanted.replica
    async with connected(bootstrap, needs_controller=replica is None) as client:
        info = await client.admin.describe_topic(topic)
        numbers = range(len(info.partitions)) if wanted.partition is None else [wanted.partition]
        if isinstance(start, FromOffset) and len(numbers) > 1:
            raise click.UsageError(
                f"an offset belongs to one partition and {topic} has {len(numbers)}: "
                "add --partition"
            )
        extents = await extents_of(client, topic, numbers, replica)
        if isinstance(start, FromOffset):
            (extent,) = extents.values()
            if not wanted.leaps or start.offset > extent.commit_offset:
                _check_offset(f"{topic}/{numbers[0]}", start.offset, extent)
        if wanted.count == 0:
            return
        opened = client.consumer(
            topic,
            start=_consumer_start(start),
            stop=None if wanted.follow else {n: extent.end for n, extent in extents.items()},
            partitions=list(numbers),
            from_replica=replica,
            on_trimmed="earliest" if wanted.leaps else "raise",
            on_malformed="skip" if wanted.skips_malformed else "raise",
        )
        opened.on_skipped = lambda error: say(f"logd: skipped: {error}")
        async with opened as consumer:
            read = Read()
            async with anyio.create_task_group() as watching:
                watching.start_soon(
                    partial(
                        patience.watch,
                        consumer,
                        say=say,
                        progress=lambda: read.records,
                        gives_up=not wanted.follow,
                        stuck_after_s=patience.STUCK_AFTER_S,
                    )
                )
                await _copy(consumer, wanted.count, encode, read)
                watching.cancel_scope.cancel()


@dataclass(slots=True)
class Read:
    """How far the command has come."""

    records: int = 0


class Extent(NamedTuple):
    """What one partition holds now."""

    log_start: int
    commit_offset: int
    end: int
    """Where its records end; what lies between here and the commit offset is no data."""


async def extents_of(
    client: Client, topic: str, numbers: Sequence[int], replica: int | None
) -> dict[int, Extent]:
    """Of each of these partitions; which one stands in the way of the others is said."""
    from logd.errors import LogdError

    extents: dict[int, Extent] = {}
    for number in numbers:
        try:
            extents[number] = await _extent(client, topic, number, replica)
        except LogdError:
            if len(numbers) > 1:
                say(f"logd: {topic}/{number} cannot be read; --partition reads another one alone")
            raise
    return extents


async def _extent(client: Client, topic: str, partition: int, replica: int | None) -> Extent:
    """Ask the leader, or the replica that shall be read."""
    from logd.cli.session import require_alive, require_partition
    from logd.errors import NotAReplicaError

    if replica is None:
        offsets = await client.admin.offsets(topic, partition)
        return Extent(offsets.log_start, offsets.commit_offset, offsets.data_end)
    known = await require_partition(client, topic, partition)
    await require_alive(client, replica)
    for held in (await client.admin.describe_broker(replica)).replicas:
        if held.group == known.group:
            return Extent(held.log_start, held.commit_offset, held.commit_offset)
    raise NotAReplicaError(
        f"broker {replica} holds no replica of {topic}/{partition}, which is on "
        f"{named('broker', known.replicas)}"
    )


def _check_offset(name: str, offset: int, extent: Extent) -> None:
    from logd.errors import OffsetOutOfRangeError

    if not extent.log_start <= offset <= extent.commit_offset:
        is_trimmed = offset < extent.log_start
        hint = "; --on-trimmed earliest begins with what is left" if is_trimmed else ""
        raise OffsetOutOfRangeError(
            f"offset {offset} is outside {name}: valid are {extent.log_start} to "
            f"{extent.commit_offset}, where the next record goes{hint}",
            extent.log_start,
            extent.commit_offset,
        )


def _consumer_start(start: Start) -> Literal["earliest", "latest"] | int | datetime:
    match start:
        case FromStart():
            return "earliest"
        case FromEnd():
            return "latest"
        case FromOffset(offset):
            return offset
        case FromTime(time):
            return time


async def _copy(
    consumer: Consumer,
    count: int | None,
    encode: Encode,
    read: Read,
) -> None:
    """Write records until the consumer's stop, or the count, is reached."""
    import anyio

    left = count
    while left != 0 and (batch := await _next_batch(consumer)) is not None:
        taken = len(batch)
        if left is not None:
            taken = min(taken, left)
            left -= taken
        read.records += taken
        data = encode(batch, slice(0, taken))
        # In a thread: a slow reader of our pipe must not stop our connection.
        await anyio.to_thread.run_sync(write_all, data, abandon_on_cancel=True)


async def _next_batch(consumer: Consumer) -> Batch | None:
    """The next one; of one that cannot be read it is said how to get past it."""
    from logd.errors import CorruptionError, MalformedBatchError

    try:
        return await consumer.next_batch()
    except MalformedBatchError as error:
        raise CorruptionError(f"{error}; --on-malformed skip goes on behind it") from error


def write_all(data: bytes) -> None:
    """Write to stdout, unbuffered, whatever the pipe takes at a time."""
    view = memoryview(data)
    with named_output():
        descriptor = sys.stdout.fileno()
        while view:
            view = view[os.write(descriptor, view) :]


def encode_values(batch: Batch, part: slice) -> bytes:
    """Each value and a newline; a tombstone, which has no value, is an empty line."""
    values = batch.values[part]
    try:
        return b"\n".join((*values, b""))  # type: ignore[arg-type]  # Tombstones are rare.
    except TypeError:
        return b"\n".join((*(value or b"" for value in values), b""))


def encode_json_lines(batch: Batch, part: slice) -> bytes:
    """One object per record and line."""
    import msgspec

    rows = zip(
        batch.offsets[part],
        batch.timestamps_ms[part],
        batch.keys[part],
        batch.values[part],
        batch.headers[part],
        strict=True,
    )
    return msgspec.json.Encoder().encode_lines(
        [
            {
                "topic": batch.topic,
                "partition": batch.partition,
                "offset": offset,
                "timestamp_ms": timestamp_ms,
                **text_or_base64("key", key),
                **text_or_base64("value", value),
                "headers": [
                    {"name": name, **text_or_base64("value", content)} for name, content in headers
                ],
            }
            for offset, timestamp_ms, key, value, headers in rows
        ]
    )
