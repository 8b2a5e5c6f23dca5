"""Whole batches: sealing on the producer's side, decoding on the consumer's.

Both work column by column; the only loops over records run inside C.  What is checked here
is what cannot be said in the columns' types: that counts agree with the header, that no
record exceeds its limit, that what the header says about the records is true.

A batch is sealed once.  It travels with a zeroed leader's part, which the partition's leader
replaces (``header.leader_part``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import add
from typing import Final

import msgspec

from logd.errors import CorruptionError, MalformedBatchError, RecordTooLargeError, UsageError
from logd.limits import (
    BATCH_BYTES_MAX,
    HEADERS_PER_BATCH_MAX,
    PAYLOAD_DECODED_BYTES_MAX,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
)
from logd.record.header import (
    FLAG_COMPACTED,
    HEADER_BYTES,
    MAGIC,
    BatchHeader,
    BatchKind,
    Codec,
    PayloadFormat,
    decode_header,
    put_seal,
    verify_seal,
)
from logd.record.payload import (
    NO_HEADERS,
    ZSTD_LEVEL_DEFAULT,
    Columns,
    HeaderColumn,
    RecordHeaders,
    compress,
    decode_columns,
    decompress,
    encode_columns_into,
    expand_headers,
    flatten_headers,
)
from logd.record.timestamps import (
    TimestampRuns,
    check_timestamp_deltas,
    expand_timestamps,
    timestamp_column,
)
from logd.types import Buffer, Offset, Term

_ENTRIES_DECODER: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_BYTES_TYPES: Final = frozenset((bytes, type(None)))
"""Not what else has bytes in it: a view may have gaps, and elements larger than a byte."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """A decoded batch.  All columns have one element per record."""

    header: BatchHeader
    offsets: Sequence[int]
    """A range, unless compaction left gaps."""
    timestamp_deltas: Sequence[int] | None
    """Milliseconds after the header's first timestamp; None: all zero."""
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[RecordHeaders]

    @property
    def timestamps_ms(self) -> list[int]:
        """Made anew whenever it is asked for."""
        first_ms = self.header.first_timestamp_ms
        return list(expand_timestamps(first_ms, self.timestamp_deltas, len(self)))

    @property
    def base_offset(self) -> Offset:
        return self.header.base_offset

    def __len__(self) -> int:
        return self.header.record_count


def seal_batch(
    *,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | bytes | None = None,
    headers: Sequence[RecordHeaders] | None = None,
    timestamps_ms: TimestampRuns | Sequence[int] | int,
    codec: Codec = Codec.NONE,
    zstd_level: int = ZSTD_LEVEL_DEFAULT,
    producer_id: int = 0,
    producer_epoch: int = 0,
    base_sequence: int = 0,
    fence_id: int = 0,
    fence_token: int = 0,
    offset_deltas: Sequence[int] | None = None,
    offset_span: int | None = None,
    are_checked: bool = False,
) -> bytearray:
    """Encode records as one sealed batch with a zeroed leader's part.

    Args:
        values: one per record; None is a tombstone.
        keys: one per record, or one for all, or none.
        headers: one tuple of (name, value) per record.
        timestamps_ms: one per record, in runs, or one for all.
        codec: zstd is used only if it makes the payload smaller.
        offset_deltas: for compaction only: each record's distance from the base offset,
            increasing.  ``offset_span`` is then how many offsets the batch covers.
        are_checked: the caller has made sure that values and keys are bytes or None, that
            there are as many keys as values, and that no record exceeds the limit.

    Raises:
        RecordTooLargeError: a record, or the batch as a whole, exceeds its limit.
        UsageError: the arguments do not make a batch: wrong types, lengths that differ.
    """
    count = len(values)
    if not 0 < count <= RECORDS_PER_BATCH_MAX:
        raise UsageError(f"{count} records, a batch takes 1 to {RECORDS_PER_BATCH_MAX}")
    if not are_checked:
        _check_bytes("values", values, count)
        if keys is not None and not isinstance(keys, bytes):
            _check_bytes("keys", keys, count)
    first_ms, max_ms, timestamp_deltas = timestamp_column(timestamps_ms, count)
    columns = Columns(
        timestamp_deltas,
        None if keys is None else _collapse_keys(keys),
        # Equal values stay apart: looking for them costs every batch, finding them few.
        None if values[0] is None and values.count(None) == count else _as_list(values),
        None if headers is None else _header_column(headers, count),
        _offset_column(offset_deltas, offset_span, count),
    )
    batch = bytearray(HEADER_BYTES)
    try:
        decoded_bytes = encode_columns_into(batch, columns)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"the records cannot be encoded: {error}") from error
    # Key, value and headers of a record each stand in the payload at least once, so no
    # record is larger than a payload that is small: the exact check is rarely needed.
    if decoded_bytes > RECORD_BYTES_MAX and not are_checked:
        _check_record_sizes(values, keys, headers)
    if decoded_bytes > PAYLOAD_DECODED_BYTES_MAX:
        raise RecordTooLargeError(
            f"{count} records take {decoded_bytes} bytes, "
            f"the limit of one batch is {PAYLOAD_DECODED_BYTES_MAX} before compression"
        )

    if codec == Codec.ZSTD:
        compressed = compress(memoryview(batch)[HEADER_BYTES:], zstd_level)
        if compressed is None:
            codec = Codec.NONE
        else:
            batch[HEADER_BYTES:] = compressed
    return _seal(
        batch,
        BatchHeader(
            header_checksum=0,
            base_offset=Offset(0),
            term=Term(0),
            append_time_ms=0,
            seal=0,
            magic=MAGIC,
            payload_bytes=len(batch) - HEADER_BYTES,
            kind=BatchKind.DATA,
            flags=0 if offset_deltas is None else FLAG_COMPACTED,
            payload_format=PayloadFormat.COLUMNS,
            codec=codec,
            record_count=count,
            offset_span=count if offset_span is None else offset_span,
            decoded_bytes=decoded_bytes,
            first_timestamp_ms=first_ms,
            max_timestamp_ms=max_ms,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            reserved=0,
            base_sequence=base_sequence,
            fence_id=fence_id,
            fence_token=fence_token,
            reserved2=0,
        ),
    )


