"""``connect`` and the client: one cluster, its connections, and what is made on them.

All background tasks of a client live in one task group, which is the client's own: an
exception in the body of ``async with connect(...)`` leaves it as it is, not wrapped in an
exception group.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

import anyio
from anyio.abc import TaskGroup

from logd.errors import UsageError
from logd_client.admin import Admin
from logd_client.arguments import ANOTHER_LOOP, require_between, require_text
from logd_client.background import Background
from logd_client.bootstrap import parse_bootstrap
from logd_client.consumer import Consumer
from logd_client.consumer_options import (
    CREDIT_BYTES_DEFAULT,
    ConsumerOptions,
    OnMalformed,
    OnTrimmed,
    Start,
    Starts,
    Stop,
)
from logd_client.coordination.calls import Calls
from logd_client.coordination.sessions import SESSION_TTL_MS_DEFAULT, Sessions, require_ttl
from logd_client.coordination.surface import Coordination
from logd_client.environment import Environment, lease_clock, wall_clock_ms
from logd_client.event_loop import current_loop, current_task, monotonic_clock
from logd_client.producer import (
    BATCH_BYTES_DEFAULT,
    BATCHES_IN_FLIGHT_DEFAULT,
    BUFFER_BYTES_DEFAULT,
    DELIVERY_TIMEOUT_MS_DEFAULT,
    Compression,
    Producer,
    ProducerOptions,
)
from logd_client.routing import Routing
from logd_client.transport import TcpTransport, Transport

BOOTSTRAP_DEFAULT: Final = "127.0.0.1:7171"
CLIENT_ID_DEFAULT: Final = "logd_client"
CONNECT_TIMEOUT_MS_DEFAULT: Final = 5_000
REQUEST_TIMEOUT_MS_DEFAULT: Final = 30_000
_TIMEOUT_MS_MAX: Final = 24 * 3600 * 1000
_CLIENT_ID_CHARACTERS_MAX: Final = 200
_NOT_OPEN: Final = "the client is not open: use `async with connect(...)`"


def connect(
    bootstrap: str = BOOTSTRAP_DEFAULT,
    *,
    client_id: str = CLIENT_ID_DEFAULT,
    connect_timeout_ms: int = CONNECT_TIMEOUT_MS_DEFAULT,
    request_timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    session_ttl_ms: int = SESSION_TTL_MS_DEFAULT,
    transport: Transport | None = None,
    clock: Callable[[], float] | None = None,
    wall_clock_ms: Callable[[], int] = wall_clock_ms,
    rng: random.Random | None = None,
) -> Client:
    """A client of one cluster; use as ``async with connect(...) as client``.

    Runs under asyncio and under trio.  Entering it meets one broker of the list and learns
    about the others from it; leaving it closes whatever was made with it.
    One task enters and leaves it: another one that leaves it closes it, and gets a ``UsageError``.
    Left again, it stays closed.

    A process that is forked off meanwhile has no use for it, whose connections are the other one's:
    ``UsageError``.  Such a process had better end by ``os._exit``, as ``multiprocessing`` sees to:
    the event loop, of which it leaves the block, shares more with the other one's.

    Args:
        bootstrap: ``HOST:PORT[,HOST:PORT...]``, IPv6 addresses in brackets.
        client_id: names this client in the brokers' logs.
        connect_timeout_ms: how long meeting the cluster, and each connection, may take.
        request_timeout_ms: how long one request, with its repetitions, may take.
        session_ttl_ms: how long locks, memberships and the like stay this client's after the
            brokers heard from it last.  Shorter: a crash keeps others waiting less; longer: it
            gets over longer pauses.
        transport: makes connections; default: TCP.
        clock: monotonic seconds; default: the event loop's, and for leases one that goes on while
            the machine is suspended.
        wall_clock_ms: milliseconds since 1970-01-01T00:00Z, for records' timestamps.
        rng: for jitter and for spreading load.  Only beside a ``transport``, in a world that is
            simulated, also for the tokens by which the brokers tell sessions apart: two clients
            that draw the same are one to them, and both hold what one was granted.

    Raises, on entering:
        ConnectionFailedError: no broker could be reached within ``connect_timeout_ms``; names
            each address and its reason.
        ProtocolError: something else than logd answers there; says what.

    Raises:
        UsageError: the bootstrap list cannot be read, or a timeout is not positive, or longer
            than a day.
    """
    for name, value in (
        ("connect_timeout_ms", connect_timeout_ms),
        ("request_timeout_ms", request_timeout_ms),
    ):
        require_between(name, value, 1, _TIMEOUT_MS_MAX)
    require_text("client_id", client_id)
    require_text("bootstrap", bootstrap)
    if len(client_id) > _CLIENT_ID_CHARACTERS_MAX:
        raise UsageError(f"client_id is longer than {_CLIENT_ID_CHARACTERS_MAX} characters")
    addresses = parse_bootstrap(bootstrap)
    require_ttl("session_ttl_ms", session_ttl_ms)

    def make_routing(tasks: Background) -> Routing:
        environment = Environment(
            transport or TcpTransport(),
            clock or monotonic_clock(),
            wall_clock_ms,
            rng or random.Random(),
            clock or lease_clock,
            random.SystemRandom() if rng is None or transport is None else rng,
        )
        return Routing(
            addresses,
            environment,
            tasks,
            client_id=client_id,
            connect_timeout_s=connect_timeout_ms / 1000,
            request_timeout_s=request_timeout_ms / 1000,
        )

    def make_sessions(routing: Routing) -> Sessions:
        return Sessions(Calls(routing), client_id, session_ttl_ms)

    return Client(make_routing, make_sessions)


class Client(Coordination):
    """One cluster.  Made by ``connect``; may be used from many tasks at once, of the event loop
    that it was opened in (another thread's is told so by ``UsageError``)."""

    def __init__(
        self,
        make_routing: Callable[[Background], Routing],
        make_sessions: Callable[[Routing], Sessions],
    ) -> None:
        self._make_routing = make_routing
        self._make_sessions = make_sessions
        self._sessions: Sessions | None = None
        self._tasks: TaskGroup | None = None
        self._background: Background | None = None
        self._routing: Routing | None = None
        self._loop: object = None
        self._task: object = None
        """Which has entered the task group, and so has to leave it."""
        self._is_left = False

    async def __aenter__(self) -> Client:
        if self._tasks is not None:
            raise UsageError("a client is opened once; make another one")
        self._loop = current_loop()
        self._task = current_task()
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks
        self._background = background = Background(tasks)
        try:
            routing = self._make_routing(background)
            await routing.bootstrap()
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        background.start_soon(routing.stay_current)
        self._routing = routing
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._tasks is None:
            raise UsageError(_NOT_OPEN)
        if self._is_left:
            return None
        try:
            if self._sessions is not None:
                await self._sessions.aclose()
        finally:  # Cancelled or not: nothing else ends what runs in the background.
            if self._routing is not None:
                self._routing.close()
            is_swallowed = await self._leave(kind, error, traceback)
        return is_swallowed

    async def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        assert self._background is not None
        self._background.close()
        if current_task() is not self._task:
            # The event loop would refuse, and its scope is around what that task does just now.
            raise UsageError(
                "the client was opened in another task: it is closed, and has given back what it "
                "held, but the task that enters `async with connect(...)` has to leave it"
            )
        self._is_left = True
        try:
            # Its tasks are about to end.  The group itself is not cancelled: where a task group of
            # asyncio has failed in the block, this task would meet that as its own cancellation.
            return await self._tasks.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if error is not None and _leaves(group) <= _leaves(error):
                return False  # The body's own: it goes on as it was raised.
            raise

    @property
    def admin(self) -> Admin:
        """Topics, brokers and partitions."""
        return Admin(self._open_routing())

    @property
    def cluster_id(self) -> str:
        """Names the cluster, for as long as it exists."""
        cluster_id = self._open_routing().view.cluster_id
        assert cluster_id is not None
        return cluster_id

    def producer(
        self,
        topic: str,
        *,
        linger_ms: float = 0,
        batch_bytes: int = BATCH_BYTES_DEFAULT,
        compression: Compression = "none",
        buffer_bytes: int = BUFFER_BYTES_DEFAULT,
        delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS_DEFAULT,
        batches_in_flight: int = BATCHES_IN_FLIGHT_DEFAULT,
        idempotent: bool = True,
    ) -> Producer:
        """A producer for ``topic``; use as ``async with client.producer(...) as producer``.

        Partitions that the topic gets later are used from when this client learns of them, which
        takes a minute at most; records of a key may go to another one then.

        Args:
            topic: an existing topic; topics are not created on first use.
            linger_ms: how long single records wait for company.  0 loses nothing under
                load, when they gather while others are in flight.  Less than
                ``delivery_timeout_ms``.
            batch_bytes: a batch is full at this size.  Larger ones cost less per record.
            compression: "zstd" (level 1) if it makes a batch smaller, or "none".
            buffer_bytes: records not acknowledged yet take at most about this much; then
                ``append`` waits and ``append_nowait`` raises.  Where several partitions share
                it, none takes more than three times what it leaves: records with keys for one
                that has no leader wait until it has one, or ``delivery_timeout_ms`` is over,
                and those for others pass them, if other tasks append them.
            delivery_timeout_ms: a record not acknowledged after this long has failed; counted from
                the first record of the batch that it joined.
            batches_in_flight: batches under way to one partition at the same time.
            idempotent: retries store each record once and keep the order.  Without it one
                batch at a time is under way to a partition, and one that may have been stored
                is reported instead of retried.

        Raises:
            UsageError: an option is out of range.
        """
        require_text("topic", topic)
        options = ProducerOptions(
            linger_ms=linger_ms,
            batch_bytes=batch_bytes,
            compression=compression,
            buffer_bytes=buffer_bytes,
            delivery_timeout_ms=delivery_timeout_ms,
            batches_in_flight=batches_in_flight,
            idempotent=idempotent,
        )
        return Producer(self._routing_here(), topic, options)

    def consumer(
        self,
        topic: str,
        *,
        start: Starts = "latest",
        start_of_others: Start | None = None,
        stop: Stop | None = None,
        partitions: Sequence[int] | None = None,
        from_replica: int | None = None,
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        on_malformed: OnMalformed = "raise",
        on_trimmed: OnTrimmed = "raise",
    ) -> Consumer:
        """A consumer of ``topic``; use as ``async with client.consumer(...) as consumer``.

        Args:
            topic: an existing topic.
            start: "earliest", "latest" (what is committed after entering), an offset, or an
                aware datetime: the first record appended at or after it, or "latest" where
                there is none yet.  A mapping gives each partition its own start, and reads
                only those it names, unless there is a ``start_of_others``.
            start_of_others: where the partitions begin that ``start`` does not name; they are
                read too, and so are those that the topic gets later.  For who goes on from
                offsets that were kept, and has none of some partition yet: "earliest".
            stop: where iterating ends; default: never.  "latest": behind all that is committed
                on entering.  A mapping: for each partition that is read, the first offset that
                is not given out any more.
            partitions: those to read; default: all, also those that the topic gets later: they
                are read from their beginning, or from the time given as ``start``, once this
                client learns of them, which takes a minute at most.  With ``from_replica`` or
                ``stop`` only those that there are now.
            from_replica: read the replica on this node, below its commit offset, instead of
                the leader's.
            credit_bytes: what brokers may send ahead of the caller, over all partitions, but
                not less than 64 KiB for each.
            on_malformed: "skip" steps over batches that are intact but cannot be read, and
                counts them.
            on_trimmed: "earliest" goes on with the first record that is left where retention
                has removed what comes next, instead of raising ``OffsetOutOfRangeError``.

        Raises:
            UsageError: an option is out of range, or a datetime has no time zone.
        """
        require_text("topic", topic)
        options = ConsumerOptions(
            start=start,
            start_of_others=start_of_others,
            stop=stop,
            partitions=partitions,
            from_replica=from_replica,
            credit_bytes=credit_bytes,
            on_malformed=on_malformed,
            on_trimmed=on_trimmed,
        )
        return Consumer(self._routing_here(), topic, options)

    def _open_sessions(self) -> Sessions:
        routing = self._routing_here()
        if self._sessions is None:
            self._sessions = self._make_sessions(routing)
        return self._sessions

    def _routing_here(self) -> Routing:
        """For what will be used in the event loop that runs now, if one does."""
        routing = self._open_routing()
        loop = current_loop()
        if loop is not None and loop is not self._loop:
            raise UsageError(ANOTHER_LOOP)
        return routing

    def _open_routing(self) -> Routing:
        if self._routing is None:
            raise UsageError(_NOT_OPEN)
        self._routing.check_open()
        return self._routing


def _leaves(error: BaseException) -> set[int]:
    """The identities of what was raised in a group of groups: trio makes the groups anew."""
    if not isinstance(error, BaseExceptionGroup):
        return {id(error)}
    return set().union(*map(_leaves, error.exceptions))
