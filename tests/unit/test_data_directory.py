"""A data directory belongs to one node and one cluster, and to one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from logd.errors import (
    CorruptionError,
    DirectoryLockedError,
    ForeignDirectoryError,
    NewerFormatError,
    NoRoomError,
    StorageError,
)
from logd.runtime.files import RealFileSystem
from logd.storage.directory import DataDirectory
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogOptions
from logd.storage.segment import segment_name
from logd.storage.successor_note import write_note
from logd.types import GroupId, NodeId, Offset, Term
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import make_batch

NODE = NodeId(1)


@pytest.fixture
def disk() -> SimulatedFileSystem:
    return SimulatedFileSystem(random.Random(1), pid=4711)


def draw_from(*ids: str) -> Callable[[], str]:
    return iter(ids).__next__


def open_directory(disk: SimulatedFileSystem, *ids: str, node: NodeId = NODE) -> DataDirectory:
    return DataDirectory.open(disk, "/var/lib/logd", node, draw_from(*ids))


def test_a_new_directory_is_drawn_an_id_once(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    assert directory.directory_id == "first"
    directory.close()

    assert open_directory(disk).directory_id == "first"


def test_whose_it_is_survives_a_power_cut(disk: SimulatedFileSystem) -> None:
    open_directory(disk, "first").set_cluster_id("c1")

    disk.crash(random.Random(1))

    directory = open_directory(disk)
    assert (directory.directory_id, directory.cluster_id, directory.node_id) == ("first", "c1", 1)


def test_the_cluster_is_learned_later_and_kept(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    assert directory.cluster_id is None
    assert directory.members is None

    directory.form({2: "second", 1: "first"})
    directory.set_cluster_id("c1")
    directory.close()

    directory = open_directory(disk)
    assert directory.members == {1: "first", 2: "second"}
    assert directory.cluster_id == "c1"


def test_another_cluster_or_other_founders_are_refused(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    directory.form({1: "first"})
    directory.set_cluster_id("c1")

    directory.form({1: "first"})
    directory.set_cluster_id("c1")
    with pytest.raises(ForeignDirectoryError, match="c1"):
        directory.set_cluster_id("c2")
    with pytest.raises(ForeignDirectoryError, match="first"):
        directory.form({1: "first", 2: "second"})


def test_the_directory_of_another_node_is_refused_and_not_locked(disk: SimulatedFileSystem) -> None:
    open_directory(disk, "first").close()

    with pytest.raises(ForeignDirectoryError, match="belongs to node 1, this is node 2"):
        open_directory(disk, node=NodeId(2))

    open_directory(disk).close()


def test_two_processes_cannot_use_one_directory(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")

    with pytest.raises(DirectoryLockedError, match="process 4711") as refusal:
        open_directory(disk)
    assert refusal.value.holder_pid == 4711

    directory.close()
    open_directory(disk).close()


def test_a_real_lock_names_the_process(tmp_path: Path) -> None:
    files = RealFileSystem()
    directory = DataDirectory.open(files, f"{tmp_path}/data", NODE, draw_from("first"))

    with pytest.raises(DirectoryLockedError) as refusal:
        DataDirectory.open(files, f"{tmp_path}/data", NODE, draw_from())

    assert refusal.value.holder_pid == os.getpid()
    directory.close()


def test_a_newer_format_is_refused(disk: SimulatedFileSystem) -> None:
    open_directory(disk, "first").close()
    header = bytearray(disk.content("/var/lib/logd/meta")[:128])
    header[16] = 2
    header[:8] = xxh3_64_intdigest(bytes(header[8:])).to_bytes(8, "little")
    disk.overwrite("/var/lib/logd/meta", 0, bytes(header))

    with pytest.raises(NewerFormatError, match="format version 2"):
        open_directory(disk)


def test_every_flipped_bit_in_the_meta_file_is_found(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    directory.set_cluster_id("c1")
    directory.close()
    path = "/var/lib/logd/meta"
    for position in range(len(disk.content(path))):
        disk.flip(path, position, position % 8)

        with pytest.raises(CorruptionError, match="meta"):
            open_directory(disk)

        disk.flip(path, position, position % 8)


def test_data_without_a_meta_file_is_not_made_ours(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    disk.make_directory(directory.group_path(GroupId(3)))
    directory.close()
    disk.remove("/var/lib/logd/meta")

    with pytest.raises(CorruptionError, match="meta is missing"):
        open_directory(disk, "second")


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")

    with pytest.raises(
        ForeignDirectoryError, match=r"not empty and no data directory.*thesis\.tex"
    ):
        DataDirectory.open(RealFileSystem(), str(tmp_path), NODE, draw_from("x"))

    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_system_of_its_own_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()

    DataDirectory.open(RealFileSystem(), str(tmp_path), NODE, draw_from("x")).close()


def test_a_first_start_that_was_interrupted_anywhere_can_be_repeated() -> None:
    for seed in range(60):
        disk = SimulatedFileSystem(random.Random(seed))
        with disk.dying_after(seed // 2):
            open_directory(disk, "first")
        disk.crash(random.Random(seed))

        assert open_directory(disk, "second").directory_id in ("first", "second")


def test_groups_have_numbers_for_names_and_are_listed_in_order(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    for group in (10, 0, 9):
        disk.make_directory(directory.group_path(GroupId(group)))
    disk.make_directory("/var/lib/logd/groups/lost+found")

    assert directory.list_groups() == [0, 9, 10]
    assert directory.group_path(GroupId(9)) == f"/var/lib/logd/groups/{9:020}"


def test_a_deleted_group_goes_to_the_trash_and_stays_until_that_is_emptied(
    disk: SimulatedFileSystem,
) -> None:
    directory = open_directory(disk, "first")
    for _ in range(2):
        path = directory.group_path(GroupId(3))
        disk.make_directory(path)
        disk.open(f"{path}/file", create=True)

        directory.trash_group(GroupId(3))

    assert directory.list_groups() == []
    trashed = [f"{3:020}-0", f"{3:020}-1"]
    assert disk.list_directory(directory.trash_path) == trashed
    assert disk.exists(f"{directory.trash_path}/{trashed[1]}/file")

    while directory.trash.remove_piece(trashed, 1):
        pass

    assert directory.trash.names() == []


def test_a_group_in_the_trash_does_not_come_back_after_a_power_cut(
    disk: SimulatedFileSystem,
) -> None:
    directory = open_directory(disk, "first")
    disk.make_directory(directory.group_path(GroupId(3)))
    disk.sync_directory("/var/lib/logd/groups")
    directory.trash_group(GroupId(3))

    disk.crash(random.Random(2))

    directory = open_directory(disk)
    assert directory.list_groups() == []
    assert disk.list_directory(directory.trash_path) == [f"{3:020}-0"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EMFILE])
def test_what_finds_no_room_is_noted_when_there_is_some(
    disk: SimulatedFileSystem, reason: int
) -> None:
    directory = open_directory(disk, "first")

    def refuse(operation: str, path: str) -> None:
        if operation == "create":
            raise OSError(reason, "simulated failure", path)

    disk.on_operation = refuse
    with pytest.raises(NoRoomError):
        directory.form({1: "first"})
    with pytest.raises(NoRoomError):
        directory.set_cluster_id("c1")
    assert (directory.members, directory.cluster_id) == (None, None)

    disk.on_operation = None
    directory.form({1: "first"})
    directory.set_cluster_id("c1")
    directory.close()

    directory = open_directory(disk)
    assert (directory.members, directory.cluster_id) == ({1: "first"}, "c1")


@pytest.mark.parametrize("steps", range(8))
def test_a_directory_without_room_to_make_it_is_refused_and_made_when_there_is_some(
    disk: SimulatedFileSystem, steps: int
) -> None:
    taken: list[str] = []

    def refuse(operation: str, path: str) -> None:
        if operation in ("mkdir", "create", "write"):
            taken.append(path)
            if len(taken) > steps:
                raise OSError(errno.ENOSPC, "No space left on device", path)

    disk.on_operation = refuse
    with pytest.raises(StorageError, match=r"^cannot use data directory .*: No space left on"):
        open_directory(disk, "first")
    disk.on_operation = None

    assert open_directory(disk, "second").directory_id == "second"


def test_a_directory_that_cannot_be_written_is_refused_with_the_reason(
    disk: SimulatedFileSystem,
) -> None:
    def fail(operation: str, path: str) -> None:
        if operation == "create":
            raise PermissionError(13, "Permission denied", path)

    disk.on_operation = fail
    with pytest.raises(StorageError, match="Permission denied"):
        open_directory(disk, "first")


@pytest.mark.parametrize(
    ("at", "told"), [("a", "/a is"), ("a/data", "it is"), ("a/data/groups", "/a/data/groups is")]
)
def test_what_is_no_directory_is_named_as_that(tmp_path: Path, at: str, told: str) -> None:
    (tmp_path / at).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / at).write_bytes(b"")

    with pytest.raises(StorageError) as refused:
        DataDirectory.open(RealFileSystem(), f"{tmp_path}/a/data", NODE, draw_from("first"))

    words = str(refused.value)
    assert words.startswith(f"cannot use data directory {tmp_path}/a/data: ")
    assert words.endswith(f"{told} no directory")


def a_replica(disk: SimulatedFileSystem, directory: DataDirectory, term: int) -> None:
    """A group's directory, with a term and a vote in it."""
    path = directory.group_path(GroupId(3))
    disk.make_directory(path)
    disk.sync_directory("/var/lib/logd/groups")
    hard_state = HardStateFile.create(disk, f"{path}/hard_state", directory.identity(GroupId(3)))
    hard_state.save(Term(term), NodeId(2))


