"""Fewer faults, same failure: a failing run is made small before a person looks at it.

Faults have numbers and generators of their own (``faults.py``), so leaving some out changes
nothing about the others but what follows from it.  Delta debugging (Zeller): halves, then
quarters, then single faults are left out for as long as the run still fails in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.sim.verdict import Verdict, play

RUNS_MAX = 60
SECONDS_MAX = 180.0


def shrink(
    failed: Verdict,
    planned: list[int],
    *,
    run: Callable[[int, list[int]], Verdict] = play,
    seconds_max: float = SECONDS_MAX,
) -> Verdict:
    """The verdict with the fewest faults found that fails as ``failed`` does.

    Args:
        failed: of a run with all of ``planned``.
        planned: the numbers of its faults.
        run: runs a seed with some of its faults.
        seconds_max: stop looking after this long.
    """
    smallest = Smallest(failed, planned, run, time.monotonic() + seconds_max)
    parts = 2
    while len(smallest.faults) > 0 and smallest.may_go_on:
        if smallest.leave_out_one_of(parts):
            parts = max(parts - 1, 2)
        elif parts >= len(smallest.faults):
            break
        else:
            parts = min(2 * parts, len(smallest.faults))
    if smallest.faults and smallest.may_go_on:
        smallest.try_only([])
    return smallest.verdict


class Smallest:
    """The smallest failing run so far."""

    def __init__(
        self,
        failed: Verdict,
        planned: list[int],
        run: Callable[[int, list[int]], Verdict],
        deadline_s: float,
    ) -> None:
        self.verdict = failed
        self.faults = planned
        self._signature = failed.signature
        self._run = run
        self._runs_left = RUNS_MAX
        self._deadline_s = deadline_s

    @property
    def may_go_on(self) -> bool:
        return self._runs_left > 0 and time.monotonic() < self._deadline_s

    def leave_out_one_of(self, parts: int) -> bool:
        """Cut the faults into so many parts and try without each; True if one can go."""
        count = len(self.faults)
        for part in range(parts):
            start, end = count * part // parts, count * (part + 1) // parts
            # The last faults first: what comes after the failure is surely of no account.
            start, end = count - end, count - start
            if not self.may_go_on:
                return False
            if start < end and self.try_only(self.faults[:start] + self.faults[end:]):
                return True
        return False

    def try_only(self, faults: list[int]) -> bool:
        """Keep these faults only if the run still fails in the same way."""
        self._runs_left -= 1
        verdict = self._run(self.verdict.seed, faults)
        if verdict.signature != self._signature:
            return False
        self.verdict, self.faults = verdict, faults
        return True
