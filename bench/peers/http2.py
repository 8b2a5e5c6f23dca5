"""As much of HTTP/2 and gRPC as it takes to ask one server many small questions.

Unary calls over one connection, any number under way.  Headers are sent as literals, so that
nothing depends on what was sent before (RFC 7541, 6.2.2); those that are received are not
decoded: a call whose answer has a message has succeeded, and one without has failed.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from bench.peers.calls import Encoded, Reply
from bench.peers.peer import HOST, RECEIVE_BYTES, PeerError, connected

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES_MAX: Final = 2**31 - 1
WINDOW_BYTES_INITIAL: Final = 65_535
STREAM_ID_MAX: Final = 2**31 - 1

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
SETTING_INITIAL_WINDOW: Final = 4

_FRAME: Final = struct.Struct(">BHBBI")
"""Length (three bytes), kind, flags, stream."""

_SETTING: Final = struct.Struct(">HI")
_MESSAGE: Final = struct.Struct(">BI")
"""Compressed or not, and length."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    length = len(payload)
    return _FRAME.pack(length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that no table remembers; ``name`` is a whole index or a length and a name."""
    return name + bytes([len(value)]) + value


def _headers(path: str) -> bytes:
    return (
        b"\x83\x86"  # :method POST, :scheme http
        + _literal(b"\x04", path.encode())
        + _literal(b"\x01", HOST.encode())
        + _literal(b"\x0f\x10", b"application/grpc")  # content-type
        + _literal(b"\x00\x02te", b"trailers")
    )


class Channel:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._sock: socket.socket = connected(port)
        self._next_stream = 1
        self._window = WINDOW_BYTES_INITIAL
        """What the server lets us send."""
        self._received = b""
        self._messages: dict[int, bytes] = {}
        self._headers: dict[str, bytes] = {}
        grow = struct.pack(">I", WINDOW_BYTES_MAX - WINDOW_BYTES_INITIAL)
        self._sock.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, _SETTING.pack(SETTING_INITIAL_WINDOW, WINDOW_BYTES_MAX))
            + frame(WINDOW_UPDATE, 0, 0, grow)
        )

    def close(self) -> None:
        self._sock.close()

    @property
    def has_room(self) -> bool:
        """A small message may be sent now; else ``receive`` first."""
        return self._window > WINDOW_BYTES_INITIAL // 4

    def encode(self, path: str, message: bytes) -> Encoded:
        """The next call's stream, and its bytes."""
        stream = self._next_stream
        if stream > STREAM_ID_MAX:
            raise PeerError("every stream of the connection has been used")
        self._next_stream += 2
        headers = self._headers.get(path)
        if headers is None:
            headers = self._headers[path] = _headers(path)
        body = _MESSAGE.pack(0, len(message)) + message
        self._window -= len(body)
        return stream, (
            frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body)
        )

    def send(self, encoded: bytes) -> None:
        self._sock.sendall(encoded)

    def call(self, path: str, message: bytes) -> bytes:
        """One call, and nothing else under way."""
        _, encoded = self.encode(path, message)
        self.send(encoded)
        while not (replies := self.receive()):
            pass
        return replies[0].message

    def receive(self) -> list[Reply]:
        """Wait for bytes; the replies that are whole by then."""
        arrived = self._sock.recv(RECEIVE_BYTES)
        if not arrived:
            raise PeerError("the server closed the connection")
        received = self._received + arrived
        replies: list[Reply] = []
        at = 0
        while len(received) - at >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(received, at)
            end = at + _FRAME.size + (high << 16 | low)
            if end > len(received):
                break
            self._take(kind, flags, stream, received[at + _FRAME.size : end], replies)
            at = end
        self._received = received[at:]
        return replies

    def _take(
        self, kind: int, flags: int, stream: int, payload: bytes, replies: list[Reply]
    ) -> None:
        if kind == DATA:
            self._messages[stream] = self._messages.get(stream, b"") + payload
        elif kind == HEADERS and flags & END_STREAM:
            message = self._messages.pop(stream, None)
            if message is None:
                raise PeerError(f"a call failed: {payload!r}")
            replies.append(Reply(stream, message[_MESSAGE.size :]))
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self._sock.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._sock.sendall(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            raise PeerError(f"the server ends the connection: {payload!r}")
