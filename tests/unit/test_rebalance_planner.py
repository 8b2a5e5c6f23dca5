"""A plan reaches its goals in their order, moves few bytes, and says why of every move."""

import random
from collections import Counter

import pytest

from logd.limits import MIB
from logd.metadata.rebalance.cluster import BrokerLoad, Goals, PartitionLoad, Stranded
from logd.metadata.rebalance.draft import Draft, Step
from logd.metadata.rebalance.planner import Reason, RebalancePlan, make_plan, plan_only
from logd.metadata.rebalance.shares import ranges_of
from logd.types import GroupId, NodeId, TopicPartition
from tests.support.optimum import Excess, fewest_bytes

QUICKLY = Goals(evaluations_max=5_000)


def brokers_of(*domains: str) -> list[BrokerLoad]:
    """Brokers 1, 2, ... on these hosts."""
    return [BrokerLoad(NodeId(node), domain) for node, domain in enumerate(domains, start=1)]


def partition_of(
    number: int, replicas: tuple[int, ...], size_bytes: int = MIB, rate: int = 0
) -> PartitionLoad:
    return PartitionLoad(
        GroupId(number + 1),
        TopicPartition("orders", number),
        tuple(map(NodeId, replicas)),
        size_bytes,
        rate,
    )


def layout_after(
    partitions: list[PartitionLoad], plan: RebalancePlan
) -> dict[GroupId, tuple[NodeId, ...]]:
    return {p.group: p.replicas for p in partitions} | {m.group: m.after for m in plan.moves}


def replica_counts(partitions: list[PartitionLoad], plan: RebalancePlan) -> Counter[int]:
    return Counter(n for nodes in layout_after(partitions, plan).values() for n in nodes)


def test_an_even_cluster_needs_no_moves() -> None:
    partitions = [partition_of(n, ((1, 2, 3), (2, 3, 1), (3, 1, 2))[n % 3]) for n in range(6)]

    plan = make_plan(brokers_of("a", "b", "c"), partitions, QUICKLY)

    assert plan.moves == ()
    assert plan.balance_before == plan.balance_after == (0, 0, 0, 0)


def test_brokers_that_joined_get_their_share_and_no_byte_is_moved_twice() -> None:
    partitions = [
        partition_of(n, ((1, 2, 3), (2, 3, 1), (3, 1, 2))[n % 3], rate=10) for n in range(60)
    ]

    plan = make_plan(brokers_of(*"abcde"), partitions, QUICKLY)

    assert set(replica_counts(partitions, plan).values()) <= {35, 36, 37}
    assert 70 * MIB <= plan.bytes <= 72 * MIB
    leaders = Counter(nodes[0] for nodes in layout_after(partitions, plan).values())
    assert set(leaders.values()) <= {12}
    assert plan.balance_before.replicas == 1.0
    assert max(plan.balance_after) <= 0.05


def test_every_move_states_its_bytes_its_time_and_the_balance_around_it() -> None:
    partitions = [partition_of(n, (1, 2, 3), size_bytes=10 * MIB) for n in range(12)]

    plan = make_plan(
        brokers_of(*"abcd"), partitions, QUICKLY._replace(throttle_bytes_per_s=5 * MIB)
    )

    for move in plan.moves:
        assert move.bytes == len(move.added) * 10 * MIB
        assert move.estimated_s == 2.0 * len(move.added)
        assert move.detail
    assert [m.balance_before for m in plan.moves[1:]] == [m.balance_after for m in plan.moves[:-1]]
    assert plan.bytes == sum(move.bytes for move in plan.moves)
    assert plan.moves[0].reason is Reason.REPLICAS
    assert plan.moves[0].detail == "broker 3 has 12 replicas, even is 9"


