"""A replica that nobody can mend is made anew, where there is room, while the others serve on."""

from __future__ import annotations

import pytest
import trio

from logd.broker.partitions import BEING_REPAIRED, FILES_AT_ONCE
from logd.broker.rebuilding import MAKE_ANEW, TAKE_OUT
from logd.storage.segment import segment_name
from logd.storage.synced_mark import SLOT_POSITIONS
from logd.types import METADATA_GROUP, GroupId, NodeId, Offset
from logd_client import Client
from tests.sim.cluster import DATA_DIR, SimCluster
from tests.sim.moves import TOPIC, VALUE_BYTES, check, ended, partitions_of, play, start, under_load

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("lost", ["hard_state", ".log", "its directory"])
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
            if lost == "its directory":
                victim.files.remove_tree(directory)
            else:
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


def test_replicas_that_cannot_be_opened_keep_none_shut_that_are_opened_with_them() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic("many", partitions=128, replicas=3)
        victim = cluster.nodes[NodeId(topic.partitions[0].replicas[1])]
        groups = [GroupId(p.group) for p in topic.partitions if victim.node in p.replicas]
        assert len(groups) >= 2 * 4 * FILES_AT_ONCE, "enough to be opened two at a time"
        beyond_repair, damaged = groups[0], groups[3]
        while not set(groups) <= set(victim.groups):
            await trio.sleep(0.1)
        await victim.stop()
        victim.files.remove(f"{DATA_DIR}/groups/{beyond_repair:020}/hard_state")
        path = f"{DATA_DIR}/groups/{damaged:020}/{segment_name(Offset(0))}"
        for position in SLOT_POSITIONS:
            victim.files.flip(path, position)

        victim.start()

        while victim.broker is None or not set(groups) <= {
            *victim.groups,
            *victim.broker.node.shut,
        }:
            await trio.sleep(0.1)
        assert set(victim.broker.node.shut) == {beyond_repair, damaged}
        while victim.broker.node.shut:
            await trio.sleep(0.1)

    play(story, replace_after_ms=600_000)


@pytest.mark.parametrize("lost", ["its first segment", "its directory"])
def test_a_replica_that_nobody_can_mend_is_rebuilt_by_itself_whoever_is_the_controller(
    lost: str,
) -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        before, group = partition.replicas, GroupId(partition.group)
        victim = cluster.nodes[NodeId(before[1])]
        await victim.stop()
        directory = f"{DATA_DIR}/groups/{group:020}"
        if lost == "its directory":
            victim.files.remove_tree(directory)
        else:
            victim.files.remove(f"{directory}/{segment_name(Offset(0))}")
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


def test_two_of_five_replicas_that_nobody_can_mend_are_made_anew_one_after_the_other() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic("five", partitions=1, replicas=5)
        group = GroupId(topic.partitions[0].group)
        victims = [cluster.nodes[NodeId(node)] for node in topic.partitions[0].replicas[-2:]]
        for victim in victims:
            await victim.stop()
            victim.files.remove(f"{DATA_DIR}/groups/{group:020}/{segment_name(Offset(0))}")
            victim.start()

        while not all(group in victim.groups for victim in victims):
            await trio.sleep(0.5)

        while len((await client.admin.describe_topic("five")).partitions[0].replicas) < 5:
            await trio.sleep(0.5)

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


def test_a_plan_that_comes_in_between_does_not_keep_a_replica_from_being_made_anew() -> None:
    """The plan that says that it was taken out is not the last one any more."""

    async def story(cluster: SimCluster, client: Client) -> None:
        first, second, *_ = await partitions_of(client)
        group, victim = GroupId(first.group), cluster.nodes[NodeId(first.replicas[1])]
        await victim.stop()
        victim.files.remove(f"{DATA_DIR}/groups/{group:020}/hard_state")
        victim.start()

        async def taken_out() -> bool:
            plan = (await client.admin.describe_rebalance()).plan
            return plan is not None and plan.purpose.endswith(TAKE_OUT) and plan.state == "done"

        with trio.fail_after(150):
            while not await taken_out():
                await trio.sleep(0.02)
        others = [node for node in range(1, 6) if node not in second.replicas]
        started = await start(client, {1: [*second.replicas[:2], others[0]]})
        assert (await ended(client)).plan_id == started
        assert len((await partitions_of(client))[0].replicas) == 2

        with trio.fail_after(60):
            while len((await partitions_of(client))[0].replicas) < 3:
                await trio.sleep(0.5)
        await check(cluster, client)

    play(story, replace_after_ms=600_000)
