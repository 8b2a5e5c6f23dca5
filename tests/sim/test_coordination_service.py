"""The broker's side of coordination, over the wire, in a simulated cluster."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar
from unittest import mock

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from logd.broker import log_events
from logd.broker.coordination import kept_state
from logd.broker.coordination.partition import CoordinationPartition
from logd.coordination import events as history
from logd.coordination import snapshots
from logd.errors import (
    FencedError,
    InvalidNameError,
    InvalidRequestError,
    LogdError,
    NotHeldError,
    NotLeaderError,
    SessionExpiredError,
)
from logd.limits import FEATURE_LEVEL, MIB
from logd.metadata.features import UNCOUNTED_LEVEL
from logd.raft.messages import TransferLeadership
from logd.record.batch import seal_batch
from logd.replication.sync_pool import BRIEF_SYNCS_IN_A_ROW
from logd.storage.file_header import FILE_HEADER_BYTES
from logd.types import GroupId, HostPort, NodeId, Offset
from logd.wire.coordination import (
    COORDINATION_TOPIC,
    Acquire,
    Advance,
    Claim,
    ClaimItems,
    CloseSession,
    CompleteItems,
    Delete,
    Done,
    Entry,
    ExpireSession,
    Get,
    Item,
    ItemClaim,
    ItemsClaimed,
    Keys,
    Opened,
    OpenSession,
    Put,
    PutItems,
    QueueStatistics,
    ReadClaim,
    ReadKeys,
    ReadQueue,
    Release,
    ReleaseItems,
    RenewItems,
    Result,
    Transact,
    Transacted,
)
from logd.wire.messages import (
    DeleteTopicRequest,
    DeleteTopicResponse,
    KeepAliveRequest,
    KeepAliveResponse,
    Kind,
    Message,
    ProduceRequest,
    ProduceResponse,
    QueryRequest,
    QueryResponse,
    RaiseFenceRequest,
    RaiseFenceResponse,
    WatchCredit,
    WatchRequest,
    WatchResponse,
)
from tests.sim.clock import current_clock
from tests.sim.cluster import CLIENT_PORT, ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.env import BlockingConditions
from tests.sim.files import CAPACITY_BYTES_DEFAULT
from tests.sim.incarnation import Incarnation
from tests.sim.network import CALM
from tests.sim.run import run_deterministic
from tests.support.coordination_wire import WireClient, WireSession

pytestmark = pytest.mark.sim

TTL_MS = 5_000
M = TypeVar("M", bound=Message)


class World:
    """A cluster and one client of it."""

    def __init__(self, cluster: SimCluster, nursery: trio.Nursery) -> None:
        self.cluster = cluster
        self._host = cluster.network.attach(Incarnation("wire", 1))
        self.client = WireClient(
            self._host.connect_stream,
            [HostPort(f"node{node}", CLIENT_PORT) for node in cluster.nodes],
            nursery,
        )
        self._tokens = 0

    async def session(self, namespace: str = "n", ttl_ms: int = TTL_MS) -> WireSession:
        self._tokens += 1
        return await self.client.open_session(namespace, self._tokens.to_bytes(16, "big"), ttl_ms)

    async def group(self, namespace: str = "n") -> GroupId:
        return GroupId(await self.client.group_of(namespace))

    async def leader(self, namespace: str = "n") -> NodeId:
        return (await self.leader_of(await self.group(namespace))).node

    async def leader_of(self, group: GroupId) -> SimNode:
        while (leader := self.cluster.leader_of(group)) is None or (
            not leader.groups[group].is_ready
        ):
            await trio.sleep(0.05)
        return leader

    async def partition(self, node: NodeId, namespace: str = "n") -> CoordinationPartition:
        broker = self.cluster.nodes[node].broker
        assert broker is not None
        group = await self.group(namespace)
        return next(p for p in broker.coordination if p.group.group_id == group)


def live(
    story: Callable[[World], Awaitable[None]],
    brokers: int = 1,
    seed: int = 1,
    *,
    tail_cache_bytes: int = MIB,
    blocking: BlockingConditions | None = None,
    feature_level_max: int = FEATURE_LEVEL,
    disk_free_bytes_min: int = 0,
) -> None:
    async def run() -> None:
        settings = ClusterSettings(
            brokers=brokers,
            feature_level_max=feature_level_max,
            disk_free_bytes_min=disk_free_bytes_min,
            network=CALM,
            tail_cache_bytes=tail_cache_bytes,
            blocking=blocking or BlockingConditions(),
        )
        async with open_cluster(seed, settings) as cluster, trio.open_nursery() as nursery:
            await _all_registered(cluster, brokers)
            await story(World(cluster, nursery))
            nursery.cancel_scope.cancel()

    run_deterministic(run, seed=seed, time_limit_s=600)


async def _all_registered(cluster: SimCluster, brokers: int) -> None:
    """Return once each partition of a new topic gets all the replicas that it can have."""
    while True:
        with suppress(LogdError):
            async with cluster.client() as client:
                if len((await client.admin.describe_cluster()).brokers) == brokers:
                    return
        await trio.sleep(0.1)


async def put(session: WireSession, key: bytes, value: bytes) -> Transacted:
    result = await session.do(Transact(then=[Put(key=key, value=value)]))
    assert isinstance(result, Transacted)
    return result


async def value_of(world: World, key: bytes, namespace: str = "n") -> bytes | None:
    answer = await world.client.query(namespace, ReadKeys(get=Get(key=key)))
    assert isinstance(answer, Keys)
    return answer.found[0].value if answer.found else None


async def acquire(session: WireSession, name: str = "l") -> Claim:
    claim = await session.do(Acquire(kind="lock", name=name))
    assert isinstance(claim, Claim)
    return claim


@pytest.mark.parametrize(("level", "attempt"), [(UNCOUNTED_LEVEL - 1, 2), (UNCOUNTED_LEVEL, 1)])
def test_a_claim_counts_whatever_is_said_while_some_broker_may_not_know_better(
    level: int, attempt: int
) -> None:
    async def story(world: World) -> None:
        async def claim() -> ItemsClaimed:
            claimed = await session.do(ClaimItems(queue="q"))
            assert isinstance(claimed, ItemsClaimed)
            return claimed

        session = await world.session()
        await session.do(PutItems(queue="q", items=[Item(payload=b"item")]))
        (item,) = (await claim()).items
        claims = [ItemClaim(item=item.item, token=item.token)]
        await session.do(ReleaseItems(queue="q", claims=claims, delay_ms=0, uncounted=True))

        assert [again.attempt for again in (await claim()).items] == [attempt]

    live(story, feature_level_max=level)


@pytest.mark.parametrize("brokers", [1, 3])
def test_what_was_answered_is_what_everybody_reads(brokers: int) -> None:
    async def story(world: World) -> None:
        session = await world.session()

        first = await put(session, b"k", b"1")
        second = await put(session, b"k", b"2")

        assert second.revision > first.revision
        assert await value_of(world, b"k") == b"2"

    live(story, brokers)


def test_commands_that_arrive_together_share_batches_and_have_revisions_of_their_own() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        revisions: list[int] = []

        async def one(number: int) -> None:
            revisions.append((await put(session, b"k%d" % number, b"v")).revision)

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, number)

        partition = await world.partition(await world.leader())
        assert len(set(revisions)) == 300
        assert partition.entries_applied >= 301
        assert partition.group.counts.batches_in < 100
        assert partition.state.applied == partition.applied_offset == partition.group.commit_offset

    live(story, brokers=3)


def test_a_follower_applies_once_it_has_synced_what_came_with_the_news() -> None:
    quick = BlockingConditions(latency_s_min=0.000_1, latency_s_mean=0.0, spike_probability=0.0)

    async def story(world: World) -> None:
        session = await world.session()
        leader = await world.leader()
        follower = await world.partition(next(n for n in world.cluster.nodes if n != leader))
        log, apply_all = follower.group.log, follower.state.apply_all
        is_synced: list[bool] = []

        def look_and_apply(entries: list[Entry], revision: Offset, **how: bool) -> list[Result]:
            if log.end_offset > revision + len(entries):  # Something came with the news.
                is_synced.append(log.synced_end == log.end_offset)
            return apply_all(entries, revision, **how)

        for _ in range(2 * BRIEF_SYNCS_IN_A_ROW):  # From then on it syncs at the end of a turn.
            await put(session, b"k", b"v")
        follower.state.apply_all = look_and_apply  # type: ignore[method-assign,assignment]
        for _ in range(10):
            await put(session, b"k", b"v")

        assert len(is_synced) > 5
        assert all(is_synced)

    live(story, brokers=3, blocking=quick)


def test_every_replica_applies_and_a_new_leader_serves_what_the_last_one_answered() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        await put(session, b"k", b"1")
        leader = await world.leader()

        await world.cluster.nodes[leader].crash(power=False)

        assert await value_of(world, b"k") == b"1"
        await put(session, b"k", b"2")
        assert await value_of(world, b"k") == b"2"

    live(story, brokers=3)


def test_on_full_disks_what_gives_back_is_taken_and_what_takes_more_is_refused() -> None:
    """Or who waits for a lock would wait for somebody to free some space, and who works on an item
    would lose it meanwhile."""

    async def story(world: World) -> None:
        holder, waiter = await world.session(), await world.session()
        await put(holder, b"k", b"v")
        await holder.do(PutItems(queue="q", items=[Item(payload=b"item")]))
        (item,) = (await claimed(holder)).items
        await acquire(holder)
        waiting = await acquire(waiter)
        for node in world.cluster.nodes.values():
            node.files.capacity_bytes = node.files.used_bytes() + MIB
        await trio.sleep(1.0)

        with trio.move_on_after(1.0):
            await put(waiter, b"k", b"w")  # Refused, and asked again.
        assert await value_of(world, b"k") == b"v"
        await holder.do(Transact(then=[Delete(key=b"k")]))
        claim = ItemClaim(item=item.item, token=item.token)
        await holder.do(RenewItems(queue="q", claims=[claim]))
        await holder.do(CompleteItems(queue="q", claims=[claim]))
        await holder.do(CloseSession())

        granted = await world.client.query(
            "n", ReadClaim(kind="lock", name="l", ticket=waiting.ticket), wait_ms=1_000
        )
        assert isinstance(granted, Claim)
        assert granted.token is not None
        assert await value_of(world, b"k") is None
        for node in world.cluster.nodes.values():
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await put(waiter, b"k", b"w")

    async def claimed(session: WireSession) -> ItemsClaimed:
        found = await session.do(ClaimItems(queue="q"))
        assert isinstance(found, ItemsClaimed)
        return found

    live(story, brokers=3, disk_free_bytes_min=2 * MIB)


def test_on_disks_without_any_room_a_lost_session_is_found_again_when_there_is_some() -> None:
    """Its expiry is refused, and so is the time by which other things become due."""

    async def story(world: World) -> None:
        holder, waiter = await world.session(), await world.session()
        await holder.do(PutItems(queue="q", items=[Item(payload=b"item")]))
        await waiter.do(ClaimItems(queue="q", visibility_ms=TTL_MS))
        await acquire(holder)
        waiting = await acquire(waiter)
        partition = await world.partition(NodeId(1))
        with mock.patch.object(partition.group.log, "make_room", return_value=False):
            for _ in range(10):  # Of the holder nothing is heard any more.
                await trio.sleep(TTL_MS / 2000)
                assert await world.client.keep_alive("n", [waiter.session]) == []
        refused_s = trio.current_time()

        granted = await world.client.query(
            "n", ReadClaim(kind="lock", name="l", ticket=waiting.ticket), wait_ms=TTL_MS
        )
        assert isinstance(granted, Claim)
        assert granted.token is not None
        assert trio.current_time() - refused_s <= 1.1 * TTL_MS / 1000

    live(story)


def test_a_repeated_command_is_answered_as_before_and_not_done_again() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        command = Acquire(kind="lock", name="l")
        send = world.client.command

        first = await send("n", command, session=session.session, sequence=1)
        again = await send("n", command, session=session.session, sequence=1)
        leader = await world.leader()
        await world.cluster.nodes[leader].crash(power=False)
        elsewhere = await send("n", command, session=session.session, sequence=1)

        assert first == again == elsewhere

    live(story, brokers=3)


def test_the_same_command_twice_in_one_batch_is_done_once() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        results = []

        async def send() -> None:
            command = Transact(then=[Put(key=b"k", value=b"v")])
            result = await world.client.command("n", command, session=session.session, sequence=1)
            results.append(result)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)

        assert len(results) == 5
        assert len({result.revision for result in results}) == 1

    live(story)


def test_a_session_that_is_kept_alive_lives_and_one_that_is_not_expires() -> None:
    async def story(world: World) -> None:
        kept, left = await world.session(), await world.session()
        assert (await acquire(left)).token is not None
        waiting = await acquire(kept)
        assert waiting.token is None

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.stay)
            answer = await world.client.query(
                "n", ReadClaim(kind="lock", name="l", ticket=waiting.ticket), wait_ms=60_000
            )
            waited_s = trio.current_time() - began
            await trio.sleep(3 * TTL_MS / 1000)
            nursery.cancel_scope.cancel()

        assert isinstance(answer, Claim)
        assert answer.token is not None
        assert TTL_MS / 1000 - 0.1 <= waited_s < TTL_MS / 1000 + 1
        assert not kept.is_expired
        assert await world.client.keep_alive("n", [kept.session, left.session]) == [left.session]
        with pytest.raises(SessionExpiredError):
            await acquire(left)

    live(story)


def test_renewals_share_rounds_and_one_that_is_alone_does_not_wait() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        partition = await world.partition(await world.leader())
        await trio.sleep(1)
        answered: list[list[int]] = []

        async def renew() -> None:
            answered.append(await world.client.keep_alive("n", [session.session]))

        before, began = partition.rounds, trio.current_time()
        await renew()
        alone_s = trio.current_time() - began
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(renew)
                await trio.sleep(0.005)

        assert answered == [[]] * 201
        assert alone_s < 0.05
        assert 10 <= partition.rounds - before <= 25

    live(story, brokers=3)


def test_renewals_that_have_gathered_are_answered_when_another_broker_leads() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        partition = await world.partition(await world.leader())
        await trio.sleep(1)
        answers: list[object] = []
        for _ in range(3):
            partition.keep_alive([session.session], answers.append)  # The first has its round.

        partition.group.post(TransferLeadership(None))
        await trio.sleep(1)

        assert not partition.is_serving
        assert [type(answer) for answer in answers[-2:]] == [NotLeaderError] * 2
        assert len(answers) == 3

    live(story, brokers=3)


def test_a_new_leader_gives_every_session_a_full_time_to_live() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        await trio.sleep(TTL_MS / 1000 * 0.8)
        leader = await world.leader()

        await world.cluster.nodes[leader].crash(power=False)
        await world.leader()
        await trio.sleep(TTL_MS / 1000 * 0.8)

        await put(session, b"k", b"v")

    live(story, brokers=3)


def test_a_leader_that_was_cut_off_promises_nothing_and_answers_no_question() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        await put(session, b"k", b"1")
        group, leader = await world.group(), await world.leader()
        connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
        hosts = [node.host for node in world.cluster.nodes.values()]
        own = world.cluster.nodes[leader].host
        for other in hosts:
            if other != own:
                world.cluster.network.cut(own, other)
                world.cluster.network.cut(other, own)
        query = msgspec.msgpack.encode(ReadKeys(get=Get(key=b"k")))
        asked: tuple[tuple[Kind, Message, type[Message], bytes], ...] = (
            (
                Kind.KEEP_ALIVE,
                KeepAliveRequest(group=group, sessions=[session.session]),
                KeepAliveResponse,
                b"",
            ),
            (Kind.QUERY, QueryRequest(group=group, namespace="n"), QueryResponse, query),
        )

        for kind, message, answer_type, body in asked:
            with pytest.raises(NotLeaderError):
                await connection.ask(kind, message, answer_type, body)
        while (await world.leader()) == leader:
            await trio.sleep(0.05)
        await put(session, b"k", b"2")

        assert await value_of(world, b"k") == b"2"

    live(story, brokers=3)


def test_log_time_goes_on_from_the_last_committed_whatever_the_next_leaders_wall_clock() -> None:
    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        await put(session, b"k", b"1")
        leader = await world.leader()
        before_ms = (await world.partition(leader)).state.log_time_ms
        for node in world.cluster.nodes.values():
            node.set_clock_skew(10 * 24 * 3600 * 1000)

        await world.cluster.nodes[leader].crash(power=False)
        await put(session, b"k", b"2")

        after_ms = (await world.partition(await world.leader())).state.log_time_ms
        assert before_ms <= after_ms <= before_ms + 20_000

    live(story, brokers=3)


def test_commands_keep_a_session_alive() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        for number in range(5):
            await trio.sleep(TTL_MS / 1000 * 0.7)
            await put(session, b"k", b"%d" % number)

    live(story)


def test_time_for_which_the_broker_stood_still_counts_for_no_session() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        node = world.cluster.nodes[await world.leader()]

        node.pause()
        await trio.sleep(3 * TTL_MS / 1000)
        node.resume()
        await trio.sleep(0.5)

        assert await world.client.keep_alive("n", [session.session]) == []

    live(story)


def test_a_session_has_its_time_from_when_its_renewal_came_in_however_long_that_turn_was() -> None:
    async def story(world: World) -> None:
        session = await world.session(ttl_ms=1_000)
        leader = await world.leader()
        partition = await world.partition(leader)
        broker = world.cluster.nodes[leader].broker
        assert broker is not None

        with broker.node.turn:
            broker.node.now_ms()  # Somebody asked what time it is, and the process stood still.
            current_clock().now += 0.9
            partition.keep_alive([session.session], lambda answer: None)
        await trio.sleep(0.9)

        assert await world.client.keep_alive("n", [session.session]) == []

    live(story)


def test_a_jump_of_the_wall_clock_expires_nothing() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        for node in world.cluster.nodes.values():
            node.set_clock_skew(10 * 24 * 3600 * 1000)
        await trio.sleep(TTL_MS / 1000 * 0.7)
        first = await put(session, b"k", b"1")
        partition = await world.partition(await world.leader())
        before_ms = partition.state.log_time_ms
        for node in world.cluster.nodes.values():
            node.set_clock_skew(-10 * 24 * 3600 * 1000)
        await trio.sleep(1.0)
        await put(session, b"k", b"2")

        assert first.revision
        assert 900 <= partition.state.log_time_ms - before_ms <= 1_200

    live(story)


def test_an_item_grows_older_while_nothing_else_happens() -> None:
    """A queue on which nobody works any more is found by the age of what waits there."""

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        await session.do(PutItems(queue="q", items=[Item(payload=b"x")]))
        await trio.sleep(20.0)

        found = await world.client.query("n", ReadQueue(queue="q"))

        assert isinstance(found, QueueStatistics)
        assert found.oldest_ms is not None
        assert 20_000 <= found.oldest_ms <= 20_500

    live(story)


def test_a_ticket_that_is_waited_for_is_told_when_it_is_granted_and_when_it_is_gone() -> None:
    async def story(world: World) -> None:
        holder, waiter = await world.session(), await world.session()
        held, ticket = await acquire(holder), await acquire(waiter)
        answers: list[object] = []

        async def wait() -> None:
            query = ReadClaim(kind="lock", name="l", ticket=ticket.ticket)
            answers.append(await world.client.query("n", query, wait_ms=4_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.5)
            assert not answers
            await holder.do(Release(kind="lock", name="l", ticket=held.ticket))
        again = await acquire(holder)
        ticket = again
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.5)
            await holder.do(CloseSession())

        granted, gone = answers
        assert isinstance(granted, Claim)
        assert granted.token is not None
        assert getattr(gone, "code", None) == NotHeldError.code

    live(story)


def test_a_wait_that_is_over_says_that_the_ticket_still_waits() -> None:
    async def story(world: World) -> None:
        holder, waiter = await world.session(), await world.session()
        await acquire(holder)
        ticket = await acquire(waiter)

        began = trio.current_time()
        answer = await world.client.query(
            "n", ReadClaim(kind="lock", name="l", ticket=ticket.ticket), wait_ms=1_000
        )

        assert isinstance(answer, Claim)
        assert answer.token is None
        assert 1.0 <= trio.current_time() - began < 1.5

    live(story)


def test_a_namespace_is_served_only_by_the_partition_that_it_lives_in() -> None:
    async def story(world: World) -> None:
        home = await world.group("n")
        elsewhere = next(group for group in world.client.groups if group != home)
        world.client.groups = [elsewhere] * len(world.client.groups)

        with pytest.raises(InvalidRequestError, match="does not live in __coordination/"):
            await world.session("n")

    live(story)


def test_only_the_leader_may_say_that_a_session_has_expired() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        for command in (ExpireSession(session=session.session), Advance()):
            with pytest.raises(LogdError):
                await world.client.command("n", command)
        assert await world.client.keep_alive("n", [session.session]) == []

    live(story)


def test_the_topic_belongs_to_the_brokers() -> None:
    async def story(world: World) -> None:
        group = await world.group()
        leader = await world.leader()
        connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
        batch = bytes(seal_batch(values=[b"v"], timestamps_ms=0))

        with pytest.raises(InvalidRequestError, match="takes commands, not records"):
            await connection.ask(Kind.PRODUCE, ProduceRequest(group=group), ProduceResponse, batch)
        with pytest.raises(InvalidRequestError, match="belongs to logd"):
            await connection.ask(
                Kind.DELETE_TOPIC,
                DeleteTopicRequest(name=COORDINATION_TOPIC),
                DeleteTopicResponse,
            )
        async with world.cluster.client() as client:
            with pytest.raises(InvalidNameError):
                await client.admin.create_topic(COORDINATION_TOPIC)

    live(story)


# --- fences -----------------------------------------------------------------------------


def test_a_raised_fence_shuts_out_older_tokens_at_once_and_on_every_later_leader() -> None:
    async def story(world: World) -> None:
        async with world.cluster.client() as client:
            topic = await client.admin.create_topic("t", partitions=1, replicas=3)
        group = topic.partitions[0].group
        world.client.topics.append("t")

        async def ask(kind: Kind, message: Message, answer_type: type[M], body: bytes = b"") -> M:
            return (await world.client.until_answered(group, kind, message, answer_type, body))[0]

        async def append(token: int) -> int:
            batch = bytes(seal_batch(values=[b"v"], timestamps_ms=0, fence_id=7, fence_token=token))
            request = ProduceRequest(group=group)
            return (await ask(Kind.PRODUCE, request, ProduceResponse, batch)).end_offset

        async def raise_to(token: int) -> int:
            request = RaiseFenceRequest(group=group, fence_id=7, token=token)
            return (await ask(Kind.RAISE_FENCE, request, RaiseFenceResponse)).offset

        written = await append(5)
        raised = await raise_to(9)
        assert raised > written
        with pytest.raises(FencedError):
            await append(5)
        with pytest.raises(FencedError):
            await raise_to(8)
        assert await raise_to(9) > raised
        leader = await world.leader_of(GroupId(group))
        await leader.crash(power=True)

        with pytest.raises(FencedError):
            await append(8)
        assert await append(9) > raised

    live(story, brokers=3)


def test_logs_that_take_commands_take_no_fences() -> None:
    async def story(world: World) -> None:
        connection = await world.client.connection(HostPort("node1", CLIENT_PORT))
        for group in (0, await world.group()):
            await world.leader()
            with pytest.raises(InvalidRequestError, match="takes commands"):
                await connection.ask(
                    Kind.RAISE_FENCE,
                    RaiseFenceRequest(group=group, fence_id=1, token=1),
                    RaiseFenceResponse,
                )

    live(story)


# --- watches ----------------------------------------------------------------------------


async def watch(
    world: World,
    number: int,
    *,
    start: bytes = b"k",
    end: bytes | None = None,
    revision: int | None = None,
    credit: int = 1 << 20,
) -> WatchResponse:
    leader = await world.leader()
    connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
    request = WatchRequest(
        watch=number,
        generation=1,
        group=await world.group(),
        namespace="n",
        kind="key",
        start=start,
        end=end,
        revision=revision,
        credit_bytes=credit,
    )
    answer, _ = await connection.ask(Kind.WATCH, request, WatchResponse)
    return answer


async def seen(world: World, number: int, after_s: float = 1.0) -> list[bytes]:
    """Values that a watch was told of, in order; frames must follow one another."""
    await trio.sleep(after_s)
    leader = await world.leader()
    connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
    values, last = [], 0
    for told, events in connection.events:
        if told.watch != number:
            continue
        for event in events:
            assert last < event.revision <= told.revision
            values.append(event.value)
        assert told.revision >= last
        last = told.revision
    return values


def test_watches_are_told_of_all_changes_from_their_revision_on_each_once() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        for value in (b"1", b"2"):
            await put(session, b"k", value)
        second = await put(session, b"k", b"3")
        await watch(world, 1)
        await watch(world, 2, revision=second.revision)
        await watch(world, 3, start=b"", end=b"")
        await watch(world, 4, start=b"a", end=b"j")
        for value in (b"4", b"5"):
            await put(session, b"k", value)
        await put(session, b"b", b"other")

        assert await seen(world, 1) == [b"4", b"5"]
        assert await seen(world, 2) == [b"3", b"4", b"5"]
        assert await seen(world, 3) == [b"4", b"5", b"other"]
        assert await seen(world, 4) == [b"other"]

    live(story)


def test_a_watch_without_credit_catches_up_when_it_gets_some() -> None:
    async def story(world: World) -> None:
        session = await world.session()
        await watch(world, 1, credit=1)
        for number in range(20):
            await put(session, b"k", b"%d" % number)
        assert await seen(world, 1) == [b"0"]

        leader = await world.leader()
        connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
        await connection.send(Kind.WATCH_CREDIT, WatchCredit(watch=1, generation=1, bytes=1 << 20))
        await trio.sleep(0.5)
        await put(session, b"k", b"20")

        assert await seen(world, 1) == [b"%d" % number for number in range(21)]

    live(story)


def test_a_watch_is_ended_when_another_broker_leads_and_resumes_there_without_a_gap() -> None:
    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        first = await put(session, b"k", b"1")
        await watch(world, 1)
        leader = await world.leader()
        connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
        await put(session, b"k", b"2")

        await world.cluster.nodes[leader].crash(power=False)
        await trio.sleep(5)
        await put(session, b"k", b"3")
        told = connection.events[-1][0].revision
        await watch(world, 1, revision=told + 1)

        assert [event.value for _, events in connection.events for event in events] == [b"2"]
        assert await seen(world, 1) == [b"3"]
        assert first.revision <= told

    live(story, brokers=3)


@pytest.mark.parametrize("value_bytes", [1, 1000])
def test_a_watch_of_what_never_changes_resumes_however_much_else_has(
    monkeypatch: pytest.MonkeyPatch, value_bytes: int
) -> None:
    monkeypatch.setattr(history, "EVENTS_PER_NAMESPACE_MAX", 100)
    monkeypatch.setattr(history, "EVENT_BYTES_PER_NAMESPACE_MAX", 50_000)

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        await watch(world, 1)
        leader = await world.leader()
        connection = await world.client.connection(HostPort(f"node{leader}", CLIENT_PORT))
        for _ in range(300):
            await put(session, b"other", bytes(value_bytes))

        await world.cluster.nodes[leader].crash(power=False)
        await trio.sleep(5)
        told = connection.events[-1][0].revision
        await watch(world, 1, revision=told + 1)
        await put(session, b"k", b"1")

        assert await seen(world, 1) == [b"1"]
        assert len(connection.events) < 40

    live(story, brokers=3)


# --- snapshots --------------------------------------------------------------------------


def test_a_broker_that_starts_again_has_the_state_it_kept_and_a_short_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_state, "COORDINATION_COMMANDS_PER_SNAPSHOT", 50)

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        for number in range(400):
            await put(session, b"k%d" % (number % 7), b"%d" % number * 20)
        node = world.cluster.nodes[await world.leader()]
        partition = await world.partition(node.node)
        assert partition.group.log.start_offset > 100
        await node.stop()
        node.start()

        assert await value_of(world, b"k0") == b"399" * 20
        assert (await world.client.keep_alive("n", [session.session])) == []
        partition = await world.partition(node.node)
        assert partition.entries_applied < 150

    live(story)


def test_a_broker_that_starts_again_applies_many_commands_in_each_turn_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = 400
    pause, pauses = trio.lowlevel.checkpoint, [0]

    async def counted_pause() -> None:
        pauses[0] += 1
        await pause()

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        for number in range(commands):  # Each alone in its batch.
            await put(session, b"k", b"%d" % number)
        node = world.cluster.nodes[await world.leader()]
        await node.crash(power=False)
        monkeypatch.setattr(trio.lowlevel, "checkpoint", counted_pause)
        node.start()

        assert await value_of(world, b"k") == b"%d" % (commands - 1)
        assert (await world.partition(node.node)).entries_applied > commands
        assert pauses[0] < commands / 4

    live(story)


def test_a_leader_that_cannot_keep_its_state_says_so_serves_on_and_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_state, "COORDINATION_COMMANDS_PER_SNAPSHOT", 50)

    def refuse(operation: str, path: str) -> None:
        if operation == "create" and "/application-" in path:
            raise OSError(errno.ENOSPC, "simulated failure", path)

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        leader = await world.leader()
        files = world.cluster.nodes[leader].files
        files.on_operation = refuse
        with capture_logs() as logs:
            for number in range(200):
                await put(session, b"k%d" % (number % 7), b"%d" % number * 20)
        assert await world.leader() == leader
        told = {line["event"] for line in logs if line["log_level"] in ("warning", "error")}
        assert told == {log_events.COORDINATION_NOT_KEPT}
        partition = await world.partition(leader)
        assert partition.group.log.start_offset == 0

        files.on_operation = None
        for number in range(200):
            await put(session, b"k%d" % (number % 7), b"%d" % number * 20)

        assert (await world.partition(leader)).group.log.start_offset > 0

    live(story, brokers=3)


@pytest.mark.parametrize("per_part", [1, 1_000])
def test_a_replica_that_lacks_what_was_trimmed_is_sent_the_state(
    per_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parts there are between which the event loop turns."""
    monkeypatch.setattr(kept_state, "COORDINATION_COMMANDS_PER_SNAPSHOT", 50)
    for kind, section in snapshots._SECTIONS.items():
        monkeypatch.setitem(snapshots._SECTIONS, kind, section._replace(per_part=per_part))

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        leader = await world.leader()
        lagging = next(n for n in world.cluster.nodes.values() if n.node != leader)
        world.cluster.network.isolate(lagging.host)
        await trio.sleep(3)  # What is sent before the leader knows would arrive in the end.
        for number in range(400):
            await put(session, b"k%d" % (number % 7), b"%d" % number * 20)
        mine = await world.partition(lagging.node)
        theirs = await world.partition(leader)
        assert mine.applied_offset < theirs.group.log.start_offset
        world.cluster.network.heal()
        with trio.fail_after(20):
            while mine.applied_offset < theirs.applied_offset:
                await trio.sleep(0.1)

        assert mine.group.log.start_offset > 100
        assert mine.state.snapshot() == theirs.state.snapshot()
        assert any(event.name == "snapshot_installed" for event in world.cluster.trace.events)

    # What was trimmed is not in the leader's memory either, or it would be sent from there.
    live(story, brokers=3, tail_cache_bytes=0)