def test_a_draining_broker_is_emptied_and_nothing_else_is_touched() -> None:
    brokers = brokers_of(*"abcd")
    brokers[3] = brokers[3]._replace(is_draining=True)
    partitions = [
        partition_of(0, (4, 1, 2)),
        partition_of(1, (1, 2, 3)),
        partition_of(2, (2, 3, 4)),
    ]

    plan = make_plan(brokers, partitions, QUICKLY._replace(is_balancing=False))

    assert {move.name.partition for move in plan.moves} == {0, 2}
    assert {move.reason for move in plan.moves} == {Reason.DRAINING}
    assert {move.detail for move in plan.moves} == {"broker 4 is draining"}
    assert 4 not in replica_counts(partitions, plan)


def test_replicas_that_were_lost_come_before_everything_else() -> None:
    brokers = brokers_of(*"abcdef")
    brokers[0] = brokers[0]._replace(is_draining=True)
    brokers[5] = brokers[5]._replace(is_dead=True)
    partitions = [
        partition_of(0, (2, 3, 1)),
        partition_of(1, (2, 3, 6)),
        *(partition_of(n, (2, 3, 4)) for n in range(2, 12)),
    ]

    plan = make_plan(brokers, partitions, QUICKLY)

    ranks = [list(Reason).index(move.reason) for move in plan.moves]
    assert ranks[:2] == sorted(ranks[:2])
    assert plan.moves[0].reason is Reason.DEAD
    assert plan.moves[0].name.partition == 1
    assert plan.moves[1].reason is Reason.DRAINING


def test_replicas_on_one_host_are_separated_even_if_that_unbalances() -> None:
    brokers = brokers_of("a", "a", "b")

    plan = make_plan(brokers, [partition_of(n, (1, 2)) for n in range(4)], QUICKLY)

    assert {move.reason for move in plan.moves} == {Reason.FAILURE_DOMAIN}
    assert len(plan.moves) == 4
    assert all(3 in move.after for move in plan.moves)


def test_a_lone_host_is_not_asked_to_hold_a_partition_twice() -> None:
    brokers = brokers_of("a", "a", "a", "b")
    partitions = [partition_of(n, (1, 4)) for n in range(12)]

    plan = make_plan(brokers, partitions, QUICKLY)

    assert replica_counts(partitions, plan) == {1: 4, 2: 4, 3: 4, 4: 12}


def test_bytes_are_evened_out_where_the_counts_are_even_already() -> None:
    partitions = [
        *(partition_of(n, (1,), size_bytes=9 * MIB) for n in range(10)),
        *(partition_of(n, (2,), size_bytes=3 * MIB) for n in range(10, 20)),
    ]

    plan = make_plan(brokers_of("a", "b"), partitions, QUICKLY)

    assert replica_counts(partitions, plan) == {1: 10, 2: 10}
    assert plan.balance_after.bytes <= 0.05
    assert Reason.BYTES in {move.reason for move in plan.moves}


def test_leaders_change_without_moving_bytes() -> None:
    partitions = [partition_of(n, (1, 2, 3)) for n in range(6)]

    plan = make_plan(brokers_of(*"abc"), partitions, QUICKLY)

    assert plan.bytes == 0
    assert {move.reason for move in plan.moves} == {Reason.LEADERS}
    leaders = Counter(nodes[0] for nodes in layout_after(partitions, plan).values())
    assert leaders == {1: 2, 2: 2, 3: 2}


def test_only_the_first_of_the_replicas_is_chosen_the_others_keep_their_order() -> None:
    brokers, partitions = random_cluster(seed=3)

    plan = make_plan(brokers, partitions, QUICKLY)

    for move in plan.moves:
        stays = [node for node in move.before if node in move.after]
        others = [node for node in move.after[1:] if node in move.before]
        assert others == [node for node in stays if node != move.after[0]]
        assert move.added or move.after[0] != move.before[0]


