"""Looking into segments without opening the log: for the offline tools.

Nothing here needs a lock, an intact mark or a known owner, and nothing is changed: it works
on a running broker's files, on those of one that was killed, and on a single file that was
copied somewhere.  The group, whose id the checksums are seeded with, is read from the file
itself; failing that, from the name of its directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

from logd.env import FileSystem
from logd.errors import CorruptionError, StorageError
from logd.record.header import BatchHeader
from logd.storage.batch_walk import walk_batches, written_end
from logd.storage.digits import number_of, twenty_digits
from logd.storage.directory import GROUPS_NAME, groups_in
from logd.storage.recovery import find_superseded, read_segment_header, segment_bases
from logd.storage.segment import FIRST_POSITION, Segment, base_offset_of, segment_name
from logd.storage.segment_index import OFFSET_SUFFIX, TIME_SUFFIX, remove_indexes
from logd.storage.successor_note import next_offset_of
from logd.storage.synced_mark import SLOTS_END, MarkSlot, newest_mark
from logd.storage.whole_file import parent
from logd.types import FilePosition, GroupId, Offset, Term

_INDEX_INTERVAL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One segment, as far as its header block tells."""

    path: str
    group: GroupId
    base_offset: Offset
    prev_term: Term
    mark: MarkSlot | None
    size: FilePosition
    is_active: bool
    """The last of its log; or this one file is all that is known, and it names none behind it."""
    header_error: str | None
    successor: Offset | None
    """Where the segment begins that follows it, if it says so."""
    lost_successor: Offset | None
    """That, if it is gone."""


StopKind = Literal["damaged", "unfinished end", "surplus"]
"""Bytes that were promised are not there; or those behind them are what a crash or a write under
way leaves in an active segment, or are more than a sealed one holds, which nothing reads."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a walk over a segment ended before its last byte."""

    position: FilePosition
    reason: str
    kind: StopKind

    @property
    def is_damage(self) -> bool:
        return self.kind == "damaged"


class SegmentWalk:
    """Walks over the verified batches of one segment; afterwards ``stop`` says why it ended."""

    def __init__(self, files: FileSystem, segment: SegmentFile) -> None:
        self._files = files
        self._segment = segment
        self.stop: Stop | None = None
        """None: at the end of what was written."""
        self.batches = 0
        self.bytes = 0
        self.end_offset = segment.base_offset

    def __iter__(self) -> Iterator[tuple[FilePosition, BatchHeader, memoryview]]:
        segment = self._segment
        self.stop = None
        position = FIRST_POSITION
        term = segment.prev_term
        file = self._files.open(segment.path, writable=False)
        try:
            for at, header, batch in walk_batches(file, position, self._end, segment.group):
                if header.base_offset != self.end_offset or header.term < term:
                    raise CorruptionError(
                        f"{segment.path}, position {at}: a batch at offset {header.base_offset} "
                        f"of term {header.term}, expected offset {self.end_offset} of term "
                        f"{term} or later"
                    )
                self.batches += 1
                self.bytes += header.size_bytes
                self.end_offset, term = header.end_offset, header.term
                position = FilePosition(at + header.size_bytes)
                yield at, header, batch
        except CorruptionError as error:
            self.stop = self._judge(position, written_end(file, position), str(error))
        else:
            self.stop = self._judge(position, position, f"{segment.path} ends at {position}")
        finally:
            file.close()

    def _judge(self, position: FilePosition, written: FilePosition, reason: str) -> Stop | None:
        segment = self._segment
        if position < self._promised_end():
            return Stop(position, reason, "damaged")
        if position < segment.size and not segment.is_active:
            surplus = (
                f"{segment.path}, position {position}: {segment.size - position} bytes behind the "
                "last batch of a sealed segment, which ends there; nothing reads them"
            )
            return Stop(position, surplus, "surplus")
        return Stop(position, reason, "unfinished end") if written > position else None

    @property
    def _end(self) -> FilePosition:
        """Behind what may be batches."""
        segment = self._segment
        is_sealed = segment.mark is not None and not segment.is_active
        return min(segment.size, self._promised_end()) if is_sealed else segment.size

    def _promised_end(self) -> FilePosition:
        """Up to where a bad byte is damage."""
        mark = self._segment.mark
        if mark is not None:
            return mark.end_position
        return FIRST_POSITION if self._segment.is_active else self._segment.size


