"""What peers answer to a repair is taken for what it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio

from logd.errors import UnavailableError
from logd.limits import KIB, MIB, SEGMENT_HEADER_BYTES, SNAPSHOT_CHUNK_BYTES
from logd.partition.state import PartitionState, TermRow
from logd.raft.messages import HardState
from logd.record.compacted import make_gap
from logd.record.header import decode_header
from logd.replication.answering import STATE_KEPT_S
from logd.replication.checkpoints import Checkpoints
from logd.replication.group import Group
from logd.replication.node import Node
from logd.replication.opening import OpenedGroup, open_group
from logd.replication.patience import WAIT_S_MAX
from logd.replication.peer_protocol import (
    AnyPeerMessage,
    RepairRequest,
    RepairResponse,
    StateRequest,
    StateResponse,
)
from logd.replication.snapshot import Snapshot, checksum_of, encode_snapshot
from logd.replication.trimming import Trimmer
from logd.storage.directory import HARD_STATE_NAME
from logd.storage.hard_state import MEMORY_LOST, HardStateFile
from logd.storage.holes import Hole
from logd.storage.log import Log, LogOptions, ScrubPosition
from logd.storage.retention import KEEP_EVERYTHING
from logd.storage.synced_mark import SLOT_POSITIONS
from logd.types import Buffer, GroupId, NodeId, Offset, Term
from tests.sim.files import SimulatedFileSystem
from tests.sim.run import run_deterministic
from tests.support.logs import read_all
from tests.support.replica import (
    GROUP,
    OURSELVES,
    SECOND,
    THIRD,
    Replica,
    a_while,
    let_peers_answer,
    open_replica,
    play,
    until,
)

TRASH = "/data/trash"
DIRECTORY = f"/data/groups/{GROUP:020}"


def let_peers_have_trimmed(monkeypatch: pytest.MonkeyPatch, node: Node, start: Offset) -> None:
    """All peers refuse to repair: their logs begin at ``start``."""

    def refuse(target: NodeId, message: AnyPeerMessage) -> bool:
        assert isinstance(message, RepairRequest | StateRequest)
        refusal = RepairResponse(request_id=message.request_id, refused="trimmed", log_start=start)
        node.questions.on_response(refusal, b"")
        return True

    let_peers_answer(monkeypatch, node, refuse)


def let_second_be_a_member(monkeypatch: pytest.MonkeyPatch, group: Group) -> None:
    """Who can be asked, of a group that is led without waiting for anybody."""
    members = property(lambda _: (OURSELVES, SECOND))
    monkeypatch.setattr(type(group.core.configuration), "members", members)


def test_an_answer_to_an_earlier_life_is_not_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both lives asked the same peer; the answer to the first comes late, in the second."""
    asked: list[int] = []

    async def ask_once(life: int) -> None:
        async with open_replica(life=life) as replica:
            questions = replica.node.questions

            def remember(target: NodeId, message: AnyPeerMessage) -> bool:
                assert isinstance(message, RepairRequest)
                for earlier in asked:
                    late = RepairResponse(request_id=earlier)
                    questions.on_response(late, b"what another life asked for")
                asked.append(message.request_id)
                return True

            with monkeypatch.context() as patch:
                patch.setattr(replica.node, "send_peer", remember)
                patch.setattr(replica.node, "is_up", lambda node: True)
                with trio.move_on_after(60):
                    fetched, _ = await questions.fetch(GROUP, (SECOND,), Offset(0), Offset(1))
                    assert fetched is None

    play(lambda: ask_once(1))
    play(lambda: ask_once(2))

    assert len(set(asked)) == 2


def test_a_log_is_scrubbed_soon_after_it_was_opened_however_long_the_scrubber_rests() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            files = replica.files
            while len([n for n in files.list_directory(DIRECTORY) if n.endswith(".log")]) < 2:
                replica.propose(bytes(4000))
                await trio.sleep(0.01)
            await a_while()
        files.kill()
        files.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)
        async with open_replica(files, voters=(OURSELVES,)) as replica:
            assert replica.node.repairer._scrub_interval_s >= 3600
            groups = replica.node.groups
            opened = groups.pop(GROUP)  # A broker opens its logs while it runs.
            await a_while()
            groups[GROUP] = opened
            await until(lambda: replica.node.counts.holes_found > 0)

    play(story)


