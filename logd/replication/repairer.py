"""Damaged replicas are made whole from their peers, without a person.

Three ways lead here.  A read of a running group met damage; the scrubber, which verifies
everything on the disk again and again at a bounded rate, found some; or a log was found
damaged when it was opened.  In all three the hole is filled with what another replica has
committed, byte for byte, and nothing else is changed.  Where logs were compacted the bytes may
differ: then the segment is replaced, whole (``storage/segment_copy.py``).

A running group with a hole below its commit offset goes on: what it promised is in its peers
too, and it does not serve the hole.  A hole above the commit offset cannot be judged by
committed bytes: that group stops, and a restart decides.  A log that was found damaged when
opened stays shut (it neither votes nor leads) until it is whole; meanwhile its intact part
below its commit offset is served to peers that repair, so that two replicas damaged in
different places can heal each other.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.errors import CorruptionError, LogdError, UnavailableError
from logd.limits import MIB
from logd.replication import log_events
from logd.replication.mending import Mender
from logd.replication.patience import Patience
from logd.storage.holes import Hole
from logd.storage.segment_copy import SegmentCopy
from logd.types import GroupId, NodeId, Offset

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.node import Node
    from logd.replication.opening import OpenedGroup
    from logd.storage.file_header import LogIdentity
    from logd.storage.log_contents import SealedSegment

log = structlog.get_logger(__name__)

SCRUB_PIECE_BYTES: Final = MIB // 4
"""Verified in one go; a group's syncs wait that long for it."""

SCRUB_LOOK_S: Final = 1.0
"""How often the scrubber looks whether a log's next round is due."""


