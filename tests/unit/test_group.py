"""What a group promises to those who propose, read and follow, and to its core.

The other voters are played by the tests.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest
import trio
from structlog.testing import capture_logs

from logd.errors import (
    BeyondRepairError,
    CorruptionError,
    LeadershipLostError,
    LogdError,
    NotLeaderError,
    OutOfSequenceError,
    OverloadedError,
    RequestTimeoutError,
    UnavailableError,
    UnexpectedOffsetError,
)
from logd.limits import DISK_PATIENCE_S, KIB, MIB, SEGMENT_HEADER_BYTES
from logd.partition.state import PartitionState
from logd.raft.messages import (
    AppendRequest,
    AppendResponse,
    LeaderDisclaimed,
    PeerConnected,
    PeerDown,
    PeerUp,
    Received,
    TimeoutNow,
    TransferLeadership,
    VoteRequest,
)
from logd.raft.options import RaftOptions
from logd.record.batch import seal_batch, seal_opaque
from logd.record.compacted import make_gap
from logd.record.header import BatchKind, decode_header
from logd.replication import held_news, log_events, proposals
from logd.replication.peer_protocol import (
    PEER_PROTOCOL_VERSION,
    ClusterView,
    PeerHello,
    SnapshotChunk,
)
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.replication.received import check_append
from logd.replication.snapshot import encode_snapshot
from logd.replication.standing import role_name, trouble_of
from logd.storage.file_header import LogIdentity
from logd.storage.hard_state import HardStateFile
from logd.types import DirectoryId, Offset, Term
from tests.sim.files import SimulatedFile, SimulatedFileSystem
from tests.sim.run import run_deterministic
from tests.support.replica import (
    GROUP,
    OURSELVES,
    SECOND,
    THIRD,
    Replica,
    a_while,
    batch_of,
    offset_of,
    open_replica,
    placed,
    play,
    refusal_of,
    until,
)
from tests.unit.test_snapshot import chunks, snapshot

ALONE = (OURSELVES,)
VOTERS = (OURSELVES, SECOND, THIRD)


class Follower:
    """Notes what a watcher is told."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.losses = 0

    def on_commit(self, commit_offset: Offset) -> None:
        self.commits.append(commit_offset)

    def on_leadership_lost(self) -> None:
        self.losses += 1


# --- proposing --------------------------------------------------------------------------


def test_a_proposal_is_acknowledged_when_it_is_committed_and_not_before() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            outcomes = replica.propose()
            await a_while()
            assert outcomes == []
            assert not replica.group.syncer.needs_sync

            replica.acknowledge(replica.group.log.end_offset)

            assert offset_of(outcomes) == 1

    play(story)


def test_a_proposal_is_not_acknowledged_with_the_one_before_it() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            first = replica.propose()
            await a_while()
            second = replica.propose()
            await a_while()

            replica.acknowledge(Offset(2))
            assert offset_of(first) == 1
            assert second == []

            replica.acknowledge(Offset(3))
            assert offset_of(second) == 2

    play(story)


def test_a_duplicate_that_waits_alone_is_answered_when_its_time_is_up() -> None:
    """Its original came from an earlier leader: there is nothing of this one's under way."""

    async def story() -> None:
        async with open_replica() as replica:
            original = seal_batch(values=[b"v"], timestamps_ms=0, producer_id=7, base_sequence=0)
            replica.append([placed(original, Offset(0), Term(1))], term=Term(1))
            await a_while()
            replica.group.post(PeerDown(THIRD))
            await replica.be_elected()
            await a_while()

            retry = replica.propose(b"v", producer_id=7, sequence=0, timeout_s=0.1)
            await trio.sleep(0.05)
            assert retry == []
            await trio.sleep(0.4)

            assert isinstance(refusal_of(retry), RequestTimeoutError)

    play(story)


def test_a_duplicate_gets_its_original_acknowledgement_once_that_is_committed() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            first = replica.propose(producer_id=9)
            await a_while()
            retry = replica.propose(producer_id=9)
            await a_while()
            assert first == retry == []

            await replica.commit()

            assert offset_of(first) == offset_of(retry) == 1
            assert isinstance(first[0], Placed)
            assert isinstance(retry[0], Placed)
            assert (first[0].duplicate, retry[0].duplicate) == (False, True)
            assert retry[0].append_time_ms == first[0].append_time_ms
            assert replica.group.log.end_offset == 2
            assert not replica.group.proposals.has_waiting

    play(story)


def test_a_retry_is_answered_by_a_new_leader_only_once_that_has_committed_something_itself() -> (
    None
):
    """What its predecessor called committed may lie in the memory of a majority only, and this one
    would call it synced."""

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            first = seal_batch(values=[b"value"], timestamps_ms=0, producer_id=9)
            replica.append(
                [placed(first, Offset(0), Term(1))], term=Term(1), commit_offset=Offset(1)
            )
            await until(lambda: group.commit_offset == 1)
            await replica.be_elected()
            retry = replica.propose(producer_id=9)
            await a_while()
            assert retry == []

            await replica.commit()

            assert offset_of(retry) == 0
            assert not group.rests_on_memory(Offset(1))

    play(story)


@pytest.mark.parametrize("elected_before", [True, False], ids=["while it leads", "before it leads"])
def test_append_times_never_go_back_although_the_clock_does(elected_before: bool) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            hour_ms = 3_600_000
            before_ms = replica.env.wall_clock_ms()
            if elected_before:
                await replica.lead()
                replica.env.clock_skew_ms -= hour_ms
            else:
                first = batch_of(Offset(0), Term(1), time_ms=before_ms + hour_ms)
                replica.append([first], term=Term(1), commit_offset=Offset(1))
                await until(lambda: replica.group.commit_offset == 1)
                before_ms += hour_ms
                await replica.lead()

            outcomes = replica.propose()
            await a_while()
            await replica.commit()

            assert isinstance(outcomes[0], Placed)
            assert before_ms <= outcomes[0].append_time_ms < before_ms + hour_ms

    play(story)


