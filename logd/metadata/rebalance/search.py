"""Finds a layout that is even enough and moves few bytes.

A layout has a *cost*: the penalties of its brokers for loads outside their ranges, of its
partitions for replicas that would fail together, and the bytes that must move to get there.
The weights are a hundred and more apart, which is what "in order of importance" means here; a
penalty grows faster than its excess, so that of two brokers out of range the worse one is
helped first.

The search is greedy and then thorough.  First every replica that must go is placed; then
replicas go from the most to the least loaded broker while that lowers the cost, which for large
clusters is all and lands within a few percent of the best.  Then a tabu search tries single
moves and exchanges, also such that raise the cost for a while, within a fixed number of
evaluations: in small clusters, where one partition is much of a broker's load, this is what
finds the combination that fits.  It uses no chance, and ties are broken by order, so that equal
clusters give equal plans.

The search works on positions in lists instead of ids: brokers by node id, partitions in the
order given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Final, NamedTuple

from logd.metadata.rebalance.cluster import BrokerLoad, PartitionLoad
from logd.metadata.rebalance.shares import Ranges
from logd.types import NodeId

DOMAIN_WEIGHT: Final = 1e12
"""Per pair of replicas that share a failure domain."""

RACK_WEIGHT: Final = 1e10
ROOM_WEIGHT: Final = 1e8
"""Per share of bytes that a disk cannot hold."""

REPLICAS_WEIGHT: Final = 1e6
BYTES_WEIGHT: Final = 1e4
TRAFFIC_WEIGHT: Final = 1e2
EVALUATIONS_PER_ROUND_MAX: Final = 60_000
"""A neighbourhood larger than this is looked at in part: what moved, and who is out of range."""

ROUNDS_WITHOUT_GAIN_MAX: Final = 40
RESTARTS_WITHOUT_GAIN_MAX: Final = 12
"""A small cluster has been looked through by then, long before the evaluations are used up."""

GOOD_ENOUGH: Final = 1.03
"""Times the bytes that must move in any case: no search is worth the rest."""

TWO_STARTS_MAX: Final = 2_000
"""Partitions times brokers, beyond which a second search finds nothing."""

LARGE_CLUSTER_DIVISOR: Final = 4
"""There the greedy part finds nearly everything, and an evaluation gains less."""

KICKS: Final = 4
MASK_64: Final = 2**64 - 1
TABU_ROUNDS: Final = 7
"""A replica that left a broker does not return for this many rounds."""

PARTNERS_TRIED: Final = 4
EXCHANGES_TRIED: Final = 12
FITTING_TRIED: Final = 4
GAIN_MIN: Final = 1e-12
"""Less is rounding."""


class Step(NamedTuple):
    """Replica of ``partition`` from ``source`` to ``target``; with ``other`` an exchange: its
    replica goes the other way."""

    partition: int
    source: int
    target: int
    other: int | None = None


class Layout:
    """Who holds what, and what that costs."""

    def __init__(
        self,
        brokers: Sequence[BrokerLoad],
        partitions: Sequence[PartitionLoad],
        ranges: Mapping[NodeId, Ranges],
    ) -> None:
        position = {broker.node: at for at, broker in enumerate(brokers)}
        self.brokers = brokers
        self.targets = [at for at, broker in enumerate(brokers) if broker.is_target]
        self.is_target = [broker.is_target for broker in brokers]
        self.sizes = [partition.size_bytes for partition in partitions]
        self.rates = [partition.write_bytes_per_s for partition in partitions]
        self.wanted = [partition.wanted_count for partition in partitions]
        self.holders = [[position[node] for node in p.replicas] for p in partitions]
        self.original = [frozenset(holders) for holders in self.holders]
        self.on: list[dict[int, None]] = [{} for _ in brokers]
        self.replica_loads = [0] * len(brokers)
        self.byte_loads = [0] * len(brokers)
        self.traffic_loads = [0] * len(brokers)
        self.ranges = [ranges.get(broker.node) for broker in brokers]
        self._domains = [broker.failure_domain for broker in brokers]
        self._racks = [broker.rack for broker in brokers]
        self._domain_count = len({brokers[at].failure_domain for at in self.targets})
        self._rack_count = len({brokers[at].rack for at in self.targets})
        self._is_always_apart = self._rack_count == 1 and self._domain_count == len(self.targets)
        self._bounds = [
            None if ranges is None else _bounds(ranges, broker.bytes_max)
            for ranges, broker in zip(self.ranges, brokers, strict=True)
        ]
        self._bytes_total = max(1, sum(map(int.__mul__, self.sizes, self.wanted)))
        for partition, holders in enumerate(self.holders):
            for broker in holders:
                self._count(partition, broker, 1)

    # --- cost -------------------------------------------------------------------------------

    def penalty(self, broker: int, replicas: int, size: int, traffic: int) -> float:
        """What a broker with these loads adds to the cost."""
        bounds = self._bounds[broker]
        if bounds is None:
            return 0.0
        (
            replicas_low, replicas_high,
            size_low, size_high, size_even,
            traffic_low, traffic_high, traffic_even,
            room,
        ) = bounds  # fmt: skip
        total = 0.0
        if not replicas_low <= replicas <= replicas_high:
            over = replicas > replicas_high
            excess = float(replicas - replicas_high if over else replicas_low - replicas)
            total += REPLICAS_WEIGHT * excess * (1 + excess)
        if not size_low <= size <= size_high:
            excess = (size - size_high if size > size_high else size_low - size) / size_even
            total += BYTES_WEIGHT * excess * (1 + excess)
        if not traffic_low <= traffic <= traffic_high:
            excess = traffic - traffic_high if traffic > traffic_high else traffic_low - traffic
            excess /= traffic_even
            total += TRAFFIC_WEIGHT * excess * (1 + excess)
        if room is not None and size > room:
            total += ROOM_WEIGHT * (1 + (size - room) / size_even)
        return total

    def penalty_now(self, broker: int) -> float:
        return self.penalty(
            broker,
            self.replica_loads[broker],
            self.byte_loads[broker],
            self.traffic_loads[broker],
        )

    def penalty_with(self, broker: int, partition: int, count: int) -> float:
        """As ``penalty_now``, with ``count`` replicas of ``partition`` more."""
        return self.penalty(
            broker,
            self.replica_loads[broker] + count,
            self.byte_loads[broker] + count * self.sizes[partition],
            self.traffic_loads[broker] + count * self.rates[partition],
        )

    def togetherness(self, partition: int, broker: int, leaving: int | None = None) -> float:
        """What a replica on ``broker`` costs for sharing its domain or rack with the others."""
        total = 0.0
        for holder in self.holders[partition]:
            if holder != leaving and holder != broker:
                if self._domains[holder] == self._domains[broker]:
                    total += DOMAIN_WEIGHT
                if self._rack_count > 1 and self._racks[holder] == self._racks[broker]:
                    total += RACK_WEIGHT
        return total

    def is_apart(self, partition: int) -> bool:
        """Its replicas share domains and racks no more than their number makes them."""
        holders = self.holders[partition]
        return all(
            max(Counter(names[broker] for broker in holders).values()) <= -(-len(holders) // count)
            for names, count in (
                (self._domains, self._domain_count),
                (self._racks, self._rack_count),
            )
        )

    def cost(self) -> float:
        """Of the whole layout, but for what its replicas share, which steps account for."""
        return sum(map(self.penalty_now, self.targets)) + self.bytes_moved / self._bytes_total

    @property
    def bytes_moved(self) -> int:
        return sum(
            size * sum(broker not in original for broker in holders)
            for size, holders, original in zip(self.sizes, self.holders, self.original, strict=True)
        )

    def gain(self, step: Step) -> float:
        """By how much a step lowers the cost; negative if it raises it."""
        partition, source, target, other = step
        if other is None:
            before = self.penalty_now(source) + self.penalty_now(target)
            after = self.penalty_with(source, partition, -1) + self.penalty_with(
                target, partition, 1
            )
            return before - after + self._gain_of_one(partition, source, target)
        size = self.sizes[other] - self.sizes[partition]
        traffic = self.rates[other] - self.rates[partition]
        gain = self._gain_of_one(partition, source, target)
        gain += self._gain_of_one(other, target, source)
        for broker, sign in ((source, 1), (target, -1)):
            gain += self.penalty_now(broker) - self.penalty(
                broker,
                self.replica_loads[broker],
                self.byte_loads[broker] + sign * size,
                self.traffic_loads[broker] + sign * traffic,
            )
        return gain

    def _gain_of_one(self, partition: int, source: int, target: int) -> float:
        """What a replica's way from ``source`` to ``target`` gains apart from the loads."""
        original = self.original[partition]
        gain = 0.0
        if (source in original) != (target in original):
            # One more, so that an empty partition is not moved for nothing either.
            moved = (self.sizes[partition] + 1) / self._bytes_total
            gain += -moved if source in original else moved
        if not self._is_always_apart:
            # Taken together: next to one of these weights the bytes would be rounded away.
            gain += self.togetherness(partition, source, source) - self.togetherness(
                partition, target, source
            )
        return gain

    # --- change -----------------------------------------------------------------------------

    def take(self, step: Step) -> None:
        partition, source, target, other = step
        self.relocate(partition, source, target)
        if other is not None:
            self.relocate(other, target, source)

    def relocate(self, partition: int, source: int, target: int) -> None:
        holders = self.holders[partition]
        assert target not in holders
        holders[holders.index(source)] = target
        self._count(partition, source, -1)
        self._count(partition, target, 1)

    def add(self, partition: int, broker: int) -> None:
        assert broker not in self.holders[partition]
        self.holders[partition].append(broker)
        self._count(partition, broker, 1)

    def remove(self, partition: int, broker: int) -> None:
        self.holders[partition].remove(broker)
        self._count(partition, broker, -1)

    def _count(self, partition: int, broker: int, sign: int) -> None:
        self.replica_loads[broker] += sign
        self.byte_loads[broker] += sign * self.sizes[partition]
        self.traffic_loads[broker] += sign * self.rates[partition]
        if sign > 0:
            self.on[broker][partition] = None
        else:
            del self.on[broker][partition]

    # --- placing ----------------------------------------------------------------------------

    def best_place(self, partition: int, leaving: int | None = None) -> int | None:
        """The broker that can best take a replica; None if every one holds one already."""
        holders = self.holders[partition]
        best: tuple[float, float, int] | None = None
        for broker in self.targets:
            if broker in holders:
                continue
            cost = (
                self.togetherness(partition, broker, leaving)
                + self.penalty_with(broker, partition, 1)
                - self.penalty_now(broker)
            )
            if broker in self.original[partition]:
                cost -= self.sizes[partition] / self._bytes_total
            found = (cost, self._fill(broker), broker)
            if best is None or found < best:
                best = found
        return None if best is None else best[2]

    def _fill(self, broker: int) -> float:
        """How full a broker is, in shares of its even load."""
        ranges = self.ranges[broker]
        assert ranges is not None
        return (
            self.replica_loads[broker] / max(1.0, ranges.replicas.even)
            + self.byte_loads[broker] / max(1.0, ranges.bytes.even)
            + self.traffic_loads[broker] / max(1.0, ranges.traffic.even)
        )


