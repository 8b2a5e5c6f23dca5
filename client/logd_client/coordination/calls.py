"""Asking the coordination log: find a namespace's leader, ask it, ask again.

A command of a session carries a sequence, and the log keeps its result until we say that we
have it.  So a command whose answer was lost is simply sent again, wherever the leader is by
then, and takes effect once.  That is also why silence is not waited out: an attempt ends after
a second or two and the next one goes to whoever leads.

Questions that may be held back (``wait_ms``) travel on a connection of their own, and only so
many at a time: a broker reads no further from a connection with too many requests open, and a
thousand who wait for locks must not keep those who hold them from giving them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import msgspec

from logd.errors import (
    ERROR_BY_CODE,
    ConnectionFailedError,
    InvalidRequestError,
    LogdError,
    NotLeaderError,
    OverloadedError,
    ProtocolError,
    QuotaExceededError,
    RequestTimeoutError,
    SessionExpiredError,
    UnavailableError,
    UnknownServerError,
    UnknownTopicError,
    UsageError,
)
from logd.limits import (
    COMMAND_BYTES_MAX,
    FRAME_BYTES_MAX,
    FRAME_HEADER_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    REQUESTS_IN_FLIGHT_MAX,
)
from logd.types import GroupId, NodeId
from logd.wire.coordination import (
    COORDINATION_TOPIC,
    Answer,
    Command,
    Query,
    Refused,
    Result,
    partition_of,
)
from logd.wire.messages import (
    KeepAliveRequest,
    KeepAliveResponse,
    Message,
    QueryRequest,
    TopicInfo,
)
from logd_client.backoff import Backoff
from logd_client.connection import Answer as ConnectionAnswer
from logd_client.connection import Connection, Lane
from logd_client.routing import Routing

if TYPE_CHECKING:
    from logd_client.coordination.feeds import Feed, Subject

ATTEMPT_TIMEOUT_S: Final = 2.0
"""A leader that says nothing for this long may be none any more."""

ATTEMPT_TIMEOUT_S_MAX: Final = 16.0
"""It may also only be slow: each attempt waits twice as long as the one before."""

WAIT_S_MAX: Final = 5.0
"""How long a question is held back at most; then it is asked again."""

WAIT_S_CROWDED: Final = 0.5
"""The same while others are in line to ask."""

WAITERS_MAX: Final = REQUESTS_IN_FLIGHT_MAX // 2

CREATION_TIMEOUT_S: Final = 15.0
"""How long the topic may take to come to be, the first time that anybody asks for it."""

ENCODED_BYTES_MAX: Final = FRAME_BYTES_MAX - FRAME_HEADER_BYTES_MAX - FRAME_PREFIX_BYTES
"""What is longer fits no frame.  What is shorter and yet too long the leader refuses, by name."""

assert COMMAND_BYTES_MAX < ENCODED_BYTES_MAX

_GROUPS_REMEMBERED: Final = 1_000
_COMMANDS: Final = msgspec.msgpack.Encoder()
_RESULTS: Final = msgspec.msgpack.Decoder(Result)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer)


MakeRequest = Callable[[GroupId, int], Message]
"""Makes the request of one attempt just before it is sent: to which group, for how long (ms)."""


class _Failed(NamedTuple):
    """An attempt that did not get an answer."""

    error: LogdError
    began: float
    node: NodeId | None


class Calls:
    """The way to the coordination log, for all of one client."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.clock = routing.environment.clock
        self.lease_clock = routing.environment.lease_clock
        self._waiters = anyio.CapacityLimiter(WAITERS_MAX)
        self._groups: dict[str, tuple[TopicInfo, GroupId]] = {}
        """By namespace: where it lives, and by which description of the topic."""
        self.feeds: dict[Subject, Feed] = {}
        """Of watches that began "from now on": those of the same share one."""

    # --- commands -----------------------------------------------------------------------

    async def command(
        self,
        namespace: str,
        command: Command,
        request: MakeRequest,
        *,
        timeout_s: float | None = None,
    ) -> Result:
        """Have ``command`` carried out, once, and return its result.

        Args:
            request: makes the request of each attempt; without a sequence only of what may be
                repeated without harm.

        Raises:
            LogdError: it was refused, with ``may_have_applied`` False; or time is up, and
                ``may_have_applied`` says whether an attempt may still take effect.

        Cancelled, it may still be carried out.
        """
        body = encoded(command)
        answer: ConnectionAnswer | None = None
        is_in_doubt = False
        failed: _Failed | None = None
        group = self._known_group(namespace)
        connection = None if group is None else self._usual_connection(group)
        if group is not None and connection is not None:
            # The first attempt, as it usually goes.
            began = self.clock()
            this_s = self._attempt_s(timeout_s)
            message = request(group, max(1, int(this_s * 1000)))
            try:
                answer = await connection.exchange(message, body, this_s)
            except LogdError as error:
                failed = _Failed(error, began, connection.node)
        if answer is None:
            answer, is_in_doubt = await self._ask(
                namespace, request, body, Lane.COORDINATE, timeout_s, failed=failed
            )
        result: Result = _decoded(_RESULTS, answer)
        if type(result) is Refused:
            refusal = error_from_refusal(result)
            # The results of a session go with it, also that of an earlier attempt; who has adopted
            # it too may have acknowledged that; and what finds no room for its result leaves no
            # trace: an earlier attempt may yet arrive and find it.
            says_nothing = isinstance(
                refusal, SessionExpiredError | OverloadedError | InvalidRequestError
            )
            refusal.may_have_applied = is_in_doubt and says_nothing
            raise refusal
        return result

    def _usual_connection(self, group: GroupId) -> Connection | None:
        """The connection to a group's leader, if it is known and open."""
        leader = self.routing.view.leader(group)
        return None if leader is None else self.routing.open_connection(leader, Lane.COORDINATE)

    def _attempt_s(self, timeout_s: float | None) -> float:
        limit_s = self.routing.request_timeout_s if timeout_s is None else timeout_s
        return max(min(ATTEMPT_TIMEOUT_S, limit_s), 0.001)

    # --- questions ----------------------------------------------------------------------

    async def query(
        self, namespace: str, query: Query, *, wait_s: float = 0, timeout_s: float | None = None
    ) -> Answer:
        """Read.  The answer knows of all that was acknowledged before the call.

        Args:
            wait_s: at least about how long it may be held back, if the query can be.

        Raises:
            LogdError: it was refused, or could not be answered in time.
        """
        body = encoded(query)
        if not wait_s:
            return await self._question(namespace, body, Lane.COORDINATE, timeout_s, 0)
        async with self._waiters:
            held_s = min(wait_s, WAIT_S_MAX)
            if self._waiters.statistics().tasks_waiting:
                held_s = min(held_s, WAIT_S_CROWDED)
            return await self._question(namespace, body, Lane.WAIT, timeout_s, held_s)

    async def _question(
        self, namespace: str, body: bytes, lane: Lane, timeout_s: float | None, held_s: float
    ) -> Answer:
        request = _query_of(namespace, int(held_s * 1000))
        try:
            answer, _ = await self._ask(namespace, request, body, lane, timeout_s, held_s=held_s)
        except LogdError as error:
            error.may_have_applied = False  # Whatever became of it, it changes nothing.
            raise
        return _checked(answer)

    # --- keep-alives --------------------------------------------------------------------

    async def keep_alive(self, group: GroupId, sessions: list[int], timeout_s: float) -> list[int]:
        """Renew sessions, in one attempt; those that have expired.

        Raises:
            LogdError: the leader could not be asked.
        """
        connection = await self.routing.leader_connection(group, Lane.SESSION, 0)
        try:
            request = KeepAliveRequest(group=group, sessions=sessions)
            response = (await connection.exchange(request, b"", timeout_s)).message
        except NotLeaderError as error:
            self._note_leader(group, error)
            raise
        assert isinstance(response, KeepAliveResponse)
        return response.expired

    # --- finding and asking the leader ----------------------------------------------------

    async def group_of(self, namespace: str) -> GroupId:
        """Where a namespace lives.  The first to ask ever makes the cluster create the topic.

        Raises:
            LogdError: nobody could tell.
        """
        known = self.routing.view.topic(COORDINATION_TOPIC)
        topic = known if known is not None else await self._await_topic()
        number = partition_of(namespace, len(topic.partitions))
        group = next(GroupId(row.group) for row in topic.partitions if row.partition == number)
        if len(self._groups) >= _GROUPS_REMEMBERED:
            self._groups.clear()
        self._groups[namespace] = (topic, group)
        return group

    def _known_group(self, namespace: str) -> GroupId | None:
        """``group_of``, if it was asked for this namespace since the topic was last described."""
        topic, group = self._groups.get(namespace, (None, None))
        return group if topic is not None and topic is self._topic() else None

    def _topic(self) -> TopicInfo | None:
        return self.routing.view.topic(COORDINATION_TOPIC)

    async def _await_topic(self) -> TopicInfo:
        deadline = self.clock() + CREATION_TIMEOUT_S
        backoff = Backoff(self.routing.environment.rng)
        while True:
            try:
                return await self.routing.topic(COORDINATION_TOPIC)
            except UnknownTopicError as error:
                delay_s = backoff.next_delay_s()
                if self.clock() + delay_s >= deadline:
                    raise UnavailableError(
                        f"the cluster has no topic {COORDINATION_TOPIC} yet, although it was asked "
                        f"for {CREATION_TIMEOUT_S:g} s: is there a majority of the controllers?"
                    ) from error
                await anyio.sleep(delay_s)

    async def find_leader(
        self, group: GroupId, lane: Lane, failures: int, suspect: NodeId | None
    ) -> Connection:
        """The connection to ask next; after a failure the cluster is asked first who leads."""
        if failures:
            await self.look_again(group, failures, suspect)
        return await self.routing.leader_connection(group, lane, failures)

    async def look_again(self, group: GroupId, failures: int, suspect: NodeId | None) -> None:
        """Ask the cluster who leads; see ``Routing.look_again``."""
        await self.routing.look_again(COORDINATION_TOPIC, group, failures, suspect)

    async def _ask(
        self,
        namespace: str,
        request: MakeRequest,
        body: bytes,
        lane: Lane,
        timeout_s: float | None,
        *,
        held_s: float = 0,
        failed: _Failed | None = None,
    ) -> tuple[ConnectionAnswer, bool]:
        """The answer, and whether an earlier attempt may have taken effect.

        ``failed``: an attempt that was made already, the first.
        """
        backoff = Backoff(self.routing.environment.rng)
        timeout_s = self.routing.request_timeout_s if timeout_s is None else timeout_s
        began = self.clock() if failed is None else failed.began
        deadline = began + timeout_s + held_s
        attempt_s = ATTEMPT_TIMEOUT_S
        is_in_doubt = False
        is_redirected = False
        suspect = None if failed is None else failed.node
        error = None if failed is None else failed.error
        told = error
        while True:
            if error is None:
                try:
                    group = self._known_group(namespace)
                    if group is None:
                        group = await self.group_of(namespace)
                        if not backoff.failures:
                            # The first to ask ever waits for the topic to be made, besides.
                            deadline = self.clock() + timeout_s + held_s
                    failures = 0 if is_redirected else backoff.failures
                    connection: Connection | None = None
                    with anyio.move_on_after(deadline - self.clock()):
                        connection = await self.find_leader(group, lane, failures, suspect)
                    if connection is None:
                        limit = f"not connected within {timeout_s:.3g} s"
                        raise told or ConnectionFailedError(limit)
                    suspect = connection.node
                    this_s = max(min(attempt_s + held_s, deadline - self.clock()), 0.001)
                    message = request(group, max(1, int(this_s * 1000)))
                    return await connection.exchange(message, body, this_s), is_in_doubt
                except LogdError as met:
                    error = met
            is_in_doubt = is_in_doubt or error.may_have_applied
            delay_s = backoff.next_delay_s()
            is_over = self.clock() + delay_s >= deadline
            if is_over or not (error.retriable or isinstance(error, UnknownTopicError)):
                error.may_have_applied = is_in_doubt
                raise error
            is_redirected = self._is_redirected(error, namespace) and backoff.failures == 1
            if isinstance(error, RequestTimeoutError):
                attempt_s = min(2 * attempt_s, ATTEMPT_TIMEOUT_S_MAX)
            if not is_redirected:
                await anyio.sleep(delay_s)
            told, error = error, None

    def _is_redirected(self, error: LogdError, namespace: str) -> bool:
        topic = self.routing.view.topic(COORDINATION_TOPIC)
        if not isinstance(error, NotLeaderError) or topic is None:
            return False
        number = partition_of(namespace, len(topic.partitions))
        for row in topic.partitions:
            if row.partition == number:
                self._note_leader(GroupId(row.group), error)
        return error.leader is not None

    def _note_leader(self, group: GroupId, error: NotLeaderError) -> None:
        leader = None if error.leader is None else NodeId(error.leader)
        self.routing.view.note_leader(group, leader)


