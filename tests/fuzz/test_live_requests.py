"""A whole broker, and one connection that asks it frame by frame: what it answers, what it refuses,
and that one request keeps no other waiting."""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import trio

from logd import __version__
from logd.broker import request_room, subscriptions
from logd.broker.admin import ADMIN_HANDLERS
from logd.broker.broker import Broker
from logd.errors import (
    CorruptionError,
    FrameTooLargeError,
    InvalidBatchError,
    InvalidRequestError,
    NoRoomError,
    NotAuthorizedError,
    NotLeaderError,
    OffsetOutOfRangeError,
    ReplicaDamagedError,
    RequestError,
    RequestTimeoutError,
    SubscriptionLostError,
    UnavailableError,
    UnexpectedOffsetError,
    UnknownServerError,
    UnsupportedVersionError,
)
from logd.limits import (
    CLAIM_WAITS_PER_TICKET_MAX,
    CLIENTS_SEND_BYTES_MAX,
    DELIVERY_TIMEOUT_MS_MAX,
    DESCRIPTIONS_BEGUN_PER_TURN,
    FETCH_BYTES_MAX,
    FRAME_BYTES_MAX,
    KIB,
    REQUEST_TASKS_ALWAYS,
    REQUESTS_BEGUN_PER_TURN,
    REQUESTS_IN_FLIGHT_MAX,
)
from logd.record.batch import seal_batch, seal_entries, seal_opaque
from logd.record.compacted import make_gap
from logd.record.control import Trim, encode_control
from logd.record.header import BatchKind
from logd.replication.log_reader import LogReader
from logd.types import METADATA_GROUP, GroupId, NodeId, Offset, Term
from logd.wire.coordination import (
    COORDINATION_TOPIC,
    DEFAULT_NAMESPACE,
    ReadClaim,
    partition_of,
)
from logd.wire.frame import Frame, decode_message, encode_message
from logd.wire.messages import (
    PROTOCOL_VERSION,
    REQUEST_BY_KIND,
    Credit,
    Deliver,
    DescribePartitionRequest,
    DescribeRebalanceRequest,
    ErrorResponse,
    FetchRequest,
    FetchResponse,
    HelloRequest,
    HelloResponse,
    Kind,
    Message,
    MetadataRequest,
    OffsetsRequest,
    OffsetsResponse,
    ProduceRequest,
    QueryRequest,
    SubscribeRequest,
    SubscriptionEnded,
    UnsubscribeRequest,
)
from tests.fuzz.test_live_borders import TOPIC, Raw, World, appended, live

pytestmark = pytest.mark.sim

SMALL = bytes(seal_batch(values=[bytes(1_000)], timestamps_ms=0))


def produce(request: ProduceRequest, batch: bytes = SMALL) -> bytes:
    return encode_message(Kind.PRODUCE, request, 7, body_bytes=len(batch)) + batch


async def asks(raw: Raw, kind: Kind, request: Message, number: int = 1) -> Frame:
    """The next frame after a question; pushes are not expected."""
    await raw.send(encode_message(kind, request, number))
    frame = await raw.frame()
    assert frame is not None
    assert frame.correlation_id == number
    return frame


async def append(raw: Raw, world: World, batch: bytes = SMALL) -> int:
    """Where a batch begins that is appended."""
    await raw.send(produce(ProduceRequest(group=world.group), batch))
    return (await raw.answer()).base_offset


# --- greeting ---------------------------------------------------------------------------------


def test_a_broker_greets_with_who_it_is_and_what_may_be_asked() -> None:
    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        ours = broker.membership.cluster_id
        for hello in (
            HelloRequest(client="c"),
            HelloRequest(client="c", protocol_min=0, protocol_max=PROTOCOL_VERSION + 1),
            HelloRequest(client="c", cluster_id=ours),
        ):
            raw = await world.connect()
            frame = await asks(raw, Kind.HELLO, hello, number=3)
            assert not frame.is_error
            assert decode_message(HelloResponse, frame.header) == HelloResponse(
                protocol=PROTOCOL_VERSION,
                cluster_id=ours,
                node_id=1,
                version=__version__,
                kinds={int(kind): (1, 1) for kind in REQUEST_BY_KIND},
            )
            raw.stream.abort()

    live(story)


