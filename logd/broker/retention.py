"""Keeps every replica on this broker within what its topic says.

A round now and then over the partitions whose topics limit anything, and a look at once at
those that have begun a new segment, so that a size is kept to whatever the rate.  What is
removed goes into the trash first, by a rename.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from logd.replication.trimming import Trimmer
from logd.storage.retention import RetentionPolicy

if TYPE_CHECKING:
    from logd.metadata.topic_config import TopicOptions
    from logd.replication.group import Group
    from logd.replication.node import Node
    from logd.storage.directory import DataDirectory
    from logd.types import GroupId


class Retention:
    """Retention on one broker."""

    def __init__(self, node: Node, directory: DataDirectory, interval_ms: int) -> None:
        self._node = node
        self._directory = directory
        self._interval_s = interval_ms / 1000
        self._policies: dict[GroupId, RetentionPolicy] = {}
        self._trimmers: dict[GroupId, tuple[Group, Trimmer]] = {}
        self._rolled: dict[GroupId, None] = {}
        self._has_rolled = trio.Event()
        node.on_segment_rolled = self._on_segment_rolled

    def set_policy(self, group: Group, options: TopicOptions) -> None:
        """From the next round on ``options`` hold for ``group``."""
        self._policies[group.group_id] = RetentionPolicy(
            age_ms=options.retention_ms,
            bytes_max=options.retention_bytes,
            segment_age_ms=options.segment_age_ms,
        )

    async def run(self) -> None:
        """Do rounds until cancelled; in between look after whoever has begun a new segment."""
        while True:
            next_round = trio.current_time() + self._interval_s
            for group_id in list(self._policies):
                await self._apply(group_id)
            while trio.current_time() < next_round:
                with trio.move_on_at(next_round):
                    await self._has_rolled.wait()
                self._has_rolled = trio.Event()
                rolled, self._rolled = self._rolled, {}
                for group_id in rolled:
                    await self._apply(group_id)

    def _on_segment_rolled(self, group: Group) -> None:
        policy = self._policies.get(group.group_id)
        if policy is not None and policy.bytes_max is not None:
            self._rolled[group.group_id] = None
            self._has_rolled.set()

    async def _apply(self, group_id: GroupId) -> None:
        group = self._node.groups.get(group_id)
        if group is None:
            self._policies.pop(group_id, None)
            self._trimmers.pop(group_id, None)
        elif group.failure is None and group_id in self._policies:
            known = self._trimmers.get(group_id)
            if known is None or known[0] is not group:
                known = self._trimmers[group_id] = (group, Trimmer(group, self._node))
            await known[1].apply(self._policies[group_id], self._directory.trash_path)
