"""``python -m tests.sim``: many seeds, or one again.

Seeds run in as many processes as there are cores.  A failing one is printed with its
timeline and the command that replays it; at the end stands what was exercised, so that
"nothing happened" cannot pass for "nothing broke".
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import Counter

from tests.sim.run import run_deterministic
from tests.sim.scenario import FAULTS, run_scenario
from tests.sim.verdict import Verdict, play


def main() -> int:
    """Run the seeds that were asked for; 1 if any of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="replay this one, with its whole timeline")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)

    began = time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    failed: list[Verdict] = []
    passed: list[Verdict] = []
    # Not a ProcessPoolExecutor: that one may hang when it replaces its workers.
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=20) as pool:
        for outcome in pool.imap_unordered(play, seeds):
            if outcome.problem:
                failed.append(outcome)
                print(f"seed {outcome.seed} FAILED\n{outcome.problem}\n{_replay_hint(outcome)}")
            else:
                passed.append(outcome)
            done = len(failed) + len(passed)
            if done % 20 == 0:
                print(f"{done}/{len(seeds)} seeds, {len(failed)} failed", flush=True)
    _summarise(passed, failed, time.monotonic() - began)
    return 1 if failed else 0


def replay(seed: int) -> int:
    """One seed, with everything that happened."""
    report = run_deterministic(run_scenario, seed, seed=seed)
    print(report.trace.timeline(100_000))
    print(report.settings)
    for violation in report.violations:
        print(violation)
    print(f"seed {seed}: {report.acknowledged} acknowledged, digest {report.trace.digest}")
    return 1 if report.violations else 0


def _replay_hint(outcome: Verdict) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"at commit {commit or 'unknown'}; replay with: make sim SEED={outcome.seed}"


def _summarise(passed: list[Verdict], failed: list[Verdict], seconds: float) -> None:
    print(f"\n{len(passed)} seeds passed, {len(failed)} failed in {seconds:.0f} s")
    if not passed:
        return
    for name in ("acknowledged", "uncertain", "leader_changes"):
        values = sorted(getattr(outcome, name) for outcome in passed)
        print(
            f"  {name:<16} median {statistics.median(values):>7.0f}   "
            f"min {values[0]:>6}   max {values[-1]:>7}"
        )
    exercised: Counter[str] = Counter()
    in_seeds: Counter[str] = Counter()
    for outcome in passed:
        for event, count in outcome.events:
            exercised[event] += count
            in_seeds[event] += 1
    shown = [*(f"fault_{kind}" for kind in FAULTS), "leader_elected", "log_truncated"]
    shown += ["peer_down", "segment_rolled", "group_failed"]
    for event in shown:
        share = 100 * in_seeds[event] / len(passed)
        print(f"  {event:<18} {exercised[event]:>7} times, in {share:>3.0f} % of seeds")


if __name__ == "__main__":
    sys.exit(main())