def _bounds(
    ranges: Ranges, room: int | None
) -> tuple[int, int, int, int, float, int, int, float, int | None]:
    """The numbers of ``ranges`` in one flat tuple, which the innermost loop unpacks at once."""
    replicas, size, traffic = ranges
    return (
        replicas.low, replicas.high,
        size.low, size.high, max(1.0, size.even),
        traffic.low, traffic.high, max(1.0, traffic.even),
        room,
    )  # fmt: skip


# --- what must be -----------------------------------------------------------------------------


def place_what_must_move(layout: Layout) -> list[int]:
    """Make every partition have as many replicas as wanted, on brokers that may hold them.

    Returns:
        The partitions for which there are too few brokers; theirs stay where they are.
    """
    unplaced: list[int] = []
    largest_first = sorted(range(len(layout.sizes)), key=lambda p: (-layout.sizes[p], p))
    for partition in largest_first:
        _drop_surplus(layout, partition)
        holders = layout.holders[partition]
        unfit = [broker for broker in holders if not layout.is_target[broker]]
        # What is lost first: with too few places, a copy that is draining still is one.
        for broker in sorted(unfit, key=lambda b: not layout.brokers[b].is_dead):
            target = layout.best_place(partition, leaving=broker)
            if target is None:
                unplaced.append(partition)
                break
            layout.relocate(partition, broker, target)
        while len(holders) < layout.wanted[partition]:
            target = layout.best_place(partition)
            if target is None:
                unplaced.append(partition)
                break
            layout.add(partition, target)
    return sorted(set(unplaced))


