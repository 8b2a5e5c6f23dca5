"""What a record costs before and after the network: sealing, checking, decoding, framing.

One batch is 1,000 records of 100 bytes, all different.  Every figure is per batch: divide by
1,000 for a record.  The target is 5 M records/s each way, which is 200 µs per batch.

    make bench-compare, or: pytest bench/test_record_bench.py --benchmark-enable
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from logd.limits import FRAME_BYTES_MAX
from logd.record.batch import decode_batch, seal_batch
from logd.record.header import (
    LEADER_PART_BYTES,
    Codec,
    decode_header,
    leader_part,
    verify_header,
    verify_seal,
)
from logd.types import GroupId, Offset, Term
from logd.wire.frame import FrameDecoder, decode_message, encode_message
from logd.wire.messages import Kind, ProduceRequest

RECORDS = 1000
VALUES = [(b"%020d " % number * 5)[:100] for number in range(RECORDS)]
KEYS: list[bytes | None] = [b"key-%d" % (number % 100) for number in range(RECORDS)]
GROUP = GroupId(12)


def appended(codec: Codec = Codec.NONE) -> bytes:
    batch = seal_batch(values=VALUES, timestamps_ms=1, codec=codec)
    part = leader_part(
        batch, base_offset=Offset(10**9), term=Term(3), append_time_ms=1, group=GROUP
    )
    return part + batch[LEADER_PART_BYTES:]


@pytest.mark.parametrize("codec", Codec)
def test_seal_values(benchmark: BenchmarkFixture, codec: Codec) -> None:
    batch = benchmark(lambda: seal_batch(values=VALUES, timestamps_ms=1, codec=codec))

    assert decode_batch(batch).values == VALUES


def test_seal_keys_and_timestamps(benchmark: BenchmarkFixture) -> None:
    timestamps = list(range(RECORDS))

    batch = benchmark(lambda: seal_batch(values=VALUES, keys=KEYS, timestamps_ms=timestamps))

    assert decode_batch(batch).keys == KEYS


def test_seal_one_record(benchmark: BenchmarkFixture) -> None:
    batch = benchmark(lambda: seal_batch(values=VALUES[:1], timestamps_ms=1))

    assert decode_batch(batch).values == VALUES[:1]


@pytest.mark.parametrize("codec", Codec)
def test_decode_batch(benchmark: BenchmarkFixture, codec: Codec) -> None:
    batch = memoryview(appended(codec))

    assert benchmark(decode_batch, batch).values == VALUES


def test_decode_header(benchmark: BenchmarkFixture) -> None:
    batch = memoryview(appended())

    assert benchmark(decode_header, batch).record_count == RECORDS


def test_check_as_a_follower_does(benchmark: BenchmarkFixture) -> None:
    batch = memoryview(appended())

    def check() -> None:
        verify_header(batch, decode_header(batch), GROUP)
        verify_seal(batch)

    benchmark(check)


def test_leader_part(benchmark: BenchmarkFixture) -> None:
    batch = appended()

    part = benchmark(
        lambda: leader_part(
            batch, base_offset=Offset(10**9), term=Term(3), append_time_ms=1, group=GROUP
        )
    )

    assert part == batch[:LEADER_PART_BYTES]


@pytest.mark.parametrize("body_bytes", [0, 100_000, 1_000_000])
def test_frame_there_and_back(benchmark: BenchmarkFixture, body_bytes: int) -> None:
    message = ProduceRequest(group=12)
    prefix = encode_message(Kind.PRODUCE, message, 1, body_bytes)
    stream = prefix + bytes(body_bytes)
    decoder = FrameDecoder(FRAME_BYTES_MAX)

    def receive() -> ProduceRequest:
        encode_message(Kind.PRODUCE, message, 1, body_bytes)
        decoder.feed(stream)
        frame = decoder.next_frame()
        assert frame is not None
        assert len(frame.body) == body_bytes
        return decode_message(ProduceRequest, frame.header)

    # A frame larger than the buffer is recognised by ``next_frame``, as after a real read.
    def receive_large() -> ProduceRequest:
        decoder.feed(stream[:250_000])
        assert decoder.next_frame() is None
        decoder.feed(memoryview(stream)[250_000:])
        frame = decoder.next_frame()
        assert frame is not None
        return decode_message(ProduceRequest, frame.header)

    assert benchmark(receive_large if body_bytes > 250_000 else receive) == message
