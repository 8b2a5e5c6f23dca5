"""Making a log whole that was found damaged when it was opened.

The holes in its segments are filled from peers (``holes.py``).  A segment's header block
needs no peer: its identity is known, and its end is where the next segment begins.  Only the
marks of the active segment cannot be made up: what they said is what was promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from logd.env import File, FileSystem
from logd.errors import CorruptionError
from logd.storage.batch_walk import walk_batches
from logd.storage.clean_note import withdraw_clean_note
from logd.storage.file_header import SEGMENT_MAGIC, FileHeader, LogIdentity, encode_file_header
from logd.storage.holes import Hole, follow, holes_between
from logd.storage.log_contents import SealedSegment
from logd.storage.recovery import FoundSegment, LogEnd, inspect_segments, segment_bases
from logd.storage.segment import FIRST_POSITION, segment_name
from logd.storage.segment_index import remove_indexes, remove_indexes_durably
from logd.storage.synced_mark import MARK_BYTES, SLOT_POSITIONS, MarkSlot, encode_mark
from logd.storage.trash import throw_away
from logd.types import FilePosition, Offset, Term


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that is wrong with a closed log."""

    holes: tuple[Hole, ...]
    """To be filled from peers."""
    end_offset: Offset = Offset(0)  # noqa: RUF009 - a NewType is an int
    """Behind everything that the log can have promised."""
    beyond_repair: str | None = None
    """What no peer can give back; the replica stays shut."""


def survey_log(files: FileSystem, directory: str, identity: LogIdentity) -> Survey:
    """Read a whole closed log and find all holes in it.

    Raises:
        StorageError, OSError: as ``Log.open``.
    """
    found = inspect_segments(files, directory, identity)
    active = found[-1]
    if active.mark is None:
        return Survey((), beyond_repair=f"{active.path}: both synced marks are unreadable")
    if active.lost_successor is not None:
        return Survey((), beyond_repair=active.lost_successor)
    if found[0].header is None and found[0].base_offset != 0:
        return Survey((), beyond_repair=f"{found[0].path}: which term it follows is not known")
    holes: list[Hole] = []
    term = Term(0)
    for segment, end in zip(found, _segment_ends(found), strict=True):
        if segment.header is not None:
            term = segment.header.prev_term  # Else the one before is the least it can be.
        start = LogEnd(segment.base_offset, term, FIRST_POSITION)
        file = files.open(segment.path, writable=False)
        try:
            holes += holes_between(file, identity.group, start, end)
        finally:
            file.close()
    return Survey(tuple(holes), _tail_end(files, active, identity).offset)


def _segment_ends(found: Sequence[FoundSegment]) -> list[LogEnd]:
    """Where the batches of each segment must end, by the segments' own testimony."""
    active = found[-1].mark
    assert active is not None
    ends: list[LogEnd] = []
    for sealed, after in pairwise(found):
        mark = sealed.mark
        # A sealed segment was cut to its size; only its last mark says it more surely.
        is_told = mark is not None and mark.end_offset == after.base_offset
        position = mark.end_position if mark is not None and is_told else sealed.size
        position = max(position, FIRST_POSITION)
        if after.header is not None:
            term = after.header.prev_term
        else:
            term = mark.term if mark is not None and is_told else active.term
        ends.append(LogEnd(after.base_offset, term, FilePosition(position)))
    ends.append(LogEnd(active.end_offset, active.term, active.end_position))
    return ends


def segment_with(
    files: FileSystem, directory: str, identity: LogIdentity, hole: Hole
) -> SealedSegment | None:
    """The segment of a closed log that ``hole`` lies in; None if it is gone.

    The active one, too: it ends where the last intact batch does.
    """
    found = inspect_segments(files, directory, identity)
    ends = [*_segment_ends(found)[:-1], _tail_end(files, found[-1], identity)]
    term = Term(0)
    for segment, end in zip(found, ends, strict=True):
        if segment.header is not None:
            term = segment.header.prev_term
        if segment.path == hole.path:
            return SealedSegment(segment.base_offset, end.offset, term, end.term, end.position)
        term = end.term
    return None


def last_term(files: FileSystem, directory: str, identity: LogIdentity) -> Term | None:
    """The term of the last batch of a closed log; None if it cannot be told.

    Raises:
        StorageError, OSError: as ``Log.open``.
    """
    active = inspect_segments(files, directory, identity)[-1]
    if active.mark is None or active.lost_successor is not None:
        return None
    return _tail_end(files, active, identity).term


