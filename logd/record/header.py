"""The batch header: the one place that knows its layout.

Why two parts: the leader decides where a batch lies in the log (offset, term, time), and
must be able to do so without touching a byte that the producer wrote.  So the leader's part
stands first, and the seal, which is the producer's, covers everything behind itself and
nothing before.  Nobody between producer and consumer can alter a record unseen.

Why two checksums: the header checksum covers the leader's part as well and is seeded with
the group's id, so that a batch that ended up in the wrong log fails, whatever its seal says.
It costs 120 bytes of hashing; the seal costs the payload.  A reader that needs only headers
(recovery, replay) verifies only the first.

Little-endian, no padding.  See segment_format.md, section 2; ``tests/docs`` fails if the
table there and the one here differ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from logd.errors import CorruptionError
from logd.limits import (
    BATCH_BYTES_MAX,
    BATCH_HEADER_BYTES,
    PAYLOAD_DECODED_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
)
from logd.types import Buffer, GroupId, Offset, Term


@unique
class BatchKind(IntEnum):
    """Who a batch is for."""

    DATA = 0
    CONTROL = 1
    """For the log itself (``control.py``); consumers step over it."""


@unique
class PayloadFormat(IntEnum):
    """How the decompressed payload is laid out."""

    COLUMNS = 1
    OPAQUE = 2
    """One record whose value is the whole payload."""
    ENTRIES = 3
    """One record per element of a MessagePack array: commands of the coordination log."""


@unique
class Codec(IntEnum):
    """How the payload is compressed."""

    NONE = 0
    ZSTD = 1


FLAG_COMPACTED: Final = 1
"""Sealed anew by compaction: its offsets have gaps, which a column names.  It may have no
record at all, and then no payload."""


class Field(NamedTuple):
    """One row of the layout table."""

    name: str
    format: str
    meaning: str


LAYOUT: Final = (
    Field("header_checksum", "Q", "xxh3_64 of bytes [8, 128), seeded with the group id"),
    Field("base_offset", "q", "offset of the first record"),
    Field("term", "Q", "term of the leader that appended the batch"),
    Field("append_time_ms", "q", "when it was appended; never decreases within a log"),
    Field("seal", "Q", "xxh3_64 of bytes [40, end of payload)"),
    Field("magic", "I", '0x3144474C, the bytes "LGD1"'),
    Field("payload_bytes", "I", "bytes of payload behind the header, as stored"),
    Field("kind", "B", "0 data, 1 control"),
    Field("flags", "B", "bit 0 compacted; other bits zero"),
    Field("payload_format", "B", "1 columns, 2 opaque, 3 entries"),
    Field("codec", "B", "0 none, 1 zstd"),
    Field("record_count", "I", "records in the batch, 1 to 65536; 0 only if compacted"),
    Field("offset_span", "I", "offsets the batch covers; record_count unless compacted"),
    Field("decoded_bytes", "I", "bytes of payload after decompression"),
    Field("first_timestamp_ms", "q", "timestamp of the first record"),
    Field("max_timestamp_ms", "q", "largest timestamp of the records"),
    Field("producer_id", "Q", "idempotent producer; 0 none"),
    Field("producer_epoch", "I", "incarnation of the producer"),
    Field("reserved", "I", "zero"),
    Field("base_sequence", "Q", "sequence of the first record"),
    Field("fence_id", "Q", "lock whose fence the append carries; 0 none"),
    Field("fence_token", "Q", "fencing token of that lock"),
    Field("reserved2", "Q", "zero"),
)
"""Field, struct format, meaning; in order, from byte 0."""

_STRUCT: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT))
_LEADER_PART: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT[:4]))
_CHECKED_LEADER_PART: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT[1:4]))
_SEAL: Final = struct.Struct("<Q")
_SEALED_PART: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT[5:]))

HEADER_BYTES: Final = _STRUCT.size
LEADER_PART_BYTES: Final = _LEADER_PART.size
SEAL_POSITION: Final = LEADER_PART_BYTES
SEALED_POSITION: Final = SEAL_POSITION + _SEAL.size
"""From here on the seal covers the batch."""

MAGIC_POSITION: Final = SEALED_POSITION
"""The magic is the first field under the seal."""

CHECKED_POSITION: Final = 8
"""From here on the header checksum covers the header."""

MAGIC: Final = int.from_bytes(b"LGD1", "little")

assert HEADER_BYTES == BATCH_HEADER_BYTES == 128
assert LEADER_PART_BYTES == 32
assert SEALED_POSITION == 40
assert LAYOUT[5].name == "magic"
assert LAYOUT[4].name == "seal"
assert MAGIC == 0x3144474C

_CONTROL: Final = int(BatchKind.CONTROL)
_PAYLOAD_BYTES_MAX: Final = BATCH_BYTES_MAX - HEADER_BYTES


class BatchHeader(NamedTuple):
    """A decoded header.  Field order is layout order."""

    header_checksum: int
    base_offset: Offset
    term: Term
    append_time_ms: int
    seal: int
    magic: int
    payload_bytes: int
    kind: int
    flags: int
    payload_format: int
    codec: int
    record_count: int
    offset_span: int
    decoded_bytes: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    reserved: int
    base_sequence: int
    fence_id: int
    fence_token: int
    reserved2: int

    @property
    def size_bytes(self) -> int:
        """The whole batch: header and payload."""
        return HEADER_BYTES + self.payload_bytes

    @property
    def end_offset(self) -> Offset:
        """Where the next batch begins."""
        return Offset(self.base_offset + self.offset_span)

    @property
    def is_control(self) -> bool:
        return self.kind == _CONTROL

    @property
    def is_compacted(self) -> bool:
        return self.flags & FLAG_COMPACTED != 0

    @property
    def is_gap(self) -> bool:
        """Stands for batches of which compaction left nothing."""
        return not (self.record_count or self.producer_id or self.fence_id)


assert BatchHeader._fields == tuple(field.name for field in LAYOUT)


def decode_header(view: Buffer, position: int = 0) -> BatchHeader:
    """Decode the header at ``position`` and check that it is one we can read.

    Needs only the header's 128 bytes, and checks neither checksum: see ``verify_header``
    and ``verify_seal``.

    Raises:
        CorruptionError: cut short, not a batch, or of a version or size we do not know.
    """
    if len(view) - position < HEADER_BYTES:
        raise CorruptionError(
            f"{max(len(view) - position, 0)} bytes at {position}, "
            f"a batch header needs {HEADER_BYTES}"
        )
    header = BatchHeader._make(_STRUCT.unpack_from(view, position))
    if (
        header.magic == MAGIC
        and header.payload_bytes <= _PAYLOAD_BYTES_MAX
        and header.kind <= 1
        and header.record_count <= RECORDS_PER_BATCH_MAX
        and header.base_offset >= 0
        and header.first_timestamp_ms <= header.max_timestamp_ms
        and not header.reserved
        and not header.reserved2
        and (
            header.offset_span == header.record_count > 0
            if not header.flags
            else header.flags == FLAG_COMPACTED
            and 0 < header.offset_span >= header.record_count
            and (header.record_count or not (header.payload_bytes or header.codec))
        )
        and (
            header.decoded_bytes == header.payload_bytes
            if not header.codec
            else header.codec == 1 and 0 < header.decoded_bytes <= PAYLOAD_DECODED_BYTES_MAX
        )
        and (
            not header.kind
            if header.payload_format == 1
            else not header.codec
            and (
                header.record_count == 1
                if header.payload_format == 2
                else header.payload_format == 3 and not header.kind
            )
            and not header.flags
        )
    ):
        return header
    raise _refusal(header, position)


def verify_header(view: Buffer, header: BatchHeader, group: GroupId) -> None:
    """Check the header checksum of the batch at the start of ``view``.

    Raises:
        CorruptionError: the header changed since the leader wrote it, or it is of another
            group's log.
    """
    actual = xxh3_64_intdigest(view[CHECKED_POSITION:HEADER_BYTES], seed=group)
    if actual != header.header_checksum:
        raise CorruptionError(
            f"header checksum of the batch at offset {header.base_offset} is {actual:#018x} "
            f"for group {group}, stored is {header.header_checksum:#018x}"
        )


def verify_seal(view: Buffer) -> None:
    """Check the seal over ``view``, which is exactly one batch.

    Raises:
        CorruptionError: the bytes differ from what the producer sealed.
    """
    if len(view) < HEADER_BYTES:
        raise CorruptionError(f"batch of {len(view)} bytes, a header needs {HEADER_BYTES}")
    (stored,) = _SEAL.unpack_from(view, SEAL_POSITION)
    actual = xxh3_64_intdigest(memoryview(view)[SEALED_POSITION:])
    if actual != stored:
        raise CorruptionError(
            f"seal of a batch of {len(view)} bytes is {actual:#018x}, stored is {stored:#018x}"
        )


def leader_part(
    batch: Buffer, *, base_offset: Offset, term: Term, append_time_ms: int, group: GroupId
) -> bytes:
    """The 32 bytes that take the place of the first 32 of ``batch``.

    The rest goes out untouched: write ``(leader_part(batch, ...), memoryview(batch)[32:])``.
    """
    assert base_offset >= 0
    assert term > 0
    assert len(batch) >= HEADER_BYTES
    checked = _CHECKED_LEADER_PART.pack(base_offset, term, append_time_ms)
    producer_part = memoryview(batch)[LEADER_PART_BYTES:HEADER_BYTES]
    checksum = xxh3_64_intdigest(b"".join((checked, producer_part)), seed=group)
    return _LEADER_PART.pack(checksum, base_offset, term, append_time_ms)


def split_batches(view: memoryview) -> Iterator[tuple[BatchHeader, memoryview]]:
    """Walk over whole batches lying back to back.  Checks no checksum.

    Raises:
        CorruptionError: ``view`` ends inside a batch, or holds something else.
    """
    position = 0
    size = len(view)
    while position < size:
        header = decode_header(view, position)
        end = position + header.size_bytes
        if end > size:
            raise CorruptionError(
                f"batch at {position} has {header.size_bytes} bytes, {size - position} are present"
            )
        yield header, view[position:end]
        position = end


def put_seal(batch: bytearray, header: BatchHeader) -> None:
    """Fill in the seal and bytes [40, 128) of a batch whose payload is there.

    The fields before, the leader's part, stay as they are.
    """
    _SEALED_PART.pack_into(batch, SEALED_POSITION, *header[5:])
    _SEAL.pack_into(batch, SEAL_POSITION, xxh3_64_intdigest(memoryview(batch)[SEALED_POSITION:]))


def _refusal(header: BatchHeader, position: int) -> CorruptionError:
    """Say which rule a header breaks.  Apart from ``decode_header``, which is hot."""
    found = header._asdict()
    for holds, name, expected in (
        (header.magic == MAGIC, "magic", f"{MAGIC} (LGD1)"),
        (header.payload_bytes <= _PAYLOAD_BYTES_MAX, "payload_bytes", f"<= {_PAYLOAD_BYTES_MAX}"),
        (header.kind <= 1, "kind", "0 or 1"),
        (header.flags <= FLAG_COMPACTED, "flags", "0 or 1"),
        (header.payload_format in (1, 2, 3), "payload_format", "1, 2 or 3"),
        (header.codec <= 1, "codec", "0 or 1"),
        (
            (header.is_compacted or header.record_count > 0)
            and header.record_count <= RECORDS_PER_BATCH_MAX,
            "record_count",
            f"1 to {RECORDS_PER_BATCH_MAX}, or 0 if compacted",
        ),
        (header.base_offset >= 0, "base_offset", ">= 0"),
        (
            header.first_timestamp_ms <= header.max_timestamp_ms,
            "max_timestamp_ms",
            f">= first_timestamp_ms {header.first_timestamp_ms}",
        ),
        (header.reserved == 0, "reserved", "0"),
        (header.reserved2 == 0, "reserved2", "0"),
        (
            header.offset_span == header.record_count > 0
            or (header.is_compacted and header.offset_span > header.record_count),
            "offset_span",
            f"record_count {header.record_count}, or more if compacted",
        ),
        (
            header.record_count > 0 or not header.payload_bytes,
            "payload_bytes",
            "0 without records",
        ),
        (header.record_count > 0 or not header.codec, "codec", "0 without records"),
        (
            header.codec != Codec.NONE or header.decoded_bytes == header.payload_bytes,
            "decoded_bytes",
            f"payload_bytes {header.payload_bytes}, as codec is none",
        ),
        (
            header.codec == Codec.NONE or 0 < header.decoded_bytes <= PAYLOAD_DECODED_BYTES_MAX,
            "decoded_bytes",
            f"1 to {PAYLOAD_DECODED_BYTES_MAX}",
        ),
        (
            header.payload_format == PayloadFormat.OPAQUE or header.kind == BatchKind.DATA,
            "payload_format",
            "2 in a control batch",
        ),
        (
            header.record_count == 1 or header.payload_format == PayloadFormat.ENTRIES,
            "record_count",
            "1 in an opaque batch",
        ),
        (header.codec == Codec.NONE, "codec", "0 in a batch that is opaque or of entries"),
        (header.flags == 0, "flags", "0 in a batch that is opaque or of entries"),
    ):
        if not holds:
            return CorruptionError(f"batch at {position}: {name} is {found[name]}, not {expected}")
    raise AssertionError(f"decode_header refused an acceptable header: {header}")
