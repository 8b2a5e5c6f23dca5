"""The sparse indexes of one segment: offset → file position, and append time → offset.

Why sparse: a row per batch would cost more cache than it saves.  With one row per
``index_interval_bytes`` the offset index of a 1 GiB segment is 2 MiB, and a lookup is one
binary search plus a forward walk shorter than the interval.

Why no checksum: the indexes hold nothing the segment does not.  Any doubt (wrong length,
rows out of order, a row that does not point at the batch it names) is settled by walking
over the headers of the segment again.  That is also why writes to them are never synced and
why a failure to write them fails nothing.

Why memory for the active segment and a map for sealed ones: the active segment's rows grow
while they are read; they are written behind now and then, so that a killed broker need not
build them again.  A sealed segment's rows never change.  They are read before they are mapped:
of a sector that cannot be read, a read tells by an error and a map by ending the process.

Format: segment_format.md, section 6.  Invariant: rows are strictly increasing in every
column.
"""

from __future__ import annotations

import contextlib
import operator
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from logd.env import File, FileSystem
from logd.errors import CorruptionError
from logd.limits import SEGMENT_HEADER_BYTES
from logd.record.header import HEADER_BYTES, BatchHeader
from logd.storage.batch_walk import header_at
from logd.storage.whole_file import parent
from logd.types import Buffer, FilePosition, GroupId, Offset

OFFSET_ROW: Final = struct.Struct("<II")
"""Offset less the segment's base offset; position in the segment file."""

TIME_ROW: Final = struct.Struct("<qII")
"""Append time in ms; offset less the segment's base offset; position."""

OFFSET_SUFFIX: Final = ".index"
TIME_SUFFIX: Final = ".timeindex"

RELATIVE_OFFSET_MAX: Final = 2**32 - 1
_ROWS_PER_WRITE: Final = 1024


class SparseIndex:
    """Rows of one width over a buffer: a bytearray that grows, or a map that does not."""

    __slots__ = ("_row", "rows")

    def __init__(self, row: struct.Struct, rows: Buffer) -> None:
        assert len(rows) % row.size == 0
        self._row = row
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows) // self._row.size

    def __getitem__(self, number: int) -> tuple[int, ...]:
        return self._row.unpack_from(self.rows, number * self._row.size)

    def count_through(self, key: int) -> int:
        """How many rows have a key (their first column) at or below ``key``."""
        return bisect_right(range(len(self)), key, key=self._key)

    def count_below(self, key: int) -> int:
        """How many rows have a key below ``key``."""
        return bisect_left(range(len(self)), key, key=self._key)

    def count_before(self, position: FilePosition) -> int:
        """How many rows point below ``position``."""
        return bisect_left(range(len(self)), int(position), key=lambda number: self[number][-1])

    @property
    def row_bytes(self) -> int:
        return self._row.size

    def part(self, start: int, end: int) -> bytes:
        """A copy of the rows from number ``start`` up to ``end``."""
        return bytes(self.rows[start * self._row.size : end * self._row.size])

    def first(self, count: int) -> bytearray:
        """A copy of the first ``count`` rows."""
        return bytearray(self.rows[: count * self._row.size])

    def _key(self, number: int) -> int:
        return self[number][0]


