"""A leader ships state to a follower that needs batches it has trimmed.

The core names such a follower with each probe that the follower refuses, so nothing here is
retried or remembered: what was lost on the way is asked for again.  Chunks wait for room on the
bulk lane, behind which votes and appends do not stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.errors import LogdError, StorageError
from logd.limits import SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES
from logd.replication import log_events
from logd.replication.peer_protocol import SnapshotChunk
from logd.replication.snapshot import Snapshot, checksum_of, encode_snapshot
from logd.types import NodeId

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost

log = structlog.get_logger(__name__)

ROOM_INTERVAL_S: Final = 0.01
ROOM_ATTEMPTS: Final = 500
SHIP_AGAIN_S: Final = 1.0
"""What was sent is given so long to be installed before the same follower is sent it again."""


class Shipper:
    """Ships one group's state, to each follower once at a time."""

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._host = host
        self._under_way: dict[NodeId, None] = {}

    def ship_soon(self, follower: NodeId) -> None:
        """``follower`` is behind the log's start."""
        if follower not in self._under_way and self._group.feeder.may_feed(follower):
            self._under_way[follower] = None
            self._host.start_soon(self._ship, follower)

    async def _ship(self, follower: NodeId) -> None:
        try:
            snapshot = await self._group.checkpoints.take_snapshot()
            if snapshot is None:
                self._group.checkpoints.take()  # For the next time that it is asked for.
            else:
                await self._send(follower, snapshot)
            await trio.sleep(SHIP_AGAIN_S)
        except (OSError, LogdError) as error:
            log.warning(
                log_events.SNAPSHOT_FAILED,
                group=self._group.group_id,
                follower=follower,
                reason=str(error),
            )
        finally:
            del self._under_way[follower]

    async def _send(self, follower: NodeId, snapshot: Snapshot) -> None:
        group, core = self._group, self._group.core
        term = core.term
        encoded = encode_snapshot(snapshot)
        if len(encoded) > SNAPSHOT_BYTES_MAX:
            raise StorageError(
                f"a snapshot of {len(encoded)} bytes, at most {SNAPSHOT_BYTES_MAX} are shipped"
            )
        checksum = checksum_of(encoded)
        view = memoryview(encoded)
        log.info(
            log_events.SNAPSHOT_SHIPPED,
            group=group.group_id,
            follower=follower,
            start=snapshot.start_offset,
            offset=snapshot.state_offset,
            bytes=len(encoded),
        )
        for position in range(0, len(encoded), SNAPSHOT_CHUNK_BYTES):
            if not await self._room(follower):
                return
            if not group.is_leader or core.term != term:
                return
            if follower not in core.configuration.members:
                return
            chunk = SnapshotChunk(
                group=group.group_id,
                term=term,
                enrolment=core.progress(follower).enrolment,
                position=position,
                total_bytes=len(encoded),
                checksum=checksum,
            )
            body = view[position : position + SNAPSHOT_CHUNK_BYTES]
            if not self._host.send_peer(follower, chunk, (body,)):
                return

    async def _room(self, follower: NodeId) -> bool:
        """Wait for room on the bulk lane; False if there is none for long, or no connection."""
        for _ in range(ROOM_ATTEMPTS):
            if self._host.has_room(follower, "bulk"):
                return True
            await trio.sleep(ROOM_INTERVAL_S)
        return False
