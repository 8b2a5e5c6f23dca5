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

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.errors import CorruptionError, LogdError, UnavailableError
from logd.limits import APPEND_BYTES_MAX, MIB
from logd.record.compacted import cut_gap
from logd.record.header import decode_header
from logd.replication import log_events
from logd.replication.peer_protocol import RepairRequest, RepairResponse
from logd.storage.holes import Hole, fill_hole
from logd.storage.repair import mend_headers, put_in_place, sealed_segment_of, survey_log
from logd.storage.segment_copy import SegmentCopy
from logd.types import Buffer, GroupId, NodeId, Offset

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.node import Node
    from logd.replication.opening import OpenedGroup
    from logd.storage.file_header import LogIdentity
    from logd.storage.log import SealedSegment

log = structlog.get_logger(__name__)

SCRUB_PIECE_BYTES: Final = MIB // 4
"""Verified in one go; a group's syncs wait that long for it."""

SCRUB_LOOK_S: Final = 1.0
"""How often the scrubber looks whether a log's next round is due."""

FETCH_TIMEOUT_S: Final = 2.0
RETRY_S: Final = 0.5
SERVED_AT_ONCE_MAX: Final = 4


class Repairer:
    """All repairs of one node."""

    def __init__(self, node: Node, scrub_bytes_per_s: int, scrub_interval_s: int) -> None:
        self._node = node
        self._scrub_bytes_per_s = scrub_bytes_per_s
        self._scrub_interval_s = scrub_interval_s
        self._shut: dict[GroupId, OpenedGroup] = {}
        self._reported: deque[Group] = deque()
        self._wanted = trio.Event()
        self._waiting: dict[int, tuple[trio.Event, list[tuple[RepairResponse, bytes]]]] = {}
        # An answer meant for an earlier life of this broker must not be taken for ours.
        self._next_request = node.incarnation
        self._serving = trio.CapacityLimiter(SERVED_AT_ONCE_MAX)

    # --- running groups -----------------------------------------------------------------------

    def report(self, group: Group) -> None:
        """A read has met damage in ``group``'s log: look through it at once."""
        if group not in self._reported:
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
            is_whole = await self._go_through(group, pause_s=0.0)
            self._reported.popleft()
            if not is_whole:
                await trio.sleep(RETRY_S)
                self.report(group)
            else:
                self._node.mark_dirty(group)

    async def _scrub_all(self) -> None:
        """Go round all groups, for ever, at the configured rate and not too often.

        One that was just opened is looked through soon: what happened to its files while
        nobody had them open is not known.
        """
        pause_s = SCRUB_PIECE_BYTES / self._scrub_bytes_per_s
        due_at: dict[GroupId, float] = {}
        while True:
            groups = dict(self._node.groups)
            due_at = {group_id: due_at.get(group_id, 0.0) for group_id in groups}
            for group_id, group in groups.items():
                if trio.current_time() >= due_at[group_id]:
                    due_at[group_id] = trio.current_time() + self._scrub_interval_s
                    if not await self._go_through(group, pause_s):
                        self.report(group)
            await trio.sleep(SCRUB_LOOK_S)

    async def _go_through(self, group: Group, pause_s: float) -> bool:
        """Verify a whole log and fill the holes; False if one is still open."""
        is_whole = True
        position = group.log.scrub_start(group.log.start_offset)
        while group.failure is None:
            found = await group.scrub(position, SCRUB_PIECE_BYTES)
            if found is None:
                break
            following, hole = found
            if hole is not None and not await self._repair(group, hole):
                is_whole = False
            if following is None:
                break
            position = following
            await trio.sleep(pause_s)
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
            batches = await self._fetch(group.group_id, members, left.start.offset, left.end.offset)
            if batches is None:
                group.damage = str(left)
                return False
            try:
                left = await group.fill(left, batches)
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
            group.roll_soon()  # Only sealed segments are replaced.
            return False
        (segment,) = holding
        try:
            path = await self._copy(
                group.directory, group.identity, segment, group.core.configuration.members
            )
            return path is not None and await group.replace([segment.base_offset], path)
        except (OSError, LogdError) as error:
            log.error(log_events.REPAIR_REFUSED, group=group.group_id, reason=str(error))
            return False

    async def _copy(
        self,
        directory: str,
        identity: LogIdentity,
        segment: SealedSegment,
        members: Sequence[NodeId],
    ) -> str | None:
        """A whole segment, from peers, in an unfinished file; None if they do not have it now.

        Raises:
            CorruptionError: what they have does not fit.
            OSError: the disk failed.
        """
        env, group_id = self._node.env, identity.group
        copy = await env.run_blocking(SegmentCopy, env.files, directory, identity, segment)
        try:
            while not copy.is_complete:
                wanted = copy.wanted_from
                batches = await self._fetch(group_id, members, wanted, segment.end_offset)
                if batches is None:
                    await env.run_blocking(copy.discard)
                    return None
                await env.run_blocking(copy.add, batches)
            return await env.run_blocking(copy.finish)
        except (OSError, LogdError):
            await env.run_blocking(copy.discard)
            raise

    # --- logs found damaged when they were opened -----------------------------------------------

    async def mend(self, opened: OpenedGroup, members: Sequence[NodeId]) -> None:
        """Make a damaged log whole, waiting for peers as long as it takes; then close it.

        Raises:
            CorruptionError: no peer can give back what is missing.
        """
        group_id = opened.group_id
        self._node.counts.holes_found += 1
        log.error(log_events.DAMAGE_FOUND, group=group_id, hole=opened.damage)
        self._shut[group_id] = opened
        try:
            is_whole = False
            while not is_whole:
                is_whole = await self._mend_once(opened, members)
                await trio.sleep(0 if is_whole else RETRY_S)
        finally:
            del self._shut[group_id]
            opened.close()
        self._node.counts.holes_repaired += 1
        log.info(log_events.DAMAGE_REPAIRED, group=group_id, hole=opened.damage)

    async def _mend_once(self, opened: OpenedGroup, members: Sequence[NodeId]) -> bool:
        env = self._node.env
        survey = await env.run_blocking(survey_log, env.files, opened.directory, opened.identity)
        if survey.beyond_repair is not None:
            raise CorruptionError(survey.beyond_repair)
        for hole in survey.holes:
            left: Hole | None = hole
            while left is not None:
                start, end = left.start.offset, left.end.offset
                batches = await self._fetch(opened.group_id, members, start, end)
                if batches is None:
                    return False
                try:
                    left = await env.run_blocking(
                        fill_hole, env.files, opened.group_id, left, batches
                    )
                except CorruptionError as error:
                    log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))
                    await self._replace_shut(opened, hole, members)
                    return False  # What is left is looked for anew.
        try:
            await env.run_blocking(mend_headers, env.files, opened.directory, opened.identity)
        except CorruptionError as error:
            log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))
            return False
        return True

    async def _replace_shut(
        self, opened: OpenedGroup, hole: Hole, members: Sequence[NodeId]
    ) -> None:
        """As ``_replace``, of a log that is not open."""
        env = self._node.env
        segment = await env.run_blocking(
            sealed_segment_of, env.files, opened.directory, opened.identity, hole
        )
        if segment is None:
            return
        try:
            path = await self._copy(opened.directory, opened.identity, segment, members)
            if path is not None:
                await env.run_blocking(put_in_place, env.files, path, opened.directory, segment)
        except CorruptionError as error:
            log.error(log_events.REPAIR_REFUSED, group=opened.group_id, reason=str(error))

    # --- asking ---------------------------------------------------------------------------------

    async def _fetch(
        self, group_id: GroupId, members: Sequence[NodeId], start: Offset, end: Offset
    ) -> bytes | None:
        """Batches from ``start`` on from any member that has them; None if none has."""
        for member in members:
            if member == self._node.node or not self._node.is_up(member):
                continue
            request_id = self._next_request
            self._next_request += 1
            answered = trio.Event()
            answers: list[tuple[RepairResponse, bytes]] = []
            self._waiting[request_id] = (answered, answers)
            try:
                request = RepairRequest(
                    request_id=request_id,
                    group=group_id,
                    start_offset=start,
                    end_offset=end,
                )
                if not self._node.send_peer(member, request):
                    continue
                with trio.move_on_after(FETCH_TIMEOUT_S):
                    await answered.wait()
            finally:
                del self._waiting[request_id]
            for response, body in answers:
                if body:
                    return body
                group = self._node.groups.get(group_id)
                if group is not None:
                    start_there = Offset(response.log_start)
                    group.let_go_elsewhere = max(group.let_go_elsewhere, start_there)
                log.info(
                    log_events.REPAIR_REFUSED,
                    group=group_id,
                    peer=member,
                    reason=response.refused,
                )
        return None

    def on_response(self, response: RepairResponse, body: Buffer) -> None:
        waiting = self._waiting.get(response.request_id)
        if waiting is not None:
            waiting[1].append((response, bytes(body)))
            waiting[0].set()

    # --- answering ------------------------------------------------------------------------------

    def on_request(self, source: NodeId, request: RepairRequest) -> None:
        self._node.start_soon(self._serve, source, request)

    async def _serve(self, source: NodeId, request: RepairRequest) -> None:
        refused = ""
        buffers: list[Buffer] = []
        async with self._serving:
            try:
                buffers = await self._read(request)
            except (LogdError, OSError) as error:
                refused = str(error)
        group = self._node.groups.get(GroupId(request.group))
        response = RepairResponse(
            request_id=request.request_id,
            refused=refused,
            log_start=0 if group is None else group.log.start_offset,
        )
        self._node.send_peer(source, response, tuple(buffers))

    async def _read(self, request: RepairRequest) -> list[Buffer]:
        """Batches from the start on, whole, verified and committed.

        From the files, not from the cache: two replicas may hold each other's last copy.
        """
        start, end = Offset(request.start_offset), Offset(request.end_offset)
        group = self._node.groups.get(GroupId(request.group))
        shut = self._shut.get(GroupId(request.group))
        if group is not None:
            source, commit_offset = group.log, group.commit_offset
        elif shut is not None:
            source, commit_offset = shut.log, shut.commit_offset
        else:
            raise UnavailableError(f"node {self._node.node} has no replica of that group open")
        if end > commit_offset:
            raise UnavailableError(f"offset {end} is above the commit offset, {commit_offset}")
        found = await self._node.env.run_blocking(
            lambda: source.read(start, commit_offset, APPEND_BYTES_MAX, cached_only=False)
        )
        assert found is not None
        return list(_within(found, start, end, GroupId(request.group)))


def _within(
    batches: list[memoryview], start: Offset, end: Offset, group: GroupId
) -> Iterator[Buffer]:
    """The batches that begin below ``end``; gaps are cut where the range begins and ends."""
    for batch in batches:
        header = decode_header(batch)
        if header.is_gap and header.base_offset < end:
            first, last = max(header.base_offset, start), min(header.end_offset, end)
            yield cut_gap(header, first, last, group)
        elif header.end_offset <= end:
            yield batch
        else:
            return
