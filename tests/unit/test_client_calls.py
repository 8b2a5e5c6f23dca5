"""A question for the coordination log is asked again, of whoever leads by then, until time is up.

The brokers are played by the tests, in virtual time.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

import msgspec
import pytest
import trio
import trio.testing

from logd.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    InvalidRequestError,
    LogdError,
    NotLeaderError,
    RequestTimeoutError,
    UnknownTopicError,
)
from logd.types import GroupId, NodeId
from logd.wire.coordination import COORDINATION_TOPIC, Claim, CloseSession, Done, ReadClaim
from logd.wire.messages import (
    BrokerInfo,
    CoordinateRequest,
    CoordinateResponse,
    Message,
    MetadataResponse,
    PartitionInfo,
    QueryRequest,
    QueryResponse,
    TopicInfo,
)
from logd_client.backoff import BACKOFF_FIRST_S
from logd_client.cluster import ClusterView
from logd_client.connection import Answer, Lane
from logd_client.coordination.calls import (
    ATTEMPT_TIMEOUT_S,
    ATTEMPT_TIMEOUT_S_MAX,
    CREATION_TIMEOUT_S,
    WAIT_S_CROWDED,
    WAIT_S_MAX,
    WAITERS_MAX,
    Calls,
)
from logd_client.environment import Environment
from logd_client.transport import TcpTransport

GROUP: Final = GroupId(5)
FIRST, SECOND, THIRD = NodeId(1), NodeId(2), NodeId(3)
DONE: Final = Answer(CoordinateResponse(), msgspec.msgpack.encode(Done(revision=7)))
HELD: Final = Answer(QueryResponse(), msgspec.msgpack.encode(Claim(revision=7, ticket=9, token=9)))
TICKET: Final = ReadClaim(kind="lock", name="compactor", ticket=9)
SILENCE: Final = "silence"
"""Of a broker that is there and does not answer."""


class Late(random.Random):
    """Draws the longest wait that may be."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


class Asked(NamedTuple):
    """One attempt, as its broker saw it."""

    at: float
    node: NodeId
    lane: Lane
    timeout_s: float
    message: Message


class Broker:
    """The far end of a connection."""

    def __init__(self, cluster: Cluster, node: NodeId, lane: Lane) -> None:
        self.node = node
        self._cluster = cluster
        self._lane = lane

    async def exchange(self, message: Message, body: bytes, timeout_s: float) -> Answer:
        asked = Asked(self._cluster.clock(), self.node, self._lane, timeout_s, message)
        self._cluster.asked.append(asked)
        said = self._cluster.words.pop(0) if self._cluster.words else DONE
        if said == SILENCE:
            await trio.sleep(timeout_s)
            raise RequestTimeoutError("nothing was heard")
        if isinstance(said, LogdError):
            raise said
        assert isinstance(said, Answer)
        return said


class Cluster:
    """What ``Calls`` uses of ``Routing``: three brokers, the first of which leads."""

    def __init__(self, *words: LogdError | Answer | str, request_timeout_s: float = 30.0) -> None:
        self._began = trio.current_time()
        self.clock: Callable[[], float] = lambda: trio.current_time() - self._began
        self.environment = Environment(TcpTransport(), self.clock, lambda: 0, Late())
        self.request_timeout_s = request_timeout_s
        self.words = list(words)
        """What is answered, one after the other, by whoever is asked; then that it is done."""
        self.asked: list[Asked] = []
        self.looks: list[tuple[int, NodeId | None]] = []
        """After how many failures the cluster was asked who leads, and who was suspect."""
        self.open_lanes: set[Lane] = set()
        self.leads_from_now_on: NodeId | None = None
        """Learnt with the next look."""
        self.is_away = False
        """Nobody can be connected to, and it takes for ever to find that out."""
        self.topic_comes_at_s: float | None = None
        self.view = ClusterView()
        self.view.learn(
            MetadataResponse(
                cluster_id="c",
                controller=FIRST,
                brokers=[
                    BrokerInfo(node_id=node, host="h", port=1, alive=True)
                    for node in (FIRST, SECOND, THIRD)
                ],
                topics=[],
                unknown=[],
            )
        )

    def describe(self, topic_id: int = 1, group: GroupId = GROUP) -> TopicInfo:
        row = PartitionInfo(
            partition=0, group=group, replicas=[FIRST, SECOND, THIRD], leader=FIRST, term=1
        )
        topic = TopicInfo(name=COORDINATION_TOPIC, topic_id=topic_id, partitions=[row])
        self.view.learn_topic(topic)
        return topic

    async def topic(self, name: str) -> TopicInfo:
        if self.topic_comes_at_s is not None and self.clock() < self.topic_comes_at_s:
            raise UnknownTopicError("not yet")
        return self.describe()

    def open_connection(self, node: NodeId, lane: Lane) -> Broker | None:
        return Broker(self, node, lane) if lane in self.open_lanes else None

    async def leader_connection(self, group: GroupId, lane: Lane, attempt: int) -> Broker:
        if self.is_away:
            await trio.sleep_forever()
        node = self.view.likely_leader(group, attempt)
        assert node is not None
        return Broker(self, node, lane)

    async def look_again(
        self, topic: str, group: GroupId, failures: int, suspect: NodeId | None
    ) -> None:
        assert topic == COORDINATION_TOPIC
        self.looks.append((failures, suspect))
        if self.leads_from_now_on is not None:
            self.view.note_leader(group, self.leads_from_now_on)


