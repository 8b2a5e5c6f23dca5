"""Consumers of one connection: committed batches are pushed as far as their credit goes.

A subscription is a position, a credit in bytes and nothing else: no task of its own, no
buffer.  One task per connection goes round the subscriptions that have something to send
and sends each one piece, so that no partition starves another, and stops while the
connection is full, so that a slow reader costs its own lag and no memory (P6).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio

from logd.errors import (
    CorruptionError,
    InvalidRequestError,
    LogdError,
    OffsetOutOfRangeError,
    ReplicaDamagedError,
    SubscriptionLostError,
    UnavailableError,
)
from logd.limits import (
    FETCH_BYTES_MAX,
    SUBSCRIPTION_CREDIT_BYTES_MAX,
    SUBSCRIPTIONS_PER_CONNECTION_MAX,
)
from logd.replication.log_reader import CommittedBatches
from logd.types import Offset
from logd.wire.messages import (
    Credit,
    Deliver,
    SubscribeRequest,
    SubscribeResponse,
)

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.replication.group import Group

DELIVERY_BYTES: Final = 512 * 1024
"""One delivery, unless a single batch is larger: the grain of fairness."""

assert DELIVERY_BYTES <= FETCH_BYTES_MAX

Start = Literal["offset", "earliest", "latest", "time"]


class Deliveries(Protocol):
    """Where a subscription's frames go: its session."""

    def deliver(self, message: Deliver, batches: CommittedBatches) -> None: ...
    def end_subscription(self, subscription: int, generation: int, error: LogdError) -> None: ...


class Subscription:
    """One partition tailed over one connection.  Watches its group's commit offset."""

    __slots__ = (
        "any_replica",
        "credit",
        "generation",
        "group",
        "key",
        "owner",
        "position",
        "watch",
    )

    def __init__(
        self, owner: Subscriptions, request: SubscribeRequest, group: Group, position: Offset
    ) -> None:
        self.owner = owner
        self.key = request.subscription
        self.generation = request.generation
        self.group = group
        self.position = position
        self.credit = min(request.credit_bytes, SUBSCRIPTION_CREDIT_BYTES_MAX)
        self.any_replica = request.any_replica
        self.watch = group.watch(self)

    @property
    def is_deliverable(self) -> bool:
        return self.credit > 0 and self.position < self.group.commit_offset

    def on_commit(self, commit_offset: Offset) -> None:
        self.owner.wake(self)

    def on_leadership_lost(self) -> None:
        if not self.any_replica or self.group.failure is not None:
            self.owner.end(self, self.group.leadership.not_leader())


class Turn:
    """The place of one request among those about the same subscription.

    They take different times: a start at a time of day is looked up on the disk.
    """

    __slots__ = ("before", "is_over")

    def __init__(self, before: Turn | None) -> None:
        self.before = before
        self.is_over = trio.Event()

    async def wait(self) -> None:
        """Return once the request before is carried out."""
        if self.before is not None:
            await self.before.is_over.wait()
            self.before = None  # Else each would keep all that ever were.


