"""How long a hole that nobody could fill is left alone before it is looked for again.

Looking means to read a whole log and to ask every peer.  Right after a failure that is worth
it: a peer may be restarting.  Later it seldom is, so the wait doubles up to a minute's half.  A
peer that comes up may be the one that has what is missing: then nobody waits any longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from logd.types import GroupId

WAIT_S_MIN: Final = 0.5
WAIT_S_MAX: Final = 30.0

assert WAIT_S_MIN < WAIT_S_MAX


class Patience:
    """Of one node, for each of its groups that has a hole."""

    def __init__(self) -> None:
        self._waits_s: dict[GroupId, float] = {}
        self._resting: dict[GroupId, None] = {}
        self._hope = trio.Event()

    def is_resting(self, group_id: GroupId) -> bool:
        return group_id in self._resting

    async def rest(self, group_id: GroupId) -> None:
        """Wait before the next attempt: longer each time, until there is hope."""
        wait_s = self._waits_s.get(group_id, WAIT_S_MIN)
        self._waits_s[group_id] = min(2 * wait_s, WAIT_S_MAX)
        self._resting[group_id] = None
        try:
            with trio.move_on_after(wait_s):
                await self._hope.wait()
        finally:
            del self._resting[group_id]

    def restore(self, group_id: GroupId) -> None:
        """An attempt has helped: the next one need not wait for long."""
        self._waits_s.pop(group_id, None)

    def hope(self) -> None:
        """Somebody has come who may be able to help."""
        self._waits_s.clear()
        hope, self._hope = self._hope, trio.Event()
        hope.set()
