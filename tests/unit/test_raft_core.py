"""Rules of the consensus core that are easier to state about one replica than as a script.

The scripts are in ``tests/spec``; here are the corners: joint majorities, messages out of
their time, trimmed logs, changes of configuration, and what never depends on a peer.
"""

from __future__ import annotations

import pytest

from logd.errors import (
    ChangeUnderWayError,
    InvalidRequestError,
    LearnerBehindError,
    UnavailableError,
    UsageError,
)
from logd.limits import LEARNER_LAG_BYTES_MAX, LEARNERS_MAX, REPLICAS_MAX
from logd.raft.configuration_change import check_wanted
from logd.raft.configurations import ConfigurationHistory
from logd.raft.core import RaftCore, RaftOptions
from logd.raft.messages import (
    AppendRequest,
    AppendResponse,
    Configuration,
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
from logd.raft.quorum import is_quorum, majority, quorum_value
from logd.types import GroupId, NodeId, Offset, Term
from tests.support.cores import (
    FIFTH,
    FOURTH,
    GROUP,
    ME,
    SECOND,
    THIRD,
    THREE,
    accepted,
    append,
    campaign,
    lead,
    refused,
    replica,
    request,
    vote,
    vote_request,
)

# --- quorums ----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_a_majority_is_more_than_half(count: int, expected: int) -> None:
    assert majority(count) == expected


def test_a_joint_quorum_is_a_majority_of_both_sets() -> None:
    joint = Configuration((THIRD, FOURTH, FIFTH), (), (ME, SECOND, THIRD))

    assert not is_quorum(joint, lambda node: node in (THIRD, FOURTH, FIFTH))
    assert not is_quorum(joint, lambda node: node in (ME, SECOND, THIRD))
    assert is_quorum(joint, lambda node: node in (ME, THIRD, FIFTH))


def test_a_joint_value_is_the_lesser_of_both_majorities() -> None:
    joint = Configuration((THIRD, FOURTH, FIFTH), (), (ME, SECOND, THIRD))
    reached = {ME: 9, SECOND: 7, THIRD: 8, FOURTH: 1, FIFTH: 2}

    assert quorum_value(joint, reached.__getitem__) == 2
    assert quorum_value(THREE, reached.__getitem__) == 8


def test_nobody_is_a_quorum_of_no_voters() -> None:
    assert not is_quorum(Configuration(()), lambda node: True)


def test_a_joint_election_needs_the_votes_of_both_sets() -> None:
    joint = Configuration((ME, FOURTH, FIFTH), (), (ME, SECOND, THIRD))
    core = replica(joint, up=(SECOND, THIRD, FOURTH, FIFTH))
    campaign(core)

    core.step(vote(FOURTH, 1), 100)
    core.step(vote(FIFTH, 1), 100)
    assert core.role is Role.CANDIDATE

    core.step(vote(THIRD, 1), 100)
    assert core.is_leader


# --- hard state -------------------------------------------------------------------------


def test_a_vote_is_durable_before_it_is_sent() -> None:
    output = replica().step(vote_request(SECOND, 1), 0)

    assert output.persist == HardState(Term(1), SECOND)
    assert output.send_now == ()
    assert len(output.send_after_persist) == 1


def test_a_vote_in_a_term_that_is_known_already_is_durable_before_it_is_sent() -> None:
    output = replica(term=4).step(vote_request(SECOND, 4), 0)

    assert output.persist == HardState(Term(4), SECOND)
    assert output.send_now == ()
    (answer,) = output.send_after_persist
    assert isinstance(answer, VoteResponse)
    assert answer.granted


def test_a_campaign_is_durable_before_it_is_announced() -> None:
    output = campaign(replica())

    assert output.persist == HardState(Term(1), ME)
    assert output.send_now == ()
    assert len(output.send_after_persist) == 2


def test_a_restarted_voter_keeps_to_its_vote() -> None:
    core = replica(term=4, voted_for=SECOND)

    (other,) = core.step(vote_request(THIRD, 4), 0).send_now
    (same,) = core.step(vote_request(SECOND, 4), 0).send_now

    assert isinstance(other, VoteResponse)
    assert isinstance(same, VoteResponse)
    assert (other.granted, same.granted) == (False, True)


def test_a_newcomer_follows_but_does_not_vote() -> None:
    core = replica(is_newcomer=True)

    output = core.step(vote_request(SECOND, 1, end_offset=9, last_term=1), 0)

    (answer,) = output.send_after_persist
    assert isinstance(answer, VoteResponse)
    assert not answer.granted
    assert core.deadline_ms is None
    core.step(request(1, 0, [1]), 0)
    assert core.log_end == 1


def test_a_newcomer_votes_once_it_is_durable_beyond_where_it_was_enrolled() -> None:
    core = replica(is_newcomer=True)
    core.step(request(1, 0, [1, 1, 1], enrolment=2), 0)
    output = core.step(Synced(Offset(2), Term(1)), 0)
    assert output.persist is None

    output = core.step(Synced(Offset(3), Term(1)), 0)

    # Durable before the leader may count it.
    assert output.persist == HardState(Term(1), None, is_newcomer=False)
    assert output.send_now == ()
    (answer,) = output.send_after_persist
    assert isinstance(answer, AppendResponse)
    assert answer.synced_end == 3


# --- messages out of their time ---------------------------------------------------------


def test_votes_of_an_earlier_term_do_not_count() -> None:
    core = replica(term=3)
    campaign(core)

    core.step(vote(SECOND, 3), 100)
    assert core.role is Role.CANDIDATE

    core.step(vote(SECOND, 4), 100)
    assert core.is_leader


def test_a_granted_pre_vote_is_not_a_vote() -> None:
    core = replica()
    campaign(core)

    core.step(vote(THIRD, 1, pre_vote=True), 100)
    core.step(vote(THIRD, 2, pre_vote=True), 100)

    assert core.role is Role.CANDIDATE


@pytest.mark.parametrize("how", [PeerDown(SECOND), LeaderDisclaimed(SECOND, Term(1))])
def test_who_asked_before_it_was_known_here_that_the_leader_is_gone_is_answered_anew(
    how: PeerDown | LeaderDisclaimed,
) -> None:
    """It would ask again only after an election timeout."""
    core = replica()
    core.step(request(1, 0, [1]), 0)
    asked = vote_request(THIRD, 2, last_term=1, end_offset=1, pre_vote=True)
    (refused,) = core.step(asked, 1000).send_now
    assert isinstance(refused, VoteResponse)
    assert not refused.granted

    output = core.step(how, 1020)

    (answer,) = output.send_now
    assert isinstance(answer, VoteResponse)
    assert (answer.target, answer.term, answer.pre_vote) == (THIRD, 2, True)
    assert answer.granted
    assert core.term == 1


def test_who_asked_long_before_the_leader_was_gone_is_not_answered_anew() -> None:
    core = replica()
    core.step(request(1, 0, [1]), 0)
    core.step(vote_request(THIRD, 2, last_term=1, end_offset=1, pre_vote=True), 1000)

    assert core.step(PeerDown(SECOND), 1150).send_now == ()


def test_votes_of_others_than_voters_do_not_count() -> None:
    core = replica(Configuration((ME, SECOND, THIRD), (FOURTH,)))
    campaign(core)

    core.step(vote(FOURTH, 1), 100)
    core.step(vote(FIFTH, 1), 100)

    assert core.role is Role.CANDIDATE


def test_an_answer_to_an_earlier_term_commits_nothing() -> None:
    core = replica(terms=[1, 2, 2], term=2)
    lead(core)

    enrolment = core.progress(SECOND).enrolment

    core.step(accepted(SECOND, 2, 4, enrolment=enrolment), 100)

    assert core.term == 3
    assert core.commit_offset == 0
    core.step(accepted(SECOND, 3, 4, enrolment=enrolment), 100)
    assert core.commit_offset == 4


def test_a_deposed_leader_hears_the_newer_term() -> None:
    core = replica(term=7)

    output = core.step(request(6, 0, [6]), 0)

    (answer,) = output.send_now
    assert isinstance(answer, AppendResponse)
    assert (answer.term, answer.accepted) == (7, False)
    assert (core.log_end, core.leader) == (0, None)


@pytest.mark.parametrize(
    "change", [{"group": GroupId(6)}, {"target": FOURTH}, {"source": ME}], ids=str
)
def test_messages_for_others_are_ignored(change: dict[str, int]) -> None:
    core = replica()
    fields = {"group": GROUP, "source": SECOND, "target": ME, **change}
    message = VoteRequest(
        group=GroupId(fields["group"]),
        source=NodeId(fields["source"]),
        target=NodeId(fields["target"]),
        term=Term(9),
        last_term=Term(9),
        end_offset=Offset(9),
    )

    assert core.step(Received(message), 0) == Output()
    assert core.term == 0


def test_a_handover_of_an_earlier_term_is_ignored() -> None:
    core = replica(term=3)
    core.step(request(3, 0), 0)

    late = TimeoutNow(group=GROUP, source=SECOND, target=ME, term=Term(2))
    assert core.step(Received(late), 0) == Output()

    core.step(Received(TimeoutNow(group=GROUP, source=SECOND, target=ME, term=Term(3))), 0)
    assert core.role is Role.CANDIDATE


def test_two_leaders_in_one_term_stop_us() -> None:
    core = replica()
    core.step(request(1, 0), 0)

    with pytest.raises(AssertionError):
        core.step(request(1, 0, source=THIRD), 0)


# --- following --------------------------------------------------------------------------


def test_only_what_the_leader_has_is_acknowledged() -> None:
    core = replica(terms=[1, 1, 1, 1])

    (answer,) = core.step(request(2, 2, prev_term=1), 0).send_after_persist

    assert isinstance(answer, AppendResponse)
    assert (answer.accepted, answer.synced_end, answer.received_end) == (True, 2, 2)


def test_a_new_batch_is_acknowledged_when_it_is_synced() -> None:
    core = replica()

    assert core.step(request(1, 0), 0).send_after_persist
    output = core.step(request(1, 0, [1]), 0)
    assert output.append_from == 0
    assert output.send_now == ()

    (answer,) = core.step(Synced(Offset(1), Term(1)), 0).send_now
    assert isinstance(answer, AppendResponse)
    assert answer.synced_end == 1


def test_a_sync_that_says_nothing_new_is_not_acknowledged_again() -> None:
    core = replica()
    core.step(request(1, 0, [1]), 0)
    core.step(Synced(Offset(1), Term(1)), 0)

    assert core.step(Synced(Offset(1), Term(1)), 0) == Output()


def test_a_sync_counts_also_where_batches_of_a_later_term_follow() -> None:
    core = replica()
    core.step(request(1, 0, [1, 1]), 0)
    core.step(request(2, 2, [2], prev_term=1), 0)

    core.step(Synced(Offset(2), Term(1)), 0)

    assert core.synced_end == 2


def test_a_truncation_makes_nothing_durable() -> None:
    core = replica()
    core.step(request(1, 0, [1, 1, 1]), 0)
    core.step(Synced(Offset(1), Term(1)), 0)

    output = core.step(request(2, 2, [2], prev_term=1, source=THIRD), 0)

    assert output.truncate_to == 2
    assert core.synced_end == 1


def test_batches_that_are_there_already_are_skipped() -> None:
    core = replica(terms=[1, 1])

    output = core.step(request(2, 0, [1, 1, 2]), 0)

    assert output.truncate_to is None
    assert output.append_from == 2


def test_a_conflict_is_cut_at_the_first_batch_that_differs() -> None:
    core = replica(terms=[1, 2, 2])

    output = core.step(request(3, 0, [1, 3, 3]), 0)

    assert (output.truncate_to, output.append_from) == (1, 1)
    assert core.term_history.rows == ((1, 0), (3, 1))
    assert core.synced_end == 1


def test_nothing_committed_is_ever_cut() -> None:
    core = replica(terms=[1, 1], commit_offset=2)

    core.step(request(2, 0, [1, 1]), 0)

    assert core.log_end == 2


def test_a_commit_offset_counts_for_batches_too_that_were_sent_before_and_come_after() -> None:
    """On the other lane, which was slower.  The leader has told it, and does not tell it again."""
    core = replica(terms=[1], commit_offset=1)
    core.step(request(1, 1, prev_term=1, commit_offset=2), 0)

    output = core.step(request(1, 1, [1], prev_term=1, commit_offset=1), 0)

    assert output.commit_offset == 2


def test_a_commit_offset_counts_as_far_as_the_logs_agree() -> None:
    core = replica(terms=[1, 1, 1])

    output = core.step(request(2, 2, prev_term=1, commit_offset=9), 0)

    assert output.commit_offset == 2


def test_a_leader_that_was_heard_but_is_not_known_to_be_up_gets_an_election_timeout() -> None:
    core = replica(up=(THIRD,))

    core.step(request(1, 0), 0)
    assert core.deadline_ms == 150

    core.step(PeerUp(SECOND), 10)
    assert core.deadline_ms is None


# --- leading ----------------------------------------------------------------------------


def test_a_tick_that_comes_early_changes_nothing() -> None:
    core = replica(up=(THIRD,))
    core.step(request(1, 0), 0)
    deadline_ms = core.deadline_ms
    assert deadline_ms is not None

    assert core.step(Tick(), deadline_ms - 1) == Output()
    assert core.role is Role.FOLLOWER
    assert core.deadline_ms == deadline_ms


def test_who_has_no_room_to_begin_a_term_asks_nobody_for_it_and_looks_again_soon() -> None:
    core = replica()
    due_ms = core.deadline_ms
    assert due_ms is not None

    assert core.step(Tick(has_room=False), due_ms) == Output()
    assert (core.role, core.term) == (Role.FOLLOWER, 0)
    again_ms = core.deadline_ms
    assert again_ms is not None
    assert due_ms < again_ms <= due_ms + RaftOptions().election_timeout_ms_max

    core.step(Tick(), again_ms)
    assert core.role is Role.PRE_CANDIDATE


def test_a_candidate_that_has_no_room_left_gives_up_when_its_time_is_over() -> None:
    core = replica()
    campaign(core)
    assert core.deadline_ms is not None

    assert core.step(Tick(has_room=False), core.deadline_ms) == Output()

    assert (core.role, core.term) == (Role.FOLLOWER, 1)
    core.step(vote(SECOND, 1), core.deadline_ms)
    assert core.role is Role.FOLLOWER


def test_a_vote_is_not_refused_for_a_leader_that_is_not_known_to_be_up() -> None:
    core = replica(up=(THIRD,))
    core.step(request(1, 0), 0)
    assert core.leader == SECOND

    core.step(vote_request(THIRD, 2), 0)

    assert core.hard_state == HardState(Term(2), THIRD)


def test_a_leader_does_not_vote_for_others_unless_it_asked_them_to_take_over() -> None:
    core = replica()
    lead(core)

    core.step(vote_request(SECOND, 9, last_term=9, end_offset=9), 100)
    assert core.is_leader

    output = core.step(vote_request(SECOND, 9, last_term=9, end_offset=9, transfer=True), 100)
    assert output.lost_leadership
    assert core.role is Role.FOLLOWER


@pytest.mark.parametrize("target", [THIRD, FOURTH, FIFTH, ME])
def test_leadership_is_handed_to_nobody_who_cannot_take_it(target: NodeId) -> None:
    """Who is down, who is a learner, who is no member, and who has it already."""
    core = replica(Configuration((ME, SECOND, THIRD), (FOURTH,)), up=(SECOND, FOURTH, FIFTH))
    lead(core)
    for follower in (SECOND, FOURTH):
        core.step(accepted(follower, 1, 1), 100)
    assert core.is_ready

    output = core.step(TransferLeadership(target), 100)

    assert output == Output()
    assert not core.is_transferring


def test_leadership_is_handed_over_only_when_the_successor_was_told() -> None:
    """Else nobody is about to lead, and who has asked is not kept waiting."""
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    append(core, 1)
    core.step(TransferLeadership(SECOND), 100)
    assert not core.step(vote_request(THIRD, 2, transfer=True), 100).handed_over

    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    core.step(TransferLeadership(SECOND), 100)
    assert core.step(vote_request(SECOND, 2, transfer=True), 100).handed_over


def test_a_successor_is_waited_for_until_the_time_for_it_is_over() -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    append(core, 1)
    over_ms = 100 + RaftOptions().transfer_timeout_ms
    core.step(TransferLeadership(SECOND), 100)

    core.step(Tick(), over_ms - 1)
    assert core.is_transferring
    core.step(Tick(), over_ms)
    assert not core.is_transferring


@pytest.mark.parametrize(("down", "waits"), [(SECOND, False), (THIRD, True)])
def test_a_successor_that_goes_down_is_waited_for_no_longer(down: NodeId, waits: bool) -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    append(core, 1)
    core.step(TransferLeadership(SECOND), 100)

    core.step(PeerDown(down), 100)

    assert core.is_transferring is waits


def test_leadership_can_be_handed_over_again_if_the_successor_did_not_take_it() -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    over_ms = 100 + RaftOptions().transfer_timeout_ms
    core.step(TransferLeadership(SECOND), 100)
    core.step(Tick(), over_ms)

    output = core.step(TransferLeadership(SECOND), over_ms)

    assert [m.target for m in output.send_now if isinstance(m, TimeoutNow)] == [SECOND]


@pytest.mark.parametrize(("node", "term", "leader"), [(SECOND, 2, None), (THIRD, 2, 2), (2, 1, 2)])
def test_only_the_leader_of_this_term_disclaims_it(
    node: int, term: int, leader: int | None
) -> None:
    core = replica()
    core.step(request(2, 0), 0)

    core.step(LeaderDisclaimed(NodeId(node), Term(term)), 0)

    assert core.leader == leader


def test_who_resigns_without_leading_goes_on_following() -> None:
    core = replica()
    core.step(request(1, 0, [1]), 0)

    core.step(Resign(may_campaign=False), 0)

    assert core.leader == SECOND
    assert core.deadline_ms is None


def test_an_answer_of_a_node_that_is_no_member_any_more_is_ignored() -> None:
    core = replica()
    lead(core)

    assert core.step(accepted(FOURTH, 1, 1), 100) == Output()
    assert core.step(refused(FOURTH, 1, 0, 0), 100) == Output()


def test_a_stale_refusal_does_not_move_a_follower_back() -> None:
    core = replica(terms=[1, 1, 1])
    lead(core)
    core.step(accepted(SECOND, core.term, 3), 100)

    output = core.step(refused(SECOND, core.term, 1, 2), 100)

    assert output == Output()
    assert core.next_offset(SECOND) == 3


def test_a_window_is_counted_in_bytes_and_opens_with_what_is_acknowledged() -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 0), 100)
    append(core, 2)
    window = core.window_bytes_left(SECOND)

    core.make_append(SECOND, Offset(1), 1000, 100)
    core.make_append(SECOND, Offset(3), window, 100)
    assert core.window_bytes_left(SECOND) == 0
    assert core.sendable() == []
    append(core, 1)
    assert core.sendable() == []

    core.step(accepted(SECOND, 1, 3), 100)
    assert core.window_bytes_left(SECOND) == window
    assert core.sendable() == [SECOND]


