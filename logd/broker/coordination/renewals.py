"""Keep-alives: they share rounds of confirmation, and wait for an expiry that is under way.

Sessions are renewed at once: that only puts off their expiry.  What is promised to the client
waits for the confirmation that this broker led, and for those of its sessions whose expiry is
proposed: whether they are lost is known when that is applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from logd.broker.coordination.confirmations import Confirmed
from logd.broker.coordination.session_clock import SessionClock
from logd.errors import LogdError

RENEWALS_MS: Final = 50
"""A round begins so long after the one before at the earliest: ten thousand sessions that do
nothing are a thousand renewals a second, each of which can wait."""

KeptAlive = Callable[[list[int] | LogdError], None]
"""Gets those sessions that are no more, or why nothing can be said."""


class Renewals:
    """Those of one partition, while this broker leads it."""

    def __init__(self, clock: SessionClock, confirmed: Callable[[Confirmed], None]) -> None:
        """``confirmed`` calls back once it is certain that this broker led after the call."""
        self._clock = clock
        self._confirmed = confirmed
        self._gathered: list[tuple[list[int], KeptAlive]] = []
        """For which no round has begun."""
        self._expiring: list[tuple[list[int], KeptAlive]] = []
        """Confirmed; one of their sessions is expiring."""
        self._next_ms = 0
        self._refusal: LogdError | None = None
        """What those are told who come back from a round when this broker leads no more."""

    def begin(self) -> None:
        """This broker begins to lead."""
        self._refusal = None

    def end(self, error: LogdError) -> None:
        """It leads no more: all who wait are told."""
        self._refusal = error
        waits = [*self._expiring, *self._gathered]
        self._expiring, self._gathered = [], []
        for _, answer in waits:
            answer(error)

    def add(self, sessions: list[int], answer: KeptAlive, now_ms: int) -> bool:
        """Renew ``sessions``; True if ``begin_due`` is wanted later, which it was not before."""
        for session in sessions:
            self._clock.renew(session, now_ms)
        self._gathered.append((sessions, answer))
        self.begin_due(now_ms)
        return len(self._gathered) == 1

    def begin_due(self, now_ms: int) -> None:
        """Begin the next round, if it is time to and anybody waits for one."""
        if not self._gathered or now_ms < self._next_ms:
            return
        gathered, self._gathered = self._gathered, []
        self._next_ms = now_ms + RENEWALS_MS

        def confirmed(doubt: LogdError | None) -> None:
            for sessions, answer in gathered:
                if doubt is not None:
                    answer(doubt)
                else:
                    self._answer(sessions, answer)

        self._confirmed(confirmed)

    def next_in_ms(self, now_ms: int) -> int | None:
        """When the next round is due; None if nobody waits for one."""
        return max(self._next_ms - now_ms, 0) if self._gathered else None

    def _answer(self, sessions: list[int], answer: KeptAlive) -> None:
        if self._refusal is not None:
            answer(self._refusal)
        elif any(map(self._clock.is_expiring, sessions)):
            self._expiring.append((sessions, answer))
        else:
            answer([session for session in sessions if not self._clock.knows(session)])

    def on_session_ended(self) -> None:
        """What became of an expiry is known now."""
        if self._expiring:
            waits, self._expiring = self._expiring, []
            for sessions, answer in waits:
                self._answer(sessions, answer)
