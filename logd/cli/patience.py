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

STUCK_AFTER_S: Final = 30.0
"""Without any progress after there was some: as long as ``produce`` waits to be taken from."""

POLL_S: Final = 0.25


class Client(Protocol):
    """A producer or a consumer."""

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way just now."""


async def watch(
    client: Client,
    *,
    say: Callable[[str], None],
    progress: Callable[[], int],
    gives_up: bool,
    stuck_after_s: float | None = None,
) -> None:
    """Watch until cancelled.

    Args:
        say: tells a person.
        progress: how much was appended or read.
        gives_up: whether to end the command where nothing has been, for long.
        stuck_after_s: end it also where something has been, and for so long nothing more while
            something stood in the way; None: the client's own deadlines decide then.

    Raises:
        LogdError: the trouble, when it has stayed.
    """
    since: float | None = None
    is_told = is_over = False
    done = progress()
    moved_at = anyio.current_time()
    while True:
        trouble = client.trouble
        if (now_done := progress()) != done:
            done, moved_at = now_done, anyio.current_time()  # Some partition gets on.
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
            patience_s = stuck_after_s if done else GIVEN_UP_AFTER_S
            if gives_up and patience_s is not None and now >= max(since, moved_at) + patience_s:
                raise trouble
            if not is_told and now >= since + TOLD_AFTER_S:
                say(f"logd: waiting: {trouble}")
                is_told = True
        await anyio.sleep(POLL_S)
