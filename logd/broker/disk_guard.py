"""Refuses records before the disk is full, and takes them again when there is space.

What is left then is for the logs of metadata and coordination, which are trimmed behind the state
that they feed, and by which room is made: votes, deletions and releases go on, and so do reads.
Producers are refused, and leaders elsewhere, who are told, send no records as long as there is a
majority without this node (``replication/feeding.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.errors import DiskFullError
from logd.limits import BATCH_BYTES_MAX, MIB

if TYPE_CHECKING:
    from logd.env import Env
    from logd.replication.node import Node

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S: Final = 0.5
RESUME_FACTOR: Final = 1.25
"""Appends go on when this much more than the minimum is free: no flapping at the edge."""

RESUME_BYTES_MIN: Final = 2 * BATCH_BYTES_MAX
"""And when so much is free: a log has found no room, where the minimum is less."""


class DiskGuard:
    """Watches the free space of the data directory's disk."""

    def __init__(self, env: Env, path: str, free_bytes_min: int, node: Node) -> None:
        self._env = env
        self._node = node
        self._path = path
        self._free_bytes_min = free_bytes_min
        self._free_bytes = 0
        self._was_full = False
        """As was told last."""

    @property
    def is_full(self) -> bool:
        """Too little was left when it was looked at last, or a log has found no room since."""
        return self._node.node in self._node.fitness.full_disks

    @property
    def _resume_bytes(self) -> int:
        return max(int(self._free_bytes_min * RESUME_FACTOR), RESUME_BYTES_MIN)

    @property
    def free_bytes(self) -> int:
        """As of the last look, at least 1; 0 before the first.

        Of 0 whoever makes a plan concludes that nothing is known, and not that nothing fits.
        """
        return self._free_bytes

    @property
    def room_bytes(self) -> int:
        """What may be filled before appends are refused; at least 1, and 0, as above."""
        return self._free_bytes and max(1, self._free_bytes - self._free_bytes_min)

    def check(self) -> None:
        """Raise DiskFullError while appends are refused."""
        if self.is_full:
            raise DiskFullError(
                f"{self._free_bytes // MIB} MiB are free on the disk of {self._path}, appends "
                f"need {self._resume_bytes // MIB} MiB: free some space"
            )

    async def run(self) -> None:
        """Look again and again until cancelled; also if nothing is refused, for those who ask."""
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            await self.look()

    async def look(self) -> None:
        """See what is free.  Where that cannot be told, what was found last goes on to hold: the
        logs notice a dead disk by themselves."""
        try:
            free_bytes = await self._env.run_blocking(self._env.files.free_bytes, self._path)
        except OSError as error:
            log.error(log_events.DISK_SPACE_UNKNOWN, path=self._path, reason=str(error))
            return
        self._free_bytes = max(1, free_bytes)
        is_full = free_bytes < (self._resume_bytes if self.is_full else self._free_bytes_min)
        if is_full != self._was_full:
            event = log_events.DISK_FULL if is_full else log_events.DISK_USABLE_AGAIN
            log.warning(event, path=self._path, free_bytes=free_bytes)
        self._was_full = is_full
        self._node.fitness.note_disk(self._node.node, is_full=is_full)
