"""Deliberate breakages of the whole system, each of which some test must notice.

A simulator that nobody has tried to fool is decoration.  ``python -m tests.sim.mutants``
breaks a copy of the tree in one place after the other.  First the fast tests of the layer look
at it; if they notice nothing, simulated clusters run until one breaks a promise, up to a
number of seeds.  A mutant that survives both, or whose snippet is no longer in the source, is
an error.

The table says which promise a mutant breaks (P1 to P7, see docs/failure_model.md) and, with
``--table``, which layer killed it: docs/mutants.md is that output.  The consensus core has a
longer list of its own (``tests/spec/mutants.py``).
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("logd", "client", "tests", "pyproject.toml", "segment_format.md")
SEEDS_MAX = 60
TEST_TIMEOUT_S = 120
SEEDS_TIMEOUT_S = 900

FAST_TESTS = {
    "logd/raft": ("tests/spec/test_raft_spec.py", "tests/unit/test_raft_core.py"),
    "logd/storage": (
        "tests/unit/test_log.py",
        "tests/unit/test_log_recovery.py",
        "tests/unit/test_hard_state.py",
        "tests/unit/test_checkpoint.py",
        "tests/unit/test_data_directory.py",
        "tests/unit/test_repair.py",
    ),
    "logd/partition": ("tests/unit/test_producer_table.py", "tests/unit/test_partition_state.py"),
    "logd/replication": (
        "tests/unit/test_group.py",
        "tests/unit/test_tail_cache.py",
        "tests/unit/test_failure_detector.py",
        "tests/unit/test_peer_link.py",
        "tests/unit/test_repair.py",
        "tests/sim/test_scripted_faults.py",
    ),
    "logd/broker": (
        "tests/unit/test_metadata_service.py",
        "tests/unit/test_leader_balancer.py",
        "tests/sim/test_scripted_faults.py",
    ),
    "logd/metadata": ("tests/unit/test_metadata_state.py", "tests/unit/test_placement.py"),
    "client": (
        "tests/unit/test_client_pipeline.py",
        "tests/unit/test_client_cursor.py",
        "tests/unit/test_client_parts.py",
        "tests/unit/test_client_accumulator.py",
    ),
}
"""Folder → what looks at it first."""


class Mutant(NamedTuple):
    """One breakage: ``old`` becomes ``new`` in ``file``, and ``promise`` does not hold any more."""

    name: str
    promise: str
    file: str
    old: str
    new: str


MUTANTS = (
    # --- the consensus core -------------------------------------------------------------------
    Mutant(
        "a node votes twice in a term",
        "P2: one leader per term",
        "logd/raft/core.py",
        "and self._voted_for in (None, request.source)",
        "and True",
    ),
    Mutant(
        "a leader counts itself before its sync",
        "P1",
        "logd/raft/leadership.py",
        "return self._log.synced_end if node",
        "return self._log.end if node",
    ),
    Mutant(
        "a follower acknowledges what is not synced",
        "P1",
        "logd/raft/core.py",
        "synced_end = min(self._log.synced_end, self._matched_end)",
        "synced_end = self._matched_end",
    ),
    Mutant(
        "a batch of an earlier term is committed by counting",
        "P1: Figure 8",
        "logd/raft/leadership.py",
        "and end > self.term_start:",
        "and True:",
    ),
    Mutant(
        "a quorum is one too few",
        "P1",
        "logd/raft/quorum.py",
        "count // 2 + 1",
        "max(1, count // 2)",
    ),
    Mutant(
        "any candidate's log will do",
        "P1",
        "logd/raft/core.py",
        ">= (self.last_term, self._log.end)",
        ">= (0, 0)",
    ),
    Mutant(
        "a sync of truncated batches counts",
        "P1",
        "logd/raft/log_state.py",
        "if self.terms.term_at(end_offset - 1) != last_term:",
        "if False:",
    ),
    Mutant(
        "a conflicting batch is kept",
        "P2",
        "logd/raft/core.py",
        "log.terms.term_at(base_offset) != term:",
        "False:",
    ),
    # --- storage ------------------------------------------------------------------------------
    Mutant(
        "a sync does not sync",
        "P1",
        "logd/storage/log.py",
        "            self._allocate_ahead(file, end.position)\n            file.sync()\n",
        "            self._allocate_ahead(file, end.position)\n",
    ),
    Mutant(
        "a failed sync counts as one",
        "P1: never trust a disk after an error",
        "logd/storage/log.py",
        '            raise self._fail("sync", error) from error\n        finally:\n'
        "            self._is_syncing = False",
        "            del error\n        finally:\n            self._is_syncing = False",
    ),
    Mutant(
        "the mark claims the sync that is under way",
        "P1: a torn tail is not damage",
        "logd/storage/log.py",
        "mark = self._next_mark(self._synced, commit_offset)",
        "mark = self._next_mark(end, commit_offset)",
    ),
    Mutant(
        "recovery trusts the page cache after a failed sync",
        "P1",
        "logd/storage/log.py",
        "        _write_again(file, marked.end_position, self._end.position)\n",
        "",
    ),
    Mutant(
        "a torn tail is not cut off",
        "P2: what follows a torn batch is never read",
        "logd/storage/recovery.py",
        "if not report.is_damaged and file.size() > end.position:",
        "if False:",
    ),
    Mutant(
        "a truncation is not synced",
        "P2",
        "logd/storage/log.py",
        "        file.truncate(position)\n        file.sync()\n        self._allocated = position",
        "        file.truncate(position)\n        self._allocated = position",
    ),
    Mutant(
        "a truncation does not lower the mark",
        "P1: a cut is not damage",
        "logd/storage/log.py",
        "if self._mark.end_offset > offset:",
        "if False:",
    ),
    Mutant(
        "a vote is not synced",
        "P2: one leader per term",
        "logd/storage/hard_state.py",
        "SLOT_POSITIONS[state.sequence % 2])\n            file.sync()",
        "SLOT_POSITIONS[state.sequence % 2])",
    ),
    Mutant(
        "of two votes the older one is believed",
        "P2: one leader per term",
        "logd/storage/hard_state.py",
        "max(slots, key=lambda state: state.sequence)",
        "min(slots, key=lambda state: state.sequence)",
    ),
    Mutant(
        "a new file's name is not made durable",
        "P1",
        "logd/storage/whole_file.py",
        "    files.rename(unfinished, path)\n    files.sync_directory(parent(path))\n",
        "    files.rename(unfinished, path)\n",
    ),
    Mutant(
        "a checkpoint from beyond the log is loaded",
        "P4: state of what was truncated",
        "logd/storage/checkpoint.py",
        "if at_most is not None and offset > at_most:",
        "if False:",
    ),
    Mutant(
        "a batch is read without checking its seal",
        "P5",
        "logd/storage/batch_read.py",
        "    check_seal(path, batch, at)\n",
        "",
    ),
    # --- partition state ----------------------------------------------------------------------
    Mutant(
        "a retry is stored again",
        "P4",
        "logd/partition/producers.py",
        "            if base_sequence == known.next_sequence:\n                return None\n",
        "            return None\n",
    ),
    # --- replication --------------------------------------------------------------------------
    Mutant(
        "a vote is not saved",
        "P2: one leader per term",
        "logd/replication/group.py",
        "                if output.persist is not None and self.failure is None:\n"
        "                    await self._persist(output.persist)\n",
        "",
    ),
    Mutant(
        "an append is acknowledged before it is committed",
        "P1",
        "logd/replication/group.py",
        "                self._waiting.append(proposal)\n",
        "                proposal.finish(proposal.placed)\n",
    ),
    Mutant(
        "a duplicate is acknowledged before the original is committed",
        "P1",
        "logd/replication/group.py",
        "        if proposal.placed.end_offset <= self.commit_offset:\n"
        "            proposal.finish(proposal.placed)\n        else:",
        "        if True:\n            proposal.finish(proposal.placed)\n        else:",
    ),
    Mutant(
        "readers are given what is not committed",
        "P2",
        "logd/replication/group.py",
        "        end = self.commit_offset\n        if offset >= end:",
        "        end = self.log.end_offset\n        if offset >= end:",
    ),
    Mutant(
        "a deposed leader's pending appends are refused for certain",
        "P3",
        "logd/replication/group.py",
        "                LeadershipLostError(\n"
        '                    f"node {self._host.node} stopped leading',
        "                NotLeaderError(\n"
        '                    f"node {self._host.node} stopped leading',
    ),
    Mutant(
        "an append whose time is up is refused for certain",
        "P3",
        "logd/replication/group.py",
        "                    RequestTimeoutError(\n",
        "                    UnavailableError(\n",
    ),
    Mutant(
        "a conditional append is refused on an uncommitted log",
        "P3: refusals are judged on what is committed",
        "logd/replication/group.py",
        "            self._refuse_honestly(proposal, error)",
        "            proposal.finish(error)",
    ),
    Mutant(
        "a conditional append is not judged",
        "P3: one winner per expected offset",
        "logd/replication/group.py",
        "if expected is not None and not state.data_end <= expected <= state.end_offset:",
        "if False:",
    ),
    Mutant(
        "what was truncated stays in the derived state",
        "P4",
        "logd/replication/group.py",
        "        self.state = await self._host.env.run_blocking(self._opened.replay_state)\n",
        "",
    ),
    Mutant(
        "the append time is whatever the clock says",
        "append time never goes back",
        "logd/replication/group.py",
        "        return max(self._log_time_base_ms + self._host.now_ms(), "
        "self.state.last_append_time_ms)",
        "        return self._host.env.wall_clock_ms()",
    ),
    Mutant(
        "a log that has lost votes is opened",
        "P2: one leader per term",
        "logd/replication/opening.py",
        "if terms and terms[-1][0] > term:",
        "if False:",
    ),
    Mutant(
        "a peer that is silent counts as alive",
        "liveness: a new leader in bounded time",
        "logd/replication/failure_detector.py",
        "if peer.is_up and now_ms - peer.heard_ms >= self._timeout_ms:",
        "if False:",
    ),
    Mutant(
        "a follower that lost its connection is not probed again",
        "liveness: a follower catches up",
        "logd/replication/node.py",
        "        self._post_to_shared(node, PeerConnected(node))\n",
        "",
    ),
    Mutant(
        "a leader that has outlived its messages is believed",
        "liveness: a new leader in bounded time",
        "logd/replication/node.py",
        "            self._check_claims()\n",
        "",
    ),
    Mutant(
        "a log that failed goes on",
        "P1: a write error stops the log",
        "logd/replication/group.py",
        "        self.core.step(Resign(may_campaign=False), self._host.now_ms())\n"
        "        self.failure = error\n        self._stop()\n",
        "",
    ),
    # --- the broker ---------------------------------------------------------------------------
    Mutant(
        "a leader serves before its no-op is committed",
        "P2",
        "logd/broker/broker.py",
        "if not found.is_ready:",
        "if False:",
    ),
    Mutant(
        "a directory that no topic known so far needs is trash",
        "P1: only a committed command deletes",
        "logd/broker/partitions.py",
        "METADATA_GROUP < group_id < next_group and group_id not in wanted",
        "METADATA_GROUP < group_id and group_id not in wanted",
    ),
    Mutant(
        "a subscription skips a batch when it was slow",
        "P2: nothing is left out",
        "logd/broker/subscriptions.py",
        "        subscription.position = found.end_offset\n",
        "        subscription.position = max(found.end_offset, group.commit_offset)\n",
    ),
    Mutant(
        "a subscriber is not woken by commits",
        "liveness: consumers go on",
        "logd/broker/subscriptions.py",
        "    def on_commit(self, commit_offset: Offset) -> None:\n        self.owner.wake(self)",
        "    def on_commit(self, commit_offset: Offset) -> None:\n        pass",
    ),
    Mutant(
        "any replica answers for its leader",
        "P2: a read after an append sees it",
        "logd/broker/subscriptions.py",
        "if any_replica else broker.leading_group(group_id)",
        "if any_replica else broker.group(group_id)",
    ),
    # --- the client ---------------------------------------------------------------------------
    Mutant(
        "the epoch is raised while batches may be stored",
        "P4",
        "client/logd_client/pipeline.py",
        "if self._hole is None or not all(map(self._is_behind_hole, self._unresolved)):",
        "if self._hole is None:",
    ),
    Mutant(
        "a batch whose connection was lost counts as not stored",
        "P3",
        "client/logd_client/pipeline.py",
        "            batch.is_in_doubt = batch.is_in_doubt or batch.is_outstanding\n"
        "            batch.is_outstanding = False",
        "            batch.is_outstanding = False",
    ),
    Mutant(
        "a doubtful refusal counts as certain",
        "P3",
        "client/logd_client/pipeline.py",
        "        if error.may_have_applied:\n            batch.is_in_doubt = True",
        "        if False:\n            batch.is_in_doubt = True",
    ),
    Mutant(
        "a batch out when its time is up counts as not stored",
        "P3",
        "client/logd_client/pipeline.py",
        "            is_in_doubt = batch.is_in_doubt or batch.is_outstanding\n"
        "            self._fail(batch, _expired(self.trouble, is_in_doubt))",
        "            is_in_doubt = batch.is_in_doubt\n"
        "            self._fail(batch, _expired(self.trouble, is_in_doubt))",
    ),
    Mutant(
        "all records of a batch are acknowledged at its base",
        "P1: at the offset acknowledged",
        "client/logd_client/delivery.py",
        "            response.base_offset + position,\n            response.append_time_ms,\n"
        "            response.durability,\n        )\n\n    def ack_range",
        "            response.base_offset,\n            response.append_time_ms,\n"
        "            response.durability,\n        )\n\n    def ack_range",
    ),
    Mutant(
        "a consumer takes deliveries of subscriptions that are over",
        "P2: each record once, in order",
        "client/logd_client/cursor.py",
        "if message.generation != self._generation or not self._is_subscribed:",
        "if False:",
    ),
    Mutant(
        "a consumer subscribes again from the beginning",
        "P2: each record once, in order",
        "client/logd_client/cursor.py",
        "        if self._fetch_position is not None:\n            kind, value",
        "        if False:\n            kind, value",
    ),
    Mutant(
        "a consumer never returns credit",
        "liveness: consumers go on",
        "client/logd_client/cursor.py",
        "        self._owed_bytes += self._in_use_bytes\n",
        "",
    ),
)


class Fate(NamedTuple):
    """What became of one mutant."""

    mutant: Mutant
    killed_by: str
    """Empty: it survived."""
    seconds: float


def fits(mutant: Mutant) -> bool:
    """Its snippet is in the source, once."""
    return (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1


def fate_of(mutant: Mutant, seeds: int, *, simulator_only: bool) -> Fate:
    """Try one mutant on a copy of the tree."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _copy_tree(directory)
        path = directory / mutant.file
        path.write_text(path.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
        killed_by = "" if simulator_only else _killing_test(mutant, directory)
        killed_by = killed_by or _killing_seed(directory, seeds)
    return Fate(mutant, killed_by, time.monotonic() - began)


def _copy_tree(directory: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, directory / name, ignore=ignore)
        else:
            shutil.copy(source, directory / name)


def _run(
    directory: Path, arguments: Iterable[str], timeout_s: float
) -> subprocess.CompletedProcess[str] | None:
    """Run Python on the copy, not on the tree that is installed; None if it took too long."""
    environment = {**os.environ, "PYTHONPATH": f"{directory}:{directory / 'client'}"}
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return None


def _killing_test(mutant: Mutant, directory: Path) -> str:
    layer = next(folder for folder in FAST_TESTS if mutant.file.startswith(folder))
    for test in FAST_TESTS[layer]:
        if not (directory / test).exists():
            continue
        command = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test)
        done = _run(directory, command, TEST_TIMEOUT_S)
        if done is None:
            return f"{test} (hangs)"
        if done.returncode != 0:
            failed = re.search(r"^(?:FAILED|ERROR) [^ ]*?::(\w+)", done.stdout, re.MULTILINE)
            return f"`{Path(test).name}` {failed[1] if failed else ''}".rstrip()
    return ""


