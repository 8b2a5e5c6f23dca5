"""Which queue is due next, over all namespaces of a partition.

A heap with an entry for each queue that waits for a time.  An entry may be too early, since a
renewed claim does not look for it; it is put right when it comes to the top.  It is never too late.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

Place = tuple[str, str]
"""A namespace and a queue."""

_SPARE: Final = 64
"""Entries that were overtaken by earlier ones stay until there are this many too many."""


class Timers:
    """Earliest first; at one time by name, so that all replicas agree."""

    def __init__(self, due_of: Callable[[Place], int | None]) -> None:
        """``due_of`` tells when a queue is due; None: it is not, or there is none."""
        self._due_of = due_of
        self._heap: list[tuple[int, Place]] = []
        self._scheduled: dict[Place, int] = {}

    def schedule(self, place: Place, due_ms: int | None) -> None:
        """A queue has changed: it may be due earlier than was known; None: not at all, now."""
        if due_ms is None:
            self._scheduled.pop(place, None)
        elif due_ms < self._scheduled.get(place, due_ms + 1):
            self._scheduled[place] = due_ms
            heapq.heappush(self._heap, (due_ms, place))
        if len(self._heap) > 2 * len(self._scheduled) + _SPARE:
            self._heap = [(due_ms, place) for place, due_ms in self._scheduled.items()]
            heapq.heapify(self._heap)

    def first(self) -> tuple[int, Place] | None:
        """When the first is due, and which it is."""
        while self._heap:
            due_ms, place = self._heap[0]
            if self._scheduled.get(place) != due_ms:
                heapq.heappop(self._heap)
                continue
            really = self._due_of(place)
            if really == due_ms:
                return due_ms, place
            heapq.heappop(self._heap)
            del self._scheduled[place]
            self.schedule(place, really)
        return None

    def __len__(self) -> int:
        """Entries, those included that were overtaken."""
        return len(self._heap)

    def may_be_due(self, now_ms: int) -> bool:
        """Cheap: False means that certainly nothing is."""
        return bool(self._heap) and self._heap[0][0] <= now_ms
