"""Requests with a deadline: one task of the connection looks after the deadlines of all."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from unittest.mock import ANY

import anyio
import anyio.to_thread
import pytest

from logd.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    LogdError,
    RequestTimeoutError,
    UsageError,
)
from logd.types import Buffer, HostPort
from logd.wire.frame import FLAG_PUSH, FLAG_RESPONSE, Frame, FrameDecoder, encode_message
from logd.wire.messages import (
    Deliver,
    HelloResponse,
    KeepAliveRequest,
    KeepAliveResponse,
    Kind,
    ProduceRequest,
)
from logd_client.connection import CORRELATION_ID_MAX, Connection, Lane
from logd_client.environment import Environment
from logd_client.event_loop import monotonic_clock
from logd_client.transport import Receiver, TcpTransport

pytestmark = pytest.mark.anyio

SOON_S = 0.01
LONG_S = 60.0
EVERYTHING = 2**30


class ScriptedBroker:
    """The far end of a stream: greets, and answers keep-alives when it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        """Correlation ids, in order."""
        self.answers_first_when_asked: int | None = None
        """How many requests it waits for."""
        self.takes_at_once = 0
        """Bytes of each offer."""
        self.on_taken: Callable[[bytes], None] = lambda data: None
        self.on_offered: Callable[[Sequence[Buffer]], None] = lambda parts: None
        self.taken = b""
        """Without having waited."""
        self.frames: list[Frame] = []
        self._decoder = FrameDecoder(2**22)
        self._receiver: Receiver | None = None
        self._closed = anyio.Event()

    def answer(self, correlation_id: int) -> None:
        message = KeepAliveResponse(expired=[correlation_id])
        self._deliver(encode_message(Kind.KEEP_ALIVE, message, correlation_id, flags=FLAG_RESPONSE))

    # --- as a Stream --------------------------------------------------------------------

    async def deliver_to(self, receiver: Receiver) -> None:
        self._receiver = receiver
        await self._closed.wait()

    async def send(self, parts: Sequence[Buffer]) -> None:
        self._arrive(b"".join(parts))

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        self.on_offered(parts)
        taken = b"".join(parts)[: self.takes_at_once]
        self.taken += taken
        if taken:
            self._arrive(taken)
            self.on_taken(taken)
        return len(taken)

    async def aclose(self) -> None:
        self._closed.set()

    # --- inside -------------------------------------------------------------------------

    def _arrive(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (frame := self._decoder.next_frame()) is not None:
            self.frames.append(frame)
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.HELLO:
            hello = HelloResponse(protocol=1, cluster_id="c", node_id=1, version="0")
            self._deliver(
                encode_message(Kind.HELLO, hello, frame.correlation_id, flags=FLAG_RESPONSE)
            )
        else:
            self.asked.append(frame.correlation_id)
            if len(self.asked) == self.answers_first_when_asked:
                self.answer(self.asked[0])

    def _deliver(self, data: bytes) -> None:
        assert self._receiver is not None
        self._receiver.writable()[: len(data)] = data
        self._receiver.received(len(data))


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, ScriptedBroker]]:
    broker = ScriptedBroker()
    environment = Environment(TcpTransport(), monotonic_clock(), lambda: 0, random.Random(0))
    connection = Connection(broker, HostPort("broker", 1), Lane.SESSION, environment)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        await anyio.wait_all_tasks_blocked()
        await connection.say_hello("test", None, LONG_S)
        yield connection, broker
        connection.close()


async def ask(connection: Connection, timeout_s: float, told: list[object]) -> None:
    try:
        answer = await connection.exchange(KeepAliveRequest(group=1, sessions=[]), b"", timeout_s)
        told.append(answer.message)
    except LogdError as error:
        told.append(type(error))


async def test_a_request_that_is_not_answered_in_time_says_so() -> None:
    async with connected() as (connection, _):
        told: list[object] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, connection, LONG_S, told)
            await anyio.wait_all_tasks_blocked()
            # Its deadline lies before the one that is waited for.
            await ask(connection, SOON_S, told)
            assert told == [RequestTimeoutError]
            tasks.cancel_scope.cancel()