class SegmentIndexes:
    """Both indexes of one segment."""

    __slots__ = (
        "_interval_bytes",
        "_last_time_ms",
        "_written",
        "next_position",
        "offsets",
        "times",
    )

    def __init__(
        self, interval_bytes: int, offset_rows: Buffer = b"", time_rows: Buffer = b""
    ) -> None:
        self._interval_bytes = interval_bytes
        self.offsets = SparseIndex(OFFSET_ROW, offset_rows)
        self.times = SparseIndex(TIME_ROW, time_rows)
        self._written = (0, 0)
        self.next_position = 0
        """``add`` wants the next batch that begins here or later."""
        self._last_time_ms = -(2**63)
        if len(self.offsets):
            self.next_position = self.offsets[len(self.offsets) - 1][1] + interval_bytes
        if len(self.times):
            self._last_time_ms = self.times[len(self.times) - 1][0]

    @classmethod
    def growing(
        cls, interval_bytes: int, offset_rows: Buffer = b"", time_rows: Buffer = b""
    ) -> SegmentIndexes:
        """Indexes in memory, that take more rows."""
        return cls(interval_bytes, bytearray(offset_rows), bytearray(time_rows))

    def add(self, relative_offset: int, append_time_ms: int, position: int) -> None:
        """Index the batch at ``position``.  Call when ``position >= next_position``."""
        offset_rows, time_rows = self.offsets.rows, self.times.rows
        assert isinstance(offset_rows, bytearray)
        assert isinstance(time_rows, bytearray)
        offset_rows += OFFSET_ROW.pack(relative_offset, position)
        self.next_position = position + self._interval_bytes
        # Equal times get one row, the first: a search is for the first batch of a time.
        if append_time_ms > self._last_time_ms:
            time_rows += TIME_ROW.pack(append_time_ms, relative_offset, position)
            self._last_time_ms = append_time_ms

    def add_walked(
        self, base_offset: Offset, walked: Iterable[tuple[FilePosition, BatchHeader]]
    ) -> None:
        """Index what a walk over the segment's headers meets, from its first on.

        Raises:
            CorruptionError: as the walk, or the batches are not the segment's.  Those before
                are indexed.
        """
        for position, header in walked:
            if position == SEGMENT_HEADER_BYTES and header.base_offset != base_offset:
                raise CorruptionError(
                    f"a segment of base offset {base_offset} begins with a batch at "
                    f"{header.base_offset}"
                )
            if position >= self.next_position:
                self.add(header.base_offset - base_offset, header.append_time_ms, position)

    def floor(self, relative_offset: int) -> FilePosition:
        """Where to begin walking to the batch that holds the offset."""
        count = self.offsets.count_through(relative_offset)
        return FilePosition(self.offsets[count - 1][1] if count else SEGMENT_HEADER_BYTES)

    def offset_before_time(self, time_ms: int) -> int:
        """A relative offset from which to look for the first batch appended at ``time_ms`` or
        later: it lies between the indexed batch before this and the next indexed one."""
        earlier = self.times.count_below(time_ms)
        if earlier == 0:
            return 0
        if earlier == len(self.times):
            return self.offsets[len(self.offsets) - 1][0]
        return self.times[earlier][1] - 1

    def kept_below(self, position: FilePosition) -> SegmentIndexes:
        """Growing indexes with the rows that point below ``position``.

        A copy: a reader in another thread may be half-way through a search in this one.
        """
        return SegmentIndexes.growing(
            self._interval_bytes,
            self.offsets.first(self.offsets.count_before(position)),
            self.times.first(self.times.count_before(position)),
        )

    @property
    def has_much_unwritten(self) -> bool:
        return len(self.offsets) - self._written[0] >= _ROWS_PER_WRITE

    def note_all_written(self) -> None:
        """The files hold exactly these rows."""
        self._written = (len(self.offsets), len(self.times))

    def write(self, files: FileSystem, segment_path: str) -> None:
        """Write the rows that the files do not have yet."""
        offsets_written, times_written = self._written
        # Counted before: the log is appended to while a sync has them written.
        offset_count, time_count = len(self.offsets), len(self.times)
        # A disk without room for an index has none for a batch either: the log will say so.
        # The index stays in memory, and at the next start it is found wanting and built again.
        with contextlib.suppress(OSError):
            path = segment_path + OFFSET_SUFFIX
            _write_rows(files, path, self.offsets, offsets_written, offset_count)
            path = segment_path + TIME_SUFFIX
            _write_rows(files, path, self.times, times_written, time_count)
            self._written = (offset_count, time_count)


assert OFFSET_ROW.size == 8
assert TIME_ROW.size == 16