def calls_of(cluster: Cluster) -> Calls:
    return Calls(cast("Any", cluster))


def request_of(group: GroupId, timeout_ms: int) -> CoordinateRequest:
    return CoordinateRequest(
        group=group, namespace="default", session=7, sequence=1, timeout_ms=timeout_ms
    )


async def command(calls: Calls, *, timeout_s: float | None = None) -> object:
    return await calls.command("default", CloseSession(), request_of, timeout_s=timeout_s)


def play(story: Callable[[], Awaitable[None]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


# --- whom to ask --------------------------------------------------------------------------


def test_the_leader_is_asked_and_told_how_long_somebody_waits() -> None:
    async def story() -> None:
        cluster = Cluster()
        cluster.describe()

        assert await command(calls_of(cluster)) == Done(revision=7)

        (asked,) = cluster.asked
        assert (asked.node, asked.lane, asked.timeout_s) == (FIRST, Lane.COORDINATE, 2)
        assert asked.message == request_of(GROUP, 2_000)
        assert cluster.looks == []

    play(story)


def test_after_a_failure_the_cluster_is_asked_who_leads_and_last_whoever_failed() -> None:
    async def story() -> None:
        cluster = Cluster(ConnectionLostError("reset"))
        cluster.describe()
        cluster.leads_from_now_on = SECOND

        await command(calls_of(cluster))

        assert [asked.node for asked in cluster.asked] == [FIRST, SECOND]
        assert cluster.looks == [(1, FIRST)]

    play(story)


def test_an_attempt_on_the_usual_way_counts_as_the_first() -> None:
    """A connection to the leader is open, and breaks with the command on it."""

    async def story() -> None:
        cluster = Cluster(ConnectionLostError("reset"))
        cluster.describe()
        calls = calls_of(cluster)
        await calls.group_of("default")
        cluster.open_lanes = {Lane.COORDINATE}
        cluster.leads_from_now_on = SECOND

        await command(calls)

        assert [asked.node for asked in cluster.asked] == [FIRST, SECOND]
        assert cluster.looks == [(1, FIRST)]

    play(story)


def test_who_a_broker_names_as_leader_is_asked_at_once_and_without_another_question() -> None:
    async def story() -> None:
        cluster = Cluster(NotLeaderError("no", leader=SECOND))
        cluster.describe()

        await command(calls_of(cluster))

        assert [(asked.at, asked.node) for asked in cluster.asked] == [(0, FIRST), (0, SECOND)]
        assert cluster.looks == []

    play(story)


def test_brokers_that_name_each_other_are_not_asked_in_a_ring_without_a_pause() -> None:
    async def story() -> None:
        cluster = Cluster(NotLeaderError("no", leader=SECOND), NotLeaderError("no", leader=FIRST))
        cluster.describe()

        await command(calls_of(cluster))

        times = [asked.at for asked in cluster.asked]
        assert times == [0, 0, pytest.approx(2 * BACKOFF_FIRST_S)]
        assert cluster.looks == [(2, SECOND)]

    play(story)


def test_a_broker_that_knows_no_leader_is_left_in_peace_for_a_moment() -> None:
    async def story() -> None:
        cluster = Cluster(NotLeaderError("no", leader=None))
        cluster.describe()

        await command(calls_of(cluster))

        assert [asked.at for asked in cluster.asked] == [0, pytest.approx(BACKOFF_FIRST_S)]
        assert cluster.looks == [(1, FIRST)]

    play(story)


def test_a_topic_that_was_made_anew_is_asked_where_it_lives_now() -> None:
    """Its groups have other numbers: whoever went on asking the old one would be refused."""

    async def story() -> None:
        cluster = Cluster()
        cluster.describe()
        calls = calls_of(cluster)
        await command(calls)
        another = GroupId(9)
        cluster.describe(topic_id=2, group=another)

        await command(calls)

        groups = [cast("CoordinateRequest", asked.message).group for asked in cluster.asked]
        assert groups == [GROUP, another]

    play(story)


# --- for how long -------------------------------------------------------------------------


def test_each_attempt_waits_twice_as_long_for_a_broker_that_may_only_be_slow() -> None:
    async def story() -> None:
        cluster = Cluster(*[SILENCE] * 5)
        cluster.describe()

        await command(calls_of(cluster), timeout_s=100)

        assert [asked.timeout_s for asked in cluster.asked] == [2, 4, 8, 16, 16, 16]
        assert ATTEMPT_TIMEOUT_S_MAX == 16

    play(story)


def test_an_attempt_that_failed_otherwise_leaves_the_next_one_its_time() -> None:
    async def story() -> None:
        cluster = Cluster(ConnectionLostError("reset"), NotLeaderError("no"))
        cluster.describe()

        await command(calls_of(cluster))

        assert [asked.timeout_s for asked in cluster.asked] == [ATTEMPT_TIMEOUT_S] * 3

    play(story)


def test_no_attempt_outlives_the_call_and_its_broker_is_told_so() -> None:
    async def story() -> None:
        cluster = Cluster(SILENCE, SILENCE)
        cluster.describe()

        with pytest.raises(RequestTimeoutError):
            await command(calls_of(cluster), timeout_s=3)

        second = cluster.asked[1]
        assert second.at + second.timeout_s == pytest.approx(3)
        assert cast("CoordinateRequest", second.message).timeout_ms == int(second.timeout_s * 1000)
        assert cluster.clock() == pytest.approx(3)

    play(story)


def test_an_attempt_that_would_begin_too_late_is_not_made() -> None:
    async def story() -> None:
        cluster = Cluster(NotLeaderError("first"), NotLeaderError("second"))
        cluster.describe()

        with pytest.raises(NotLeaderError, match="first"):
            await command(calls_of(cluster), timeout_s=BACKOFF_FIRST_S)

        assert cluster.clock() == 0

    play(story)


def test_who_is_not_connected_in_time_hears_what_went_wrong_before() -> None:
    async def story() -> None:
        cluster = Cluster(ConnectionLostError("reset"))
        cluster.describe()
        calls = calls_of(cluster)
        await calls.group_of("default")
        cluster.open_lanes = {Lane.COORDINATE}
        cluster.is_away = True

        with pytest.raises(ConnectionLostError, match="reset"):
            await command(calls, timeout_s=1)

        assert cluster.clock() == pytest.approx(1)

    play(story)


def test_who_never_got_a_connection_hears_that() -> None:
    async def story() -> None:
        cluster = Cluster()
        cluster.describe()
        cluster.is_away = True

        with pytest.raises(ConnectionFailedError, match="not connected within 1 s") as caught:
            await command(calls_of(cluster), timeout_s=1)

        assert not caught.value.may_have_applied

    play(story)


def test_a_question_that_is_held_back_has_that_much_longer_in_each_attempt_and_in_all() -> None:
    async def story() -> None:
        cluster = Cluster(SILENCE, SILENCE)
        cluster.describe()

        with pytest.raises(RequestTimeoutError):
            await calls_of(cluster).query("default", TICKET, wait_s=3, timeout_s=4)

        first, second = cluster.asked
        assert (first.lane, first.timeout_s) == (Lane.WAIT, ATTEMPT_TIMEOUT_S + 3)
        assert cast("QueryRequest", first.message).wait_ms == 3_000
        assert second.at + second.timeout_s == pytest.approx(4 + 3)

    play(story)


@pytest.mark.parametrize("wait_s", [0, 3])
def test_a_question_that_nobody_answers_has_changed_nothing(wait_s: float) -> None:
    async def story() -> None:
        cluster = Cluster(*[SILENCE] * 9, request_timeout_s=4)
        cluster.describe()

        with pytest.raises(RequestTimeoutError) as caught:
            await calls_of(cluster).query("default", TICKET, wait_s=wait_s)

        assert not caught.value.may_have_applied

    play(story)


def test_a_question_is_not_held_back_for_ever_however_long_somebody_would_wait() -> None:
    async def story() -> None:
        cluster = Cluster(HELD)
        cluster.describe()

        await calls_of(cluster).query("default", TICKET, wait_s=1_000)

        (asked,) = cluster.asked
        assert cast("QueryRequest", asked.message).wait_ms == WAIT_S_MAX * 1000
        assert asked.timeout_s == ATTEMPT_TIMEOUT_S + WAIT_S_MAX

    play(story)


def test_questions_are_held_back_only_briefly_while_others_are_in_line_to_ask() -> None:
    async def story() -> None:
        cluster = Cluster(*[SILENCE] * (WAITERS_MAX + 1))
        cluster.describe()
        calls = calls_of(cluster)

        async def ask() -> None:
            with suppress(RequestTimeoutError):
                await calls.query("default", TICKET, wait_s=3, timeout_s=0.5)

        async with trio.open_nursery() as nursery:
            for _ in range(WAITERS_MAX + 1):
                nursery.start_soon(ask)

        held_ms = [cast("QueryRequest", asked.message).wait_ms for asked in cluster.asked]
        assert held_ms == [*[WAIT_S_CROWDED * 1000] * WAITERS_MAX, 3_000]
        assert cluster.asked[-1].at == pytest.approx(0.5 + WAIT_S_CROWDED)

    play(story)


def test_the_first_to_ask_ever_has_all_its_time_once_the_topic_is_there() -> None:
    async def story() -> None:
        cluster = Cluster(SILENCE, SILENCE)
        cluster.topic_comes_at_s = 10
        calls = calls_of(cluster)

        with pytest.raises(RequestTimeoutError):
            await command(calls, timeout_s=3)

        assert 10 + 3 <= cluster.clock() < 10 + 3 + 1

    play(story)


def test_a_topic_that_does_not_come_to_be_is_not_waited_for_much_longer() -> None:
    async def story() -> None:
        cluster = Cluster()
        cluster.topic_comes_at_s = 1_000

        with pytest.raises(LogdError, match="is there a majority of the controllers"):
            await command(calls_of(cluster), timeout_s=3)

        assert CREATION_TIMEOUT_S - 1 < cluster.clock() < 2 * CREATION_TIMEOUT_S

    play(story)


# --- what is known at the end -------------------------------------------------------------


def test_what_no_other_attempt_would_change_is_told_at_once() -> None:
    async def story() -> None:
        cluster = Cluster(InvalidRequestError("no"))
        cluster.describe()

        with pytest.raises(InvalidRequestError) as caught:
            await command(calls_of(cluster))

        assert len(cluster.asked) == 1
        assert not caught.value.may_have_applied

    play(story)


@pytest.mark.parametrize("last", [NotLeaderError("no"), InvalidRequestError("no")])
def test_who_was_refused_in_the_end_may_have_been_heard_before(last: LogdError) -> None:
    """The attempt whose answer was lost may be in the log, whatever another broker says now."""

    async def story() -> None:
        cluster = Cluster(SILENCE, *[last] * 1_000)
        cluster.describe()

        with pytest.raises(type(last)) as caught:
            await command(calls_of(cluster), timeout_s=5)

        assert caught.value.may_have_applied

    play(story)


@pytest.mark.parametrize("is_usual_way", [False, True])
def test_who_was_only_ever_told_to_ask_another_was_certainly_not_heard(is_usual_way: bool) -> None:
    async def story() -> None:
        cluster = Cluster(*[NotLeaderError("no") for _ in range(1_000)])
        cluster.describe()
        calls = calls_of(cluster)
        if is_usual_way:
            await calls.group_of("default")
            cluster.open_lanes = {Lane.COORDINATE}

        with pytest.raises(NotLeaderError) as caught:
            await command(calls, timeout_s=1)

        assert not caught.value.may_have_applied

    play(story)


def test_a_deleted_topic_is_asked_for_again_until_time_is_up() -> None:
    """Whoever was asked may only be behind, or the topic is about to be made anew."""

    async def story() -> None:
        cluster = Cluster(UnknownTopicError("which?"))
        cluster.describe()

        assert await command(calls_of(cluster)) == Done(revision=7)

    play(story)
