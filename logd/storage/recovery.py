"""What is found when a log is opened after its last user closed it, crashed, or lost power.

Only the active segment is looked into, and only behind its synced mark: start-up time does
not grow with the data.  Everything below the mark was synced before the mark was written, so
a bad or missing batch there is *corruption*: it is reported, nothing is cut, and the log
takes no appends.  At or above the mark a bad batch is what a crash leaves behind: the log is
cut there, whatever follows, because several batches lie between two syncs and a power cut
may keep only the later sectors of them.

What is kept is synced, and marked so, before anybody is told of it.

The cut matters even where nothing but zeros seems to follow: an intact batch from before
the crash, left lying behind the new end, could one day follow on from it and come to life
again.

A sealed segment is asked for its header block only: that it is ours, and that it ends where
the next one begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from logd.env import File, FileSystem
from logd.errors import BeyondRepairError, CorruptionError
from logd.limits import MIB, SEGMENT_HEADER_BYTES
from logd.storage.batch_walk import is_zero, walk_batches, walk_headers, written_end
from logd.storage.file_header import (
    SEGMENT_MAGIC,
    FileHeader,
    LogIdentity,
    decode_file_header,
    refuse_foreign,
)
from logd.storage.segment import (
    FIRST_POSITION,
    Segment,
    base_offset_of,
    segment_name,
)
from logd.storage.segment_index import (
    OFFSET_SUFFIX,
    TIME_SUFFIX,
    SegmentIndexes,
    load_indexes,
    remove_indexes_durably,
)
from logd.storage.successor_note import next_offset_of
from logd.storage.synced_mark import SLOTS_END, MarkSlot, newest_mark, write_mark
from logd.storage.whole_file import UNFINISHED_SUFFIX
from logd.types import FilePosition, Offset, Term


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening the log found and did."""

    scanned_bytes: int = 0
    """Verified behind the synced mark (or all, if the mark was lost)."""
    cut_bytes: int = 0
    """Written but not part of an intact batch, and removed from the end."""
    cut_reason: str | None = None
    mark_lost: bool = False
    """Neither slot of the synced mark is intact: what was promised is not known."""
    damage: tuple[str, ...] = ()
    """What is missing or damaged that was promised.  The files were left as they are."""

    @property
    def is_damaged(self) -> bool:
        return bool(self.damage)


class LogEnd(NamedTuple):
    """Where a log ends: the next offset, the last batch's term, the place in the file."""

    offset: Offset
    term: Term
    position: FilePosition


@dataclass(frozen=True, slots=True)
class Recovered:
    """A log as it was found and left.  The last segment is open for appending."""

    segments: tuple[Segment, ...]
    end: LogEnd
    mark: MarkSlot | None
    report: RecoveryReport


@dataclass(slots=True)
class FoundSegment:
    """One segment's header block, decoded as far as it could be."""

    path: str
    base_offset: Offset
    size: int
    header: FileHeader | None
    mark: MarkSlot | None
    next_offset: Offset | None = None
    """Where it says that the next one begins."""
    damage: list[str] = field(default_factory=list)

    @property
    def lost_successor(self) -> str | None:
        """Of the last segment that there is: what was behind it, and is gone."""
        if self.mark is None or self.next_offset != self.mark.end_offset:
            return None  # It has gone on since it said so, behind a truncation.
        return f"{self.path}: the segment that followed it, from offset {self.next_offset}, is gone"

    @property
    def prev_term(self) -> Term:
        return self.header.prev_term if self.header else Term(0)


def segment_bases(files: FileSystem, directory: str) -> list[Offset]:
    """Base offsets of the segments in ``directory``, in order."""
    found = map(base_offset_of, files.list_directory(directory))
    return sorted(base for base in found if base is not None)


