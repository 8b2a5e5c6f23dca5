"""``logd bench``: how fast is it here.

A benchmark first does its work once unmeasured, on a topic that it then deletes: memory that
is touched for the first time is several times slower on a virtual machine, and the figure
wanted is that of a broker that has been running.  What is measured comes after, on a topic
of its own.

With ``--brokers`` the cluster is a fresh one in a temporary directory, started as ``logd
dev`` starts it, and the processor time includes the brokers'; else only this process is seen.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from logd.cli.display import print_facts, print_json
from logd.cli.options import bootstrap_option, output_option
from logd.limits import METADATA_VOTERS_MAX, PARTITIONS_PER_TOPIC_MAX, RECORD_BYTES_MAX

if TYPE_CHECKING:
    from logd.cli.local_cluster import LocalCluster
    from logd.cli.measure import Measurement
    from logd_client import AckRange, Client

BROKERS_MAX: Final = METADATA_VOTERS_MAX
PRODUCERS_MAX: Final = 64
PRODUCE_RECORDS: Final = 2_000_000
CONSUME_RECORDS: Final = 2_000_000
LATENCY_RECORDS: Final = 5_000
WARM_UP_RECORDS_MAX: Final = 2_000_000
LATENCY_WARM_UP_RECORDS: Final = 500
RECORDS_PER_CALL_MAX: Final = 10_000
CALL_BYTES: Final = 1_000_000
"""Values that one ``append_many`` is given, unless one record is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for; reported with the result."""

    brokers: int | None
    records: int
    record_bytes: int
    batch_bytes: int | None
    durability: Literal["synced", "replicated"]
    producers: int
    partitions: int


class Bench:
    """One run: the cluster, the client and the clocks."""

    def __init__(self, client: Client, cluster: LocalCluster | None, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self._cluster = cluster
        self._run = f"{int(time.time())}-{os.getpid()}"

    async def create_topic(self, purpose: str) -> str:
        """A topic for this run."""
        name = f"bench-{purpose}-{self._run}"
        config = {} if self.settings.durability == "synced" else {"durability": "replicated"}
        await self.client.admin.create_topic(
            name, partitions=self.settings.partitions, config=config
        )
        return name

    async def delete_topic(self, name: str) -> None:
        """Give its space back."""
        await self.client.admin.delete_topic(name)

    def cpu_seconds(self) -> float:
        """Used so far by this process and by the brokers that it started."""
        own = time.process_time()
        return own if self._cluster is None else own + self._cluster.cpu_seconds()

    def result(
        self, bench_name: str, seconds: float, latencies_s: Sequence[float], cpu_s: float
    ) -> Measurement:
        """The figures of the measured part."""
        from logd.cli.measure import measurement

        return measurement(
            bench_name,
            records=self.settings.records,
            record_bytes=self.settings.record_bytes,
            seconds=seconds,
            latencies_s=latencies_s,
            cpu_s=cpu_s,
            settings={**asdict(self.settings), "cpu_includes_brokers": self._cluster is not None},
        )


def _bench_options(records_default: int) -> Callable[[Any], Any]:
    options = (
        click.option(
            "--brokers",
            type=click.IntRange(1, BROKERS_MAX),
            help="Start a cluster of this many for the run.  Default: use --bootstrap.",
        ),
        click.option(
            "--records", type=click.IntRange(min=1), default=records_default, show_default=True
        ),
        click.option(
            "--record-bytes",
            type=click.IntRange(1, RECORD_BYTES_MAX),
            default=100,
            show_default=True,
        ),
        click.option("--batch-bytes", type=click.IntRange(min=1), help="Default: the client's."),
        click.option(
            "--durability",
            type=click.Choice(["synced", "replicated"]),
            default="synced",
            show_default=True,
        ),
        click.option(
            "--producers",
            type=click.IntRange(1, PRODUCERS_MAX),
            default=1,
            show_default=True,
            help="Independent producers, each with its own connection.",
        ),
        click.option(
            "--partitions",
            type=click.IntRange(1, PARTITIONS_PER_TOPIC_MAX),
            default=1,
            show_default=True,
        ),
        bootstrap_option,
        output_option,
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group()
def bench() -> None:
    """Measure produce, consume and latency."""


@bench.command("produce")
@_bench_options(PRODUCE_RECORDS)
def bench_produce(bootstrap: str, output: str, **settings: Any) -> None:
    """Append as fast as the cluster acknowledges, in batches."""
    _run(bootstrap, output, Settings(**settings), _measure_produce)


@bench.command("consume")
@_bench_options(CONSUME_RECORDS)
def bench_consume(bootstrap: str, output: str, **settings: Any) -> None:
    """Read, in batches, what was appended before.  Latency: the wait for the next batch."""
    _run(bootstrap, output, Settings(**settings), _measure_consume)


@bench.command("latency")
@_bench_options(LATENCY_RECORDS)
def bench_latency(bootstrap: str, output: str, **settings: Any) -> None:
    """Append one record, wait for its acknowledgement, again."""
    _run(bootstrap, output, Settings(**settings), _measure_latency)


def _run(bootstrap: str, output: str, settings: Settings, measure: Any) -> None:
    from logd.cli.local_cluster import open_cluster, stopping
    from logd.cli.session import run_async

    if settings.brokers is None:
        found = run_async(_measured, bootstrap, None, settings, measure)
    else:
        with tempfile.TemporaryDirectory(prefix="logd-bench-") as directory:
            cluster = open_cluster(
                Path(directory) / "cluster", broker_count=settings.brokers, port=None
            )
            with stopping(cluster):
                cluster.start_all()
                found = run_async(_measured, cluster.bootstrap, cluster, settings, measure)
    if output == "json":
        print_json(found)
    else:
        _print(found)


async def _measured(
    bootstrap: str, cluster: LocalCluster | None, settings: Settings, measure: Any
) -> Measurement:
    from logd.cli.ready import wait_until_ready
    from logd.cli.session import connected

    if cluster is not None:
        await wait_until_ready(cluster)
    async with connected(bootstrap) as client:
        found: Measurement = await measure(Bench(client, cluster, settings), bootstrap)
        return found


# --- the three benchmarks ---------------------------------------------------------------


async def _measure_produce(bench: Bench, bootstrap: str) -> Measurement:
    warm_up = await bench.create_topic("warm-up")
    await _append(bench, bootstrap, warm_up, min(bench.settings.records, WARM_UP_RECORDS_MAX))
    await bench.delete_topic(warm_up)
    topic = await bench.create_topic("produce")
    cpu_before = bench.cpu_seconds()
    began = time.perf_counter()
    latencies_s = await _append(bench, bootstrap, topic, bench.settings.records)
    seconds = time.perf_counter() - began
    result = bench.result("produce", seconds, latencies_s, bench.cpu_seconds() - cpu_before)
    await bench.delete_topic(topic)
    return result


async def _measure_consume(bench: Bench, bootstrap: str) -> Measurement:
    topic = await bench.create_topic("consume")
    await _append(bench, bootstrap, topic, bench.settings.records)
    await _read(bench, topic, "warm up")
    cpu_before = bench.cpu_seconds()
    began = time.perf_counter()
    waits_s = await _read(bench, topic, "consume")
    seconds = time.perf_counter() - began
    result = bench.result("consume", seconds, waits_s, bench.cpu_seconds() - cpu_before)
    await bench.delete_topic(topic)
    return result


async def _measure_latency(bench: Bench, bootstrap: str) -> Measurement:
    from logd.cli.progress import RecordProgress

    del bootstrap  # One producer, which shares the bench's connection.
    value = os.urandom(bench.settings.record_bytes)
    topic = await bench.create_topic("latency")
    latencies_s: list[float] = []
    async with bench.client.producer(topic) as producer:
        for _ in range(LATENCY_WARM_UP_RECORDS):
            await producer.append(value)
        with RecordProgress("latency", bench.settings.records) as progress:
            cpu_before = bench.cpu_seconds()
            began = time.perf_counter()
            for _ in range(bench.settings.records):
                sent = time.perf_counter()
                await producer.append(value)
                latencies_s.append(time.perf_counter() - sent)
                progress.advance(1)
            seconds = time.perf_counter() - began
    result = bench.result("latency", seconds, latencies_s, bench.cpu_seconds() - cpu_before)
    await bench.delete_topic(topic)
    return result


async def _append(bench: Bench, bootstrap: str, topic: str, records: int) -> list[float]:
    """Append ``records`` through all producers; return the seconds that each call took."""
    import anyio

    from logd.cli.progress import RecordProgress

    producers = bench.settings.producers
    shares = [records // producers + (at < records % producers) for at in range(producers)]
    latencies_s: list[float] = []
    title = "warm up" if "warm-up" in topic else f"produce {topic}"
    with RecordProgress(title, records) as progress:

        def count(acks: Sequence[AckRange], seconds: float) -> None:
            latencies_s.append(seconds)
            progress.advance(sum(ack.count for ack in acks))

        async with anyio.create_task_group() as tasks:
            for share in shares:
                tasks.start_soon(_append_share, bench, bootstrap, topic, share, count)
    return latencies_s


async def _append_share(
    bench: Bench,
    bootstrap: str,
    topic: str,
    records: int,
    count: Callable[[Sequence[AckRange], float], None],
) -> None:
    import anyio

    from logd.cli.appending import AppendLane

    values = _values(bench.settings.record_bytes)
    async with (
        _producer_client(bench, bootstrap) as client,
        client.producer(topic, **_producer_options(bench.settings)) as producer,
        anyio.create_task_group() as tasks,
    ):
        lane = AppendLane(producer, tasks, count)
        for first in range(0, records, len(values)):
            left = records - first
            await lane.append(values if left >= len(values) else values[:left])


@asynccontextmanager
async def _producer_client(bench: Bench, bootstrap: str) -> AsyncIterator[Client]:
    """One producer shares the bench's connection; several have one each."""
    from logd_client import connect

    if bench.settings.producers == 1:
        yield bench.client
        return
    async with connect(bootstrap) as client:
        yield client


