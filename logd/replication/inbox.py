"""Frames as they come in on one connection, each in bounded time."""

from __future__ import annotations

from collections.abc import Callable

import trio

from logd.env import ByteStream
from logd.wire.frame import Frame, FrameDecoder


async def next_frame(
    stream: ByteStream,
    decoder: FrameDecoder,
    timeout_s: float,
    on_bytes: Callable[[], None] | None = None,
) -> Frame | None:
    """The next frame; None when the stream has ended, perhaps within one: the decoder knows.

    One that has begun must arrive whole in time: a byte now and then is no progress.  Between
    two frames it may be quiet for ever.

    Args:
        on_bytes: called when something was received.

    Raises:
        trio.TooSlowError: a frame did not become whole within ``timeout_s``.
        LogdError: these bytes are no frame.
    """
    deadline: float | None = None
    while (frame := decoder.next_frame()) is None:
        if decoder.pending_bytes:
            if deadline is None:
                deadline = trio.current_time() + timeout_s
            with trio.fail_at(deadline):
                received = await stream.receive_into(decoder.writable())
        else:
            received = await stream.receive_into(decoder.writable())
        if received == 0:
            return None
        decoder.received(received)
        if on_bytes is not None:
            on_bytes()
    return frame
