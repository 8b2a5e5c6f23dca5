"""A checkpoint is there whole or not at all, and a damaged one is stepped over."""

from __future__ import annotations

import errno
import random

import pytest

from logd.errors import ForeignDirectoryError, NoRoomError, StorageFailedError
from logd.storage.checkpoint import CHECKPOINTS_KEPT, CheckpointStore
from logd.storage.file_header import LogIdentity
from logd.types import GroupId, Offset
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import IDENTITY


@pytest.fixture
def disk() -> SimulatedFileSystem:
    disk = SimulatedFileSystem(random.Random(1))
    disk.make_directory("/data")
    disk.sync_directory("/")
    return disk


@pytest.fixture
def store(disk: SimulatedFileSystem) -> CheckpointStore:
    return CheckpointStore(disk, "/data", IDENTITY)


def test_there_is_none_at_first(store: CheckpointStore, disk: SimulatedFileSystem) -> None:
    assert store.load() is None
    assert CheckpointStore(disk, "/data/missing", IDENTITY).load() is None


def test_the_newest_is_loaded_and_two_are_kept(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    for offset in (5, 90, 100):
        store.save(Offset(offset), f"state at {offset}".encode())

    assert store.load() == (100, b"state at 100")
    assert len(disk.list_directory("/data")) == CHECKPOINTS_KEPT


def test_without_a_descriptor_to_look_with_it_is_not_said_that_there_is_none(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    store.save(Offset(90), b"state")

    def refuse(operation: str, path: str) -> None:
        if operation == "list":
            raise OSError(errno.EMFILE, "simulated failure", path)

    disk.on_operation = refuse
    with pytest.raises(NoRoomError):
        store.load()

    disk.on_operation = None
    assert store.load() == (90, b"state")


def test_one_above_what_the_caller_may_use_is_passed_over(store: CheckpointStore) -> None:
    store.save(Offset(90), b"older")
    store.save(Offset(100), b"newer")

    assert store.load(at_most=Offset(100)) == (100, b"newer")
    assert store.load(at_most=Offset(99)) == (90, b"older")
    assert store.load(at_most=Offset(89)) is None


def test_one_that_cannot_be_read_is_stepped_over_and_named(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    store.save(Offset(90), b"older")
    store.save(Offset(100), b"newer")
    newest = f"/data/checkpoint-{100:020}"

    disk.refuse_reads(newest)

    assert store.load() == (90, b"older")
    assert newest in store.damaged[0]


def test_one_under_the_name_of_another_is_stepped_over(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    """Or batches between the two would never have been: recovery begins where the name says."""
    store.save(Offset(90), b"older")
    store.save(Offset(100), b"newer")

    disk.rename(f"/data/checkpoint-{100:020}", f"/data/checkpoint-{200:020}")

    assert store.load() == (90, b"older")
    assert "the header says offset 100" in store.damaged[0]


def test_a_length_that_is_not_the_written_one_is_not_read(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    """No memory would hold what a damaged length may claim."""
    store.save(Offset(100), b"state")
    disk.overwrite(f"/data/checkpoint-{100:020}", 10**6, b"\0")
    operations: list[str] = []
    disk.on_operation = lambda operation, _: operations.append(operation)

    assert store.load() is None
    assert "999873 bytes behind the header" in store.damaged[0]
    assert operations.count("read") == 1  # Of the header.


def test_an_empty_state_is_a_state(store: CheckpointStore) -> None:
    store.save(Offset(0), b"")

    assert store.load() == (0, b"")


def test_a_damaged_one_is_stepped_over_and_named(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    store.save(Offset(90), b"older")
    store.save(Offset(100), b"newer")
    newest = f"/data/checkpoint-{100:020}"
    for position in range(len(disk.content(newest))):
        disk.flip(newest, position, position % 8)

        assert store.load() == (90, b"older")
        assert newest in store.damaged[0]

        disk.flip(newest, position, position % 8)
    assert store.load() == (100, b"newer")
    assert store.damaged == ()


def test_one_that_was_cut_short_is_stepped_over(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    store.save(Offset(90), b"older")
    store.save(Offset(100), b"newer")
    newest = f"/data/checkpoint-{100:020}"
    for size in range(len(disk.content(newest)) - 1, -1, -20):
        disk.open(newest).truncate(size)

        assert store.load() == (90, b"older")


def test_a_power_cut_while_saving_leaves_the_one_before_or_the_new_one(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    seen: set[int] = set()
    for stop_at in ("create", "write", "sync", "rename", "sync_directory", "remove"):
        for seed in range(10):
            store.save(Offset(80), b"oldest")
            store.save(Offset(90), b"older")

            def stop(operation: str, _: str, stop_at: str = stop_at) -> None:
                if operation == stop_at:
                    raise KeyboardInterrupt

            disk.on_operation = stop
            with pytest.raises(KeyboardInterrupt):
                store.save(Offset(100), b"newer")
            disk.on_operation = None
            disk.crash(random.Random(seed))

            found = store.load()
            assert found in ((90, b"older"), (100, b"newer"))
            seen.add(found[0])
            store.remove_all()

    assert seen == {90, 100}


def test_what_was_saved_survives_a_power_cut(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    for seed in range(20):
        store.save(Offset(seed), b"state")

        disk.crash(random.Random(seed))

        assert store.load() == (seed, b"state")


def test_a_failed_save_leaves_the_one_before(
    store: CheckpointStore, disk: SimulatedFileSystem
) -> None:
    store.save(Offset(90), b"older")
    disk.capacity_bytes = disk.used_bytes() + 10

    with pytest.raises(StorageFailedError, match="No space left"):
        store.save(Offset(100), b"newer")

    assert store.load() == (90, b"older")


def test_one_of_another_group_is_refused(store: CheckpointStore, disk: SimulatedFileSystem) -> None:
    store.save(Offset(90), b"state")
    other = LogIdentity(IDENTITY.directory, IDENTITY.node, GroupId(8))

    with pytest.raises(ForeignDirectoryError, match="group 7"):
        CheckpointStore(disk, "/data", other).load()