def promised(disk: SimulatedFileSystem, directory: DataDirectory) -> tuple[Term, NodeId | None]:
    path = directory.promises_path(GroupId(3))
    return HardStateFile.open(disk, path, directory.identity(GroupId(3))).load()


def test_what_a_replica_promised_outlives_it(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    for term in (5, 8):
        a_replica(disk, directory, term)

        directory.retire_group(GroupId(3))

        disk.crash(random.Random(term))
        directory = open_directory(disk)
        assert directory.list_groups() == []
        assert directory.list_promises() == [3]
        assert promised(disk, directory) == (term, 2)


def test_a_replica_retired_at_a_power_cut_is_there_or_its_promises_are() -> None:
    for count in range(40):
        disk = SimulatedFileSystem(random.Random(1))
        directory = open_directory(disk, "first")
        a_replica(disk, directory, 5)
        with disk.failing_after(count), contextlib.suppress(OSError, StorageError):
            directory.retire_group(GroupId(3))
        disk.crash(random.Random(count))
        directory = open_directory(disk)

        assert directory.has_group(GroupId(3)) or promised(disk, directory) == (5, 2)


def a_log(disk: SimulatedFileSystem, directory: DataDirectory, *terms: int) -> str:
    """A log with a batch of each of these terms; where it lies."""
    path, identity = directory.group_path(GroupId(3)), directory.identity(GroupId(3))
    log = Log.create(disk, path, identity, LogOptions())
    for offset, term in enumerate(terms):
        log.append([make_batch(offset, term=term, group=GroupId(3))])
        log.sync(Offset(0))
    log.close()
    return f"{path}/{segment_name(Offset(0))}"


@pytest.mark.parametrize("loss", ["missing", "damaged"])
def test_where_the_votes_are_lost_the_term_of_the_log_is_promised(
    disk: SimulatedFileSystem, loss: str
) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 9)
    a_log(disk, directory, 4, 7)
    hard_state = f"{directory.group_path(GroupId(3))}/hard_state"
    if loss == "missing":
        disk.remove(hard_state)
    else:
        disk.overwrite(hard_state, 4096, bytes(8192))

    directory.retire_group(GroupId(3))

    assert not directory.has_group(GroupId(3))
    assert promised(disk, directory) == (7, None)


