"""Watches: who is told of which changes, over which connection.

Those who watch the same names form a *crowd*: a change is encoded once for all of them, and what
differs, a few bytes of header, is made for each.  A watch that cannot be told at once, because its
client gives no credit or does not read, costs nothing further: it is marked as behind, and catches
up from the history that the state keeps, or is ended if that no longer reaches back.

A push always ends with a whole revision, so whoever resumes behind the last one misses nothing
and sees nothing twice.  Only a change of so many keys that it fits no frame is told in parts:
those before the last name the revision before, since theirs is not told to its end.

The history is bounded, and in a busy namespace it goes by in a second.  So those who watch what
seldom changes are told now and then, by a push without events, from where they may resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec
import trio

from logd.coordination.events import share_of_history
from logd.errors import InvalidRequestError, LogdError, QuotaExceededError, SubscriptionLostError
from logd.limits import (
    SUBSCRIPTION_CREDIT_BYTES_MAX,
    WATCH_EVENTS_BYTES,
    WATCHES_PER_CONNECTION_MAX,
    WATCHES_PER_NAMESPACE_MAX,
)
from logd.replication.outbox import frame_buffers
from logd.wire.coordination import Event
from logd.wire.coordination import Kind as Subject
from logd.wire.frame import FLAG_PUSH, encode_message
from logd.wire.messages import Kind, WatchCredit, WatchEvents, WatchRequest

if TYPE_CHECKING:
    from logd.broker.coordination.partition import CoordinationPartition

PROGRESS_SHARE: Final = 0.25
"""When so much of what a namespace's history holds has gone by, its quiet watches are told."""

_ENCODER: Final = msgspec.msgpack.Encoder()

CrowdKey = tuple[str, Subject, bytes, bytes | None]
"""Namespace, kind, start and end."""


class Pushes(Protocol):
    """Where a connection's pushes go: its session."""

    @property
    def takes_more(self) -> bool: ...
    def has_room_for(self, size_bytes: int) -> bool: ...
    async def until_room(self) -> None: ...
    def push_events(self, frame: Sequence[bytes], size_bytes: int) -> None: ...
    def end_watch(self, watch: int, generation: int, error: LogdError) -> None: ...


class Watch:
    """One watch of one connection."""

    __slots__ = (
        "credit",
        "crowd",
        "generation",
        "is_behind",
        "key",
        "owner",
        "partition",
        "position",
    )

    def __init__(
        self,
        owner: ConnectionWatches,
        request: WatchRequest,
        partition: CoordinationPartition,
        position: int,
    ) -> None:
        self.owner = owner
        self.key = request.watch
        self.generation = request.generation
        self.partition = partition
        self.position = position
        """All events up to and with this revision have been pushed."""
        self.credit = min(request.credit_bytes, SUBSCRIPTION_CREDIT_BYTES_MAX)
        self.is_behind = False
        self.crowd: Crowd | None = None

    @property
    def can_be_told(self) -> bool:
        return self.credit > 0 and self.owner.session.takes_more

    def push_all(self, parts: list[tuple[bytes, int]]) -> None:
        for body, revision in parts:
            self.push(body, revision)

    def push(self, body: bytes, revision: int) -> None:
        """All events up to ``revision``, already encoded."""
        head = encode_message(
            Kind.WATCH_EVENTS,
            WatchEvents(watch=self.key, generation=self.generation, revision=revision),
            0,
            body_bytes=len(body),
            flags=FLAG_PUSH,
        )
        self.position = revision
        self.credit -= len(body)
        self.owner.session.push_events(frame_buffers(head, body), len(head) + len(body))


class Crowd:
    """All watches of the same names."""

    __slots__ = ("end", "key", "start", "watches")

    def __init__(self, key: CrowdKey) -> None:
        self.key = key
        self.start, self.end = key[2], key[3]
        self.watches: dict[Watch, None] = {}

    def covers(self, name: bytes) -> bool:
        """Of a range: exact names are looked up."""
        return self.start <= name and (not self.end or name < self.end)


