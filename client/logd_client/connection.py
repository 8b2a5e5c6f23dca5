"""One connection to one broker: many requests under way, answered in any order.

What arrives is cut into frames where it is received, and settles requests by their correlation
id.  Callers get their answer by callback, in the order of the frames: a producer must know what
became of its batches in that order, and a task per request would cost more than the request.
What is sent leaves in one piece with all that was queued before it, at once if the network
takes it; only what it does not take is left to a task, the writer.

When the connection ends every request under way fails, and the error says what is known: a
frame that was never handed to the network had no effect, any other may have had one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, unique
from threading import get_ident
from typing import Final, NamedTuple, Protocol, TypeVar

import anyio

from logd.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    FrameTooLargeError,
    LogdError,
    ProtocolError,
    RequestTimeoutError,
    UsageError,
)
from logd.limits import FRAME_BYTES_MAX, FRAME_UNAUTHENTICATED_BYTES_MAX
from logd.types import Buffer, HostPort, NodeId
from logd.wire.frame import (
    FLAG_ERROR,
    FLAG_PUSH,
    FLAG_RESPONSE,
    Frame,
    FrameDecoder,
    decode_message,
    encode_message,
)
from logd.wire.messages import (
    REQUEST_BY_KIND,
    RESPONSE_BY_KIND,
    Credit,
    Deliver,
    ErrorResponse,
    HelloRequest,
    HelloResponse,
    Kind,
    Message,
    SubscriptionEnded,
    UnsubscribeRequest,
    UnwatchRequest,
    WatchCredit,
    WatchEnded,
    WatchEvents,
)
from logd.wire.unsent import unsent
from logd_client.arguments import ANOTHER_LOOP
from logd_client.environment import Environment
from logd_client.event_loop import Waker, monotonic_clock, new_event, new_waker
from logd_client.refusals import error_from_response
from logd_client.transport import Stream, reason_of

KIND_BY_REQUEST: Final[dict[type[Message], Kind]] = {
    request: kind for kind, request in REQUEST_BY_KIND.items()
}
assert len(KIND_BY_REQUEST) == len(REQUEST_BY_KIND)

CORRELATION_ID_MAX: Final = 2**32 - 1
_SEND_BYTES: Final = 1024 * 1024
"""What one send takes at most, unless a single frame is larger."""

_COPIED_BYTES_MAX: Final = 32 * 1024
"""What is smaller is put together before it is sent; copying more costs more than it saves."""

_POSTED_BYTES: Final = 4 * 1024
"""Small requests that were gathered are sent once they are so many bytes."""

FIRST_BYTES_SHOWN: Final = 16
"""Of what answers and is not logd."""

_UNANSWERED: Final = 0
"""Correlation id of frames that want no answer."""

R = TypeVar("R", bound=Message)


@unique
class Lane(Enum):
    """Each kind of traffic has a connection of its own, so that a full one holds up no other."""

    CONTROL = "control"
    PRODUCE = "produce"
    CONSUME = "consume"
    COORDINATE = "coordinate"
    WAIT = "wait"
    """Questions whose answer may be held back."""
    SESSION = "session"
    """Keep-alives: nothing may stand in their way."""


class Answer(NamedTuple):
    """A response that is not an error."""

    message: Message
    body: Buffer


Completion = Callable[[Answer | LogdError], None]


class SubscriptionSink(Protocol):
    """Takes what a broker pushes for one subscription.  Called where it is received."""

    def on_delivered(self, message: Deliver, body: Buffer) -> None: ...

    def on_ended(self, message: SubscriptionEnded, error: LogdError) -> None: ...

    def on_connection_lost(self, connection: Connection, error: LogdError) -> None: ...


class WatchSink(Protocol):
    """Takes what a broker pushes for one watch.  Called where it is received."""

    def on_events(self, message: WatchEvents, body: Buffer) -> None: ...

    def on_ended(self, message: WatchEnded, error: LogdError) -> None: ...

    def on_connection_lost(self, connection: Connection, error: LogdError) -> None: ...


class Connection:
    """A connection after its TCP handshake.  ``run`` must be running for it to do anything."""

    def __init__(
        self, stream: Stream, address: HostPort, lane: Lane, environment: Environment
    ) -> None:
        self.address = address
        self.lane = lane
        self.node: NodeId | None = None
        self.cluster_id: str | None = None
        """Both known after ``say_hello``; None still if the broker was of no cluster yet."""
        self.last_received_at = environment.clock()
        self._clock = environment.clock
        self._stream = stream
        self._decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, long_messages=True)
        self._first_bytes = b""
        self._writable = memoryview(b"")
        """What was lent last to receive into; for the first bytes."""
        self._pending: dict[int, tuple[Kind, Completion]] = {}
        self._last_correlation_id = 0
        self._last_sent_id = 0
        """Frames with correlation ids up to here were handed to the network, in full or part."""
        self._queue: list[tuple[int, Buffer]] = []
        self._queued_bytes = 0
        self._wake_writer = anyio.Event()
        self._is_sending = False
        """The writer's task is, or is about to: what is queued meanwhile goes with it."""
        self._sinks: dict[int, SubscriptionSink] = {}
        self._watches: dict[int, WatchSink] = {}
        self._waiting: dict[_Waiter, None] = {}
        """Callers of ``exchange``, each with a deadline."""
        self._look_at = math.inf
        """When deadlines are looked at next."""
        self._wake_looker = new_event()
        self._loop_time = monotonic_clock()
        self._thread = get_ident()
        self._scope = anyio.CancelScope()
        self._error: LogdError | None = None

    @property
    def name(self) -> str:
        node = "" if self.node is None else f"node {self.node} at "
        return f"{node}{self.address}"

    @property
    def is_open(self) -> bool:
        return self._error is None

    # --- requests -----------------------------------------------------------------------

    def submit(self, message: Message, on_done: Completion, body: Buffer = b"") -> None:
        """Send a request; ``on_done`` gets its answer or error, once, where it is received.

        What the network does not take at once is sent by the connection's own task.

        Raises:
            ConnectionFailedError: the connection has ended; ``on_done`` is not called.
            UsageError: the message holds what no message can.
        """
        self.enqueue(message, on_done, body)
        self.flush()

    def enqueue(self, message: Message, on_done: Completion, body: Buffer = b"") -> None:
        """As ``submit``, but it leaves with the next ``flush``."""
        if self._error is not None:
            raise ConnectionFailedError(f"not sent: {self._error}")
        if self._last_correlation_id == CORRELATION_ID_MAX:
            self.fail(ConnectionFailedError(f"{self.name}: every correlation id has been used"))
            raise ConnectionFailedError(f"the connection to {self.name} is worn out")
        kind = KIND_BY_REQUEST[type(message)]
        correlation_id = self._last_correlation_id + 1
        body_bytes = len(body)
        try:
            prefix = encode_message(kind, message, correlation_id, body_bytes)
        except (TypeError, ValueError, OverflowError) as error:
            # An argument of the caller's: half a character, a number beyond 64 bits.
            raise UsageError(f"{type(message).__name__} cannot be sent: {error}") from error
        self._last_correlation_id = correlation_id
        self._pending[correlation_id] = (kind, on_done)
        self._queue.append((correlation_id, prefix))
        self._queued_bytes += len(prefix) + body_bytes
        if body_bytes:
            self._queue.append((correlation_id, body))

    def flush(self) -> None:
        """Send what is queued, as far as the network takes it at once; the rest follows."""
        while self._queue and not self._is_sending:
            last_id, parts = self._next_piece()
            try:
                sent = self._stream.send_nowait(parts)
            except OSError:
                sent = 0  # The task meets the same error, and ends the connection.
            if left := unsent(parts, sent):
                self._queue[:0] = [(last_id, part) for part in left]
                self._queued_bytes += sum(map(len, left))
                # From here on it is the task's: the network is full, and each further try would
                # put all that waits together anew.
                self._is_sending = True
                self._wake_writer.set()
                return

    def post(self, message: Message, on_done: Completion, body: Buffer = b"") -> None:
        """As ``submit``; while others wait for answers it leaves with what this turn of the event
        loop has yet to send, since many small sends cost more than one.

        What has become enough for a send of its own leaves at once: a turn in which a thousand
        callers go on takes so long that the broker would have nothing to do meanwhile.
        """
        is_alone = not self._pending
        self.enqueue(message, on_done, body)
        if is_alone or self._queued_bytes >= _POSTED_BYTES:
            self.flush()
        else:
            self._wake_writer.set()

    def post_credit(self, credit: Credit | WatchCredit) -> None:
        """Send a message that is not answered.  Dropped if the connection has ended."""
        if self._error is None:
            kind = Kind.CREDIT if isinstance(credit, Credit) else Kind.WATCH_CREDIT
            frame = encode_message(kind, credit)
            self._queue.append((_UNANSWERED, frame))
            self._queued_bytes += len(frame)
            self.flush()

    def dismiss(self, message: UnsubscribeRequest | UnwatchRequest) -> None:
        """Want nothing more of what is pushed; how that is answered changes nothing.  Dropped if
        the connection has ended, or ends by it: then nothing comes either."""
        if self._error is None:
            with suppress(ConnectionFailedError):
                self.submit(message, _ignore)

    async def request(self, message: Message, expected: type[R], timeout_s: float) -> R:
        """Send a request and wait for its answer.

        Raises:
            RequestTimeoutError: no answer in time.  If nothing at all has arrived meanwhile
                the connection is given up, as its peer may be gone without a word.
            ConnectionFailedError: the connection ended before or meanwhile.
            UsageError: this is another thread than the connection's.
            LogdError: the broker's refusal.

        Cancelled, the request may still be carried out.
        """
        answer = (await self.exchange(message, b"", timeout_s)).message
        assert isinstance(answer, expected)
        return answer

    async def exchange(self, message: Message, body: Buffer, timeout_s: float) -> Answer:
        """``request`` for messages with a body, either way."""
        if get_ident() != self._thread:
            raise UsageError(ANOTHER_LOOP)
        waiter = _Waiter(new_waker())
        sent_at = self._clock()
        self.post(message, waiter.settle, body)
        if self.node is None:
            # Whether anybody looks at deadlines yet is not certain.
            with anyio.move_on_after(timeout_s):
                if waiter.outcome is None:
                    await waiter.waker.wait()
        else:
            # A scope for each request would cost more than the rest of it.
            waiter.deadline = deadline = self._loop_time() + timeout_s
            self._waiting[waiter] = None
            if deadline < self._look_at:
                self._wake_looker.set()
            try:
                if waiter.outcome is None:
                    await waiter.waker.wait()
            finally:
                del self._waiting[waiter]
        if waiter.outcome is None:
            error = RequestTimeoutError(
                f"{type(message).__name__}: no answer from {self.name} within {timeout_s:g} s"
            )
            self.fail_if_silent_since(sent_at, error)
            raise error
        if isinstance(waiter.outcome, LogdError):
            raise waiter.outcome
        return waiter.outcome

    async def say_hello(self, client: str, cluster_id: str | None, timeout_s: float) -> None:
        """Do the handshake.

        Raises:
            ProtocolError: what answers is not logd.
            LogdError: refused, or no answer.
        """
        hello = HelloRequest(client=client, cluster_id=cluster_id)
        response = await self.request(hello, HelloResponse, timeout_s)
        self.node = NodeId(response.node_id)
        self.cluster_id = response.cluster_id
        self._decoder.frame_bytes_max = FRAME_BYTES_MAX

    # --- subscriptions ------------------------------------------------------------------

    def add_sink(self, subscription: int, sink: SubscriptionSink) -> None:
        """Deliver what is pushed for ``subscription`` to ``sink``."""
        assert self._sinks.get(subscription, sink) is sink
        self._sinks[subscription] = sink

    def remove_sink(self, subscription: int) -> None:
        self._sinks.pop(subscription, None)

    def add_watch(self, watch: int, sink: WatchSink) -> None:
        """Deliver what is pushed for ``watch`` to ``sink``."""
        assert self._watches.get(watch, sink) is sink
        self._watches[watch] = sink

    def remove_watch(self, watch: int) -> None:
        self._watches.pop(watch, None)

    # --- life and death -----------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends; then everything under way has failed."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read)
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._look_at_deadlines)
        finally:
            self.fail(ConnectionLostError(f"the connection to {self.name} was closed"))
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    def close(self) -> None:
        """End it, from this side."""
        self.fail(ConnectionLostError(f"the connection to {self.name} was closed"))

    def fail_if_silent_since(self, time: float, error: LogdError) -> None:
        """Give the connection up if nothing has arrived since ``time``."""
        if self.last_received_at <= time and self._error is None:
            where = "" if self.name in str(error) else f"{self.name}: "
            self.fail(ConnectionLostError(f"{where}{error}; nothing else came from there either"))

    def fail(self, error: LogdError) -> None:
        """End the connection because of ``error``.  The first call counts."""
        if self._error is not None:
            return
        self._error = error
        self._scope.cancel()
        # Those it belongs to are told that it was not sent, and send it again elsewhere.
        self._queue, self._queued_bytes = [], 0
        pending, self._pending = self._pending, {}
        for correlation_id, (_, on_done) in pending.items():
            on_done(self._fate(correlation_id, error))
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.on_connection_lost(self, error)
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            watch.on_connection_lost(self, error)

    def _fate(self, correlation_id: int, error: LogdError) -> LogdError:
        if isinstance(error, ProtocolError):
            fate: LogdError = ProtocolError(str(error))
            fate.may_have_applied = correlation_id <= self._last_sent_id
            return fate
        if correlation_id <= self._last_sent_id:
            return ConnectionLostError(str(error))
        return ConnectionFailedError(f"not sent: {error}")

    # --- sending and receiving ------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer = anyio.Event()
            self._is_sending = True
            while self._queue:
                _, parts = self._next_piece()
                try:
                    await self._stream.send(parts)
                except OSError as error:
                    self.fail(ConnectionLostError(f"{self.name}: {reason_of(error)}"))
                    return
            self._is_sending = False

    async def _look_at_deadlines(self) -> None:
        """Wake those whose time is up.

        Most are answered long before, so it wakes once per timeout and not once per request: it
        sleeps until the first deadline that there was when it looked last.
        """
        while True:
            now = self._loop_time()
            for waiter in self._waiting:
                if waiter.deadline <= now:
                    waiter.waker.wake()
            later = (w.deadline for w in self._waiting if w.deadline > now)
            self._look_at = min(later, default=math.inf)
            self._wake_looker = new_event()
            with anyio.CancelScope(deadline=self._look_at):
                await self._wake_looker.wait()

    def _next_piece(self) -> tuple[int, Sequence[Buffer]]:
        """Everything that is queued, up to the size of one send, and the last id in it."""
        if self._queued_bytes <= _SEND_BYTES:
            queue, size = self._queue, self._queued_bytes
            self._queue, self._queued_bytes = [], 0
            self._last_sent_id = self._last_correlation_id
            return self._last_sent_id, _gathered([part for _, part in queue], size)
        parts: list[Buffer] = []
        size = 0
        last_id = of_frame = _UNANSWERED
        for correlation_id, part in self._queue:
            if parts and correlation_id != of_frame and size + len(part) > _SEND_BYTES:
                break
            parts.append(part)
            size += len(part)
            of_frame = correlation_id
            last_id = max(last_id, correlation_id)
        del self._queue[: len(parts)]
        self._queued_bytes -= size
        # Of a frame that is cut in two here, bytes leave: it counts as sent.
        self._last_sent_id = max(self._last_sent_id, last_id)
        return last_id, _gathered(parts, size)

    async def _read(self) -> None:
        try:
            await self._stream.deliver_to(self)
        except OSError as error:
            self.fail(ConnectionLostError(f"{self.name}: {reason_of(error)}"))
        except (ProtocolError, FrameTooLargeError) as error:
            self.fail(self._protocol_error(error))
        else:
            self.fail(self._end_of_stream())

    def writable(self) -> memoryview:
        """As ``Receiver.writable``."""
        view = self._decoder.writable()
        if self.node is None:
            self._writable = view
        return view

    def received(self, count: int) -> None:
        """As ``Receiver.received``: settle what is answered by it."""
        self.last_received_at = self._clock()
        if self.node is None and len(self._first_bytes) < FIRST_BYTES_SHOWN:
            self._first_bytes += self._writable[: min(count, FIRST_BYTES_SHOWN)]
        self._decoder.received(count)
        while (frame := self._decoder.next_frame()) is not None:
            self._on_frame(frame)

    def _protocol_error(self, error: LogdError) -> ProtocolError:
        if self.node is None:
            shown = self._first_bytes[:FIRST_BYTES_SHOWN]
            return ProtocolError(f"{self.address} is not a logd broker: it answered {shown!r}")
        return ProtocolError(f"{self.name} broke the protocol: {error}")

    def _end_of_stream(self) -> LogdError:
        if self.node is None and not self._first_bytes:
            return ConnectionLostError(
                f"{self.address} closed the connection without an answer: "
                "it stops, or is not where a broker listens for clients"
            )
        if self.node is None:
            return self._protocol_error(ProtocolError("the stream ended in the handshake"))
        return ConnectionLostError(f"{self.name} closed the connection")

    # --- frames -------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        if frame.flags & FLAG_PUSH:
            self._on_push(frame)
            return
        pending = self._pending.pop(frame.correlation_id, None)
        if pending is None or not frame.flags & FLAG_RESPONSE:
            raise ProtocolError(
                f"frame of kind {frame.kind} with correlation id {frame.correlation_id} "
                "answers no request"
            )
        kind, on_done = pending
        on_done(self._outcome(frame, kind))

    def _outcome(self, frame: Frame, asked: Kind) -> Answer | LogdError:
        try:
            if frame.flags & FLAG_ERROR:
                refusal = decode_message(ErrorResponse, frame.header, ProtocolError)
                return error_from_response(refusal, self.name)
            if frame.kind != asked:
                raise ProtocolError(f"kind {frame.kind} answers a request of {asked.name}")
            cls = RESPONSE_BY_KIND[asked]
            return Answer(decode_message(cls, frame.header, ProtocolError), frame.body)
        except ProtocolError as error:
            self.fail(self._protocol_error(error))
            error.may_have_applied = True
            return error

    def _on_push(self, frame: Frame) -> None:
        if frame.kind == Kind.DELIVER:
            deliver = decode_message(Deliver, frame.header, ProtocolError)
            sink = self._sinks.get(deliver.subscription)
            if sink is not None:
                sink.on_delivered(deliver, frame.body)
            else:
                # Left behind by an unsubscribe that overtook its subscribe, or on its way.
                self.dismiss(UnsubscribeRequest(subscription=deliver.subscription))
        elif frame.kind == Kind.SUBSCRIPTION_ENDED:
            ended = decode_message(SubscriptionEnded, frame.header, ProtocolError)
            sink = self._sinks.get(ended.subscription)
            if sink is not None:
                sink.on_ended(ended, error_from_response(ended.error, self.name))
        elif frame.kind == Kind.WATCH_EVENTS:
            self._on_events(decode_message(WatchEvents, frame.header, ProtocolError), frame.body)
        elif frame.kind == Kind.WATCH_ENDED:
            watch_ended = decode_message(WatchEnded, frame.header, ProtocolError)
            watch = self._watches.get(watch_ended.watch)
            if watch is not None:
                watch.on_ended(watch_ended, error_from_response(watch_ended.error, self.name))
        else:
            raise ProtocolError(f"pushed frame of unknown kind {frame.kind}")

    def _on_events(self, events: WatchEvents, body: Buffer) -> None:
        watch = self._watches.get(events.watch)
        if watch is not None:
            watch.on_events(events, body)
        else:
            self.dismiss(UnwatchRequest(watch=events.watch))


class _Waiter:
    """One caller waiting for one answer."""

    __slots__ = ("deadline", "outcome", "waker")

    def __init__(self, waker: Waker) -> None:
        self.deadline = math.inf
        self.outcome: Answer | LogdError | None = None
        self.waker = waker

    def settle(self, outcome: Answer | LogdError) -> None:
        self.outcome = outcome
        self.waker.wake()


def _gathered(parts: list[Buffer], size: int) -> list[Buffer]:
    """``parts``, ``size`` bytes in all, as few: small ones together, large ones as they are."""
    if size < _COPIED_BYTES_MAX:
        return [b"".join(parts)]
    gathered: list[Buffer] = []
    small: list[Buffer] = []
    for part in parts:
        if len(part) < _COPIED_BYTES_MAX:
            small.append(part)
            continue
        if small:
            gathered.append(b"".join(small))
            small = []
        gathered.append(part)
    if small:
        gathered.append(b"".join(small))
    return gathered


def _ignore(answer: Answer | LogdError) -> None:
    """The answer changes nothing."""
