"""Makes a log whole that was found damaged when it was opened.

The replica stays shut meanwhile: it neither votes nor leads, and gives its intact part to
others that repair.  Each round surveys the whole log and does what can be done:

- a hole is filled from peers, byte for byte, or where they were compacted its segment is copied;
- a hole that nobody can fill because it lies where peers have trimmed is let go with its
  segments, as a running replica would have, if a checkpoint reaches over them;
- if peers' logs begin behind a hole, within its segment, that one is written anew from there, with
  what they have, and is the first one then; and so it is if they begin before a hole that they have
  compacted, where all of its segment is not to be had;
- if peers have trimmed everything that this log holds, it is replaced by their state.

A log that feeds a state machine is for nobody else to read, so it is enough that peers have
trimmed where the hole begins: what they have of its end has nothing here to be joined to.  Such a
log is let go as far as that state is kept, a peer's if that is further; and it is replaced by a
state that reaches over all of it.

Replacing a log needs no leader and breaks no promise: all that this replica ever acknowledged
lies below the place where the new log begins, and was committed and applied by that peer.  The
state that takes its place is the outcome of exactly that.  Its vote stays, and its term does not
go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

import msgspec
import structlog

from logd.errors import BeyondRepairError, CorruptionError
from logd.replication import log_events
from logd.replication.installing import begin_install, finish_install
from logd.storage.holes import Hole, fill_hole
from logd.storage.log import Log
from logd.storage.recovery import LogEnd
from logd.storage.repair import (
    Survey,
    begin_with,
    mend_headers,
    put_in_place,
    segment_with,
    survey_log,
)
from logd.storage.segment import FIRST_POSITION
from logd.types import NodeId, Offset, Term

if TYPE_CHECKING:
    from logd.replication.node import Node
    from logd.replication.opening import OpenedGroup
    from logd.replication.repairer import Repairer
    from logd.replication.snapshot import Snapshot
    from logd.storage.log_contents import SealedSegment

log = structlog.get_logger(__name__)


class _Progress(Enum):
    WHOLE = "whole"
    BETTER = "better"
    NONE = "none"


class Mender:
    """Mends one closed log."""

    def __init__(
        self,
        repairer: Repairer,
        node: Node,
        opened: OpenedGroup,
        members: Sequence[NodeId],
        *,
        has_application: bool,
    ) -> None:
        self._repairer = repairer
        self._node = node
        self._env = node.env
        self._opened = opened
        self._members = members
        self._has_application = has_application
        """A state machine is fed from the log: its state must reach to where that begins."""

    async def run(self) -> None:
        """Return when the log is whole.

        Raises:
            BeyondRepairError: no peer can give back what is missing.
            StorageError, OSError: the disk failed.
        """
        group_id, patience = self._opened.group_id, self._repairer.patience
        while (progress := await self._mend_once()) is not _Progress.WHOLE:
            if progress is _Progress.BETTER:
                patience.restore(group_id)
            await patience.rest(group_id)
        patience.restore(group_id)

    async def _mend_once(self) -> _Progress:
        env, opened = self._env, self._opened
        survey = await env.run_blocking(survey_log, env.files, opened.directory, opened.identity)
        if survey.beyond_repair is not None:
            raise BeyondRepairError(survey.beyond_repair)
        left_open: list[Hole] = []
        let_go = Offset(0)
        for hole in survey.holes:
            left: Hole | None = hole
            while left is not None:
                batches, trimmed_there = await self._node.questions.fetch(
                    opened.group_id, self._members, left.start.offset, left.end.offset
                )
                let_go = max(let_go, trimmed_there)
                if batches is None:
                    left_open.append(left)
                    break
                try:
                    left = await env.run_blocking(
                        fill_hole, env.files, opened.group_id, left, batches
                    )
                except CorruptionError as error:
                    log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))
                    missing, trimmed_there = await self._copy(hole)
                    if missing is None:
                        return _Progress.BETTER  # What is left is looked for anew.
                    let_go = max(let_go, trimmed_there)
                    left_open.append(missing)
                    break
        if left_open:
            return await self._let_go(survey, left_open, let_go)
        try:
            await env.run_blocking(mend_headers, env.files, opened.directory, opened.identity)
        except CorruptionError as error:
            log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))
            return _Progress.NONE
        return _Progress.WHOLE

    async def _copy(self, hole: Hole) -> tuple[Hole | None, Offset]:
        """Where logs were compacted the bytes may differ: take a peer's whole segment.

        What is missing then; None if nothing is.  Where there is no whole segment to be had, the
        hole begins with its own: what comes before it is nothing to join other bytes to.  And where
        the logs of peers begin that refused.
        """
        env, opened = self._env, self._opened
        segment = await env.run_blocking(
            segment_with, env.files, opened.directory, opened.identity, hole
        )
        if segment is None:
            return hole, Offset(0)
        start = LogEnd(segment.base_offset, segment.prev_term, FIRST_POSITION)
        missing = replace(hole, start=start)
        try:
            path, trimmed_there = await self._repairer.copy(
                opened.directory, opened.identity, segment, self._members
            )
            if path is None:
                return missing, trimmed_there
            await env.run_blocking(put_in_place, env.files, path, opened.directory, segment)
        except CorruptionError as error:
            log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))
            return missing, Offset(0)
        return None, Offset(0)

    # --- what peers have trimmed ----------------------------------------------------------------

    async def _let_go(self, survey: Survey, holes: Sequence[Hole], limit: Offset) -> _Progress:
        """Let go of holes that begin below ``limit``, where a peer's log begins."""
        lost = [hole for hole in holes if hole.start.offset < limit]
        if limit < survey.end_offset:
            if await self._trim(survey, lost, limit):
                return _Progress.BETTER
            if not lost:
                return _Progress.NONE
        return await self._take_over(survey, lost)

    async def _trim(self, survey: Survey, lost: Sequence[Hole], limit: Offset) -> bool:
        """Let go of some of the ``lost`` with their segments; False if that cannot be done."""
        opened = self._opened
        reach = await self._env.run_blocking(self._restorable, survey.end_offset)
        if not self._has_application:
            reach = min(reach, limit)  # Peers have the rest, and somebody may read it here.
        bases = opened.log.segment_bases
        start = max((base for base in bases if base <= reach), default=bases[0])
        # Each hole makes it worth while: what is gone is no longer in the way of the others.
        if not any(hole.end.offset <= start for hole in lost):
            return False
        trash = self._node.membership.directory.trash_path
        await self._env.run_blocking(opened.log.trim, start, trash)
        log.info(log_events.LOG_TRIMMED, group=opened.group_id, start=bases[0], end=start)
        return True

    async def _take_over(self, survey: Survey, lost: Sequence[Hole]) -> _Progress:
        """Go on with the state of a peer whose state has come far enough for that."""
        for member in self._members:
            snapshot = await self._node.questions.fetch_state(self._opened.group_id, member)
            if snapshot is None:
                continue
            start = self._start_with(snapshot)
            if start >= survey.end_offset:
                return await self._install(msgspec.structs.replace(snapshot, start_offset=start))
            if await self._env.run_blocking(self._keep, snapshot):
                return _Progress.BETTER
            if not self._has_application and await self._begin_within(survey, lost, snapshot):
                return _Progress.BETTER
        return _Progress.NONE

    async def _begin_within(self, survey: Survey, lost: Sequence[Hole], snapshot: Snapshot) -> bool:
        """Begin where a peer's log does, if that is within a segment with one of the ``lost``.

        All that is kept of that segment is what peers have committed.  False if it cannot be done.
        """
        env, opened, start = self._env, self._opened, snapshot.start_offset
        hole = max(lost, key=lambda each: each.start.offset)
        segment = await env.run_blocking(
            segment_with, env.files, opened.directory, opened.identity, hole
        )
        if segment is None or not segment.base_offset < start < segment.end_offset:
            return False
        rest = segment._replace(base_offset=start, prev_term=snapshot.terms_below_start()[-1][0])
        try:
            path, _ = await self._repairer.copy(
                opened.directory, opened.identity, rest, self._members
            )
        except CorruptionError as error:
            log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))
            return False
        if path is None:
            return False
        trash = self._node.membership.directory.trash_path

        def begin() -> bool:
            if not self._keep_checkpoint(snapshot, survey, rest):
                env.files.remove(path)
                return False
            opened.log.close()
            begin_with(env.files, path, opened.directory, opened.identity, rest, trash)
            opened.log = Log.open(env.files, opened.directory, opened.identity, opened.options)
            return True

        was = opened.log.start_offset
        self._node.answers.serve_no_more(opened.group_id)
        is_begun = await env.run_blocking(begin)
        self._node.answers.serve_shut(opened)
        if is_begun:
            log.info(log_events.LOG_TRIMMED, group=opened.group_id, start=was, end=start)
        return is_begun

    def _keep_checkpoint(self, snapshot: Snapshot, survey: Survey, segment: SealedSegment) -> bool:
        """See to it that there is a state for a log to begin with where ``segment`` does, which is
        all committed; False if there is none.

        The peer's lies ahead of what is known to be committed here, unless it is within that
        segment.  If nothing follows that, it may be ahead of the log, as one that was shipped.
        """
        checkpoints, start = self._opened.checkpoints, segment.base_offset
        if self._restorable(survey.end_offset) >= start:
            return True
        is_all_committed = segment.end_offset == survey.end_offset
        if not is_all_committed and snapshot.state_offset > segment.end_offset:
            return False
        checkpoints.save(snapshot.state_offset, snapshot.state)
        kept = checkpoints.load()
        return kept is not None and kept[0] >= start

    def _start_with(self, snapshot: Snapshot) -> Offset:
        """Where a log that holds nothing yet can begin with this state."""
        if not self._has_application:
            return snapshot.start_offset  # Readers are promised all that follows.
        if snapshot.application is None:
            return Offset(0)
        return min(snapshot.state_offset, snapshot.application_offset)

    def _keep(self, snapshot: Snapshot) -> bool:
        """Keep what a peer's state machine has come to, if that is further than ours.

        It is committed, whatever is known of that here.  The log can be let go up to there then.
        """
        if not self._has_application or snapshot.application is None:
            return False
        kept = self._opened.applications.load()
        if kept is not None and snapshot.application_offset <= kept[0]:
            return False
        self._opened.applications.save(snapshot.application_offset, snapshot.application)
        return True

    def _restorable(self, end: Offset) -> Offset:
        """A log that begins at or below this offset has the state to begin with."""
        found = self._opened.checkpoints.load(at_most=end)
        restorable = Offset(0) if found is None else found[0]
        if self._has_application:
            kept = self._opened.applications.load()
            restorable = min(restorable, Offset(0) if kept is None else kept[0])
        return restorable

    async def _install(self, snapshot: Snapshot) -> _Progress:
        opened, files = self._opened, self._env.files

        def install() -> None:
            last_term = Term(snapshot.decode_state().term_rows[-1].term)
            if last_term > opened.hard_state.load()[0]:
                # First: a log may not reach beyond its votes.  None was cast in that term.
                # A replica that lost its memory stays doubtful: it may have vouched for more.
                hard_state = opened.hard_state
                hard_state.save(
                    last_term,
                    None,
                    is_newcomer=hard_state.is_newcomer,
                    rests_on=hard_state.rests_on,
                )
            begin_install(files, opened.directory, opened.identity, snapshot)
            opened.log.close()
            finish_install(files, opened.directory, opened.identity, opened.options)

        self._node.answers.serve_no_more(opened.group_id)
        await self._env.run_blocking(install)
        log.info(
            log_events.SNAPSHOT_INSTALLED,
            group=opened.group_id,
            start=snapshot.start_offset,
            offset=snapshot.state_offset,
        )
        return _Progress.WHOLE
