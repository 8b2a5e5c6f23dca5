"""What lies in the page cache of a log's active file, and is left to others once it is synced.

A follower's log is written and hardly read; the memory that it takes is better used by the logs
that are led (docs/adr/0020).  The system is asked to forget in pieces: small ones would cost a call
for each sync, and a large one holds up the event loop.
"""

from __future__ import annotations

from typing import Final

from logd.env import File
from logd.limits import MIB
from logd.storage.segment import FIRST_POSITION
from logd.types import FilePosition

FORGOTTEN_BYTES_MIN: Final = 4 * MIB
"""The page cache is asked to forget so much at a time: a quarter of a millisecond."""

FORGOTTEN_BYTES_MAX: Final = 16 * MIB
"""Nor more than this, on the event loop: of a log that was led until now much is there."""

FORGOTTEN_AGAIN_BYTES: Final = 2 * MIB
"""A system that keeps pages in larger pieces forgets those that were named whole: the one that
the last request ended in is named again."""


class CachedBehind:
    """How far the page cache was asked to forget one log's active file."""

    __slots__ = ("_forgotten",)

    def __init__(self) -> None:
        self._forgotten = FIRST_POSITION

    def forget_below(self, file: File, position: int) -> None:
        """Have what lies below ``position`` forgotten, if that is much by now."""
        if position >= self._forgotten + FORGOTTEN_BYTES_MIN:
            self._forget(file, min(position, self._forgotten + FORGOTTEN_BYTES_MAX))
        elif position < self._forgotten:
            self._forgotten = FilePosition(max(FIRST_POSITION, position))  # The log was cut.

    def leave(self, file: File, end: FilePosition) -> None:
        """The file is sealed, and another one begun: what is left of it goes too, if any went."""
        if self._forgotten > FIRST_POSITION:
            self._forget(file, end)
        self._forgotten = FIRST_POSITION

    def _forget(self, file: File, position: int) -> None:
        file.forget_cached(max(0, self._forgotten - FORGOTTEN_AGAIN_BYTES), position)
        self._forgotten = FilePosition(position)
