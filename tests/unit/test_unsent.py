"""What is left of several buffers when the network has taken some of their bytes."""

from __future__ import annotations

import pytest

from logd.types import Buffer
from logd.wire.unsent import unsent


@pytest.mark.parametrize("sent", range(7))
def test_what_was_not_sent_is_what_is_left(sent: int) -> None:
    buffers: list[Buffer] = [b"abc", b"", bytearray(b"de"), memoryview(b"f")]

    assert b"".join(unsent(buffers, sent)) == b"abcdef"[sent:]


def test_what_was_not_sent_is_not_copied() -> None:
    big = bytearray(b"0123456789")

    (rest,) = unsent([big], 4)
    big[4] = ord("x")

    assert bytes(rest) == b"x56789"
