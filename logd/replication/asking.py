"""Asking other replicas: for batches, for a state, and how far they are.

Any replica may be asked, not only the leader: what is asked for is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.errors import CorruptionError, LogdError
from logd.limits import OFFSET_MAX, SNAPSHOT_BYTES_MAX
from logd.replication import log_events
from logd.replication.peer_protocol import (
    RepairRequest,
    RepairResponse,
    StateRequest,
    StateResponse,
)
from logd.replication.snapshot import Snapshot, checksum_of, decode_snapshot
from logd.types import Buffer, GroupId, NodeId, Offset

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.node import Node

log = structlog.get_logger(__name__)

ANSWER_TIMEOUT_S: Final = 2.0


class PeerQuestions:
    """What one node asks."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: dict[
            int, tuple[trio.Event, list[tuple[RepairResponse | StateResponse, bytes]]]
        ] = {}
        # An answer meant for an earlier life of this broker must not be taken for ours.
        self._next_request = node.incarnation

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
            with trio.move_on_after(ANSWER_TIMEOUT_S):
                await answered.wait()
        finally:
            del self._waiting[request.request_id]
        return answers[0] if answers else None

    def on_response(self, response: RepairResponse | StateResponse, body: Buffer) -> None:
        waiting = self._waiting.get(response.request_id)
        if waiting is not None:
            waiting[1].append((response, bytes(body)))
            waiting[0].set()