def test_who_speaks_another_protocol_or_looks_for_another_cluster_is_told_so_and_closed() -> None:
    """Its numbers of groups mean other partitions."""
    beyond = PROTOCOL_VERSION + 1

    async def story(world: World) -> None:
        for hello, refusal, said in (
            (
                HelloRequest(client="c", protocol_min=beyond, protocol_max=beyond + 1),
                UnsupportedVersionError,
                f"speaks protocol {beyond} to {beyond + 1}, this broker {PROTOCOL_VERSION}",
            ),
            (
                HelloRequest(client="c", protocol_min=0, protocol_max=PROTOCOL_VERSION - 1),
                UnsupportedVersionError,
                f"speaks protocol 0 to {PROTOCOL_VERSION - 1}, this broker",
            ),
            (HelloRequest(client="c", auth_mechanism="plain"), NotAuthorizedError, "'plain'"),
            (HelloRequest(client="c", cluster_id="another"), InvalidRequestError, "'another'"),
        ):
            raw = await world.connect()
            await raw.send(encode_message(Kind.HELLO, hello, 1))
            refused = await raw.error()
            assert refused.code == refusal.code
            assert said in refused.message
            assert await raw.frame() is None

    live(story)


# --- producing --------------------------------------------------------------------------------


def test_what_no_producer_may_write_is_refused_and_the_connection_goes_on() -> None:
    """A control batch of a client could trim a log, or change who replicates it."""
    gap = make_gap(Offset(0), Offset(1), term=Term(1), append_time_ms=0, group=GroupId(1))

    async def story(world: World) -> None:
        async with world.greeted() as raw:
            for batch in (
                seal_opaque(
                    encode_control(Trim(start_offset=Offset(1))),
                    kind=BatchKind.CONTROL,
                    timestamp_ms=0,
                ),
                seal_entries(msgspec.msgpack.encode([b"entry"]), count=1, timestamp_ms=0),
                gap,
            ):
                await raw.send(produce(ProduceRequest(group=world.group), bytes(batch)))
                refused = await raw.error()
                assert refused.code == InvalidBatchError.code
                assert "producers may not write" in refused.message
            assert await append(raw, world) > 0

    live(story)


def test_a_batch_that_was_damaged_on_the_way_is_refused_and_the_connection_goes_on() -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            for position in (60, len(SMALL) - 1):
                damaged = bytearray(SMALL)
                damaged[position] ^= 1
                await raw.send(produce(ProduceRequest(group=world.group), bytes(damaged)))
                refused = await raw.error()
                assert refused.code == InvalidBatchError.code
                assert "not intact" in refused.message
            assert await append(raw, world) > 0

    live(story)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"timeout_ms": 0}, "timeout_ms is 0"),
        ({"timeout_ms": DELIVERY_TIMEOUT_MS_MAX + 1}, "timeout_ms is "),
        ({"expected_offset": -1}, "expected_offset is -1"),
        ({"group": METADATA_GROUP}, "takes commands, not records"),
    ],
)
def test_a_produce_request_that_makes_no_sense_is_refused_and_the_connection_goes_on(
    fields: dict[str, int], said: str
) -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            request = msgspec.structs.replace(ProduceRequest(group=world.group), **fields)
            await raw.send(produce(request))
            refused = await raw.error()
            assert refused.code == InvalidRequestError.code
            assert said in refused.message
            longest = ProduceRequest(
                group=world.group, timeout_ms=DELIVERY_TIMEOUT_MS_MAX, expected_offset=10**6
            )
            await raw.send(produce(longest))
            assert (await raw.error()).code == UnexpectedOffsetError.code
            assert await append(raw, world) > 0

    live(story)


