"""The state of one replica of the coordination log as it is kept on the disk, now and then.

What lies in the log below the state before it is dropped: one state's worth of commands is left
to those who lag, who then need no snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from logd.broker import log_events
from logd.coordination.state import CoordinationState
from logd.limits import COORDINATION_BYTES_PER_SNAPSHOT, COORDINATION_COMMANDS_PER_SNAPSHOT
from logd.types import Offset

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.node import Node

log = structlog.get_logger(__name__)


class KeptState:
    """When it is to be kept again, and how."""

    def __init__(self, group: Group, node: Node, trash_path: str) -> None:
        self._group = group
        self._node = node
        self._trash_path = trash_path
        self._offset = Offset(0)
        self._size_bytes = 0
        self._commands_since = 0
        self._bytes_since = 0

    def count(self, commands: int, size_bytes: int) -> None:
        """So much was applied."""
        self._commands_since += commands
        self._bytes_since += size_bytes

    @property
    def is_due(self) -> bool:
        """Often enough that a start is quick; not so often that keeping it is the main work."""
        return self._bytes_since >= COORDINATION_BYTES_PER_SNAPSHOT or (
            self._commands_since >= COORDINATION_COMMANDS_PER_SNAPSHOT
            and self._bytes_since >= self._size_bytes
        )

    def begin_at(self, offset: Offset, size_bytes: int) -> None:
        """The replica goes on from a state that is kept, up to ``offset``."""
        self._offset = offset
        self._size_bytes = size_bytes
        self._commands_since = self._bytes_since = 0

    async def save(self, state: CoordinationState, offset: Offset) -> None:
        """Keep ``state`` as it is now, at ``offset``, and drop the log below the one before."""
        group = self._group
        tail_start = self._offset
        self._commands_since = self._bytes_since = 0
        parts = state.freeze().parts()
        payload = await self._node.env.run_computing(lambda: b"".join(parts))
        self._size_bytes = len(payload)
        await group.checkpoints.save_application(offset, payload)
        self._offset = max(self._offset, offset)
        if await group.upkeep.trim_behind_state(tail_start, self._trash_path):
            start = group.log.start_offset
            log.info(log_events.COORDINATION_TRIMMED, partition=group.name, start=start)