async def _read(bench: Bench, topic: str, title: str) -> list[float]:
    """Read the whole topic; return the seconds that each batch was waited for."""
    from logd.cli.progress import RecordProgress

    left = bench.settings.records
    waits_s: list[float] = []
    with RecordProgress(title, left) as progress:
        async with bench.client.consumer(topic, start="earliest") as consumer:
            asked = time.perf_counter()
            async for batch in consumer.batches():
                waits_s.append(time.perf_counter() - asked)
                left -= len(batch)
                progress.advance(len(batch))
                if left <= 0:
                    break
                asked = time.perf_counter()
    return waits_s


def _values(record_bytes: int) -> list[bytes]:
    """Values of one call: random, so that nothing on the way can compress them."""
    count = max(1, min(RECORDS_PER_CALL_MAX, CALL_BYTES // record_bytes))
    return [os.urandom(record_bytes) for _ in range(count)]


def _producer_options(settings: Settings) -> dict[str, Any]:
    return {} if settings.batch_bytes is None else {"batch_bytes": settings.batch_bytes}


def _print(found: Measurement) -> None:
    latency = found.latency_ms
    print_facts(
        [
            ("bench", found.bench),
            ("records", found.records),
            ("seconds", found.seconds),
            ("records/s", found.records_per_s),
            ("MB/s", found.mb_per_s),
            (
                "latency ms",
                f"p50 {latency.p50}  p99 {latency.p99}  p99.9 {latency.p999}  max {latency.max}",
            ),
            ("CPU s per million", found.cpu_s_per_million),
            ("settings", " ".join(f"{name}={value}" for name, value in found.settings.items())),
        ]
    )
