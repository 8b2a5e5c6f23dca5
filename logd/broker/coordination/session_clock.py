"""When the sessions of a partition expire, by the clock of the broker that leads it.

Renewals are not logged: the leader alone keeps the deadlines, and a new leader gives everybody a
full time to live.  That is later than any deadline a client was promised, since it began to lead
after the last promise.  A client counts from when it sent its renewal, the leader from when
that arrived.

The clock is *attended* time: while this broker did not run (stopped, swapped out) it could not
hear anybody, so that time counts for nobody.  Expiring late is harmless, since it is the fencing
token that protects what a lease guards.

A renewal only writes a dictionary.  The heap is put right when a deadline comes up, so that ten
thousand idle sessions cost a heap operation each per time to live.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

ATTENDED_MS_MAX: Final = 1_000
"""The longest step that counts.  Whoever drives the clock looks more often than that."""

_SPARE: Final = 64
"""Sessions that have ended stay in the heap until there are this many too many."""


class SessionClock:
    """Deadlines of sessions.  Times are those of a monotonic clock, in milliseconds."""

    def __init__(self) -> None:
        self._ttl_ms: dict[int, int] = {}
        self._deadline_ms: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []
        self._expiring: dict[int, None] = {}
        self._attended_ms = 0
        self._looked_ms = 0

    def __len__(self) -> int:
        return len(self._ttl_ms)

    def begin(self, sessions: Iterable[tuple[int, int]], now_ms: int) -> None:
        """This broker begins to lead: everybody has a full time to live."""
        self._looked_ms = now_ms
        self._expiring.clear()
        self._ttl_ms = dict(sessions)
        self._deadline_ms = {
            session: self._attended_ms + ttl_ms for session, ttl_ms in self._ttl_ms.items()
        }
        self._build_heap()

    def end(self) -> None:
        """It leads no more: what it knew is worth nothing."""
        self._ttl_ms.clear()
        self._deadline_ms.clear()
        self._heap.clear()
        self._expiring.clear()

    def open(self, session: int, ttl_ms: int, now_ms: int) -> None:
        """A session has come to be, or its opening was repeated."""
        deadline = self._attend(now_ms) + ttl_ms
        if session not in self._ttl_ms:
            heappush(self._heap, (deadline, session))
        self._ttl_ms[session] = ttl_ms
        self._deadline_ms[session] = deadline

    def close(self, session: int) -> None:
        """A session has ended, whichever way."""
        self._ttl_ms.pop(session, None)
        self._deadline_ms.pop(session, None)
        self._expiring.pop(session, None)
        if len(self._heap) > 2 * len(self._deadline_ms) + _SPARE:
            self._build_heap()

    def renew(self, session: int, now_ms: int) -> None:
        """Something was heard of a session.  Too late for one whose expiry is proposed."""
        ttl_ms = self._ttl_ms.get(session)
        if ttl_ms is not None and session not in self._expiring:
            self._deadline_ms[session] = self._attend(now_ms) + ttl_ms

    def keep(self, session: int, now_ms: int) -> None:
        """Its expiry will not come of what was proposed: it has a full time to live again.

        Less would not do: who was told meanwhile that it lives may count on so much.
        """
        ttl_ms = self._ttl_ms.get(session)
        if ttl_ms is not None and session in self._expiring:
            del self._expiring[session]
            deadline = self._deadline_ms[session] = self._attend(now_ms) + ttl_ms
            heappush(self._heap, (deadline, session))

    def knows(self, session: int) -> bool:
        return session in self._ttl_ms

    def is_expiring(self, session: int) -> bool:
        """Its expiry is proposed, and how that ends is not known yet."""
        return session in self._expiring

    def take_due(self, now_ms: int) -> list[int]:
        """Sessions whose time is over: from now on they are expiring."""
        attended = self._attend(now_ms)
        due = []
        heap = self._heap
        while heap and heap[0][0] <= attended:
            _, session = heappop(heap)
            deadline = self._deadline_ms.get(session)
            if deadline is None or session in self._expiring:
                continue
            if deadline > attended:
                heappush(heap, (deadline, session))
            else:
                self._expiring[session] = None
                due.append(session)
        return due

    @property
    def next_in_ms(self) -> int | None:
        """When to look again, from the last look on; None if there is nobody."""
        return max(self._heap[0][0] - self._attended_ms, 0) if self._heap else None

    def _build_heap(self) -> None:
        expiring = self._expiring
        self._heap = [(at, one) for one, at in self._deadline_ms.items() if one not in expiring]
        heapify(self._heap)

    def _attend(self, now_ms: int) -> int:
        step = now_ms - self._looked_ms
        self._looked_ms = now_ms
        self._attended_ms += max(0, min(step, ATTENDED_MS_MAX))
        return self._attended_ms
