"""The list of replicas says what is here, whatever becomes of its file."""

from __future__ import annotations

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from logd.errors import ForeignDirectoryError
from logd.storage import replica_list
from logd.storage.file_header import FILE_HEADER_BYTES, LogIdentity
from logd.storage.replica_list import ROW_BYTES, ReplicaList
from logd.types import DirectoryId, GroupId, NodeId
from tests.sim.files import SimulatedFileSystem

PATH = "/data/replicas"
IDENTITY = LogIdentity(DirectoryId("a-directory"), NodeId(1), GroupId(0))


@pytest.fixture
def disk() -> SimulatedFileSystem:
    return with_directory(1)


def with_directory(seed: int) -> SimulatedFileSystem:
    disk = SimulatedFileSystem(random.Random(seed))
    disk.make_directory("/data")
    disk.sync_directory("/")
    return disk


def read(disk: SimulatedFileSystem) -> ReplicaList:
    return ReplicaList(disk, PATH, IDENTITY)


def noted(disk: SimulatedFileSystem, groups: Iterable[int]) -> ReplicaList:
    found = read(disk)
    for group in groups:
        found.note(GroupId(group))
    return found


def test_what_was_noted_is_known_after_a_power_cut(disk: SimulatedFileSystem) -> None:
    found = noted(disk, [7, 0, 3])
    found.note_gone(GroupId(0))
    found.note(GroupId(9), GroupId(3), GroupId(2**62))
    disk.crash(random.Random(2))

    found = read(disk)
    assert found.groups == [3, 7, 9, 2**62]
    assert GroupId(3) in found
    assert GroupId(0) not in found
    found.note_gone(GroupId(5))  # It was never here.
    assert read(disk).groups == [3, 7, 9, 2**62]


def test_what_comes_back_is_noted_again(disk: SimulatedFileSystem) -> None:
    found = noted(disk, [7])
    found.note_gone(GroupId(7))
    found.note(GroupId(7))

    assert read(disk).groups == [7]


def test_the_file_is_written_anew_when_most_of_it_is_of_the_past(
    disk: SimulatedFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_list, "STALE_ROWS_MAX", 10)
    found = noted(disk, [1, 2])
    for group in range(100, 200):
        found.note(GroupId(group))
        found.note_gone(GroupId(group))
        size = len(disk.content(PATH))
        assert size <= FILE_HEADER_BYTES + ROW_BYTES * (3 + 10)

    assert read(disk).groups == [1, 2]


def test_a_damaged_row_is_passed_over_and_hides_no_other(disk: SimulatedFileSystem) -> None:
    noted(disk, [1, 2, 3])
    disk.flip(PATH, FILE_HEADER_BYTES + ROW_BYTES + 9)

    found = read(disk)
    assert found.groups == [1, 3]
    found.note(GroupId(2))
    assert read(disk).groups == [1, 2, 3]


@pytest.mark.parametrize("size", [0, 50, FILE_HEADER_BYTES])
def test_a_file_that_is_no_list_any_more_is_written_anew(
    disk: SimulatedFileSystem, size: int
) -> None:
    noted(disk, [1])
    disk.overwrite(PATH, 0, bytes(len(disk.content(PATH))))
    disk.open(PATH).truncate(size)

    found = read(disk)
    assert found.groups == []
    found.note(GroupId(4))
    assert read(disk).groups == [4]


def test_another_directorys_list_is_refused(disk: SimulatedFileSystem) -> None:
    noted(disk, [1])
    other = LogIdentity(DirectoryId("another"), NodeId(1), GroupId(0))

    with pytest.raises(ForeignDirectoryError, match="belongs to node 1"):
        ReplicaList(disk, PATH, other)


def test_whatever_a_crash_leaves_what_was_noted_before_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_list, "STALE_ROWS_MAX", 2)
    for seed in range(120):
        chance = random.Random(seed)
        disk = with_directory(seed)
        expected: dict[GroupId, bool] = {}
        doubtful: GroupId | None = None
        with disk.dying_after(chance.randrange(60)):
            found = read(disk)
            for _ in range(12):
                doubtful = GroupId(chance.randrange(4))
                if doubtful in found:
                    found.note_gone(doubtful)
                else:
                    found.note(doubtful)
                expected[doubtful] = not expected.get(doubtful, False)
                doubtful = None
        disk.crash(chance)

        found = read(disk)
        for group, is_here in expected.items():
            assert group == doubtful or (group in found) is is_here, seed


def test_what_several_note_at_once_is_known_of_all() -> None:
    disk = with_directory(1)
    found = read(disk)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda group: found.note(GroupId(group)), range(200)))

    assert found.groups == read(disk).groups == [*range(200)]


def test_what_could_not_be_written_is_written_with_what_comes_next(
    disk: SimulatedFileSystem,
) -> None:
    found = noted(disk, [1])
    with disk.failing_after(0), pytest.raises(OSError, match="simulated"):
        found.note(GroupId(2))
    assert GroupId(2) not in found

    found.note(GroupId(3))
    assert found.groups == read(disk).groups == [1, 2, 3]
