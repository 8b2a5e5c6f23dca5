"""A client of coordination that speaks the wire protocol and has no comfort.

It knows nothing that the broker does not tell it, retries what may be retried, and leaves it to
its user to judge what came of that.  Tests of the broker use it, so that an error of the client
library cannot hide one of the broker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import msgspec
import trio

from logd.env import ByteStream
from logd.errors import (
    ERROR_BY_CODE,
    ConnectionLostError,
    LogdError,
    NotLeaderError,
    RequestError,
    UnknownServerError,
    UnknownTopicError,
)
from logd.types import HostPort
from logd.wire.coordination import (
    COORDINATION_TOPIC,
    Answer,
    Command,
    Event,
    Opened,
    OpenSession,
    Query,
    Refused,
    Result,
    partition_of,
)
from logd.wire.frame import FrameDecoder, decode_message, encode_message
from logd.wire.messages import (
    CoordinateRequest,
    CoordinateResponse,
    ErrorResponse,
    HelloRequest,
    HelloResponse,
    KeepAliveRequest,
    KeepAliveResponse,
    Kind,
    Message,
    MetadataRequest,
    MetadataResponse,
    QueryRequest,
    QueryResponse,
    WatchEnded,
    WatchEvents,
)

M = TypeVar("M", bound=Message)

ENCODER: Final = msgspec.msgpack.Encoder()
RESULT: Final[msgspec.msgpack.Decoder[Result]] = msgspec.msgpack.Decoder(Result)
ANSWER: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)
EVENTS: Final = msgspec.msgpack.Decoder(list[Event])
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024

Dial = Callable[[HostPort], Awaitable[ByteStream]]


def refusal_of(code: int, message: str) -> RequestError:
    """The error behind a refusal."""
    error_type = ERROR_BY_CODE.get(code, UnknownServerError)
    assert issubclass(error_type, RequestError)
    return error_type(message)


class Connection:
    """One connection: requests in any number, answers in any order, pushes as they come."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(FRAME_BYTES_MAX, long_messages=True)
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._next_id = 1
        self.is_lost = False
        self.events: list[tuple[WatchEvents, list[Event]]] = []
        self.ended: list[WatchEnded] = []
        self.pushed = trio.Condition()

    async def run(self) -> None:
        """Read until the connection ends."""
        try:
            while True:
                while (frame := self._decoder.next_frame()) is None:
                    count = await self._stream.receive_into(self._decoder.writable())
                    if count == 0:
                        return
                    self._decoder.received(count)
                if frame.is_push:
                    if frame.kind == Kind.WATCH_EVENTS:
                        told = decode_message(WatchEvents, frame.header)
                        self.events.append((told, EVENTS.decode(frame.body)))
                    else:
                        self.ended.append(decode_message(WatchEnded, frame.header))
                    async with self.pushed:
                        self.pushed.notify_all()
                    continue
                waiting = self._waiting.pop(frame.correlation_id, None)
                if waiting is not None:
                    waiting[1].append(frame)
                    waiting[0].set()
        except OSError:
            pass
        finally:
            self.is_lost = True
            for event, _ in self._waiting.values():
                event.set()
            self._stream.abort()

    async def send(self, kind: Kind, message: Message, body: bytes = b"") -> int:
        """Send a request; its answer comes with ``answer``."""
        correlation_id = self._next_id
        self._next_id += 1
        self._waiting[correlation_id] = (trio.Event(), [])
        head = encode_message(kind, message, correlation_id, body_bytes=len(body))
        try:
            await self._stream.send((head, body))
        except OSError as error:
            self.is_lost = True
            raise ConnectionLostError(str(error)) from error
        return correlation_id

    async def ask(
        self, kind: Kind, message: Message, answer_type: type[M], body: bytes = b""
    ) -> tuple[M, bytes]:
        """One request and its answer.

        Raises:
            LogdError: it was refused, or the connection is lost.
        """
        if self.is_lost:
            raise ConnectionLostError("the connection is lost")
        event, answers = self._waiting[await self.send(kind, message, body)]
        await event.wait()
        if not answers:
            raise ConnectionLostError("the connection was lost")
        frame = answers[0]
        if frame.is_error:
            told = decode_message(ErrorResponse, frame.header)
            error = refusal_of(told.code, told.message)
            error.may_have_applied = told.may_have_applied
            if isinstance(error, NotLeaderError):
                error.leader = told.details.get("leader")
            raise error
        return decode_message(answer_type, frame.header), bytes(frame.body)


