"""Deliberate breakages of the whole system, each of which some test must notice.

A simulator that nobody has tried to fool is decoration.  ``python -m tests.sim.mutants``
breaks a copy of the tree in one place after the other.  First the test that noticed it when it
was last tried looks at it, then the tests of the layer, cheapest first; if they notice nothing,
simulated clusters run until one breaks a promise, up to a number of seeds.  A mutant that
survives all of them, or whose snippet is no longer in the source, is an error.

The lists are ``tests/spec/mutants.py`` (the consensus core), ``coordination_mutants.py`` beside it,
and ``system_mutants.py``.
docs/mutants.md is made by ``--write``: which promise a mutant breaks (P1 to P7, see
docs/failure_model.md) and what killed it.
"""

# ruff: noqa: T201 - it is a program, it prints

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.sim.system_mutants import SYSTEM_MUTANTS
from tests.spec.coordination_mutants import COORDINATION_MUTANTS
from tests.spec.mutants import CORE_MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mutants.md"
COPIED = ("logd", "client", "tests", "pyproject.toml", "segment_format.md")
SEEDS_MAX = 60
TEST_CPU_S = 90
SEEDS_CPU_S = 900
WAITING_MAX = 5
"""On a busy machine a test may take this many times its processor time."""

NO_TESTS = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
"""How pytest ends that was given a file which is not there, or empty: that kills nothing."""

MUTANTS = (*CORE_MUTANTS, *SYSTEM_MUTANTS, *COORDINATION_MUTANTS)

