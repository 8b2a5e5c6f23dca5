"""From what is to what should be: the plan, in the order it is carried out, with its reasons.

The reason of a move is the first of the goals that it serves, judged where it stands in the
plan: the balance before it and after it is that of the layout with all earlier moves done.
Replicas that have lost a copy come first, then those that would fail together, then those on
draining brokers, then the balance; among equals the moves take turns with the brokers that
receive, so that a plan that is cut or stopped has helped all of them.

Partitions that nobody can lead are named and otherwise not looked at: they are neither moved nor
counted, but for the room that their copies take.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from logd.metadata.rebalance.cluster import (
    BrokerLoad,
    Goals,
    PartitionLoad,
    Stranded,
    is_majority_alive,
)
from logd.metadata.rebalance.draft import Draft
from logd.metadata.rebalance.leaders import choose_leaders, leader_range
from logd.metadata.rebalance.search import even_out, place_what_must_move, separate
from logd.metadata.rebalance.shares import Range, Ranges, ranges_of
from logd.metadata.rebalance.tabu import refined
from logd.types import GroupId, NodeId, TopicPartition
from logd.wording import are, count_of, named


class Reason(StrEnum):
    """Why a partition is moved, in order of importance."""

    DEAD = "broker dead"
    REPLICA_COUNT = "replica count"
    FAILURE_DOMAIN = "failure domain"
    DRAINING = "broker draining"
    REPLICAS = "replica balance"
    BYTES = "byte balance"
    TRAFFIC = "traffic balance"
    LEADERS = "leader balance"
    ROOM = "makes room for others"
    ASKED = "asked for"


_RANK: Final = {reason: at for at, reason in enumerate(Reason)}


class Balance(NamedTuple):
    """How uneven the brokers' loads are: the largest distance from even, as a share of it.

    0.1 says that some broker has 10 % more or less than its even share.
    """

    replicas: float
    leaders: float
    bytes: float
    traffic: float


class Move(NamedTuple):
    """One partition's new replicas.  Only the preferred leader changes if the set is the same."""

    group: GroupId
    name: TopicPartition
    before: tuple[NodeId, ...]
    after: tuple[NodeId, ...]
    reason: Reason
    detail: str
    """The reason with its figures, for a person."""
    bytes: int
    """To be copied: the partition's size, for each new replica."""
    estimated_s: float
    """At the throttle of the goals, with the line to itself."""
    balance_before: Balance
    balance_after: Balance

    @property
    def added(self) -> tuple[NodeId, ...]:
        return tuple(node for node in self.after if node not in self.before)

    @property
    def removed(self) -> tuple[NodeId, ...]:
        return tuple(node for node in self.before if node not in self.after)


class RebalancePlan(NamedTuple):
    """Moves in order, and what they come to."""

    moves: tuple[Move, ...]
    bytes: int
    estimated_s: float
    balance_before: Balance
    balance_after: Balance
    left_out: int
    """Moves beyond the bound of the goals: plan again afterwards."""
    unplaced: tuple[TopicPartition, ...]
    """Partitions for which there are too few brokers: their replicas stay where they are."""
    stranded: tuple[Stranded, ...] = ()
    """Partitions that nobody can lead, nor move: too few of their replicas are alive."""


def make_plan(
    brokers: Sequence[BrokerLoad], partitions: Sequence[PartitionLoad], goals: Goals
) -> RebalancePlan:
    """Plan how to reach ``goals``.  Equal arguments give equal plans."""
    brokers = sorted(brokers, key=lambda broker: broker.node)
    partitions = sorted(partitions, key=lambda partition: partition.group)
    stranded = _stranded(brokers, partitions)
    if stranded:
        brokers, partitions = _without(stranded, brokers, partitions)
    targets = [broker for broker in brokers if broker.is_target]
    if not targets:
        return _plan_of_nothing(partitions)._replace(stranded=stranded)
    ranges = ranges_of(targets, partitions, goals.tolerance)
    draft = Draft(brokers, partitions, ranges)
    unplaced = place_what_must_move(draft)
    separate(draft)
    if goals.is_balancing:
        evened = copy.deepcopy(draft)
        even_out(evened)
        found = refined(copy.deepcopy(draft), evened, goals.evaluations_max)
        if _is_worth_its_moves(draft, found, goals.gain_min):
            draft = found
    after = _replica_lists(draft, brokers, partitions, goals)
    return _explained(
        brokers,
        partitions,
        ranges,
        after,
        goals,
        tuple(partitions[at].name for at in unplaced),
    )._replace(stranded=stranded)


