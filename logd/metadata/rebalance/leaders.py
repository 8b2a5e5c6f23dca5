"""Which replica of each partition is the preferred leader.

Changing it moves no bytes.  Leaders are shared evenly by passing leadership along chains: if 1
leads too many and 3 too few, 1 hands a partition to 2 and 2 another one to 3.  A shortest chain
exists whenever the counts can be improved at all, so the result is as even as the replicas
allow, with few changes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from logd.types import NodeId


def choose_leaders(
    replica_sets: Sequence[Sequence[NodeId]],
    current: Sequence[NodeId | None],
    targets: Sequence[NodeId],
    tolerance: float,
    *,
    is_balancing: bool,
) -> list[NodeId]:
    """The preferred leader of each partition.

    Args:
        replica_sets: where each partition's replicas will be.
        current: its preferred leader so far; kept while it may be.
        targets: brokers that may lead; another leads only a partition that has none of them.
    """
    counts = dict.fromkeys(targets, 0)
    leaders: list[NodeId | None] = []
    for replicas, leader in zip(replica_sets, current, strict=True):
        is_kept = leader in replicas and leader in counts
        leaders.append(leader if is_kept else None)
        if is_kept and leader is not None:
            counts[leader] += 1
    for at, replicas in enumerate(replica_sets):
        if leaders[at] is None:
            able = [node for node in replicas if node in counts]
            leader = min(able, key=lambda n: (counts[n], n)) if able else replicas[0]
            leaders[at] = leader
            if leader in counts:
                counts[leader] += 1
    chosen = [leader for leader in leaders if leader is not None]
    assert len(chosen) == len(replica_sets)
    if is_balancing and targets:
        _pass_along(replica_sets, chosen, counts, tolerance)
    return chosen


def leader_range(leader_count: int, broker_count: int, tolerance: float) -> tuple[int, int]:
    """Leaders that a broker may have, both ends inclusive."""
    even = leader_count / broker_count
    return (
        min(math.floor(even), math.ceil(even * (1 - tolerance))),
        max(math.ceil(even), math.floor(even * (1 + tolerance))),
    )


def _pass_along(
    replica_sets: Sequence[Sequence[NodeId]],
    leaders: list[NodeId],
    counts: dict[NodeId, int],
    tolerance: float,
) -> None:
    low, high = leader_range(sum(counts.values()), len(counts), tolerance)
    # From one broker to another: the partitions that the first leads and the second could.
    ways: dict[NodeId, dict[NodeId, dict[int, None]]] = {node: {} for node in counts}

    def note(partition: int, is_added: bool) -> None:
        leader = leaders[partition]
        if leader not in ways:
            return
        for node in replica_sets[partition]:
            if node != leader and node in counts:
                way = ways[leader].setdefault(node, {})
                if is_added:
                    way[partition] = None
                else:
                    del way[partition]

    for partition in range(len(leaders)):
        note(partition, is_added=True)
    stuck: set[NodeId] = set()
    while True:
        chain = _next_chain(counts, ways, low, high, stuck)
        if chain is None:
            return
        for giver, taker in pairwise(chain):
            partition = next(iter(ways[giver][taker]))
            note(partition, is_added=False)
            leaders[partition] = taker
            note(partition, is_added=True)
        counts[chain[0]] -= 1
        counts[chain[-1]] += 1


def _next_chain(
    counts: Mapping[NodeId, int],
    ways: Mapping[NodeId, Mapping[NodeId, Mapping[int, None]]],
    low: int,
    high: int,
    stuck: set[NodeId],
) -> list[NodeId] | None:
    """From who leads too many to who leads less, or from who leads more to who leads too few."""
    for node in sorted(counts, key=lambda n: (-counts[n], n)):
        if counts[node] <= high or node in stuck:
            continue
        chain = _shortest(
            node,
            lambda giver: [taker for taker, way in ways[giver].items() if way],
            {n for n in counts if counts[n] <= counts[node] - 2},
        )
        if chain is not None:
            return chain
        stuck.add(node)
    for node in sorted(counts, key=lambda n: (counts[n], n)):
        if counts[node] >= low or node in stuck:
            continue
        chain = _shortest(
            node,
            lambda taker: [giver for giver in ways if ways[giver].get(taker)],
            {n for n in counts if counts[n] >= counts[node] + 2},
        )
        if chain is not None:
            return chain[::-1]
        stuck.add(node)
    return None


def _shortest(
    start: NodeId, onward: Callable[[NodeId], Sequence[NodeId]], ends: set[NodeId]
) -> list[NodeId] | None:
    """A shortest way from ``start`` to one of ``ends``."""
    came_from: dict[NodeId, NodeId] = {start: start}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node in ends:
            way = [node]
            while node != start:
                node = came_from[node]
                way.append(node)
            return way[::-1]
        for following in onward(node):
            if following not in came_from:
                came_from[following] = node
                queue.append(following)
    return None
