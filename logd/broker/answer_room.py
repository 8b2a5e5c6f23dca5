"""How much may have been found for clients before they take it.

A request of a few bytes can have an answer of megabytes, and a client may ask a thousand times
without reading what it is told.  What was found waits in memory for it to do so.  So a request
with such an answer begins to look only while there is room for what it may find beside all that
waits to be sent; until then it waits itself, which costs next to nothing.

There are two bounds.  One connection may have ``CONNECTION_SEND_BYTES_MAX`` waiting
(``AnswerRoom``), and all of a broker ``CLIENTS_SEND_BYTES_MAX`` (``SendRoom``).  Clients that are
only slow must not use up the second: once half of it is, a connection is given more, and in small
pieces, only when it has taken what it was given before, so that hundreds of them hold one piece
each and there is room for everybody else.  When all of it is used up nevertheless, who wants more
waits in line; and while somebody does, who has not taken for ``SEND_PATIENCE_S`` what it was
being sent is cut off, the one that holds most first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import trio

from logd.broker.subscriptions import DELIVERY_BYTES
from logd.limits import FETCH_BYTES_MAX, SEND_PATIENCE_S
from logd.replication.outbox import Outbox, Shared


class Taker(Protocol):
    """A client that is sent something: its session."""

    @property
    def queued_bytes(self) -> int: ...
    @property
    def sending_since_s(self) -> float | None: ...
    def cut_off(self) -> None:
        """End the connection; what it holds does not count from now on."""


class SendRoom(Shared):
    """What waits for clients to take it, or is being found for them, over all connections."""

    __slots__ = ("_bytes_max", "_first", "_takers")

    def __init__(self, bytes_max: int, takers: Collection[Taker]) -> None:
        super().__init__(bytes_much=bytes_max // 2)
        self._bytes_max = bytes_max
        self._takers = takers
        self._first = trio.StrictFIFOLock()
        """Held by the first of those that wait; the others stand in line for it."""

    @property
    def has_room(self) -> bool:
        return self.bytes < self._bytes_max

    async def take(self, count: int) -> None:
        """Take ``count`` bytes, in turn, once there is room; the last taker may go over."""
        if not self.has_room or self._first.locked():
            async with self._first:
                while not self.has_room:
                    await self._until_less()
        self.bytes += count

    async def _until_less(self) -> None:
        """Wait for room, or for a client to be late, and cut that off."""
        now = trio.current_time()
        until = now + SEND_PATIENCE_S
        late: Taker | None = None
        for taker in self._takers:
            if taker.sending_since_s is None:
                continue
            due = taker.sending_since_s + SEND_PATIENCE_S
            if due > now:
                until = min(until, due)
            elif late is None or taker.queued_bytes > late.queued_bytes:
                late = taker
        if late is not None:
            late.cut_off()
            return
        self.bytes_awaited = self._bytes_max
        try:
            with trio.move_on_at(until):
                await self.freed.park()
        finally:
            self.bytes_awaited = 0


class AnswerRoom:
    """The room in one outbox, shared by those who are making answers for it."""

    def __init__(self, outbox: Outbox, shared: SendRoom) -> None:
        self._outbox = outbox
        self._shared = shared
        self._taken_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def _is_there(self) -> bool:
        return self._outbox.queued_bytes + self._taken_bytes < self._outbox.bytes_allowed

    async def take(self) -> int:
        """Take room for an answer, once there is; says how large that may be.

        The last taker may go over.  Cancelled only with the connection.
        """
        count = await self.take_own()
        await self._shared.take(count)
        return count

    def give_back(self, count: int) -> None:
        """The answer is in the outbox, as large as it is."""
        self._shared.less(count)
        self.give_back_own(count)

    async def take_own(self) -> int:
        """As ``take``, in this outbox alone: for an answer that is refused if it is large and there
        is no room in the other one."""
        while not self._is_there:
            await self._waiting.park()
        count = DELIVERY_BYTES if self._shared.is_much else FETCH_BYTES_MAX
        self._taken_bytes += count
        self.is_back()
        return count

    def give_back_own(self, count: int) -> None:
        self._taken_bytes -= count
        assert self._taken_bytes >= 0
        self.is_back()

    def is_back(self) -> None:
        """There may be room for one more."""
        if self._waiting and self._is_there:
            self._waiting.unpark()
