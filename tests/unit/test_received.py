"""What a leader sends is taken only if it is, byte for byte, what it says that it sends."""

from __future__ import annotations

import msgspec
import pytest

from logd.errors import CorruptionError
from logd.raft.messages import AppendRequest
from logd.record.header import HEADER_BYTES, LEADER_PART_BYTES
from logd.replication.received import check_append
from logd.types import GroupId, NodeId, Offset, Term
from tests.support.logs import GROUP, batch_bytes, make_batch

FIRST = batch_bytes(make_batch(10, term=2, records=2, value=b"some value"))
SECOND = batch_bytes(make_batch(12, term=3, value=b"another value"))
REQUEST = AppendRequest(
    group=GROUP,
    source=NodeId(2),
    target=NodeId(1),
    term=Term(3),
    start_offset=Offset(10),
    prev_term=Term(2),
    end_offset=Offset(13),
    commit_offset=Offset(10),
    round=1,
    enrolment=Offset(0),
)


def test_whole_batches_of_the_announced_range_are_taken() -> None:
    first, second = check_append(REQUEST, FIRST + SECOND)

    assert (first.span.base_offset, first.span.end_offset, first.span.term) == (10, 12, 2)
    assert (second.span.base_offset, second.span.end_offset, second.span.term) == (12, 13, 3)
    assert b"".join(first.log_batch.buffers) == FIRST
    assert b"".join(second.log_batch.buffers) == SECOND


@pytest.mark.parametrize(
    "position",
    [
        *range(8, LEADER_PART_BYTES, 3),
        *range(LEADER_PART_BYTES, HEADER_BYTES, 7),
        *range(HEADER_BYTES, len(FIRST), 5),
    ],
)
def test_a_flipped_bit_anywhere_is_refused(position: int) -> None:
    """In what decides where the batch lies, and in what the producer has sealed."""
    damaged = bytearray(FIRST + SECOND)
    damaged[position] ^= 4

    with pytest.raises(CorruptionError):
        check_append(REQUEST, bytes(damaged))


def test_batches_of_another_groups_log_are_refused() -> None:
    misdirected = msgspec.structs.replace(REQUEST, group=GroupId(GROUP + 1))

    with pytest.raises(CorruptionError, match="header checksum"):
        check_append(misdirected, FIRST + SECOND)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (FIRST, "batches end at 12, the request says 13"),
        (b"", "batches end at 10, the request says 13"),
        (SECOND, "batch at offset 12 of term 3, expected offset 10"),
        (FIRST + FIRST, "batch at offset 10 of term 2, expected offset 12"),
        (FIRST + SECOND[:-1], "present"),
    ],
)
def test_what_is_not_the_announced_range_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(CorruptionError, match=why):
        check_append(REQUEST, body)


def test_batches_of_a_term_that_the_leader_cannot_have_are_refused() -> None:
    body = FIRST + batch_bytes(make_batch(12, term=4))

    with pytest.raises(CorruptionError, match="of term 4, expected offset 12 and a term up to 3"):
        check_append(REQUEST, body)
