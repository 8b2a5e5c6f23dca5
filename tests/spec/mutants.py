"""Deliberate breakages of the consensus core, each of which some test must notice.

A simulator that nobody has tried to fool is decoration.  ``python -m tests.spec.mutants``
breaks a copy of the core in one place after the other and runs the pure simulation and the
specs on it; a mutant that survives them is an error.  It takes minutes, so it is not part
of the test suite; that every mutant still fits the source is (``test_mutants.py``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/sim/test_raft_sim.py",
    "tests/spec/test_raft_spec.py",
    "tests/unit/test_raft_core.py",
)
TIMEOUT_S = 120
COPIED = ("logd/raft", "tests/spec")
COPIED_FILES = (
    "pyproject.toml",
    "logd/__init__.py",
    "logd/types.py",
    "logd/errors.py",
    "logd/limits.py",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/sim/__init__.py",
    "tests/sim/test_raft_sim.py",
    "tests/unit/__init__.py",
    "tests/unit/test_raft_core.py",
)


class Mutant(NamedTuple):
    """One breakage: ``old`` becomes ``new`` in a file of ``logd/raft``."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "vote twice in a term",
        "core.py",
        "and self._voted_for in (None, request.source)",
        "and True",
    ),
    Mutant(
        "send a vote that is not persisted",
        "core.py",
        "if before[:3] != (self._term, self._voted_for, self._is_newcomer):",
        "if before.term != self._term:",
    ),
    Mutant(
        "send before persisting",
        "core.py",
        "            if output.persist is None and not",
        "            if True or not",
    ),
    Mutant(
        "keep the vote into the next term",
        "core.py",
        "        self._term = term\n        self._voted_for = None\n",
        "        self._term = term\n",
    ),
    Mutant(
        "a leader counts itself before its sync",
        "leadership.py",
        "return self._log.synced_end if node",
        "return self._log.end if node",
    ),
    Mutant(
        "a follower acknowledges what is not synced",
        "core.py",
        "synced_end = min(self._log.synced_end, self._matched_end)",
        "synced_end = self._matched_end",
    ),
    Mutant(
        "a follower acknowledges what its leader may not have",
        "core.py",
        "synced_end = min(self._log.synced_end, self._matched_end)",
        "synced_end = self._log.synced_end",
    ),
    Mutant(
        "what matched one leader is taken to match the next",
        "core.py",
        "        self._matched_end = self._log.commit_offset\n        self._acknowledged_end",
        "        self._acknowledged_end",
    ),
    Mutant(
        "everything up to the log end is taken to match",
        "core.py",
        "            self._matched_end = request.end_offset",
        "            self._matched_end = log.end",
    ),
    Mutant(
        "commit a batch of an earlier term by counting",
        "leadership.py",
        "and end > self.term_start:",
        "and True:",
    ),
    Mutant("a quorum is one too few", "quorum.py", "count // 2 + 1", "max(1, count // 2)"),
    Mutant(
        "an equal batch is truncated",
        "core.py",
        "if base_offset >= log.end or log.terms.term_at(base_offset) != term:\n"
        "                    break",
        "break",
    ),
    Mutant(
        "a conflicting batch is kept",
        "core.py",
        "log.terms.term_at(base_offset) != term:",
        "False:",
    ),
    Mutant(
        "a read is confirmed by the round before it",
        "read_rounds.py",
        "if echoed_round >= self.round:",
        "if echoed_round >= self.round - 1:",
    ),
    Mutant(
        "a leader serves reads before its no-op is committed",
        "leadership.py",
        "if self.is_ready and self.reads.begin",
        "if self.reads.begin",
    ),
    Mutant(
        "batches are taken wherever they fit",
        "core.py",
        "return start <= log.end and log.terms.term_at(start - 1) == request.prev_term",
        "return start <= log.end",
    ),
    Mutant(
        "any candidate's log will do",
        "core.py",
        ">= (self.last_term, self._log.end)",
        ">= (0, 0)",
    ),
    Mutant(
        "the longer log wins whatever its term",
        "core.py",
        "return (request.last_term, request.end_offset) >= (self.last_term, self._log.end)",
        "return request.end_offset >= self._log.end",
    ),
    Mutant(
        "a sync of truncated batches counts",
        "log_state.py",
        "if self.terms.term_at(end_offset - 1) != last_term:",
        "if False:",
    ),
    Mutant(
        "what was synced stays so when truncated",
        "log_state.py",
        "        self.synced_end = min(self.synced_end, offset)\n",
        "",
    ),
    Mutant(
        "a follower commits beyond what matched",
        "core.py",
        "min(request.commit_offset, self._matched_end)",
        "min(request.commit_offset, log.end)",
    ),
    Mutant(
        "a joint vote needs one majority",
        "quorum.py",
        "return not outgoing or _is_majority(outgoing, agrees)",
        "return True",
    ),
    Mutant(
        "a joint commit needs one majority",
        "quorum.py",
        "return min(reached, _majority_value(outgoing, value)) if outgoing else reached",
        "return reached",
    ),
    Mutant(
        "a truncated configuration stays in force",
        "core.py",
        "        self._configurations.truncate(offset)\n",
        "",
    ),
    Mutant(
        "a deposed leader's appends are taken",
        "core.py",
        "        if request.term < self._term:\n            self._refuse(request)",
        "        if False:\n            self._refuse(request)",
    ),
    Mutant(
        "votes of an earlier term count",
        "core.py",
        "if self._role is not expected_role or response.term != expected_term:",
        "if self._role is not expected_role:",
    ),
    Mutant(
        "a granted pre-vote counts as a vote",
        "core.py",
        "expected_role, expected_term = Role.PRE_CANDIDATE, self._term + 1",
        "expected_role, expected_term = self._role, response.term",
    ),
    Mutant(
        "an answer to an earlier term counts",
        "core.py",
        "if self._leading is not None and response.term == self._term:",
        "if self._leading is not None:",
    ),
    Mutant(
        "a refusal does not move the probe",
        "leadership.py",
        "        progress.probe_from(next_offset)\n        self._ask",
        "        self._ask",
    ),
    Mutant(
        "a new connection is taken to have lost nothing",
        "leadership.py",
        "            progress.is_agreeing = False\n"
        "            progress.probe_again(self._log.start)\n",
        "            progress.is_agreeing = False\n",
    ),
    Mutant(
        "a leader never misses its quorum",
        "leadership.py",
        "        return lost_since_ms is None or now_ms",
        "        return True or now_ms",
    ),
    Mutant(
        "a vote is granted under a live leader",
        "core.py",
        "is_sticky = self._has_live_leader() and not request.transfer",
        "is_sticky = False",
    ),
    Mutant(
        "a pre-vote raises the term",
        "core.py",
        "if not request.pre_vote and not is_sticky:",
        "if not is_sticky:",
    ),
    Mutant(
        "a learner campaigns",
        "core.py",
        "return self._configurations.may_need(self.node, self._log.commit_offset)",
        "return True",
    ),
    Mutant(
        "a voter left out by an uncommitted change does not campaign",
        "configurations.py",
        "            if offset < commit_offset:\n                break",
        "            break",
    ),
    Mutant(
        "the window never closes",
        "leadership.py",
        "            and p.in_flight_bytes < window\n",
        "",
    ),
    Mutant(
        "leadership is handed to a target that lacks batches",
        "leadership.py",
        "if progress.match == self._log.end and not",
        "if not",
    ),
)


def survives(mutant: Mutant, directory: Path) -> bool:
    """Whether all tests pass on a copy of the tree with ``mutant`` in it."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, directory / folder)
    for file in COPIED_FILES:
        if (ROOT / file).exists():
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, directory / file)
    path = directory / "logd/raft" / mutant.file
    path.write_text(path.read_text("utf-8").replace(mutant.old, mutant.new, 1), "utf-8")
    tests = [test for test in TESTS if (directory / test).exists()]
    killed = {}
    for test in tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
        try:
            done = subprocess.run(
                command, cwd=directory, capture_output=True, check=False, timeout=TIMEOUT_S
            )
            killed[test] = done.returncode != 0
        except subprocess.TimeoutExpired:
            killed[test] = True
    print(f"{mutant.name}: {[test for test in tests if killed[test]]}", flush=True)  # noqa: T201
    return not any(killed.values())


def main(names: list[str]) -> int:
    survivors = []
    for mutant in MUTANTS:
        if names and not any(name in mutant.name for name in names):
            continue
        with tempfile.TemporaryDirectory() as directory:
            if survives(mutant, Path(directory)):
                survivors.append(mutant.name)
    for name in survivors:
        print(f"SURVIVED: {name}")  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
