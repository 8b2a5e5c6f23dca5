"""A turn: one piece of work on the event loop, and what it leaves behind.

Reading a group of frames, or flushing what was proposed, fills outboxes and dirties logs.
Handing those to their own tasks costs a trip through the scheduler and through ``epoll``
each, some 20 µs of processor time a trip, which is most of what a small append costs.  So
while a turn is open they only note themselves, and when it ends the bytes leave and the one
log that waits is synced there and then, as far as neither has to wait.

Who is busy elsewhere, full, or slow goes the long way, through its task; so does everything
that happens outside a turn.  Nothing depends on which way it went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Departing(Protocol):
    """What has bytes to send at the end of a turn."""

    def depart(self) -> None: ...


class Turn:
    """The turn of one node; at most one is open, and it does not wait for anything."""

    __slots__ = ("_departing", "_sync_here", "is_open")

    def __init__(self, sync_here: Callable[[], bool]) -> None:
        self.is_open = False
        self._departing: list[Departing] = []
        self._sync_here = sync_here

    def note(self, departing: Departing) -> None:
        """Let ``departing`` send when the open turn ends.  Once is enough."""
        assert self.is_open
        self._departing.append(departing)

    def begin(self) -> None:
        assert not self.is_open
        self.is_open = True

    def end(self) -> None:
        """Send what is queued; sync what may be synced here, and send what that gave."""
        self._depart()
        # The followers have it by now: they sync while this node does.
        if self._sync_here():
            self._depart()
        self.is_open = False

    def _depart(self) -> None:
        departing, self._departing = self._departing, []
        for outbox in departing:
            outbox.depart()