def recover(
    files: FileSystem,
    directory: str,
    identity: LogIdentity,
    interval_bytes: int,
    *,
    is_new: bool = False,
) -> Recovered:
    """Find the segments, judge the end of the last one, cut off what a crash left.

    What is kept is durable then, unless the log is damaged.

    Args:
        is_new: it was just laid out, and synced.

    Raises:
        BeyondRepairError: there is no segment.
        StorageError: ``NewerFormatError``, ``ForeignDirectoryError``.
        OSError: the disk failed.
    """
    _remove_leftovers(files, directory)
    if not is_new:
        # A process that was killed may have left names that are not durable yet; what is synced
        # from now on must not depend on them.
        files.sync_directory(directory)
    found = _without_superseded(files, inspect_segments(files, directory, identity))
    damage = _check_chain(found)
    lost = found[-1].lost_successor
    if lost is not None:
        damage.append(lost)

    segments = tuple(_segment(files, each, identity, interval_bytes) for each in found)
    last, active = found[-1], segments[-1]
    file = active.file = files.open(last.path)
    end, report = _recover_end(files, file, active, last, identity, interval_bytes)
    report = replace(report, damage=(*damage, *report.damage))
    if not report.is_damaged and file.size() > end.position:
        file.truncate(end.position)
    active.end = end.position
    mark = last.mark
    if not is_new and not report.is_damaged:
        assert mark is not None
        mark = _sync(file, mark, end, identity)
    return Recovered(segments, end, mark, report)


def _without_superseded(files: FileSystem, found: list[FoundSegment]) -> list[FoundSegment]:
    """Finish what a compaction began that was cut short: the files that it merged into the
    one before them lie below that one's end, and it ends where another begins."""
    superseded = find_superseded([(each.base_offset, each.mark) for each in found])
    for each in found:
        if each.base_offset in superseded:
            files.remove(each.path)
            remove_indexes_durably(files, each.path)
    if superseded:
        files.sync_directory(found[0].path.rpartition("/")[0])
    return [each for each in found if each.base_offset not in superseded]


def find_superseded(found: Sequence[tuple[Offset, MarkSlot | None]]) -> list[Offset]:
    """Base offsets of segments that were merged into one before them, of a log's base offsets
    and marks in order."""
    bases = [base for base, _ in found]
    superseded: list[Offset] = []
    covered = Offset(0)
    for base, mark in found:
        if base < covered:
            superseded.append(base)
        elif mark is not None and mark.end_offset in bases:
            covered = mark.end_offset
    return superseded


def inspect_segments(
    files: FileSystem, directory: str, identity: LogIdentity
) -> list[FoundSegment]:
    """The header blocks of a log's segments, in order, damaged or not.

    Raises:
        BeyondRepairError: there is no segment.
        StorageError: ``NewerFormatError``, ``ForeignDirectoryError``.
        OSError: the disk failed.
    """
    bases = segment_bases(files, directory)
    if not bases:
        raise BeyondRepairError(f"{directory} holds no segment: its log is gone")
    return [_inspect(files, directory, base, identity) for base in bases]


def read_segment_header(
    files: FileSystem, path: str
) -> tuple[FileHeader | CorruptionError, bytes, int]:
    """A segment's file header (or what is wrong with it), header block and size."""
    file = files.open(path, writable=False)
    try:
        block = file.pread(SEGMENT_HEADER_BYTES, 0)
        size = file.size()
    finally:
        file.close()
    try:
        header = decode_file_header(path, SEGMENT_MAGIC, block)
    except CorruptionError as error:
        return error, block, size
    return header, block, size


def _remove_leftovers(files: FileSystem, directory: str) -> None:
    """Unfinished files, and indexes whose segment is gone: nothing relies on either."""
    names = files.list_directory(directory)
    for name in names:
        segment, suffix, _ = name.partition(".log")
        is_index = name.endswith((OFFSET_SUFFIX, TIME_SUFFIX)) and suffix
        if name.endswith(".log" + UNFINISHED_SUFFIX) or (
            is_index and f"{segment}.log" not in names
        ):
            files.remove(f"{directory}/{name}")