def test_a_follower_whose_connection_was_lost_is_asked_again_how_far_it_is() -> None:
    """What was sent over the old connection may have been lost with it."""

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await a_while()
            replica.node.sent.clear()

            view = ClusterView(node=SECOND, directory_id="another-directory", cluster_list="")
            answer = PeerHello(protocol=PEER_PROTOCOL_VERSION, view=view, incarnation=1)
            replica.node.on_link_up(SECOND, "main", answer)

            await a_while()

            (probe,) = (r for r in replica.sent(AppendRequest) if r.target == SECOND)
            assert probe.start_offset <= 1

    play(story)


def test_a_refusal_waits_until_what_it_judged_is_committed() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await a_while()
            refused = replica.propose(expected_offset=0)
            await a_while()
            # Leadership is confirmed, but the data it was judged by is not committed.
            replica.acknowledge(Offset(1))
            await a_while()
            assert refused == []

            await replica.commit()

            assert isinstance(refusal_of(refused), UnexpectedOffsetError)

    play(story)


def test_a_refusal_waits_for_a_round_that_began_after_the_request() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await replica.commit()
            earlier_round = max(
                message.round for message in replica.node.sent if isinstance(message, AppendRequest)
            )
            refused = replica.propose(expected_offset=0)
            await a_while()
            replica.acknowledge(Offset(2), reading_round=earlier_round)
            await a_while()
            assert refused == []

            replica.acknowledge(Offset(2))

            assert isinstance(refusal_of(refused), UnexpectedOffsetError)

    play(story)


def test_a_leader_that_is_deposed_refuses_on_no_ground_of_its_log() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await a_while()
            unexpected = replica.propose(expected_offset=0)
            gap = replica.propose(producer_id=5, sequence=3)
            await a_while()

            replica.depose(Term(5))
            await a_while()

            assert isinstance(refusal_of(unexpected), NotLeaderError)
            assert isinstance(refusal_of(gap), NotLeaderError)

    play(story)


def test_proposals_that_were_placed_may_have_been_applied_when_leadership_is_lost() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            outcomes = replica.propose()
            await a_while()

            replica.depose(Term(5))
            await a_while()

            refusal = refusal_of(outcomes)
            assert isinstance(refusal, LeadershipLostError)
            assert refusal.may_have_applied

    play(story)


def test_proposals_of_one_flush_are_judged_each_behind_the_one_before() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            first = replica.propose(producer_id=9, sequence=0, expected_offset=1)
            second = replica.propose(producer_id=9, sequence=1, expected_offset=2)
            same = replica.propose(producer_id=9, sequence=1, expected_offset=2)
            late = replica.propose(expected_offset=1)
            gap = replica.propose(producer_id=9, sequence=7)
            await a_while()
            await replica.commit()
            await a_while()
            replica.acknowledge(Offset(3))  # The second refusal came in the first one's round.

            assert (offset_of(first), offset_of(second), offset_of(same)) == (1, 2, 2)
            assert isinstance(refusal_of(late), UnexpectedOffsetError)
            assert isinstance(refusal_of(gap), OutOfSequenceError)

    play(story)


def test_who_shared_an_append_with_a_batch_that_met_a_failed_disk_is_told_at_once() -> None:
    async def story() -> None:
        async with open_replica(segment_bytes=MIB) as replica:
            await replica.lead()
            replica.propose(bytes(10 * KIB))
            await a_while()
            await replica.commit()
            under_way = replica.propose()
            replica.fail_disk("allocate")

            fitting, large = replica.propose(), replica.propose(bytes(200 * KIB))
            await a_while()

            assert replica.group.failure is not None
            for outcomes in (under_way, fitting):
                assert isinstance(refusal_of(outcomes), LeadershipLostError)
            assert isinstance(refusal_of(large), NotLeaderError)

    play(story)


def test_a_proposal_whose_time_is_up_is_told_that_it_may_have_been_applied() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            outcomes = replica.propose(timeout_s=0.1)
            await trio.sleep(0.5)

            refusal = refusal_of(outcomes)
            assert isinstance(refusal, RequestTimeoutError)
            assert refusal.may_have_applied
            await replica.commit()
            assert len(outcomes) == 1

    play(story)


def test_a_proposal_that_waits_for_the_disk_to_be_free_does_not_outlive_its_time() -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE, segment_bytes=4 * KIB + 512) as replica:
            await replica.lead()
            replica.slow_down(3.0)
            first = replica.propose(bytes(1024))  # Fills the segment: it is rolled.
            await trio.sleep(0.01)
            second = replica.propose(timeout_s=0.5)
            await trio.sleep(1.0)

            assert first == []
            assert isinstance(refusal_of(second), RequestTimeoutError)
            await until(lambda: replica.group.commit_offset == 2)
            await trio.sleep(10)
            assert replica.group.log.end_offset == 2

    play(story)


def test_proposals_whose_time_is_up_leave_nothing_in_memory_while_the_disk_hangs() -> None:
    """Whoever counts what is held for producers has given it back."""

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            group = replica.group
            outcomes: list[Outcome] = []
            deadline_ms = replica.node.now_ms() + 500
            placed, queued = (
                Proposal(batch, decode_header(batch), outcomes.append, deadline_ms=deadline_ms)
                for batch in (seal_batch(values=[bytes(1024)], timestamps_ms=0) for _ in range(2))
            )
            group.propose(placed)
            await a_while()
            replica.slow_down(60.0)
            group.roller.roll_soon()
            group.propose(queued)
            assert queued in group.proposals.queued

            await trio.sleep(2.0)

            assert [type(outcome) for outcome in outcomes] == [RequestTimeoutError] * 2
            assert group.is_held
            assert not group.proposals.queued
            assert placed.batch == b""

    play(story)


def test_nothing_is_appended_while_leadership_is_handed_over() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.group.post(TransferLeadership(SECOND))
            outcomes = replica.propose()
            await a_while()
            assert replica.group.log.end_offset == 1
            assert [m.target for m in replica.sent(TimeoutNow)] == [SECOND]

            # The successor does not come forward: after a time the old leader goes on.
            await until(lambda: replica.group.log.end_offset == 2)
            await replica.commit()
            assert offset_of(outcomes) == 1

    play(story)


