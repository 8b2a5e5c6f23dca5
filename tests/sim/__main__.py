"""``python -m tests.sim``: many seeds, or one again.

Seeds run in as many processes as there are cores.  A failing one is first made small: the
same seed with as few of its faults as still break it.  It is printed with its timeline and
the command that replays it; at the end stands what was exercised, so that "nothing happened"
cannot pass for "nothing broke".
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import Counter

from tests.sim.faults import FAULTS, plan_faults
from tests.sim.settings import Settings
from tests.sim.shrink import shrink
from tests.sim.verdict import Verdict, collect_seldom, play

SHRUNK_MAX = 3
"""So many failing seeds are made small; of the others the first lines are shown."""

TIMELINE_ALL = 1_000_000

SHOWN = (
    "leader_elected", "leadership_lost", "log_truncated", "fed_from_file", "segment_rolled",
    "peer_down", "host_vanished", "process_killed", "power_cut", "killed", "paused", "links_cut",
    "disk_refused", "disk_filled", "bit_rotted", "group_failed", "ended_by_itself",
    "partition_damaged", "partition_waits", "damage_found", "damage_repaired", "leader_moved",
    "made_topic",
    "log_trimmed", "log_compacted", "compaction_failed", "snapshot_installed",
    "configuration_changed", "move_begun", "move_finished", "broker_removed",
    "coordination_served", "coordination_trimmed", "lock_granted",
    "protected_append", "item_completed", "granted", "key_changed", "claim_completed",
    "item_handled", "user_paused", "session_expired", "restarted_with_possible_loss",
)  # fmt: skip
"""Events that tell whether the seeds went where bugs live."""


def main() -> int:
    """Run the seeds that were asked for; 1 if any of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument(
        "--coordinating", action="store_true", help="only seeds whose clients coordinate"
    )
    parser.add_argument(
        "--compacting", action="store_true", help="only seeds with a compacted topic"
    )
    parser.add_argument("--seed", type=int, help="replay this one, with its whole timeline")
    parser.add_argument("--faults", help="replay with these faults only, by number: 3,7,9 or none")
    parser.add_argument("--messages", action="store_true", help="show what brokers say, too")
    parser.add_argument("--until-failure", action="store_true", help="end with the first")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more after this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: of none nothing is learnt")
    if options.seed is not None:
        return replay(options.seed, _numbers(options.faults), messages=options.messages)

    began = time.monotonic()
    fitting = (
        seed
        for seed in itertools.count(options.first)
        if (not options.coordinating or Settings.draw(seed).coordinates)
        and (not options.compacting or Settings.draw(seed).compaction)
    )
    seeds = list(itertools.islice(fitting, options.seeds))
    failed: list[Verdict] = []
    passed: list[Verdict] = []
    # Not a ProcessPoolExecutor: that one may hang when it replaces its workers.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.sim.verdict"])
    with processes.Pool(options.jobs, collect_seldom, maxtasksperchild=50) as pool:
        for outcome in pool.imap_unordered(play, seeds):
            (failed if outcome.problem else passed).append(outcome)
            if outcome.problem:
                print(f"seed {outcome.seed} FAILED: {outcome.signature}", flush=True)
            if outcome.problem and options.until_failure:
                return 1
            if time.monotonic() - began > 60 * options.minutes:
                break
            done = len(failed) + len(passed)
            if done % 20 == 0:
                print(f"{done}/{len(seeds)} seeds, {len(failed)} failed", flush=True)
    seconds = time.monotonic() - began
    for outcome in failed[:SHRUNK_MAX]:
        show_small(outcome)
    _summarise(passed, failed, seconds)
    return 1 if failed else 0


def show_small(failed: Verdict) -> None:
    """Print why a seed fails, with as few faults as it takes."""
    print(f"\nseed {failed.seed}: looking for the faults that it takes", flush=True)
    planned = plan_faults(failed.seed, Settings.draw(failed.seed))
    small = shrink(failed, [fault.number for fault in planned])
    taken = small.fault_numbers
    numbers = ",".join(map(str, taken)) or "none"
    print(small.timeline)
    print(small.problem)
    print(f"seed {failed.seed} FAILED with {len(taken)} of {len(planned)} faults:")
    for fault in planned:
        if fault.number in taken:
            print(f"  {fault}")
    print(f"at commit {_commit()}; replay with: make sim SEED={failed.seed} FAULTS={numbers}")


def replay(seed: int, faults: list[int] | None, *, messages: bool) -> int:
    """One seed, with everything that happened."""
    verdict = play(seed, faults, messages=messages, timeline_events=TIMELINE_ALL)
    print(verdict.timeline)
    print(Settings.draw(seed))
    for fault in verdict.faults:
        print(fault)
    print(verdict.problem)
    print(f"seed {seed}: {verdict.acknowledged} acknowledged, digest {verdict.digest}")
    return 1 if verdict.problem else 0


def _numbers(text: str | None) -> list[int] | None:
    if not text:
        return None
    return [] if text == "none" else [int(number) for number in text.split(",")]


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _summarise(passed: list[Verdict], failed: list[Verdict], seconds: float) -> None:
    load = os.getloadavg()[0]
    print(f"\n{len(passed)} seeds passed, {len(failed)} failed in {seconds:.0f} s, load {load:.1f}")
    if failed:
        print("failed:", " ".join(str(outcome.seed) for outcome in failed))
    if not passed:
        return
    for name in ("acknowledged", "uncertain", "leader_changes", "virtual_s", "cpu_s"):
        values = sorted(getattr(outcome, name) for outcome in passed)
        print(
            f"  {name:<21} median {statistics.median(values):>9.1f}   "
            f"min {values[0]:>8.1f}   max {values[-1]:>8.1f}   sum {sum(values):>10.1f}"
        )
    exercised: Counter[str] = Counter()
    in_seeds: Counter[str] = Counter()
    for outcome in passed:
        for event, count in outcome.events:
            exercised[event] += count
            in_seeds[event] += 1
    for event in (*(f"fault_{kind}" for kind in FAULTS), *SHOWN):
        share = 100 * in_seeds[event] / len(passed)
        print(f"  {event:<21} {exercised[event]:>7} times, in {share:>3.0f} % of seeds")


if __name__ == "__main__":
    sys.exit(main())