def test_a_replica_whose_kept_state_is_damaged_goes_on_with_that_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_state, "COORDINATION_COMMANDS_PER_SNAPSHOT", 50)

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        for number in range(400):
            await put(session, b"k%d" % (number % 7), b"%d" % number * 20)
        leader = await world.leader()
        victim = next(n for n in world.cluster.nodes.values() if n.node != leader)
        theirs, mine = await world.partition(leader), await world.partition(victim.node)
        directory = mine.group.directory
        await victim.stop()
        for name in victim.files.list_directory(directory):
            if name.startswith("application-"):
                victim.files.flip(f"{directory}/{name}", FILE_HEADER_BYTES)

        victim.start()
        await trio.sleep(3)
        mine = await world.partition(victim.node)
        with trio.fail_after(20):
            while mine.applied_offset < theirs.applied_offset:
                await trio.sleep(0.1)

        assert mine.group.log.start_offset > 100
        assert mine.group.failure is None
        assert mine.state.snapshot() == theirs.state.snapshot()

    live(story, brokers=3)


def test_a_state_that_arrives_while_another_is_taken_over_is_taken_over_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind, section in snapshots._SECTIONS.items():
        monkeypatch.setitem(snapshots._SECTIONS, kind, section._replace(per_part=1))

    async def story(world: World) -> None:
        session = await world.session(ttl_ms=60_000)
        leader = await world.leader()
        lagging = next(n for n in world.cluster.nodes.values() if n.node != leader)
        world.cluster.network.isolate(lagging.host)
        await trio.sleep(3)
        theirs, mine = await world.partition(leader), await world.partition(lagging.node)
        shipped = []
        for round_number in range(2):
            for number in range(20):
                await put(session, b"k%d" % number, b"%d" % round_number)
            shipped.append((theirs.applied_offset, theirs.state.snapshot()))

        mine.on_installed(*shipped[0])
        for _ in range(5):  # There are more parts than that.
            await trio.lowlevel.checkpoint()
        assert mine.applied_offset < shipped[0][0]
        mine.on_installed(*shipped[1])
        with trio.fail_after(5):
            while mine.applied_offset < shipped[1][0]:
                await trio.sleep(0.01)

        assert mine.state.snapshot() == shipped[1][1]

    live(story, brokers=3)


def test_sessions_are_opened_once_however_often_they_are_asked_for() -> None:
    async def story(world: World) -> None:
        command = OpenSession(token=b"t" * 16, ttl_ms=TTL_MS)
        first = await world.client.command("n", command)
        second = await world.client.command("n", command)

        assert isinstance(first, Opened)
        assert isinstance(second, Opened)
        assert first.session == second.session
        done = await world.client.command("n", CloseSession(), session=first.session, sequence=1)
        assert isinstance(done, Done)

    live(story)
