"""Verifying a log that lies on the disk, a piece at a time: rot is found before it is read.

A scrub takes long and the log does not wait for it.  So each piece begins by asking whether the
position that the last one returned still means what it did; if its segment was trimmed, cut or
replaced meanwhile, the segment that is there now is begun anew.  Filling the holes that are
found is ``Log.fill``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from logd.errors import StorageFailedError
from logd.storage.holes import Hole, next_hole
from logd.storage.log_contents import LogContents, segment_number
from logd.storage.recovery import LogEnd
from logd.storage.segment import FIRST_POSITION
from logd.types import Offset


class ScrubPosition(NamedTuple):
    """How far a scrub has come."""

    base_offset: Offset
    """Of the segment."""
    at: LogEnd
    replacements: int
    """Segments that had been replaced by then: positions are those of that time."""

    def bytes_after(self, before: ScrubPosition) -> int:
        """How many bytes lie between the two, if they are in the same segment; else 0."""
        if self.base_offset != before.base_offset:
            return 0
        return max(0, self.at.position - before.at.position)


def scrub_start(held: LogContents, offset: Offset) -> ScrubPosition:
    """The beginning of the segment that holds ``offset``."""
    segment = held.segments[segment_number(held.segments, offset)]
    begin = LogEnd(segment.base_offset, segment.prev_term, FIRST_POSITION)
    return ScrubPosition(segment.base_offset, begin, held.replacements)


def scrub(
    held: LogContents, position: ScrubPosition, bytes_max: int
) -> tuple[ScrubPosition | None, Hole | None]:
    """Verify the next piece: see ``Log.scrub``."""
    end = held.end
    segments = held.segments
    number = max(0, segment_number(segments, position.base_offset))
    segment = segments[number]
    after = segments[number + 1] if number < len(segments) - 1 else None
    if after is not None:
        end = LogEnd(after.base_offset, after.prev_term, segment.end)
    at = position.at
    replacements = held.replacements
    if (segment.base_offset, replacements) != (position.base_offset, position.replacements) or (
        at.position > end.position
    ):
        at = scrub_start(held, segment.base_offset).at  # Trimmed, truncated or replaced.
    try:
        file = segment.opened_file()
        at, hole = next_hole(file, held.identity.group, at, end, bytes_max)
        held.note_read(segment)
    except OSError as error:
        raise StorageFailedError(f"scrubbing {segment.path}: {error}") from error
    if hole is not None:
        hole = replace(hole, version=replacements)
    if at.position < end.position:
        return ScrubPosition(segment.base_offset, at, replacements), hole
    return (None if after is None else scrub_start(held, after.base_offset)), hole
