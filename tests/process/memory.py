"""How much memory brokers hold while producers push harder than they can write.

Measured as RssAnon: page cache and mapped files are the kernel's to reclaim.  A broker may
fill its caches and windows once, which is the warm-up; after that it must stay flat.  The
warm-up is counted in bytes, not in seconds: a busy machine fills caches more slowly.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

from logd.cli.local_cluster import LocalCluster
from logd.limits import GIB, KIB, MIB, TAIL_CACHE_BYTES_MAX
from logd.types import NodeId
from logd_client import Client, Producer, connect
from tests.process.harness import (
    BROKERS,
    anonymous_bytes,
    leader_of,
    send_signal,
    wait_until_caught_up,
)

TOPIC: Final = "pushed"
PARTITIONS: Final = 2
"""Fewer than brokers: one of them leads nothing, and is the follower that is frozen."""

PRODUCERS: Final = 3
RECORD_BYTES: Final = 8 * KIB
RECORDS_PER_CALL: Final = 500
WARM_UP_BYTES: Final = 4 * TAIL_CACHE_BYTES_MAX
SAMPLE_S: Final = 0.1
PUSH_ON_S: Final = 1.0
"""How long pushing goes on beside the catching up of a follower that woke."""

GROWTH_BYTES_MAX: Final = 50 * MIB
"""What a broker that is warm may grow by."""

DISK_FREE_BYTES_MIN: Final = 8 * GIB
"""Pushing ends early rather than fill the disk of the machine that tests."""


@dataclass
class MemoryRun:
    """Memory of every broker over time."""

    pushed_bytes: int = 0
    pushing_s: float = 0.0
    caught_up_s: float = 0.0
    """From SIGCONT until the frozen follower had everything."""
    samples: dict[NodeId, list[int]] = field(default_factory=dict)
    warm_at: int = 0
    """The number of samples taken when the warm-up ended."""

    @property
    def rate_bytes_per_s(self) -> float:
        return self.pushed_bytes / self.pushing_s

    @property
    def peak_bytes(self) -> int:
        """The most that any broker ever held."""
        return max(max(samples) for samples in self.samples.values())

    @property
    def growth_bytes(self) -> int:
        """The most that any broker held after the warm-up beyond its most during it."""
        return max(
            max(samples[self.warm_at :]) - max(samples[: self.warm_at])
            for samples in self.samples.values()
        )

    @property
    def spread_bytes(self) -> int:
        """Between the least and the most that one broker held after the warm-up."""
        return max(
            max(samples[self.warm_at :]) - min(samples[self.warm_at :])
            for samples in self.samples.values()
        )


class Push:
    """Producers that append as fast as they can, and the watch on the brokers' memory."""

    def __init__(self, cluster: LocalCluster, topic: str) -> None:
        self.run = MemoryRun(samples={broker.node_id: [] for broker in cluster.brokers})
        self._cluster = cluster
        self._topic = topic
        self._is_stopped = False
        self._began = time.monotonic()

    def stop(self) -> None:
        """Let what is under way be the last."""
        self.run.pushing_s = time.monotonic() - self._began
        self._is_stopped = True

    async def produce(self, client: Client) -> None:
        """Append until told to stop; two calls under way, so that there is always more."""
        async with client.producer(self._topic) as producer, anyio.create_task_group() as tasks:
            tasks.start_soon(self._append, producer)
            tasks.start_soon(self._append, producer)

    async def _append(self, producer: Producer) -> None:
        values = [bytes(RECORD_BYTES)] * RECORDS_PER_CALL
        while not self._is_stopped and _free_bytes(self._cluster) > DISK_FREE_BYTES_MIN:
            await producer.append_many(values)
            self.run.pushed_bytes += RECORD_BYTES * RECORDS_PER_CALL

    async def watch(self) -> None:
        """Take samples until cancelled."""
        while True:
            for node_id, samples in self.run.samples.items():
                samples.append(anonymous_bytes(self._cluster.pid(node_id)))
            await anyio.sleep(SAMPLE_S)

    async def warm_up(self) -> None:
        """Wait until every cache has been filled several times over."""
        while self.run.pushed_bytes < WARM_UP_BYTES:
            free_bytes = _free_bytes(self._cluster)
            assert free_bytes > DISK_FREE_BYTES_MIN, f"{free_bytes:,} bytes free: nobody pushes"
            await anyio.sleep(SAMPLE_S)
        self.run.warm_at = len(next(iter(self.run.samples.values())))


def push(cluster: LocalCluster, push_s: float) -> MemoryRun:
    """Push for ``push_s`` once everything is warm."""

    async def during(client: Client, push: Push) -> None:
        await anyio.sleep(push_s)
        push.stop()

    return anyio.run(_push, cluster, during, backend="trio")


def push_past_a_frozen_follower(cluster: LocalCluster, frozen_s: float) -> MemoryRun:
    """Freeze a follower for ``frozen_s`` while producers push on, and let it catch up."""

    async def during(client: Client, push: Push) -> None:
        leaders = [await leader_of(client, TOPIC, number) for number in range(PARTITIONS)]
        follower = next(b.node_id for b in cluster.brokers if b.node_id not in leaders)
        send_signal(cluster, follower, signal.SIGSTOP)
        try:
            await anyio.sleep(frozen_s)
        finally:
            send_signal(cluster, follower, signal.SIGCONT)
        woken = time.monotonic()
        await anyio.sleep(PUSH_ON_S)
        push.stop()
        await wait_until_caught_up(client, TOPIC, range(PARTITIONS))
        push.run.caught_up_s = time.monotonic() - woken

    return anyio.run(_push, cluster, during, backend="trio")


async def _push(
    cluster: LocalCluster, during: Callable[[Client, Push], Awaitable[None]]
) -> MemoryRun:
    push = Push(cluster, TOPIC)
    async with connect(cluster.bootstrap) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=BROKERS)
        async with anyio.create_task_group() as watching:
            watching.start_soon(push.watch)
            async with anyio.create_task_group() as pushing:
                for _ in range(PRODUCERS):
                    pushing.start_soon(push.produce, client)
                await push.warm_up()
                await during(client, push)
            watching.cancel_scope.cancel()
    return push.run


def _free_bytes(cluster: LocalCluster) -> int:
    return shutil.disk_usage(cluster.brokers[0].directory).free
