"""Faults that chance meets too seldom, each as a script."""

from __future__ import annotations

import contextlib
import errno

import pytest
import trio

from logd.broker.admin import transfer_leader
from logd.broker.broker import Broker
from logd.broker.reading import fetch, offsets
from logd.broker.rebalancing import alter_broker
from logd.broker.subscriptions import DELIVERY_BYTES
from logd.errors import (
    FencedError,
    LogdError,
    NotAReplicaError,
    RequestTimeoutError,
    StorageError,
    TopicExistsError,
    UnavailableError,
)
from logd.record.batch import seal_batch
from logd.replication.claims import CLAIMS_COMPARED_EVERY_S
from logd.replication.group import Group
from logd.replication.node import Shut
from logd.types import METADATA_GROUP, GroupId, NodeId, Offset
from logd.wire.messages import (
    AlterBrokerRequest,
    FetchRequest,
    OffsetsRequest,
    TransferLeaderRequest,
)
from logd_client import Client
from tests.sim.cluster import DATA_DIR, SimCluster, SimNode
from tests.sim.env import BlockingConditions
from tests.sim.faults import QUICK_DISK, SLOW_DISK
from tests.sim.files import CAPACITY_BYTES_DEFAULT
from tests.sim.stories import play

TOPIC = "t"

pytestmark = pytest.mark.sim


def test_a_directory_of_a_topic_that_the_restarted_broker_has_not_heard_of_is_kept() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        node = cluster.nodes[NodeId(1)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(create_topic, client)
            while len(directories := node.files.list_directory(f"{DATA_DIR}/groups")) < 2:
                await trio.sleep(0.000_1)
        # Its mark does not say yet that the command was committed, and nobody tells it.
        await node.crash(power=False)
        cluster.network.isolate(node.host)
        node.start()
        await trio.sleep(5.0)

        assert node.files.list_directory(f"{DATA_DIR}/groups") == directories
        cluster.network.heal()  # The client's own, too: it is told what became of its topic.

    play(story)


def test_a_replica_that_was_deleted_is_not_made_again_by_a_broker_that_restarts() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        node = cluster.nodes[NodeId(1)]
        directory = f"{DATA_DIR}/groups/{topic.partitions[0].group:020}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.admin.delete_topic, TOPIC)
            while node.files.exists(directory):
                await trio.sleep(0.000_1)
        # Made again it would be empty, and vote in terms in which it has voted before.
        await node.crash(power=True)
        cluster.network.isolate(node.host)
        node.start()
        await trio.sleep(5.0)

        assert not node.files.exists(directory)
        cluster.network.heal()

    play(story)


def test_who_answers_for_a_partition_knows_of_everything_acknowledged_before() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        group = GroupId(topic.partitions[0].group)
        async with client.producer(TOPIC) as producer:
            first = await producer.append(b"first")
            leader = cluster.leader_of(group)
            assert leader is not None
            followers = [node for node in cluster.nodes.values() if node is not leader]
            while any(node.groups[group].commit_offset <= first.offset for node in followers):
                await trio.sleep(0.01)
            leader.groups[group].watch(OnCommit(cluster, leader, followers))
            ack = await producer.append(b"second")
        # One of them holds it, if not both, and that it is committed nobody has told them.
        assert any(node.groups[group].log.end_offset > ack.offset for node in followers)
        for node in followers:
            assert ack.offset >= node.groups[group].commit_offset
        await leader.crash(power=True)
        answers = 0
        while answers < 10:
            await trio.sleep(0.001)
            for node in cluster.alive():
                with contextlib.suppress(LogdError):
                    request = FetchRequest(group=group, offset=0)
                    found, _ = await fetch(broker_of(node), request, request.bytes_max)
                    assert found.next_offset > ack.offset
                    answer = await offsets(broker_of(node), OffsetsRequest(group=group))
                    assert answer.commit_offset > ack.offset
                    answers += 1

    play(story)


class OnCommit:
    """Keeps from its followers whatever a leader has to say from its next commit on."""

    def __init__(self, cluster: SimCluster, leader: SimNode, followers: list[SimNode]) -> None:
        self._network = cluster.network
        self._links = [(leader.host, node.host) for node in followers]

    def on_commit(self, commit_offset: Offset) -> None:
        links, self._links = self._links, []
        self._network.hold(links)

    def on_leadership_lost(self) -> None:
        """Nothing else is to be kept."""


def test_a_broker_killed_again_and_again_while_topics_are_made_has_all_of_them() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        made: list[str] = []
        node = cluster.nodes[NodeId(2)]
        for number in range(5):
            name = f"{TOPIC}-{number}"
            while name not in made:
                with contextlib.suppress(TopicExistsError, LogdError):
                    await client.admin.create_topic(name, partitions=1, replicas=3)
                made = [topic.name for topic in await client.admin.list_topics()]
            async with client.producer(name) as producer:
                await producer.append(name.encode())
            await node.crash(power=number % 2 == 0)
            node.start()
        for name in made:
            async with client.consumer(name, start="earliest", from_replica=2) as consumer:
                assert (await anext(aiter(consumer))).value == name.encode()

    play(story)


def test_one_slow_disk_slows_nobody_down_but_its_own_node() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        group = GroupId(topic.partitions[0].group)
        leader = cluster.leader_of(group)
        slow = next(node for node in cluster.nodes.values() if node is not leader)
        slow.set_blocking(SLOW_DISK)
        elections = sum(event.name == "leader_elected" for event in cluster.trace.events)
        longest_s = 0.0
        async with client.producer(TOPIC) as producer:
            for _ in range(300):
                began = trio.current_time()
                await producer.append(b"value")
                longest_s = max(longest_s, trio.current_time() - began)
                await trio.sleep(0.02)
        assert longest_s < 1.0
        assert elections == sum(event.name == "leader_elected" for event in cluster.trace.events)

    play(story)


@pytest.mark.parametrize(("source", "target"), [(1, 2), (2, 1)])
def test_two_of_three_elect_leaders_and_keep_them_while_one_hears_the_other_late(
    source: int, target: int
) -> None:
    """An answer takes several election timeouts then, and leaders are evened out meanwhile."""

    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=12, replicas=3)
        groups = [GroupId(partition.group) for partition in topic.partitions]
        lost, *others = (cluster.nodes[NodeId(node)] for node in (3, 1, 2))
        while not all(map(cluster.leader_of, groups)):
            await trio.sleep(0.1)
        terms = {group: others[0].groups[group].core.term for group in groups}
        cluster.network.slow(f"node{source}", f"node{target}", 0.8)
        await lost.crash(power=False, vanish=False)

        leaderless = dict.fromkeys(groups, 0)
        for _ in range(300):
            await trio.sleep(0.1)
            for group in groups:
                if not any(node.groups[group].core.is_ready for node in others):
                    leaderless[group] += 1

        assert max(leaderless.values()) < 60  # Each stands for a tenth of a second.
        for group in groups:
            assert max(node.groups[group].core.term for node in others) <= terms[group] + 3
        cluster.network.heal()

    play(story)