def test_what_is_still_on_its_way_is_asked_for_after_a_silence() -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    append(core, 2)
    core.make_append(SECOND, Offset(2), 100, 100)
    core.make_append(SECOND, Offset(3), 100, 100)
    silent_ms = 100 + RaftOptions().append_retry_ms

    core.step(accepted(SECOND, 1, 2), 100)
    core.step(PeerDown(THIRD), 100)

    assert core.deadline_ms == silent_ms
    asked = [m for m in core.step(Tick(), silent_ms).send_now if isinstance(m, AppendRequest)]
    assert [(m.target, m.start_offset, m.end_offset) for m in asked] == [(SECOND, 2, 2)]


def test_a_slow_disk_does_not_get_a_new_window_with_each_silence() -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 0), 100)
    request_ = core.make_append(SECOND, Offset(1), 500, 100)
    left = core.window_bytes_left(SECOND)
    core.step(Tick(), 2100)

    received = AppendResponse(
        group=GROUP,
        source=SECOND,
        target=ME,
        term=Term(1),
        round=0,
        enrolment=request_.enrolment,
        accepted=True,
        synced_end=Offset(0),
        received_end=request_.end_offset,
    )
    core.step(Received(received), 2100)

    assert core.next_offset(SECOND) == 1
    assert core.window_bytes_left(SECOND) == left


