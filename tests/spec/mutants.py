"""Deliberate breakages of the consensus core, each of which some test must notice.

``make mutants`` tries them, with those of everything else (``tests/sim/system_mutants.py``).
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One breakage: ``old`` becomes ``new`` in ``file``, and ``promise`` does not hold any more."""

    name: str
    promise: str
    file: str
    old: str
    new: str


CORE_MUTANTS = (
    Mutant(
        "vote twice in a term",
        "P2: one leader per term",
        "logd/raft/core.py",
        "and self._voted_for in (None, request.source)",
        "and True",
    ),
    Mutant(
        "send a vote that is not persisted",
        "P2: one leader per term",
        "logd/raft/core.py",
        "if before[:3] != (self._term, self._voted_for, self._is_newcomer):",
        "if before.term != self._term:",
    ),
    Mutant(
        "send before persisting",
        "P2: one leader per term",
        "logd/raft/core.py",
        "            if output.persist is None and not",
        "            if True or not",
    ),
    Mutant(
        "keep the vote into the next term",
        "liveness: a vote in every term",
        "logd/raft/core.py",
        "        self._term = term\n        self._voted_for = None\n",
        "        self._term = term\n",
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
        "a follower acknowledges what its leader may not have",
        "P1",
        "logd/raft/core.py",
        "synced_end = min(self._log.synced_end, self._matched_end)",
        "synced_end = self._log.synced_end",
    ),
    Mutant(
        "what matched one leader is taken to match the next",
        "P1",
        "logd/raft/core.py",
        "        self._matched_end = self._log.commit_offset\n        self._acknowledged_end",
        "        self._acknowledged_end",
    ),
    Mutant(
        "everything up to the log end is taken to match",
        "P1",
        "logd/raft/core.py",
        "            self._matched_end = request.end_offset",
        "            self._matched_end = log.end",
    ),
    Mutant(
        "commit a batch of an earlier term by counting",
        "P1: Figure 8 of the Raft paper",
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
        "an equal batch is truncated",
        "P1: what was acknowledged is not taken back",
        "logd/raft/core.py",
        "if base_offset >= log.end or log.terms.term_at(base_offset) != term:\n"
        "                    break",
        "break",
    ),
    Mutant(
        "a conflicting batch is kept",
        "P2",
        "logd/raft/core.py",
        "log.terms.term_at(base_offset) != term:",
        "False:",
    ),
    Mutant(
        "a read is confirmed by the round before it",
        "P2: a read after an append sees it",
        "logd/raft/read_rounds.py",
        "if echoed_round >= self.round:",
        "if echoed_round >= self.round - 1:",
    ),
    Mutant(
        "a leader serves reads before its no-op is committed",
        "P2: a read after an append sees it",
        "logd/raft/leadership.py",
        "if self.is_ready and self.reads.begin",
        "if self.reads.begin",
    ),
    Mutant(
        "batches are taken wherever they fit",
        "P2",
        "logd/raft/core.py",
        "return start <= log.end and log.terms.term_at(start - 1) == request.prev_term",
        "return start <= log.end",
    ),
    Mutant(
        "any candidate's log will do",
        "P1",
        "logd/raft/core.py",
        ">= (self.last_term, self._log.end)",
        ">= (0, 0)",
    ),
    Mutant(
        "the longer log wins whatever its term",
        "P1",
        "logd/raft/core.py",
        "return (request.last_term, request.end_offset) >= (self.last_term, self._log.end)",
        "return request.end_offset >= self._log.end",
    ),
    Mutant(
        "a sync of truncated batches counts",
        "P1",
        "logd/raft/log_state.py",
        "if self.terms.term_at(end_offset - 1) != last_term:",
        "if False:",
    ),
    Mutant(
        "what was synced stays so when truncated",
        "P1",
        "logd/raft/log_state.py",
        "        self.synced_end = min(self.synced_end, offset)\n",
        "",
    ),
    Mutant(
        "a follower commits beyond what matched",
        "P2",
        "logd/raft/core.py",
        "min(request.commit_offset, self._matched_end)",
        "min(request.commit_offset, log.end)",
    ),
    Mutant(
        "a joint vote needs one majority",
        "P2: one leader per term",
        "logd/raft/quorum.py",
        "return not outgoing or _is_majority(outgoing, agrees)",
        "return True",
    ),
    Mutant(
        "a joint commit needs one majority",
        "P1",
        "logd/raft/quorum.py",
        "return min(reached, _majority_value(outgoing, value)) if outgoing else reached",
        "return reached",
    ),
    Mutant(
        "a truncated configuration stays in force",
        "P2: one leader per term",
        "logd/raft/core.py",
        "        self._configurations.truncate(offset)\n",
        "",
    ),
    Mutant(
        "a deposed leader's appends are taken",
        "P2",
        "logd/raft/core.py",
        "        if request.term < self._term:\n            self._refuse(request)",
        "        if False:\n            self._refuse(request)",
    ),
    Mutant(
        "votes of an earlier term count",
        "P2: one leader per term",
        "logd/raft/core.py",
        "if self._role is not expected_role or response.term != expected_term:",
        "if self._role is not expected_role:",
    ),
    Mutant(
        "a granted pre-vote counts as a vote",
        "P2: one leader per term",
        "logd/raft/core.py",
        "expected_role, expected_term = Role.PRE_CANDIDATE, self._term + 1",
        "expected_role, expected_term = self._role, response.term",
    ),
    Mutant(
        "an answer to an earlier term counts",
        "P1",
        "logd/raft/core.py",
        "if self._leading is not None and response.term == self._term:",
        "if self._leading is not None:",
    ),
    Mutant(
        "a refusal does not move the probe",
        "liveness: a follower catches up",
        "logd/raft/leadership.py",
        "        progress.probe_from(next_offset)\n        self._ask",
        "        self._ask",
    ),
    Mutant(
        "a new connection is taken to have lost nothing",
        "liveness: a follower catches up",
        "logd/raft/leadership.py",
        "            progress.is_agreeing = False\n"
        "            progress.probe_again(self._log.start)\n",
        "            progress.is_agreeing = False\n",
    ),
    Mutant(
        "a leader never misses its quorum",
        "liveness: a leader that is cut off steps down",
        "logd/raft/leadership.py",
        "        return lost_since_ms is None or now_ms",
        "        return True or now_ms",
    ),
    Mutant(
        "a vote is granted under a live leader",
        "liveness: no needless election",
        "logd/raft/core.py",
        "is_sticky = self._has_live_leader() and not request.transfer",
        "is_sticky = False",
    ),
    Mutant(
        "a pre-vote raises the term",
        "liveness: no needless election",
        "logd/raft/core.py",
        "if not request.pre_vote and not is_sticky:",
        "if not is_sticky:",
    ),
    Mutant(
        "a learner campaigns",
        "P2: who may lead",
        "logd/raft/core.py",
        "return self._configurations.may_need(self.node, self._log.commit_offset)",
        "return True",
    ),
    Mutant(
        "a voter left out by an uncommitted change does not campaign",
        "liveness: a new leader in bounded time",
        "logd/raft/configurations.py",
        "            if offset < commit_offset:\n                break",
        "            break",
    ),
    Mutant(
        "the window never closes",
        "P6",
        "logd/raft/leadership.py",
        "            and p.in_flight_bytes < window\n",
        "",
    ),
    Mutant(
        "leadership is handed to a target that lacks batches",
        "liveness: a transfer costs no election",
        "logd/raft/leadership.py",
        "if progress.match == self._log.end and not",
        "if not",
    ),
)
