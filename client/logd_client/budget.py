"""The producer's buffer: a number of bytes that its partitions share (P6).

Records with keys go where their key says, so a partition without a leader keeps what it has until
that is delivered or given up, and is given more.  Were the buffer anybody's, it would soon be full
of that, and whatever is for other partitions would wait too.  So no partition takes more than
``TAKEN_PER_LEFT`` times what it leaves: one that is stuck has three quarters of the buffer at most,
two have three sevenths each, and the others go on with the rest.  It takes no looking at who is
stuck, which is known a second too late.  A record that can go anywhere, and the first of a
partition that has none, only need room.

Who waits stands in the line of its partition (``Share``); of partitions for which there is room
the first of each is let in in turn.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import anyio

TAKEN_PER_LEFT: Final = 3
"""Less would leave more to the others, and a topic whose records all go to one partition less."""


class Share:
    """What one partition has taken of the buffer, and who waits to take more for it."""

    __slots__ = ("held_bytes", "is_in_line", "places")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.places: deque[_Place] = deque()
        self.is_in_line = False
        """Among those that are let in as there is room; else what it holds has to become less."""


class ByteBudget:
    """Bytes that may be buffered; whoever asks for more than are left waits in line."""

    def __init__(self, total_bytes: int) -> None:
        assert total_bytes > 0
        self._total = total_bytes
        self._free = total_bytes
        self._share_count = 0
        self._waiting_count = 0
        self._line: deque[Share] = deque()
        self._anywhere = Share()
        """Holds nothing for longer than it takes to find a place for it."""

    def add_share(self) -> Share:
        """The next partition's."""
        self._share_count += 1
        return Share()

    @property
    def used_bytes(self) -> int:
        return self._total - self._free

    def take_now(self, share: Share, size: int, *, is_bound: bool = True) -> bool:
        """Take ``size`` bytes if that needs no waiting.  Not bound: it could go elsewhere.

        An empty buffer takes anything: a record larger than it must not wait for ever.
        """
        free = self._free - size
        held = share.held_bytes + size
        has_plenty = held <= TAKEN_PER_LEFT * free and not self._waiting_count
        if not (has_plenty or self._may_take(share, size, is_bound)):
            return False
        self._free = free
        share.held_bytes = held
        return True

    def _may_take(self, share: Share, size: int, is_bound: bool) -> bool:
        """Nobody who waits has to be let in before, and there is room."""
        if self._line or (is_bound and share.places):
            return False
        return self._has_room(size) and not (is_bound and self._is_too_much(share, size))

    def _has_room(self, size: int) -> bool:
        return size <= self._free or self._free == self._total

    def _is_too_much(self, share: Share, size: int) -> bool:
        """The partition would have more than is right beside what it leaves."""
        if self._share_count == 1 or not share.held_bytes:
            return False
        return share.held_bytes + size > TAKEN_PER_LEFT * (self._free - size)

    async def take(self, share: Share, size: int, *, is_bound: bool = True) -> None:
        """Take ``size`` bytes, waiting for them.  Cancelled, it takes nothing.

        What is not bound waits in a line of its own, and not for that partition.
        """
        if self.take_now(share, size, is_bound=is_bound):
            return
        queue = share if is_bound else self._anywhere
        place = _Place(size)
        queue.places.append(place)
        self._waiting_count += 1
        self._let_in(queue)
        self._grant()  # At least it leaves the line again, if it would be too much.
        try:
            await place.granted.wait()
        except BaseException:
            if place.granted.is_set():
                self.give_back(queue, size)
            else:
                self._leave_line(queue, place)
            raise
        self.move(size, queue, share)

    def move(self, size: int, from_share: Share, to_share: Share) -> None:
        """What was taken for one partition goes to another."""
        if from_share is not to_share:
            from_share.held_bytes -= size
            to_share.held_bytes += size

    def give_back(self, share: Share, size: int) -> None:
        """Return ``size`` bytes."""
        self._free += size
        share.held_bytes -= size
        assert share.held_bytes >= 0
        if self._waiting_count:
            self._let_in(share)
            self._grant()

    def _leave_line(self, share: Share, place: _Place) -> None:
        share.places.remove(place)
        self._waiting_count -= 1
        if share.places:
            self._let_in(share)  # The next may want less.
        elif share.is_in_line:
            share.is_in_line = False
            self._line.remove(share)
        self._grant()

    def _let_in(self, share: Share) -> None:
        """It may hold little enough now."""
        if share.places and not share.is_in_line:
            share.is_in_line = True
            self._line.append(share)

    def _grant(self) -> None:
        while self._line:
            share = self._line[0]
            size = share.places[0].size
            if not self._has_room(size):
                return
            self._line.popleft()
            share.is_in_line = False
            if share is not self._anywhere and self._is_too_much(share, size):
                continue  # Until it gives something back.
            place = share.places.popleft()
            self._waiting_count -= 1
            self._free -= size
            share.held_bytes += size
            place.granted.set()
            self._let_in(share)


class _Place:
    """One caller in line."""

    __slots__ = ("granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = anyio.Event()
