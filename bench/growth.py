"""How cost grows: with the log, partitions, batches, records and brokers.

Each table is one command, printed as Markdown, the way ``docs/performance.md`` has it.  What
should be flat (an append to a long log, the opening of one) and what may grow is said there.

    python -m bench.growth log --sizes 1024 2048 4096 8192    MiB per broker, three on one disk
    python -m bench.growth partitions --sizes 1 10 100 1000
    python -m bench.growth batches --sizes 1024 10240 102400 1048576
    python -m bench.growth records --sizes 10 100 1000 10000 100000
    python -m bench.growth brokers --sizes 1 3 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from bench.against_floor import Figure, product_once
from logd.cli.appending import AppendLane
from logd.cli.benchmark.processes import use_of
from logd.cli.benchmark.settings import Settings
from logd.cli.benchmark.values import values_of_a_call
from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from logd.cli.measure import latency_of
from logd.cli.ready import wait_until_ready
from logd.limits import KIB, MIB, PARTITIONS_PER_TOPIC_MAX
from logd_client import Client, connect

BROKERS: Final = 3
RECORD_BYTES: Final = 1000
LATENCY_RECORDS: Final = 1000
SOON_S: Final = 5
SETTLED_S: Final = 60
"""Until then leaders even out, and logs are looked through once."""

IDLE_S: Final = 10
LEADERS_TIMEOUT_S: Final = 120
LOOK_AGAIN_S: Final = 0.1
"""While leaders are waited for.  An answer about a thousand partitions costs whoever gives it
some milliseconds: to look often is load of its own."""
PRODUCE_BYTES: Final = 200_000_000
PRODUCE_RECORDS_MAX: Final = 2_000_000
PRODUCE_RECORDS_SMALL_BATCHES: Final = 300_000
BYTES_PER_MB: Final = 1_000_000

Row = dict[str, object]


# --- the log ----------------------------------------------------------------------------


def grow_log(sizes: Sequence[int], runs: int) -> list[Row]:
    """Append up to each size; there, look at appends, latency and the time to open again."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="logd-growth-") as directory:
        cluster = open_cluster(Path(directory) / "cluster", broker_count=BROKERS, port=None)
        with stopping(cluster):
            cluster.start_all()
            anyio.run(partial(_create, cluster, {"grown": 1}), backend="trio")
            for size, before in zip(sizes, [0, *sizes], strict=False):
                filling = partial(_fill, cluster, (size - before) * MIB)
                records_per_s, latencies_s = anyio.run(filling, backend="trio")
                opened_s = [_restart(cluster) for _ in range(runs)]
                latency = latency_of(latencies_s)
                rows.append(
                    {
                        "MiB per broker": size,
                        "MB/s appended": round(records_per_s * RECORD_BYTES / BYTES_PER_MB, 1),
                        "append p50 ms": latency.p50,
                        "append p99 ms": latency.p99,
                        "killed, open again s": round(statistics.median(opened_s), 2),
                        "largest broker MB": _largest_mb(cluster),
                    }
                )
                print(rows[-1], file=sys.stderr)
    return rows


async def _create(cluster: LocalCluster, topics: Mapping[str, int]) -> float:
    """Create topics of so many partitions and wait for all leaders; seconds it took."""
    await wait_until_ready(cluster)
    async with connect(cluster.bootstrap) as client:
        began = time.perf_counter()
        for topic, partitions in topics.items():
            await client.admin.create_topic(topic, partitions=partitions)
            await _wait_for_leaders(client, topic)
        return time.perf_counter() - began


async def _wait_for_leaders(client: Client, topic: str) -> None:
    with anyio.fail_after(LEADERS_TIMEOUT_S):
        while True:
            description = await client.admin.describe_topic(topic)
            if all(partition.leader is not None for partition in description.partitions):
                return
            await anyio.sleep(LOOK_AGAIN_S)