def _is_worth_its_moves(before: Draft, after: Draft, gain_min: float) -> bool:
    if gain_min == 0:
        return True
    gains = zip(before.unevenness(), after.unevenness(), strict=True)
    return any(was - will_be >= gain_min for was, will_be in gains)


def plan_only(
    brokers: Sequence[BrokerLoad],
    partitions: Sequence[PartitionLoad],
    groups: Collection[GroupId],
    goals: Goals,
) -> RebalancePlan:
    """As ``make_plan``, but only ``groups`` are moved; the others weigh on the choice."""
    plan = make_plan(brokers, partitions, goals._replace(moves_max=len(partitions)))
    after = {move.group: move.after for move in plan.moves if move.group in groups}
    named = {partition.name for partition in partitions if partition.group in groups}
    return explain(brokers, partitions, after, goals)._replace(
        unplaced=tuple(name for name in plan.unplaced if name in named),
        stranded=tuple(each for each in plan.stranded if each.name in named),
    )


def explain(
    brokers: Sequence[BrokerLoad],
    partitions: Sequence[PartitionLoad],
    after: Mapping[GroupId, tuple[NodeId, ...]],
    goals: Goals,
) -> RebalancePlan:
    """The plan that was decided elsewhere: ``after`` has the new replicas of what is moved."""
    targets = [broker for broker in brokers if broker.is_target]
    if not targets:
        return _plan_of_nothing(partitions)
    return _explained(
        brokers,
        partitions,
        ranges_of(targets, partitions, goals.tolerance),
        [after.get(partition.group, partition.replicas) for partition in partitions],
        goals,
        (),
    )


def _plan_of_nothing(partitions: Sequence[PartitionLoad]) -> RebalancePlan:
    """Of a cluster in which no broker may hold anything: all stays where it is."""
    balance = Balance(0.0, 0.0, 0.0, 0.0)
    names = tuple(partition.name for partition in partitions)
    return RebalancePlan((), 0, 0.0, balance, balance, 0, names)


def _stranded(
    brokers: Sequence[BrokerLoad], partitions: Sequence[PartitionLoad]
) -> tuple[Stranded, ...]:
    dead = {broker.node for broker in brokers if broker.is_dead}
    return tuple(
        Stranded(p.name, p.replicas, tuple(node for node in p.replicas if node in dead))
        for p in partitions
        if not is_majority_alive(p.replicas, dead)
    )


def _without(
    stranded: Sequence[Stranded],
    brokers: Sequence[BrokerLoad],
    partitions: Sequence[PartitionLoad],
) -> tuple[list[BrokerLoad], list[PartitionLoad]]:
    """The cluster without these partitions; the room that their copies take is not there."""
    names = {each.name for each in stranded}
    taken: Counter[NodeId] = Counter()
    for partition in partitions:
        if partition.name in names:
            taken.update(dict.fromkeys(partition.replicas, partition.size_bytes))
    smaller = [
        broker
        if broker.bytes_max is None
        else broker._replace(bytes_max=max(0, broker.bytes_max - taken[broker.node]))
        for broker in brokers
    ]
    return smaller, [partition for partition in partitions if partition.name not in names]


def _replica_lists(
    draft: Draft,
    brokers: Sequence[BrokerLoad],
    partitions: Sequence[PartitionLoad],
    goals: Goals,
) -> list[tuple[NodeId, ...]]:
    """The replicas of each partition, preferred leader first; what stays keeps its place."""
    sets = [[brokers[at].node for at in holders] for holders in draft.holders]
    leaders = choose_leaders(
        sets,
        [partition.replicas[0] for partition in partitions],
        [broker.node for broker in brokers if broker.is_target],
        goals.tolerance,
        is_balancing=goals.is_balancing,
    )
    return [
        _in_order(partition.replicas, replicas, leader)
        for partition, replicas, leader in zip(partitions, sets, leaders, strict=True)
    ]


def _in_order(
    before: Sequence[NodeId], replicas: Sequence[NodeId], leader: NodeId
) -> tuple[NodeId, ...]:
    """The preferred leader, what stays in its order, what is new."""
    stays = [node for node in before if node in replicas]
    new = [node for node in replicas if node not in before]
    return (leader, *(node for node in stays + new if node != leader))