FAST_TESTS = {
    "logd/raft": (
        "tests/spec/test_raft_spec.py",
        "tests/unit/test_raft_core.py",
        "tests/unit/test_raft_memory.py",
        "tests/sim/test_raft_sim.py",
        "tests/sim/test_raft_memory_sim.py",
    ),
    "logd/record": (
        "tests/unit/test_batch_header.py",
        "tests/unit/test_batch.py",
        "tests/unit/test_payload.py",
        "tests/unit/test_control.py",
        "tests/unit/test_compaction.py",
    ),
    "logd/runtime": ("tests/unit/test_sim_env.py", "tests/unit/test_threads.py"),
    "logd/wire": ("tests/unit/test_frame.py", "tests/unit/test_unsent.py"),
    "logd/storage": (
        "tests/unit/test_log.py",
        "tests/unit/test_log_recovery.py",
        "tests/unit/test_hard_state.py",
        "tests/unit/test_kept_open.py",
        "tests/unit/test_checkpoint.py",
        "tests/unit/test_data_directory.py",
        "tests/unit/test_opening.py",
        "tests/unit/test_repair.py",
        "tests/unit/test_retention.py",
        "tests/unit/test_trash.py",
        "tests/unit/test_clean_note.py",
        "tests/unit/test_compaction.py",
    ),
    "logd/partition": (
        "tests/unit/test_producer_table.py",
        "tests/unit/test_fence_table.py",
        "tests/unit/test_partition_state.py",
    ),
    "logd/replication": (
        "tests/unit/test_received.py",
        "tests/unit/test_snapshot.py",
        "tests/unit/test_turn.py",
        "tests/unit/test_inbox.py",
        "tests/unit/test_asking.py",
        "tests/unit/test_newcomers.py",
        "tests/unit/test_answer_room.py",
        "tests/unit/test_held_news.py",
        "tests/unit/test_fitness.py",
        "tests/unit/test_claims.py",
        "tests/unit/test_peer_server.py",
        "tests/unit/test_shipping.py",
        "tests/unit/test_installing.py",
        "tests/unit/test_opening.py",
        "tests/unit/test_group.py",
        "tests/unit/test_full_disk.py",
        "tests/unit/test_rolling.py",
        "tests/unit/test_group_memory.py",
        "tests/unit/test_campaigns.py",
        "tests/unit/test_sync_pool.py",
        "tests/unit/test_membership.py",
        "tests/unit/test_membership_change.py",
        "tests/unit/test_tail_cache.py",
        "tests/unit/test_failure_detector.py",
        "tests/unit/test_peer_link.py",
        "tests/unit/test_repairer.py",
        "tests/unit/test_repair.py",
        "tests/unit/test_retention.py",
        "tests/unit/test_compaction.py",
        "tests/sim/test_repair_sim.py",
        "tests/sim/test_compaction_sim.py",
        "tests/sim/test_scripted_faults.py",
        "tests/sim/test_join_sim.py",
        "tests/sim/test_known_faults.py",
    ),
    "logd/broker/coordination": (
        "tests/unit/test_claim_waits.py",
        "tests/unit/test_session_clock.py",
        "tests/unit/test_log_time.py",
        "tests/unit/test_coordination_freeing.py",
        "tests/unit/test_coordination_levels.py",
        "tests/unit/test_watch_parts.py",
        "tests/sim/test_coordination_service.py",
        "tests/fuzz/test_live_borders.py",
    ),
    "logd/broker": (
        "tests/unit/test_answer_room.py",
        "tests/unit/test_frame_room.py",
        "tests/unit/test_metadata_service.py",
        "tests/unit/test_metadata_voters.py",
        "tests/unit/test_leader_balancer.py",
        "tests/unit/test_trash.py",
        "tests/fuzz/test_live_requests.py",
        "tests/fuzz/test_live_borders.py",
        "tests/sim/test_scripted_faults.py",
        "tests/sim/test_join_sim.py",
        "tests/sim/test_metadata_snapshot_sim.py",
        "tests/sim/test_repair_sim.py",
        "tests/sim/test_rebuilding_sim.py",
        "tests/sim/test_moves_sim.py",
        "tests/sim/test_known_faults.py",
    ),
    "logd/coordination": (
        "tests/unit/test_coordination_sessions.py",
        "tests/unit/test_coordination_locks.py",
        "tests/unit/test_coordination_keys.py",
        "tests/unit/test_coordination_spreading.py",
        "tests/unit/test_coordination_groups.py",
        "tests/unit/test_coordination_quotas.py",
        "tests/unit/test_coordination_queues.py",
        "tests/unit/test_coordination_rules.py",
        "tests/unit/test_coordination_history.py",
    ),
    "logd/metadata/rebalance": ("tests/unit/test_rebalance_planner.py",),
    "logd/metadata": (
        "tests/unit/test_metadata_state.py",
        "tests/unit/test_metadata_moves.py",
        "tests/unit/test_features.py",
        "tests/unit/test_placement.py",
    ),
    "client": (
        "tests/unit/test_client_pipeline.py",
        "tests/unit/test_client_cursor.py",
        "tests/unit/test_client_parts.py",
        "tests/unit/test_client_consumer_options.py",
        "tests/unit/test_client_batch_at_hand.py",
        "tests/unit/test_client_partition_choice.py",
        "tests/unit/test_client_cutting.py",
        "tests/unit/test_client_columns.py",
        "tests/unit/test_client_accumulator.py",
        "tests/unit/test_client_consumer.py",
        "tests/unit/test_client_calls.py",
        "tests/unit/test_client_coordination.py",
        "tests/unit/test_client_feeds.py",
        "tests/unit/test_client_shards.py",
        "tests/unit/test_client_threads.py",
        "tests/unit/test_client_exchange.py",
        "tests/unit/test_client_producer.py",
        "tests/unit/test_client_routing.py",
        "tests/unit/test_client_background.py",
        "tests/unit/test_client_partition_feed.py",
        "tests/unit/test_client_delivery.py",
        "tests/unit/test_client_transport.py",
        "tests/unit/test_client_event_loop.py",
        "tests/unit/test_client_sync_producer.py",
        "tests/unit/test_client_connect.py",
        "tests/sim/test_growing_topics_sim.py",
        "tests/sim/test_library_sim.py",
    ),
}
"""Folder → what looks at it before the simulated clusters do, cheapest first."""