def seal_opaque(payload: bytes, *, kind: BatchKind, timestamp_ms: int) -> bytearray:
    """Seal one record whose value is ``payload``: control batches, metadata commands."""
    return _seal_own(payload, kind, PayloadFormat.OPAQUE, 1, timestamp_ms)


def seal_entries(payload: bytes, *, count: int, timestamp_ms: int) -> bytearray:
    """Seal a MessagePack array of ``count`` elements, each of which has an offset of its own.

    Raises:
        RecordTooLargeError: it does not fit a batch.
    """
    assert 0 < count <= RECORDS_PER_BATCH_MAX
    return _seal_own(payload, BatchKind.DATA, PayloadFormat.ENTRIES, count, timestamp_ms)


def _seal_own(
    payload: bytes, kind: BatchKind, payload_format: PayloadFormat, count: int, timestamp_ms: int
) -> bytearray:
    """Seal what a broker has to say itself."""
    return seal_header(
        BatchHeader(
            header_checksum=0,
            base_offset=Offset(0),
            term=Term(0),
            append_time_ms=0,
            seal=0,
            magic=MAGIC,
            payload_bytes=len(payload),
            kind=kind,
            flags=0,
            payload_format=payload_format,
            codec=Codec.NONE,
            record_count=count,
            offset_span=count,
            decoded_bytes=len(payload),
            first_timestamp_ms=timestamp_ms,
            max_timestamp_ms=timestamp_ms,
            producer_id=0,
            producer_epoch=0,
            reserved=0,
            base_sequence=0,
            fence_id=0,
            fence_token=0,
            reserved2=0,
        ),
        payload,
    )


def decode_batch(view: Buffer, header: BatchHeader | None = None) -> RecordBatch:
    """Verify the seal of one whole batch and decode its columns.

    Args:
        header: the batch's, if the caller has decoded it.

    Raises:
        CorruptionError: not a batch, cut short, or not what the producer sealed.
        MalformedBatchError: what the producer sealed cannot be read; says which offsets.
    """
    if header is None:
        header = decode_header(view)
    if len(view) != header.size_bytes:
        raise CorruptionError(f"batch of {header.size_bytes} bytes, {len(view)} are present")
    verify_seal(view)
    try:
        return _decode_payload(header, memoryview(view)[HEADER_BYTES:])
    except MalformedBatchError as error:
        raise MalformedBatchError(
            error.reason, base_offset=header.base_offset, end_offset=header.end_offset
        ) from error


# --- sealing ----------------------------------------------------------------------------


def seal_header(header: BatchHeader, payload: Buffer) -> bytearray:
    """A sealed batch with a zeroed leader's part, of a header that fits its payload."""
    batch = bytearray(HEADER_BYTES)
    batch += payload
    return _seal(batch, header)


def _seal(batch: bytearray, header: BatchHeader) -> bytearray:
    """Put the header in its place, before the payload."""
    if len(batch) > BATCH_BYTES_MAX:
        raise RecordTooLargeError(f"batch of {len(batch)} bytes, the limit is {BATCH_BYTES_MAX}")
    put_seal(batch, header)
    return batch


def _check_bytes(name: str, column: Sequence[bytes | None], count: int) -> None:
    if len(column) != count:
        raise UsageError(f"{len(column)} {name}, {count} records")
    found = set(map(type, column))
    if not found <= _BYTES_TYPES:
        wrong = sorted(cls.__name__ for cls in found - _BYTES_TYPES)
        raise UsageError(f"{name} must be bytes or None, found {', '.join(wrong)}")


