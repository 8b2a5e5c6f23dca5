"""The frames of coordination: read, checked at the border, and handed to the partition.

All but one are carried out by whoever reads the connection, and answered by a call: a task for
each would cost more than the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from logd.broker.coordination.freeing import frees
from logd.broker.coordination.levels import known_at
from logd.errors import InvalidRequestError, LogdError, OverloadedError
from logd.limits import (
    COORDINATION_TIMEOUT_MS_MAX,
    COORDINATION_WAIT_MS_MAX,
    SESSIONS_PER_KEEP_ALIVE_MAX,
)
from logd.wire.coordination import Answer, Command, Query, Result
from logd.wire.messages import (
    CoordinateRequest,
    CoordinateResponse,
    KeepAliveRequest,
    KeepAliveResponse,
    Kind,
    QueryRequest,
    QueryResponse,
    UnwatchRequest,
    UnwatchResponse,
    WatchRequest,
    WatchResponse,
)

if TYPE_CHECKING:
    from logd.broker.session import Session
    from logd.types import Buffer

REQUEST_OVERHEAD_BYTES: Final = 1024
"""What a command that waits costs beside its bytes; keeps floods of tiny ones within the budget."""

T = TypeVar("T")

_ENCODER: Final = msgspec.msgpack.Encoder()
_COMMAND: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)
_QUERY: Final[msgspec.msgpack.Decoder[Query]] = msgspec.msgpack.Decoder(Query)
_DONE: Final = CoordinateResponse()
_ANSWERED: Final = QueryResponse()


def coordinate(
    session: Session, correlation_id: int, request: CoordinateRequest, body: Buffer
) -> None:
    """Have a command committed and applied."""
    broker = session.broker
    _check_range("timeout_ms", request.timeout_ms, 1, COORDINATION_TIMEOUT_MS_MAX)
    command = _decode(_COMMAND, "command", body)
    partition = broker.coordination.find_home(broker, request.group, request.namespace)
    command = known_at(broker.metadata.state.feature_level, command)
    if broker.disk.is_full and not frees(command):
        broker.disk.check()
    cost = len(body) + REQUEST_OVERHEAD_BYTES

    def answered(outcome: Result | LogdError) -> None:
        broker.budget.give_back(cost)
        if isinstance(outcome, LogdError):
            session.fail(Kind.COORDINATE, correlation_id, outcome)
        else:
            session.answer_with(Kind.COORDINATE, correlation_id, _DONE, _ENCODER.encode(outcome))

    broker.budget.take(cost)
    try:
        partition.submit(
            request.namespace,
            request.session,
            request.sequence,
            request.acknowledged,
            command,
            size_bytes=len(body),
            timeout_ms=request.timeout_ms,
            answer=answered,
        )
    except LogdError:
        broker.budget.give_back(cost)
        raise


def query(session: Session, correlation_id: int, request: QueryRequest, body: Buffer) -> None:
    """Answer a question, now or when the ticket that it is about is granted or gone."""
    broker = session.broker
    _check_range("timeout_ms", request.timeout_ms, 1, COORDINATION_TIMEOUT_MS_MAX)
    _check_range("wait_ms", request.wait_ms, 0, COORDINATION_WAIT_MS_MAX)
    asked = _decode(_QUERY, "query", body)
    partition = broker.coordination.find_home(broker, request.group, request.namespace)

    def answered(outcome: Answer | LogdError) -> None:
        if isinstance(outcome, LogdError):
            session.fail(Kind.QUERY, correlation_id, outcome)
        elif not session.takes_more:
            # A few bytes ask for megabytes: who does not take them is not told any more.
            error = OverloadedError(
                f"{session.queued_bytes} bytes wait for this client to take them"
            )
            session.fail(Kind.QUERY, correlation_id, error)
        else:
            found = _ENCODER.encode(outcome)
            if session.has_room_for(len(found)):
                session.answer_with(Kind.QUERY, correlation_id, _ANSWERED, found)
            else:
                session.fail(Kind.QUERY, correlation_id, session.no_room())

    partition.query(request.namespace, asked, request.wait_ms, answered, session.is_there)


def keep_alive(
    session: Session, correlation_id: int, request: KeepAliveRequest, body: Buffer
) -> None:
    """Renew sessions."""
    broker = session.broker
    if len(request.sessions) > SESSIONS_PER_KEEP_ALIVE_MAX:
        raise InvalidRequestError(
            f"{len(request.sessions)} sessions, at most {SESSIONS_PER_KEEP_ALIVE_MAX} at a time"
        )
    partition = broker.coordination.find(broker, request.group)

    def answered(outcome: list[int] | LogdError) -> None:
        if isinstance(outcome, LogdError):
            session.fail(Kind.KEEP_ALIVE, correlation_id, outcome)
        else:
            session.answer(Kind.KEEP_ALIVE, correlation_id, KeepAliveResponse(expired=outcome))

    partition.keep_alive(request.sessions, answered)


def watch(session: Session, correlation_id: int, request: WatchRequest, body: Buffer) -> None:
    """Begin to push what changes."""
    broker = session.broker
    if request.revision is not None and request.revision < 0:
        raise InvalidRequestError(f"revision is {request.revision}, below 0")
    partition = broker.coordination.find_home(broker, request.group, request.namespace)
    watches = session.watches
    watches.ask(request)

    def confirmed(doubt: LogdError | None) -> None:
        try:
            if doubt is not None:
                raise doubt
            partition.check_serving()
            partition.watches.check_room(request.namespace)
            position = partition.revision
            if request.revision is not None:
                position = max(request.revision, 1) - 1
                partition.state.history(
                    request.namespace, request.kind, request.start, request.end, position + 1
                )
            watches.begin(request, partition, position)
        except LogdError as error:
            watches.forget(request)
            session.fail(Kind.WATCH, correlation_id, error)
        else:
            session.answer(Kind.WATCH, correlation_id, WatchResponse(revision=position))

    try:
        partition.confirmed(confirmed)
    except LogdError:
        watches.forget(request)
        raise


def unwatch(session: Session, correlation_id: int, request: UnwatchRequest, body: Buffer) -> None:
    session.watches.unwatch(request.watch)
    session.answer(Kind.UNWATCH, correlation_id, UnwatchResponse())


def _decode(decoder: msgspec.msgpack.Decoder[T], what: str, body: Buffer) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is no {what}: {error}") from error


def _check_range(name: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        raise InvalidRequestError(f"{name} is {found}, expected {least} to {most}")


COORDINATION_HANDLERS: Final[dict[int, Callable[[Session, int, Any, Buffer], None]]] = {
    Kind.COORDINATE: coordinate,
    Kind.QUERY: query,
    Kind.KEEP_ALIVE: keep_alive,
    Kind.WATCH: watch,
    Kind.UNWATCH: unwatch,
}
"""Request kind → handler, which answers by a call, now or later."""