@asynccontextmanager
async def connected(stream: ByteStream) -> AsyncIterator[Connection]:
    """A connection that has greeted."""
    async with trio.open_nursery() as nursery:
        connection = Connection(stream)
        nursery.start_soon(connection.run)
        try:
            await connection.ask(Kind.HELLO, HelloRequest(client="wire"), HelloResponse)
            yield connection
        finally:
            stream.abort()
            nursery.cancel_scope.cancel()


class WireClient:
    """Finds leaders, and asks them again and again."""

    def __init__(
        self, dial: Dial, bootstrap: list[HostPort], nursery: trio.Nursery, timeout_s: float = 5.0
    ) -> None:
        self._dial = dial
        self._bootstrap = bootstrap
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._connections: dict[HostPort, Connection] = {}
        self._addresses: dict[int, HostPort] = {}
        self.topics = [COORDINATION_TOPIC]
        """Whose leaders to know."""
        self.groups: list[int] = []
        """Of the coordination log."""
        self.leaders: dict[int, int | None] = {}
        self._turn = 0

    async def connection(self, address: HostPort) -> Connection:
        found = self._connections.get(address)
        if found is not None and not found.is_lost:
            return found
        try:
            with trio.fail_after(self._timeout_s):
                stream = await self._dial(address)
                found = Connection(stream)
                self._nursery.start_soon(found.run)
                await found.ask(Kind.HELLO, HelloRequest(client="wire"), HelloResponse)
        except (OSError, trio.TooSlowError) as error:
            raise ConnectionLostError(f"{address}: {error}") from error
        self._connections[address] = found
        return found

    async def refresh(self) -> None:
        """Learn where the partitions are; makes the topic the first time."""
        self._turn += 1
        # Those that are known from the start may all have been removed since.
        addresses = list(dict.fromkeys([*self._bootstrap, *self._addresses.values()]))
        address = addresses[self._turn % len(addresses)]
        connection = await self.connection(address)
        with trio.move_on_after(self._timeout_s):
            answer, _ = await connection.ask(
                Kind.METADATA, MetadataRequest(topics=self.topics), MetadataResponse
            )
            self._addresses = {b.node_id: HostPort(b.host, b.port) for b in answer.brokers}
            for topic in answer.topics:
                if topic.name == COORDINATION_TOPIC:
                    self.groups = [placed.group for placed in topic.partitions]
                for placed in topic.partitions:
                    if placed.leader is not None:
                        self.leaders[placed.group] = placed.leader

    async def group_of(self, namespace: str) -> int:
        while not self.groups:
            with suppress(LogdError):
                await self.refresh()
            if not self.groups:
                await trio.sleep(0.1)
        return self.groups[partition_of(namespace, len(self.groups))]

    async def leader(self, group: int) -> Connection:
        node = self.leaders.get(group)
        if node is None or node not in self._addresses:
            await self.refresh()
            node = self.leaders.get(group)
        if node is None or node not in self._addresses:  # Nobody may have answered.
            raise NotLeaderError("no leader is known")
        return await self.connection(self._addresses[node])

    async def ask_leader(
        self, group: int, kind: Kind, message: Message, answer_type: type[M], body: bytes = b""
    ) -> tuple[M, bytes]:
        """Ask whoever seems to lead, once.

        Raises:
            LogdError: refused, lost, or not answered in time.
        """
        try:
            connection = await self.leader(group)
            with trio.fail_after(self._timeout_s):
                return await connection.ask(kind, message, answer_type, body)
        except trio.TooSlowError:
            self.leaders.pop(group, None)
            raise ConnectionLostError("no answer in time") from None
        except NotLeaderError as error:
            self.leaders[group] = error.leader
            raise
        except LogdError:
            self.leaders.pop(group, None)
            raise

    async def until_answered(
        self,
        group: int,
        kind: Kind,
        message: Message,
        answer_type: type[M],
        body: bytes = b"",
    ) -> tuple[M, bytes]:
        """As ``ask_leader``, again and again while that can help.

        Raises:
            LogdError: refused for good.
        """
        while True:
            try:
                return await self.ask_leader(group, kind, message, answer_type, body)
            except UnknownTopicError:
                pass  # It has moved away from there: the topic itself is never deleted.
            except LogdError as error:
                if not error.retriable:
                    raise
            await trio.sleep(0.05)

    async def command(
        self,
        namespace: str,
        command: Command,
        *,
        session: int = 0,
        sequence: int = 0,
        acknowledged: int = 0,
        timeout_ms: int = 3_000,
    ) -> Result:
        """Have a command carried out, however often it must be sent."""
        group = await self.group_of(namespace)
        request = CoordinateRequest(
            group=group,
            namespace=namespace,
            session=session,
            sequence=sequence,
            acknowledged=acknowledged,
            timeout_ms=timeout_ms,
        )
        _, body = await self.until_answered(
            group, Kind.COORDINATE, request, CoordinateResponse, ENCODER.encode(command)
        )
        return RESULT.decode(body)

    async def query(
        self, namespace: str, query: Query, *, wait_ms: int = 0, timeout_ms: int = 3_000
    ) -> Answer:
        group = await self.group_of(namespace)
        request = QueryRequest(
            group=group, namespace=namespace, wait_ms=wait_ms, timeout_ms=timeout_ms
        )
        _, body = await self.until_answered(
            group, Kind.QUERY, request, QueryResponse, ENCODER.encode(query)
        )
        return ANSWER.decode(body)

    async def keep_alive(self, namespace: str, sessions: list[int]) -> list[int]:
        group = await self.group_of(namespace)
        answer, _ = await self.ask_leader(
            group,
            Kind.KEEP_ALIVE,
            KeepAliveRequest(group=group, sessions=sessions),
            KeepAliveResponse,
        )
        return answer.expired

    async def open_session(self, namespace: str, token: bytes, ttl_ms: int) -> WireSession:
        result = await self.command(namespace, OpenSession(token=token, ttl_ms=ttl_ms))
        if isinstance(result, Refused):
            raise refusal_of(result.code, result.message)
        assert isinstance(result, Opened)
        return WireSession(self, namespace, result.session, result.ttl_ms)


