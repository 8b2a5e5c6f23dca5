"""Make damaged bytes pass their checksums, so that what stands behind a checksum is reached.

A mutation that only ever meets the checksum tests one comparison.  These put the checksum
right again, as a broken writer, or an unlucky one in 2**64, would.
"""

from __future__ import annotations

import struct
from typing import Final

from xxhash import xxh3_64_intdigest

from logd.limits import SEGMENT_HEADER_BYTES
from logd.record.header import CHECKED_POSITION, HEADER_BYTES, SEAL_POSITION, SEALED_POSITION
from logd.storage.file_header import FILE_HEADER_BYTES
from logd.storage.hard_state import COPY_BYTES, COPY_POSITIONS
from logd.storage.hard_state import SLOT_POSITIONS as HARD_STATE_POSITIONS
from logd.storage.synced_mark import MARK_BYTES
from logd.storage.synced_mark import SLOT_POSITIONS as MARK_POSITIONS
from logd.types import GroupId

_CHECKSUM: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<I")
_PAYLOAD_BYTES_POSITION: Final = 44
_FILE_PAYLOAD_POSITION: Final = FILE_HEADER_BYTES - 16
"""Of ``payload_bytes`` and ``payload_checksum`` in a file's header."""


def reseal_batch(batch: bytearray, group: GroupId) -> None:
    """Put seal and header checksum of exactly one batch right."""
    if len(batch) >= HEADER_BYTES:
        _LENGTH.pack_into(batch, _PAYLOAD_BYTES_POSITION, len(batch) - HEADER_BYTES)
        _reseal(batch, 0, len(batch), group)


def reseal_batches(content: bytearray, start: int, group: GroupId) -> None:
    """Put the checksums of batches that lie back to back right, as far as their lengths lead."""
    position = start
    while position + HEADER_BYTES <= len(content):
        (payload_bytes,) = _LENGTH.unpack_from(content, position + _PAYLOAD_BYTES_POSITION)
        end = position + HEADER_BYTES + payload_bytes
        if end > len(content):
            return
        _reseal(content, position, end, group)
        position = end


def _reseal(content: bytearray, position: int, end: int, group: GroupId) -> None:
    view = memoryview(content)
    seal = xxh3_64_intdigest(view[position + SEALED_POSITION : end])
    _CHECKSUM.pack_into(content, position + SEAL_POSITION, seal)
    checked = view[position + CHECKED_POSITION : position + HEADER_BYTES]
    _CHECKSUM.pack_into(content, position, xxh3_64_intdigest(checked, seed=group))


def reseal_segment(content: bytearray, group: GroupId) -> None:
    """Put all checksums of a segment right: header, marks, batches."""
    reseal_file_header(content)
    for position in MARK_POSITIONS:
        _reseal_fixed(content, position, MARK_BYTES, group)
    reseal_batches(content, SEGMENT_HEADER_BYTES, group)


def reseal_payload_file(content: bytearray) -> None:
    """Put length and checksums of a file that holds one payload right."""
    if len(content) >= FILE_HEADER_BYTES:
        payload = bytes(content[FILE_HEADER_BYTES:])
        struct.pack_into(
            "<QQ", content, _FILE_PAYLOAD_POSITION, len(payload), xxh3_64_intdigest(payload)
        )
        reseal_file_header(content)


def reseal_hard_state(content: bytearray, group: GroupId) -> None:
    """Put the checksums of the header and of all four copies right."""
    reseal_file_header(content)
    for slot in HARD_STATE_POSITIONS:
        for copy in COPY_POSITIONS:
            _reseal_fixed(content, slot + copy, COPY_BYTES, group)


def reseal_file_header(content: bytearray) -> None:
    """Put the checksum of the 128 bytes that open a file right."""
    _reseal_fixed(content, 0, FILE_HEADER_BYTES, GroupId(0))


def _reseal_fixed(content: bytearray, position: int, size: int, group: GroupId) -> None:
    """A structure whose first 8 bytes are the checksum of the others."""
    if position + size <= len(content):
        checked = bytes(content[position + _CHECKSUM.size : position + size])
        _CHECKSUM.pack_into(content, position, xxh3_64_intdigest(checked, seed=group))
