"""A leader ships its state to a follower that needs batches which were trimmed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio

from logd.raft.messages import Configuration, Resign
from logd.replication import shipping
from logd.replication.peer_protocol import SnapshotChunk
from logd.replication.shipping import ROOM_ATTEMPTS, ROOM_INTERVAL_S, SHIP_AGAIN_S
from logd.replication.snapshot import SnapshotAssembly
from logd.storage.retention import RetentionPolicy
from logd.types import Term
from tests.support.replica import OURSELVES, SECOND, Replica, a_while, open_replica, play
from tests.unit.test_retention import TRASH, fill, trimmer_of

ALONE: Final = Configuration((OURSELVES,))
FOLLOWED: Final = Configuration((OURSELVES,), learners=(SECOND,))
SEGMENT_BYTES: Final = 8 * 1024


@pytest.fixture(autouse=True)
def pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "SNAPSHOT_CHUNK_BYTES", 16)


@asynccontextmanager
async def open_trimmed() -> AsyncIterator[Replica]:
    """A leader whose log does not begin at 0, and that has one follower."""
    async with open_replica(voters=ALONE.voters, segment_bytes=SEGMENT_BYTES) as replica:
        await replica.lead()
        await fill(replica, 3)
        await trimmer_of(replica).apply(RetentionPolicy(bytes_max=1), TRASH)
        replica.group.members.append(FOLLOWED)
        await a_while()
        replica.node.connected.add(SECOND)
        yield replica


def pieces(replica: Replica) -> list[tuple[SnapshotChunk, bytes]]:
    """What was shipped to the follower."""
    return [
        (message, body)
        for target, message, body in replica.node.sent_to_peers
        if target == SECOND and isinstance(message, SnapshotChunk)
    ]


def ship(replica: Replica) -> None:
    replica.group._shipper.ship_soon(SECOND)


def test_a_follower_is_shipped_the_whole_state_of_where_the_log_begins() -> None:
    async def story() -> None:
        async with open_trimmed() as replica:
            ship(replica)
            await a_while()

            assembly, shipped = SnapshotAssembly(), pieces(replica)
            assert len(shipped) > 2
            *others, found = [assembly.add(OURSELVES, *piece) for piece in shipped]
            assert others == [None] * len(others)
            assert found is not None
            assert found.start_offset == replica.group.log.start_offset > 0
            core = replica.group.core
            assert {(chunk.term, chunk.enrolment) for chunk, _ in shipped} == {
                (core.term, core.progress(SECOND).enrolment)
            }

    play(story)


def test_a_follower_is_shipped_one_state_at_a_time_and_the_next_not_at_once() -> None:
    """It is named with each probe that it refuses, until it has installed what it was sent."""

    async def story() -> None:
        async with open_trimmed() as replica:
            ship(replica)
            ship(replica)
            await a_while()
            ship(replica)
            await a_while()
            assert [chunk.position for chunk, _ in pieces(replica)].count(0) == 1

            await trio.sleep(SHIP_AGAIN_S)
            ship(replica)
            await a_while()

            assert [chunk.position for chunk, _ in pieces(replica)].count(0) == 2

    play(story)


def test_pieces_wait_for_room_on_the_link_but_not_for_ever() -> None:
    async def story() -> None:
        async with open_trimmed() as replica:
            replica.node.full_links.add(SECOND)
            ship(replica)
            await trio.sleep(1)
            assert pieces(replica) == []
            replica.node.full_links.clear()
            await a_while()
            assert len(pieces(replica)) > 2
            await trio.sleep(SHIP_AGAIN_S)
            replica.node.sent_to_peers.clear()

            replica.node.full_links.add(SECOND)
            ship(replica)
            await trio.sleep(ROOM_ATTEMPTS * ROOM_INTERVAL_S + 1)
            replica.node.full_links.clear()
            await a_while()

            assert pieces(replica) == []

    play(story)


def test_a_state_is_shipped_no_further_over_a_connection_that_was_lost() -> None:
    async def story() -> None:
        async with open_trimmed() as replica:
            replica.node.connected.clear()
            ship(replica)
            await a_while()

            assert [chunk.position for chunk, _ in pieces(replica)] == [0]

    play(story)


@pytest.mark.parametrize("ends_by", ["removed", "resigned", "deposed", "elected again"])
def test_whoever_does_not_follow_this_leader_any_more_is_shipped_nothing_more(
    ends_by: str,
) -> None:
    async def story() -> None:
        async with open_trimmed() as replica:
            replica.node.full_links.add(SECOND)
            ship(replica)
            await a_while()

            if ends_by == "removed":
                replica.group.members.append(ALONE)
            elif ends_by == "resigned":  # Nobody leads in this term any more.
                replica.group.post(Resign(may_campaign=False))
                assert not replica.group.is_leader
            else:
                replica.depose(Term(replica.group.core.term + 1))
                await a_while()
                assert not replica.group.is_leader
                if ends_by == "elected again":
                    await replica.be_elected()
            replica.node.full_links.clear()
            await trio.sleep(ROOM_ATTEMPTS * ROOM_INTERVAL_S + 1)

            assert pieces(replica) == []
            assert replica.group.failure is None

    play(story)


def test_a_log_without_a_state_to_begin_from_has_one_the_next_time() -> None:
    """A follower may have lost what no leader has trimmed: nothing is shipped that begins at 0."""

    async def story() -> None:
        async with open_replica(voters=ALONE.voters) as replica:
            await replica.lead()
            replica.group.members.append(FOLLOWED)
            replica.node.connected.add(SECOND)
            replica.propose()
            await a_while()
            assert await replica.group.checkpoints.restorable_offset() == 0

            ship(replica)
            await a_while()

            assert pieces(replica) == []
            assert await replica.group.checkpoints.restorable_offset() > 0

    play(story)