def _drop_surplus(layout: Layout, partition: int) -> None:
    """Take replicas away where that hurts least: dead brokers, unfit ones, then crowded ones."""
    holders = layout.holders[partition]
    while len(holders) > layout.wanted[partition]:
        layout.remove(
            partition,
            max(
                holders,
                key=lambda broker: (
                    layout.brokers[broker].is_dead,
                    not layout.is_target[broker],
                    layout.togetherness(partition, broker),
                    layout.penalty_now(broker) - layout.penalty_with(broker, partition, -1),
                    layout.replica_loads[broker],
                    broker,
                ),
            ),
        )


def separate(layout: Layout) -> None:
    """Move replicas apart that would fail together, where there is a better place."""
    for partition, holders in enumerate(layout.holders):
        if layout.is_apart(partition):
            continue
        for broker in list(holders):
            if not layout.is_target[broker]:
                continue
            target = layout.best_place(partition, leaving=broker)
            if target is not None and layout.togetherness(
                partition, target, broker
            ) < layout.togetherness(partition, broker):
                layout.relocate(partition, broker, target)


# --- what should be ---------------------------------------------------------------------------


def even_out(layout: Layout) -> None:
    """Move and exchange replicas between the most and the least loaded while that lowers the
    cost: first until the replica counts are even, then the bytes, then the traffic."""
    for at, weights in enumerate((None, layout.sizes, layout.rates)):
        loads = (layout.replica_loads, layout.byte_loads, layout.traffic_loads)[at]
        stuck: set[int] = set()
        while (pairs := _worst_pairs(layout, at, loads, stuck)) is not None:
            best: tuple[float, Step] | None = None
            for source, target in pairs.tried:
                for step in _promising(layout, source, target, weights, pairs.excess):
                    gain = layout.gain(step)
                    if gain > GAIN_MIN and (best is None or gain > best[0]):
                        best = (gain, step)
                if best is not None and weights is None:
                    break
            if best is None:
                stuck.add(pairs.broker)
            else:
                layout.take(best[1])


