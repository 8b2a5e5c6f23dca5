"""Stretches of a segment file that do not hold what was written there, and filling them.

Replicas hold the same bytes at the same offsets, so a damaged stretch can be filled exactly:
the batches for its offsets, from any replica that has committed them, must be as long as the
stretch is.  What does not fit in length, offsets, terms or checksums is not written.

Where a header is damaged, the length of its batch is not known.  The hole then reaches to the
next place where an intact batch begins, found by its magic bytes, its checksum (seeded with
the group's id), a later offset and its seal.  A record that contains the copy of a batch
cannot be taken for that place: the copied batch is older, so its offset is not later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from logd.env import File, FileSystem
from logd.errors import CorruptionError, NoRoomError
from logd.limits import KIB, MIB
from logd.record.header import (
    HEADER_BYTES,
    MAGIC_POSITION,
    BatchHeader,
    split_batches,
    verify_header,
    verify_seal,
)
from logd.storage.batch_walk import check_seal, header_at, walk_batches, walk_headers
from logd.storage.clean_note import withdraw_clean_note
from logd.storage.recovery import LogEnd
from logd.storage.room import is_no_room
from logd.storage.segment_index import remove_indexes_durably
from logd.storage.whole_file import parent
from logd.types import FilePosition, GroupId, Offset

_MAGIC_BYTES: Final = b"LGD1"
_SEARCH_BYTES: Final = 1 * MIB

BATCH_COST_BYTES: Final = 4 * KIB
"""As long as it takes to verify so many bytes of a large batch, a small one takes as well:
a scrub that counted only bytes would hold a log of small batches, and a core, for long."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch of one segment file that does not hold what was written there."""

    path: str
    start: LogEnd
    """Behind the last intact batch before it."""
    end: LogEnd
    """Where the next intact batch begins, or the segment ends; its term is that batch's, or
    the largest that may lie there."""
    reason: str
    version: int = 0
    """Counts the compactions of the log before the hole was found: positions are of then."""

    @property
    def size_bytes(self) -> int:
        return self.end.position - self.start.position

    def __str__(self) -> str:
        return (
            f"{self.path}: offsets [{self.start.offset}, {self.end.offset}), "
            f"bytes [{self.start.position}, {self.end.position}): "
            f"{self.reason.removeprefix(f'{self.path}, ')}"
        )


def next_hole(
    file: File, group: GroupId, start: LogEnd, end: LogEnd, bytes_max: int | None = None
) -> tuple[LogEnd, Hole | None]:
    """Verify batches of a segment from ``start`` on; where that ended, and the hole before it.

    Args:
        start: where a batch begins, or the segment does.
        end: where its batches end; ``end.term`` bounds the terms that may lie there.
        bytes_max: stop after about so many bytes that are intact, a batch counted as
            ``BATCH_COST_BYTES`` at least; None: only at the end.
    """
    at, reason = follow(file, group, start, end, bytes_max)
    if reason is None:
        return at, None
    hole = Hole(file.path, at, _next_intact(file, group, at, end), reason)
    return hole.end, hole


def holes_between(file: File, group: GroupId, start: LogEnd, end: LogEnd) -> Iterator[Hole]:
    """All holes in [start, end) of a segment, in order."""
    at = start
    # A segment that lost its end together with its marks has offsets left, and no bytes.
    while at.position < end.position or at.offset < end.offset:
        at, hole = next_hole(file, group, at, end)
        if hole is not None:
            yield hole


def end_beyond_damage(
    file: File, group: GroupId, start: LogEnd, end: LogEnd, offset: Offset
) -> LogEnd | None:
    """Where the batch that ends at ``offset`` ends, in [start, end) of a segment that is damaged
    before it; None if that cannot be told, for the damage reaches up to there."""
    at = start
    while at.position < end.position:
        try:
            for position, header in walk_headers(file, at.position, end.position, group):
                behind = FilePosition(position + header.size_bytes)
                at = LogEnd(header.end_offset, header.term, behind)
                if at.offset >= offset:
                    return at if at.offset == offset else None
        except CorruptionError:
            at = _next_intact(file, group, at, end)
            if at.offset >= offset:
                return None  # Which term ended there is not known.
    return None


