"""A log's note of how far it has been compacted is never true of another log than there is."""

from __future__ import annotations

import random

import pytest

from logd.errors import ForeignDirectoryError
from logd.storage.clean_note import (
    CleanNote,
    read_clean_note,
    withdraw_clean_note,
    write_clean_note,
)
from logd.storage.file_header import LogIdentity
from logd.storage.holes import fill_hole
from logd.storage.log import Log, LogOptions
from logd.storage.repair import put_in_place, survey_log
from logd.storage.segment_copy import SegmentCopy
from logd.types import GroupId, NodeId, Offset
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, GROUP, IDENTITY, append_some, read_all

MINUTE_MS = 60_000
NOTE = CleanNote(clean_to=Offset(7), oldest_tombstone=Offset(3), since=((Offset(7), 1000),))


@pytest.fixture
def log(disk: SimulatedFileSystem) -> Log:
    """Two sealed segments and the active one, with a note."""
    log = Log.create(disk, DIRECTORY, IDENTITY, LogOptions(segment_bytes=65536))
    for _ in range(2):
        append_some(log, 3)
        log.sync(log.end_offset)
        log.roll()
    append_some(log, 1)
    log.sync(log.end_offset)
    assert write(disk, NOTE)
    return log


def read(disk: SimulatedFileSystem, identity: LogIdentity = IDENTITY) -> CleanNote | None:
    return read_clean_note(disk, DIRECTORY, identity)


def write(disk: SimulatedFileSystem, note: CleanNote, instead_of: CleanNote | None = None) -> bool:
    return write_clean_note(disk, DIRECTORY, IDENTITY, note, instead_of=instead_of)


def after(note: CleanNote, clean_to: int, now_ms: int, *, has_stale: bool = False) -> CleanNote:
    return note.compacted(
        clean_to=Offset(clean_to),
        has_stale=has_stale,
        oldest_tombstone=Offset(0),
        now_ms=now_ms,
        tombstone_ms=MINUTE_MS,
    )


# --- what it says -------------------------------------------------------------------------


def test_a_log_is_settled_as_far_as_it_was_clean_by_then() -> None:
    note = after(after(CleanNote(), 10, 1000), 20, 50_000)

    assert [note.settled_to(ms) for ms in (999, 1000, 49_999, 50_000)] == [0, 10, 10, 20]


def test_what_comes_close_behind_waits_with_what_came_before() -> None:
    note = CleanNote()
    for offset, now_ms in ((10, 0), (20, 1000), (30, 20_000), (40, 31_000), (50, 40_000)):
        note = after(note, offset, now_ms)

    assert note.since == ((10, 0), (40, 31_000), (50, 40_000))


def test_of_what_is_settled_only_the_furthest_row_is_kept() -> None:
    """So a log that is compacted all the time settles, too, after half as long again at most."""
    note = CleanNote()
    for second in range(1, 1000):
        note = after(note, second, second * 1000)
        assert len(note.since) <= 5
        assert note.settled_to(second * 1000 - MINUTE_MS) >= second - 92


def test_a_compaction_that_only_dropped_tombstones_settles_nothing_anew() -> None:
    note = after(CleanNote(), 10, 0)

    assert after(note, 10, 50_000).since == ((10, 0),)


def test_behind_a_record_that_cannot_be_taken_out_nothing_settles() -> None:
    note = after(after(CleanNote(), 10, 0), 20, 50_000, has_stale=True)
    note = after(note, 30, 300_000)

    assert note.clean_to == 30
    assert note.settled_to(10**9) == 10


# --- whose it is ----------------------------------------------------------------------------


def test_a_note_outlives_the_log_that_is_closed(disk: SimulatedFileSystem, log: Log) -> None:
    log.close()
    Log.open(disk, DIRECTORY, IDENTITY, LogOptions(segment_bytes=65536)).close()

    assert read(disk) == NOTE