class PartitionWatches:
    """All watches of one partition."""

    def __init__(self) -> None:
        self._crowds: dict[CrowdKey, Crowd] = {}
        self._ranges: dict[tuple[str, Subject], dict[Crowd, None]] = {}
        """Those that watch more than one name, by namespace and kind."""
        self._counts: dict[str, int] = {}
        """By namespace."""
        self._gone_by: dict[str, float] = {}
        """Namespace → the share of its history that has gone by since progress was told."""
        self.events_pushed = 0

    def __len__(self) -> int:
        return sum(self._counts.values())

    def check_room(self, namespace: str) -> None:
        """Raise QuotaExceededError if the namespace has as many watches as it may."""
        if self._counts.get(namespace, 0) >= WATCHES_PER_NAMESPACE_MAX:
            raise QuotaExceededError(
                f"namespace {namespace!r} has {WATCHES_PER_NAMESPACE_MAX:,} watches, "
                "the most it may have"
            )

    def add(self, watch: Watch, key: CrowdKey) -> None:
        crowd = self._crowds.get(key)
        if crowd is None:
            crowd = self._crowds[key] = Crowd(key)
            if crowd.end is not None:
                self._ranges.setdefault(key[:2], {})[crowd] = None
        crowd.watches[watch] = None
        watch.crowd = crowd
        self._counts[key[0]] = self._counts.get(key[0], 0) + 1

    def remove(self, watch: Watch) -> None:
        crowd = watch.crowd
        if crowd is None:
            return
        watch.crowd = None
        del crowd.watches[watch]
        namespace = crowd.key[0]
        self._counts[namespace] -= 1
        if not self._counts[namespace]:
            del self._counts[namespace]
            self._gone_by.pop(namespace, None)
        if not crowd.watches:
            del self._crowds[crowd.key]
            if crowd.end is not None:
                ranges = self._ranges[crowd.key[:2]]
                del ranges[crowd]
                if not ranges:
                    del self._ranges[crowd.key[:2]]

    def publish(self, events: list[tuple[str, Event]], revision: int) -> None:
        """Tell whom it concerns; ``revision`` is the last that has been applied."""
        if not self._crowds:
            return
        touched: dict[Crowd, list[Event]] = {}
        for namespace, event in events:
            crowd = self._crowds.get((namespace, event.kind, event.name, None))
            if crowd is not None:
                touched.setdefault(crowd, []).append(event)
            for ranged in self._ranges.get((namespace, event.kind), ()):
                if ranged.covers(event.name):
                    touched.setdefault(ranged, []).append(event)
        for crowd, found in touched.items():
            self._tell(crowd, found, revision)
        self._count_gone_by(events, revision)

    def _count_gone_by(self, events: list[tuple[str, Event]], revision: int) -> None:
        for namespace, event in events:
            if namespace not in self._counts:
                continue
            gone_by = self._gone_by.get(namespace, 0) + share_of_history(event)
            if gone_by >= PROGRESS_SHARE:
                self.tell_progress(revision, namespace)
                gone_by = 0
            self._gone_by[namespace] = gone_by

    def _tell(self, crowd: Crowd, events: list[Event], revision: int) -> None:
        parts: list[tuple[bytes, int]] = []
        size = 0
        for watch in crowd.watches:
            if watch.is_behind:
                continue
            if not watch.can_be_told or watch.position >= events[0].revision:
                # The second: it was asked for from a revision that is still to come.
                watch.owner.fall_behind(watch)
                continue
            if not parts:
                parts = encode_events(events, revision)
                size = sum(len(body) for body, _ in parts)
            if not watch.owner.session.has_room_for(size):
                watch.owner.fall_behind(watch)
                continue
            self.events_pushed += len(events)
            watch.push_all(parts)

    def tell_progress(self, revision: int, namespace: str | None = None) -> None:
        """Let those who saw nothing for long resume from here; of one namespace, or of all."""
        body = _ENCODER.encode([])
        for crowd in self._crowds.values():
            if namespace not in (None, crowd.key[0]):
                continue
            for watch in crowd.watches:
                if not watch.is_behind and watch.position < revision and watch.can_be_told:
                    watch.push(body, revision)

    def end_all(self, error: LogdError) -> None:
        """This broker does not serve them any more."""
        for crowd in list(self._crowds.values()):
            for watch in list(crowd.watches):
                watch.owner.end(watch, error)