def test_a_producer_is_answered_in_the_time_it_gave_though_its_batch_is_not_committed() -> None:
    """And what was refused holds none of the memory for produce requests."""

    async def story(world: World) -> None:
        leader = world.cluster.nodes[await world._leader()]
        assert leader.broker is not None
        others = [node for node in world.cluster.nodes.values() if node is not leader]
        async with world.greeted(leader.node) as raw:
            for node in others:
                await node.crash(power=False)
            began = trio.current_time()
            await raw.send(produce(ProduceRequest(group=world.group, timeout_ms=700)))
            refused = await raw.error()
            took = trio.current_time() - began
            group = leader.groups[GroupId(world.group)]
            below = FetchRequest(group=world.group, offset=-1, any_replica=True)
            outside = decode_message(ErrorResponse, (await asks(raw, Kind.FETCH, below)).header)
            await raw.send(produce(ProduceRequest(group=world.group, timeout_ms=100)))
            await raw.error()
            times = []
            for time_ms in (group.state.last_append_time_ms, 10**15):
                at = OffsetsRequest(group=world.group, time_ms=time_ms, any_replica=True)
                found = decode_message(OffsetsResponse, (await asks(raw, Kind.OFFSETS, at)).header)
                times.append(found.time_offset)

        assert refused.code == RequestTimeoutError.code
        assert refused.may_have_applied
        assert 0.6 < took < 1.5
        assert outside.details == {"log_start": 0, "log_end": group.commit_offset}
        assert times == [group.commit_offset] * 2
        assert group.commit_offset + 2 == group.log.end_offset
        assert leader.broker.budget.bytes == 0
        for node in others:
            node.start()

    live(story, brokers=3)


# --- fetching ---------------------------------------------------------------------------------


def test_a_fetch_at_the_end_waits_for_what_is_committed_and_no_longer_than_it_wants_to() -> None:
    async def story(world: World) -> None:
        group = world.cluster.nodes[NodeId(1)].groups[GroupId(world.group)]
        async with world.greeted() as raw, world.greeted() as other:
            end = await append(other, world) + 1
            watchers = len(group._watchers)
            ask = FetchRequest(group=world.group, offset=end, wait_ms=5_000)

            began = trio.current_time()
            frame = await asks(raw, Kind.FETCH, ask)
            answer = decode_message(FetchResponse, frame.header)
            assert (answer.next_offset, answer.commit_offset, frame.body) == (end, end, b"")
            assert 4.9 < trio.current_time() - began < 6

            began = trio.current_time()
            await raw.send(encode_message(Kind.FETCH, ask, 1))
            await trio.sleep(1)
            assert await append(other, world) == end
            found = await raw.frame()
            assert found is not None
            assert decode_message(FetchResponse, found.header).next_offset == end + 1
            assert len(found.body) == len(SMALL)
            assert trio.current_time() - began < 2

            began = trio.current_time()
            at_once = await asks(raw, Kind.FETCH, ask)  # By now there is something.
            assert at_once.body == found.body
            assert trio.current_time() - began < 1
            assert len(group._watchers) == watchers

            await append(other, world)
            few = FetchRequest(group=world.group, offset=end, bytes_max=2 * len(SMALL) - 1)
            assert (await asks(raw, Kind.FETCH, few)).body == found.body

    live(story)


def test_a_log_ends_where_its_data_does_and_a_time_that_nothing_is_of_yet_is_its_end() -> None:
    async def story(world: World) -> None:
        group = world.cluster.nodes[NodeId(1)].groups[GroupId(world.group)]
        async with world.greeted() as raw:

            async def look(time_ms: int) -> OffsetsResponse:
                request = OffsetsRequest(group=world.group, time_ms=time_ms)
                return decode_message(
                    OffsetsResponse, (await asks(raw, Kind.OFFSETS, request)).header
                )

            empty = await look(time_ms=0)
            await raw.send(produce(ProduceRequest(group=world.group)))
            appended_there = await raw.answer()
            told = await look(time_ms=10**15)

        assert (empty.data_end, empty.time_offset) == (0, 0)
        assert empty.commit_offset == appended_there.base_offset > 0  # It began with a control.
        assert told.data_end == told.commit_offset == told.time_offset == appended_there.end_offset
        assert appended_there.append_time_ms == group.state.last_append_time_ms > 0

    live(story)