def test_a_successor_is_sent_what_it_lacks_as_soon_as_its_link_has_room() -> None:
    """Nothing else happens in the group that would see to that: it takes no more proposals."""

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.node.full_links.add(SECOND)
            replica.propose()
            await a_while()
            replica.group.post(TransferLeadership(SECOND))
            replica.node.sent.clear()
            replica.node.full_links.clear()

            replica.node.on_link_room(SECOND)
            await trio.sleep(0.001)

            sent = [m for m in replica.sent(AppendRequest) if m.target == SECOND]
            assert [(m.start_offset, m.end_offset) for m in sent] == [(1, 2)]

    play(story)


def test_what_is_sent_once_a_link_has_room_is_asked_about_if_it_is_not_answered_in_time() -> None:
    """Not sooner, for its follower would answer before it has it; and also if nothing else happens
    in the group."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES, SECOND)) as replica:
            await replica.lead()
            replica.node.full_links.add(SECOND)
            replica.propose()
            await trio.sleep(60)
            replica.node.sent.clear()
            replica.node.full_links.clear()

            replica.node.on_link_room(SECOND)
            await trio.sleep(RaftOptions().append_retry_ms / 1000 - 0.1)
            sent = replica.sent(AppendRequest)
            assert [(m.start_offset, m.end_offset) for m in sent] == [(1, 2)]

            await trio.sleep(0.2)
            assert [(m.start_offset, m.end_offset) for m in replica.sent(AppendRequest)[1:]] == [
                (1, 1)
            ]

    play(story)


async def hand_over(replica: Replica) -> Term:
    """The second voter is told to lead, and asks for our vote; the term it campaigns in."""
    replica.group.post(TransferLeadership(SECOND))
    await until(lambda: bool(replica.sent(TimeoutNow)))
    term = Term(replica.group.core.term + 1)
    ask_for_vote(replica, term)
    await until(lambda: replica.group.leadership.awaits_successor)
    return term


def ask_for_vote(replica: Replica, term: Term) -> None:
    """The second voter campaigns in ``term``, because it was told to."""
    request = VoteRequest(
        group=GROUP,
        source=SECOND,
        target=OURSELVES,
        term=term,
        last_term=replica.group.core.last_term,
        end_offset=replica.group.core.log_end,
        pre_vote=False,
        transfer=True,
    )
    replica.group.post(Received(request))


def test_who_asks_during_a_hand_over_is_told_the_successor_once_that_leads() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            follower = Follower()
            replica.group.watch(follower)
            term = await hand_over(replica)
            outcomes = replica.propose()
            await trio.sleep(0.05)
            assert outcomes == []
            assert follower.losses == 0

            replica.append([], term=term, source=SECOND)

            refusal = refusal_of(outcomes)
            assert isinstance(refusal, NotLeaderError)
            assert refusal.leader == SECOND
            assert not refusal.may_have_applied
            assert follower.losses == 1

    play(story)


@pytest.mark.parametrize("campaigns_again", [False, True])
def test_nobody_waits_long_for_a_successor_that_does_not_come_forward(
    campaigns_again: bool,
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            term = await hand_over(replica)
            outcomes = replica.propose()
            if campaigns_again:
                ask_for_vote(replica, Term(term + 1))

            await until(lambda: bool(outcomes))

            assert isinstance(refusal_of(outcomes), NotLeaderError)
            assert isinstance(refusal_of(replica.propose()), NotLeaderError)

    play(story)


def test_a_replica_that_stops_during_a_hand_over_answers_all_who_wait() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            await hand_over(replica)
            outcomes = replica.propose()
            replica.group.fail(OSError(errno.EIO, "simulated failure"))

            assert isinstance(refusal_of(outcomes), NotLeaderError)

    play(story)


def test_proposals_wait_while_the_segment_is_rolled() -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE, segment_bytes=4 * KIB + 512) as replica:
            await replica.lead()
            outcomes = []
            for _ in range(20):
                outcomes.append(replica.propose(bytes(300)))
                await trio.sleep(0.0005)
            await until(lambda: replica.group.commit_offset == 21)

            assert [offset_of(each) for each in outcomes] == list(range(1, 21))
            assert len(replica.group.log.segment_bases) > 5

    play(story)


def test_one_flush_does_not_write_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "BYTES_PER_FLUSH_MAX", 4 * KIB)

    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            writes: list[str] = []
            replica.files.on_operation = lambda operation, path: (
                writes.append(path) if operation == "write" else None
            )
            outcomes = [replica.propose(bytes(1024)) for _ in range(12)]
            await until(lambda: replica.group.commit_offset == 13)

            assert [offset_of(each) for each in outcomes] == list(range(1, 13))
            assert len(writes) >= 3

    play(story)


def test_followers_are_told_of_a_commit_only_where_no_append_tells_them_soon() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()

            def told() -> list[Offset]:
                """By requests that carry nothing else."""
                requests = [m for m in replica.sent(AppendRequest) if not m.expects_answer]
                return [m.commit_offset for m in requests if m.target == SECOND]

            before = len(told())
            for _ in range(40):
                replica.propose()
                await replica.commit()
                await trio.sleep(0.001)  # In which nothing is on its way.
            while_busy = told()[before:]
            await a_while()
            when_quiet = told()[before:]

            assert while_busy == []
            assert when_quiet == [replica.group.commit_offset]

    play(story)


# --- following --------------------------------------------------------------------------


def test_the_commit_offset_is_not_shown_before_the_truncation_under_it_is_carried_out() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
            await until(lambda: group.log.end_offset == 1)
            replica.append([batch_of(Offset(1), Term(1), b"lost")], term=Term(1))
            await a_while()

            watcher = Follower()
            group.watch(watcher)
            replica.append(
                [batch_of(Offset(1), Term(2), b"kept")],
                term=Term(2),
                start=Offset(1),
                prev_term=Term(1),
                commit_offset=Offset(2),
            )
            assert group.core.commit_offset == 2
            assert group.commit_offset == 0
            assert await group.reader.read_committed(Offset(0), 4096) is None
            assert watcher.commits == []

            await until(lambda: watcher.commits == [2])
            found = await group.reader.read_committed(Offset(1), 4096)
            assert found is not None
            assert b"kept" in b"".join(found.buffers)

    play(story)


def test_truncation_takes_back_what_the_producer_table_had_noted() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose(producer_id=9)
            await a_while()
            # Another leader has something else at offset 1, and leads no more after that.
            replica.append(
                [batch_of(Offset(1), Term(2), b"other", time_ms=2**41)],
                term=Term(2),
                start=Offset(1),
                prev_term=Term(1),
                commit_offset=Offset(1),
            )
            await until(lambda: replica.group.log.last_term == 2)

            assert len(replica.group.state.producers) == 0
            assert replica.group.state.end_offset == replica.group.log.end_offset == 2

    play(story)


def test_a_truncation_waits_until_damage_below_it_is_filled() -> None:
    """What is left is replayed, and would stop the replica until a restart."""

    async def story() -> None:
        async with open_replica() as replica:
            group, log = replica.group, replica.group.log
            batches = [batch_of(Offset(offset), Term(1)) for offset in range(3)]
            replica.append(batches, term=Term(1), commit_offset=Offset(2))
            await a_while()
            path = f"{group.directory}/{0:020}.log"
            replica.files.flip(path, SEGMENT_HEADER_BYTES + len(batches[0]) + 3)

            replica.append(
                [batch_of(Offset(2), Term(2), b"other")],
                term=Term(2),
                start=Offset(2),
                prev_term=Term(1),
                commit_offset=Offset(2),
            )
            await trio.sleep(3)
            assert group.failure is None
            assert (log.end_offset, log.last_term) == (3, 1)

            found = await group.upkeep.scrub(log.scrub_start(Offset(0)), 1 << 20)
            assert found is not None
            hole = found[1]
            assert hole is not None
            assert await group.upkeep.fill(hole, batches[1]) is None
            await until(lambda: log.last_term == 2)

            assert log.end_offset == group.state.end_offset == 3
            assert group.failure is None

    play(story)


def test_a_truncation_that_waits_for_a_repair_does_not_wait_for_its_disk() -> None:
    """Whoever is told so looks for the trouble in the wrong place."""

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            batches = [batch_of(Offset(offset), Term(1)) for offset in range(3)]
            replica.append(batches, term=Term(1), commit_offset=Offset(2))
            await a_while()
            path = f"{group.directory}/{0:020}.log"
            replica.files.flip(path, SEGMENT_HEADER_BYTES + len(batches[0]) + 3)
            with capture_logs() as logs:
                replica.append(
                    [batch_of(Offset(2), Term(2), b"other")],
                    term=Term(2),
                    start=Offset(2),
                    prev_term=Term(1),
                )
                await trio.sleep(DISK_PATIENCE_S + 5)

            assert group.is_held
            assert "its disk" not in trouble_of(group)
            assert log_events.GROUP_HELD not in [entry["event"] for entry in logs]

    play(story)


def test_a_log_whose_truncation_waits_is_not_synced_again_and_again() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            batches = [batch_of(Offset(offset), Term(1)) for offset in range(3)]
            replica.append(batches[:2], term=Term(1), commit_offset=Offset(2))
            await a_while()
            path = f"{group.directory}/{0:020}.log"
            replica.files.flip(path, SEGMENT_HEADER_BYTES + len(batches[0]) + 3)
            syncs: list[str] = []

            def note(operation: str, path: str) -> None:
                if operation == "sync":
                    syncs.append(path)

            replica.files.on_operation = note

            replica.append(batches[2:], term=Term(1), commit_offset=Offset(2))
            replica.append(
                [batch_of(Offset(2), Term(2), b"other")],
                term=Term(2),
                start=Offset(2),
                prev_term=Term(1),
            )
            await trio.sleep(3)

            assert group.is_held
            assert group.log.synced_end == group.log.end_offset == 3
            assert len(syncs) <= 4

    play(story)


def test_an_acknowledgement_follows_the_sync_and_never_goes_before() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
            await until(lambda: replica.group.log.end_offset == 1)
            assert [m for m in replica.sent(AppendResponse) if m.synced_end] == []

            await a_while()

            (answer,) = replica.sent(AppendResponse)
            assert (answer.synced_end, answer.received_end) == (1, 1)

    play(story)


@pytest.mark.parametrize("seed", range(6))
def test_what_was_acknowledged_is_there_after_a_power_cut(seed: int) -> None:
    async def story() -> None:
        files = SimulatedFileSystem(random.Random(seed))
        async with open_replica(files, voters=(OURSELVES,)) as replica:
            await replica.lead()
            outcomes = replica.propose()
            await until(lambda: bool(outcomes))
            acknowledged = offset_of(outcomes)
        files.crash(random.Random(seed))
        async with open_replica(files, voters=(OURSELVES,), life=2) as replica:
            assert replica.group.log.end_offset > acknowledged

    play(story)


def test_messages_that_arrive_while_a_vote_is_written_are_taken_up_in_order() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            replica.append([], term=Term(1))  # A new term: it is written first.
            for offset in range(5):
                replica.append(
                    [batch_of(Offset(offset), Term(1))],
                    term=Term(1),
                    start=Offset(offset),
                    prev_term=Term(1 if offset else 0),
                )
            assert group.log.end_offset == 0

            await until(lambda: group.log.end_offset == 5)

    play(story)


def test_news_of_the_node_is_kept_when_messages_have_to_be_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_news, "HELD_MESSAGES_MAX", 2)

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            replica.append([], term=Term(1))
            assert group.core.leader == THIRD
            for _ in range(5):
                replica.append([], term=Term(1))
            group.post(PeerDown(THIRD))
            await a_while()

            assert group.core.leader is None

    play(story)


def test_however_long_the_disk_hangs_what_waits_for_it_has_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_news, "HELD_QUESTIONS_MAX", 5)

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            group = replica.group
            replica.slow_down(60.0)
            group.roller.roll_soon()
            group.flush()
            await until(lambda: group.is_held)
            doubts: list[LogdError | None] = []

            for _ in range(1000):
                for news in (PeerDown, PeerUp, PeerConnected):
                    group.post(news(THIRD))
                group.post(LeaderDisclaimed(THIRD, group.core.term))
                group.post(TransferLeadership(None))
                group.leadership.confirm(doubts.append)

            assert len(group._held_news) <= 5 + 5
            assert {type(doubt) for doubt in doubts} == {OverloadedError}
            assert len(doubts) == 1000 - 5
            with pytest.raises(OverloadedError, match="orders/0 waits for its disk"):
                await group.members.change_configuration(VOTERS, ())
            await trio.sleep(70)
            await until(lambda: not group.is_held)
            assert [type(doubt) for doubt in doubts[-5:]] == [NotLeaderError] * 5

    play(story)


def test_of_the_snapshots_that_are_shipped_again_while_the_disk_hangs_only_the_last_is_kept() -> (
    None
):
    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            replica.slow_down(60.0)
            replica.append([], term=Term(3), source=SECOND)
            assert group.is_held
            waiting = len(group._held_news)

            for _ in range(10):
                for chunk, body in chunks(encode_snapshot(snapshot())):
                    group.intake.post_chunk(SECOND, chunk, body)

            assert len(group._held_news) == waiting + 1

    play(story)


# --- reading ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("tail_cache_bytes", [0, 1024 * KIB])
def test_reading_gives_whole_committed_batches(is_cold: bool, tail_cache_bytes: int) -> None:
    async def story() -> None:
        async with open_replica(tail_cache_bytes=tail_cache_bytes) as replica:
            await replica.lead()
            for number in range(3):
                replica.propose(b"record %d" % number)
            await a_while()
            await replica.commit()
            replica.propose(b"not committed")
            await a_while()
            replica.files.is_cold = is_cold

            found = await replica.group.reader.read_committed(Offset(1), 64 * KIB)

            assert found is not None
            data = b"".join(found.buffers)
            assert len(data) == found.size_bytes
            assert found.end_offset == 4
            assert b"record 0" in data
            assert b"record 2" in data
            assert b"not committed" not in data
            assert decode_header(data).base_offset == 1
            assert await replica.group.reader.read_committed(Offset(4), 64 * KIB) is None

    play(story)


# --- the disk ---------------------------------------------------------------------------


def test_a_sync_is_timed_wherever_it_is_made() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            timed = sum(replica.node.counts.sync_s.counts)

            with replica.node.turn:
                replica.group.syncer.sync_here()
            await replica.group.syncer.sync_once()

            assert sum(replica.node.counts.sync_s.counts) == timed + 2

    play(story)


@pytest.mark.parametrize("leads", [False, True])
def test_the_page_cache_is_left_to_the_logs_that_are_led(
    leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(
        SimulatedFile, "forget_cached", lambda file, position, end: forgotten.append(end)
    )
    monkeypatch.setattr("logd.storage.cached_behind.FORGOTTEN_BYTES_MIN", 4 * KIB)

    async def story() -> None:
        async with open_replica(segment_bytes=256 * KIB, follower_cached_bytes=8 * KIB) as replica:
            await replica.lead()
            if not leads:
                replica.depose(Term(9))
            for _ in range(4):
                end = replica.group.log.end_offset
                if leads:
                    replica.propose(bytes(10 * KIB))
                else:
                    time_ms = replica.group.state.last_append_time_ms
                    batch = batch_of(end, Term(9), bytes(10 * KIB), time_ms=time_ms)
                    replica.append([batch], term=Term(9))
                await until(lambda end=end: replica.group.log.synced_end > end)  # type: ignore[misc]

    play(story)
    assert len(forgotten) == (0 if leads else 3)


def test_a_failed_sync_stops_the_replica_and_answers_all_who_wait() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            watcher = Follower()
            replica.group.watch(watcher)
            replica.fail_disk("sync")
            waiting = replica.propose()
            refused = replica.propose(expected_offset=0)
            await a_while()
            late = replica.propose()

            group = replica.group
            assert group.failure is not None
            assert role_name(group) == "stopped"
            assert not group.is_leader
            assert isinstance(refusal_of(waiting), LeadershipLostError)
            assert isinstance(refusal_of(refused), NotLeaderError)
            assert isinstance(refusal_of(late), NotLeaderError)
            assert watcher.losses == 1
            assert group.core.deadline_ms is None
            assert not group.proposals.has_waiting

    play(story)


def test_a_disk_that_fails_at_the_last_step_of_a_change_stops_only_this_replica() -> None:
    """One answer commits the step before and confirms that this leader led: whoever asked for that
    is told once, by the replica that stops."""

    async def story() -> None:
        async with open_replica() as replica, trio.open_nursery() as nursery:
            await replica.lead()
            group = replica.group
            refused: list[LogdError] = []

            async def leave_out_the_third() -> None:
                try:
                    await group.members.change_configuration((OURSELVES, SECOND), ())
                except LogdError as error:
                    refused.append(error)

            nursery.start_soon(leave_out_the_third)
            await until(lambda: group.configuration.is_joint and not group.syncer.needs_sync)
            answers: list[LogdError | None] = []
            group.leadership.confirm(answers.append)
            replica.fail_disk("write")

            replica.acknowledge(group.log.end_offset)
            await a_while()

            assert group.failure is not None
            assert isinstance(refused[0], LeadershipLostError)
            (answer,) = answers
            assert isinstance(answer, NotLeaderError)

    play(story)


def test_a_stopped_replica_neither_votes_nor_campaigns_nor_acknowledges() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
            replica.fail_disk("sync")
            await until(lambda: replica.group.failure is not None)
            replica.node.sent.clear()

            replica.group.post(PeerDown(THIRD))
            replica.append([], term=Term(3))
            await trio.sleep(5)

            assert replica.node.sent == []

    play(story)


def test_the_files_of_a_replica_that_failed_are_left_as_they_are() -> None:
    """A restart finds out what is really there; until then nothing is taken away."""

    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            group = replica.group
            replica.propose()
            group.roller.roll_soon()
            await a_while()
            bases = group.log.segment_bases
            assert len(bases) == 2

            group.fail(OSError(errno.EIO, "simulated failure"))

            trash = replica.node.membership.directory.trash_path
            assert not await group.upkeep.trim(bases[1], trash)
            assert group.log.segment_bases == bases

    play(story)


@pytest.mark.parametrize("ends_by", ["failing", "closing"])
def test_a_replica_that_has_ended_keeps_no_state_of_what_was_fed_from_it(ends_by: str) -> None:
    """Its directory may be in the trash by now, or be another replica's."""

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            await replica.lead()
            await group.checkpoints.save_application(Offset(1), b"before")
            if ends_by == "failing":
                group.fail(OSError(errno.EIO, "simulated failure"))
            else:
                await replica.node.remove_group(GROUP)

            await group.checkpoints.save_application(Offset(1), b"after")

            assert await group.checkpoints.load_application() == (1, b"before")
            assert await group.checkpoints.take_snapshot() is None

    play(story)


