"""Descriptors may run out before any file is opened, half-way through what a log changes as well:
it is done again when there are some, and nothing is in doubt meanwhile."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from logd.errors import NoRoomError
from logd.limits import KIB, MIB
from logd.storage.log import Log, LogOptions
from logd.storage.whole_file import make_directory_durably
from logd.types import Offset
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, IDENTITY, append_some, read_all

OPTIONS = LogOptions(segment_bytes=8 * KIB, index_interval_bytes=512)
TRASH = "/data/trash"
PLACES_MAX = 40

Change = Callable[[Log], None]


def roll(log: Log) -> None:
    log.roll()


def truncate(log: Log) -> None:
    log.truncate(Offset(9))


def trim(log: Log) -> None:
    log.trim(Offset(20), TRASH)


def trim_without_trash(log: Log) -> None:
    log.trim(Offset(20))


CHANGES: list[Change] = [roll, truncate, trim, trim_without_trash]


def new_log() -> tuple[SimulatedFileSystem, Log, list[bytes]]:
    disk = SimulatedFileSystem(random.Random(1))
    make_directory_durably(disk, TRASH)
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written: list[bytes] = []
    while len(log.segment_bases) < 5:
        written += append_some(log, 1, value=bytes(500))
        log.sync(Offset(0))
        if log.needs_roll:
            log.roll()
    written += append_some(log, 2)
    log.sync(Offset(0))
    return disk, log, written


def take_the_last_descriptor(disk: SimulatedFileSystem, place: int) -> Callable[[], bool]:
    """What needs one is refused from that place on.  Returns what tells whether that was met."""
    count = 0

    def refuse(operation: str, path: str) -> None:
        nonlocal count
        if operation in ("open", "create", "list", "sync_directory"):
            count += 1
            if count > place:
                raise OSError(errno.EMFILE, "simulated failure", path)

    disk.on_operation = refuse
    return lambda: count > place


def opened_again(disk: SimulatedFileSystem) -> Log:
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
    assert not log.recovery.is_damaged, log.recovery.damage
    return log


def expected(change: Change, written: list[bytes], bases: tuple[Offset, ...]) -> list[bytes]:
    if change is truncate:
        return written[:9]
    if change is roll:
        return written
    return written[max(base for base in bases if base <= 20) :]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_goes_on_when_there_are_descriptors_again(change: Change) -> None:
    put_off = 0
    for place in range(PLACES_MAX):
        disk, log, written = new_log()
        bases = log.segment_bases
        was_met = take_the_last_descriptor(disk, place)
        try:
            change(log)
        except NoRoomError:
            put_off += 1
            disk.on_operation = None
            change(log)
        if not was_met():
            break
        disk.on_operation = None

        left = expected(change, written, bases)
        assert read_all(log) == left, place
        left += append_some(log, 1, term=2)
        log.sync(Offset(0))
        disk.crash(random.Random(place))
        assert read_all(opened_again(disk)) == left, place
    else:
        pytest.fail("there is always another place")
    assert put_off >= 2


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_while_a_change_waits_for_descriptors_leaves_a_log_from_before_or_after(
    change: Change, seed: int
) -> None:
    for place in range(PLACES_MAX):
        disk, log, written = new_log()
        bases = log.segment_bases
        was_met = take_the_last_descriptor(disk, place)
        with suppress(NoRoomError):
            change(log)
        disk.on_operation = None
        disk.crash(random.Random(seed))

        found = read_all(opened_again(disk))
        shortest = expected(change, written, bases)
        if change is truncate:
            assert found == written[: len(found)]
            assert len(found) >= len(shortest)
        else:
            assert found == written[-len(found) :]
            assert len(found) >= len(shortest)
        if not was_met():
            return
    pytest.fail("there is always another place")


@pytest.mark.parametrize("seed", range(4))
def test_indexes_of_what_was_cut_do_not_come_back(seed: int) -> None:
    """Their rows would look right beside what follows."""
    for place in range(PLACES_MAX):
        disk, log, _ = new_log()
        index = f"{DIRECTORY}/{log.segment_bases[1]:020}.log.index"
        assert disk.exists(index)
        was_met = take_the_last_descriptor(disk, place)
        try:
            truncate(log)
        except NoRoomError:
            disk.on_operation = None
            truncate(log)
        disk.on_operation = None

        disk.crash(random.Random(seed))

        assert not disk.exists(index), place
        if not was_met():
            return
    pytest.fail("there is always another place")


@pytest.mark.parametrize(
    ("refused", "is_begun"), [("create", False), ("sync_directory", True), ("open", True)]
)
def test_a_roll_that_gave_the_next_segment_its_name_says_that_it_has_to_be_ended(
    refused: str, is_begun: bool
) -> None:
    disk, log, _ = new_log()

    def refuse(operation: str, path: str) -> None:
        if operation == refused and not path.endswith("index"):
            raise OSError(errno.EMFILE, "simulated failure", path)

    disk.on_operation = refuse

    with pytest.raises(NoRoomError):
        log.roll()

    assert log.is_roll_begun == is_begun


def test_a_hole_is_filled_when_there_are_descriptors_again() -> None:
    put_off = 0
    for place in range(PLACES_MAX):
        disk, log, written = new_log()
        path = f"{DIRECTORY}/{0:020}.log"
        disk.flip(path, disk.open(path).size() - 100, 3)
        log.close()
        log = opened_again(disk)
        _, hole = log.scrub(log.scrub_start(Offset(0)), MIB)
        assert hole is not None
        batches = b"".join(written[hole.start.offset : hole.end.offset])
        was_met = take_the_last_descriptor(disk, place)
        try:
            left = log.fill(hole, batches)
        except NoRoomError:
            put_off += 1
            disk.on_operation = None
            left = log.fill(hole, batches)
        if not was_met():
            break
        disk.on_operation = None

        assert left is None
        disk.crash(random.Random(place))
        assert read_all(opened_again(disk)) == written
    assert put_off >= 1
