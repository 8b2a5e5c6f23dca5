"""The newest batches of every group, in memory, for followers and tailing consumers.

A batch that was just appended is about to be asked for by each follower and each tailing
consumer.  It is held here as the very buffers that were written, already verified, so that
serving it costs no system call and no checksum.

Why one budget for all groups: a bound per group would be either too small for the one busy
partition or, times a thousand, too large for the machine.  The oldest batch of all goes
first, and the oldest of all is also the oldest of its group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Final

from logd.storage.log import LogBatch
from logd.types import GroupId, Offset

ENTRY_OVERHEAD_BYTES: Final = 512
"""What a cached batch costs beside its bytes; keeps a flood of tiny ones within the bound."""

BATCHES_PER_READ_MAX: Final = 1024
_EVICTED: Final = LogBatch(
    base_offset=Offset(-1),
    end_offset=Offset(-1),
    term=0,  # type: ignore[arg-type]
    append_time_ms=0,
    is_data=False,
    size_bytes=0,
    buffers=(),
)


class _GroupTail:
    """One group's cached batches: contiguous, oldest first."""

    __slots__ = ("bases", "batches", "head")

    def __init__(self) -> None:
        self.bases: list[int] = []
        self.batches: list[LogBatch] = []
        self.head = 0
        """Entries before it are evicted; their places are cut away now and then."""

    def drop_first(self) -> None:
        self.batches[self.head] = _EVICTED
        self.head += 1
        if self.head >= 256 and self.head * 2 >= len(self.bases):
            del self.bases[: self.head]
            del self.batches[: self.head]
            self.head = 0


class TailCache:
    """Bounded in bytes over all groups; evicts first in, first out."""

    def __init__(self, bytes_max: int) -> None:
        assert bytes_max >= 0
        self._bytes_max = bytes_max
        self._bytes = 0
        self._tails: dict[GroupId, _GroupTail] = {}
        self._order: deque[tuple[GroupId, LogBatch]] = deque()

    @property
    def bytes(self) -> int:
        """Bytes held, overhead included."""
        return self._bytes

    def add(self, group: GroupId, batches: list[LogBatch]) -> None:
        """Add batches that were just appended to ``group``'s log."""
        tail = self._tails.get(group)
        if tail is None:
            tail = self._tails[group] = _GroupTail()
        elif tail.head < len(tail.batches):
            # A log only grows at its end, and ``forget`` is called when it is cut.
            assert tail.batches[-1].end_offset == batches[0].base_offset
        for batch in batches:
            tail.bases.append(batch.base_offset)
            tail.batches.append(batch)
            self._order.append((group, batch))
            self._bytes += batch.size_bytes + ENTRY_OVERHEAD_BYTES
        while self._bytes > self._bytes_max:
            self._evict()

    def read(
        self, group: GroupId, offset: Offset, end_offset: Offset, bytes_max: int
    ) -> list[LogBatch] | None:
        """Batches from the one containing ``offset``, up to ``end_offset``.

        At least one batch, further ones while they fit ``bytes_max``; None if the batch at
        ``offset`` is not cached or does not end at or below ``end_offset``.
        """
        tail = self._tails.get(group)
        if tail is None:
            return None
        at = bisect_right(tail.bases, offset, tail.head) - 1
        if at < tail.head or tail.batches[at].end_offset <= offset:
            return None
        found: list[LogBatch] = []
        taken = 0
        for batch in tail.batches[at : at + BATCHES_PER_READ_MAX]:
            taken += batch.size_bytes
            if batch.end_offset > end_offset or (found and taken > bytes_max):
                break
            found.append(batch)
        return found or None

    def forget(self, group: GroupId) -> None:
        """Drop all of one group: its log was cut, or it is gone."""
        if self._tails.pop(group, None) is not None:
            self._drop(lambda entry: entry[0] == group)

    def forget_below(self, group: GroupId, offset: Offset) -> None:
        """Drop what one group has below ``offset``, where a batch ends: it was compacted."""
        tail = self._tails.get(group)
        if tail is None:
            return
        is_any = False
        while tail.head < len(tail.batches) and tail.batches[tail.head].end_offset <= offset:
            tail.drop_first()
            is_any = True
        if is_any:
            self._drop(lambda entry: entry[0] == group and entry[1].end_offset <= offset)

    def _drop(self, is_dropped: Callable[[tuple[GroupId, LogBatch]], bool]) -> None:
        kept: deque[tuple[GroupId, LogBatch]] = deque()
        for entry in self._order:
            if is_dropped(entry):
                self._bytes -= entry[1].size_bytes + ENTRY_OVERHEAD_BYTES
            else:
                kept.append(entry)
        self._order = kept

    def _evict(self) -> None:
        group, batch = self._order.popleft()
        self._bytes -= batch.size_bytes + ENTRY_OVERHEAD_BYTES
        tail = self._tails[group]
        assert tail.batches[tail.head] is batch
        tail.drop_first()
