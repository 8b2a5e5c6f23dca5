"""Batches as they arrive from a leader: checked before anything else happens to them.

Every hop verifies both checksums (P5), so that bytes damaged in a leader's memory, on its
disk or on the way are refused here and never written, acknowledged or spread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from logd.errors import CorruptionError
from logd.raft.messages import AppendRequest, BatchSpan
from logd.record.compacted import cut_gap
from logd.record.header import (
    BatchHeader,
    decode_header,
    split_batches,
    verify_header,
    verify_seal,
)
from logd.storage.log import LogBatch
from logd.types import Buffer, GroupId, Offset, Term


class ReceivedBatch(NamedTuple):
    """One verified batch, in the three shapes its users need."""

    header: BatchHeader
    span: BatchSpan
    log_batch: LogBatch


def check_append(request: AppendRequest, body: bytes) -> tuple[ReceivedBatch, ...]:
    """Verify the batches of an append request.

    Raises:
        CorruptionError: a checksum fails, or the batches are not exactly the announced range.
    """
    found: list[ReceivedBatch] = []
    expected = request.start_offset
    for header, view in split_batches(memoryview(body)):
        verify_header(view, header, request.group)
        verify_seal(view)
        if header.base_offset != expected or not 0 < header.term <= request.term:
            raise CorruptionError(
                f"append to group {request.group}: batch at offset {header.base_offset} of term "
                f"{header.term}, expected offset {expected} and a term up to {request.term}"
            )
        batch = _received(header, view)
        found.append(batch)
        expected = batch.span.end_offset
    if expected != request.end_offset:
        raise CorruptionError(
            f"append to group {request.group}: batches end at {expected}, "
            f"the request says {request.end_offset}"
        )
    return tuple(found)


def split_gaps(
    batches: tuple[ReceivedBatch, ...], end_of_term: Callable[[Term], Offset], group: GroupId
) -> tuple[ReceivedBatch, ...]:
    """Cut the gaps of a compacted log where a follower's log ends, or leaves their term.

    What lies before is what the follower has; a gap that reached over it would be neither
    present nor missing.  Other batches are the same in every log that has their term there.

    Args:
        end_of_term: where the batches of all terms up to one end in the follower's log.
    """
    found: list[ReceivedBatch] = []
    for batch in batches:
        header = batch.header
        if header.is_gap:
            middle = end_of_term(header.term)
            if header.base_offset < middle < header.end_offset:
                for start, end in (
                    (header.base_offset, middle),
                    (middle, header.end_offset),
                ):
                    part = cut_gap(header, start, end, group)
                    found.append(_received(decode_header(part), part))
                continue
        found.append(batch)
    return tuple(found)


def _received(header: BatchHeader, view: Buffer) -> ReceivedBatch:
    base, term = header.base_offset, header.term
    end = Offset(base + header.offset_span)
    is_data = not header.is_control
    return ReceivedBatch(
        header,
        BatchSpan(base, end, term),
        LogBatch(base, end, term, header.append_time_ms, is_data, len(view), (view,)),
    )