def _killing_seed(directory: Path, seeds: int) -> str:
    command = ("-m", "tests.sim", "--jobs", "1", "--seeds", str(seeds), "--until-failure")
    done = _run(directory, command, SEEDS_TIMEOUT_S)
    if done is None:
        return "simulator (a seed does not end)"
    failed = re.search(r"^seed (\d+) FAILED: (.*)$", done.stdout, re.MULTILINE)
    if failed is not None:
        return f"simulator, seed {failed[1]}: {failed[2]}"
    return "" if done.returncode == 0 else f"simulator: {done.stderr[-200:]}"


def table(fates: list[Fate]) -> str:
    """The fates in Markdown."""
    lines = ["| breakage | in | promise | killed by |", "|---|---|---|---|"]
    lines += [
        f"| {fate.mutant.name} | `{fate.mutant.file}` | {fate.mutant.promise} "
        f"| {fate.killed_by or '**survived**'} |"
        for fate in fates
    ]
    return "\n".join(lines)


def main() -> int:
    """Try the mutants that were asked for; 1 if any survives or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; default: all mutants")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="simulated, at most")
    parser.add_argument("--every", type=int, default=1, help="try only every n-th")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--simulator-only", action="store_true", help="without the fast tests")
    parser.add_argument("--table", action="store_true", help="print Markdown in the end")
    options = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if not options.names or any(name in mutant.name for name in options.names)
    ][:: options.every]
    misfits = [mutant.name for mutant in MUTANTS if not fits(mutant)]

    def try_one(mutant: Mutant) -> Fate:
        fate = fate_of(mutant, options.seeds, simulator_only=options.simulator_only)
        verdict = f"killed by {fate.killed_by}" if fate.killed_by else "SURVIVED"
        print(f"{mutant.name}: {verdict} ({fate.seconds:.0f} s)", flush=True)
        return fate

    with ThreadPoolExecutor(options.jobs) as pool:
        fates = list(pool.map(try_one, [m for m in chosen if m.name not in misfits]))
    if options.table:
        print(table(fates))
    survivors = [fate.mutant.name for fate in fates if not fate.killed_by]
    print(f"{len(fates) - len(survivors)} of {len(fates)} killed")
    for name in survivors:
        print(f"SURVIVED: {name}")
    for name in misfits:
        print(f"DOES NOT FIT the source any more: {name}")
    return 1 if survivors or misfits else 0


if __name__ == "__main__":
    sys.exit(main())
