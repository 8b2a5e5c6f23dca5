"""Tell a person who waits what stands in the way, and give up when it stays there.

The client repeats what fails until it succeeds, which is right for a leader that is being
replaced and looks like a hang when, say, the address that a broker advertises cannot be
reached from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import anyio

from logd.errors import LogdError

TOLD_AFTER_S: Final = 2.0
"""Longer than an election takes: those pass unmentioned."""

GIVEN_UP_AFTER_S: Final = 5.0
"""While nothing has been reached at all."""

POLL_S: Final = 0.25


class Client(Protocol):
    """A producer or a consumer."""

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way just now."""


async def watch(
    client: Client, *, say: Callable[[str], None], has_begun: Callable[[], bool], gives_up: bool
) -> None:
    """Watch until cancelled.

    Args:
        say: tells a person.
        has_begun: whether anything was appended or read; then what stands in the way is
            taken to be passing, and the client's own deadlines decide.
        gives_up: whether to end the command otherwise.

    Raises:
        LogdError: the trouble, when it has stayed.
    """
    since: float | None = None
    is_told = is_over = False
    while True:
        trouble = client.trouble
        if trouble is None and is_told and not is_over:
            is_over = True  # Or just between two attempts, or about to fail for good.
        elif trouble is None:
            if is_told:
                say("logd: going on")
            since, is_told = None, False
        else:
            is_over = False
            now = anyio.current_time()
            since = now if since is None else since
            if gives_up and not has_begun() and now >= since + GIVEN_UP_AFTER_S:
                raise trouble
            if not is_told and now >= since + TOLD_AFTER_S:
                say(f"logd: waiting: {trouble}")
                is_told = True
        await anyio.sleep(POLL_S)