@pytest.mark.parametrize(
    ("fields", "refusal", "said"),
    [
        ({"bytes_max": 0}, InvalidRequestError, "bytes_max is 0"),
        ({"bytes_max": FETCH_BYTES_MAX + 1}, InvalidRequestError, "bytes_max is"),
        ({"wait_ms": -1}, InvalidRequestError, "wait_ms is -1"),
        ({"wait_ms": 60_001}, InvalidRequestError, "wait_ms is 60001"),
        ({"offset": -1}, OffsetOutOfRangeError, "offset -1 is outside"),
        ({"offset": 10**6, "wait_ms": 60_000}, OffsetOutOfRangeError, "is outside the log"),
    ],
)
def test_a_fetch_that_makes_no_sense_is_refused_at_once(
    fields: dict[str, int], refusal: type[RequestError], said: str
) -> None:
    async def story(world: World) -> None:
        async with world.greeted() as raw:
            end = await append(raw, world) + 1
            request = msgspec.structs.replace(FetchRequest(group=world.group, offset=0), **fields)
            began = trio.current_time()
            frame = await asks(raw, Kind.FETCH, request)
            assert trio.current_time() - began < 1
            assert frame.is_error
            refused = decode_message(ErrorResponse, frame.header)
            assert refused.code == refusal.code
            assert said in refused.message
            if refusal is OffsetOutOfRangeError:
                assert refused.details == {"log_start": 0, "log_end": end}

    live(story)


def test_a_replica_that_does_not_lead_gives_what_it_knows_to_be_committed_and_no_more() -> None:
    """What lies above may well be committed: it is to be asked again."""

    async def story(world: World) -> None:
        leader = await world._leader()
        async with world.greeted(leader) as raw:
            end = await append(raw, world) + 1
        follower = next(node for node in world.cluster.nodes if node != leader)
        async with world.greeted(follower) as raw:
            group = world.cluster.nodes[follower].groups[GroupId(world.group)]
            while group.commit_offset < end:
                await trio.sleep(0.1)
            request = FetchRequest(group=world.group, offset=end, any_replica=True)
            told = []
            for offset in (end - 1, end, end + 1):
                request = msgspec.structs.replace(request, offset=offset)
                frame = await asks(raw, Kind.FETCH, request)
                if frame.is_error:
                    told.append(decode_message(ErrorResponse, frame.header).code)
                else:
                    told.append(decode_message(FetchResponse, frame.header).next_offset)
            assert told == [end, end, UnavailableError.code]

            led = msgspec.structs.replace(request, any_replica=False)
            refused = decode_message(ErrorResponse, (await asks(raw, Kind.FETCH, led)).header)
            assert (refused.code, refused.details) == (NotLeaderError.code, {"leader": leader})

    live(story, brokers=3)


def test_any_number_of_fetches_that_wait_keep_no_answer_from_the_same_client() -> None:
    """Room is taken for what is found, and not while there is nothing to be found."""

    async def story(world: World) -> None:
        async with world.greeted() as raw:
            begin = await append(raw, world)
            end = begin + 1
            wait = FetchRequest(group=world.group, offset=end, wait_ms=60_000)
            await raw.send(*(encode_message(Kind.FETCH, wait, 1) for _ in range(100)))
            await trio.sleep(1)

            began = trio.current_time()
            now = FetchRequest(group=world.group, offset=begin, wait_ms=60_000)
            frame = await asks(raw, Kind.FETCH, now, number=2)
            assert len(frame.body) == len(SMALL)
            assert trio.current_time() - began < 1

    live(story)


