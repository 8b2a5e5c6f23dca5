"""One segment: a file of batches behind a header block, with its indexes beside it.

The header block is 4 KiB so that the batches behind it are aligned to pages and so that the
two synced-mark slots and the file header lie in sectors of their own: writing a mark cannot
tear anything else.

A segment is *active* (the last of its log, open for writing, its indexes growing in memory,
allocated ahead and so longer than what it holds) or *sealed* (opened when it is read, its
indexes mapped).  Only the active one's synced mark counts; a sealed one keeps its last mark,
which covers all it holds.

Format: segment_format.md, section 5.
"""

from __future__ import annotations

from typing import Final

from logd.env import File, FileSystem
from logd.errors import CorruptionError
from logd.limits import SEGMENT_HEADER_BYTES
from logd.record.header import BatchHeader
from logd.storage.batch_walk import header_at, walk_headers
from logd.storage.digits import number_of, twenty_digits
from logd.storage.file_header import (
    SEGMENT_MAGIC,
    FileHeader,
    LogIdentity,
    encode_file_header,
)
from logd.storage.room import opening
from logd.storage.segment_index import SegmentIndexes, load_indexes
from logd.storage.successor_note import NOTE_END, NOTE_POSITION, encode_note
from logd.storage.synced_mark import SLOT_POSITIONS, MarkSlot, encode_mark
from logd.storage.whole_file import WriteNew, write_new_file
from logd.types import FilePosition, GroupId, Offset, Term

SEGMENT_SUFFIX: Final = ".log"
FIRST_POSITION: Final = FilePosition(SEGMENT_HEADER_BYTES)
"""Where the batches begin."""


def segment_name(base_offset: Offset) -> str:
    return twenty_digits(base_offset) + SEGMENT_SUFFIX


def base_offset_of(name: str) -> Offset | None:
    """The base offset that a file's name gives; None if it is no segment's name."""
    number = number_of(name.removesuffix(SEGMENT_SUFFIX)) if name.endswith(SEGMENT_SUFFIX) else None
    return None if number is None else Offset(number)


def create_segment(
    files: FileSystem,
    directory: str,
    identity: LogIdentity,
    base_offset: Offset,
    prev_term: Term,
    commit_offset: Offset,
    write: WriteNew = write_new_file,
) -> MarkSlot:
    """Create an empty segment with a mark that says that all before it is synced.

    Durable unless ``write`` leaves that to the caller.
    """
    mark = first_mark(base_offset, prev_term, commit_offset)
    block = segment_header_block(identity, base_offset, prev_term, mark)
    write(files, f"{directory}/{segment_name(base_offset)}", [block])
    return mark


def first_mark(base_offset: Offset, prev_term: Term, commit_offset: Offset) -> MarkSlot:
    """The mark of a segment that is empty."""
    return MarkSlot(1, prev_term, base_offset, FIRST_POSITION, commit_offset)


def segment_header_block(
    identity: LogIdentity,
    base_offset: Offset,
    prev_term: Term,
    mark: MarkSlot,
    *,
    is_followed: bool = False,
) -> bytearray:
    """The header block of a new segment file.

    Args:
        is_followed: another segment begins where this one ends.
    """
    block = bytearray(SEGMENT_HEADER_BYTES)
    header = encode_file_header(SEGMENT_MAGIC, FileHeader(identity, base_offset, prev_term))
    encoded = encode_mark(mark, identity.group)
    block[: len(header)] = header
    block[mark.position : mark.position + len(encoded)] = encoded
    if is_followed:
        block[NOTE_POSITION:NOTE_END] = encode_note(mark.end_offset, identity.group)
    assert len(block) == SEGMENT_HEADER_BYTES
    return block


