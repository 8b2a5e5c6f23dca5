"""Walking over the batches of a segment file, from one header to the next.

Two gaits.  ``walk_headers`` verifies header checksums and reads no payload: it finds
positions and terms, and feeds replay.  ``walk_batches`` verifies the seals as well: recovery
and the offline tools use it.  Both name file and position in their complaints, and both look
whether batches follow on from one another: a batch that was written to the wrong place, or
left over from before, has checksums that hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from logd.env import File
from logd.errors import CorruptionError
from logd.limits import BATCH_BYTES_MAX, KIB, MIB
from logd.record.header import (
    HEADER_BYTES,
    BatchHeader,
    decode_header,
    verify_header,
    verify_seal,
)
from logd.types import Buffer, FilePosition, GroupId

_HEADERS_READ_BYTES: Final = 64 * KIB
_BATCHES_READ_BYTES: Final = 1 * MIB


def header_at(file: File, position: FilePosition, group: GroupId) -> BatchHeader:
    """The verified header at ``position``."""
    return checked_header(file.path, file.pread(HEADER_BYTES, position), 0, position, group)


def walk_headers(
    file: File, position: FilePosition, end: FilePosition, group: GroupId
) -> Iterator[tuple[FilePosition, BatchHeader]]:
    """Headers, with their positions, from ``position`` until ``end``.

    Raises:
        CorruptionError: a header fails its checksum, its batch does not end by ``end``, or it
            does not follow on from the one before.
    """
    chunk: Buffer = b""
    chunk_position = position
    before: BatchHeader | None = None
    read_bytes = _HEADERS_READ_BYTES
    while position < end:
        within = position - chunk_position
        if within + HEADER_BYTES > len(chunk):
            chunk = file.pread(min(read_bytes, end - position), position)
            chunk_position, within = position, 0
        header = checked_header(file.path, chunk, within, position, group)
        _check_fits(file.path, header, position, end)
        _check_follows(file.path, header, before, position)
        yield position, header
        before = header
        position = FilePosition(position + header.size_bytes)
        # Between large batches there is nothing to read ahead for.
        is_small = header.size_bytes * 4 <= _HEADERS_READ_BYTES
        read_bytes = _HEADERS_READ_BYTES if is_small else HEADER_BYTES


def walk_batches(
    file: File,
    position: FilePosition,
    end: FilePosition,
    group: GroupId,
    bytes_max: int | None = None,
) -> Iterator[tuple[FilePosition, BatchHeader, memoryview]]:
    """Whole batches, header checksum and seal verified, from ``position`` until ``end``.

    Args:
        bytes_max: about so much will be looked at: there is no need to read ahead further.

    Raises:
        CorruptionError: the batch at the position named in it is not intact.
    """
    chunk = memoryview(b"")
    chunk_position = position
    before: BatchHeader | None = None
    read_end = end if bytes_max is None else position + bytes_max
    while position < end:
        read_bytes = min(_BATCHES_READ_BYTES, max(read_end - position, HEADER_BYTES))
        within = position - chunk_position
        if within + HEADER_BYTES > len(chunk):
            chunk = _read(file, position, end, read_bytes)
            chunk_position, within = position, 0
        header = checked_header(file.path, chunk, within, position, group)
        _check_fits(file.path, header, position, end)
        _check_follows(file.path, header, before, position)
        before = header
        if within + header.size_bytes > len(chunk):
            chunk = _read(file, position, end, max(read_bytes, header.size_bytes))
            chunk_position, within = position, 0
        batch = chunk[within : within + header.size_bytes]
        check_seal(file.path, batch, position)
        yield position, header, batch
        position = FilePosition(position + header.size_bytes)


def checked_header(
    path: str, chunk: Buffer, within: int, position: int, group: GroupId
) -> BatchHeader:
    """Decode and verify the header at ``chunk[within]``, which is at ``position`` of the file."""
    try:
        header = decode_header(chunk, within)
        verify_header(memoryview(chunk)[within : within + HEADER_BYTES], header, group)
    except CorruptionError as error:
        raise CorruptionError(f"{path}, position {position}: {error}") from error
    return header


def check_seal(path: str, batch: Buffer, position: int) -> None:
    """Verify the seal of one whole batch that lies at ``position`` of the file."""
    try:
        verify_seal(batch)
    except CorruptionError as error:
        raise CorruptionError(f"{path}, position {position}: {error}") from error


def is_zero(file: File, position: FilePosition, count: int) -> bool:
    """Whether nothing was ever written there: the space that is allocated ahead."""
    return not any(file.pread(count, position))


def written_end(file: File, position: FilePosition) -> FilePosition:
    """Behind the last byte at or after ``position`` that is not zero."""
    end = position
    while chunk := file.pread(_BATCHES_READ_BYTES, position):
        used = len(chunk.rstrip(b"\0"))
        if used:
            end = FilePosition(position + used)
        position = FilePosition(position + len(chunk))
    return end


def _read(file: File, position: FilePosition, end: FilePosition, count: int) -> memoryview:
    return memoryview(file.pread(min(count, end - position), position))


def _check_fits(path: str, header: BatchHeader, position: int, end: int) -> None:
    if position + header.size_bytes > end:
        raise CorruptionError(
            f"{path}, position {position}: a batch of {header.size_bytes} bytes, "
            f"{end - position} are left"
        )


def _check_follows(
    path: str, header: BatchHeader, before: BatchHeader | None, position: int
) -> None:
    if before is not None and (
        header.base_offset != before.end_offset or header.term < before.term
    ):
        raise CorruptionError(
            f"{path}, position {position}: a batch at offset {header.base_offset} of term "
            f"{header.term}, expected offset {before.end_offset} of term {before.term} or later"
        )


assert _BATCHES_READ_BYTES <= BATCH_BYTES_MAX
