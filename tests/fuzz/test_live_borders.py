"""A whole broker, and connections that keep to no rule: it cuts them off in bounded time, and
those who do keep to the rules notice nothing.

An error that is not caught ends the simulated broker and fails the test by itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, get_args, get_origin, get_type_hints

import msgspec
import pytest
import trio
import zstandard

from logd.broker import server, session
from logd.broker.broker import Broker, ProduceBudget
from logd.broker.session import QUEUED_FRAME_BYTES
from logd.errors import InvalidRequestError, LogdError, MalformedBatchError, OverloadedError
from logd.limits import (
    ANSWER_BYTES_MAX,
    CLAIM_WAITS_PER_TICKET_MAX,
    CLIENTS_SEND_BYTES_MAX,
    CONNECTION_SEND_BYTES_MAX,
    FETCH_BYTES_MAX,
    FRAME_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    KIB,
    MIB,
    PEER_PROGRESS_TIMEOUT_S,
    PROGRESS_TIMEOUT_S,
    SUBSCRIPTION_CREDIT_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from logd.record.batch import decode_batch, seal_batch
from logd.record.header import split_batches
from logd.replication import peer_server
from logd.replication.peer_protocol import (
    PEER_PROTOCOL_VERSION,
    Lane,
    PeerHello,
    PeerKind,
    Ping,
)
from logd.replication.tail_cache import TailCache
from logd.types import GroupId, HostPort, NodeId
from logd.wire.coordination import (
    COORDINATION_TOPIC,
    DEFAULT_NAMESPACE,
    Event,
    Get,
    ReadClaim,
    ReadKeys,
    partition_of,
)
from logd.wire.frame import (
    FLAG_ERROR,
    FLAG_LONG,
    FLAG_PUSH,
    FLAG_RESPONSE,
    Frame,
    FrameDecoder,
    decode_message,
    encode_message,
    frame_prefix,
)
from logd.wire.messages import (
    REQUEST_BY_KIND,
    Credit,
    DeleteTopicRequest,
    Deliver,
    DescribeBrokerRequest,
    DescribeRebalanceRequest,
    ErrorResponse,
    FetchRequest,
    HelloRequest,
    Kind,
    Message,
    MetadataRequest,
    ProduceRequest,
    ProduceResponse,
    QueryRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    WatchCredit,
    WatchRequest,
)
from tests.fuzz.mutations import NUMBERS, mutate
from tests.fuzz.seeds import make_seeds
from tests.fuzz.targets import batch_with_payload
from tests.sim.cluster import CLIENT_PORT, PEER_PORT, ClusterSettings, SimCluster, open_cluster
from tests.sim.env import BlockingConditions
from tests.sim.faults import SLOW_DISK
from tests.sim.incarnation import Incarnation
from tests.sim.network import CALM, SimStream
from tests.sim.run import run_deterministic

pytestmark = pytest.mark.sim

HELLO: Final = encode_message(Kind.HELLO, HelloRequest(client="raw"), 1)
TOPIC: Final = "t"
NUMBERED_GROUP: Final = re.compile(r"group -?[0-9]")
"""People know partitions by topic and number; the number of a group means nothing to them."""

STANDS_STILL: Final = BlockingConditions(
    latency_s_min=10.0, latency_s_mean=0.0, spike_probability=0.0
)
PROMPT_DISK: Final = BlockingConditions()
SLACK_S: Final = 2.0
"""What the simulated network may add to a timeout."""


class Raw:
    """A connection that sends what it is told to."""

    def __init__(self, stream: SimStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder(8 * MIB, long_messages=True)

    async def send(self, *data: bytes) -> None:
        await self.stream.send(data)

    async def frame(self) -> Frame | None:
        """The next frame; None when the broker has closed the connection."""
        with trio.fail_after(30):
            while (frame := self._decoder.next_frame()) is None:
                count = await self._receive()
                if count == 0:
                    return None
                self._decoder.received(count)
        return frame

    async def _receive(self) -> int:
        try:
            return await self.stream.receive_into(self._decoder.writable())
        except ConnectionError:
            return 0

    async def greet(self) -> None:
        await self.send(HELLO)
        frame = await self.frame()
        assert frame is not None
        assert not frame.is_error

    async def answer(self) -> ProduceResponse:
        frame = await self.frame()
        assert frame is not None
        assert not frame.is_error, frame.header
        return decode_message(ProduceResponse, frame.header)

    async def error(self) -> ErrorResponse:
        frame = await self.frame()
        assert frame is not None
        assert frame.is_error
        return decode_message(ErrorResponse, frame.header)

    async def closed_after(self, limit_s: float) -> float:
        """When the broker closed it, in seconds from now, at the latest after ``limit_s``."""
        began = trio.current_time()
        with trio.fail_after(limit_s):
            while await self._receive():
                pass
        return trio.current_time() - began


class World:
    """One broker with a topic of one partition, on a calm network."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.group = 0
        self._host = cluster.network.attach(Incarnation("intruder", 1))

    async def connect(self, port: int = CLIENT_PORT, node: int = 1) -> Raw:
        return Raw(await self._host.connect_stream(HostPort(f"node{node}", port)))

    @asynccontextmanager
    async def greeted(self, node: int = 1) -> AsyncIterator[Raw]:
        raw = await self.connect(node=node)
        await raw.greet()
        yield raw
        raw.stream.abort()

    async def is_served(self) -> None:
        """Somebody who keeps to the rules appends and reads as if nothing were."""
        async with self.greeted(await self._leader()) as raw:
            await raw.send(*self.produce(bytes(seal_batch(values=[b"v"], timestamps_ms=0))))
            frame = await raw.frame()
            assert frame is not None
            assert not frame.is_error, frame.header
            assert decode_message(ProduceResponse, frame.header).end_offset > 0

    async def _leader(self) -> NodeId:
        with trio.fail_after(30):
            while True:
                for node in self.cluster.nodes.values():
                    group = node.groups.get(GroupId(self.group))
                    if group is not None and group.is_leader:
                        return node.node
                await trio.sleep(0.1)

    def produce(self, batch: bytes) -> tuple[bytes, bytes]:
        request = ProduceRequest(group=self.group)
        return encode_message(Kind.PRODUCE, request, 7, body_bytes=len(batch)), batch

    def refusals(self) -> list[str]:
        return [
            dict(event.fields)["reason"]
            for event in self.cluster.trace.events
            if event.name in ("client_refused", "peer_refused")
        ]


