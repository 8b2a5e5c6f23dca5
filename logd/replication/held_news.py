"""News that waits for a group's disk, in the order in which it came.

A disk that does not answer may hold a group for as long as the broker lives, so all of it has a
bound.  Messages of peers are dropped beyond theirs, as a network may.  Questions are refused beyond
theirs: whoever asked is told.  What this node knows by itself (who is alive, what is synced) is
never dropped, for nobody would repeat it; but the same news again takes the place of what waits
already.  How often a peer came and went does not matter, only what came last.  A group has few
peers, so that is few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import count
from typing import Final

HELD_MESSAGES_MAX: Final = 4096
"""Messages that may wait for a group's disk."""

HELD_QUESTIONS_MAX: Final = 4096
"""Questions that may: also those of which whoever asked has gone meanwhile."""


class HeldNews:
    """What a held group has to be told afterwards."""

    __slots__ = ("_messages", "_numbers", "_questions", "_steps")

    def __init__(self) -> None:
        self._steps: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()
        self._numbers = count()
        self._messages = 0
        self._questions = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, news: Hashable, step: Callable[[], None]) -> None:
        """Hold what nobody would repeat, instead of the same news if that waits already."""
        self._steps[news] = step
        self._steps.move_to_end(news)

    def add_message(self, step: Callable[[], None]) -> None:
        """Hold a peer's message, if there is room for it."""
        if self._messages >= HELD_MESSAGES_MAX:
            return
        self._messages += 1

        def take_up() -> None:
            self._messages -= 1
            step()

        self._steps[next(self._numbers)] = take_up

    def add_question(self, step: Callable[[], None]) -> bool:
        """Hold a question; False if there is no room for it."""
        if self._questions >= HELD_QUESTIONS_MAX:
            return False
        self._questions += 1

        def take_up() -> None:
            self._questions -= 1
            step()

        self._steps[next(self._numbers)] = take_up
        return True

    def take_up_next(self) -> None:
        """Tell the group what came first."""
        _, step = self._steps.popitem(last=False)
        step()

    def clear(self) -> None:
        """The group stops: it is told nothing any more."""
        self._steps.clear()
