"""Takes the state that a leader ships, and puts it in the place of the log that is here.

The chunks are put together as they come, in memory, and for no longer than the leader who sends
them is heard and leads: a snapshot may be large, and another leader begins anew.  Whether the whole
is wanted the core decides: by then this replica may have a log that reaches further, or another
leader.  If it is, the group is held while the files are exchanged, for nothing else can be done
with them meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from logd.raft.messages import SnapshotReceived
from logd.replication import log_events
from logd.replication.opening import configuration_of
from logd.replication.snapshot import Snapshot, SnapshotAssembly
from logd.types import Buffer, NodeId, Offset, Term

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.opening import OpenedGroup
    from logd.replication.peer_protocol import SnapshotChunk
    from logd.replication.seams import GroupHost

log = structlog.get_logger(__name__)


class SnapshotIntake:
    """What is being shipped to one group; at most one snapshot at a time."""

    __slots__ = ("_assembly", "_group", "_host", "_opened", "_snapshot")

    def __init__(self, group: Group, host: GroupHost, opened: OpenedGroup) -> None:
        self._group = group
        self._host = host
        self._opened = opened
        self._assembly = SnapshotAssembly()
        self._snapshot: Snapshot | None = None
        """Complete: the core decides, or has decided to install it."""

    def post_chunk(self, source: NodeId, chunk: SnapshotChunk, body: Buffer) -> None:
        """Take a piece of what a leader ships.

        Raises:
            CorruptionError: it is not what the leader sent.
        """
        group = self._group
        if group.failure is not None or chunk.term < group.core.term:
            return  # The leader of this term knows better what is lacking here.
        snapshot = self._assembly.add(source, chunk, body)
        if snapshot is None:
            return
        change = snapshot.decode_state().configuration
        assert change is not None
        event = SnapshotReceived(
            source=source,
            term=Term(chunk.term),
            enrolment=Offset(chunk.enrolment),
            start_offset=snapshot.start_offset,
            term_rows=snapshot.terms_below_start(),
            configuration=configuration_of(change),
        )
        # The last one at most: it is large, and a leader that is not answered ships it again.
        group.when_free(SnapshotReceived, lambda: self._offer(event, snapshot))

    def _offer(self, event: SnapshotReceived, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._group.post(event)
        if not self._group.is_held:
            self._snapshot = None  # It came late.

    async def install(self) -> None:
        """Put the snapshot, and an empty log, in the place of what there is.

        Raises:
            NoRoomError: the disk has none: it is to be installed when there is.
            StorageError: the disk failed: the replica must stop, and a restart finds out.
        """
        group, snapshot = self._group, self._snapshot
        assert snapshot is not None
        self._host.tail_cache.forget(group.group_id)
        group.checkpoints.begin_again()
        await self._host.env.run_blocking(self._opened.install, self._host.env.files, snapshot)
        group.log, group.state = self._opened.log, self._opened.state
        group.members.introduce()
        log.info(
            log_events.SNAPSHOT_INSTALLED,
            group=group.group_id,
            start=snapshot.start_offset,
            offset=snapshot.state_offset,
        )
        if group.application is not None and snapshot.application is not None:
            group.application.on_installed(snapshot.application_offset, snapshot.application)

    def forget(self) -> None:
        """It has been installed, or is not wanted any more."""
        self._snapshot = None

    def on_leader_changed(self) -> None:
        """What another leader has begun to ship, it will not go on with."""
        core = self._group.core
        self._assembly.forget_all_but(core.leader, core.term)

    def stop(self) -> None:
        """The group takes no more news."""
        self._assembly.forget()
