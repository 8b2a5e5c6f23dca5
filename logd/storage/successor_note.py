"""A sealed segment says that another follows it.

Why it exists: the mark that says where a log's promises end lies in its newest segment.  If just
that file is gone, by a hand or a file system's repair, what is left looks whole: a log that ends
where it was rolled.  Its replica would vote as if it had never acknowledged what came after.

It is written once the next segment is durable, and not synced: a crash may lose it, and with it
only the chance to notice.  Before segments are removed from the end of a log those that lead to
them are made to say nothing, durably.

Format: segment_format.md, section 5.
"""

from __future__ import annotations

import struct
from typing import Final

from logd.env import File
from logd.storage.checksummed import is_intact, with_checksum
from logd.storage.file_header import Field
from logd.types import Buffer, GroupId, Offset

LAYOUT: Final = (
    Field("checksum", "Q", "xxh3_64 of bytes [8, 16) of the note, seeded with the group id"),
    Field("next_offset", "q", "base offset of the segment that follows"),
)
_STRUCT: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT))

NOTE_POSITION: Final = 1536
NOTE_BYTES: Final = _STRUCT.size
NOTE_END: Final = NOTE_POSITION + NOTE_BYTES

assert NOTE_BYTES == 16


def encode_note(next_offset: Offset, group: GroupId) -> bytes:
    return with_checksum(_STRUCT.pack(0, next_offset), group)


def write_note(file: File, next_offset: Offset, group: GroupId) -> None:
    """Say that a segment that begins at ``next_offset`` follows; it is not synced."""
    file.pwritev([encode_note(next_offset, group)], NOTE_POSITION)


def clear_note(file: File) -> None:
    """Say nothing, durably."""
    file.pwritev([bytes(NOTE_BYTES)], NOTE_POSITION)
    file.sync()


def next_offset_of(header_block: Buffer, group: GroupId) -> Offset | None:
    """Where a segment's header block says that the next one begins; None if it does not."""
    note = bytes(memoryview(header_block)[NOTE_POSITION:NOTE_END])
    if len(note) < NOTE_BYTES:
        return None
    _, next_offset = _STRUCT.unpack(note)
    return Offset(next_offset) if is_intact(note, group) and next_offset >= 0 else None