class Segment:
    """Where one segment lies and, while it is used, its open file and indexes."""

    def __init__(
        self,
        files: FileSystem,
        path: str,
        group: GroupId,
        interval_bytes: int,
        *,
        base_offset: Offset,
        prev_term: Term,
        end: FilePosition,
    ) -> None:
        self._files = files
        self._group = group
        self._interval_bytes = interval_bytes
        self.path = path
        self.base_offset = base_offset
        self.prev_term = prev_term
        self.end = end
        """Of a sealed segment: behind its last batch.  The active one's is the log's end."""
        self.file: File | None = None
        self.indexes: SegmentIndexes | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be read without opening a file or loading an index first."""
        return self.file is not None and self.indexes is not None

    def opened(self) -> tuple[File, SegmentIndexes]:
        """File and indexes of a sealed segment, opened and loaded if they are not.

        Two readers may do so at once; either's result will do for both.

        Raises:
            NoRoomError: as ``opened_file``.
        """
        file = self.opened_file()
        return file, self.indexes or self._load_indexes(file)

    def opened_file(self) -> File:
        """The file alone.

        Raises:
            NoRoomError: there is no file descriptor for it.
        """
        file = self.file
        if file is None:
            with opening(self.path):
                file = self.file = self._files.open(self.path, writable=False)
        return file

    def opened_for_append(self) -> tuple[File, SegmentIndexes]:
        """As ``opened``, writable, with indexes that can grow."""
        file = self.file = self._files.open(self.path)
        indexes = self.indexes or self._load_indexes(file)
        growing = self.indexes = indexes.kept_below(self.end)
        return file, growing

    def active(self) -> tuple[File, SegmentIndexes]:
        """File and indexes of the active segment, which are always open."""
        assert self.file is not None
        assert self.indexes is not None
        return self.file, self.indexes

    def let_go(self) -> None:
        """Close, once nobody reads any more: files and maps close with their last reference."""
        self.let_go_of_file()
        self.indexes = None

    def let_go_of_file(self) -> None:
        """As ``let_go``, of a sealed one's file alone: its indexes take no descriptor."""
        self.file = None

    def rebuild_indexes(self, end: FilePosition) -> SegmentIndexes:
        """Index all batches before ``end`` anew, in memory.

        Of the active segment a row may get lost to an append that goes on meanwhile: that
        makes one walk longer and nothing wrong.

        Raises:
            CorruptionError: a header is damaged.
        """
        rebuilt, damage = self._rebuilt_indexes(end)
        if damage is not None:
            raise damage
        self.indexes = rebuilt
        return rebuilt

    def _rebuilt_indexes(self, end: FilePosition) -> tuple[SegmentIndexes, CorruptionError | None]:
        """Indexes of what lies before the first damaged header, if there is one."""
        rebuilt = SegmentIndexes.growing(self._interval_bytes)
        walk = walk_headers(self.opened_file(), FIRST_POSITION, end, self._group)
        try:
            rebuilt.add_walked(self.base_offset, walk)
        except CorruptionError as error:
            return rebuilt, error
        return rebuilt, None

    def floor(self, offset: Offset, end: FilePosition) -> FilePosition:
        """Where a batch begins from which a walk leads to ``offset``.

        An index that leads anywhere else is built anew.
        """
        file, indexes = self.opened()
        relative_offset = max(0, offset - self.base_offset)
        try:
            position = indexes.floor(relative_offset)
            if position == FIRST_POSITION:
                return position
            if header_at(file, position, self._group).base_offset <= offset:
                return position
        except CorruptionError:
            pass  # The index's fault or the segment's: only building it again can tell.
        return self._indexes_anew(end).floor(relative_offset)

    def offset_for_time(self, time_ms: int, end: FilePosition) -> Offset | None:
        """Base offset of the first batch appended at ``time_ms`` or later; None if none was.

        Raises:
            CorruptionError: a header on the way is damaged.
        """
        file, indexes = self.opened()
        position = self._position_before(time_ms, indexes)
        if position is None:
            position = self._position_before(time_ms, self._indexes_anew(end))
        if position is None or position == FIRST_POSITION:
            position = FIRST_POSITION
            self.first_header()
        for _, header in walk_headers(file, position, end, self._group):
            if header.append_time_ms >= time_ms:
                return header.base_offset
        return None

    def first_header(self) -> BatchHeader:
        """The header of the first batch.

        Raises:
            CorruptionError: it is damaged, or another's.
        """
        file = self.opened_file()
        header = header_at(file, FIRST_POSITION, self._group)
        if header.base_offset != self.base_offset:
            raise CorruptionError(f"{self.path} begins with a batch at offset {header.base_offset}")
        return header

    def _position_before(self, time_ms: int, indexes: SegmentIndexes) -> FilePosition | None:
        """Where a batch begins from which a walk leads to the first of that time; None if the
        indexes might lead past it."""
        try:
            position = indexes.floor(indexes.offset_before_time(time_ms))
            if position == FIRST_POSITION:
                return position
            header = header_at(self.opened_file(), position, self._group)
        except CorruptionError:
            return None
        return position if header.append_time_ms < time_ms else None

    def position_after(self, offset: Offset, end: FilePosition) -> tuple[FilePosition, Term]:
        """Where the batch that ends at ``offset`` ends in the file, and its term.

        Raises:
            CorruptionError: a header on the way is damaged.
        """
        if offset == self.base_offset:
            return FIRST_POSITION, self.prev_term
        start = self.floor(Offset(offset - 1), end)
        for position, header in walk_headers(self.opened_file(), start, end, self._group):
            if header.end_offset == offset:
                return FilePosition(position + header.size_bytes), header.term
            if header.end_offset > offset:
                break
        raise CorruptionError(f"{self.path}: no batch ends at offset {offset}")

    def _load_indexes(self, file: File) -> SegmentIndexes:
        if self.end == FIRST_POSITION:
            return SegmentIndexes(self._interval_bytes)
        loaded = load_indexes(
            self._files, file, self.base_offset, self._group, self._interval_bytes, mapped=True
        )
        if loaded is not None:
            self.indexes = loaded
            return loaded
        return self._indexes_anew(self.end, write=True)

    def _indexes_anew(self, end: FilePosition, *, write: bool = False) -> SegmentIndexes:
        """As ``rebuild_indexes``, for who reads.

        Not kept where a header is damaged: then they lead to what lies before, and once that
        is repaired there are better ones.
        """
        rebuilt, damage = self._rebuilt_indexes(end)
        if damage is None:
            self.indexes = rebuilt
            if write:
                rebuilt.write(self._files, self.path)
        return rebuilt


assert max(SLOT_POSITIONS) < SEGMENT_HEADER_BYTES
