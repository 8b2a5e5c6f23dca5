"""Reading a range of batches: one read from the file, cut into whole verified batches.

The hot half of serving followers and consumers, so it reads once for a whole range, copies
nothing after that, and looks closely only at what it returns: those batches are verified in
full, header checksum and seal (P5).  What is stepped over on the way from an index row is
only peeked at; a wrong turn there ends at a batch that does not hold the offset, or is none.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from logd.env import File
from logd.errors import CorruptionError
from logd.limits import BATCH_BYTES_MAX
from logd.record.header import HEADER_BYTES, MAGIC, BatchHeader
from logd.storage.batch_walk import check_seal, checked_header
from logd.types import FilePosition, GroupId, Offset

_PEEK: Final = struct.Struct("<8xq24xII8xI")
"""Of a batch header: base offset, magic, payload bytes, offset span."""


class Wanted(NamedTuple):
    """What a read is after."""

    offset: Offset
    """The first batch is the one that holds it."""
    limit: Offset
    """No batch that ends above it."""
    bytes_max: int
    """Of batches; the first one may be larger."""
    interval_bytes: int
    """How far behind an index row a batch usually begins at most."""
    group: GroupId


def read_batches(
    file: File, position: FilePosition, end: FilePosition, wanted: Wanted, *, cached_only: bool
) -> list[memoryview] | None:
    """Batches of a segment, from an indexed position at or before them; more than one read
    only where the first was too short.

    Returns:
        None: ``cached_only``, and not all of it is in the page cache.

    Raises:
        CorruptionError: a batch is damaged, or ``position`` does not lead to the offset.
    """
    read = file.pread_cached if cached_only else file.pread
    count = wanted.bytes_max + wanted.interval_bytes
    while True:
        asked = max(0, min(count, end - position))
        data = read(asked, position)
        if data is None:
            return None
        chunk = memoryview(data)
        within = _skip_to(file.path, chunk, position, wanted.offset)
        missing = _bytes_missing(chunk, within)
        is_all = len(chunk) < asked or position + len(chunk) >= end
        if not missing or is_all:
            return _split(file.path, chunk, within, position, wanted)
        # The batch is longer than was asked for, or starts at the edge.
        position = FilePosition(position + within)
        count = max(wanted.bytes_max, len(chunk) - within + missing)


def _skip_to(path: str, chunk: memoryview, position: FilePosition, offset: Offset) -> int:
    """Where in the chunk the batch that holds ``offset`` begins, if not beyond it.

    Looks at three fields and verifies none: the batch it leads to is verified, and must hold
    the offset.
    """
    within = 0
    size = len(chunk)
    while within + HEADER_BYTES <= size:
        base_offset, magic, payload_bytes, offset_span = _PEEK.unpack_from(chunk, within)
        if magic != MAGIC or payload_bytes > BATCH_BYTES_MAX:
            raise CorruptionError(f"{path}, position {position + within}: not a batch")
        if base_offset + offset_span > offset:
            break
        within += HEADER_BYTES + payload_bytes
    return within


def _bytes_missing(chunk: memoryview, within: int) -> int:
    """How many bytes of the batch at ``within`` are not in ``chunk``."""
    if within + HEADER_BYTES > len(chunk):
        return within + HEADER_BYTES - len(chunk)
    _, _, payload_bytes, _ = _PEEK.unpack_from(chunk, within)
    end: int = within + HEADER_BYTES + payload_bytes
    return max(0, end - len(chunk))


def _split(
    path: str, chunk: memoryview, within: int, position: FilePosition, wanted: Wanted
) -> list[memoryview]:
    """Cut ``chunk`` into verified batches, up to the first damaged one if there are any before."""
    batches: list[memoryview] = []
    expected = wanted.offset
    first = within
    while True:
        try:
            header, batch = _checked_batch(path, chunk, within, position, wanted.group)
            # The first batch holds the offset asked for; each other one follows on.
            if header.base_offset != expected and (
                batches or not header.base_offset < expected < header.end_offset
            ):
                raise CorruptionError(
                    f"{path}, position {position + within}: a batch at offset "
                    f"{header.base_offset}, expected offset {expected}"
                )
        except CorruptionError:
            if batches:
                return batches  # The next read begins with the damage, and reports it.
            raise
        within += header.size_bytes
        if header.end_offset > wanted.limit or (batches and within - first > wanted.bytes_max):
            return batches
        batches.append(batch)
        expected = header.end_offset
        if expected >= wanted.limit or within + HEADER_BYTES > len(chunk):
            return batches


def _checked_batch(
    path: str, chunk: memoryview, within: int, position: FilePosition, group: GroupId
) -> tuple[BatchHeader, memoryview]:
    """The batch at ``chunk[within]``, verified."""
    at = position + within
    header = checked_header(path, chunk, within, at, group)
    batch = chunk[within : within + header.size_bytes]
    if len(batch) < header.size_bytes:
        raise CorruptionError(f"{path}, position {at}: the file ends inside a batch")
    check_seal(path, batch, at)
    return header, batch