def test_leadership_is_passed_along_a_chain_where_no_broker_can_give_it_directly() -> None:
    partitions = [
        *(partition_of(n, (1, 2)) for n in range(4)),
        *(partition_of(n, (2, 3)) for n in range(4, 6)),
    ]

    plan = make_plan(brokers_of(*"abc"), partitions, QUICKLY._replace(tolerance=10.0))
    assert plan.moves == ()

    leaders = Counter(
        nodes[0]
        for nodes in layout_after(
            partitions, make_plan(brokers_of(*"abc"), partitions, QUICKLY._replace(tolerance=0.0))
        ).values()
    )
    assert leaders == {1: 2, 2: 2, 3: 2}


def test_more_replicas_are_added_and_surplus_ones_taken_away() -> None:
    more = partition_of(0, (1,))._replace(replica_count=3)
    fewer = partition_of(1, (1, 2, 3))._replace(replica_count=1)

    plan = make_plan(brokers_of(*"abc"), [more, fewer], QUICKLY._replace(is_balancing=False))

    assert {len(move.before): len(move.after) for move in plan.moves} == {1: 3, 3: 1}
    assert {move.reason for move in plan.moves} == {Reason.REPLICA_COUNT}


def test_the_last_place_goes_to_a_copy_that_is_lost_before_one_that_only_has_to_leave() -> None:
    brokers = brokers_of(*"abcd")
    brokers[0] = brokers[0]._replace(is_draining=True)
    brokers[1] = brokers[1]._replace(is_dead=True)

    plan = make_plan(brokers, [partition_of(0, (1, 2, 3))], QUICKLY._replace(is_balancing=False))

    (move,) = plan.moves
    assert (move.removed, move.added) == ((2,), (4,))
    assert move.reason is Reason.DEAD
    assert [name.partition for name in plan.unplaced] == [0]


def test_of_surplus_replicas_the_lost_ones_go_first() -> None:
    brokers = brokers_of(*"abc")
    brokers[0] = brokers[0]._replace(is_dead=True)
    brokers[1] = brokers[1]._replace(is_draining=True)
    partition = partition_of(0, (2, 1, 3))._replace(replica_count=2)

    plan = make_plan(brokers, [partition], QUICKLY._replace(is_balancing=False))

    (move,) = plan.moves
    assert move.removed == (1,)


def test_what_cannot_be_placed_stays_where_it_is_and_is_named() -> None:
    brokers = brokers_of(*"abc")
    brokers[2] = brokers[2]._replace(is_draining=True)
    partition = partition_of(7, (1, 2, 3))

    plan = make_plan(brokers, [partition], QUICKLY._replace(is_balancing=False))

    assert plan.unplaced == (partition.name,)
    assert layout_after([partition], plan)[partition.group] == (1, 2, 3)


def test_partitions_that_nobody_can_lead_are_named_and_left_alone_and_the_rest_is_moved() -> None:
    brokers = brokers_of(*"abcd")
    brokers[3] = brokers[3]._replace(is_dead=True)
    only_copy, one_of_two = partition_of(0, (4,)), partition_of(1, (1, 4))
    one_of_three = partition_of(2, (4, 1, 2))

    for goals in (QUICKLY, QUICKLY._replace(is_balancing=False)):
        plan = make_plan(brokers, [only_copy, one_of_two, one_of_three], goals)

        assert plan.stranded == (
            Stranded(only_copy.name, (NodeId(4),), (NodeId(4),)),
            Stranded(one_of_two.name, (NodeId(1), NodeId(4)), (NodeId(4),)),
        )
        assert plan.unplaced == ()
        assert [(move.name, set(move.after)) for move in plan.moves] == [
            (one_of_three.name, {1, 2, 3})
        ]


def test_of_the_partitions_that_nobody_can_lead_only_those_that_a_plan_is_for_are_named() -> None:
    brokers = brokers_of(*"abc")
    brokers[1:] = [broker._replace(is_dead=True) for broker in brokers[1:]]
    asked, other = partition_of(0, (2,)), partition_of(1, (3,))

    plan = plan_only(brokers, [asked, other], {asked.group}, QUICKLY)

    assert [each.name for each in plan.stranded] == [asked.name]
    assert plan.moves == ()


