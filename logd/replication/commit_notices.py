"""Who tells the followers of a quiet group that what they hold is committed.

Those of a busy one learn it with the next append.  Only readers of followers can tell the
difference, so what is said is said late, for all such groups in one turn, and not at all to those
in which more was committed meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.turn import Turn
    from logd.types import GroupId, Offset

COMMIT_NOTICE_S: Final = 0.005
"""A group in which nothing was committed for about this long is quiet."""


class CommitNotices:
    """The groups of one node whose followers may lack the commit offset."""

    __slots__ = ("_due", "_turn", "_wanted")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._due: dict[GroupId, tuple[Group, Offset]] = {}
        """With the commit offset as it was when they were noted."""
        self._wanted = trio.Event()

    def tell_later(self, group: Group) -> None:
        if group.group_id not in self._due:
            self._due[group.group_id] = (group, group.commit_offset)
            self._wanted.set()

    def forget(self, group_id: GroupId) -> None:
        self._due.pop(group_id, None)

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            if not self._due:
                self._wanted = trio.Event()
                await self._wanted.wait()
            await trio.sleep(COMMIT_NOTICE_S)
            noted, self._due = self._due, {}
            quiet: list[Group] = []
            for group, commit_offset in noted.values():
                if group.commit_offset == commit_offset:
                    quiet.append(group)
                else:
                    self.tell_later(group)
            if quiet:
                with self._turn:
                    for group in quiet:
                        group.feeder.tell_commit()
