"""What the network did not take of what it was handed."""

from __future__ import annotations

from collections.abc import Sequence

from logd.types import Buffer


def unsent(buffers: Sequence[Buffer], sent: int) -> Sequence[Buffer]:
    """What is left of ``buffers`` after ``sent`` bytes; nothing is copied."""
    if sent == sum(map(len, buffers)):
        return ()
    for position, buffer in enumerate(buffers):
        if sent < len(buffer):
            return (memoryview(buffer)[sent:], *buffers[position + 1 :])
        sent -= len(buffer)
    assert sent == 0
    return ()
