"""The deadlines of all groups, and the one task that waits for them.

Most groups have none: an idle partition costs nothing per tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from logd.replication.group import Group

NEVER_MS: Final = 2**62


class GroupTimers:
    """Calls back when the deadlines of some groups have come."""

    def __init__(
        self, now_ms: Callable[[], int], on_due: Callable[[list[Group]], int | None]
    ) -> None:
        """
        Args:
            on_due: takes those that are due, longest first, be it none; says when it wants to be
                called again, whether or not a group is due by then.
        """
        self._now_ms = now_ms
        self._on_due = on_due
        self._deadlines: dict[int, tuple[int, Group]] = {}
        self._wake_ms = NEVER_MS
        self._changed = trio.Event()

    def set(self, group: Group, deadline_ms: int | None) -> None:
        """Replace the group's deadline; None removes it."""
        if deadline_ms is None:
            self._deadlines.pop(group.group_id, None)
            return
        self._deadlines[group.group_id] = (deadline_ms, group)
        if deadline_ms < self._wake_ms:
            self._wake_ms = deadline_ms
            self._changed.set()

    def look_again(self) -> None:
        """Call back soon, whatever is due."""
        self._changed.set()

    async def run(self) -> None:
        """Wait for deadlines until cancelled.

        The wake-up is never later than the earliest deadline; when a deadline was moved
        back it is merely too early, and finds nothing due.
        """
        while True:
            now_ms = self._now_ms()
            due = [(at, group) for at, group in self._deadlines.values() if at <= now_ms]
            due.sort(key=lambda entry: entry[0])
            for _, group in due:
                self._deadlines.pop(group.group_id, None)
            self._changed = trio.Event()
            again_ms = self._on_due([group for _, group in due])
            self._wake_ms = min((at for at, _ in self._deadlines.values()), default=NEVER_MS)
            if again_ms is not None:
                self._wake_ms = min(self._wake_ms, again_ms)
            with trio.move_on_after(max(0, self._wake_ms - self._now_ms()) / 1000):
                await self._changed.wait()