def test_a_full_disk_that_is_still_full_after_a_restart_recovers_when_there_is_space() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        acknowledged: list[int] = []

        async def append_some() -> None:
            async with client.producer(TOPIC) as producer:
                acknowledged.extend(
                    [(await producer.append(bytes(2000))).offset for _ in range(20)]
                )

        await append_some()
        node = cluster.nodes[NodeId(1)]
        node.files.capacity_bytes = node.files.used_bytes() + 4096
        await append_some()  # The other two are enough.
        await node.crash(power=True)
        node.start()
        await append_some()
        node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        if node.is_alive:
            await node.stop()
        node.start()
        async with client.consumer(TOPIC, start="earliest", from_replica=1) as consumer:
            records = aiter(consumer)
            assert [(await anext(records)).offset for _ in acknowledged] == acknowledged

    play(story)


def test_a_broker_may_be_killed_with_a_refusal_of_its_disk_on_the_way() -> None:
    """It ends by the refusal then, though it is dead; without one that would be a bug."""

    async def story(cluster: SimCluster, client: Client) -> None:
        refused = StorageError("cannot write hard_state: simulated failure")
        node, sound = cluster.nodes[NodeId(1)], cluster.nodes[NodeId(2)]
        node.has_disk_trouble = True
        for each in (node, sound):
            await each.crash(power=False)
        assert node.env is not None
        assert sound.env is not None

        assert node.may_end_by(refused, node.env)
        assert not sound.may_end_by(refused, sound.env)

    play(story)


