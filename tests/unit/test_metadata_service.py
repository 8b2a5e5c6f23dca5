"""The metadata service applies what is committed, and is honest about what may be."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from logd.broker import log_events, metadata_service
from logd.broker.disk_guard import RESUME_BYTES_MIN, DiskGuard
from logd.broker.metadata_service import RESULTS_KEPT_MAX, MetadataService
from logd.errors import (
    DiskFullError,
    InvalidRequestError,
    LeadershipLostError,
    LogdError,
    NotEnoughBrokersError,
    RequestTimeoutError,
    UnavailableError,
    UnsupportedVersionError,
)
from logd.limits import FEATURE_LEVEL, MIB
from logd.metadata.commands import (
    AddPartitions,
    AllocateProducerIds,
    BeginMove,
    Command,
    CreateTopic,
    FinishMove,
    FormCluster,
    RegisterBroker,
    encode_command,
)
from logd.metadata.features import AVOID_LEVEL, LEVEL_MAX, REPLICA_COUNT_LEVEL
from logd.metadata.state import MetadataState, ProducerIdBlock
from logd.raft.messages import PeerDown
from logd.record.batch import seal_opaque
from logd.record.header import BatchKind
from logd.replication.peer_protocol import ClusterView, Forward, ForwardResult, Lane, PeerHello
from logd.replication.snapshot import Snapshot
from logd.storage.file_header import FILE_HEADER_BYTES
from logd.types import METADATA_GROUP, DirectoryId, GroupId, NodeId, Offset, Term
from tests.sim.files import SimulatedFileSystem
from tests.support.replica import (
    OURSELVES,
    SECOND,
    THIRD,
    Replica,
    a_while,
    open_replica,
    play,
    until,
)

COMMAND = FormCluster(
    cluster_id="a-cluster",
    voters={node: DirectoryId(f"directory-{node}") for node in (OURSELVES, SECOND, THIRD)},
)


def attached(replica: Replica) -> MetadataService:
    service = MetadataService(replica.node)
    service.attach(replica.group)
    return service


def test_a_command_that_was_committed_but_not_seen_applied_may_have_taken_effect() -> None:
    """Also if there is no controller any more when the time is up."""

    async def story() -> None:
        async with open_replica(group_id=METADATA_GROUP) as replica:
            await replica.lead()
            service = attached(replica)  # It is not run: what is committed is not applied.

            async def execute() -> None:
                with pytest.raises(RequestTimeoutError) as refusal:
                    await service.execute(COMMAND, timeout_ms=1000, safe_to_repeat=False)
                assert refusal.value.may_have_applied

            async with trio.open_nursery() as nursery:
                nursery.start_soon(execute)
                await until(lambda: replica.group.log.end_offset == 2)
                await replica.commit()
                await a_while()
                replica.depose(Term(5))
                await a_while()
                replica.group.post(PeerDown(THIRD))
                assert replica.group.core.leader is None

    play(story)


def test_a_question_about_what_is_not_applied_yet_waits_for_it_and_then_is_refused() -> None:
    async def story() -> None:
        async with open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica:
            await replica.lead()
            service = attached(replica)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.run)
                asked_early = trio.Event()

                async def ask() -> None:
                    await service.reach(Offset(2), timeout_s=5)
                    asked_early.set()

                nursery.start_soon(ask)
                await a_while()
                assert not asked_early.is_set()
                await service.execute(COMMAND, timeout_ms=1000, safe_to_repeat=True)
                await asked_early.wait()
                assert service.applied_offset == 2
                with pytest.raises(UnavailableError, match="up to 2, the question is about 9"):
                    await service.reach(Offset(9), timeout_s=5)
                nursery.cancel_scope.cancel()

    play(story)


REPLICATED_TOPIC = CreateTopic(
    name="t", partitions=1, config={"durability": "replicated"}, now_ms=0
)
"""Known from feature level 2 on."""


def test_what_needs_a_higher_feature_level_does_not_get_into_the_log() -> None:
    """A broker that does not know it would have to stop there."""

    async def story() -> None:
        async with (
            open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            await replica.lead()
            service = attached(replica)
            nursery.start_soon(service.run)
            await until(lambda: service.applied_offset == 1)

            with pytest.raises(UnsupportedVersionError, match="needs feature level 2"):
                await service.execute(REPLICATED_TOPIC, timeout_ms=1000, safe_to_repeat=True)

            assert replica.group.log.end_offset == 1
            nursery.cancel_scope.cancel()

    play(story)


def test_a_controller_refuses_nothing_for_a_level_that_it_has_not_heard_of_yet() -> None:
    """It has just been elected, and what it knows is from before: a broker that is told so when it
    registers would end for good."""

    async def story() -> None:
        async with (
            open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            await replica.lead()
            formed = encode_command(msgspec.structs.replace(COMMAND, feature_level=FEATURE_LEVEL))
            await replica.group.commit(seal_opaque(formed, kind=BatchKind.DATA, timestamp_ms=1), 1)
            service = attached(replica)  # It is not run yet: what is committed is not applied.
            refused: list[LogdError] = []

            async def create() -> None:
                with pytest.raises(NotEnoughBrokersError) as refusal:
                    await service.execute(REPLICATED_TOPIC, timeout_ms=9000, safe_to_repeat=True)
                refused.append(refusal.value)

            nursery.start_soon(create)
            await trio.sleep(3)
            assert not refused
            nursery.start_soon(service.run)
            await until(lambda: len(refused) == 1)
            nursery.cancel_scope.cancel()

    play(story)


def test_metadata_that_cannot_be_read_is_applied_when_it_can_be_again() -> None:
    async def story() -> None:
        async with open_replica(
            group_id=METADATA_GROUP, voters=(OURSELVES,), tail_cache_bytes=0
        ) as replica:
            await replica.lead()
            service = attached(replica)
            replica.files.is_cold = True
            replica.fail_disk("read", match=".log")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.run)
                replica.propose()  # Not a command, and refused as that, later on.
                await trio.sleep(3)
                assert service.applied_offset == 0

                replica.files.on_operation = None
                await until(lambda: service.applied_offset == 1)
                assert not service.is_known
                nursery.cancel_scope.cancel()

    play(story)


def test_an_older_version_ends_at_what_a_newer_one_wrote_after_the_level_was_raised() -> None:
    """It would not get as far as to the refusal of its registration."""
    newer = msgspec.structs.replace(COMMAND, feature_level=FEATURE_LEVEL + 1)

    async def story() -> None:
        async with open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica:
            await replica.lead()
            service = attached(replica)
            formed = encode_command(newer)
            await replica.group.commit(seal_opaque(formed, kind=BatchKind.DATA, timestamp_ms=1), 1)
            replica.propose()  # Not a command of this version.

            with pytest.raises(InvalidRequestError, match=f"is at {FEATURE_LEVEL + 1}: start it"):
                await service.run()

    play(story)


class Forwarding:
    """A broker that forwards its commands to the third, which leads, and is played by the test."""

    def __init__(self, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwarded: list[Forward] = []
        self.replica = replica
        self.service = attached(replica)
        self._connect("main")
        replica.append([], term=Term(5))
        replica.node.claims.take(THIRD, {METADATA_GROUP: 5})
        monkeypatch.setattr(replica.node, "send_peer", self._send)

    def _send(self, target: NodeId, message: Forward) -> bool:
        assert target == THIRD
        self.forwarded.append(message)
        return True

    async def lose_connection(self, direction: str, lane: Lane) -> None:
        """And have another one at once."""
        await until(lambda: len(self.forwarded) > 0)
        if direction == "ours":
            self.replica.node.on_link_down(THIRD, lane)
        else:
            self._connect(lane)

    def _connect(self, lane: Lane) -> None:
        view = ClusterView(node=THIRD, directory_id="directory-3", cluster_list="")
        self.replica.node.on_accepted(PeerHello(protocol=1, view=view, incarnation=1, lane=lane))

    async def stay_alive(self) -> None:
        while True:
            self.replica.node.on_heard(THIRD)
            await trio.sleep(0.1)


@asynccontextmanager
async def forwarding_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Forwarding, trio.Nursery]]:
    """With a nursery that is cancelled at the end."""
    async with open_replica(group_id=METADATA_GROUP) as replica, trio.open_nursery() as nursery:
        forwarding = Forwarding(replica, monkeypatch)
        nursery.start_soon(forwarding.stay_alive)
        yield forwarding, nursery
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("direction", ["ours", "theirs"])
def test_who_forwarded_a_command_soon_hears_that_its_answer_may_have_been_lost(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with forwarding_broker(monkeypatch) as (forwarding, nursery):
            nursery.start_soon(forwarding.lose_connection, direction, "main")

            with trio.fail_after(1), pytest.raises(LeadershipLostError) as refusal:
                await forwarding.service.execute(COMMAND, timeout_ms=30_000, safe_to_repeat=False)

            assert "connection to the controller, node 3, was lost" in str(refusal.value)
            assert refusal.value.may_have_applied
            assert len(forwarding.forwarded) == 1

    play(story)


def test_a_command_that_may_be_repeated_is_forwarded_again_when_its_answer_may_have_been_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with forwarding_broker(monkeypatch) as (forwarding, nursery):
            nursery.start_soon(forwarding.lose_connection, "theirs", "main")

            async def execute() -> None:
                with pytest.raises(RequestTimeoutError):  # Nothing is ever applied here.
                    await forwarding.service.execute(COMMAND, timeout_ms=5_000, safe_to_repeat=True)

            nursery.start_soon(execute)
            await trio.sleep(1)

            first, second = forwarding.forwarded
            assert first.request_id != second.request_id
            assert first.command == second.command

    play(story)


@pytest.mark.parametrize("direction", ["ours", "theirs"])
def test_an_answer_that_comes_on_the_next_connection_counts(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with forwarding_broker(monkeypatch) as (forwarding, nursery):

            async def answer() -> None:
                await forwarding.lose_connection(direction, "main")
                (forward,) = forwarding.forwarded
                error = InvalidRequestError("no")
                forwarding.service._on_forward_result(
                    ForwardResult(request_id=forward.request_id, error_code=error.code, error="no")
                )

            nursery.start_soon(answer)

            with pytest.raises(InvalidRequestError, match="no"):
                await forwarding.service.execute(COMMAND, timeout_ms=30_000, safe_to_repeat=False)

    play(story)


def test_the_connection_for_large_pieces_carries_no_forwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with forwarding_broker(monkeypatch) as (forwarding, nursery):
            nursery.start_soon(forwarding.lose_connection, "ours", "bulk")
            nursery.start_soon(forwarding.lose_connection, "theirs", "bulk")

            with pytest.raises(RequestTimeoutError):
                await forwarding.service.execute(COMMAND, timeout_ms=3_000, safe_to_repeat=False)

    play(story)


def test_two_lives_of_a_broker_number_their_forwards_differently() -> None:
    async def story() -> None:
        numbers = []
        for incarnation in (11, 22):
            async with open_replica(group_id=METADATA_GROUP) as replica:
                replica.node.incarnation = incarnation
                numbers.append(MetadataService(replica.node)._next_forward)

        assert numbers == [11, 22]

    play(story)


def test_a_disk_whose_free_space_cannot_be_asked_leaves_things_as_they_are() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            guard = DiskGuard(replica.env, "/no/such/directory", 2**62, replica.node)
            with trio.move_on_after(3):
                await guard.run()
            guard.check()

            full = DiskGuard(replica.env, "/data", 2**62, replica.node)
            with trio.move_on_after(3):
                await full.run()
            with pytest.raises(DiskFullError):
                full.check()

    play(story)


def test_a_disk_that_may_run_full_is_looked_at_all_the_same() -> None:
    """Its free space is shown, and decides what is put on it."""

    async def story() -> None:
        async with open_replica() as replica:
            guard = DiskGuard(replica.env, "/data", 0, replica.node)
            with trio.move_on_after(3):
                await guard.run()

            assert guard.free_bytes == replica.env.files.free_bytes("/data") > 0
            guard.check()

    play(story)


def test_a_disk_that_is_full_to_the_last_byte_is_told_from_one_nobody_has_looked_at() -> None:
    """Of one that says 0 the planner thinks that it has room for everything."""

    async def story() -> None:
        async with open_replica() as replica:
            guard = DiskGuard(replica.env, "/data", 1024, replica.node)
            assert guard.free_bytes == 0
            replica.files.capacity_bytes = replica.files.used_bytes()
            with trio.move_on_after(3):
                await guard.run()

            assert guard.free_bytes == guard.room_bytes == 1

    play(story)


def test_a_disk_on_which_a_log_found_no_room_is_full_although_it_may_run_full() -> None:
    """Else a leader without room would refuse for ever what others could take."""

    async def story() -> None:
        async with open_replica() as replica:
            guard = DiskGuard(replica.env, "/data", 0, replica.node)
            free = RESUME_BYTES_MIN - 1
            replica.files.capacity_bytes = replica.files.used_bytes() + free
            await guard.look()
            guard.check()

            replica.node.fitness.note_disk(replica.node.node, is_full=True)  # As a log does.
            await guard.look()
            with pytest.raises(DiskFullError, match=r"7 MiB are free .*, appends need 8 MiB: free"):
                guard.check()

            replica.files.capacity_bytes += 1
            await guard.look()
            guard.check()

    play(story)


def test_what_is_kept_free_is_no_room_for_a_plan() -> None:
    """A plan that took it would leave a broker that refuses appends."""

    async def story() -> None:
        async with open_replica() as replica:
            free = replica.env.files.free_bytes("/data")
            guard = DiskGuard(replica.env, "/data", free - 1_000, replica.node)
            assert guard.room_bytes == 0  # Nobody has looked.
            with trio.move_on_after(3):
                await guard.run()

            assert guard.room_bytes == 1_000

    play(story)


def create(number: int) -> CreateTopic:
    return CreateTopic(name=f"topic-{number}", partitions=1, replicas=1, now_ms=0)


REGISTER = RegisterBroker(
    node=OURSELVES,
    directory_id=DirectoryId("directory-1"),
    incarnation=1,
    host="h",
    port=1,
    peer_host="h",
    peer_port=2,
)


def cluster_of(*nodes: NodeId, level: int) -> list[Command]:
    """What makes one, at this feature level."""
    registered = [
        msgspec.structs.replace(
            REGISTER,
            node=node,
            directory_id=DirectoryId(f"directory-{node}"),
            features={LEVEL_MAX: FEATURE_LEVEL},
        )
        for node in nodes
    ]
    return [msgspec.structs.replace(COMMAND, feature_level=level), *registered]


async def started(nursery: trio.Nursery, replica: Replica) -> MetadataService:
    """A single voter's service that runs and has applied what is there."""
    await until(lambda: replica.group.is_ready)
    service = attached(replica)
    nursery.start_soon(service.run)
    await until(lambda: service.applied_offset == replica.group.commit_offset)
    return service