def live(story: Callable[[World], Awaitable[None]], seed: int = 1, brokers: int = 1) -> None:
    async def run() -> None:
        settings = ClusterSettings(brokers=brokers, network=CALM)
        async with open_cluster(seed, settings) as cluster:
            world = World(cluster)
            with trio.fail_after(60):
                while not world.group:
                    with suppress(LogdError):
                        async with cluster.client() as client:
                            while len((await client.admin.describe_cluster()).brokers) < brokers:
                                await trio.sleep(0.1)
                            topic = await client.admin.create_topic(TOPIC, partitions=1)
                            world.group = topic.partitions[0].group
            await story(world)
            await world.is_served()

    run_deterministic(run, seed=seed, time_limit_s=3600)


async def greeting_of_a_dead_peer(world: World) -> PeerHello:
    """What node 2 would say to node 1, now that it is gone and somebody else can."""
    node = world.cluster.nodes[NodeId(2)]
    assert node.broker is not None
    greeting = node.broker.node.greeting("main")
    await node.crash(power=False)
    return greeting


async def greeted_as_peer(world: World, greeting: PeerHello, lane: Lane = "main") -> Raw:
    raw = await world.connect(PEER_PORT)
    await raw.send(
        encode_message(PeerKind.PEER_HELLO, msgspec.structs.replace(greeting, lane=lane), 0)
    )
    frame = await raw.frame()
    assert frame is not None
    assert decode_message(PeerHello, frame.header).refused is None
    return raw


@contextmanager
def connections_max(limit: int) -> Iterator[None]:
    replaced: Any = server
    was = replaced.CONNECTIONS_MAX
    replaced.CONNECTIONS_MAX = limit
    try:
        yield
    finally:
        replaced.CONNECTIONS_MAX = was


async def trickle(raw: Raw, data: bytes, limit_s: float) -> float:
    """Send a byte each second; when the broker closed the connection."""

    async def send() -> None:
        with suppress(OSError):
            for number in range(len(data)):
                await raw.send(data[number : number + 1])
                await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        closed = await raw.closed_after(limit_s)
        nursery.cancel_scope.cancel()
    return closed


# --- time -------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [CLIENT_PORT, PEER_PORT], ids=["client", "peer"])
def test_a_greeting_that_trickles_in_is_cut_off_by_the_handshake_timeout(port: int) -> None:
    async def story(world: World) -> None:
        raw = await world.connect(port)
        promised = frame_prefix(Kind.HELLO, 0, b"", 1, body_bytes=4000) + bytes(4000)

        closed_s = await trickle(raw, promised, HANDSHAKE_TIMEOUT_S + SLACK_S)

        assert closed_s >= HANDSHAKE_TIMEOUT_S - SLACK_S

    live(story)


def test_a_frame_that_trickles_in_is_cut_off_by_the_progress_timeout() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            promised = frame_prefix(Kind.PRODUCE, 0, b"", 1, body_bytes=4000) + bytes(4000)

            closed_s = await trickle(raw, promised, PROGRESS_TIMEOUT_S + SLACK_S)

        assert closed_s >= PROGRESS_TIMEOUT_S - SLACK_S

    live(story)


def test_a_peers_frame_that_trickles_in_is_cut_off_by_the_progress_timeout() -> None:
    async def story(world: World) -> None:
        raw = await greeted_as_peer(world, await greeting_of_a_dead_peer(world))
        promised = frame_prefix(PeerKind.CLAIMS, 0, b"", 0, body_bytes=4000) + bytes(4000)

        closed_s = await trickle(raw, promised, PEER_PROGRESS_TIMEOUT_S + SLACK_S)

        assert closed_s >= PEER_PROGRESS_TIMEOUT_S - SLACK_S
        assert "no progress" in world.refusals()[-1]

    live(story, brokers=3)


def test_a_peer_whose_frames_come_in_pieces_is_no_stall_however_long_it_goes_on() -> None:
    async def story(world: World) -> None:
        raw = await greeted_as_peer(world, await greeting_of_a_dead_peer(world))
        ping = encode_message(PeerKind.PING, Ping(), 0)
        for _ in range(4):
            await raw.send(ping[:5])
            await trio.sleep(PEER_PROGRESS_TIMEOUT_S * 0.8)
            await raw.send(ping[5:])
            await trio.sleep(PEER_PROGRESS_TIMEOUT_S * 0.8)
        with pytest.raises(trio.TooSlowError):
            await raw.closed_after(1.0)

    live(story, brokers=3)


def test_small_frames_that_come_in_pieces_are_no_stall_however_long_it_goes_on() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            request = encode_message(Kind.METADATA, MetadataRequest(), 2)
            for _ in range(5):
                await raw.send(request[:9])
                await trio.sleep(PROGRESS_TIMEOUT_S * 0.6)
                await raw.send(request[9:] + request[:3])
                assert await raw.frame() is not None
                await trio.sleep(PROGRESS_TIMEOUT_S * 0.6)
                await raw.send(request[3:])
                assert await raw.frame() is not None

    live(story)


def test_a_client_that_is_only_quiet_is_left_alone() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            await trio.sleep(6 * PROGRESS_TIMEOUT_S)
            await raw.send(encode_message(Kind.METADATA, MetadataRequest(), 2))
            assert await raw.frame() is not None

    live(story)


# --- numbers ----------------------------------------------------------------------------


def test_connections_beyond_the_bound_are_closed_at_once_and_the_others_served() -> None:
    async def story(world: World) -> None:
        inside = [await world.connect() for _ in range(30)]
        for raw in inside:
            await raw.greet()

        for _ in range(2000):
            beyond = await world.connect()
            assert await beyond.closed_after(1.0) < 1.0
            beyond.stream.abort()

        for raw in inside:
            await raw.send(encode_message(Kind.METADATA, MetadataRequest(), 2))
            assert await raw.frame() is not None
            raw.stream.abort()
        await trio.sleep(1)

    with connections_max(30):
        live(story)


def test_connections_that_come_and_go_leave_nothing_behind() -> None:
    async def story(world: World) -> None:
        chance = random.Random(1)
        for _ in range(400):
            raw = await world.connect()
            match chance.randrange(4):
                case 0:
                    await raw.send(HELLO[: chance.randrange(1, len(HELLO))])
                case 1:
                    await raw.greet()
                case 2:
                    await raw.send(HELLO + HELLO[:5])
                case _:
                    pass
            raw.stream.abort()
            if chance.randrange(4) == 0:
                await trio.sleep(0.1)
        await trio.sleep(HANDSHAKE_TIMEOUT_S + 1)

    with connections_max(25):
        live(story)


