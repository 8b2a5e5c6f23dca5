"""A consensus core as it is after a restart, and what its peers say to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from logd.raft.core import RaftCore, RaftOptions
from logd.raft.messages import (
    Appended,
    AppendRequest,
    AppendResponse,
    BatchSpan,
    Configuration,
    HardState,
    Output,
    PeerUp,
    Received,
    Role,
    Synced,
    Tick,
    VoteRequest,
    VoteResponse,
)
from logd.raft.term_history import TermHistory
from logd.types import GroupId, NodeId, Offset, Term

GROUP: Final = GroupId(5)
ME, SECOND, THIRD, FOURTH, FIFTH = (NodeId(number) for number in range(1, 6))
THREE: Final = Configuration((ME, SECOND, THIRD))


def replica(
    configuration: Configuration = THREE,
    *,
    node: NodeId = ME,
    terms: Sequence[int] = (),
    term: int | None = None,
    voted_for: NodeId | None = None,
    is_newcomer: bool = False,
    rests_on: int = 0,
    boot: int = 0,
    commit_offset: int = 0,
    up: Sequence[NodeId] = (SECOND, THIRD),
) -> RaftCore:
    """A recovered replica whose log has one batch of one offset for each of ``terms``.  It hears
    ``up``, and draws no delays."""
    history = TermHistory()
    for offset, batch_term in enumerate(terms):
        history.append(Term(batch_term), Offset(offset))
    current = Term(history.last_term if term is None else term)
    core = RaftCore(
        node=node,
        group=GROUP,
        configuration=configuration,
        hard_state=HardState(current, voted_for, is_newcomer, rests_on=rests_on),
        term_history=history,
        log_start=Offset(0),
        log_end=Offset(len(terms)),
        commit_offset=Offset(commit_offset),
        options=RaftOptions(),
        draw=lambda: 0.0,
        now_ms=0,
        boot=boot,
    )
    for peer in up:
        core.step(PeerUp(peer), 0)
    return core


# --- peers ------------------------------------------------------------------------------


def vote(source: NodeId, term: int, *, granted: bool = True, pre_vote: bool = False) -> Received:
    return Received(
        VoteResponse(
            group=GROUP,
            source=source,
            target=ME,
            term=Term(term),
            granted=granted,
            pre_vote=pre_vote,
        )
    )


def vote_request(
    source: NodeId,
    term: int,
    *,
    last_term: int = 0,
    end_offset: int = 0,
    pre_vote: bool = False,
    transfer: bool = False,
) -> Received:
    return Received(
        VoteRequest(
            group=GROUP,
            source=source,
            target=ME,
            term=Term(term),
            last_term=Term(last_term),
            end_offset=Offset(end_offset),
            pre_vote=pre_vote,
            transfer=transfer,
        )
    )


def request(
    term: int,
    start: int,
    terms: Sequence[int] = (),
    *,
    prev_term: int = 0,
    commit_offset: int = 0,
    source: NodeId = SECOND,
    enrolment: int = 0,
    doubt: int = 0,
    whole_end: int = 0,
) -> Received:
    batches = tuple(
        BatchSpan(Offset(start + i), Offset(start + i + 1), Term(batch_term))
        for i, batch_term in enumerate(terms)
    )
    message = AppendRequest(
        group=GROUP,
        source=source,
        target=ME,
        term=Term(term),
        start_offset=Offset(start),
        end_offset=Offset(start + len(terms)),
        prev_term=Term(prev_term),
        commit_offset=Offset(commit_offset),
        round=0,
        enrolment=Offset(enrolment),
        doubt=doubt,
        whole_end=Offset(whole_end),
    )
    return Received(message, batches)


def accepted(
    source: NodeId, term: int, synced_end: int, *, round_: int = 0, enrolment: int = 0
) -> Received:
    return Received(
        AppendResponse(
            group=GROUP,
            source=source,
            target=ME,
            term=Term(term),
            round=round_,
            accepted=True,
            synced_end=Offset(synced_end),
            received_end=Offset(synced_end),
            enrolment=Offset(enrolment),
        )
    )


def refused(
    source: NodeId, term: int, conflict_term: int, conflict_end: int, *, enrolment: int = 0
) -> Received:
    return Received(
        AppendResponse(
            group=GROUP,
            source=source,
            target=ME,
            term=Term(term),
            round=0,
            enrolment=Offset(enrolment),
            accepted=False,
            conflict_term=Term(conflict_term),
            conflict_end=Offset(conflict_end),
        )
    )


# --- elections --------------------------------------------------------------------------


def campaign(core: RaftCore) -> Output:
    """Win the pre-vote; the vote is left to the caller."""
    assert core.deadline_ms is not None
    core.step(Tick(), core.deadline_ms)
    requested = core.term + 1
    outputs = [
        core.step(vote(voter, requested, pre_vote=True), 100)
        for voter in core.configuration.members
        if voter != ME and core.role is Role.PRE_CANDIDATE
    ]
    assert core.role is Role.CANDIDATE
    return outputs[-1]


def lead(core: RaftCore) -> None:
    """Win an election, and append and sync the no-op."""
    campaign(core)
    for voter in core.configuration.members:
        if voter != ME and not core.is_leader:
            core.step(vote(voter, core.term), 100)
    assert core.is_leader
    append(core, 1)


def append(core: RaftCore, count: int, *, synced: bool = True, now_ms: int = 100) -> None:
    for _ in range(count):
        end_offset = Offset(core.log_end + 1)
        core.step(Appended((BatchSpan(core.log_end, end_offset, core.term),)), now_ms)
        if synced:
            core.step(Synced(end_offset, core.term), now_ms)