def test_a_follower_that_needs_trimmed_batches_is_pointed_out() -> None:
    core = replica(terms=[1] * 10, commit_offset=8)
    core.trim(Offset(5))
    lead(core)

    for _ in range(2):
        output = core.step(refused(SECOND, core.term, 0, 2, enrolment=10), 100)
        assert output.snapshot_wanted == SECOND
        assert core.next_offset(SECOND) == 5
        assert core.sendable() == []

    output = core.step(accepted(SECOND, core.term, 5, enrolment=10), 100)
    assert output.snapshot_wanted is None
    assert core.sendable() == [SECOND]


def test_a_follower_is_never_probed_below_the_start_of_the_log() -> None:
    core = replica(terms=[1] * 10, commit_offset=8)
    lead(core)
    core.step(accepted(SECOND, core.term, 3, enrolment=10), 100)
    core.make_append(SECOND, Offset(8), 100, 100)
    core.trim(Offset(5))

    core.step(PeerConnected(SECOND), 100)

    assert core.next_offset(SECOND) == 5


def snapshot(
    term: int, start: int, last_term: int = 3, source: NodeId = SECOND
) -> SnapshotReceived:
    return SnapshotReceived(
        source=source,
        term=Term(term),
        enrolment=Offset(2),
        start_offset=Offset(start),
        term_rows=((Term(1), Offset(0)), (Term(last_term), Offset(3))),
        configuration=Configuration((SECOND, THIRD), (ME,)),
    )