class Subscriptions:
    """All subscriptions of one connection."""

    def __init__(self, broker: Broker, session: Deliveries) -> None:
        self._broker = broker
        self._session = session
        self._by_key: dict[int, Subscription] = {}
        self._turns: dict[int, Turn] = {}
        """By key, the last request that was begun."""
        self._ready: dict[int, Subscription] = {}
        self._wanted = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self.has_room = True

    def turn(self, key: int) -> Turn:
        """The place of a request about ``key``, taken when the request arrives."""
        turn = self._turns[key] = Turn(self._turns.get(key))
        return turn

    def end_turn(self, key: int, turn: Turn) -> None:
        """Let the next request about ``key`` begin."""
        turn.is_over.set()
        if self._turns[key] is turn:
            del self._turns[key]

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._by_key.values())

    async def subscribe(self, request: SubscribeRequest) -> SubscribeResponse:
        """Start a subscription; one with the same key on this connection is replaced."""
        if request.credit_bytes < 0:
            raise InvalidRequestError(f"credit of {request.credit_bytes} bytes")
        group = find_replica(self._broker, request.group, any_replica=request.any_replica)
        if request.start == "latest" and not request.any_replica:
            await group.leadership.confirmed()
        position = await start_position(self._broker, group, request.start, request.value)
        # That takes a while: the group may have been lost or closed meanwhile.
        group = find_replica(self._broker, request.group, any_replica=request.any_replica)
        if (
            len(self._by_key) >= SUBSCRIPTIONS_PER_CONNECTION_MAX
            and request.subscription not in self._by_key
        ):
            raise InvalidRequestError(
                f"{SUBSCRIPTIONS_PER_CONNECTION_MAX} subscriptions on one connection, "
                "the most there may be"
            )
        self.unsubscribe(request.subscription)
        subscription = Subscription(self, request, group, position)
        self._by_key[subscription.key] = subscription
        self.wake(subscription)
        return SubscribeResponse(
            position=position,
            log_start=group.log_start,
            commit_offset=group.commit_offset,
        )

    def add_credit(self, credit: Credit) -> None:
        """More may be sent.  Credit for a generation that has ended is dropped."""
        if credit.bytes < 0:
            raise InvalidRequestError(f"credit of {credit.bytes} bytes")
        subscription = self._by_key.get(credit.subscription)
        if subscription is None or subscription.generation != credit.generation:
            return
        subscription.credit = min(subscription.credit + credit.bytes, SUBSCRIPTION_CREDIT_BYTES_MAX)
        self.wake(subscription)

    def unsubscribe(self, key: int) -> None:
        subscription = self._by_key.pop(key, None)
        if subscription is not None:
            subscription.group.unwatch(subscription.watch)
            self._ready.pop(key, None)

    def end(self, subscription: Subscription, error: LogdError) -> None:
        """The broker ends a subscription: the client subscribes again, elsewhere."""
        if self._by_key.get(subscription.key) is subscription:
            self.unsubscribe(subscription.key)
            self._session.end_subscription(subscription.key, subscription.generation, error)

    def close(self) -> None:
        for key in list(self._by_key):
            self.unsubscribe(key)

    def wake(self, subscription: Subscription) -> None:
        """``subscription`` may have something to send."""
        if subscription.is_deliverable:
            self._ready[subscription.key] = subscription
            self._wanted.unpark()

    def room_is_back(self) -> None:
        """The connection takes deliveries again."""
        self.has_room = True
        self._room.unpark_all()

    async def run(self) -> None:
        """Deliver until cancelled."""
        sends = self._broker.sends
        while True:
            if not self._ready:
                await self._wanted.park()
                continue
            while not self.has_room:
                await self._room.park()
            taken_bytes = DELIVERY_BYTES
            await sends.take(taken_bytes)
            try:
                key = next(iter(self._ready), None)
                if key is None:
                    continue
                subscription = self._ready.pop(key)
                await self._deliver_one(subscription)
            finally:
                sends.less(taken_bytes)
            if self._by_key.get(key) is subscription:
                self.wake(subscription)
            if self._ready:
                await trio.lowlevel.checkpoint()

    async def _deliver_one(self, subscription: Subscription) -> None:
        group = subscription.group
        bytes_max = min(subscription.credit, DELIVERY_BYTES)
        try:
            found = await group.reader.read_committed(subscription.position, bytes_max)
        except CorruptionError as error:
            self.end(subscription, ReplicaDamagedError(str(error)))
            return
        except (OSError, LogdError) as error:
            self.end(subscription, SubscriptionLostError(f"reading failed: {error}"))
            return
        if found is None or self._by_key.get(subscription.key) is not subscription:
            return
        group.counts.delivered(found.end_offset - subscription.position, found.size_bytes)
        subscription.position = found.end_offset
        subscription.credit -= found.size_bytes
        delivery = Deliver(
            subscription=subscription.key,
            generation=subscription.generation,
            next_offset=found.end_offset,
            commit_offset=group.commit_offset,
        )
        with self._broker.node.turn:
            self._session.deliver(delivery, found)


def find_replica(broker: Broker, group_id: int, *, any_replica: bool) -> Group:
    """The group to read from; without ``any_replica`` only its leader serves."""
    return broker.group(group_id) if any_replica else broker.leading_group(group_id)


async def start_position(broker: Broker, group: Group, start: Start, value: int) -> Offset:
    """Where a subscription begins.

    Raises:
        OffsetOutOfRangeError: outside [log start, commit offset].
        UnavailableError: above what this replica knows to be committed, and it does not lead.
        NotLeaderError: the same, and it has only just learnt that it does not lead.
    """
    log_start, commit = group.log_start, group.commit_offset
    match start:
        case "earliest":
            return log_start
        case "latest":
            return commit
        case "time":
            found = await broker.env.run_blocking(group.log.offset_for_time, value)
            position = commit if found is None else min(Offset(found), commit)
            # What was trimmed may still lie in the files, with the time that was asked for.
            return max(position, group.log_start)
        case "offset":
            if value > commit and not group.is_ready:
                # A replica that was cut off or has just started learns of commits late: a
                # reader that comes back may know more than it does.
                raise UnavailableError(
                    f"offset {value} is not known to be committed here yet, only up to {commit}"
                )
            if value > commit:
                # A leader that was cut off, or slept, may not have heard of its successor.
                await group.leadership.confirmed()
                log_start, commit = group.log_start, group.commit_offset
            if not log_start <= value <= commit:
                raise OffsetOutOfRangeError(
                    f"offset {value} is outside the log: valid are {log_start} to {commit}",
                    log_start=log_start,
                    log_end=commit,
                )
            return Offset(value)
