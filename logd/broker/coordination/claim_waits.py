"""Questions about a ticket that are answered when it is granted or gone: long polls.

Whoever waits for a lock would else ask again and again.  What wakes a question is an event about
its ticket, or the end of a session, which may take tickets along without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from logd.limits import CLAIM_WAITS_PER_TICKET_MAX
from logd.wire.coordination import Event, ReadClaim

WAKING_KINDS: Final = frozenset(("lock", "semaphore", "election"))


class ClaimWait:
    """One question that waits."""

    __slots__ = ("deadline_ms", "is_wanted", "look", "namespace", "query")

    def __init__(
        self,
        namespace: str,
        query: ReadClaim,
        deadline_ms: int,
        look: Callable[[bool], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self.namespace = namespace
        self.query = query
        self.deadline_ms = deadline_ms
        self.look = look
        """Called with True: the state may say something else now; with False: time is up."""
        self.is_wanted = is_wanted
        """False: its client has gone."""


class ClaimWaits:
    """Those of one partition."""

    def __init__(self) -> None:
        self._by_ticket: dict[tuple[str, int], dict[ClaimWait, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_ticket.values()))

    def add(self, wait: ClaimWait) -> None:
        """Beyond ``CLAIM_WAITS_PER_TICKET_MAX`` of one ticket the oldest is answered: whoever asks
        so often has no use for that one any more."""
        waits = self._by_ticket.setdefault((wait.namespace, wait.query.ticket), {})
        waits[wait] = None
        if len(waits) > CLAIM_WAITS_PER_TICKET_MAX:
            oldest = next(iter(waits))
            del waits[oldest]
            if oldest.is_wanted():
                oldest.look(False)

    def wake_for(self, events: Iterable[tuple[str, Event]]) -> None:
        """Let those look again whom an event is about."""
        if not self._by_ticket:
            return
        for namespace, event in events:
            if event.ticket and event.kind in WAKING_KINDS:
                self._wake((namespace, event.ticket))

    def wake_all(self) -> None:
        """Let everybody look again: a session has ended, or this broker leads no more."""
        waits, self._by_ticket = self._by_ticket, {}
        for of_ticket in waits.values():
            for wait in of_ticket:
                wait.look(True)

    def expire(self, now_ms: int) -> None:
        """Answer those who have waited for as long as they wanted to; forget those who have gone,
        or whoever comes and goes would leave a thousand behind each time."""
        over = [
            wait
            for waits in self._by_ticket.values()
            for wait in waits
            if wait.deadline_ms <= now_ms or not wait.is_wanted()
        ]
        for wait in over:
            self._remove(wait)
            if wait.is_wanted():
                wait.look(False)

    def _wake(self, key: tuple[str, int]) -> None:
        for wait in self._by_ticket.pop(key, ()):
            wait.look(True)

    def _remove(self, wait: ClaimWait) -> None:
        key = (wait.namespace, wait.query.ticket)
        waits = self._by_ticket[key]
        del waits[wait]
        if not waits:
            del self._by_ticket[key]