def test_a_follower_whose_answer_was_overtaken_by_a_trim_is_asked_again() -> None:
    core = replica(terms=[1, 1, 1])
    lead(core)
    core.step(accepted(SECOND, core.term, 4, enrolment=3), 100)
    core.step(accepted(THIRD, core.term, 0, enrolment=3), 100)
    core.trim(Offset(2))

    core.step(accepted(THIRD, core.term, 1, enrolment=3), 100)

    assert core.deadline_ms == 100
    asked = [m for m in core.step(Tick(), 100).send_now if isinstance(m, AppendRequest)]
    assert [(m.target, m.start_offset) for m in asked] == [(THIRD, 2)]


def test_a_snapshot_takes_the_place_of_the_log_and_is_acknowledged_when_it_is_installed() -> None:
    core = replica(terms=[1, 1, 2], commit_offset=1)

    output = core.step(snapshot(4, 9), 0)

    assert output.install_snapshot
    assert output.persist == HardState(Term(4), None)
    assert output.send_now == ()
    (answer,) = output.send_after_persist
    assert isinstance(answer, AppendResponse)
    assert (answer.accepted, answer.synced_end, answer.enrolment) == (True, 9, 2)
    assert (core.log_start, core.log_end, core.commit_offset, core.synced_end) == (9, 9, 9, 9)
    assert core.last_term == 3
    assert core.configuration.learners == (ME,)
    core.step(request(4, 9, [4], prev_term=3, enrolment=2), 0)
    assert core.log_end == 10


