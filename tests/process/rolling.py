"""All brokers restarted in turn under load, as an upgrade does it: what do producers notice?

Every partition has a task of its own that appends one record after the other, so the longest time
between two acknowledgements is measured for each partition, and not hidden behind the others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio

from logd.cli.cluster import fetch_status
from logd.cli.local_cluster import LocalCluster
from logd.cli.ready import wait_until_ready
from logd.errors import LogdError
from logd.types import NodeId
from logd_client import Client, Producer, connect
from tests.process.harness import POLL_S, hand_over, stop

TOPIC: Final = "rolling"
CALM_S: Final = 1.0
HAND_OVER_WATCHED_S: Final = 0.3
WHOLE_TIMEOUT_S: Final = 60.0
READ_BACK_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class BrokerRestart:
    """What one broker's restart did."""

    node: NodeId
    stopping_s: float
    """From SIGTERM to the end of the process."""
    whole_after_s: float
    """From the start of the process until every replica was in sync again."""
    gaps_s: Sequence[float]
    """By partition: the longest time between two acknowledgements that touched the stop."""
    gaps_starting_s: Sequence[float]
    """As ``gaps_s``, for what came after: the start, and leaders going back."""


@dataclass(kw_only=True)
class Figures:
    """What the whole turn did."""

    hand_overs_s: list[float] = field(default_factory=list)
    """The longest gap of each partition while its leadership was handed over, by command."""
    restarts: list[BrokerRestart] = field(default_factory=list)
    calm_gap_s: float = 0.0
    """The longest gap of any partition before anything was done."""
    acknowledged: int = 0
    missing: int = 0
    twice: int = 0
    out_of_order: int = 0

    @property
    def longest_gap_s(self) -> float:
        """Of any partition, at any time."""
        return max(max(*one.gaps_s, *one.gaps_starting_s, self.calm_gap_s) for one in self.restarts)


class _Writer:
    """Appends to one partition, and remembers when it was acknowledged."""

    def __init__(self, producer: Producer, partition: int, pause_s: float) -> None:
        self.times: list[float] = []
        self.count = 0
        self._producer = producer
        self.partition = partition
        self._pause_s = pause_s

    async def write(self) -> None:
        while True:
            await self._producer.append(b"%d" % self.count, partition=self.partition)
            self.count += 1
            self.times.append(time.monotonic())
            await anyio.sleep(self._pause_s)

    def longest_gap_s(self, begin: float, end: float) -> float:
        """As the function of that name has it."""
        return longest_gap_s(self.times, begin, end)


def longest_gap_s(times: Sequence[float], begin: float, end: float) -> float:
    """Between two acknowledgements, the later after ``begin`` and the earlier before ``end``.

    Behind the last of them it lasts until ``end``: who has fallen silent has the longest of all.
    """
    until = [*times, end] if not times or times[-1] < end else times
    gaps = (
        later - earlier
        for earlier, later in itertools.pairwise(until)
        if later > begin and earlier < end
    )
    return max(gaps, default=end - begin)


def restart_in_turn(
    cluster: LocalCluster, *, partitions: int = 12, pause_s: float = 0.02, rounds: int = 1
) -> Figures:
    """Restart every broker, ``rounds`` times, each once the one before is whole again."""

    async def run() -> Figures:
        return await _run(cluster, partitions, pause_s, rounds)

    return anyio.run(run, backend="trio")


async def _run(cluster: LocalCluster, partitions: int, pause_s: float, rounds: int) -> Figures:
    figures = Figures()
    await wait_until_ready(cluster)
    async with connect(cluster.bootstrap) as client:
        await client.admin.create_topic(TOPIC, partitions=partitions, replicas=3)
        async with client.producer(TOPIC) as producer:
            writers = [_Writer(producer, number, pause_s) for number in range(partitions)]
            async with anyio.create_task_group() as tasks:
                for writer in writers:
                    tasks.start_soon(writer.write)
                began = time.monotonic()
                await anyio.sleep(CALM_S)
                figures.calm_gap_s = _longest(writers, began, time.monotonic())
                for writer in writers:
                    figures.hand_overs_s.append(await _hand_over(client, writer))
                for _ in range(rounds):
                    for broker in cluster.brokers:
                        figures.restarts.append(await _restart(cluster, broker.node_id, writers))
                tasks.cancel_scope.cancel()
        await _judge(client, writers, figures)
    return figures


async def _hand_over(client: Client, writer: _Writer) -> float:
    """Give one partition to another broker; its longest gap meanwhile."""
    while (target := await _successor(client, writer.partition)) is None:
        await anyio.sleep(POLL_S)
    began = time.monotonic()
    await hand_over(client, TOPIC, writer.partition, target)
    await anyio.sleep(HAND_OVER_WATCHED_S)
    return writer.longest_gap_s(began, time.monotonic())


async def _successor(client: Client, partition: int) -> NodeId | None:
    """Who could take the partition over at once, if anybody: who leads it since a moment ago has
    yet to hear of the others."""
    described = await client.admin.describe_partition(TOPIC, partition)
    others = (one for one in described.replicas if one.node_id != described.leader)
    return next((NodeId(one.node_id) for one in others if one.in_sync), None)


def _longest(writers: Sequence[_Writer], begin: float, end: float) -> float:
    return max(writer.longest_gap_s(begin, end) for writer in writers)


async def _restart(
    cluster: LocalCluster, node: NodeId, writers: Sequence[_Writer]
) -> BrokerRestart:
    began = time.monotonic()
    await stop(cluster, node)
    stopped = time.monotonic()
    await anyio.sleep(CALM_S)
    started = time.monotonic()
    cluster.start(node)
    await wait_until_ready(cluster)
    await _wait_until_well(cluster)
    whole = time.monotonic()
    await anyio.sleep(CALM_S)
    return BrokerRestart(
        node=node,
        stopping_s=stopped - began,
        whole_after_s=whole - started,
        gaps_s=[writer.longest_gap_s(began, started) for writer in writers],
        gaps_starting_s=[writer.longest_gap_s(started, time.monotonic()) for writer in writers],
    )


async def _wait_until_well(cluster: LocalCluster) -> None:
    """As `logd cluster status` says it, which exits with 0 then."""
    with anyio.fail_after(WHOLE_TIMEOUT_S):
        while not await _is_well(cluster):
            await anyio.sleep(POLL_S)


async def _is_well(cluster: LocalCluster) -> bool:
    try:
        return (await fetch_status(cluster.bootstrap)).state == "ok"
    except LogdError:
        return False


async def _judge(client: Client, writers: Sequence[_Writer], figures: Figures) -> None:
    """Each record that was acknowledged is there once, in order; one more each may be."""
    figures.acknowledged = sum(writer.count for writer in writers)
    read: list[list[int]] = [[] for _ in writers]
    with anyio.fail_after(READ_BACK_TIMEOUT_S):
        async with client.consumer(TOPIC, start="earliest") as consumer:
            async for batch in consumer.batches():
                read[batch.partition] += [int(value or b"") for value in batch.values]
                if all(len(r) >= w.count for r, w in zip(read, writers, strict=True)):
                    break
    for writer, found in zip(writers, read, strict=True):
        figures.missing += len(set(range(writer.count)) - set(found))
        figures.twice += len(found) - len(set(found))
        figures.out_of_order += sum(a > b for a, b in itertools.pairwise(found))
