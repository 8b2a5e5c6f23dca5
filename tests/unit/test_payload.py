"""The payload's columns and its compression, and that neither can be used against us."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgpack  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import MalformedBatchError
from logd.limits import MIB, PAYLOAD_DECODED_BYTES_MAX
from logd.record.payload import (
    Columns,
    HeaderColumn,
    compress,
    decode_columns,
    decompress,
    encode_columns_into,
    expand_headers,
    flatten_headers,
)
from logd.types import Buffer

TRIVIAL = Columns(None, None, None, None, None)


def encoded(columns: Columns) -> bytes:
    payload = bytearray(b"what goes before")
    size = encode_columns_into(payload, columns)
    assert len(payload) == len(b"what goes before") + size
    return bytes(payload[-size:])


def test_the_bytes_of_trivial_columns_are_golden() -> None:
    assert encoded(TRIVIAL).hex() == "95c0c0c0c0c0"


def test_the_bytes_of_full_columns_are_golden() -> None:
    columns = Columns(
        [0, -1, 300], b"key", [b"", None, b"\xff"], HeaderColumn(None, ["é"], [b""]), [0, 2, 70_000]
    )

    assert encoded(columns).hex(" ") == (
        "95 93 00 ff cd 01 2c c4 03 6b 65 79 93 c4 00 c0 c4 01 ff "
        "93 c0 91 a2 c3 a9 91 c4 00 93 00 02 ce 00 01 11 70"
    )


def test_another_library_reads_the_columns_and_writes_ones_we_read() -> None:
    columns = Columns([0, 5], None, [b"a", None], HeaderColumn([1, 0], ["h"], [b"v"]), None)
    rows = [[0, 5], None, [b"a", None], [[1, 0], ["h"], [b"v"]], None]

    assert msgpack.unpackb(encoded(columns)) == rows
    assert decode_columns(msgpack.packb(rows, use_bin_type=True)) == columns


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("", "truncated"),
        ("c0", "Expected `array`, got"),
        ("94c0c0c0c0", "at least length 5, got 4"),
        ("96c0c0c0c0c0c0", "at most length 5, got 6"),
        ("95c0c0c0c0c0c0", "trailing characters"),
        ("95c0c0c0c0", "truncated"),
        ("95c091a161c0c0c0", r"got `str` - at `\$\[1\]\[0\]`"),
        ("95c0c09101c0c0", r"got `int` - at `\$\[2\]\[0\]`"),
        ("95c0c09190c0c0", r"got `array` - at `\$\[2\]\[0\]`"),
        ("9591cb3ff0000000000000c0c0c0c0", r"at `\$\[0\]\[0\]`"),
        ("95c0c0c093c091a1ff91c400c0", "utf-8"),
        ("95c0c0ddffffffffc0c0", "length <= 65536"),
        ("95c0dd00010001c0c0c0", "length <= 65536"),
        ("95c0c0c093c0ddffffffff90c0", "length <= 262144"),
        ("95c0c6ffffffffc0c0c0", "truncated"),
    ],
)
def test_what_is_not_columns_is_malformed_and_says_where(payload: str, reason: str) -> None:
    with pytest.raises(MalformedBatchError, match=reason):
        decode_columns(bytes.fromhex(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * MIB,
        b"\x95" + b"\x91" * MIB,
        b"\x95\xc0\xc0" + b"\x91" * MIB,
        b"\x96\xc0\xc0\xc0\xc0\xc0" + b"\x91" * MIB,
        b"\x95\xc0\xc0\xdc\xff\xff" + b"\x90" * MIB,
        b"\x95\xc0\xc0\xdd\xff\xff\xff\xff" + b"\xc0" * MIB,
    ],
    ids=["nested", "in columns", "in values", "sixth column", "empty arrays", "long array"],
)
def test_a_messagepack_bomb_is_refused_without_unfolding(payload: bytes) -> None:
    tracemalloc.start()

    with pytest.raises(MalformedBatchError):
        decode_columns(payload)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MIB


@given(st.binary(max_size=64))
@settings(max_examples=100)
def test_garbage_is_columns_or_malformed_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(MalformedBatchError):
        decode_columns(b"\x95" + garbage)


# --- headers ----------------------------------------------------------------------------

record_headers = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3)


@given(st.lists(record_headers.map(tuple), min_size=1, max_size=6))
@settings(max_examples=50)
def test_headers_survive_being_flattened(headers: list[tuple[tuple[str, bytes], ...]]) -> None:
    column = flatten_headers(headers)

    assert expand_headers(column, len(headers)) == headers


def test_headers_that_are_the_same_for_all_records_are_stored_once() -> None:
    headers = (("source", b"sensor-1"),)

    assert flatten_headers([headers] * 1000) == HeaderColumn(None, ["source"], [b"sensor-1"])
    assert flatten_headers([()] * 1000) is None


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (HeaderColumn(None, ["a"], []), "1 header names, 0 header values"),
        (HeaderColumn([1], ["a"], [b"x"]), "1 header counts, 2 records"),
        (HeaderColumn([1, 1], ["a"], [b"x"]), "do not add up to 1 headers"),
        (HeaderColumn([2, -1], ["a"], [b"x"]), "do not add up to 1 headers"),
        (HeaderColumn([0, 0], ["a"], [b"x"]), "do not add up to 1 headers"),
    ],
)
def test_header_columns_that_do_not_fit_are_malformed(column: HeaderColumn, reason: str) -> None:
    with pytest.raises(MalformedBatchError, match=reason):
        expand_headers(column, 2)


# --- compression ------------------------------------------------------------------------


def test_compression_is_undone() -> None:
    payload = b"the same again and again, " * 100

    compressed = compress(payload, 1)

    assert compressed is not None
    assert len(compressed) < len(payload)
    assert decompress(memoryview(compressed), len(payload)) == payload


def test_what_compression_does_not_make_smaller_is_left_alone() -> None:
    incompressible = zstandard.ZstdCompressor().compress(bytes(range(256)) * 64)

    assert compress(incompressible, 1) is None
    assert compress(b"short", 1) is None


def test_a_zstd_bomb_is_refused_before_it_unfolds() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    assert len(bomb) < 8192
    tracemalloc.start()

    with pytest.raises(MalformedBatchError, match="states 67108864 bytes, the header 1000"):
        decompress(bomb, 1000)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MIB


def test_a_frame_that_does_not_state_its_size_is_refused_by_that_name() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))

    with pytest.raises(MalformedBatchError, match="does not state its size"):
        decompress(frame, 1000)


def test_a_frame_of_another_size_than_the_header_says_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1001))

    with pytest.raises(MalformedBatchError, match="states 1001 bytes, the header 1000"):
        decompress(frame, 1000)


def test_bytes_behind_the_frame_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1000))

    with pytest.raises(MalformedBatchError, match="zstd"):
        decompress(frame + b"more", 1000)


def test_a_damaged_frame_is_malformed() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(250))))
    frame[-1] ^= 1

    with pytest.raises(MalformedBatchError, match="zstd"):
        decompress(frame, 250)


@pytest.mark.parametrize("payload", [b"", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18\0\0\0\0", b"GET"])
def test_what_is_not_a_zstd_frame_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedBatchError):
        decompress(payload, 10)


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    samples: list[Buffer] = [b"common words %d " % number * 20 for number in range(200)]
    dictionary = zstandard.train_dictionary(4096, samples)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"common words")

    with pytest.raises(MalformedBatchError, match="needs dictionary"):
        decompress(frame, 12)


@pytest.mark.parametrize(("window_log", "is_taken"), [(24, True), (25, False)])
def test_a_frame_with_a_window_of_more_than_a_payload_is_refused(
    window_log: int, is_taken: bool
) -> None:
    """It would be allocated, however little the frame unfolds to."""
    content = b"0123456789"
    states_its_size = 2 << 6
    frame = (
        b"\x28\xb5\x2f\xfd"
        + bytes([states_its_size, (window_log - 10) << 3])
        + len(content).to_bytes(4, "little")
        + (len(content) << 3 | 1).to_bytes(3, "little")  # One block, the last, as it is.
        + content
    )

    if is_taken:
        assert decompress(frame, len(content)) == content
    else:
        with pytest.raises(MalformedBatchError, match="window of 33554432 bytes"):
            decompress(frame, len(content))


def test_the_largest_payload_is_compressed_and_back() -> None:
    payload = bytes(PAYLOAD_DECODED_BYTES_MAX)

    compressed = compress(payload, 1)

    assert compressed is not None
    assert decompress(compressed, len(payload)) == payload