def test_with_no_broker_left_to_hold_anything_what_nobody_can_lead_is_told_apart() -> None:
    brokers = brokers_of("a", "b")
    brokers[0] = brokers[0]._replace(is_draining=True)
    brokers[1] = brokers[1]._replace(is_dead=True)
    healthy, lost = partition_of(0, (1,)), partition_of(1, (2,))

    plan = make_plan(brokers, [healthy, lost], QUICKLY)

    assert plan.unplaced == (healthy.name,)
    assert [each.name for each in plan.stranded] == [lost.name]


def test_copies_of_what_nobody_can_lead_still_take_room() -> None:
    brokers = brokers_of(*"abcd")
    brokers[2] = brokers[2]._replace(bytes_max=3 * MIB)
    brokers[3] = brokers[3]._replace(is_dead=True)
    stranded = partition_of(0, (3, 4), size_bytes=3 * MIB)
    partitions = [stranded, *(partition_of(n, (1,)) for n in range(1, 7))]

    plan = make_plan(brokers, partitions, QUICKLY)

    assert all(3 not in move.after for move in plan.moves)


def test_a_disk_without_room_gets_nothing() -> None:
    brokers = brokers_of(*"abc")
    brokers[1] = brokers[1]._replace(bytes_max=2 * MIB)
    partitions = [partition_of(n, (1,)) for n in range(12)]

    plan = make_plan(brokers, partitions, QUICKLY)

    counts = replica_counts(partitions, plan)
    assert counts[2] <= 2
    assert counts[1] + counts[3] >= 10


def test_a_plan_is_bounded_and_says_what_is_left_out() -> None:
    partitions = [partition_of(n, (1,)) for n in range(20)]

    plan = make_plan(brokers_of("a", "b"), partitions, QUICKLY._replace(moves_max=3))

    assert len(plan.moves) == 3
    assert plan.left_out > 0


def random_cluster(seed: int) -> tuple[list[BrokerLoad], list[PartitionLoad]]:
    """Brokers that have joined, are draining or dead, or are just unevenly loaded."""
    chance = random.Random(seed)
    count = chance.randint(4, 6)
    brokers = brokers_of(*(f"host{n % chance.choice([count, count - 1])}" for n in range(count)))
    story = chance.choice(["joined", "draining", "dead", "skewed"])
    used = count - 1 if story == "joined" else count
    if story in ("draining", "dead"):
        at = chance.randrange(count)
        brokers[at] = brokers[at]._replace(is_draining=story == "draining", is_dead=story == "dead")
    spread = chance.choice([0.1, 0.5, 1.0])
    weights = [3 if story == "skewed" and n == 0 else 1 for n in range(used)]
    partitions = []
    for number in range(chance.randint(8, 24)):
        replicas: list[int] = []
        while len(replicas) < (3 if story == "dead" else 2):  # The living can lead it.
            node = chance.choices(range(1, used + 1), weights)[0]
            if node not in replicas:
                replicas.append(node)
        size, rate = int(chance.lognormvariate(18, spread)), int(chance.lognormvariate(12, spread))
        partitions.append(partition_of(number, tuple(replicas), size, rate))
    return brokers, partitions


def test_equal_clusters_give_equal_plans_in_whatever_order_they_are_listed() -> None:
    brokers, partitions = random_cluster(seed=1)

    plan = make_plan(brokers, partitions, QUICKLY)

    assert make_plan(brokers[::-1], partitions[::-1], QUICKLY) == plan