def _collapse_keys(
    keys: Sequence[bytes | None] | bytes,
) -> Sequence[bytes | None] | bytes | None:
    """Store keys that are all equal once."""
    if isinstance(keys, bytes):
        return keys
    first = keys[0]
    if keys[-1] != first or keys.count(first) != len(keys):
        return _as_list(keys)
    return first


def _as_list(column: Sequence[bytes | None]) -> Sequence[bytes | None]:
    """As a type that MessagePack knows."""
    return column if isinstance(column, (list, tuple)) else list(column)


def _header_column(headers: Sequence[RecordHeaders], count: int) -> HeaderColumn | None:
    if len(headers) != count:
        raise UsageError(f"headers of {len(headers)} records, {count} records")
    column = flatten_headers(headers)
    if column is None:
        return None
    if len(column.names) > HEADERS_PER_BATCH_MAX:
        raise RecordTooLargeError(
            f"{len(column.names)} headers, the limit of one batch is {HEADERS_PER_BATCH_MAX}"
        )
    if set(map(type, column.names)) != {str} or set(map(type, column.values)) != {bytes}:
        raise UsageError("a header is a pair of a str and bytes")
    return column


def _offset_column(
    offset_deltas: Sequence[int] | None, offset_span: int | None, count: int
) -> Sequence[int] | None:
    if offset_deltas is None:
        assert offset_span is None or offset_span == count
        return None
    # Compaction is our own code: a bad column here is our mistake.
    assert offset_span is not None
    assert len(offset_deltas) == count
    assert _are_offset_deltas(offset_deltas, offset_span)
    return list(offset_deltas)


def _check_record_sizes(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | bytes | None,
    headers: Sequence[RecordHeaders] | None,
) -> None:
    """Refuse a record above the limit, naming it."""
    every_key = repeat(keys) if keys is None or isinstance(keys, bytes) else keys
    every_headers = repeat(NO_HEADERS) if headers is None else headers
    rows = zip(values, every_key, every_headers, strict=False)
    for position, (value, key, pairs) in enumerate(rows):
        size = len(value or b"") + len(key or b"")
        size += sum(len(name.encode()) + len(content) for name, content in pairs)
        if size > RECORD_BYTES_MAX:
            raise RecordTooLargeError(
                f"record {position} has {size} bytes, the limit is {RECORD_BYTES_MAX}"
            )


# --- decoding ---------------------------------------------------------------------------


def _decode_payload(header: BatchHeader, payload: memoryview) -> RecordBatch:
    count = header.record_count
    base = header.base_offset
    if not count:
        return RecordBatch(header, [], None, [], [], [])
    if header.payload_format == PayloadFormat.OPAQUE:
        return RecordBatch(
            header,
            range(base, base + 1),
            None,
            [None],
            [bytes(payload)],
            [NO_HEADERS],
        )
    if header.payload_format == PayloadFormat.ENTRIES:
        return RecordBatch(
            header,
            range(base, base + count),
            None,
            [None] * count,
            _decode_entries(payload, count),
            [NO_HEADERS] * count,
        )
    decoded = decompress(payload, header.decoded_bytes) if header.codec else payload
    columns = decode_columns(decoded)
    check_timestamp_deltas(header, columns.timestamp_deltas)
    return RecordBatch(
        header,
        _decode_offsets(header, columns.offset_deltas),
        columns.timestamp_deltas,
        _expand("keys", columns.keys, count),
        _expand("values", columns.values, count),
        expand_headers(columns.headers, count),
    )


def _decode_entries(payload: memoryview, count: int) -> list[bytes]:
    try:
        entries = [bytes(entry) for entry in _ENTRIES_DECODER.decode(payload)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatchError(f"entries: {error}") from error
    if len(entries) != count:
        raise MalformedBatchError(f"{len(entries)} entries, {count} records")
    return entries


def _expand(
    name: str, column: Sequence[bytes | None] | bytes | None, count: int
) -> Sequence[bytes | None]:
    if column is None or isinstance(column, bytes):
        return [column] * count
    if len(column) != count:
        raise MalformedBatchError(f"{len(column)} {name}, {count} records")
    return column


def _decode_offsets(header: BatchHeader, deltas: Sequence[int] | None) -> Sequence[int]:
    base = header.base_offset
    if header.is_compacted != (deltas is not None):
        raise MalformedBatchError("the offset column and the compacted flag contradict each other")
    if deltas is None:
        return range(base, base + header.record_count)
    if len(deltas) != header.record_count:
        raise MalformedBatchError(f"{len(deltas)} offsets, {header.record_count} records")
    if not _are_offset_deltas(deltas, header.offset_span):
        raise MalformedBatchError(f"offsets do not increase within [0, {header.offset_span})")
    return list(map(add, deltas, repeat(base)))


def _are_offset_deltas(deltas: Sequence[int], offset_span: int) -> bool:
    return deltas[0] >= 0 and deltas[-1] < offset_span and sorted(set(deltas)) == list(deltas)
