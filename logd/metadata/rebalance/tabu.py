"""Goes on from an even layout to a better one, as far as a number of evaluations reaches.

A tabu search tries single moves and exchanges, also such that raise the cost for a while.  In
small clusters, where one partition is much of a broker's load, this is what finds the combination
that fits.  What it draws is the same in every run: equal clusters give equal plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from itertools import islice
from typing import Final

from logd.metadata.rebalance.draft import GAIN_MIN, Draft, Step

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


def refined(draft: Draft, evened: Draft, evaluations_max: int) -> Draft:
    """The better of two searches: from the layout as it must be, and from the even one.

    The first finds the moves that are few and fit, the second those that take many steps.
    """
    enough = round(_least_bytes(draft) * GOOD_ENOUGH)
    if len(draft.sizes) * len(draft.targets) > TWO_STARTS_MAX:
        refine(evened, enough, evaluations_max // LARGE_CLUSTER_DIVISOR)
        return evened
    refine(evened, enough, evaluations_max)
    if not _is_good_enough(evened, enough):
        refine(draft, enough, evaluations_max)
        if draft.cost() < evened.cost() - GAIN_MIN:
            return draft
    return evened


def _least_bytes(draft: Draft) -> int:
    """No layout without penalties moves fewer bytes than this, and usually none so few."""
    arriving = leaving = 0
    for broker in draft.targets:
        ranges = draft.ranges[broker]
        assert ranges is not None
        before = [p for p, original in enumerate(draft.original) if broker in original]
        held = sum(draft.sizes[p] for p in before)
        lacking = ranges.replicas.low - len(before)
        if lacking > 0:
            others = (s for p, s in enumerate(draft.sizes) if broker not in draft.original[p])
            arriving += max(sum(nsmallest(lacking, others)), ranges.bytes.low - held, 0)
        else:
            arriving += max(ranges.bytes.low - held, 0)
        surplus = nsmallest(len(before) - ranges.replicas.high, (draft.sizes[p] for p in before))
        leaving += max(sum(surplus), held - ranges.bytes.high, 0)
    for broker in range(len(draft.brokers)):
        if not draft.is_target[broker]:
            leaving += sum(
                size
                for size, original in zip(draft.sizes, draft.original, strict=True)
                if broker in original
            )
    return max(arriving, leaving)


def _is_good_enough(draft: Draft, enough: int) -> bool:
    return draft.bytes_moved <= enough and draft.cost() < 1


def refine(draft: Draft, enough: int, evaluations_max: int) -> None:
    """Tabu search: always the best step that is not forbidden, and the best layout is kept.

    A search that finds nothing better for some rounds goes back to the best layout, takes a few
    steps that it would not have taken, and goes on from there.

    Args:
        enough: a layout without penalties that moves no more bytes ends the search.
        evaluations_max: bounds the search: a count, because a clock would make two plans of one
            cluster differ.
    """
    search = _TabuSearch(draft, evaluations_max)
    without_gain = 0
    while search.evaluations < evaluations_max and not _is_good_enough(draft, enough):
        before = search.best_cost
        if not search.descend():
            return
        search.return_to_best()
        without_gain = 0 if search.best_cost < before - GAIN_MIN else without_gain + 1
        if without_gain > RESTARTS_WITHOUT_GAIN_MAX:
            return
        if _is_good_enough(draft, enough):
            return
        search.leave_the_path()
    search.return_to_best()


class _TabuSearch:
    def __init__(self, draft: Draft, evaluations_max: int) -> None:
        self.evaluations = 0
        self._evaluations_max = evaluations_max
        self.best_cost = draft.cost()
        self._draft = draft
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
        for step in _neighbours(self._draft):
            self.evaluations += 1
            gain = self._draft.gain(step)
            if best is not None and gain <= best[0]:
                continue
            if gain <= wanted and self._is_forbidden(step):
                continue
            best = (gain, step)
        return best

    def _take(self, step: Step, gain: float) -> None:
        self._draft.take(step)
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
            self._draft.take(Step(step.partition, step.target, step.source, step.other))
        self._taken.clear()
        self._cost = self.best_cost
        self._forbidden.clear()

    def leave_the_path(self) -> None:
        """Take some steps that are as good as drawn by lot, and the same in every run."""
        for _ in range(KICKS):
            steps = list(islice(_neighbours(self._draft), EVALUATIONS_PER_ROUND_MAX))
            if not steps:
                return
            self._draw = self._draw * 6364136223846793005 + 1442695040888963407 & MASK_64
            step = steps[(self._draw >> 33) % len(steps)]
            self._take(step, self._draft.gain(step))


def _neighbours(draft: Draft) -> Iterator[Step]:
    """Single moves and exchanges, at most ``EVALUATIONS_PER_ROUND_MAX``, the likely ones."""
    replicas = [
        (partition, broker)
        for partition, holders in enumerate(draft.holders)
        for broker in holders
        if draft.is_target[broker]
    ]
    count = len(replicas) * (len(draft.targets) + len(replicas) // 2)
    chosen = replicas
    if count > EVALUATIONS_PER_ROUND_MAX:
        unhappy = [broker for broker in draft.targets if draft.penalty_now(broker) > 0]
        chosen = [
            (partition, broker)
            for partition, broker in replicas
            if broker not in draft.original[partition] or broker in unhappy
        ]
        per_replica = len(draft.targets) + len(replicas)
        chosen = chosen[: max(1, EVALUATIONS_PER_ROUND_MAX // per_replica)]
    for at, (partition, source) in enumerate(chosen):
        holders = draft.holders[partition]
        for target in draft.targets:
            if target not in holders:
                yield Step(partition, source, target)
        partners = chosen[at + 1 :] if chosen is replicas else replicas
        for other, target in partners:
            if target not in holders and source not in draft.holders[other]:
                yield Step(partition, source, target, other)
