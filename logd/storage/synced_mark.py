"""The synced mark: what recovery may take for granted, and must not find missing.

Why it exists: after a crash the end of a log looks the same whether its last bytes were
never written or were written, acknowledged and then damaged.  The first is cut off; cutting
off the second would lose what a client was promised.  The mark says where the promises end.

Why it lags: a sync cannot be recorded before it has completed, and recording it costs a sync.
So each sync writes down the one before it, and the mark never claims more than is true.  What
lies between the mark and the end of the last group is judged by its checksums alone
(docs/failure_model.md says what that leaves open).

Why two slots: the one being written may tear.  They lie in separate sectors and are written
in turn; the intact one with the higher sequence holds.

Format: segment_format.md, section 5.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from logd.env import File
from logd.storage.checksummed import is_intact, with_checksum
from logd.storage.file_header import Field
from logd.types import Buffer, FilePosition, GroupId, Offset, Term

LAYOUT: Final = (
    Field("checksum", "Q", "xxh3_64 of bytes [8, 48) of the slot, seeded with the group id"),
    Field("sequence", "Q", "counts the marks of one segment, from 1"),
    Field("term", "Q", "term of the batch that ends at end_offset; 0 if none"),
    Field("end_offset", "q", "everything below is synced"),
    Field("end_position", "Q", "where end_offset lies in this segment"),
    Field("commit_offset", "q", "everything below was known to be committed"),
)
_STRUCT: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT))

MARK_BYTES: Final = _STRUCT.size
SLOT_POSITIONS: Final = (512, 1024)
SLOTS_END: Final = 1536

assert MARK_BYTES == 48
assert MARK_BYTES <= 512


class MarkSlot(NamedTuple):
    """One slot's content."""

    sequence: int
    term: Term
    end_offset: Offset
    end_position: FilePosition
    commit_offset: Offset

    @property
    def position(self) -> int:
        """Which of the two slots it belongs into."""
        return SLOT_POSITIONS[self.sequence % 2]

    def followed_by(
        self, term: Term, end_offset: Offset, end_position: FilePosition, commit_offset: Offset
    ) -> MarkSlot:
        """The mark that says so; this one if it already does.  Commits are not taken back.

        Args:
            commit_offset: counts as far as ``end_offset``.
        """
        commit_offset = max(self.commit_offset, min(commit_offset, end_offset))
        said = (term, end_offset, end_position, commit_offset)
        return self if said == self[1:] else MarkSlot(self.sequence + 1, *said)


def encode_mark(mark: MarkSlot, group: GroupId) -> bytes:
    assert mark.sequence > 0
    assert 0 <= mark.commit_offset <= mark.end_offset
    return with_checksum(_STRUCT.pack(0, *mark), group)


def write_mark(file: File, mark: MarkSlot, group: GroupId) -> None:
    """Put ``mark`` into its slot of a segment file; it is not synced."""
    file.pwritev([encode_mark(mark, group)], mark.position)


def newest_mark(header_block: Buffer, group: GroupId) -> MarkSlot | None:
    """The mark that holds, from a segment's header block; None if neither slot is intact."""
    found = [_decode(header_block, position, group) for position in SLOT_POSITIONS]
    intact = [mark for mark in found if mark is not None]
    return max(intact, default=None)


def _decode(header_block: Buffer, position: int, group: GroupId) -> MarkSlot | None:
    slot = bytes(memoryview(header_block)[position : position + MARK_BYTES])
    if len(slot) < MARK_BYTES:
        return None
    if not is_intact(slot, group):
        return None
    _, *fields = _STRUCT.unpack(slot)
    mark = MarkSlot._make(fields)
    is_possible = mark.sequence > 0 and 0 <= mark.commit_offset <= mark.end_offset
    return mark if is_possible else None