def _query_of(namespace: str, wait_ms: int) -> MakeRequest:
    def request(group: GroupId, timeout_ms: int) -> Message:
        return QueryRequest(
            group=group, namespace=namespace, wait_ms=wait_ms, timeout_ms=timeout_ms
        )

    return request


def error_from_refusal(refused: Refused) -> LogdError:
    """The exception for a command that was judged and took no effect."""
    found = ERROR_BY_CODE.get(refused.code)
    if found is None:
        error: LogdError = UnknownServerError(
            f"error code {refused.code}, unknown to this client: {refused.message}"
        )
    else:
        error = found(refused.message)
    error.may_have_applied = False
    return error


def _checked(received: ConnectionAnswer) -> Answer:
    answer: Answer = _decoded(_ANSWERS, received)
    if isinstance(answer, Refused):
        raise error_from_refusal(answer)
    return answer


def encoded(message: Command | Query) -> bytes:
    try:
        body = _COMMANDS.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        # An argument of the caller's: half a character, a number beyond 64 bits.
        raise UsageError(f"{type(message).__name__} cannot be sent: {error}") from error
    if len(body) > ENCODED_BYTES_MAX:
        raise QuotaExceededError(
            f"a command holds at most {COMMAND_BYTES_MAX:,} bytes, found {len(body):,}: "
            "send several, or less"
        )
    return body


def _decoded(decoder: Any, answer: ConnectionAnswer) -> Any:
    try:
        return decoder.decode(answer.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a result cannot be read: {error}") from error
