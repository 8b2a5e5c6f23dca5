"""Five real brokers, two of them empty: even them out and drain one, under load and kills.

What is measured is what an operator would ask: did the plan come true, at the pace that was set,
did producers and consumers notice, and is every acknowledged record there exactly once.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import anyio
import msgspec

from logd.cli.local_cluster import LocalCluster
from logd.cli.ready import wait_until_ready
from logd.errors import LogdError
from logd.limits import KIB
from logd.types import NodeId
from logd_client import Client, connect
from tests.process.harness import run_logd

BROKERS: Final = 5
EMPTY: Final = (4, 5)
TOPIC: Final = "moved"
COMMAND_TIMEOUT_S: Final = 1200.0
CALM_S: Final = 3.0
FILL_PREFIX: Final = b"fill"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the exercise is."""

    partitions: int
    fill_bytes: int
    throttle_bytes_per_s: int
    kills: int
    """SIGKILLs of the controller, of leaders and of receivers while the plan runs."""
    appends_per_s: int = 100
    seed: int = 1


@dataclass(kw_only=True)
class Figures:
    """What came of it."""

    planned_bytes: int = 0
    run_s: float = 0.0
    run_outcome: str = ""
    balance_after: list[float] = field(default_factory=list)
    replicas: dict[int, int] = field(default_factory=dict)
    leaders: dict[int, int] = field(default_factory=dict)
    p99_before_ms: float = 0.0
    p99_during_ms: float = 0.0
    acknowledged: int = 0
    missing: int = 0
    twice: int = 0
    out_of_order: int = 0
    drained: bool = False
    removed: bool = False


class _Load:
    """Numbered records at a steady rate, and a consumer that reads them as they come."""

    def __init__(self, client: Client, size: Size) -> None:
        self.acknowledged: list[list[int]] = [[] for _ in range(size.partitions)]
        self.read: list[list[int]] = [[] for _ in range(size.partitions)]
        self.latencies_s: list[float] = []
        self.is_over = False
        self._client = client
        self._size = size

    async def write(self) -> None:
        number = 0
        async with self._client.producer(TOPIC) as producer:
            while not self.is_over:
                partition = number % self._size.partitions
                began = time.monotonic()
                await producer.append(b"load %d" % number, partition=partition)
                taken_s = time.monotonic() - began
                self.latencies_s.append(taken_s)
                self.acknowledged[partition].append(number)
                number += 1
                await anyio.sleep(max(0.0, 1 / self._size.appends_per_s - taken_s))

    async def consume(self) -> None:
        async with self._client.consumer(TOPIC, start="earliest") as consumer:
            async for batch in consumer.batches():
                for value in batch.values:
                    if value is not None and not value.startswith(FILL_PREFIX):
                        self.read[batch.partition].append(int(value[5:]))

    def p99_ms(self, first: int) -> float:
        """Of the appends from position ``first`` on."""
        found = self.latencies_s[first:]
        return statistics.quantiles(found, n=100)[98] * 1000 if len(found) > 1 else 0.0


def rebalance_under_load(cluster: LocalCluster, size: Size) -> Figures:
    """Spread over two empty brokers, then drain and remove another; everything under load."""
    return anyio.run(_exercise, cluster, size, backend="trio")


async def _exercise(cluster: LocalCluster, size: Size) -> Figures:
    figures = Figures()
    await wait_until_ready(cluster)
    async with connect(cluster.bootstrap) as client:
        for node in EMPTY:
            await client.admin.alter_broker(node, "drain")
        await client.admin.create_topic(TOPIC, partitions=size.partitions, replicas=3)
        for node in EMPTY:
            await client.admin.alter_broker(node, "resume")
        await _fill(client, size)
        load = _Load(client, size)
        async with anyio.create_task_group() as reading:
            reading.start_soon(load.consume)
            async with anyio.create_task_group() as writing:
                writing.start_soon(load.write)
                await anyio.sleep(CALM_S)
                figures.p99_before_ms = load.p99_ms(0)
                first = len(load.latencies_s)
                await _even_out(client, cluster, size, figures)
                figures.p99_during_ms = load.p99_ms(first)
                await _drain_and_remove(cluster, figures)
                load.is_over = True
            with anyio.move_on_after(30):
                while sum(map(len, load.read)) < sum(map(len, load.acknowledged)):
                    await anyio.sleep(0.1)
            reading.cancel_scope.cancel()
    _judge(load, figures)
    return figures


