"""How much one connection's requests may have found for it before it takes it.

A request of a few bytes can have an answer of megabytes, and a client may ask a thousand times
without reading what it is told.  What was found waits in memory for it to do so.  So a request
with such an answer begins to look only while there is room for what it may find beside all that
waits to be sent; until then it waits itself, which costs next to nothing.
"""

from __future__ import annotations

import trio

from logd.replication.outbox import Outbox


class AnswerRoom:
    """The room in one outbox, shared by those who are making answers for it."""

    def __init__(self, bytes_max: int, outbox: Outbox) -> None:
        self._bytes_max = bytes_max
        self._outbox = outbox
        self._taken_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def _is_there(self) -> bool:
        return self._outbox.queued_bytes + self._taken_bytes < self._bytes_max

    async def take(self, count: int) -> None:
        """Take ``count`` bytes, once there is room; the last taker may go over."""
        while not self._is_there:
            await self._waiting.park()
        self._taken_bytes += count
        self.is_back()

    def give_back(self, count: int) -> None:
        """The answer is in the outbox, as large as it is."""
        self._taken_bytes -= count
        assert self._taken_bytes >= 0
        self.is_back()

    def is_back(self) -> None:
        """There may be room for one more."""
        if self._waiting and self._is_there:
            self._waiting.unpark()
