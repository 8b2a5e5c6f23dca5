"""Which member is to have which shard: a pure function, sticky first, balanced second.

Shards that weigh alike are spread exactly: counts differ by one at most, and no spreading that
achieves this moves fewer shards.  For that, those who have most already may have the one more, and
each keeps as much of what it has as its share allows.

Shards of different weights are spread by a bounded greedy search, since the exact answer cannot
be had in time that a replica may spend.  Orphans go, heaviest first, to who carries least.  Then
shards move from who carries most to who carries least, the one that levels the two best, as long
as that makes the larger of the two smaller and they differ by more than ``TOLERANCE`` of the mean.
When it stops, the most loaded carries more than the least loaded by no more than the tolerance, or
the lightest shard that it had and kept.  Each shard moves once at most in a pass, and there are
few passes, so it ends.

Weights are counted in whole units, a million to the mean.  So loads are exact in whatever order
they are added up, and what has been spread stays where it is: in floating point the last digit
of a sum decided for a move that gains nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Final, NamedTuple

from sortedcontainers import SortedList

TOLERANCE: Final = 0.05
"""Of the mean load.  Below it nothing moves for weights alone: reported loads flicker."""

_UNITS: Final = 1_000_000
"""Of the mean weight.  A shard weighs one at least: many that weigh nothing spread too."""

_PASSES_MAX: Final = 8
"""Nearly always the second finds nothing left to move."""


class Placed(NamedTuple):
    """A shard before spreading."""

    shard: str
    member: str | None
    """Who has it, or is about to."""
    weight: float | None
    """None: nobody knows, so as much as the mean."""
    reluctance: int
    """Among shards that may leave a member, those with less go first."""


def spread(members: Sequence[str], shards: Sequence[Placed]) -> dict[str, str | None]:
    """Shard → the member that is to have it; None if there is no member.

    ``members`` in order of joining.  Deterministic: the same arguments give the same answer.
    """
    if not members:
        return dict.fromkeys((placed.shard for placed in shards), None)
    weights = _weights(shards)
    if all(weight == weights[0] for weight in weights):
        return _spread_alike(members, shards)
    return _spread_by_weight(members, shards, weights)


def _weights(shards: Sequence[Placed]) -> list[int]:
    known = [placed.weight for placed in shards if placed.weight is not None]
    # Replicas may run different versions of Python: from 3.12 on sum() rounds in another way.
    mean = reduce(add, known, 0.0) / len(known) if known else 0.0
    if not mean:
        return [_UNITS] * len(shards)
    return [_UNITS if s.weight is None else max(round(s.weight / mean * _UNITS), 1) for s in shards]


# --- all alike ------------------------------------------------------------------------------


def _spread_alike(members: Sequence[str], shards: Sequence[Placed]) -> dict[str, str | None]:
    having: dict[str, list[Placed]] = {member: [] for member in members}
    orphans: list[Placed] = []
    for placed in shards:
        having.get(placed.member or "", orphans).append(placed)
    shares = _shares(members, having, len(shards))
    result: dict[str, str | None] = {}
    for member in members:
        kept = sorted(having[member], key=_most_reluctant_first)
        result.update((placed.shard, member) for placed in kept[: shares[member]])
        orphans += kept[shares[member] :]
        shares[member] -= min(shares[member], len(kept))
    takers = (member for member in members for _ in range(shares[member]))
    result.update((placed.shard, taker) for placed, taker in zip(orphans, takers, strict=True))
    return result


def _shares(
    members: Sequence[str], having: Mapping[str, Sequence[Placed]], count: int
) -> dict[str, int]:
    """How many each is to have: one more for those who have most, the rest alike."""
    least, more = divmod(count, len(members))
    by_count = sorted(members, key=lambda member: -len(having[member]))
    return {member: least + (at < more) for at, member in enumerate(by_count)}


def _most_reluctant_first(placed: Placed) -> tuple[int, str]:
    return -placed.reluctance, placed.shard


# --- by weight ------------------------------------------------------------------------------


class _Carrier:
    """A member and what it is to carry."""

    __slots__ = ("load", "member", "order", "shards")

    def __init__(self, member: str, order: int) -> None:
        self.member = member
        self.order = order
        self.load = 0
        self.shards: SortedList[tuple[int, int, str]] = SortedList()

    def take(self, weight: int, reluctance: int, shard: str) -> None:
        self.load += weight
        self.shards.add((weight, reluctance, shard))

    def best_to_give(self, difference: int) -> tuple[int, int, str] | None:
        """What levels this and one that carries ``difference`` less best; None: nothing does."""
        half = difference / 2
        at = self.shards.bisect_left((half,))
        near = [self.shards[at]] if at < len(self.shards) else []
        if at:
            lighter = self.shards[at - 1][0]
            near.append(self.shards[self.shards.bisect_left((lighter,))])
        levelling = [found for found in near if found[0] < difference]
        return min(levelling, key=lambda found: (abs(found[0] - half), found), default=None)


def _spread_by_weight(
    members: Sequence[str], shards: Sequence[Placed], weights: Sequence[int]
) -> dict[str, str | None]:
    carriers = {member: _Carrier(member, order) for order, member in enumerate(members)}
    orphans: list[tuple[int, Placed]] = []
    for placed, weight in zip(shards, weights, strict=True):
        carrier = carriers.get(placed.member or "")
        if carrier is None:
            orphans.append((weight, placed))
        else:
            carrier.take(weight, placed.reluctance, placed.shard)
    _give_orphans(list(carriers.values()), orphans)
    for _ in range(_PASSES_MAX):
        if not _level(list(carriers.values()), sum(weights) / len(members), len(shards)):
            break
    return {
        shard: carrier.member for carrier in carriers.values() for _, _, shard in carrier.shards
    }


def _give_orphans(carriers: list[_Carrier], orphans: list[tuple[int, Placed]]) -> None:
    heap = [(carrier.load, carrier.order) for carrier in carriers]
    heapq.heapify(heap)
    for weight, placed in sorted(orphans, key=lambda orphan: (-orphan[0], orphan[1].shard)):
        _, order = heap[0]
        carriers[order].take(weight, placed.reluctance, placed.shard)
        heapq.heapreplace(heap, (carriers[order].load, order))


def _level(carriers: list[_Carrier], mean: float, moves_max: int) -> int:
    """Move what makes the most loaded carry less, each shard once at most; how many moved."""
    by_load: SortedList[tuple[int, int]] = SortedList((c.load, c.order) for c in carriers)
    moved: list[tuple[_Carrier, tuple[int, int, str]]] = []
    for _ in range(moves_max):
        least, most = carriers[by_load[0][1]], carriers[by_load[-1][1]]
        difference = most.load - least.load
        given = most.best_to_give(difference) if difference > TOLERANCE * mean else None
        if given is None:
            break
        by_load.discard((least.load, least.order))
        by_load.discard((most.load, most.order))
        most.shards.remove(given)
        most.load -= given[0]
        least.load += given[0]
        moved.append((least, given))
        by_load.add((least.load, least.order))
        by_load.add((most.load, most.order))
    for carrier, given in moved:
        carrier.shards.add(given)
    return len(moved)
