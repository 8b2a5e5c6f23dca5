"""Batches as they arrive from a leader: checked before anything else happens to them.

Every hop verifies both checksums (P5), so that bytes damaged in a leader's memory, on its
disk or on the way are refused here and never written, acknowledged or spread.
"""

from __future__ import annotations

from typing import NamedTuple

from logd.errors import CorruptionError
from logd.raft.messages import AppendRequest, BatchSpan
from logd.record.header import BatchHeader, split_batches, verify_header, verify_seal
from logd.storage.log import LogBatch
from logd.types import Offset, Term


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
        base, end, term = Offset(header.base_offset), Offset(header.end_offset), Term(header.term)
        found.append(
            ReceivedBatch(
                header,
                BatchSpan(base, end, term),
                LogBatch(
                    base_offset=base,
                    end_offset=end,
                    term=term,
                    append_time_ms=header.append_time_ms,
                    is_data=not header.is_control,
                    size_bytes=header.size_bytes,
                    buffers=(view,),
                ),
            )
        )
        expected = end
    if expected != request.end_offset:
        raise CorruptionError(
            f"append to group {request.group}: batches end at {expected}, "
            f"the request says {request.end_offset}"
        )
    return tuple(found)
