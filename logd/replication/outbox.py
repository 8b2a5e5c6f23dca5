"""Bytes waiting to be sent on one connection.

What is queued in a turn leaves when the turn ends, as far as the network takes it at once.
The rest, and what is queued outside a turn, is sent by a task.  Everything queued while it
is sending goes out with the next send: frames coalesce by themselves under load, and a
single frame leaves at once when idle.  The queue is bounded in
bytes by those who fill it: they ask ``has_room`` first, and are told when room is back.

Outboxes of one kind may share a bound (``Shared``): each may hold as much as fits it while all
together hold little, and next to nothing while they hold much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import trio

from logd.env import Buffer, ByteStream
from logd.replication.turn import Turn

SEND_BUFFERS_MAX: Final = 512
"""Buffers handed to one send; the kernel takes 1,024 in one call."""

SEND_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes handed to one send, so that room is reported back in pieces."""

SMALL_BODY_BYTES: Final = 2_048


def frame_buffers(head: bytes, body: bytes) -> tuple[bytes, ...]:
    """A frame to be queued: a small body is copied behind its head, one buffer in place of two."""
    return (head + body,) if len(body) <= SMALL_BODY_BYTES else (head, body)


class Shared:
    """What several outboxes hold together."""

    __slots__ = ("bytes", "bytes_awaited", "bytes_much", "freed")

    def __init__(self, bytes_much: float = math.inf) -> None:
        self.bytes = 0
        self.bytes_much = bytes_much
        """From here on each may hold next to nothing."""
        self.bytes_awaited = 0
        """Whoever waits in ``freed`` wants them to hold less than this."""
        self.freed = trio.lowlevel.ParkingLot()

    @property
    def is_much(self) -> bool:
        return self.bytes >= self.bytes_much

    def less(self, count: int) -> None:
        """So many bytes are not held any more."""
        self.bytes -= count
        if self.bytes < self.bytes_awaited:
            self.freed.unpark()


class Outbox:
    """A byte-bounded queue in front of a ``ByteStream``."""

    def __init__(
        self,
        bytes_max: int,
        turn: Turn,
        on_room: Callable[[], None] | None = None,
        *,
        shared: Shared | None = None,
        bytes_free: int | None = None,
    ) -> None:
        """
        Args:
            shared: what this outbox holds counts there as well.
            bytes_free: what it may hold while they hold much together.
        """
        self._bytes_max = bytes_max
        self._bytes_free = bytes_max if bytes_free is None else min(bytes_free, bytes_max)
        self._shared = Shared() if shared is None else shared
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
        self.sending_since_s: float | None = None
        """Since when it has been waiting for the network to take what it was given, if it is."""

    @property
    def has_room(self) -> bool:
        return self._bytes < self._bytes_free or self._bytes < self.bytes_allowed

    @property
    def bytes_allowed(self) -> int:
        """What it may hold at present."""
        return self._bytes_free if self._shared.is_much else self._bytes_max

    @property
    def queued_bytes(self) -> int:
        """Bytes not yet taken by the network."""
        return self._bytes

    def push(self, buffers: Sequence[Buffer], size_bytes: int) -> None:
        """Queue buffers; they are not copied and must not change any more."""
        is_first = not self._queue
        self._queue.append((size_bytes, buffers))
        self._bytes += size_bytes
        self._shared.bytes += size_bytes
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
        self._shared.less(self._bytes)
        self._bytes = 0

    def stop_sharing(self) -> None:
        """Count for itself from now on: the connection ends, and what it holds with it."""
        self._shared.less(self._bytes)
        self._shared = Shared()
        self._shared.bytes = self._bytes
        self.sending_since_s = None

    async def run(self, stream: ByteStream) -> None:
        """Send until cancelled.

        Raises:
            OSError: the connection is lost.
        """
        self._stream = stream
        try:
            while True:
                if self._unsent is not None:
                    (size, buffers), self._unsent = self._unsent, None
                elif self._queue:
                    size, buffers = self._take()
                else:
                    await self._sender.park()
                    continue
                self._is_sending = True
                self.sending_since_s = trio.current_time()
                await stream.send(buffers)
                self._is_sending = False
                self.sending_since_s = None
                self._sent(size)
        finally:
            self._stream = None
            self._is_sending = False
            self.sending_since_s = None

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
        held = self._bytes
        self._bytes = held - size
        self._shared.less(size)
        # There may have been room before, too: that depends on what the others held then.
        if held >= self._bytes_free and self._on_room is not None and self.has_room:
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