async def test_many_requests_of_one_turn_leave_together_but_not_all_at_its_end() -> None:
    async with connected() as (connection, broker):
        broker.takes_at_once = EVERYTHING
        sends: list[int] = []
        broker.on_taken = lambda data: sends.append(len(data))
        for _ in range(1000):
            connection.post(KeepAliveRequest(group=1, sessions=[]), lambda answer: None)
        first, *others = sends

        assert first < 100  # Nobody waited for an answer yet.
        assert 5 <= len(others) <= 20
        assert sum(sends) > 15_000


async def test_a_large_body_is_handed_to_the_network_without_being_copied() -> None:
    async with connected() as (connection, broker):
        broker.takes_at_once = EVERYTHING
        offered: list[Sequence[Buffer]] = []
        broker.on_offered = offered.append
        body = bytearray(1_500_000)  # More than one send takes: it is alone in one.
        connection.submit(ProduceRequest(group=1, timeout_ms=1), lambda answer: None, body)

        ((prefix, sent),) = offered
        assert sent is body
        assert len(prefix) < 100


@pytest.mark.parametrize("taken_at_once", [0, 1, 33_333, 700_000, EVERYTHING])
async def test_bodies_of_all_sizes_arrive_whole_and_in_order(taken_at_once: int) -> None:
    """However much of what it is offered the network takes without waiting."""
    sizes = (9, 40_000, 1_500_000, 0, 700_000, 50_000, 9)
    bodies = [bytes([number]) * size for number, size in enumerate(sizes)]
    async with connected() as (connection, broker):
        broker.takes_at_once = taken_at_once
        broker.frames.clear()
        for body in bodies:
            connection.enqueue(ProduceRequest(group=1, timeout_ms=1), lambda answer: None, body)
        connection.flush()
        await anyio.wait_all_tasks_blocked()

    assert broker.frames == [
        Frame(Kind.PRODUCE, 0, number, ANY, body) for number, body in enumerate(bodies, 2)
    ]


async def test_while_the_network_is_full_what_waits_is_not_put_together_again_and_again() -> None:
    async with connected() as (connection, broker):
        offered: list[int] = []
        broker.on_offered = lambda parts: offered.append(len(parts))
        for _ in range(1000):
            connection.post(KeepAliveRequest(group=1, sessions=[]), lambda answer: None)
        assert len(offered) == 1

        await anyio.wait_all_tasks_blocked()
        assert len(broker.asked) == 1000
        broker.takes_at_once = EVERYTHING  # There is room again.
        connection.submit(KeepAliveRequest(group=1, sessions=[]), lambda answer: None)
        assert len(offered) == 2


async def test_an_answer_that_comes_after_its_deadline_disturbs_nobody() -> None:
    async with connected() as (connection, broker):
        told: list[object] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, connection, LONG_S, told)
            await anyio.wait_all_tasks_blocked()
            broker.answers_first_when_asked = 2  # So the connection is not silent.
            await ask(connection, SOON_S, told)
            tasks.start_soon(ask, connection, LONG_S, told)
            await anyio.wait_all_tasks_blocked()
            broker.answer(broker.asked[1])
            broker.answer(broker.asked[2])

    assert told == [
        KeepAliveResponse(expired=[broker.asked[0]]),
        RequestTimeoutError,
        KeepAliveResponse(expired=[broker.asked[2]]),
    ]


async def test_who_waits_for_an_answer_is_told_that_the_connection_has_ended() -> None:
    told: list[object] = []
    async with connected() as (connection, _), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask, connection, LONG_S, told)
        await anyio.wait_all_tasks_blocked()
        connection.close()

    assert told == [ConnectionLostError] * 3


async def test_an_outcome_that_is_there_before_anybody_waits_is_not_missed() -> None:
    """Of a network that answers while it is handed the request, or ends."""
    async with connected() as (connection, broker):
        broker.takes_at_once = EVERYTHING
        told: list[object] = []
        broker.on_taken = lambda data: broker.answer(2)
        with anyio.fail_after(5):
            await ask(connection, LONG_S, told)
            broker.on_taken = lambda data: connection.close()
            await ask(connection, LONG_S, told)

    assert told == [KeepAliveResponse(expired=[2]), ConnectionLostError]


async def test_a_request_of_before_the_greeting_has_a_deadline_too() -> None:
    broker = ScriptedBroker()
    environment = Environment(TcpTransport(), monotonic_clock(), lambda: 0, random.Random(0))
    connection = Connection(broker, HostPort("broker", 1), Lane.SESSION, environment)

    with pytest.raises(RequestTimeoutError):
        await connection.say_hello("test", None, SOON_S)  # Nobody runs it.


