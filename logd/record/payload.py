"""The payload of a batch: columns, and their compression.

Why columns: one call into C encodes a whole batch, however many records it has; encoding
record by record costs more than everything else a producer does.  A column that is absent
or the same for all records is stored once.

Why msgspec for the columns: it encodes them twice as fast as the msgpack package, and its
decoder is given the columns' types, so that a hostile payload is refused while it is read:
no container nests deeper than the types say, and no array is allocated that is longer than
a batch can be.

Decompression never trusts the frame: zstandard ignores ``max_output_size`` when a frame
states its own size, so the stated size is compared with the header's, which is bounded,
before a byte is decompressed.  The broker does neither: payloads are for clients.

Format: segment_format.md, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Annotated, Final

import msgspec
import zstandard

from logd.errors import MalformedBatchError
from logd.limits import (
    HEADERS_PER_BATCH_MAX,
    KIB,
    MIB,
    PAYLOAD_DECODED_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
)
from logd.types import Buffer

RecordHeaders = tuple[tuple[str, bytes], ...]
"""The headers of one record: names, which may repeat, and values."""

NO_HEADERS: Final[RecordHeaders] = ()

_PerRecord = msgspec.Meta(max_length=RECORDS_PER_BATCH_MAX)
_PerHeader = msgspec.Meta(max_length=HEADERS_PER_BATCH_MAX)


class HeaderColumn(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Headers of all records, flat: record *i* takes the next ``counts[i]`` of them.

    ``counts`` None: every record has all of them.
    """

    counts: Annotated[list[int], _PerRecord] | None
    names: Annotated[list[str], _PerHeader]
    values: Annotated[list[bytes], _PerHeader]


class Columns(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A decompressed payload of format 1.  None: the same trivial thing for each record."""

    timestamp_deltas: Annotated[Sequence[int], _PerRecord] | None
    """Milliseconds after the header's first timestamp; None: all zero."""
    keys: Annotated[Sequence[bytes | None], _PerRecord] | bytes | None
    """One per record, or one for all; None: no record has a key."""
    values: Annotated[Sequence[bytes | None], _PerRecord] | bytes | None
    """One per record, or one for all; None: all are tombstones."""
    headers: HeaderColumn | None
    """None: no record has headers."""
    offset_deltas: Annotated[Sequence[int], _PerRecord] | None
    """From the base offset, increasing; None: 0, 1, 2 … (not compacted)."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Columns)

ZSTD_LEVEL_DEFAULT: Final = 1
ZSTD_LEVEL_MAX: Final = 19
_ZSTD_WINDOW_BYTES_MAX: Final = PAYLOAD_DECODED_BYTES_MAX
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_COMPRESSION_WORTHWHILE_BYTES: Final = 64
"""Below this a zstd frame does not pay for its own header."""

assert PAYLOAD_DECODED_BYTES_MAX <= 16 * MIB
assert HEADERS_PER_BATCH_MAX <= 256 * KIB

# Idle compression contexts.  One is not thread-safe and costs more to create than a small
# batch to compress, so a caller takes one out and puts it back: list.pop and list.append
# are atomic, and there are never more contexts than callers at one moment.
_idle_compressors: dict[int, list[zstandard.ZstdCompressor]] = {
    level: [] for level in range(1, ZSTD_LEVEL_MAX + 1)
}
_idle_decompressors: list[zstandard.ZstdDecompressor] = []


def encode_columns_into(batch: bytearray, columns: Columns) -> int:
    """Put a payload of format 1 at the end of ``batch``, and say how many bytes it has.

    The caller has checked types and lengths.  In place, because copying a large payload behind
    its header, into memory that is new, costs a third of what encoding it does.
    """
    start = len(batch)
    _ENCODER.encode_into(columns, batch, start)
    return len(batch) - start


def decode_columns(payload: Buffer) -> Columns:
    """Decode a payload of format 1, checking types and lengths but not the counts.

    Raises:
        MalformedBatchError: not a payload of format 1.
    """
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise MalformedBatchError(f"columns cannot be decoded: {error}") from error


def flatten_headers(headers: Sequence[RecordHeaders]) -> HeaderColumn | None:
    """Headers of each record → the header column."""
    first = headers[0]
    if headers[-1] == first and headers.count(first) == len(headers):
        counts = None
        flat = list(first)
    else:
        counts = list(map(len, headers))
        flat = list(chain.from_iterable(headers))
    if not flat:
        return None
    return HeaderColumn(counts, [name for name, _ in flat], [value for _, value in flat])


def expand_headers(column: HeaderColumn | None, record_count: int) -> list[RecordHeaders]:
    """The header column → headers of each record.

    Raises:
        MalformedBatchError: its counts and lengths do not fit each other.
    """
    if column is None:
        return [NO_HEADERS] * record_count
    if len(column.names) != len(column.values):
        raise MalformedBatchError(
            f"{len(column.names)} header names, {len(column.values)} header values"
        )
    flat = tuple(zip(column.names, column.values, strict=True))
    if column.counts is None:
        return [flat] * record_count
    if len(column.counts) != record_count:
        raise MalformedBatchError(f"{len(column.counts)} header counts, {record_count} records")
    if min(column.counts) < 0 or sum(column.counts) != len(flat):
        raise MalformedBatchError(f"header counts do not add up to {len(flat)} headers")
    return [flat[start:end] for start, end in pairwise(accumulate(column.counts, initial=0))]


def compress(payload: Buffer, level: int) -> bytes | None:
    """Compress with zstd, or None if that would not make it smaller."""
    if len(payload) < _COMPRESSION_WORTHWHILE_BYTES:
        return None
    idle = _idle_compressors[level]
    try:
        compressor = idle.pop()
    except IndexError:
        compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
    compressed = compressor.compress(payload)
    idle.append(compressor)
    return compressed if len(compressed) < len(payload) else None


def decompress(payload: Buffer, decoded_bytes: int) -> bytes:
    """Decompress one zstd frame that unfolds to exactly ``decoded_bytes``.

    Raises:
        MalformedBatchError: it is not such a frame; nothing large was allocated.
    """
    assert 0 < decoded_bytes <= PAYLOAD_DECODED_BYTES_MAX
    if payload[:4] != _ZSTD_MAGIC:
        raise MalformedBatchError("the payload is not a zstd frame")
    try:
        frame = zstandard.get_frame_parameters(payload)
    except zstandard.ZstdError as error:
        raise MalformedBatchError(f"zstd frame header: {error}") from error
    if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN:
        raise MalformedBatchError("the zstd frame does not state its size, as a batch's must")
    if frame.content_size != decoded_bytes:
        raise MalformedBatchError(
            f"the zstd frame states {frame.content_size} bytes, the header {decoded_bytes}"
        )
    if frame.window_size > _ZSTD_WINDOW_BYTES_MAX:
        raise MalformedBatchError(
            f"zstd window of {frame.window_size} bytes, the limit is {_ZSTD_WINDOW_BYTES_MAX}"
        )
    if frame.dict_id != 0:
        raise MalformedBatchError(f"the zstd frame needs dictionary {frame.dict_id}")

    try:
        decompressor = _idle_decompressors.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor()
    try:
        decoded = decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedBatchError(f"zstd: {error}") from error
    _idle_decompressors.append(decompressor)
    if len(decoded) != decoded_bytes:
        raise MalformedBatchError(
            f"the zstd frame unfolds to {len(decoded)} bytes, the header says {decoded_bytes}"
        )
    return decoded
