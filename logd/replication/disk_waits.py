"""Groups that wait for a disk that does not answer.

Nothing ends a call to such a disk.  What can be done is to say so, once, and to have another
replica lead where this one could append nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import structlog

from logd.limits import DISK_PATIENCE_S
from logd.raft.quorum import is_quorum
from logd.replication import log_events

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.types import NodeId

log = structlog.get_logger(__name__)


class DiskWaits:
    """The groups of one node that wait for their disk, or did a moment ago."""

    __slots__ = ("_is_up", "_node", "_was_told")

    def __init__(self, node: NodeId, is_up: Callable[[NodeId], bool]) -> None:
        self._node = node
        self._is_up = is_up
        self._was_told: dict[Group, bool] = {}
        """Whether it was said that they do."""

    def note_held(self, group: Group) -> None:
        """``group`` is held, and what holds it may take long."""
        self._was_told[group] = False

    def look(self, syncing: Iterable[Group]) -> None:
        """Do something about those that have waited for too long.

        Args:
            syncing: the groups whose logs are being synced: these need not be held to wait.
        """
        for group in syncing:
            if group.disk_wait_s >= DISK_PATIENCE_S:
                self._was_told.setdefault(group, False)
        for group, was_told in list(self._was_told.items()):
            waited_s = group.disk_wait_s
            if group.failure is not None or not (group.is_held or waited_s):
                del self._was_told[group]
            elif waited_s >= DISK_PATIENCE_S:
                if not was_told:
                    self._was_told[group] = True
                    log.error(log_events.GROUP_HELD, group=group.group_id, seconds=int(waited_s))
                if self._can_spare_this_node(group):
                    group.step_aside()

    def _can_spare_this_node(self, group: Group) -> bool:
        """Whether it leads, and the other voters can go on at once."""
        return is_quorum(
            group.configuration,
            lambda voter: (
                voter != self._node and self._is_up(voter) and group.feeder.is_in_sync(voter)
            ),
        )