def _inspect(
    files: FileSystem, directory: str, base_offset: Offset, identity: LogIdentity
) -> FoundSegment:
    path = f"{directory}/{segment_name(base_offset)}"
    header, block, size = read_segment_header(files, path)
    mark = newest_mark(block[:SLOTS_END], identity.group)
    if isinstance(header, CorruptionError):
        return FoundSegment(path, base_offset, size, None, mark, damage=[str(header)])
    refuse_foreign(path, header.identity, identity)
    if header.base_offset != base_offset:
        # Another segment's file: nothing in it says anything about this one.
        wrong = f"{path}: the header says base offset {header.base_offset}"
        return FoundSegment(path, base_offset, size, None, None, damage=[wrong])
    next_offset = next_offset_of(block, identity.group)
    return FoundSegment(path, base_offset, size, header, mark, next_offset)


def _check_chain(found: list[FoundSegment]) -> list[str]:
    """Each sealed segment must end where the next one begins."""
    damage = [text for each in found for text in each.damage]
    for sealed, after in pairwise(found):
        if sealed.mark is None:
            damage.append(f"{sealed.path}: both synced marks are unreadable")
        elif sealed.mark.end_offset != after.base_offset:
            damage.append(
                f"{sealed.path} ends at offset {sealed.mark.end_offset}, "
                f"the next segment begins at {after.base_offset}"
            )
        elif after.header is not None and sealed.mark.term != after.prev_term:
            damage.append(
                f"{sealed.path} ends in term {sealed.mark.term}, "
                f"the next segment follows term {after.prev_term}"
            )
        if sealed.mark is not None and sealed.size < sealed.mark.end_position:
            damage.append(
                f"{sealed.path} has {sealed.size} bytes, {sealed.mark.end_position} were synced"
            )
    return damage


def _segment(
    files: FileSystem, found: FoundSegment, identity: LogIdentity, interval_bytes: int
) -> Segment:
    end = found.mark.end_position if found.mark else found.size
    return Segment(
        files,
        found.path,
        identity.group,
        interval_bytes,
        base_offset=found.base_offset,
        prev_term=found.prev_term,
        end=FilePosition(min(end, found.size)),
    )


def _recover_end(
    files: FileSystem,
    file: File,
    active: Segment,
    found: FoundSegment,
    identity: LogIdentity,
    interval_bytes: int,
) -> tuple[LogEnd, RecoveryReport]:
    """Where the active segment ends, with its indexes complete up to there."""
    start = LogEnd(found.base_offset, found.prev_term, FIRST_POSITION)
    size = FilePosition(found.size)
    mark = found.mark
    if mark is not None and size >= mark.end_position:
        marked = LogEnd(mark.end_offset, mark.term, mark.end_position)
        try:
            indexes = _indexes_below(files, file, active, marked, identity, interval_bytes)
        except CorruptionError as error:
            damage = str(error)
        else:
            active.indexes = indexes
            end, reason = _scan(file, marked, size, identity, indexes, found.base_offset)
            cut_bytes = 0
            if not is_zero(file, end.position, SEGMENT_HEADER_BYTES):
                cut_bytes = written_end(file, end.position) - end.position
            return end, RecoveryReport(
                scanned_bytes=end.position - marked.position,
                cut_bytes=cut_bytes,
                cut_reason=reason if cut_bytes else None,
            )
    elif mark is None:
        damage = f"{found.path}: both synced marks are unreadable"
    else:
        damage = f"{found.path} has {size} bytes, {mark.end_position} were synced"
    # Not to be trusted with appends or a whole vote, but what is intact can be read.
    active.indexes = SegmentIndexes.growing(interval_bytes)
    end, _ = _scan(file, start, size, identity, active.indexes, found.base_offset)
    return end, RecoveryReport(
        scanned_bytes=end.position - start.position, mark_lost=mark is None, damage=(damage,)
    )


