"""The workloads.  Each takes a ``Bench`` and returns its figures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from logd.cli.appending import AppendLane
from logd.cli.benchmark.meter import Meter
from logd.cli.benchmark.pace import Pace, pace_of
from logd.cli.benchmark.run import Bench
from logd.cli.benchmark.settings import Settings
from logd.cli.benchmark.tailing import Tail, tailing
from logd.cli.benchmark.values import keys_of_a_call, stamped, values_of_a_call
from logd.cli.measure import Measurement
from logd.cli.progress import RecordProgress
from logd_client import WouldBlock, connect

if TYPE_CHECKING:
    from logd_client import AckRange, Client, Producer, Ticket

WARM_UP_RECORDS_MAX: Final = 2_000_000
LATENCY_WARM_UP_RECORDS: Final = 500
"""Of each producer, at most a tenth of what it will do measured."""

PACED_WARM_UP_S: Final = 1
CALLS_UNDER_WAY_MAX: Final = 4096
"""Of an open loop.  A cluster that does not keep up stays this much behind; what is late
keeps counting from when it was due."""

RECORDS_PER_MARK: Final = 1000
"""A loop over single records lets others run and looks at the clock this often."""


# --- produce ----------------------------------------------------------------------------


async def produce(bench: Bench) -> Measurement:
    """Append as fast as the cluster acknowledges."""
    async with bench.topic("warm-up") as topic:
        warm_up = min(bench.settings.records, WARM_UP_RECORDS_MAX)
        await _append_all(bench, topic, warm_up, bench.meter(), "warm up")
    async with bench.topic("produce") as topic:
        meter = bench.meter()
        await _append_all(bench, topic, bench.settings.records, meter, "produce")
    return bench.result("produce", meter)


async def _append_all(bench: Bench, topic: str, records: int, meter: Meter, title: str) -> None:
    """Append through all producers at once; the meter runs from the first to the last."""
    append = _append_nowait if bench.settings.api == "nowait" else _append_many
    async with _producers(bench, topic) as producers:
        with RecordProgress(title, records) as progress:
            async with meter.measuring(), anyio.create_task_group() as tasks:
                for producer, share in zip(producers, _shares(records, producers), strict=True):
                    tasks.start_soon(append, producer, bench.settings, share, meter, progress)


async def _append_many(
    producer: Producer, settings: Settings, records: int, meter: Meter, progress: RecordProgress
) -> None:
    values, keys = values_of_a_call(settings), keys_of_a_call(settings)
    sizes = deque[int]()

    def count(acks: Sequence[AckRange], seconds: float) -> None:
        acknowledged = sum(ack.count for ack in acks)
        meter.count(acknowledged, sizes.popleft(), seconds)
        progress.advance(acknowledged)

    value_bytes = sum(map(len, values))
    async with anyio.create_task_group() as tasks:
        lane = AppendLane(producer, tasks, count)
        for first in range(0, records, len(values)):
            left = records - first
            part = values if left >= len(values) else values[:left]
            sizes.append(value_bytes if part is values else sum(map(len, part)))
            await lane.append(part, keys=None if keys is None else keys[: len(part)])


async def _append_nowait(
    producer: Producer, settings: Settings, records: int, meter: Meter, progress: RecordProgress
) -> None:
    values = values_of_a_call(settings)
    keys = keys_of_a_call(settings)
    append = producer.append_nowait
    marks: deque[_Mark] = deque()
    mark = _Mark()

    async def settle() -> None:
        """Wait for the oldest mark, and so for all records before it."""
        oldest = marks.popleft()
        assert oldest.ticket is not None
        await oldest.ticket
        meter.count(oldest.records, oldest.value_bytes, time.perf_counter() - oldest.began)
        progress.advance(oldest.records)

    appended = 0
    while appended < records:
        at = appended % len(values)
        value = values[at]
        try:
            mark.ticket = append(value) if keys is None else append(value, key=keys[at])
        except WouldBlock:
            if mark.records:
                marks.append(mark)
                mark = _Mark()
            await settle()
            continue
        appended += 1
        mark.records += 1
        mark.value_bytes += len(value)
        if mark.records == RECORDS_PER_MARK or appended == records:
            marks.append(mark)
            mark = _Mark()
            await anyio.lowlevel.checkpoint()
            while marks and marks[0].is_settled:
                await settle()
    while marks:
        await settle()


class _Mark:
    """Records that a producer appended without waiting, up to one whose ticket is kept."""

    __slots__ = ("began", "records", "ticket", "value_bytes")

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.records = 0
        self.value_bytes = 0
        self.ticket: Ticket | None = None

    @property
    def is_settled(self) -> bool:
        assert self.ticket is not None
        return self.ticket.is_done


# --- latency ----------------------------------------------------------------------------


async def latency(bench: Bench) -> Measurement:
    """Append and wait; with a rate, append on time whether or not others are waiting."""
    settings = bench.settings
    async with bench.topic("latency") as topic, _producers(bench, topic) as producers:
        meter = bench.meter()
        if settings.rate is None:
            warm_up = min(LATENCY_WARM_UP_RECORDS, -(-settings.records // 10))
            await _append_in_turn(producers, settings, warm_up, bench.meter(), "warm up")
            await _append_in_turn(producers, settings, settings.records, meter, "latency")
        else:
            warm_up = settings.rate * PACED_WARM_UP_S
            await _append_paced(producers, settings, pace_of(settings.rate, warm_up), bench.meter())
            pace = pace_of(settings.rate, settings.records)
            await _append_paced(producers, settings, pace, meter)
    return bench.result("latency", meter)


async def _append_in_turn(
    producers: Sequence[Producer], settings: Settings, records: int, meter: Meter, title: str
) -> None:
    """Each producer appends one record, waits for its acknowledgement, again."""
    with RecordProgress(title, records) as progress:

        async def append(producer: Producer, records: int) -> None:
            values = values_of_a_call(settings)
            for at in range(records):
                value = values[at % len(values)]
                began = time.perf_counter()
                await producer.append(value)
                meter.count(1, len(value), time.perf_counter() - began)
                progress.advance(1)

        async with meter.measuring(), anyio.create_task_group() as tasks:
            for producer, share in zip(producers, _shares(records, producers), strict=True):
                tasks.start_soon(append, producer, share)


async def _append_paced(
    producers: Sequence[Producer],
    settings: Settings,
    pace: Pace,
    meter: Meter,
    *,
    is_warm_up: bool = False,
) -> None:
    """Make each call when it is due; its latency counts from then."""
    value = values_of_a_call(settings)[0]
    slots = anyio.Semaphore(CALLS_UNDER_WAY_MAX)
    records = pace.records_per_call

    async def call(producer: Producer, due: float, value: bytes) -> None:
        if records == 1:
            await producer.append(value)
        else:
            await producer.append_many([value] * records)
        slots.release()
        meter.count(records, records * len(value), time.monotonic() - due)

    async with meter.measuring(), anyio.create_task_group() as tasks:
        began = time.monotonic()
        for at in range(pace.calls):
            due = began + pace.due_s(at)
            if (early_s := due - time.monotonic()) > 0:
                await anyio.sleep(early_s)
            await slots.acquire()
            stamp_ns = 0 if is_warm_up else round(due * 1e9)
            tasks.start_soon(call, producers[at % len(producers)], due, stamped(value, stamp_ns))


# --- end to end -------------------------------------------------------------------------


async def end_to_end(bench: Bench) -> Measurement:
    """Append while consumers in a process of their own read the tail.

    The latency is that of a consumer: from a call being due to its records being there.
    """
    settings = bench.settings
    async with bench.topic("end-to-end") as topic, _producers(bench, topic) as producers:
        meter = bench.meter()
        warm_up, measured = _end_to_end_records(settings)
        tail = Tail(
            bootstrap=bench.bootstrap,
            topic=topic,
            consumers=settings.consumers,
            records=warm_up + measured,
        )
        async with tailing(tail) as tails:
            if settings.rate is not None:
                pace = pace_of(settings.rate, warm_up)
                await _append_paced(producers, settings, pace, bench.meter(), is_warm_up=True)
                await _append_paced(producers, settings, pace_of(settings.rate, measured), meter)
            else:
                await _append_stamped(producers, settings, warm_up, bench.meter(), is_warm_up=True)
                await _append_stamped(producers, settings, measured, meter)
            delivered = await tails.result()
    append_latencies_s = meter.latencies_s
    meter.latencies_s = delivered.latencies_s
    return bench.result(
        "end-to-end",
        meter,
        append_latencies_s=append_latencies_s,
        delivered_records=delivered.records - warm_up * settings.consumers,
        delivery_cpu_s_per_million=round(delivered.cpu_s * 1e6 / delivered.records, 3),
    )


def _end_to_end_records(settings: Settings) -> tuple[int, int]:
    """How many are appended unmeasured and measured, in whole calls."""
    if settings.rate is None:
        per_call = len(values_of_a_call(settings))
        calls = -(-settings.records // per_call)
        return min(calls, WARM_UP_RECORDS_MAX // per_call or 1) * per_call, calls * per_call
    warm_up = pace_of(settings.rate, settings.rate * PACED_WARM_UP_S)
    measured = pace_of(settings.rate, settings.records)
    return (
        warm_up.calls * warm_up.records_per_call,
        measured.calls * measured.records_per_call,
    )


async def _append_stamped(
    producers: Sequence[Producer],
    settings: Settings,
    records: int,
    meter: Meter,
    *,
    is_warm_up: bool = False,
) -> None:
    """As fast as acknowledged; the records of a call carry the moment of the call."""
    values = values_of_a_call(settings)

    def count(acks: Sequence[AckRange], seconds: float) -> None:
        acknowledged = sum(ack.count for ack in acks)
        meter.count(acknowledged, acknowledged * len(values[0]), seconds)

    async def append(producer: Producer, calls: int) -> None:
        async with anyio.create_task_group() as tasks:
            lane = AppendLane(producer, tasks, count)
            for _ in range(calls):
                stamp_ns = 0 if is_warm_up else time.monotonic_ns()
                await lane.append([stamped(values[0], stamp_ns)] * len(values))

    calls = _shares(records // len(values), producers)
    async with meter.measuring(), anyio.create_task_group() as tasks:
        for producer, share in zip(producers, calls, strict=True):
            tasks.start_soon(append, producer, share)


# --- consume ----------------------------------------------------------------------------


async def consume(bench: Bench) -> Measurement:
    """Read what was appended before.  Latency: the wait for the next batch."""
    async with bench.topic("consume") as topic:
        async with _producers(bench, topic) as producers:
            await _append_quietly(producers, bench.settings)
        await _read_all(bench, topic, bench.meter(), "warm up")
        meter = bench.meter()
        await _read_all(bench, topic, meter, "consume")
    return bench.result("consume", meter)


async def _append_quietly(producers: Sequence[Producer], settings: Settings) -> None:
    with RecordProgress("append", settings.records) as progress:
        async with anyio.create_task_group() as tasks:
            shares = _shares(settings.records, producers)
            for producer, share in zip(producers, shares, strict=True):
                tasks.start_soon(_append_many, producer, settings, share, Meter({}), progress)


async def _read_all(bench: Bench, topic: str, meter: Meter, title: str) -> None:
    settings = bench.settings
    read = _read_records if settings.form == "records" else _read_batches
    with RecordProgress(title, settings.records * settings.consumers) as progress:
        async with meter.measuring(), anyio.create_task_group() as tasks:
            for _ in range(settings.consumers):
                tasks.start_soon(read, bench, topic, meter, progress)


async def _read_batches(bench: Bench, topic: str, meter: Meter, progress: RecordProgress) -> None:
    left = bench.settings.records
    async with bench.client.consumer(topic, start="earliest") as consumer:
        asked = time.perf_counter()
        async for batch in consumer.batches():
            count = len(batch)
            value_bytes = count * bench.settings.record_bytes
            meter.count(count, value_bytes, time.perf_counter() - asked)
            progress.advance(count)
            left -= count
            if left <= 0:
                break
            asked = time.perf_counter()


async def _read_records(bench: Bench, topic: str, meter: Meter, progress: RecordProgress) -> None:
    """One record at a time, as most programs do; the clock is looked at now and then."""
    records = bench.settings.records
    read = value_bytes = 0
    async with bench.client.consumer(topic, start="earliest") as consumer:
        asked = time.perf_counter()
        async for record in consumer:
            read += 1
            value_bytes += len(record.value or b"")
            if read % RECORDS_PER_MARK and read < records:
                continue
            count = (read - 1) % RECORDS_PER_MARK + 1
            meter.count(count, value_bytes, time.perf_counter() - asked)
            progress.advance(count)
            value_bytes = 0
            if read == records:
                break
            asked = time.perf_counter()


# --- producers --------------------------------------------------------------------------


def _shares(total: int, among: Sequence[object]) -> list[int]:
    """``total`` split as evenly as whole numbers allow."""
    count = len(among)
    return [total // count + (at < total % count) for at in range(count)]


@asynccontextmanager
async def _producers(bench: Bench, topic: str) -> AsyncIterator[list[Producer]]:
    """One producer shares the bench's connection; several have one each."""
    options: dict[str, Any] = {"linger_ms": bench.settings.linger_ms}
    if bench.settings.batch_bytes is not None:
        options["batch_bytes"] = bench.settings.batch_bytes
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(bench.settings.producers):
            client: Client = bench.client
            if bench.settings.producers > 1:
                client = await stack.enter_async_context(connect(bench.bootstrap))
            found.append(await stack.enter_async_context(client.producer(topic, **options)))
        yield found
