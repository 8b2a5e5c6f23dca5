"""Sealing and decoding whole batches."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import CorruptionError, MalformedBatchError, RecordTooLargeError, UsageError
from logd.limits import (
    BATCH_BYTES_MAX,
    HEADERS_PER_BATCH_MAX,
    MIB,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
)
from logd.record.batch import (
    decode_batch,
    seal_batch,
    seal_entries,
    seal_opaque,
)
from logd.record.header import (
    HEADER_BYTES,
    BatchKind,
    Codec,
    PayloadFormat,
    decode_header,
    put_seal,
)
from logd.record.payload import Columns, HeaderColumn, RecordHeaders, encode_columns_into
from logd.record.timestamps import TIMESTAMP_MS_MAX, TimestampRuns
from logd.types import Buffer

optional_bytes = st.none() | st.binary(max_size=20)
record = st.tuples(
    optional_bytes,
    optional_bytes,
    st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=4)), max_size=2).map(tuple),
    st.integers(-TIMESTAMP_MS_MAX, TIMESTAMP_MS_MAX),
)


def reseal(batch: Buffer, payload: Buffer, **fields: int) -> bytearray:
    """A batch with another payload and header fields, under a seal that holds."""
    header = decode_header(batch)._replace(
        payload_bytes=len(payload),
        decoded_bytes=fields.pop("decoded_bytes", len(payload)),
        **fields,  # type: ignore[arg-type]
    )
    resealed = bytearray(batch[:HEADER_BYTES]) + payload
    put_seal(resealed, header)
    return resealed


@given(st.lists(record, min_size=1, max_size=8), st.sampled_from(Codec))
@settings(max_examples=100)
def test_records_survive_a_batch(records: list[Any], codec: Codec) -> None:
    keys, values, headers, timestamps = map(list, zip(*records, strict=True))

    batch = decode_batch(
        seal_batch(keys=keys, values=values, headers=headers, timestamps_ms=timestamps, codec=codec)
    )

    assert len(batch) == len(records)
    assert list(batch.keys) == keys
    assert list(batch.values) == values
    assert list(batch.headers) == headers
    assert list(batch.timestamps_ms) == timestamps
    assert list(batch.offsets) == list(range(len(records)))
    assert batch.header.max_timestamp_ms == max(timestamps)


def test_a_batch_of_many_records_survives_with_and_without_zstd() -> None:
    values = [b"value %d" % number for number in range(10_000)]

    plain = seal_batch(values=values, timestamps_ms=1)
    packed = seal_batch(values=values, timestamps_ms=1, codec=Codec.ZSTD)

    assert decode_batch(plain).values == decode_batch(packed).values == values
    assert len(packed) < len(plain)
    assert decode_header(packed).codec == Codec.ZSTD


def test_keys_that_are_equal_are_stored_once() -> None:
    values = [b"%d" % number for number in range(1000)]

    named = seal_batch(values=values, keys=b"the key", timestamps_ms=0)
    listed = seal_batch(values=values, keys=[b"the key"] * 1000, timestamps_ms=0)

    assert named == listed
    assert decode_batch(named).keys == [b"the key"] * 1000


def test_a_record_without_key_costs_no_more_than_its_value() -> None:
    batch = seal_batch(values=[b"12345"] * 1000, keys=[None] * 1000, timestamps_ms=[9] * 1000)

    assert len(batch) == HEADER_BYTES + 3 + 1000 * 7 + 5


def test_tombstones_and_empty_values_differ() -> None:
    batch = decode_batch(seal_batch(values=[b"", None], keys=[None, b""], timestamps_ms=0))

    assert batch.values == [b"", None]
    assert batch.keys == [None, b""]


def test_a_batch_of_nothing_but_tombstones_survives() -> None:
    batch = decode_batch(seal_batch(values=[None] * 3, keys=[b"a", b"b", b"c"], timestamps_ms=0))

    assert batch.values == [None] * 3


def test_zstd_is_not_used_where_it_does_not_help() -> None:
    batch = seal_batch(values=[b"tiny"], timestamps_ms=0, codec=Codec.ZSTD)

    assert decode_header(batch).codec == Codec.NONE


def test_values_may_be_any_kind_of_sequence() -> None:
    for values in ((b"a", b"b"), deque([b"a", b"b"])):
        assert decode_batch(seal_batch(values=values, timestamps_ms=0)).values == [b"a", b"b"]


def test_identity_and_fence_travel_in_the_header() -> None:
    header = decode_header(
        seal_batch(
            values=[b"v"],
            timestamps_ms=0,
            producer_id=2**63,
            producer_epoch=2**31,
            base_sequence=2**40,
            fence_id=5,
            fence_token=6,
        )
    )

    assert (header.producer_id, header.producer_epoch) == (2**63, 2**31)
    assert (header.base_sequence, header.fence_id, header.fence_token) == (2**40, 5, 6)


def test_an_opaque_batch_is_one_record_of_raw_bytes() -> None:
    batch = decode_batch(seal_opaque(b"\0raw", kind=BatchKind.CONTROL, timestamp_ms=77))

    assert batch.values == [b"\0raw"]
    assert batch.keys == [None]
    assert batch.timestamps_ms == [77]
    assert batch.header.is_control


def test_a_batch_of_entries_has_a_record_and_an_offset_for_each() -> None:
    batch = decode_batch(seal_entries(b"\x93\x01\xa1a\x92\x02\xc0", count=3, timestamp_ms=77))

    assert batch.values == [b"\x01", b"\xa1a", b"\x92\x02\xc0"]
    assert list(batch.offsets) == [0, 1, 2]
    assert batch.keys == [None] * 3
    assert batch.timestamps_ms == [77] * 3
    assert not batch.header.is_control


@pytest.mark.parametrize("payload", [b"\x91\x01", b"\x92\x01\x02\x03", b"\x80", b"", b"\x92\x01"])
def test_entries_that_are_not_as_many_as_the_header_says_are_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedBatchError):
        decode_batch(seal_entries(payload, count=2, timestamp_ms=0))


def test_a_compacted_batch_keeps_its_gaps() -> None:
    sealed = seal_batch(
        values=[b"a", b"b", b"c"], timestamps_ms=0, offset_deltas=[1, 5, 6], offset_span=9
    )

    batch = decode_batch(sealed)

    assert batch.offsets == [1, 5, 6]
    assert batch.header.end_offset == 9
    assert batch.header.is_compacted


# --- limits -----------------------------------------------------------------------------


def test_a_record_of_exactly_the_limit_fits() -> None:
    values = [b"x", bytes(RECORD_BYTES_MAX - 3)]

    assert decode_batch(seal_batch(values=values, keys=[b"k", b"key"], timestamps_ms=0))


@pytest.mark.parametrize(
    ("key", "headers"),
    [(b"kk", ()), (b"k", (("", b"x"),)), (b"k", (("n", b""),)), (None, (("é", b""),))],
)
def test_a_record_above_the_limit_is_named(key: bytes | None, headers: RecordHeaders) -> None:
    with pytest.raises(RecordTooLargeError, match="record 1 has 1048577 bytes"):
        seal_batch(
            values=[b"x", bytes(RECORD_BYTES_MAX - 1)],
            keys=[None, key],
            headers=[(), headers],
            timestamps_ms=0,
        )


def test_a_key_for_all_counts_in_each_record() -> None:
    with pytest.raises(RecordTooLargeError, match="record 1 has 1048577 bytes"):
        seal_batch(values=[b"", bytes(RECORD_BYTES_MAX)], keys=b"k", timestamps_ms=0)


def test_a_batch_above_the_limit_is_refused() -> None:
    with pytest.raises(RecordTooLargeError, match=f"the limit is {BATCH_BYTES_MAX}"):
        seal_batch(values=[bytes(MIB)] * 4, timestamps_ms=0)


def test_a_batch_above_the_limit_before_compression_is_refused() -> None:
    with pytest.raises(RecordTooLargeError, match="before compression"):
        seal_batch(values=[bytes(MIB)] * 16, timestamps_ms=0, codec=Codec.ZSTD)


def test_a_batch_that_zstd_brings_below_the_limit_is_sealed() -> None:
    batch = seal_batch(values=[bytes(MIB)] * 8, timestamps_ms=0, codec=Codec.ZSTD)

    assert len(batch) < BATCH_BYTES_MAX
    assert decode_batch(batch).values == [bytes(MIB)] * 8


def test_too_many_headers_are_refused() -> None:
    half = (("", b""),) * (HEADERS_PER_BATCH_MAX // 2)

    with pytest.raises(RecordTooLargeError, match="262145 headers"):
        seal_batch(values=[b""] * 3, headers=[half, half, (("", b""),)], timestamps_ms=0)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_times_in_runs_make_the_batch_that_they_make_one_by_one(times: list[int]) -> None:
    runs = TimestampRuns()
    for row, time_ms in enumerate(times):
        runs.note(row, time_ms)
    values = [b"v"] * len(times)

    assert seal_batch(values=values, timestamps_ms=runs) == seal_batch(
        values=values, timestamps_ms=times
    )


def test_a_time_in_runs_that_is_out_of_range_is_misuse() -> None:
    with pytest.raises(UsageError, match="out of range"):
        seal_batch(values=[b""], timestamps_ms=TimestampRuns(2**62))


# --- misuse -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"values": []}, "0 records, a batch takes 1 to 65536"),
        ({"values": [b""] * (RECORDS_PER_BATCH_MAX + 1)}, "65537 records"),
        ({"values": ["text"]}, "values must be bytes or None, found str"),
        ({"values": [b"", 3, "x"]}, "values must be bytes or None, found int, str"),
        ({"values": [memoryview(b"ab")[::2]]}, "values must be bytes or None, found memoryview"),
        ({"values": [b""], "keys": [bytearray(b"k")]}, "keys must be bytes or None, found bytea"),
        ({"values": [b""], "keys": ["k"]}, "keys must be bytes or None, found str"),
        ({"values": [b""], "keys": "k"}, "keys must be bytes or None, found str"),
        ({"values": [b""], "keys": [b"", b""]}, "2 keys, 1 records"),
        ({"values": [b""], "headers": []}, "headers of 0 records, 1 records"),
        ({"values": [b""], "headers": [(("n", "v"),)]}, "a pair of a str and bytes"),
        ({"values": [b""], "headers": [((b"n", b"v"),)]}, "a pair of a str and bytes"),
        ({"values": [b""], "headers": [(("\ud800", b"v"),)]}, "cannot be encoded"),
        ({"values": [b""], "timestamps_ms": []}, "0 timestamps, 1 records"),
        ({"values": [b""], "timestamps_ms": [1.5]}, "timestamps must be integers"),
        ({"values": [b""], "timestamps_ms": 2**62}, "out of range"),
        ({"values": [b"", b""], "timestamps_ms": [0, -(2**62)]}, "out of range"),
    ],
)
def test_what_is_not_a_batch_is_misuse(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        seal_batch(**{"timestamps_ms": 0} | arguments)


# --- bytes that are not what they claim -------------------------------------------------


def test_a_batch_cut_short_is_corruption() -> None:
    batch = seal_batch(values=[b"v"], timestamps_ms=0)

    for size in range(len(batch)):
        with pytest.raises(CorruptionError):
            decode_batch(batch[:size])


def test_a_batch_with_more_behind_it_is_corruption() -> None:
    batch = seal_batch(values=[b"v"], timestamps_ms=0)

    with pytest.raises(CorruptionError, match="are present"):
        decode_batch(batch + b"\0")


MALFORMED: list[tuple[Columns, dict[str, int], str]] = [
    (Columns(None, None, [b""], None, None), {}, "1 values, 2 records"),
    (Columns(None, [b""] * 3, None, None, None), {}, "3 keys, 2 records"),
    (Columns([0], None, None, None, None), {}, "1 timestamps, 2 records"),
    (Columns([1, 0], None, None, None, None), {}, "differs from the header by 1 ms"),
    (Columns([0, 1], None, None, None, None), {}, "largest timestamp is 1001"),
    (Columns(None, None, None, None, None), {"max_timestamp_ms": 1001}, "timestamp is 1000"),
    (Columns([0, -(2**63)], None, None, None, None), {}, "out of range"),
    (Columns(None, None, None, HeaderColumn([1], ["n"], [b""]), None), {}, "1 header counts"),
    (Columns(None, None, None, None, [0, 1]), {}, "contradict"),
    (Columns(None, None, None, None, None), {"flags": 1}, "contradict"),
    (Columns(None, None, None, None, [0]), {"flags": 1}, "1 offsets, 2 records"),
    (Columns(None, None, None, None, [1, 1]), {"flags": 1, "offset_span": 9}, "do not increase"),
    (Columns(None, None, None, None, [2, 1]), {"flags": 1, "offset_span": 9}, "do not increase"),
    (Columns(None, None, None, None, [-1, 1]), {"flags": 1, "offset_span": 9}, "do not increase"),
    (Columns(None, None, None, None, [0, 9]), {"flags": 1, "offset_span": 9}, "do not increase"),
]


@pytest.mark.parametrize(("columns", "fields", "reason"), MALFORMED)
def test_an_intact_batch_that_contradicts_itself_is_malformed_and_names_its_offsets(
    columns: Columns, fields: dict[str, int], reason: str
) -> None:
    sealed = seal_batch(values=[b"a", b"b"], timestamps_ms=1000)
    payload = bytearray()
    encode_columns_into(payload, columns)
    batch = reseal(sealed, payload, **fields)

    with pytest.raises(MalformedBatchError, match=reason) as caught:
        decode_batch(batch)

    assert caught.value.base_offset == 0
    assert caught.value.end_offset == fields.get("offset_span", 2)


def test_an_intact_batch_that_is_not_zstd_is_malformed() -> None:
    batch = reseal(
        seal_batch(values=[b"a"], timestamps_ms=0), b"not zstd", codec=1, decoded_bytes=100
    )

    with pytest.raises(MalformedBatchError, match=r"at offsets \[0, 1\).*not a zstd frame"):
        decode_batch(batch)


@given(st.binary(max_size=100))
@settings(max_examples=50)
def test_sealed_garbage_is_records_or_malformed_and_nothing_else(garbage: bytes) -> None:
    batch = reseal(seal_batch(values=[b"a"], timestamps_ms=0), b"\x95" + garbage)

    try:
        assert len(decode_batch(batch).values) == 1
    except MalformedBatchError:
        assert decode_header(batch).payload_format == PayloadFormat.COLUMNS
