"""What only a follower has and does; lives for one leader of one term.

A follower takes over the leader's log.  A request is consistent if it starts at or below the
commit offset (every leader has what is committed), or if the batch before its start is of the
term that the leader names.  Batches that are here are skipped; the first that differs cuts the
log there.

Up to ``matched_end`` the logs are known to be the same.  Nothing beyond it is acknowledged or
taken for committed, and nothing below it is cut; it is forgotten with the leader, because of the
next one nothing is known but that it has what is committed.  An acknowledgement tells how much
of that is durable here, and how much is only vouched for.

Papers: Ongaro 2014, §3.5-3.6.  Invariants R4, R6, R8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logd.raft.messages import AppendRequest, AppendResponse, BatchSpan, SnapshotReceived
from logd.raft.term_history import TermHistory
from logd.types import NO_OFFSET, NodeId, Offset, Term

if TYPE_CHECKING:
    from logd.raft.log_state import LogState
    from logd.raft.messages import Output
    from logd.raft.replica import Replica
    from logd.raft.standing import Standing


class Following:
    """One replica's dealings with the leader of one term."""

    __slots__ = (
        "_acknowledged_end",
        "_commit_told",
        "_enrolment",
        "_leader",
        "_log",
        "_matched_end",
        "_replica",
        "_round",
        "_standing",
        "_term",
        "_whole_end",
    )

    def __init__(self, replica: Replica, term: Term, leader: NodeId) -> None:
        self._replica = replica
        self._term = term
        self._leader = leader
        self._log = replica.log
        self._standing = replica.standing
        self._matched_end = replica.log.commit_offset
        """Below it our log is the leader's."""
        self._commit_told = Offset(0)
        """What it has said is committed, here or not: that may have overtaken the batches."""
        self._acknowledged_end = Offset(0)
        """What the leader was last told is durable here."""
        self._round = 0
        """The newest round of reads that it has begun."""
        self._enrolment = NO_OFFSET
        """Where it enrolled us."""
        self._whole_end = NO_OFFSET
        """What it has said makes a doubtful replica whole."""

    def on_append_request(
        self, request: AppendRequest, batches: tuple[BatchSpan, ...], output: Output
    ) -> None:
        """The leader has sent batches, or asks how far the logs agree."""
        if request.round > self._round:
            self._round = request.round
        if request.enrolment > self._enrolment:
            self._enrolment = request.enrolment
        standing = self._standing
        if request.doubt == standing.boot:
            self._whole_end = request.whole_end
        if self._contradicts(request, batches):
            output.contradicted = True
            return
        if request.commit_offset > self._commit_told:
            self._commit_told = request.commit_offset
        log = self._log
        if not self._is_consistent(request):
            self._replica.outbox.append(refusal(request, self._term, log, standing))
            return
        appended = bool(batches) and self._take_up(request, batches, output)
        if request.end_offset > self._matched_end:
            self._matched_end = request.end_offset
        # It may pass our own synced end: that a batch is committed is a fact about a quorum.
        commit_offset = min(self._commit_told, self._matched_end)
        if commit_offset > log.commit_offset:
            log.commit_offset = commit_offset
        if request.expects_answer and (not appended or standing.vouches):
            self.acknowledge()

    def on_snapshot_received(self, event: SnapshotReceived, output: Output) -> None:
        """The leader has shipped state in place of batches that it has no more."""
        self._enrolment = max(self._enrolment, event.enrolment)
        log = self._log
        start, terms = event.start_offset, TermHistory(event.term_rows)
        is_here = start <= log.end and log.terms.term_at(start - 1) == terms.last_term
        if start <= log.commit_offset or is_here:
            return  # Late: batches came another way.
        log.restart(start, terms)
        self._replica.configurations.restart(event.configuration)
        self._matched_end = start
        output.install_snapshot = True
        self.acknowledge()

    def on_synced(self) -> None:
        """This replica's log became durable further."""
        if min(self._log.synced_end, self._matched_end) > self._acknowledged_end:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Tell the leader what is here."""
        assert self._enrolment != NO_OFFSET
        replica, standing = self._replica, self._standing
        synced_end = min(self._log.synced_end, self._matched_end)
        self._acknowledged_end = synced_end
        standing.catch_up(synced_end, self._enrolment, self._whole_end)
        replica.outbox.append(
            AppendResponse(
                group=replica.group,
                source=replica.node,
                target=self._leader,
                term=self._term,
                round=self._round,
                accepted=True,
                synced_end=synced_end,
                received_end=self._matched_end,
                received_term=self._log.terms.term_at(self._matched_end - 1),
                enrolment=self._enrolment,
                held_end=self._matched_end if standing.vouches else Offset(0),
                doubt=standing.doubt,
            )
        )

    def check(self) -> None:
        """Check what holds after every step."""
        # R6: a follower takes for committed or acknowledges only what its leader has.
        assert self._log.commit_offset <= self._matched_end <= self._log.end

    def _contradicts(self, request: AppendRequest, batches: tuple[BatchSpan, ...]) -> bool:
        """Whether the leader's log differs from ours where ours is committed.

        By leader completeness it cannot, unless the group lost the memory of a majority and was
        restarted without this replica.
        """
        start, commit_offset = self._log.start, self._log.commit_offset
        term_at = self._log.terms.term_at
        if start < request.start_offset <= commit_offset and (
            term_at(request.start_offset - 1) != request.prev_term
        ):
            return True
        if request.start_offset >= commit_offset:
            return False
        return any(
            start <= batch.base_offset < commit_offset and term_at(batch.base_offset) != batch.term
            for batch in batches
        )

    def _is_consistent(self, request: AppendRequest) -> bool:
        """Whether our log below the request's start is the leader's."""
        log = self._log
        start = request.start_offset
        if start <= log.commit_offset:
            return True  # Leader completeness: every leader has what is committed.
        return start <= log.end and log.terms.term_at(start - 1) == request.prev_term

    def _take_up(
        self, request: AppendRequest, batches: tuple[BatchSpan, ...], output: Output
    ) -> bool:
        """Append what the log lacks; False: it has everything already."""
        assert batches[0].base_offset == request.start_offset
        assert batches[-1].end_offset == request.end_offset
        log = self._log
        first = 0
        if request.start_offset < log.end:
            first = self._count_present(batches)
            if first == len(batches):
                return False
            base_offset = batches[first].base_offset
            if base_offset < log.end:
                self._truncate(base_offset)
                output.truncate_to = base_offset
        log.extend(batches, first)
        output.append_from = first
        return True

    def _count_present(self, batches: tuple[BatchSpan, ...]) -> int:
        """How many of ``batches``, from the first, are in the log as they are."""
        log = self._log
        count = 0
        for base_offset, end_offset, term in batches:
            if end_offset > log.commit_offset:
                if base_offset >= log.end or log.terms.term_at(base_offset) != term:
                    break
                # R4: same offset and term, same batch.
                assert end_offset <= log.end
            count += 1
        return count

    def _truncate(self, offset: Offset) -> None:
        # R8: nothing committed, and nothing this leader has confirmed, is ever cut off.
        assert offset >= self._matched_end >= self._log.commit_offset
        self._log.truncate(offset)
        self._standing.truncate(offset)
        self._replica.configurations.truncate(offset)


def refusal(
    request: AppendRequest, term: Term, log: LogState, standing: Standing
) -> AppendResponse:
    """Tells who sent ``request`` where the logs may agree, or by our term that it leads no more."""
    conflict_term = log.terms.term_not_above(request.prev_term)
    return AppendResponse(
        group=request.group,
        source=request.target,
        target=request.source,
        term=term,
        round=request.round,
        accepted=False,
        conflict_term=conflict_term,
        conflict_end=log.terms.end_of_term(conflict_term, log.end),
        enrolment=request.enrolment,
        doubt=standing.doubt,
    )