class WireSession:
    """One session; its commands are numbered, and sent until they are answered."""

    def __init__(self, client: WireClient, namespace: str, session: int, ttl_ms: int) -> None:
        self.client = client
        self.namespace = namespace
        self.session = session
        self.ttl_ms = ttl_ms
        self.deadline = trio.current_time() + ttl_ms / 1000
        """Until then it certainly lives, by our own clock."""
        self.is_expired = False
        self.is_closing = False
        """Whoever uses it has begun to close it."""
        self._sequence = 0
        self._open: dict[int, None] = {}

    async def do(self, command: Command) -> Result:
        """Have a command carried out once.

        Raises:
            RequestError: it was judged and refused.
        """
        self._sequence += 1
        sequence = self._sequence
        self._open[sequence] = None
        try:
            result = await self.client.command(
                self.namespace,
                command,
                session=self.session,
                sequence=sequence,
                acknowledged=next(iter(self._open)),
            )
        finally:
            del self._open[sequence]
        if isinstance(result, Refused):
            raise refusal_of(result.code, result.message)
        return result

    async def stay(self) -> None:
        """Keep alive until cancelled or expired."""
        while not self.is_expired:
            sent = trio.current_time()
            try:
                expired = await self.client.keep_alive(self.namespace, [self.session])
            except LogdError:
                await trio.sleep(0.05)
                continue
            if self.session in expired:
                self.is_expired = True
            else:
                self.deadline = max(self.deadline, sent + self.ttl_ms / 1000)
            await trio.sleep(self.ttl_ms / 4000)

    @property
    def is_certain(self) -> bool:
        """It lives, whatever the broker may think."""
        return not self.is_expired and trio.current_time() < self.deadline
