"""Replicas that repair ask others, and are answered piece by piece, in bounded memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
import trio

from logd.limits import KIB, SNAPSHOT_CHUNK_BYTES
from logd.record.compacted import make_gap
from logd.record.header import decode_header
from logd.replication import answering, asking
from logd.replication.answering import SERVED_AT_ONCE_MAX
from logd.replication.asking import ANSWER_TIMEOUT_S
from logd.replication.checkpoints import Checkpoints
from logd.replication.node import Node
from logd.replication.peer_protocol import (
    AnyPeerMessage,
    RepairRequest,
    RepairResponse,
    StateRequest,
    StateResponse,
)
from logd.replication.snapshot import Snapshot, checksum_of, encode_snapshot
from logd.types import Buffer, GroupId, NodeId, Offset, Term
from tests.support.replica import (
    GROUP,
    OURSELVES,
    SECOND,
    THIRD,
    Replica,
    a_while,
    batch_of,
    let_peers_answer,
    open_replica,
    play,
    until,
)

# --- asking for batches -------------------------------------------------------------------------


def test_the_others_are_asked_for_batches_one_after_the_other_until_one_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is told how far those have let go of the log that have none."""
    down, unsent, silent, far, near, last = map(NodeId, range(2, 8))

    async def story() -> None:
        async with open_replica() as replica:
            questions = replica.node.questions
            asked: list[NodeId] = []

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                assert isinstance(message, RepairRequest)
                assert (message.start_offset, message.end_offset) == (3, 9)
                asked.append(target)
                log_start = {far: 7, near: 5}.get(target)
                if target == last:
                    received = bytearray(b"batches")
                    questions.on_response(RepairResponse(request_id=message.request_id), received)
                    received[:] = bytes(7)  # The buffer of a connection is used again.
                elif log_start is not None:
                    refusal = RepairResponse(request_id=message.request_id, log_start=log_start)
                    questions.on_response(refusal, b"")
                return target != unsent

            let_peers_answer(monkeypatch, replica.node, answer)
            monkeypatch.setattr(replica.node, "is_up", lambda node: node != down)
            members = (OURSELVES, down, unsent, silent, far, near, last, NodeId(8))
            began = trio.current_time()

            found = await questions.fetch(GROUP, members, Offset(3), Offset(9))

            assert found == (b"batches", 7)
            assert asked == [unsent, silent, far, near, last]
            assert trio.current_time() - began == pytest.approx(ANSWER_TIMEOUT_S)
            assert questions._waiting == {}

    play(story)


def test_an_answer_that_comes_too_late_is_no_answer_to_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            questions = replica.node.questions
            asked: list[int] = []

            def remember(target: NodeId, message: AnyPeerMessage) -> bool:
                assert isinstance(message, RepairRequest)
                for earlier in asked:
                    questions.on_response(RepairResponse(request_id=earlier), b"late")
                asked.append(message.request_id)
                return True

            let_peers_answer(monkeypatch, replica.node, remember)

            found = await questions.fetch(GROUP, (SECOND, THIRD), Offset(0), Offset(1))

            assert found == (None, 0)

    play(story)


# --- asking for a state -------------------------------------------------------------------------


async def large_state(replica: Replica, piece_count: int) -> Snapshot:
    """One of so many pieces."""
    group = replica.group
    for _ in range(2):
        replica.propose()
        await replica.commit()
    return Snapshot(
        start_offset=Offset(1),
        state_offset=group.commit_offset,
        state=group._opened.snapshot_state(group.state, group.core).encode(),
        application_offset=group.commit_offset,
        application=bytes(piece_count * SNAPSHOT_CHUNK_BYTES - 100 * KIB),
    )


def piece_of(encoded: bytes, request: StateRequest) -> tuple[StateResponse, bytes]:
    response = StateResponse(
        request_id=request.request_id, total_bytes=len(encoded), checksum=checksum_of(encoded)
    )
    return response, encoded[request.position : request.position + SNAPSHOT_CHUNK_BYTES]


def test_a_state_is_asked_for_piece_by_piece_and_put_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            state = await large_state(replica, 3)
            encoded = encode_snapshot(state)
            positions: list[int] = []

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                if isinstance(message, StateRequest):
                    positions.append(message.position)
                    replica.node.questions.on_response(*piece_of(encoded, message))
                return True

            let_peers_answer(monkeypatch, replica.node, answer)

            assert await replica.node.questions.fetch_state(GROUP, SECOND) == state
            assert positions == [0, SNAPSHOT_CHUNK_BYTES, 2 * SNAPSHOT_CHUNK_BYTES]

    play(story)