def test_a_leader_whose_vote_cannot_be_written_answers_all_who_wait() -> None:
    """It steps down in an output that is never carried out."""

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            watcher = Follower()
            replica.group.watch(watcher)
            placed_before = replica.propose()
            refused = replica.propose(expected_offset=0)
            await a_while()
            replica.fail_disk("write", "sync", match="hard_state")

            replica.depose(Term(5))
            queued = replica.propose()
            await a_while()

            assert replica.group.failure is not None
            assert isinstance(refusal_of(placed_before), LeadershipLostError)
            assert isinstance(refusal_of(refused), NotLeaderError)
            assert isinstance(refusal_of(queued), NotLeaderError)
            assert watcher.losses == 1

    play(story)


def test_a_sync_that_fails_while_a_vote_waits_for_the_disk_stops_only_this_replica() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            refused = replica.propose(expected_offset=50)
            placed_before = replica.propose()
            replica.slow_down(0.01)
            replica.fail_disk("sync", match=".log")
            await until(lambda: replica.group.log.end_offset == 2)
            await until(lambda: replica.group.io_lock.locked())
            # The sync is under way; what follows needs the disk, and waits for its end.
            replica.depose(Term(5))
            await a_while()

            assert replica.group.failure is not None
            assert isinstance(refusal_of(refused), NotLeaderError)
            assert isinstance(refusal_of(placed_before), LeadershipLostError)
            assert replica.group.core.term == 5
            assert replica.sent(AppendResponse) == []

    play(story)


