"""Frames as they come in on one connection, each in bounded time.

What arrives is handed over by the network (``env.Receiver``) and taken there and then, without
a task: a task switch for each frame costs more than most frames do.  The task that runs an inbox
sleeps, and goes on when the ordinary is over: the connection has ended, whoever takes the frames
has no room, or a frame has begun and does not become whole.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from logd.env import ByteStream
from logd.errors import LogdError
from logd.replication.turn import Turn
from logd.wire.frame import Frame, FrameDecoder


async def first_frame(stream: ByteStream, decoder: FrameDecoder) -> Frame | None:
    """The first frame of a connection; None if that ended before, perhaps within one."""
    while (frame := decoder.next_frame()) is None:
        count = await stream.receive_into(decoder.writable())
        if count == 0:
            return None
        decoder.received(count)
    return frame


class Inbox:
    """Takes the frames of one stream.  The decoder may hold some already."""

    def __init__(
        self,
        stream: ByteStream,
        decoder: FrameDecoder,
        turn: Turn,
        *,
        timeout_s: float,
        take: Callable[[Frame], bool],
        room: Callable[[], Awaitable[None]] | None = None,
        on_bytes: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            turn: open whenever a frame is taken.
            timeout_s: in which a frame that has begun must arrive whole: a byte now and then is
                no progress.  Between two frames it may be quiet for ever.
            take: takes a frame; False if there is no room for another one.  May raise
                ``LogdError``, which ends the inbox.
            room: waits until there is, also for a large frame that may not begin yet.
            on_bytes: called when something was received.
        """
        self._stream = stream
        self._decoder = decoder
        self._turn = turn
        self._timeout_s = timeout_s
        self._take = take
        self._room = room
        self._on_bytes = on_bytes
        self._is_full = False
        self._has_ended = False
        self._failure: OSError | LogdError | None = None
        self._deadline: float | None = None
        """For the frame that has begun."""
        self._is_watched = False
        """The task wakes by itself, at the deadline there was when it fell asleep."""
        self._sleeper = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Take frames until the stream has ended, perhaps within one: the decoder knows.

        Raises:
            trio.TooSlowError: a frame did not become whole in time.
            LogdError: these bytes are no frame, or ``take`` refused it.
            OSError: the connection is lost.
        """
        while True:
            with self._turn:
                self._take_whole()
            if not self._is_over:
                self._stream.start_receiving(self)
                try:
                    await self._sleep()
                finally:
                    self._stream.stop_receiving()
            if self._failure is not None:
                raise self._failure
            if self._has_ended:
                return
            if self._room is not None:
                await self._room()
            self._is_full = False

    @property
    def _is_over(self) -> bool:
        """The task has something to do."""
        return self._is_full or self._has_ended or self._failure is not None

    async def _sleep(self) -> None:
        while not self._is_over:
            deadline = self._deadline
            self._is_watched = deadline is not None
            with trio.move_on_at(math.inf if deadline is None else deadline):
                await self._sleeper.park()
            if self._is_late(trio.current_time()):
                raise trio.TooSlowError

    def _is_late(self, now: float) -> bool:
        return not self._is_over and self._deadline is not None and self._deadline <= now

    def cut(self, error: LogdError) -> None:
        """End with ``error``, for a reason that lies outside."""
        self._failure = error
        self._stream.stop_receiving()
        self._sleeper.unpark()

    # --- called by the network (Receiver) -------------------------------------------------------

    def writable(self) -> memoryview:
        return self._decoder.writable()

    def received(self, count: int) -> None:
        self._decoder.received(count)
        if self._on_bytes is not None:
            self._on_bytes()
        self._take_whole()
        if self._is_over:
            self._stream.stop_receiving()
            self._sleeper.unpark()

    def ended(self, error: OSError | None) -> None:
        self._failure = error
        self._has_ended = True
        self._sleeper.unpark()

    def _take_whole(self) -> None:
        """Take the frames that are whole."""
        decoder, take = self._decoder, self._take
        try:
            while (frame := decoder.next_frame()) is not None:
                self._deadline = None
                if not take(frame):
                    self._is_full = True
                    return
        except LogdError as error:
            self._failure = error
            return
        if not decoder.pending_bytes:
            self._deadline = None
        elif decoder.awaits_room:
            self._is_full = True
            self._deadline = None  # It is not the sender who keeps it waiting.
        elif self._deadline is None:
            self._deadline = trio.current_time() + self._timeout_s
            if not self._is_watched:
                self._sleeper.unpark()
