"""``logd consume``: records out, as lines or as JSON.

Without ``--follow`` it reads up to what was committed when it began and ends: a log that is
still written to would otherwise never end.  Values go out in whole batches, joined once;
nothing is done per record that a batch can do.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from logd.cli.options import bootstrap_option
from logd.cli.start import FromEnd, FromOffset, FromStart, FromTime, Start, parse_start

if TYPE_CHECKING:
    from logd.wire.messages import OffsetsResponse
    from logd_client import Batch, Client

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
@click.argument("topic")
@click.option("--partition", type=click.IntRange(min=0), help="Only this one.  Default: all.")
@click.option(
    "--from",
    "start",
    type=StartType(),
    help="start, end, an offset, a timestamp with zone, or an age (-15m).  "
    "Default: start, or end with --follow.",
)
@click.option("--follow", is_flag=True, help="Go on with what is committed from now on.")
@click.option("--count", type=click.IntRange(min=0), help="End after this many records.")
@click.option("--replica", type=click.IntRange(min=1), help="Read from this broker's replica.")
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
    output: str,
    bootstrap: str,
) -> None:
    """Read the records of TOPIC."""
    from logd.cli.session import run_async

    if start is None:
        start = FromEnd() if follow else FromStart()
    encode = encode_json_lines if output == "json" else encode_values
    run_async(_consume, bootstrap, topic, partition, start, follow, count, replica, encode)


async def _consume(
    bootstrap: str,
    topic: str,
    partition: int | None,
    start: Start,
    follow: bool,
    count: int | None,
    replica: int | None,
    encode: Encode,
) -> None:
    from logd.cli.session import connected, partition_metadata, topic_metadata

    async with connected(bootstrap, needs_controller=False) as client:
        if partition is None:
            (info,) = (await topic_metadata(client, topic)).topics
            numbers = [one.partition for one in info.partitions]
        else:
            await partition_metadata(client, topic, partition)
            numbers = [partition]
        if isinstance(start, FromOffset) and len(numbers) > 1:
            raise click.UsageError(
                f"an offset belongs to one partition and {topic} has {len(numbers)}: "
                "add --partition"
            )
        spans = {number: await _span(client, topic, number, start, replica) for number in numbers}
        ends = None if follow else {number: end for number, (_, end) in spans.items()}
        starts = {number: begin for number, (begin, end) in spans.items() if follow or begin < end}
        if starts and count != 0:
            await _copy(client, topic, starts, ends, count, replica, encode)


async def _span(
    client: Client, topic: str, partition: int, start: Start, replica: int | None
) -> tuple[int, int]:
    """Offsets [begin, end) that are to be read, by what is committed now.

    Raises:
        OffsetOutOfRangeError: the offset asked for is not in the log; says what is.
    """
    from logd.errors import OffsetOutOfRangeError

    time_ms = int(start.time.timestamp() * 1000) if isinstance(start, FromTime) else None
    offsets: OffsetsResponse = await client.admin.offsets(
        topic, partition, time_ms=time_ms, replica=replica
    )
    match start:
        case FromStart():
            return offsets.log_start, offsets.data_end
        case FromEnd():
            return offsets.commit_offset, offsets.data_end
        case FromTime():
            begin = offsets.commit_offset if offsets.time_offset is None else offsets.time_offset
            return begin, offsets.data_end
        case FromOffset(offset):
            if offsets.log_start <= offset <= offsets.commit_offset:
                return offset, offsets.data_end
            raise OffsetOutOfRangeError(
                f"offset {offset} is not in {topic}/{partition}, "
                f"which holds [{offsets.log_start}, {offsets.commit_offset}]",
                offsets.log_start,
                offsets.commit_offset,
            )


async def _copy(
    client: Client,
    topic: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int] | None,
    count: int | None,
    replica: int | None,
    encode: Encode,
) -> None:
    """Write records until every end, or the count, is reached."""
    import anyio

    unfinished = set(starts)
    left = count
    async with client.consumer(topic, start=starts, replica=replica) as consumer:
        async for batch in consumer.batches():
            taken = len(batch)
            if ends is not None:
                end = ends[batch.partition]
                taken = sum(1 for offset in batch.offsets if offset < end)
                if batch.next_offset >= end:
                    unfinished.discard(batch.partition)
            if left is not None:
                taken = min(taken, left)
                left -= taken
            if taken:
                data = encode(batch, slice(0, taken))
                # In a thread: a slow reader of our pipe must not stop our connection.
                await anyio.to_thread.run_sync(write_all, data)
            if left == 0 or (ends is not None and not unfinished):
                return


def write_all(data: bytes) -> None:
    """Write to stdout, unbuffered, whatever the pipe takes at a time."""
    view = memoryview(data)
    descriptor = sys.stdout.fileno()
    while view:
        view = view[os.write(descriptor, view) :]


def encode_values(batch: Batch, part: slice) -> bytes:
    """Each value and a newline; a tombstone, which has no value, is an empty line."""
    values = batch.values[part]
    try:
        return b"\n".join((*values, b""))
    except TypeError:  # Joining refuses None: there are tombstones among them.
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


def text_or_base64(name: str, data: bytes | None) -> dict[str, str | None]:
    """``name`` when the bytes are UTF-8 text, else ``name_base64``; null stays null."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode("ascii")}
