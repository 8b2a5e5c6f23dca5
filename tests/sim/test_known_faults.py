"""Faults that other logs have shipped, each as a script: none of them is left to chance.

``docs/failure_model.md`` says which fault is which test.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

import pytest
import trio

from logd.broker import admin
from logd.broker.broker import Broker
from logd.broker.reading import offsets
from logd.broker.subscriptions import Subscriptions
from logd.env import ByteStream
from logd.errors import (
    ConnectionLostError,
    DeliveryTimeoutError,
    DiskFullError,
    LogdError,
    UnavailableError,
    UnknownTopicError,
    UnsupportedVersionError,
)
from logd.limits import (
    DESCRIPTORS_SPARE_OF_REPLICAS,
    DISK_PATIENCE_S,
    KIB,
    MIB,
    SEGMENT_HEADER_BYTES,
)
from logd.replication import syncing
from logd.replication.fitness import CROWDED_S
from logd.replication.log_reader import CommittedBatches
from logd.replication.standing import trouble_of
from logd.types import METADATA_GROUP, GroupId, NodeId
from logd.wire.messages import Deliver, OffsetsRequest, SubscribeRequest
from logd_client import Client
from logd_client.connection import Lane
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.env import BlockingConditions
from tests.sim.faults import ROOMS, SLOW_DISK
from tests.sim.files import CAPACITY_BYTES_DEFAULT, SimulatedFileSystem
from tests.sim.network import CALM, SimListener
from tests.sim.run import run_deterministic
from tests.sim.trace import TraceEvent

TOPIC = "t"
PATIENCE_S = 120.0
SETTLED_S = 5.0
STANDING_DISK = BlockingConditions(latency_s_min=20.0)

pytestmark = pytest.mark.sim


class Told:
    """A formed cluster with one topic, as the stories here see it."""

    def __init__(self, cluster: SimCluster, client: Client, group: GroupId) -> None:
        self.cluster = cluster
        self.client = client
        self.group = group
        self.acknowledged: dict[int, bytes] = {}

    @property
    def nodes(self) -> list[SimNode]:
        return list(self.cluster.nodes.values())

    async def leader(self, group: GroupId | None = None) -> SimNode:
        """Who leads the topic's partition, once somebody does."""
        while True:
            found = self.cluster.leader_of(self.group if group is None else group)
            if found is not None:
                return found
            await trio.sleep(0.01)

    async def append(self, count: int, value: bytes = b"value") -> None:
        """Append records one after the other; each is remembered when it is acknowledged."""
        async with self.client.producer(TOPIC) as producer:
            for _ in range(count):
                numbered = b"%d-%s" % (len(self.acknowledged), value)
                self.acknowledged[(await producer.append(numbered)).offset] = numbered

    async def nothing_is_lost_on(self, nodes: Sequence[SimNode]) -> None:
        """Each of these nodes gives back every acknowledged record, from its own log."""
        for node in nodes:
            async with self.client.consumer(
                TOPIC, start="earliest", from_replica=node.node
            ) as consumer:
                records = aiter(consumer)
                found: dict[int, bytes | None] = {}
                while len(self.acknowledged.keys() - found.keys()):
                    record = await anext(records)
                    found[record.offset] = record.value
            assert {offset: found[offset] for offset in self.acknowledged} == self.acknowledged

    def elections(self) -> int:
        return sum(event.name == "leader_elected" for event in self.cluster.trace.events)

    def events(self, name: str) -> list[str]:
        """The hosts that said it."""
        return [event.source for event in self.cluster.trace.events if event.name == name]


UNANSWERING = BlockingConditions(latency_s_min=60.0, latency_s_mean=0.0, spike_probability=0.0)
"""A disk whose calls come back, but much later than anybody should wait."""


def tell(
    story: Callable[[Told], Awaitable[None]],
    *,
    brokers: int = 3,
    seed: int = 1,
    disk_free_bytes_min: int = 0,
    clock_rates: tuple[float, ...] = (),
    config: Mapping[str, str] | None = None,
    segment_bytes: int = 64 * KIB,
) -> None:
    settings = ClusterSettings(
        brokers=brokers,
        segment_bytes=segment_bytes,
        network=CALM,
        disk_free_bytes_min=disk_free_bytes_min,
        clock_rates=clock_rates,
    )

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                open_cluster(seed, settings) as cluster,
                contextlib.AsyncExitStack() as stack,
            ):
                client: Client | None = None
                while client is None:
                    await trio.sleep(0.1)
                    with contextlib.suppress(LogdError):
                        client = await stack.enter_async_context(cluster.client())
                while len((await client.admin.describe_cluster()).brokers) < brokers:
                    await trio.sleep(0.1)
                topic = await client.admin.create_topic(
                    TOPIC, partitions=1, replicas=brokers, config=config
                )
                await story(Told(cluster, client, GroupId(topic.partitions[0].group)))

    run_deterministic(main, seed=seed)


