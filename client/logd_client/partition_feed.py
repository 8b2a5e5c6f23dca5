"""One partition of a consumer: subscribed at its leader, and again whenever that ends.

What a broker pushes waits in the partition's ``Cursor`` until the consumer asks for it.  When
the subscription ends, for whatever reason, a short-lived task finds the leader and subscribes
again at the exact offset behind what has arrived.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

import anyio

from logd.errors import (
    ConnectionFailedError,
    CorruptionError,
    LogdError,
    NotLeaderError,
    OffsetOutOfRangeError,
    ReplicaDamagedError,
    RequestTimeoutError,
    SubscriptionLostError,
    UnknownBrokerError,
    UnknownTopicError,
)
from logd.types import Buffer, NodeId
from logd.wire.messages import (
    Deliver,
    OffsetsRequest,
    OffsetsResponse,
    SubscribeResponse,
    SubscriptionEnded,
    UnsubscribeRequest,
)
from logd_client.backoff import Backoff
from logd_client.connection import Answer, Connection, Lane
from logd_client.cursor import Cursor
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC, Routing

_SUBSCRIBE_TIMEOUT_S: Final = 5.0
"""A broker that froze with its connections open answers no subscription, and meanwhile another
may lead."""

_PROBE_TIMEOUT_S: Final = 1.5
_STUCK_S: Final = 5.0
"""A subscription of which nothing comes for this long, although there is more and it has credit, is
begun anew; each time that this did not help it is given twice as long."""

_DOUBLINGS_MAX: Final = 5
_DAMAGED_DELIVERIES_MAX: Final = 3
"""So many in a row are fetched again, from another replica, before the caller is told."""


class FeedOwner(Protocol):
    """The consumer, as its feeds see it."""

    @property
    def is_open(self) -> bool: ...

    def on_arrival(self, feed: PartitionFeed) -> None:
        """There is something to read."""

    def on_change(self) -> None:
        """Whoever waits for a position, or for a failure, may look again."""


class PartitionFeed:
    """Keeps one partition subscribed."""

    def __init__(
        self, owner: FeedOwner, routing: Routing, cursor: Cursor, pinned: NodeId | None
    ) -> None:
        self.cursor = cursor
        self.connection: Connection | None = None
        self.failure: LogdError | None = None
        """Why nothing more can come."""
        self.trouble: LogdError | None = None
        """What stood in the way last."""
        self.is_ready = False
        """In line to be read."""
        self.is_probing = False
        self.quiet_since = 0.0
        """When something came of it last, or it was probed."""
        self._short_since: tuple[int, float] | None = None
        """In which generation it was found that nothing comes although there is more, and when."""
        self._stuck_count = 0
        """So often in a row it was begun anew because of that."""
        self.damaged_count = 0
        self.leaps_over_trimmed = False
        self._owner = owner
        self._routing = routing
        self._pinned = pinned
        self._substitute: NodeId | None = None
        """Read from this replica, because the leader's bytes were damaged."""
        self._substitute_count = 0
        """So often another replica was chosen."""
        self._suspect: NodeId | None = None
        """Whom we lost last: asked last about who leads."""
        self._is_attaching = False
        self._backoff = Backoff(routing.environment.rng)
        self._clock = routing.environment.clock

    # --- from the connection ------------------------------------------------------------

    def on_delivered(self, message: Deliver, body: Buffer) -> None:
        if self.cursor.on_delivered(message, body):
            self.quiet_since = self._clock()
            self._short_since = None
            self._stuck_count = 0
            self.trouble = None
            self._backoff.reset()
            self._owner.on_arrival(self)

    def on_ended(self, message: SubscriptionEnded, error: LogdError) -> None:
        if message.generation == self.cursor.generation:
            self._on_refused(error)

    def on_connection_lost(self, connection: Connection, error: LogdError) -> None:
        if connection is self.connection:
            self.trouble = error
            # Its broker may be gone: look who leads now before going back to it.
            self._backoff.failures = max(self._backoff.failures, 1)
            self._suspect = connection.node
            self._resubscribe()

    def _on_refused(self, error: LogdError, *, is_confirmed: bool = False) -> None:
        """The subscription was refused, or has ended.

        ``is_confirmed``: the metadata says it too, not only the broker that was asked.
        """
        self.trouble = self._named(error)
        if isinstance(error, NotLeaderError):
            leader = None if error.leader is None else NodeId(error.leader)
            self._routing.view.note_leader(self.cursor.group, leader)
        elif isinstance(error, ReplicaDamagedError):
            self._choose_substitute()
        if error.retriable:
            self._resubscribe()
        elif self._is_trimmed(error):
            self.leave_connection()
            self.cursor.leap_to_earliest()
            self.attach_soon()
        elif isinstance(error, UnknownTopicError) and not is_confirmed:
            # The broker may only be behind: look_again asks one that is not.
            self._backoff.failures = max(self._backoff.failures, FAILURES_BEFORE_DOUBTING_THE_TOPIC)
            self._resubscribe()
        else:
            self.leave_connection()
            self.failure = self._named(error)
            self._owner.on_change()

    def _named(self, error: LogdError) -> LogdError:
        """A reader of many partitions wants to know in which one there is no such offset, or where
        it stands in one that is damaged."""
        if isinstance(error, ReplicaDamagedError):
            at = self.cursor.wanted_offset
            where = "" if at is None else f" from offset {at} on"
            place = f"{self.cursor.topic}/{self.cursor.partition}"
            return ReplicaDamagedError(f"{place} is damaged{where}: {error}")
        if not isinstance(error, OffsetOutOfRangeError):
            return error
        text = f"{self.cursor.topic}/{self.cursor.partition}: {error}"
        return OffsetOutOfRangeError(text, error.log_start, error.log_end)

    def _is_trimmed(self, error: LogdError) -> bool:
        """What is wanted next was trimmed away, and the caller goes on with what is left."""
        wanted = self.cursor.wanted_offset
        return (
            self.leaps_over_trimmed
            and isinstance(error, OffsetOutOfRangeError)
            and wanted is not None
            and wanted < error.log_start
        )

    def _resubscribe(self) -> None:
        self.leave_connection()
        self.attach_soon()

    def leave_connection(self) -> None:
        """Want nothing more from the present connection."""
        self.cursor.end()
        connection, self.connection = self.connection, None
        if connection is None:
            return
        connection.remove_sink(self.cursor.subscription)
        connection.dismiss(UnsubscribeRequest(subscription=self.cursor.subscription))

    # --- attaching ----------------------------------------------------------------------

    @property
    def _is_wanted(self) -> bool:
        return self._owner.is_open and self.failure is None and not self.cursor.is_at_stop

    def attach_soon(self) -> None:
        if not self._is_attaching and self._owner.is_open:
            self._is_attaching = True
            self._routing.tasks.start_soon(self._attach)

    async def _attach(self) -> None:
        """Subscribe at whoever serves the partition, however long that takes."""
        while self._is_wanted and self.connection is None:
            try:
                connection = await self._find_broker()
            except LogdError as error:
                self._on_refused(error, is_confirmed=True)
                continue
            try:
                await self._subscribe(connection)
            except LogdError as error:
                self._on_refused(error)
        self._is_attaching = False

    async def _find_broker(self) -> Connection:
        failures = self._backoff.failures
        delay_s = self._backoff.next_delay_s()
        if failures:
            await anyio.sleep(delay_s)
            await self._routing.look_again(
                self.cursor.topic, self.cursor.group, failures, self._suspect
            )
            if self._pinned is not None:
                await self._routing.require_replica(
                    self.cursor.topic, self.cursor.group, self._pinned
                )
        substitute, self._substitute = self._substitute, None
        node = substitute if self._pinned is None else self._pinned
        self.cursor.any_replica = node is not None
        if node is not None:
            try:
                return await self._routing.connection(node, Lane.CONSUME)
            except UnknownBrokerError as error:
                if node == self._pinned:
                    raise
                # It was removed from the cluster since; the others are there still.
                raise ConnectionFailedError(str(error)) from error
        return await self._routing.leader_connection(self.cursor.group, Lane.CONSUME, failures)

    async def _subscribe(self, connection: Connection) -> None:
        if not self._owner.is_open:
            return
        request = self.cursor.subscribe(self._routing.next_subscription())
        outcome = _SubscribeOutcome()
        connection.add_sink(request.subscription, self)
        self.connection = connection
        sent_at = self._clock()
        connection.submit(request, partial(self._on_answer, outcome, request.generation))
        with anyio.move_on_after(min(self._routing.request_timeout_s, _SUBSCRIBE_TIMEOUT_S)):
            await outcome.settled.wait()
        if outcome.error is not None:
            raise outcome.error
        if not outcome.settled.is_set():
            error = RequestTimeoutError(f"{connection.name} does not answer a subscription")
            connection.fail_if_silent_since(sent_at, error)
            raise error
        if not isinstance(self.trouble, ReplicaDamagedError):
            self.trouble = None  # Else only what is delivered shows that this replica is whole.
        if self.cursor.is_at_stop:
            self.leave_connection()
        self._owner.on_change()

    def _on_answer(
        self, outcome: _SubscribeOutcome, generation: int, answer: Answer | LogdError
    ) -> None:
        # In the reader's task: deliveries may follow in the same piece of received bytes.
        if isinstance(answer, LogdError):
            outcome.error = answer
        else:
            assert isinstance(answer.message, SubscribeResponse)
            self.cursor.on_subscribed(generation, answer.message)
            # Of what was read meanwhile: with no credit at all nothing would come that asks for it.
            self.return_credit()
            if self.cursor.has_arrived:
                self._owner.on_arrival(self)
        outcome.settled.set()

    # --- reading ------------------------------------------------------------------------

    def finish(self) -> None:
        """The caller has read what it was given."""
        self.cursor.finish()
        self.return_credit()

    def return_credit(self) -> None:
        if self.connection is None:
            return
        credit = self.cursor.take_credit()
        if credit is not None:
            self.connection.post_credit(credit)

    def on_damaged(self, error: CorruptionError) -> None:
        """What arrived is not what was written: get it from another replica.

        Raises:
            CorruptionError: several replicas in a row delivered damaged bytes.
        """
        source = "a lost connection" if self.connection is None else self.connection.name
        self.damaged_count += 1
        self.trouble = error
        self.cursor.restart_at_position()
        self._choose_substitute()
        self._resubscribe()
        if self.damaged_count >= _DAMAGED_DELIVERIES_MAX:
            self.damaged_count = 0
            where = f"{self.cursor.topic}/{self.cursor.partition}"
            raise CorruptionError(f"{where} from {source}: {error}") from error

    def _choose_substitute(self) -> None:
        replicas = self._routing.view.replicas(self.cursor.group)
        asked = None if self.connection is None else self.connection.node
        others = [node for node in replicas if node != asked]
        # In turn: one of them may be down, or damaged too.
        self._substitute = others[self._substitute_count % len(others)] if others else None
        self._substitute_count += 1

    # --- probing ------------------------------------------------------------------------

    async def probe(self, connection: Connection) -> None:
        """Find out whether ``connection`` still leads to a broker that serves us."""
        request = OffsetsRequest(group=self.cursor.group, any_replica=self.cursor.any_replica)
        self.is_probing = True
        self.quiet_since = self._clock()
        try:
            response = await connection.request(request, OffsetsResponse, _PROBE_TIMEOUT_S)
        except LogdError as error:
            # Silence has ended the connection by now.  A broker that stepped down says so.
            if isinstance(error, NotLeaderError) and connection is self.connection:
                self._on_refused(error)
        else:
            if connection is self.connection and self.cursor.is_subscribed:
                self._compare(response.data_end)
        finally:
            self.is_probing = False

    def _compare(self, data_end: int) -> None:
        """Begin anew if nothing comes although there is more: somebody has lost the subscription,
        or its credit, and would never say so."""
        cursor, now = self.cursor, self._clock()
        if not cursor.is_short_of(data_end):
            self._short_since = None
            self._backoff.reset()  # It is served, and there is nothing to deliver.
        elif self._short_since is None or self._short_since[0] != cursor.generation:
            self._short_since = (cursor.generation, now)
        elif now >= self._short_since[1] + _STUCK_S * 2**self._stuck_count:
            self._stuck_count = min(self._stuck_count + 1, _DOUBLINGS_MAX)
            self._on_refused(
                SubscriptionLostError(
                    f"nothing comes of {cursor.topic}/{cursor.partition} from offset "
                    f"{cursor.wanted_offset} on, and it has records up to {data_end}"
                )
            )


class _SubscribeOutcome:
    """One subscribe request's answer."""

    __slots__ = ("error", "settled")

    def __init__(self) -> None:
        self.error: LogdError | None = None
        self.settled = anyio.Event()
