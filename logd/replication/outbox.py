"""Bytes waiting to be sent on one connection, and the one task that sends them.

Everything queued while a send is under way goes out with the next one: frames coalesce by
themselves under load, and a single frame leaves at once when idle.  The queue is bounded in
bytes by those who fill it: they ask ``has_room`` first, and are told when room is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from logd.env import Buffer, ByteStream

SEND_BUFFERS_MAX: Final = 512
"""Buffers handed to one send; the kernel takes 1,024 in one call."""

SEND_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes handed to one send, so that room is reported back in pieces."""


class Outbox:
    """A byte-bounded queue in front of a ``ByteStream``."""

    def __init__(self, bytes_max: int, on_room: Callable[[], None] | None = None) -> None:
        self._bytes_max = bytes_max
        self._on_room = on_room
        self._queue: list[tuple[int, Sequence[Buffer]]] = []
        self._bytes = 0
        self._sender = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._closing = False

    @property
    def has_room(self) -> bool:
        return self._bytes < self._bytes_max

    @property
    def queued_bytes(self) -> int:
        """Bytes not yet taken by the network."""
        return self._bytes

    def push(self, buffers: Sequence[Buffer], size_bytes: int) -> None:
        """Queue buffers; they are not copied and must not change any more."""
        self._queue.append((size_bytes, buffers))
        self._bytes += size_bytes
        self._sender.unpark()

    def clear(self) -> None:
        """Forget what is queued: the connection is gone."""
        self._queue.clear()
        self._bytes = 0

    def finish(self) -> None:
        """Let ``run`` end once all that is queued has been sent."""
        self._closing = True
        self._sender.unpark()

    async def run(self, stream: ByteStream) -> None:
        """Send until cancelled, the connection is lost (``OSError``), or ``finish``."""
        while True:
            if not self._queue:
                if self._closing:
                    return
                await self._sender.park()
                continue
            size, buffers = self._take()
            await stream.send(buffers)
            had_room = self.has_room
            self._bytes -= size
            if not had_room and self.has_room and self._on_room is not None:
                self._on_room()

    def _take(self) -> tuple[int, list[Buffer]]:
        taken: list[Buffer] = []
        size = 0
        count = 0
        for entry_bytes, entry in self._queue:
            if count and (
                len(taken) + len(entry) > SEND_BUFFERS_MAX or size + entry_bytes > SEND_BYTES_MAX
            ):
                break
            taken.extend(entry)
            size += entry_bytes
            count += 1
        del self._queue[:count]
        return size, taken
