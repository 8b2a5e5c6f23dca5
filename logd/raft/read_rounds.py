"""Linearizable reads without writing (ReadIndex, Ongaro 2014 §6.4).

A leader may have been deposed without knowing it.  Before it serves a read it asks a quorum,
in a round begun after the read arrived, whether it still leads.  Rounds are numbered; one is
under way at a time, and reads that arrive meanwhile share the next.
"""

from __future__ import annotations

from logd.types import Offset


class ReadRounds:
    """Reads of one leader in one term."""

    __slots__ = ("_confirmed", "_offset", "_queued", "_under_way", "round")

    def __init__(self) -> None:
        self.round = 0
        self._offset = Offset(0)
        self._queued: list[int] = []
        self._under_way: list[int] = []
        self._confirmed: list[tuple[int, Offset]] = []

    @property
    def is_under_way(self) -> bool:
        return bool(self._under_way)

    def request(self, read_id: int) -> None:
        """Queue a read for the next round."""
        self._queued.append(read_id)

    def begin(self, commit_offset: Offset) -> bool:
        """Begin the next round if reads wait for one; False: nothing to send.

        The reads see at least ``commit_offset``, which is not below what it was when they
        were requested.
        """
        if self._under_way or not self._queued:
            return False
        self.round += 1
        self._offset = commit_offset
        self._under_way, self._queued = self._queued, []
        return True

    def confirm(self, echoed_round: int) -> None:
        """A quorum has answered requests of ``echoed_round`` or later."""
        if echoed_round >= self.round:
            self._confirmed += [(read_id, self._offset) for read_id in self._under_way]
            self._under_way = []

    def take_confirmed(self) -> tuple[tuple[int, Offset], ...]:
        """Reads confirmed since the last call."""
        if not self._confirmed:
            return ()
        confirmed, self._confirmed = tuple(self._confirmed), []
        return confirmed

    def fail(self) -> tuple[int, ...]:
        """Give up all reads that are not confirmed: leadership is lost."""
        failed = (*self._under_way, *self._queued)
        self._under_way, self._queued = [], []
        return failed
