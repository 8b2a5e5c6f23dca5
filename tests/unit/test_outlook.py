"""What is said of a missing broker's replicas is what a plan would do for them."""

import random

from logd.metadata.rebalance.cluster import BrokerLoad, Goals, PartitionLoad
from logd.metadata.rebalance.outlook import Outlook, outlook
from logd.metadata.rebalance.planner import make_plan
from logd.types import GroupId, NodeId, TopicPartition


def nodes(*numbers: int) -> tuple[NodeId, ...]:
    return tuple(map(NodeId, numbers))


def test_replicas_are_rebuilt_on_brokers_that_have_none_while_a_majority_is_alive() -> None:
    lists = [nodes(4), nodes(1, 4), nodes(1, 4, 2), nodes(4, 5, 1, 2, 3)]

    assert outlook(NodeId(4), lists, nodes(4), nodes(1, 2, 3, 5)) == Outlook(1, 1, 2)


def test_of_two_missing_replicas_one_is_rebuilt_where_one_broker_is_left() -> None:
    lists = [nodes(1, 2, 3, 4, 5)]

    assert outlook(NodeId(4), lists, nodes(4, 5), nodes(1, 2, 3, 6)) == Outlook(1, 0, 0)
    assert outlook(NodeId(5), lists, nodes(4, 5), nodes(1, 2, 3, 6)) == Outlook(0, 1, 0)


def test_a_missing_replica_is_rebuilt_before_one_that_only_has_to_leave() -> None:
    assert outlook(NodeId(2), [nodes(1, 2, 3)], nodes(2), nodes(3, 4)) == Outlook(1, 0, 0)


def test_the_outlook_says_how_many_and_why_not_the_others() -> None:
    when = "rebuilt elsewhere in 9 s"

    assert Outlook(3, 0, 0).text(when) == "its 3 replicas are rebuilt elsewhere in 9 s"
    assert Outlook(1, 2, 3).text(when) == (
        "1 of its 6 replicas is rebuilt elsewhere in 9 s; "
        "2 cannot be rebuilt: there is no other broker to take them; "
        "3 cannot be rebuilt: too few copies are alive to elect a leader"
    )
    assert Outlook(1, 0, 0).text(when) == "its 1 replica is rebuilt elsewhere in 9 s"
    assert Outlook(0, 2, 0).text(when) == (
        "its 2 replicas cannot be rebuilt: there is no other broker to take them"
    )


def test_a_plan_does_what_the_outlook_said() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        count = chance.randint(2, 6)
        everyone = nodes(*range(1, count + 1))
        missing = nodes(*chance.sample(everyone, chance.randint(1, min(2, count - 1))))
        takers = [n for n in everyone if n not in missing and chance.random() < 0.8]
        partitions = [
            PartitionLoad(
                GroupId(at + 1),
                TopicPartition("t", at),
                tuple(chance.sample(everyone, chance.randint(1, count))),
                100,
            )
            for at in range(10)
        ]
        brokers = [
            BrokerLoad(
                n,
                f"host{n}",
                is_dead=n in missing,
                is_draining=n not in missing and n not in takers,
            )
            for n in everyone
        ]

        plan = make_plan(brokers, partitions, Goals(is_balancing=False))

        after = {move.group: move.after for move in plan.moves}
        for node in missing:
            held = [p for p in partitions if node in p.replicas]
            told = outlook(node, [p.replicas for p in held], missing, takers)
            assert told.rebuilt == sum(node not in after.get(p.group, p.replicas) for p in held)
            assert told.stranded == sum(node in each.replicas for each in plan.stranded)