class _Pairs(NamedTuple):
    """A broker out of its range, by how much, and (source, target) pairs that would help it."""

    broker: int
    excess: int
    tried: list[tuple[int, int]]


def _worst_pairs(layout: Layout, at: int, loads: Sequence[int], stuck: set[int]) -> _Pairs | None:
    """The broker furthest out of its range, and with whom it could share; None if all are in."""
    worst: tuple[float, int] | None = None
    fills: list[tuple[float, int]] = []
    for broker in layout.targets:
        ranges = layout.ranges[broker]
        assert ranges is not None
        even = ranges[at]
        fills.append((loads[broker] / max(1.0, even.even), broker))
        if even.low <= loads[broker] <= even.high or broker in stuck:
            continue
        excess = even.excess(loads[broker]) / max(1.0, even.even)
        if worst is None or excess > worst[0]:
            worst = (excess, broker)
    if worst is None:
        return None
    fills.sort()
    broker = worst[1]
    ranges = layout.ranges[broker]
    assert ranges is not None
    others = [other for _, other in fills if other != broker]
    excess = ranges[at].excess(loads[broker])
    if loads[broker] > ranges[at].high:
        tried = [(broker, other) for other in others[:PARTNERS_TRIED]]
    else:
        tried = [(other, broker) for other in others[: -PARTNERS_TRIED - 1 : -1]]
    return _Pairs(broker, excess, tried)