@pytest.mark.parametrize("port", [CLIENT_PORT, PEER_PORT], ids=["client", "peer"])
def test_an_idle_flood_keeps_nobody_out_and_is_over_with_the_handshake_timeout(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setattr(peer_server, "PEER_CONNECTIONS_MAX", 30)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 30)

    async def story(world: World) -> None:
        greeting = await greeting_of_a_dead_peer(world)
        begun = trio.current_time()
        flood = [await world.connect(port) for _ in range(500)]
        if port == PEER_PORT:
            await greeted_as_peer(world, greeting)
        else:
            async with world.greeted():
                pass
        assert trio.current_time() - begun < HANDSHAKE_TIMEOUT_S / 2
        made_room = [r for r in world.refusals() if "others wait for the place" in r]
        assert 460 <= len(made_room) <= 480

        for raw in flood:
            await raw.closed_after(HANDSHAKE_TIMEOUT_S + SLACK_S)

    live(story, brokers=3)


def test_a_peer_that_comes_again_takes_the_place_of_its_last_connection_on_that_lane() -> None:
    async def story(world: World) -> None:
        greeting = await greeting_of_a_dead_peer(world)
        bulk = await greeted_as_peer(world, greeting, "bulk")
        last = await greeted_as_peer(world, greeting)
        for _ in range(50):
            again = await greeted_as_peer(world, greeting)
            assert await last.closed_after(1.0) < 1.0
            last = again
        for raw in (last, bulk):
            with pytest.raises(trio.TooSlowError):
                await raw.closed_after(1.0)

    live(story, brokers=3)


def test_a_newer_peer_is_answered_in_the_version_in_common_or_told_that_there_is_none() -> None:
    newer = PEER_PROTOCOL_VERSION + 2

    async def answer(world: World, lowest: int) -> PeerHello:
        greeting = await greeting_of_a_dead_peer(world)
        raw = await world.connect(PEER_PORT)
        greeting = msgspec.structs.replace(greeting, protocol=newer, protocol_min=lowest)
        await raw.send(encode_message(PeerKind.PEER_HELLO, greeting, 0))
        frame = await raw.frame()
        assert frame is not None
        return decode_message(PeerHello, frame.header)

    async def story(world: World) -> None:
        spoken = await answer(world, PEER_PROTOCOL_VERSION)
        refused = await answer(world, PEER_PROTOCOL_VERSION + 1)

        assert (spoken.protocol, spoken.refused) == (PEER_PROTOCOL_VERSION, None)
        assert refused.refused is not None
        assert f"peer protocol {PEER_PROTOCOL_VERSION + 1} to {newer}" in refused.refused

    live(story, brokers=3)


def test_a_peer_that_comes_again_and_breaks_the_protocol_at_once_ends_alone() -> None:
    async def story(world: World) -> None:
        greeting = await greeting_of_a_dead_peer(world)
        for _ in range(20):
            last = await greeted_as_peer(world, greeting)
            again = await world.connect(PEER_PORT)
            nonsense = frame_prefix(PeerKind.PING, 0xFF, b"\x80", 0)
            await again.send(encode_message(PeerKind.PEER_HELLO, greeting, 0) + nonsense)
            assert await last.closed_after(1.0) < 1.0
            assert await again.closed_after(1.0) < 1.0

    live(story, brokers=3)


@pytest.mark.parametrize("is_in_memory", [True, False])
def test_who_asks_for_much_and_takes_nothing_has_no_more_read_than_fits(
    monkeypatch: pytest.MonkeyPatch, is_in_memory: bool
) -> None:
    """A kilobyte of requests could otherwise have gigabytes read."""
    requests = 100
    found_bytes: list[int] = []

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        if not is_in_memory:
            monkeypatch.setattr(TailCache, "read", lambda *_: None)
        batch = bytes(seal_batch(values=[bytes(MIB - KIB)], timestamps_ms=0))
        await world.is_served()
        async with world.greeted() as raw:
            await raw.send(*world.produce(batch))
            appended = await raw.frame()
            assert appended is not None
            offset = decode_message(ProduceResponse, appended.header).base_offset
            fetch = FetchRequest(group=world.group, offset=offset)
            asked = [encode_message(Kind.FETCH, fetch, number) for number in range(requests)]
            await raw.send(b"".join(asked))  # Before the first is answered.
            await trio.sleep(5)
            waiting = max(client.queued_bytes for client in broker.sessions)
            for _ in range(requests):
                frame = await raw.frame()
                assert frame is not None
                assert not frame.is_error, frame.header
                found_bytes.append(len(frame.body))
        assert min(found_bytes) >= len(batch)
        assert waiting <= CONNECTION_SEND_BYTES_MAX + FETCH_BYTES_MAX

    live(story)


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        (Kind.METADATA, MetadataRequest(topics=["n" * 200])),
        (Kind.DESCRIBE_REBALANCE, DescribeRebalanceRequest()),
        (Kind.DESCRIBE_BROKER, DescribeBrokerRequest()),
    ],
)
def test_the_cluster_is_not_described_to_who_takes_no_description(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, request_: Message
) -> None:
    """Of a cluster of thousands of partitions each is a hundred times as large."""
    requests = 1_000
    monkeypatch.setattr(session, "CONNECTION_SEND_BYTES_MAX", 16 * KIB)

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        broker.autonomy_notes = ["n" * 400]
        async with world.greeted() as raw:
            asked = [encode_message(kind, request_, number) for number in range(requests)]
            await raw.send(b"".join(asked))
            await trio.sleep(5)
            waiting = max(client.queued_bytes for client in broker.sessions)
            frames = [await raw.frame() for _ in range(requests)]
        told = [frame for frame in frames if frame is not None and not frame.is_error]
        assert len(told) == requests
        largest = max(len(frame.header) for frame in told)
        assert sum(len(frame.header) for frame in told) > 256 * KIB
        assert waiting <= 16 * KIB + largest + KIB

    live(story)


def test_frames_of_a_few_bytes_count_with_the_memory_that_they_take() -> None:
    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.greeted():
            (client,) = broker.sessions
            for _ in range(1_000):
                client.push_events((bytes(30),), 30)
            assert client.queued_bytes == broker.sends.bytes == 1_000 * (30 + QUEUED_FRAME_BYTES)

    live(story)