def test_a_scrub_reads_no_faster_than_it_may_however_large_the_batches_are() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=64 * MIB) as replica:
            await replica.lead()
            for _ in range(8):
                outcomes = replica.propose(bytes(MIB))
                await until(lambda outcomes=outcomes: bool(outcomes))  # type: ignore[misc]
            files = replica.files
        files.kill()
        async with open_replica(files, voters=(OURSELVES,), segment_bytes=64 * MIB) as replica:
            began = trio.current_time()
            await replica.node.repairer._go_through(replica.group, bytes_per_s=2 * MIB)
            assert 3.5 <= trio.current_time() - began <= 4.5

    play(story)


def test_a_log_that_was_new_when_it_was_opened_is_not_scrubbed_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was written since is still what it was: nobody but us had it open."""
    scrubbed: list[float] = []

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            rest_s = replica.node.repairer._scrub_interval_s
            began = trio.current_time()
            await replica.lead()
            replica.propose()
            await trio.sleep(rest_s - 10)
            assert scrubbed == []
            await trio.sleep(20)
            assert [round(at - began - rest_s) for at in scrubbed] in ([0], [1])

    scrub = Log.scrub

    def noted(
        log: Log, position: ScrubPosition, bytes_max: int
    ) -> tuple[ScrubPosition | None, Hole | None]:
        scrubbed.append(trio.current_time())
        return scrub(log, position, bytes_max)

    monkeypatch.setattr(Log, "scrub", noted)
    run_deterministic(story, seed=1, time_limit_s=10_000)


def test_damage_above_the_commit_offset_stops_the_replica_instead_of_asking_its_peers() -> None:
    """Which bytes belong there is for the leader to say; a peer may hold what was replaced."""

    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose(bytes(2000))
            await until(lambda: not replica.group.syncer.needs_sync)
            assert replica.group.commit_offset < replica.group.log.end_offset
            replica.files.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)
            replica.node.repairer.report(replica.group)
            await until(lambda: replica.group.failure is not None)

            assert "damage above the commit offset" in str(replica.group.failure)

    play(story)


def test_only_what_is_committed_is_given_to_those_that_repair() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.propose()
            await until(lambda: not replica.group.syncer.needs_sync)
            committed, end = replica.group.commit_offset, replica.group.log.end_offset

            def wanting(end_offset: Offset) -> RepairRequest:
                return RepairRequest(
                    request_id=1, group=GROUP, start_offset=Offset(0), end_offset=end_offset
                )

            answers = replica.node.answers
            assert await answers._read(wanting(committed))
            with pytest.raises(UnavailableError, match="above the commit offset"):
                await answers._read(wanting(end))

    play(story)


ALL = (OURSELVES, SECOND, THIRD)


@pytest.mark.parametrize(
    ("second", "third", "settled_to"),
    [
        ((20, ALL), (10, ALL), 10),
        ((20, ALL), (0, ALL), 0),
        ((20, ALL), None, 0),
        ((20, ALL), (20, (OURSELVES, THIRD)), 0),
        ((20, (*ALL, NodeId(4))), (20, ALL), 0),
    ],
)
def test_logs_are_settled_elsewhere_as_far_as_all_others_say_who_know_the_same_replicas(
    monkeypatch: pytest.MonkeyPatch,
    second: tuple[int, tuple[NodeId, ...]],
    third: tuple[int, tuple[NodeId, ...]] | None,
    settled_to: int,
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            answers = {SECOND: second, THIRD: third}

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                if not isinstance(message, RepairRequest):
                    return True
                assert message.start_offset == message.end_offset
                if (says := answers[target]) is not None:
                    response = RepairResponse(
                        request_id=message.request_id, settled_to=says[0], members=[*says[1]]
                    )
                    replica.node.questions.on_response(response, b"")
                return True

            let_peers_answer(monkeypatch, replica.node, answer)
            assert await replica.node.questions.settled_elsewhere(replica.group) == settled_to

    play(story)


def test_a_replica_says_how_far_its_log_is_settled_and_who_replicates_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica() as replica:
            await replica.lead()
            replica.group.settled_to = Offset(1)
            said: list[AnyPeerMessage] = []

            def remember(
                target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
            ) -> bool:
                said.append(message)
                return not buffers

            monkeypatch.setattr(replica.node, "send_peer", remember)
            for group in (GROUP, GroupId(99)):
                request = RepairRequest(
                    request_id=5, group=group, start_offset=Offset(0), end_offset=Offset(0)
                )
                await replica.node.answers._serve(SECOND, request)
            assert said == [
                RepairResponse(request_id=5, settled_to=1, members=[*ALL]),
                RepairResponse(request_id=5),
            ]

    play(story)


async def fill_segments(replica: Replica, count: int) -> None:
    """So many of 8 KiB, with something in the active one too."""
    while len(replica.group.log.segment_bases) < count:
        replica.propose(bytes(3000))
        await a_while()
    replica.propose(bytes(3000))
    await a_while()


@pytest.mark.parametrize("is_active", [False, True])
def test_damage_that_its_peers_have_let_go_is_let_go_too(
    monkeypatch: pytest.MonkeyPatch, is_active: bool
) -> None:
    """Nobody could fill it any more, and what cannot be read stood in the way of retention."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            group, files = replica.group, replica.files
            await fill_segments(replica, 4)
            bases, end = group.log.segment_bases, group.log.end_offset
            damaged, let_go = (bases[-1], end) if is_active else (0, bases[2])
            files.flip(f"{DIRECTORY}/{damaged:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)
            files.make_directory(TRASH)

            let_peers_have_trimmed(monkeypatch, replica.node, let_go)
            let_second_be_a_member(monkeypatch, group)
            replica.node.repairer.report(group)
            await until(lambda: group.damage is not None)
            trimmer = Trimmer(group, replica.node)
            await trimmer.apply(KEEP_EVERYTHING, TRASH)
            if is_active:  # Only sealed segments are let go: it takes two rounds.
                await a_while()
                await trimmer.apply(KEEP_EVERYTHING, TRASH)
            assert (group.log.start_offset, group.log.end_offset) == (let_go, end)
            await until(lambda: group.damage is None)

    play(story)


class Follower:
    """A state machine that is fed from a log, and remembers what it was given in its place."""

    def __init__(self) -> None:
        self.installed: list[tuple[Offset, bytes]] = []

    def on_installed(self, offset: Offset, payload: bytes) -> None:
        self.installed.append((offset, payload))


@pytest.mark.parametrize(
    ("is_active", "is_half_there"), [(False, False), (True, False), (False, True)]
)
def test_what_is_fed_from_a_log_is_given_a_peers_state_where_peers_have_let_its_damage_go(
    monkeypatch: pytest.MonkeyPatch, is_active: bool, is_half_there: bool
) -> None:
    """It could not read on through the hole, and nobody would ever fill that: also if peers have
    the end of it, which has nothing here to be joined to."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            group, files, repairer = replica.group, replica.files, replica.node.repairer
            follower = group.application = Follower()
            await fill_segments(replica, 3)
            bases, end = group.log.segment_bases, group.log.end_offset
            damaged, begins = (bases[-1], end) if is_active else (bases[1], bases[2])
            let_go = Offset(begins - 1) if is_half_there else begins
            kept = Offset(begins - 1)
            await group.checkpoints.save_application(kept, b"too old")
            files.flip(f"{DIRECTORY}/{damaged:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)
            if is_half_there:  # Of its two batches the second one too.
                files.flip(f"{DIRECTORY}/{damaged:020}.log", SEGMENT_HEADER_BYTES + 5000, 3)
            files.make_directory(TRASH)
            state = group._opened.snapshot_state(group.state, group.core).encode()
            peers = Snapshot(
                start_offset=let_go,
                state_offset=end,
                state=state,
                application_offset=end,
                application=b"a peer's",
            )

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                if isinstance(message, StateRequest):
                    encoded = encode_snapshot(peers)
                    given = StateResponse(
                        request_id=message.request_id,
                        total_bytes=len(encoded),
                        checksum=checksum_of(encoded),
                    )
                    replica.node.questions.on_response(given, encoded)
                else:
                    assert isinstance(message, RepairRequest)
                    refusal = RepairResponse(
                        request_id=message.request_id, refused="trimmed", log_start=let_go
                    )
                    replica.node.questions.on_response(refusal, b"")
                return True

            let_peers_answer(monkeypatch, replica.node, answer)
            let_second_be_a_member(monkeypatch, group)
            trimmer = Trimmer(group, replica.node)
            group.damage, group.let_go_elsewhere = "is not known yet", let_go
            await trimmer.apply(KEEP_EVERYTHING, TRASH)
            assert group.log.start_offset == 0  # It does not know what was applied.

            repairer.report(group)
            await until(lambda: group.log.start_offset == begins)

            assert (end, b"a peer's") in follower.installed
            assert await group.checkpoints.load_application() == (end, b"a peer's")
            await until(lambda: group.damage is None)

    play(story)


def test_what_was_kept_may_be_ahead_of_what_is_known_to_be_committed_when_damage_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a restart: a leader has yet to tell what is committed, and the synced mark lags."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            group, files, repairer = replica.group, replica.files, replica.node.repairer
            group.application = Follower()
            await fill_segments(replica, 3)
            bases = group.log.segment_bases
            kept = Offset(group.commit_offset + 1)
            group._opened.applications.save(kept, b"what is here")
            files.flip(f"{DIRECTORY}/{bases[1]:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)
            files.make_directory(TRASH)

            let_peers_have_trimmed(monkeypatch, replica.node, bases[2])
            let_second_be_a_member(monkeypatch, group)
            repairer.report(group)
            await until(lambda: group.log.start_offset == bases[2])

            assert await group.checkpoints.load_application() == (kept, b"what is here")

    play(story)


@pytest.mark.parametrize("has_application", [False, True])
def test_a_shut_log_is_not_let_go_beyond_what_is_kept_of_the_state_machine_that_it_feeds(
    monkeypatch: pytest.MonkeyPatch, has_application: bool
) -> None:
    """Opened again it would begin behind that state, and nobody could say what lay between."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            files, group = replica.files, replica.group
            await fill_segments(replica, 4)
            bases = group.log.segment_bases
            await group.checkpoints.save_application(bases[1], b"kept")
        files.kill()
        for damaged in (0, bases[2]):
            path = f"{DIRECTORY}/{damaged:020}.log"
            files.flip(path, SEGMENT_HEADER_BYTES + 1000, 3)
            files.overwrite(path, SLOT_POSITIONS[0], bytes(1024))  # Else nobody looks at the start.

        async with open_replica(files, group_id=GroupId(8)) as other:
            node = other.node

            let_peers_have_trimmed(monkeypatch, node, bases[3])
            opened = open_group(
                files,
                node.membership.directory,
                OURSELVES,
                GROUP,
                LogOptions(segment_bytes=8 * KIB),
            )
            assert opened.damage is not None

            with trio.move_on_after(5):
                await node.repairer.mend(
                    opened, (OURSELVES, SECOND), has_application=has_application
                )

            assert opened.log.start_offset == bases[1 if has_application else 3]

    play(story)


class Across:
    """A log with a hole across the place where its peers' logs begin; all of it is committed.

    The hole is the second of three segments, or the active one.
    """

    bases: tuple[Offset, ...]
    end: Offset
    let_go: Offset
    """Where peers' logs begin: in the hole."""
    states: dict[Offset, bytes]
    """Of the partition, by the offset that they are of."""
    batches: list[bytes]
    """All there were."""
    asked: list[tuple[int, int]]
    """The offsets that peers were asked for, in order."""

    def __init__(self) -> None:
        self.files = SimulatedFileSystem(random.Random(1))
        self.asked = []

    async def write(self, *, is_active: bool, is_longer: bool = False) -> None:
        """And damage it: the active segment or the one before it."""
        sizes = (3000, 3000, 3000, 3000, 1000, 1000, *([1000] if is_longer else []))
        async with open_replica(self.files, voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            group = replica.group
            self.states = {}
            for size in sizes:
                replica.propose(bytes(size))
                await a_while()
                self.end = group.log.end_offset
                state = group._opened.snapshot_state(group.state, group.core)
                self.states[self.end] = state.encode()
            self.bases = group.log.segment_bases
            self.batches = read_all(group.log)
            assert len(self.batches) == self.end == group.commit_offset
            assert self.end == self.bases[2] + 2 + is_longer
        self.files.kill()
        damaged, size = (self.bases[2], 1000) if is_active else (self.bases[1], 3000)
        self.let_go = Offset(damaged + 1)
        path = f"{DIRECTORY}/{damaged:020}.log"
        # From within the first batch to within the second.
        self.files.overwrite(path, SEGMENT_HEADER_BYTES + size // 2, bytes(size))
        if not is_active:  # Else nobody looks at the start.
            self.files.overwrite(path, SLOT_POSITIONS[0], bytes(1024))

    def part_the_hole(self) -> None:
        """Of the three batches of the active segment only the one in the middle is intact."""
        first, intact, _ = self.batches[-3:]
        path = f"{DIRECTORY}/{self.bases[2]:020}.log"
        position = SEGMENT_HEADER_BYTES + len(first)
        self.files.overwrite(path, position, intact)
        self.files.flip(path, position + len(intact) + 60)

    def compact(self, offset: int) -> None:
        """Of this batch nothing is left in the logs of the peers."""
        header = decode_header(self.batches[offset])
        self.batches[offset] = make_gap(
            header.base_offset,
            header.end_offset,
            term=header.term,
            append_time_ms=header.append_time_ms,
            group=GROUP,
        )

    def given(self, request: RepairRequest) -> bytes:
        """What a peer gives of it that still has its end."""
        self.asked.append((request.start_offset, request.end_offset))
        if request.start_offset < self.let_go:
            return b""
        return b"".join(self.batches[request.start_offset : request.end_offset])

    def snapshot(self, state: int, application: int | None = None) -> Snapshot:
        """What a peer has, as of these offsets."""
        return Snapshot(
            start_offset=self.let_go,
            state_offset=Offset(state),
            state=self.states[Offset(state)],
            application_offset=Offset(application or 0),
            application=None if application is None else b"a peer's",
        )

    async def mend(
        self,
        monkeypatch: pytest.MonkeyPatch,
        peers: Sequence[Snapshot],
        *,
        kept: int = 0,
        has_application: bool = True,
        let_go: Offset | None = None,
        have_the_rest: bool = False,
        hard_state: HardState | None = None,
    ) -> OpenedGroup:
        """Try it for some time; returns the replica as it is when it is opened again.

        Args:
            peers: their states.
            kept: where the state lies that this one has kept of the state machine.
            let_go: where the logs of the peers begin; None: in the hole.
            have_the_rest: they give what they have.
            hard_state: what its own comes to, which was a newcomer's and rested on the same before
                if this is and does; None: it stays.
        """
        given = dict(zip((SECOND, THIRD), map(encode_snapshot, peers), strict=False))
        async with open_replica(self.files, group_id=GroupId(8)) as other:
            node = other.node

            def answer(target: NodeId, message: AnyPeerMessage) -> bool:
                if isinstance(message, StateRequest):
                    encoded = given.get(target, b"")
                    state = StateResponse(
                        request_id=message.request_id,
                        total_bytes=len(encoded),
                        checksum=checksum_of(encoded),
                    )
                    node.questions.on_response(state, encoded)
                elif isinstance(message, RepairRequest):
                    response = RepairResponse(
                        request_id=message.request_id,
                        refused="trimmed",
                        log_start=self.let_go if let_go is None else let_go,
                    )
                    body = self.given(message) if have_the_rest else b""
                    node.questions.on_response(response, body)
                return True

            let_peers_answer(monkeypatch, node, answer)
            self.files.make_directory(TRASH)

            def opened() -> OpenedGroup:
                options = LogOptions(segment_bytes=8 * KIB)
                return open_group(self.files, node.membership.directory, OURSELVES, GROUP, options)

            shut = opened()
            assert shut.damage is not None
            if hard_state is not None and hard_state.is_newcomer:
                path, promised = f"{DIRECTORY}/{HARD_STATE_NAME}", shut.hard_state.load()
                self.files.remove(path)
                HardStateFile.create(self.files, path, shut.identity, promised)
                shut = opened()
            if hard_state is not None:
                shut.hard_state.save(
                    *shut.hard_state.load(),
                    is_newcomer=hard_state.is_newcomer,
                    rests_on=hard_state.rests_on,
                )
            if kept:
                shut.applications.save(Offset(kept), b"kept")
            with trio.move_on_after(5):
                await node.repairer.mend(
                    shut, (OURSELVES, SECOND, THIRD), has_application=has_application
                )
            again = opened()
            again.close()
        self.files.kill()
        assert again.loaded_hard_state == (hard_state or shut.loaded_hard_state)
        return again


def test_a_shut_log_is_let_go_as_far_as_what_it_feeds_is_kept_though_peers_have_more_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is enough that nobody has the beginning of the hole."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=False)

        opened = await shut.mend(monkeypatch, [], kept=shut.bases[2])

        assert opened.damage is None
        assert (opened.log.start_offset, opened.log.end_offset) == (shut.bases[2], shut.end)

    play(story)


def test_a_shut_log_is_let_go_as_far_as_a_peer_has_kept_what_it_feeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own state ends in the segment of the hole. All that lies behind that is kept."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=False)
        reached = shut.bases[2] + 1

        opened = await shut.mend(monkeypatch, [shut.snapshot(reached, reached)], kept=reached - 2)

        assert opened.damage is None
        assert (opened.log.start_offset, opened.log.end_offset) == (shut.bases[2], shut.end)
        assert opened.applications.load() == (reached, b"a peer's")

    play(story)


def test_a_shut_log_that_feeds_a_state_machine_begins_behind_a_state_that_reaches_over_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It begins where the state is, not where the peer's log begins: it would be shorter than what
    it has acknowledged.  And one peer that is not so far is not the last one asked."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=True)
        end = shut.end

        opened = await shut.mend(
            monkeypatch, [shut.snapshot(end - 1, end - 1), shut.snapshot(end, end)]
        )

        assert opened.damage is None
        assert (opened.log.start_offset, opened.log.end_offset) == (end, end)
        assert opened.commit_offset == opened.state.end_offset == end
        assert opened.applications.load() == (end, b"a peer's")

    play(story)


@pytest.mark.parametrize("is_newcomer", [False, True])
def test_a_log_that_is_replaced_by_a_state_of_a_later_term_does_not_reach_beyond_its_votes(
    monkeypatch: pytest.MonkeyPatch, *, is_newcomer: bool
) -> None:
    """Nor does a replica that has lost its memory, or was here before, forget that it may have
    vouched for more."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=True)
        end, later = shut.end, Term(7)
        state, rows, change = PartitionState.decode(shut.states[end])
        rows = (*rows, TermRow(later, Offset(end - 1)))
        shut.states[end] = state.snapshot(term_rows=rows, configuration=change).encode()

        opened = await shut.mend(
            monkeypatch,
            [shut.snapshot(end, end)],
            hard_state=HardState(later, None, is_newcomer, MEMORY_LOST),
        )

        assert opened.damage is None
        assert opened.log.start_offset == end

    play(story)


@pytest.mark.parametrize(("state_lacks", "application_lacks"), [(1, 0), (0, 1), (1, 1), (0, None)])
def test_a_shut_log_is_not_given_up_for_a_state_that_does_not_reach_over_all_of_it(
    monkeypatch: pytest.MonkeyPatch, state_lacks: int, application_lacks: int | None
) -> None:
    """What it has acknowledged behind that it would have forgotten when it votes."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=True)
        end = shut.end
        application = None if application_lacks is None else end - application_lacks

        opened = await shut.mend(
            monkeypatch, [shut.snapshot(end - state_lacks, application)], kept=shut.bases[1]
        )

        assert opened.damage is not None
        assert opened.log.segment_bases == shut.bases
        assert opened.log.mark is not None
        assert opened.log.mark.end_offset == end

    play(story)


@pytest.mark.parametrize("is_active", [False, True])
def test_records_that_peers_have_are_not_given_up_with_a_hole(
    monkeypatch: pytest.MonkeyPatch, is_active: bool
) -> None:
    """Somebody may read them, and a state does not hold them."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=is_active)
        end = shut.end

        for let_go in (None, end):  # Another peer may have let go of more than that one.
            opened = await shut.mend(
                monkeypatch, [shut.snapshot(end, end)], has_application=False, let_go=let_go
            )
            assert opened.damage is not None
            assert opened.log.segment_bases == shut.bases

    play(story)


@pytest.mark.parametrize("is_active", [False, True])
def test_a_shut_log_begins_where_its_peers_do_within_the_segment_of_its_hole(
    monkeypatch: pytest.MonkeyPatch, is_active: bool
) -> None:
    """Retention lets go of whole segments, which end elsewhere in each log.  What lies behind is
    not given up, and what was promised of it is not forgotten."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=is_active)
        start, end = shut.let_go, shut.end

        opened = await shut.mend(
            monkeypatch, [shut.snapshot(start)], has_application=False, have_the_rest=True
        )

        assert opened.damage is None
        assert (opened.log.start_offset, opened.log.end_offset) == (start, end)
        assert opened.log.prev_term == opened.log.last_term == 1
        assert opened.commit_offset >= start
        assert opened.state.end_offset == end
        assert opened.terms == [(1, 0)]
        assert read_all(opened.log) == shut.batches[start:]

    play(story)


def test_a_shut_log_begins_within_a_segment_that_peers_have_compacted_behind_its_hole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second hole there cannot be filled, for their bytes differ; nor is all of it to be had."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=True, is_longer=True)
        shut.part_the_hole()
        shut.compact(-1)

        opened = await shut.mend(
            monkeypatch, [shut.snapshot(shut.end)], has_application=False, have_the_rest=True
        )

        assert opened.damage is None
        assert (opened.log.start_offset, opened.log.end_offset) == (shut.let_go, shut.end)
        assert read_all(opened.log) == shut.batches[-2:]

    play(story)


def test_a_shut_log_is_not_whole_before_what_lies_behind_a_segment_that_was_copied_is_mended_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever opened it then would vote for, and lead, with what it has lost."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=False)
        shut.let_go = Offset(0)
        shut.compact(shut.bases[1])
        active = f"{DIRECTORY}/{shut.bases[2]:020}.log"
        shut.files.flip(active, SEGMENT_HEADER_BYTES + 500, 3)

        opened = await shut.mend(monkeypatch, [], has_application=False, have_the_rest=True)

        assert opened.damage is None
        assert read_all(opened.log) == shut.batches

    play(story)


def test_a_segment_that_was_copied_is_looked_through_anew_for_what_is_still_wrong_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its other holes went with it: what fitted there would be written over what was copied."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=True, is_longer=True)
        shut.part_the_hole()
        shut.let_go = Offset(0)
        shut.compact(-3)
        start, end = shut.bases[2], shut.end

        opened = await shut.mend(monkeypatch, [], has_application=False, have_the_rest=True)

        assert opened.damage is None
        assert read_all(opened.log) == shut.batches
        assert shut.asked == [(start, start + 1), (start, end)]

    play(story)


def test_a_shut_log_begins_within_a_segment_that_peers_have_trimmed_before_its_hole_and_compacted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They have the offsets of the hole, with other bytes, and not all of the segment."""

    async def story() -> None:
        shut = Across()
        await shut.write(is_active=True, is_longer=True)
        shut.part_the_hole()
        path = f"{DIRECTORY}/{shut.bases[2]:020}.log"
        shut.files.overwrite(path, SEGMENT_HEADER_BYTES, shut.batches[-3])
        shut.compact(-1)

        opened = await shut.mend(
            monkeypatch, [shut.snapshot(shut.end)], has_application=False, have_the_rest=True
        )

        assert opened.damage is None
        assert (opened.log.start_offset, opened.log.end_offset) == (shut.let_go, shut.end)
        assert read_all(opened.log) == shut.batches[-2:]

    play(story)


@pytest.mark.parametrize("is_active", [False, True])
def test_a_log_that_begins_anew_needs_a_state_that_is_certainly_its_own(
    monkeypatch: pytest.MonkeyPatch, is_active: bool
) -> None:
    """A peer's may be ahead of a log that is committed to its end, as one that was shipped.  Where
    more follows, that is not known to be what the state is of."""

    async def story() -> None:
        peer, shut = Across(), Across()
        await peer.write(is_active=is_active, is_longer=True)
        await shut.write(is_active=is_active)
        for name in shut.files.list_directory(DIRECTORY):
            if name.startswith("checkpoint"):
                shut.files.remove(f"{DIRECTORY}/{name}")

        opened = await shut.mend(
            monkeypatch, [peer.snapshot(peer.end)], has_application=False, have_the_rest=True
        )

        if is_active:
            assert opened.damage is None
            assert opened.log.segment_bases == (shut.let_go,)
            assert (opened.log.end_offset, opened.state.end_offset) == (shut.end, peer.end)
        else:
            assert opened.damage is not None
            assert opened.log.segment_bases == shut.bases

    play(story)


def test_a_hole_that_nobody_can_fill_is_looked_for_less_and_less_until_a_peer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each attempt reads the whole log, and asks every peer."""
    asked_at: list[float] = []

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            group, files = replica.group, replica.files
            replica.propose(bytes(3000))
            await until(lambda: group.commit_offset == 2)
            await a_while()
            files.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)

            def remember(target: NodeId, message: AnyPeerMessage) -> bool:
                asked_at.append(trio.current_time())
                return False

            let_peers_answer(monkeypatch, replica.node, remember)
            let_second_be_a_member(monkeypatch, group)
            repairer = replica.node.repairer
            repairer.report(group)
            for _ in range(120):
                await trio.sleep(1)
                repairer.report(group)  # Somebody reads it all the time.

            waits = [round(after - before, 3) for before, after in pairwise(asked_at)]
            assert waits[0] < 1
            assert waits == sorted(waits)
            assert waits[-1] == pytest.approx(WAIT_S_MAX, abs=0.1)

            was_asked = len(asked_at)
            repairer.hope()
            await a_while()
            assert len(asked_at) == was_asked + 1

    play(story)


def test_what_a_scrub_finds_and_nobody_can_fill_is_looked_for_again_long_before_the_next_scrub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether anybody reads it or not: a peer that was away for a moment may help by then."""
    asked_at: list[float] = []

    def remember(target: NodeId, message: AnyPeerMessage) -> bool:
        asked_at.append(trio.current_time())
        return False

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            await fill_segments(replica, 2)
            await a_while()
            files = replica.files
        files.kill()
        files.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + 1000, 3)
        async with open_replica(files, voters=(OURSELVES,)) as replica:
            let_peers_answer(monkeypatch, replica.node, remember)
            let_second_be_a_member(monkeypatch, replica.group)

            await until(lambda: len(asked_at) > 3)

            assert replica.group.failure is None

    play(story)


def test_a_peers_state_is_taken_that_fits_the_log_and_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that ends before the log begins leads nowhere; one that is ahead of the log waits."""

    async def story() -> None:
        async with open_replica(
            voters=(OURSELVES, SECOND, THIRD), segment_bytes=8 * KIB
        ) as replica:
            await replica.lead()
            group, repairer = replica.group, replica.node.repairer
            for _ in range(4):
                replica.propose(bytes(3000))
                await replica.commit()
                await a_while()
            group.log.trim(group.log.segment_bases[1])
            start, end = group.log.start_offset, group.commit_offset
            assert 0 < start < end
            given: dict[NodeId, int | None] = {}

            async def fetch_state(_: GroupId, member: NodeId) -> Snapshot | None:
                offset = given.get(member)
                return None if offset is None else state_at(offset)

            def state_at(offset: int) -> Snapshot:
                return Snapshot(
                    start_offset=start,
                    state_offset=start,
                    state=b"",
                    application_offset=Offset(offset),
                    application=b"a peer's",
                )

            monkeypatch.setattr(replica.node.questions, "fetch_state", fetch_state)
            for unfit in (None, start - 1, end + 1):
                given[SECOND] = unfit
                with pytest.raises(UnavailableError, match=f"begins at offset {start}; none of"):
                    await repairer.restore_application(group)
                await a_while()
                repairer.hope()
                await a_while()
            for fit in (start, end):
                given[THIRD] = fit

                assert await repairer.restore_application(group) == (fit, b"a peer's")
                assert await group.checkpoints.load_application() == (fit, b"a peer's")

    play(story)


def test_a_state_that_no_peer_gives_is_asked_for_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each answer is a whole state, and those who want one ask every second."""
    asked_at: list[float] = []

    async def story() -> None:
        async with open_replica() as replica:
            group, repairer = replica.group, replica.node.repairer

            async def none_fits(*_: object) -> None:
                asked_at.append(trio.current_time())

            async def ask_for(seconds: int) -> None:
                for _ in range(seconds):
                    with pytest.raises(UnavailableError, match="no peer has given its own"):
                        await repairer.restore_application(group)
                    await trio.sleep(1)

            monkeypatch.setattr(repairer, "_application_of_a_peer", none_fits)
            await ask_for(120)

            waits = [after - before for before, after in pairwise(asked_at)]
            assert waits[0] == 1
            assert waits == sorted(waits)
            assert waits[-1] == pytest.approx(WAIT_S_MAX, abs=1)
            was_asked = len(asked_at)
            repairer.hope()
            await a_while()
            await ask_for(2)
            assert len(asked_at) == was_asked + 2
            # A hole in the same log waits for others.
            assert not repairer.patience.is_resting(group.group_id)

    play(story)


def test_a_state_that_is_kept_for_one_is_not_let_go_for_what_another_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor kept any longer for that."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            answers = replica.node.answers
            taken = 0

            async def take_snapshot(_: Checkpoints) -> Snapshot:
                nonlocal taken
                taken += 1
                return Snapshot(
                    start_offset=Offset(1), state_offset=Offset(1), state=bytes(3 * MIB)
                )

            monkeypatch.setattr(replica.node, "send_peer", lambda *_: True)
            monkeypatch.setattr(Checkpoints, "take_snapshot", take_snapshot)

            async def ask(source: NodeId, group: int, position: int) -> None:
                request = StateRequest(request_id=1, group=group, position=position)
                answers.on_state_request(source, request)
                await a_while()

            await ask(SECOND, GROUP, 0)
            await ask(THIRD, GROUP + 1, 0)
            await ask(SECOND, GROUP, SNAPSHOT_CHUNK_BYTES)
            assert taken == 1

            await trio.sleep(STATE_KEPT_S - 1)
            await ask(THIRD, GROUP + 1, 0)
            await trio.sleep(2)
            assert answers._state_kept is None

    play(story)


def test_a_state_that_nobody_asks_on_for_is_not_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever wanted it may have died after the first piece."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8 * KIB) as replica:
            await replica.lead()
            group, answers = replica.group, replica.node.answers
            given: list[int] = []

            def note(
                target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
            ) -> bool:
                given.append(sum(map(len, buffers)))
                return True

            state = Snapshot(start_offset=Offset(1), state_offset=Offset(1), state=bytes(3 * MIB))

            async def take_snapshot(_: Checkpoints) -> Snapshot:
                return state

            def is_kept() -> bool:
                return answers._state_kept is not None

            monkeypatch.setattr(replica.node, "send_peer", note)
            monkeypatch.setattr(Checkpoints, "take_snapshot", take_snapshot)

            async def ask_from(position: int) -> None:
                request = StateRequest(request_id=1, group=group.group_id, position=position)
                answers.on_state_request(SECOND, request)
                await a_while()

            await ask_from(0)
            await trio.sleep(STATE_KEPT_S - 1)
            await ask_from(given[0])
            await trio.sleep(STATE_KEPT_S - 1)
            assert is_kept()
            await trio.sleep(2)

            assert not is_kept()
            assert given == [SNAPSHOT_CHUNK_BYTES] * 2

    play(story)
