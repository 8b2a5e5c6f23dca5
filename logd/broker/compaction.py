"""Compacts the logs of this broker's compacted topics, one at a time.

One at a time, because it costs a processor and the disk: a broker has better to do, and
nothing is urgent about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from logd.replication.compacting import CompactionPolicy, LogCompactor

if TYPE_CHECKING:
    from logd.config import BrokerConfig
    from logd.metadata.topic_config import TopicOptions
    from logd.replication.group import Group
    from logd.replication.node import Node
    from logd.storage.directory import DataDirectory
    from logd.types import GroupId


class Compaction:
    """Compaction on one broker."""

    def __init__(self, config: BrokerConfig, node: Node, directory: DataDirectory) -> None:
        self._config = config
        self._node = node
        self._directory = directory
        self._policies: dict[GroupId, CompactionPolicy] = {}
        self._compactors: dict[GroupId, tuple[Group, LogCompactor]] = {}

    def set_policy(self, group: Group, options: TopicOptions) -> None:
        """From the next round on ``options`` hold for ``group``."""
        if not options.is_compacted:
            self._forget(group.group_id)
            return
        self._policies[group.group_id] = CompactionPolicy(
            tombstone_ms=options.tombstone_ms,
            segment_bytes=options.segment_bytes_of(self._config.segment_bytes),
            bytes_per_s=self._config.compaction_bytes_per_s,
            free_bytes_min=self._config.disk_free_bytes_min,
        )

    async def run(self) -> None:
        """Do rounds until cancelled."""
        while True:
            await trio.sleep(self._config.retention_interval_ms / 1000)
            for group_id, policy in list(self._policies.items()):
                group = self._node.groups.get(group_id)
                if group is None:
                    self._forget(group_id)
                elif group.failure is None:
                    await self._compactor(group).apply(policy, self._directory.trash_path)

    def _compactor(self, group: Group) -> LogCompactor:
        known = self._compactors.get(group.group_id)
        if known is None or known[0] is not group:
            compactor = LogCompactor(group, self._node, self._node.questions.settled_elsewhere)
            known = self._compactors[group.group_id] = (group, compactor)
        return known[1]

    def _forget(self, group_id: GroupId) -> None:
        self._policies.pop(group_id, None)
        self._compactors.pop(group_id, None)
