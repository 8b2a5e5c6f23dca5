"""A retry gets its first answer; what cannot be judged is refused, honestly."""

import pytest

from logd.errors import CorruptionError, OutOfSequenceError, ProducerFencedError
from logd.limits import (
    PRODUCER_BATCHES_REMEMBERED,
    PRODUCER_EXPIRY_MS,
    PRODUCERS_PER_PARTITION_MAX,
)
from logd.partition.producers import Duplicate, ProducerRow, ProducerTable
from logd.record.header import MAGIC, BatchHeader
from logd.types import Offset, ProducerId, Term

PRODUCER = 7


def batch(
    base_offset: int,
    sequence: int,
    count: int = 10,
    *,
    producer: int = PRODUCER,
    epoch: int = 0,
    append_time_ms: int = 0,
) -> BatchHeader:
    return BatchHeader(
        header_checksum=0,
        base_offset=Offset(base_offset),
        term=Term(1),
        append_time_ms=append_time_ms,
        seal=0,
        magic=MAGIC,
        payload_bytes=1,
        kind=0,
        flags=0,
        payload_format=1,
        codec=0,
        record_count=count,
        offset_span=count,
        decoded_bytes=1,
        first_timestamp_ms=0,
        max_timestamp_ms=0,
        producer_id=producer,
        producer_epoch=epoch,
        reserved=0,
        base_sequence=sequence,
        fence_id=0,
        fence_token=0,
        reserved2=0,
    )


def note(table: ProducerTable, header: BatchHeader) -> None:
    table.note_placed(header, header.base_offset, header.append_time_ms)


def table_of(*batches: BatchHeader) -> ProducerTable:
    table = ProducerTable()
    for header in batches:
        note(table, header)
    return table


def refused(table: ProducerTable, epoch: int, sequence: int, count: int = 10) -> OutOfSequenceError:
    with pytest.raises(OutOfSequenceError) as refusal:
        table.check(PRODUCER, epoch, sequence, count)
    return refusal.value


def test_a_producer_begins_at_sequence_0() -> None:
    assert ProducerTable().check(PRODUCER, 0, 0, 10) is None


def test_the_next_batch_is_new() -> None:
    table = table_of(batch(100, 0), batch(110, 10, count=3))

    assert table.check(PRODUCER, 0, 13, 1) is None


def test_a_retry_is_told_where_the_first_attempt_landed() -> None:
    table = table_of(batch(100, 0, append_time_ms=5), batch(200, 10, append_time_ms=6))

    assert table.check(PRODUCER, 0, 0, 10) == Duplicate(Offset(100), Offset(110), 5)
    assert table.check(PRODUCER, 0, 10, 10) == Duplicate(Offset(200), Offset(210), 6)


def test_checking_changes_nothing() -> None:
    table = table_of(batch(100, 0))
    before = table.rows()

    table.check(PRODUCER, 0, 10, 5)
    table.check(PRODUCER, 1, 0, 5)
    table.check(99, 0, 0, 5)

    assert table.rows() == before


def test_a_gap_certainly_did_not_happen() -> None:
    error = refused(table_of(batch(100, 0)), epoch=0, sequence=20)

    assert "continues at sequence 10, found 20" in str(error)
    assert not error.may_have_applied


def test_a_producer_that_is_not_known_may_have_been_forgotten() -> None:
    error = refused(ProducerTable(), epoch=0, sequence=10)

    assert "not known here" in str(error)
    assert error.may_have_applied


def test_a_batch_older_than_those_remembered_may_have_happened() -> None:
    last = PRODUCER_BATCHES_REMEMBERED
    table = table_of(*(batch(n * 10, n * 10) for n in range(last + 1)))

    assert refused(table, epoch=0, sequence=0).may_have_applied
    for remembered in range(1, last + 1):
        offset = remembered * 10
        assert table.check(PRODUCER, 0, offset, 10) == (offset, offset + 10, 0)


@pytest.mark.parametrize(("sequence", "count"), [(0, 5), (0, 20), (5, 10), (5, 5)])
def test_a_batch_that_was_cut_differently_is_not_the_same(sequence: int, count: int) -> None:
    error = refused(table_of(batch(100, 0), batch(110, 10)), 0, sequence, count)

    assert error.may_have_applied


