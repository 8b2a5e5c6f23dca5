"""A log gives back what was appended, in whole verified batches, and promises only what was
synced."""

from __future__ import annotations

import errno
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from logd.errors import (
    CorruptionError,
    ForeignDirectoryError,
    NewerFormatError,
    NoRoomError,
    OffsetOutOfRangeError,
    StorageError,
    StorageFailedError,
)
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.record.control import NoOp, Trim
from logd.record.header import HEADER_BYTES, decode_header
from logd.runtime.files import RealFileSystem
from logd.storage import log as log_module
from logd.storage.file_header import FILE_HEADER_BYTES, LogIdentity
from logd.storage.log import Log, LogOptions, ScrubPosition, SyncedMark
from logd.storage.synced_mark import SLOT_POSITIONS
from logd.storage.whole_file import write_new_file
from logd.types import Buffer, DirectoryId, GroupId, NodeId, Offset, Term
from tests.sim.files import SimulatedFile, SimulatedFileSystem
from tests.support.logs import (
    DIRECTORY,
    GROUP,
    IDENTITY,
    OPTIONS,
    append_some,
    batch_bytes,
    make_batch,
    make_control_batch,
    read_all,
    reopen,
)


@pytest.fixture
def log(disk: SimulatedFileSystem) -> Log:
    return Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)


def fill_segments(log: Log, count: int, *, term: int = 1) -> list[bytes]:
    """Append until ``count`` segments are full, rolling and committing after each."""
    written: list[bytes] = []
    for _ in range(count):
        while not log.needs_roll:
            time_ms = log.end_offset * 10
            written += append_some(log, 1, term=term, value=b"v" * 300, time_ms=time_ms)
        log.sync(log.end_offset)
        log.roll()
    return written


# --- appending and reading --------------------------------------------------------------


def test_a_new_log_is_empty(log: Log) -> None:
    assert (log.start_offset, log.end_offset, log.last_term) == (0, 0, 0)
    assert log.read(Offset(0), Offset(100), 1000, cached_only=False) == []
    assert list(log.headers(Offset(0))) == []
    assert log.mark == SyncedMark(Term(0), Offset(0), Offset(0))


def test_what_was_appended_is_read_back_byte_for_byte(log: Log) -> None:
    batches = [make_batch(0, records=3), make_batch(3, term=2), make_batch(4, term=2, records=10)]

    log.append(batches)

    assert read_all(log) == [batch_bytes(batch) for batch in batches]
    assert (log.end_offset, log.last_term) == (14, 2)


def test_a_read_begins_with_the_batch_that_holds_the_offset(log: Log) -> None:
    log.append([make_batch(0, records=10), make_batch(10, records=10)])

    for offset, base_offset in ((0, 0), (9, 0), (10, 10), (19, 10)):
        found = log.read(Offset(offset), log.end_offset, 1, cached_only=False)
        assert found is not None
        assert [decode_header(batch).base_offset for batch in found] == [base_offset]


def test_a_read_returns_whole_batches_within_its_bytes_and_at_least_one(log: Log) -> None:
    written = append_some(log, 10)
    size = len(written[0])

    def count(bytes_max: int) -> int:
        found = log.read(Offset(0), log.end_offset, bytes_max, cached_only=False)
        assert found is not None
        return len(found)

    assert [count(n) for n in (1, size, 2 * size - 1, 2 * size, 100 * size)] == [1, 1, 1, 2, 10]


def test_a_batch_larger_than_the_read_is_returned_alone(log: Log) -> None:
    log.append([make_batch(0), make_batch(1, value=b"v" * 100_000), make_batch(2)])

    found = log.read(Offset(1), log.end_offset, 1000, cached_only=False)

    assert found is not None
    assert [decode_header(batch).base_offset for batch in found] == [1]


def test_nothing_that_ends_above_the_end_asked_for_is_read(log: Log) -> None:
    log.append([make_batch(0, records=5), make_batch(5, records=5)])

    for end, count in ((0, 0), (4, 0), (5, 1), (9, 1), (10, 2), (11, 2)):
        found = log.read(Offset(0), Offset(end), 10_000, cached_only=False)
        assert found is not None
        assert len(found) == count, end


def test_reading_outside_the_log_says_the_valid_range(log: Log) -> None:
    fill_segments(log, 3)
    log.trim(log.segment_bases[1])

    for offset in (Offset(log.start_offset - 1), Offset(log.end_offset + 1)):
        with pytest.raises(OffsetOutOfRangeError) as refusal:
            log.read(offset, Offset(offset + 10), 1000, cached_only=False)
        assert (refusal.value.log_start, refusal.value.log_end) == (
            log.start_offset,
            log.end_offset,
        )