def test_only_a_broker_that_has_not_come_up_may_end_for_want_of_room() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        no_room = OSError(errno.ENOSPC, "no space left")
        node, roomy = cluster.nodes[NodeId(1)], cluster.nodes[NodeId(2)]
        assert node.env is not None
        assert roomy.env is not None
        node.has_lacked_room = True
        assert not node.may_end_by(no_room, node.env)

        for each in (node, roomy):
            await each.crash(power=False)
        node.files.capacity_bytes = node.files.used_bytes()
        for each in (node, roomy):
            each.start()

        assert node.may_end_by(no_room, node.env)
        assert not node.may_end_by(StorageError("something else"), node.env)
        assert not roomy.may_end_by(no_room, roomy.env)

    play(story)


def test_a_leader_that_was_paused_acknowledges_nothing_that_others_do_not_have() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        group = GroupId(topic.partitions[0].group)
        old = cluster.leader_of(group)
        assert old is not None
        async with client.producer(TOPIC) as producer:
            first = await producer.append(b"first")
            old.pause()
            second = await producer.append(b"second")  # By the next leader.
            old.resume()
            third = await producer.append(b"third")
        assert first.offset < second.offset < third.offset
        async with client.consumer(TOPIC, start="earliest", from_replica=old.node) as consumer:
            records = aiter(consumer)
            assert [(await anext(records)).value for _ in range(3)] == [
                b"first",
                b"second",
                b"third",
            ]

    play(story)


def test_who_reads_a_replica_where_there_is_none_is_told_so_at_once() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=1)
        (holder,) = topic.partitions[0].replicas
        other = next(node for node in cluster.nodes if node != holder)
        told = f"broker {other} holds no replica of {TOPIC}/0, which is on broker {holder}"
        with trio.fail_after(1.0):
            with pytest.raises(NotAReplicaError, match=told):
                await client.admin.offsets(TOPIC, 0, from_replica=other)
            with pytest.raises(NotAReplicaError, match=told):
                async with client.consumer(TOPIC, from_replica=other):
                    pytest.fail("opened")

    play(story)