def test_who_asks_coordination_for_much_and_takes_nothing_is_told_that_it_is_too_much() -> None:
    requests = 100
    keys = [b"%02d" % number for number in range(16)]
    value = bytes(VALUE_BYTES_MAX)
    query = msgspec.msgpack.encode(ReadKeys(get=Get(key=keys[0], end=b"")))

    async def story(world: World) -> None:
        async with world.cluster.client() as client:
            for key in keys:
                await client.kv().put(key, value)
            homes = (await client.admin.describe_topic(COORDINATION_TOPIC)).partitions
        home = homes[partition_of(DEFAULT_NAMESPACE, len(homes))]
        request = QueryRequest(group=home.group, namespace=DEFAULT_NAMESPACE)
        leader = next(
            node
            for node in world.cluster.nodes.values()
            if node.groups[GroupId(home.group)].is_leader
        )
        assert leader.broker is not None
        async with world.greeted(leader.node) as raw:
            asked = [
                encode_message(Kind.QUERY, request, number, body_bytes=len(query)) + query
                for number in range(requests)
            ]
            await raw.send(b"".join(asked))
            await trio.sleep(5)
            waiting = max(client.queued_bytes for client in leader.broker.sessions)
            frames = [await raw.frame() for _ in range(requests)]
        told = [frame for frame in frames if frame is not None]
        refused = [decode_message(ErrorResponse, frame.header) for frame in told if frame.is_error]
        assert len(told) == requests
        assert {refusal.code for refusal in refused} == {OverloadedError.code}
        assert sum(len(frame.body) > len(keys) * len(value) for frame in told) == requests - len(
            refused
        )
        assert waiting <= CONNECTION_SEND_BYTES_MAX + ANSWER_BYTES_MAX

    live(story, brokers=3)


def test_who_subscribes_and_watches_and_leaves_leaves_nothing_behind() -> None:
    async def story(world: World) -> None:
        async with world.cluster.client() as client:
            await client.kv().put(b"key", b"value")
            homes = (await client.admin.describe_topic(COORDINATION_TOPIC)).partitions
        home = homes[partition_of(DEFAULT_NAMESPACE, len(homes))]
        node = world.cluster.nodes[NodeId(1)]
        assert node.broker is not None
        partition = node.broker.coordination.find(node.broker, home.group)
        group = node.groups[GroupId(world.group)]
        watchers = len(group._watchers)
        count = 100

        for _ in range(3):
            async with world.greeted() as raw:
                for key in range(count):
                    ask = SubscribeRequest(
                        subscription=key, generation=1, group=world.group, start="latest"
                    )
                    watch = WatchRequest(
                        watch=key,
                        generation=1,
                        group=home.group,
                        namespace=DEFAULT_NAMESPACE,
                        kind="key",
                        start=b"",
                        end=b"",
                    )
                    await raw.send(encode_message(Kind.SUBSCRIBE, ask, 1))
                    await raw.send(encode_message(Kind.WATCH, watch, 2))
                await trio.sleep(1)
                assert len(group._watchers) == watchers + count
                assert len(partition.watches) == count
            await trio.sleep(1)
            assert (len(group._watchers), len(partition.watches)) == (watchers, 0)

    live(story)


def test_who_waits_for_a_lock_a_thousand_times_and_leaves_leaves_nothing_behind() -> None:
    async def story(world: World) -> None:
        async with world.cluster.client() as holder, world.cluster.client() as other:
            homes = (await holder.admin.describe_topic(COORDINATION_TOPIC)).partitions
            home = homes[partition_of(DEFAULT_NAMESPACE, len(homes))]
            broker = world.cluster.nodes[NodeId(1)].broker
            assert broker is not None
            async with holder.lock("l"), trio.open_nursery() as nursery:
                partition = broker.coordination.find(broker, home.group)

                async def wait() -> None:
                    async with other.lock("l"):
                        raise AssertionError

                nursery.start_soon(wait)
                await trio.sleep(2)
                patient = len(partition._claim_waits)
                locks = partition.state._namespaces[DEFAULT_NAMESPACE].locks
                (waiting,) = [ticket for lock in locks.all() for ticket in lock.waiting]
                claim = msgspec.msgpack.encode(ReadClaim(kind="lock", name="l", ticket=waiting))
                request = QueryRequest(
                    group=home.group, namespace=DEFAULT_NAMESPACE, wait_ms=60_000
                )
                frame = encode_message(Kind.QUERY, request, 1, len(claim)) + claim
                for _ in range(5):
                    async with world.greeted() as raw:
                        await raw.send(frame * 1_000)
                        await trio.sleep(0.3)
                        assert len(partition._claim_waits) == CLAIM_WAITS_PER_TICKET_MAX
                await trio.sleep(1)
                assert len(partition._claim_waits) == patient == 1
                nursery.cancel_scope.cancel()

    live(story)


def test_a_full_memory_budget_stops_the_reading_of_sockets_and_opens_again() -> None:
    """The disk stands still: what is sent meanwhile stays with the senders."""

    async def story(world: World) -> None:
        node = world.cluster.nodes[NodeId(1)]
        assert node.broker is not None
        budget = node.broker.budget = ProduceBudget(MIB)
        batch = bytes(seal_batch(values=[bytes(100_000)], timestamps_ms=0))
        answered: list[int] = []
        most = 0

        async def push() -> None:
            async with world.greeted() as raw:

                async def send() -> None:
                    for _ in range(50):
                        await raw.send(*world.produce(batch))

                async with trio.open_nursery() as sending:
                    sending.start_soon(send)
                    for _ in range(50):
                        frame = await raw.frame()
                        assert frame is not None
                        assert not frame.is_error, frame.header
                        answered.append(decode_message(ProduceResponse, frame.header).base_offset)

        node.set_blocking(STANDS_STILL)
        # A bound: who is never read again would wait for ever.
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(push)
                for _ in range(100):
                    await trio.sleep(0.05)
                    most = max(most, budget.bytes)
                assert len(answered) < 200
                node.set_blocking(PROMPT_DISK)
        assert len(set(answered)) == 200
        assert MIB <= most <= MIB + 4 * (len(batch) + KIB)
        assert budget.bytes == 0

    live(story)


