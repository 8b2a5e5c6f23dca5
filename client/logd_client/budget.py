"""The producer's buffer: a number of bytes that appends share, in the order they asked (P6)."""

from __future__ import annotations

from collections import deque

import anyio


class ByteBudget:
    """Bytes that may be buffered; whoever asks for more than are left waits in line."""

    def __init__(self, total_bytes: int) -> None:
        assert total_bytes > 0
        self._total = total_bytes
        self._used = 0
        self._line: deque[_Place] = deque()

    @property
    def used_bytes(self) -> int:
        return self._used

    def take_now(self, size: int) -> bool:
        """Take ``size`` bytes if that needs no waiting.

        An empty buffer takes anything: a record larger than it must not wait for ever.
        """
        if self._line or (self._used and self._used + size > self._total):
            return False
        self._used += size
        return True

    async def take(self, size: int) -> None:
        """Take ``size`` bytes, waiting for them.  Cancelled, it takes nothing."""
        if self.take_now(size):
            return
        place = _Place(size)
        self._line.append(place)
        try:
            await place.granted.wait()
        except BaseException:
            if place.granted.is_set():
                self.give_back(size)
            else:
                self._line.remove(place)
                self._grant()
            raise

    def give_back(self, size: int) -> None:
        """Return ``size`` bytes."""
        self._used -= size
        assert self._used >= 0
        self._grant()

    def _grant(self) -> None:
        while self._line and (not self._used or self._used + self._line[0].size <= self._total):
            place = self._line.popleft()
            self._used += place.size
            place.granted.set()


class _Place:
    """One caller in line."""

    __slots__ = ("granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = anyio.Event()