async def _fill(cluster: LocalCluster, size: int) -> tuple[float, list[float]]:
    """Append ``size`` bytes; then one record at a time.  Records a second, and latencies."""
    settings = Settings(brokers=BROKERS, records=size // RECORD_BYTES, record_bytes=RECORD_BYTES)
    values = values_of_a_call(settings)
    latencies_s: list[float] = []
    async with connect(cluster.bootstrap) as client, client.producer("grown") as producer:
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            lane = AppendLane(producer, tasks, lambda acks, seconds: None)
            for _ in range(-(-settings.records // len(values))):
                await lane.append(values)
        seconds = time.perf_counter() - began
        for value in values[:LATENCY_RECORDS]:
            asked = time.perf_counter()
            await producer.append(value)
            latencies_s.append(time.perf_counter() - asked)
    return settings.records / seconds, latencies_s


def _restart(cluster: LocalCluster) -> float:
    """Kill all brokers at once; seconds until the cluster, started again, takes an append."""

    async def wait() -> None:
        await wait_until_ready(cluster)
        async with connect(cluster.bootstrap) as client, client.producer("grown") as producer:
            await producer.append(b"after the restart")

    for broker in cluster.brokers:
        cluster.kill(broker.node_id)
    began = time.perf_counter()
    cluster.start_all()
    anyio.run(wait, backend="trio")
    return time.perf_counter() - began


def _largest_mb(cluster: LocalCluster) -> float:
    used = [use_of(cluster.pid(broker.node_id)).anonymous_bytes for broker in cluster.brokers]
    return round(max(used) / BYTES_PER_MB, 1)


# --- partitions -------------------------------------------------------------------------


def grow_partitions(sizes: Sequence[int], runs: int) -> list[Row]:
    """Create, idle, start again, and append to all of them if one topic can have so many."""
    rows: list[Row] = []
    for size in sizes:
        topics = _wide_topics(size)
        with tempfile.TemporaryDirectory(prefix="logd-growth-") as directory:
            cluster = open_cluster(Path(directory) / "cluster", broker_count=BROKERS, port=None)
            with stopping(cluster):
                cluster.start_all()
                created_s = anyio.run(partial(_create, cluster, topics), backend="trio")
                soon_percent = _idle_percent(cluster, SOON_S)
                settled_percent = _idle_percent(cluster, SETTLED_S - SOON_S - IDLE_S)
                idle_mb = _largest_mb(cluster)
                cluster.stop_all()
                began = time.perf_counter()
                cluster.start_all()
                anyio.run(partial(_wait_until_led, cluster, topics), backend="trio")
                started_s = time.perf_counter() - began
        row: Row = {
            "partitions": size,
            "create s": round(created_s, 2),
            "start s": round(started_s, 2),
            f"idle % of a core, busiest, after {SOON_S} s": round(soon_percent, 2),
            f"after {SETTLED_S} s": round(settled_percent, 2),
            "idle MB, largest": idle_mb,
        }
        if len(topics) == 1:
            produce = ("produce", "--records", str(PRODUCE_RECORDS_MAX), "--partitions", str(size))
            row |= _produced(produce, BROKERS, runs)
        rows.append(row)
        print(row, file=sys.stderr)
    return rows


def _wide_topics(partitions: int) -> dict[str, int]:
    """As few topics as have so many partitions together."""
    firsts = range(0, partitions, PARTITIONS_PER_TOPIC_MAX)
    return {f"wide-{first}": min(PARTITIONS_PER_TOPIC_MAX, partitions - first) for first in firsts}


def _idle_percent(cluster: LocalCluster, settle_s: float) -> float:
    """Of one core, of the busiest broker, while nobody asks for anything."""
    time.sleep(settle_s)
    pids = [cluster.pid(broker.node_id) for broker in cluster.brokers]
    before = [use_of(pid).cpu_s for pid in pids]
    time.sleep(IDLE_S)
    used = [use_of(pid).cpu_s - was for pid, was in zip(pids, before, strict=True)]
    return 100 * max(used) / IDLE_S


async def _wait_until_led(cluster: LocalCluster, topics: Iterable[str]) -> None:
    await wait_until_ready(cluster)
    async with connect(cluster.bootstrap) as client:
        for topic in topics:
            await _wait_for_leaders(client, topic)


# --- what one run of logd bench shows ---------------------------------------------------


def grow_batches(sizes: Sequence[int], runs: int) -> list[Row]:
    """100-byte records in batches of so many bytes."""
    return [
        {
            "batch bytes": size,
            **_produced(
                (
                    *("produce", "--records", str(_records_for_batches(size))),
                    *("--batch-bytes", str(size)),
                ),
                BROKERS,
                runs,
            ),
        }
        for size in sizes
    ]


def _records_for_batches(batch_bytes: int) -> int:
    return PRODUCE_RECORDS_MAX if batch_bytes > 10_000 else PRODUCE_RECORDS_SMALL_BATCHES


def grow_records(sizes: Sequence[int], runs: int) -> list[Row]:
    """The same bytes in records of so many."""
    return [
        {
            "record bytes": size,
            **_produced(
                (
                    *("produce", "--record-bytes", str(size), "--records"),
                    str(min(PRODUCE_RECORDS_MAX, PRODUCE_BYTES // size)),
                ),
                BROKERS,
                runs,
            ),
        }
        for size in sizes
    ]


def grow_brokers(sizes: Sequence[int], runs: int) -> list[Row]:
    """One partition on so many brokers; above three a topic still has three replicas."""
    rows: list[Row] = []
    for size in sizes:
        produced = _produced(("produce", "--records", str(PRODUCE_RECORDS_MAX)), size, runs)
        latency = Figure(None, ("latency", "--records", str(LATENCY_RECORDS)))
        found = [product_once(latency, "synced", size)["latency_ms"] for _ in range(runs)]
        rows.append(
            {
                "brokers": size,
                **produced,
                "append p50 ms": round(statistics.median(one["p50"] for one in found), 3),
            }
        )
    return rows


def _produced(arguments: tuple[str, ...], brokers: int, runs: int) -> Row:
    found = [product_once(Figure(None, arguments), "synced", brokers) for _ in range(runs)]

    def median(name: str) -> float:
        return statistics.median(float(one[name]) for one in found)

    row: Row = {
        "records/s": round(median("records_per_s")),
        "MB/s": round(median("mb_per_s"), 1),
        "CPU s per million": round(median("cpu_s_per_million"), 2),
    }
    print(arguments, row, file=sys.stderr)
    return row


# --- the command ------------------------------------------------------------------------

Grow = Callable[[Sequence[int], int], list[Row]]


class Table(NamedTuple):
    """One that can be asked for."""

    grow: Grow
    sizes: tuple[int, ...]
    medians: str = "all"
    """Which of its columns are medians of several runs; the others were measured once."""


TABLES: Final = {
    "log": Table(grow_log, (1024, 2048, 4096, 8192), "opening again"),
    "partitions": Table(grow_partitions, (1, 10, 100, 1000), "records/s, MB/s and CPU"),
    "batches": Table(grow_batches, (1 * KIB, 10 * KIB, 100 * KIB, 1 * MIB)),
    "records": Table(grow_records, (10, 100, 1_000, 10_000, 100_000)),
    "brokers": Table(grow_brokers, (1, 3, 5)),
}


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/performance.md has it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = ([_cell(row.get(name, "")) for name in names] for row in rows)
    lines = [names, ["---:"] * len(names), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    table = TABLES[asked.table]
    sizes = asked.sizes or table.sizes
    if list(sizes) != sorted(set(sizes)):
        parser.error(
            f"--sizes {' '.join(map(str, sizes))}: each is to be larger than the one before"
        )
    load = os.getloadavg()[0]
    rows = table.grow(sizes, asked.runs)
    print(markdown(rows))
    print(
        f"\nMedians of {asked.runs}: {table.medians}; load {load:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after."
    )


if __name__ == "__main__":
    main()