def _scan(
    file: File,
    end: LogEnd,
    size: FilePosition,
    identity: LogIdentity,
    indexes: SegmentIndexes,
    base_offset: Offset,
) -> tuple[LogEnd, str | None]:
    """Follow intact batches from ``end``; stop at the first that is not the next one."""
    try:
        for position, header, _ in walk_batches(file, end.position, size, identity.group):
            if header.base_offset != end.offset or header.term < end.term:
                return end, (
                    f"{file.path}, position {position}: a batch at offset {header.base_offset} "
                    f"of term {header.term}, expected offset {end.offset} of term {end.term} up"
                )
            if position >= indexes.next_position:
                indexes.add(header.base_offset - base_offset, header.append_time_ms, position)
            end = LogEnd(header.end_offset, header.term, FilePosition(position + header.size_bytes))
    except CorruptionError as error:
        return end, str(error)
    return end, None


def _sync(file: File, marked: MarkSlot, end: LogEnd, identity: LogIdentity) -> MarkSlot:
    """Make everything up to ``end`` durable, and then a mark that says so, which is returned."""
    # If a sync failed before the process ended, the page cache may show bytes that the
    # disk does not have, and syncing would not write them: they count as written.  So all
    # that was not yet known to be synced is written once more.
    write_mark(file, marked, identity.group)
    _write_again(file, marked.end_position, end.position)
    file.sync()
    mark = marked.followed_by(end.term, end.offset, end.position, Offset(0))
    if mark is not marked:
        write_mark(file, mark, identity.group)
        file.sync()
    return mark


def _write_again(file: File, position: FilePosition, end: FilePosition) -> None:
    while position < end:
        chunk = file.pread(min(1 * MIB, end - position), position)
        if not chunk:
            raise CorruptionError(f"{file.path} was cut short at {position}")
        file.pwritev([chunk], position)
        position = FilePosition(position + len(chunk))


def _indexes_below(
    files: FileSystem,
    file: File,
    active: Segment,
    marked: LogEnd,
    identity: LogIdentity,
    interval_bytes: int,
) -> SegmentIndexes:
    """Indexes of everything below the mark: from the files as far as they go, then by walking.

    Raises:
        CorruptionError: there is a bad header below the mark, or no way from batch to batch
            to where it says the log was synced to.
    """
    loaded = load_indexes(
        files, file, active.base_offset, identity.group, interval_bytes, mapped=False
    )
    if loaded is not None:
        kept = loaded.kept_below(marked.position)
        if len(kept.offsets) == len(loaded.offsets):
            kept.note_all_written()
        else:
            # Rows behind the mark may describe batches that are cut off now.
            remove_indexes_durably(files, file.path)
        if len(kept.offsets):
            relative_offset, position = kept.offsets[len(kept.offsets) - 1]
            row_offset = Offset(active.base_offset + relative_offset)
            start = LogEnd(row_offset, active.prev_term, FilePosition(position))
            try:
                _walk_to_mark(file, kept, start, active, marked, identity)
            except CorruptionError:
                pass  # The rows may be from before a truncation; the headers decide.
            else:
                return kept
    remove_indexes_durably(files, file.path)
    rebuilt = SegmentIndexes.growing(interval_bytes)
    start = LogEnd(active.base_offset, active.prev_term, FIRST_POSITION)
    _walk_to_mark(file, rebuilt, start, active, marked, identity)
    return rebuilt


def _walk_to_mark(
    file: File,
    indexes: SegmentIndexes,
    start: LogEnd,
    active: Segment,
    marked: LogEnd,
    identity: LogIdentity,
) -> None:
    """Walk from ``start``, where a batch of that offset and of that term or a later one lies."""
    end_offset, term = start.offset, start.term
    for at, header in walk_headers(file, start.position, marked.position, identity.group):
        if header.base_offset != end_offset or header.term < term:
            raise CorruptionError(
                f"{file.path}, position {at}: a batch at offset {header.base_offset} of term "
                f"{header.term} below the synced mark, expected offset {end_offset} of term "
                f"{term} up"
            )
        if at >= indexes.next_position:
            indexes.add(header.base_offset - active.base_offset, header.append_time_ms, at)
        end_offset, term = header.end_offset, header.term
    if (end_offset, term) != (marked.offset, marked.term):
        raise CorruptionError(
            f"{file.path}: the log below the synced mark ends at offset {end_offset} in term "
            f"{term}, the mark says offset {marked.offset} in term {marked.term}"
        )
