"""How many groups of one node campaign at a time, and which of them first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from logd.replication.campaigns import CAMPAIGNS_MAX, PLACE_HELD_MS, Campaigns
from logd.replication.group import Group
from logd.types import GroupId


class Node:
    """Groups that campaign when they may, until somebody says how it ended."""

    def __init__(self) -> None:
        self.campaigns = Campaigns(self.begin)
        self.begun: list[int] = []
        self.settled: dict[int, Group] = {}
        """Groups that win, or find a leader, as soon as they begin."""

    def group(self, group_id: int, *, is_preferred: bool = True) -> Group:
        core = SimpleNamespace(is_campaigning=False, is_preferred=is_preferred)
        return cast(Group, SimpleNamespace(group_id=GroupId(group_id), core=core))

    def begin(self, group: Group) -> None:
        self.begun.append(group.group_id)
        set_campaigning(group, group.group_id not in self.settled)


def set_campaigning(group: Group, is_campaigning: bool) -> None:
    cast(SimpleNamespace, group.core).is_campaigning = is_campaigning


def test_only_so_many_campaigns_are_under_way() -> None:
    node = Node()
    groups = [node.group(number) for number in range(CAMPAIGNS_MAX + 3)]
    node.campaigns.want(groups, now_ms=0)

    assert node.begun == list(range(CAMPAIGNS_MAX)), "those that are due longest"


def test_a_place_that_becomes_free_is_taken_by_the_next() -> None:
    node = Node()
    groups = [node.group(number) for number in range(CAMPAIGNS_MAX + 3)]
    node.campaigns.want(groups, now_ms=0)

    set_campaigning(groups[5], False)
    assert node.campaigns.reconsider(groups[5], is_due=False), "somebody waits for its place"
    node.campaigns.want([], now_ms=1)

    assert node.begun[CAMPAIGNS_MAX:] == [CAMPAIGNS_MAX]


def test_groups_this_node_is_first_to_lead_go_before_those_others_may_win_meanwhile() -> None:
    node = Node()
    full = [node.group(number) for number in range(CAMPAIGNS_MAX)]
    node.campaigns.want(full, now_ms=0)
    node.campaigns.want([node.group(101, is_preferred=False), node.group(102)], now_ms=1)

    node.campaigns.want([], now_ms=PLACE_HELD_MS)

    assert node.begun[CAMPAIGNS_MAX:] == [102, 101]


def test_who_has_found_a_leader_while_it_waited_does_not_campaign() -> None:
    node = Node()
    node.campaigns.want([node.group(number) for number in range(CAMPAIGNS_MAX)], now_ms=0)
    waiting = [node.group(101), node.group(102, is_preferred=False), node.group(103)]
    node.campaigns.want(waiting, now_ms=0)

    for group in waiting[:2]:
        assert not node.campaigns.reconsider(group, is_due=False)
    node.campaigns.want([], now_ms=PLACE_HELD_MS)

    assert node.begun[CAMPAIGNS_MAX:] == [103]


def test_a_campaign_that_gets_nowhere_keeps_its_place_for_a_moment_only() -> None:
    node = Node()
    node.campaigns.want([node.group(number) for number in range(CAMPAIGNS_MAX)], now_ms=0)
    node.campaigns.want([node.group(101)], now_ms=7)
    assert node.campaigns.next_place_ms == PLACE_HELD_MS

    node.campaigns.want([], now_ms=PLACE_HELD_MS - 1)
    assert 101 not in node.begun
    node.campaigns.want([], now_ms=PLACE_HELD_MS)
    assert 101 in node.begun


def test_a_campaign_that_has_failed_waits_behind_the_others() -> None:
    node = Node()
    groups = [node.group(number) for number in range(CAMPAIGNS_MAX)]
    node.campaigns.want(groups, now_ms=0)
    node.campaigns.want([node.group(101)], now_ms=1)

    node.campaigns.want([groups[0]], now_ms=2)

    assert node.begun[CAMPAIGNS_MAX:] == [101]
    node.campaigns.want([], now_ms=PLACE_HELD_MS)
    assert node.begun[CAMPAIGNS_MAX + 1 :] == [0]


def test_who_wins_at_once_takes_no_place() -> None:
    node = Node()
    groups = [node.group(number) for number in range(3 * CAMPAIGNS_MAX)]
    node.settled = {group.group_id: group for group in groups}
    node.campaigns.want(groups, now_ms=0)

    assert len(node.begun) == 3 * CAMPAIGNS_MAX
    assert not node.campaigns.are_any
    assert node.campaigns.next_place_ms is None
