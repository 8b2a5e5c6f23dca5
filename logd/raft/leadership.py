"""What only a leader has and does; lives for one term of one leader.

Replication is pulled: the driver asks who can be sent more (``sendable``), reads batches
from cache or file as bytes and time allow, and says what it sends (``make_append``).  The
core only decides where each follower stands, and what a quorum has.

Also only a leader changes the members, one change at a time; which configurations there are
is ``configurations.py``'s, and which follows which ``configuration_change.py``'s.

Papers: Ongaro 2014, §3.5-3.6 (replication, commit rule), §3.10 (transfer), §4.3 (joint
consensus), §6.2 (a leader without a quorum steps down), §6.4 (ReadIndex).  Invariants R9-R12,
R15, R17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logd.errors import (
    ChangeUnderWayError,
    InvalidRequestError,
    LearnerBehindError,
    UnavailableError,
)
from logd.limits import LEARNER_LAG_BYTES_MAX
from logd.raft.configuration_change import check_step, check_wanted, first_step, new_voters
from logd.raft.messages import AppendRequest, AppendResponse, Configuration, TimeoutNow
from logd.raft.progress import Progress, ProgressState
from logd.raft.quorum import is_quorum, is_voter, quorum_value
from logd.raft.read_rounds import ReadRounds
from logd.types import NodeId, Offset, Term

if TYPE_CHECKING:
    from logd.raft.replica import Replica


class Leadership:
    """One node's leadership of one group in one term."""

    def __init__(self, replica: Replica, term: Term, now_ms: int) -> None:
        self.term = term
        self.term_start = replica.log.end
        """Where this term's batches begin: only from here on is a quorum enough to commit."""
        self.reads = ReadRounds()
        self.counts_memory = replica.standing.vouches
        """What a quorum vouches for is committed, also if it is not durable yet."""
        self._memory_commit = Offset(0)
        """Below it batches were committed that way, before the topic chose otherwise."""
        self._node = replica.node
        self._group = replica.group
        self._log = replica.log
        self._options = replica.options
        self._nodes_up = replica.nodes_up
        self._outbox = replica.outbox
        self._configurations = replica.configurations
        self._configuration = replica.configurations.current
        self._progress: dict[NodeId, Progress] = {}
        self._farewell_ends_ms: int | None = None
        self._quorum_lost_since_ms: int | None = None
        self._transfer_target: NodeId | None = None
        self._transfer_deadline_ms = 0
        self._transfer_sent = False
        for follower in self._configuration.members:
            if follower != self._node:
                self._enrol(follower, self.term_start, now_ms)
        self._check_agreement(now_ms)

    # --- what the driver asks ---------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether a batch of this term is committed, and so everything before it."""
        return self._log.commit_offset > self.term_start

    @property
    def transfer_target(self) -> NodeId | None:
        return self._transfer_target

    @property
    def has_named_successor(self) -> bool:
        """Somebody who has everything was told to lead in this one's place."""
        return self._transfer_target is not None and self._transfer_sent

    @property
    def deadline_ms(self) -> int | None:
        """When the passing of time alone will require something."""
        deadlines = [p.retry_at_ms for p in self._progress.values() if p.retry_at_ms is not None]
        if self._quorum_lost_since_ms is not None:
            deadlines.append(self._quorum_lost_since_ms + self._options.check_quorum_ms)
        if self._transfer_target is not None:
            deadlines.append(self._transfer_deadline_ms)
        if self._farewell_ends_ms is not None:
            deadlines.append(self._farewell_ends_ms)
        return min(deadlines) if deadlines else None

    def progress(self, follower: NodeId) -> Progress:
        return self._progress[follower]

    def sendable(self) -> list[NodeId]:
        """Followers in the pipeline that lack batches and whose window is open."""
        log_end, window = self._log.end, self._options.window_bytes_max
        return [
            p.node
            for p in self._progress.values()
            if p.state is ProgressState.PIPELINE
            and p.next_offset < log_end
            and p.in_flight_bytes < window
        ]

    def commit_lagging(self) -> list[NodeId]:
        """Followers with nothing in flight that have not been told the commit offset."""
        commit_offset = self._log.commit_offset
        return [
            p.node
            for p in self._progress.values()
            if p.sent_commit < commit_offset
            and (not p.in_flight or p.held >= p.next_offset)
            and p.state is ProgressState.PIPELINE
        ]

    def rests_on_memory(self, end_offset: Offset) -> bool:
        """Whether what is committed below ``end_offset`` may be lost with a quorum's memory."""
        if self.counts_memory:
            return True
        if end_offset > self._memory_commit:
            return False
        return quorum_value(self._configuration, self._synced_end_of) < end_offset

    def is_caught_up(self, follower: NodeId) -> bool:
        """Whether it has all that is committed; or lacks little, and all of it is on its way."""
        progress = self._progress.get(follower)
        if progress is None or progress.state is not ProgressState.PIPELINE or progress.doubt:
            return False
        if not progress.is_agreeing or progress.match <= progress.enrolment:
            return False
        if progress.match >= self._log.commit_offset:
            return True
        is_all_sent = progress.next_offset == self._log.end
        return is_all_sent and progress.in_flight_bytes <= LEARNER_LAG_BYTES_MAX

    def first_step_to(self, wanted: Configuration) -> Configuration:
        """What to append first to bring ``wanted`` about.

        Raises:
            InvalidRequestError: ``wanted`` cannot be a configuration, or it makes a voter of
                a node that is not a learner.
            ChangeUnderWayError: one change at a time.
            LearnerBehindError: a learner would vote before it is caught up.
            UnavailableError: this leader is not ready, or is handing over; or not enough of
                the wanted voters follow it, so that the group would stop.
        """
        check_wanted(wanted)
        if not self.is_ready or self._transfer_target is not None:
            raise UnavailableError(f"the leader of group {self._group} is taking or handing over")
        current = self._configuration
        if current.is_joint or not self._configurations.is_settled(self._log.commit_offset):
            raise ChangeUnderWayError(f"group {self._group} is changing to {current}")
        for node in new_voters(current, wanted):
            self._check_promotion(node)
        if not self._has_agreement(wanted):
            raise UnavailableError(
                f"too few of the voters {wanted.voters} follow the leader of group {self._group}"
            )
        return first_step(current, wanted)

    @property
    def taken_back(self) -> Configuration | None:
        """What makes those the voters again that a change under way was to replace; None if that
        may not be, or would not help.

        Nobody has left joint consensus the other way, or ever will: that takes the commit of the
        joint configuration in its own term, of which this leader would know, or by a leader of a
        later term, which a majority of the outgoing voters would have to have followed: they
        would not take this one's batches any more.
        """
        configurations, current = self._configurations, self._configuration
        may_take_back = (
            current.is_joint
            and not configurations.is_settled(self._log.commit_offset)
            and configurations.last_offset > self.term_start
            and self._has_agreement(current.taken_back)
        )
        return current.taken_back if may_take_back else None

    def check_change(self, configuration: Configuration) -> None:
        """Check that this leader may put ``configuration`` in force."""
        # R11: one change at a time, and none before this leader knows what is committed.
        assert self.is_ready
        if not self._configurations.is_settled(self._log.commit_offset):
            # R17: only who began a change, in the same term, takes it back.
            assert configuration == self.taken_back
        # R15: the voters change by way of joint consensus only.
        check_step(self._configuration, configuration)

    def make_append(
        self, follower: NodeId, end_offset: Offset, size_bytes: int, now_ms: int
    ) -> AppendRequest:
        """Take [next_offset, end_offset) for a request; empty: only tells the commit offset."""
        progress = self._progress[follower]
        assert progress.state is ProgressState.PIPELINE
        assert end_offset <= self._log.end
        is_empty = end_offset == progress.next_offset
        assert is_empty == (size_bytes == 0)
        request = self._request(progress, end_offset, expects_answer=not is_empty)
        if not is_empty:
            if not progress.in_flight:
                progress.retry_at_ms = now_ms + self._options.append_retry_ms
            progress.sent(end_offset, size_bytes)
        return request

    # --- events -----------------------------------------------------------------------

    def on_append_response(self, response: AppendResponse, now_ms: int) -> bool:
        """A follower, or a former one, has answered in this term.

        Returns:
            Whether it needs batches that this log no longer has.
        """
        progress = self._progress.get(response.source)
        if progress is None or progress.enrolment != response.enrolment:
            return False
        self._hear(progress, response.round, now_ms)
        if progress.note_doubt(response.doubt, self._log.end):
            self._ask(progress, now_ms)  # It tells the follower what will make it whole.
        if response.accepted and self._has_what_it_says(response):
            self._on_accepted(progress, response, now_ms)
            return False
        if response.accepted:
            self._probe_contradiction(progress, response, now_ms)
            return False
        return self._on_refused(progress, response, now_ms) and not progress.is_departing

    def on_synced(self, now_ms: int) -> None:
        """This node's own log became durable further."""
        self._advance_commit()
        self._begin_reads(now_ms)

    def on_appended(self, now_ms: int) -> None:
        """This node's own log has grown."""
        if self.counts_memory:
            self._advance_commit()
            self._begin_reads(now_ms)

    def count_memory(self, counts_memory: bool, now_ms: int) -> None:
        """Commit from now on what a quorum vouches for, or only what is durable there."""
        if self.counts_memory and not counts_memory:
            self._memory_commit = self._log.commit_offset
        self.counts_memory = counts_memory
        self._advance_commit()
        self._begin_reads(now_ms)

    def on_peer_up(self, node: NodeId, now_ms: int) -> None:
        progress = self._progress.get(node)
        if progress is not None and not progress.is_up:
            progress.is_up = True
            self._ask(progress, now_ms)

    def on_peer_down(self, node: NodeId, now_ms: int) -> None:
        if node == self._transfer_target:
            self._transfer_target = None
        progress = self._progress.get(node)
        if progress is not None:
            progress.lose_contact(self._log.start)
            self._check_agreement(now_ms)

    def on_peer_connected(self, node: NodeId, now_ms: int) -> None:
        """What was sent on an earlier connection may be lost."""
        progress = self._progress.get(node)
        if progress is not None:
            progress.is_agreeing = False
            progress.probe_again(self._log.start)
            self._ask(progress, now_ms)
            self._check_agreement(now_ms)

    def on_tick(self, now_ms: int) -> bool:
        """Repeat what was not answered.  False: the quorum is lost, step down."""
        if self._transfer_target is not None and now_ms >= self._transfer_deadline_ms:
            self._transfer_target = None
        if self._farewell_ends_ms is not None and now_ms >= self._farewell_ends_ms:
            self._forget_departing()
        for progress in self._progress.values():
            if progress.retry_at_ms is not None and now_ms >= progress.retry_at_ms:
                # A node may be alive while its replica of this group is not.
                if progress.state is ProgressState.PROBE:
                    progress.is_agreeing = False
                progress.probe_again(self._log.start)
                self._ask(progress, now_ms)
        self._check_agreement(now_ms)
        lost_since_ms = self._quorum_lost_since_ms
        return lost_since_ms is None or now_ms < lost_since_ms + self._options.check_quorum_ms

    def on_read_requested(self, read_id: int, now_ms: int) -> None:
        self.reads.request(read_id)
        self._begin_reads(now_ms)

    def transfer(self, target: NodeId | None, now_ms: int) -> None:
        """Hand over once ``target`` has everything; a target that cannot take over is ignored."""
        chosen = target if target is not None else self._best_successor()
        progress = self._progress.get(chosen) if chosen is not None else None
        if (
            progress is None
            or not progress.is_up
            or not is_voter(self._configuration, progress.node)
        ):
            return
        self._transfer_target = progress.node
        self._transfer_deadline_ms = now_ms + self._options.transfer_timeout_ms
        self._transfer_sent = False
        self._hand_over(progress)

    def announce_to(self, node: NodeId, now_ms: int) -> None:
        """``node`` asked for votes: it does not know this leader (any more)."""
        progress = self._progress.get(node)
        if progress is not None:
            self._ask(progress, now_ms)

    def trim(self, log_start: Offset, now_ms: int) -> None:
        """The log now starts at ``log_start``: nothing below can be sent any more."""
        for progress in self._progress.values():
            if progress.next_offset < log_start:
                progress.probe_from(log_start)
                if progress.is_up:
                    progress.retry_at_ms = now_ms

    def reconfigure(self, offset: Offset, configuration: Configuration, now_ms: int) -> None:
        """``configuration``, appended at ``offset``, is in force: greet its new members.

        A member that is left out is sent what follows for a little longer: from the commit of
        the change it learns that it may rest.  It counts for nothing meanwhile.
        """
        self._configuration = configuration
        members = configuration.members
        self._forget_departing()
        for progress in self._progress.values():
            if progress.node not in members:
                progress.is_departing = True
                self._farewell_ends_ms = now_ms + self._options.farewell_ms
        for node in members:
            if node != self._node and node not in self._progress:
                self._enrol(node, offset, now_ms)
        if self._transfer_target is not None and self._transfer_target not in members:
            self._transfer_target = None
        self._check_agreement(now_ms)
        if self.reads.is_under_way:
            # Those who still count may all have answered: no echo of theirs would be news.
            self._confirm_reads(now_ms)

    def appoint_successor(self) -> None:
        """This leader is left out by what was just committed: name the next, and leave.

        The most caught-up voter has all that is committed as far as this leader knows; what it
        lacks of the rest was never acknowledged.
        """
        successor = self._best_successor()
        if successor is not None and self._counted_end_of(successor) >= self._log.commit_offset:
            self._transfer_target, self._transfer_sent = successor, True
            self._outbox.append(
                TimeoutNow(group=self._group, source=self._node, target=successor, term=self.term)
            )

    def _check_promotion(self, node: NodeId) -> None:
        """Refuse to make a voter of a node that would only be counted, and hold everybody up."""
        if node not in self._configuration.learners:
            raise InvalidRequestError(
                f"node {node} is no learner of group {self._group}: it must be one, and catch "
                "up, before it can vote"
            )
        if not self.is_caught_up(node):
            progress = self._progress[node]
            raise LearnerBehindError(
                f"learner {node} of group {self._group} is durable below {progress.match}, "
                f"the commit offset is {self._log.commit_offset}"
            )

    def _has_agreement(self, configuration: Configuration) -> bool:
        """Whether a quorum of ``configuration`` is alive and follows this leader."""
        return is_quorum(configuration, self._agrees)

    def _enrol(self, node: NodeId, offset: Offset, now_ms: int) -> None:
        is_up = node in self._nodes_up
        progress = self._progress[node] = Progress(node, self._log.end, is_up, offset)
        self._ask(progress, now_ms)

    def _forget_departing(self) -> None:
        self._farewell_ends_ms = None
        for node in [p.node for p in self._progress.values() if p.is_departing]:
            del self._progress[node]

    # --- replication ------------------------------------------------------------------

    def _on_accepted(self, progress: Progress, response: AppendResponse, now_ms: int) -> None:
        # R12: a follower cannot have more of our log than there is.
        assert response.synced_end <= response.received_end <= self._log.end
        assert response.held_end <= response.received_end
        is_news = progress.acknowledge(response.synced_end)
        if progress.hold(response.held_end) or is_news:
            if progress.in_flight:
                progress.retry_at_ms = now_ms + self._options.append_retry_ms
            if self._counted_end_of(progress.node) > self._log.commit_offset:
                self._advance_commit()
                self._begin_reads(now_ms)
        is_probed = progress.state is ProgressState.PROBE and progress.is_up
        if is_probed and response.received_end >= self._log.start:
            progress.enter_pipeline(response.received_end)
            progress.retry_at_ms = now_ms + self._options.append_retry_ms
        if progress.state is ProgressState.PIPELINE and not self._awaits(progress):
            progress.retry_at_ms = None
        if self._transfer_target == progress.node:
            self._hand_over(progress)

    def _has_what_it_says(self, response: AppendResponse) -> bool:
        """Whether what the follower calls received is the log here.

        It takes for granted that every leader has what it holds as committed.  That does not hold
        of a group that was restarted with loss while it was away.
        """
        end, log = response.received_end, self._log
        if end < log.start or not response.received_term:
            return end <= log.end  # More is not known.
        return end <= log.end and log.terms.term_at(end - 1) == response.received_term

    def _probe_contradiction(
        self, progress: Progress, response: AppendResponse, now_ms: int
    ) -> None:
        """Ask again where the logs differ, so that the follower finds out."""
        next_offset = max(progress.match, min(response.received_end, self._log.end))
        is_new = progress.state is not ProgressState.PROBE or next_offset != progress.next_offset
        if is_new:  # Else it was asked already, and is asked again when the probe is due.
            progress.probe_from(next_offset)
            self._ask(progress, now_ms)

    def _on_refused(self, progress: Progress, response: AppendResponse, now_ms: int) -> bool:
        """Go on where both logs may agree: one round trip unless terms interleave further.

        Returns:
            Whether they agree only below the start of this one.
        """
        if response.conflict_end < progress.match:
            return False  # Late: it has accepted more since.
        own_end = self._log.terms.end_of_term(response.conflict_term, self._log.end)
        candidate = max(min(response.conflict_end, own_end), progress.match)
        next_offset = max(candidate, self._log.start)
        is_behind = candidate < self._log.start
        if progress.state is ProgressState.PROBE and next_offset >= progress.next_offset:
            return is_behind  # Nothing new to try before the probe is due again.
        progress.probe_from(next_offset)
        self._ask(progress, now_ms)
        return is_behind

    def _advance_commit(self) -> None:
        end = Offset(quorum_value(self._configuration, self._counted_end_of))
        # R10: a quorum alone does not commit a batch of an earlier term (Figure 8).
        if end > self._log.commit_offset and end > self.term_start:
            self._log.commit_offset = end

    def check_commit(self) -> None:
        """Check the commit offset, which has just moved."""
        commit_offset = self._log.commit_offset
        # R9: what this leader commits is durable on a quorum (or, if the group rests on memory,
        # vouched for by one), by its own knowledge.
        assert is_quorum(
            self._configuration, lambda node: self._counted_end_of(node) >= commit_offset
        )
        # R10: it commits by counting only when that reaches a batch of its own term.
        assert self._log.terms.term_at(commit_offset - 1) == self.term

    def _synced_end_of(self, node: NodeId) -> Offset:
        return self._log.synced_end if node == self._node else self._progress[node].match

    def _counted_end_of(self, node: NodeId) -> Offset:
        """How far ``node`` counts towards the commit offset."""
        if not self.counts_memory:
            return self._synced_end_of(node)
        if node == self._node:
            return self._log.end
        progress = self._progress[node]
        return max(progress.match, progress.held)

    def _ask(self, progress: Progress, now_ms: int) -> None:
        """Send an empty request that must be answered: probe, announcement, round of reads."""
        self._outbox.append(self._request(progress, progress.next_offset, expects_answer=True))
        if progress.is_up:
            if progress.state is ProgressState.PROBE:
                progress.retry_at_ms = now_ms + self._options.probe_retry_ms
            elif progress.retry_at_ms is None:
                progress.retry_at_ms = now_ms + self._options.append_retry_ms

    def _awaits(self, progress: Progress) -> bool:
        """Whether a live follower owes an answer."""
        if progress.in_flight:
            return True
        reads = self.reads
        return reads.is_under_way and progress.round_echoed < reads.round

    def _request(
        self, progress: Progress, end_offset: Offset, *, expects_answer: bool
    ) -> AppendRequest:
        log = self._log
        progress.sent_commit = log.commit_offset
        return AppendRequest(
            group=self._group,
            source=self._node,
            target=progress.node,
            term=self.term,
            start_offset=progress.next_offset,
            end_offset=end_offset,
            prev_term=log.terms.term_at(progress.next_offset - 1),
            commit_offset=log.commit_offset,
            round=self.reads.round,
            enrolment=progress.enrolment,
            expects_answer=expects_answer,
            doubt=progress.doubt,
            whole_end=progress.whole_end,
        )

    # --- who agrees -------------------------------------------------------------------

    def _hear(self, progress: Progress, round_echoed: int, now_ms: int) -> None:
        if round_echoed > progress.round_echoed:
            progress.round_echoed = round_echoed
            if self.reads.is_under_way:
                self._confirm_reads(now_ms)
        if progress.is_up and not progress.is_agreeing:
            progress.is_agreeing = True
            self._check_agreement(now_ms)

    def _check_agreement(self, now_ms: int) -> None:
        if self._has_agreement(self._configuration):
            self._quorum_lost_since_ms = None
        elif self._quorum_lost_since_ms is None:
            self._quorum_lost_since_ms = now_ms

    def _agrees(self, node: NodeId) -> bool:
        return node == self._node or self._progress[node].is_agreeing

    # --- reads ------------------------------------------------------------------------

    def _begin_reads(self, now_ms: int) -> None:
        """Begin a round if one is wanted and this leader knows what is committed."""
        if self.is_ready and self.reads.begin(self._log.commit_offset):
            for progress in self._progress.values():
                if is_voter(self._configuration, progress.node):
                    self._ask(progress, now_ms)
            self._confirm_reads(now_ms)

    def _confirm_reads(self, now_ms: int) -> None:
        self.reads.confirm(quorum_value(self._configuration, self._round_echoed_by))
        if not self.reads.is_under_way:
            self._begin_reads(now_ms)

    def _round_echoed_by(self, node: NodeId) -> int:
        return self.reads.round if node == self._node else self._progress[node].round_echoed

    # --- transfer ---------------------------------------------------------------------

    def _best_successor(self) -> NodeId | None:
        voters = [node for node in self._configuration.voters if node in self._progress]
        alive = [node for node in voters if self._progress[node].is_up]
        return max(alive, key=self._counted_end_of, default=None)

    def _hand_over(self, progress: Progress) -> None:
        if self._counted_end_of(progress.node) == self._log.end and not self._transfer_sent:
            self._transfer_sent = True
            self._outbox.append(
                TimeoutNow(
                    group=self._group, source=self._node, target=progress.node, term=self.term
                )
            )
