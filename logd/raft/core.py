"""One replica of one Raft group as a pure state machine: events in, outputs out.

Time arrives as an argument, chance as ``draw``; disk and network are requested through
``Output``.  The same class runs in production, in unit tests and in the simulator.

A replica is in turn a follower, a candidate and the leader.  What it does as each is told in
``following.py``, ``candidacy.py`` and ``leadership.py``; what lasts is in ``replica.py``.  Here
is what makes it change from one to the other: terms, votes, liveness, and the clock.  Also the
ways in and out: one event at a time, one output for it, and the invariants checked between.

There are no heartbeats.  Liveness comes from one failure detector per node (``PeerUp``,
``PeerDown``) for all groups; a follower's election timer stands still while the node of its
leader is up and claims to lead.  An idle group costs nothing.

Papers: Ongaro 2014, §3.4 (election), §4.2.3 (disruptive servers), §9.6 (pre-vote).  Invariants
R1.. and deviations from the paper: docs/raft.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, assert_never

from logd.raft.campaign_clock import CampaignClock
from logd.raft.candidacy import Candidacy
from logd.raft.configurations import ConfigurationHistory
from logd.raft.following import Following, refusal
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
from logd.raft.replica import Replica
from logd.raft.standing import Standing
from logd.raft.term_history import TermHistory
from logd.types import GroupId, NodeId, Offset, Term

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
        self._standing = Standing(hard_state, boot, self._log)
        self._replica = Replica(
            node=node,
            group=group,
            options=options,
            log=self._log,
            configurations=self._configurations,
            standing=self._standing,
        )
        self._nodes_up = self._replica.nodes_up
        self._outbox = self._replica.outbox

        self._role = Role.FOLLOWER
        self._leader: NodeId | None = None
        self._leader_of_term: NodeId | None = None
        self._following: Following | None = None
        self._candidacy: Candidacy | None = None
        self._leading: Leadership | None = None
        self._put_off: tuple[VoteRequest, int] | None = None
        """The last pre-vote that was refused because the leader is alive, and when."""
        self._clock = CampaignClock(self._replica, draw)
        self._now_ms = now_ms
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
        return HardState(
            self._term, self._voted_for, self._standing.is_newcomer, self._standing.rests_on
        )

    @property
    def is_doubtful(self) -> bool:
        """It may have lost what it vouched for: the memory that it lay in is gone."""
        return self._standing.is_doubtful

    @property
    def vouches(self) -> bool:
        """What is written here counts although it is not durable: if it is lost, that is known."""
        return self._standing.vouches

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
    def is_campaigning(self) -> bool:
        """It has asked for votes, or whether it would get them, and that is not decided yet."""
        return self._candidacy is not None

    @property
    def is_preferred(self) -> bool:
        """No live voter stands before this one in the replica list."""
        return self._replica.rank == 0

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
        return max(
            0, self._replica.options.window_bytes_max - self.progress(follower).in_flight_bytes
        )

    def make_append(
        self, follower: NodeId, end_offset: Offset, size_bytes: int, now_ms: int
    ) -> AppendRequest:
        """Take [next_offset, end_offset) for one request and advance the pipeline.

        Args:
            follower: one of ``sendable()`` or, for an empty request, ``commit_lagging()``.
            end_offset: end of a batch; equal to ``next_offset(follower)`` for an empty request.
            size_bytes: of the batches, counted against the window.
            now_ms: the last step may be long ago, where a follower had to wait for room.
        """
        assert self._leading is not None
        return self._leading.make_append(follower, end_offset, size_bytes, now_ms)

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
        return self._configurations.due(self._log.commit_offset) if self.is_ready else None

    def is_caught_up(self, follower: NodeId) -> bool:
        """Whether ``follower`` lacks so little that counting it would hold nobody up."""
        return self._leading is not None and self._leading.is_caught_up(follower)

    def first_step_to(self, wanted: Configuration) -> Configuration:
        """What this leader appends first to bring ``wanted`` about, if it may.

        Raises as ``Leadership.first_step_to`` does.
        """
        assert self._leading is not None
        return self._leading.first_step_to(wanted)

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
            self._leading.check_change(configuration)
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
                self._on_tick(event)
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
            and self._replica.is_left_out
        ):
            # It leads until the change is committed that leaves it out, and no longer (§4.2.2).
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
        standing = self._standing
        return _Before(
            self._term,
            self._voted_for,
            standing.is_newcomer,
            standing.rests_on,
            self._log.commit_offset,
        )

    def _finish(self, before: _Before) -> Output:
        """Collect what the step has caused, and check that the step was legal."""
        output, standing = self._output, self._standing
        if before[:4] != (self._term, self._voted_for, standing.is_newcomer, standing.rests_on):
            output.persist = self.hard_state
        if self._outbox:
            output.send(self._outbox)
            self._outbox.clear()
        if self._leading is not None:
            output.reads_confirmed = self._leading.reads.take_confirmed()
        if self._log.commit_offset != before.commit_offset:
            output.commit_offset = self._log.commit_offset
        self._check_invariants(before)
        return output

    def _check_invariants(self, before: _Before) -> None:
        log, standing = self._log, self._standing
        term, voted_for, was_newcomer, _, commit_offset = before
        # R1: terms never go back.
        assert self._term >= term
        # R2: a vote, once given, is not changed within the term.
        assert self._term > term or voted_for is None or self._voted_for == voted_for
        # R16: a newcomer neither votes nor campaigns, and is one at the beginning only.
        assert was_newcomer or not standing.is_newcomer
        assert self._role is Role.FOLLOWER or not standing.is_newcomer
        # R18: a doubtful replica campaigns only to restart the group, and never leads.
        assert self._role is not Role.LEADER or not standing.is_doubtful
        if self._role is Role.CANDIDATE and standing.is_doubtful:
            assert self._candidacy is not None
            assert self._candidacy.is_restart
        # R3: only a node that voted for itself campaigns or leads.
        assert self._role < Role.CANDIDATE or self._voted_for == self.node
        # R5: the commit offset never goes back.
        assert log.commit_offset >= commit_offset
        # R6: what is committed or durable here is part of the log.
        assert log.commit_offset <= log.end
        assert log.synced_end <= log.end
        # R13: the log holds no batch of a term this node has not reached.
        assert log.terms.last_term <= self._term
        if self._leading is not None:
            assert self._role is Role.LEADER
            assert self._leading.term == self._term
            if log.commit_offset != commit_offset:
                self._leading.check_commit()
        elif self._following is not None:
            assert self._role is Role.FOLLOWER
            self._following.check()
        else:
            assert self._role is not Role.LEADER
            assert (self._candidacy is None) == (self._role is Role.FOLLOWER)
            # R6: who follows nobody learns of no commit.
            assert log.commit_offset == commit_offset or self._output.lost_leadership

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
        self._candidacy = None
        self._following = None

    # --- replication, as a follower ---------------------------------------------------

    def _on_append_request(self, request: AppendRequest, batches: tuple[BatchSpan, ...]) -> None:
        self._observe_term(request.term)
        if request.term < self._term:
            self._outbox.append(refusal(request, self._term, self._log, self._standing))
            return
        self._recognize(request.source).on_append_request(request, batches, self._output)

    def _on_snapshot_received(self, event: SnapshotReceived) -> None:
        self._observe_term(event.term)
        if event.term < self._term:
            return  # The leader of this term knows better what we lack.
        self._recognize(event.source).on_snapshot_received(event, self._output)

    def _recognize(self, leader: NodeId) -> Following:
        """``leader`` leads this term: follow it."""
        # R14: one leader per term.
        assert self._role is not Role.LEADER
        assert self._leader_of_term in (None, leader)
        if self._role is not Role.FOLLOWER:
            self._follow()
        self._leader = self._leader_of_term = leader
        self._clock.forget_restart()
        if leader not in self._nodes_up:
            self._clock.postpone(self._now_ms)
        if self._following is None:
            self._following = Following(self._replica, self._term, leader)
        return self._following

    def _on_durability_chosen(self, event: DurabilityChosen) -> None:
        self._standing.choose(in_memory=event.in_memory)
        if self._leading is not None:
            self._leading.count_memory(self.vouches, self._now_ms)

    def _on_synced(self, event: Synced) -> None:
        if not self._log.sync(event.end_offset, event.last_term):
            return
        self._standing.rest_as_chosen()
        if self._leading is not None:
            self._leading.on_synced(self._now_ms)
        elif self._following is not None and self._leader is not None:
            self._following.on_synced()

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
        if request.pre_vote:
            is_free = request.term > self._term
        else:
            is_free = request.term == self._term and self._voted_for in (None, request.source)
        if request.pre_vote and is_sticky:
            self._put_off = request, self._now_ms
        granted = is_free and not is_sticky and self._replica.would_vote_for(request)
        if granted and not request.pre_vote:
            self._voted_for = request.source
            self._follow()
            self._clock.postpone(self._now_ms)
        elif granted and self._replica.prefers(request.source):
            self._yield_to_preferred()
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

    def _yield_to_preferred(self) -> None:
        """Somebody who stands before this node would be voted for here: it goes first.

        Where answers take longer than an election timeout two would else campaign against each
        other, again and again.  Who campaigns already goes on: it may have been elected.
        """
        if self._role is Role.PRE_CANDIDATE:
            self._follow()
        if self._role is Role.FOLLOWER:
            self._clock.postpone(self._now_ms)

    def _on_vote_response(self, response: VoteResponse) -> None:
        would_vote = response.pre_vote and response.granted  # Then the term is the one asked for.
        if response.term > self._term and not would_vote:
            was_pre_candidate = self._role is Role.PRE_CANDIDATE
            self._observe_term(response.term)
            if was_pre_candidate:
                self._clock.stop()  # Only the term was wrong: try again in order, soon.
        elif self._candidacy is not None and self._candidacy.is_answered_by(response):
            self._candidacy.note(response)
            self._count_votes(self._candidacy)

    def _count_votes(self, candidacy: Candidacy) -> None:
        if candidacy.is_won:
            if candidacy.is_pre_vote:
                self._campaign()
            else:
                self._lead(candidacy)
        elif (
            candidacy.is_pre_vote
            and candidacy.needs_restart
            and self._clock.may_restart(candidacy.silent, self._now_ms)
        ):
            self._campaign(is_restart=True)
        elif candidacy.is_lost:
            self._follow()  # It cannot be won any more; the clock runs until the next.

    def _pre_campaign(self) -> None:
        """Ask whether a campaign could be won, before any term is disturbed by it."""
        self._follow()
        self._role = Role.PRE_CANDIDATE
        self._stand(Candidacy(self._replica, Term(self._term + 1), is_pre_vote=True))

    def _campaign(self, *, is_transfer: bool = False, is_restart: bool = False) -> None:
        assert is_restart or not self.is_doubtful
        self._follow()
        self._role = Role.CANDIDATE
        self._term = Term(self._term + 1)
        self._voted_for = self.node
        self._leader_of_term = None
        self._stand(
            Candidacy(self._replica, self._term, is_transfer=is_transfer, is_restart=is_restart)
        )

    def _stand(self, candidacy: Candidacy) -> None:
        """All voters are asked; who has a quorum by itself need not wait."""
        self._candidacy = candidacy
        self._clock.campaign(self._now_ms)
        self._count_votes(candidacy)

    def _lead(self, candidacy: Candidacy) -> None:
        # R4: leading takes a quorum of votes.
        assert candidacy.is_won
        assert not candidacy.is_pre_vote
        assert self._leader_of_term is None
        if candidacy.is_restart:
            self._output.restarted = True
            if self.is_doubtful:
                self._standing.become_whole()
        self._candidacy = None
        self._role = Role.LEADER
        self._leader = self._leader_of_term = self.node
        self._clock.stop()
        self._clock.forget_restart()
        self._output.became_leader = True
        self._leading = Leadership(self._replica, self._term, self._now_ms)

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over to this node."""
        self._observe_term(message.term)
        is_from_leader = message.term == self._term and message.source == self._leader
        if is_from_leader and self._replica.is_electable and not self.is_doubtful:
            self._campaign(is_transfer=True)

    # --- liveness ---------------------------------------------------------------------

    def _watch_for_leader(self) -> None:
        """Have the clock running only while this follower knows no live leader."""
        if self._leader is not None and self._leader in self._nodes_up:
            if self._clock.deadline_ms is not None:
                self._clock.stop()
        else:
            self._clock.watch(self._now_ms)

    def _has_live_leader(self) -> bool:
        return self._leading is not None or (
            self._leader is not None and self._leader in self._nodes_up
        )

    def _on_tick(self, event: Tick) -> None:
        if self._leading is not None:
            if self._leading.on_tick(self._now_ms):
                return
            taken_back = None if self.is_transferring else self._leading.taken_back
            if taken_back is not None:
                self._output.taken_back = taken_back
            else:
                self._follow()
            return
        deadline_ms = self._clock.deadline_ms
        if deadline_ms is None or self._now_ms < deadline_ms:
            return
        candidacy = self._candidacy
        if not self._replica.may_win:
            self._follow()
        elif not event.has_room:
            # It would let go of every term that it won: others may have room, and it asks again.
            self._follow()
            self._clock.postpone(self._now_ms)
        elif candidacy is not None and candidacy.is_open:
            self._clock.campaign(self._now_ms)
            candidacy.ask_the_silent()
        else:
            self._pre_campaign()

    def _on_peer_up(self, node: NodeId) -> None:
        self._nodes_up[node] = None
        if self._leading is not None:
            self._leading.on_peer_up(node, self._now_ms)

    def _on_peer_down(self, node: NodeId) -> None:
        self._nodes_up.pop(node, None)
        if self._leading is not None:
            self._leading.on_peer_down(node, self._now_ms)
        elif self._leader == node:
            self._lose_leader()

    def _on_peer_connected(self, node: NodeId) -> None:
        """What was sent to ``node`` before may be lost: repeat what it may wait for."""
        if self._leading is not None:
            self._leading.on_peer_connected(node, self._now_ms)
        elif self._candidacy is not None:
            self._candidacy.ask_again(node)
        elif self._following is not None and self._leader == node:
            self._following.acknowledge()

    def _on_leader_disclaimed(self, event: LeaderDisclaimed) -> None:
        if self._leading is None and event.node == self._leader and event.term == self._term:
            self._lose_leader()

    def _lose_leader(self) -> None:
        """Nobody leads any more, as far as is known here.

        Who knew it a moment earlier and asked was refused, and would ask again only after an
        election timeout: it is answered anew.
        """
        self._leader = None
        put_off, self._put_off = self._put_off, None
        if put_off is not None:
            request, asked_ms = put_off
            if self._now_ms - asked_ms < self._replica.options.election_timeout_ms_min:
                self._on_vote_request(request)

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
            self._standing.may_campaign = False
        if self._role is not Role.FOLLOWER:
            self._follow()
            self._clock.postpone(self._now_ms)
