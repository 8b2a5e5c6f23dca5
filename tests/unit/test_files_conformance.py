"""The simulated disk does what the real one does, as far as a program can tell.

Every test of the first part runs over both.  The second part is about what only a simulated
disk can show: what a power cut, a failed sync or rot leaves behind.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from logd.env import FileSystem
from logd.errors import DirectoryLockedError
from logd.runtime.files import RealFileSystem
from tests.sim.files import SECTOR_BYTES, SimulatedFileSystem


@pytest.fixture(params=["real", "simulated"])
def files(request: pytest.FixtureRequest) -> FileSystem:
    return RealFileSystem() if request.param == "real" else SimulatedFileSystem(random.Random(1))


@pytest.fixture
def root(files: FileSystem, tmp_path: Path) -> str:
    path = f"{tmp_path}/data"
    files.make_directory(path)
    return path


def write(files: FileSystem, path: str, content: bytes) -> None:
    file = files.open(path, create=True)
    file.pwritev([content], 0)
    file.close()


def read(files: FileSystem, path: str) -> bytes:
    file = files.open(path, writable=False)
    content = file.pread(file.size(), 0)
    file.close()
    return content


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


# --- both -------------------------------------------------------------------------------


def test_buffers_of_any_kind_are_written_back_to_back(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)

    file.pwritev([b"one", bytearray(b"two"), memoryview(b"-three-")[1:-1], b""], 4)

    assert file.pread(100, 0) == b"\0\0\0\0onetwothree"
    assert file.size() == 15


def test_what_the_page_cache_forgot_is_read_all_the_same(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    written = bytes(range(256)) * 256
    file.pwritev([written], 0)
    file.forget_cached(0, 30_000)
    file.sync()
    file.forget_cached(10_000, 50_000)
    file.forget_cached(40_000, 1_000_000)

    assert file.pread(100_000, 0) == written


def test_more_buffers_than_one_system_call_takes_are_written(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    buffers = [number.to_bytes(2, "big") for number in range(2500)]

    file.pwritev(buffers, 0)

    assert file.pread(5000, 0) == b"".join(buffers)


def test_a_read_is_short_only_at_the_end(files: FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"0123456789")
    file = files.open(f"{root}/a", writable=False)

    assert file.pread(4, 3) == b"3456"
    assert file.pread(4, 8) == b"89"
    assert file.pread(4, 10) == b""
    assert file.pread(0, 0) == b""


def test_a_cached_read_gives_what_was_just_written_or_says_that_it_cannot(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/a", b"0123456789")
    file = files.open(f"{root}/a")

    for count, position in ((4, 3), (4, 8), (4, 10)):
        found = file.pread_cached(count, position)
        assert found is None or bytes(found) == file.pread(count, position)


def test_allocated_space_is_zero_and_what_was_there_is_kept(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    file.pwritev([b"kept"], 0)

    file.allocate(4096)

    assert file.pread(5000, 0) == b"kept" + bytes(4092)


def test_allocating_less_than_there_is_changes_nothing(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    file.pwritev([b"kept"], 0)

    file.allocate(2)

    assert file.pread(100, 0) == b"kept"


def test_what_was_truncated_is_zero_when_the_file_grows_again(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    file.pwritev([b"0123456789"], 0)

    file.truncate(4)
    file.allocate(8)

    assert file.pread(100, 0) == b"0123\0\0\0\0"


def test_a_map_shows_the_file_and_cannot_be_written(files: FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"0123456789")

    view = files.open(f"{root}/a", writable=False).map()

    assert bytes(view) == b"0123456789"
    assert view.readonly


def test_a_map_outlives_its_file_handle_and_its_name(files: FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"0123456789")
    file = files.open(f"{root}/a", writable=False)
    view = file.map()

    file.close()
    files.remove(f"{root}/a")

    assert bytes(view[3:5]) == b"34"


def test_a_map_keeps_no_descriptor(root: str, files: FileSystem) -> None:
    write(files, f"{root}/a", b"0123456789")
    before = open_descriptors()

    file = files.open(f"{root}/a", writable=False)
    view = file.map()
    file.close()

    assert open_descriptors() == before
    assert bytes(view) == b"0123456789"


def test_creating_what_exists_and_opening_what_does_not_are_refused(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/a", b"")

    with pytest.raises(FileExistsError):
        files.open(f"{root}/a", create=True)
    with pytest.raises(FileNotFoundError):
        files.open(f"{root}/b")
    with pytest.raises(FileNotFoundError):
        files.open(f"{root}/missing/b", create=True)
    with pytest.raises(IsADirectoryError):
        files.open(root)


def test_a_file_opened_for_reading_cannot_be_written(files: FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"kept")
    file = files.open(f"{root}/a", writable=False)

    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pwritev([b"lost"], 0)

    assert read(files, f"{root}/a") == b"kept"


def test_a_closed_file_is_refused_and_closing_twice_is_not(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    file.close()
    file.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pread(1, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.sync()


def test_a_rename_replaces_the_target_at_once(files: FileSystem, root: str) -> None:
    write(files, f"{root}/a", b"new")
    write(files, f"{root}/b", b"old")

    files.rename(f"{root}/a", f"{root}/b")

    assert files.list_directory(root) == ["b"]
    assert read(files, f"{root}/b") == b"new"


def test_a_file_with_two_names_is_one_file_until_the_last_of_them_is_gone(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/a", b"content")

    assert files.link(f"{root}/a", f"{root}/b")

    files.open(f"{root}/b").pwritev([b"C"], 0)
    assert read(files, f"{root}/a") == b"Content"
    files.remove(f"{root}/a")
    assert read(files, f"{root}/b") == b"Content"


def test_a_file_whose_name_is_given_to_another_keeps_its_second_one(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/old", b"old")
    write(files, f"{root}/new", b"new")
    files.make_directory(f"{root}/trash")

    files.link(f"{root}/old", f"{root}/aside")
    files.rename(f"{root}/new", f"{root}/old")
    files.rename(f"{root}/aside", f"{root}/trash/old")

    assert files.list_directory(root) == ["old", "trash"]
    assert read(files, f"{root}/old") == b"new"
    assert read(files, f"{root}/trash/old") == b"old"


def test_a_name_that_is_taken_or_leads_nowhere_cannot_be_linked(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/a", b"content")
    write(files, f"{root}/b", b"other")

    with pytest.raises(FileExistsError):
        files.link(f"{root}/a", f"{root}/b")
    with pytest.raises(FileNotFoundError):
        files.link(f"{root}/missing", f"{root}/c")
    assert not files.link(root, f"{root}/c")

    assert files.list_directory(root) == ["a", "b"]
    assert read(files, f"{root}/b") == b"other"


def test_a_rename_of_one_name_of_a_file_to_another_leaves_both(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/a", b"content")
    files.link(f"{root}/a", f"{root}/b")

    files.rename(f"{root}/a", f"{root}/b")

    assert files.list_directory(root) == ["a", "b"]


def test_a_directory_is_renamed_with_all_that_is_in_it(files: FileSystem, root: str) -> None:
    files.make_directory(f"{root}/from/below")
    files.make_directory(f"{root}/to")
    write(files, f"{root}/from/below/a", b"content")

    files.rename(f"{root}/from", f"{root}/to/moved")

    assert not files.exists(f"{root}/from")
    assert read(files, f"{root}/to/moved/below/a") == b"content"


def test_a_removed_file_is_still_there_for_whoever_has_it_open(
    files: FileSystem, root: str
) -> None:
    write(files, f"{root}/a", b"content")
    file = files.open(f"{root}/a")

    files.remove(f"{root}/a")

    assert not files.exists(f"{root}/a")
    assert file.pread(100, 0) == b"content"
    with pytest.raises(FileNotFoundError):
        files.remove(f"{root}/a")


def test_directories_are_made_with_their_parents_listed_sorted_and_removed_whole(
    files: FileSystem, root: str
) -> None:
    files.make_directory(f"{root}/x/y")
    files.make_directory(f"{root}/x/y")
    write(files, f"{root}/x/b", b"")
    write(files, f"{root}/x/a", b"")

    assert files.list_directory(f"{root}/x") == ["a", "b", "y"]
    assert files.is_directory(f"{root}/x/y")
    assert not files.is_directory(f"{root}/x/a")
    assert not files.is_directory(f"{root}/x/z")

    files.remove_tree(f"{root}/x")

    assert files.list_directory(root) == []
    with pytest.raises(FileNotFoundError):
        files.list_directory(f"{root}/x")


def test_syncing_files_and_directories_succeeds(files: FileSystem, root: str) -> None:
    file = files.open(f"{root}/a", create=True)
    file.pwritev([b"content"], 0)

    file.sync()
    files.sync_directory(root)

    assert read(files, f"{root}/a") == b"content"


def test_a_lock_is_held_by_one_at_a_time_and_names_its_holder(files: FileSystem, root: str) -> None:
    lock = files.lock(f"{root}/lock")

    with pytest.raises(DirectoryLockedError) as refusal:
        files.lock(f"{root}/lock")
    assert refusal.value.holder_pid == (os.getpid() if isinstance(files, RealFileSystem) else 1)

    lock.release()
    files.lock(f"{root}/lock").release()


def test_there_is_space_left(files: FileSystem, root: str) -> None:
    assert files.free_bytes(root) > 0


# --- what only the simulated disk shows -------------------------------------------------


@pytest.fixture
def disk() -> SimulatedFileSystem:
    disk = SimulatedFileSystem(random.Random(7))
    disk.make_directory("/data")
    disk.sync_directory("/")
    return disk


def test_what_was_synced_survives_a_power_cut(disk: SimulatedFileSystem) -> None:
    for seed in range(50):
        path = f"/data/{seed}"
        file = disk.open(path, create=True)
        file.pwritev([b"a" * 2000], 0)
        file.sync()
        disk.sync_directory("/data")
        file.pwritev([b"b" * 2000], 2000)

        disk.crash(random.Random(seed))

        assert disk.content(path)[:2000] == b"a" * 2000


def test_unsynced_sectors_survive_in_any_subset_and_each_whole(disk: SimulatedFileSystem) -> None:
    seen: set[tuple[bool, ...]] = set()
    for seed in range(200):
        path = f"/data/{seed}"
        file = disk.open(path, create=True)
        file.pwritev([b"a" * 3 * SECTOR_BYTES], 0)
        file.sync()
        disk.sync_directory("/data")
        file.pwritev([b"b" * 3 * SECTOR_BYTES], 0)

        disk.crash(random.Random(seed))

        content = disk.content(path)
        sectors = [content[n * SECTOR_BYTES : (n + 1) * SECTOR_BYTES] for n in range(3)]
        assert all(sector in (b"a" * SECTOR_BYTES, b"b" * SECTOR_BYTES) for sector in sectors)
        seen.add(tuple(sector[0] == ord("b") for sector in sectors))

    assert len(seen) == 8


def test_what_a_lost_write_left_behind_in_a_grown_file_is_zeros(disk: SimulatedFileSystem) -> None:
    seen: set[bytes] = set()
    for seed in range(100):
        path = f"/data/{seed}"
        file = disk.open(path, create=True)
        disk.sync_directory("/data")
        file.pwritev([b"x" * SECTOR_BYTES], 0)

        disk.crash(random.Random(seed))

        seen.add(disk.content(path))

    assert seen == {b"", bytes(SECTOR_BYTES), b"x" * SECTOR_BYTES}


def test_a_name_survives_only_once_its_directory_is_synced(disk: SimulatedFileSystem) -> None:
    outcomes: list[list[str]] = []
    for seed in range(60):
        disk.make_directory(f"/data/{seed}")
        disk.sync_directory("/data")
        write(disk, f"/data/{seed}/unsynced", b"")
        write(disk, f"/data/{seed}/other", b"")
        disk.rename(f"/data/{seed}/other", f"/data/{seed}/renamed")

        disk.crash(random.Random(seed))

        outcomes.append(disk.list_directory(f"/data/{seed}"))

    assert all("unsynced" in names for names in outcomes) is False
    assert [] in outcomes
    assert ["renamed", "unsynced"] in outcomes
    assert not any("other" in names and "renamed" in names for names in outcomes)


def test_a_rename_that_was_synced_does_not_come_back_under_its_old_name(
    disk: SimulatedFileSystem,
) -> None:
    disk.make_directory("/data/trash")
    write(disk, "/data/a", b"content")
    disk.rename("/data/a", "/data/trash/a")
    disk.sync_directory("/data/trash")

    disk.crash(random.Random(3))

    assert not disk.exists("/data/a")


def test_of_a_second_name_and_a_first_that_is_given_away_a_power_cut_keeps_any(
    disk: SimulatedFileSystem,
) -> None:
    seen: set[tuple[bytes, bool]] = set()
    for seed in range(60):
        at = f"/data/{seed}"
        disk.make_directory(at)
        disk.sync_directory("/data")
        for name in ("old", "new"):
            file = disk.open(f"{at}/{name}", create=True)
            file.pwritev([name.encode()], 0)
            file.sync()
        disk.sync_directory(at)
        disk.link(f"{at}/old", f"{at}/aside")
        disk.rename(f"{at}/new", f"{at}/old")

        disk.crash(random.Random(seed))

        has_aside = disk.exists(f"{at}/aside")
        assert not has_aside or disk.content(f"{at}/aside") == b"old"
        seen.add((disk.content(f"{at}/old"), has_aside))

    assert seen == {(content, aside) for content in (b"old", b"new") for aside in (True, False)}


def test_a_file_takes_up_its_space_once_however_many_names_it_has(
    disk: SimulatedFileSystem,
) -> None:
    write(disk, "/data/a", bytes(100))
    disk.link("/data/a", "/data/b")

    assert disk.used_bytes() == 100
    disk.remove("/data/a")
    assert disk.used_bytes() == 100
    disk.remove("/data/b")
    assert disk.used_bytes() == 0


def test_a_failed_sync_loses_data_that_the_cache_still_shows_and_the_next_one_succeeds(
    disk: SimulatedFileSystem,
) -> None:
    file = disk.open("/data/a", create=True)
    disk.sync_directory("/data")
    file.pwritev([b"x" * 64 * SECTOR_BYTES], 0)

    def fail(operation: str, path: str) -> None:
        if operation == "sync":
            raise OSError(5, "Input/output error")

    disk.on_operation = fail
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    disk.on_operation = None
    file.sync()

    assert file.pread(64 * SECTOR_BYTES, 0) == b"x" * 64 * SECTOR_BYTES
    disk.crash(random.Random(0))
    assert disk.content("/data/a") != b"x" * 64 * SECTOR_BYTES


def test_handles_and_locks_end_with_the_process(disk: SimulatedFileSystem) -> None:
    file = disk.open("/data/a", create=True)
    file.pwritev([b"in the page cache"], 0)
    disk.lock("/data/lock")

    disk.kill()

    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pread(1, 0)
    assert disk.content("/data/a") == b"in the page cache"
    disk.lock("/data/lock").release()


def test_a_full_disk_takes_what_fits(disk: SimulatedFileSystem) -> None:
    disk.capacity_bytes = 10
    file = disk.open("/data/a", create=True)

    with pytest.raises(OSError, match="No space left"):
        file.pwritev([b"0123456789abc"], 0)

    assert disk.content("/data/a") == b"0123456789"
    with pytest.raises(OSError, match="No space left"):
        file.allocate(11)
    with pytest.raises(OSError, match="No space left"):
        disk.make_directory("/data/b")


def test_rot_reaches_the_cache_and_the_disk(disk: SimulatedFileSystem) -> None:
    write(disk, "/data/a", b"\0\0\0")

    disk.flip("/data/a", 1, bit=2)

    assert disk.content("/data/a") == b"\0\x04\0"


def test_one_seed_gives_one_disk() -> None:
    def run() -> bytes:
        disk = SimulatedFileSystem(random.Random(1))
        disk.make_directory("/data")
        disk.sync_directory("/")
        file = disk.open("/data/a", create=True)
        disk.sync_directory("/data")
        file.pwritev([random.Random(2).randbytes(10_000)], 0)
        disk.crash(random.Random(3))
        return disk.content("/data/a")

    assert run() == run()