def test_a_follower_that_fails_tells_those_who_read_from_it() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            watcher = Follower()
            replica.group.watch(watcher)
            replica.fail_disk("sync")
            replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
            await until(lambda: replica.group.failure is not None)

            assert watcher.losses == 1

    play(story)


def test_a_control_batch_of_a_later_version_stops_only_this_replica() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            unknown = seal_opaque(b"\x81\xa4kind\xa6future", kind=BatchKind.CONTROL, timestamp_ms=0)
            replica.append([placed(unknown, Offset(0), Term(1))], term=Term(1))
            await a_while()

            assert replica.group.failure is not None

    play(story)


def test_a_leader_that_cannot_read_back_its_log_stops_leading() -> None:
    async def story() -> None:
        async with open_replica(tail_cache_bytes=0) as replica:
            replica.files.is_cold = True
            await replica.lead()
            replica.fail_disk("read", match=".log")
            outcomes = replica.propose()
            await a_while()

            assert replica.group.failure is not None
            assert isinstance(refusal_of(outcomes), LeadershipLostError)

    play(story)


def test_a_read_for_a_follower_may_come_too_late_for_the_log_it_was_meant_for() -> None:
    """Deposed and cut short while the read waits for a thread: it concerns nobody any more."""

    async def story() -> None:
        async with open_replica(tail_cache_bytes=0) as replica:
            await replica.lead()
            for _ in range(4):
                replica.propose()
            await a_while()
            replica.files.is_cold = True
            replica.slow_down(1.0)
            replica.group.post(PeerConnected(SECOND))
            replica.acknowledge(Offset(1), received_end=Offset(4))
            await trio.sleep(0.1)
            replica.slow_down(0.001)

            replica.append(
                [batch_of(Offset(1), Term(2), time_ms=2**41)],
                term=Term(2),
                start=Offset(1),
                prev_term=Term(1),
            )
            await trio.sleep(5)

            assert replica.group.failure is None
            assert replica.group.log.last_term == 2
            assert replica.group.log.end_offset == 2

    play(story)


