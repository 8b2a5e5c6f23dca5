"""What a node knows of unfit nodes: what each says of itself, for as long as it is alive."""

from __future__ import annotations

import trio
import trio.testing

from logd.replication.fitness import CROWDED_S, Fitness
from logd.replication.peer_protocol import Ping
from logd.types import NodeId

OURSELVES, OTHER = NodeId(1), NodeId(2)


def fitness_here() -> tuple[Fitness, list[NodeId]]:
    """And who has got room again."""
    roomy: list[NodeId] = []
    return Fitness(OURSELVES, on_room=roomy.append), roomy


def test_who_had_a_full_disk_and_has_room_again_is_told_of_once() -> None:
    fitness, roomy = fitness_here()

    fitness.note_disk(OTHER, is_full=False)
    fitness.note_disk(OTHER, is_full=True)
    fitness.note_disk(OTHER, is_full=False)
    fitness.note_disk(OTHER, is_full=False)

    assert roomy == [OTHER]
    assert not fitness.full_disks


def test_a_ping_that_says_nothing_of_disks_changes_nothing_about_them() -> None:
    fitness, _ = fitness_here()
    fitness.take(OTHER, Ping(disk_full=True, disk_failing=True))

    fitness.take(OTHER, Ping())

    assert (list(fitness.full_disks), list(fitness.failing_disks)) == ([OTHER], [OTHER])


def test_what_holds_no_more_is_taken_back_by_the_next_ping() -> None:
    fitness, roomy = fitness_here()
    fitness.take(OTHER, Ping(disk_full=True, disk_failing=True, is_crowded=True))

    fitness.take(OTHER, Ping(disk_full=False))

    assert not fitness.full_disks
    assert not fitness.failing_disks
    assert not fitness.crowded_peers
    assert roomy == [OTHER]


def test_who_went_down_is_forgotten_and_nobody_is_told_that_it_has_room() -> None:
    fitness, roomy = fitness_here()
    fitness.take(OTHER, Ping(disk_full=True, disk_failing=True, is_crowded=True))

    fitness.forget(OTHER)

    unfit = (fitness.full_disks, fitness.failing_disks, fitness.crowded_peers)
    assert list(map(list, unfit)) == [[]] * 3
    assert roomy == []


def test_what_a_node_says_of_itself_others_take_as_it_is() -> None:
    async def story() -> None:
        ours, _ = fitness_here()
        theirs = Fitness(OTHER, on_room=lambda _: None)
        ours.note_disk(OURSELVES, is_full=True)
        ours.note_failure()
        ours.note_crowd()

        theirs.take(OURSELVES, ours.ping())

        told = (theirs.full_disks, theirs.failing_disks, theirs.crowded_peers)
        assert [list(each) for each in told] == [[OURSELVES]] * 3

    trio.run(story)


def test_who_had_to_refuse_a_client_is_crowded_for_a_while() -> None:
    async def story() -> None:
        fitness, _ = fitness_here()
        before = fitness.is_crowded
        fitness.note_crowd()
        at_once = fitness.is_crowded

        await trio.sleep(CROWDED_S)

        assert (before, at_once, fitness.is_crowded) == (False, True, False)

    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))