LAYERS = {
    "tests/spec/": "specification",
    "tests/unit/": "unit tests",
    "tests/sim/test_raft_sim": "simulated core",
    "tests/fuzz/": "borders",
    "tests/sim/": "scripted faults",
    "seed ": "simulated clusters",
}
"""How what killed a mutant begins → the layer, lowest first."""

HANGS = " (hangs)"


class Fate(NamedTuple):
    """What became of one mutant."""

    mutant: Mutant
    killed_by: str
    """A test's path and name, or a seed and what it met; empty: it survived."""
    seconds: float


def fits(mutant: Mutant) -> bool:
    """Its snippet is in the source, once."""
    return (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1


def fate_of(mutant: Mutant, seeds: int, noted: str, *, simulator_only: bool) -> Fate:
    """Try one mutant on a copy of the tree; ``noted`` killed it when it was last tried."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _copy_tree(directory)
        path = directory / mutant.file
        path.write_text(path.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
        killed_by = "" if simulator_only else _killing_test(mutant, directory, noted)
        killed_by = killed_by or _killing_seed(directory, seeds)
    return Fate(mutant, killed_by, time.monotonic() - began)


def _copy_tree(directory: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "corpus")
            shutil.copytree(source, directory / name, ignore=ignore)
        else:
            shutil.copy(source, directory / name)


def _run(
    directory: Path, arguments: Iterable[str], cpu_s: int
) -> subprocess.CompletedProcess[str] | None:
    """Run Python on the copy, not on the tree that is installed; None if it took too long."""
    environment = {**os.environ, "PYTHONPATH": f"{directory}:{directory / 'client'}"}
    limited = ("sh", "-c", f'ulimit -t {cpu_s}; exec "$0" "$@"')
    try:
        done = subprocess.run(
            [*limited, sys.executable, *arguments],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAITING_MAX * cpu_s,
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode < 0 else done


def _killing_test(mutant: Mutant, directory: Path, noted: str) -> str:
    if noted.startswith("tests/") and _is_killed_by(noted.removesuffix(HANGS), directory):
        return noted
    layer = next(folder for folder in FAST_TESTS if mutant.file.startswith(folder))
    for test in FAST_TESTS[layer]:
        if killed_by := _is_killed_by(test, directory, must_exist=True):
            return killed_by
    return ""


def _is_killed_by(test: str, directory: Path, *, must_exist: bool = False) -> str:
    """How a file of tests, or a test in it, fails; empty if it does not."""
    done = _run(directory, ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test), TEST_CPU_S)
    if done is None:
        return test + HANGS
    if done.returncode in NO_TESTS:
        assert not must_exist, f"{test} tests nothing: {done.stderr}"
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) ([^ ]*?::\w+)", done.stdout, re.MULTILINE)
    return "" if done.returncode == 0 else failed[1] if failed else test


def _killing_seed(directory: Path, seeds: int) -> str:
    command = ("-m", "tests.sim", "--jobs", "1", "--seeds", str(seeds), "--until-failure")
    done = _run(directory, command, SEEDS_CPU_S)
    if done is None:
        return "seed (does not end)"
    failed = re.search(r"^seed (\d+) FAILED: (.*)$", done.stdout, re.MULTILINE)
    if failed is not None:
        return f"seed {failed[1]}: {failed[2]}"
    return "" if done.returncode == 0 else f"seed ?: {done.stderr[-200:]}"


# --- the page -----------------------------------------------------------------------------

INTRODUCTION = """\
# Mutants

Small deliberate breakages, one at a time, and what noticed each. `make mutants` tries them all and
writes this page; a test compares it with the lists (`tests/spec/mutants.py`,
`tests/spec/coordination_mutants.py`, `tests/sim/system_mutants.py`). The tests of a layer look
first, cheapest first; only what they miss goes to simulated clusters. The one named here failed
when the mutant was last tried, and looks first when it is tried again. Tests come and go: whoever
tries a mutant that another notices by now is told so, and `--write` notes it.
"""

HEADING = "| breakage | in | promise | killed by |\n|---|---|---|---|"
ROW = re.compile(r"^\| (.+?) \| `(.+?)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def row_of(mutant: Mutant, killed_by: str) -> str:
    return f"| {mutant.name} | `{mutant.file}` | {mutant.promise} | {killed_by} |"


UNTRIED = "not tried yet"


def layer_of(killed_by: str) -> str:
    return next(layer for start, layer in LAYERS.items() if killed_by.startswith(start))


def render(killed_by: Mapping[str, str]) -> str:
    """The page, of name → what killed it when it was last tried."""
    killers = {mutant.name: killed_by.get(mutant.name, UNTRIED) for mutant in MUTANTS}
    tried = [killer for killer in killers.values() if killer != UNTRIED]
    layers = Counter(map(layer_of, tried))
    counts = ", ".join(f"{layers[layer]} by {layer}" for layer in LAYERS.values() if layers[layer])
    rows = [row_of(mutant, killers[mutant.name]) for mutant in MUTANTS]
    summary = f"{len(MUTANTS)} mutants, {len(tried)} tried, all of these killed: {counts}."
    return "\n".join([INTRODUCTION, summary, "", HEADING, *rows]) + "\n"


def killers_on_page() -> dict[str, str]:
    """Name → what killed it when the page was written."""
    return {name: killer for name, _, _, killer in ROW.findall(PAGE.read_text("utf-8"))}


def choose(names: Sequence[str], every: int, first: int) -> list[Mutant]:
    """Those that are to be tried: every n-th of those with such a name.

    Raises:
        ValueError: there is none.
    """
    if not 0 <= first < every:
        raise ValueError(f"--first is 0 to {every - 1}, less than --every")
    named = [
        mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)
    ]
    if not named:
        raise ValueError(f"no mutant's name contains {' or '.join(names)}")
    if first >= len(named):
        raise ValueError(f"there are {len(named)} such mutants: none is the {first}th, from 0")
    return named[first::every]


def told_of_others(known: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A line for each mutant of which the page names another killer.

    That is no failure: what notices first may be new, and whoever meets it did not change it.
    """
    return [
        f"{name}: {PAGE.name} has it killed by {known[name]}; --write corrects that"
        for name, killer in found.items()
        if known.get(name, killer) != killer
    ]


def main() -> int:
    """Try the mutants that were asked for; 1 if any survives or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; default: all mutants")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="simulated, at most")
    parser.add_argument("--every", type=int, default=1, help="try only every n-th")
    parser.add_argument("--first", type=int, default=0, help="of those, begin with this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--simulator-only", action="store_true", help="without the fast tests")
    parser.add_argument("--write", action="store_true", help="note what was found in the page")
    options = parser.parse_args()
    try:
        chosen = choose(options.names, options.every, options.first)
    except ValueError as error:
        parser.error(str(error))
    misfits = [mutant.name for mutant in MUTANTS if not fits(mutant)]
    known = killers_on_page() if PAGE.exists() else {}

    def try_one(mutant: Mutant) -> Fate:
        noted = known.get(mutant.name, "")
        fate = fate_of(mutant, options.seeds, noted, simulator_only=options.simulator_only)
        verdict = f"killed by {fate.killed_by}" if fate.killed_by else "SURVIVED"
        print(f"{mutant.name}: {verdict} ({fate.seconds:.0f} s)", flush=True)
        return fate

    with ThreadPoolExecutor(options.jobs) as pool:
        fates = list(pool.map(try_one, [m for m in chosen if m.name not in misfits]))
    survivors = [fate.mutant.name for fate in fates if not fate.killed_by]
    print(f"{len(fates) - len(survivors)} of {len(fates)} killed")
    for name in survivors:
        print(f"SURVIVED: {name}")
    for name in misfits:
        print(f"DOES NOT FIT the source any more: {name}")
    if survivors or misfits:
        return 1
    found = {fate.mutant.name: fate.killed_by for fate in fates}
    if options.write:
        PAGE.write_text(render({**known, **found}), "utf-8")
    elif not options.simulator_only:
        for line in told_of_others(known, found):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
