"""Leadership moves to a caught-up replica that leads at least two partitions fewer."""

from __future__ import annotations

from logd.broker.leader_balancer import Led, choose_transfer
from logd.types import GroupId, NodeId

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def test_an_even_spread_is_left_alone() -> None:
    led = [Led(GroupId(1), [TWO, THREE])]

    assert choose_transfer(ONE, led, {ONE: 1, TWO: 1, THREE: 1}) is None


def test_a_difference_of_one_is_left_alone() -> None:
    led = [Led(GroupId(1), [TWO]), Led(GroupId(2), [TWO])]

    assert choose_transfer(ONE, led, {ONE: 2, TWO: 1}) is None


def test_the_replica_that_leads_least_takes_over() -> None:
    led = [Led(GroupId(1), [TWO, THREE]), Led(GroupId(2), [THREE, TWO])]

    assert choose_transfer(ONE, led, {ONE: 3, TWO: 1}) == (GroupId(1), THREE)


def test_among_equals_the_preferred_replica_takes_over() -> None:
    led = [Led(GroupId(1), [THREE, TWO])]

    assert choose_transfer(ONE, led, {ONE: 2}) == (GroupId(1), THREE)


def test_nobody_who_is_not_caught_up_takes_over() -> None:
    assert choose_transfer(ONE, [Led(GroupId(1), [])], {ONE: 5}) is None


def test_a_broker_that_leads_little_gives_nothing_away() -> None:
    led = [Led(GroupId(1), [TWO])]

    assert choose_transfer(ONE, led, {ONE: 1, TWO: 4}) is None
