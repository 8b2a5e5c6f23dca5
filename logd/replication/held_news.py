"""News that waits for a group's disk, in the order in which it came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

HELD_MESSAGES_MAX: Final = 4096
"""Messages that may wait for a group's disk; beyond it they are dropped, as a network may.
What this node knows by itself (who is alive, what is synced) is never dropped: nobody would
repeat it."""


class HeldNews:
    """What a held group has to be told afterwards."""

    __slots__ = ("_messages", "_steps")

    def __init__(self) -> None:
        self._steps: deque[Callable[[], None]] = deque()
        self._messages = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Callable[[], None]) -> None:
        """Hold what nobody would repeat."""
        self._steps.append(step)

    def add_message(self, step: Callable[[], None]) -> None:
        """Hold a peer's message, if there is room for it."""
        if self._messages >= HELD_MESSAGES_MAX:
            return
        self._messages += 1

        def take_up() -> None:
            self._messages -= 1
            step()

        self._steps.append(take_up)

    def take_up_next(self) -> None:
        """Tell the group what came first."""
        self._steps.popleft()()

    def clear(self) -> None:
        """The group stops: it is told nothing any more."""
        self._steps.clear()
