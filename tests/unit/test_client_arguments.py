"""Arguments of the wrong kind are refused where they are given, by name, with what was found."""

from __future__ import annotations

import datetime
import random
from collections.abc import Awaitable, Callable
from datetime import UTC
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from logd.errors import UnknownTopicError, UsageError
from logd.limits import ADMIN_TIMEOUT_MS_MAX, COORDINATION_TIMEOUT_MS_MAX
from logd.types import HostPort, Offset
from logd.wire.coordination import Delete, Get, Increment
from logd.wire.messages import PartitionInfo, TopicInfo
from logd_client import Client, connect, consumer, sync, sync_coordination
from logd_client.accumulator import checked_headers
from logd_client.admin import Admin
from logd_client.arguments import require_list
from logd_client.background import Background, task_group
from logd_client.consumer import Consumer
from logd_client.consumer_options import ConsumerOptions
from logd_client.coordination.calls import Calls
from logd_client.coordination.fences import Fence, raise_fences, require_topics
from logd_client.coordination.surface import Coordination
from logd_client.coordination.watches import Watch
from logd_client.environment import Environment, wall_clock_ms
from logd_client.producer import Producer, ProducerOptions
from logd_client.routing import Routing
from logd_client.transport import TcpTransport

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"linger_ms": "5"}, "linger_ms must be a number, not '5'"),
        ({"linger_ms": -1}, "linger_ms must be 0 to"),
        ({"linger_ms": float("nan")}, "linger_ms must be 0 to"),
        (
            {"linger_ms": 500, "delivery_timeout_ms": 500},
            "linger_ms must be less than delivery_timeout_ms, 500, not 500",
        ),
        ({"batch_bytes": 0}, "batch_bytes must be 1024 to"),
        ({"batch_bytes": 1e6}, "batch_bytes must be an int, not 1000000.0"),
        ({"compression": "gzip"}, "compression must be one of none, zstd, not 'gzip'"),
        ({"delivery_timeout_ms": None}, "delivery_timeout_ms must be an int, not None"),
    ],
)
def test_a_producer_option_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        ProducerOptions(**options)

    assert told in str(caught.value)
    assert "ProducerOptions" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"partitions": 0}, "partitions must be a list of ints, not 0"),
        ({"partitions": ["0"]}, "a partition must be an int, not '0'"),
        ({"partitions": []}, "partitions must not be empty"),
        ({"start": {"0": 5}}, "a partition must be an int, not '0'"),
        ({"start": {}}, "must name at least one"),
        ({"start": 2**63}, "offsets are 0 to"),
        ({"credit_bytes": 1}, "credit_bytes must be"),
        ({"on_malformed": "ignore"}, "on_malformed must be one of raise, skip, not 'ignore'"),
        ({"from_replica": "1"}, "from_replica must be an int, not '1'"),
    ],
)
def test_a_consumer_option_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        ConsumerOptions(**options)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"connect_timeout_ms": "5"},
        {"request_timeout_ms": 0},
        {"request_timeout_ms": 10**400},
        {"client_id": 5},
        {"bootstrap": None},
    ],
)
def test_what_connect_is_given_is_checked_before_anything_is_connected_to(
    options: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        connect(**options)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda admin: admin.create_topic(5), "a topic's name must be a str, not 5"),
        (lambda admin: admin.create_topic("bad\udcff"), "surrogates not allowed"),
        (
            lambda admin: admin.create_topic("t", config={"retention_ms": 5}),
            "the topic option retention_ms must be a str, not 5",
        ),
        (
            lambda admin: admin.create_topic("t", config=["a=b"]),
            "config must be a dict of topic options, not ['a=b']",
        ),
        (
            lambda admin: admin.alter_topic("t", {"retention_ms": 5}),
            "the topic option retention_ms must be a str, not 5",
        ),
        (lambda admin: admin.delete_topic(None), "a topic's name must be a str"),
        (lambda admin: admin.describe_topic(3), "a topic's name must be a str"),
        (lambda admin: admin.describe_partition("t", "0"), "a partition must be an int, not '0'"),
        (lambda admin: admin.describe_broker("1"), "a broker's id must be an int, not '1'"),
        (lambda admin: admin.transfer_leader("t", 0, "2"), "target must be an int, not '2'"),
        (lambda admin: admin.alter_broker(1, "stop"), "action must be one of drain, remove, resum"),
        (lambda admin: admin.start_plan(None, 1, []), "purpose must be a str, not None"),
        (lambda admin: admin.start_plan("p", True, []), "layout_version must be an int, not True"),
        (lambda admin: admin.start_plan("p", 1, 5), "moves must be a list, not 5"),
        (lambda admin: admin.start_plan("p", 1, [5]), "a move must be a PlannedMoveInfo, not 5"),
        (lambda admin: admin.set_rebalancing(throttle_bytes_per_s=1e6), "throttle_bytes_per_s mu"),
        (
            lambda admin: admin.set_rebalancing(concurrency="4"),
            "concurrency must be an int",
        ),
        (lambda admin: admin.set_rebalancing(autonomous=1), "autonomous must be True or False"),
        (
            lambda admin: admin.trim_partition("t", 0, "earliest"),
            "before must be an offset or an aware datetime, not 'earliest'",
        ),
        (lambda admin: admin.trim_partition("t", 0, -1), "start=-1: offsets are 0 to"),
        (lambda admin: admin.offsets("t", 0, at=17), "at must be an aware datetime, not 17"),
        (
            lambda admin: admin.offsets("t", 0, at=datetime.datetime(2026, 1, 1)),
            "2026-01-01T00:00:00 has no time zone",
        ),
    ],
)
async def test_an_administrator_is_told_which_argument_is_wrong(
    call: Callable[[Admin], Any], told: str, anyio_backend: object
) -> None:
    async with anyio.create_task_group() as tasks:
        routing = routing_with(Background(tasks))

        with pytest.raises(UsageError) as caught:
            await call(Admin(routing))

    assert told in str(caught.value)


