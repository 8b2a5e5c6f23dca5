"""Reads one replica's log back: for consumers below the commit offset, for followers up to its end.

What is recent lies in memory and is had at once.  What is in the page cache is read on the event
loop, for the way to a thread takes longer than that; only what has to come from the disk goes
to a thread.  Whatever comes from a file is verified, and damage found here is reported to those
who can fill it from a peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from logd.errors import CorruptionError, OffsetOutOfRangeError, UnavailableError
from logd.record.header import decode_header
from logd.types import Buffer, Offset

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost
    from logd.storage.log import LogBatch


class CommittedBatches(NamedTuple):
    """Consecutive committed batches, as they lie in the log."""

    end_offset: Offset
    size_bytes: int
    buffers: list[Buffer]
    """Together the batches; one batch may be split over two buffers."""


class LogReader:
    """Reads the log of one group."""

    __slots__ = ("_group", "_host")

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._host = host

    def read_tail(self, offset: Offset, bytes_max: int) -> list[LogBatch] | None:
        """As ``read_committed``, from memory and at once; None if it is not there."""
        group = self._group
        if offset >= group.commit_offset:
            return None
        return self._host.tail_cache.read(group.group_id, offset, group.commit_offset, bytes_max)

    async def read_committed(self, offset: Offset, bytes_max: int) -> CommittedBatches | None:
        """Whole verified batches from the one containing ``offset``, below the commit offset.

        At least one batch; None when ``offset`` is not below the commit offset.

        Raises:
            CorruptionError: the log does not hold what was written.
            OffsetOutOfRangeError: ``offset`` is below the log's start.
            StorageFailedError: the disk failed.
            UnavailableError: the replica was closed.
        """
        group = self._group
        if group.is_closed:
            raise UnavailableError(f"the replica of {group.name} is closed")
        end = group.commit_offset
        if offset >= end:
            return None
        if offset < group.log_start:  # Before memory is asked, which may still have it.
            raise OffsetOutOfRangeError(
                f"offset {offset} is outside [{group.log_start}, {end}]", group.log_start, end
            )
        cached = self._host.tail_cache.read(group.group_id, offset, end, bytes_max)
        if cached is not None:
            return CommittedBatches(
                cached[-1].end_offset,
                sum(batch.size_bytes for batch in cached),
                [buffer for batch in cached for buffer in batch.buffers],
            )
        found = await self.read_file(offset, end, bytes_max)
        return CommittedBatches(
            decode_header(found[-1]).end_offset, sum(map(len, found)), list(found)
        )

    async def read_file(self, start: Offset, end: Offset, bytes_max: int) -> list[memoryview]:
        """Whole verified batches from the one containing ``start``, from the files.

        Raises:
            CorruptionError: the log does not hold what was written.
            OffsetOutOfRangeError: ``start`` is not in the log.
            StorageFailedError: the disk failed.
        """
        log = self._group.log
        found = log.read(start, end, bytes_max, cached_only=True)
        if found is None:
            try:
                found = await self._host.env.run_blocking(
                    lambda: self._group.log.read(start, end, bytes_max, cached_only=False)
                )
            except CorruptionError:
                self._host.damage_met(self._group)
                raise
        assert found is not None
        return found
