"""Bytes waiting to be sent on one connection.

What is queued in a turn leaves when the turn ends, as far as the network takes it at once.
The rest, and what is queued outside a turn, is sent by a task.  Everything queued while it
is sending goes out with the next send: frames coalesce by themselves under load, and a
single frame leaves at once when idle.  The queue is bounded in
bytes by those who fill it: they ask ``has_room`` first, and are told when room is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from logd.env import Buffer, ByteStream
from logd.replication.turn import Turn

SEND_BUFFERS_MAX: Final = 512
"""Buffers handed to one send; the kernel takes 1,024 in one call."""

SEND_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes handed to one send, so that room is reported back in pieces."""


class Outbox:
    """A byte-bounded queue in front of a ``ByteStream``."""

    def __init__(
        self, bytes_max: int, turn: Turn, on_room: Callable[[], None] | None = None
    ) -> None:
        self._bytes_max = bytes_max
        self._turn = turn
        self._on_room = on_room
        self._queue: list[tuple[int, Sequence[Buffer]]] = []
        self._bytes = 0
        self._stream: ByteStream | None = None
        """Where to; None unless ``run`` is under way."""
        self._is_sending = False
        self._unsent: tuple[int, Sequence[Buffer]] | None = None
        """What the network did not take at once."""
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
        is_first = not self._queue
        self._queue.append((size_bytes, buffers))
        self._bytes += size_bytes
        if not is_first:
            return  # Whoever takes the first takes this one too.
        if self._turn.is_open:
            self._turn.note(self)
        else:
            self._sender.unpark()

    def clear(self) -> None:
        """Forget what is queued: the connection is gone."""
        self._queue.clear()
        self._unsent = None
        self._bytes = 0

    def finish(self) -> None:
        """Let ``run`` end once all that is queued has been sent."""
        self._closing = True
        self._sender.unpark()

    async def run(self, stream: ByteStream) -> None:
        """Send until cancelled, the connection is lost (``OSError``), or ``finish``."""
        self._stream = stream
        try:
            while True:
                if self._unsent is not None:
                    (size, buffers), self._unsent = self._unsent, None
                elif self._queue:
                    size, buffers = self._take()
                elif self._closing:
                    return
                else:
                    await self._sender.park()
                    continue
                self._is_sending = True
                await stream.send(buffers)
                self._is_sending = False
                self._sent(size)
        finally:
            self._stream = None
            self._is_sending = False

    def depart(self) -> None:
        """Send what is queued without waiting; leave the rest to ``run``.  Ends a turn."""
        stream = self._stream
        if stream is None or self._is_sending or self._unsent is not None:
            return  # The task takes it, with what it has or when there is a connection.
        while self._queue:
            size, buffers = self._take()
            try:
                unsent = stream.send_nowait(buffers)
            except OSError:
                unsent = buffers  # ``run`` meets the same error, and it is the one to tell.
            if unsent:
                self._unsent = size, unsent
                self._sender.unpark()
                return
            self._sent(size)

    def _sent(self, size: int) -> None:
        had_room = self.has_room
        self._bytes -= size
        if not had_room and self.has_room and self._on_room is not None:
            self._on_room()

    def _take(self) -> tuple[int, Sequence[Buffer]]:
        if len(self._queue) == 1:
            return self._queue.pop()
        if self._bytes <= SEND_BYTES_MAX:
            taken = [buffer for _, entry in self._queue for buffer in entry]
            if len(taken) <= SEND_BUFFERS_MAX:
                self._queue.clear()
                return self._bytes, taken
        taken = []
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
