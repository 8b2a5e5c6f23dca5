"""Batches after compaction: fewer records, or none, over the same offsets.

What a batch covers never changes.  A batch that keeps some of its records is sealed anew,
with the offsets of those that are left in a column; its producer's part is otherwise what it
was, so that whoever follows the log through it (``partition/``) learns the same: how far its
producer had come, which fence it carried.

Where nothing is left of a batch and nobody needs to learn anything from it, a *gap* stands
for it and for its neighbours.  A gap has no payload and no producer; it may be cut anywhere,
as two replicas need not have the same ones.

Format: segment_format.md, sections 2 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from logd.record.batch import RecordBatch, seal_batch, seal_header
from logd.record.header import (
    FLAG_COMPACTED,
    MAGIC,
    BatchHeader,
    BatchKind,
    Codec,
    PayloadFormat,
    leader_part,
)
from logd.types import GroupId, Offset, Term

GAP_SPAN_MAX: Final = 2**31
"""Offsets that one gap covers at most; the field has 32 bits."""


def keep_rows(batch: RecordBatch, rows: Sequence[int], group: GroupId) -> bytes:
    """The batch with only those of its records, increasing and at least one.

    Raises:
        RecordTooLargeError: it compresses worse than before and does not fit any more.
    """
    header = batch.header
    base = header.base_offset
    timestamps_ms = batch.timestamps_ms
    sealed = seal_batch(
        values=[batch.values[row] for row in rows],
        keys=[batch.keys[row] for row in rows],
        headers=[batch.headers[row] for row in rows],
        timestamps_ms=[timestamps_ms[row] for row in rows],
        codec=Codec(header.codec),
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
        fence_id=header.fence_id,
        fence_token=header.fence_token,
        offset_deltas=[batch.offsets[row] - base for row in rows],
        offset_span=header.offset_span,
    )
    return _placed(sealed, header, group)


def keep_nothing(header: BatchHeader, group: GroupId) -> bytes:
    """The batch without records: what its header says of producer and fence is left."""
    emptied = header._replace(
        payload_bytes=0,
        flags=FLAG_COMPACTED,
        codec=Codec.NONE,
        record_count=0,
        decoded_bytes=0,
    )
    return _placed(seal_header(emptied, b""), header, group)


def make_gap(
    base_offset: Offset, end_offset: Offset, *, term: Term, append_time_ms: int, group: GroupId
) -> bytes:
    """One batch for offsets at which nothing is left."""
    assert 0 < end_offset - base_offset <= GAP_SPAN_MAX
    header = BatchHeader(
        header_checksum=0,
        base_offset=base_offset,
        term=term,
        append_time_ms=append_time_ms,
        seal=0,
        magic=MAGIC,
        payload_bytes=0,
        kind=BatchKind.DATA,
        flags=FLAG_COMPACTED,
        payload_format=PayloadFormat.COLUMNS,
        codec=Codec.NONE,
        record_count=0,
        offset_span=end_offset - base_offset,
        decoded_bytes=0,
        first_timestamp_ms=append_time_ms,
        max_timestamp_ms=append_time_ms,
        producer_id=0,
        producer_epoch=0,
        reserved=0,
        base_sequence=0,
        fence_id=0,
        fence_token=0,
        reserved2=0,
    )
    return _placed(seal_header(header, b""), header, group)


def cut_gap(header: BatchHeader, start: Offset, end: Offset, group: GroupId) -> bytes:
    """The part [``start``, ``end``) of a gap."""
    assert header.is_gap
    assert header.base_offset <= start < end <= header.end_offset
    return make_gap(start, end, term=header.term, append_time_ms=header.append_time_ms, group=group)


def _placed(sealed: bytearray, header: BatchHeader, group: GroupId) -> bytes:
    """With the leader's part of the batch that it takes the place of."""
    part = leader_part(
        sealed,
        base_offset=header.base_offset,
        term=header.term,
        append_time_ms=header.append_time_ms,
        group=group,
    )
    return part + sealed[len(part) :]