async def test_what_is_said_to_be_unsent_does_not_leave_afterwards() -> None:
    """Whoever was told so sends it again, elsewhere."""
    async with connected() as (connection, broker):
        fates: list[object] = []
        for _ in range(3):
            request = ProduceRequest(group=1, timeout_ms=1)
            connection.enqueue(request, fates.append, bytes(800_000))
        connection.flush()  # The network is full.
        connection.close()
        assert [type(fate) for fate in fates][-1] is ConnectionFailedError

        broker.takes_at_once = EVERYTHING
        connection.flush()

        assert broker.taken == b""


async def test_what_the_network_was_handed_before_the_end_may_have_arrived_and_the_rest_not() -> (
    None
):
    async with connected() as (connection, broker):
        fates: list[object] = []
        for _ in range(5):  # Two of them make a send.
            request = ProduceRequest(group=1, timeout_ms=1)
            connection.enqueue(request, fates.append, bytes(900_000))

        def take_no_more(_: bytes) -> None:
            broker.takes_at_once = 0

        broker.takes_at_once, broker.on_taken = EVERYTHING, take_no_more
        connection.flush()
        connection.close()

    assert list(map(type, fates)) == [*[ConnectionLostError] * 4, ConnectionFailedError]


async def test_a_connection_takes_nothing_after_its_end_and_says_why_it_ended() -> None:
    async with connected() as (connection, _):
        fates: list[object] = []
        connection.fail(ConnectionLostError("the first reason"))
        connection.fail(ConnectionLostError("another one"))

        with pytest.raises(ConnectionFailedError, match="not sent: the first reason"):
            connection.submit(KeepAliveRequest(group=1, sessions=[]), fates.append)

    assert fates == []


async def test_a_connection_whose_task_is_cancelled_ends_what_is_under_way() -> None:
    broker = ScriptedBroker()
    environment = Environment(TcpTransport(), monotonic_clock(), lambda: 0, random.Random(0))
    connection = Connection(broker, HostPort("broker", 1), Lane.SESSION, environment)
    fates: list[object] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        connection.submit(KeepAliveRequest(group=1, sessions=[]), fates.append)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert list(map(type, fates)) == [ConnectionLostError]
    assert not connection.is_open


@pytest.mark.parametrize("is_silent", [True, False])
async def test_a_connection_is_given_up_if_nothing_came_from_it_while_an_answer_was_due(
    is_silent: bool,
) -> None:
    async with connected() as (connection, broker):
        told: list[object] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, connection, LONG_S, told)
            await anyio.wait_all_tasks_blocked()
            broker.answers_first_when_asked = None if is_silent else 2
            await ask(connection, SOON_S, told)
            assert connection.is_open is not is_silent
            tasks.cancel_scope.cancel()


async def test_an_event_loop_of_another_thread_is_told_and_sends_nothing() -> None:
    """It would wait there for ever: what wakes it is not for other threads."""
    async with connected() as (connection, broker):
        sent_before = len(broker.frames)

        async def ask_elsewhere() -> None:
            request = KeepAliveRequest(group=1, sessions=[])
            with anyio.fail_after(5), pytest.raises(UsageError, match="in another event loop"):
                await connection.request(request, KeepAliveResponse, LONG_S)

        await anyio.to_thread.run_sync(anyio.run, ask_elsewhere)
        await anyio.wait_all_tasks_blocked()

        assert len(broker.frames) == sent_before


async def test_on_a_connection_that_is_worn_out_nothing_new_is_asked() -> None:
    """Its correlation ids are used up after days of many small requests."""
    async with connected() as (connection, _):
        connection._last_correlation_id = CORRELATION_ID_MAX
        told: list[object] = []
        await ask(connection, LONG_S, told)

        assert told == [ConnectionFailedError]
        assert not connection.is_open


async def test_what_is_pushed_and_nobody_wants_is_called_off_and_does_no_harm() -> None:
    late = Deliver(subscription=7, generation=1, next_offset=1, commit_offset=1)
    pushed = encode_message(Kind.DELIVER, late, flags=FLAG_PUSH)
    async with connected() as (connection, broker):
        broker.takes_at_once = EVERYTHING
        broker._deliver(pushed)
        assert broker.frames[-1].kind == Kind.UNSUBSCRIBE

        connection._last_correlation_id = CORRELATION_ID_MAX
        broker._deliver(pushed)

        assert not connection.is_open