def test_every_offset_is_found_through_the_sparse_index(log: Log) -> None:
    rng = random.Random(5)
    bases: list[tuple[int, int]] = []
    while log.end_offset < 400:
        records = rng.randint(1, 5)
        batch = make_batch(log.end_offset, records=records, value=b"v" * rng.randint(0, 900))
        log.append([batch])
        bases += [(offset, batch.base_offset) for offset in range(log.end_offset)[-records:]]

    for offset, base_offset in bases:
        found = log.read(Offset(offset), log.end_offset, 1, cached_only=False)
        assert found is not None
        assert decode_header(found[0]).base_offset == base_offset


def test_an_uncached_range_is_refused_to_those_who_cannot_wait(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 3)
    assert log.read(Offset(0), Offset(3), 1000, cached_only=True)

    disk.is_cold = True

    assert log.read(Offset(0), Offset(3), 1000, cached_only=True) is None
    assert log.read(Offset(0), Offset(3), 1000, cached_only=False)


def test_a_flipped_bit_anywhere_in_a_batch_is_never_served(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 3)
    size = len(written[0])
    path = f"{DIRECTORY}/{0:020}.log"
    for position in range(SEGMENT_HEADER_BYTES + size, SEGMENT_HEADER_BYTES + 2 * size):
        disk.flip(path, position, position % 8)

        with pytest.raises(CorruptionError, match=r"\.log"):
            log.read(Offset(1), Offset(2), 1000, cached_only=False)

        disk.flip(path, position, position % 8)
    assert read_all(log) == written


def test_what_lies_before_the_damage_is_served(disk: SimulatedFileSystem, log: Log) -> None:
    written = append_some(log, 5)
    disk.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + 4 * len(written[0]) - 1)

    found = log.read(Offset(0), Offset(5), 10_000, cached_only=False)

    assert list(map(bytes, found or ())) == written[:3]
    with pytest.raises(CorruptionError):
        log.read(Offset(3), Offset(5), 10_000, cached_only=False)


@pytest.mark.parametrize("cached_only", [False, True])
def test_a_file_that_was_cut_short_under_the_log_is_damage_where_it_is_missed(
    disk: SimulatedFileSystem, log: Log, cached_only: bool
) -> None:
    written = append_some(log, 3)
    size = len(written[0])
    for missing in range(1, 2 * size):
        disk.open(f"{DIRECTORY}/{0:020}.log").truncate(SEGMENT_HEADER_BYTES + 3 * size - missing)

        found = log.read(Offset(0), Offset(3), 1000, cached_only=cached_only)

        assert list(map(bytes, found or ())) == written[: 2 if missing <= size else 1]
        with pytest.raises(CorruptionError, match=r"\.log"):
            log.read(Offset(2), Offset(3), 1, cached_only=False)


def test_a_batch_of_another_group_is_never_served(disk: SimulatedFileSystem, log: Log) -> None:
    append_some(log, 1)
    foreign = batch_bytes(make_batch(0, group=GroupId(8)))
    disk.overwrite(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES, foreign)

    with pytest.raises(CorruptionError, match="group 7"):
        log.read(Offset(0), Offset(1), 1000, cached_only=False)


