"""Two brokers join a cluster of three: even them out, let others go, under load and kills.

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
from tests.process.elastic import ElasticCluster
from tests.process.harness import run_logd

NEW: Final = (NodeId(4), NodeId(5))
LEAVING: Final = (NodeId(3), NodeId(2))
WIPED: Final = NodeId(4)
FRESH: Final = NodeId(6)
TOPIC: Final = "moved"
COMMAND_TIMEOUT_S: Final = 1200.0
CALM_S: Final = 3.0
READ_BACK_TIMEOUT_S: Final = 60.0
ATTEMPTS_MAX: Final = 3
FILL_PREFIX: Final = b"fill"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the exercise is."""

    partitions: int
    fill_bytes: int
    throttle_bytes_per_s: int
    kills: int
    """SIGKILLs of the controller, of leaders and of receivers while a plan runs."""
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
    left: list[str] = field(default_factory=list)
    """How each step of those that leave ended: empty where it went well."""


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


def rebalance_under_load(cluster: ElasticCluster, size: Size) -> Figures:
    """Two brokers join and get their share, two others leave, and one is wiped and replaced."""
    return anyio.run(_exercise, cluster, size, backend="trio")


async def _exercise(cluster: ElasticCluster, size: Size) -> Figures:
    figures = Figures()
    await wait_until_ready(cluster)
    async with connect(cluster.bootstrap) as client:
        await client.admin.create_topic(TOPIC, partitions=size.partitions, replicas=3)
        await _fill(client, size)
        load = _Load(client, size)
        async with anyio.create_task_group() as reading:
            reading.start_soon(load.consume)
            async with anyio.create_task_group() as writing:
                writing.start_soon(load.write)
                await anyio.sleep(CALM_S)
                figures.p99_before_ms = load.p99_ms(0)
                await _join(cluster)
                first = len(load.latencies_s)
                await _even_out(client, cluster, size, figures)
                figures.p99_during_ms = load.p99_ms(first)
                await _let_go(client, cluster, size, figures)
                load.is_over = True
            with anyio.move_on_after(READ_BACK_TIMEOUT_S):
                while sum(map(len, load.read)) < sum(map(len, load.acknowledged)):
                    await anyio.sleep(0.1)
            reading.cancel_scope.cancel()
    _judge(load, figures)
    return figures


async def _join(cluster: ElasticCluster) -> None:
    for node in NEW:
        await anyio.to_thread.run_sync(cluster.join, node)
    await wait_until_ready(cluster)


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
            chance.choice(NEW),
        )
        victim = NodeId(chance.choice(candidates) or 1)
        if not cluster.is_running(victim):
            continue
        await anyio.to_thread.run_sync(cluster.kill, victim)
        await anyio.sleep(chance.uniform(0.1, 1.0))
        await anyio.to_thread.run_sync(cluster.start, victim)
        await wait_until_ready(cluster)


async def _let_go(client: Client, cluster: ElasticCluster, size: Size, figures: Figures) -> None:
    """Drain and remove brokers; then one is killed, wiped, and replaced by another."""
    for node in LEAVING:
        await _drain_and_remove(client, cluster, node, size, figures)
    await anyio.to_thread.run_sync(cluster.wipe, WIPED)
    lost = cluster.broker(WIPED)
    cluster.leave_out(WIPED)
    await anyio.to_thread.run_sync(cluster.join, FRESH)
    await _wait_for_member(client, FRESH)
    replace = ("broker", "replace", str(WIPED), "--with", str(FRESH))
    await _step(figures, f"replace {lost.node_id}", *replace, "--bootstrap", cluster.bootstrap)
    await wait_until_ready(cluster)


async def _drain_and_remove(
    client: Client, cluster: ElasticCluster, node: NodeId, size: Size, figures: Figures
) -> None:
    bootstrap = ("--bootstrap", cluster.bootstrap)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_kill_now_and_then, client, cluster, size)
        await _step(figures, f"drain {node}", "broker", "drain", str(node), *bootstrap)
    await wait_until_ready(cluster)
    await _step(figures, f"remove {node}", "broker", "remove", str(node), *bootstrap)
    cluster.leave_out(node)
    await wait_until_ready(cluster)


async def _step(figures: Figures, name: str, *arguments: str) -> None:
    """A command that a person repeats if it says that the cluster was busy changing hands."""
    code, found = -1, None
    for _ in range(ATTEMPTS_MAX):
        code, found = await _logd(*arguments)
        if code == 0:
            return
        await anyio.sleep(1.0)
    figures.left.append(f"{name}: exit {code}: {found}")


async def _wait_for_member(client: Client, node: NodeId) -> None:
    while True:
        with contextlib.suppress(LogdError):
            brokers = (await client.admin.describe_cluster()).brokers
            if any(known.node_id == node and known.alive for known in brokers):
                return
        await anyio.sleep(0.1)


def _judge(load: _Load, figures: Figures) -> None:
    figures.acknowledged = sum(map(len, load.acknowledged))
    for acknowledged, read in zip(load.acknowledged, load.read, strict=True):
        figures.missing += len(set(acknowledged) - set(read))
        figures.twice += len(read) - len(set(read))
        figures.out_of_order += sum(a > b for a, b in pairwise(read))