def test_a_follower_that_moved_during_a_read_for_it_is_still_fed() -> None:
    async def story() -> None:
        async with open_replica(tail_cache_bytes=0) as replica:
            await replica.lead()
            replica.group.post(PeerDown(THIRD))  # Or each probe of it would set things going.
            replica.propose()
            replica.propose()
            await a_while()
            replica.files.is_cold = True
            replica.slow_down(0.1)
            replica.node.sent.clear()
            replica.group.post(PeerConnected(SECOND))
            replica.acknowledge(Offset(1))
            await trio.sleep(0.02)
            # The read from offset 1 is under way.  Its first batch has arrived after all.
            replica.group.post(PeerConnected(SECOND))
            replica.acknowledge(Offset(2))
            await a_while()
            await a_while()

            sent = [
                (m.start_offset, m.end_offset)
                for m in replica.node.sent
                if isinstance(m, AppendRequest) and m.target == SECOND
            ]
            assert sent[-1] == (2, 3)

    play(story)


def test_what_was_read_for_a_follower_is_not_sent_in_a_later_term() -> None:
    """Deposed, cut short and elected again meanwhile: what was read is not in the log any more."""

    async def story() -> None:
        async with open_replica(tail_cache_bytes=0) as replica:
            await replica.lead()
            for _ in range(3):
                replica.propose()
            await a_while()
            replica.files.is_cold = True
            replica.slow_down(20.0)
            replica.group.post(PeerConnected(SECOND))
            replica.acknowledge(Offset(1))
            await trio.sleep(10.1)  # The file has been read; the thread says so in ten seconds.
            replica.slow_down(0.001)
            replica.append(
                [batch_of(Offset(at), Term(2), time_ms=2**41) for at in (1, 2, 3)],
                term=Term(2),
                start=Offset(1),
                prev_term=Term(1),
            )
            await a_while()
            await replica.be_elected()
            replica.node.sent_batches.clear()
            replica.group.post(PeerConnected(SECOND))
            replica.acknowledge(Offset(1))
            await trio.sleep(10)

            sent = [
                (request.term, decode_header(body).term)
                for request, body in replica.node.sent_batches
                if request.target == SECOND and request.start_offset == 1
            ]
            assert sent
            assert set(sent) == {(3, 2)}

    play(story)