def test_large_frames_that_begin_and_go_no_further_keep_nobody_waiting_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve bytes claim megabytes, on ten times as many connections as there is room for."""
    room_bytes = 4 * FRAME_BYTES_MAX
    monkeypatch.setattr(server, "LARGE_FRAMES_BYTES_MAX", room_bytes)
    claim = frame_prefix(Kind.PRODUCE, 0, b"", 1, FRAME_BYTES_MAX - FRAME_PREFIX_BYTES)

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        flood = [await world.connect() for _ in range(40)]
        for raw in flood:
            await raw.greet()
            await raw.send(claim)
        await trio.sleep(1.0)
        assert broker.frames.bytes == room_bytes
        began = trio.current_time()
        async with world.greeted() as raw:
            await raw.send(*world.produce(bytes(seal_batch(values=[b"v"], timestamps_ms=0))))
            assert (await raw.answer()).end_offset > 0
            assert trio.current_time() - began < 1.0  # A small one waits for nobody.

            large = bytes(seal_batch(values=[bytes(MIB - KIB)], timestamps_ms=0))
            await raw.send(*world.produce(large))
            with trio.fail_after(PROGRESS_TIMEOUT_S):
                assert (await raw.answer()).end_offset > 0
        cut = [reason for reason in world.refusals() if "others wait for the memory" in reason]
        assert len(flood) - 4 <= len(cut) <= len(flood)
        await trio.sleep(PROGRESS_TIMEOUT_S)
        assert broker.frames.bytes == 0

    live(story)


def test_more_large_frames_than_there_is_memory_for_arrive_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LARGE_FRAMES_BYTES_MAX", FRAME_BYTES_MAX)
    batch = bytes(seal_batch(values=[bytes(MIB - KIB)] * 3, timestamps_ms=0))
    most = 0

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        refused_before = len(world.refusals())
        over = 0

        async def append() -> None:
            nonlocal over
            async with world.greeted() as raw:
                for _ in range(3):
                    await raw.send(*world.produce(batch))
                    assert (await raw.answer()).end_offset > 0
            over += 1

        async def look() -> None:
            nonlocal most
            while over < 10:
                most = max(most, broker.frames.bytes)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for _ in range(10):
                nursery.start_soon(append)
        assert 2 * len(batch) <= most <= FRAME_BYTES_MAX
        assert broker.frames.bytes == 0
        assert len(world.refusals()) == refused_before

    live(story)


def large_frames_for_one(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """There is room for one large frame at a time: that of the batch which is returned."""
    batch = bytes(seal_batch(values=[bytes(MIB - KIB)] * 3, timestamps_ms=0))
    monkeypatch.setattr(server, "LARGE_FRAMES_BYTES_MAX", len(batch) + KIB)
    return batch


def test_a_large_frame_that_comes_slowly_but_in_time_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = large_frames_for_one(monkeypatch)
    pieces = 20

    async def story(world: World) -> None:
        refused_before = len(world.refusals())
        head, body = world.produce(batch)

        async def send_slowly(raw: Raw) -> None:
            await raw.send(head)
            for number in range(pieces):
                begin, end = (len(body) * each // pieces for each in (number, number + 1))
                await raw.send(body[begin:end])
                await trio.sleep(0.8 * PROGRESS_TIMEOUT_S / pieces)

        async with world.greeted() as slow, world.greeted() as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_slowly, slow)
                await trio.sleep(1)
                nursery.start_soon(other.send, head, body)
            for raw in (slow, other):
                assert (await raw.answer()).end_offset > 0
        assert len(world.refusals()) == refused_before

    live(story)


def test_who_comes_from_another_address_is_next_however_many_of_one_address_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = large_frames_for_one(monkeypatch)

    async def story(world: World) -> None:
        head, body = world.produce(batch)
        elsewhere = world.cluster.network.attach(Incarnation("elsewhere", 1))
        other = Raw(await elsewhere.connect_stream(HostPort("node1", CLIENT_PORT)))
        await other.greet()
        first, *many = [await world.connect() for _ in range(5)]
        for raw in (first, *many):
            await raw.greet()
        served: list[bool] = []

        async def append(raw: Raw) -> None:
            await raw.send(head, body)
            assert (await raw.answer()).end_offset > 0
            served.append(raw is other)

        async with trio.open_nursery() as nursery:
            await first.send(head)
            await trio.sleep(0.5)
            for raw in (*many, other):
                nursery.start_soon(append, raw)
                await trio.sleep(0.1)
            await first.send(body)
        assert served == [False, True, False, False, False]
        for raw in (first, *many, other):
            raw.stream.abort()

    live(story)


def test_a_full_memory_budget_lets_no_large_frame_begin() -> None:
    """Else each connection could add one to what is full."""

    async def story(world: World) -> None:
        node = world.cluster.nodes[NodeId(1)]
        assert node.broker is not None
        budget = node.broker.budget = ProduceBudget(MIB)
        batch = bytes(seal_batch(values=[bytes(MIB - KIB)], timestamps_ms=0))

        async def append() -> None:
            async with world.greeted() as raw:
                await raw.send(*world.produce(batch))
                assert (await raw.answer()).end_offset > 0

        node.set_blocking(STANDS_STILL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            await trio.sleep(1)
            assert budget.bytes > MIB
            for _ in range(10):
                nursery.start_soon(append)
            await trio.sleep(3)
            assert node.broker.frames.bytes == 0
            assert budget.bytes < 2 * MIB
            node.set_blocking(PROMPT_DISK)
        assert budget.bytes == 0

    live(story)


def test_while_clients_hold_all_there_is_small_questions_are_answered_and_large_ones_refused() -> (
    None
):
    async def story(world: World) -> None:
        async with world.cluster.client() as client:
            await client.kv().put(b"small", b"value")
            for number in range(2):
                await client.kv().put(b"large%d" % number, bytes(VALUE_BYTES_MAX))
            homes = (await client.admin.describe_topic(COORDINATION_TOPIC)).partitions
        home = homes[partition_of(DEFAULT_NAMESPACE, len(homes))]
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        request = QueryRequest(group=home.group, namespace=DEFAULT_NAMESPACE)

        async with world.greeted() as raw:

            async def ask(get: Get) -> Frame:
                query = msgspec.msgpack.encode(ReadKeys(get=get))
                await raw.send(encode_message(Kind.QUERY, request, 1, len(query)) + query)
                frame = await raw.frame()
                assert frame is not None
                return frame

            broker.sends.bytes += CLIENTS_SEND_BYTES_MAX
            small = await ask(Get(key=b"small"))
            large = await ask(Get(key=b"large", end=b"m"))
            broker.sends.less(CLIENTS_SEND_BYTES_MAX)
            again = await ask(Get(key=b"large", end=b"m"))

        assert [small.is_error, large.is_error, again.is_error] == [False, True, False]
        assert decode_message(ErrorResponse, large.header).code == OverloadedError.code
        assert b"value" in small.body
        assert len(again.body) > 2 * VALUE_BYTES_MAX

    live(story)


def test_while_clients_hold_all_there_is_the_cluster_is_described_in_few_words_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "CONNECTION_SEND_BYTES_FREE", 8 * KIB)

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None

        async with world.greeted() as raw:

            async def ask(count: int) -> Frame:
                names = [f"{number:0200}" for number in range(count)]
                await raw.send(encode_message(Kind.METADATA, MetadataRequest(topics=names), 1))
                frame = await raw.frame()
                assert frame is not None
                return frame

            broker.sends.bytes += CLIENTS_SEND_BYTES_MAX
            small, large = await ask(1), await ask(100)
            broker.sends.less(CLIENTS_SEND_BYTES_MAX)
            again = await ask(100)

        assert [small.is_error, large.is_error, again.is_error] == [False, True, False]
        assert decode_message(ErrorResponse, large.header).code == OverloadedError.code

    live(story)


@pytest.mark.parametrize("resumes", [False, True])
def test_while_clients_hold_all_there_is_watches_are_told_of_small_changes_and_later_of_large_ones(
    *, resumes: bool
) -> None:
    large = bytes(VALUE_BYTES_MAX)

    async def story(world: World) -> None:
        async with world.cluster.client() as client:
            kv = client.kv()
            first = await kv.put(b"before", b"value")
            homes = (await client.admin.describe_topic(COORDINATION_TOPIC)).partitions
            home = homes[partition_of(DEFAULT_NAMESPACE, len(homes))]
            broker = world.cluster.nodes[NodeId(1)].broker
            assert broker is not None
            request = WatchRequest(
                watch=1,
                generation=1,
                group=home.group,
                namespace=DEFAULT_NAMESPACE,
                kind="key",
                start=b"",
                end=b"",
                revision=first if resumes else None,
                credit_bytes=SUBSCRIPTION_CREDIT_BYTES_MAX,
            )
            told: list[bytes] = []

            async def listen(raw: Raw) -> None:
                while (frame := await raw.frame()) is not None:
                    if frame.kind == Kind.WATCH_EVENTS:
                        events = msgspec.msgpack.decode(frame.body, type=list[Event])
                        told.extend(event.name for event in events)

            async with world.greeted() as raw, trio.open_nursery() as nursery:
                broker.sends.bytes += CLIENTS_SEND_BYTES_MAX
                if resumes:
                    await kv.put(b"large", large)
                    await kv.put(b"large too", large)
                await raw.send(encode_message(Kind.WATCH, request, 1))
                nursery.start_soon(listen, raw)
                await trio.sleep(1)
                if not resumes:
                    await kv.put(b"small", b"value")
                    await trio.sleep(1)
                    assert told == [b"small"]
                    await kv.put(b"large", large)
                    await kv.put(b"large too", large)
                await trio.sleep(1)
                assert told == ([] if resumes else [b"small"])

                broker.sends.less(CLIENTS_SEND_BYTES_MAX)
                await trio.sleep(1)
                nursery.cancel_scope.cancel()

        assert told == [b"before" if resumes else b"small", b"large", b"large too"]

    live(story)


async def appended(world: World, count: int) -> int:
    """The first offset of so many batches, each about what is delivered at a time."""
    batch = bytes(seal_batch(values=[bytes(500 * KIB)], timestamps_ms=0))
    offsets = []
    async with world.greeted() as raw:
        for _ in range(count):
            await raw.send(*world.produce(batch))
            offsets.append((await raw.answer()).base_offset)
    return offsets[0]


def subscription(world: World, offset: int) -> bytes:
    request = SubscribeRequest(
        subscription=1,
        generation=1,
        group=world.group,
        start="offset",
        value=offset,
        credit_bytes=SUBSCRIPTION_CREDIT_BYTES_MAX,
    )
    return encode_message(Kind.SUBSCRIBE, request, 1)


async def most_that_waits(broker: Broker, until: trio.Event) -> int:
    most = 0
    while not until.is_set():
        most = max(most, broker.sends.bytes)
        await trio.sleep(0.001)
    return most


def test_many_that_take_nothing_hold_a_bounded_part_and_make_room_for_those_that_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fewer would hold a piece each and keep nobody waiting: here there are too many for that."""
    room_bytes = 8 * MIB
    monkeypatch.setattr(server, "CLIENTS_SEND_BYTES_MAX", room_bytes)

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        offset = await appended(world, 12)
        is_over = trio.Event()
        most: list[int] = []

        async def look() -> None:
            most.append(await most_that_waits(broker, is_over))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            flood = [await world.connect() for _ in range(30)]
            for raw in flood:
                await raw.send(HELLO, subscription(world, offset))
            await trio.sleep(1)
            assert broker.sends.bytes >= room_bytes

            began = trio.current_time()
            await world.is_served()  # Appends and small answers wait for nobody.
            assert trio.current_time() - began < 1.0

            async with world.greeted() as raw:
                fetch = FetchRequest(group=world.group, offset=offset)
                await raw.send(encode_message(Kind.FETCH, fetch, 9))
                with trio.fail_after(PROGRESS_TIMEOUT_S):
                    frame = await raw.frame()
                assert frame is not None
                assert len(frame.body) >= 500 * KIB
            is_over.set()
        assert room_bytes <= most[0] <= room_bytes + MIB
        cut = [reason for reason in world.refusals() if "others wait for the memory" in reason]
        assert 1 <= len(cut) <= len(flood)
        for raw in flood:
            raw.stream.abort()
        await trio.sleep(1)
        assert broker.sends.bytes == 0

    live(story)