def test_what_a_step_moves_is_weighed_also_where_replicas_have_to_share_a_host() -> None:
    brokers = brokers_of(*"aabb")
    small, large = partition_of(0, (1, 2, 3), 999), partition_of(1, (1, 2, 3), 10**9 - 999)
    draft = Draft(brokers, [small, large], ranges_of(brokers, [small, large], 10.0))

    gain = draft.gain(Step(partition=0, source=0, target=3))

    assert gain == pytest.approx(-1000 / (3 * 10**9))


def test_an_empty_partition_gains_nothing_by_going_to_and_fro() -> None:
    brokers = brokers_of(*"abc")
    partitions = [partition_of(0, (1,), 0, rate=100), partition_of(1, (2,), 0)]
    draft = Draft(brokers, partitions, ranges_of(brokers, partitions, 0.05))
    there = Step(partition=0, source=0, target=1, other=1)

    gain_there = draft.gain(there)
    draft.take(there)
    gain_back = draft.gain(Step(partition=0, source=1, target=0, other=1))

    assert gain_there < 0
    assert gain_back == -gain_there
    assert make_plan(brokers, partitions, QUICKLY).moves == ()


def beside_large_ones() -> list[PartitionLoad]:
    """Three brokers of four have a large partition: no move of a small one makes up for that."""
    large = [partition_of(n, (node,), 40 * MIB) for n, node in enumerate((1, 3, 4))]
    small = [
        partition_of(3 + n, (node,), 999 * n) for n, node in enumerate((1, 2, 3, 4, 2, 1, 3, 4, 2))
    ]
    return large + small


def test_small_partitions_do_not_go_to_and_fro_beside_large_ones_where_little_is_not_worth_it() -> (
    None
):
    brokers, partitions = brokers_of(*"abcd"), beside_large_ones()
    goals = QUICKLY._replace(gain_min=0.05)

    assert make_plan(brokers, partitions, QUICKLY).moves
    assert make_plan(brokers, partitions, goals).moves == ()
    partitions.append(partition_of(12, (1,), 38 * MIB))
    assert [move.after for move in make_plan(brokers, partitions, goals).moves if move.bytes > MIB]


def test_what_must_be_moved_is_moved_however_little_evening_out_gains() -> None:
    brokers, partitions = brokers_of(*"abcd"), beside_large_ones()
    drained = brokers[1]._replace(is_draining=True)
    goals = QUICKLY._replace(gain_min=1e9)

    plan = make_plan([drained if b.node == 2 else b for b in brokers], partitions, goals)

    assert {move.before for move in plan.moves} == {(NodeId(2),)}
    assert all(2 not in replicas for replicas in layout_after(partitions, plan).values())


@pytest.mark.parametrize("seeds", [range(4), range(4, 8)], ids=str)
def test_about_as_few_bytes_are_moved_as_a_solver_needs_for_the_same_balance(
    seeds: range,
) -> None:
    ours_total, best_total = 0, 0
    for seed in seeds:
        brokers, partitions = random_cluster(seed)
        goals = Goals()

        plan = make_plan(brokers, partitions, goals)

        assert plan.unplaced == ()
        assert plan.stranded == ()
        targets = [broker for broker in brokers if broker.is_target]
        ranges = ranges_of(targets, partitions, goals.tolerance)
        loads: dict[NodeId, list[int]] = {broker.node: [0, 0, 0] for broker in targets}
        for partition in partitions:
            for node in layout_after(partitions, plan)[partition.group]:
                loads[node][0] += 1
                loads[node][1] += partition.size_bytes
                loads[node][2] += partition.write_bytes_per_s
        excesses = [
            [ranges[node][kind].excess(loads[node][kind]) for node in loads] for kind in range(3)
        ]
        allowed = [Excess(max(kind), sum(kind)) for kind in excesses]
        best = fewest_bytes(brokers, partitions, ranges, allowed)
        assert plan.bytes <= 1.1 * best
        ours_total += plan.bytes
        best_total += best

    assert best_total <= ours_total * 1.01
    assert ours_total <= 1.03 * best_total