def _promising(
    layout: Layout, source: int, target: int, weights: Sequence[int] | None, excess: int
) -> Iterator[Step]:
    """Steps from ``source`` to ``target`` that are worth looking at closely."""
    if weights is None:
        yield from _fitting(layout, source, target)
        return
    leaving = sorted(layout.on[source], key=lambda p: (weights[p], p))
    if not leaving:
        return
    ladder = [weights[p] for p in leaving]
    for partition in _around(leaving, ladder, excess):
        if target not in layout.holders[partition]:
            yield Step(partition, source, target)
    coming = sorted(layout.on[target], key=lambda p: (weights[p], p))
    few = coming[:EXCHANGES_TRIED] + coming[EXCHANGES_TRIED :: 1 + len(coming) // EXCHANGES_TRIED]
    for other in few:
        if source in layout.holders[other]:
            continue
        for partition in _around(leaving, ladder, weights[other] + excess):
            if target not in layout.holders[partition]:
                yield Step(partition, source, target, other)


def _around(partitions: Sequence[int], ladder: Sequence[int], weight: int) -> Sequence[int]:
    """Those of about this weight."""
    at = bisect_right(ladder, weight)
    return partitions[max(0, at - 2) : at + 2]


def _fitting(layout: Layout, source: int, target: int) -> list[Step]:
    """The replicas that are of the size and traffic that such moves should be on average.

    Evening out the counts with those evens out the rest on the way.
    """
    needs = [
        _per_replica(layout, loads, at, source, target)
        for at, loads in ((1, layout.byte_loads), (2, layout.traffic_loads))
    ]
    (size, even_size), (rate, even_rate) = needs
    sizes, rates, holders = layout.sizes, layout.rates, layout.holders
    candidates = [
        (abs(sizes[p] - size) / even_size + abs(rates[p] - rate) / even_rate, p)
        for p in layout.on[source]
        if target not in holders[p]
    ]
    return [Step(p, source, target) for _, p in nsmallest(FITTING_TRIED, candidates)]


def _per_replica(
    layout: Layout, loads: Sequence[int], at: int, source: int, target: int
) -> tuple[float, float]:
    """What one of the replicas to be moved should weigh; and the even load, as the scale."""
    giver, taker = layout.ranges[source], layout.ranges[target]
    assert giver is not None
    assert taker is not None
    surplus = layout.replica_loads[source] - giver.replicas.even
    lack = taker.replicas.even - layout.replica_loads[target]
    if lack > surplus:
        weight = (taker[at].low - loads[target]) / max(
            1.0, taker.replicas.low - layout.replica_loads[target]
        )
    else:
        weight = (loads[source] - giver[at].high) / max(
            1.0, layout.replica_loads[source] - giver.replicas.high
        )
    return max(0.0, weight), max(1.0, taker[at].even)


# --- the thorough part ------------------------------------------------------------------------


def refined(layout: Layout, evened: Layout, evaluations_max: int) -> Layout:
    """The better of two searches: from the layout as it must be, and from the even one.

    The first finds the moves that are few and fit, the second those that take many steps.
    """
    enough = round(_least_bytes(layout) * GOOD_ENOUGH)
    if len(layout.sizes) * len(layout.targets) > TWO_STARTS_MAX:
        refine(evened, enough, evaluations_max // LARGE_CLUSTER_DIVISOR)
        return evened
    refine(evened, enough, evaluations_max)
    if not _is_good_enough(evened, enough):
        refine(layout, enough, evaluations_max)
        if layout.cost() < evened.cost() - GAIN_MIN:
            return layout
    return evened


def _least_bytes(layout: Layout) -> int:
    """No layout without penalties moves fewer bytes than this, and usually none so few."""
    arriving = leaving = 0
    for broker in layout.targets:
        ranges = layout.ranges[broker]
        assert ranges is not None
        before = [p for p, original in enumerate(layout.original) if broker in original]
        held = sum(layout.sizes[p] for p in before)
        lacking = ranges.replicas.low - len(before)
        if lacking > 0:
            others = (s for p, s in enumerate(layout.sizes) if broker not in layout.original[p])
            arriving += max(sum(nsmallest(lacking, others)), ranges.bytes.low - held, 0)
        else:
            arriving += max(ranges.bytes.low - held, 0)
        surplus = nsmallest(len(before) - ranges.replicas.high, (layout.sizes[p] for p in before))
        leaving += max(sum(surplus), held - ranges.bytes.high, 0)
    for broker in range(len(layout.brokers)):
        if not layout.is_target[broker]:
            leaving += sum(
                size
                for size, original in zip(layout.sizes, layout.original, strict=True)
                if broker in original
            )
    return max(arriving, leaving)


def _is_good_enough(layout: Layout, enough: int) -> bool:
    return layout.bytes_moved <= enough and layout.cost() < 1


def refine(layout: Layout, enough: int, evaluations_max: int) -> None:
    """Tabu search: always the best step that is not forbidden, and the best layout is kept.

    A search that finds nothing better for some rounds goes back to the best layout, takes a few
    steps that it would not have taken, and goes on from there.

    Args:
        enough: a layout without penalties that moves no more bytes ends the search.
        evaluations_max: bounds the search: a count, because a clock would make two plans of one
            cluster differ.
    """
    search = _TabuSearch(layout, evaluations_max)
    without_gain = 0
    while search.evaluations < evaluations_max and not _is_good_enough(layout, enough):
        before = search.best_cost
        if not search.descend():
            return
        search.return_to_best()
        without_gain = 0 if search.best_cost < before - GAIN_MIN else without_gain + 1
        if without_gain > RESTARTS_WITHOUT_GAIN_MAX:
            return
        if _is_good_enough(layout, enough):
            return
        search.leave_the_path()
    search.return_to_best()


class _TabuSearch:
    def __init__(self, layout: Layout, evaluations_max: int) -> None:
        self.evaluations = 0
        self._evaluations_max = evaluations_max
        self.best_cost = layout.cost()
        self._layout = layout
        self._cost = self.best_cost
        self._forbidden: dict[tuple[int, int], int] = {}
        self._round = 0
        self._taken: list[Step] = []
        """Since the best layout."""
        self._draw = 1

    def descend(self) -> bool:
        """Until nothing better was found for a while; False if there is no step at all."""
        since = 0
        while since < ROUNDS_WITHOUT_GAIN_MAX and self.evaluations < self._evaluations_max:
            found = self._best_step()
            if found is None:
                return self._round > 0
            gain, step = found
            self._take(step, gain)
            since += 1
            if self._cost < self.best_cost - GAIN_MIN:
                self.best_cost = self._cost
                self._taken.clear()
                since = 0
        return True

    def _best_step(self) -> tuple[float, Step] | None:
        best: tuple[float, Step] | None = None
        wanted = self._cost - self.best_cost + GAIN_MIN
        for step in _neighbours(self._layout):
            self.evaluations += 1
            gain = self._layout.gain(step)
            if best is not None and gain <= best[0]:
                continue
            if gain <= wanted and self._is_forbidden(step):
                continue
            best = (gain, step)
        return best

    def _take(self, step: Step, gain: float) -> None:
        self._layout.take(step)
        self._taken.append(step)
        self._cost -= gain
        self._round += 1
        self._forbidden[step.partition, step.source] = self._round + TABU_ROUNDS
        if step.other is not None:
            self._forbidden[step.other, step.target] = self._round + TABU_ROUNDS

    def _is_forbidden(self, step: Step) -> bool:
        if self._forbidden.get((step.partition, step.target), -1) >= self._round:
            return True
        return (
            step.other is not None
            and self._forbidden.get((step.other, step.source), -1) >= self._round
        )

    def return_to_best(self) -> None:
        for step in reversed(self._taken):
            self._layout.take(Step(step.partition, step.target, step.source, step.other))
        self._taken.clear()
        self._cost = self.best_cost
        self._forbidden.clear()

    def leave_the_path(self) -> None:
        """Take some steps that are as good as drawn by lot, and the same in every run."""
        for _ in range(KICKS):
            steps = list(islice(_neighbours(self._layout), EVALUATIONS_PER_ROUND_MAX))
            if not steps:
                return
            self._draw = self._draw * 6364136223846793005 + 1442695040888963407 & MASK_64
            step = steps[(self._draw >> 33) % len(steps)]
            self._take(step, self._layout.gain(step))


def _neighbours(layout: Layout) -> Iterator[Step]:
    """Single moves and exchanges, at most ``EVALUATIONS_PER_ROUND_MAX``, the likely ones."""
    replicas = [
        (partition, broker)
        for partition, holders in enumerate(layout.holders)
        for broker in holders
        if layout.is_target[broker]
    ]
    count = len(replicas) * (len(layout.targets) + len(replicas) // 2)
    chosen = replicas
    if count > EVALUATIONS_PER_ROUND_MAX:
        unhappy = [broker for broker in layout.targets if layout.penalty_now(broker) > 0]
        chosen = [
            (partition, broker)
            for partition, broker in replicas
            if broker not in layout.original[partition] or broker in unhappy
        ]
        per_replica = len(layout.targets) + len(replicas)
        chosen = chosen[: max(1, EVALUATIONS_PER_ROUND_MAX // per_replica)]
    for at, (partition, source) in enumerate(chosen):
        holders = layout.holders[partition]
        for target in layout.targets:
            if target not in holders:
                yield Step(partition, source, target)
        partners = chosen[at + 1 :] if chosen is replicas else replicas
        for other, target in partners:
            if target not in holders and source not in layout.holders[other]:
                yield Step(partition, source, target, other)
