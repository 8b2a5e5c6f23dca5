"""What is shipped takes the place of a log whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import random

import pytest

from logd.errors import LogdError, NoRoomError
from logd.limits import KIB
from logd.replication.installing import begin_install, finish_install, has_begun
from logd.storage.log import Log, LogOptions
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, IDENTITY, append_some
from tests.unit.test_snapshot import START, snapshot

OPTIONS = LogOptions(segment_bytes=4 * KIB)


def disk_with_a_log(seed: int) -> SimulatedFileSystem:
    """Of three segments, all of it durable; it ends before what is shipped begins."""
    disk = SimulatedFileSystem(random.Random(seed))
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    for _ in range(2):
        append_some(log, 1)
        log.roll()
    append_some(log, 1)
    log.close()
    return disk


def refuse(disk: SimulatedFileSystem, refused: str, reason: int, *, after: int = 0) -> None:
    """From the ``after``-th on these operations fail; those of every kind, if it is empty."""
    left = after

    def fail(operation: str, path: str) -> None:
        nonlocal left
        if operation == refused or not refused:
            left -= 1
            if left < 0:
                raise OSError(reason, "simulated failure", path)

    disk.on_operation = fail


def test_what_was_written_down_without_a_descriptor_to_sync_it_with_is_installed_later() -> None:
    disk = disk_with_a_log(1)
    refuse(disk, "sync_directory", errno.EMFILE)
    with pytest.raises(NoRoomError):
        begin_install(disk, DIRECTORY, IDENTITY, snapshot())
    with pytest.raises(NoRoomError):
        finish_install(disk, DIRECTORY, IDENTITY, OPTIONS)
    assert Log.exists(disk, DIRECTORY)  # Nothing goes before.

    disk.on_operation = None

    assert finish_install(disk, DIRECTORY, IDENTITY, OPTIONS)
    assert Log.open(disk, DIRECTORY, IDENTITY, OPTIONS).start_offset == START


@pytest.mark.parametrize("steps", range(12))
def test_a_kill_before_it_is_durable_and_a_power_cut_behind_it_leave_the_old_log_or_the_new(
    steps: int,
) -> None:
    for seed in range(8):
        disk = disk_with_a_log(seed)
        refuse(disk, "sync_directory", errno.EIO)
        with pytest.raises(LogdError):
            begin_install(disk, DIRECTORY, IDENTITY, snapshot())
        disk.kill()

        refuse(disk, "", errno.EIO, after=steps)
        with pytest.raises((LogdError, OSError)):
            finish_install(disk, DIRECTORY, IDENTITY, OPTIONS)
        disk.on_operation = None
        disk.crash(random.Random(seed))

        if not has_begun(disk, DIRECTORY):
            log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
            assert (log.recovery.is_damaged, log.start_offset, log.end_offset) == (False, 0, 3)
            continue
        finish_install(disk, DIRECTORY, IDENTITY, OPTIONS)
        assert Log.open(disk, DIRECTORY, IDENTITY, OPTIONS).start_offset == START
