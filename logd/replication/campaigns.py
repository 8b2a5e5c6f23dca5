"""When the groups of one node that are due may campaign.

A node that starts, or loses a peer, has hundreds of groups that want a leader at once.  If all
campaigned at once, each election would take as long as all of them together, and so run into its
timeout: others of its group would campaign as well, in the next term, and everything would be
done several times over.  So only a few campaigns of a node are under way, and first those in which
nobody who is alive stands before it in the replica list.  Most of the others need not campaign in
the end, because whoever stands before it has won meanwhile.

Nothing but time depends on any of it.  A campaign that gets nowhere gives its place up soon, so
that groups without a quorum hold nobody up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from logd.replication.group import Group
    from logd.types import GroupId

CAMPAIGNS_MAX: Final = 16
"""Campaigns of one node that are under way at a time: enough to keep disks and cores busy, so few
that each is over well before its timeout."""

PLACE_HELD_MS: Final = 100
"""What is not decided by then goes on, but another may begin."""


class Campaigns:
    """The campaigns of one node's groups that are under way, and those that wait for a place."""

    __slots__ = ("_begin", "_others", "_preferred", "_under_way")

    def __init__(self, begin: Callable[[Group], None]) -> None:
        """
        Args:
            begin: lets a group campaign, if it still wants to.
        """
        self._begin = begin
        self._preferred: dict[GroupId, Group] = {}
        """Groups that wait, of which no live voter stands before this node."""
        self._others: dict[GroupId, Group] = {}
        self._under_way: dict[GroupId, int] = {}
        """Until when each keeps its place."""

    @property
    def are_any(self) -> bool:
        return bool(self._under_way or self._preferred or self._others)

    @property
    def next_place_ms(self) -> int | None:
        """When somebody who waits may begin at the latest; None if nobody waits."""
        if not self._preferred and not self._others:
            return None
        return min(self._under_way.values(), default=None)

    def want(self, groups: Iterable[Group], now_ms: int) -> None:
        """These groups are due, in this order; those that get a place begin."""
        for group in groups:
            self._under_way.pop(group.group_id, None)  # It has failed, and is due again.
            if group.group_id not in self._preferred and group.group_id not in self._others:
                waiting = self._preferred if group.core.is_preferred else self._others
                waiting[group.group_id] = group
        self._begin_next(now_ms)

    def reconsider(self, group: Group, *, is_due: bool) -> bool:
        """There is news of ``group``; says whether a place became free that somebody waits for.

        Args:
            is_due: it is still time for it to campaign.
        """
        if not is_due:
            self._preferred.pop(group.group_id, None)
            self._others.pop(group.group_id, None)
        if group.group_id in self._under_way and not group.core.is_campaigning:
            del self._under_way[group.group_id]
            return bool(self._preferred or self._others)
        return False

    def _begin_next(self, now_ms: int) -> None:
        """Give places that are free to those who wait."""
        for group_id in [g for g, until_ms in self._under_way.items() if until_ms <= now_ms]:
            del self._under_way[group_id]
        while len(self._under_way) < CAMPAIGNS_MAX and (waiting := self._preferred or self._others):
            group_id = next(iter(waiting))
            group = waiting.pop(group_id)
            self._begin(group)
            if group.core.is_campaigning:
                self._under_way[group_id] = now_ms + PLACE_HELD_MS