def test_the_batches_of_another_segment_are_damage_and_are_never_served(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """Every checksum of theirs holds: a disk may write to the wrong place, or to none."""
    fill_segments(log, 3)
    log = reopen(disk)
    first, second, third = (f"{DIRECTORY}/{base:020}.log" for base in log.segment_bases[:3])
    bases = log.segment_bases
    batches = {path: disk.content(path)[SEGMENT_HEADER_BYTES:] for path in (first, third)}
    for path in (first, third):
        disk.overwrite(second, SEGMENT_HEADER_BYTES, batches[path])
        if disk.exists(f"{second}.index"):
            disk.remove(f"{second}.index")
        log = reopen(disk)

        for look in (
            lambda log: log.read(bases[1], bases[2], 1000, cached_only=False),
            lambda log: list(log.headers(bases[0])),
            lambda log: log.append_time_at(bases[1] + 5),
            lambda log: log.offset_for_time(bases[1] * 10 + 55),
        ):
            with pytest.raises(CorruptionError):
                look(log)


def test_headers_that_do_not_follow_on_are_damage(disk: SimulatedFileSystem, log: Log) -> None:
    written = append_some(log, 8)
    begin = SEGMENT_HEADER_BYTES
    disk.overwrite(f"{DIRECTORY}/{0:020}.log", begin + sum(map(len, written[:6])), written[2])

    with pytest.raises(CorruptionError, match="offset 2 of term 1, expected offset 6"):
        list(log.headers(Offset(0)))


def test_headers_are_replayed_from_any_offset_across_segments(log: Log) -> None:
    fill_segments(log, 3)
    append_some(log, 5)

    for start in (0, 1, log.segment_bases[1] - 1, log.segment_bases[1], log.end_offset - 1):
        bases = [header.base_offset for header in log.headers(Offset(start))]
        assert bases == list(range(start, log.end_offset))
    assert list(log.headers(log.end_offset)) == []


def test_a_replay_gives_each_header_and_the_bytes_of_control_batches(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 2)
    no_ops = [make_control_batch(2, NoOp()), make_control_batch(3, NoOp())]
    log.append(no_ops)
    append_some(log, 1)

    found = [
        (header.base_offset, batch if batch is None else bytes(batch))
        for header, batch in log.replay(Offset(1))
    ]

    assert found == [(1, None), (2, batch_bytes(no_ops[0])), (3, batch_bytes(no_ops[1])), (4, None)]


def test_a_replay_does_not_pass_over_a_damaged_control_batch(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 2)
    log.append([make_control_batch(2, Trim(start_offset=1))])
    position = SEGMENT_HEADER_BYTES + sum(map(len, written)) + HEADER_BYTES
    disk.overwrite(f"{DIRECTORY}/{0:020}.log", position, b"\xff")

    assert len(list(log.headers(Offset(0)))) == 3, "the headers are intact"
    with pytest.raises(CorruptionError, match="seal of a batch"):
        list(log.replay(Offset(0)))


# --- syncing and the mark ---------------------------------------------------------------


def test_a_sync_reports_what_is_durable_and_marks_the_sync_before_it(log: Log) -> None:
    append_some(log, 2, term=1)
    assert log.sync(Offset(1)) == (2, 1)
    assert log.mark == SyncedMark(Term(0), Offset(0), Offset(0))

    append_some(log, 3, term=4)
    assert log.sync(Offset(2)) == (5, 4)
    assert log.mark == SyncedMark(Term(1), Offset(2), Offset(2))


def test_an_idle_log_brings_its_mark_up_to_date_and_then_rests(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 2)
    log.sync(Offset(1))
    operations: list[str] = []
    disk.on_operation = lambda operation, _: operations.append(operation)

    log.sync_mark(Offset(2))
    assert log.mark == SyncedMark(Term(1), Offset(2), Offset(2))
    assert operations.count("sync") == 1

    operations.clear()
    log.sync_mark(Offset(2))
    assert operations == []


def test_the_commit_offset_in_the_mark_is_never_above_its_end_and_never_goes_back(log: Log) -> None:
    append_some(log, 4)
    log.sync(Offset(100))
    assert log.mark == SyncedMark(Term(0), Offset(0), Offset(0))
    log.sync(Offset(100))
    assert log.mark == SyncedMark(Term(1), Offset(4), Offset(4))
    log.sync(Offset(2))
    assert log.mark == SyncedMark(Term(1), Offset(4), Offset(4))


def test_an_append_during_a_sync_is_not_promised_by_it(disk: SimulatedFileSystem, log: Log) -> None:
    append_some(log, 1)

    def append_more(operation: str, _: str) -> None:
        if operation == "sync":
            disk.on_operation = None
            append_some(log, 1)

    disk.on_operation = append_more

    assert log.sync(Offset(0)) == (1, 1)
    assert log.end_offset == 2
    assert log.sync(Offset(0)) == (2, 1)


def test_an_append_writes_once_however_many_batches_it_has(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 1)
    append_some(log, 1)
    operations: list[str] = []
    disk.on_operation = lambda operation, _: operations.append(operation)

    log.append([make_batch(offset) for offset in range(2, 20)])

    assert operations == ["write"]


def test_space_is_allocated_ahead_by_the_sync_and_not_by_the_append(
    disk: SimulatedFileSystem,
) -> None:
    options = LogOptions(segment_bytes=1024 * KIB)
    log = Log.create(disk, DIRECTORY, IDENTITY, options)
    append_some(log, 1)
    append_some(log, 1)
    log.sync(Offset(0))
    append_operations: list[str] = []

    for _ in range(60):
        disk.on_operation = lambda operation, _: append_operations.append(operation)
        append_some(log, 1, value=b"v" * 10_000)
        disk.on_operation = None
        log.sync(Offset(0))

    assert "allocate" not in append_operations
    assert len(disk.content(f"{DIRECTORY}/{0:020}.log")) > 600_000


def written_ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Start and end of every write from now on, to whatever file."""
    ranges: list[tuple[int, int]] = []
    pwritev = SimulatedFile.pwritev

    def recorded(file: SimulatedFile, buffers: Sequence[Buffer], position: int) -> None:
        ranges.append((position, position + sum(map(len, buffers))))
        pwritev(file, buffers, position)

    monkeypatch.setattr(SimulatedFile, "pwritev", recorded)
    return ranges


def test_small_writes_go_where_zeros_were_written_before_them(
    disk: SimulatedFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync of what was merely reserved has to tell the file system so, each time."""
    log = Log.create(disk, DIRECTORY, IDENTITY, LogOptions(segment_bytes=1024 * KIB))
    ranges = written_ranges(monkeypatch)
    for _ in range(200):
        append_some(log, 1, value=b"v" * 500)
        log.sync(Offset(0))

    reached = SEGMENT_HEADER_BYTES
    reaching = 0
    for _, end in ranges:
        if end > reached:
            reached = end
            reaching += 1
    assert reaching <= 4
    assert reached <= len(disk.content(f"{DIRECTORY}/{0:020}.log"))


def test_large_writes_are_written_once(
    disk: SimulatedFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, LogOptions(segment_bytes=16 * 1024 * KIB))
    ranges = written_ranges(monkeypatch)
    appended = 0
    for _ in range(30):
        appended += sum(map(len, append_some(log, 1, value=b"v" * 200 * KIB)))
        log.sync(Offset(0))

    assert sum(end - start for start, end in ranges) <= appended + 30 * 64


def test_a_log_that_is_opened_for_one_small_batch_takes_room_for_that_alone(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """As a thousand idle partitions do, each time that they are started."""
    path = f"{DIRECTORY}/{0:020}.log"
    for _ in range(3):
        log.close()
        log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
        before = len(disk.content(path))
        (batch,) = append_some(log, 1)
        log.sync(Offset(0))
        log.sync_mark(Offset(0))

        assert len(disk.content(path)) == before + len(batch)

    content_bytes = len(disk.content(path))
    (batch,) = append_some(log, 1)
    assert len(disk.content(path)) > content_bytes + len(batch), "more may follow"


def test_zeros_behind_a_write_stay_within_the_space_that_is_reserved(
    disk: SimulatedFileSystem,
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, LogOptions(segment_bytes=100 * KIB))
    while not log.needs_roll:
        append_some(log, 1, value=b"v" * 500)
        assert len(disk.content(f"{DIRECTORY}/{0:020}.log")) <= 101 * KIB


def test_what_was_cut_off_leaves_nothing_behind_the_end(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 20)
    log.sync(Offset(0))
    log.truncate(Offset(5))
    append_some(log, 1)

    content = disk.content(f"{DIRECTORY}/{0:020}.log")
    assert not any(content[SEGMENT_HEADER_BYTES + log.size_bytes :])


# --- rolling, trimming, truncating ------------------------------------------------------


# --- the page cache -----------------------------------------------------------------------


def forgotten_ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is asked to be forgotten from here on."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(
        SimulatedFile,
        "forget_cached",
        lambda file, position, end: ranges.append((position, end)),
    )
    monkeypatch.setattr("logd.storage.cached_behind.FORGOTTEN_BYTES_MIN", 2 * KIB)
    monkeypatch.setattr("logd.storage.cached_behind.FORGOTTEN_AGAIN_BYTES", 512)
    return ranges


def test_the_page_cache_keeps_what_is_not_synced_and_some_of_what_is(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = forgotten_ranges(monkeypatch)
    size = len(append_some(log, 1, value=bytes(1000))[0])
    for _ in range(9):
        log.sync(Offset(0))
        append_some(log, 1, value=bytes(1000))  # Not synced when its like is forgotten.
        log.forget_cached(KIB)

    # Each time so much that it is worth it, from where the last one ended, or a little before.
    ends = [SEGMENT_HEADER_BYTES + count * size - KIB for count in (3, 5, 7, 9)]
    assert [end for _, end in ranges] == ends
    starts = [SEGMENT_HEADER_BYTES, *ends[:-1]]
    assert [start for start, _ in ranges] == [start - 512 for start in starts]


def test_of_a_log_that_was_led_until_now_the_page_cache_forgets_a_bounded_piece_at_a_time(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = forgotten_ranges(monkeypatch)
    monkeypatch.setattr("logd.storage.cached_behind.FORGOTTEN_BYTES_MAX", 3 * KIB)
    append_some(log, 10, value=bytes(1000))
    log.sync(Offset(0))
    for _ in range(5):
        log.forget_cached(KIB)

    ends = [end for _, end in ranges]
    assert ends == [SEGMENT_HEADER_BYTES + count * 3 * KIB for count in (1, 2, 3)]


def test_of_a_sealed_segment_the_page_cache_keeps_nothing_if_it_kept_little_before(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = forgotten_ranges(monkeypatch)
    append_some(log, 8, value=bytes(1000))
    log.sync(log.end_offset)
    log.roll()
    assert ranges == []  # Nobody asked.

    append_some(log, 8, value=bytes(1000))
    log.sync(log.end_offset)
    log.forget_cached(KIB)
    log.roll()
    append_some(log, 4, value=bytes(1000))
    log.sync(log.end_offset)
    log.forget_cached(KIB)

    (_, near_end), (again, end), (start, _) = ranges
    assert near_end - 512 == again
    assert end == near_end + KIB
    assert start < SEGMENT_HEADER_BYTES


def test_after_a_truncation_the_page_cache_forgets_what_is_written_there_anew(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = forgotten_ranges(monkeypatch)
    append_some(log, 8, value=bytes(1000))
    log.sync(Offset(0))
    log.forget_cached(KIB)
    log.truncate(Offset(3))
    log.forget_cached(KIB)
    append_some(log, 8, value=bytes(1000), term=2)
    log.sync(Offset(0))
    log.forget_cached(KIB)

    (_, first_end), (start, end) = ranges
    assert start < first_end - 4 * KIB < first_end < end


# --- segments -----------------------------------------------------------------------------


def test_a_full_segment_asks_to_be_rolled_and_the_next_one_goes_on(log: Log) -> None:
    written = fill_segments(log, 3)
    written += append_some(log, 2)

    assert len(log.segment_bases) == 4
    assert read_all(log) == written
    assert log.mark is not None
    assert log.mark.end_offset == log.segment_bases[-1]


def test_the_bytes_behind_an_offset_are_known_also_just_after_a_roll(log: Log) -> None:
    written = fill_segments(log, 3)
    assert log.segment_bases[-1] == log.end_offset  # The active segment is empty.

    assert log.bytes_from(log.end_offset) == 0
    assert log.bytes_from(Offset(0)) == sum(map(len, written))


def test_a_read_at_any_moment_of_a_roll_finds_what_is_there(log: Log) -> None:
    """Reads go on in other threads: here one is made at each line of it."""
    written = append_some(log, 5)
    end = log.end_offset
    found: list[object] = []

    def look(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename.endswith(("log.py", "log_contents.py")):
            sys.settrace(None)
            batches = log.read(Offset(0), end, 4096, cached_only=False)
            found.append((batches, log.append_time_at(Offset(0)), log.offset_for_time(0)))
            sys.settrace(look)
        return look

    sys.settrace(look)
    try:
        log.roll()
    finally:
        sys.settrace(None)

    assert len(found) > 20
    assert all(each == (written, 0, 0) for each in found)


@pytest.mark.parametrize("segment", [1, 2], ids=["over a border", "in the last segment"])
def test_what_a_truncation_leaves_is_found_meanwhile(log: Log, segment: int) -> None:
    """Reads go on in other threads: here one is made at each line of it."""
    fill_segments(log, 2)
    append_some(log, 5, time_ms=log.end_offset * 10)
    log.sync(Offset(0))
    cut = Offset(log.segment_bases[segment] + 3)
    found: list[object] = []

    def answers() -> list[object]:
        return [
            (log.read(offset, cut, 1, cached_only=False), log.append_time_at(offset), by_time)
            for offset in map(Offset, (0, 1, cut // 2, cut - 1))
            for by_time in [log.offset_for_time(offset * 10)]
        ]

    def look(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename.endswith(("log.py", "log_contents.py", "segment.py")):
            sys.settrace(None)
            found.append(answers())
            sys.settrace(look)
        return look

    expected = answers()
    sys.settrace(look)
    try:
        log.truncate(cut)
    finally:
        sys.settrace(None)

    assert log.end_offset == cut
    assert len(found) > 20
    assert all(each == expected for each in found)


def test_a_rolled_segment_ends_with_its_last_batch(disk: SimulatedFileSystem, log: Log) -> None:
    written = fill_segments(log, 1)

    content = disk.content(f"{DIRECTORY}/{0:020}.log")

    assert len(content) == SEGMENT_HEADER_BYTES + sum(map(len, written))


def test_a_log_survives_being_reopened_with_many_segments(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = fill_segments(log, 3, term=2)
    written += append_some(log, 2, term=3)
    log.sync(Offset(5))

    log = reopen(disk)

    assert not log.recovery.is_damaged
    assert read_all(log) == written
    assert log.last_term == 3


def test_trim_drops_whole_segments_below_the_offset_and_keeps_the_active_one(
    disk: SimulatedFileSystem, log: Log
) -> None:
    fill_segments(log, 3)
    bases = log.segment_bases
    log.trim(Offset(bases[1] - 1))
    assert log.start_offset == 0

    log.trim(bases[1])
    assert log.start_offset == bases[1]

    log.trim(Offset(10**9))
    assert log.segment_bases == bases[3:]
    assert log.start_offset == log.end_offset
    assert disk.list_directory(DIRECTORY) == [f"{bases[3]:020}.log"]
    assert reopen(disk).start_offset == bases[3]


def test_trimmed_segments_go_to_the_trash_under_a_name_that_says_whose_they_were(
    disk: SimulatedFileSystem, log: Log
) -> None:
    disk.make_directory("/data/trash")
    fill_segments(log, 2)

    log.trim(log.segment_bases[1], "/data/trash")

    assert disk.list_directory("/data/trash") == [f"{GROUP:020}-{0:020}.log"]


def test_truncation_removes_the_end_and_appends_go_on_from_there(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 10, term=1)
    log.sync(Offset(3))
    log.sync_mark(Offset(3))

    log.truncate(Offset(6))

    assert (log.end_offset, log.last_term, log.synced_end) == (6, 1, 6)
    assert log.mark == SyncedMark(Term(1), Offset(6), Offset(3))
    written[6:] = append_some(log, 2, term=2, value=b"other")
    assert read_all(log) == written
    log.sync(Offset(3))
    assert read_all(reopen(disk)) == written


def test_truncation_goes_back_over_segments(disk: SimulatedFileSystem, log: Log) -> None:
    written: list[bytes] = []
    for term in (1, 2, 3):
        while not log.needs_roll:
            written += append_some(log, 1, term=term, value=b"v" * 300)
        log.sync(Offset(1))
        log.roll()
    bases = log.segment_bases

    target = Offset(bases[1] + 3)
    log.truncate(target)

    assert log.segment_bases == bases[:2]
    assert (log.end_offset, log.last_term) == (target, 2)
    written[target:] = append_some(log, 1, term=5)
    assert read_all(log) == written
    log.sync(Offset(1))
    assert read_all(reopen(disk)) == written


def test_readers_do_not_let_go_of_a_segment_that_is_about_to_be_written_to_again(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """They keep few open, and read on in other threads while a truncation waits for its syncs."""
    written = fill_segments(log, 6)[: log.segment_bases[5] + 2]
    bases, cut = log.segment_bases, Offset(len(written))
    log = reopen(disk)  # It does not know what was committed.
    log.read(bases[5], log.end_offset, 1, cached_only=False)
    found: list[list[memoryview] | None] = []

    def read_others(operation: str, _path: str) -> None:
        if operation == "sync":
            with disk.trouble_suspended():
                found.extend(log.read(base, cut, 1, cached_only=False) for base in bases[:5])

    disk.on_operation = read_others
    log.truncate(cut)
    disk.on_operation = None

    assert len(found) >= 5
    written += append_some(log, 1, term=2)
    assert read_all(log) == written


def test_a_truncation_into_a_segment_whose_mark_is_damaged_does_nothing(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 20)
    log.roll()
    written += append_some(log, 3)
    log = reopen(disk)
    disk.overwrite(f"{DIRECTORY}/{0:020}.log", SLOT_POSITIONS[0], bytes(1024))
    disk.remove(f"{DIRECTORY}/{0:020}.log.index")

    with pytest.raises(CorruptionError):
        log.truncate(Offset(18))

    assert log.segment_bases == (0, 20)
    assert read_all(log, Offset(20)) == written[20:]


@pytest.mark.parametrize("is_sealed", [False, True], ids=["active", "sealed"])
@pytest.mark.parametrize("damaged", [0, 3, 10])
def test_damage_before_a_truncation_does_not_keep_it_from_being_made(
    disk: SimulatedFileSystem, damaged: int, is_sealed: bool
) -> None:
    """Without an index that leads past it, too.  What is damaged can be filled afterwards."""
    options = LogOptions(index_interval_bytes=1 << 20)
    log = Log.create(disk, DIRECTORY, IDENTITY, options)
    written = [batch for term in (1, 2) for batch in append_some(log, 10, term=term)]
    if is_sealed:
        log.roll()
        append_some(log, 5, term=2)
    size = len(written[0])
    disk.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + damaged * size + 3)

    log.truncate(Offset(15))

    assert (log.end_offset, log.last_term) == (15, 2)
    position: ScrubPosition | None = log.scrub_start(Offset(0))
    while position is not None:
        position, hole = log.scrub(position, 1 << 20)
        if hole is not None:
            assert log.fill(hole, written[damaged]) is None
    written[15:] = append_some(log, 2, term=3)
    assert read_all(log) == written


def test_a_truncation_to_where_damage_ends_does_nothing(disk: SimulatedFileSystem) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, LogOptions(index_interval_bytes=1 << 20))
    written = append_some(log, 20)
    disk.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + 14 * len(written[0]) + 3)

    with pytest.raises(CorruptionError):
        log.truncate(Offset(15))

    assert log.end_offset == 20
    assert log.failure is None


def test_truncation_to_where_a_segment_begins_knows_the_term_before_it(log: Log) -> None:
    while not log.needs_roll:
        append_some(log, 1, term=3, value=b"v" * 300)
    log.roll()
    append_some(log, 3, term=9)
    base = log.segment_bases[1]

    log.truncate(base)

    assert (log.end_offset, log.last_term) == (base, 3)


def test_a_log_can_begin_above_zero(disk: SimulatedFileSystem) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS, Offset(1000), Term(7))

    assert (log.start_offset, log.end_offset, log.last_term) == (1000, 1000, 7)
    written = append_some(log, 3, term=8)
    log.sync(Offset(1001))
    assert read_all(reopen(disk)) == written


# --- time -------------------------------------------------------------------------------


def test_an_append_time_leads_to_the_first_batch_of_that_time_or_later(log: Log) -> None:
    times: list[int] = []
    for step in range(300):
        time_ms = step // 7 * 10
        times.append(time_ms)
        append_some(log, 1, value=b"v" * 200, time_ms=time_ms)
        if log.needs_roll:
            log.sync(Offset(0))
            log.roll()
    assert len(log.segment_bases) > 3

    for time_ms in range(-5, times[-1] + 6):
        expected = next((n for n, time in enumerate(times) if time >= time_ms), None)
        assert log.offset_for_time(time_ms) == expected, time_ms


def test_an_empty_log_has_no_time(log: Log) -> None:
    assert log.offset_for_time(0) is None


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "identity",
    [
        LogIdentity(DirectoryId("another"), IDENTITY.node, IDENTITY.group),
        LogIdentity(IDENTITY.directory, NodeId(2), IDENTITY.group),
        LogIdentity(IDENTITY.directory, IDENTITY.node, GroupId(8)),
    ],
    ids=["directory", "node", "group"],
)
def test_a_foreign_log_is_refused(
    disk: SimulatedFileSystem, log: Log, identity: LogIdentity
) -> None:
    log.close()

    with pytest.raises(ForeignDirectoryError, match="belongs to node 1, group 7"):
        Log.open(disk, DIRECTORY, identity, OPTIONS)


def test_a_newer_format_is_refused_and_a_damaged_version_is_not_taken_for_one(
    disk: SimulatedFileSystem, log: Log
) -> None:
    log.close()
    path = f"{DIRECTORY}/{0:020}.log"
    header = bytearray(disk.content(path)[:FILE_HEADER_BYTES])
    header[16] = 9
    disk.overwrite(path, 0, bytes(header))
    assert Log.open(disk, DIRECTORY, IDENTITY, OPTIONS).recovery.is_damaged

    header[:8] = xxh3_64_intdigest(bytes(header[8:])).to_bytes(8, "little")
    disk.overwrite(path, 0, bytes(header))
    with pytest.raises(NewerFormatError, match="format version 9"):
        Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)


def test_a_directory_without_a_log_is_refused(disk: SimulatedFileSystem) -> None:
    disk.make_directory(DIRECTORY)

    assert not Log.exists(disk, DIRECTORY)
    with pytest.raises(StorageError, match="holds no segment"):
        Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists what is open on Linux only")
def test_reading_many_segments_keeps_few_files_open(tmp_path: Path) -> None:
    options = LogOptions(segment_bytes=1, index_interval_bytes=512, allocate_bytes=8 * KIB)
    log = Log.create(RealFileSystem(), str(tmp_path / "log"), IDENTITY, options)
    written = []
    for _ in range(12):
        written += append_some(log, 1)
        log.roll()
    log.close()
    closed = open_descriptors()
    log = Log.open(RealFileSystem(), str(tmp_path / "log"), IDENTITY, options)
    opened = open_descriptors()

    for start in (0, 0, 11, 11, 11, 5):
        assert read_all(log, Offset(start)) == written[start:]
        # Of four segments, each with a file and the maps of two indexes.
        assert opened < open_descriptors() <= opened + 4 * 3

    log.close()
    assert open_descriptors() == closed


# --- failures ---------------------------------------------------------------------------


def fail_with(code: int, failing: str, log: Log, disk: SimulatedFileSystem) -> StorageFailedError:
    """Let one operation of an append and its sync fail."""

    def fail(operation: str, _: str) -> None:
        if operation == failing:
            raise OSError(code, "Input/output error")

    disk.on_operation = fail
    try:
        append_some(log, 1)
        log.sync(Offset(0))
    except StorageFailedError as error:
        return error
    finally:
        disk.on_operation = None
    raise AssertionError("nothing failed")


@pytest.mark.parametrize("failing", ["write", "sync"])
def test_a_failed_write_or_sync_ends_the_log_and_nothing_is_tried_again(
    disk: SimulatedFileSystem, log: Log, failing: str
) -> None:
    append_some(log, 2)
    log.sync(Offset(0))

    error = fail_with(errno.EIO, failing, log, disk)

    assert log.failure is error.__cause__
    calls: list[Callable[[], object]] = [
        lambda: append_some(log, 1),
        lambda: log.sync(Offset(0)),
        lambda: log.sync_mark(Offset(0)),
        log.roll,
        lambda: log.truncate(Offset(0)),
        lambda: log.trim(Offset(0)),
    ]
    for call in calls:
        with pytest.raises(StorageFailedError, match="failed before"):
            call()
    log.close()


def test_a_failed_log_still_serves_what_was_synced_and_nothing_above(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 2)
    log.sync(Offset(0))
    fail_with(errno.EIO, "sync", log, disk)

    found = log.read(Offset(0), Offset(2), 1000, cached_only=False)

    assert list(map(bytes, found or ())) == written
    with pytest.raises(StorageFailedError):
        log.read(Offset(0), Offset(3), 1000, cached_only=False)


def test_a_full_disk_is_named_as_the_cause(disk: SimulatedFileSystem, log: Log) -> None:
    append_some(log, 1)
    log.sync(Offset(0))
    disk.capacity_bytes = disk.used_bytes()

    with pytest.raises(StorageFailedError, match="No space left") as failure:
        append_some(log, 100, value=b"v" * 5000)

    assert isinstance(failure.value.__cause__, OSError)
    assert failure.value.__cause__.errno == errno.ENOSPC


def test_a_log_that_finds_no_room_beforehand_goes_on_when_there_is_some(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 1)
    log.sync(Offset(0))
    room, disk.capacity_bytes = disk.capacity_bytes, disk.used_bytes()

    assert not log.make_room(100 * KIB)
    assert log.failure is None

    disk.capacity_bytes = room
    assert log.make_room(100 * KIB)
    disk.capacity_bytes = disk.used_bytes()
    written += append_some(log, 20, value=b"v" * 4 * KIB)
    assert list(map(bytes, read_all(log))) == written


def test_a_next_segment_that_is_there_already_ends_the_log(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """Going on in this one would leave it behind its name."""
    append_some(log, 50, value=b"v" * 400)

    def refuse(operation: str, path: str) -> None:
        if operation == "sync_directory":
            raise OSError(errno.ENOSPC, "simulated failure", path)

    disk.on_operation = refuse

    with pytest.raises(StorageFailedError):
        log.roll()

    assert log.failure is not None


def test_a_sync_that_fails_for_want_of_room_ends_the_log_also_while_it_is_rolled(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """What it was to write may be gone: the next one would succeed all the same."""
    append_some(log, 50, value=b"v" * 400)

    def refuse(operation: str, path: str) -> None:
        if operation == "sync":
            raise OSError(errno.ENOSPC, "simulated failure", path)

    disk.on_operation = refuse

    with pytest.raises(StorageFailedError):
        log.roll()

    assert log.failure is not None


def test_a_file_for_which_there_is_no_room_leaves_none_of_it(
    disk: SimulatedFileSystem, log: Log
) -> None:
    room, disk.capacity_bytes = disk.capacity_bytes, disk.used_bytes() + 100

    with pytest.raises(OSError, match="No space left"):
        write_new_file(disk, f"{DIRECTORY}/file", [bytes(200)])

    assert disk.used_bytes() == disk.capacity_bytes - 100
    disk.capacity_bytes = room
    write_new_file(disk, f"{DIRECTORY}/file", [bytes(200)])
    assert not disk.exists(f"{DIRECTORY}/file.tmp")
    log.close()


def test_a_disk_without_room_for_a_step_may_have_some_for_a_batch(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 1)
    disk.capacity_bytes = disk.used_bytes() + 6 * KIB

    assert not log.make_room(7 * KIB)
    assert log.make_room(5 * KIB)
    written += append_some(log, 1, value=b"v" * 4 * KIB)
    assert list(map(bytes, read_all(log))) == written


def test_a_disk_that_fails_while_room_is_looked_for_ends_the_log(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 1)

    def fail(operation: str, _: str) -> None:
        raise OSError(errno.EIO, f"Input/output error in {operation}")

    disk.on_operation = fail
    with pytest.raises(StorageFailedError, match="append"):
        log.make_room(7 * KIB)
    disk.on_operation = None

    assert log.failure is not None
    with pytest.raises(StorageFailedError, match="failed before"):
        append_some(log, 1)


def test_room_for_the_first_small_batch_is_looked_for_without_reserving_any(
    disk: SimulatedFileSystem, log: Log
) -> None:
    room, disk.capacity_bytes = disk.capacity_bytes, disk.used_bytes() + 100

    assert not log.make_room(KIB)

    disk.capacity_bytes = room
    assert log.make_room(KIB)
    assert log.make_room(KIB)
    assert disk.open(f"{DIRECTORY}/{0:020}.log").size() <= SEGMENT_HEADER_BYTES + KIB
    written = append_some(log, 1)
    log.sync(Offset(1))
    assert list(map(bytes, read_all(reopen(disk)))) == written


def test_a_log_without_room_for_the_next_segment_goes_on_in_this_one(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 50, value=b"v" * 400)
    log.make_room(KIB)
    assert log.needs_roll
    room, disk.capacity_bytes = disk.capacity_bytes, 0

    with pytest.raises(NoRoomError):
        log.roll()

    assert log.failure is None
    disk.capacity_bytes = room
    written += append_some(log, 1)
    log.roll()
    assert len(log.segment_bases) == 2
    written += append_some(log, 1)
    log.sync(log.end_offset)
    assert list(map(bytes, read_all(reopen(disk)))) == written


def test_a_segment_that_no_other_can_follow_has_no_room_behind_what_an_index_points_to(
    disk: SimulatedFileSystem, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may have no room for a file, and much for bytes: of inodes there is a number."""
    monkeypatch.setattr(log_module, "RELATIVE_OFFSET_MAX", SEGMENT_HEADER_BYTES + 40 * KIB)
    written = append_some(log, 50, value=b"v" * 400)
    assert log.needs_roll

    assert not log.make_room(30 * KIB)

    assert log.failure is None
    log.roll()
    assert log.make_room(30 * KIB)
    assert list(map(bytes, read_all(log))) == written


def test_a_sync_that_cannot_allocate_ahead_is_still_a_sync(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 1)
    disk.capacity_bytes = disk.used_bytes()

    assert log.sync(Offset(0)) == (1, 1)
    assert log.failure is None