def test_a_consumer_far_behind_gets_all_that_a_delivery_has_no_room_for() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await create_topic(client)
        values = [bytes([number]) * (DELIVERY_BYTES // 2) for number in range(5)]
        async with client.producer(TOPIC) as producer:
            for value in values:
                await producer.append(value)
        async with client.consumer(TOPIC, start="earliest") as consumer:
            records = aiter(consumer)
            assert [(await anext(records)).value for _ in values] == values

    play(story)


def test_a_reader_of_many_small_batches_lets_others_run() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await create_topic(client)
        count, turns = 100, 0
        async with client.producer(TOPIC) as producer:
            for number in range(count):
                await producer.append(b"%d" % number)

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with client.consumer(TOPIC, start="earliest") as consumer:
            batches = aiter(consumer.batches())
            await anext(batches)
            await trio.sleep(1.0)  # All has arrived.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(others)
                for _ in range(count - 1):
                    await anext(batches)
                nursery.cancel_scope.cancel()

        assert 2 <= turns < count

    play(story)


def test_a_broker_that_missed_who_leads_a_partition_is_told_again() -> None:
    """It holds no replica of it: what the leader announces is all that it can know."""

    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=1)
        group = GroupId(topic.partitions[0].group)
        leader = cluster.leader_of(group)
        assert leader is not None
        others = [node for node in cluster.nodes.values() if node is not leader]

        def known() -> list[NodeId | None]:
            return [broker_of(node).node.leader_of(group)[0] for node in others]

        # Leaders even out, each time with an announcement.
        await trio.sleep(2 * CLAIMS_COMPARED_EVERY_S)
        assert known() == [leader.node, leader.node]
        # An announcement is lost; nothing changes and nobody connects anew.
        for node in others:
            broker_of(node).node.claims.forget(leader.node)
        assert known() == [None, None]
        await trio.sleep(2 * CLAIMS_COMPARED_EVERY_S)
        assert known() == [leader.node, leader.node]

        # It seems dead for a while, on connections that stay.
        leader.pause()
        await trio.sleep(1.5)
        assert known() == [None, None]
        leader.resume()
        await trio.sleep(2 * CLAIMS_COMPARED_EVERY_S)
        assert known() == [leader.node, leader.node]

    play(story)


def broker_of(node: SimNode) -> Broker:
    assert node.broker is not None
    return node.broker


async def create_topic(client: Client) -> None:
    with contextlib.suppress(LogdError):
        await client.admin.create_topic(TOPIC, partitions=1, replicas=3)


def test_a_partition_that_asks_for_a_fence_does_so_from_the_moment_it_is_open() -> None:
    """The first that a broker opens when it starts leads before the last is open."""

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic(
            TOPIC, partitions=240, replicas=1, config={"fence": "required"}
        )
        node = cluster.nodes[NodeId(1)]
        await node.crash(power=False)
        node.blocking = BlockingConditions(latency_s_min=0.1, spike_probability=0.0)
        node.start()
        asked: set[GroupId] = set()

        async def append_without(group: Group) -> None:
            batch = bytes(seal_batch(values=[b"v"], timestamps_ms=0))
            with pytest.raises(FencedError, match="carries no token"):
                await group.commit(batch, broker_of(node).node.now_ms() + 1000)

        async with trio.open_nursery() as nursery:
            while len(asked) < 80:
                for group in node.groups.values():
                    if group.is_ready and group.group_id not in {METADATA_GROUP, *asked}:
                        asked.add(group.group_id)
                        nursery.start_soon(append_without, group)
                await trio.sleep(0.001)

    play(story)


async def held_leader(cluster: SimCluster, client: Client) -> tuple[SimNode, GroupId]:
    """The leader of a partition, which seals a segment while its disk is slow for a moment."""
    topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
    async with client.producer(TOPIC) as producer:
        await producer.append(b"v")
    group_id = GroupId(topic.partitions[0].group)
    leader = cluster.leader_of(group_id)
    assert leader is not None
    leader.set_blocking(BlockingConditions(latency_s_min=0.3, spike_probability=0.0))
    leader.groups[group_id].roller.roll_soon()
    await trio.sleep(0.01)
    leader.set_blocking(QUICK_DISK)
    assert leader.groups[group_id].is_held
    return leader, group_id


def test_leadership_is_given_away_once_a_segment_that_is_being_rolled_is_sealed() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        leader, group_id = await held_leader(cluster, client)

        request = TransferLeaderRequest(group=group_id, timeout_ms=10_000)
        answer = await transfer_leader(broker_of(leader), request)

        assert answer.leader != leader.node

    play(story)


def test_a_broker_that_stops_hands_over_what_it_leads_also_while_a_segment_is_rolled() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        leader, group_id = await held_leader(cluster, client)
        group = leader.groups[group_id]

        await leader.stop()

        assert group.counts.leaderships_lost == 1

    play(story)


def test_who_has_another_lead_what_has_one_replica_is_told_at_once_that_there_is_none() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic(TOPIC, partitions=1, replicas=1)
        started = trio.current_time()

        with pytest.raises(NotAReplicaError, match="the only one that can lead it"):
            await client.admin.transfer_leader(TOPIC, 0)

        assert trio.current_time() - started < 1

    play(story)


def test_who_would_have_any_other_broker_lead_is_told_that_none_did() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        async with client.producer(TOPIC) as producer:
            await producer.append(b"v")
        group_id = GroupId(topic.partitions[0].group)
        leader = cluster.leader_of(group_id)
        assert leader is not None
        for node in cluster.nodes.values():
            if node is not leader:
                node.pause()

        request = TransferLeaderRequest(group=group_id, timeout_ms=10_000)
        with pytest.raises(UnavailableError, match=r"^no other node took over: still leading"):
            await transfer_leader(broker_of(leader), request)

    play(story)


def test_who_asks_a_broker_whose_replica_is_shut_is_told_why() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        group_id = GroupId(topic.partitions[0].group)
        broker = broker_of(cluster.nodes[NodeId(1)])
        await broker.node.remove_group(group_id)
        broker.node.shut[group_id] = Shut("its votes are lost", is_final=True)

        with pytest.raises(UnavailableError, match="t/0 is not open: its votes are lost"):
            broker.group(group_id)

    play(story)


def test_who_has_a_broker_removed_is_answered_in_time_also_if_it_cannot_be_done_by_then() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        others = [node for node in cluster.nodes.values() if node is not controller]
        for node in others:
            node.set_blocking(BlockingConditions(latency_s_min=5.0, spike_probability=0.0))
        request = AlterBrokerRequest(node_id=others[0].node, action="remove", timeout_ms=500)

        with trio.fail_after(1.0), pytest.raises(RequestTimeoutError):
            await alter_broker(broker_of(controller), request)

    play(story)
