"""One replica of one Raft group as a pure state machine: events in, outputs out.

Time arrives as an argument, chance as ``draw``; disk and network are requested through
``Output``.  The same class runs in production, in unit tests and in the simulator.

There are no heartbeats.  Liveness comes from one failure detector per node (``PeerUp``,
``PeerDown``) for all groups; a follower's election timer stands still while the node of its
leader is up and claims to lead.  An idle group costs nothing.

Papers: Ongaro 2014, §3.4 (election), §3.5-3.6 (replication, safety), §4.2.3 (disruptive
servers), §9.6 (pre-vote).  Invariants R1.. and deviations from the paper: docs/raft.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, assert_never

from logd.errors import ChangeUnderWayError, UnavailableError
from logd.raft.campaign_clock import CampaignClock
from logd.raft.configuration_change import check_step, check_wanted, first_step, new_voters
from logd.raft.configurations import ConfigurationHistory
from logd.raft.leadership import Leadership
from logd.raft.log_state import LogState
from logd.raft.messages import (
    Appended,
    AppendRequest,
    AppendResponse,
    BatchSpan,
    Configuration,
    DurabilityChosen,
    Event,
    HardState,
    LeaderDisclaimed,
    Message,
    Output,
    PeerConnected,
    PeerDown,
    PeerUp,
    ReadRequested,
    Received,
    Resign,
    Role,
    SnapshotReceived,
    Synced,
    Tick,
    TimeoutNow,
    TransferLeadership,
    VoteRequest,
    VoteResponse,
)
from logd.raft.options import RaftOptions
from logd.raft.progress import Progress
from logd.raft.quorum import is_quorum, is_voter
from logd.raft.term_history import TermHistory
from logd.types import NO_OFFSET, GroupId, NodeId, Offset, Term

__all__ = ["RaftCore", "RaftOptions"]


class _Before(NamedTuple):
    """What a step began with, as far as it may be judged by it."""

    term: Term
    voted_for: NodeId | None
    is_newcomer: bool
    rests_on: int
    commit_offset: Offset


class RaftCore:
    """The consensus state of one replica.

    The driver steps it with every event, carries out the ``Output`` in order, and does not
    step it again before an output's ``persist`` is durable.  It keeps the log, and tells
    the core of every change to it that the core did not ask for (``Appended``, ``Synced``,
    ``trim``, ``apply_configuration``).
    """

    def __init__(
        self,
        *,
        node: NodeId,
        group: GroupId,
        configuration: Configuration,
        hard_state: HardState,
        term_history: TermHistory,
        log_start: Offset,
        log_end: Offset,
        commit_offset: Offset,
        options: RaftOptions,
        draw: Callable[[], float],
        now_ms: int,
        synced_end: Offset | None = None,
        configuration_changes: Sequence[tuple[Offset, Configuration]] = (),
        boot: int = 0,
    ) -> None:
        """Take up a replica as recovery left it.

        Args:
            configuration: in force before any of ``configuration_changes``.
            configuration_changes: those in the log, by base offset, oldest first.
            term_history: of the whole log; used and changed by the core from here on.
            synced_end: durable part of the log; by default all of it, as after recovery.
            draw: a number in [0, 1).
            boot: names the present boot of the machine, in whose memory the log may lie; with 0
                nothing ever rests on memory.
        """
        assert hard_state.term >= term_history.last_term
        self.node = node
        self.group = group
        self._term = hard_state.term
        self._voted_for = hard_state.voted_for
        self._log = LogState(
            start=log_start,
            end=log_end,
            synced_end=log_end if synced_end is None else synced_end,
            commit_offset=commit_offset,
            terms=term_history,
        )
        self._configurations = ConfigurationHistory(configuration, configuration_changes)
        self._options = options
        self._is_newcomer = hard_state.is_newcomer
        self._boot = boot
        self._rests_on = hard_state.rests_on
        self._in_memory = False
        self._memory_end = log_end
        """Durable below it, this replica rests on its disk alone, if its options say so."""
        self._whole_end = NO_OFFSET
        """What the leader of this term has said makes a doubtful replica whole."""
        self._may_campaign = True
        self._now_ms = now_ms

        self._role = Role.FOLLOWER
        self._leader: NodeId | None = None
        self._leader_of_term: NodeId | None = None
        self._nodes_up: dict[NodeId, None] = {}  # A set that iterates in one order.
        self._votes: dict[NodeId, bool] = {}
        self._doubts: dict[NodeId, bool] = {}
        """Voters that have lost their memory, as they answered the last pre-campaign."""
        self._restart_wanted_ms: int | None = None
        """Since when it is known that without those there is no quorum."""
        self._is_restart = False
        self._is_transfer = False
        self._leading: Leadership | None = None
        self._clock = CampaignClock(options, draw)

        # A follower's dealings with the leader of this term.
        self._matched_end = commit_offset
        self._acknowledged_end = Offset(0)
        self._round = 0
        self._enrolment = NO_OFFSET

        self._outbox: list[Message] = []
        self._output = Output()
        self._watch_for_leader()

    # --- what it knows ----------------------------------------------------------------

    @property
    def role(self) -> Role:
        return self._role

    @property
    def term(self) -> Term:
        return self._term

    @property
    def hard_state(self) -> HardState:
        return HardState(self._term, self._voted_for, self._is_newcomer, self._rests_on)

    @property
    def is_doubtful(self) -> bool:
        """It may have lost what it vouched for: the memory that it lay in is gone."""
        return self._rests_on not in (0, self._boot)

    def rests_on_memory(self, end_offset: Offset) -> bool:
        """Whether what this leader committed below ``end_offset`` may rest on memory."""
        return self.vouches if self._leading is None else self._leading.rests_on_memory(end_offset)

    @property
    def leader(self) -> NodeId | None:
        """Who leads this term, as far as this node knows; itself if it does."""
        return self._leader

    @property
    def commit_offset(self) -> Offset:
        return self._log.commit_offset

    @property
    def log_start(self) -> Offset:
        return self._log.start

    @property
    def log_end(self) -> Offset:
        return self._log.end

    @property
    def synced_end(self) -> Offset:
        return self._log.synced_end

    @property
    def last_term(self) -> Term:
        """Term of the last batch of the log."""
        return self._log.terms.last_term

    @property
    def term_history(self) -> TermHistory:
        """To be read only."""
        return self._log.terms

    @property
    def configuration(self) -> Configuration:
        return self._configurations.current

    @property
    def is_leader(self) -> bool:
        return self._leading is not None

    @property
    def is_ready(self) -> bool:
        """Leads, and a batch of its term is committed: it knows what is committed."""
        return self._leading is not None and self._leading.is_ready

    @property
    def is_transferring(self) -> bool:
        """Leads, but is handing over: no new proposals, or the target never catches up."""
        return self.transfer_target is not None

    @property
    def transfer_target(self) -> NodeId | None:
        return self._leading.transfer_target if self._leading is not None else None

    @property
    def deadline_ms(self) -> int | None:
        """When ``step(Tick())`` is wanted; None: only other events matter."""
        return self._leading.deadline_ms if self._leading is not None else self._clock.deadline_ms

    # --- what a leader sends ----------------------------------------------------------

    def sendable(self) -> Sequence[NodeId]:
        """Followers that lack batches and whose window is open; empty unless leading."""
        return self._leading.sendable() if self._leading is not None else ()

    def commit_lagging(self) -> Sequence[NodeId]:
        """Idle followers that an empty append request should tell the commit offset."""
        return self._leading.commit_lagging() if self._leading is not None else ()

    def progress(self, follower: NodeId) -> Progress:
        """What the leader knows about ``follower``; to be read only."""
        assert self._leading is not None
        return self._leading.progress(follower)

    def next_offset(self, follower: NodeId) -> Offset:
        """Where the next append request to ``follower`` begins."""
        return self.progress(follower).next_offset

    def window_bytes_left(self, follower: NodeId) -> int:
        """Bytes ``follower`` may be sent now; at most one request may pass it."""
        return max(0, self._options.window_bytes_max - self.progress(follower).in_flight_bytes)

    def make_append(
        self, follower: NodeId, end_offset: Offset, size_bytes: int, now_ms: int | None = None
    ) -> AppendRequest:
        """Take [next_offset, end_offset) for one request and advance the pipeline.

        Args:
            follower: one of ``sendable()`` or, for an empty request, ``commit_lagging()``.
            end_offset: end of a batch; equal to ``next_offset(follower)`` for an empty request.
            size_bytes: of the batches, counted against the window.
            now_ms: default: the time of the last step.
        """
        assert self._leading is not None
        at_ms = self._now_ms if now_ms is None else now_ms
        return self._leading.make_append(follower, end_offset, size_bytes, at_ms)

    # --- changing the members ---------------------------------------------------------

    @property
    def configuration_is_committed(self) -> bool:
        """Whether the configuration in force is known here to be committed."""
        return self._configurations.is_settled(self._log.commit_offset)

    @property
    def configuration_due(self) -> Configuration | None:
        """What a leader appends next to leave joint consensus; None while it may not, or need not.

        A leader that was elected in the middle of a change finishes it.
        """
        current = self._configurations.current
        if not current.is_joint or not self.is_ready or not self.configuration_is_committed:
            return None
        return current.without_outgoing

    def is_caught_up(self, follower: NodeId) -> bool:
        """Whether ``follower`` lacks so little that counting it would hold nobody up."""
        return self._leading is not None and self._leading.is_caught_up(follower)

    def first_step_to(self, wanted: Configuration) -> Configuration:
        """What this leader appends first to bring ``wanted`` about.

        Raises:
            InvalidRequestError: ``wanted`` cannot be a configuration, or it makes a voter of
                a node that is not a learner.
            ChangeUnderWayError: one change at a time.
            LearnerBehindError: a learner would vote before it is caught up.
            UnavailableError: the leader is not ready, or is handing over; or not enough of
                the wanted voters follow it, so that the group would stop.
        """
        assert self._leading is not None
        check_wanted(wanted)
        if not self._leading.is_ready or self.is_transferring:
            raise UnavailableError(f"the leader of group {self.group} is taking or handing over")
        current = self._configurations.current
        if current.is_joint or not self.configuration_is_committed:
            raise ChangeUnderWayError(f"group {self.group} is changing to {current}")
        for node in new_voters(current, wanted):
            self._leading.check_promotion(node)
        if not self._leading.has_agreement(wanted):
            raise UnavailableError(
                f"too few of the voters {wanted.voters} follow the leader of group {self.group}"
            )
        return first_step(current, wanted)

    # --- what the driver tells outside of events --------------------------------------

    def trim(self, log_start: Offset) -> None:
        """The driver has removed whole segments below ``log_start``."""
        self._log.trim(log_start)
        if self._leading is not None:
            self._leading.trim(log_start, self._now_ms)

    def apply_configuration(
        self, offset: Offset, configuration: Configuration, now_ms: int
    ) -> Output:
        """A configuration batch was appended at ``offset``, by this leader or as a follower.

        It is in force at once, and undone by itself when the batch is truncated.
        """
        assert offset < self._log.end
        self._now_ms = max(self._now_ms, now_ms)
        if self._leading is not None:
            # R11: one change at a time, and none before this leader knows what is committed.
            assert self._leading.is_ready
            if not self._configurations.is_settled(self._log.commit_offset):
                # R17: only who began a change, in the same term, takes it back.
                assert self._may_take_back()
                assert configuration == self._configurations.current.taken_back
            # R15: the voters change by way of joint consensus only.
            check_step(self._configurations.current, configuration)
        self._output = Output()
        self._configurations.forget_below(self._log.commit_offset)
        self._configurations.append(offset, configuration)
        if self._leading is not None:
            self._leading.reconfigure(offset, configuration, self._now_ms)
        elif self._role is Role.FOLLOWER:
            self._watch_for_leader()
        return self._finish(self._before())

    # --- the one way in ---------------------------------------------------------------

    def step(self, event: Event, now_ms: int) -> Output:
        """Advance by one event.  Runs to completion; never blocks."""
        assert now_ms >= self._now_ms
        self._now_ms = now_ms
        self._output = Output()
        before = self._before()
        log_end, was_leading = self._log.end, self._leading
        match event:
            case Received():
                self._on_received(event)
            case SnapshotReceived():
                self._on_snapshot_received(event)
            case Appended():
                self._on_appended(event)
            case Synced():
                self._on_synced(event)
            case Tick():
                self._on_tick()
            case PeerUp():
                self._on_peer_up(event.node)
            case PeerDown():
                self._on_peer_down(event.node)
            case PeerConnected():
                self._on_peer_connected(event.node)
            case LeaderDisclaimed():
                self._on_leader_disclaimed(event)
            case TransferLeadership():
                self._on_transfer_leadership(event)
            case ReadRequested():
                self._on_read_requested(event)
            case Resign():
                self._on_resign(event)
            case DurabilityChosen():
                self._on_durability_chosen(event)
            case _:
                assert_never(event)
        if (
            self._leading is not None
            and self._log.commit_offset != before.commit_offset
            and self._is_left_out()
        ):
            self._leading.appoint_successor()
            self._follow()
            self._output.left_out = True
        if self._role is Role.FOLLOWER:
            self._watch_for_leader()
        if was_leading is not None and self._leading is was_leading:
            # R7: a leader's own log only grows.
            assert self._log.end >= log_end
            assert self._output.truncate_to is None
        return self._finish(before)

    def _before(self) -> _Before:
        return _Before(
            self._term,
            self._voted_for,
            self._is_newcomer,
            self._rests_on,
            self._log.commit_offset,
        )

    def _finish(self, before: _Before) -> Output:
        """Collect what the step has caused, and check that the step was legal."""
        output = self._output
        if before[:4] != (self._term, self._voted_for, self._is_newcomer, self._rests_on):
            output.persist = self.hard_state
        if self._outbox:
            # Without anything to persist or to write both are the same; with it, none may be early.
            is_early = output.persist is None and output.append_from is None
            if is_early and not output.install_snapshot:
                output.send_now = tuple(self._outbox)
            else:
                output.send_after_persist = tuple(self._outbox)
            self._outbox.clear()
        if self._leading is not None:
            output.reads_confirmed = self._leading.reads.take_confirmed()
        if self._log.commit_offset != before.commit_offset:
            output.commit_offset = self._log.commit_offset
        self._check_invariants(before)
        return output

    def _check_invariants(self, before: _Before) -> None:
        log = self._log
        term, voted_for, was_newcomer, _, commit_offset = before
        # R1: terms never go back.
        assert self._term >= term
        # R2: a vote, once given, is not changed within the term.
        assert self._term > term or voted_for is None or self._voted_for == voted_for
        # R16: a newcomer neither votes nor campaigns, and is one at the beginning only.
        assert was_newcomer or not self._is_newcomer
        assert self._role is Role.FOLLOWER or not self._is_newcomer
        # R18: a doubtful replica campaigns only to restart the group, and never leads.
        assert self._role < Role.CANDIDATE or self._is_restart or not self.is_doubtful
        assert self._role is not Role.LEADER or not self.is_doubtful
        # R3: only a node that voted for itself campaigns or leads.
        assert self._role < Role.CANDIDATE or self._voted_for == self.node
        # R5: the commit offset never goes back.
        assert log.commit_offset >= commit_offset
        # R6: what is committed or durable here is part of the log.
        assert log.commit_offset <= log.end
        assert log.synced_end <= log.end
        # R13: the log holds no batch of a term this node has not reached.
        assert log.terms.last_term <= self._term
        assert (self._leading is not None) == (self._role is Role.LEADER)
        if self._leading is None:
            # R6: a follower takes for committed or acknowledges only what its leader has.
            assert log.commit_offset <= self._matched_end <= log.end
        else:
            assert self._leading.term == self._term
            if log.commit_offset != commit_offset:
                self._leading.check_commit()

    # --- received messages ------------------------------------------------------------

    def _on_received(self, event: Received) -> None:
        message = event.message
        if message.group != self.group or message.target != self.node:
            return
        if message.source == self.node:
            return
        match message:
            case AppendRequest():
                self._on_append_request(message, event.batches)
            case AppendResponse():
                self._on_append_response(message)
            case VoteRequest():
                self._on_vote_request(message)
            case VoteResponse():
                self._on_vote_response(message)
            case TimeoutNow():
                self._on_timeout_now(message)
            case _:
                assert_never(message)

    def _observe_term(self, term: Term) -> None:
        """Another node has reached ``term``: follow into it."""
        if term <= self._term:
            return
        self._follow()
        self._term = term
        self._voted_for = None
        self._leader_of_term = None

    def _follow(self) -> None:
        """Be a follower that knows no leader."""
        if self._leading is not None:
            self._output.lost_leadership = True
            self._output.handed_over = self._leading.has_named_successor
            self._output.reads_confirmed = self._leading.reads.take_confirmed()
            self._output.reads_failed = self._leading.reads.fail()
            self._leading = None
        self._role = Role.FOLLOWER
        self._leader = None
        self._votes = {}
        # Only the committed part is known to be what the next leader has.
        self._matched_end = self._log.commit_offset
        self._acknowledged_end = Offset(0)
        self._round = 0
        self._enrolment = NO_OFFSET
        self._whole_end = NO_OFFSET

    # --- replication, as a follower ---------------------------------------------------

    def _on_append_request(self, request: AppendRequest, batches: tuple[BatchSpan, ...]) -> None:
        self._observe_term(request.term)
        if request.term < self._term:
            self._refuse(request)  # Our term tells the sender that it leads no more.
            return
        self._recognize(request.source)
        if request.round > self._round:
            self._round = request.round
        if request.enrolment > self._enrolment:
            self._enrolment = request.enrolment
        if request.doubt == self._boot:
            self._whole_end = request.whole_end
        log = self._log
        if self._contradicts(request, batches):
            self._output.contradicted = True
            return
        if not self._is_consistent(request):
            self._refuse(request)
            return
        appended = bool(batches) and self._take_up(request, batches)
        if request.end_offset > self._matched_end:
            self._matched_end = request.end_offset
        # It may pass our own synced end: that a batch is committed is a fact about a quorum.
        commit_offset = min(request.commit_offset, self._matched_end)
        if commit_offset > log.commit_offset:
            log.commit_offset = commit_offset
        if request.expects_answer and (not appended or self.vouches):
            self._acknowledge()

    def _on_snapshot_received(self, event: SnapshotReceived) -> None:
        self._observe_term(event.term)
        if event.term < self._term:
            return  # The leader of this term knows better what we lack.
        self._recognize(event.source)
        self._enrolment = max(self._enrolment, event.enrolment)
        log = self._log
        start, terms = event.start_offset, TermHistory(event.term_rows)
        is_here = start <= log.end and log.terms.term_at(start - 1) == terms.last_term
        if start <= log.commit_offset or is_here:
            return  # Late: batches came another way.
        log.restart(start, terms)
        self._configurations = ConfigurationHistory(event.configuration)
        self._matched_end = start
        self._output.install_snapshot = True
        self._acknowledge()

    def _recognize(self, leader: NodeId) -> None:
        """``leader`` leads this term."""
        # R14: one leader per term.
        assert self._role is not Role.LEADER
        assert self._leader_of_term in (None, leader)
        if self._role is not Role.FOLLOWER:
            self._follow()
        self._leader = self._leader_of_term = leader
        self._restart_wanted_ms = None
        if leader not in self._nodes_up:
            self._clock.postpone(self._now_ms)

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

    def _take_up(self, request: AppendRequest, batches: tuple[BatchSpan, ...]) -> bool:
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
        log.extend(batches, first)
        self._output.append_from = first
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
        self._output.truncate_to = offset
        self._log.truncate(offset)
        self._memory_end = min(self._memory_end, offset)
        self._configurations.truncate(offset)

    def _acknowledge(self) -> None:
        assert self._leader is not None
        assert self._enrolment != NO_OFFSET
        synced_end = min(self._log.synced_end, self._matched_end)
        self._acknowledged_end = synced_end
        if synced_end > self._enrolment:
            # It has all that the replica before it had when it was removed, and some more.
            self._is_newcomer = False
        if self.is_doubtful and NO_OFFSET < self._whole_end <= synced_end:
            # R18: it has all that it may have vouched for, on the disk.
            self._become_whole()
        self._outbox.append(
            AppendResponse(
                group=self.group,
                source=self.node,
                target=self._leader,
                term=self._term,
                round=self._round,
                accepted=True,
                synced_end=synced_end,
                received_end=self._matched_end,
                received_term=self._log.terms.term_at(self._matched_end - 1),
                enrolment=self._enrolment,
                held_end=self._matched_end if self.vouches else Offset(0),
                doubt=self._boot if self.is_doubtful else 0,
            )
        )

    @property
    def vouches(self) -> bool:
        """What is written here counts although it is not durable: if it is lost, that is known."""
        return self._in_memory and self._rests_on == self._boot != 0

    def _become_whole(self) -> None:
        """What a doubtful replica vouches for from here on is here."""
        assert self.is_doubtful
        self._rests_on = self._boot if self._in_memory else 0

    def _rest_as_chosen(self) -> None:
        """Note what this replica rests on, if that may be noted now."""
        if self.is_doubtful:
            return
        if self._in_memory:
            self._rests_on = self._boot
        elif self._rests_on and self._log.synced_end >= self._memory_end:
            self._rests_on = 0

    def _on_durability_chosen(self, event: DurabilityChosen) -> None:
        if self._in_memory and not event.in_memory:
            self._memory_end = self._log.end
        self._in_memory = event.in_memory
        self._rest_as_chosen()
        if self._leading is not None:
            self._leading.count_memory(self.vouches, self._now_ms)

    def _refuse(self, request: AppendRequest) -> None:
        log = self._log
        conflict_term = log.terms.term_not_above(request.prev_term)
        self._outbox.append(
            AppendResponse(
                group=self.group,
                source=self.node,
                target=request.source,
                term=self._term,
                round=request.round,
                accepted=False,
                conflict_term=conflict_term,
                conflict_end=log.terms.end_of_term(conflict_term, log.end),
                enrolment=request.enrolment,
                doubt=self._boot if self.is_doubtful else 0,
            )
        )

    def _on_synced(self, event: Synced) -> None:
        if not self._log.sync(event.end_offset, event.last_term):
            return
        self._rest_as_chosen()
        if self._leading is not None:
            self._leading.on_synced(self._now_ms)
        elif (
            self._leader is not None
            and min(self._log.synced_end, self._matched_end) > self._acknowledged_end
        ):
            self._acknowledge()

    # --- replication, as a leader -----------------------------------------------------

    def _on_appended(self, event: Appended) -> None:
        assert self._leading is not None
        assert event.batches[0].term == event.batches[-1].term == self._term
        self._log.extend(event.batches)
        if not event.is_configuration:
            self._leading.on_appended(self._now_ms)

    def _on_append_response(self, response: AppendResponse) -> None:
        self._observe_term(response.term)
        if self._leading is not None and response.term == self._term:
            is_behind = self._leading.on_append_response(response, self._now_ms)
            if is_behind:
                self._output.snapshot_wanted = response.source

    # --- elections --------------------------------------------------------------------

    def _on_vote_request(self, request: VoteRequest) -> None:
        if request.source == self._leader and request.term > self._term:
            self._leader = None  # A leader that asks for votes leads no more.
        is_sticky = self._has_live_leader() and not request.transfer
        if not request.pre_vote and not is_sticky:
            self._observe_term(request.term)
        # R16: a newcomer neither votes nor campaigns.
        granted = not self._is_newcomer and not is_sticky and self._is_up_to_date(request)
        if request.pre_vote:
            granted = granted and request.term > self._term
        else:
            granted = (
                granted and request.term == self._term and self._voted_for in (None, request.source)
            )
            # R18: a doubtful replica does not vote, unless so many are that nobody else can.
            granted = granted and (request.restart or not self.is_doubtful)
        if granted and not request.pre_vote:
            self._voted_for = request.source
            self._follow()
            self._clock.postpone(self._now_ms)
        self._outbox.append(
            VoteResponse(
                group=self.group,
                source=self.node,
                target=request.source,
                term=request.term if granted else self._term,
                granted=granted,
                pre_vote=request.pre_vote,
                doubtful=self.is_doubtful,
            )
        )
        if self._leading is not None and not granted:
            self._leading.announce_to(request.source, self._now_ms)

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        """Whether the candidate's log holds everything this one may have helped to commit."""
        return (request.last_term, request.end_offset) >= (self.last_term, self._log.end)

    def _on_vote_response(self, response: VoteResponse) -> None:
        if response.pre_vote and response.granted:
            expected_role, expected_term = Role.PRE_CANDIDATE, self._term + 1
        else:
            was_pre_candidate = self._role is Role.PRE_CANDIDATE
            if response.term > self._term:
                self._observe_term(response.term)
                if was_pre_candidate:
                    self._clock.stop()  # Only the term was wrong: try again in order, soon.
                return
            expected_role = Role.PRE_CANDIDATE if response.pre_vote else Role.CANDIDATE
            expected_term = response.term if response.pre_vote else self._term
        if self._role is not expected_role or response.term != expected_term:
            return
        self._votes[response.source] = response.granted or self._votes.get(response.source, False)
        if response.pre_vote:
            self._doubts[response.source] = response.doubtful
        self._count_votes()

    def _count_votes(self) -> None:
        configuration = self._configurations.current
        is_pre_vote = self._role is Role.PRE_CANDIDATE
        if is_quorum(configuration, self._counts_as_granted):
            if is_pre_vote:
                self._campaign(is_transfer=False)
            else:
                self._lead()
        elif is_pre_vote and self._may_restart():
            self._campaign(is_transfer=False, is_restart=True)
        elif not is_quorum(configuration, lambda node: self._votes.get(node, True)):
            self._follow()  # It cannot be won any more; the clock runs until the next.

    def _counts_as_granted(self, node: NodeId) -> bool:
        """Whether ``node`` would vote, or has voted, for this one."""
        if self._role is Role.PRE_CANDIDATE and (self.is_doubtful or self._doubts.get(node, False)):
            return False
        return self._votes.get(node, False)

    def _may_restart(self) -> bool:
        """Whether so many have lost their memory that no leader can be elected without them, and
        this log is the longest there is, as far as anybody can be asked.

        All have answered: at once.  Else the others are waited for, for a bounded time.  A voter
        with a longer log refuses, and asks the same itself.
        """
        configuration = self._configurations.current
        if is_quorum(configuration, lambda node: not self._doubts.get(node, False)):
            return False
        if not all(self._votes.values()) or not is_quorum(
            configuration, lambda node: self._votes.get(node, False)
        ):
            return False
        if self._restart_wanted_ms is None:
            self._restart_wanted_ms = self._now_ms
        voters = configuration.voters + configuration.voters_outgoing
        silent = [voter for voter in voters if voter not in self._votes]
        if not silent:
            return True
        patience = 2 if any(self._is_up(voter) for voter in silent) else 1
        return self._now_ms - self._restart_wanted_ms >= patience * self._options.restart_wait_ms

    def _pre_campaign(self) -> None:
        """Ask whether a campaign could be won, before any term is disturbed by it."""
        self._follow()
        self._role = Role.PRE_CANDIDATE
        self._ask_for_votes(is_transfer=False)

    def _campaign(self, *, is_transfer: bool, is_restart: bool = False) -> None:
        assert is_restart or not self.is_doubtful
        self._follow()
        self._is_restart = is_restart
        self._role = Role.CANDIDATE
        self._term = Term(self._term + 1)
        self._voted_for = self.node
        self._leader_of_term = None
        self._ask_for_votes(is_transfer=is_transfer)

    def _ask_for_votes(self, *, is_transfer: bool) -> None:
        self._clock.campaign(self._now_ms)
        self._votes = {self.node: True}
        if self._role is Role.PRE_CANDIDATE:
            self._is_restart = False
            self._doubts = {self.node: self.is_doubtful}
        self._is_transfer = is_transfer
        configuration = self._configurations.current
        for voter in dict.fromkeys(configuration.voters + configuration.voters_outgoing):
            if voter != self.node:
                self._outbox.append(self._vote_request(voter))
        self._count_votes()

    def _vote_request(self, voter: NodeId) -> VoteRequest:
        is_pre_vote = self._role is Role.PRE_CANDIDATE
        return VoteRequest(
            group=self.group,
            source=self.node,
            target=voter,
            term=Term(self._term + 1) if is_pre_vote else self._term,
            last_term=self.last_term,
            end_offset=self._log.end,
            pre_vote=is_pre_vote,
            transfer=self._is_transfer,
            restart=self._is_restart,
        )

    def _lead(self) -> None:
        # R4: leading takes a quorum of votes.
        assert is_quorum(self._configurations.current, lambda node: self._votes.get(node, False))
        assert self._leader_of_term is None
        if self._is_restart:
            self._output.restarted = True
            if self.is_doubtful:
                self._become_whole()
        self._role = Role.LEADER
        self._restart_wanted_ms = None
        self._leader = self._leader_of_term = self.node
        self._votes = {}
        self._clock.stop()
        self._output.became_leader = True
        self._leading = Leadership(
            node=self.node,
            group=self.group,
            term=self._term,
            log=self._log,
            configuration=self._configurations.current,
            options=self._options,
            nodes_up=self._nodes_up,
            outbox=self._outbox,
            now_ms=self._now_ms,
            counts_memory=self.vouches,
        )

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over to this node."""
        self._observe_term(message.term)
        is_from_leader = message.term == self._term and message.source == self._leader
        if is_from_leader and self._is_electable() and not self.is_doubtful:
            self._campaign(is_transfer=True)

    # --- liveness ---------------------------------------------------------------------

    def _watch_for_leader(self) -> None:
        """Have the clock running exactly while this follower knows no live leader.

        Without a live quorum there is nothing to win, and the clock stands still too.
        """
        if self._leader is not None and self._leader in self._nodes_up:
            if self._clock.deadline_ms is not None:
                self._clock.stop()
        elif self._is_electable() and is_quorum(self._configurations.current, self._is_up):
            self._clock.run(self._rank(), self._now_ms)
        else:
            self._clock.stop()

    def _has_live_leader(self) -> bool:
        return self._leading is not None or (
            self._leader is not None and self._leader in self._nodes_up
        )

    def _is_electable(self) -> bool:
        if self._is_newcomer or not self._may_campaign:
            return False
        return self._configurations.may_need(self.node, self._log.commit_offset)

    def _is_up(self, node: NodeId) -> bool:
        return node == self.node or node in self._nodes_up

    def _is_left_out(self) -> bool:
        """Whether a committed change has taken this leader out of the voters."""
        configurations = self._configurations
        return configurations.is_settled(self._log.commit_offset) and not is_voter(
            configurations.current, self.node
        )

    def _may_take_back(self) -> bool:
        """Whether the voters can be again those that a change under way was to replace.

        Nobody has left joint consensus the other way, or ever will: that takes the commit of the
        joint configuration in its own term, of which this leader would know, or by a leader of a
        later term, which a majority of the outgoing voters would have to have followed: they
        would not take this one's batches any more.
        """
        configurations, leading = self._configurations, self._leading
        current = configurations.current
        return (
            leading is not None
            and current.is_joint
            and not configurations.is_settled(self._log.commit_offset)
            and configurations.last_offset > leading.term_start
            and leading.has_agreement(current.taken_back)
        )

    def _rank(self) -> int:
        """How many live voters are preferred to this node."""
        configuration = self._configurations.current
        rank = 0
        for voter in dict.fromkeys(configuration.voters + configuration.voters_outgoing):
            if voter == self.node:
                break
            rank += voter in self._nodes_up
        return rank

    def _on_tick(self) -> None:
        if self._leading is not None:
            if self._leading.on_tick(self._now_ms):
                return
            if self._may_take_back() and not self.is_transferring:
                self._output.taken_back = self._configurations.current.taken_back
            else:
                self._follow()
            return
        deadline_ms = self._clock.deadline_ms
        if deadline_ms is None or self._now_ms < deadline_ms:
            return
        if self._is_electable() and is_quorum(self._configurations.current, self._is_up):
            self._pre_campaign()
        else:
            self._follow()

    def _on_peer_up(self, node: NodeId) -> None:
        self._nodes_up[node] = None
        if self._leading is not None:
            self._leading.on_peer_up(node, self._now_ms)

    def _on_peer_down(self, node: NodeId) -> None:
        self._nodes_up.pop(node, None)
        if self._leading is not None:
            self._leading.on_peer_down(node, self._now_ms)
        elif self._leader == node:
            self._leader = None

    def _on_peer_connected(self, node: NodeId) -> None:
        """What was sent to ``node`` before may be lost: repeat what it may wait for."""
        if self._leading is not None:
            self._leading.on_peer_connected(node, self._now_ms)
        elif self._leader == node:
            self._acknowledge()
        elif (
            self._role is not Role.FOLLOWER
            and node not in self._votes
            and is_voter(self._configurations.current, node)
        ):
            self._outbox.append(self._vote_request(node))

    def _on_leader_disclaimed(self, event: LeaderDisclaimed) -> None:
        if self._leading is None and event.node == self._leader and event.term == self._term:
            self._leader = None

    # --- requests of the driver -------------------------------------------------------

    def _on_transfer_leadership(self, event: TransferLeadership) -> None:
        if self._leading is not None:
            self._leading.transfer(event.target, self._now_ms)

    def _on_read_requested(self, event: ReadRequested) -> None:
        if self._leading is None:
            self._output.reads_failed = (event.read_id,)
        else:
            self._leading.on_read_requested(event.read_id, self._now_ms)

    def _on_resign(self, event: Resign) -> None:
        if not event.may_campaign:
            self._may_campaign = False
        if self._role is not Role.FOLLOWER:
            self._follow()
            self._clock.postpone(self._now_ms)
