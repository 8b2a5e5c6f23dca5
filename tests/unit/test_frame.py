"""Frames: exact bytes, any chunking, and bounds on what a peer can make us hold."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import FrameTooLargeError, InvalidRequestError, LogdError, ProtocolError
from logd.limits import (
    FRAME_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    KIB,
    MIB,
    RECEIVE_BYTES,
)
from logd.wire.frame import (
    FLAG_ERROR,
    FLAG_LONG,
    FLAG_PUSH,
    FLAG_RESPONSE,
    HEADER_LENGTH_MAX,
    Frame,
    FrameDecoder,
    decode_message,
    encode_message,
    frame_prefix,
)
from logd.wire.messages import (
    Credit,
    HelloResponse,
    Kind,
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    TopicInfo,
)


def frames_of(decoder: FrameDecoder, *chunks: bytes) -> list[Frame]:
    """Feed chunk by chunk, taking every frame as soon as it is complete."""
    frames = []
    for chunk in chunks:
        decoder.feed(chunk)
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    return frames


def wire(frame: Frame) -> bytes:
    header = bytes(frame.header)
    return (
        frame_prefix(frame.kind, frame.flags, header, frame.correlation_id, len(frame.body))
        + frame.body
    )


# --- bytes ------------------------------------------------------------------------------


def test_the_bytes_of_a_frame_are_golden() -> None:
    frame = frame_prefix(Kind.PRODUCE, FLAG_RESPONSE, b"\x80", 0x01020304, 5) + b"batch"

    assert frame.hex(" ") == "00 00 00 0e 03 01 00 01 01 02 03 04 80 62 61 74 63 68"


def test_the_bytes_of_a_message_are_golden() -> None:
    message = ProduceRequest(group=7, expected_offset=42)

    frame = encode_message(Kind.PRODUCE, message, correlation_id=1, body_bytes=100)

    assert frame[:12].hex(" ") == "00 00 00 85 03 00 00 19 00 00 00 01"
    assert msgspec.msgpack.decode(frame[12:]) == {"group": 7, "expected_offset": 42}


def test_a_message_survives_a_frame() -> None:
    message = Credit(subscription=1, generation=2, bytes=3)

    (frame,) = frames_of(FrameDecoder(1000), encode_message(Kind.CREDIT, message, flags=FLAG_PUSH))

    assert frame.kind == Kind.CREDIT
    assert frame.is_push
    assert not frame.is_response
    assert not frame.is_error
    assert decode_message(Credit, frame.header) == message


frames = st.builds(
    Frame,
    st.integers(0, 255),
    st.sampled_from([0, FLAG_RESPONSE, FLAG_RESPONSE | FLAG_ERROR, FLAG_PUSH]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
    st.binary(max_size=50),
)


@given(st.lists(frames, max_size=6), st.integers(1, 40))
@settings(max_examples=100)
def test_any_chunking_gives_the_same_frames(sent: list[Frame], size: int) -> None:
    stream = b"".join(map(wire, sent))
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]

    assert frames_of(FrameDecoder(1000), *chunks) == sent


@pytest.mark.parametrize("chunk_bytes", [1500, 65_536, 262_144, 1_000_000, 10_000_000])
def test_frames_of_all_sizes_survive_any_chunking(chunk_bytes: int) -> None:
    sizes = [0, 1, 16 * KIB, 100_000, RECEIVE_BYTES, 3, 3 * MIB, MIB, 0, 5 * MIB, 40]
    sent = [
        Frame(index, 0, index, b"h" * (index * 1000), bytes([index]) * size)
        for index, size in enumerate(sizes)
    ]
    stream = b"".join(map(wire, sent))
    chunks = [stream[start : start + chunk_bytes] for start in range(0, len(stream), chunk_bytes)]

    assert frames_of(FrameDecoder(FRAME_BYTES_MAX), *chunks) == sent


@pytest.mark.parametrize("body_bytes", [100, 200_000, 2 * MIB])
def test_frames_received_into_lent_memory_survive_its_reuse(body_bytes: int) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    sent = [Frame(1, 0, number, b"h", bytes([number]) * body_bytes) for number in range(5)]
    stream = memoryview(b"".join(map(wire, sent)))
    found = []

    while stream:
        space = decoder.writable()
        count = min(len(space), len(stream), 50_000)
        space[:count] = stream[:count]
        decoder.received(count)
        stream = stream[count:]
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)

    assert found == sent


def test_frames_may_be_taken_after_all_bytes_have_come() -> None:
    sent = [Frame(1, 0, number, b"", b"x" * 200_000) for number in range(10)]
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    decoder.feed(b"".join(map(wire, sent)))

    assert [decoder.next_frame() for _ in range(11)] == [*sent, None]


# --- bounds -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [FRAME_UNAUTHENTICATED_BYTES_MAX, 200_000, FRAME_BYTES_MAX])
def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_does_not(size: int) -> None:
    body = bytes(size - FRAME_PREFIX_BYTES)
    assert len(frames_of(FrameDecoder(size), frame_prefix(1, 0, b"", 0, len(body)) + body)) == 1

    with pytest.raises(FrameTooLargeError, match=f"frame of {size} bytes, the limit is {size - 1}"):
        frames_of(FrameDecoder(size - 1), frame_prefix(1, 0, b"", 0, len(body)))


def test_the_limit_can_be_raised_after_the_handshake() -> None:
    decoder = FrameDecoder(20)
    frames_of(decoder, wire(Frame(1, 0, 0, b"hello", b"")))

    decoder.frame_bytes_max = 30

    assert len(frames_of(decoder, wire(Frame(2, 0, 1, b"", b"x" * 18)))) == 1


def test_a_length_is_refused_as_soon_as_its_four_bytes_are_there() -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    decoder.feed(b"\x7f\xff\xff")
    assert decoder.next_frame() is None

    decoder.feed(b"\xff")

    with pytest.raises(FrameTooLargeError, match="frame of 2147483651 bytes"):
        decoder.next_frame()


@pytest.mark.parametrize(
    ("length", "header_length", "reason"),
    [(0, 0, "less than the 8 bytes"), (7, 0, "less than the 8"), (20, 13, "less than the 21")],
)
def test_a_length_that_is_too_small_is_refused(
    length: int, header_length: int, reason: str
) -> None:
    prefix = length.to_bytes(4, "big") + b"\x01\0" + header_length.to_bytes(2, "big") + bytes(4)

    with pytest.raises(ProtocolError, match=reason):
        frames_of(FrameDecoder(1000), prefix)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "an HTTP request"),
        (b"POST /a HTTP/1.0\r\n\r\n", "an HTTP request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "an HTTP/2 preface"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a TLS hello"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH banner"),
    ],
)
def test_another_protocol_is_named(start: bytes, name: str) -> None:
    with pytest.raises(ProtocolError, match=f"looks like {name}"):
        frames_of(FrameDecoder(FRAME_BYTES_MAX), start)


def test_after_an_error_the_stream_stays_refused() -> None:
    decoder = FrameDecoder(1000)
    decoder.feed(b"GET / HTTP/1.1\r\n")

    for _ in range(2):
        with pytest.raises(ProtocolError):
            decoder.next_frame()


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_garbage_is_frames_or_a_typed_error_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(LogdError):
        frames_of(FrameDecoder(8192), garbage)


def test_a_claim_costs_no_memory_until_bytes_come() -> None:
    tracemalloc.start()
    decoder = FrameDecoder(FRAME_BYTES_MAX)

    frames_of(decoder, frame_prefix(1, 0, b"", 0, FRAME_BYTES_MAX - FRAME_PREFIX_BYTES))

    assert len(decoder.writable()) < 64 * KIB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * KIB


def test_an_idle_connection_holds_a_small_buffer() -> None:
    assert len(FrameDecoder(FRAME_BYTES_MAX).writable()) <= 16 * KIB


def test_a_busy_connection_receives_in_large_pieces_until_it_is_quiet_again() -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    busy = wire(Frame(1, 0, 0, b"", b"x" * 100_000))

    frames_of(decoder, *[busy] * 20)
    assert len(decoder.writable()) == RECEIVE_BYTES

    frames_of(decoder, *[wire(Frame(1, 0, 0, b"", b"x"))] * 200)
    assert len(decoder.writable()) <= 16 * KIB


def test_a_large_frame_leaves_no_large_buffer_behind() -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)

    frames_of(decoder, wire(Frame(1, 0, 0, b"", bytes(7 * MIB))))

    assert len(decoder.writable()) <= RECEIVE_BYTES


class Door:
    """Lets large frames begin while it is open."""

    def __init__(self) -> None:
        self.is_open = False
        self.begun: list[int] = []
        self.over = 0

    def begins(self, frame_bytes: int) -> bool:
        if self.is_open:
            self.begun.append(frame_bytes)
        return self.is_open

    def is_over(self) -> None:
        self.over += 1


def test_a_large_frame_begins_when_it_may_and_says_when_it_is_whole() -> None:
    door = Door()
    decoder = FrameDecoder(FRAME_BYTES_MAX, large_frames=door)
    large = Frame(1, 0, 0, b"h", bytes(3 * MIB))
    data = wire(large)

    assert frames_of(decoder, data[:1000]) == []
    waits = [decoder.awaits_room]
    door.is_open = True
    assert decoder.next_frame() is None
    waits.append(decoder.awaits_room)

    assert waits == [True, False]
    assert (door.begun, door.over) == ([len(data)], 0)
    assert decoder.pending_bytes == 1000

    assert frames_of(decoder, data[1000:]) == [large]
    assert (door.begun, door.over) == ([len(data)], 1)


def test_a_frame_that_fits_one_read_asks_nobody() -> None:
    body_bytes = RECEIVE_BYTES - FRAME_PREFIX_BYTES
    frame = Frame(1, 0, 0, b"", bytes(body_bytes))

    assert frames_of(FrameDecoder(FRAME_BYTES_MAX, large_frames=Door()), wire(frame)) == [frame]


@pytest.mark.parametrize("body_bytes", [1000, 3 * MIB])
def test_pending_bytes_tell_of_an_unfinished_frame(body_bytes: int) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    frame = wire(Frame(1, 0, 0, b"h", bytes(body_bytes)))
    assert decoder.pending_bytes == 0

    frames_of(decoder, frame[:3])
    assert decoder.pending_bytes == 3

    frames_of(decoder, frame[3:-1])
    assert decoder.pending_bytes == len(frame) - 1

    frames_of(decoder, frame[-1:])
    assert decoder.pending_bytes == 0


# --- messages ---------------------------------------------------------------------------


def many_topics() -> MetadataResponse:
    topics = [TopicInfo(name=f"topic-{n}", topic_id=n, partitions=[]) for n in range(5000)]
    return MetadataResponse(cluster_id="c", controller=1, brokers=[], topics=topics)


def test_a_message_too_long_for_a_header_travels_in_the_body() -> None:
    message = many_topics()
    frame = encode_message(Kind.METADATA, message, 5, flags=FLAG_RESPONSE)
    assert len(frame) > HEADER_LENGTH_MAX

    (found,) = frames_of(FrameDecoder(FRAME_BYTES_MAX, long_messages=True), frame)

    assert found.is_response
    assert found.flags & FLAG_LONG
    assert found.body == b""
    assert decode_message(MetadataResponse, found.header) == message


def test_a_long_message_stays_wrapped_where_none_is_expected() -> None:
    frame = encode_message(Kind.METADATA, many_topics())

    (found,) = frames_of(FrameDecoder(FRAME_BYTES_MAX), frame)

    assert found.flags == FLAG_LONG
    assert found.header == b""
    assert len(found.body) > HEADER_LENGTH_MAX


def test_a_long_message_with_a_header_is_refused() -> None:
    frame = wire(Frame(1, FLAG_LONG, 0, b"header", b"body"))

    with pytest.raises(ProtocolError, match="has a header of 6 bytes"):
        frames_of(FrameDecoder(FRAME_BYTES_MAX, long_messages=True), frame)


def test_a_message_too_long_for_a_frame_is_refused_by_its_sender() -> None:
    message = MetadataRequest(topics=["x" * FRAME_BYTES_MAX])

    with pytest.raises(FrameTooLargeError, match="MetadataRequest has"):
        encode_message(Kind.METADATA, message)


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    header = msgspec.msgpack.encode({"group": 3, "colour": "blue"})

    assert decode_message(ProduceRequest, header) == ProduceRequest(group=3)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (msgspec.msgpack.encode({"group": "x"}), r"ProduceRequest: .*got `str` - at `\$.group`"),
        (msgspec.msgpack.encode({}), "ProduceRequest: .*missing required field `group`"),
        (msgspec.msgpack.encode([1]), "ProduceRequest: Expected `object`, got `array`"),
        (b"", "ProduceRequest: .*truncated"),
        (b"\x81\xa5group\xa2\xff\xff", "ProduceRequest: "),
        (b"\x82\xa5group\x01\xa1x" + b"\x91" * 60_000, "ProduceRequest: .*recursion"),
    ],
)
def test_a_wrong_header_is_refused_naming_message_and_field(header: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        decode_message(ProduceRequest, header)


def test_a_client_calls_a_wrong_answer_a_breach_of_protocol() -> None:
    with pytest.raises(ProtocolError, match="HelloResponse"):
        decode_message(HelloResponse, b"\x80", ProtocolError)


@given(st.binary(max_size=60))
@settings(max_examples=50)
def test_a_garbage_header_is_a_message_or_refused_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        decode_message(MetadataRequest, garbage)