def test_a_snapshot_is_acknowledged_after_it_even_if_nothing_is_persisted() -> None:
    core = replica(terms=[1], term=4)

    output = core.step(snapshot(4, 9), 0)

    assert output.persist is None
    assert output.install_snapshot
    assert output.send_now == ()
    assert len(output.send_after_persist) == 1


def test_a_snapshot_takes_the_place_also_of_a_longer_log_that_is_not_the_leaders() -> None:
    core = replica(terms=[1, 1, 2, 2, 2, 2], commit_offset=2)

    output = core.step(snapshot(4, 5), 0)

    assert output.install_snapshot
    assert (core.log_start, core.log_end, core.commit_offset) == (5, 5, 5)
    assert core.last_term == 3


@pytest.mark.parametrize(
    "late",
    [snapshot(3, 9), snapshot(4, 5), snapshot(4, 7, last_term=4)],
    ids=["of an earlier leader", "committed here", "here already"],
)
def test_a_snapshot_that_comes_late_changes_nothing(late: SnapshotReceived) -> None:
    core = replica(terms=[1, 1, 1, 4, 4, 4, 4, 4], commit_offset=6)

    output = core.step(late, 0)

    assert not output.install_snapshot
    assert (core.log_start, core.log_end, core.commit_offset) == (0, 8, 6)


def test_reads_fail_when_leadership_is_lost() -> None:
    core = replica()
    lead(core)
    core.step(ReadRequested(1), 100)

    output = core.step(Resign(may_campaign=True), 100)

    assert output.lost_leadership
    assert output.reads_failed == (1,)
    assert core.step(ReadRequested(2), 100).reads_failed == (2,)


def test_a_read_needs_a_round_begun_after_it() -> None:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    assert core.is_ready
    core.step(ReadRequested(1), 100)
    assert core.step(accepted(SECOND, 1, 1, round_=1), 100).reads_confirmed == ((1, 1),)

    core.step(ReadRequested(2), 100)
    assert core.step(accepted(SECOND, 1, 1, round_=1), 100).reads_confirmed == ()
    assert core.step(accepted(THIRD, 1, 1, round_=2), 100).reads_confirmed == ((2, 1),)


