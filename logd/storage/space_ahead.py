"""Space behind the end of a log's active file: reserved in steps, and written with zeros.

Reserved, so that an append seldom waits for the file system to find room; in steps that double
with the segment, for small logs are many and should stay small.

Written, because reserved space that never was costs the sync after each write into it a commit
of the file system's journal, which takes several times as long as the data.  A small write puts
zeros behind itself, which pay for the next thousands of small writes at once; they are what a
reader would find there anyway.  A write that would use them up soon does without, since its
bytes would be written twice.

None of it for a small first write.  A thousand idle partitions that are opened are each written
one batch, with which their leader's term begins, and nothing after it: room and zeros for more
would be a thousand times as many bytes as are wanted, and each start would write them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from logd.env import File
from logd.limits import KIB, MIB
from logd.storage.room import is_no_room
from logd.types import Buffer, FilePosition

_ALLOCATE_BYTES_MIN: Final = 64 * KIB
_FILL_BYTES_MAX: Final = 1 * MIB
_WRITES_PER_FILL_MIN: Final = 8
_FIRST_WRITE_BYTES_MAX: Final = 1 * KIB
"""A first write up to this size may be the only one."""

_ZEROS: Final = memoryview(bytes(_FILL_BYTES_MAX))


class SpaceAhead:
    """The space of one log's active file."""

    __slots__ = ("_allocate_bytes", "_first_end", "_segment_bytes", "allocated", "filled")

    def __init__(self, position: FilePosition, segment_bytes: int, allocate_bytes: int) -> None:
        """Args as for ``begin`` and ``set_bounds``."""
        self.allocated = position
        """Up to here space is reserved."""
        self.filled = position
        """Up to here the file was written to, with batches or with zeros."""
        self._first_end = position
        """Where the first write ended, if it was a small one; else where it began."""
        self._segment_bytes = segment_bytes
        self._allocate_bytes = allocate_bytes

    def set_bounds(self, segment_bytes: int, allocate_bytes: int) -> None:
        """Reserve no more than a segment of that size may use, and so much at once."""
        self._segment_bytes = segment_bytes
        self._allocate_bytes = allocate_bytes

    def begin(self, position: FilePosition) -> None:
        """The file, or another one, ends at ``position``."""
        self.allocated = self.filled = self._first_end = position

    def allocate(self, file: File, needed: FilePosition) -> None:
        """Reserve space for ``needed`` and a step more, but no more than the segment may use.

        Raises:
            OSError: there is none.
        """
        if self._is_small_first(needed):
            self._first_end = needed  # It takes its room when it is written.
            return
        end = max(needed, min(needed + self._step(needed), self._segment_bytes))
        try:
            file.allocate(end)
        except OSError as error:
            if end == needed or not is_no_room(error):
                raise
            end = needed  # There may be room for a small batch where there is none for a step.
            file.allocate(end)
        self.allocated = FilePosition(end)

    def find(self, file: File, position: FilePosition, needed: FilePosition) -> bool:
        """Whether a write that ends at ``needed``, of a file that ends at ``position``, has room.

        What is not reserved by then is; or for a small first write, written with zeros.

        Raises:
            OSError: the disk failed.
        """
        if needed <= self.allocated:
            return True
        try:
            if self._is_small_first(needed):
                file.pwritev((_ZEROS[: needed - position],), position)
            else:
                self.allocate(file, needed)
        except OSError as error:
            if not is_no_room(error):
                raise
            return False
        return True

    def zeros_behind(self, position: FilePosition, size: int) -> Sequence[Buffer]:
        """What goes behind a write of ``size`` bytes that ends at ``position``."""
        count = max(_ALLOCATE_BYTES_MIN, min(position, _FILL_BYTES_MAX))
        if size * _WRITES_PER_FILL_MIN > count:
            count = 0
        count = max(0, min(count, self.allocated - position))
        self.filled = FilePosition(position + count)
        return (_ZEROS[:count],) if count else ()

    def reserve(self, file: File, position: FilePosition) -> None:
        """Reserve what will be wanted soon, in the syncing thread: ``append`` seldom has to.

        Raises:
            OSError: the disk failed.  That it is full says the append that needs the space.
        """
        if not self.is_wanted(position):
            return
        try:
            self.allocate(file, FilePosition(max(position, self.allocated)))
        except OSError as error:
            if not is_no_room(error):
                raise

    def is_wanted(self, position: FilePosition) -> bool:
        """Whether ``reserve`` would do anything, of a file that ends at ``position``."""
        if position <= self._first_end:
            return False
        left = self.allocated - position
        is_enough = left >= self._step(position) // 2
        return not is_enough and self.allocated < self._segment_bytes

    def _is_small_first(self, needed: FilePosition) -> bool:
        is_first = self.allocated == self._first_end
        return is_first and needed - self.allocated <= _FIRST_WRITE_BYTES_MAX

    def _step(self, position: FilePosition) -> int:
        return max(_ALLOCATE_BYTES_MIN, min(position, self._allocate_bytes))
