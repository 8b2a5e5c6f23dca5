"""A receiver of a client's stream that keeps what it was given."""

from __future__ import annotations


class Received:
    """Everything that arrived, in order; small pieces, so that there are several."""

    def __init__(self, piece_bytes: int = 4096) -> None:
        self.data = b""
        self._memory = memoryview(bytearray(piece_bytes))

    def writable(self) -> memoryview:
        return self._memory

    def received(self, count: int) -> None:
        self.data += self._memory[:count]