def test_a_node_that_cannot_write_never_campaigns_again() -> None:
    core = replica()
    lead(core)

    core.step(Resign(may_campaign=False), 100)

    assert core.deadline_ms is None


# --- configurations ---------------------------------------------------------------------


def ready_leader() -> RaftCore:
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 1), 100)
    assert core.is_ready
    return core


def test_a_configuration_is_in_force_when_it_is_appended() -> None:
    core = ready_leader()
    append(core, 1)
    joint = Configuration((ME, FOURTH, FIFTH), (), (ME, SECOND, THIRD))

    output = core.apply_configuration(Offset(1), joint, 100)

    assert [message.target for message in output.send_now] == [FOURTH, FIFTH]
    core.step(accepted(SECOND, 1, 2), 100)
    assert core.commit_offset == 1
    core.step(PeerUp(FOURTH), 100)
    core.step(accepted(FOURTH, 1, 2, enrolment=1), 100)
    assert core.commit_offset == 2


def change(core: RaftCore, configuration: Configuration) -> Output:
    """Append ``configuration``, as the driver does."""
    offset = core.log_end
    append(core, 1)
    return core.apply_configuration(offset, configuration, 100)


TO_OTHERS = Configuration((ME, FOURTH, FIFTH), (), (ME, SECOND, THIRD))


def quorum_lost(core: RaftCore) -> Output:
    """Time passes without an answer of the new voters; the old ones go on answering."""
    for voter in (FOURTH, FIFTH):
        core.step(PeerDown(voter), 100)
    return core.step(Tick(), 100 + RaftOptions().check_quorum_ms)


def test_a_change_whose_new_voters_are_lost_is_taken_back_by_the_leader_that_began_it() -> None:
    core = ready_leader()
    change(core, TO_OTHERS)
    core.step(accepted(SECOND, 1, 2), 100)

    output = quorum_lost(core)

    assert core.is_leader
    assert output.taken_back == Configuration((ME, SECOND, THIRD), (FOURTH, FIFTH))
    append(core, 1, now_ms=2000)
    core.apply_configuration(Offset(2), output.taken_back, 2000)
    core.step(accepted(SECOND, 1, 3), 2000)
    assert core.commit_offset == 3
    assert core.configuration_is_committed
    assert core.configuration_due is None


def test_a_read_that_waits_for_voters_of_a_change_taken_back_is_confirmed_without_them() -> None:
    core = ready_leader()
    change(core, TO_OTHERS)
    core.step(accepted(SECOND, 1, 2), 100)
    core.step(ReadRequested(1), 100)
    core.step(accepted(SECOND, 1, 2, round_=1), 100)
    taken_back = quorum_lost(core).taken_back
    assert taken_back is not None
    append(core, 1, now_ms=2000)

    output = core.apply_configuration(Offset(2), taken_back, 2000)

    assert output.reads_confirmed == ((1, 1),)
    core.step(ReadRequested(2), 2000)
    assert core.step(accepted(SECOND, 1, 3, round_=2), 2000).reads_confirmed == ((2, 1),)


def test_a_read_that_waits_for_an_outgoing_voter_is_confirmed_when_that_votes_no_more() -> None:
    core = ready_leader()
    change(core, TO_OTHERS)
    core.step(PeerUp(FOURTH), 100)
    core.step(accepted(FOURTH, 1, 2, enrolment=1), 100)
    core.step(ReadRequested(1), 100)
    core.step(accepted(FOURTH, 1, 2, round_=1, enrolment=1), 100)
    core.step(accepted(SECOND, 1, 2), 100)  # What it said before it was asked for the read.
    due = core.configuration_due
    assert due is not None

    output = change(core, due)

    assert output.reads_confirmed == ((1, 1),)


def test_a_change_that_is_committed_is_not_taken_back() -> None:
    core = ready_leader()
    change(core, TO_OTHERS)
    core.step(accepted(SECOND, 1, 2), 100)
    core.step(PeerUp(FOURTH), 100)
    core.step(accepted(FOURTH, 1, 2, enrolment=1), 100)
    assert core.commit_offset == 2

    output = quorum_lost(core)

    assert output.taken_back is None
    assert output.lost_leadership


def test_a_change_that_another_leader_began_is_not_taken_back() -> None:
    core = replica(term=1, terms=[1, 1], up=(SECOND, THIRD, FOURTH))
    core.apply_configuration(Offset(1), TO_OTHERS, 0)
    campaign(core)
    for voter in (SECOND, FOURTH):
        core.step(vote(voter, 2), 100)
    append(core, 1)
    core.step(accepted(SECOND, 2, 3, enrolment=2), 100)
    assert core.is_leader

    output = quorum_lost(core)

    assert output.taken_back is None
    assert output.lost_leadership


def test_a_change_is_not_taken_back_while_its_new_voters_are_there() -> None:
    core = ready_leader()
    change(core, TO_OTHERS)
    core.step(PeerDown(SECOND), 100)
    core.step(PeerDown(THIRD), 100)

    output = core.step(Tick(), 100 + RaftOptions().check_quorum_ms)

    assert output.taken_back is None
    assert output.lost_leadership


