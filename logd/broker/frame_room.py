"""Memory of large frames that are on their way, over all connections of one broker.

A frame that fits what one read takes is received into the buffer that its connection has anyway.
A larger one gets memory of its own, and its whole size is taken here before its body is read
(P6).  So whoever has begun can finish, and nobody holds a part while it waits for the rest.
Those for whom there is no room are not read, and begin in the order in which they asked, but in
turns of the addresses that they come from: who brings hundreds of connections keeps its own
waiting.  Nor does one begin while the produce budget is exhausted, or each connection could add a
frame to it.

A frame has ``PROGRESS_TIMEOUT_S`` to become whole.  Who sends the start of some and no more would
let the others wait for as long.  So while somebody waits, a frame has to keep the pace that makes
it whole in time: who is more than ``FRAME_PATIENCE_S`` behind is cut off, the one that is farthest
behind first, and no more of them than have to make room.  A frame that keeps the pace is never cut
off, however many wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from logd.errors import OverloadedError
from logd.limits import FRAME_PATIENCE_S, PROGRESS_TIMEOUT_S

if TYPE_CHECKING:
    from logd.broker.broker import Broker


class FrameRoom:
    """The memory that all connections share."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._arriving: dict[Intake, None] = {}
        """Whose frame is on its way, in the order in which they began."""
        self._line = Line()
        """Whoever is at its head waits for room."""
        self._freed = trio.lowlevel.ParkingLot()

    @property
    def bytes(self) -> int:
        return self._bytes

    def take_now(self, intake: Intake, size: int) -> bool:
        """Take ``size`` bytes if that passes nobody who waits and there is room."""
        if self._line.has_head or not self._has_room(size):
            return False
        self._take(intake, size)
        return True

    async def take(self, intake: Intake, size: int) -> None:
        """Take ``size`` bytes, once it is this one's turn and there is room."""
        await self._line.come_to_head(intake.host)
        try:
            while not self._has_room(size):
                await self._until_less()
            self._take(intake, size)
        finally:
            self._line.leave_head(intake.host)

    def give_back(self, intake: Intake, size: int) -> None:
        del self._arriving[intake]
        self._bytes -= size
        assert self._bytes >= 0
        self._freed.unpark()

    def _has_room(self, size: int) -> bool:
        assert size <= self._bytes_max
        return self._bytes + size <= self._bytes_max

    def _take(self, intake: Intake, size: int) -> None:
        self._bytes += size
        self._arriving[intake] = None

    async def _until_less(self) -> None:
        """Wait for a frame to become whole, or for one to fall behind, and cut that off."""
        last = min(self._arriving, key=lambda intake: intake.due_s)
        if last.due_s <= trio.current_time():
            last.cut()
            return
        with trio.move_on_at(last.due_s):
            await self._freed.park()


class Line:
    """Those who wait, one of them at the head; the next comes from another address if it can."""

    def __init__(self) -> None:
        self.has_head = False
        self._behind: dict[str, trio.lowlevel.ParkingLot] = {}
        """By address, in the order of their turns.  Of those that are empty all have given up."""

    async def come_to_head(self, host: str) -> None:
        if self.has_head:
            await self._behind.setdefault(host, trio.lowlevel.ParkingLot()).park()
        self.has_head = True

    def leave_head(self, host: str) -> None:
        """The next one is at the head from now on, though it runs later."""
        if host in self._behind:
            self._behind[host] = self._behind.pop(host)
        while self._behind:
            turn = next(iter(self._behind))
            if self._behind[turn]:
                self._behind[turn].unpark()
                return
            del self._behind[turn]
        self.has_head = False


class Intake:
    """The large frames of one connection: at most one is on its way."""

    def __init__(
        self,
        broker: Broker,
        host: str,
        received_bytes: Callable[[], int],
        end: Callable[[OverloadedError], None],
    ) -> None:
        """
        Args:
            host: the address that they come from.
            received_bytes: how much of the unfinished frame is here.
            end: closes the connection, which was too slow for the others.
        """
        self.host = host
        self._broker = broker
        self._received_bytes = received_bytes
        self._end = end
        self._size = 0
        """What is held for the frame that is on its way, or 0."""
        self._wanted = 0
        """What the frame takes that could not begin, or 0."""
        self._since = 0.0

    def begins(self, frame_bytes: int) -> bool:
        """A large frame begins; False if it has to wait for ``room``."""
        if self._size:  # Taken by ``room``.
            assert self._size == frame_bytes
            return True
        broker = self._broker
        if broker.budget.has_room and broker.frames.take_now(self, frame_bytes):
            self._has_begun(frame_bytes)
            return True
        self._wanted = frame_bytes
        return False

    async def room(self) -> None:
        """Take what the frame needs that could not begin, if there is one."""
        if self._wanted:
            await self._broker.frames.take(self, self._wanted)
            self._has_begun(self._wanted)

    def is_over(self) -> None:
        """The frame is whole, or nobody goes on with it."""
        if self._size:
            self._broker.frames.give_back(self, self._size)
            self._size = 0

    @property
    def due_s(self) -> float:
        """Until when there is patience with it, unless more of it comes before."""
        share = self._received_bytes() / self._size
        return self._since + PROGRESS_TIMEOUT_S * share + FRAME_PATIENCE_S

    def cut(self) -> None:
        """Others wait for what this one holds."""
        error = OverloadedError(
            f"no progress: {self._received_bytes()} of {self._size} bytes of a frame in "
            f"{trio.current_time() - self._since:.1f} s, and others wait for the memory it holds"
        )
        self.is_over()
        self._end(error)

    def _has_begun(self, size: int) -> None:
        self._size, self._wanted = size, 0
        self._since = trio.current_time()
