"""The time that a leader gives to commands: what was committed last, and what has passed since.

Log time is what the state machine goes by, and comes from committed commands alone.  A leader
adds what its monotonic clock has shown since it began to lead; no wall clock can make it jump.
"""

from __future__ import annotations

from typing import Final

TIME_KEPT_MS: Final = 10_000
"""While something is to become due, log time is committed at least so often: what the clock
showed since the last commit is lost with a leader."""

REFUSED_FOR_MS: Final = 500
"""A commit that was refused, for want of room perhaps, is not tried again before."""


class LogTime:
    """That of one partition.  Times are in milliseconds; ``now_ms`` is of a monotonic clock."""

    def __init__(self) -> None:
        self._base_ms = 0
        self._last_ms = 0
        self._refused_until_ms = 0
        self.is_advancing = False
        """A command that does nothing but commit it is under way."""

    def begin(self, committed_ms: int, now_ms: int) -> None:
        """This broker begins to lead."""
        self._last_ms = committed_ms
        self._base_ms = committed_ms - now_ms
        self._refused_until_ms = now_ms
        self.is_advancing = False

    def at(self, now_ms: int) -> int:
        """Log time now: never behind what a command was given."""
        return max(self._base_ms + now_ms, self._last_ms)

    def note(self, time_ms: int) -> None:
        """A command is proposed with ``time_ms``."""
        self._last_ms = time_ms

    def put_off(self, now_ms: int) -> None:
        """The command that was to commit it was refused."""
        self._refused_until_ms = now_ms + REFUSED_FOR_MS

    def commit_in_ms(self, due_ms: int | None, committed_ms: int, now_ms: int) -> int | None:
        """When it is to be committed, if something is due at ``due_ms``; None: never, or it is
        under way."""
        if due_ms is None or self.is_advancing:
            return None
        in_ms = min(due_ms, committed_ms + TIME_KEPT_MS) - self.at(now_ms)
        return max(in_ms, self._refused_until_ms - now_ms)