def _tail_end(files: FileSystem, active: FoundSegment, identity: LogIdentity) -> LogEnd:
    """Where the batches behind the active segment's mark end: they may have been promised."""
    mark = active.mark
    assert mark is not None
    at = LogEnd(mark.end_offset, mark.term, mark.end_position)
    file = files.open(active.path, writable=False)
    try:
        for position, header, _ in walk_batches(
            file, at.position, FilePosition(file.size()), identity.group
        ):
            if header.base_offset != at.offset or header.term < at.term:
                break
            at = LogEnd(header.end_offset, header.term, FilePosition(position + header.size_bytes))
    except CorruptionError:
        pass  # A torn tail: recovery cuts it.
    finally:
        file.close()
    return at


def put_in_place(files: FileSystem, path: str, directory: str, segment: SealedSegment) -> None:
    """Give the whole, synced file at ``path`` the place of a closed log's segment.

    Raises:
        OSError: the disk failed.
    """
    target = f"{directory}/{segment_name(segment.base_offset)}"
    withdraw_clean_note(files, directory)
    remove_indexes_durably(files, target)
    files.rename(path, target)
    files.sync_directory(directory)


def begin_with(
    files: FileSystem,
    path: str,
    directory: str,
    identity: LogIdentity,
    segment: SealedSegment,
    trash: str,
) -> None:
    """Let a closed log begin with the whole, synced file at ``path``: the rest of a segment of it.

    A crash in between leaves the log as damaged as it was: recovery removes what lies within a
    segment whose mark says where it ends, and without that there is a hole between the two.

    Args:
        trash: a directory on the same disk that takes all segments before it.

    Raises:
        OSError: the disk failed.
    """
    put_in_place(files, path, directory, segment)
    for base in segment_bases(files, directory):
        if base < segment.base_offset:
            before = f"{directory}/{segment_name(base)}"
            # Each durably before the next one goes: a gap would be taken for damage.
            throw_away(files, trash, identity.group, {before: base})
            remove_indexes(files, before)


def mend_headers(files: FileSystem, directory: str, identity: LogIdentity) -> list[str]:
    """Rewrite the header blocks that are damaged; all holes must have been filled.

    Returns the paths of the files that were mended.

    Raises:
        CorruptionError: a segment still does not lead to the next one.
    """
    mended: list[str] = []
    found = inspect_segments(files, directory, identity)
    prev_term = found[0].header.prev_term if found[0].header is not None else Term(0)
    for segment, end in zip(found, _segment_ends(found), strict=True):
        file = files.open(segment.path)
        try:
            start = LogEnd(segment.base_offset, prev_term, FIRST_POSITION)
            at, reason = follow(file, identity.group, start, end)
            if reason is not None:
                raise CorruptionError(f"{segment.path}: {reason}")
            is_sealed = segment is not found[-1]
            if _mend_block(file, identity, segment, prev_term, at if is_sealed else None):
                mended.append(segment.path)
        finally:
            file.close()
        prev_term = at.term
    return mended


def _mend_block(
    file: File,
    identity: LogIdentity,
    segment: FoundSegment,
    prev_term: Term,
    sealed_end: LogEnd | None,
) -> bool:
    """Make one header block whole; True if anything had to be written."""
    header = FileHeader(identity, segment.base_offset, prev_term)
    is_header_damaged = segment.header != header
    if is_header_damaged:
        file.pwritev([encode_file_header(SEGMENT_MAGIC, header)], 0)
    mark = segment.mark
    is_mark_stale = sealed_end is not None and (
        mark is None
        or (mark.end_offset, mark.term, mark.end_position)
        != (sealed_end.offset, sealed_end.term, sealed_end.position)
    )
    if is_mark_stale:
        assert sealed_end is not None
        known = Offset(0) if mark is None else mark.commit_offset
        commit_offset = min(known, sealed_end.offset)
        sequence = 1 if mark is None else mark.sequence + 1
        fresh = MarkSlot(
            sequence, sealed_end.term, sealed_end.offset, sealed_end.position, commit_offset
        )
        file.pwritev([encode_mark(fresh, identity.group)], fresh.position)
        if mark is None:  # Another segment's, with a higher sequence, would hold.
            other_position = sum(SLOT_POSITIONS) - fresh.position
            file.pwritev([bytes(MARK_BYTES)], other_position)
    if is_header_damaged or is_mark_stale:
        file.sync()
    return is_header_damaged or is_mark_stale
