"""Replicas of a partition do not fail together, and the load is even."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import InvalidPartitionError, InvalidRequestError, NotEnoughBrokersError
from logd.limits import PARTITIONS_PER_TOPIC_MAX, REPLICAS_MAX
from logd.metadata.placement import BrokerPlacementInfo, place
from logd.types import NodeId

Brokers = dict[NodeId, BrokerPlacementInfo]


def brokers_of(*domains: str, racks: str = "") -> Brokers:
    """Brokers 1, 2, ... without load, on these hosts; one letter of ``racks`` each."""
    return {
        NodeId(node): BrokerPlacementInfo(domain, racks[node - 1 : node], 0, 0)
        for node, domain in enumerate(domains, start=1)
    }


def replica_counts(placements: tuple[tuple[NodeId, ...], ...]) -> Counter[NodeId]:
    return Counter(node for replicas in placements for node in replicas)


def leader_counts(placements: tuple[tuple[NodeId, ...], ...]) -> Counter[NodeId]:
    return Counter(replicas[0] for replicas in placements)


def test_three_brokers_share_the_leaders_and_their_succession() -> None:
    placements = place(6, 3, brokers_of("a", "b", "c"))

    assert placements == ((1, 2, 3), (2, 1, 3), (3, 1, 2), (1, 3, 2), (2, 3, 1), (3, 2, 1))


def test_the_rule_is_part_of_the_log_and_never_changes() -> None:
    brokers = brokers_of("a", "a", "b", "b", "c", racks="xxxyy")
    brokers[NodeId(2)] = BrokerPlacementInfo("a", "x", 3, 1)

    placements = place(7, 2, brokers)

    assert placements == ((1, 4), (3, 5), (4, 2), (5, 1), (2, 4), (3, 5), (1, 4))


def test_replicas_default_to_three_or_to_all_brokers_if_fewer() -> None:
    assert {len(replicas) for replicas in place(1, None, brokers_of("a"))} == {1}
    assert {len(replicas) for replicas in place(1, None, brokers_of("a", "b"))} == {2}
    assert {len(replicas) for replicas in place(1, None, brokers_of(*"abcde"))} == {3}


def test_a_host_with_many_brokers_gets_one_replica_while_there_is_another_host() -> None:
    brokers = brokers_of("a", "a", "a", "a", "b", "c")

    for replicas in place(12, 3, brokers):
        assert {brokers[node].failure_domain for node in replicas} == {"a", "b", "c"}


def test_brokers_on_one_host_are_used_when_there_is_no_other() -> None:
    placements = place(4, 3, brokers_of("a", "a", "a"))

    assert {frozenset(replicas) for replicas in placements} == {frozenset({1, 2, 3})}


def test_replicas_are_spread_over_racks_too() -> None:
    brokers = brokers_of("a", "b", "c", "d", racks="xxxy")

    for replicas in place(6, 2, brokers):
        assert {brokers[node].rack for node in replicas} == {"x", "y"}


def with_load(brokers: Brokers, node: int, replica_count: int, leader_count: int) -> None:
    info = brokers[NodeId(node)]
    brokers[NodeId(node)] = info._replace(replica_count=replica_count, leader_count=leader_count)


def test_a_new_broker_gets_its_share_of_a_topic_and_not_all_of_it() -> None:
    brokers = brokers_of("a", "b", "c")
    for node in (1, 2):
        with_load(brokers, node, 10, 10)

    placements = place(6, 1, brokers)

    assert placements == ((3,), (1,), (2,), (3,), (1,), (2,))


def test_topics_of_one_partition_go_to_the_broker_that_leads_least() -> None:
    brokers = brokers_of("a", "b", "c")
    with_load(brokers, 1, 3, 1)
    with_load(brokers, 3, 2, 1)

    assert place(1, 2, brokers) == ((2, 3),)


def test_the_partitions_of_a_dead_leader_go_to_different_successors() -> None:
    placements = place(12, 3, brokers_of(*"abc"))

    successors = Counter(replicas[1] for replicas in placements if replicas[0] == 1)
    assert successors == {2: 2, 3: 2}


def test_brokers_to_avoid_are_as_if_they_were_not_there_also_if_only_their_host_is_left() -> None:
    brokers = brokers_of("a", "a", "b", "a", racks="xxyx")
    with_load(brokers, 2, 3, 1)
    others = {node: info for node, info in brokers.items() if node != 3}

    placements = place(5, 2, brokers, avoid=[NodeId(3)])

    assert placements == place(5, 2, others)
    assert replica_counts(placements)[NodeId(3)] == 0


def test_if_too_few_are_left_those_to_avoid_come_last_and_share_what_is_missing() -> None:
    brokers = brokers_of("a", "b", "c", "d")

    placements = place(4, 3, brokers, avoid=[NodeId(1), NodeId(3)])

    assert placements == ((2, 4, 1), (4, 2, 3), (2, 4, 1), (4, 2, 3))


def test_of_those_to_avoid_the_one_on_another_host_comes_first() -> None:
    brokers = brokers_of("a", "a", "b")

    assert place(2, 2, brokers, avoid=[NodeId(2), NodeId(3)]) == ((1, 3), (1, 3))


def test_the_default_counts_those_to_avoid_as_well() -> None:
    assert place(1, None, brokers_of("a", "b", "c"), avoid=[NodeId(1)]) == ((2, 3, 1),)
    with pytest.raises(NotEnoughBrokersError, match="; 3 are registered"):
        place(1, 4, brokers_of("a", "b", "c"), avoid=[NodeId(1)])


@pytest.mark.parametrize("avoid", [[], [9], [1, 2, 3]], ids=["none", "a stranger", "all"])
def test_where_there_is_no_choice_to_avoid_changes_nothing(avoid: list[int]) -> None:
    brokers = brokers_of("a", "b", "c")

    assert place(6, 2, brokers, avoid=list(map(NodeId, avoid))) == place(6, 2, brokers)


@given(
    places=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), min_size=1),
    replicas=st.integers(1, REPLICAS_MAX),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_brokers_to_avoid_have_only_what_the_others_cannot(
    places: list[tuple[str, str]], replicas: int, data: st.DataObject
) -> None:
    brokers = {
        NodeId(node): BrokerPlacementInfo(host, rack, 0, 0)
        for node, (host, rack) in enumerate(places, start=1)
    }
    replicas = min(replicas, len(brokers))
    avoid = data.draw(st.sets(st.sampled_from(sorted(brokers)), max_size=len(brokers) - 1))
    others = brokers.keys() - avoid

    placements = place(10, replicas, brokers, avoid)

    for nodes in placements:
        assert len(set(nodes)) == replicas
        assert [node in avoid for node in nodes] == [at >= len(others) for at in range(replicas)]
    led = [leader_counts(placements)[node] for node in others]
    assert max(led) - min(led) <= 1


@given(
    partitions=st.integers(1, 40),
    replicas=st.integers(1, 5),
    hosts=st.integers(5, 12),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_equal_hosts_are_loaded_equally(
    partitions: int, replicas: int, hosts: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(1, hosts + 1)))
    brokers = {NodeId(n): BrokerPlacementInfo(f"host{n}", "", 0, 0) for n in order}

    placements = place(partitions, replicas, brokers)

    counted = [replica_counts(placements)[node] for node in brokers]
    led = [leader_counts(placements)[node] for node in brokers]
    assert max(counted) - min(counted) <= 1
    assert max(led) - min(led) <= 1
    assert all(len(set(nodes)) == replicas for nodes in placements)


@given(
    places=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), min_size=1),
    replicas=st.integers(1, REPLICAS_MAX),
)
@settings(max_examples=40, deadline=None)
def test_no_host_holds_two_replicas_while_another_holds_none(
    places: list[tuple[str, str]], replicas: int
) -> None:
    brokers = {
        NodeId(node): BrokerPlacementInfo(host, rack, 0, 0)
        for node, (host, rack) in enumerate(places, start=1)
    }
    replicas = min(replicas, len(brokers))
    hosts = {info.failure_domain for info in brokers.values()}

    for nodes in place(10, replicas, brokers):
        used = Counter(brokers[node].failure_domain for node in nodes)
        assert len(used) == min(len(hosts), replicas)
        assert len(set(nodes)) == replicas


@pytest.mark.parametrize("partitions", [-1, 0, PARTITIONS_PER_TOPIC_MAX + 1, 10**6])
def test_a_partition_count_out_of_range_is_refused(partitions: int) -> None:
    with pytest.raises(InvalidPartitionError, match=f"{partitions} partitions.*1 to 2000"):
        place(partitions, 1, brokers_of("a"))


def test_more_replicas_than_brokers_are_refused_with_both_numbers() -> None:
    with pytest.raises(NotEnoughBrokersError, match=r"10 replicas .*; 3 are registered"):
        place(1, 10, brokers_of("a", "b", "c"))


def test_without_a_broker_there_is_no_default() -> None:
    with pytest.raises(NotEnoughBrokersError, match="; 0 are registered"):
        place(1, None, {})


@pytest.mark.parametrize("replicas", [-1, 0, REPLICAS_MAX + 1])
def test_a_replica_count_out_of_range_is_refused(replicas: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{replicas} replicas.*1 to 7"):
        place(1, replicas, brokers_of(*"abcdefgh"))