def test_no_more_requests_are_read_than_may_wait_and_the_others_when_those_are_answered() -> None:
    wait_ms = 2_000

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.greeted() as raw:
            end = await append(raw, world) + 1
            (client,) = (each for each in broker.sessions if each.is_there())
            wait = FetchRequest(group=world.group, offset=end, wait_ms=wait_ms)
            count = 2 * REQUESTS_IN_FLIGHT_MAX + 10
            await raw.send(b"".join(encode_message(Kind.FETCH, wait, n) for n in range(count)))
            await trio.sleep(1)
            assert client._in_flight == REQUESTS_IN_FLIGHT_MAX

            answered = [await raw.frame() for _ in range(count)]

            assert sorted(frame.correlation_id for frame in answered if frame) == [*range(count)]
            assert client._in_flight == 0

    live(story)


def test_many_who_ask_for_much_have_a_bounded_number_of_requests_read_and_all_of_them_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each takes a task: a thousand of each of thousands would be gigabytes."""
    clients, count, bound = 20, 60, 100
    monkeypatch.setattr(request_room, "REQUEST_TASKS_MAX", bound)

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(world.greeted()) for _ in range(clients)]
            end = await append(raws[0], world) + 1
            wait = FetchRequest(group=world.group, offset=end, wait_ms=1_000)
            asked = b"".join(encode_message(Kind.FETCH, wait, n) for n in range(count))
            for raw in raws:
                await raw.send(asked)
            await trio.sleep(0.5)
            assert bound <= broker.requests.tasks <= bound + clients * REQUEST_TASKS_ALWAYS

            for raw in raws:
                answered = [await raw.frame() for _ in range(count)]
                assert sorted(frame.correlation_id for frame in answered if frame) == [
                    *range(count)
                ]
            longer = FetchRequest(group=world.group, offset=end, wait_ms=60_000)
            await raws[0].send(encode_message(Kind.FETCH, longer, 1))
            await trio.sleep(0.5)
            assert broker.requests.tasks == 1
        await trio.sleep(1)  # Who leaves meanwhile leaves nothing behind.
        assert broker.requests.tasks == 0

    live(story)


def test_who_is_not_read_while_others_ask_for_much_is_read_when_those_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own requests may take a minute."""
    bound = 20
    monkeypatch.setattr(request_room, "REQUEST_TASKS_MAX", bound)

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.greeted() as raw, world.greeted() as other:
            end = await append(raw, world) + 1
            short = FetchRequest(group=world.group, offset=end, wait_ms=2_000)
            await other.send(*(encode_message(Kind.FETCH, short, n) for n in range(bound)))
            await trio.sleep(0.5)
            long = encode_message(Kind.FETCH, msgspec.structs.replace(short, wait_ms=60_000), 1)
            await raw.send(
                *[long] * REQUEST_TASKS_ALWAYS, encode_message(Kind.METADATA, MetadataRequest(), 2)
            )
            await trio.sleep(0.5)
            assert broker.requests.tasks == bound + REQUEST_TASKS_ALWAYS

            with trio.fail_after(2):
                frame = await raw.frame()
            assert frame is not None
            assert (frame.kind, frame.correlation_id) == (Kind.METADATA, 2)

    live(story)