def test_a_newer_epoch_begins_at_sequence_0_and_shuts_out_the_older() -> None:
    table = table_of(batch(100, 0), batch(110, 0, epoch=1))

    assert table.check(PRODUCER, 1, 10, 1) is None
    with pytest.raises(ProducerFencedError, match=r"appended in epoch 1, this batch is of epoch 0"):
        table.check(PRODUCER, 0, 10, 10)


def test_a_batch_of_an_older_epoch_may_have_happened() -> None:
    """It is there, and the table remembers nothing of that epoch."""
    table = table_of(batch(100, 0), batch(110, 0, epoch=1))

    with pytest.raises(ProducerFencedError) as refusal:
        table.check(PRODUCER, 0, 0, 10)

    assert refusal.value.may_have_applied


def test_a_newer_epoch_that_begins_elsewhere_has_lost_its_first_batch() -> None:
    error = refused(table_of(batch(100, 0)), epoch=1, sequence=10)

    assert "epoch 1 of producer 7 must begin at sequence 0" in str(error)
    assert not error.may_have_applied


def test_the_same_sequence_in_a_newer_epoch_is_no_duplicate() -> None:
    table = table_of(batch(100, 0), batch(110, 0, epoch=1))

    assert table.check(PRODUCER, 1, 0, 10) == Duplicate(Offset(110), Offset(120), 0)
    assert table.check(PRODUCER, 2, 0, 10) is None


def test_producers_do_not_see_each_other() -> None:
    table = table_of(batch(0, 0, producer=1), batch(10, 0, producer=2))

    assert table.check(1, 0, 10, 1) is None
    assert table.check(2, 0, 0, 10) == Duplicate(Offset(10), Offset(20), 0)


def test_a_producer_silent_for_too_long_is_forgotten() -> None:
    table = table_of(batch(0, 0, producer=1), batch(10, 0, producer=2, append_time_ms=1))

    note(table, batch(20, 0, producer=3, append_time_ms=PRODUCER_EXPIRY_MS))
    assert len(table) == 3
    note(table, batch(30, 10, producer=3, append_time_ms=PRODUCER_EXPIRY_MS + 1))

    assert [row.producer_id for row in table.rows()] == [2, 3]


def test_beyond_the_bound_the_producer_silent_longest_goes() -> None:
    table = table_of(
        *(batch(n, 0, 1, producer=n) for n in range(1, PRODUCERS_PER_PARTITION_MAX + 1))
    )
    note(table, batch(20_000, 1, 1, producer=1))

    note(table, batch(20_001, 0, 1, producer=99_999))

    assert len(table) == PRODUCERS_PER_PARTITION_MAX
    known = [row.producer_id for row in table.rows()]
    assert known[0] == 3
    assert known[-2:] == [1, 99_999]


def test_a_restored_table_is_the_same_and_forgets_in_the_same_order() -> None:
    table = table_of(*(batch(n * 10, n // 3 * 10, producer=n % 3 + 1) for n in range(200)))

    restored = ProducerTable.from_rows(table.rows())

    assert restored.rows() == table.rows()
    for copy in (table, restored):
        note(copy, batch(5_000, 0, producer=9, append_time_ms=PRODUCER_EXPIRY_MS + 1))
    assert restored.rows() == table.rows()
    assert [row.producer_id for row in table.rows()] == [9]


@pytest.mark.parametrize("size", [0, 31, 33, 32 * (PRODUCER_BATCHES_REMEMBERED + 1)])
def test_rows_of_an_impossible_size_are_corruption(size: int) -> None:
    with pytest.raises(CorruptionError, match=f"{size} bytes of batches"):
        ProducerTable.from_rows([ProducerRow(ProducerId(1), 0, 0, 0, bytes(size))])


def test_a_producer_listed_twice_is_corruption() -> None:
    rows = table_of(batch(0, 0)).rows()

    with pytest.raises(CorruptionError, match="twice"):
        ProducerTable.from_rows(rows * 2)