def broker_of(node: SimNode) -> Broker:
    assert node.broker is not None
    return node.broker


# --- durability -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_all_lose_power_at_the_moment_of_an_acknowledgement_and_it_is_kept(seed: int) -> None:
    async def story(told: Told) -> None:
        for _ in range(3):
            await told.append(5)
            for node in told.nodes:
                await node.crash(power=True)
            for node in told.nodes:
                node.start()
        await told.append(1)
        await told.nothing_is_lost_on(told.nodes)

    tell(story, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_two_are_paused_three_acknowledge_one_of_them_loses_power_and_the_two_return(
    seed: int,
) -> None:
    """The two that know nothing and the one that lost its tail are a majority."""

    async def story(told: Told) -> None:
        leader = await told.leader()
        others = [node for node in told.nodes if node is not leader]
        for node in others[:2]:
            node.pause()
        await told.append(20)
        await others[2].crash(power=True)
        others[2].start()
        leader.pause()
        others[3].pause()
        for node in others[:2]:
            node.resume()
        await told.append(5)
        leader.resume()
        others[3].resume()
        await told.append(1)
        await told.nothing_is_lost_on(told.nodes)

    tell(story, brokers=5, seed=seed)


# --- damage -----------------------------------------------------------------------------


def segments(node: SimNode, group: GroupId) -> list[str]:
    directory = f"{DATA_DIR}/groups/{group:020}"
    names = node.files.list_directory(directory)
    return [f"{directory}/{name}" for name in names if name.endswith(".log")]


def flip_bits(node: SimNode, group: GroupId, count: int) -> None:
    """In what was written, wherever; the active segment is allocated ahead of its end."""
    chance = random.Random(count)
    for _ in range(count):
        path = chance.choice(segments(node, group))
        written = node.files.content(path).rstrip(b"\0")
        position = chance.randrange(SEGMENT_HEADER_BYTES, len(written))
        node.files.flip(path, position, chance.randrange(8))


def test_a_replica_with_a_hole_never_leads_whatever_happens_to_the_leaders() -> None:
    async def story(told: Told) -> None:
        await told.append(50, bytes(2 * KIB))
        leader = await told.leader()
        victim = next(node for node in told.nodes if node is not leader)
        await victim.crash(power=False)
        # Recovery looks only behind the mark of the active segment: this it finds at once.
        active = segments(victim, told.group)[-1]
        victim.files.overwrite(active, SEGMENT_HEADER_BYTES + 100, bytes(5000))
        # With one of the two intact ones, of which none leads, it would be a majority.
        others = [node for node in told.nodes if node is not victim]
        for node in others:
            await node.crash(power=False)
        victim.start()
        others[0].start()
        looks = 0
        while victim.host not in told.events("damage_repaired"):
            assert told.group not in victim.groups  # So it does not even vote.
            looks += 1
            await trio.sleep(0.01)
        assert looks > 10
        await trio.sleep(5.0)
        others[1].start()
        await told.append(5)
        await told.nothing_is_lost_on(told.nodes)

    tell(story)


@pytest.mark.parametrize("count", [1, 8, 40])
def test_damaged_metadata_on_a_minority_is_repaired_and_nothing_is_deleted(count: int) -> None:
    async def story(told: Told) -> None:
        for number in range(10):
            await told.client.admin.create_topic(f"other-{number}", partitions=2, replicas=3)
        await told.append(20)
        await trio.sleep(1.0)
        victim = told.nodes[1]
        await victim.stop()
        groups = victim.files.list_directory(f"{DATA_DIR}/groups")
        flip_bits(victim, METADATA_GROUP, count)

        victim.start()

        for _ in range(200):
            await trio.sleep(0.05)
            assert victim.files.list_directory(f"{DATA_DIR}/groups") == groups
        await told.append(5)
        await told.nothing_is_lost_on([victim])
        assert len(victim.groups) == len(groups)

    tell(story)


def test_a_wiped_disk_is_not_taken_back_under_its_old_name_and_harms_nobody() -> None:
    async def story(told: Told) -> None:
        await told.append(20)
        victim, *others = told.nodes
        await victim.crash(power=True)
        victim.files = SimulatedFileSystem(random.Random(7), pid=victim.node)
        victim.start()
        victim.has_disk_trouble = True  # It may end by itself: its directory is not the one.
        await told.append(20)
        await trio.sleep(SETTLED_S)
        assert not victim.groups
        assert set(told.events("peer_refused")) & {node.host for node in told.nodes}
        await told.nothing_is_lost_on(others)

    tell(story)


# --- time -------------------------------------------------------------------------------


def test_clocks_that_jump_an_hour_and_drift_twofold_change_no_order_and_forget_nobody() -> None:
    async def story(told: Told) -> None:
        async with told.client.producer(TOPIC) as producer:
            first = await producer.append(b"0")
            told.acknowledged[first.offset] = b"0"
            times = [0]
            for number in range(1, 13):
                node = told.nodes[number % 3]
                node.set_clock_skew(node.clock_skew_ms + random.choice([-1, 1]) * 3_600_000)
                value = b"%d" % number
                told.acknowledged[(await producer.append(value)).offset] = value
                (await told.leader()).pause()
                await trio.sleep(1.5)
                for paused in told.nodes:
                    paused.resume()
                await trio.sleep(1.0)
        assert sorted(told.acknowledged.values(), key=int) == list(told.acknowledged.values())
        assert list(told.acknowledged) == sorted(told.acknowledged)
        async with told.client.consumer(TOPIC, start="earliest") as consumer:
            async for batch in consumer.batches():
                times.append(batch.append_time_ms)
                if batch.offsets[-1] >= max(told.acknowledged):
                    break
        assert times == sorted(times)
        await told.nothing_is_lost_on(told.nodes)

    tell(story, clock_rates=(0.5, 1.0, 2.0))


class Unheard:
    """What is delivered to nobody."""

    def deliver(self, message: Deliver, batches: CommittedBatches) -> None: ...
    def end_subscription(self, subscription: int, generation: int, error: LogdError) -> None: ...


@pytest.mark.parametrize("subscribes", [False, True])
@pytest.mark.parametrize("pause_s", [0.3, 1.5, 10.0])
def test_a_leader_that_was_paused_does_not_answer_with_what_was_the_end_before(
    pause_s: float, *, subscribes: bool
) -> None:
    """A stale read: it does not know yet that somebody else has appended since."""

    async def end_according_to(broker: Broker, group: GroupId) -> int:
        if not subscribes:
            return (await offsets(broker, OffsetsRequest(group=group))).data_end
        latest = SubscribeRequest(subscription=1, generation=1, group=group, start="latest")
        subscriptions = Subscriptions(broker, Unheard())
        position = (await subscriptions.subscribe(latest)).position
        subscriptions.close()
        return position

    async def story(told: Told) -> None:
        await told.append(5)
        old = await told.leader()
        old.pause()
        with trio.move_on_after(pause_s):
            await told.append(5)
        await trio.sleep(0.5)
        old.resume()
        last = max(told.acknowledged)
        answers = 0
        for _ in range(100):
            with contextlib.suppress(LogdError):
                assert await end_according_to(broker_of(old), told.group) > last
                answers += 1
            await trio.sleep(0.02)
        assert answers or await told.leader() is not old

    tell(story)


# --- readers ----------------------------------------------------------------------------


def test_a_slow_reader_skips_nothing_over_any_number_of_leaders() -> None:
    async def story(told: Told) -> None:
        seen: list[bytes | None] = []

        async def read() -> None:
            async with told.client.consumer(
                TOPIC, start="earliest", credit_bytes=64 * KIB
            ) as consumer:
                async for record in consumer:
                    seen.append(record.value)
                    await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for number in range(5):
                await told.append(60, bytes(4000))
                leader = await told.leader()
                await leader.crash(power=number % 2 == 0)
                leader.start()
            while len(seen) < len(told.acknowledged):
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert seen == list(told.acknowledged.values())

    tell(story)


# --- resources --------------------------------------------------------------------------


def test_on_full_disks_appends_are_refused_and_all_else_goes_on_until_there_is_space() -> None:
    """Also over a restart, with the disk still full."""

    async def story(told: Told) -> None:
        await told.append(20)
        for node in told.nodes:
            node.files.capacity_bytes = node.files.used_bytes() + 3 * MIB
        await trio.sleep(1.0)
        async with told.client.producer(TOPIC, delivery_timeout_ms=2000) as producer:
            with pytest.raises(DeliveryTimeoutError, match="free some space") as refused:
                await producer.append(b"refused")
        assert isinstance(refused.value.__cause__, DiskFullError)
        assert not refused.value.may_have_applied

        await told.nothing_is_lost_on(told.nodes)
        old = await told.leader()
        await old.crash(power=True)  # An election, on full disks.
        assert await told.leader() is not old
        old.start()
        for node in told.nodes:
            await node.stop()
            node.start()
            await told.leader()
        await told.nothing_is_lost_on(told.nodes)
        async with told.client.producer(TOPIC, delivery_timeout_ms=2000) as producer:
            with pytest.raises(DeliveryTimeoutError, match="free some space"):
                await producer.append(b"refused")

        for node in told.nodes:
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await told.append(20)
        await told.nothing_is_lost_on(told.nodes)
        assert not any(group.failure for node in told.nodes for group in node.groups.values())

    tell(story, disk_free_bytes_min=4 * MIB)


def test_one_full_disk_keeps_nobody_from_appending_and_costs_no_replica() -> None:
    """Its broker leads no more and takes no records, also after a crash, until there is space."""

    async def story(told: Told) -> None:
        await told.append(20)
        full = await told.leader()
        full.files.capacity_bytes = full.files.used_bytes() + 3 * MIB
        while await told.leader() is full:
            await trio.sleep(0.1)
        for _ in range(2):
            for _ in range(10):
                await told.append(10, bytes(60 * KIB))
            assert await told.leader() is not full
            assert full.files.free_bytes("/") > MIB
            if full.is_running:
                await full.crash(power=True)
                full.start()
        assert told.cluster.leader_of(told.group) is not full
        await told.nothing_is_lost_on([node for node in told.nodes if node is not full])

        full.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await told.append(20)
        await told.nothing_is_lost_on(told.nodes)
        assert not any(group.failure for node in told.nodes for group in node.groups.values())

    tell(story, disk_free_bytes_min=4 * MIB)


@pytest.mark.parametrize("seed", range(3))
def test_whichever_minority_of_disks_is_full_the_others_lead_and_refuse_nobody(seed: int) -> None:
    async def story(told: Told) -> None:
        chance = random.Random(seed)
        await told.append(20)
        for _ in range(4):
            full = chance.sample(told.nodes, chance.choice([1, 2]))
            for node in told.nodes:
                node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
            for node in full:
                node.files.capacity_bytes = node.files.used_bytes() + chance.choice(ROOMS)
            await trio.sleep(4.0)
            assert await told.leader() not in full
            async with told.client.producer(TOPIC, delivery_timeout_ms=2000) as producer:
                await producer.append(b"taken")

        for node in told.nodes:
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await told.append(20)
        await told.nothing_is_lost_on(told.nodes)

    tell(story, brokers=5, seed=seed, disk_free_bytes_min=4 * MIB)


def test_a_trim_makes_room_on_the_one_disk_that_is_full_and_lacks_what_others_have() -> None:
    async def story(told: Told) -> None:
        await told.append(80, bytes(60 * KIB))
        leader = await told.leader()
        full = next(node for node in told.nodes if node is not leader)
        full.files.capacity_bytes = full.files.used_bytes() + 3 * MIB
        await trio.sleep(2.0)
        await told.append(20, bytes(60 * KIB))
        assert broker_of(full).disk.is_full

        end = (await told.client.admin.offsets(TOPIC, 0)).commit_offset
        await told.client.admin.trim_partition(TOPIC, 0, end)
        while broker_of(full).disk.is_full:
            await trio.sleep(0.1)
        told.acknowledged.clear()
        await told.append(20)

        while full.groups[told.group].commit_offset < end + 20:
            await trio.sleep(0.1)

    tell(story, disk_free_bytes_min=4 * MIB)


def test_while_a_majority_of_disks_is_full_producers_are_told_and_readers_are_served() -> None:
    """Also by who is elected meanwhile: it can begin its term."""

    async def story(told: Told) -> None:
        await told.append(20)
        roomy = told.nodes[0]
        for node in told.nodes[1:]:
            node.files.capacity_bytes = node.files.used_bytes() + 3 * MIB
        await trio.sleep(3.0)
        async with told.client.producer(TOPIC, delivery_timeout_ms=2000) as producer:
            no_room = "no room on disk for more at brokers 2, 3"
            with pytest.raises(DeliveryTimeoutError, match=no_room) as refused:
                await producer.append(b"refused")
        assert not refused.value.may_have_applied
        for node in told.nodes:
            await node.crash(power=True)
        for node in told.nodes:
            node.start()
        await told.leader()
        await told.nothing_is_lost_on(told.nodes)

        told.nodes[1].files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await told.append(20)
        await told.nothing_is_lost_on([roomy, told.nodes[1]])
        assert not any(group.failure for node in told.nodes for group in node.groups.values())

    tell(story, disk_free_bytes_min=4 * MIB)


@pytest.mark.parametrize("left", [3 * MIB, 0])
def test_two_full_disks_without_the_third_broker_elect_a_leader_that_serves_readers(
    left: int,
) -> None:
    """Votes are written in place, and what begins a term fits into what the log has reserved."""

    async def story(told: Told) -> None:
        await told.append(20)
        dead = await told.leader()
        others = [node for node in told.nodes if node is not dead]
        for node in others:
            node.files.capacity_bytes = node.files.used_bytes() + left
        await trio.sleep(3.0)

        await dead.crash(power=False)

        with trio.fail_after(20):
            assert await told.leader() in others
            await told.nothing_is_lost_on(others)

    tell(story, disk_free_bytes_min=4 * MIB)


def test_disks_that_are_full_to_the_last_byte_cost_no_replica() -> None:
    """Somebody else has filled them, or nothing was to be kept free."""

    async def story(told: Told) -> None:
        await told.append(20)
        for node in told.nodes:
            node.files.capacity_bytes = node.files.used_bytes()
        async with told.client.producer(TOPIC, delivery_timeout_ms=2000) as producer:
            with pytest.raises(DeliveryTimeoutError, match="free some space") as refused:
                await producer.append(bytes(300 * KIB))
        assert not refused.value.may_have_applied
        await told.nothing_is_lost_on(told.nodes)
        for node in told.nodes:
            await node.crash(power=True)
            node.start()
        await trio.sleep(20.0)
        assert not any(group.failure for node in told.nodes for group in node.groups.values())

        for node in told.nodes:
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await told.append(20)
        await told.nothing_is_lost_on(told.nodes)
        assert not any(group.failure for node in told.nodes for group in node.groups.values())

    tell(story)


def test_where_no_disk_has_room_to_begin_a_term_nobody_campaigns_until_there_is_some() -> None:
    """A start has given back what the logs had reserved."""

    async def story(told: Told) -> None:
        await told.append(20)
        for node in told.nodes:
            await node.crash(power=True)
            node.files.capacity_bytes = 0
            node.start()
        await trio.sleep(3.0)
        elected = told.elections()
        terms = {group: each.core.term for group, each in told.nodes[0].groups.items()}
        assert set(terms) == {METADATA_GROUP, told.group}

        await trio.sleep(20.0)

        assert told.elections() == elected
        for node in told.nodes:
            assert {group: each.core.term for group, each in node.groups.items()} == terms
            assert not any(group.failure for group in node.groups.values())
        for node in told.nodes:
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        with trio.fail_after(2.0):
            await told.leader()
        await told.append(20)
        await told.nothing_is_lost_on(told.nodes)

    tell(story)


def test_a_disk_without_room_to_begin_a_term_leaves_that_to_those_that_have_some() -> None:
    async def story(told: Told) -> None:
        await told.append(20)
        full = told.nodes[0]
        for node in told.nodes:
            await node.crash(power=True)
        full.files.capacity_bytes = 0
        for node in told.nodes:
            node.start()
        with trio.fail_after(5.0):
            assert await told.leader() is not full
        await told.append(20)
        await told.nothing_is_lost_on(told.nodes[1:])
        assert not any(group.failure for group in full.groups.values())

    tell(story)


def test_a_replica_for_which_there_was_no_room_is_made_when_there_is_some() -> None:
    async def story(told: Told) -> None:
        await told.append(1)
        leader = await told.leader()
        full = next(node for node in told.nodes if node is not leader)
        full.files.capacity_bytes = full.files.used_bytes() + 5 * KIB
        await told.client.admin.create_topic("another", partitions=2, replicas=3)
        await trio.sleep(10.0)
        assert told.events("partition_waits").count(full.host) == 2

        full.files.capacity_bytes = CAPACITY_BYTES_DEFAULT

        with trio.fail_after(10.0):
            while len(full.groups) < len(told.nodes[0].groups):
                await trio.sleep(0.1)
        assert told.events("partition_waits").count(full.host) == 2

    tell(story)


def test_a_replica_for_which_there_was_no_descriptor_is_made_when_there_are_some() -> None:
    """Some are left to those that are here, which need one to vote."""

    async def story(told: Told) -> None:
        await told.append(1)
        leader = await told.leader()
        short = next(node for node in told.nodes if node is not leader)
        short.files.descriptors = DESCRIPTORS_SPARE_OF_REPLICAS + len(short.groups) + 1
        await told.client.admin.create_topic("another", partitions=2, replicas=3)
        await trio.sleep(10.0)
        assert short.broker is not None
        assert len(short.broker.node.shut) == 1
        assert all("until there are some" in s.reason for s in short.broker.node.shut.values())
        assert told.events("partition_waits").count(short.host) == 1

        short.files.descriptors = None

        with trio.fail_after(10.0):
            while short.broker.node.shut:
                await trio.sleep(0.1)
        assert len(short.groups) == len(told.nodes[0].groups)
        assert told.events("partition_waits").count(short.host) == 1

    tell(story)


def test_who_asks_what_cannot_be_read_for_want_of_a_descriptor_is_told_to_ask_again() -> None:
    """It is that broker's, and passes: no log fails, and it is said what is missing."""

    async def story(told: Told) -> None:
        async with told.client.producer(TOPIC) as producer:
            for _ in range(10):
                await producer.append(bytes(40 * KIB))
        leader = await told.leader()

        def refuse(operation: str, path: str) -> None:
            if operation == "open" and path.endswith(".log"):
                raise OSError(errno.EMFILE, "simulated failure", path)

        leader.files.on_operation = refuse
        long_ago = datetime(1980, 1, 1, tzinfo=UTC)
        with pytest.raises(UnavailableError, match="no file descriptor"):
            await told.client.admin.trim_partition(TOPIC, 0, long_ago)

        leader.files.on_operation = None
        await told.client.admin.trim_partition(TOPIC, 0, long_ago)
        assert leader.groups[told.group].failure is None

    tell(story)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_leader_whose_disk_fails_stops_leads_no_more_and_acknowledges_nothing(
    operation: str,
) -> None:
    async def story(told: Told) -> None:
        await told.append(20)
        failing = await told.leader()
        failing.has_disk_trouble = True
        directory = f"/groups/{told.group:020}/"

        def refuse(doing: str, path: str) -> None:
            if doing == operation and directory in path:
                raise OSError(errno.EIO, "simulated failure", path)

        failing.files.on_operation = refuse
        await told.append(20)
        replica = failing.groups[told.group]
        assert replica.failure is not None
        assert await told.leader() is not failing
        failing.files.on_operation = None
        synced = replica.core.synced_end
        await told.append(20)  # The disk takes everything again, and is not trusted again.
        assert replica.core.synced_end == synced
        assert not replica.is_leader
        await told.nothing_is_lost_on([node for node in told.nodes if node is not failing])
        await failing.crash(power=True)
        failing.start()
        await told.append(1)
        await told.nothing_is_lost_on(told.nodes)

    tell(story)


def handed_to(told: Told, node: SimNode, began: float) -> list[TraceEvent]:
    """What others have given it to lead since then."""
    return [
        event
        for event in told.cluster.trace.events
        if event.name == "leader_moved"
        and event.time_s > began
        and ("to", str(node.node)) in event.fields
    ]


def test_a_broker_whose_disk_is_full_is_not_handed_what_it_would_hand_on() -> None:
    async def story(told: Told) -> None:
        await told.client.admin.create_topic("idle", partitions=6, replicas=3)
        full = await told.leader()
        full.files.capacity_bytes = full.files.used_bytes() + 3 * MIB
        while any(group.is_leader for i, group in full.groups.items() if i != METADATA_GROUP):
            await trio.sleep(0.1)
        began = trio.current_time()
        await trio.sleep(20.0)
        assert not handed_to(told, full, began)

        full.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await trio.sleep(20.0)
        assert handed_to(told, full, began)

    tell(story, disk_free_bytes_min=4 * MIB)


def test_a_broker_that_has_to_refuse_clients_leads_nothing_that_others_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it leads would be there for nobody, beside two who could serve it."""

    async def story(told: Told) -> None:
        await told.client.admin.create_topic("idle", partitions=6, replicas=3)
        crowded = await told.leader()
        assert crowded.broker is not None
        address = crowded.broker.address
        has_descriptors = False
        accept = SimListener.accept

        async def accept_if_there_is_one_left(listener: SimListener) -> ByteStream:
            if listener.address == address and not has_descriptors:
                raise OSError(errno.EMFILE, "Too many open files")
            return await accept(listener)

        monkeypatch.setattr(SimListener, "accept", accept_if_there_is_one_left)
        async with told.cluster.client():  # Somebody comes, and is the last.
            with trio.fail_after(10):
                while any(g.is_leader for i, g in crowded.groups.items() if i != METADATA_GROUP):
                    await trio.sleep(0.1)
            began = trio.current_time()
            await trio.sleep(20.0)
            assert not handed_to(told, crowded, began)
            said = [e for e in told.cluster.trace.events if e.name == "accept_failed"]
            assert len(said) == 1  # Not at each attempt.

            has_descriptors = True
            await trio.sleep(CROWDED_S + 20.0)
            assert handed_to(told, crowded, began)

    tell(story)


def test_a_broker_whose_disk_fails_is_not_handed_what_else_would_fail_there() -> None:
    """Each of its idle replicas would fail as it stands, and its partition wait for a moment."""

    async def story(told: Told) -> None:
        await told.client.admin.create_topic("idle", partitions=6, replicas=3)
        failing = await told.leader()
        failing.has_disk_trouble = True

        def refuse(doing: str, path: str) -> None:
            if doing in ("write", "sync"):
                raise OSError(errno.EROFS, "simulated failure", path)

        failing.files.on_operation = refuse
        await told.append(1)
        await trio.sleep(1.0)
        began = trio.current_time()
        await trio.sleep(20.0)  # The others lead at least two more each.
        assert not handed_to(told, failing, began)

        failing.files.on_operation = None
        await failing.crash(power=True)
        failing.start()
        await trio.sleep(20.0)
        assert any(group.is_leader for group in failing.groups.values())

    tell(story)


@pytest.mark.parametrize("whose", ["leader", "follower"])
@pytest.mark.parametrize(
    "disk",
    [
        SLOW_DISK,
        BlockingConditions(latency_s_min=5.0, latency_s_mean=0.0, spike_probability=0.0),
    ],
    ids=["0.5-to-5-s", "5-s"],
)
def test_a_disk_that_takes_seconds_slows_nobody_down_and_deposes_nobody(
    whose: str, disk: BlockingConditions
) -> None:
    async def story(told: Told) -> None:
        leader = await told.leader()
        follower = next(node for node in told.nodes if node is not leader)
        await told.append(20)
        (leader if whose == "leader" else follower).set_blocking(disk)
        elections = told.elections()
        took: list[float] = []
        async with told.client.producer(TOPIC) as producer:
            for _ in range(300):
                began = trio.current_time()
                await producer.append(b"value")
                took.append(trio.current_time() - began)
                await trio.sleep(0.05)
        assert sorted(took)[len(took) * 99 // 100] < 0.2
        assert max(took) < 1.0
        assert told.elections() == elections

    tell(story)


async def another_leads_when_the_disk_stops(told: Told, leader: SimNode) -> None:
    leader.set_blocking(UNANSWERING)
    began = trio.current_time()

    await told.append(30, bytes(20_000))

    assert trio.current_time() - began < DISK_PATIENCE_S + 5
    assert await told.leader() is not leader
    leader.set_blocking(BlockingConditions())
    await told.nothing_is_lost_on(told.nodes)


def test_a_leader_whose_disk_does_not_answer_has_another_one_lead() -> None:
    """It seals a segment, and nothing can be appended before that is done."""

    async def story(told: Told) -> None:
        leader = await told.leader()
        await told.append(5)
        await another_leads_when_the_disk_stops(told, leader)
        assert not trouble_of(leader.groups[told.group])

    tell(story)


def test_a_leader_that_cannot_sync_what_counts_in_memory_has_another_one_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With so much unsynced it takes no more."""
    monkeypatch.setattr(syncing, "UNSYNCED_BYTES_MAX", 16 * KIB)
    monkeypatch.setattr(syncing, "UNSYNCED_BYTES_BEHIND_MAX", 64 * KIB)

    async def story(told: Told) -> None:
        leader = await told.leader()
        await another_leads_when_the_disk_stops(told, leader)

    tell(story, config={"durability": "replicated"}, segment_bytes=4 * MIB)


def test_a_leader_that_cannot_sync_says_so_and_leads_on_where_the_others_sync() -> None:
    async def story(told: Told) -> None:
        leader = await told.leader()
        leader.set_blocking(UNANSWERING)

        for _ in range(int(DISK_PATIENCE_S) + 5):
            await told.append(1)
            await trio.sleep(1)

        assert await told.leader() is leader
        assert "until that answers it syncs nothing more" in trouble_of(leader.groups[told.group])
        leader.set_blocking(BlockingConditions())
        while trouble_of(leader.groups[told.group]):
            await trio.sleep(1)  # The call comes back at last.
        await told.nothing_is_lost_on(told.nodes)

    tell(story)


# --- who waits for what -----------------------------------------------------------------


def test_a_cluster_that_is_not_formed_says_who_is_missing_until_they_come() -> None:
    async def main() -> None:
        async with open_cluster(1, ClusterSettings(network=CALM)) as cluster:
            late = cluster.nodes[NodeId(3)]
            await late.crash(power=False)
            await trio.sleep(3.0)
            with pytest.raises(LogdError, match="has not seen node 3"):
                async with cluster.client(connect_timeout_ms=2000) as client:
                    await client.admin.create_topic(TOPIC, partitions=1)
            late.start()
            with trio.fail_after(10):
                made = False
                while not made:
                    with contextlib.suppress(LogdError):
                        async with cluster.client() as client:
                            await client.admin.create_topic(TOPIC, partitions=1)
                            made = True

    run_deterministic(main, seed=1)


def test_without_a_majority_callers_are_told_in_time_and_all_goes_on_when_it_is_back() -> None:
    async def story(told: Told) -> None:
        await told.append(5)
        down = told.nodes[:2]
        async with told.client.producer(TOPIC, delivery_timeout_ms=2000) as producer:
            for node in down:
                await node.crash(power=True)
            began = trio.current_time()
            with pytest.raises(DeliveryTimeoutError):
                await producer.append(b"nobody confirms it")
            assert trio.current_time() - began < 3.0
        for node in down:
            node.start()
        with trio.fail_after(10):
            await told.append(5)
        await told.nothing_is_lost_on(told.nodes)

    tell(story)


def test_options_hold_at_once_also_where_partitions_take_long_to_be_opened() -> None:
    async def story(told: Told) -> None:
        controller = await told.leader(METADATA_GROUP)
        slow = next(node for node in told.nodes if node is not controller)
        replica = slow.groups[told.group]
        slow.set_blocking(STANDING_DISK)
        await told.client.admin.create_topic("u", partitions=5, replicas=3)
        await trio.sleep(1.0)

        await told.client.admin.alter_topic(TOPIC, {"fence": "required"})
        await trio.sleep(1.0)

        assert replica.fence_required
        assert len(slow.groups) == 2  # Those of the new topic are being opened.

    tell(story)


def test_a_topic_whose_partitions_get_no_leaders_is_created_all_the_same() -> None:
    """Whoever waits is told before the time is up, not just after."""

    async def story(told: Told) -> None:
        for node in told.nodes[3:]:
            node.set_blocking(STANDING_DISK)
        timeout_ms = 3000
        async with told.cluster.client(request_timeout_ms=timeout_ms) as client:
            began = trio.current_time()
            made = await client.admin.create_topic("u", partitions=5, replicas=2)
            assert trio.current_time() - began < timeout_ms / 1000
        assert any(partition.leader is None for partition in made.partitions)

    tell(story, brokers=5)


def test_a_broker_that_hears_no_other_does_not_keep_a_producer_from_the_leader() -> None:
    """It answers for ever what it knew last, and it is the only one that the client knows."""

    async def story(told: Told) -> None:
        topic = await told.client.admin.create_topic("u", partitions=1, replicas=3)
        placed = topic.partitions[0]
        stale = next(node for node in told.nodes if node.node not in placed.replicas)
        others = [node.host for node in told.nodes if node is not stale]
        async with told.cluster.client() as client, client.producer("u") as producer:
            await producer.append(b"value")
            routing = client._routing
            assert routing is not None
            await routing.connection(stale.node, Lane.CONTROL)
            told.cluster.network.hold(
                [(stale.host, other) for other in others]
                + [(other, stale.host) for other in others]
            )
            await (await told.leader(GroupId(placed.group))).crash(power=False)
            for node in told.nodes:
                connection = routing.open_connection(node.node, Lane.CONTROL)
                if node is not stale and connection is not None:
                    connection.fail(ConnectionLostError("cut"))

            with trio.fail_after(15):
                await producer.append(b"value")

    tell(story, brokers=5)


def test_who_reads_from_a_silent_broker_is_told_in_time_that_the_topic_was_deleted() -> None:
    """There is nobody else to read from, but others who know."""

    async def story(told: Told) -> None:
        topic = await told.client.admin.create_topic("u", partitions=3, replicas=1)
        controller = await told.leader(METADATA_GROUP)
        held = next(p for p in topic.partitions if p.replicas != [controller.node])
        async with (
            told.cluster.client() as client,
            client.consumer("u", partitions=[held.partition]) as consumer,
        ):
            told.cluster.nodes[NodeId(held.replicas[0])].pause()
            await told.client.admin.delete_topic("u")

            with trio.fail_after(5), pytest.raises(UnknownTopicError):
                await consumer.next_batch()

    tell(story)


def test_a_client_that_was_refused_coordination_still_learns_of_its_topics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cluster of an older feature level refuses it for good."""

    async def refuse(broker: Broker) -> None:
        raise UnsupportedVersionError("needs feature level 3")

    monkeypatch.setattr(admin, "ensure_topic", refuse)

    async def story(told: Told) -> None:
        await told.append(1)
        with pytest.raises(UnsupportedVersionError):
            await told.client.kv("n").put("key", b"value")

        routing = told.client._routing
        assert routing is not None
        await routing.refresh()

    tell(story)