@pytest.mark.parametrize("met", ["silence", "refusal", "another kind", "another state", "shorter"])
def test_a_state_of_which_the_next_piece_does_not_come_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, met: str
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            encoded = encode_snapshot(await large_state(replica, 3))
            questions = replica.node.questions
            asked: list[int] = []

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                if not isinstance(message, StateRequest):
                    return True
                asked.append(message.position)
                response: StateResponse | RepairResponse
                response, body = piece_of(encoded, message)
                if message.position:
                    match met:
                        case "silence":
                            return True
                        case "refusal":
                            body = b""
                        case "another kind":
                            response = RepairResponse(request_id=message.request_id)
                        case "another state":
                            response, body = piece_of(encoded[:-1] + b"x", message)
                        case _:
                            response, body = piece_of(encoded[:-1], message)
                questions.on_response(response, body)
                return True

            let_peers_answer(monkeypatch, replica.node, answer)

            assert await questions.fetch_state(GROUP, SECOND) is None
            assert asked == [0, SNAPSHOT_CHUNK_BYTES]

    play(story)


@pytest.mark.parametrize("met", ["damage", "too much", "nonsense"])
def test_what_a_peer_sends_in_place_of_a_state_is_refused_without_harm(
    monkeypatch: pytest.MonkeyPatch, met: str
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            encoded = encode_snapshot(await large_state(replica, 1))
            questions = replica.node.questions
            if met == "too much":
                monkeypatch.setattr(asking, "SNAPSHOT_BYTES_MAX", len(encoded) - 1)

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                if isinstance(message, StateRequest):
                    sent = bytes(1000) if met == "nonsense" else encoded
                    response, body = piece_of(sent, message)
                    if met == "damage":
                        body = body[:-1] + b"x"
                    questions.on_response(response, body)
                return True

            let_peers_answer(monkeypatch, replica.node, answer)

            assert await questions.fetch_state(GROUP, SECOND) is None

    play(story)


# --- answering ----------------------------------------------------------------------------------


class Sent:
    """What a node answers, and to whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
        self.answers: list[tuple[NodeId, RepairResponse | StateResponse, bytes]] = []

        def send_peer(
            target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
        ) -> bool:
            if isinstance(message, RepairResponse | StateResponse):
                self.answers.append((target, message, b"".join(buffers)))
            return True

        monkeypatch.setattr(node, "send_peer", send_peer)

    async def next(self) -> tuple[RepairResponse | StateResponse, bytes]:
        await until(lambda: bool(self.answers))
        _, response, body = self.answers.pop(0)
        return response, body


def let_states_be(monkeypatch: pytest.MonkeyPatch, states: Sequence[Snapshot | None]) -> None:
    """One after the other is what the replica has come to, whenever it looks."""
    left = list(states)

    async def take_snapshot(_: Checkpoints) -> Snapshot | None:
        return left.pop(0)

    monkeypatch.setattr(Checkpoints, "take_snapshot", take_snapshot)


def state_of(size: int, fill: bytes = b"s") -> Snapshot:
    """Encoded it has this size."""
    state = Snapshot(start_offset=Offset(1), state_offset=Offset(1), state=fill * size)
    beyond = len(encode_snapshot(state)) - size
    return msgspec.structs.replace(state, state=state.state[beyond:])


def test_each_is_given_all_pieces_of_the_state_that_its_first_piece_was_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And once it has the last one, nothing is kept for it."""
    size = SNAPSHOT_CHUNK_BYTES
    states = [state_of(3 * size, fill) for fill in (b"a", b"b", b"c")]
    first, second, third = map(encode_snapshot, states)
    assert len(first) == 3 * size

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            answers, sent = replica.node.answers, Sent(monkeypatch, replica.node)
            let_states_be(monkeypatch, states)

            async def ask(source: NodeId, position: int) -> tuple[int, int, bytes]:
                request = StateRequest(request_id=9, group=GROUP, position=position)
                answers.on_state_request(source, request)
                response, body = await sent.next()
                assert isinstance(response, StateResponse)
                assert (response.request_id, response.refused) == (9, "")
                return response.total_bytes, response.checksum, body

            for position in range(0, len(first), size):
                given = await ask(SECOND, position)
                assert given == (len(first), checksum_of(first), first[position : position + size])
            assert answers._state_kept is None

            assert (await ask(SECOND, 0))[1:] == (checksum_of(second), second[:size])
            assert (await ask(THIRD, size))[1:] == (checksum_of(third), third[size : 2 * size])

    play(story)


def test_a_piece_of_a_state_of_one_group_is_none_of_that_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            sent = Sent(monkeypatch, replica.node)
            let_states_be(monkeypatch, [state_of(3 * SNAPSHOT_CHUNK_BYTES)])
            begun = StateRequest(request_id=1, group=GROUP)
            replica.node.answers.on_state_request(SECOND, begun)
            await sent.next()
            other = StateRequest(request_id=2, group=GroupId(99), position=SNAPSHOT_CHUNK_BYTES)
            replica.node.answers.on_state_request(SECOND, other)
            response, body = await sent.next()

            assert "no replica of that group" in response.refused
            assert body == b""

    play(story)


def test_who_asks_for_a_state_that_there_is_not_or_that_is_too_large_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is made then, for the next time."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            answers, sent = replica.node.answers, Sent(monkeypatch, replica.node)
            made: list[bool] = []
            monkeypatch.setattr(Checkpoints, "take", lambda _: made.append(True))
            let_states_be(monkeypatch, [None, state_of(20 * KIB)])
            monkeypatch.setattr(answering, "SNAPSHOT_BYTES_MAX", 10 * KIB)
            told = []
            for _ in range(2):
                answers.on_state_request(SECOND, StateRequest(request_id=1, group=GROUP))
                response, body = await sent.next()
                assert body == b""
                told.append(response.refused)

            assert "no state of orders/0 to begin from yet" in told[0]
            assert "at most" in told[1]
            assert made == [True]

    play(story)


def test_a_peer_is_given_whole_batches_of_the_range_and_told_why_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            for _ in range(3):
                replica.propose(bytes(1000))
                await a_while()
            answers, sent = replica.node.answers, Sent(monkeypatch, replica.node)
            end = replica.group.commit_offset

            async def ask(begin: int, end: int, group: GroupId = GROUP) -> tuple[str, list[int]]:
                request = RepairRequest(
                    request_id=5, group=group, start_offset=begin, end_offset=end
                )
                answers.on_request(SECOND, request)
                response, body = await sent.next()
                offsets = []
                while body:
                    header = decode_header(body)
                    offsets.append(int(header.base_offset))
                    body = body[header.size_bytes :]
                return response.refused, offsets

            assert await ask(1, 3) == ("", [1, 2])
            assert await ask(1, end) == ("", list(range(1, end)))
            refused, offsets = await ask(1, end + 1)
            assert "above the commit offset" in refused
            assert offsets == []
            refused, _ = await ask(0, 1, GroupId(99))
            assert "no replica of that group" in refused

            replica.fail_disk("read")
            refused, offsets = await ask(1, 3)
            assert "simulated failure" in refused
            assert offsets == []

    play(story)


def test_of_a_gap_a_peer_is_given_what_lies_in_the_range() -> None:
    def gap(start: int, end: int) -> bytes:
        return make_gap(Offset(start), Offset(end), term=Term(1), append_time_ms=0, group=GROUP)

    batch = batch_of(Offset(10), Term(1), records=5)
    log = [memoryview(each) for each in (gap(0, 10), batch, gap(15, 20), gap(20, 30))]

    def given(start: int, end: int) -> list[Buffer]:
        return list(answering._within(log, Offset(start), Offset(end), GROUP))

    assert given(3, 15) == [gap(3, 10), batch]
    assert given(0, 14) == [gap(0, 10)]
    assert given(4, 7) == [gap(4, 7)]
    assert given(9, 20) == [gap(9, 10), batch, gap(15, 20)]
    assert given(9, 23) == [gap(9, 10), batch, gap(15, 20), gap(20, 23)]


def test_no_more_is_read_for_peers_at_once_than_fits_and_all_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            replica.propose()
            await a_while()
            answers, sent = replica.node.answers, Sent(monkeypatch, replica.node)
            end = replica.group.commit_offset
            replica.slow_down(1.0)
            began = trio.current_time()
            request = RepairRequest(request_id=1, group=GROUP, start_offset=0, end_offset=end)
            for _ in range(3 * SERVED_AT_ONCE_MAX):
                answers.on_request(SECOND, request)

            at: list[float] = []
            for _ in range(3 * SERVED_AT_ONCE_MAX):
                _, body = await sent.next()
                assert body
                at.append(trio.current_time() - began)

            assert max(at) == pytest.approx(3.0, abs=0.1)
            assert all(later - earlier < 1.1 for earlier, later in pairwise(at))

    play(story)