def test_those_that_take_nothing_hold_a_piece_each_and_keep_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that each of them may hold while there is plenty would be more than there is."""
    monkeypatch.setattr(server, "CLIENTS_SEND_BYTES_MAX", 16 * MIB)
    monkeypatch.setattr(session, "CONNECTION_SEND_BYTES_MAX", 2 * MIB)

    async def story(world: World) -> None:
        offset = await appended(world, 12)
        refused_before = len(world.refusals())
        flood = [await world.connect() for _ in range(12)]
        for raw in flood:
            await raw.send(HELLO, subscription(world, offset))
        await trio.sleep(1)

        async with world.greeted() as raw:
            fetch = FetchRequest(group=world.group, offset=offset)
            await raw.send(encode_message(Kind.FETCH, fetch, 9))
            with trio.fail_after(1.0):
                frame = await raw.frame()
        assert frame is not None
        assert len(frame.body) >= 500 * KIB
        assert len(world.refusals()) == refused_before
        for raw in flood:
            raw.stream.abort()

    live(story)


def test_those_that_take_slowly_share_what_there_is_and_all_get_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room_bytes = 4 * MIB
    monkeypatch.setattr(server, "CLIENTS_SEND_BYTES_MAX", room_bytes)
    batches = 6

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        offset = await appended(world, batches)
        refused_before = len(world.refusals())
        is_over = trio.Event()
        most: list[int] = []

        async def look() -> None:
            most.append(await most_that_waits(broker, is_over))

        async def consume() -> None:
            async with world.greeted() as raw:
                await raw.send(subscription(world, offset))
                received = 0
                buffer = memoryview(bytearray(64 * KIB))
                while received < batches * 500 * KIB:
                    received += await raw.stream.receive_into(buffer)
                    await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            async with trio.open_nursery() as consuming:
                for _ in range(20):
                    consuming.start_soon(consume)
            is_over.set()
        assert room_bytes / 2 <= most[0] <= room_bytes + MIB
        assert len(world.refusals()) == refused_before

    live(story)


# --- content ----------------------------------------------------------------------------


def test_a_peer_operation_on_a_client_connection_closes_it_with_a_reason() -> None:
    async def story(world: World) -> None:
        for kind in PeerKind:
            async with world.greeted() as raw:
                await raw.send(frame_prefix(kind, 0, b"\x80", 3))
                assert await raw.frame() is None
            assert f"frame kind {int(kind)} " in world.refusals()[-1]

    live(story)


def test_a_client_that_greets_a_peer_listener_is_refused() -> None:
    async def story(world: World) -> None:
        raw = await world.connect(PEER_PORT)
        await raw.send(HELLO)
        await raw.closed_after(1.0)
        assert any("expected a greeting" in reason for reason in world.refusals())

    live(story)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\0\0\0\x03\x03\0\0\0\0\0\0\x01", "less than"),
        (b"\0\0\0\x09\x03\0\xff\xff\0\0\0\x01\x80", "less than"),
        (b"\x7f\xff\xff\xff\x03\0\0\0\0\0\0\x01", "limit"),
        (HELLO, "frame kind 1 "),
        *(
            (frame_prefix(Kind.METADATA, flags, b"\x80", 1), f"with flags {flags}")
            for flags in (FLAG_RESPONSE, FLAG_RESPONSE | FLAG_ERROR, FLAG_ERROR, FLAG_PUSH, 16)
        ),
    ],
    ids=["shorter-than-itself", "header-beyond-frame", "too-large", "second-hello",
         "response", "error-response", "error", "push", "unknown-flag"],
)  # fmt: skip
def test_a_frame_that_lies_about_itself_closes_the_connection(sent: bytes, reason: str) -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            await raw.send(sent)
            assert await raw.frame() is None
        assert any(reason in each for each in world.refusals())

    live(story)


def test_a_greeting_with_flags_closes_the_connection() -> None:
    async def story(world: World) -> None:
        for flags in (FLAG_RESPONSE, FLAG_ERROR, FLAG_PUSH, FLAG_LONG, 128):
            raw = await world.connect()
            await raw.send(HELLO[:5] + bytes([flags]) + HELLO[6:])
            assert await raw.frame() is None
            assert f"with flags {flags}" in world.refusals()[-1]

    live(story)


def test_a_greeting_longer_than_any_closes_the_connection_before_it_is_there() -> None:
    async def story(world: World) -> None:
        raw = await world.connect()
        await raw.send(frame_prefix(Kind.HELLO, 0, b"", 1, FRAME_UNAUTHENTICATED_BYTES_MAX))
        await raw.closed_after(1.0)
        assert str(FRAME_UNAUTHENTICATED_BYTES_MAX) in world.refusals()[-1]

    live(story)


def test_a_request_before_the_greeting_is_refused_with_a_code_of_the_protocol_and_closed() -> None:
    async def story(world: World) -> None:
        raw = await world.connect()
        await raw.send(encode_message(Kind.METADATA, MetadataRequest(), 2))
        refused = await raw.error()
        assert refused.code == InvalidRequestError.code
        assert "before the greeting" in refused.message
        assert await raw.frame() is None

    live(story)


def test_a_peers_frame_with_the_flags_of_an_answer_closes_the_connection() -> None:
    async def story(world: World) -> None:
        greeting = await greeting_of_a_dead_peer(world)
        for flags in (FLAG_RESPONSE, FLAG_ERROR, FLAG_PUSH, 64):
            raw = await greeted_as_peer(world, greeting)
            await raw.send(frame_prefix(PeerKind.PING, flags, b"\x80", 0))
            await raw.closed_after(1.0)
            assert f"with flags {flags} from a peer" in world.refusals()[-1]

    live(story, brokers=3)


def test_a_request_too_long_for_a_header_is_refused_and_the_connection_goes_on() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            for characters in (100_000, FRAME_BYTES_MAX - 100):
                request = DeleteTopicRequest(name="x" * characters)
                await raw.send(encode_message(Kind.DELETE_TOPIC, request, 2))
                refused = await raw.error()
                assert refused.code == InvalidRequestError.code
                assert "65535" in refused.message

    live(story)


def test_a_short_request_with_the_flag_long_is_told_of_the_flag_and_not_of_its_length() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            request = msgspec.msgpack.encode(MetadataRequest())
            await raw.send(frame_prefix(Kind.METADATA, FLAG_LONG, b"", 2, len(request)) + request)
            refused = await raw.error()
            assert refused.code == InvalidRequestError.code
            assert "a request may not be LONG" in refused.message

    live(story)


def test_a_subscription_that_begins_with_negative_credit_is_refused() -> None:
    """It would owe the broker bytes, and wait for ever for what it believes to have asked for."""

    async def story(world: World) -> None:
        async with world.greeted() as raw:
            request = SubscribeRequest(
                subscription=1, generation=1, group=world.group, credit_bytes=-1
            )
            await raw.send(encode_message(Kind.SUBSCRIBE, request, 2))
            refused = await raw.error()
            assert refused.code == InvalidRequestError.code
            assert "credit of -1 bytes" in refused.message

    live(story)


@pytest.mark.parametrize(
    ("kind", "credit"),
    [
        (Kind.CREDIT, Credit(subscription=1, generation=1, bytes=-1)),
        (Kind.WATCH_CREDIT, WatchCredit(watch=1, generation=1, bytes=-1)),
    ],
    ids=["subscription", "watch"],
)
def test_negative_credit_closes_the_connection_whether_or_not_it_is_for_anything(
    kind: Kind, credit: Message
) -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            await raw.send(encode_message(kind, credit, 0))
            assert await raw.frame() is None
        assert "credit of -1 bytes" in world.refusals()[-1]

    live(story)


def test_credit_too_long_for_a_header_closes_the_connection_because_it_has_no_answer() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            credit = msgspec.msgpack.encode(Credit(subscription=1, generation=1, bytes=1))
            await raw.send(frame_prefix(Kind.CREDIT, FLAG_LONG, b"", 0, len(credit)) + credit)
            assert await raw.frame() is None
        assert "may have 65535" in world.refusals()[-1]

    live(story)


def test_half_a_frame_and_then_the_end_is_refused_with_what_there_was() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            await raw.send(frame_prefix(Kind.PRODUCE, 0, b"", 3, body_bytes=70_000) + bytes(9_000))
        await trio.sleep(1)
        assert any("within a frame, after" in reason for reason in world.refusals())

    live(story)


def test_a_batch_whose_length_lies_is_refused_and_the_connection_goes_on() -> None:
    async def story(world: World) -> None:
        good = bytes(seal_batch(values=[b"v"], timestamps_ms=0))
        async with world.greeted() as raw:
            for body in (b"", good[:60], good[:-1], good + b"\0", good + good, bytes(len(good))):
                await raw.send(*world.produce(body))
                assert (await raw.error()).code == 36
            await raw.send(*world.produce(good))
            frame = await raw.frame()
            assert frame is not None
            assert not frame.is_error, frame.header

    live(story)


def test_a_compression_bomb_is_stored_and_served_but_only_a_reader_would_open_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **options: object) -> object:
        raise AssertionError("the broker decompresses")

    # Seven times what a batch may unfold to, behind a header that lies about it.
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(112 * MIB))
    lying = batch_with_payload(bomb, is_compressed=True, decoded_bytes=1000)

    async def story(world: World) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(zstandard, "ZstdDecompressor", refuse)
            patch.setattr(zstandard, "get_frame_parameters", refuse)
            async with world.greeted() as raw:
                await raw.send(*world.produce(lying))
                frame = await raw.frame()
                assert frame is not None
                assert not frame.is_error, frame.header
                offset = decode_message(ProduceResponse, frame.header).base_offset
                fetch = FetchRequest(group=world.group, offset=offset)
                await raw.send(encode_message(Kind.FETCH, fetch, 9))
                fetched = await raw.frame()
        assert fetched is not None
        [(_, stored)] = split_batches(memoryview(fetched.body))
        assert stored[32:] == lying[32:]
        with pytest.raises(MalformedBatchError, match="states"):
            decode_batch(stored)

    live(story)


# --- order ------------------------------------------------------------------------------


async def deliveries(raw: Raw, world: World, seconds: float) -> list[int]:
    """Generations of what is pushed within that time."""
    found: list[int] = []
    with trio.move_on_after(seconds):
        while (frame := await raw.frame()) is not None:
            if frame.kind == Kind.DELIVER:
                found.append(decode_message(Deliver, frame.header).generation)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_requests_about_one_subscription_are_carried_out_in_order_of_arrival(seed: int) -> None:
    """The first is looked up on the disk and takes its time; the last one counts."""

    async def story(world: World) -> None:
        await world.is_served()
        world.cluster.nodes[NodeId(1)].set_blocking(SLOW_DISK)
        async with world.greeted() as raw:
            ask = SubscribeRequest(
                subscription=1, generation=1, group=world.group, start="time", credit_bytes=1000
            )
            again = msgspec.structs.replace(ask, generation=2, start="earliest")
            await raw.send(
                encode_message(Kind.SUBSCRIBE, ask, 1), encode_message(Kind.SUBSCRIBE, again, 2)
            )
            assert set(await deliveries(raw, world, 5.0) or [0]) <= {1, 2}
            world.cluster.nodes[NodeId(1)].set_blocking(PROMPT_DISK)
            await world.is_served()
            assert await deliveries(raw, world, 1.0) == [2]

            await raw.send(
                encode_message(Kind.SUBSCRIBE, msgspec.structs.replace(ask, generation=3), 3),
                encode_message(Kind.UNSUBSCRIBE, UnsubscribeRequest(subscription=1), 4),
            )
            await deliveries(raw, world, 5.0)
            await world.is_served()
            assert await deliveries(raw, world, 1.0) == []

    live(story, seed)


@pytest.mark.parametrize("seed", range(3))
def test_requests_with_extreme_fields_are_answered_or_refused(seed: int) -> None:
    """Every kind, every field at the ends of what its type can say."""

    async def story(world: World) -> None:
        chance = random.Random(seed)
        for kind, cls in REQUEST_BY_KIND.items():
            for _ in range(12):
                raw = await world.connect()
                await raw.greet()
                fields = extreme(cls, world.group, chance)
                if cls is DeleteTopicRequest and fields.get("name") == TOPIC:
                    continue  # Asked for by its name, it would be gone, and rightly so.
                header = msgspec.msgpack.encode(fields)
                body = chance.randbytes(chance.choice((0, 0, 10, 200)))
                await raw.send(frame_prefix(kind, 0, header, 5, len(body)) + body)
                await raw.send(encode_message(Kind.METADATA, MetadataRequest(topics=[]), 6))
                with trio.move_on_after(2.0):
                    while (frame := await raw.frame()) is not None and frame.correlation_id != 6:
                        if frame.is_error:
                            said = decode_message(ErrorResponse, frame.header).message
                            assert NUMBERED_GROUP.search(said) is None, said
                raw.stream.abort()

    live(story, seed)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_conversations_end_no_more_than_their_own_connection(seed: int) -> None:
    seeds = [data[1:] for data in make_seeds()["client_message"].values() if len(data) < 500]

    async def story(world: World) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            raw = await world.connect(chance.choice((CLIENT_PORT, CLIENT_PORT, PEER_PORT)))
            frames = []
            for _ in range(chance.randint(1, 4)):
                header = mutate(seeds, chance)[:60_000]
                flags = chance.choice((0, 0, 0, FLAG_RESPONSE, FLAG_ERROR, FLAG_PUSH, FLAG_LONG))
                frames.append(frame_prefix(chance.randrange(20), flags, header, 5))
            data = b"".join(frames)
            if chance.randrange(3):
                data = HELLO + data
            if chance.randrange(3) == 0:
                data = mutate([data], chance)
            with suppress(OSError):
                await raw.send(data)
            with trio.move_on_after(chance.choice((0.01, 0.2))):
                while await raw.stream.receive_into(memoryview(bytearray(4096))):
                    pass
            raw.stream.abort()

    live(story, seed)


def extreme(cls: type[msgspec.Struct], group: int, chance: random.Random) -> dict[str, object]:
    """Fields of a message, each valid by its type and otherwise unreasonable."""
    hints = get_type_hints(cls)
    return {
        name: group if name == "group" and chance.randrange(4) else _extreme(hints[name], chance)
        for name in cls.__struct_fields__
        if chance.randrange(5)
    }


def _extreme(hint: object, chance: random.Random) -> object:
    choices = get_args(hint)
    if hint is int:
        return chance.choice((0, -1, 1, -(2**63), *NUMBERS))
    if hint is str:
        return chance.choice(("", TOPIC, ".", "..", "a/b", "\0", "x" * 5000, "\U0001f4a5"))
    if hint is bytes:
        return chance.randbytes(chance.choice((0, 5, 500)))
    if hint is bool:
        return bool(chance.randrange(2))
    if get_origin(hint) is list:
        return [_extreme(choices[0], chance) for _ in range(chance.choice((0, 1, 3)))]
    if get_origin(hint) is dict:
        return {str(_extreme(choices[0], chance)): _extreme(choices[1], chance) for _ in range(2)}
    if choices and all(isinstance(each, str) for each in choices):
        return chance.choice(choices)
    if type(None) in choices:
        return None if chance.randrange(3) == 0 else _extreme(choices[0], chance)
    return None
