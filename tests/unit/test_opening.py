"""A new replica is there whole, or not at all, whenever the power fails while it is made."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from pathlib import Path

import pytest

from logd.errors import BeyondRepairError, LogdError, StorageFailedError
from logd.limits import KIB
from logd.raft.messages import HardState
from logd.replication.opening import OpenedGroup, open_group
from logd.runtime.files import RealFileSystem
from logd.storage.directory import DataDirectory
from logd.storage.hard_state import promise_file
from logd.storage.log import LogOptions
from logd.types import GroupId, NodeId, Term
from tests.sim.files import SimulatedFileSystem

NODE, OTHER = NodeId(1), NodeId(2)
GROUP = GroupId(3)
OPERATIONS = 30
"""More than it takes."""

OPTIONS = LogOptions(segment_bytes=64 * KIB)


def a_directory(disk: SimulatedFileSystem) -> DataDirectory:
    return DataDirectory.open(disk, "/data", NODE, lambda: "drawn")


def opened_in(disk: SimulatedFileSystem, directory: DataDirectory) -> OpenedGroup:
    return open_group(disk, directory, NODE, GROUP, OPTIONS)


def test_a_new_replica_can_be_opened_whenever_the_power_failed_while_it_was_made() -> None:
    is_made = False
    for operations in range(OPERATIONS):
        for seed in range(8):
            disk = SimulatedFileSystem(random.Random(seed))
            directory = a_directory(disk)
            with (
                disk.failing_after(operations),
                contextlib.suppress(OSError, LogdError),
            ):
                opened_in(disk, directory)
                is_made = True
            disk.crash(random.Random(seed))

            opened = opened_in(disk, a_directory(disk))

            assert opened.damage is None
            assert opened.log.end_offset == 0
    assert is_made, "it takes more operations than were tried: raise the number"


@pytest.mark.parametrize("seed", range(8))
def test_a_replica_whose_making_was_refused_at_last_is_there_durably_once_it_is_opened(
    seed: int,
) -> None:
    """There was no descriptor to sync the directory with: the next time there is one."""
    disk = SimulatedFileSystem(random.Random(1))
    directory = a_directory(disk)

    def refuse(operation: str, path: str) -> None:
        if operation == "sync_directory" and path == "/data/groups":
            raise OSError(errno.EMFILE, "simulated failure", path)

    disk.on_operation = refuse
    with pytest.raises(OSError, match="simulated failure"):
        opened_in(disk, directory)
    disk.on_operation = None
    opened_in(disk, directory).hard_state.save(Term(3), OTHER)

    disk.crash(random.Random(seed))

    assert opened_in(disk, a_directory(disk)).loaded_hard_state.term == 3


@pytest.mark.parametrize("seed", range(16))
def test_a_vote_that_a_new_replica_gave_outlives_a_power_cut(seed: int) -> None:
    disk = SimulatedFileSystem(random.Random(seed))
    opened = opened_in(disk, a_directory(disk))
    opened.hard_state.save(Term(1), OTHER)

    disk.crash(random.Random(seed))

    assert opened_in(disk, a_directory(disk)).loaded_hard_state == HardState(Term(1), OTHER)


@pytest.mark.parametrize("seed", range(8))
def test_a_replica_whose_name_was_not_synced_when_its_process_died_is_not_lost_later(
    seed: int,
) -> None:
    disk = SimulatedFileSystem(random.Random(seed))
    directory = a_directory(disk)

    def refuse(operation: str, path: str) -> None:
        if operation == "sync_directory" and path.endswith("/groups"):
            raise OSError(5, "simulated failure", path)

    disk.on_operation = refuse
    with pytest.raises(OSError, match="simulated failure"):
        opened_in(disk, directory)
    disk.on_operation = None
    disk.kill()
    opened_in(disk, a_directory(disk)).hard_state.save(Term(1), OTHER)

    disk.crash(random.Random(seed))

    assert opened_in(disk, a_directory(disk)).loaded_hard_state == HardState(Term(1), OTHER)


@pytest.mark.parametrize("seed", range(8))
def test_a_vote_outlives_a_power_cut_also_in_a_file_that_was_put_back_by_hand(seed: int) -> None:
    disk = SimulatedFileSystem(random.Random(seed))
    opened = opened_in(disk, a_directory(disk))
    path = f"{opened.directory}/hard_state"
    content = disk.content(path)
    disk.remove(path)
    disk.sync_directory(opened.directory)
    disk.kill()
    file = disk.open(path, create=True)
    file.pwritev([content], 0)
    file.close()
    opened_in(disk, a_directory(disk)).hard_state.save(Term(1), OTHER)

    disk.crash(random.Random(seed))

    assert opened_in(disk, a_directory(disk)).loaded_hard_state == HardState(Term(1), OTHER)


@pytest.mark.parametrize("seed", range(8))
def test_a_promise_whose_name_a_killed_process_left_unsynced_is_not_lost_later(seed: int) -> None:
    disk = SimulatedFileSystem(random.Random(seed))
    directory = a_directory(disk)
    path = directory.promises_path(GROUP)
    file = disk.open(path, create=True)
    file.pwritev([promise_file(directory.identity(GROUP), Term(7), OTHER)], 0)
    file.close()
    disk.kill()
    assert opened_in(disk, a_directory(disk)).loaded_hard_state.term == 7

    disk.crash(random.Random(seed))

    assert disk.exists(path)


def test_the_names_in_a_replicas_directory_are_synced_once_when_it_is_opened_again() -> None:
    disk = SimulatedFileSystem(random.Random(1))
    path = opened_in(disk, a_directory(disk)).directory
    disk.kill()
    directory = a_directory(disk)
    synced: list[str] = []

    def note(operation: str, at: str) -> None:
        if operation == "sync_directory":
            synced.append(at)

    disk.on_operation = note
    opened_in(disk, directory)

    assert synced == [path]


@pytest.mark.parametrize("seed", range(16))
def test_what_a_replica_found_when_it_was_opened_again_outlives_a_power_cut(seed: int) -> None:
    """Its process had failed to sync a vote, which the page cache shows all the same."""
    disk = SimulatedFileSystem(random.Random(seed))
    opened = opened_in(disk, a_directory(disk))

    def refuse(operation: str, path: str) -> None:
        if operation == "sync":
            raise OSError(5, "simulated failure", path)

    disk.on_operation = refuse
    with pytest.raises(StorageFailedError):
        opened.hard_state.save(Term(1), OTHER)
    disk.on_operation = None
    disk.kill()
    found = opened_in(disk, a_directory(disk)).loaded_hard_state

    disk.crash(random.Random(seed))

    assert opened_in(disk, a_directory(disk)).loaded_hard_state == found


def test_no_replica_is_made_where_its_promises_cannot_be_looked_at(tmp_path: Path) -> None:
    """An error of the disk, or a mode, would let it vote twice."""
    directory = DataDirectory.open(RealFileSystem(), str(tmp_path), NODE, lambda: "drawn")
    (tmp_path / "promises").rmdir()
    (tmp_path / "promises").symlink_to("promises")

    with pytest.raises(OSError, match="Too many levels"):
        open_group(RealFileSystem(), directory, NODE, GROUP, OPTIONS)

    assert directory.list_groups() == []


def test_a_replica_whose_directory_is_gone_is_not_made_as_if_there_had_been_none(
    tmp_path: Path,
) -> None:
    files = RealFileSystem()
    directory = DataDirectory.open(files, str(tmp_path), NODE, lambda: "drawn")
    open_group(files, directory, NODE, GROUP, OPTIONS).close()
    shutil.rmtree(directory.group_path(GROUP))

    with pytest.raises(BeyondRepairError, match="is gone: it held a replica that may have voted"):
        open_group(files, directory, NODE, GROUP, OPTIONS)
    assert not files.exists(directory.group_path(GROUP))

    # Its removal was committed: another one may come in its place, and votes not at once.
    directory.retire_group(GROUP)
    opened = open_group(files, directory, NODE, GROUP, OPTIONS)
    assert opened.loaded_hard_state == HardState(Term(0), None, is_newcomer=True)
    opened.close()