def test_votes_whose_file_has_lost_its_header_are_kept(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 9)
    disk.overwrite(f"{directory.group_path(GroupId(3))}/hard_state", 0, bytes(128))

    directory.retire_group(GroupId(3))

    assert promised(disk, directory) == (9, 2)


@pytest.mark.parametrize("lost", ["marks", "newest segment"])
def test_a_replica_of_which_no_promise_is_known_stays_and_so_cannot_come_back(
    disk: SimulatedFileSystem, lost: str
) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 9)
    segment = a_log(disk, directory, 4, 7)
    disk.remove(f"{directory.group_path(GroupId(3))}/hard_state")
    if lost == "marks":
        disk.overwrite(segment, 512, bytes(1024))
    else:
        # Behind it there was a batch of a term that nobody knows any more.
        write_note(disk.open(segment), Offset(2), GroupId(3))

    with pytest.raises(StorageError, match="what it promised is not known"):
        directory.retire_group(GroupId(3))

    assert directory.has_group(GroupId(3))


def test_a_replica_that_the_disk_does_not_show_is_not_taken_for_gone(tmp_path: Path) -> None:
    """Else its old files would be said to be gone, and another could come in their place."""
    directory = DataDirectory.open(RealFileSystem(), str(tmp_path), NODE, draw_from("first"))
    assert not directory.has_group(GroupId(3))
    for name in ("groups", "promises"):
        (tmp_path / name).rmdir()
        (tmp_path / name).symlink_to(name)

    assert directory.has_group(GroupId(3))
    with pytest.raises(StorageError, match="cannot look for the promises of group 3"):
        directory.trash_group(GroupId(3))