class PatientRouting(Routing):
    """Of a client that waits longer for an answer than brokers work on a request."""

    request_timeout_s = 7200.0

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def call(self, target: object, message: Any, *_: object, **__: object) -> Any:
        self.asked.append(message)
        raise UnknownTopicError("no topic 't'")

    async def describe_topic(self, name: str, *_: object) -> TopicInfo:
        row = PartitionInfo(partition=0, group=1, replicas=[1])
        return TopicInfo(name=name, topic_id=1, partitions=[row])


@pytest.mark.parametrize(
    ("call", "limit_ms"),
    [
        (lambda routing: Admin(routing).delete_topic("t"), ADMIN_TIMEOUT_MS_MAX),
        (lambda routing: raise_fences(routing, ["t"], Fence(9, 4)), COORDINATION_TIMEOUT_MS_MAX),
    ],
)
async def test_a_patient_client_asks_for_no_more_time_than_brokers_give(
    call: Callable[[Routing], Any], limit_ms: int, anyio_backend: object
) -> None:
    routing = PatientRouting()

    with pytest.raises(UnknownTopicError):
        await call(routing)

    assert [message.timeout_ms for message in routing.asked] == [limit_ms]


def routing_with(background: Background) -> Routing:
    """Of a client that has not met any broker."""
    return Routing(
        [HostPort("127.0.0.1", 1)],
        Environment(TcpTransport(), anyio.current_time, wall_clock_ms, random.Random(1)),
        background,
        client_id="test",
        connect_timeout_s=1,
        request_timeout_s=1,
    )


async def test_a_closed_client_says_that_it_is_closed(anyio_backend: object) -> None:
    async with anyio.create_task_group() as tasks:
        routing = routing_with(Background(tasks))
        admin = Admin(routing)
        routing.close()

        with pytest.raises(UsageError, match="the client is closed"):
            await admin.list_topics()


@pytest.mark.parametrize(
    "opened",
    [
        lambda routing: Producer(routing, "t", ProducerOptions(idempotent=False)),
        lambda routing: Consumer(routing, "t", ConsumerOptions(start="earliest")),
    ],
)
async def test_what_is_opened_on_a_client_closed_meanwhile_says_so_and_does_not_wait_for_ever(
    opened: Callable[[Routing], Producer | Consumer], anyio_backend: object
) -> None:
    async with task_group() as tasks:
        background = Background(tasks)
        routing = routing_with(background)
        row = PartitionInfo(partition=0, group=1, replicas=[1])
        routing.view.learn_topic(TopicInfo(name="t", topic_id=1, partitions=[row]))
        made = opened(routing)
        routing.close()

        try:
            with pytest.raises(UsageError, match="the client is closed"):
                await made.__aenter__()
        finally:
            background.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda routing: Producer(routing, "t", ProducerOptions()).append(b"v"),
        lambda routing: Consumer(routing, "t", ConsumerOptions()).next_batch(),
        lambda routing: Watch(Calls(routing), "default", "key", b"", None, None).next(),
    ],
)
async def test_what_was_not_entered_says_so_to_those_who_block_too(
    use: Callable[[Routing], Awaitable[object]], anyio_backend: object
) -> None:
    async with task_group() as tasks:
        background = Background(tasks)
        try:
            with pytest.raises(UsageError, match=r"not open: .*`with` in logd_client\.sync"):
                await use(routing_with(background))
        finally:
            background.close()


