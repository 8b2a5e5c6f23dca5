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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from logd.errors import CorruptionError, LogdError, StorageError, UnavailableError
from logd.limits import (
    APPEND_BYTES_MAX,
    MIB,
    OFFSET_MAX,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES,
)
from logd.record.compacted import cut_gap
from logd.record.header import decode_header
from logd.replication import log_events
from logd.replication.mending import Mender
from logd.replication.patience import Patience
from logd.replication.peer_protocol import (
    RepairRequest,
    RepairResponse,
    StateRequest,
    StateResponse,
)
from logd.replication.snapshot import Snapshot, checksum_of, decode_snapshot, encode_snapshot
from logd.storage.holes import Hole
from logd.storage.segment_copy import SegmentCopy
from logd.types import Buffer, GroupId, NodeId, Offset

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

FETCH_TIMEOUT_S: Final = 2.0
STATE_KEPT_S: Final = 15.0
"""Whoever asks for a state piece by piece is not waited for longer than this: it may be large."""

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
        self._waiting: dict[
            int, tuple[trio.Event, list[tuple[RepairResponse | StateResponse, bytes]]]
        ] = {}
        # An answer meant for an earlier life of this broker must not be taken for ours.
        self._next_request = node.incarnation
        self._serving = trio.CapacityLimiter(SERVED_AT_ONCE_MAX)
        self._state_kept: tuple[NodeId, GroupId, bytes] | None = None
        """Given to somebody, who has not asked for all of it yet."""
        self._state_kept_until = 0.0
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
            batches, let_go = await self.fetch(
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
            group.roll_soon()  # Only sealed segments are replaced.
            return False
        (segment,) = holding
        try:
            path = await self.copy(
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
            group.roll_soon()  # Only sealed segments are trimmed.
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
            snapshot = await self.fetch_state(group.group_id, member)
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
                batches, _ = await self.fetch(group_id, members, wanted, segment.end_offset)
                if batches is None:
                    await env.run_blocking(copy.discard)
                    return None
                await env.run_blocking(copy.add, batches)
            return await env.run_blocking(copy.finish)
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
        self._shut[group_id] = opened
        try:
            await Mender(self, self._node, opened, members, has_application=has_application).run()
        finally:
            self.serve_no_more(group_id)
            opened.close()
        self._node.counts.holes_repaired += 1
        log.info(log_events.DAMAGE_REPAIRED, group=group_id, hole=opened.damage)

    def serve_no_more(self, group_id: GroupId) -> None:
        """The files of a shut log are about to go, or to be opened for good."""
        self._shut.pop(group_id, None)

    # --- asking ---------------------------------------------------------------------------------

    async def fetch(
        self, group_id: GroupId, members: Sequence[NodeId], start: Offset, end: Offset
    ) -> tuple[bytes | None, Offset]:
        """Batches from ``start`` on from any member that has them; None if none has.

        And where the logs of those begin that refused: what lies below was let go there.
        """
        let_go = Offset(0)
        for member in members:
            request = RepairRequest(
                request_id=self._new_request(), group=group_id, start_offset=start, end_offset=end
            )
            answer = await self._ask(member, request)
            if answer is None:
                continue
            response, body = answer
            if body:
                return body, let_go
            if isinstance(response, RepairResponse):
                let_go = max(let_go, Offset(response.log_start))
            log.info(
                log_events.REPAIR_REFUSED, group=group_id, peer=member, reason=response.refused
            )
        return None, let_go

    async def settled_elsewhere(self, group: Group) -> Offset:
        """Below it all other replicas have been clean for as long as tombstones are kept.

        0 unless all of them say so, and know the same replicas.
        """
        members = group.core.configuration.members
        settled_to = OFFSET_MAX
        for member in members:
            if member == self._node.node:
                continue
            request = RepairRequest(
                request_id=self._new_request(), group=group.group_id, start_offset=0, end_offset=0
            )
            answer = await self._ask(member, request)
            response = None if answer is None else answer[0]
            if not isinstance(response, RepairResponse) or response.members != sorted(members):
                return Offset(0)
            settled_to = min(settled_to, response.settled_to)
        return Offset(settled_to)

    async def fetch_state(self, group_id: GroupId, member: NodeId) -> Snapshot | None:
        """The state of a member whose log does not begin at 0; None if it does not give it."""
        try:
            return await self._fetch_state_of(group_id, member)
        except LogdError as error:
            log.error(log_events.REPAIR_REFUSED, group=group_id, peer=member, reason=str(error))
            return None

    async def _fetch_state_of(self, group_id: GroupId, member: NodeId) -> Snapshot | None:
        """Piece by piece; None if it does not answer, refuses, or has another state by now.

        Raises:
            CorruptionError: what it sent is not a state.
        """
        received = bytearray()
        first: StateResponse | None = None
        while first is None or len(received) < first.total_bytes:
            request = StateRequest(
                request_id=self._new_request(), group=group_id, position=len(received)
            )
            answer = await self._ask(member, request)
            if answer is None:
                return None
            response, body = answer
            if not isinstance(response, StateResponse) or not body:
                log.info(
                    log_events.REPAIR_REFUSED, group=group_id, peer=member, reason=response.refused
                )
                return None
            first = first or response
            if (response.total_bytes, response.checksum) != (first.total_bytes, first.checksum):
                return None
            received += body
            if len(received) > SNAPSHOT_BYTES_MAX:
                raise CorruptionError(f"a state of more than {SNAPSHOT_BYTES_MAX} bytes")
        if checksum_of(received) != first.checksum:
            raise CorruptionError(f"{len(received)} bytes of a state, with another checksum")
        return decode_snapshot(received)

    def _new_request(self) -> int:
        self._next_request += 1
        return self._next_request

    async def _ask(
        self, member: NodeId, request: RepairRequest | StateRequest
    ) -> tuple[RepairResponse | StateResponse, bytes] | None:
        """What ``member`` answers; None if it is not there or says nothing in time."""
        if member == self._node.node or not self._node.is_up(member):
            return None
        answered = trio.Event()
        answers: list[tuple[RepairResponse | StateResponse, bytes]] = []
        self._waiting[request.request_id] = (answered, answers)
        try:
            if not self._node.send_peer(member, request):
                return None
            with trio.move_on_after(FETCH_TIMEOUT_S):
                await answered.wait()
        finally:
            del self._waiting[request.request_id]
        return answers[0] if answers else None

    def on_response(self, response: RepairResponse | StateResponse, body: Buffer) -> None:
        waiting = self._waiting.get(response.request_id)
        if waiting is not None:
            waiting[1].append((response, bytes(body)))
            waiting[0].set()

    # --- answering ------------------------------------------------------------------------------

    def on_request(self, source: NodeId, request: RepairRequest) -> None:
        self._node.start_soon(self._serve, source, request)

    def on_state_request(self, source: NodeId, request: StateRequest) -> None:
        self._node.start_soon(self._serve_state, source, request)

    async def _serve(self, source: NodeId, request: RepairRequest) -> None:
        refused = ""
        buffers: list[Buffer] = []
        if request.start_offset < request.end_offset:
            async with self._serving:
                try:
                    buffers = await self._read(request)
                except (LogdError, OSError) as error:
                    refused = str(error)
        response = RepairResponse(request_id=request.request_id, refused=refused)
        group = self._node.groups.get(GroupId(request.group))
        if group is not None:
            response = msgspec.structs.replace(
                response,
                log_start=group.log.start_offset,
                settled_to=group.settled_to,
                members=sorted(group.core.configuration.members),
            )
        self._node.send_peer(source, response, tuple(buffers))

    async def _serve_state(self, source: NodeId, request: StateRequest) -> None:
        refused, encoded = "", b""
        async with self._serving:
            try:
                encoded = await self._state_for(source, request)
            except (LogdError, OSError) as error:
                refused = str(error)
        self._state_kept_until = trio.current_time() + STATE_KEPT_S
        end = request.position + SNAPSHOT_CHUNK_BYTES
        body = memoryview(encoded)[request.position : end]
        if end >= len(encoded):
            self._state_kept = None
        response = StateResponse(
            request_id=request.request_id,
            refused=refused,
            total_bytes=len(encoded),
            checksum=checksum_of(encoded),
        )
        self._node.send_peer(source, response, (body,) if body else ())

    async def _state_for(self, source: NodeId, request: StateRequest) -> bytes:
        """The state that a piece is wanted of; it is kept until the last piece is sent."""
        kept = self._state_kept
        if request.position > 0 and kept is not None and kept[:2] == (source, request.group):
            return kept[2]
        group = self._node.groups.get(GroupId(request.group))
        if group is None:
            raise UnavailableError(f"node {self._node.node} has no replica of that group open")
        snapshot = await group.checkpoints.take_snapshot()
        if snapshot is None:
            group.checkpoints.take()  # For the next time.
            raise UnavailableError(f"there is no state of {group.name} to begin from yet")
        encoded = encode_snapshot(snapshot)
        if len(encoded) > SNAPSHOT_BYTES_MAX:
            raise StorageError(
                f"a state of {len(encoded)} bytes, at most {SNAPSHOT_BYTES_MAX} are shipped"
            )
        self._state_kept = (source, GroupId(request.group), encoded)
        return encoded

    def forget_old_state(self) -> None:
        """Let go of a state that nobody asks on for.  To be called now and then."""
        if self._state_kept is not None and trio.current_time() >= self._state_kept_until:
            self._state_kept = None

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
