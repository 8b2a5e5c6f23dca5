"""Sealed segments stay open for who reads on, as far as nobody else needs the descriptors."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from logd.env import FileSystem
from logd.limits import DESCRIPTORS_SPARE_OF_READING, KIB
from logd.runtime.files import RealFileSystem
from logd.storage.kept_open import KeptOpen
from logd.storage.log import Log, LogOptions
from logd.types import Offset
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, IDENTITY, append_some

OPTIONS = LogOptions(segment_bytes=8 * KIB)
SEGMENTS = 6


def log_with_sealed_segments(files: FileSystem, kept_open: KeptOpen, directory: str) -> Log:
    log = Log.create(files, directory, IDENTITY, OPTIONS)
    for _ in range(SEGMENTS):
        append_some(log, 1, value=bytes(8 * KIB))
        log.sync(Offset(0))
        log.roll()
    log.close()
    return Log.open(files, directory, IDENTITY, OPTIONS, kept_open=kept_open)


def read_all(log: Log) -> None:
    for offset in range(SEGMENTS):
        assert log.read(Offset(offset), Offset(offset + 1), 1, cached_only=False)


def kept(log: Log) -> int:
    return sum(segment.file is not None for segment in log._held.segments[:-1])


@pytest.fixture
def disk() -> SimulatedFileSystem:
    return SimulatedFileSystem(random.Random(1))


def test_the_last_few_segments_that_were_read_stay_open(disk: SimulatedFileSystem) -> None:
    log = log_with_sealed_segments(disk, KeptOpen(disk), DIRECTORY)

    read_all(log)

    assert kept(log) == 4


def test_all_logs_together_keep_no_more_open_than_they_leave_of_a_share(
    disk: SimulatedFileSystem,
) -> None:
    """Whose was read longest ago is let go; its indexes stay, which take no descriptor."""
    kept_open = KeptOpen(disk)
    logs = [log_with_sealed_segments(disk, kept_open, f"/data/{number}") for number in range(3)]
    disk.descriptors = DESCRIPTORS_SPARE_OF_READING + len(logs) + 5

    for log in logs:
        read_all(log)

    assert [kept(log) for log in logs] == [0, 1, 4]
    assert all(segment.indexes for segment in logs[0]._held.segments[-5:-1])


def test_what_was_read_again_stays_open_longer_than_what_was_not(
    disk: SimulatedFileSystem,
) -> None:
    log = log_with_sealed_segments(disk, KeptOpen(disk), DIRECTORY)
    disk.descriptors = DESCRIPTORS_SPARE_OF_READING + 1 + 3

    for offset in (0, 1, 2, 0, 3):
        assert log.read(Offset(offset), Offset(offset + 1), 1, cached_only=False)

    first, second = log._held.segments[:2]
    assert first.file is not None
    assert second.file is None


def test_what_is_kept_open_gives_way_to_a_log_that_is_opened(disk: SimulatedFileSystem) -> None:
    kept_open = KeptOpen(disk)
    log = log_with_sealed_segments(disk, kept_open, f"{DIRECTORY}/0")
    read_all(log)
    disk.descriptors = DESCRIPTORS_SPARE_OF_READING + 1 + 4
    more = [log_with_sealed_segments(disk, kept_open, f"/data/{number}") for number in (1, 2)]
    assert kept(log) == 2

    for each in more:
        each.close()
    read_all(log)

    assert kept(log) == 4


def test_a_segment_that_is_trimmed_or_cut_is_kept_open_by_nobody(
    disk: SimulatedFileSystem,
) -> None:
    """Or the room that it takes on the disk would not be free."""
    kept_open = KeptOpen(disk)
    log = log_with_sealed_segments(disk, kept_open, DIRECTORY)
    read_all(log)

    log.trim(Offset(3))
    assert len(kept_open._segments) == 3
    log.truncate(Offset(4))

    assert len(kept_open._segments) == 1


@pytest.fixture
def limit() -> Iterator[int]:
    """A low one, and how low."""
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, given[1]), given[1]))
    yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, given)


def test_nothing_is_kept_open_where_others_have_taken_the_descriptors(
    limit: int, tmp_path: Path
) -> None:
    """Clients, for instance: nobody here counts them, but the numbers that are left tell."""
    files = RealFileSystem()
    log = log_with_sealed_segments(files, KeptOpen(files), str(tmp_path / "log"))
    clients = [os.open(tmp_path, os.O_RDONLY) for _ in range(limit // 2)]
    try:
        read_all(log)
        assert kept(log) == 0
    finally:
        for client in clients:
            os.close(client)

    read_all(log)

    assert kept(log) == 4
