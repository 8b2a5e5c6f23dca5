"""Leadership moves to a caught-up replica that leads at least two partitions fewer."""

from __future__ import annotations

from logd.broker.leader_balancer import TRANSFERS_AT_ONCE, Led, choose_transfers
from logd.types import GroupId, NodeId

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def test_an_even_spread_is_left_alone() -> None:
    led = [Led(GroupId(1), [TWO, THREE])]

    assert choose_transfers(ONE, led, {ONE: 1, TWO: 1, THREE: 1}) == []


def test_a_difference_of_one_is_left_alone() -> None:
    led = [Led(GroupId(1), [TWO]), Led(GroupId(2), [TWO])]

    assert choose_transfers(ONE, led, {ONE: 2, TWO: 1}) == []


def test_the_replica_that_leads_least_takes_over() -> None:
    led = [Led(GroupId(1), [TWO, THREE]), Led(GroupId(2), [THREE, TWO])]

    assert choose_transfers(ONE, led, {ONE: 3, TWO: 1}) == [(GroupId(1), THREE)]


def test_among_equals_the_preferred_replica_takes_over() -> None:
    led = [Led(GroupId(1), [THREE, TWO])]

    assert choose_transfers(ONE, led, {ONE: 2}) == [(GroupId(1), THREE)]


def test_nobody_who_is_not_caught_up_takes_over() -> None:
    assert choose_transfers(ONE, [Led(GroupId(1), [])], {ONE: 5}) == []


def test_a_broker_that_leads_little_gives_nothing_away() -> None:
    led = [Led(GroupId(1), [TWO])]

    assert choose_transfers(ONE, led, {ONE: 1, TWO: 4}) == []


def test_of_a_large_difference_several_go_at_once() -> None:
    led = [Led(GroupId(number), [TWO, THREE]) for number in range(1, 101)]

    chosen = choose_transfers(ONE, led, {ONE: 100})

    assert len(chosen) == TRANSFERS_AT_ONCE
    assert len({group for group, _ in chosen}) == TRANSFERS_AT_ONCE
    assert [to for _, to in chosen].count(TWO) == TRANSFERS_AT_ONCE // 2


def test_two_that_give_to_the_same_broker_at_once_do_not_overshoot() -> None:
    counts = {ONE: 12, TWO: 12, THREE: 0}
    led = [Led(GroupId(number), [THREE]) for number in range(1, 13)]

    given = choose_transfers(ONE, led, counts) + choose_transfers(TWO, led, counts)

    assert len(given) == 6