def test_any_number_who_wait_for_a_lock_keep_nobody_from_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Namespaces have room for 50,000 tickets each, and what waits for one is no task."""
    bound = CLAIM_WAITS_PER_TICKET_MAX - 2
    assert bound > REQUEST_TASKS_ALWAYS
    monkeypatch.setattr(request_room, "REQUEST_TASKS_MAX", bound)

    async def story(world: World) -> None:
        async with world.cluster.client() as holder, world.cluster.client() as other:
            homes = (await holder.admin.describe_topic(COORDINATION_TOPIC)).partitions
            home = homes[partition_of(DEFAULT_NAMESPACE, len(homes))].group
            async with holder.lock("l") as lease, world.greeted() as raw:
                ticket = 0

                async def wait() -> None:
                    async with other.lock("l"):
                        raise AssertionError

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    while not ticket:
                        await trio.sleep(0.1)
                        waiting = (await holder.lock("l").holders()).waiting
                        ticket = waiting[0].ticket if waiting else 0
                    claim = msgspec.msgpack.encode(ReadClaim(kind="lock", name="l", ticket=ticket))
                    request = QueryRequest(group=home, namespace=DEFAULT_NAMESPACE, wait_ms=60_000)
                    question = encode_message(Kind.QUERY, request, 1, len(claim)) + claim
                    await raw.send(question * (bound + 1))
                    with trio.fail_after(1):
                        await asks(raw, Kind.METADATA, MetadataRequest(), number=2)
                    assert not lease.is_lost
                    nursery.cancel_scope.cancel()

    live(story)


@pytest.mark.parametrize(
    ("kind", "request_", "at_once"),
    [
        (Kind.METADATA, MetadataRequest(), DESCRIPTIONS_BEGUN_PER_TURN),
        (Kind.DESCRIBE_PARTITION, DescribePartitionRequest(group=0), REQUESTS_BEGUN_PER_TURN),
    ],
)
def test_requests_that_come_at_once_keep_the_event_loop_from_nothing_else(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, request_: Message, at_once: int
) -> None:
    count = 500
    turn = 0
    begun: list[int] = []
    answer = ADMIN_HANDLERS[kind]

    async def count_turns() -> None:
        nonlocal turn
        while len(begun) < count:
            await trio.lowlevel.checkpoint()
            turn += 1

    async def story(world: World) -> None:
        async with world.greeted() as raw, trio.open_nursery() as nursery:

            async def describe(broker: Broker, request: Any) -> Message:
                if not begun:
                    nursery.start_soon(count_turns)
                begun.append(turn)
                return await answer(broker, request)

            monkeypatch.setitem(ADMIN_HANDLERS, kind, describe)
            asked = [encode_message(kind, request_, n) for n in range(count)]
            await raw.send(b"".join(asked))
            for _ in range(count):
                await raw.frame()

    live(story)
    assert len(begun) >= count
    # Those who count and those who begin take their turns in any order.
    assert max(Counter(begun).values()) <= 4 * at_once


def test_whatever_is_asked_leaves_its_place_to_the_next_when_it_is_answered() -> None:
    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.greeted() as raw:
            end = await append(raw, world) + 1
            (client,) = (each for each in broker.sessions if each.is_there())
            ask = SubscribeRequest(subscription=1, generation=1, group=world.group, start="latest")
            room = client._answer_room
            for kind, request, is_refused in (
                (Kind.METADATA, MetadataRequest(), False),
                (Kind.FETCH, FetchRequest(group=world.group, offset=0), False),
                (Kind.FETCH, FetchRequest(group=world.group, offset=end + 1), True),
                (Kind.FETCH, FetchRequest(group=10**6, offset=0), True),
                (Kind.SUBSCRIBE, ask, False),
                (Kind.SUBSCRIBE, msgspec.structs.replace(ask, group=10**6), True),
                (Kind.UNSUBSCRIBE, UnsubscribeRequest(subscription=1), False),
                (Kind.PRODUCE, ProduceRequest(group=world.group), True),
            ):
                assert (await asks(raw, kind, request)).is_error == is_refused, request
                assert (client._in_flight, room._taken_bytes) == (0, 0), request
                assert client.subscriptions._turns == {}
            assert broker.sends.bytes == broker.budget.bytes == 0

    live(story)


def test_a_command_and_a_question_to_coordination_leave_their_place_when_they_are_answered() -> (
    None
):
    """Or a client that has asked so often were never read from again."""

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.cluster.client() as client:
            keys = client.kv()
            for _ in range(3):
                await keys.put(b"key", b"value")
                assert await keys.get(b"key") is not None

            assert {each._in_flight for each in broker.sessions} == {0}
        assert broker.sends.bytes == broker.budget.bytes == 0

    live(story)


def test_what_is_too_much_for_one_answer_is_refused_and_the_connection_goes_on() -> None:
    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        broker.autonomy_notes = ["n" * KIB] * (FRAME_BYTES_MAX // KIB)
        async with world.greeted() as raw:
            frame = await asks(raw, Kind.DESCRIBE_REBALANCE, DescribeRebalanceRequest())
            assert frame.is_error
            assert decode_message(ErrorResponse, frame.header).code == FrameTooLargeError.code
            broker.autonomy_notes = []
            frame = await asks(raw, Kind.DESCRIBE_REBALANCE, DescribeRebalanceRequest())
            assert not frame.is_error

    live(story)


@pytest.mark.parametrize(
    ("met", "refusal", "end"),
    [
        (OSError(errno.EIO, "simulated"), UnknownServerError, SubscriptionLostError),
        (NoRoomError("no descriptor"), UnavailableError, SubscriptionLostError),
        (CorruptionError("rotten"), ReplicaDamagedError, ReplicaDamagedError),
    ],
)
def test_what_cannot_be_read_is_told_to_who_reads_it_and_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    met: Exception,
    refusal: type[RequestError],
    end: type[RequestError],
) -> None:
    async def fail(*_: object) -> None:
        raise met

    async def story(world: World) -> None:
        fetch = FetchRequest(group=world.group, offset=0)
        async with world.greeted() as raw:
            await append(raw, world)
            with monkeypatch.context() as patch:
                patch.setattr(LogReader, "read_committed", fail)
                frame = await asks(raw, Kind.FETCH, fetch)
                assert frame.is_error
                assert decode_message(ErrorResponse, frame.header).code == refusal.code
                ask = SubscribeRequest(
                    subscription=1, generation=4, group=world.group, credit_bytes=1
                )
                assert not (await asks(raw, Kind.SUBSCRIBE, ask)).is_error
                ended = await raw.frame()
                assert ended is not None
                said = decode_message(SubscriptionEnded, ended.header)
                assert (said.subscription, said.generation) == (1, 4)
                assert said.error.code == end.code
            assert not (await asks(raw, Kind.FETCH, fetch)).is_error

    live(story)


# --- subscribing ------------------------------------------------------------------------------


async def delivered(raw: Raw, seconds: float = 1.0) -> list[Deliver]:
    """What is pushed within that time."""
    found: list[Deliver] = []
    with trio.move_on_after(seconds):
        while (frame := await raw.frame()) is not None:
            assert frame.kind == Kind.DELIVER
            found.append(decode_message(Deliver, frame.header))
    return found


def test_deliveries_go_as_far_as_the_credit_and_on_only_when_there_is_more_of_it() -> None:
    """A batch is not divided: what it took beyond the credit has to be made up for."""

    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.greeted() as raw:
            begin = await append(raw, world)
            for _ in range(9):
                await append(raw, world)
            ask = SubscribeRequest(
                subscription=1,
                generation=2,
                group=world.group,
                start="offset",
                value=begin,
                credit_bytes=2 * len(SMALL) + 1,
            )
            assert not (await asks(raw, Kind.SUBSCRIBE, ask)).is_error
            assert [each.next_offset - begin for each in await delivered(raw)] == [2, 3]

            async def next_offsets(credit_bytes: int, generation: int = 2) -> list[int]:
                credit = Credit(subscription=1, generation=generation, bytes=credit_bytes)
                await raw.send(encode_message(Kind.CREDIT, credit, 0))
                return [each.next_offset - begin for each in await delivered(raw)]

            assert await next_offsets(len(SMALL) - 1) == []
            assert await next_offsets(10**6, generation=1) == []
            assert await next_offsets(10**6, generation=3) == []
            assert await next_offsets(1) == [4]
            assert await next_offsets(2 * len(SMALL) - 1) == [5]
            assert await next_offsets(10**6) == [10]
            assert broker.sends.bytes == 0

    live(story)


def test_subscriptions_of_one_connection_take_turns_delivery_by_delivery() -> None:
    keys = (1, 2, 3)

    async def story(world: World) -> None:
        begin = await appended(world, 4)
        async with world.greeted() as raw:
            for key in keys:
                ask = SubscribeRequest(
                    subscription=key,
                    generation=1,
                    group=world.group,
                    start="offset",
                    value=begin,
                    credit_bytes=0,
                )
                assert not (await asks(raw, Kind.SUBSCRIBE, ask)).is_error
            more = [Credit(subscription=key, generation=1, bytes=10**7) for key in keys]
            await raw.send(b"".join(encode_message(Kind.CREDIT, each, 0) for each in more))
            assert [each.subscription for each in await delivered(raw)] == [*keys] * 4

    live(story)


def test_a_connection_has_so_many_subscriptions_and_may_replace_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriptions, "SUBSCRIPTIONS_PER_CONNECTION_MAX", 3)

    async def story(world: World) -> None:
        group = world.cluster.nodes[NodeId(1)].groups[GroupId(world.group)]
        watchers = len(group._watchers)
        async with world.greeted() as raw:

            async def subscribe(key: int, generation: int = 1) -> Frame:
                ask = SubscribeRequest(
                    subscription=key, generation=generation, group=world.group, start="latest"
                )
                return await asks(raw, Kind.SUBSCRIBE, ask)

            for key in (1, 2, 3):
                assert not (await subscribe(key)).is_error
            refused = await subscribe(4)
            assert refused.is_error
            assert "3 subscriptions" in decode_message(ErrorResponse, refused.header).message

            assert not (await subscribe(2, generation=2)).is_error
            assert len(group._watchers) == watchers + 3

            await asks(raw, Kind.UNSUBSCRIBE, UnsubscribeRequest(subscription=1))
            assert len(group._watchers) == watchers + 2
            assert not (await subscribe(4)).is_error

    live(story)


def test_a_subscription_may_be_given_up_while_it_waits_for_others_to_take_what_they_are_sent() -> (
    None
):
    async def story(world: World) -> None:
        broker = world.cluster.nodes[NodeId(1)].broker
        assert broker is not None
        async with world.greeted() as raw:
            await append(raw, world)
            broker.sends.bytes += CLIENTS_SEND_BYTES_MAX
            ask = SubscribeRequest(
                subscription=1, generation=1, group=world.group, credit_bytes=10**6
            )
            assert not (await asks(raw, Kind.SUBSCRIBE, ask)).is_error
            await asks(raw, Kind.UNSUBSCRIBE, UnsubscribeRequest(subscription=1))
            broker.sends.less(CLIENTS_SEND_BYTES_MAX)
            assert await delivered(raw) == []

            assert not (await asks(raw, Kind.SUBSCRIBE, ask)).is_error
            assert len(await delivered(raw)) == 1

    live(story)


def test_a_subscription_ends_with_the_leadership_and_one_to_any_replica_does_not() -> None:
    async def story(world: World) -> None:
        leader = world.cluster.nodes[await world._leader()]
        async with world.greeted(leader.node) as raw:
            for key, any_replica in ((1, False), (2, True)):
                ask = SubscribeRequest(
                    subscription=key,
                    generation=5,
                    group=world.group,
                    start="latest",
                    any_replica=any_replica,
                    credit_bytes=10**6,
                )
                assert not (await asks(raw, Kind.SUBSCRIBE, ask)).is_error
            async with world.cluster.client() as client:
                other = next(node for node in world.cluster.nodes if node != leader.node)
                await client.admin.transfer_leader(TOPIC, 0, other)

            frame = await raw.frame()
            assert frame is not None
            assert frame.kind == Kind.SUBSCRIPTION_ENDED
            ended = decode_message(SubscriptionEnded, frame.header)
            assert (ended.subscription, ended.generation) == (1, 5)
            assert ended.error.code == NotLeaderError.code
            async with world.greeted(await world._leader()) as other_raw:
                await append(other_raw, world)
            assert {each.subscription for each in await delivered(raw, 2.0)} == {2}

    live(story, brokers=3)