class Repairer:
    """All repairs of one node."""

    def __init__(self, node: Node, scrub_bytes_per_s: int, scrub_interval_s: int) -> None:
        self._node = node
        self._scrub_bytes_per_s = scrub_bytes_per_s
        self._scrub_interval_s = scrub_interval_s
        self._reported: deque[Group] = deque()
        self._wanted = trio.Event()
        self.patience = Patience()
        self._patience_with_states = Patience()
        """For states that peers have kept: each comes whole before it is known to fit."""

    def hope(self) -> None:
        """A peer has come, who may be able to help."""
        self.patience.hope()
        self._patience_with_states.hope()

    # --- running groups -----------------------------------------------------------------------

    def report(self, group: Group) -> None:
        """A read has met damage in ``group``'s log: look through it soon, unless that has just
        been tried in vain."""
        if group not in self._reported and not self.patience.is_resting(group.group_id):
            self._reported.append(group)
            self._wanted.set()

    async def run(self) -> None:
        """Repair what is reported, and scrub, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repair_reported)
            if self._scrub_bytes_per_s:
                nursery.start_soon(self._scrub_all)

    async def _repair_reported(self) -> None:
        while True:
            if not self._reported:
                self._wanted = trio.Event()
                await self._wanted.wait()
            group = self._reported[0]
            is_whole = await self._go_through(group, bytes_per_s=math.inf)
            self._reported.popleft()
            if is_whole:
                self.patience.restore(group.group_id)
                self._node.mark_dirty(group)
            elif not self.patience.is_resting(group.group_id):
                self._node.start_soon(self._report_again, group)

    async def _report_again(self, group: Group) -> None:
        await self.patience.rest(group.group_id)
        if self._node.groups.get(group.group_id) is group:
            self.report(group)

    async def _scrub_all(self) -> None:
        """Go round all groups, for ever, at the configured rate and not too often.

        One that was just opened is looked through soon: what happened to its files while
        nobody had them open is not known.  Unless it was new then.
        """
        due_at: dict[GroupId, float] = {}
        while True:
            groups = dict(self._node.groups)
            due_at = {
                group_id: due_at[group_id] if group_id in due_at else self._first_due_at(group)
                for group_id, group in groups.items()
            }
            for group_id, group in groups.items():
                if trio.current_time() >= due_at[group_id]:
                    due_at[group_id] = trio.current_time() + self._scrub_interval_s
                    if not await self._go_through(group, self._scrub_bytes_per_s):
                        self.report(group)
            await trio.sleep(SCRUB_LOOK_S)

    def _first_due_at(self, group: Group) -> float:
        return trio.current_time() + self._scrub_interval_s if group.log.was_empty else 0.0

    async def _go_through(self, group: Group, bytes_per_s: float) -> bool:
        """Verify a whole log and fill the holes; False if one is still open."""
        is_whole = True
        position = group.log.scrub_start(group.log.start_offset)
        while group.failure is None:
            found = await group.upkeep.scrub(position, SCRUB_PIECE_BYTES)
            if found is None:
                break
            following, hole = found
            if hole is not None and not await self._repair(group, hole):
                is_whole = False
            if following is None:
                break
            read_bytes = max(SCRUB_PIECE_BYTES, following.bytes_after(position))
            await trio.sleep(read_bytes / bytes_per_s)
            position = following
        if is_whole:
            group.damage = None
        return is_whole or group.failure is not None

    async def _repair(self, group: Group, hole: Hole) -> bool:
        """Fill one hole of a running group; False if no peer could help now."""
        self._node.counts.holes_found += 1
        log.error(log_events.DAMAGE_FOUND, group=group.group_id, hole=str(hole))
        if hole.end.offset > group.commit_offset:
            group.fail(CorruptionError(f"damage above the commit offset: {hole}"))
            return True
        left: Hole | None = hole
        members = group.core.configuration.members
        while left is not None:
            batches, let_go = await self._node.questions.fetch(
                group.group_id, members, left.start.offset, left.end.offset
            )
            group.let_go_elsewhere = max(group.let_go_elsewhere, let_go)
            if batches is None:
                group.damage = str(left)
                return await self._begin_behind(group, left)
            try:
                left = await group.upkeep.fill(left, batches)
            except LogdError as error:
                group.damage = str(error)
                if not await self._replace(group, hole):
                    return False
                break
        group.damage = None
        self._node.counts.holes_repaired += 1
        log.info(log_events.DAMAGE_REPAIRED, group=group.group_id, hole=str(hole))
        return True

    async def _replace(self, group: Group, hole: Hole) -> bool:
        """Where logs were compacted the bytes may differ: take a peer's whole segment.

        False if that cannot be done now.
        """
        if group.failure is not None:
            return False
        holding = [
            segment
            for segment in group.log.sealed_segments()
            if segment.base_offset <= hole.start.offset < segment.end_offset
        ]
        if not holding:
            group.roller.roll_soon()  # Only sealed segments are replaced.
            return False
        (segment,) = holding
        try:
            path, _ = await self.copy(
                group.directory, group.identity, segment, group.core.configuration.members
            )
            if path is None:
                return False
            trash = self._node.membership.directory.trash_path
            return await group.upkeep.replace([segment.base_offset], path, trash, is_of_peers=True)
        except (OSError, LogdError) as error:
            log.error(log_events.REPAIR_REFUSED, group=group.group_id, reason=str(error))
            return False

    async def _begin_behind(self, group: Group, hole: Hole) -> bool:
        """Let go of a hole that peers have trimmed, in a group that feeds a state machine.

        That one may not have read so far yet, and never would: if so it is given a peer's state.
        Retention, which lets go of all other holes, does not know how far it has read.  It is
        enough that they have trimmed where the hole begins: what they have behind that has nothing
        here to be joined to.

        False if that cannot be done now.
        """
        application, checkpoints = group.application, group.checkpoints
        if application is None or hole.start.offset >= group.let_go_elsewhere:
            return False
        was, bases = group.log.start_offset, group.log.segment_bases
        end = next((base for base in bases if base > hole.start.offset), None)
        if end is None:
            group.roller.roll_soon()  # Only sealed segments are trimmed.
            return False
        try:
            kept = await checkpoints.load_application()
            if kept is None or kept[0] < end:
                kept = await self._application_of_a_peer(group, end)
                if kept is None:
                    return False
                await checkpoints.save_application(*kept)
            # Also what was kept before: by an earlier attempt, perhaps, that came no further.
            application.on_installed(*kept)
            if await checkpoints.restorable_offset() < end:
                checkpoints.take()  # For the next time.
                return False
            if not await group.upkeep.trim(end, self._node.membership.directory.trash_path):
                return False
        except (OSError, LogdError) as error:
            log.error(log_events.REPAIR_REFUSED, group=group.group_id, reason=str(error))
            return False
        log.info(log_events.LOG_TRIMMED, group=group.group_id, start=was, end=end)
        return True

    async def restore_application(self, group: Group) -> tuple[Offset, bytes]:
        """The state that a peer has kept of what is fed from ``group``'s log; it is kept here, too.

        For when none that was kept here can be read and reaches to where the log begins.  May be
        called again and again: peers are asked less and less often.

        Raises:
            UnavailableError: no peer gives one now that does, and is known to be committed.
            StorageError: it could not be kept.
        """
        start, patience = group.log.start_offset, self._patience_with_states
        found = None
        if not patience.is_resting(group.group_id):
            found = await self._application_of_a_peer(group, start)
            if found is None:
                self._node.start_soon(patience.rest, group.group_id)
        if found is None:
            raise UnavailableError(
                f"the log of {group.name} begins at offset {start}; none of the states kept here "
                "that reach so far can be read, and no peer has given its own"
            )
        patience.restore(group.group_id)
        await group.checkpoints.save_application(*found)
        return found

    async def _application_of_a_peer(
        self, group: Group, reach: Offset
    ) -> tuple[Offset, bytes] | None:
        """The state that a peer has kept of what is fed from ``group``'s log, if that reaches to
        ``reach`` and is known here to be committed; None if no peer gives one now."""
        for member in group.core.configuration.members:
            snapshot = await self._node.questions.fetch_state(group.group_id, member)
            if snapshot is None or snapshot.application is None:
                continue
            if reach <= snapshot.application_offset <= group.commit_offset:
                return snapshot.application_offset, snapshot.application
        return None

    async def copy(
        self,
        directory: str,
        identity: LogIdentity,
        segment: SealedSegment,
        members: Sequence[NodeId],
    ) -> tuple[str | None, Offset]:
        """A whole segment, from peers, in an unfinished file; None if they do not have it now.

        And where the logs of those begin that refused, as ``PeerQuestions.fetch``.

        Raises:
            CorruptionError: what they have does not fit.
            OSError: the disk failed.
        """
        env, group_id = self._node.env, identity.group
        copy = await env.run_blocking(SegmentCopy, env.files, directory, identity, segment)
        let_go = Offset(0)
        try:
            while not copy.is_complete:
                wanted = copy.wanted_from
                batches, trimmed_there = await self._node.questions.fetch(
                    group_id, members, wanted, segment.end_offset
                )
                let_go = max(let_go, trimmed_there)
                if batches is None:
                    await env.run_blocking(copy.discard)
                    return None, let_go
                await env.run_blocking(copy.add, batches)
            return await env.run_blocking(copy.finish), let_go
        except (OSError, LogdError):
            await env.run_blocking(copy.discard)
            raise

    # --- logs found damaged when they were opened -----------------------------------------------

    async def mend(
        self, opened: OpenedGroup, members: Sequence[NodeId], *, has_application: bool
    ) -> None:
        """Make a damaged log whole, waiting for peers as long as it takes; then close it.

        Args:
            has_application: a state machine is fed from it.

        Raises:
            BeyondRepairError: no peer can give back what is missing.
            StorageError, OSError: the disk failed.
        """
        group_id = opened.group_id
        self._node.counts.holes_found += 1
        log.error(log_events.DAMAGE_FOUND, group=group_id, hole=opened.damage)
        self._node.answers.serve_shut(opened)
        try:
            await Mender(self, self._node, opened, members, has_application=has_application).run()
        finally:
            self._node.answers.serve_no_more(group_id)
            opened.close()
        self._node.counts.holes_repaired += 1
        log.info(log_events.DAMAGE_REPAIRED, group=group_id, hole=opened.damage)