async def test_a_consumer_whose_client_is_closed_while_it_asks_for_its_stop_says_so(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    async def describe(name: str, *, as_it_is_now: bool) -> TopicInfo:
        row = PartitionInfo(partition=0, group=1, replicas=[1])
        return TopicInfo(name=name, topic_id=1, partitions=[row])

    async def close_and_tell(routing: Routing, *_: object) -> dict[int, Offset]:
        routing.close()
        return {0: Offset(5)}

    monkeypatch.setattr(consumer, "data_ends", close_and_tell)
    async with task_group() as tasks:
        background = Background(tasks)
        routing = routing_with(background)
        monkeypatch.setattr(routing, "topic", describe)
        made = Consumer(routing, "t", ConsumerOptions(start="earliest", stop="latest"))
        try:
            with pytest.raises(UsageError, match="the client is closed"):
                await made.__aenter__()
        finally:
            background.close()


async def test_a_client_that_was_not_entered_says_so(anyio_backend: object) -> None:
    client: Client = connect("127.0.0.1:1")

    with pytest.raises(UsageError, match="the client is not open"):
        client.producer("t")


async def test_a_host_that_is_no_host_name_is_a_connection_error(anyio_backend: object) -> None:
    with pytest.raises(OSError, match="not a host name"):
        await TcpTransport().connect("ü..x", 1)


def test_aware_times_are_starts_wherever_their_zone_is() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=-12))
    ConsumerOptions(start=datetime.datetime.max.replace(tzinfo=zone))
    ConsumerOptions(start=datetime.datetime.min.replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("stop", "told"),
    [
        (7, "stop=7: expected 'latest', or a dict with an offset per partition"),
        ("end", "stop='end': expected 'latest'"),
        ({"0": 7}, "a partition must be an int, not '0'"),
        ({0: -1}, r"stop\[0\] must be 0 to"),
        ({0: None}, r"stop\[0\] must be an int, not None"),
    ],
)
def test_a_stop_is_latest_or_an_offset_for_each_partition(stop: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ConsumerOptions(stop=stop)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (5, "headers must be a list of pairs of a str and bytes, not 5"),
        ({"a": b"1"}, "headers must be a list of pairs of a str and bytes"),
        ([("a", "1")], "a header is a pair of a str and bytes, not ('a', '1')"),
        ([("\udcff", b"1")], "is not text: surrogates not allowed"),
    ],
)
def test_headers_are_pairs_of_text_and_bytes(headers: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_headers(headers)

    assert told in str(caught.value)


@pytest.mark.parametrize("shards", ["abc", b"abc", 5, None])
def test_one_text_is_no_list(shards: object) -> None:
    with pytest.raises(UsageError, match="shards must be a list"):
        require_list("shards", shards)


async def test_a_single_error_of_a_task_group_comes_as_it_was_raised(
    anyio_backend: object,
) -> None:
    cause = KeyError("cause")

    async def fail() -> None:
        raise UsageError("mine") from cause

    async def run(count: int) -> None:
        async with task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(fail)

    with pytest.raises(UsageError, match="mine") as caught:
        await run(1)
    with pytest.raises(ExceptionGroup):
        await run(2)

    assert caught.value.__cause__ is cause


def test_a_blocking_client_that_is_closed_or_not_open_yet_says_so() -> None:
    client = sync.connect("127.0.0.1:1")

    with pytest.raises(UsageError, match="the client is not open"):
        _ = client.admin
    with pytest.raises(UsageError, match="backend must be one of asyncio, trio, not 'curio'"):
        sync.connect("127.0.0.1:1", backend="curio")
    client.close()


class Surface(Coordination):
    """Has no sessions: what reaches for one would have been sent."""

    def _open_sessions(self) -> Any:
        return None


OF_COORDINATION: Any = Surface()
KEYS: Any = OF_COORDINATION.kv()
QUEUE: Any = OF_COORDINATION.queue("jobs")
NAN = float("nan")
MISTAKE: Any = "1"


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda: KEYS.increment("n", 1.5), "by must be an int, not 1.5"),
        (lambda: KEYS.increment("n", True), "by must be an int, not True"),
        (lambda: KEYS.increment("n", 2**63), "by must be -9223372036854775807 to"),
        (lambda: KEYS.put("k", b"", ephemeral=1), "ephemeral must be True or False, not 1"),
        (lambda: KEYS.range("a", "b", keys_only="no"), "keys_only must be True or False"),
        (lambda: KEYS.cas("k", b"", revision="7"), "revision must be an int, not '7'"),
        (lambda: KEYS.cas("k", b"", revision=-1), "revision must be 0 to"),
        (lambda: KEYS.transact(then=5), "then must be a list, not 5"),
        (lambda: KEYS.transact(then=["k"]), "then[0] must be a Put or Delete or Get or Increment"),
        (lambda: KEYS.transact(compare=[None]), "compare[0] must be a Compare, not None"),
        (
            lambda: KEYS.transact(then=[Get(key=b"n"), Increment(key=b"n", by=MISTAKE)]),
            "then[1], a Increment: Expected `int`, got `str` - at `$.by`",
        ),
        (
            lambda: KEYS.transact(otherwise=[Delete(key=MISTAKE)]),
            "otherwise[0], a Delete: Expected `bytes`, got `str` - at `$.key`",
        ),
        (lambda: QUEUE.put(b"", priority=1.5), "priority must be an int, not 1.5"),
        (lambda: QUEUE.put(b"", priority=2**31), "priority must be -2147483647 to 2147483647"),
        (lambda: QUEUE.claim(visibility_s=NAN), "visibility_s must be a number of seconds"),
        (lambda: QUEUE.adopt("7", 1, 1), "item must be an int, not '7'"),
        (lambda: QUEUE.adopt(7, None, 1), "token must be an int, not None"),
        (lambda: QUEUE.complete(7), "a claim must be a Claim, not 7"),
        (lambda: QUEUE.renew("7:1:1"), "a claim must be a Claim, not '7:1:1'"),
        (lambda: QUEUE.release(reason=5), "reason must be a str, not 5"),
        (lambda: QUEUE.release(dead="no"), "dead must be True or False, not 'no'"),
        (lambda: QUEUE.redrive("7"), "an item must be an int, not '7'"),
        (lambda: QUEUE.dead_letters(-1), "count must be 0 to"),
        (lambda: QUEUE.statistics(dead=1.0), "dead must be an int, not 1.0"),
        (lambda: OF_COORDINATION.lock("l").verify("7"), "token must be an int, not '7'"),
        (lambda: OF_COORDINATION.election("e").verify("7"), "token must be an int, not '7'"),
        (lambda: require_topics(cast(Any, None), cast(Any, 5)), "protects must be a list, not 5"),
        (lambda: OF_COORDINATION.assignments("g").set(["a"], ["1"]), "a weight must be a number"),
        (lambda: OF_COORDINATION.assignments("g").set(["a"], [NAN]), "a weight must be a number"),
        (lambda: OF_COORDINATION.counter("c").reset("7"), "value must be an int, not '7'"),
        (lambda: OF_COORDINATION.list_names("topic"), "kind must be one of assignment, election"),
        (lambda: OF_COORDINATION.read_holders([], "l"), "kind must be one of election, lock"),
    ],
)  # fmt: skip
async def test_what_coordination_cannot_mean_is_refused_by_name_before_anything_is_sent(
    anyio_backend: object, use: Callable[[], Awaitable[object]], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        await use()

    assert told in str(caught.value)


def test_who_enters_a_double_barrier_has_a_name_that_is_text() -> None:
    with pytest.raises(UsageError, match="member must be a str, not 5"):
        OF_COORDINATION.double_barrier("start", 2, 5)


def test_what_blocks_refuses_what_is_no_claim_of_its_own() -> None:
    portal: Any = SimpleNamespace(call=None)
    queue: Any = sync_coordination.Queue(portal, cast(Any, QUEUE))

    for settle in (queue.complete, queue.release, queue.renew):
        with pytest.raises(UsageError, match="a claim must be a Claim, not 7"):
            settle(7)
