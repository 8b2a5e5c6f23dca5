"""Retention lets go what the options say, whole segments from the front, and nothing else."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio

from logd.broker.retention import Retention
from logd.errors import (
    BeyondRepairError,
    CorruptionError,
    OffsetOutOfRangeError,
    StorageError,
)
from logd.limits import KIB
from logd.metadata.topic_config import TopicOptions
from logd.record.batch import seal_opaque
from logd.record.control import Trim, encode_control
from logd.record.header import BatchKind
from logd.replication.opening import open_group
from logd.replication.trimming import Trimmer
from logd.storage.directory import DataDirectory
from logd.storage.log import Log, LogOptions
from logd.storage.retention import LogClock, RetentionPolicy, retained_start, wants_roll
from logd.storage.room import what_lacks
from logd.storage.whole_file import make_directory_durably
from logd.types import Offset, Term
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, IDENTITY, append_some, read_all
from tests.support.replica import (
    GROUP,
    OURSELVES,
    Replica,
    a_while,
    batch_of,
    open_replica,
    play,
    until,
)

OPTIONS = LogOptions(segment_bytes=8 * KIB, index_interval_bytes=512, allocate_bytes=8 * KIB)
NOTHING = Offset(0)
EVERYTHING = Offset(10**9)
SEGMENT_PATH = f"{DIRECTORY}/{0:020}.log"
TRASH = "/data/trash"
ALONE = (OURSELVES,)


@pytest.fixture
def log(disk: SimulatedFileSystem) -> Log:
    """Four sealed segments of ten batches, ten seconds apart, and three batches behind them."""
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    for segment in range(4):
        for batch in range(10):
            append_some(log, 1, value=b"v" * 300, time_ms=(segment * 10 + batch) * 10_000)
        log.roll()
    append_some(log, 3, value=b"v" * 300, time_ms=400_000)
    return log


def kept_from(
    log: Log,
    *,
    now_ms: int = 400_000,
    trimmed_to: Offset = NOTHING,
    limit: Offset = EVERYTHING,
    **policy: int,
) -> Offset:
    return retained_start(
        log,
        RetentionPolicy(**policy),
        log_time_ms=now_ms,
        trimmed_to=trimmed_to,
        limit=limit,
    )


# --- what goes --------------------------------------------------------------------------


def test_without_limits_everything_is_kept(log: Log) -> None:
    assert kept_from(log, now_ms=10**15) == 0


def test_by_size_the_oldest_segments_go_until_the_rest_fits(log: Log) -> None:
    segment_bytes = log.sealed_segments()[0].size_bytes
    total = log.size_bytes

    assert kept_from(log, bytes_max=total) == 0
    assert kept_from(log, bytes_max=total - 1) == 10
    assert kept_from(log, bytes_max=total - segment_bytes) == 10
    assert kept_from(log, bytes_max=total - segment_bytes - 1) == 20
    assert kept_from(log, bytes_max=1) == 40  # The active segment stays.


def test_by_time_a_segment_goes_when_its_newest_batch_is_too_old(log: Log) -> None:
    # The first segment's last batch was appended at 90 s.
    assert kept_from(log, now_ms=190_000, age_ms=100_000) == 0
    assert kept_from(log, now_ms=190_001, age_ms=100_000) == 10
    assert kept_from(log, now_ms=290_001, age_ms=100_000) == 20
    assert kept_from(log, now_ms=10**12, age_ms=100_000) == 40


def test_what_was_trimmed_by_command_goes_with_its_segment(log: Log) -> None:
    assert kept_from(log, trimmed_to=Offset(9)) == 0
    assert kept_from(log, trimmed_to=Offset(10)) == 10
    assert kept_from(log, trimmed_to=Offset(29)) == 20


def test_nothing_above_the_limit_goes_whatever_its_age_and_size(log: Log) -> None:
    for limit, start in ((0, 0), (9, 0), (10, 10), (39, 30), (43, 40)):
        found = kept_from(log, now_ms=10**12, limit=Offset(limit), age_ms=1, bytes_max=1)
        assert found == start


def test_the_active_segment_is_rolled_when_its_first_batch_is_too_old(log: Log) -> None:
    policy = RetentionPolicy(segment_age_ms=5_000)

    def wanted(now_ms: int, *, holds_trimmed: bool = False) -> bool:
        return wants_roll(log, policy, log_time_ms=now_ms, holds_trimmed=holds_trimmed)

    assert not wanted(405_000)
    assert wanted(405_001)
    assert wanted(0, holds_trimmed=True)
    log.roll()
    assert not wanted(10**12)  # There is nothing in it.


def test_a_damaged_header_stops_retention_and_removes_nothing(
    disk: SimulatedFileSystem, log: Log
) -> None:
    disk.flip(SEGMENT_PATH, log.sealed_segments()[0].size_bytes + 4096 - 400)
    disk.kill()
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    with pytest.raises(CorruptionError):
        kept_from(log, now_ms=10**12, age_ms=1)


# --- what time it is --------------------------------------------------------------------


def test_log_time_is_that_of_the_last_committed_batch_carried_on_by_the_monotonic_clock() -> None:
    clock = LogClock()

    assert clock.now_ms(1_000_000, 50) == 1_000_000
    assert clock.now_ms(1_000_000, 80) == 1_000_030
    assert clock.now_ms(1_000_010, 90) == 1_000_010
    assert clock.now_ms(1_000_010, 95) == 1_000_015


# --- the power goes at every step -------------------------------------------------------


@pytest.mark.parametrize("power", [True, False])
def test_a_crash_at_any_step_of_a_trim_leaves_a_whole_log(power: bool) -> None:
    steps_seen = 0
    for steps in range(1, 200):
        disk = SimulatedFileSystem(random.Random(steps))
        make_directory_durably(disk, TRASH)
        log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
        written: list[bytes] = []
        for _ in range(4):
            written += append_some(log, 5, value=b"v" * 300)
            log.sync(log.end_offset)
            log.roll()
        with disk.dying_after(steps) as life:
            log.trim(Offset(15), TRASH)
        was_cut_off = life.was_cut_off
        disk.crash(random.Random(steps)) if power else disk.kill()

        log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
        assert not log.recovery.is_damaged, (steps, log.recovery)
        assert log.start_offset in (0, 5, 10, 15)
        assert read_all(log) == written[log.start_offset :]
        if not was_cut_off:
            assert log.start_offset == 15
            steps_seen = steps
            break
    assert steps_seen > 5


# --- readers ----------------------------------------------------------------------------


def test_a_reader_keeps_what_it_has_of_a_segment_that_is_trimmed(
    disk: SimulatedFileSystem, log: Log
) -> None:
    found = log.read(Offset(0), Offset(10), 100_000, cached_only=False)
    headers = log.headers(Offset(0))
    first = next(headers)

    log.trim(Offset(20))

    assert found is not None
    assert len(found) == 10
    assert first.base_offset == 0
    assert [next(headers).base_offset for _ in range(9)] == list(range(1, 10))
    with pytest.raises(OffsetOutOfRangeError) as refused:
        log.read(Offset(19), Offset(30), 1000, cached_only=False)
    assert (refused.value.log_start, refused.value.log_end) == (20, 43)


def test_a_read_that_finds_its_file_gone_says_that_the_offset_is_out_of_range(
    disk: SimulatedFileSystem, log: Log
) -> None:
    disk.kill()
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    def trim(operation: str, path: str) -> None:
        if operation == "open" and path == SEGMENT_PATH:
            disk.on_operation = None
            log.trim(Offset(10))

    disk.on_operation = trim

    with pytest.raises(OffsetOutOfRangeError):
        log.read(Offset(0), Offset(10), 1000, cached_only=False)


def test_a_read_that_finds_its_file_cut_in_the_trash_says_the_same(
    disk: SimulatedFileSystem, log: Log
) -> None:
    disk.make_directory(TRASH)

    def trim(operation: str, path: str) -> None:
        if operation == "read" and path == SEGMENT_PATH:
            disk.on_operation = None
            log.trim(Offset(10), TRASH)
            (name,) = disk.list_directory(TRASH)
            disk.open(f"{TRASH}/{name}").truncate(4200)

    disk.on_operation = trim

    with pytest.raises(OffsetOutOfRangeError):
        log.read(Offset(0), Offset(10), 1000, cached_only=False)


# --- a replica --------------------------------------------------------------------------


async def fill(replica: Replica, segments: int) -> None:
    """Propose until so many segments have been sealed, and all is committed."""
    bases = len(replica.group.log.segment_bases)
    while len(replica.group.log.segment_bases) < bases + segments:
        replica.propose(bytes(1024))
        await trio.sleep(0.01)
    await until(lambda: replica.group.commit_offset == replica.group.log.end_offset)


def trimmer_of(replica: Replica) -> Trimmer:
    if not replica.files.is_directory(TRASH):
        replica.files.make_directory(TRASH)
    return Trimmer(replica.group, replica.node)


def test_a_replica_that_trimmed_comes_back_with_its_state(disk: SimulatedFileSystem) -> None:
    async def story() -> None:
        async with open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica:
            await replica.lead()
            replica.propose(producer_id=9, sequence=0)
            await fill(replica, 5)
            end = replica.group.log.end_offset
            await trimmer_of(replica).apply(RetentionPolicy(bytes_max=16 * KIB), TRASH)
            start = replica.group.log.start_offset
            assert start > 2
            assert replica.group.core.log_start == start
            assert replica.group.log.size_bytes <= 16 * KIB
        disk.kill()
        async with open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica:
            assert replica.group.log.start_offset == start
            assert replica.group.log.end_offset == end
            await replica.lead()
            retry = replica.propose(producer_id=9, sequence=0)
            await until(lambda: len(retry) == 1)
            assert getattr(retry[0], "duplicate", False), retry

    play(story)


def test_what_no_checkpoint_covers_is_not_trimmed_until_one_does(
    disk: SimulatedFileSystem,
) -> None:
    async def story() -> None:
        async with open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica:
            await replica.lead()
            await fill(replica, 3)
            await until(lambda: not replica.group.syncer.needs_sync)
            await trio.sleep(1)
            directory = f"/data/groups/{GROUP:020}"
            for name in disk.list_directory(directory):
                if name.startswith("checkpoint"):
                    disk.remove(f"{directory}/{name}")
            trimmer = trimmer_of(replica)
            policy = RetentionPolicy(bytes_max=1)
            await trimmer.apply(policy, TRASH)
            assert replica.group.log.start_offset == 0

            replica.propose()
            await until(lambda: replica.group.commit_offset == replica.group.log.end_offset)
            await trimmer.apply(policy, TRASH)
            await trio.sleep(1)
            await trimmer.apply(policy, TRASH)

            assert replica.group.log.start_offset == replica.group.log.segment_bases[-1] > 0

    play(story)


async def leave_trimmed(disk: SimulatedFileSystem) -> None:
    """A replica whose log begins behind its start, and whose broker was killed."""
    async with open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica:
        await replica.lead()
        await fill(replica, 3)
        await trimmer_of(replica).apply(RetentionPolicy(bytes_max=1), TRASH)
        assert replica.group.log.start_offset > 0
    disk.kill()


def test_a_log_that_begins_above_its_checkpoints_stays_shut(disk: SimulatedFileSystem) -> None:
    async def story() -> None:
        await leave_trimmed(disk)
        directory = f"/data/groups/{GROUP:020}"
        for name in disk.list_directory(directory):
            if name.startswith("checkpoint"):
                disk.remove(f"{directory}/{name}")
        owner = DataDirectory.open(disk, "/data", OURSELVES, lambda: "a-directory")
        with pytest.raises(StorageError, match="no checkpoint from there on can be read"):
            open_group(disk, owner, OURSELVES, GROUP, LogOptions(segment_bytes=8 * KIB))

    play(story)


@pytest.mark.parametrize(
    ("number", "is_final"), [(errno.EACCES, False), (errno.EMFILE, False), (errno.EIO, True)]
)
def test_a_checkpoint_that_may_not_be_read_is_not_one_that_is_gone(
    disk: SimulatedFileSystem, number: int, is_final: bool
) -> None:
    """What is beyond repair is thrown away and made anew."""

    async def story() -> None:
        await leave_trimmed(disk)
        owner = DataDirectory.open(disk, "/data", OURSELVES, lambda: "a-directory")

        def refuse(operation: str, path: str) -> None:
            if operation == "open" and "/checkpoint-" in path:
                raise OSError(number, os.strerror(number), path)

        disk.on_operation = refuse
        with pytest.raises(StorageError, match="no checkpoint from there on can be read") as raised:
            open_group(disk, owner, OURSELVES, GROUP, LogOptions(segment_bytes=8 * KIB))
        disk.on_operation = None

        assert isinstance(raised.value, BeyondRepairError) == is_final
        assert what_lacks(raised.value) == ("file descriptor" if number == errno.EMFILE else None)
        open_group(disk, owner, OURSELVES, GROUP, LogOptions(segment_bytes=8 * KIB)).close()

    play(story)


def test_an_idle_partition_loses_what_is_too_old_without_anybody_writing(
    disk: SimulatedFileSystem,
) -> None:
    async def story() -> None:
        async with open_replica(disk, voters=ALONE) as replica:
            await replica.lead()
            replica.propose()
            await until(lambda: replica.group.commit_offset == 2)
            trimmer = trimmer_of(replica)
            policy = RetentionPolicy(age_ms=60_000, segment_age_ms=15_000)
            for _ in range(59):
                await trimmer.apply(policy, TRASH)
                await trio.sleep(1)
                assert replica.group.log.start_offset == 0
            for _ in range(5):
                await trimmer.apply(policy, TRASH)
                await trio.sleep(1)
            assert replica.group.log.start_offset == replica.group.log.end_offset == 2
            assert len(disk.list_directory(TRASH)) == 1

            outcomes = replica.propose()
            await until(lambda: len(outcomes) == 1)
            assert replica.group.commit_offset == 3

    play(story)


@pytest.mark.parametrize("by_size", [False, True])
def test_a_size_is_kept_to_between_the_rounds_too(
    disk: SimulatedFileSystem, *, by_size: bool
) -> None:
    """Whatever the rate of what is written; an age can wait for the next round."""

    async def story() -> None:
        async with (
            open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica,
            trio.open_nursery() as nursery,
        ):
            node = replica.node
            retention = Retention(node, node.membership.directory, interval_ms=24 * 3_600_000)
            limit = TopicOptions(retention_bytes=16 * KIB)
            unlimited = TopicOptions(retention_ms=3_600_000)
            retention.set_policy(replica.group, limit if by_size else unlimited)
            nursery.start_soon(retention.run)
            await replica.lead()

            for _ in range(60):
                replica.propose(bytes(1 * KIB))
                await trio.sleep(0.01)
            await a_while()

            is_kept_to = replica.group.log.size_bytes <= (16 + 8) * KIB
            assert is_kept_to == by_size
            nursery.cancel_scope.cancel()

    play(story)


def test_a_follower_trims_by_itself(disk: SimulatedFileSystem) -> None:
    async def story() -> None:
        async with open_replica(disk, segment_bytes=8 * KIB) as replica:
            for offset in range(30):
                replica.append(
                    [batch_of(Offset(offset), Term(2), bytes(1024))],
                    term=Term(2),
                    commit_offset=Offset(offset),
                )
                await trio.sleep(0.02)
            await trimmer_of(replica).apply(RetentionPolicy(bytes_max=10 * KIB), TRASH)
            assert 0 < replica.group.log.start_offset <= replica.group.commit_offset
            assert replica.group.log.size_bytes <= 10 * KIB

    play(story)


# --- trimmed by command -----------------------------------------------------------------


async def trim(replica: Replica, start: int) -> None:
    """As a leader does that was asked to."""
    batch = seal_opaque(
        encode_control(Trim(start_offset=start)), kind=BatchKind.CONTROL, timestamp_ms=0
    )
    await replica.group.commit(batch, replica.node.now_ms() + 10_000)


def test_nobody_reads_below_a_committed_trim_also_after_a_restart(
    disk: SimulatedFileSystem,
) -> None:
    async def story() -> None:
        async with open_replica(disk, voters=ALONE) as replica:
            await replica.lead()
            for _ in range(5):
                replica.propose()
            await until(lambda: replica.group.commit_offset == 6)

            await trim(replica, 3)

            assert (replica.group.log_start, replica.group.log.start_offset) == (3, 0)
            with pytest.raises(OffsetOutOfRangeError) as refused:
                await replica.group.reader.read_committed(Offset(2), 1000)
            assert (refused.value.log_start, refused.value.log_end) == (3, 7)
            assert await replica.group.reader.read_committed(Offset(3), 1000) is not None
        disk.kill()
        async with open_replica(disk, voters=ALONE) as replica:
            await replica.lead()
            assert replica.group.log_start == 3

    play(story)


def test_a_trim_holds_from_its_commit_on_and_not_before(disk: SimulatedFileSystem) -> None:
    async def story() -> None:
        async with open_replica(disk) as replica:
            await replica.lead()
            replica.propose()
            await replica.commit()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trim, replica, 2)
                await trio.sleep(0.1)
                assert replica.group.log.end_offset == 3
                assert replica.group.log_start == 0
                await replica.commit()
            assert replica.group.log_start == 2

    play(story)


def test_a_commit_of_what_lies_before_a_trim_does_not_put_it_in_force(
    disk: SimulatedFileSystem,
) -> None:
    async def story() -> None:
        async with open_replica(disk) as replica:
            await replica.lead()
            replica.propose()
            await a_while()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trim, replica, 1)
                await until(lambda: replica.group.log.end_offset == 3)
                await until(lambda: not replica.group.syncer.needs_sync)
                replica.acknowledge(Offset(2))
                await until(lambda: replica.group.commit_offset == 2)
                assert replica.group.log_start == 0
                await replica.commit()
            assert replica.group.log_start == 1

    play(story)


def test_when_all_records_are_trimmed_their_segments_go_the_active_one_too(
    disk: SimulatedFileSystem,
) -> None:
    async def story() -> None:
        async with open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica:
            await replica.lead()
            await fill(replica, 2)
            replica.propose()
            await trio.sleep(1)
            await trim(replica, replica.group.commit_offset)
            trimmer = trimmer_of(replica)
            for _ in range(4):
                await trimmer.apply(RetentionPolicy(), TRASH)
                await trio.sleep(1)

            assert replica.group.log.size_bytes == 0
            replica.propose()
            await until(lambda: replica.group.commit_offset == replica.group.log.end_offset)

    play(story)


def test_a_trim_at_a_power_cut_does_not_outlive_the_checkpoint_that_it_rests_on(
    disk: SimulatedFileSystem,
) -> None:
    """Its name may not be durable yet: to sync the directory failed when it was saved."""
    syncs: list[str] = []

    async def story() -> None:
        async with open_replica(disk, voters=ALONE, segment_bytes=8 * KIB) as replica:
            await replica.lead()
            directory = replica.group.directory

            def fail(operation: str, path: str) -> None:
                if operation == "sync_directory" and path == directory and is_saving():
                    raise OSError(errno.EIO, "simulated failure", path)

            def is_saving() -> bool:
                with disk.trouble_suspended():
                    names = disk.list_directory(directory)
                return any(name.startswith("checkpoint-") for name in names)

            disk.on_operation = fail
            await fill(replica, 1)
            await a_while()
            disk.on_operation = None
            assert is_saving()

            def stop(operation: str, path: str) -> None:
                if operation == "sync_directory":
                    syncs.append(path)
                    if len(syncs) > 1:
                        raise OSError(errno.EIO, "simulated failure", path)

            trimmer = trimmer_of(replica)
            disk.on_operation = stop
            await trimmer.apply(RetentionPolicy(bytes_max=1), TRASH)
        disk.on_operation = None
        disk.crash(random.Random(2))  # Of names that are not durable this keeps none.
        owner = DataDirectory.open(disk, "/data", OURSELVES, lambda: "a-directory")
        open_group(disk, owner, OURSELVES, GROUP, LogOptions(segment_bytes=8 * KIB)).close()

    play(story)
    assert len(syncs) == 2
