"""Rules of a group that rests on the memory of a majority, at one replica.

Which schedules they survive together is the business of ``tests/sim/test_raft_memory_sim.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from logd.raft.core import RaftCore, RaftOptions
from logd.raft.messages import (
    Appended,
    AppendRequest,
    AppendResponse,
    BatchSpan,
    Configuration,
    DurabilityChosen,
    HardState,
    Output,
    Received,
    Role,
    Synced,
    Tick,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from logd.types import NodeId, Offset, Term
from tests.support import cores
from tests.support.cores import GROUP, ME, SECOND, THIRD

BEFORE, NOW = 77, 78
"""Boots of this machine."""


def replica(
    terms: Sequence[int] = (1, 1, 1),
    *,
    rests_on: int = 0,
    commit_offset: int = 0,
    voters: tuple[NodeId, ...] = (ME, SECOND, THIRD),
    up: Sequence[NodeId] = (SECOND, THIRD),
) -> RaftCore:
    return cores.replica(
        Configuration(voters),
        terms=terms,
        rests_on=rests_on,
        boot=NOW,
        commit_offset=commit_offset,
        up=up,
    )


def append(
    start: int,
    terms: Sequence[int] = (),
    *,
    term: int = 1,
    prev_term: int = 1,
    doubt: int = 0,
    whole_end: int = 0,
) -> Received:
    return cores.request(
        term,
        start,
        terms,
        prev_term=prev_term if start else 0,
        doubt=doubt,
        whole_end=whole_end,
    )


def accepted(
    core: RaftCore,
    source: NodeId,
    *,
    synced: int = 0,
    held: int = 0,
    received: int | None = None,
    received_term: int = 0,
    doubt: int = 0,
) -> Output:
    return core.step(
        Received(
            AppendResponse(
                group=GROUP,
                source=source,
                target=ME,
                term=core.term,
                round=0,
                accepted=True,
                synced_end=Offset(synced),
                received_end=Offset(max(synced, held) if received is None else received),
                received_term=Term(received_term),
                enrolment=core.progress(source).enrolment,
                held_end=Offset(held),
                doubt=doubt,
            )
        ),
        100,
    )


def vote(source: NodeId, term: int, *, pre_vote: bool, granted: bool = True) -> VoteResponse:
    return VoteResponse(
        group=GROUP, source=source, target=ME, term=Term(term), granted=granted, pre_vote=pre_vote
    )


def vote_request(*, end: int, restart: bool = False, pre_vote: bool = False) -> Received:
    return Received(
        VoteRequest(
            group=GROUP,
            source=THIRD,
            target=ME,
            term=Term(2),
            last_term=Term(1),
            end_offset=Offset(end),
            restart=restart,
            pre_vote=pre_vote,
        )
    )


def doubtful(source: NodeId, *, granted: bool = True) -> Received:
    return Received(
        VoteResponse(
            group=GROUP,
            source=source,
            target=ME,
            term=Term(2 if granted else 1),
            granted=granted,
            pre_vote=True,
            doubtful=True,
        )
    )


def leader(*, in_memory: bool = True) -> RaftCore:
    """Of term 2, with a batch of its own that nobody has yet."""
    core = replica()
    core.step(DurabilityChosen(in_memory), 0)
    core.step(Tick(), 100)
    core.step(Received(vote(SECOND, 2, pre_vote=True)), 100)
    core.step(Received(vote(SECOND, 2, pre_vote=False)), 100)
    assert core.is_leader
    core.step(Appended((BatchSpan(Offset(3), Offset(4), Term(2)),)), 100)
    return core


def role_of(core: RaftCore) -> Role:
    """Read anew: a step may have changed it."""
    return core.role


def answer_of(output: Output) -> AppendResponse:
    (answer,) = output.send_now or output.send_after_persist
    assert isinstance(answer, AppendResponse)
    return answer


# --- who vouches for what ---------------------------------------------------------------


def test_the_boot_is_durable_before_anything_rests_on_it() -> None:
    core = replica()

    output = core.step(DurabilityChosen(in_memory=True), 0)

    assert output.persist == HardState(Term(1), None, rests_on=NOW)


def test_a_follower_vouches_for_what_it_has_written_and_not_before() -> None:
    core = replica()
    core.step(DurabilityChosen(in_memory=True), 0)

    output = core.step(append(3, [1]), 0)

    assert output.append_from == 0
    assert output.send_now == ()  # It is not written yet.
    answer = answer_of(output)
    assert (answer.synced_end, answer.held_end, answer.received_end) == (3, 4, 4)


def test_a_follower_of_a_synced_group_vouches_for_nothing_that_it_has_not_synced() -> None:
    core = replica()

    assert not core.step(append(3, [1]), 0).send_after_persist
    answer = answer_of(core.step(Synced(Offset(4), Term(1)), 0))
    assert (answer.synced_end, answer.held_end) == (4, 0)


def test_a_leader_commits_what_a_quorum_vouches_for() -> None:
    core = leader()

    output = accepted(core, SECOND, synced=3, held=4)

    assert output.commit_offset == 4
    assert core.rests_on_memory(Offset(4))


def test_a_leader_of_a_synced_group_does_not() -> None:
    core = leader(in_memory=False)
    core.step(Synced(Offset(4), Term(2)), 100)

    assert accepted(core, SECOND, synced=3, held=4).commit_offset is None
    assert accepted(core, SECOND, synced=4).commit_offset == 4


def test_what_was_merely_received_counts_nowhere() -> None:
    assert accepted(leader(), SECOND, synced=3, received=4).commit_offset is None


def test_a_group_of_one_commits_what_it_has_written() -> None:
    core = replica(voters=(ME,), up=())
    core.step(DurabilityChosen(in_memory=True), 0)
    core.step(Tick(), 1000)
    assert core.is_leader

    output = core.step(Appended((BatchSpan(Offset(3), Offset(4), Term(2)),)), 1000)

    assert output.commit_offset == 4


# --- changing one's mind ----------------------------------------------------------------


def test_back_on_the_disk_the_boot_is_forgotten_when_all_is_durable_and_not_before() -> None:
    core = replica()
    core.step(DurabilityChosen(in_memory=True), 0)
    core.step(append(3, [1, 1]), 0)

    assert core.step(DurabilityChosen(in_memory=False), 0).persist is None
    assert core.step(Synced(Offset(4), Term(1)), 0).persist is None
    output = core.step(Synced(Offset(5), Term(1)), 0)
    assert output.persist == HardState(Term(1), None, rests_on=0)


def test_what_was_committed_in_memory_is_called_so_until_a_quorum_has_it_durably() -> None:
    core = leader()
    accepted(core, SECOND, synced=3, held=4)
    core.step(DurabilityChosen(in_memory=False), 100)

    assert core.rests_on_memory(Offset(4))
    accepted(core, SECOND, synced=4)
    accepted(core, THIRD, synced=4)
    assert not core.rests_on_memory(Offset(4))


# --- a machine that rebooted ------------------------------------------------------------


def test_a_doubtful_replica_does_not_vote() -> None:
    core = replica(rests_on=BEFORE)

    (answer,) = core.step(vote_request(end=9), 0).send_after_persist

    assert isinstance(answer, VoteResponse)
    assert not answer.granted
    assert answer.doubtful


def test_a_process_that_was_killed_is_not_doubtful() -> None:
    core = replica(rests_on=NOW)

    (answer,) = core.step(vote_request(end=9), 0).send_after_persist

    assert isinstance(answer, VoteResponse)
    assert answer.granted


def test_a_doubtful_replica_does_not_take_over_when_told_to() -> None:
    core = replica(rests_on=BEFORE)
    core.step(append(3), 0)

    core.step(Received(TimeoutNow(group=GROUP, source=SECOND, target=ME, term=Term(1))), 0)

    assert core.role is Role.FOLLOWER


def test_a_doubtful_follower_says_so_and_vouches_for_nothing() -> None:
    core = replica(rests_on=BEFORE)
    core.step(DurabilityChosen(in_memory=True), 0)

    answer = answer_of(core.step(append(3), 0))

    assert (answer.held_end, answer.doubt) == (0, NOW)


def test_it_is_whole_when_durable_up_to_where_the_leader_stood_when_it_noticed() -> None:
    core = replica(rests_on=BEFORE)
    core.step(DurabilityChosen(in_memory=True), 0)
    core.step(append(3, [1, 1], doubt=NOW, whole_end=5), 0)

    assert core.step(Synced(Offset(4), Term(1)), 0).persist is None
    assert core.is_doubtful
    output = core.step(Synced(Offset(5), Term(1)), 0)
    assert output.persist == HardState(Term(1), None, rests_on=NOW)
    assert output.send_now == ()
    assert answer_of(output).held_end == 5


def test_what_a_leader_noted_of_an_earlier_boot_makes_nobody_whole() -> None:
    core = replica(rests_on=BEFORE)

    core.step(append(3, doubt=BEFORE, whole_end=3), 0)

    assert core.is_doubtful


def test_a_leader_that_hears_of_a_doubt_takes_back_what_it_counted_and_says_where_it_stands() -> (
    None
):
    core = leader()
    accepted(core, SECOND, synced=3, held=3)
    core.step(Synced(core.log_end, core.term), 100)
    accepted(core, THIRD, synced=core.log_end)
    accepted(core, SECOND, synced=core.log_end, held=core.log_end)
    assert core.is_caught_up(SECOND)

    output = accepted(core, SECOND, synced=2, doubt=9)

    assert core.progress(SECOND).held == 0
    told = [m for m in output.send_now if isinstance(m, AppendRequest)]
    assert [(m.doubt, m.whole_end) for m in told] == [(9, 4)]
    assert not core.is_caught_up(SECOND)


# --- a majority that rebooted -----------------------------------------------------------


def test_a_doubtful_replica_votes_for_a_restart_by_the_log_that_it_has() -> None:
    (longer,) = (
        replica(rests_on=BEFORE).step(vote_request(end=3, restart=True), 0).send_after_persist
    )
    (shorter,) = (
        replica(rests_on=BEFORE).step(vote_request(end=2, restart=True), 0).send_after_persist
    )

    assert isinstance(longer, VoteResponse)
    assert isinstance(shorter, VoteResponse)
    assert (longer.granted, shorter.granted) == (True, False)


def test_when_all_have_answered_the_longest_log_goes_on_at_once() -> None:
    core = replica(rests_on=BEFORE)
    core.step(DurabilityChosen(in_memory=True), 0)
    core.step(Tick(), 100)
    assert role_of(core) is Role.PRE_CANDIDATE
    core.step(doubtful(SECOND), 100)
    assert role_of(core) is Role.PRE_CANDIDATE

    output = core.step(doubtful(THIRD), 100)

    assert role_of(core) is Role.CANDIDATE
    requests = [m for m in output.send_after_persist if isinstance(m, VoteRequest)]
    assert all(request.restart for request in requests)
    output = core.step(Received(vote(THIRD, 2, pre_vote=False)), 100)
    assert output.became_leader
    assert output.restarted
    assert output.persist == HardState(Term(2), ME, rests_on=NOW)


def test_a_longer_log_is_not_passed_over() -> None:
    core = replica(rests_on=BEFORE)
    core.step(Tick(), 100)
    core.step(doubtful(SECOND), 100)

    core.step(Received(vote(THIRD, 1, pre_vote=True, granted=False)), 100)

    assert core.role is Role.PRE_CANDIDATE


def test_one_doubtful_replica_is_no_reason_to_restart() -> None:
    core = replica(rests_on=BEFORE)
    core.step(Tick(), 100)

    core.step(Received(vote(SECOND, 2, pre_vote=True)), 100)
    core.step(Received(vote(THIRD, 2, pre_vote=True)), 100)

    assert core.role is Role.PRE_CANDIDATE


def test_who_is_silent_may_be_whole_and_a_group_is_not_restarted_without_it() -> None:
    """One that lost its memory is not a majority, however long the third does not answer."""
    core = replica(rests_on=BEFORE, up=(SECOND,))
    now_ms = 0
    while now_ms < 3 * RaftOptions().restart_wait_ms:
        deadline_ms = core.deadline_ms
        assert deadline_ms is not None
        now_ms = max(now_ms, deadline_ms)
        core.step(Tick(), now_ms)
        core.step(Received(vote(SECOND, core.term + 1, pre_vote=True)), now_ms)
        assert core.role is not Role.CANDIDATE


@pytest.mark.parametrize(("up", "patience"), [((SECOND,), 1), ((SECOND, THIRD), 2)])
def test_a_missing_voter_is_waited_for_before_a_group_is_restarted(
    up: tuple[NodeId, ...], patience: int
) -> None:
    """Twice as long if it is alive, from when it is known that a majority lost its memory."""
    known_at_ms, wait_ms = 60_000, patience * RaftOptions().restart_wait_ms
    core = replica(rests_on=BEFORE, up=up)
    now_ms = known_at_ms
    while core.role is not Role.CANDIDATE:
        deadline_ms = core.deadline_ms
        assert deadline_ms is not None
        now_ms = max(now_ms, deadline_ms)
        core.step(Tick(), now_ms)
        if core.role is Role.PRE_CANDIDATE:
            core.step(doubtful(SECOND), now_ms)

    assert wait_ms <= now_ms - known_at_ms < wait_ms + 5_000


def test_a_log_that_contradicts_what_is_committed_here_is_not_taken_up() -> None:
    core = replica((1, 1, 1), commit_offset=3)

    output = core.step(append(1, [2], term=2), 0)

    assert output.contradicted
    assert output.append_from is None
    assert output.send_now == output.send_after_persist == ()
    assert replica((1, 1, 1), commit_offset=3).step(append(2, term=2, prev_term=2), 0).contradicted


def test_a_follower_says_of_which_term_the_last_batch_is_that_it_has() -> None:
    core = replica((1, 1, 1, 1), commit_offset=4)

    answer = answer_of(core.step(append(3, term=2), 0))

    assert (answer.received_end, answer.received_term) == (4, 1)


@pytest.mark.parametrize("committed_end", [4, 9])
def test_what_was_committed_before_a_restart_with_loss_is_not_taken_for_the_leaders(
    committed_end: int,
) -> None:
    """A voter that was away holds as committed what the group has otherwise by now.  Counted, it
    would vouch for batches that it does not have."""
    core = leader(in_memory=False)
    core.step(Synced(Offset(4), Term(2)), 100)

    output = accepted(core, SECOND, synced=committed_end, received_term=1)

    assert output.commit_offset is None
    assert core.progress(SECOND).match == 0
    (probe,) = output.send_now
    assert isinstance(probe, AppendRequest)
    assert (probe.start_offset, probe.prev_term) == (4, 2)
    # Which is what makes it stop.
    away = replica((1,) * committed_end, commit_offset=committed_end)
    assert away.step(append(4, term=2, prev_term=2), 0).contradicted
