"""Makes a layout that is as it must be, and then even: greedily, one replica at a time.

First every replica that must go is placed, and what would fail together is moved apart; then
replicas go from the most to the least loaded broker while that lowers the cost (``draft.py``),
which for large clusters is all and lands within a few percent of the best.  In small ones
``tabu.py`` goes on from there.

Nothing is drawn, and ties are broken by order, so that equal clusters give equal plans.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import Final, NamedTuple

from logd.metadata.rebalance.draft import GAIN_MIN, Draft, Step

PARTNERS_TRIED: Final = 4
EXCHANGES_TRIED: Final = 12
FITTING_TRIED: Final = 4

# --- what must be -----------------------------------------------------------------------------


def place_what_must_move(draft: Draft) -> list[int]:
    """Make every partition have as many replicas as wanted, on brokers that may hold them.

    Returns:
        The partitions for which there are too few brokers; theirs stay where they are.
    """
    unplaced: list[int] = []
    largest_first = sorted(range(len(draft.sizes)), key=lambda p: (-draft.sizes[p], p))
    for partition in largest_first:
        _drop_surplus(draft, partition)
        holders = draft.holders[partition]
        unfit = [broker for broker in holders if not draft.is_target[broker]]
        # What is lost first: with too few places, a copy that is draining still is one.
        for broker in sorted(unfit, key=lambda b: not draft.brokers[b].is_dead):
            target = draft.best_place(partition, leaving=broker)
            if target is None:
                unplaced.append(partition)
                break
            draft.relocate(partition, broker, target)
        while len(holders) < draft.wanted[partition]:
            target = draft.best_place(partition)
            if target is None:
                unplaced.append(partition)
                break
            draft.add(partition, target)
    return sorted(set(unplaced))


def _drop_surplus(draft: Draft, partition: int) -> None:
    """Take replicas away where that hurts least: dead brokers, unfit ones, then crowded ones."""
    holders = draft.holders[partition]
    while len(holders) > draft.wanted[partition]:
        draft.remove(
            partition,
            max(
                holders,
                key=lambda broker: (
                    draft.brokers[broker].is_dead,
                    not draft.is_target[broker],
                    draft.togetherness(partition, broker),
                    draft.penalty_now(broker) - draft.penalty_with(broker, partition, -1),
                    draft.replica_loads[broker],
                    broker,
                ),
            ),
        )


def separate(draft: Draft) -> None:
    """Move replicas apart that would fail together, where there is a better place."""
    for partition, holders in enumerate(draft.holders):
        if draft.is_apart(partition):
            continue
        for broker in list(holders):
            if not draft.is_target[broker]:
                continue
            target = draft.best_place(partition, leaving=broker)
            if target is not None and draft.togetherness(
                partition, target, broker
            ) < draft.togetherness(partition, broker):
                draft.relocate(partition, broker, target)


# --- what should be ---------------------------------------------------------------------------


def even_out(draft: Draft) -> None:
    """Move and exchange replicas between the most and the least loaded while that lowers the
    cost: first until the replica counts are even, then the bytes, then the traffic."""
    for at, weights in enumerate((None, draft.sizes, draft.rates)):
        loads = (draft.replica_loads, draft.byte_loads, draft.traffic_loads)[at]
        stuck: set[int] = set()
        while (pairs := _worst_pairs(draft, at, loads, stuck)) is not None:
            best: tuple[float, Step] | None = None
            for source, target in pairs.tried:
                for step in _promising(draft, source, target, weights, pairs.excess):
                    gain = draft.gain(step)
                    if gain > GAIN_MIN and (best is None or gain > best[0]):
                        best = (gain, step)
                if best is not None and weights is None:
                    break
            if best is None:
                stuck.add(pairs.broker)
            else:
                draft.take(best[1])


class _Pairs(NamedTuple):
    """A broker out of its range, by how much, and (source, target) pairs that would help it."""

    broker: int
    excess: int
    tried: list[tuple[int, int]]


def _worst_pairs(draft: Draft, at: int, loads: Sequence[int], stuck: set[int]) -> _Pairs | None:
    """The broker furthest out of its range, and with whom it could share; None if all are in."""
    worst: tuple[float, int] | None = None
    fills: list[tuple[float, int]] = []
    for broker in draft.targets:
        ranges = draft.ranges[broker]
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
    ranges = draft.ranges[broker]
    assert ranges is not None
    others = [other for _, other in fills if other != broker]
    excess = ranges[at].excess(loads[broker])
    if loads[broker] > ranges[at].high:
        tried = [(broker, other) for other in others[:PARTNERS_TRIED]]
    else:
        tried = [(other, broker) for other in others[: -PARTNERS_TRIED - 1 : -1]]
    return _Pairs(broker, excess, tried)


def _promising(
    draft: Draft, source: int, target: int, weights: Sequence[int] | None, excess: int
) -> Iterator[Step]:
    """Steps from ``source`` to ``target`` that are worth looking at closely."""
    if weights is None:
        yield from _fitting(draft, source, target)
        return
    leaving = sorted(draft.on[source], key=lambda p: (weights[p], p))
    if not leaving:
        return
    ladder = [weights[p] for p in leaving]
    for partition in _around(leaving, ladder, excess):
        if target not in draft.holders[partition]:
            yield Step(partition, source, target)
    coming = sorted(draft.on[target], key=lambda p: (weights[p], p))
    few = coming[:EXCHANGES_TRIED] + coming[EXCHANGES_TRIED :: 1 + len(coming) // EXCHANGES_TRIED]
    for other in few:
        if source in draft.holders[other]:
            continue
        for partition in _around(leaving, ladder, weights[other] + excess):
            if target not in draft.holders[partition]:
                yield Step(partition, source, target, other)


def _around(partitions: Sequence[int], ladder: Sequence[int], weight: int) -> Sequence[int]:
    """Those of about this weight."""
    at = bisect_right(ladder, weight)
    return partitions[max(0, at - 2) : at + 2]


def _fitting(draft: Draft, source: int, target: int) -> list[Step]:
    """The replicas that are of the size and traffic that such moves should be on average.

    Evening out the counts with those evens out the rest on the way.
    """
    needs = [
        _per_replica(draft, loads, at, source, target)
        for at, loads in ((1, draft.byte_loads), (2, draft.traffic_loads))
    ]
    (size, even_size), (rate, even_rate) = needs
    sizes, rates, holders = draft.sizes, draft.rates, draft.holders
    candidates = [
        (abs(sizes[p] - size) / even_size + abs(rates[p] - rate) / even_rate, p)
        for p in draft.on[source]
        if target not in holders[p]
    ]
    return [Step(p, source, target) for _, p in nsmallest(FITTING_TRIED, candidates)]


def _per_replica(
    draft: Draft, loads: Sequence[int], at: int, source: int, target: int
) -> tuple[float, float]:
    """What one of the replicas to be moved should weigh; and the even load, as the scale."""
    giver, taker = draft.ranges[source], draft.ranges[target]
    assert giver is not None
    assert taker is not None
    surplus = draft.replica_loads[source] - giver.replicas.even
    lack = taker.replicas.even - draft.replica_loads[target]
    if lack > surplus:
        weight = (taker[at].low - loads[target]) / max(
            1.0, taker.replicas.low - draft.replica_loads[target]
        )
    else:
        weight = (loads[source] - giver[at].high) / max(
            1.0, draft.replica_loads[source] - giver.replicas.high
        )
    return max(0.0, weight), max(1.0, taker[at].even)
