"""A cluster of five whose partitions move under load: how it is told, and how it is judged."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence

import trio

from logd.errors import LogdError
from logd.ops.companion import make_visible
from logd.types import GroupId
from logd.wire.messages import PartitionInfo, PlanInfo, PlannedMoveInfo
from logd_client import Client
from tests.sim import stories
from tests.sim.checks import check_metadata, check_replicas
from tests.sim.cluster import ClusterSettings, SimCluster
from tests.sim.network import CALM

TOPIC = "t"
PARTITIONS = 4
PATIENCE_S = 240.0
VALUE_BYTES = 400


def play(
    story: Callable[[SimCluster, Client], Awaitable[None]],
    seed: int = 1,
    *,
    replace_after_ms: int = 0,
    rebalance_interval_ms: int = 0,
    disk_free_bytes_min: int = 0,
) -> None:
    """Tell the story to a formed cluster of five with a topic of three replicas."""

    settings = ClusterSettings(
        brokers=5,
        network=CALM,
        replace_after_ms=replace_after_ms,
        rebalance_interval_ms=rebalance_interval_ms,
        disk_free_bytes_min=disk_free_bytes_min,
        companion=make_visible,
    )

    async def with_topic(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=3)
        await story(cluster, client)

    stories.play(with_topic, settings, seed=seed, patience_s=PATIENCE_S)


class Load:
    """Writes numbered records without a pause, and reads them back while they come."""

    def __init__(self, client: Client) -> None:
        self.acknowledged: dict[int, list[int]] = {n: [] for n in range(PARTITIONS)}
        self.read: dict[int, list[int]] = {n: [] for n in range(PARTITIONS)}
        self.is_over = False
        self._client = client
        self._next = 0

    async def write(self) -> None:
        async with self._client.producer(TOPIC) as producer:
            while not self.is_over:
                number, partition = self._next, self._next % PARTITIONS
                self._next += 1
                value = str(number).encode().ljust(VALUE_BYTES)
                await producer.append(value, partition=partition)
                self.acknowledged[partition].append(number)
                await trio.sleep(0.005)

    async def consume(self) -> None:
        async with self._client.consumer(TOPIC, start="earliest") as consumer:
            async for record in consumer:
                self.read[record.partition].append(int(record.value or b""))
                if self.is_over and self.read == self.acknowledged:
                    return


async def under_load(client: Client, work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work`` while records are written and read: no error, none lost, none twice."""
    load = Load(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.consume)
        async with trio.open_nursery() as writing:
            writing.start_soon(load.write)
            await trio.sleep(0.5)
            await work()
            load.is_over = True
        with trio.fail_after(30):
            while load.read != load.acknowledged:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert all(numbers == sorted(numbers) for numbers in load.read.values())


async def partitions_of(client: Client) -> list[PartitionInfo]:
    return (await client.admin.describe_topic(TOPIC)).partitions


def rotated(replicas: Sequence[int], shift: int) -> list[int]:
    """As many brokers of the five, ``shift`` further on."""
    return [(node + shift - 1) % 5 + 1 for node in replicas]


async def start(client: Client, targets: dict[int, list[int]]) -> int:
    version = (await client.admin.describe_rebalance()).layout_version
    partitions = await partitions_of(client)
    moves = [
        PlannedMoveInfo(
            group=partitions[at].group,
            before=partitions[at].replicas,
            target=target,
            reason="test",
        )
        for at, target in targets.items()
    ]
    return await client.admin.start_plan("test", version, moves)


async def ended(client: Client) -> PlanInfo:
    """Wait until the plan is over, on every broker that can be asked."""
    while True:
        with contextlib.suppress(LogdError):
            plan = (await client.admin.describe_rebalance()).plan
            if plan is not None and plan.state in ("done", "cancelled"):
                return plan
        await trio.sleep(0.2)


async def check(cluster: SimCluster, client: Client) -> None:
    """The copies that are there are those that should be, and equal."""
    for node in cluster.stopped():
        node.start()
    while True:
        await trio.sleep(0.5)
        wanted: dict[int, set[GroupId]] = {node: set() for node in cluster.nodes}
        partitions = await partitions_of(client)
        for partition in partitions:
            for node_id in partition.replicas:
                wanted[node_id].add(GroupId(partition.group))
        found = {
            node: {group for group in sim.groups if group != 0}
            for node, sim in cluster.nodes.items()
        }
        states = [sim.broker.metadata.state for sim in cluster.nodes.values() if sim.broker]
        is_cleared = all(
            not state.leaving(node) and not state.moving
            for state in states
            for node in cluster.nodes
        )
        ends = {
            group: {
                sim.groups[group].commit_offset
                for sim in cluster.nodes.values()
                if group in sim.groups
            }
            for group in (GroupId(p.group) for p in partitions)
        }
        is_settled = all(len(end) == 1 for end in ends.values()) and not check_metadata(cluster)
        if found == wanted and is_cleared and is_settled:
            break
    assert check_replicas(cluster) == []
