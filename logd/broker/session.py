"""One client connection: greeting, requests in, answers and deliveries out.

Requests that need no waiting (produce, credit) are carried out as they arrive, in the turn
that takes what has arrived on all connections; the others get a task of their own, so that
answers may overtake one another.  Three tasks see to the rest: one to what stops the reading
(``Inbox``), one to what the network did not take at once, one to what subscriptions are
delivered.  Nothing is read while the connection owes too much, in requests or in bytes: that
is the back-pressure a client feels.

Whatever a client sends, the worst that happens is that its connection is closed with a
logged reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd import __version__
from logd.broker import log_events
from logd.broker.admin import ADMIN_HANDLERS
from logd.broker.answer_room import AnswerRoom
from logd.broker.coordination.handlers import COORDINATION_HANDLERS
from logd.broker.coordination.watches import ConnectionWatches
from logd.broker.frame_room import Intake
from logd.broker.produce import start_produce
from logd.broker.reading import fetch, offsets, until_committed
from logd.broker.subscriptions import Subscriptions, Turn
from logd.errors import (
    FrameTooLargeError,
    InvalidRequestError,
    LogdError,
    NoRoomError,
    NotAuthorizedError,
    OverloadedError,
    ProtocolError,
    UnavailableError,
    UnknownServerError,
    UnsupportedVersionError,
)
from logd.limits import (
    CONNECTION_SEND_BYTES_FREE,
    CONNECTION_SEND_BYTES_MAX,
    FRAME_BYTES_MAX,
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    PROGRESS_TIMEOUT_S,
    REQUEST_TASKS_ALWAYS,
    REQUESTS_IN_FLIGHT_MAX,
)
from logd.replication.inbox import Inbox, first_frame
from logd.replication.log_reader import CommittedBatches
from logd.replication.outbox import Outbox, frame_buffers
from logd.types import Buffer
from logd.wire.frame import (
    FLAG_ERROR,
    FLAG_LONG,
    FLAG_PUSH,
    FLAG_RESPONSE,
    HEADER_LENGTH_MAX,
    Frame,
    FrameDecoder,
    decode_message,
    encode_message,
)
from logd.wire.messages import (
    PROTOCOL_VERSION,
    REQUEST_BY_KIND,
    Credit,
    Deliver,
    ErrorResponse,
    FetchRequest,
    HelloRequest,
    HelloResponse,
    Kind,
    Message,
    OffsetsRequest,
    ProduceRequest,
    SubscribeRequest,
    SubscriptionEnded,
    UnsubscribeRequest,
    UnsubscribeResponse,
    WatchCredit,
    WatchEnded,
)

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.env import ByteStream

QUEUED_FRAME_BYTES: Final = 200
"""What a frame that waits to be sent takes beside its own bytes, about: many have fewer."""

log = structlog.get_logger(__name__)


class Session:
    """Serves one client until the connection ends."""

    def __init__(self, stream: ByteStream, broker: Broker) -> None:
        self.broker = broker
        self._stream = stream
        self._intake = Intake(
            broker,
            stream.peer_name.rpartition(":")[0],
            lambda: self._decoder.pending_bytes,
            self._end_inbox,
        )
        self._decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, large_frames=self._intake)
        self._inbox: Inbox | None = None
        self._outbox = Outbox(
            CONNECTION_SEND_BYTES_MAX,
            broker.node.turn,
            self._on_room,
            shared=broker.sends,
            bytes_free=CONNECTION_SEND_BYTES_FREE,
        )
        self._answer_room = AnswerRoom(self._outbox, broker.sends)
        self._subscriptions = Subscriptions(broker, self)
        self._watches = ConnectionWatches(self)
        self._in_flight = 0
        self._tasks = 0
        """How many of those have one."""
        self._relief = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self._nursery: trio.Nursery | None = None

    @property
    def queued_bytes(self) -> int:
        """Answers and deliveries that wait for the client to take them."""
        return self._outbox.queued_bytes

    @property
    def sending_since_s(self) -> float | None:
        """Since when the client has not taken what it is being sent, if it has not."""
        return self._outbox.sending_since_s

    def is_there(self) -> bool:
        """Whether its client may still be answered."""
        return not self._is_closed

    @property
    def subscriptions(self) -> Subscriptions:
        return self._subscriptions

    @property
    def watches(self) -> ConnectionWatches:
        return self._watches

    async def run(self) -> None:
        """Serve until the client leaves, breaks the protocol, or the broker stops."""
        try:
            if await self._survives(self._greet):
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._subscriptions.run)
                    nursery.start_soon(self._watches.run)
                    await self._survives(self._receive)
                    nursery.cancel_scope.cancel()
        finally:
            self._is_closed = True
            self._subscriptions.close()
            self._watches.close()
            self._intake.is_over()
            self._outbox.stop_sharing()
            self._stream.abort()

    async def _survives(self, part: Callable[[], Awaitable[None]]) -> bool:
        """Run one part of the session; False, with the reason logged, if it ends it."""
        try:
            await part()
        except LogdError as error:
            self._log_refused(str(error))
        except trio.TooSlowError:
            self._log_refused(
                f"no progress: {self._decoder.pending_bytes} bytes of an unfinished frame"
            )
        except OSError as error:
            log.debug(log_events.CLIENT_CLOSED, address=self._stream.peer_name, reason=str(error))
        else:
            return True
        return False

    def _log_refused(self, reason: str) -> None:
        log.warning(log_events.CLIENT_REFUSED, address=self._stream.peer_name, reason=reason)

    # --- greeting -----------------------------------------------------------------------------

    async def _greet(self) -> None:
        with self.broker.newcomers.greeting(self._stream.peer_name):
            await self._exchange_hello()

    async def _exchange_hello(self) -> None:
        frame = await first_frame(self._stream, self._decoder)
        if frame is None:
            self._check_whole()
            return
        if frame.kind != Kind.HELLO:
            error = InvalidRequestError(f"frame kind {frame.kind} before the greeting")
            await self._refuse(frame, error)
            return
        if frame.flags:
            raise _flagged(frame)
        try:
            hello = decode_message(HelloRequest, frame.header)
            self._check_hello(hello)
        except LogdError as error:
            await self._refuse(frame, error)
            return
        answer = HelloResponse(
            protocol=PROTOCOL_VERSION,
            cluster_id=self.broker.membership.cluster_id,
            node_id=self.broker.config.node_id,
            version=__version__,
            kinds={int(kind): (1, 1) for kind in REQUEST_BY_KIND},
        )
        await self._stream.send(
            [encode_message(Kind.HELLO, answer, frame.correlation_id, flags=FLAG_RESPONSE)]
        )
        self._decoder.frame_bytes_max = FRAME_BYTES_MAX

    def _check_hello(self, hello: HelloRequest) -> None:
        if not hello.protocol_min <= PROTOCOL_VERSION <= hello.protocol_max:
            raise UnsupportedVersionError(
                f"the client speaks protocol {hello.protocol_min} to {hello.protocol_max}, "
                f"this broker {PROTOCOL_VERSION}"
            )
        if hello.auth_mechanism != "none":
            raise NotAuthorizedError(
                f"authentication mechanism {hello.auth_mechanism[:40]!r}, expected 'none'"
            )
        ours = self.broker.membership.cluster_id
        if hello.cluster_id in (None, ours):
            return
        expected = f"the client expects cluster {hello.cluster_id[:80]!r}"
        if ours is None:
            # It may become another one, in which the client's group numbers mean other partitions.
            raise UnavailableError(f"{expected}, this broker is of none yet")
        raise InvalidRequestError(f"{expected}, this is {ours!r}")

    async def _refuse(self, frame: Frame, error: LogdError) -> None:
        """Answer the greeting with the error, then let it close the connection."""
        await self._stream.send([_encode_error(frame.kind, frame.correlation_id, error)])
        raise error

    # --- reading ------------------------------------------------------------------------------

    def _check_whole(self) -> None:
        if self._decoder.pending_bytes:
            raise ProtocolError(
                f"the connection ended within a frame, after {self._decoder.pending_bytes} bytes"
            )

    async def _receive(self) -> None:
        self._inbox = Inbox(
            self._stream,
            self._decoder,
            self.broker.node.turn,
            timeout_s=PROGRESS_TIMEOUT_S,
            take=self._take,
            room=self._room,
        )
        await self._inbox.run()
        self._check_whole()

    def _take(self, frame: Frame) -> bool:
        self._dispatch(frame)
        return not self._owes_too_much and self.broker.budget.has_room

    async def _room(self) -> None:
        while self._owes_too_much:
            with self.broker.requests.waits(self._relief):
                await self._relief.park()
        await self.broker.budget.room()
        await self._intake.room()

    def _end_inbox(self, error: OverloadedError) -> None:
        assert self._inbox is not None  # Before the greeting no frame is large.
        self._inbox.cut(error)

    @property
    def _owes_too_much(self) -> bool:
        return self._in_flight >= REQUESTS_IN_FLIGHT_MAX or not (
            self._outbox.has_room
            and (self._tasks < REQUEST_TASKS_ALWAYS or not self.broker.requests.is_crowded)
        )

    def _dispatch(self, frame: Frame) -> None:
        """Begin one request."""
        request_type = _TYPE_BY_KIND.get(frame.kind)
        if request_type is None or frame.kind == Kind.HELLO:
            raise ProtocolError(f"frame kind {frame.kind} is not a request of a client")
        if frame.flags & ~FLAG_LONG:
            raise _flagged(frame)
        if frame.kind == Kind.CREDIT:
            self._subscriptions.add_credit(decode_message(Credit, _short_header(frame)))
            return
        if frame.kind == Kind.WATCH_CREDIT:
            self._watches.add_credit(decode_message(WatchCredit, _short_header(frame)))
            return
        self._in_flight += 1
        try:
            request = decode_message(request_type, _short_header(frame))
            if frame.kind == Kind.PRODUCE:
                assert isinstance(request, ProduceRequest)
                start_produce(self, frame.correlation_id, request, frame.body)
                return
            coordinate = COORDINATION_HANDLERS.get(frame.kind)
            if coordinate is not None:
                coordinate(self, frame.correlation_id, request, frame.body)
                return
            if isinstance(request, SubscribeRequest | UnsubscribeRequest):
                turn = self._subscriptions.turn(request.subscription)
                serve = partial(self._serve_in_turn, frame, request, turn)
            else:
                serve = partial(self._serve, frame, request)
            self._tasks += 1
            self.broker.requests.tasks += 1
            assert self._nursery is not None
            self._nursery.start_soon(self._count, serve)
        except LogdError as error:
            self.fail(frame.kind, frame.correlation_id, error)

    async def _count(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Carry out a request whose task was counted when it was started."""
        try:
            await serve()
        finally:
            self._tasks -= 1
            self.broker.requests.ended()

    async def _serve_in_turn(
        self, frame: Frame, request: SubscribeRequest | UnsubscribeRequest, turn: Turn
    ) -> None:
        """Carry out a request about a subscription behind those that came before it."""
        await turn.wait()
        try:
            await self._serve(frame, request)
        finally:
            self._subscriptions.end_turn(request.subscription, turn)

    async def _serve(self, frame: Frame, request: Message) -> None:
        """Carry out one request that may have to wait."""
        requests = self.broker.requests
        turns = requests.describing if frame.kind in _DESCRIBING else requests.others
        await turns.turn()
        taken_bytes = own_bytes = 0
        try:
            body: CommittedBatches | None = None
            if isinstance(request, SubscribeRequest):
                answer: Message = await self._subscriptions.subscribe(request)
            elif isinstance(request, UnsubscribeRequest):
                self._subscriptions.unsubscribe(request.subscription)
                answer = UnsubscribeResponse()
            elif isinstance(request, FetchRequest):
                await until_committed(self.broker, request)
                taken_bytes = await self._answer_room.take()
                answer, body = await fetch(self.broker, request, taken_bytes)
            elif isinstance(request, OffsetsRequest):
                answer = await offsets(self.broker, request)
            else:
                if frame.kind in _DESCRIBING:
                    own_bytes = await self._answer_room.take_own()
                answer = await ADMIN_HANDLERS[frame.kind](self.broker, request)
        except NoRoomError as error:
            # No descriptor to read with: that is this broker's, and may pass.
            with self.broker.node.turn:
                self.fail(frame.kind, frame.correlation_id, UnavailableError(str(error)))
        except LogdError as error:
            with self.broker.node.turn:
                self.fail(frame.kind, frame.correlation_id, error)
        except OSError as error:
            log.error(log_events.REQUEST_FAILED, kind=frame.kind, error=str(error))
            with self.broker.node.turn:
                self.fail(frame.kind, frame.correlation_id, UnknownServerError(str(error)))
        else:
            with self.broker.node.turn:
                self.answer(frame.kind, frame.correlation_id, answer, body)
        finally:
            if taken_bytes:
                self._answer_room.give_back(taken_bytes)
            if own_bytes:
                self._answer_room.give_back_own(own_bytes)

    # --- answering ----------------------------------------------------------------------------

    def answer(
        self,
        kind: int,
        correlation_id: int,
        message: Message,
        body: CommittedBatches | None = None,
    ) -> None:
        """Queue the answer to a request."""
        body_bytes = 0 if body is None else body.size_bytes
        try:
            head = encode_message(
                kind, message, correlation_id, body_bytes=body_bytes, flags=FLAG_RESPONSE
            )
        except FrameTooLargeError as error:
            # Of a cluster with very many partitions: the client asks for fewer at a time.
            self.fail(kind, correlation_id, error)
            return
        if kind in _DESCRIBING and not self.has_room_for(len(head)):
            self.fail(kind, correlation_id, self.no_room())
            return
        self._settle()
        self._queue((head,) if body is None else (head, *body.buffers), len(head) + body_bytes)

    def answer_with(self, kind: int, correlation_id: int, message: Message, body: bytes) -> None:
        """Queue the answer to a request, with a body that is no batch."""
        head = encode_message(
            kind, message, correlation_id, body_bytes=len(body), flags=FLAG_RESPONSE
        )
        self._settle()
        self._queue(frame_buffers(head, body), len(head) + len(body))

    def fail(self, kind: int, correlation_id: int, error: LogdError) -> None:
        """Queue the refusal of a request."""
        self.broker.count_refusal(error)
        self._settle()
        frame = _encode_error(kind, correlation_id, error)
        self._queue((frame,), len(frame))

    def _settle(self) -> None:
        self._in_flight -= 1
        assert self._in_flight >= 0
        if self._relief:
            self._relief.unpark()

    def _queue(self, buffers: Sequence[Buffer], size_bytes: int) -> None:
        if not self._is_closed:
            self._outbox.push(buffers, size_bytes + QUEUED_FRAME_BYTES)

    def deliver(self, message: Deliver, batches: CommittedBatches) -> None:
        """Push batches to a subscriber."""
        head = encode_message(
            Kind.DELIVER, message, 0, body_bytes=batches.size_bytes, flags=FLAG_PUSH
        )
        self._queue((head, *batches.buffers), len(head) + batches.size_bytes)
        if not self._outbox.has_room:
            self._subscriptions.has_room = False

    def end_subscription(self, subscription: int, generation: int, error: LogdError) -> None:
        """Tell a subscriber that no more will come."""
        message = SubscriptionEnded(
            subscription=subscription, generation=generation, error=_error_message(error)
        )
        head = encode_message(Kind.SUBSCRIPTION_ENDED, message, 0, flags=FLAG_PUSH)
        self._queue((head,), len(head))

    @property
    def takes_more(self) -> bool:
        """There is room for what watches have to say, and for answers that can be had again."""
        return self._outbox.has_room and not self._is_closed

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether so much may be queued that can be had again; ``takes_more`` is asked besides."""
        return size_bytes <= CONNECTION_SEND_BYTES_FREE or self.broker.sends.has_room

    def no_room(self) -> OverloadedError:
        """Why a question has no answer for which ``has_room_for`` has none."""
        return OverloadedError(f"{self.broker.sends.bytes} bytes wait for clients to take them")

    async def until_room(self) -> None:
        """Wait, in line with those who want more to be found for them, until there is room."""
        await self.broker.sends.take(0)

    def push_events(self, frame: Sequence[bytes], size_bytes: int) -> None:
        """Push a frame to whoever watches."""
        self._queue(frame, size_bytes)

    def end_watch(self, watch: int, generation: int, error: LogdError) -> None:
        """Tell a watch that no more will come."""
        message = WatchEnded(watch=watch, generation=generation, error=_error_message(error))
        head = encode_message(Kind.WATCH_ENDED, message, 0, flags=FLAG_PUSH)
        self._queue((head,), len(head))

    def _on_room(self) -> None:
        self._watches.room_is_back()
        self._relief.unpark()
        self._answer_room.is_back()
        self._subscriptions.room_is_back()

    def cut_off(self) -> None:
        """Others wait for the memory of what this client does not take."""
        assert self._nursery is not None
        assert self._outbox.sending_since_s is not None
        waited_s = trio.current_time() - self._outbox.sending_since_s
        self._log_refused(
            f"no progress: {self.queued_bytes} bytes wait for this client, which has not taken "
            f"what it was sent {waited_s:.1f} s ago, and others wait for the memory they hold"
        )
        self._outbox.stop_sharing()
        self._nursery.cancel_scope.cancel()

    async def _send(self) -> None:
        assert self._nursery is not None
        try:
            await self._outbox.run(self._stream)
        except OSError:
            self._nursery.cancel_scope.cancel()


ERROR_DETAILS: Final = ("leader", "log_start", "log_end", "oldest")
"""What of an error goes into the details of its answer, where the error has it."""

_DESCRIBING: Final = frozenset((Kind.METADATA, Kind.DESCRIBE_REBALANCE, Kind.DESCRIBE_BROKER))
"""Questions of a few bytes whose answers may be large."""

_TYPE_BY_KIND: Final = {int(kind): cls for kind, cls in REQUEST_BY_KIND.items()}


def _flagged(frame: Frame) -> ProtocolError:
    return ProtocolError(f"frame kind {frame.kind} with flags {frame.flags}: a request has none")


def _short_header(frame: Frame) -> Buffer:
    """The header of a request, which must not be a long message."""
    if frame.flags & FLAG_LONG:
        raise InvalidRequestError(
            f"a request may not be LONG: the message has {len(frame.header) + len(frame.body)} "
            f"bytes, that of a request may have {HEADER_LENGTH_MAX}, in its header"
        )
    return frame.header


def _error_message(error: LogdError) -> ErrorResponse:
    details = {
        name: getattr(error, name)
        for name in ERROR_DETAILS
        if getattr(error, name, None) is not None
    }
    return ErrorResponse(
        code=error.code or UnknownServerError.code,
        message=str(error),
        may_have_applied=error.may_have_applied,
        details=details,
    )


def _encode_error(kind: int, correlation_id: int, error: LogdError) -> bytes:
    return encode_message(
        kind, _error_message(error), correlation_id, flags=FLAG_RESPONSE | FLAG_ERROR
    )