def test_one_configuration_change_at_a_time() -> None:
    core = ready_leader()
    append(core, 2)
    core.apply_configuration(Offset(1), Configuration((ME,), (), (ME, SECOND, THIRD)), 100)

    with pytest.raises(AssertionError):
        core.apply_configuration(Offset(2), Configuration((ME,)), 100)


def test_no_other_change_is_begun_before_joint_consensus_is_left() -> None:
    core = ready_leader()
    change(core, Configuration((SECOND, THIRD), (), (ME, SECOND, THIRD)))
    core.step(accepted(SECOND, 1, 2), 100)
    core.step(accepted(THIRD, 1, 2), 100)
    assert core.configuration_is_committed

    with pytest.raises(ChangeUnderWayError):
        core.first_step_to(Configuration((ME, SECOND, THIRD)))


def test_only_what_cannot_be_undone_any_more_is_forgotten() -> None:
    earlier, later = Configuration((ME,)), Configuration((SECOND,))
    history = ConfigurationHistory(THREE, [(Offset(3), earlier), (Offset(5), later)])

    history.forget_below(Offset(5))
    history.truncate(Offset(5))
    assert history.current == earlier

    history = ConfigurationHistory(THREE, [(Offset(3), earlier)])
    history.forget_below(Offset(3))
    history.truncate(Offset(3))
    assert history.current == THREE


def test_the_voters_of_a_group_never_change_in_one_step() -> None:
    core = ready_leader()
    append(core, 1)

    with pytest.raises(AssertionError):
        core.apply_configuration(Offset(1), Configuration((ME, SECOND)), 100)


def test_a_truncated_configuration_is_undone() -> None:
    core = replica(terms=[1])
    core.step(request(1, 1, [1], prev_term=1), 0)
    core.apply_configuration(Offset(1), Configuration((SECOND,)), 0)
    assert core.configuration.voters == (SECOND,)

    core.step(request(2, 1, [2], prev_term=1, source=THIRD), 0)

    assert core.configuration == THREE


def test_a_leader_that_a_committed_change_leaves_out_appoints_a_successor_and_steps_down() -> None:
    core = ready_leader()
    change(core, Configuration((SECOND, THIRD), (), (ME, SECOND, THIRD)))
    core.step(accepted(SECOND, 1, 2), 100)
    core.step(accepted(THIRD, 1, 2), 100)
    assert core.configuration_due == Configuration((SECOND, THIRD))
    append(core, 1)
    change(core, Configuration((SECOND, THIRD)))
    core.step(PeerUp(THIRD), 100)
    core.step(accepted(SECOND, 1, 4), 100)
    assert core.is_leader
    core.step(accepted(THIRD, 1, 3), 100)
    assert core.is_leader, "what is committed by now does not leave it out"

    output = core.step(accepted(THIRD, 1, 4), 100)

    assert (output.commit_offset, output.lost_leadership, output.left_out) == (4, True, True)
    assert [m.target for m in output.send_now if isinstance(m, TimeoutNow)] == [SECOND]
    assert core.deadline_ms is None


def test_a_leader_wants_only_what_can_be_a_configuration() -> None:
    core = ready_leader()

    for voters, learners in (((), ()), ((ME, ME), ()), ((ME, SECOND), (SECOND,))):
        with pytest.raises(InvalidRequestError):
            core.first_step_to(Configuration(voters, learners))


def test_a_configuration_has_a_bounded_number_of_voters_and_of_learners() -> None:
    nodes = tuple(map(NodeId, range(1, REPLICAS_MAX + LEARNERS_MAX + 2)))
    voters, learners = nodes[:REPLICAS_MAX], nodes[REPLICAS_MAX:-1]
    check_wanted(Configuration(voters, learners))

    with pytest.raises(InvalidRequestError, match=f"{REPLICAS_MAX + 1} voters"):
        check_wanted(Configuration((*voters, nodes[-1]), learners))
    with pytest.raises(InvalidRequestError, match=f"{LEARNERS_MAX + 1} learners"):
        check_wanted(Configuration(voters, (*learners, nodes[-1])))


def test_a_node_becomes_a_voter_by_way_of_a_caught_up_learner() -> None:
    core = ready_leader()
    core.step(PeerUp(FOURTH), 100)
    with_fourth = Configuration((ME, SECOND, FOURTH))
    with pytest.raises(InvalidRequestError):
        core.first_step_to(with_fourth)
    learning = Configuration((ME, SECOND, THIRD), (FOURTH,))
    assert core.first_step_to(learning) == learning
    change(core, learning)
    with pytest.raises(ChangeUnderWayError):
        core.first_step_to(with_fourth)
    core.step(accepted(SECOND, 1, 2), 100)
    core.step(accepted(THIRD, 1, 2), 100)
    with pytest.raises(LearnerBehindError):
        core.first_step_to(with_fourth)

    core.step(accepted(FOURTH, 1, 2, enrolment=1), 100)

    assert core.is_caught_up(FOURTH)
    assert core.first_step_to(with_fourth) == Configuration(
        (ME, SECOND, FOURTH), (), (ME, SECOND, THIRD)
    )