@pytest.mark.parametrize("tail_cache_bytes", [0, 1024 * KIB])
def test_a_follower_whose_log_ends_inside_a_gap_is_sent_the_rest_of_it(
    tail_cache_bytes: int,
) -> None:
    """The gap came from an earlier leader, whose log was compacted."""

    async def story() -> None:
        async with open_replica(tail_cache_bytes=tail_cache_bytes) as replica:
            gap = make_gap(Offset(0), Offset(10), term=Term(1), append_time_ms=0, group=GROUP)
            replica.append([gap], term=Term(1))
            await a_while()
            replica.group.post(PeerDown(THIRD))
            await replica.be_elected()
            await a_while()

            replica.acknowledge(Offset(4))
            await a_while()

            sent = replica.node.sent_batches
            spans = [batch.span for request, body in sent for batch in check_append(request, body)]
            assert spans == [(4, 10, 1), (10, 11, 2)]

    play(story)


def test_a_checkpoint_is_taken_at_each_roll_and_saved_only_below_the_commit_offset() -> None:
    async def story() -> None:
        async with open_replica(segment_bytes=4 * KIB + 512) as replica:
            await replica.lead()
            store = replica.group._opened.checkpoints
            replica.propose(bytes(1024), producer_id=9)
            await a_while()
            assert len(replica.group.log.segment_bases) == 2
            assert store.load() is None

            await replica.commit()
            await a_while()

            found = store.load()
            assert found is not None
            assert found[0] == 2

    play(story)


def test_a_checkpoint_that_cannot_be_saved_does_not_stop_the_replica() -> None:
    def refuse_checkpoints(operation: str, path: str) -> None:
        if operation == "create" and "checkpoint-" in path:
            raise OSError(errno.ENOSPC, "no space left")

    async def story() -> None:
        async with open_replica(segment_bytes=4 * KIB + 512) as replica:
            await replica.lead()
            replica.files.on_operation = refuse_checkpoints
            replica.propose(bytes(1024), producer_id=9)
            await a_while()
            await replica.commit()
            await a_while()

            assert replica.group._opened.checkpoints.load() is None
            assert replica.group.failure is None
            assert replica.group.is_leader

    play(story)


def test_a_checkpoint_of_what_was_cut_off_is_never_saved() -> None:
    async def story() -> None:
        async with open_replica(segment_bytes=4 * KIB + 512) as replica:
            await replica.lead()
            replica.propose(bytes(1024), producer_id=9)
            await a_while()
            replica.append(
                [batch_of(Offset(1), Term(2), time_ms=2**41)],
                term=Term(2),
                start=Offset(1),
                prev_term=Term(1),
                commit_offset=Offset(2),
            )
            await a_while()

            assert replica.group.commit_offset == 2
            assert replica.group._opened.checkpoints.load() is None

    play(story)


def test_a_replica_that_comes_back_knows_its_producers() -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE, segment_bytes=4 * KIB + 512) as replica:
            await replica.lead()
            for sequence in range(10):
                replica.propose(bytes(300), producer_id=9, sequence=sequence)
                await a_while()
            files = replica.files
        await replica.node.close()
        files.kill()

        async with open_replica(files, voters=ALONE, segment_bytes=4 * KIB + 512) as replica:
            assert replica.group._opened.batches_replayed < 10
            await replica.lead()
            retry = replica.propose(bytes(300), producer_id=9, sequence=9)
            await a_while()

            assert offset_of(retry) == 10

    play(story)


# --- the end ----------------------------------------------------------------------------


def test_closing_answers_all_who_wait_even_while_the_disk_is_busy() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            watcher = Follower()
            replica.group.watch(watcher)
            placed_before = replica.propose()
            refused = replica.propose(expected_offset=0)
            await trio.sleep(0.0005)
            queued = replica.propose()

            await replica.node.remove_group(GROUP)

            assert isinstance(refusal_of(placed_before), LeadershipLostError)
            assert isinstance(refusal_of(refused), NotLeaderError)
            assert len(queued) == 1
            assert watcher.losses == 1
            with pytest.raises(UnavailableError):
                await replica.group.reader.read_committed(Offset(0), 4096)

    play(story)


def test_closing_in_the_middle_of_a_truncation_and_a_roll_ends_well() -> None:
    for pause_ms in range(12):

        async def story(pause_ms: int = pause_ms) -> None:
            async with open_replica(segment_bytes=4 * KIB + 512) as replica:
                await replica.lead()
                replica.propose(bytes(1024))
                await until(lambda: replica.group.log.end_offset == 2)
                await trio.sleep(0.0005)
                replica.append(
                    [batch_of(Offset(1), Term(2), bytes(1024), time_ms=2**41)],
                    term=Term(2),
                    start=Offset(1),
                    prev_term=Term(1),
                )
                replica.append([batch_of(Offset(2), Term(2), time_ms=2**41)], term=Term(2))
                await trio.sleep(pause_ms / 1000)
                await replica.node.remove_group(GROUP)
                await a_while()

        run_deterministic(story, seed=pause_ms, time_limit_s=600)


def test_what_comes_back_from_the_disk_after_the_node_has_ended_begins_nothing_new() -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            node, group = replica.node, replica.group
        group.roller.roll_soon()
        await node.close()

        assert group.log.segment_bases == (0,)

    play(story)


