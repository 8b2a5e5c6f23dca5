"""Asking the other brokers how they are, when somebody wants to know.

A report is bytes that only its two ends understand; here it is carried.  It is asked for and
never pushed: as long as nobody looks at a status page, this costs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from logd.replication.peer_protocol import ReportRequest, ReportResponse
from logd.types import Buffer, NodeId

if TYPE_CHECKING:
    from logd.replication.node import Node

Reporter = Callable[[], Awaitable[bytes]]


class Reports:
    """Both sides of the question, for one node."""

    def __init__(self, node: Node) -> None:
        self.reporter: Reporter | None = None
        """Makes this broker's own report."""
        self._node = node
        # An answer meant for an earlier life of this broker must not be taken for ours.
        self._next_request = node.incarnation
        self._waiting: dict[int, tuple[trio.Event, list[bytes]]] = {}

    async def ask(self, peer: NodeId, timeout_s: float) -> bytes | None:
        """The report of ``peer``; None if it does not answer in time, or has none."""
        request_id = self._next_request
        self._next_request += 1
        answered = trio.Event()
        answers: list[bytes] = []
        self._waiting[request_id] = (answered, answers)
        try:
            if not self._node.send_peer(peer, ReportRequest(request_id=request_id)):
                return None
            with trio.move_on_after(timeout_s):
                await answered.wait()
        finally:
            del self._waiting[request_id]
        return answers[0] if answers and answers[0] else None

    def on_request(self, source: NodeId, request: ReportRequest) -> None:
        self._node.start_soon(self._answer, source, request)

    def on_response(self, response: ReportResponse, body: Buffer) -> None:
        waiting = self._waiting.get(response.request_id)
        if waiting is not None:
            waiting[1].append(bytes(body))
            waiting[0].set()

    async def _answer(self, source: NodeId, request: ReportRequest) -> None:
        report = b"" if self.reporter is None else await self.reporter()
        self._node.send_peer(source, ReportResponse(request_id=request.request_id), (report,))
