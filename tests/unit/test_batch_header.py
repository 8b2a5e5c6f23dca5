"""The batch header: its exact bytes, and that no other bytes pass for one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import CorruptionError
from logd.limits import BATCH_BYTES_MAX, PAYLOAD_DECODED_BYTES_MAX, RECORDS_PER_BATCH_MAX
from logd.record.batch import seal_batch, seal_opaque
from logd.record.header import (
    HEADER_BYTES,
    LAYOUT,
    LEADER_PART_BYTES,
    BatchHeader,
    BatchKind,
    decode_header,
    leader_part,
    split_batches,
    verify_header,
    verify_seal,
)
from logd.types import Buffer, GroupId, Offset, Term

GROUP = GroupId(12)

GOLDEN = bytes.fromhex(
    "3ab602f8a4b381bae80300000000000003000000000000002c69e5cf8b010000"
    "413d280608c755f04c4744312700000000000100020000000200000027000000"
    "0068e5cf8b010000fa68e5cf8b01000007000000000000000100000000000000"
    "2800000000000000000000000000000000000000000000000000000000000000"
    "959200ccfa92c4026b31c4026b3292c40568656c6c6fc093920100"
    "91a46c616e6791c402656ec0"
)
"""The example of segment_format.md."""


def sealed() -> bytearray:
    return seal_batch(
        values=[b"hello", None],
        keys=[b"k1", b"k2"],
        headers=[(("lang", b"en"),), ()],
        timestamps_ms=[1_700_000_000_000, 1_700_000_000_250],
        producer_id=7,
        producer_epoch=1,
        base_sequence=40,
    )


def appended(batch: Buffer, base_offset: int = 1000) -> bytes:
    """As the leader of ``GROUP`` writes it."""
    part = leader_part(
        batch,
        base_offset=Offset(base_offset),
        term=Term(3),
        append_time_ms=1_700_000_000_300,
        group=GROUP,
    )
    return part + bytes(batch[LEADER_PART_BYTES:])


def patched(batch: bytes, **fields: int) -> bytes:
    """``batch`` with some header fields overwritten, checksums left as they were."""
    raw = bytearray(batch)
    position = 0
    for field in LAYOUT:
        if field.name in fields:
            struct.pack_into("<" + field.format, raw, position, fields[field.name])
        position += struct.calcsize("<" + field.format)
    return bytes(raw)


def test_the_bytes_of_a_batch_are_golden() -> None:
    assert appended(sealed()) == GOLDEN


def test_a_golden_batch_decodes_to_its_fields() -> None:
    header = decode_header(GOLDEN)

    assert header == BatchHeader(
        header_checksum=0xBA81B3A4F802B63A,
        base_offset=Offset(1000),
        term=Term(3),
        append_time_ms=1_700_000_000_300,
        seal=0xF055C70806283D41,
        magic=0x3144474C,
        payload_bytes=39,
        kind=0,
        flags=0,
        payload_format=1,
        codec=0,
        record_count=2,
        offset_span=2,
        decoded_bytes=39,
        first_timestamp_ms=1_700_000_000_000,
        max_timestamp_ms=1_700_000_000_250,
        producer_id=7,
        producer_epoch=1,
        reserved=0,
        base_sequence=40,
        fence_id=0,
        fence_token=0,
        reserved2=0,
    )
    assert header.size_bytes == len(GOLDEN)
    assert header.end_offset == 1002
    assert not header.is_control


def test_a_producers_batch_has_a_zero_leaders_part() -> None:
    assert sealed()[:LEADER_PART_BYTES] == bytes(LEADER_PART_BYTES)


def test_the_leader_leaves_the_producers_part_untouched() -> None:
    batch = sealed()

    assert appended(batch)[LEADER_PART_BYTES:] == batch[LEADER_PART_BYTES:]


def test_every_flipped_bit_is_detected() -> None:
    for bit in range(len(GOLDEN) * 8):
        damaged = bytearray(GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8

        with pytest.raises(CorruptionError):
            _read_fully(bytes(damaged))


def test_a_flipped_bit_of_the_payload_breaks_only_the_seal() -> None:
    damaged = bytearray(GOLDEN)
    damaged[HEADER_BYTES] ^= 1

    verify_header(damaged, decode_header(damaged), GROUP)
    with pytest.raises(CorruptionError, match="seal of a batch of 167 bytes"):
        verify_seal(damaged)


def test_a_batch_of_another_group_is_refused() -> None:
    with pytest.raises(CorruptionError, match="for group 13"):
        verify_header(GOLDEN, decode_header(GOLDEN), GroupId(13))


def test_the_leaders_part_does_not_break_the_seal() -> None:
    verify_seal(sealed())
    verify_seal(GOLDEN)


@pytest.mark.parametrize("size", [0, 1, 39, 127])
def test_a_torn_header_is_corruption_that_names_the_sizes(size: int) -> None:
    with pytest.raises(CorruptionError, match=f"{size} bytes at 0, a batch header needs 128"):
        decode_header(GOLDEN[:size])


def test_a_header_is_decoded_at_any_position_without_the_rest() -> None:
    header = decode_header(b"xyz" + GOLDEN[:HEADER_BYTES], 3)

    assert header == decode_header(GOLDEN)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"magic": 0}, "magic is 0, not 826558284"),
        ({"payload_bytes": BATCH_BYTES_MAX}, "payload_bytes is 4194304, not <= 4194176"),
        ({"kind": 2}, "kind is 2, not 0 or 1"),
        ({"flags": 2}, "flags is 2, not 0 or 1"),
        ({"flags": 3, "offset_span": 9}, "flags is 3"),
        ({"payload_format": 0}, "payload_format is 0, not 1, 2 or 3"),
        ({"payload_format": 4}, "payload_format is 4, not 1, 2 or 3"),
        ({"codec": 2}, "codec is 2, not 0 or 1"),
        ({"record_count": 0, "offset_span": 0}, "record_count is 0, not 1 to 65536"),
        (
            {"record_count": RECORDS_PER_BATCH_MAX + 1, "offset_span": RECORDS_PER_BATCH_MAX + 1},
            "record_count is 65537",
        ),
        ({"base_offset": -1}, "base_offset is -1, not >= 0"),
        ({"max_timestamp_ms": 5}, "max_timestamp_ms is 5, not >= first_timestamp_ms"),
        ({"reserved": 1}, "reserved is 1, not 0"),
        ({"reserved2": 1}, "reserved2 is 1, not 0"),
        ({"offset_span": 3}, "offset_span is 3, not record_count 2"),
        ({"flags": 1, "offset_span": 1}, "offset_span is 1, not record_count 2, or more"),
        (
            {
                "flags": 1,
                "record_count": 0,
                "offset_span": 0,
                "payload_bytes": 0,
                "decoded_bytes": 0,
            },
            "offset_span is 0",
        ),
        ({"flags": 1, "record_count": 0}, "payload_bytes is 39, not 0 without records"),
        ({"decoded_bytes": 40}, "decoded_bytes is 40, not payload_bytes 39"),
        ({"codec": 1, "decoded_bytes": 0}, "decoded_bytes is 0, not 1 to"),
        ({"codec": 1, "decoded_bytes": PAYLOAD_DECODED_BYTES_MAX + 1}, "decoded_bytes is 16777217"),
        ({"kind": 1}, "payload_format is 1, not 2 in a control batch"),
        ({"payload_format": 2}, "record_count is 2, not 1 in an opaque batch"),
        ({"payload_format": 2, "record_count": 1, "offset_span": 1, "codec": 1}, "codec is 1"),
        ({"payload_format": 2, "record_count": 1, "offset_span": 1, "flags": 1}, "flags is 1"),
        ({"payload_format": 3, "kind": 1}, "payload_format is 3, not 2 in a control batch"),
        ({"payload_format": 3, "codec": 1}, "codec is 1"),
        ({"payload_format": 3, "flags": 1}, "flags is 1"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_by_name(fields: dict[str, int], rule: str) -> None:
    with pytest.raises(CorruptionError, match=f"batch at 0: {rule}"):
        decode_header(patched(GOLDEN, **fields))


def test_the_extremes_of_every_rule_are_accepted() -> None:
    decode_header(patched(GOLDEN, record_count=65_536, offset_span=65_536))
    decode_header(patched(GOLDEN, flags=1, offset_span=2**32 - 1))
    decode_header(patched(GOLDEN, codec=1, decoded_bytes=PAYLOAD_DECODED_BYTES_MAX))
    decode_header(patched(GOLDEN, payload_format=3, record_count=65_536, offset_span=65_536))
    largest = BATCH_BYTES_MAX - HEADER_BYTES
    decode_header(patched(GOLDEN, payload_bytes=largest, decoded_bytes=largest))


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
@settings(max_examples=50)
def test_garbage_is_corruption(garbage: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_header(garbage)


@given(
    st.dictionaries(
        st.sampled_from([field.name for field in LAYOUT if field.format in "BI"]),
        st.integers(0, 255),
    )
)
@settings(max_examples=100)
def test_a_header_is_decoded_or_refused_for_a_named_rule(fields: dict[str, int]) -> None:
    try:
        header = decode_header(patched(GOLDEN, **fields))
    except CorruptionError:
        return
    assert header._asdict() | fields == header._asdict()


def test_batches_back_to_back_are_split() -> None:
    control = appended(seal_opaque(b"", kind=BatchKind.CONTROL, timestamp_ms=0), 1002)
    log = memoryview(GOLDEN + control + appended(sealed(), 1003))

    found = [(header.base_offset, bytes(view)) for header, view in split_batches(log)]

    assert [offset for offset, _ in found] == [1000, 1002, 1003]
    assert b"".join(batch for _, batch in found) == log


@pytest.mark.parametrize("cut", [1, HEADER_BYTES - 1, HEADER_BYTES, len(GOLDEN) - 1])
def test_a_torn_last_batch_is_corruption_after_the_whole_ones(cut: int) -> None:
    batches = split_batches(memoryview(GOLDEN + GOLDEN[:cut]))

    assert next(batches)[1] == GOLDEN
    with pytest.raises(CorruptionError, match=str(len(GOLDEN))):
        next(batches)


def test_nothing_splits_into_no_batches() -> None:
    assert list(split_batches(memoryview(b""))) == []


def _read_fully(batch: bytes) -> None:
    """What a follower checks of a batch it receives."""
    header = decode_header(batch)
    if header.size_bytes != len(batch):
        raise CorruptionError("the batch has another size")
    verify_header(batch, header, GROUP)
    verify_seal(batch)
