"""What a turn leaves behind is done when it ends, and nothing is lost on the short way."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from logd.env import ByteStream
from logd.limits import KIB
from logd.raft.messages import AppendResponse
from logd.replication.outbox import Outbox, Shared
from logd.replication.sync_pool import BRIEF_SYNCS_IN_A_ROW
from logd.replication.turn import Turn
from logd.types import HostPort, Term
from tests.sim.env import BlockingConditions
from tests.sim.incarnation import Incarnation
from tests.sim.network import CALM, NetworkConditions, SimNetwork
from tests.support.replica import (
    OURSELVES,
    Replica,
    batch_of,
    offset_of,
    open_replica,
    play,
    until,
)

QUICK = BlockingConditions(latency_s_min=0.000_1, latency_s_mean=0.0, spike_probability=0.0)


class Wire:
    """An outbox, and what arrives at the other end of its connection."""

    def __init__(self, near: ByteStream, far: ByteStream) -> None:
        self.turn = Turn(lambda: False)
        self.shared = Shared(bytes_much=100 * KIB)
        self.times_told_of_room = 0
        self.outbox = Outbox(
            64 * KIB, self.turn, self.on_room, shared=self.shared, bytes_free=4 * KIB
        )
        self.near = near
        self.far = far
        self.arrived = bytearray()

    def on_room(self) -> None:
        self.times_told_of_room += 1

    async def receive(self) -> None:
        buffer = memoryview(bytearray(4 * KIB))
        while count := await self.far.receive_into(buffer):
            self.arrived += buffer[:count]


def with_wire(
    story: Callable[[Wire, trio.Nursery], Awaitable[None]], conditions: NetworkConditions = CALM
) -> None:
    async def main() -> None:
        network = SimNetwork(random.Random(1), conditions=conditions)
        far_host = network.attach(Incarnation("far", 1))
        near_host = network.attach(Incarnation("near", 1))
        listener = await far_host.listen(HostPort("far", 0))
        near = await near_host.connect(listener.address)
        wire = Wire(near, await listener.accept())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.outbox.run, wire.near)
            await trio.sleep(0.01)
            await story(wire, nursery)
            nursery.cancel_scope.cancel()

    play(main)


def test_what_is_queued_in_a_turn_leaves_when_it_ends_in_order() -> None:
    async def story(wire: Wire, nursery: trio.Nursery) -> None:
        nursery.start_soon(wire.receive)
        wire.turn.begin()
        wire.outbox.push([b"one,"], 4)
        wire.outbox.push([b"two,", b"three"], 9)
        assert wire.outbox.queued_bytes == 13
        wire.turn.end()
        assert wire.outbox.queued_bytes == 0
        await trio.sleep(1)
        assert wire.arrived == b"one,two,three"

    with_wire(story)


def test_what_the_network_does_not_take_at_once_goes_before_what_comes_later() -> None:
    async def story(wire: Wire, nursery: trio.Nursery) -> None:
        sent = b""
        for number in range(60):
            piece = bytes([number]) * KIB
            sent += piece
            wire.turn.begin()
            wire.outbox.push([piece], len(piece))
            wire.turn.end()
        assert wire.outbox.queued_bytes > 0  # Nobody has received anything yet.
        nursery.start_soon(wire.receive)
        await until(lambda: len(wire.arrived) == len(sent))
        assert wire.arrived == sent
        assert wire.outbox.queued_bytes == 0

    with_wire(story, NetworkConditions(buffer_bytes=8 * KIB))


@pytest.mark.parametrize("others_go_on", [False, True])
def test_who_was_full_because_all_hold_much_is_told_of_room_when_that_is_sent(
    others_go_on: bool,
) -> None:
    async def story(wire: Wire, nursery: trio.Nursery) -> None:
        wire.shared.bytes += 100 * KIB
        wire.turn.begin()
        wire.outbox.push([bytes(16 * KIB)], 16 * KIB)
        wire.turn.end()
        assert not wire.outbox.has_room
        await trio.sleep(1)
        assert wire.outbox.sending_since_s is not None
        if others_go_on:
            wire.shared.less(100 * KIB)
        assert wire.times_told_of_room == 0

        nursery.start_soon(wire.receive)
        await until(lambda: len(wire.arrived) == 16 * KIB)
        await trio.sleep(1)
        assert wire.times_told_of_room == 1
        assert wire.outbox.sending_since_s is None

    with_wire(story, NetworkConditions(buffer_bytes=8 * KIB))


def test_an_outbox_whose_connection_was_lost_keeps_silent_and_lets_its_task_tell() -> None:
    async def story(wire: Wire, nursery: trio.Nursery) -> None:
        nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        wire.near.abort()
        wire.turn.begin()
        wire.outbox.push([b"x"], 1)
        wire.turn.end()
        assert wire.outbox.queued_bytes == 1
        wire.outbox.clear()

    with_wire(story)


def test_what_nobody_waits_for_is_done_when_all_else_has_left() -> None:
    async def story(wire: Wire, nursery: trio.Nursery) -> None:
        nursery.start_soon(wire.receive)
        left: list[int] = []

        def work() -> None:
            left.append(wire.outbox.queued_bytes)
            wire.outbox.push([b"!"], 1)

        wire.turn.begin()
        wire.turn.afterwards(work)
        wire.outbox.push([b"one"], 3)
        wire.turn.end()
        wire.turn.begin()
        wire.turn.end()
        await trio.sleep(1)

        assert left == [0]
        assert wire.arrived == b"one!"

    with_wire(story)


def test_a_follower_acknowledges_before_it_lets_go_of_the_page_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica(blocking=QUICK) as replica:
            await replica.lead()
            await appends_and_commits(replica, 2 * BRIEF_SYNCS_IN_A_ROW)
            replica.depose(Term(9))
            await until(lambda: replica.group.core.term == 9 and not replica.group.is_held)
            monkeypatch.setattr(
                replica.group.log,
                "forget_cached",
                lambda keep: acknowledged.append(replica.sent(AppendResponse)[-1].synced_end),
            )
            for _ in range(3):
                end = replica.group.log.end_offset
                time_ms = replica.group.state.last_append_time_ms
                with replica.node.turn:
                    replica.append([batch_of(end, Term(9), time_ms=time_ms)], term=Term(9))
                ends.append(replica.group.log.end_offset)

    acknowledged: list[int] = []
    ends: list[int] = []
    play(story)
    assert acknowledged == ends


async def appends_and_commits(replica: Replica, count: int) -> None:
    for _ in range(count):
        replica.propose()
        await replica.commit()


async def appends(replica: Replica, count: int) -> float:
    """How long so many appends took, one after the other, in virtual time."""
    began = trio.current_time()
    for _ in range(count):
        outcomes = replica.propose()
        while not outcomes:
            await trio.sleep(0.000_01)
        assert offset_of(outcomes) >= 0
    return trio.current_time() - began


def test_a_quick_disk_is_synced_at_the_end_of_the_turn_and_one_that_turns_slow_is_not() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), blocking=QUICK) as replica:
            await replica.lead()
            learning = await appends(replica, BRIEF_SYNCS_IN_A_ROW)
            known = await appends(replica, BRIEF_SYNCS_IN_A_ROW)
            replica.slow_down(0.1)
            slow = await appends(replica, 1)

        assert known < learning / 4
        assert slow >= 0.1

    play(story)


def test_a_sync_that_fails_at_the_end_of_a_turn_stops_the_replica_and_answers_who_waits() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), blocking=QUICK) as replica:
            await replica.lead()
            await appends(replica, 2 * BRIEF_SYNCS_IN_A_ROW)
            replica.fail_disk("sync")
            outcomes = replica.propose()
            await until(lambda: bool(outcomes))

            assert replica.group.failure is not None
            assert replica.group.commit_offset < replica.group.log.end_offset

    play(story)


def test_a_log_whose_replica_waits_for_a_vote_to_be_saved_is_not_synced_at_the_end_of_a_turn() -> (
    None
):
    """Nobody would hear of that sync before the vote is saved, and it is saved after the turn."""

    async def story() -> None:
        async with open_replica(blocking=QUICK) as replica:
            await replica.lead()
            for _ in range(2 * BRIEF_SYNCS_IN_A_ROW):
                replica.propose()
                await trio.sleep(0.01)
            assert not replica.group.syncer.needs_sync

            replica.node.turn.begin()
            replica.propose()
            replica.group.flush()
            replica.depose(Term(5))
            replica.node.turn.end()
            assert replica.group.is_held
            assert replica.group.log.unsynced_bytes > 0

            await until(lambda: not replica.group.syncer.needs_sync)
            assert replica.group.core.term == 5

    play(story)
