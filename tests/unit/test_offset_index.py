"""The indexes are believed only as far as the segment bears them out.

Missing, cut short, zeroed, filled with garbage or left over from before: whatever is wrong
with an index file, every offset is found and nothing but the time to build it again is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from logd.errors import CorruptionError
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.record.header import decode_header
from logd.storage.log import Log, LogOptions
from logd.storage.segment_index import OFFSET_ROW, TIME_ROW, SegmentIndexes
from logd.types import FilePosition, Offset
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, IDENTITY, append_some, read_all

OPTIONS = LogOptions(segment_bytes=32 * KIB, index_interval_bytes=512, allocate_bytes=8 * KIB)
OFFSETS = f"{DIRECTORY}/{0:020}.log.index"
TIMES = f"{DIRECTORY}/{0:020}.log.timeindex"


def fill(log: Log) -> list[bytes]:
    """Fill one segment, with a new append time for each batch."""
    written: list[bytes] = []
    while not log.needs_roll:
        written += append_some(log, 1, value=b"v" * 200, time_ms=log.end_offset)
    return written


def assert_finds_everything(log: Log, written: list[bytes]) -> None:
    for offset, batch in enumerate(written):
        found = log.read(Offset(offset), Offset(offset + 1), 1, cached_only=False)
        assert found is not None
        assert bytes(found[0]) == batch
        assert log.offset_for_time(offset) == offset


# --- rows -------------------------------------------------------------------------------


def test_a_row_is_added_once_per_interval() -> None:
    indexes = SegmentIndexes.growing(1000)
    for position in range(4096, 8096, 300):
        if position >= indexes.next_position:
            indexes.add(position - 4096, 0, position)

    assert [indexes.offsets[n] for n in range(len(indexes.offsets))] == [
        (0, 4096),
        (1200, 5296),
        (2400, 6496),
        (3600, 7696),
    ]
    assert len(indexes.times) == 1


def test_a_lookup_gives_the_last_row_at_or_below() -> None:
    indexes = SegmentIndexes.growing(1)
    for number in range(5):
        indexes.add(number * 10, number * 100, 4096 + number * 1000)

    assert [indexes.floor(offset) for offset in (0, 9, 10, 11, 39, 40, 1000)] == [
        4096,
        4096,
        5096,
        5096,
        7096,
        8096,
        8096,
    ]


def test_an_empty_index_points_at_the_first_batch() -> None:
    indexes = SegmentIndexes.growing(1)

    assert indexes.floor(5) == 4096
    assert indexes.offset_before_time(5) == 0


def test_rows_at_and_behind_a_cut_are_dropped() -> None:
    indexes = SegmentIndexes.growing(1)
    for number in range(5):
        indexes.add(number * 10, number * 100, 4096 + number * 1000)

    kept = indexes.kept_below(FilePosition(6096))

    assert (len(kept.offsets), len(kept.times)) == (2, 2)
    kept.add(15, 150, 6096)
    assert kept.floor(15) == 6096


def test_rows_that_come_while_others_are_written_are_written_the_next_time(
    disk: SimulatedFileSystem,
) -> None:
    """A log is appended to while a sync, in a thread, has its rows written."""
    disk.make_directory(DIRECTORY)
    indexes = SegmentIndexes.growing(1)
    indexes.add(0, 0, 4096)

    def append(operation: str, path: str) -> None:
        if operation == "write":
            disk.on_operation = None
            indexes.add(1, 1, 5096)

    disk.on_operation = append
    indexes.write(disk, OFFSETS.removesuffix(".index"))
    indexes.add(2, 2, 6096)
    indexes.write(disk, OFFSETS.removesuffix(".index"))

    assert [*OFFSET_ROW.iter_unpack(disk.content(OFFSETS))] == [(0, 4096), (1, 5096), (2, 6096)]
    times = [(0, 0, 4096), (1, 1, 5096), (2, 2, 6096)]
    assert [*TIME_ROW.iter_unpack(disk.content(TIMES))] == times


# --- files of a sealed segment ----------------------------------------------------------


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2 - 1]


def lose_rows(content: bytes) -> bytes:
    return content[: len(content) // 2 // 16 * 16]


def lose_the_first_row(content: bytes) -> bytes:
    return content[16:]


def zero(content: bytes) -> bytes:
    return bytes(len(content))


def zero_the_middle(content: bytes) -> bytes:
    third = len(content) // 48 * 16
    return content[:third] + bytes(third) + content[2 * third :]


def garbage(content: bytes) -> bytes:
    return random.Random(3).randbytes(len(content))


def empty(content: bytes) -> bytes:
    return b""


def point_behind_the_end(content: bytes) -> bytes:
    return content[:-4] + b"\xff\xff\xff\xff"


def point_between_batches(content: bytes) -> bytes:
    # Still increasing, and so not seen before it is used.
    middle = bytearray(content)
    middle[len(content) // 32 * 16 + 12] ^= 1
    return bytes(middle)


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    cut_short,
    lose_rows,
    lose_the_first_row,
    zero,
    zero_the_middle,
    garbage,
    empty,
    point_behind_the_end,
    point_between_batches,
)


@pytest.mark.parametrize("path", [OFFSETS, TIMES], ids=["offsets", "times"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_index_costs_time_and_nothing_else(
    disk: SimulatedFileSystem, damage: Callable[[bytes], bytes], path: str
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.roll()
    before = disk.content(path)
    disk.kill()
    disk.remove(path)
    disk.open(path, create=True).pwritev([damage(before)], 0)

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    assert_finds_everything(log, written)
    assert not log.recovery.is_damaged


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_same_holds_for_the_active_segment(
    disk: SimulatedFileSystem, damage: Callable[[bytes], bytes]
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.close()
    for path in (OFFSETS, TIMES):
        before = disk.content(path)
        disk.remove(path)
        disk.open(path, create=True).pwritev([damage(before)], 0)
    disk.kill()

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    written += append_some(log, 20, value=b"v" * 200, time_ms=10**6)[:1]
    assert_finds_everything(log, written[:-1])
    assert log.offset_for_time(10**6) == len(written) - 1


def test_missing_indexes_are_built_again_and_written(disk: SimulatedFileSystem) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.roll()
    before = [disk.content(path) for path in (OFFSETS, TIMES)]
    disk.kill()
    for path in (OFFSETS, TIMES):
        disk.remove(path)

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
    assert_finds_everything(log, written)

    assert [disk.content(path) for path in (OFFSETS, TIMES)] == before


def test_indexes_of_another_segment_are_not_believed(disk: SimulatedFileSystem) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.roll()
    while not log.needs_roll:
        written += append_some(log, 1, value=b"v" * 700, time_ms=log.end_offset)
    log.roll()
    base = log.segment_bases[1]
    disk.kill()
    for path in (OFFSETS, TIMES):
        disk.rename(path.replace(f"{0:020}", f"{base:020}"), path)

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    assert_finds_everything(log, written)


@pytest.mark.parametrize("is_loaded", [True, False])
def test_an_index_that_cannot_be_read_is_built_again(
    disk: SimulatedFileSystem, is_loaded: bool
) -> None:
    written = fill(Log.create(disk, DIRECTORY, IDENTITY, OPTIONS))
    disk.kill()
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
    log.roll()
    disk.kill()
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
    if is_loaded:
        assert_finds_everything(log, written)

    disk.refuse_reads(OFFSETS, TIMES)

    assert_finds_everything(log, written)


def test_an_index_that_cannot_be_read_does_not_keep_the_active_segment_shut(
    disk: SimulatedFileSystem,
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.close()
    disk.kill()

    disk.refuse_reads(OFFSETS, TIMES)

    assert_finds_everything(Log.open(disk, DIRECTORY, IDENTITY, OPTIONS), written)


@pytest.mark.parametrize("path", [OFFSETS, TIMES], ids=["offsets", "times"])
def test_an_index_with_more_rows_than_its_segment_can_have_batches_is_not_read(
    disk: SimulatedFileSystem, path: str
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.close()
    disk.kill()
    disk.overwrite(path, 16 * 10**6, bytes(16))
    operations: list[tuple[str, str]] = []
    disk.on_operation = lambda *operation: operations.append(operation)

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    assert ("read", path) not in operations
    assert_finds_everything(log, written)


@pytest.mark.parametrize("bit", range(6))
def test_a_time_that_is_wrong_and_still_in_order_leads_nobody_past_a_batch(
    disk: SimulatedFileSystem, bit: int
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written: list[bytes] = []
    while not log.needs_roll:
        # Of several rows of one time only the first is in the index of times.
        written += append_some(log, 1, value=b"v" * 200, time_ms=log.end_offset // 8 * 100)
    log.roll()
    disk.kill()
    for row in range(1, len(disk.content(TIMES)) // TIME_ROW.size - 1):
        disk.flip(TIMES, row * TIME_ROW.size, bit)

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    for time_ms in range((len(written) - 1) // 8 * 100 + 1):
        assert log.offset_for_time(time_ms) == -(-time_ms // 100) * 8


def test_without_an_index_what_lies_before_a_damaged_header_is_found(
    disk: SimulatedFileSystem,
) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)
    log.roll()
    disk.kill()
    disk.remove(OFFSETS)
    middle = len(written) // 2
    disk.flip(f"{DIRECTORY}/{0:020}.log", SEGMENT_HEADER_BYTES + sum(map(len, written[:middle])))

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    for offset, batch in enumerate(written[:middle]):
        found = log.read(Offset(offset), Offset(offset + 1), 1, cached_only=False)
        assert found is not None
        assert bytes(found[0]) == batch
    with pytest.raises(CorruptionError, match="header checksum"):
        log.read(Offset(middle), Offset(middle + 1), 1, cached_only=False)


# --- files of the active segment --------------------------------------------------------


def test_a_killed_broker_walks_only_over_what_was_not_indexed(disk: SimulatedFileSystem) -> None:
    options = LogOptions(segment_bytes=4096 * KIB, index_interval_bytes=64)
    log = Log.create(disk, DIRECTORY, IDENTITY, options)
    written = append_some(log, 3000)
    log.sync(Offset(0))
    log.sync_mark(Offset(0))
    read_bytes = len(disk.content(OFFSETS))
    assert read_bytes == 3000 * OFFSET_ROW.size
    assert len(disk.content(TIMES)) == TIME_ROW.size
    tail = append_some(log, 5)
    log.sync(Offset(0))
    disk.kill()
    operations: list[str] = []
    disk.on_operation = lambda operation, path: operations.append(operation)

    log = Log.open(disk, DIRECTORY, IDENTITY, options)

    assert operations.count("read") < 15
    assert read_all(log) == written + tail


def test_a_disk_without_room_for_an_index_fails_nothing(disk: SimulatedFileSystem) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written = fill(log)

    def fail(operation: str, path: str) -> None:
        if "index" in path and operation in ("create", "write"):
            raise OSError(28, "No space left on device", path)

    disk.on_operation = fail
    log.roll()

    assert_finds_everything(log, written)
    disk.kill()
    assert_finds_everything(Log.open(disk, DIRECTORY, IDENTITY, OPTIONS), written)


def test_a_large_batch_does_not_hide_the_ones_behind_it(disk: SimulatedFileSystem) -> None:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    written: list[bytes] = []
    for size in (10, 9000, 10, 10, 600, 10):
        written += append_some(log, 1, value=b"v" * size, time_ms=log.end_offset)

    assert_finds_everything(log, written)
    bases = [header.base_offset for header in log.headers(Offset(0))]
    assert bases == list(range(len(written)))
    assert decode_header(written[-1]).base_offset == len(written) - 1
