"""Enough brokers vote in the metadata log, an odd number of them, and no machine has a majority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from hypothesis import given
from hypothesis import strategies as st

from logd.broker.metadata_voters import WORTH_A_CHANGE, choose_voters, voters_wanted
from logd.types import NodeId

ONE, TWO, THREE, FOUR, FIVE, SIX = (NodeId(number) for number in range(1, 7))


def chosen(
    voters: Sequence[NodeId],
    domains: dict[NodeId, str],
    *,
    lost: Collection[NodeId] = (),
    down: Collection[NodeId] = (),
) -> list[NodeId]:
    heirs = [node for node in domains if node not in (*voters, *lost, *down)]
    return choose_voters(voters, heirs, domains, lost=lost, controller=voters[0])


def test_enough_brokers_vote_and_an_odd_number_of_them() -> None:
    assert [voters_wanted(count) for count in (1, 2, 3, 4, 5, 6, 50)] == [1, 1, 3, 3, 5, 5, 5]


def test_those_who_have_caught_up_vote_when_there_are_enough_brokers() -> None:
    domains = dict.fromkeys((ONE, TWO, THREE, FOUR, FIVE), "here")

    assert chosen([ONE], domains) == [ONE, TWO, THREE, FOUR, FIVE]
    assert chosen([ONE], domains, down=[TWO, THREE, FOUR, FIVE]) == [ONE]


def test_nothing_is_changed_without_need() -> None:
    domains = {node: f"host {node}" for node in (ONE, TWO, THREE, FOUR)}

    assert chosen([FOUR, TWO, ONE], domains) == [FOUR, TWO, ONE]


def test_founders_that_are_not_registered_yet_share_no_machine() -> None:
    voters = choose_voters(
        [ONE, TWO, THREE], [FOUR], {ONE: "a", FOUR: "d"}, lost=(), controller=ONE
    )

    assert voters == [ONE, TWO, THREE]


def test_votes_go_to_machines_that_have_none() -> None:
    """Two brokers on each of three machines, of which one founded the cluster."""
    domains = {ONE: "a", TWO: "a", THREE: "b", FOUR: "b", FIVE: "c", SIX: "c"}

    voters = chosen([ONE], domains)

    assert sorted(Counter(domains[node] for node in voters).values()) == [1, 2, 2]


def test_a_machine_that_would_be_a_majority_gives_votes_away_once_there_are_others() -> None:
    """Three brokers on one machine founded the cluster; two machines came later."""
    domains = {ONE: "a", TWO: "a", THREE: "a", FOUR: "b"}

    assert chosen([ONE, TWO, THREE], domains) == [ONE, FOUR, THREE]
    assert chosen([ONE, TWO, THREE], domains | {FIVE: "c", SIX: "b"}) == [1, 6, 3, 4, 5]


def test_the_controller_goes_on_voting() -> None:
    domains = {ONE: "a", TWO: "a", THREE: "a", FOUR: "b"}

    assert choose_voters([ONE, TWO, THREE], [FOUR], domains, lost=(), controller=ONE) == [1, 4, 3]
    assert choose_voters([ONE, TWO, THREE], [FOUR], domains, lost=(), controller=TWO) == [4, 2, 3]


def test_a_lost_voter_is_replaced_at_its_place_by_one_of_another_machine() -> None:
    domains = {ONE: "a", TWO: "b", THREE: "c", FOUR: "a", FIVE: "c"}

    voters = chosen([ONE, TWO, THREE], domains, lost=[THREE], down=[FIVE])

    assert voters[:2] == [ONE, TWO]
    assert voters[2] == FOUR


def test_a_lost_voter_stays_while_there_is_nobody_to_take_its_place() -> None:
    domains = {ONE: "a", TWO: "b", THREE: "c"}

    assert chosen([ONE, TWO, THREE], domains, lost=[THREE]) == [ONE, TWO, THREE]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 5))
def test_votes_are_spread_as_evenly_as_machines_allow(hosts: list[int], founders: int) -> None:
    domains = {NodeId(number): f"host {host}" for number, host in enumerate(hosts, 1)}
    nodes = list(domains)

    voters = chosen(nodes[:founders], domains)

    assert len(set(voters)) == len(voters) >= min(len(nodes), founders)
    assert voters[0] == nodes[0]
    counts = Counter(domains[node] for node in voters)
    for node in voters[1:]:
        for other in nodes:
            if other not in voters:
                assert counts[domains[node]] - counts[domains[other]] < WORTH_A_CHANGE
    assert chosen(voters, domains) == voters, "it is left at that"