def find_segments(files: FileSystem, path: str) -> list[SegmentFile]:
    """The segments of a file, of a group's directory, or of a whole data directory.

    Raises:
        StorageError: there are none; ``NewerFormatError``.
    """
    if not files.is_directory(path):
        # It may be a copy that lies elsewhere.  What follows it there is known from its note only.
        alone = _inspect(files, path, is_active=True)
        return [replace(alone, is_active=alone.successor is None, lost_successor=None)]
    found: list[SegmentFile] = []
    for directory in group_directories(files, path):
        bases = segment_bases(files, directory)
        inspected = [
            _inspect(files, f"{directory}/{segment_name(base)}", is_active=base == bases[-1])
            for base in bases
        ]
        # Leftovers of a compaction under way, or cut short: what they held is in another one.
        superseded = find_superseded([(each.base_offset, each.mark) for each in inspected])
        found += [each for each in inspected if each.base_offset not in superseded]
    if not found:
        raise StorageError(f"{path} holds no segments, and no groups that do")
    return found


def group_directories(files: FileSystem, path: str) -> list[str]:
    """The group directories in a data directory; a group's directory gives itself."""
    groups = f"{path}/{GROUPS_NAME}"
    if not files.is_directory(groups):
        return [path]
    return [f"{groups}/{twenty_digits(group)}" for group in groups_in(files, groups)]


def check_chain(segments: list[SegmentFile]) -> list[str]:
    """What is wrong with how the segments of each group follow on from one another."""
    wrong = [
        f"{each.path}: the segment that followed it, from offset {each.lost_successor}, is gone"
        for each in segments
        if each.lost_successor is not None
    ]
    for before, after in pairwise(segments):
        if parent(before.path) != parent(after.path):
            continue
        if before.mark is None:
            wrong.append(f"{before.path}: both synced marks are unreadable")
        elif before.mark.end_offset != after.base_offset:
            wrong.append(
                f"{before.path} ends at offset {before.mark.end_offset}, the next segment begins "
                f"at {after.base_offset}"
            )
    return wrong


def reindex(files: FileSystem, segment: SegmentFile) -> int:
    """Build a segment's indexes anew; returns how many bytes of batches they cover.

    Those of an active segment go as far as its mark; its broker adds the rest when it starts.

    Raises:
        CorruptionError: a header in the segment is damaged, or nothing tells how far its batches
            go; the old indexes are gone.
        OSError: they cannot be written.
    """
    remove_indexes(files, segment.path)
    if segment.mark is None and segment.is_active:
        raise CorruptionError(f"{segment.path}: both synced marks are unreadable")
    end = segment.mark.end_position if segment.mark else segment.size
    if end == FIRST_POSITION:
        return 0
    indexed = Segment(
        files,
        segment.path,
        segment.group,
        _INDEX_INTERVAL_BYTES,
        base_offset=segment.base_offset,
        prev_term=segment.prev_term,
        end=end,
    )
    indexed.rebuild_indexes(end).write(files, segment.path)
    for suffix in (OFFSET_SUFFIX, TIME_SUFFIX):
        if not files.exists(segment.path + suffix):
            raise StorageError(f"cannot write {segment.path}{suffix}")
    return end - FIRST_POSITION


def _inspect(files: FileSystem, path: str, *, is_active: bool) -> SegmentFile:
    header, block, size = read_segment_header(files, path)
    directory, _, name = path.rpartition("/")
    if isinstance(header, CorruptionError):
        group = _group_of_directory(directory)
        base_offset = base_offset_of(name)
        if group is None or base_offset is None:
            raise CorruptionError(f"{header}; neither do file and directory name say whose it is")
        prev_term = Term(0)
        error = str(header)
    else:
        group, base_offset = header.identity.group, header.base_offset
        prev_term = header.prev_term
        error = None
    mark = newest_mark(block[:SLOTS_END], group)
    next_offset = next_offset_of(block, group)
    has_note = mark is not None and next_offset == mark.end_offset
    successor = next_offset if has_note else None
    is_lost = (
        is_active
        and successor is not None
        # A running broker may have begun it since the directory was listed.
        and not files.exists(f"{directory}/{segment_name(successor)}")
    )
    return SegmentFile(
        path=path,
        group=group,
        base_offset=base_offset,
        prev_term=prev_term,
        mark=mark,
        size=FilePosition(size),
        is_active=is_active,
        header_error=error,
        successor=successor,
        lost_successor=successor if is_lost else None,
    )


def _group_of_directory(directory: str) -> GroupId | None:
    number = number_of(directory.rpartition("/")[2])
    return None if number is None else GroupId(number)