# --- explaining -------------------------------------------------------------------------------


def _explained(
    brokers: Sequence[BrokerLoad],
    partitions: Sequence[PartitionLoad],
    ranges: dict[NodeId, Ranges],
    after: Sequence[tuple[NodeId, ...]],
    goals: Goals,
    unplaced: tuple[TopicPartition, ...],
) -> RebalancePlan:
    ledger = _Ledger(brokers, partitions, ranges, goals.tolerance)
    changed = [at for at, p in enumerate(partitions) if p.replicas != after[at]]
    ordered = _in_turn(
        partitions, after, {at: ledger.urgency(partitions[at], after[at]) for at in changed}
    )
    before = ledger.balance()
    moves = [
        ledger.move(partitions[at], after[at], goals.throttle_bytes_per_s)
        for at in ordered[: goals.moves_max]
    ]
    return RebalancePlan(
        moves=tuple(moves),
        bytes=sum(move.bytes for move in moves),
        estimated_s=sum(move.estimated_s for move in moves),
        balance_before=before,
        balance_after=moves[-1].balance_after if moves else before,
        left_out=len(ordered) - len(moves),
        unplaced=unplaced,
    )


def _in_turn(
    partitions: Sequence[PartitionLoad],
    after: Sequence[tuple[NodeId, ...]],
    urgency: dict[int, Reason],
) -> list[int]:
    turns: Counter[tuple[Reason, NodeId]] = Counter()
    keys: dict[int, tuple[int, int, int]] = {}
    for at in sorted(urgency):
        receiver = next((n for n in after[at] if n not in partitions[at].replicas), after[at][0])
        turn = turns[urgency[at], receiver]
        turns[urgency[at], receiver] += 1
        keys[at] = (_RANK[urgency[at]], turn, at)
    return sorted(keys, key=keys.__getitem__)


