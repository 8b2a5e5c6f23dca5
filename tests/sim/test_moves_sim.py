"""Partitions move between brokers while they are written and read, whatever breaks meanwhile.

A plan always ends as it was meant to or cleanly cancelled, every acknowledged record is read
exactly once and in order, and what is left on the disks is what the metadata says.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio

from logd.broker.partitions import BEING_REPAIRED
from logd.broker.rebuilding import MAKE_ANEW, TAKE_OUT
from logd.errors import LogdError
from logd.ops.companion import make_visible
from logd.storage.segment import segment_name
from logd.types import METADATA_GROUP, GroupId, NodeId, Offset
from logd.wire.messages import PartitionInfo, PlanInfo, PlannedMoveInfo
from logd_client import Client
from tests.sim import stories
from tests.sim.checks import check_metadata, check_replicas
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster
from tests.sim.network import CALM

TOPIC = "t"
PARTITIONS = 4
PATIENCE_S = 240.0
VALUE_BYTES = 400

pytestmark = pytest.mark.sim


def play(
    story: Callable[[SimCluster, Client], Awaitable[None]],
    seed: int = 1,
    *,
    replace_after_ms: int = 0,
    rebalance_interval_ms: int = 0,
) -> None:
    """Tell the story to a formed cluster of five with a topic of three replicas."""

    settings = ClusterSettings(
        brokers=5,
        network=CALM,
        replace_after_ms=replace_after_ms,
        rebalance_interval_ms=rebalance_interval_ms,
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
        if found == wanted and is_cleared and all(len(end) == 1 for end in ends.values()):
            break
    assert check_metadata(cluster) == []
    assert check_replicas(cluster) == []


def test_partitions_move_to_other_brokers_under_load() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        targets = {
            at: rotated(partition.replicas, 1)
            for at, partition in enumerate(await partitions_of(client))
        }

        async def work() -> None:
            await start(client, targets)
            assert (await ended(client)).state == "done"

        await under_load(client, work)

        assert {at: p.replicas for at, p in enumerate(await partitions_of(client))} == targets
        await check(cluster, client)

    play(story)


def test_a_partition_goes_to_brokers_none_of_which_had_it_and_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0].replicas
        elsewhere = sorted(set(range(1, 6)) - set(before))

        async def work() -> None:
            for target in (elsewhere, before, elsewhere):
                await start(client, {0: target})
                assert (await ended(client)).state == "done"

        await under_load(client, work)

        assert (await partitions_of(client))[0].replicas == elsewhere
        await check(cluster, client)

    play(story)


@pytest.mark.parametrize("lost", ["hard_state", ".log"])
def test_a_replica_that_nobody_can_mend_is_rebuilt_where_it_was_by_moving_it_out_and_back(
    lost: str,
) -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        before, group = partition.replicas, GroupId(partition.group)
        victim = cluster.nodes[NodeId(before[1])]

        async def work() -> None:
            await victim.stop()
            directory = f"{DATA_DIR}/groups/{group:020}"
            for name in victim.files.list_directory(directory):
                if name.endswith(lost):
                    victim.files.remove(f"{directory}/{name}")
            victim.start()
            while victim.broker is None or group not in victim.broker.node.shut:
                await trio.sleep(0.1)

            for target in ([node for node in before if node != victim.node], before):
                await start(client, {0: target})
                assert (await ended(client)).state == "done"
            assert victim.broker.node.shut == {}

        await under_load(client, work)

        assert (await partitions_of(client))[0].replicas == before
        await check(cluster, client)

    play(story)


def test_a_replica_that_nobody_can_mend_is_rebuilt_by_itself_whoever_is_the_controller() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        before, group = partition.replicas, GroupId(partition.group)
        victim = cluster.nodes[NodeId(before[1])]
        await victim.stop()
        victim.files.remove(f"{DATA_DIR}/groups/{group:020}/{segment_name(Offset(0))}")
        victim.start()
        await trio.sleep(60)
        assert (await partitions_of(client))[0].replicas == before

        async def work() -> None:
            while (plan := (await client.admin.describe_rebalance()).plan) is None:
                await trio.sleep(0.02)
            assert plan.purpose == f"by itself: {TAKE_OUT}"

            controller = cluster.leader_of(METADATA_GROUP)
            assert controller is not None
            await controller.crash(power=False)
            await trio.sleep(2)
            controller.start()
            while True:
                plan = await ended(client)
                if plan.purpose == f"by itself: {MAKE_ANEW}":
                    break
                await trio.sleep(0.2)
            assert plan.state == "done"

        await under_load(client, work)

        assert len((await partitions_of(client))[0].replicas) == 3
        await check(cluster, client)

    play(story, replace_after_ms=600_000)


def test_a_replica_that_lost_its_newest_segment_does_not_vote_and_is_made_anew() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        group, victim = GroupId(partition.group), cluster.nodes[NodeId(partition.replicas[1])]
        async with client.producer(TOPIC) as producer:
            for _ in range(400):
                await producer.append(bytes(VALUE_BYTES), partition=0)
        await trio.sleep(1)
        bases = victim.groups[group].log.segment_bases
        assert len(bases) > 1
        await victim.stop()
        victim.files.remove(f"{DATA_DIR}/groups/{group:020}/{segment_name(bases[-1])}")

        victim.start()

        while victim.broker is None or group not in victim.broker.node.shut:
            await trio.sleep(0.1)
        while victim.broker.node.shut[group] == BEING_REPAIRED:
            await trio.sleep(0.1)
        assert victim.broker.node.shut[group].is_final
        assert "is gone" in victim.broker.node.shut[group].reason
        while victim.broker.node.shut or len((await partitions_of(client))[0].replicas) < 3:
            await trio.sleep(0.1)
        await check(cluster, client)

    play(story, replace_after_ms=600_000)


def test_a_replica_is_made_anew_elsewhere_if_its_broker_is_lost_meanwhile() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        group, victim = GroupId(partition.group), cluster.nodes[NodeId(partition.replicas[1])]
        await victim.stop()
        victim.files.remove(f"{DATA_DIR}/groups/{group:020}/{segment_name(Offset(0))}")
        victim.start()
        while len((await partitions_of(client))[0].replicas) == 3:
            await trio.sleep(0.01)
        await victim.crash(power=False)

        while len(now := (await partitions_of(client))[0].replicas) < 3:
            await trio.sleep(0.1)

        assert victim.node not in now
        while any(victim.node in p.replicas for p in await partitions_of(client)):
            await trio.sleep(0.1)
        victim.start()
        await check(cluster, client)

    play(story, replace_after_ms=8_000)


def test_a_replica_that_nobody_can_mend_is_left_alone_while_the_others_cannot_spare_it() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        group = GroupId(partition.group)
        victim, other = (cluster.nodes[NodeId(node)] for node in partition.replicas[1:])
        await victim.stop()
        victim.files.remove(f"{DATA_DIR}/groups/{group:020}/{segment_name(Offset(0))}")
        victim.start()
        await other.stop()
        await trio.sleep(90)
        assert (await client.admin.describe_rebalance()).plan is None

        other.start()

        while len((await partitions_of(client))[0].replicas) == 3:
            await trio.sleep(0.1)
        while len((await partitions_of(client))[0].replicas) < 3:
            await trio.sleep(0.1)
        await check(cluster, client)

    play(story, replace_after_ms=600_000)


def test_a_replica_that_is_being_repaired_goes_when_its_partition_does() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("alone", partitions=1, replicas=1)
        async with client.producer("alone") as producer:
            for _ in range(20):
                await producer.append(bytes(VALUE_BYTES))
        partition = (await client.admin.describe_topic("alone")).partitions[0]
        group, victim = GroupId(partition.group), cluster.nodes[NodeId(partition.replicas[0])]
        await victim.stop()
        directory = f"{DATA_DIR}/groups/{group:020}"
        for name in victim.files.list_directory(directory):
            if name.endswith(".log"):
                victim.files.overwrite(f"{directory}/{name}", 5_000, bytes(1_000))
        victim.start()
        while victim.broker is None or group not in victim.broker.node.shut:
            await trio.sleep(0.1)
        assert victim.broker.node.shut[group] == BEING_REPAIRED

        await client.admin.delete_topic("alone")
        with trio.fail_after(10):
            while group in victim.broker.node.shut or victim.files.exists(directory):
                await trio.sleep(0.1)
        await trio.sleep(5)

        assert victim.broker.node.shut == {}
        assert not victim.files.exists(directory)

    play(story)


def test_a_cancelled_plan_leaves_every_partition_where_it_was_or_was_to_go() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = {at: p.replicas for at, p in enumerate(await partitions_of(client))}
        targets = {at: rotated(replicas, 2) for at, replicas in before.items()}
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024, concurrency=2)

        async def work() -> None:
            await trio.sleep(3)
            plan_id = await start(client, targets)
            await trio.sleep(0.3)
            await client.admin.cancel_plan(plan_id)
            assert (await ended(client)).state == "cancelled"

        await under_load(client, work)

        for at, partition in enumerate(await partitions_of(client)):
            assert partition.replicas in (before[at], targets[at])
        await check(cluster, client)

    play(story)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_survives_crashes_of_the_controller_the_source_and_the_target(seed: int) -> None:
    chance = random.Random(f"{seed}:moves")

    async def story(cluster: SimCluster, client: Client) -> None:
        before = {at: p.replicas for at, p in enumerate(await partitions_of(client))}
        targets = {at: rotated(replicas, 2) for at, replicas in before.items()}
        await client.admin.set_rebalancing(throttle_bytes_per_s=256 * 1024, concurrency=2)
        is_cancelled = chance.random() < 0.3

        async def crash_now_and_then() -> None:
            for _ in range(4):
                await trio.sleep(chance.uniform(0.0, 1.5))
                controller = cluster.leader_of(GroupId(0))
                group = GroupId((await partitions_of(client))[chance.randrange(PARTITIONS)].group)
                leader = cluster.leader_of(group)
                anyone = cluster.nodes[NodeId(chance.randint(1, 5))]
                victim = chance.choice([controller, leader, anyone]) or anyone
                if not victim.is_alive or len(cluster.alive()) < 5:
                    continue
                await victim.crash(power=chance.random() < 0.5)
                await trio.sleep(chance.uniform(0.0, 3.0))
                victim.start()

        async def work() -> None:
            await trio.sleep(2)
            plan_id = await start(client, targets)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crash_now_and_then)
                if is_cancelled:
                    await trio.sleep(chance.uniform(0.0, 3.0))
                    await client.admin.cancel_plan(plan_id)
            plan = await ended(client)
            assert plan.state in ("done", "cancelled" if is_cancelled else "done")

        await under_load(client, work)

        for at, partition in enumerate(await partitions_of(client)):
            assert partition.replicas in (
                [before[at], targets[at]] if is_cancelled else [targets[at]]
            )
        await check(cluster, client)

    play(story, seed)


def test_a_broker_that_stays_dead_is_replaced_by_itself_and_one_that_returns_is_not() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = NodeId((await partitions_of(client))[0].replicas[0])

        async def work() -> None:
            await cluster.nodes[victim].crash(power=False)
            await trio.sleep(5)
            cluster.nodes[victim].start()
            await trio.sleep(10)
            assert (await client.admin.describe_rebalance()).plan is None

            await cluster.nodes[victim].crash(power=False)
            plan = await ended(client)
            assert plan.state == "done"
            assert plan.purpose.startswith(f"by itself: replace broker {victim}, missing")

        await under_load(client, work)

        for partition in await partitions_of(client):
            assert victim not in partition.replicas
            assert len(partition.replicas) == 3
        await check(cluster, client)

    play(story, replace_after_ms=8_000)


def test_with_autonomy_off_a_dead_broker_is_only_talked_about() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = NodeId((await partitions_of(client))[0].replicas[1])
        await client.admin.set_rebalancing(autonomous=False)

        await cluster.nodes[victim].crash(power=False)
        await trio.sleep(30)

        found = await client.admin.describe_rebalance()
        assert found.plan is None
        assert any(f"broker {victim} has been missing" in note for note in found.autonomy)
        assert any("autonomy is off" in note for note in found.autonomy)

    play(story, replace_after_ms=5_000)


def test_a_drain_goes_on_when_whoever_asked_for_it_has_gone() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        node = NodeId((await partitions_of(client))[0].replicas[0])

        async def work() -> None:
            await client.admin.alter_broker(node, "drain")
            assert (await ended(client)).purpose == f"by itself: drain broker {node}"

        await under_load(client, work)

        assert all(node not in p.replicas for p in await partitions_of(client))
        await client.admin.alter_broker(node, "remove")
        assert node not in [b.node_id for b in (await client.admin.describe_cluster()).brokers]

    play(story)


def test_a_move_to_a_broker_that_is_lost_is_taken_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0].replicas
        newcomer = min(set(range(1, 6)) - set(before))
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)

        async def work() -> None:
            await trio.sleep(5)
            await start(client, {0: [*before[:2], newcomer]})
            await trio.sleep(0.2)
            await cluster.nodes[NodeId(newcomer)].crash(power=False)
            plan = await ended(client)
            assert [move.state for move in plan.moves] == ["cancelled"]

        await under_load(client, work)

        assert (await partitions_of(client))[0].replicas == before

    play(story, replace_after_ms=3_000)


def test_a_leader_that_is_shipped_metadata_while_it_moves_something_goes_by_them() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        at, partition, leader = next(
            (at, partition, leader)
            for at, partition in enumerate(await partitions_of(client))
            if (leader := cluster.leader_of(GroupId(partition.group))) not in (controller, None)
        )
        assert leader is not None
        assert leader.broker is not None
        newcomer = next(
            node
            for number, node in cluster.nodes.items()
            if number not in partition.replicas and node is not controller
        )
        await newcomer.crash(power=False)
        await start(client, {at: [*partition.replicas[:2], int(newcomer.node)]})
        await trio.sleep(2.0)  # It is waited for, and does not come.

        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)
        # The leader has not heard of that command yet, and lags so far that it gets the state.
        ahead = controller.broker.metadata
        assert leader.broker.metadata.applied_offset < ahead.applied_offset
        leader.broker.metadata.on_installed(ahead.applied_offset, ahead.state.snapshot())

        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        await client.admin.cancel_plan(plan.plan_id)
        with trio.fail_after(20):
            assert [move.state for move in (await ended(client)).moves] == ["cancelled"]

    play(story)


def test_an_uneven_cluster_evens_itself_out_where_that_is_wanted() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        for at, partition in enumerate(await partitions_of(client)):
            if partition.replicas != [1, 2, 3]:
                await start(client, {at: [1, 2, 3]})
                await ended(client)
        with trio.fail_after(60):
            while True:
                counts = [
                    sum(node in p.replicas for p in await partitions_of(client))
                    for node in range(1, 6)
                ]
                if max(counts) - min(counts) <= 1:
                    break
                await trio.sleep(1)
        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        assert plan.purpose == "by itself: even out"

    play(story, rebalance_interval_ms=10_000)