def fill_hole(files: FileSystem, group: GroupId, hole: Hole, batches: bytes) -> Hole | None:
    """Write the first batches of the hole's offsets where they belong, and sync them.

    Returns what is left of the hole; None if it is filled.

    Raises:
        CorruptionError: they are not what was there; nothing was written.
        NoRoomError: the disk has none, as where it never writes in place: it is a hole still.
        OSError: the disk failed.
    """
    filled = _check_filling(group, hole, batches)
    withdraw_clean_note(files, parent(hole.path))
    file = files.open(hole.path)
    try:
        try:
            file.pwritev([batches], hole.start.position)
        except OSError as error:
            if is_no_room(error):
                raise NoRoomError(f"no room to fill {hole}") from error
            raise
        file.sync()
    finally:
        file.close()
    # Its rows were made from bytes that may have been damaged.
    remove_indexes_durably(files, hole.path)
    return replace(hole, start=filled) if filled.position < hole.end.position else None


def _check_filling(group: GroupId, hole: Hole, batches: bytes) -> LogEnd:
    """Where the batches end; they follow on from the hole's start and fit into it."""
    at = hole.start
    for header, view in split_batches(memoryview(batches)):
        verify_header(view, header, group)
        verify_seal(view)
        if header.base_offset != at.offset or not at.term <= header.term <= hole.end.term:
            raise CorruptionError(
                f"{hole}: offered a batch at offset {header.base_offset} of term {header.term}, "
                f"expected offset {at.offset} and a term of {at.term} to {hole.end.term}"
            )
        position = FilePosition(at.position + header.size_bytes)
        at = LogEnd(header.end_offset, header.term, position)
    ends_there = at.offset == hole.end.offset
    fits = at.offset <= hole.end.offset and at.position <= hole.end.position
    if not batches or not fits or ends_there != (at.position == hole.end.position):
        raise CorruptionError(
            f"{hole}: offered {len(batches)} bytes up to offset {at.offset}, "
            f"expected {hole.size_bytes} bytes up to {hole.end.offset}"
        )
    return at


# --- walking ------------------------------------------------------------------------------


def follow(
    file: File, group: GroupId, at: LogEnd, end: LogEnd, bytes_max: int | None = None
) -> tuple[LogEnd, str | None]:
    """Go from batch to batch; where that ended, and why, unless it was at ``end`` or, with
    ``bytes_max``, after about that much."""
    cost = 0
    limit = FilePosition(min(end.position, file.size()))
    try:
        for position, header, _ in walk_batches(file, at.position, limit, group, bytes_max):
            if header.base_offset != at.offset or not at.term <= header.term <= end.term:
                return at, (
                    f"a batch at offset {header.base_offset} of term {header.term}, expected "
                    f"offset {at.offset} and a term of {at.term} to {end.term}"
                )
            if header.end_offset > end.offset:
                return at, f"a batch reaches to {header.end_offset}, beyond {end.offset}"
            at = LogEnd(header.end_offset, header.term, FilePosition(position + header.size_bytes))
            cost += max(header.size_bytes, BATCH_COST_BYTES)
            if bytes_max is not None and cost >= bytes_max and at.position < end.position:
                return at, None
    except CorruptionError as error:
        return at, str(error)
    if (at.offset, at.position) == (end.offset, end.position):
        return at, None
    return at, f"the batches end at offset {at.offset}, expected {end.offset}"


def _next_intact(file: File, group: GroupId, at: LogEnd, end: LogEnd) -> LogEnd:
    """Where the first intact batch behind the damage at ``at`` begins; ``end`` if none does."""
    position = at.position + 1
    limit = min(end.position, file.size())
    while position < limit:
        chunk = bytes(file.pread(min(_SEARCH_BYTES + HEADER_BYTES, limit - position), position))
        found = chunk.find(_MAGIC_BYTES, MAGIC_POSITION)
        while found >= 0:
            begin = FilePosition(position + found - MAGIC_POSITION)
            header = _intact_at(file, group, begin, at, end)
            if header is not None:
                return LogEnd(header.base_offset, header.term, begin)
            found = chunk.find(_MAGIC_BYTES, found + 1)
        position += _SEARCH_BYTES
    return end


def _intact_at(
    file: File, group: GroupId, begin: FilePosition, at: LogEnd, end: LogEnd
) -> BatchHeader | None:
    """The header of a whole batch at ``begin`` that can follow the damage; None if none does."""
    try:
        header = header_at(file, begin, group)
        is_later = at.offset < header.base_offset and header.end_offset <= end.offset
        fits = begin + header.size_bytes <= end.position and at.term <= header.term <= end.term
        if not (is_later and fits):
            return None
        check_seal(file.path, file.pread(header.size_bytes, begin), begin)
    except CorruptionError:
        return None
    return header
