"""A disk without room costs no replica: what it refuses is done when there is room again."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from structlog.testing import capture_logs

from logd.errors import DiskFullError
from logd.limits import KIB, MIB, PEER_WINDOW_BYTES_MAX, SEGMENT_HEADER_BYTES
from logd.raft.messages import (
    AppendResponse,
    PeerDown,
    PeerUp,
    Received,
    Role,
    VoteRequest,
    VoteResponse,
)
from logd.record.control import Trim
from logd.replication import log_events
from logd.replication.peer_protocol import PeerKind, Ping
from logd.replication.snapshot import encode_snapshot
from logd.storage.holes import Hole
from logd.storage.segment_copy import SegmentCopy
from logd.types import NodeId, Offset, Term
from logd.wire.frame import FrameDecoder, encode_message
from tests.sim.files import CAPACITY_BYTES_DEFAULT, SimulatedFileSystem
from tests.support.logs import read_all
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
    play,
    refusal_of,
    until,
)
from tests.unit.test_snapshot import chunks, snapshot


def fill(replica: Replica, room: int = 0) -> None:
    replica.files.capacity_bytes = replica.files.used_bytes() + room


def free(replica: Replica) -> None:
    replica.files.capacity_bytes = CAPACITY_BYTES_DEFAULT


def vote_request(*, transfer: bool = False) -> VoteRequest:
    """For the first term, of one whose log is as empty as ours."""
    return VoteRequest(
        group=GROUP,
        source=SECOND,
        target=OURSELVES,
        term=Term(1),
        last_term=Term(0),
        end_offset=Offset(0),
        pre_vote=False,
        transfer=transfer,
    )


# --- no descriptors ----------------------------------------------------------------------


def take_all_descriptors(replica: Replica, match: str = ".log") -> None:
    """Nothing can be opened any more whose path ends with ``match``."""

    def refuse(operation: str, path: str) -> None:
        if operation in ("open", "create") and path.endswith(match):
            raise OSError(errno.EMFILE, "simulated failure", path)

    replica.files.on_operation = refuse


async def written_and_closed(segments: int) -> SimulatedFileSystem:
    """The disk of a replica with so many segments of one batch each; whoever opens it again keeps
    the last few open."""
    async with open_replica(segment_bytes=8 * KIB) as replica:
        for number in range(segments):
            replica.append([batch_of(Offset(number), Term(1), bytes(8 * KIB))], term=Term(1))
            await a_while()
        assert len(replica.group.log.segment_bases) == segments + 1
        await replica.group.close()
    replica.files.crash(random.Random(1))
    return replica.files


def test_a_leader_that_has_no_descriptor_to_read_for_a_follower_leads_on_and_reads_later() -> None:
    async def story() -> None:
        files = await written_and_closed(7)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            await replica.lead()
            take_all_descriptors(replica)
            answer(replica, THIRD, Offset(0), is_accepted=False)
            answer(replica, THIRD, Offset(0))
            await trio.sleep(2.5)
            assert (replica.group.failure, replica.group.is_ready) == (None, True)
            sent = sent_to(replica, THIRD)
            assert replica.group.log.end_offset not in sent

            replica.files.on_operation = None

            await trio.sleep(1.5)
            replica.group.post(PeerUp(THIRD))  # Nothing was heard of it.
            answer(replica, THIRD, Offset(0))
            await until(lambda: sent_to(replica, THIRD)[len(sent) :] != [])

    play(story)


def test_a_scrub_that_has_no_descriptor_to_read_with_goes_on_later_and_vouches_for_nothing() -> (
    None
):
    async def story() -> None:
        files = await written_and_closed(7)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            group = replica.group
            take_all_descriptors(replica)
            found = []

            async def scrub() -> None:
                found.append(await group.upkeep.scrub(group.log.scrub_start(Offset(0)), MIB))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(scrub)
                await trio.sleep(5)
                assert (group.failure, found) == (None, [])

                replica.files.on_operation = None

            assert found == [(group.log.scrub_start(Offset(1)), None)]

    play(story)


def test_a_log_is_trimmed_when_there_are_descriptors_to_sync_its_directory_with() -> None:
    """What is gone half-way would be in doubt."""

    async def story() -> None:
        files = await written_and_closed(3)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            group = replica.group
            await replica.lead()

            def refuse(operation: str, path: str) -> None:
                if operation in ("open", "create", "sync_directory"):
                    raise OSError(errno.EMFILE, "simulated failure", path)

            replica.files.on_operation = refuse
            async with trio.open_nursery() as nursery:
                trash = replica.node.membership.directory.trash_path
                nursery.start_soon(group.upkeep.trim, Offset(2), trash)
                await trio.sleep(2.5)
                assert (group.failure, group.log.start_offset, group.log_start) == (None, 0, 0)

                replica.files.on_operation = None

            assert (group.failure, group.log.start_offset, group.log_start) == (None, 2, 2)

    play(story)


def test_a_trim_that_was_begun_is_ended_when_there_are_descriptors_again() -> None:
    """Others may take the last ones between any two steps of it."""

    async def story() -> None:
        files = await written_and_closed(3)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            group = replica.group
            await replica.lead()

            def refuse(operation: str, path: str) -> None:
                if operation == "sync_directory":
                    raise OSError(errno.EMFILE, "simulated failure", path)

            replica.files.on_operation = refuse
            trimmed = []

            async def trim(start: Offset) -> None:
                trash = replica.node.membership.directory.trash_path
                trimmed.append(await group.upkeep.trim(start, trash))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trim, Offset(1))
                await trio.sleep(2.5)
                assert (group.failure, group.log_start, trimmed) == (None, 1, [])

                replica.files.on_operation = None

            await trim(Offset(2))
            assert trimmed == [True, True]
            assert (group.failure, group.log.start_offset) == (None, 2)

    play(story)


@pytest.mark.parametrize(("refused", "reason"), [("open", errno.EMFILE), ("write", errno.ENOSPC)])
def test_a_hole_is_filled_when_there_are_descriptors_or_room_for_that(
    refused: str, reason: int
) -> None:
    """There may be none where a disk never writes in place: what lies there is a hole as before."""

    async def story() -> None:
        files = await written_and_closed(3)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            group = replica.group
            await replica.lead()
            await replica.commit()
            written = read_all(group.log)
            files.flip(f"{group.directory}/{1:020}.log", SEGMENT_HEADER_BYTES + KIB)
            found = await group.upkeep.scrub(group.log.scrub_start(Offset(1)), MIB)
            assert found is not None
            hole = found[1]
            assert hole is not None

            def refuse(operation: str, path: str) -> None:
                if operation == refused and path.endswith(f"{1:020}.log"):
                    raise OSError(reason, "simulated failure", path)

            replica.files.on_operation = refuse
            left: list[Hole | None] = []

            async def fill_it() -> None:
                left.append(await group.upkeep.fill(hole, written[1]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill_it)
                await trio.sleep(2.5)
                assert (group.failure, left) == (None, [])

                replica.files.on_operation = None

            assert left == [None]
            assert read_all(group.log) == written

    play(story)


def test_a_file_takes_the_place_of_a_segment_when_there_are_descriptors_for_that() -> None:
    """What is replaced half-way would be in doubt."""

    async def story() -> None:
        files = await written_and_closed(3)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            group = replica.group
            await replica.lead()
            written = read_all(group.log)
            segment = group.log.sealed_segments()[1]
            copy = SegmentCopy(files, group.directory, group.identity, segment)
            copy.add(written[1])
            path = copy.finish()

            def refuse(operation: str, path: str) -> None:
                if operation in ("open", "create", "sync_directory"):
                    raise OSError(errno.EMFILE, "simulated failure", path)

            replica.files.on_operation = refuse
            replaced = []

            async def replace() -> None:
                trash = replica.node.membership.directory.trash_path
                bases = [segment.base_offset]
                replaced.append(await group.upkeep.replace(bases, path, trash))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace)
                await trio.sleep(2.5)
                assert (group.failure, replaced) == (None, [])

                replica.files.on_operation = None

            assert replaced == [True]
            assert read_all(group.log) == written

    play(story)


@pytest.mark.parametrize("match", ["0.log", "2.log"])
def test_a_log_is_cut_into_an_earlier_segment_when_there_are_descriptors_for_that(
    match: str,
) -> None:
    """Nothing has gone before, so nothing is in doubt: the replica does not fail."""

    async def story() -> None:
        files = await written_and_closed(4)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:
            take_all_descriptors(replica, match)
            replica.append([batch_of(Offset(0), Term(2))], term=Term(2), start=Offset(0))
            await trio.sleep(5)
            assert (replica.group.failure, replica.group.log.end_offset) == (None, 4)

            replica.files.on_operation = None

            await until(lambda: replica.group.log.end_offset == 1)
            await until(lambda: not replica.group.is_held)
            assert (replica.group.failure, replica.group.log.last_term) == (None, 2)
            assert replica.group.log.segment_bases == (0,)

    play(story)


def test_the_state_of_a_log_that_was_cut_is_read_when_there_are_descriptors_for_that() -> None:
    async def story() -> None:
        files = await written_and_closed(2)
        async with open_replica(files, life=2, segment_bytes=8 * KIB) as replica:

            def refuse(operation: str, path: str) -> None:
                if operation == "list":
                    raise OSError(errno.EMFILE, "simulated failure", path)

            replica.files.on_operation = refuse
            replica.append([batch_of(Offset(0), Term(2))], term=Term(2), start=Offset(0))
            await trio.sleep(5)
            assert (replica.group.failure, replica.group.log.end_offset) == (None, 2)

            replica.files.on_operation = None

            await until(lambda: replica.group.log.end_offset == 1)
            await until(lambda: not replica.group.is_held)
            assert (replica.group.failure, replica.group.log.last_term) == (None, 2)

    play(story)


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.ENFILE])
def test_a_vote_that_cannot_be_saved_for_want_of_a_descriptor_waits_for_one(reason: int) -> None:
    """Nothing has been written, so nothing is in doubt: the replica does not fail."""

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group

            def refuse(operation: str, path: str) -> None:
                if operation == "open" and path.endswith("/hard_state"):
                    raise OSError(reason, "simulated failure", path)

            replica.files.on_operation = refuse
            request = vote_request(transfer=True)
            with capture_logs() as logs:
                group.post(Received(request))
                await trio.sleep(2.5)
            assert [entry["event"] for entry in logs].count(log_events.NO_DESCRIPTOR) == 1
            assert (group.failure, replica.sent(VoteResponse)) == (None, [])

            replica.files.on_operation = None

            await until(lambda: replica.sent(VoteResponse) != [])
            assert replica.sent(VoteResponse)[0].granted

    play(story)


def test_a_replica_that_waits_for_a_descriptor_can_be_closed() -> None:
    async def story() -> None:
        async with open_replica() as replica:

            def refuse(operation: str, path: str) -> None:
                if operation == "open" and path.endswith("/hard_state"):
                    raise OSError(errno.EMFILE, "simulated failure", path)

            replica.files.on_operation = refuse
            replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
            await trio.sleep(1)

            with trio.fail_after(5):
                await replica.group.close()

    play(story)


# --- no room at all ---------------------------------------------------------------------


def test_a_follower_without_room_takes_nothing_and_all_of_it_when_there_is_some() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
            await until(lambda: group.log.end_offset == 1)
            fill(replica)
            large = batch_of(Offset(1), Term(1), bytes(300 * KIB))
            replica.append([large], term=Term(1))
            await a_while()
            assert (group.log.end_offset, group.core.log_end, group.failure) == (1, 1, None)

            free(replica)
            replica.append([large], term=Term(1))

            await until(lambda: group.log.end_offset == 2)

    play(story)


def test_who_has_no_room_to_begin_a_term_does_not_campaign_until_there_is_some() -> None:
    """It would lead and let go, again and again, and each term costs everybody a sync."""

    async def story() -> None:
        async with open_replica() as replica:
            core = replica.group.core
            fill(replica)
            replica.group.post(PeerUp(SECOND))
            await trio.sleep(5.0)
            assert (core.role, core.term, replica.sent(VoteRequest)) == (Role.FOLLOWER, 0, [])
            assert OURSELVES in replica.node.fitness.full_disks  # Its peers are told.

            free(replica)
            with trio.fail_after(1.0):
                await replica.be_elected()

            assert replica.group.failure is None

    play(story)


def test_who_waits_for_room_to_begin_a_term_votes_for_others() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            fill(replica)
            replica.group.post(PeerUp(SECOND))
            await a_while()
            request = vote_request()

            replica.group.post(Received(request))

            await until(lambda: replica.sent(VoteResponse) != [])
            assert replica.sent(VoteResponse)[0].granted

    play(story)


def test_a_leader_without_room_refuses_what_is_proposed_and_takes_it_when_there_is_some() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await replica.commit()
            fill(replica)
            refused = [replica.propose(bytes(300 * KIB)) for _ in range(3)]
            await a_while()
            for outcomes in refused:
                error = refusal_of(outcomes)
                assert isinstance(error, DiskFullError)
                assert "free some space" in str(error)
                assert not error.may_have_applied
            assert replica.group.is_leader

            free(replica)
            taken = replica.propose(bytes(300 * KIB))
            await a_while()
            await replica.commit()

            assert offset_of(taken) == 2

    play(story)


def test_who_is_elected_without_room_lets_others_lead_and_stands_again() -> None:
    """There was some when it campaigned, but a disk that never writes in place may lose it."""

    def refuse(operation: str, path: str) -> None:
        if operation == "write" and path.endswith(".log"):
            raise OSError(errno.ENOSPC, "simulated failure", path)

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            group.post(PeerUp(SECOND))
            await until(lambda: group.core.role is Role.PRE_CANDIDATE)
            replica.vote(Term(group.core.term + 1), pre_vote=True)
            await until(lambda: group.core.role is Role.CANDIDATE)
            replica.files.on_operation = refuse
            replica.vote(group.core.term, pre_vote=False)
            await until(lambda: group.counts.elections_won == 1)
            await until(lambda: not group.is_leader)
            assert (group.log.end_offset, group.failure) == (0, None)

            replica.files.on_operation = None
            await replica.be_elected()
            await replica.commit()

            assert group.is_ready

    play(story)


def test_a_leader_without_room_refuses_a_change_of_members_and_leads_on() -> None:
    """Nobody may have room to lead in its place, and readers are served meanwhile."""

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            members = replica.group.members
            fill(replica)

            with pytest.raises(DiskFullError, match="free some space"):
                await members.change_configuration((OURSELVES, SECOND), ())
            assert replica.group.is_ready

            free(replica)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(members.change_configuration, (OURSELVES, SECOND), ())
                await until(lambda: replica.group.core.configuration.is_joint)
                nursery.cancel_scope.cancel()

    play(story)


@pytest.mark.parametrize("is_written_down", [False, True])
def test_shipped_state_is_installed_when_there_is_room(*, is_written_down: bool) -> None:
    """It was refused to be written down, or to be put in place."""

    def refuse(operation: str, path: str) -> None:
        is_refused = "checkpoint-" in path if is_written_down else "/install" in path
        if operation == "create" and is_refused:
            raise OSError(errno.ENOSPC, "simulated failure", path)

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            shipped = snapshot()
            replica.files.on_operation = refuse
            replica.append([], term=Term(3))
            await a_while()
            for chunk, body in chunks(encode_snapshot(shipped), term=3):
                group.intake.post_chunk(THIRD, chunk, body)
            await until(lambda: group.is_held)
            with capture_logs() as logs:
                await trio.sleep(10.0)
            assert (group.is_held, group.failure) == (True, None)
            assert sum(entry["event"] == log_events.NO_ROOM for entry in logs) == 1
            assert not group.io_lock.locked()

            replica.files.on_operation = None

            await until(lambda: not group.is_held)
            assert group.failure is None
            assert group.log.start_offset == shipped.start_offset

    play(story)


async def look_for_damage(replica: Replica) -> None:
    upkeep, log = replica.group.upkeep, replica.group.log
    assert await upkeep.scrub(log.scrub_start(log.start_offset), MIB) is None


async def sync(replica: Replica) -> None:
    """As the sync pool, which was asked before."""
    await replica.group.syncer.sync_once()
    await replica.group.syncer.sync_mark()


async def trim(replica: Replica) -> None:
    trash = replica.node.membership.directory.trash_path
    assert not await replica.group.upkeep.trim(Offset(1), trash)


async def begin_to_install(replica: Replica) -> Offset:
    """Ship state to a replica, for which there is no room once its log is gone; where it begins."""
    group, shipped = replica.group, snapshot()
    replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
    await until(lambda: group.log.synced_end == 1)

    def refuse(operation: str, path: str) -> None:
        if operation == "create" and "checkpoint-" in path:
            raise OSError(errno.ENOSPC, "simulated failure", path)

    replica.files.on_operation = refuse
    replica.append([], term=Term(3), commit_offset=Offset(1), start=Offset(0))
    await a_while()
    for chunk, body in chunks(encode_snapshot(shipped), term=3):
        group.intake.post_chunk(THIRD, chunk, body)
    await until(lambda: not group.log.is_open)
    await a_while()
    return shipped.start_offset


@pytest.mark.parametrize("others", [look_for_damage, sync, trim])
def test_who_looks_after_a_log_leaves_one_alone_whose_successor_waits_for_room(
    others: Callable[[Replica], Awaitable[None]],
) -> None:
    """Its files are gone already: that says nothing about the disk."""

    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group
            start = await begin_to_install(replica)

            await others(replica)
            assert (group.failure, group.is_held) == (None, True)

            replica.files.on_operation = None
            await until(lambda: not group.is_held)
            assert (group.failure, group.log.start_offset) == (None, start)

    play(story)


def test_a_replica_that_waits_for_room_for_what_takes_the_place_of_its_log_can_be_removed() -> None:
    """That its topic is deleted may be what makes room."""

    async def story() -> None:
        async with open_replica() as replica:
            await begin_to_install(replica)

            with trio.fail_after(5.0):
                await replica.node.remove_group(GROUP)

            assert replica.group.is_closed

    play(story)


def test_what_takes_the_place_of_a_cut_waits_for_room_that_others_took_meanwhile() -> None:
    """The core has taken it by then: it cannot be as if it had been lost on the way."""

    async def story() -> None:
        async with open_replica(segment_bytes=MIB) as replica:
            group, value = replica.group, bytes(100 * KIB)
            for offset in (Offset(0), Offset(1)):
                batch = batch_of(offset, Term(1), value)
                replica.append([batch], term=Term(1), start=offset)
            await until(lambda: group.log.end_offset == 2)
            await a_while()

            is_cut = False

            def take_what_is_cut(operation: str, path: str) -> None:
                nonlocal is_cut
                if is_cut:
                    fill(replica)
                is_cut = is_cut or operation == "truncate"

            replica.files.on_operation = take_what_is_cut
            other = batch_of(Offset(1), Term(2), value)
            with capture_logs() as logs:
                replica.append([other], term=Term(2), start=Offset(1), prev_term=Term(1))
                await trio.sleep(10.0)
            assert (group.is_held, group.failure, group.log.end_offset) == (True, None, 1)
            assert sum(entry["event"] == log_events.NO_ROOM for entry in logs) == 1

            replica.files.on_operation = None
            free(replica)

            await until(lambda: group.log.end_offset == 2)
            assert (group.is_held, group.failure) == (False, None)

    play(story)


def test_a_replica_that_waits_for_room_can_be_removed() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            group = replica.group

            def refuse(operation: str, path: str) -> None:
                if operation == "create" and "/install" in path:
                    raise OSError(errno.ENOSPC, "simulated failure", path)

            replica.files.on_operation = refuse
            replica.append([], term=Term(3))
            await a_while()
            for chunk, body in chunks(encode_snapshot(snapshot()), term=3):
                group.intake.post_chunk(THIRD, chunk, body)
            await until(lambda: group.is_held)

            with trio.fail_after(5.0):
                await replica.node.remove_group(GROUP)

    play(story)


# --- little room ------------------------------------------------------------------------


def sent_to(replica: Replica, follower: NodeId) -> list[Offset]:
    """Where what it was sent ends, request by request."""
    requests = [request for request, _ in replica.node.sent_batches]
    return [request.end_offset for request in requests if request.target == follower]


async def lead_both(replica: Replica) -> None:
    """Both followers are up, and have all there is."""
    await replica.lead()
    answer(replica, THIRD, replica.group.log.end_offset)
    await a_while()
    replica.node.sent_batches.clear()


def answer(replica: Replica, follower: NodeId, end: Offset, *, is_accepted: bool = True) -> None:
    group = replica.group
    group.post(
        Received(
            AppendResponse(
                group=GROUP,
                source=follower,
                target=OURSELVES,
                term=group.core.term,
                round=0,
                enrolment=group.core.progress(follower).enrolment,
                accepted=is_accepted,
                synced_end=end,
                received_end=end,
            )
        )
    )


def say_by_ping(replica: Replica, node: NodeId, *, is_full: bool | None) -> None:
    ping = encode_message(PeerKind.PING, Ping(disk_full=is_full), 0)
    decoder = FrameDecoder(64 * KIB)
    decoder.writable()[: len(ping)] = ping
    decoder.received(len(ping))
    frame = decoder.next_frame()
    assert frame is not None
    replica.node.on_frame(node, frame)


def test_a_full_follower_is_sent_no_records_while_the_others_are_a_majority() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await lead_both(replica)
            replica.node.fitness.note_disk(THIRD, is_full=True)
            replica.propose()
            await a_while()
            await replica.commit()
            assert (sent_to(replica, SECOND), sent_to(replica, THIRD)) == ([2], [])
            assert replica.group.feeder.is_in_sync(SECOND)
            assert not replica.group.feeder.is_in_sync(THIRD)
            assert replica.group.is_ready

            replica.node.fitness.note_disk(THIRD, is_full=False)
            await a_while()

            assert sent_to(replica, THIRD) == [2]

    play(story)


def test_a_full_follower_that_is_needed_gets_what_was_on_its_way() -> None:
    """Or a new leader that has it could not begin, and nobody could read."""

    async def story() -> None:
        async with open_replica() as replica:
            await lead_both(replica)
            replica.node.fitness.note_disk(SECOND, is_full=True)
            replica.node.fitness.note_disk(THIRD, is_full=True)
            replica.propose()
            await a_while()

            assert sent_to(replica, SECOND) == sent_to(replica, THIRD) == [2]

    play(story)


def test_a_full_follower_is_sent_what_leads_to_a_trim() -> None:
    """Or ``logd topic trim`` would make no room where there is none."""

    async def story() -> None:
        async with open_replica() as replica:
            await lead_both(replica)
            replica.node.fitness.note_disk(THIRD, is_full=True)
            replica.propose()
            await a_while()
            await replica.commit()
            assert sent_to(replica, THIRD) == []

            replica.group.append_control(Trim(start_offset=2))
            await a_while()
            answer(replica, THIRD, replica.group.log.end_offset)
            replica.propose()
            await a_while()

            assert sent_to(replica, THIRD) == [3]

    play(story)


def test_a_full_follower_that_lacks_much_is_sent_nothing_of_it() -> None:
    async def story() -> None:
        async with open_replica(segment_bytes=64 * MIB) as replica:
            group = replica.group
            await lead_both(replica)
            replica.node.fitness.note_disk(THIRD, is_full=True)
            for _ in range(PEER_WINDOW_BYTES_MAX // MIB + 1):
                replica.propose(bytes(MIB - KIB))
                await a_while()
                await replica.commit()
            replica.node.fitness.note_disk(SECOND, is_full=True)
            group.feeder.send()
            await a_while()

            assert sent_to(replica, THIRD) == []

    play(story)


def test_a_log_that_feeds_a_state_machine_goes_to_full_disks_too() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            replica.group.application = NoApplication()
            await lead_both(replica)
            replica.node.fitness.note_disk(THIRD, is_full=True)
            replica.propose()
            await a_while()

            assert sent_to(replica, THIRD) == [2]

    play(story)


class NoApplication:
    """Takes what is installed, and does nothing with it."""

    def on_installed(self, offset: Offset, payload: bytes) -> None:
        raise AssertionError


def test_a_full_follower_is_shipped_no_state() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await lead_both(replica)
            replica.node.fitness.note_disk(THIRD, is_full=True)

            replica.group._shipper.ship_soon(THIRD)
            assert not replica.group._shipper._under_way
            replica.group._shipper.ship_soon(SECOND)
            assert replica.group._shipper._under_way

    play(story)


def test_records_are_refused_while_a_majority_needs_a_full_disk_and_the_error_names_it() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            check = replica.group.feeder.check_disks
            await lead_both(replica)
            replica.node.fitness.note_disk(THIRD, is_full=True)
            check()
            replica.node.fitness.note_disk(SECOND, is_full=True)
            with pytest.raises(DiskFullError, match=r"no room on disk for more at brokers 2, 3:"):
                check()

            replica.node.fitness.note_disk(SECOND, is_full=False)
            check()
            replica.group.post(PeerDown(SECOND))
            with pytest.raises(DiskFullError, match=r"no room on disk for more at broker 3:"):
                check()

    play(story)


def test_a_majority_that_is_down_is_no_matter_of_full_disks() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES, SECOND, THIRD)) as replica:
            await lead_both(replica)
            replica.node.fitness.note_disk(OURSELVES, is_full=True)
            for peer in (SECOND, THIRD):
                replica.group.post(PeerDown(peer))

            replica.group.feeder.check_disks()  # They are missing, whatever the disks are like.

    play(story)


def test_a_ping_says_whose_disk_is_full_and_nothing_of_it_changes_nothing() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            full_disks = replica.node.fitness.full_disks
            say_by_ping(replica, SECOND, is_full=True)
            assert list(full_disks) == [SECOND]
            say_by_ping(replica, SECOND, is_full=None)
            assert list(full_disks) == [SECOND]
            say_by_ping(replica, SECOND, is_full=False)
            assert not full_disks

    play(story)
