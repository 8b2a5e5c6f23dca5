"""What is kept of the state that a log leads to, so that nobody has to read all of the log again.

There are two such states.  The partition's own (producers, fences, terms, configuration) is
remembered here at each roll and every so many batches, and saved once all of it is committed
and synced.  That of the state machine that is fed from the log, if there is one, comes from its
owner.  Together they are what a follower is shipped that needs batches which were trimmed.

Why not saved when taken: a truncation may still undo what is not committed, and a checkpoint
that says more than its log would have to be thrown away just when it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from logd.errors import LogdError
from logd.replication import log_events
from logd.replication.snapshot import Snapshot
from logd.types import Offset

if TYPE_CHECKING:
    from logd.partition.state import StateSnapshot
    from logd.replication.group import Group
    from logd.replication.opening import OpenedGroup
    from logd.replication.seams import GroupHost

log = structlog.get_logger(__name__)


class Checkpoints:
    """Takes, saves and loads the states of one group."""

    __slots__ = ("_group", "_host", "_opened", "_taken", "batches_since")

    def __init__(self, group: Group, host: GroupHost, opened: OpenedGroup) -> None:
        self._group = group
        self._host = host
        self._opened = opened
        self._taken: tuple[Offset, StateSnapshot] | None = None
        """Waits to be committed and synced."""
        self.batches_since = opened.batches_replayed
        """Noted in the state since the last one was taken."""

    def take(self) -> None:
        """Remember the state as it is, to be saved once it can no longer be undone.

        Not while the group is held: the core may be ahead of the log then.  Nor while the state
        is not that of the log's end: that of a damaged replica is unknown, and one that was
        shipped may be ahead of a log that catches up.
        """
        group = self._group
        is_at_end = group.state.end_offset == group.log.end_offset
        if is_at_end and not group.is_held and group.failure is None:
            self.take_now()

    def take_now(self) -> None:
        """As ``take``, by a group that knows that its core and its log agree."""
        group = self._group
        self.batches_since = 0
        self._taken = (
            group.state.end_offset,
            self._opened.snapshot_state(group.state, group.core),
        )
        self.save_due()

    def save_due(self) -> None:
        """Save what was taken if all of it is committed, and synced here.

        Synced, because a power cut may shorten this log below the commit offset, and two
        checkpoints behind its end would leave none to start from.
        """
        if self._taken is None:
            return
        offset, snapshot = self._taken
        if offset <= min(self._group.commit_offset, self._group.core.synced_end):
            self._taken = None
            self._host.start_soon(self._write, offset, snapshot)

    async def _write(self, offset: Offset, snapshot: StateSnapshot) -> None:
        """Save a checkpoint.  Without it recovery replays more headers, and that is all: a full
        disk or a bad file here says nothing about the log, which finds out for itself."""
        group = self._group
        try:
            async with group.io_lock:
                if group.failure is None:
                    await self._host.env.run_blocking(
                        lambda: self._opened.checkpoints.save(offset, snapshot.encode())
                    )
        except (OSError, LogdError) as error:
            log.warning(
                log_events.CHECKPOINT_FAILED,
                group=group.group_id,
                offset=offset,
                reason=str(error),
            )

    def forget(self) -> None:
        """Save nothing of what was taken: the replica stops."""
        self._taken = None

    def forget_above(self, offset: Offset) -> None:
        """The log is cut at ``offset``: what was taken above it is undone."""
        if self._taken is not None and self._taken[0] > offset:
            self._taken = None

    def begin_again(self) -> None:
        """Another log, and another state, is put in the place of what there is."""
        self._taken = None
        self.batches_since = 0

    # --- what was saved -----------------------------------------------------------------------

    async def restorable_offset(self) -> Offset:
        """Where the newest checkpoint lies that can be read; 0 if there is none.

        Raises:
            StorageError: the disk failed.
        """
        async with self._group.io_lock:
            found = await self._host.env.run_blocking(
                self._opened.checkpoints.load, self._group.commit_offset
            )
        return Offset(0) if found is None else found[0]

    async def load_application(self) -> tuple[Offset, bytes] | None:
        """The state that was last saved of what is fed from this log.

        Raises:
            StorageError: the disk failed.
        """
        async with self._group.io_lock:
            return await self._host.env.run_blocking(self._opened.applications.load)

    async def save_application(self, offset: Offset, payload: bytes) -> None:
        """Keep the state of what is fed from this log, as of ``offset``, which is committed.

        Raises:
            StorageFailedError: the disk failed.
        """
        group = self._group
        assert offset <= group.commit_offset
        async with group.io_lock:
            if group.failure is None:
                await self._host.env.run_blocking(self._opened.applications.save, offset, payload)

    async def take_snapshot(self) -> Snapshot | None:
        """What a follower behind the log's start needs; None if there is no state to begin from.

        Raises:
            StorageError: the disk failed.
        """
        group = self._group
        async with group.io_lock:
            if group.failure is not None:
                return None
            return await self._host.env.run_blocking(self._load_snapshot)

    def _load_snapshot(self) -> Snapshot | None:
        group, opened = self._group, self._opened
        start = group.log.start_offset
        state = opened.checkpoints.load(group.commit_offset)
        if state is None or not 0 < start <= state[0]:
            return None
        if group.application is None:
            return Snapshot(start_offset=start, state_offset=state[0], state=state[1])
        application = opened.applications.load()
        if application is None or application[0] < start:
            return None
        return Snapshot(
            start_offset=start,
            state_offset=state[0],
            state=state[1],
            application_offset=application[0],
            application=application[1],
        )