class ConnectionWatches:
    """All watches of one connection, in whatever partitions."""

    def __init__(self, session: Pushes) -> None:
        self.session = session
        self._by_key: dict[int, Watch] = {}
        self._asked: dict[int, WatchRequest] = {}
        """Requests that are under way: what has been asked since replaces them."""
        self._behind: dict[Watch, None] = {}
        self._wanted = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._by_key)

    def ask(self, request: WatchRequest) -> None:
        """A watch is wanted; it begins with ``begin``.

        Raises:
            InvalidRequestError: there are too many, or no such credit can be.
        """
        if request.credit_bytes < 0:
            raise InvalidRequestError(f"credit of {request.credit_bytes} bytes")
        is_new = request.watch not in self._by_key and request.watch not in self._asked
        if is_new and self._has_most():
            raise InvalidRequestError(
                f"{WATCHES_PER_CONNECTION_MAX} watches on one connection, the most there may be"
            )
        self._asked[request.watch] = request

    def _has_most(self) -> bool:
        if len(self._by_key) + len(self._asked) < WATCHES_PER_CONNECTION_MAX:
            return False  # Else those that were asked for again have been counted twice.
        return len(self._by_key.keys() | self._asked.keys()) >= WATCHES_PER_CONNECTION_MAX

    def forget(self, request: WatchRequest) -> None:
        """It was refused."""
        if self._asked.get(request.watch) is request:
            del self._asked[request.watch]

    def begin(self, request: WatchRequest, partition: CoordinationPartition, position: int) -> None:
        """Begin a watch that was asked for, behind ``position``.

        Raises:
            SubscriptionLostError: it was replaced or given up meanwhile.
        """
        if self._asked.get(request.watch) is not request:
            raise SubscriptionLostError("the watch was replaced, or ended, before it had begun")
        del self._asked[request.watch]
        self._drop(request.watch)
        watch = Watch(self, request, partition, position)
        self._by_key[watch.key] = watch
        partition.watches.add(watch, (request.namespace, request.kind, request.start, request.end))
        if position < partition.revision:
            self.fall_behind(watch)

    def add_credit(self, credit: WatchCredit) -> None:
        """More may be sent.  Credit for a generation that has ended is dropped."""
        if credit.bytes < 0:
            raise InvalidRequestError(f"credit of {credit.bytes} bytes")
        watch = self._by_key.get(credit.watch)
        if watch is None or watch.generation != credit.generation:
            return
        watch.credit = min(watch.credit + credit.bytes, SUBSCRIPTION_CREDIT_BYTES_MAX)
        if watch.is_behind:
            self._wanted.unpark()

    def unwatch(self, key: int) -> None:
        self._asked.pop(key, None)
        self._drop(key)

    def end(self, watch: Watch, error: LogdError) -> None:
        """The broker ends a watch: the client watches again, perhaps elsewhere."""
        if self._by_key.get(watch.key) is watch:
            self._drop(watch.key)
            self.session.end_watch(watch.key, watch.generation, error)

    def close(self) -> None:
        self._asked.clear()
        for key in list(self._by_key):
            self._drop(key)

    def _drop(self, key: int) -> None:
        watch = self._by_key.pop(key, None)
        if watch is not None:
            watch.partition.watches.remove(watch)
            self._behind.pop(watch, None)

    # --- catching up ----------------------------------------------------------------------------

    def fall_behind(self, watch: Watch) -> None:
        """It could not be told there and then."""
        watch.is_behind = True
        self._behind[watch] = None
        self._wanted.unpark()

    def room_is_back(self) -> None:
        """The connection takes pushes again."""
        if self._behind:
            self._wanted.unpark()

    async def run(self) -> None:
        """Bring those that are behind up to date, in turn, until cancelled."""
        while True:
            watch = next((found for found in self._behind if found.can_be_told), None)
            if watch is None:
                await self._wanted.park()
                continue
            try:
                missed = _missed(watch)
                if not self.session.has_room_for(sum(map(_size_of, missed.events))):
                    await self.session.until_room()
                    continue
                del self._behind[watch]
                watch.is_behind = not _catch_up(watch, missed)
            except LogdError as error:
                self.end(watch, error)
                continue
            if watch.is_behind:
                self._behind[watch] = None
            await trio.lowlevel.checkpoint()


class _Missed(NamedTuple):
    """What one push, or a few, tell a watch that is behind."""

    events: list[Event]
    is_all: bool


def _missed(watch: Watch) -> _Missed:
    """Some of what a watch has missed.

    Raises:
        CompactedError: some of it is no longer known.
    """
    assert watch.crowd is not None
    namespace, kind, start, end = watch.crowd.key
    events = watch.partition.state.history(namespace, kind, start, end, watch.position + 1)
    count = _whole_revisions(events)
    return _Missed(events[:count], count == len(events))


def _catch_up(watch: Watch, missed: _Missed) -> bool:
    """Push what a watch has missed; True if that was all of it."""
    partition, events = watch.partition, missed.events
    revision = max(partition.revision, watch.position) if missed.is_all else events[-1].revision
    if events:
        watch.push_all(encode_events(events, revision))
        partition.watches.events_pushed += len(events)
    return missed.is_all


def encode_events(events: list[Event], revision: int) -> list[tuple[bytes, int]]:
    """Bodies of pushes, usually one, and up to which revision each tells everything."""
    parts: list[tuple[bytes, int]] = []
    start, size = 0, 0
    for number, event in enumerate(events):
        if size >= WATCH_EVENTS_BYTES:
            told = events[number - 1].revision
            if told == event.revision:
                told -= 1
            parts.append((_ENCODER.encode(events[start:number]), told))
            start, size = number, 0
        size += _size_of(event)
    parts.append((_ENCODER.encode(events[start:]), revision))
    return parts


def _size_of(event: Event) -> int:
    """About what it takes in a push."""
    return len(event.value) + len(event.name) + len(event.subject) + len(event.owner) + 64


def _whole_revisions(events: list[Event]) -> int:
    """How many of them go into one push: about so many bytes, and no revision in part."""
    size = 0
    for count, event in enumerate(events):
        if size >= WATCH_EVENTS_BYTES and event.revision != events[count - 1].revision:
            return count
        size += _size_of(event)
    return len(events)