def test_a_note_is_written_only_in_place_of_the_one_that_was_known(
    disk: SimulatedFileSystem, log: Log
) -> None:
    later = after(NOTE, 20, 5000)
    assert not write(disk, later, instead_of=after(NOTE, 10, 5000))
    assert read(disk) == NOTE
    assert write(disk, later, instead_of=NOTE)

    withdraw_clean_note(disk, DIRECTORY)
    assert not write(disk, after(later, 30, 9000), instead_of=later)
    assert read(disk) is None


def test_another_logs_note_is_refused(disk: SimulatedFileSystem, log: Log) -> None:
    stranger = LogIdentity(IDENTITY.directory, NodeId(2), GroupId(7))

    with pytest.raises(ForeignDirectoryError, match="belongs to node 1"):
        read(disk, stranger)


def copy_of(disk: SimulatedFileSystem, log: Log, number: int) -> tuple[Offset, str]:
    """A segment as a peer would hold it."""
    segment = log.sealed_segments()[number]
    copy = SegmentCopy(disk, DIRECTORY, IDENTITY, segment)
    for batch in read_all(log)[segment.base_offset : segment.end_offset]:
        copy.add(bytes(batch))
    return segment.base_offset, copy.finish()


def test_what_a_compaction_puts_in_place_leaves_the_note(
    disk: SimulatedFileSystem, log: Log
) -> None:
    base, path = copy_of(disk, log, 1)

    assert log.replace([base], path)
    assert read(disk) == NOTE


def test_a_segment_of_a_peer_withdraws_the_note(disk: SimulatedFileSystem, log: Log) -> None:
    base, path = copy_of(disk, log, 1)

    assert log.replace([base], path, is_of_peers=True)
    assert read(disk) is None


def test_a_segment_of_a_peer_in_a_closed_log_withdraws_the_note(
    disk: SimulatedFileSystem, log: Log
) -> None:
    segment = log.sealed_segments()[0]
    _, path = copy_of(disk, log, 0)
    log.close()

    put_in_place(disk, path, DIRECTORY, segment)
    assert read(disk) is None


def test_batches_of_a_peer_withdraw_the_note(disk: SimulatedFileSystem, log: Log) -> None:
    written = [bytes(batch) for batch in read_all(log)]
    (first, *_) = log.sealed_segments()
    log.close()
    disk.flip(f"{DIRECTORY}/{first.base_offset:020}.log", 4096 + 60)
    (hole,) = survey_log(disk, DIRECTORY, IDENTITY).holes

    assert fill_hole(disk, GROUP, hole, written[hole.start.offset]) is None
    assert read(disk) is None


def test_the_note_goes_with_its_log(disk: SimulatedFileSystem, log: Log) -> None:
    log.close()
    Log.remove(disk, DIRECTORY)

    assert disk.list_directory(DIRECTORY) == []


@pytest.mark.parametrize("way", ["running", "closed"])
def test_no_crash_leaves_a_note_beside_what_a_peer_held(way: str) -> None:
    steps, was_cut_off = 0, True
    while was_cut_off:
        disk = SimulatedFileSystem(random.Random(steps))
        log = Log.create(disk, DIRECTORY, IDENTITY, LogOptions(segment_bytes=65536))
        append_some(log, 3)
        log.sync(log.end_offset)
        log.roll()
        write(disk, NOTE)
        segment = log.sealed_segments()[0]
        path = f"{DIRECTORY}/{segment.base_offset:020}.log"
        base, copied = copy_of(disk, log, 0)
        disk.open(path).sync()  # Else a crash may take away that it says what follows it.
        original = disk.content(path)
        assert disk.content(copied) != original  # Which this one does not say.
        steps += 1
        if way == "closed":
            log.close()
        with disk.dying_after(steps) as life:
            if way == "running":
                log.replace([base], copied, is_of_peers=True)
            else:
                put_in_place(disk, copied, DIRECTORY, segment)
        was_cut_off = life.was_cut_off
        disk.crash(random.Random(steps))

        assert read(disk) is None or disk.content(path) == original, steps
    assert steps > 3
