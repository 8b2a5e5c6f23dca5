"""Records that share a batch come out of it as they went in."""

from __future__ import annotations

from enum import StrEnum

import pytest

from logd.errors import RecordTooLargeError, UsageError
from logd.limits import HEADERS_PER_BATCH_MAX, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX
from logd.record.batch import decode_batch
from logd.record.header import Codec
from logd.record.timestamps import TimestampRuns
from logd_client.accumulator import (
    OpenBatch,
    checked_headers,
    record_bytes,
)
from logd_client.delivery import Delivery


def open_batch() -> OpenBatch:
    return OpenBatch(
        Delivery("orders", 0),
        opened_at=0,
        deadline=1,
        values=[],
        keys=None,
        timestamps=TimestampRuns(),
    )


def test_a_record_has_no_more_headers_than_a_batch_may() -> None:
    headers = [("", b"")] * HEADERS_PER_BATCH_MAX

    assert checked_headers(headers)[1] == 0
    with pytest.raises(RecordTooLargeError, match=f"{HEADERS_PER_BATCH_MAX + 1} headers"):
        checked_headers([*headers, ("", b"")])


def test_records_joined_one_by_one_come_out_as_they_went_in() -> None:
    batch = open_batch()
    headers = (("trace", b"1"),)

    positions = [
        batch.add(b"a", None, (), 10, 1),
        batch.add(None, b"k", (), 11, 1),
        batch.add(b"c", None, headers, 9, 1),
    ]
    decoded = decode_batch(batch.seal(Codec.NONE, producer_id=0, producer_epoch=0, base_sequence=0))

    assert positions == [0, 1, 2]
    assert list(decoded.values) == [b"a", None, b"c"]
    assert list(decoded.keys) == [None, b"k", None]
    assert list(decoded.headers) == [(), (), headers]
    assert list(decoded.timestamps_ms) == [10, 11, 9]


def test_records_joined_together_come_out_as_if_they_had_joined_one_by_one() -> None:
    together, one_by_one = open_batch(), open_batch()
    headers = (("trace", b"1"),)
    for batch in (together, one_by_one):
        batch.add(b"a", None, headers, 10, 1)

    positions = [
        together.add_many([b"b", None], None, 11, 2),
        together.add_many([b"c", b"d"], b"all", 12, 2),
        together.add_many([b"e", b"f"], [b"k", None], 9, 2),
    ]
    for value, key, timestamp_ms in [
        *((b"b", None, 11), (None, None, 11), (b"c", b"all", 12)),
        *((b"d", b"all", 12), (b"e", b"k", 9), (b"f", None, 9)),
    ]:
        one_by_one.add(value, key, (), timestamp_ms, 1)

    assert positions == [1, 3, 5]
    sealed = [
        batch.seal(Codec.NONE, producer_id=0, producer_epoch=0, base_sequence=0)
        for batch in (together, one_by_one)
    ]
    assert sealed[0] == sealed[1]
    assert together.size_bytes == one_by_one.size_bytes


def test_a_batch_takes_records_up_to_its_size_and_none_when_closed() -> None:
    batch = open_batch()
    batch.add(b"x" * 60, None, (), 0, 60)

    assert batch.takes(40, 0, batch_bytes=100)
    assert not batch.takes(41, 0, batch_bytes=100)
    assert not batch.takes(1, HEADERS_PER_BATCH_MAX + 1, batch_bytes=100)
    assert not batch.takes(0, 0, batch_bytes=100, record_count=RECORDS_PER_BATCH_MAX)
    batch.is_closed = True
    assert not batch.takes(1, 0, batch_bytes=100)


def test_the_short_way_into_a_batch_adds_what_the_long_way_would_or_nothing() -> None:
    batch = open_batch()
    added = [batch.add_plain(b"x" * 30, 7, 30, batch_bytes=100) for _ in range(4)]

    assert added == [0, 1, 2, -1]
    assert (batch.values, batch.size_bytes) == ([b"x" * 30] * 3, 90)
    assert batch.timestamps.column(3) == (7, 7, None)
    batch.add(b"", b"key", (), 0, 1)
    assert batch.add_plain(b"", 0, 1, batch_bytes=100) == -1
    closed = open_batch()
    closed.is_closed = True
    assert closed.add_plain(b"", 0, 1, batch_bytes=100) == -1


@pytest.mark.parametrize("headers", [[("name", "text")], [(b"name", b"x")], [("name",)], ["ab"]])
def test_headers_are_pairs_of_a_name_and_bytes(headers: list[tuple[str, bytes]]) -> None:
    with pytest.raises(UsageError, match="pair"):
        checked_headers(headers)


class Name(StrEnum):
    TRACE = "trace"


class Token(bytes):
    """Bytes to whoever looks at them, and not to MessagePack."""


@pytest.mark.parametrize("headers", [[(Name.TRACE, b"x")], [("trace", Token(b"x"))]])
def test_a_header_that_cannot_be_sealed_is_refused_before_others_share_its_batch(
    headers: list[tuple[str, bytes]],
) -> None:
    with pytest.raises(UsageError, match="pair"):
        checked_headers(headers)


@pytest.mark.parametrize(("value", "key"), [(Token(b"x"), None), (b"x", Token(b"k"))])
def test_bytes_that_cannot_be_sealed_are_refused_before_others_share_their_batch(
    value: bytes, key: bytes | None
) -> None:
    with pytest.raises(UsageError, match="must be bytes or None, not Token"):
        record_bytes(value, key, 0)


def test_key_value_and_headers_share_the_limit_of_a_record() -> None:
    value = b"x" * (RECORD_BYTES_MAX - 4)

    assert record_bytes(value, b"kk", 2) == RECORD_BYTES_MAX
    with pytest.raises(RecordTooLargeError, match=str(RECORD_BYTES_MAX + 1)):
        record_bytes(value, b"kk", 3)
