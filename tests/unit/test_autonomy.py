"""What the controller takes the brokers to have room for."""

from __future__ import annotations

from logd.broker.autonomy import _Loads, _room
from logd.metadata.rebalance.cluster import DISK_SHARE_MAX
from logd.types import GroupId, NodeId
from tests.unit.test_metadata_moves import five_brokers, left_behind

FREE = 1_000
LEFT, OTHER = GroupId(1), GroupId(2)


def loads() -> _Loads:
    found = _Loads()
    found.sizes = {LEFT: 300, OTHER: 50}
    found.free = {NodeId(node): FREE for node in range(1, 5)}
    return found


def test_a_broker_has_room_for_what_is_free_and_for_what_it_holds_already() -> None:
    state = five_brokers(partitions=2)
    held = {p.group for p in state.partitions_on(NodeId(1))}

    assert held == {LEFT, OTHER}
    assert _room(state, NodeId(1), loads()) == FREE * DISK_SHARE_MAX + 300 + 50


def test_what_a_plan_left_behind_takes_room_that_no_other_partition_gets() -> None:
    state = left_behind()

    assert _room(state, NodeId(1), loads()) == FREE * DISK_SHARE_MAX + 50
    assert _room(state, NodeId(4), loads()) == FREE * DISK_SHARE_MAX  # On its way there.


def test_what_is_not_planned_for_takes_room_that_no_other_partition_gets() -> None:
    state = five_brokers(partitions=2)

    assert _room(state, NodeId(1), loads(), {LEFT}) == FREE * DISK_SHARE_MAX + 50


def test_a_broker_with_a_full_or_failing_disk_has_room_for_what_it_holds_and_no_more() -> None:
    """Whether it says how much is free, or not: a failing disk may have any amount."""
    found = loads()
    found.unfit = (NodeId(1), NodeId(5))

    assert _room(five_brokers(partitions=2), NodeId(1), found) == 300 + 50
    assert _room(five_brokers(partitions=2), NodeId(5), found) == 0


def test_the_room_of_a_broker_that_does_not_say_is_not_known() -> None:
    assert _room(five_brokers(), NodeId(5), loads()) is None