def load_indexes(
    files: FileSystem,
    file: File,
    base_offset: Offset,
    group: GroupId,
    interval_bytes: int,
    *,
    mapped: bool,
) -> SegmentIndexes | None:
    """The indexes beside ``file``, or None where there is any doubt about them.

    Args:
        mapped: leave the rows in the files; else they are read into memory.

    Raises:
        OSError: ``file`` cannot be read.
    """
    batches_max = file.size() // HEADER_BYTES
    offset_rows, time_rows = (
        _load_rows(files, file.path + suffix, row, batches_max, mapped=mapped)
        for suffix, row in ((OFFSET_SUFFIX, OFFSET_ROW), (TIME_SUFFIX, TIME_ROW))
    )
    if offset_rows is None or time_rows is None:
        return None
    try:
        found = SegmentIndexes(interval_bytes, offset_rows, time_rows)
        is_ours = _is_of_segment(found, file, base_offset, group)
    except CorruptionError:
        return None
    if not is_ours:
        return None
    found.note_all_written()
    return found


def _is_of_segment(found: SegmentIndexes, file: File, base_offset: Offset, group: GroupId) -> bool:
    """Whether the first rows are the segment's first batch and the last ones name batches."""
    first = (0, SEGMENT_HEADER_BYTES)
    if found.offsets[0] != first or found.times[0][1:] != first:
        return False
    last_time_ms, *last_timed = found.times[len(found.times) - 1]
    time_at_end = None
    for relative_offset, position in (tuple(last_timed), found.offsets[len(found.offsets) - 1]):
        header = header_at(file, FilePosition(position), group)
        if header.base_offset != base_offset + relative_offset:
            return False
        time_at_end = header.append_time_ms
    # Else one of the files has lost its end: a batch with a row in one has one in the other,
    # unless it is as old as the one before.
    return time_at_end == last_time_ms


def remove_indexes(files: FileSystem, segment_path: str) -> None:
    """Remove the index files.  A reader that has them mapped is not disturbed."""
    for suffix in (OFFSET_SUFFIX, TIME_SUFFIX):
        if files.exists(segment_path + suffix):
            files.remove(segment_path + suffix)


def remove_indexes_durably(files: FileSystem, segment_path: str) -> None:
    """As ``remove_indexes``, so that a power cut does not bring them back.

    Rows about batches that were cut off would look right beside the ones that follow.
    """
    if files.exists(segment_path + OFFSET_SUFFIX) or files.exists(segment_path + TIME_SUFFIX):
        remove_indexes(files, segment_path)
        files.sync_directory(parent(segment_path))


def _load_rows(
    files: FileSystem, path: str, row: struct.Struct, rows_max: int, *, mapped: bool
) -> Buffer | None:
    """The rows of one index file, if it is there, whole and in order."""
    try:
        if not files.exists(path):
            return None
        file = files.open(path, writable=False)
        try:
            size = file.size()
            # The length is as little to be trusted as the rest, and all of it is read here.
            if size == 0 or size % row.size or size > rows_max * row.size:
                return None
            rows: Buffer = file.pread(size, 0)
            if len(rows) < size or not _is_increasing(row, rows):
                return None
            # The map outlives the descriptor.
            return file.map() if mapped else rows
        finally:
            file.close()
    except OSError:
        return None  # What cannot be read is built again, as what is not there.


def _is_increasing(row: struct.Struct, rows: Buffer) -> bool:
    columns = list(zip(*row.iter_unpack(rows), strict=True))
    # The time index may name no offset twice either, so the rule is one for all columns.
    return all(all(map(operator.lt, column, column[1:])) for column in columns)


def _write_rows(files: FileSystem, path: str, index: SparseIndex, written: int, count: int) -> None:
    """Bring a file that has the first ``written`` rows to the first ``count``."""
    if written == 0 and files.exists(path):
        # Not overwritten in place: somebody may have the old rows mapped.
        files.remove(path)
    if count == written:
        return
    file = files.open(path, create=written == 0)
    try:
        file.pwritev([index.part(written, count)], written * index.row_bytes)
    finally:
        file.close()
