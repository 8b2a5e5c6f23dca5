"""Small structures that begin with the checksum of their rest: eight bytes, little-endian.

Seeded with the group's id, so that what belongs to another group does not pass for this one's.
"""

from __future__ import annotations

import struct
from typing import Final

from xxhash import xxh3_64_intdigest

from logd.types import GroupId

_CHECKSUM: Final = struct.Struct("<Q")


def with_checksum(packed: bytes, group: GroupId) -> bytes:
    """``packed``, whose first eight bytes are of no account, with its checksum there."""
    checked = packed[_CHECKSUM.size :]
    return _CHECKSUM.pack(xxh3_64_intdigest(checked, seed=group)) + checked


def is_intact(packed: bytes, group: GroupId) -> bool:
    """Whether the checksum is that of the rest."""
    (checksum,) = _CHECKSUM.unpack_from(packed)
    return bool(xxh3_64_intdigest(packed[_CHECKSUM.size :], seed=group) == checksum)
