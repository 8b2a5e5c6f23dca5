"""Cut a byte stream into frames.  Knows lengths; does not know sockets or time.

    frame := length:u32  kind:u8  flags:u8  header_length:u16  correlation_id:u32
             header:MessagePack  body:raw batches                     (all big-endian)

``length`` counts everything after itself.  Batches are kept out of MessagePack so that they
travel from socket to disk to socket without becoming objects.

The decoder lends out memory for the socket to receive into, so bytes are copied once, out of
the shared buffer into a body of their own that may be cached and queued.  A frame larger
than the buffer is received straight into its own memory instead.

Memory is bounded by what the peer has really sent, not by what it claims: the buffer grows
to ``RECEIVE_BYTES`` only for a peer that fills it, a large body is allocated in steps of at
most four times what has arrived, and a length above the limit is refused when its four bytes
are there.

Normative page: docs/wire_protocol.md.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from logd.errors import FrameTooLargeError, InvalidRequestError, LogdError, ProtocolError
from logd.limits import (
    FRAME_BYTES_MAX,
    FRAME_HEADER_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    KIB,
    RECEIVE_BYTES,
)
from logd.types import Buffer

_PREFIX: Final = struct.Struct(">IBBHI")
_LENGTH: Final = struct.Struct(">I")
_COUNTED_PREFIX_BYTES: Final = _PREFIX.size - _LENGTH.size
"""The part of the prefix that ``length`` counts."""

FLAG_RESPONSE: Final = 1
"""Answers the request with this correlation id."""
FLAG_ERROR: Final = 2
"""The header is an ErrorResponse."""
FLAG_PUSH: Final = 4
"""Not an answer: sent because of a subscription; correlation id 0."""
FLAG_LONG: Final = 8
"""The message stands in the body, because it does not fit a header; there are no batches."""

HEADER_LENGTH_MAX: Final = 2**16 - 1
PEER_KIND_MIN: Final = 128
"""Kinds from here on are for brokers among themselves, on their own listener."""

_BUFFER_BYTES_MIN: Final = 16 * KIB
_SMALL_READS_BEFORE_SHRINKING: Final = 64
_CLAIM_FACTOR: Final = 4

assert _PREFIX.size == FRAME_PREFIX_BYTES
assert HEADER_LENGTH_MAX <= FRAME_HEADER_BYTES_MAX
# A peer that has not said who it is never makes the buffer grow.
assert FRAME_UNAUTHENTICATED_BYTES_MAX <= _BUFFER_BYTES_MIN <= RECEIVE_BYTES
# A frame that is received into its own memory has a header that fits the buffer.
assert FRAME_PREFIX_BYTES + HEADER_LENGTH_MAX <= RECEIVE_BYTES

_FOREIGN_STARTS: Final = (
    (b"\x16\x03", "a TLS hello"),
    (b"GET ", "an HTTP request"),
    (b"POST", "an HTTP request"),
    (b"HEAD", "an HTTP request"),
    (b"PUT ", "an HTTP request"),
    (b"DELE", "an HTTP request"),
    (b"OPTI", "an HTTP request"),
    (b"CONN", "an HTTP request"),
    (b"PRI ", "an HTTP/2 preface"),
    (b"HTTP", "an HTTP response"),
    (b"SSH-", "an SSH banner"),
)
# None of them could be a frame: as a length each is above every limit.
assert all(int.from_bytes(start.ljust(4, b"\0"), "big") > FRAME_BYTES_MAX
           for start, _ in _FOREIGN_STARTS)  # fmt: skip

T = TypeVar("T", bound=msgspec.Struct)


class Frame(NamedTuple):
    """One frame.  ``header`` and ``body`` are its own: the decoder does not reuse them."""

    kind: int
    flags: int
    correlation_id: int
    header: Buffer
    body: Buffer

    @property
    def is_response(self) -> bool:
        return self.flags & FLAG_RESPONSE != 0

    @property
    def is_error(self) -> bool:
        return self.flags & FLAG_ERROR != 0

    @property
    def is_push(self) -> bool:
        return self.flags & FLAG_PUSH != 0


# --- encoding ---------------------------------------------------------------------------

_ENCODER: Final = msgspec.msgpack.Encoder()


def frame_prefix(
    kind: int, flags: int, header: bytes, correlation_id: int, body_bytes: int = 0
) -> bytes:
    """All of a frame but its body: send it and ``body_bytes`` of body behind it."""
    length = _COUNTED_PREFIX_BYTES + len(header) + body_bytes
    assert len(header) <= HEADER_LENGTH_MAX
    assert length + _LENGTH.size <= FRAME_BYTES_MAX
    return _PREFIX.pack(length, kind, flags, len(header), correlation_id) + header


def encode_message(
    kind: int,
    message: msgspec.Struct,
    correlation_id: int = 0,
    body_bytes: int = 0,
    flags: int = 0,
) -> bytes:
    """Prefix and header of a frame for ``message``; its body, if any, is sent behind it.

    Raises:
        FrameTooLargeError: the message does not fit a frame.
    """
    header = _ENCODER.encode(message)
    if len(header) <= HEADER_LENGTH_MAX:
        return frame_prefix(kind, flags, header, correlation_id, body_bytes)
    # A description of many topics.  Only messages without batches grow like this.
    assert body_bytes == 0
    if FRAME_PREFIX_BYTES + len(header) > FRAME_BYTES_MAX:
        raise FrameTooLargeError(
            f"{type(message).__name__} has {len(header)} bytes, "
            f"a frame takes {FRAME_BYTES_MAX - FRAME_PREFIX_BYTES}"
        )
    return frame_prefix(kind, flags | FLAG_LONG, b"", correlation_id, len(header)) + header


# --- decoding ---------------------------------------------------------------------------


def decode_message(cls: type[T], header: Buffer, error: type[LogdError] = InvalidRequestError) -> T:
    """Decode a frame's header.  Unknown fields are ignored, wrong types are refused.

    Raises:
        error: it is not a ``cls``; says which field is wrong.  A client passes
            ``ProtocolError``: a broker that answers nonsense is not a refusal.
    """
    try:
        message: T = _decoder(cls).decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise error(f"{cls.__name__}: {cause}") from cause
    return message


@cache
def _decoder(cls: type[T]) -> msgspec.msgpack.Decoder[T]:
    return msgspec.msgpack.Decoder(cls)


class LargeFrames(Protocol):
    """Who is asked before a frame is received into memory of its own."""

    def begins(self, frame_bytes: int) -> bool:
        """Whether a frame of this size may begin; asked again with each ``next_frame`` if not."""

    def is_over(self) -> None:
        """The frame that had begun is whole."""


class FrameDecoder:
    """Received bytes in, frames out.

    Receive into ``writable()``, say how much came with ``received()``, then take frames with
    ``next_frame()`` until it returns None.  After an error the stream cannot be
    resynchronised: close the connection.
    """

    def __init__(
        self,
        frame_bytes_max: int,
        *,
        long_messages: bool = False,
        large_frames: LargeFrames | None = None,
    ) -> None:
        """``long_messages``: unwrap messages too long for a header.  Clients do, from a
        broker; a broker does not, from clients: there such a frame comes out as it is.
        ``large_frames``: asked before one begins; without it each may."""
        self.frame_bytes_max = frame_bytes_max
        """Largest frame accepted, prefix included.  Raised after the handshake."""
        self.awaits_room = False
        """The next frame is large and may not begin yet: receive nothing until it may."""
        self._long_messages = long_messages
        self._large_frames = large_frames
        self._buffer = bytearray(_BUFFER_BYTES_MIN)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._small_reads = 0
        self._large: _LargeFrame | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes here of a frame that is not complete: not 0 for long is a stalled peer.

        Exact once ``next_frame`` has returned None.
        """
        pending = self._end - self._start
        return pending if self._large is None else pending + self._large.received_bytes

    def writable(self) -> memoryview:
        """Memory to receive into; never empty.  Valid until the next call of any method."""
        if self._large is not None and not self._large.is_complete:
            return self._large.writable()
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > RECEIVE_BYTES:
                self._resize(RECEIVE_BYTES)
        elif self._start and len(self._buffer) - self._end < len(self._buffer) // 2:
            self._move_to_front()
        if self._end == len(self._buffer):
            self._resize(len(self._buffer) * 2)
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Say that ``count`` bytes were put at the start of ``writable()``."""
        if self._large is not None and not self._large.is_complete:
            self._large.received(count)
            return
        capacity = len(self._buffer)
        self._end += count
        assert self._end <= capacity
        if self._end == capacity < RECEIVE_BYTES:
            self._resize(min(capacity * 4, RECEIVE_BYTES))
        elif count * 8 < capacity:
            self._small_reads += 1
        else:
            self._small_reads = 0

    def feed(self, data: Buffer) -> None:
        """Add bytes that were received elsewhere, in any chunking."""
        rest = memoryview(data)
        while rest:
            space = self.writable()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            self.received(count)
            rest = rest[count:]

    def next_frame(self) -> Frame | None:
        """Take the next whole frame out, or None if it is not complete.

        Raises:
            ProtocolError: these bytes are not frames of ours.
            FrameTooLargeError: a frame exceeds ``frame_bytes_max``.
        """
        if self._large is not None:
            return self._take_large()
        start = self._start
        available = self._end - start
        if available < FRAME_PREFIX_BYTES:
            if available >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                self._check_length(length, 0)
            elif available == 0:
                self._shrink_if_quiet()
            return None

        length, kind, flags, header_length, correlation_id = _PREFIX.unpack_from(
            self._buffer, start
        )
        size = length + 4
        if size > self.frame_bytes_max or length < header_length + _COUNTED_PREFIX_BYTES:
            self._check_length(length, header_length)
        if size > available:
            if size > RECEIVE_BYTES and available >= FRAME_PREFIX_BYTES + header_length:
                self._begin_large(kind, flags, header_length, correlation_id, size)
            return None

        body_start = start + FRAME_PREFIX_BYTES + header_length
        end = start + size
        view = self._view
        header = bytes(view[start + FRAME_PREFIX_BYTES : body_start])
        body = bytes(view[body_start:end]) if body_start != end else b""
        self._start = end
        frame = Frame(kind, flags, correlation_id, header, body)
        return self._unwrap_long(frame) if flags & FLAG_LONG else frame

    def _check_length(self, length: int, header_length: int) -> None:
        size = length + _LENGTH.size
        if size > self.frame_bytes_max:
            self._refuse_foreign()
            raise FrameTooLargeError(
                f"frame of {size} bytes, the limit is {self.frame_bytes_max} at this point"
            )
        needed = header_length + _COUNTED_PREFIX_BYTES
        if length < needed:
            raise ProtocolError(
                f"frame length {length} is less than the {needed} bytes of its "
                f"prefix and header of {header_length}"
            )

    def _refuse_foreign(self) -> None:
        first = bytes(self._view[self._start : min(self._start + 16, self._end)])
        for start, name in _FOREIGN_STARTS:
            if first.startswith(start):
                raise ProtocolError(f"this looks like {name}, not like logd's protocol: {first!r}")

    def _unwrap_long(self, frame: Frame) -> Frame:
        if not self._long_messages:
            return frame
        if frame.header:
            raise ProtocolError(
                f"long message of kind {frame.kind} has a header of {len(frame.header)} bytes, "
                "expected none"
            )
        return frame._replace(header=frame.body, body=b"")

    def _begin_large(
        self, kind: int, flags: int, header_length: int, correlation_id: int, size: int
    ) -> None:
        """Go on receiving this frame into memory of its own, if it may."""
        if self._large_frames is not None:
            self.awaits_room = not self._large_frames.begins(size)
            if self.awaits_room:
                return
        body_start = self._start + FRAME_PREFIX_BYTES + header_length
        header = bytes(self._view[self._start + FRAME_PREFIX_BYTES : body_start])
        self._large = _LargeFrame(
            Frame(kind, flags, correlation_id, header, b""),
            size,
            self._view[body_start : self._end],
        )
        self._start = self._end = 0

    def _take_large(self) -> Frame | None:
        large = self._large
        assert large is not None
        if not large.is_complete:
            return None
        self._large = None
        if self._large_frames is not None:
            self._large_frames.is_over()
        frame = large.frame._replace(body=large.body)
        return self._unwrap_long(frame) if frame.flags & FLAG_LONG else frame

    def _move_to_front(self) -> None:
        pending = self._end - self._start
        self._view[:pending] = self._view[self._start : self._end]
        self._start, self._end = 0, pending

    def _resize(self, capacity: int) -> None:
        """Replace the buffer: views of the old one that are lent out stay valid."""
        pending = self._end - self._start
        assert pending <= capacity
        buffer = bytearray(capacity)
        view = memoryview(buffer)
        view[:pending] = self._view[self._start : self._end]
        self._buffer, self._view = buffer, view
        self._start, self._end = 0, pending

    def _shrink_if_quiet(self) -> None:
        if self._small_reads < _SMALL_READS_BEFORE_SHRINKING:
            return
        self._small_reads = 0
        if len(self._buffer) > _BUFFER_BYTES_MIN:
            self._resize(max(len(self._buffer) // 4, _BUFFER_BYTES_MIN))


class _LargeFrame:
    """A frame that outgrew the buffer, on its way into memory of its own."""

    def __init__(self, frame: Frame, frame_bytes: int, begun: memoryview) -> None:
        self.frame = frame
        self.frame_bytes = frame_bytes
        self._body_bytes = frame_bytes - FRAME_PREFIX_BYTES - len(frame.header)
        self._filled = len(begun)
        assert self._filled < self._body_bytes
        self.body = bytearray(self._capacity_for(self._filled))
        memoryview(self.body)[: self._filled] = begun

    @property
    def is_complete(self) -> bool:
        return self._filled == self._body_bytes

    @property
    def received_bytes(self) -> int:
        return self.frame_bytes - self._body_bytes + self._filled

    def writable(self) -> memoryview:
        if self._filled == len(self.body):
            grown = bytearray(self._capacity_for(self._filled))
            memoryview(grown)[: self._filled] = self.body
            self.body = grown
        return memoryview(self.body)[self._filled :]

    def received(self, count: int) -> None:
        self._filled += count
        assert self._filled <= len(self.body) <= self._body_bytes

    def _capacity_for(self, received: int) -> int:
        """Room for more, in proportion to what has really been sent."""
        return min(self._body_bytes, max(_BUFFER_BYTES_MIN, received * _CLAIM_FACTOR))
