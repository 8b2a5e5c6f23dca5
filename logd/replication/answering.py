"""Answering other replicas that repair, or take over a state: see ``asking.py``.

What is given is whole, verified and committed, also of a log that is shut because of damage
elsewhere in it: two replicas damaged in different places can heal each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from logd.errors import LogdError, StorageError, UnavailableError
from logd.limits import APPEND_BYTES_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES
from logd.record.compacted import cut_gap
from logd.record.header import decode_header
from logd.replication.peer_protocol import (
    RepairRequest,
    RepairResponse,
    StateRequest,
    StateResponse,
)
from logd.replication.snapshot import checksum_of, encode_snapshot
from logd.types import Buffer, GroupId, NodeId, Offset

if TYPE_CHECKING:
    from logd.replication.node import Node
    from logd.replication.opening import OpenedGroup

STATE_KEPT_S: Final = 15.0
"""Whoever asks for a state piece by piece is not waited for longer than this: it may be large."""

SERVED_AT_ONCE_MAX: Final = 4


class PeerAnswers:
    """What one node answers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._shut: dict[GroupId, OpenedGroup] = {}
        self._serving = trio.CapacityLimiter(SERVED_AT_ONCE_MAX)
        self._state_kept: tuple[NodeId, GroupId, bytes] | None = None
        """Given to somebody, who has not asked for all of it yet."""
        self._state_kept_until = 0.0

    def serve_shut(self, opened: OpenedGroup) -> None:
        """A log that is shut because it is damaged gives what is intact."""
        self._shut[opened.group_id] = opened

    def serve_no_more(self, group_id: GroupId) -> None:
        """The files of a shut log are about to go, or to be opened for good."""
        self._shut.pop(group_id, None)

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
        end = request.position + SNAPSHOT_CHUNK_BYTES
        async with self._serving:
            try:
                encoded = await self._state_for(source, request)
            except (LogdError, OSError) as error:
                refused = str(error)
            else:  # Else what is kept is another's, who asks on for it or does not.
                self._state_kept_until = trio.current_time() + STATE_KEPT_S
                if end >= len(encoded):
                    self._state_kept = None
        body = memoryview(encoded)[request.position : end]
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