def test_the_promises_of_a_deleted_group_are_forgotten(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    directory.retire_group(GroupId(3))
    a_replica(disk, directory, 6)

    directory.trash_group(GroupId(3))

    assert directory.list_promises() == []


# --- a replica whose directory was taken away ---------------------------------------------


def take_away(disk: SimulatedFileSystem, directory: DataDirectory) -> None:
    """For good, of a replica that was noted for good."""
    disk.remove_tree(directory.group_path(GroupId(3)))
    for name in ("groups", "replicas"):
        disk.sync_directory(f"/var/lib/logd/{name}")


def test_a_replica_whose_directory_was_taken_away_is_missed(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    directory.note_group(GroupId(3))
    take_away(disk, directory)
    disk.crash(random.Random(1))

    directory = open_directory(disk)
    assert directory.is_noted(GroupId(3))
    assert directory.has_group(GroupId(3))
    assert directory.list_groups() == [3]


def test_replicas_that_were_made_before_there_was_a_list_are_noted(
    disk: SimulatedFileSystem,
) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    disk.crash(random.Random(1))

    directory = open_directory(disk)
    assert directory.is_noted(GroupId(3))
    take_away(disk, directory)
    disk.crash(random.Random(2))
    assert open_directory(disk).is_noted(GroupId(3))


def test_what_is_known_of_a_lost_replica_is_that_it_knows_nothing(
    disk: SimulatedFileSystem,
) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    directory.note_group(GroupId(3))
    take_away(disk, directory)

    directory.retire_group(GroupId(3))

    directory = open_directory_again(disk, directory)
    assert not directory.has_group(GroupId(3))
    assert promised(disk, directory) == (0, None)


def test_what_a_still_earlier_replica_promised_outlives_a_lost_one(
    disk: SimulatedFileSystem,
) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    directory.retire_group(GroupId(3))
    a_replica(disk, directory, 8)
    directory.note_group(GroupId(3))
    take_away(disk, directory)

    directory.retire_group(GroupId(3))

    assert promised(disk, directory) == (5, 2)
    assert not directory.has_group(GroupId(3))


def open_directory_again(disk: SimulatedFileSystem, directory: DataDirectory) -> DataDirectory:
    directory.close()
    return open_directory(disk)


@pytest.mark.parametrize("seed", range(10))
def test_a_replica_that_has_left_is_not_missed_after_a_power_cut(seed: int) -> None:
    """Another one may have been put there by then, whose directory is yet to be made."""
    disk = SimulatedFileSystem(random.Random(seed))
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    directory = open_directory_again(disk, directory)
    assert directory.is_noted(GroupId(3))

    directory.retire_group(GroupId(3))
    disk.crash(random.Random(seed))

    assert not open_directory(disk).has_group(GroupId(3))


def test_a_replica_that_could_not_be_cleared_away_is_not_said_to_have_left(
    disk: SimulatedFileSystem,
) -> None:
    for count in range(60):
        directory = open_directory(disk, "first")
        a_replica(disk, directory, 5)
        directory.note_group(GroupId(3))
        with disk.failing_after(count), contextlib.suppress(OSError, StorageError):
            directory.retire_group(GroupId(3))
            break
        assert directory.has_group(GroupId(3)), count

        directory.retire_group(GroupId(3))

        assert not directory.has_group(GroupId(3))
        directory.close()
    assert count > 5


def test_a_lost_replica_of_a_deleted_group_is_missed_no_more(disk: SimulatedFileSystem) -> None:
    directory = open_directory(disk, "first")
    a_replica(disk, directory, 5)
    directory.note_group(GroupId(3))
    take_away(disk, directory)

    directory.trash_group(GroupId(3))

    assert directory.list_groups() == open_directory_again(disk, directory).list_groups() == []


@pytest.mark.parametrize("way", ["retire", "trash"])
def test_whatever_a_crash_leaves_of_a_removal_is_removed_by_the_next_one(way: str) -> None:
    for count in range(60):
        disk = SimulatedFileSystem(random.Random(1))
        directory = open_directory(disk, "first")
        a_replica(disk, directory, 5)
        directory.note_group(GroupId(3))
        disk.sync_directory("/var/lib/logd/replicas")
        remove = DataDirectory.retire_group if way == "retire" else DataDirectory.trash_group
        with disk.failing_after(count), contextlib.suppress(OSError, StorageError):
            remove(directory, GroupId(3))
        disk.crash(random.Random(count))

        directory = open_directory(disk)
        assert directory.is_noted(GroupId(3)) >= disk.exists(directory.group_path(GroupId(3)))
        for group in directory.list_groups():
            remove(directory, group)
        assert not directory.has_group(GroupId(3))
        if way == "retire":
            assert promised(disk, directory) == (5, 2), count
