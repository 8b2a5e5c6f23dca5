"""What changed lately, for watches that resume.

A bounded ring per namespace, in memory only: it is no part of a snapshot, and whoever asks for
what is no longer kept is told the oldest revision that is.  The events of a revision stay
together, so that a watch sees all of a change or is told that it cannot.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from operator import attrgetter
from typing import Final

from logd.errors import CompactedError
from logd.limits import EVENT_BYTES_PER_NAMESPACE_MAX, EVENTS_PER_NAMESPACE_MAX
from logd.types import Offset
from logd.wire.coordination import Event, Kind

_revision: Final[Callable[[Event], int]] = attrgetter("revision")


def bytes_of(event: Event) -> int:
    return len(event.name) + len(event.value) + len(event.subject) + len(event.owner)


def share_of_history(event: Event) -> float:
    """How much of what is kept of a namespace, at most, ``event`` pushes out."""
    return max(1 / EVENTS_PER_NAMESPACE_MAX, bytes_of(event) / EVENT_BYTES_PER_NAMESPACE_MAX)


class EventRing:
    """Events of one namespace, in order of revisions."""

    def __init__(self, oldest: Offset) -> None:
        self._events: list[Event] = []
        self._start = 0
        self._bytes = 0
        self.oldest = oldest
        """All events from this revision on are here."""

    def append(self, event: Event) -> None:
        events = self._events
        events.append(event)
        self._bytes += bytes_of(event)
        while (
            len(events) - self._start > EVENTS_PER_NAMESPACE_MAX
            or self._bytes > EVENT_BYTES_PER_NAMESPACE_MAX
        ):
            self._drop_the_oldest()

    def between(
        self, kind: Kind, start: bytes, end: bytes | None, from_revision: int
    ) -> list[Event]:
        """Events of ``kind`` about ``start``, or about ``[start, end)``, from a revision on.

        Raises:
            CompactedError: some of them are no longer kept.
        """
        if from_revision < self.oldest:
            raise compacted(from_revision, self.oldest)
        first = bisect_left(self._events, from_revision, lo=self._start, key=_revision)
        return [
            event
            for event in self._events[first:]
            if event.kind == kind and is_within(event.name, start, end)
        ]

    def _drop_the_oldest(self) -> None:
        revision = self._events[self._start].revision
        while self._start < len(self._events):
            event = self._events[self._start]
            if event.revision != revision:
                break
            self._bytes -= bytes_of(event)
            self._start += 1
        self.oldest = Offset(revision + 1)
        if self._start * 2 > len(self._events):
            del self._events[: self._start]
            self._start = 0


def is_within(name: bytes, start: bytes, end: bytes | None) -> bool:
    """``start`` itself, or ``[start, end)``; an empty ``end`` is behind everything."""
    if end is None:
        return name == start
    return start <= name and (not end or name < end)


def compacted(asked: int, oldest: int) -> CompactedError:
    return CompactedError(
        f"events from revision {asked} on are no longer kept, the oldest available is {oldest}: "
        "read what there is, then watch from behind the revision of that",
        oldest,
    )
