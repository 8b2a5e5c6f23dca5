"""One seed, run to its verdict in a process of its own."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from tests.sim.run import run_deterministic
from tests.sim.scenario import run_scenario


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is left of one run, small enough to travel between processes."""

    seed: int
    problem: str
    acknowledged: int = 0
    uncertain: int = 0
    leader_changes: int = 0
    events: tuple[tuple[str, int], ...] = ()
    digest: str = ""


def play(seed: int) -> Verdict:
    """Run one seed to its verdict; never raises."""
    try:
        report = run_deterministic(run_scenario, seed, seed=seed)
    except BaseException:
        return Verdict(seed, traceback.format_exc())
    problem = "\n".join(report.violations)
    if problem:
        problem += "\n" + report.trace.timeline(400)
    return Verdict(
        seed=seed,
        problem=problem,
        acknowledged=report.acknowledged,
        uncertain=report.uncertain,
        leader_changes=report.leader_changes,
        events=tuple(report.events.items()),
        digest=report.trace.digest,
    )