def test_however_many_commands_are_committed_at_once_each_proposer_learns_its_result() -> None:
    count = 2 * RESULTS_KEPT_MAX
    found: list[ProducerIdBlock] = []

    async def story() -> None:
        async with (
            open_replica(
                group_id=METADATA_GROUP, voters=(OURSELVES,), segment_bytes=16 * MIB
            ) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            await service.execute(COMMAND, timeout_ms=9_000, safe_to_repeat=False)

            async def execute() -> None:
                command = AllocateProducerIds(node=OURSELVES, count=1)
                block = await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
                assert isinstance(block, ProducerIdBlock)
                found.append(block)

            async with trio.open_nursery() as proposing:
                for _ in range(count):
                    proposing.start_soon(execute)
            nursery.cancel_scope.cancel()

    play(story)
    assert len({block.start for block in found}) == count


@pytest.mark.parametrize("is_forwarded", [False, True], ids=["its own", "forwarded"])
@pytest.mark.parametrize(
    ("level", "expected"),
    [(AVOID_LEVEL - 1, {1, 2, 3}), (AVOID_LEVEL, {OURSELVES})],
    ids=["below", "at"],
)
def test_the_controller_says_who_is_down_once_the_cluster_is_at_the_level_for_it(
    level: int, expected: set[NodeId], *, is_forwarded: bool
) -> None:
    """Nobody hears the second and the third broker, which have registered."""
    commands = cluster_of(OURSELVES, SECOND, THIRD, level=level)
    topic = CreateTopic(name="t", partitions=3, replicas=1, now_ms=0)

    async def story() -> None:
        async with (
            open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            for command in commands:
                await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
            assert service.brokers_down() == (SECOND, THIRD)

            if is_forwarded:
                message = Forward(request_id=1, command=encode_command(topic), timeout_ms=9_000)
                service._on_forward(SECOND, message)
                await until(lambda: service.state.topic("t") is not None)
            else:
                await service.execute(topic, timeout_ms=9_000, safe_to_repeat=False)

            created = service.state.topic("t")
            assert created is not None
            assert {node for p in created.partitions for node in p.replicas} == expected
            nursery.cancel_scope.cancel()

    play(story)


@pytest.mark.parametrize("disks", ["full_disks", "failing_disks"])
def test_the_controller_says_whose_disks_are_full_or_failing(
    disks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are registered: the third is not, or not any more."""
    commands = cluster_of(OURSELVES, SECOND, level=AVOID_LEVEL)

    async def story() -> None:
        async with (
            open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            for command in commands:
                await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
            monkeypatch.setattr(replica.node, "is_up", lambda _: True)
            getattr(replica.node.fitness, disks).update({OURSELVES: None, THIRD: None})

            topic = CreateTopic(name="t", partitions=3, replicas=1, now_ms=0)
            await service.execute(topic, timeout_ms=9_000, safe_to_repeat=False)

            assert service.unfit_disks() == (OURSELVES,)
            created = service.state.topic("t")
            assert created is not None
            assert {node for p in created.partitions for node in p.replicas} == {SECOND}
            nursery.cancel_scope.cancel()

    play(story)


@pytest.mark.parametrize(
    ("level", "expected"),
    [(REPLICA_COUNT_LEVEL - 1, [1, 2, 2, 1]), (REPLICA_COUNT_LEVEL, [1, 2, 2, 2])],
    ids=["below", "at"],
)
def test_the_controller_says_how_many_replicas_added_partitions_get_from_the_level_on_that_has_it(
    level: int, expected: list[int]
) -> None:
    commands = cluster_of(OURSELVES, SECOND, level=level)

    async def story() -> None:
        async with (
            open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            topic = CreateTopic(name="t", partitions=3, replicas=2, now_ms=0)
            for command in [*commands, topic]:
                await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
            created = service.state.topic("t")
            assert created is not None
            smaller = created.partitions[0]
            kept = smaller.replicas[:1]
            moved = BeginMove(
                group=smaller.group, before=smaller.replicas, target=kept, reason="", now_ms=0
            )
            await service.execute(moved, timeout_ms=9_000, safe_to_repeat=False)
            (moving,) = service.state.moving
            assert moving.move is not None
            ended = FinishMove(
                group=smaller.group,
                replicas=kept,
                now_ms=0,
                begun_at=moving.move.begun_at or None,
            )
            for command in (ended, AddPartitions(name="t", partitions=4)):
                await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)

            grown = service.state.topic("t")
            assert grown is not None
            assert [len(p.replicas) for p in grown.partitions] == expected
            nursery.cancel_scope.cancel()

    play(story)


def test_the_state_is_kept_and_the_log_behind_it_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_service, "COMMANDS_PER_SNAPSHOT", 5)
    files = SimulatedFileSystem(random.Random(1))

    async def story() -> None:
        async with open_replica(files, group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica:
            async with trio.open_nursery() as nursery:
                service = await started(nursery, replica)
                commands: list[Command] = [
                    COMMAND,
                    REGISTER,
                    *(create(number) for number in range(30)),
                ]
                for command in commands:
                    await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
                await a_while()
                nursery.cancel_scope.cancel()
            assert replica.group.log.start_offset > 10
            before = service.state
        files.crash(random.Random(1))
        async with (
            open_replica(files, group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            assert service.state.topics == before.topics
            assert service.state.brokers == before.brokers
            service.state.check_invariants()
            await service.execute(create(30), timeout_ms=9_000, safe_to_repeat=False)
            assert len(service.state.topics) == 31
            nursery.cancel_scope.cancel()

    play(story)


def test_no_more_of_the_log_is_dropped_than_the_state_before_the_last_one_can_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if a state could not be kept: the newest may be damaged one day."""
    monkeypatch.setattr(metadata_service, "COMMANDS_PER_SNAPSHOT", 5)

    async def story() -> None:
        async with (
            open_replica(group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            first: list[Command] = [COMMAND, REGISTER, *(create(number) for number in range(9))]
            for command in first:
                await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
            await a_while()

            replica.fail_disk("write", match="application-")
            with capture_logs() as logs:
                for number in range(9, 15):
                    await service.execute(create(number), timeout_ms=9_000, safe_to_repeat=False)
                await a_while()
            assert [line["event"] for line in logs if line["log_level"] != "info"] == [
                log_events.METADATA_NOT_KEPT
            ]
            replica.files.on_operation = None
            for number in range(15, 20):
                await service.execute(create(number), timeout_ms=9_000, safe_to_repeat=False)
            await a_while()

            names = replica.files.list_directory(replica.group.directory)
            kept = sorted(name for name in names if name.startswith("application-"))
            before_the_last = int(kept[-2].removeprefix("application-"))
            assert replica.group.log.start_offset <= before_the_last
            nursery.cancel_scope.cancel()

    play(story)


def test_kept_metadata_that_have_rotted_are_replaced_by_a_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata_service, "COMMANDS_PER_SNAPSHOT", 5)
    files = SimulatedFileSystem(random.Random(1))

    async def story() -> None:
        async with (
            open_replica(files, group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            service = await started(nursery, replica)
            first: list[Command] = [COMMAND, REGISTER, *(create(number) for number in range(20))]
            for command in first:
                await service.execute(command, timeout_ms=9_000, safe_to_repeat=False)
            await a_while()
            assert replica.group.log.start_offset > 0
            known, directory = service.state.snapshot(), replica.group.directory
            snapshot = await replica.group.checkpoints.take_snapshot()
            nursery.cancel_scope.cancel()
        files.kill()
        for name in files.list_directory(directory):
            if name.startswith("application-"):
                files.flip(f"{directory}/{name}", FILE_HEADER_BYTES)

        async def fetch_state(_: GroupId, _member: NodeId) -> Snapshot | None:
            return snapshot

        async with (
            open_replica(files, group_id=METADATA_GROUP, voters=(OURSELVES,)) as replica,
            trio.open_nursery() as nursery,
        ):
            monkeypatch.setattr(replica.node.questions, "fetch_state", fetch_state)
            service = await started(nursery, replica)

            assert service.state.topics == MetadataState.restore(known).topics
            nursery.cancel_scope.cancel()

    play(story)
