"""The reading half of a log: batches by offset, headers, and when something was appended.

Reads go on in any thread while the log is appended to, synced, rolled, cut and trimmed.  Each
takes a snapshot of the segments and of the end (``LogContents``) and keeps to it; files stay
open as long as somebody reads them.  A read that met something bad starts again if the log was
changed under it in the meantime: only what is found bad in a log that stood still is damage.

After a failed write or sync, reads below the last completed sync go on; above it the page
cache may show what the disk does not have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from logd.env import File
from logd.errors import CorruptionError, OffsetOutOfRangeError, StorageFailedError
from logd.record.header import BatchHeader
from logd.storage.batch_read import Wanted, read_batches
from logd.storage.batch_walk import check_seal, walk_headers
from logd.storage.log_contents import LogContents, segment_number
from logd.storage.recovery import LogEnd
from logd.storage.segment import Segment
from logd.types import Buffer, FilePosition, Offset


class LogReads:
    """Reads one log; its methods are ``Log``'s, which says what they are for."""

    __slots__ = ("_group", "_held")

    def __init__(self, held: LogContents) -> None:
        self._held = held
        self._group = held.identity.group

    def read(
        self, offset: Offset, end_offset: Offset, bytes_max: int, *, cached_only: bool
    ) -> list[memoryview] | None:
        """See ``Log.read``."""
        held = self._held
        while True:
            changes = held.changes
            end = held.end
            segments = held.segments
            limit = min(end_offset, end.offset)
            if not segments[0].base_offset <= offset <= end.offset:
                raise OffsetOutOfRangeError(
                    f"offset {offset} is outside [{segments[0].base_offset}, {end.offset}]",
                    segments[0].base_offset,
                    end.offset,
                )
            if held.failure is not None and limit > held.synced.offset:
                raise held.refusal()
            if offset >= limit:
                return []
            try:
                return self._read(segments, end, offset, limit, bytes_max, cached_only=cached_only)
            except OSError as error:
                if held.is_as_it_was(changes, segments):
                    raise StorageFailedError(f"reading {held.directory}: {error}") from error
            except CorruptionError:
                if held.is_as_it_was(changes, segments):
                    raise
            if cached_only:
                return None  # The log is being changed: not to be waited for here.

    def headers(self, from_offset: Offset) -> Iterator[BatchHeader]:
        """See ``Log.headers``."""
        for _, _, header in self._walk(from_offset):
            yield header

    def replay(self, from_offset: Offset) -> Iterator[tuple[BatchHeader, Buffer | None]]:
        """See ``Log.replay``."""
        for file, position, header in self._walk(from_offset):
            batch = None
            if header.is_control:
                batch = file.pread(header.size_bytes, position)
                check_seal(file.path, batch, position)
            yield header, batch

    def _walk(self, from_offset: Offset) -> Iterator[tuple[File, FilePosition, BatchHeader]]:
        """Where which batch lies, from the one that holds ``from_offset`` to the present end."""
        held = self._held
        end = held.end
        segments = held.segments
        assert from_offset >= segments[0].base_offset
        next_offset: Offset | None = None
        for number in range(segment_number(segments, from_offset), len(segments)):
            segment = segments[number]
            segment_end = end.position if number == len(segments) - 1 else segment.end
            position = segment.floor(from_offset, segment_end)
            file = segment.opened_file()
            for at, header in walk_headers(file, position, segment_end, self._group):
                if header.end_offset <= from_offset:
                    continue
                # The first one holds the offset asked for; each other one follows on.
                is_next = (
                    header.base_offset <= from_offset
                    if next_offset is None
                    else header.base_offset == next_offset
                )
                if not is_next:
                    raise CorruptionError(
                        f"{segment.path}, position {at}: a batch at offset {header.base_offset}, "
                        f"expected offset {from_offset if next_offset is None else next_offset}"
                    )
                next_offset = header.end_offset
                yield file, at, header
            held.note_read(segment)
        if from_offset < end.offset != next_offset:
            raise CorruptionError(
                f"{segments[-1].path}: the batches end at offset {next_offset}, "
                f"expected {end.offset}"
            )

    def append_time_at(self, offset: Offset) -> int:
        """See ``Log.append_time_at``."""
        held = self._held
        while True:
            changes, segments = held.changes, held.segments
            try:
                return next(self.headers(offset)).append_time_ms
            except (OSError, CorruptionError):
                if held.is_as_it_was(changes, segments):
                    raise

    def offset_for_time(self, time_ms: int) -> Offset | None:
        """See ``Log.offset_for_time``."""
        held = self._held
        while True:
            changes = held.changes
            end = held.end
            segments = held.segments
            try:
                found = self._offset_for_time(segments, end, time_ms)
            except (OSError, CorruptionError):
                if held.is_as_it_was(changes, segments):
                    raise
            else:
                is_cut = held.end.offset < end.offset
                if changes == held.changes and not is_cut:
                    return found

    def _read(
        self,
        segments: tuple[Segment, ...],
        end: LogEnd,
        offset: Offset,
        limit: Offset,
        bytes_max: int,
        *,
        cached_only: bool,
    ) -> list[memoryview] | None:
        held = self._held
        segment = segments[segment_number(segments, offset)]
        if cached_only and not segment.is_open:
            return None
        file, indexes = segment.opened()
        held.note_read(segment)
        segment_end = end.position if segment is segments[-1] else segment.end
        position = indexes.floor(offset - segment.base_offset)
        wanted = Wanted(offset, limit, bytes_max, held.interval_bytes, self._group)
        try:
            return read_batches(file, position, segment_end, wanted, cached_only=cached_only)
        except CorruptionError:
            if cached_only:
                return None  # To be judged where there is time for it.
            # Perhaps only the index is wrong: it is unsynced and proves nothing.
            position = segment.floor(offset, segment_end)
            return read_batches(file, position, segment_end, wanted, cached_only=False)

    def _offset_for_time(
        self, segments: tuple[Segment, ...], end: LogEnd, time_ms: int
    ) -> Offset | None:
        filled = segments if end.offset > segments[-1].base_offset else segments[:-1]
        later = bisect_right(filled, time_ms - 1, key=self._first_append_time)
        # The first of that time lies in the segment before, unless all there is older.
        for segment in filled[max(later - 1, 0) : later + 1]:
            segment_end = end.position if segment is segments[-1] else segment.end
            found = segment.offset_for_time(time_ms, segment_end)
            self._held.note_read(segment)
            if found is not None:
                return found
        return None

    def _first_append_time(self, segment: Segment) -> int:
        header = segment.first_header()
        self._held.note_read(segment)
        return header.append_time_ms