def test_a_replica_whose_log_has_not_reached_its_state_does_not_lead() -> None:
    """It was shipped a state that rested on the memory of a majority, which lost it."""

    async def story() -> None:
        async with open_replica() as replica:
            replica.group.state = PartitionState(Offset(5))

            with pytest.raises(trio.TooSlowError):
                await replica.lead()

            assert isinstance(replica.group.failure, CorruptionError)
            assert "the log ends at 0, before the state" in str(replica.group.failure)
            assert not replica.group.is_leader

    play(story)


def test_a_disk_that_fails_at_the_very_end_does_not_keep_the_node_from_closing() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await until(lambda: replica.group.log.end_offset == 2)
            replica.fail_disk("sync")

            await replica.node.remove_group(GROUP)

            assert replica.node.groups == {}

    play(story)


# --- opening ----------------------------------------------------------------------------


def test_a_replica_whose_hard_state_is_behind_its_log_is_not_opened() -> None:
    """It has lost votes; to vote again could elect two leaders of one term."""

    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            files = replica.files
        await replica.node.close()
        files.kill()
        path = f"/data/groups/{GROUP:020}/hard_state"
        files.remove(path)
        identity = LogIdentity(DirectoryId("a-directory"), OURSELVES, GROUP)
        HardStateFile.create(files, path, identity)

        with pytest.raises(BeyondRepairError, match="lost votes"):
            async with open_replica(files, voters=ALONE):
                pass

    play(story)


def test_a_leader_that_does_not_claim_its_group_is_not_believed_for_long() -> None:
    """It failed, and said so before its last message was taken up here."""

    async def story() -> None:
        async with open_replica() as replica:
            core = replica.group.core
            replica.group.post(PeerUp(THIRD))
            replica.append([], term=Term(5))
            await until(lambda: core.leader == THIRD)
            await until(lambda: core.leader is None)

            assert core.term >= 5

    play(story)


def test_a_leader_that_claims_its_group_is_believed() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            core = replica.group.core
            replica.group.post(PeerUp(THIRD))
            replica.append([], term=Term(5))
            replica.node.claims.take(THIRD, {GROUP: 5})
            await trio.sleep(5)

            assert core.leader == THIRD

    play(story)


def piece(position: int, *, term: int = 5) -> SnapshotChunk:
    return SnapshotChunk(
        group=GROUP, term=term, enrolment=0, position=position, total_bytes=100, checksum=1
    )


def kept_bytes(replica: Replica) -> int:
    """Of a snapshot that is being shipped here."""
    return len(replica.group.intake._assembly._received)


def leader_died(replica: Replica) -> None:
    replica.group.post(PeerDown(THIRD))


def another_leads(replica: Replica) -> None:
    replica.append([], term=Term(6), source=SECOND)


def replica_failed(replica: Replica) -> None:
    replica.group.fail(OSError(errno.EIO, "broken"))


@pytest.mark.parametrize("end", [leader_died, another_leads, replica_failed])
def test_half_of_a_snapshot_is_kept_only_while_the_rest_may_come(
    end: Callable[[Replica], None],
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            replica.group.post(PeerUp(THIRD))
            replica.append([], term=Term(5))
            await until(lambda: replica.group.core.leader == THIRD)
            replica.group.intake.post_chunk(THIRD, piece(0), bytes(40))
            replica.group.intake.post_chunk(THIRD, piece(40), bytes(40))
            replica.append([], term=Term(5))
            assert kept_bytes(replica) == 80

            end(replica)
            await a_while()

            assert kept_bytes(replica) == 0
            replica.group.intake.post_chunk(THIRD, piece(80), bytes(20))  # It came late.
            assert kept_bytes(replica) == 0

    play(story)


def test_of_a_snapshot_that_a_deposed_leader_still_ships_nothing_is_kept() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            another_leads(replica)
            await until(lambda: replica.group.core.leader == SECOND)

            replica.group.intake.post_chunk(THIRD, piece(0), bytes(40))

            assert kept_bytes(replica) == 0

    play(story)


@pytest.mark.parametrize("waits_for", ["vote", "roll"])
def test_a_replica_whose_disk_does_not_answer_says_so(waits_for: str) -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE if waits_for == "roll" else VOTERS) as replica:
            if waits_for == "roll":
                await replica.lead()
            replica.slow_down(45)
            with capture_logs() as logs:
                if waits_for == "roll":
                    replica.group.roller.roll_soon()
                else:
                    replica.depose(Term(5))
                await trio.sleep(DISK_PATIENCE_S - 1)
                assert not trouble_of(replica.group)
                await trio.sleep(20)

            assert "has waited for its disk for 29 s" in trouble_of(replica.group)
            told = [entry for entry in logs if entry["event"] == log_events.GROUP_HELD]
            assert [(entry["group"], entry["seconds"]) for entry in told] == [(GROUP, 10)]
            await until(lambda: not replica.group.is_held)
            assert not trouble_of(replica.group)

    play(story)


def test_a_leader_whose_disk_does_not_answer_leads_on_where_the_others_could_not() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES, SECOND)) as replica:
            await replica.lead()
            replica.slow_down(20)
            replica.group.roller.roll_soon()
            await trio.sleep(19)

            assert replica.group.is_leader

    play(story)


def test_what_a_follower_was_sent_from_a_file_is_sent_again_if_it_is_never_answered() -> None:
    """It had no room for it, say.  Nothing else happens in the group that would see to that."""

    async def story() -> None:
        async with open_replica(tail_cache_bytes=0) as replica:
            await replica.lead()
            replica.group.post(PeerDown(THIRD))  # Or each probe of it would set things going.
            replica.propose()
            await a_while()
            replica.files.is_cold = True
            replica.slow_down(0.1)
            replica.group.post(PeerConnected(SECOND))
            replica.acknowledge(Offset(1))
            await trio.sleep(0.5)
            sent = [m for m in replica.sent(AppendRequest) if m.target == SECOND]
            assert (sent[-1].start_offset, sent[-1].end_offset) == (1, 2)
            replica.node.sent.clear()

            await trio.sleep(5)

            assert [m.target for m in replica.sent(AppendRequest)][:1] == [SECOND]

    play(story)