def test_a_learner_has_not_caught_up_before_it_has_what_made_it_one() -> None:
    core = ready_leader()
    core.step(PeerUp(FOURTH), 100)
    change(core, Configuration((ME, SECOND, THIRD), (FOURTH,)))
    core.step(accepted(SECOND, 1, 2), 100)
    core.step(accepted(FOURTH, 1, 1, enrolment=1), 100)

    # All that it lacks is on its way; but it is still a newcomer, perhaps.
    core.make_append(FOURTH, Offset(2), 100, 100)

    assert not core.is_caught_up(FOURTH)
    core.step(accepted(FOURTH, 1, 2, enrolment=1), 100)
    assert core.is_caught_up(FOURTH)


def test_a_learner_has_caught_up_when_all_that_it_lacks_is_little_and_on_its_way() -> None:
    core = ready_leader()
    core.step(PeerUp(FOURTH), 100)
    change(core, Configuration((ME, SECOND, THIRD), (FOURTH,)))
    core.step(accepted(FOURTH, 1, 2, enrolment=1), 100)
    append(core, 2)
    core.step(accepted(SECOND, 1, 4), 100)
    assert core.commit_offset == 4

    core.make_append(FOURTH, Offset(3), LEARNER_LAG_BYTES_MAX - 100, 100)
    assert not core.is_caught_up(FOURTH), "not all of it is on its way"
    core.make_append(FOURTH, Offset(4), 100, 100)
    assert core.is_caught_up(FOURTH)
    append(core, 1)
    core.make_append(FOURTH, Offset(5), 1, 100)
    assert not core.is_caught_up(FOURTH), "it lacks too much"


def test_a_new_leader_begins_no_change_before_it_knows_what_is_committed() -> None:
    """Its log may lack a change that was: two majorities of which neither knows the other
    (the bug of single-server changes, Ongaro 2015)."""
    core = replica()
    lead(core)
    core.step(accepted(SECOND, 1, 0), 100)
    learning = Configuration((ME, SECOND, THIRD), (FOURTH,))
    with pytest.raises(UnavailableError, match="taking or handing over"):
        core.first_step_to(learning)

    core.step(accepted(SECOND, 1, 1), 100)

    assert core.first_step_to(learning) == learning


def test_a_leader_begins_no_change_while_it_hands_over() -> None:
    core = ready_leader()
    append(core, 1)
    core.step(TransferLeadership(SECOND), 100)

    with pytest.raises(UnavailableError, match="taking or handing over"):
        core.first_step_to(Configuration((ME, SECOND, THIRD), (FOURTH,)))


def test_no_change_is_begun_whose_voters_do_not_follow() -> None:
    core = ready_leader()
    core.step(PeerDown(THIRD), 100)

    with pytest.raises(UnavailableError):
        core.first_step_to(Configuration((ME, THIRD)))


def test_what_a_replica_said_before_it_was_removed_does_not_count_for_its_successor() -> None:
    core = ready_leader()
    core.step(PeerUp(FOURTH), 100)
    for configuration in (
        Configuration((ME, SECOND, THIRD), (FOURTH,)),
        THREE,
        Configuration((ME, SECOND, THIRD), (FOURTH,)),
    ):
        change(core, configuration)
        core.step(accepted(SECOND, 1, core.log_end), 100)

    core.step(accepted(FOURTH, 1, 4, enrolment=1), 100)

    assert core.progress(FOURTH).match == 0
    assert not core.is_caught_up(FOURTH)


def test_a_member_that_was_left_out_is_told_so_for_a_while() -> None:
    core = ready_leader()
    core.step(PeerUp(FOURTH), 100)
    change(core, Configuration((ME, SECOND, THIRD), (FOURTH,)))
    for follower, enrolment in ((SECOND, 0), (FOURTH, 1)):
        core.step(accepted(follower, 1, 2, enrolment=enrolment), 100)

    change(core, THREE)

    assert FOURTH in core.sendable()
    core.step(Tick(), 100 + RaftOptions().farewell_ms)
    assert FOURTH not in core.sendable()


def test_a_voter_left_out_by_a_change_that_is_not_committed_still_campaigns() -> None:
    core = replica(terms=[1])
    core.step(request(1, 1, [1], prev_term=1), 0)
    core.apply_configuration(Offset(1), Configuration((SECOND,)), 0)

    core.step(Received(TimeoutNow(group=GROUP, source=SECOND, target=ME, term=Term(1))), 0)

    assert core.role is Role.CANDIDATE


def test_learners_do_not_campaign_but_vote_when_they_are_asked() -> None:
    # A candidate asks only those whom it counts: it knows of a promotion that we do not.
    core = replica(Configuration((SECOND, THIRD), (ME,)))

    assert core.deadline_ms is None
    (answer,) = core.step(vote_request(SECOND, 1), 0).send_after_persist
    assert isinstance(answer, VoteResponse)
    assert answer.granted


@pytest.mark.parametrize(
    "options",
    [
        {"election_timeout_ms_min": 0},
        {"election_timeout_ms_min": 200, "election_timeout_ms_max": 100},
        {"window_bytes_max": 0},
        {"check_quorum_ms": -1},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        RaftOptions(**options)
