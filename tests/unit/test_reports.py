"""How brokers ask one another how they are."""

from __future__ import annotations

import pytest
import trio

from logd.replication.peer_protocol import ReportRequest, ReportResponse
from logd.replication.reports import Reports
from logd.types import NodeId
from tests.support.replica import SECOND, Replica, a_while, open_replica, play


def life_of(replica: Replica, incarnation: int) -> Reports:
    replica.node.incarnation = incarnation
    return Reports(replica.node)


def test_the_answer_to_an_earlier_life_of_this_broker_is_not_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica() as replica, trio.open_nursery() as nursery:
            earlier, later = life_of(replica, 11), life_of(replica, 22)
            requests: list[ReportRequest] = []
            found: list[bytes | None] = []

            def arrives(target: NodeId, message: ReportRequest) -> bool:
                requests.append(message)
                return True

            monkeypatch.setattr(replica.node, "send_peer", arrives)

            async def ask() -> None:
                found.append(await later.ask(SECOND, 5.0))

            await earlier.ask(SECOND, 1.0)
            nursery.start_soon(ask)
            await a_while()
            for request, report in zip(requests, (b"old", b"new"), strict=True):
                later.on_response(ReportResponse(request_id=request.request_id), report)
            await a_while()

            assert found == [b"new"]
            nursery.cancel_scope.cancel()

    play(story)