class _Ledger:
    """The loads as the plan is carried out, move by move."""

    def __init__(
        self,
        brokers: Sequence[BrokerLoad],
        partitions: Sequence[PartitionLoad],
        ranges: dict[NodeId, Ranges],
        tolerance: float,
    ) -> None:
        self._brokers = {broker.node: broker for broker in brokers}
        self._ranges = ranges
        self._leader_even = len(partitions) / len(ranges)
        self._leader_range = leader_range(len(partitions), len(ranges), tolerance)
        self._replicas = dict.fromkeys(self._brokers, 0)
        self._bytes = dict.fromkeys(self._brokers, 0)
        self._traffic = dict.fromkeys(self._brokers, 0)
        self._leaders = dict.fromkeys(self._brokers, 0)
        for partition in partitions:
            self._count(partition, partition.replicas, 1)

    def _count(self, partition: PartitionLoad, replicas: Sequence[NodeId], sign: int) -> None:
        for node in replicas:
            self._replicas[node] += sign
            self._bytes[node] += sign * partition.size_bytes
            self._traffic[node] += sign * partition.write_bytes_per_s
        self._leaders[replicas[0]] += sign

    def balance(self) -> Balance:
        def worst(loads: dict[NodeId, int], at: int) -> float:
            return max(
                abs(loads[node] - ranges[at].even) / max(1.0, ranges[at].even)
                for node, ranges in self._ranges.items()
            )

        even = self._leader_even
        return Balance(
            replicas=worst(self._replicas, 0),
            leaders=max(abs(self._leaders[node] - even) for node in self._ranges) / max(1.0, even),
            bytes=worst(self._bytes, 1),
            traffic=worst(self._traffic, 2),
        )

    def move(
        self, partition: PartitionLoad, after: tuple[NodeId, ...], throttle_bytes_per_s: int
    ) -> Move:
        """Explain one move, and take it."""
        reason, detail = self._reason(partition, after)
        added = sum(node not in partition.replicas for node in after)
        before_balance = self.balance()
        self._count(partition, partition.replicas, -1)
        self._count(partition, after, 1)
        size = added * partition.size_bytes
        return Move(
            group=partition.group,
            name=partition.name,
            before=partition.replicas,
            after=after,
            reason=reason,
            detail=detail,
            bytes=size,
            estimated_s=size / throttle_bytes_per_s,
            balance_before=before_balance,
            balance_after=self.balance(),
        )

    def urgency(self, partition: PartitionLoad, after: tuple[NodeId, ...]) -> Reason:
        """The reason if it does not depend on earlier moves; else that of the balance."""
        return self._pressing(partition, after) or (
            Reason.LEADERS if set(after) == set(partition.replicas) else Reason.REPLICAS
        )

    def _pressing(self, partition: PartitionLoad, after: tuple[NodeId, ...]) -> Reason | None:
        removed = [self._brokers[n] for n in partition.replicas if n not in after]
        if any(broker.is_dead for broker in removed):
            return Reason.DEAD
        if len(after) != len(partition.replicas):
            return Reason.REPLICA_COUNT
        if self._shared(after) < self._shared(partition.replicas):
            return Reason.FAILURE_DOMAIN
        leader = self._brokers[partition.replicas[0]]
        is_leader_draining = leader.is_draining and leader.node != after[0]
        if is_leader_draining or any(broker.is_draining for broker in removed):
            return Reason.DRAINING
        return None

    def _shared(self, replicas: Sequence[NodeId]) -> tuple[int, int]:
        """Replicas that share a failure domain, and a rack, with another one."""
        domains = {self._brokers[node].failure_domain for node in replicas}
        racks = {self._brokers[node].rack for node in replicas}
        return len(replicas) - len(domains), len(replicas) - len(racks)

    def _reason(self, partition: PartitionLoad, after: tuple[NodeId, ...]) -> tuple[Reason, str]:
        removed = [node for node in partition.replicas if node not in after]
        added = [node for node in after if node not in partition.replicas]
        pressing = self._pressing(partition, after)
        if pressing is not None:
            return pressing, self._pressing_detail(pressing, partition, after)
        if not added:
            old, new = partition.replicas[0], after[0]
            low, high = self._leader_range
            return Reason.LEADERS, (
                f"broker {old} leads {self._leaders[old]} and broker {new} "
                f"{self._leaders[new]}, even is {_span(low, high)}"
            )
        for reason, at, loads, gain in (
            (Reason.REPLICAS, 0, self._replicas, 1),
            (Reason.BYTES, 1, self._bytes, partition.size_bytes),
            (Reason.TRAFFIC, 2, self._traffic, partition.write_bytes_per_s),
        ):
            helped = [
                *(n for n in removed if self._is_better(n, at, loads, -gain)),
                *(n for n in added if self._is_better(n, at, loads, gain)),
            ]
            if helped:
                node = helped[0]
                return reason, _load_text(node, reason, loads[node], self._ranges[node][at])
        get = "gets" if len(removed) == 1 else "get"
        return Reason.ROOM, f"{named('broker', removed)} {get} room for what another move brings"

    def _is_better(self, node: NodeId, at: int, loads: dict[NodeId, int], change: int) -> bool:
        ranges = self._ranges.get(node)
        if ranges is None:
            return False
        return ranges[at].excess(loads[node] + change) < ranges[at].excess(loads[node])

    def _pressing_detail(
        self, reason: Reason, partition: PartitionLoad, after: tuple[NodeId, ...]
    ) -> str:
        removed = [self._brokers[node] for node in partition.replicas if node not in after]
        match reason:
            case Reason.DEAD:
                dead = [broker.node for broker in removed if broker.is_dead]
                return f"{named('broker', dead)} {are(len(dead))} dead"
            case Reason.REPLICA_COUNT:
                wanted = len(after)
                found = len(partition.replicas)
                return f"{count_of(wanted, 'replica')} {are(wanted)} wanted, found {found}"
            case Reason.FAILURE_DOMAIN:
                return f"{named('broker', partition.replicas)} share a failure domain or rack"
            case _:
                leaving = [broker.node for broker in removed if broker.is_draining]
                leaving = leaving or list(partition.replicas[:1])
                return f"{named('broker', leaving)} {are(len(leaving))} draining"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _load_text(node: NodeId, reason: Reason, load: int, even: Range) -> str:
    if reason is Reason.REPLICAS:
        return (
            f"broker {node} has {count_of(load, 'replica')}, even is {_span(even.low, even.high)}"
        )
    share = (load - even.even) / max(1.0, even.even)
    what = "bytes" if reason is Reason.BYTES else "traffic"
    return f"broker {node} has {abs(share):.0%} {'more' if share > 0 else 'less'} {what} than even"