async def _fill(client: Client, size: Size) -> None:
    value = FILL_PREFIX.ljust(KIB, b".")
    per_partition = size.fill_bytes // KIB // size.partitions
    async with client.producer(TOPIC) as producer:
        for partition in range(size.partitions):
            left = per_partition
            while left > 0:
                await producer.append_many([value] * min(left, 2_000), partition=partition)
                left -= 2_000


async def _logd(*arguments: str) -> tuple[int, Any]:
    """Run a command as a person would; its exit code and the JSON that it printed."""

    def run() -> tuple[int, Any]:
        done = run_logd(*arguments, "--output", "json", timeout_s=COMMAND_TIMEOUT_S)
        lines = done.stdout.splitlines()
        if not lines:
            return done.returncode, done.stderr.decode(errors="replace")
        return done.returncode, msgspec.json.decode(lines[-1])

    return await anyio.to_thread.run_sync(run)


async def _even_out(client: Client, cluster: LocalCluster, size: Size, figures: Figures) -> None:
    saved = cluster.brokers[0].data_dir.parent / "plan.json"
    _, plan = await _logd(
        "rebalance", "plan", "--save", str(saved), "--bootstrap", cluster.bootstrap
    )
    figures.planned_bytes = plan["bytes"]
    began = time.monotonic()
    code, outcome = await _logd(
        "rebalance", "run", "--plan", str(saved), "--detach", "--bootstrap", cluster.bootstrap,
        "--throttle", str(size.throttle_bytes_per_s), "--concurrency", "4",
    )  # fmt: skip
    if code != 0:
        figures.run_outcome = f"exit {code}: {outcome}"
        return
    async with anyio.create_task_group() as kills:
        kills.start_soon(_kill_now_and_then, client, cluster, size)
        figures.run_outcome = await _outcome(client)
        figures.run_s = time.monotonic() - began
    await wait_until_ready(cluster)
    _, plan = await _logd("rebalance", "plan", "--bootstrap", cluster.bootstrap)
    figures.balance_after = plan["balance_before"]
    metadata = await client.admin.describe_cluster()
    for topic in metadata.topics:
        for partition in topic.partitions:
            for node in partition.replicas:
                figures.replicas[node] = figures.replicas.get(node, 0) + 1
            preferred = partition.replicas[0]
            figures.leaders[preferred] = figures.leaders.get(preferred, 0) + 1


async def _outcome(client: Client) -> str:
    """Wait until the plan is over; the state that it ended in."""
    while True:
        with contextlib.suppress(LogdError):
            plan = (await client.admin.describe_rebalance()).plan
            if plan is not None and plan.state in ("done", "cancelled"):
                return plan.state
        await anyio.sleep(0.1)


async def _kill_now_and_then(client: Client, cluster: LocalCluster, size: Size) -> None:
    """SIGKILL one broker at a time, and start it again."""
    chance = random.Random(size.seed)
    for _ in range(size.kills):
        await anyio.sleep(chance.uniform(0.3, 2.0))
        metadata = await client.admin.describe_cluster()
        partition = chance.choice(metadata.topics[0].partitions)
        candidates: Sequence[int | None] = (
            metadata.controller,
            partition.leader,
            chance.choice(EMPTY),
        )
        victim = NodeId(chance.choice(candidates) or 1)
        await anyio.to_thread.run_sync(cluster.kill, victim)
        await anyio.sleep(chance.uniform(0.1, 1.0))
        await anyio.to_thread.run_sync(cluster.start, victim)
        await wait_until_ready(cluster)


async def _drain_and_remove(cluster: LocalCluster, figures: Figures) -> None:
    code, _ = await _logd("broker", "drain", "3", "--bootstrap", cluster.bootstrap)
    figures.drained = code == 0
    code, _ = await _logd("broker", "remove", "3", "--bootstrap", cluster.bootstrap)
    figures.removed = code == 0


def _judge(load: _Load, figures: Figures) -> None:
    figures.acknowledged = sum(map(len, load.acknowledged))
    for acknowledged, read in zip(load.acknowledged, load.read, strict=True):
        figures.missing += len(set(acknowledged) - set(read))
        figures.twice += len(read) - len(set(read))
        figures.out_of_order += sum(a > b for a, b in pairwise(read))
