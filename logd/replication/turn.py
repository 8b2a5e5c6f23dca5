"""A turn: one piece of work on the event loop, and what it leaves behind.

Taking what has arrived on all connections, or flushing what was proposed, proposes batches,
fills outboxes and dirties logs.  Handing those to their own tasks costs a trip through the
scheduler and through ``epoll`` each, some 20 µs of processor time a trip, which is most of what
a small append costs.  So while a turn is open they only note themselves.  When it ends what was
proposed is appended, the bytes leave, and the one log that waits is synced there and then, as
far as none of it has to wait.  So whatever arrived together is one write, one frame per
follower and one sync.

What nobody waits for (``afterwards``) is done once all that has left: a follower that applies what
was committed before it syncs and acknowledges what came with the news would let its leader wait.

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
    """The turn of one node; at most one is open, and it does not wait for anything.

    ``with turn:`` is for whoever comes back from waiting with something to send.
    """

    __slots__ = ("_afterwards", "_departing", "_flush", "_leave", "_sync_here", "is_open", "now_ms")

    def __init__(
        self,
        sync_here: Callable[[], bool],
        *,
        flush: Callable[[], None] = lambda: None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            sync_here: syncs what may be synced here; says whether there was anything.
            flush: appends what was proposed.
            leave: hands what could not be done here to whom it concerns.
        """
        self.is_open = False
        self.now_ms: int | None = None
        """The time of the open turn, once somebody has asked for it: it takes no time."""
        self._departing: list[Departing] = []
        self._afterwards: list[Callable[[], None]] = []
        self._sync_here = sync_here
        self._flush = flush
        self._leave = leave

    def note(self, departing: Departing) -> None:
        """Let ``departing`` send when the open turn ends.  Once is enough."""
        assert self.is_open
        self._departing.append(departing)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Do ``work``, which nobody waits for, when the open turn has sent what it has to."""
        assert self.is_open
        self._afterwards.append(work)

    def begin(self) -> None:
        assert not self.is_open
        self.is_open = True
        self.now_ms = None

    def end(self) -> None:
        """Append what was proposed and send what is queued; sync what may be synced here, and
        send what that gave."""
        self._flush()
        self._depart()
        # The followers have it by now: they sync while this node does.
        if self._sync_here():
            self._depart()
        if self._afterwards:
            self._do_what_is_left()
        self.is_open = False
        self._leave()

    def _do_what_is_left(self) -> None:
        left, self._afterwards = self._afterwards, []
        for work in left:
            work()
        assert not self._afterwards
        self._depart()  # Seldom anything: of a disk that failed meanwhile.

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *raised: object) -> None:
        self.end()

    def _depart(self) -> None:
        departing, self._departing = self._departing, []
        for outbox in departing:
            outbox.depart()
