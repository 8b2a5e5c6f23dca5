"""Compaction keeps the last record of each key, every offset, and what the log's state needs."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Sequence

import msgspec
import pytest
import trio

from logd.env import ApartWork
from logd.errors import CorruptionError, StorageError
from logd.limits import (
    DELIVERY_TIMEOUT_MS_MAX,
    KIB,
    MIB,
    OFFSET_MAX,
    PRODUCER_BATCHES_REMEMBERED,
    SEGMENT_HEADER_BYTES,
)
from logd.partition.state import PartitionState
from logd.record.batch import decode_batch, seal_batch, seal_opaque
from logd.record.compacted import cut_gap, make_gap
from logd.record.control import NoOp, decode_control, encode_control
from logd.record.header import (
    HEADER_BYTES,
    LEADER_PART_BYTES,
    BatchHeader,
    BatchKind,
    Codec,
    decode_header,
    leader_part,
    split_batches,
    verify_header,
    verify_seal,
)
from logd.replication.checkpoints import Checkpoints
from logd.replication.compacting import CompactionPolicy, LogCompactor
from logd.replication.group import Group
from logd.storage.clean_note import NOTE_NAME
from logd.storage.compaction import (
    CompactedSegment,
    CompactionRequest,
    CompactionResult,
    compact,
)
from logd.storage.file_header import CLEAN_MAGIC, FILE_HEADER_BYTES, FileHeader
from logd.storage.log import Log, LogBatch, LogOptions
from logd.storage.segment_copy import SegmentCopy
from logd.storage.trash import Trash
from logd.storage.whole_file import make_directory_durably, write_payload_file
from logd.types import NO_OFFSET, Buffer, Offset, Term
from tests.sim.files import EndOfLifeError, SimulatedFileSystem
from tests.support.logs import DIRECTORY, GROUP, IDENTITY, read_all
from tests.support.replica import (
    OURSELVES,
    Replica,
    batch_of,
    open_replica,
    placed,
    play,
    until,
)

OPTIONS = LogOptions(segment_bytes=4 * KIB, index_interval_bytes=300, allocate_bytes=4 * KIB)
TRASH = "/data/trash"
Row = tuple[bytes | None, bytes | None]


@pytest.fixture
def log(disk: SimulatedFileSystem) -> Log:
    return Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)


def put(log: Log, sealed: Buffer, *, term: int = 1, time_ms: int = 0) -> None:
    header = decode_header(sealed)
    base = log.end_offset
    part = leader_part(
        sealed, base_offset=base, term=Term(term), append_time_ms=time_ms, group=GROUP
    )
    log.append(
        [
            LogBatch(
                base_offset=base,
                end_offset=Offset(base + header.offset_span),
                term=Term(term),
                append_time_ms=time_ms,
                is_data=not header.is_control,
                size_bytes=len(sealed),
                buffers=(part, memoryview(sealed)[LEADER_PART_BYTES:]),
            )
        ]
    )


def append(
    log: Log,
    *rows: Row,
    term: int = 1,
    time_ms: int = 0,
    codec: Codec = Codec.NONE,
    producer_id: int = 0,
    base_sequence: int = 0,
    fence_id: int = 0,
) -> None:
    sealed = seal_batch(
        values=[value for _, value in rows],
        keys=[key for key, _ in rows],
        timestamps_ms=list(range(len(rows))),
        headers=[(("n", b"%d" % n),) for n in range(len(rows))],
        codec=codec,
        producer_id=producer_id,
        base_sequence=base_sequence,
        fence_id=fence_id,
    )
    put(log, sealed, term=term, time_ms=time_ms)


def control(log: Log, *, term: int = 1) -> None:
    payload = encode_control(NoOp())
    put(log, seal_opaque(payload, kind=BatchKind.CONTROL, timestamp_ms=0), term=term)


def seal_segment(log: Log) -> None:
    log.sync(log.end_offset)
    log.roll()


def request_of(
    log: Log,
    *,
    dirty_from: Offset = Offset(0),  # noqa: B008 - a NewType is an int
    tombstones_below: Offset = Offset(0),  # noqa: B008
    segment_bytes: int = 1,
    keys_max: int = 10_000,
    retried_since_ms: int = 0,
) -> CompactionRequest:
    return CompactionRequest(
        directory=DIRECTORY,
        identity=IDENTITY,
        segments=log.sealed_segments(),
        dirty_from=dirty_from,
        tombstones_below=tombstones_below,
        retried_since_ms=retried_since_ms,
        segment_bytes=segment_bytes,
        keys_max=keys_max,
        bytes_per_s=0,
    )


def run(
    disk: SimulatedFileSystem, log: Log, request: CompactionRequest, trash: str | None = None
) -> CompactionResult:
    """Compact, and put everything in place."""
    result = compact(disk, request, lambda count: None)
    for segment in result.segments:
        assert log.replace(segment.replaces, segment.path, trash)
    return result


def records(log: Log) -> list[tuple[int, bytes | None, bytes | None]]:
    found = []
    for batch in read_all(log):
        header = decode_header(batch)
        verify_header(batch, header, GROUP)
        if not header.is_control:
            decoded = decode_batch(batch)
            found += list(zip(decoded.offsets, decoded.keys, decoded.values, strict=True))
    return found


def headers(log: Log) -> list[BatchHeader]:
    return [decode_header(batch) for batch in read_all(log)]


def assert_is_log(disk: SimulatedFileSystem, log: Log, end: int) -> Log:
    """Contiguous, intact, and the same when it is opened again."""
    before = read_all(log)
    expected = log.start_offset
    for batch in before:
        header = decode_header(batch)
        verify_header(batch, header, GROUP)
        verify_seal(batch)
        assert header.base_offset == expected
        expected = header.end_offset
    assert expected == end == log.end_offset
    disk.kill()
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
    assert not log.recovery.is_damaged
    assert read_all(log) == before
    return log


# --- what is kept -----------------------------------------------------------------------


def test_of_each_key_the_last_record_is_kept_at_its_offset(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append(log, (b"a", b"1"), (b"b", b"1"), (b"a", b"2"))
    append(log, (b"c", b"1"), (b"b", b"2"))
    append(log, (b"a", b"3"))
    seal_segment(log)

    result = run(disk, log, request_of(log))

    assert records(log) == [(3, b"c", b"1"), (4, b"b", b"2"), (5, b"a", b"3")]
    assert (result.keys, result.records_read, result.records_kept) == (3, 6, 3)
    assert result.bytes_written == log.size_bytes
    assert result.clean_to == 6
    assert_is_log(disk, log, 6)


def test_what_is_kept_of_a_record_is_all_of_it(disk: SimulatedFileSystem, log: Log) -> None:
    append(log, (b"a", b"1"), (b"b", b"x" * 100), (b"c", None), codec=Codec.ZSTD, time_ms=77)
    append(log, (b"a", b"2"))
    seal_segment(log)

    run(disk, log, request_of(log))

    header = headers(log)[0]
    batch = decode_batch(read_all(log)[0])
    assert (header.append_time_ms, header.term, header.offset_span) == (77, 1, 3)
    assert header.is_compacted
    assert list(batch.offsets) == [1, 2]
    assert list(batch.timestamps_ms) == [1, 2]
    assert list(batch.headers) == [(("n", b"1"),), (("n", b"2"),)]
    assert list(batch.values) == [b"x" * 100, None]


def test_the_active_segment_and_what_is_above_it_is_left_alone(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append(log, (b"a", b"1"))
    seal_segment(log)
    append(log, (b"a", b"2"))

    run(disk, log, request_of(log))

    assert records(log) == [(0, b"a", b"1"), (1, b"a", b"2")]


def test_records_without_a_key_and_control_batches_stay(
    disk: SimulatedFileSystem, log: Log
) -> None:
    control(log)
    append(log, (None, b"1"), (b"a", b"1"), (None, b"2"))
    control(log, term=2)
    append(log, (b"a", b"2"), (None, None), term=2)
    put(log, seal_opaque(b"opaque", kind=BatchKind.DATA, timestamp_ms=0), term=2)
    seal_segment(log)

    run(disk, log, request_of(log, tombstones_below=log.end_offset))

    assert [(offset, value) for offset, _, value in records(log)] == [
        (1, b"1"),
        (3, b"2"),
        (5, b"2"),
        (6, None),
        (7, b"opaque"),
    ]
    assert [header.base_offset for header in headers(log) if header.is_control] == [0, 4]
    assert_is_log(disk, log, 8)


def test_long_keys_are_told_apart_from_each_other_and_from_their_digests(
    disk: SimulatedFileSystem, log: Log
) -> None:
    from hashlib import blake2b

    keys = [b"k" * 31, b"k" * 32, b"k" * 33, b"k" * 1000]
    keys += [blake2b(key, digest_size=32).digest() for key in keys]
    append(log, *((key, b"1") for key in keys))
    append(log, (keys[2], b"2"))
    seal_segment(log)

    run(disk, log, request_of(log))

    assert [key for _, key, _ in records(log)] == [*keys[:2], *keys[3:], keys[2]]


def test_a_tombstone_stays_until_it_may_go_and_what_it_deleted_goes_at_once(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append(log, (b"a", b"1"), (b"b", b"1"))
    append(log, (b"a", None))
    append(log, (b"c", b"1"))
    append(log, (b"d", None))
    seal_segment(log)

    result = run(disk, log, request_of(log, tombstones_below=Offset(2)))
    assert records(log) == [(1, b"b", b"1"), (2, b"a", None), (3, b"c", b"1"), (4, b"d", None)]
    assert result.oldest_tombstone == 2

    clean_to = result.clean_to
    result = run(disk, log, request_of(log, dirty_from=clean_to, tombstones_below=Offset(3)))
    assert records(log) == [(1, b"b", b"1"), (3, b"c", b"1"), (4, b"d", None)]
    assert result.oldest_tombstone == 4
    assert_is_log(disk, log, 5)

    result = run(disk, log, request_of(log, dirty_from=clean_to, tombstones_below=clean_to))
    assert (records(log)[-1], result.oldest_tombstone) == ((3, b"c", b"1"), NO_OFFSET)


def test_memory_is_bounded_by_going_on_where_the_map_was_full(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for round_ in range(3):
        for key in range(20):
            append(log, (b"%d" % key, b"%d" % round_))
        seal_segment(log)

    dirty_from, runs, keys = Offset(0), 0, 0
    while dirty_from < log.segment_bases[-1]:
        result = run(disk, log, request_of(log, dirty_from=dirty_from, keys_max=7))
        assert result.clean_to > dirty_from
        dirty_from, runs, keys = result.clean_to, runs + 1, max(keys, result.keys)

    assert runs > 3
    assert keys == 7
    assert [(key, value) for _, key, value in records(log)] == [
        (b"%d" % key, b"2") for key in range(20)
    ]


# --- what it leaves of the log's shape --------------------------------------------------


def test_neighbours_of_which_nothing_is_left_become_one_gap_within_their_term(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(3):
        append(log, (b"a", b"1"), (b"a", b"2"))
    for _ in range(2):
        append(log, (b"a", b"3"), term=2)
    append(log, (b"a", b"4"), term=2)
    seal_segment(log)

    run(disk, log, request_of(log))

    assert [(h.base_offset, h.offset_span, h.term, h.is_gap) for h in headers(log)] == [
        (0, 6, 1, True),
        (6, 2, 2, True),
        (8, 1, 2, False),
    ]
    assert (
        read_all(log)[-1][LEADER_PART_BYTES:]
        == seal_batch(values=[b"4"], keys=[b"a"], timestamps_ms=[0], headers=[(("n", b"0"),)])[
            LEADER_PART_BYTES:
        ]
    )


def test_every_offset_is_read_through_the_gaps(disk: SimulatedFileSystem, log: Log) -> None:
    for number in range(40):
        append(log, (b"%d" % (number % 5), b"x" * 50), time_ms=number)
    seal_segment(log)
    run(disk, log, request_of(log))

    for offset in range(40):
        found = log.read(Offset(offset), log.end_offset, 1, cached_only=False)
        assert found is not None
        header = decode_header(found[0])
        assert header.base_offset <= offset < header.end_offset
    for time_ms in range(40):
        at = log.offset_for_time(time_ms)
        assert at is not None
        assert at <= time_ms


def test_small_neighbours_are_merged_up_to_the_size_of_a_segment(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(6):
        for key in range(5):
            append(log, (b"%d" % key, b"x" * 100))
        seal_segment(log)
    bases = log.segment_bases

    result = run(disk, log, request_of(log, segment_bytes=100 * KIB))

    assert [segment.replaces for segment in result.segments] == [list(bases[:-1])]
    assert log.segment_bases == (0, bases[-1])
    assert len(records(log)) == 5
    log = assert_is_log(disk, log, 30)
    assert [n for n in disk.list_directory(DIRECTORY) if n.endswith(".log")] == [
        f"{0:020}.log",
        f"{bases[-1]:020}.log",
    ]


def test_a_log_in_which_nothing_changes_is_not_written_again(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append(log, (b"a", b"1"), (b"b", b"1"))
    append(log, (b"a", b"2"))
    seal_segment(log)
    first = run(disk, log, request_of(log))
    before = disk.content(f"{DIRECTORY}/{0:020}.log")

    second = run(disk, log, request_of(log, dirty_from=first.clean_to))
    third = run(disk, log, request_of(log))

    assert second.segments == third.segments == []
    assert disk.content(f"{DIRECTORY}/{0:020}.log") == before
    assert not any(name.endswith(".tmp") for name in disk.list_directory(DIRECTORY))


def state_of(log: Log) -> PartitionState:
    """What is known to whoever follows the log."""
    state = PartitionState()
    for batch in read_all(log):
        header = decode_header(batch)
        state.note(header, decode_control(batch[HEADER_BYTES:]) if header.is_control else None)
    return state


def test_whoever_follows_the_compacted_log_knows_the_same_producers_and_fences(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for number in range(6):
        append(
            log,
            (b"a", b"%d" % number),
            (b"b", b"x"),
            producer_id=1 + number % 2,
            base_sequence=number // 2 * 2,
            fence_id=5 if number == 2 else 0,
        )
    append(log, (b"c", b"0"), (b"a", b"x"), producer_id=3, base_sequence=0)
    append(log, (b"c", b"kept"), (b"a", b"x"), producer_id=3, base_sequence=2, fence_id=6)
    append(log, (b"a", b"end"), (b"b", b"end"))
    seal_segment(log)

    before = state_of(log)
    run(disk, log, request_of(log))
    after = state_of(log)

    assert records(log) == [(14, b"c", b"kept"), (16, b"a", b"end"), (17, b"b", b"end")]
    assert (after.end_offset, after.data_end) == (before.end_offset, before.data_end)
    assert after.fences.rows() == before.fences.rows()
    assert [(row.producer_id, row.next_sequence) for row in after.producers.rows()] == [
        (row.producer_id, row.next_sequence) for row in before.producers.rows()
    ]
    for producer, sequence, stored_at in ((1, 4, 8), (3, 2, 14)):
        retry = seal_batch(
            values=[b"x", b"x"], timestamps_ms=0, producer_id=producer, base_sequence=sequence
        )
        duplicate = after.check_append(decode_header(retry))
        assert duplicate is not None
        assert (duplicate.base_offset, duplicate.end_offset) == (stored_at, stored_at + 2)


def test_what_may_still_be_retried_is_known_as_a_duplicate_to_whoever_follows_the_compacted_log(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """Not only its producer's last batch: several may be in flight when their leader is lost."""
    count = PRODUCER_BATCHES_REMEMBERED + 2
    for number in range(count):
        append(log, (b"a", b"x"), producer_id=1, base_sequence=number, time_ms=number)
    append(log, (b"a", b"end"), time_ms=count)
    seal_segment(log)
    before = state_of(log)

    run(disk, log, request_of(log))

    assert records(log) == [(count, b"a", b"end")]
    assert state_of(log).producers.rows() == before.producers.rows()


def test_what_can_be_retried_no_more_leaves_nothing_behind_but_its_producers_last_batch(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for number in range(4):
        append(log, (b"a", b"x"), producer_id=1, base_sequence=number, time_ms=number)
    append(log, (b"a", b"x"), producer_id=2, time_ms=4)
    append(log, (b"a", b"end"), time_ms=5)
    seal_segment(log)
    run(disk, log, request_of(log, retried_since_ms=2))
    assert [h.producer_id for h in headers(log)] == [0, 1, 1, 2, 0]

    run(disk, log, request_of(log, retried_since_ms=6))

    assert [(h.base_offset, h.producer_id) for h in headers(log)] == [
        (0, 0),
        (3, 1),
        (4, 2),
        (5, 0),
    ]


def test_a_gap_can_be_cut_anywhere() -> None:
    gap = make_gap(Offset(10), Offset(20), term=Term(3), append_time_ms=9, group=GROUP)
    header = decode_header(gap)

    part = cut_gap(header, Offset(13), Offset(17), GROUP)

    cut = decode_header(part)
    verify_header(part, cut, GROUP)
    verify_seal(part)
    assert (cut.base_offset, cut.end_offset, cut.term, cut.append_time_ms) == (13, 17, 3, 9)
    assert len(decode_batch(part)) == 0


# --- what it does not do ----------------------------------------------------------------


def test_damage_ends_a_compaction_and_leaves_nothing_behind(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(20):
        append(log, (b"a", b"x" * 100))
    seal_segment(log)
    disk.flip(f"{DIRECTORY}/{0:020}.log", 4096 + 1500)

    with pytest.raises(CorruptionError):
        compact(disk, request_of(log), lambda count: None)

    assert not any(name.endswith(".tmp") for name in disk.list_directory(DIRECTORY))


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_disk_that_is_full_before_a_copy_is_whole_ends_a_compaction_and_leaves_nothing_behind(
    disk: SimulatedFileSystem, log: Log, operation: str
) -> None:
    for _ in range(2):
        for _ in range(20):
            append(log, (b"a", b"x" * 100))
        seal_segment(log)
    refused: list[str] = []

    def refuse_the_last(what: str, path: str) -> None:
        is_second = path.endswith(f"{20:020}.log.tmp")
        if what == operation and is_second:
            refused.append(path)
            raise OSError(errno.ENOSPC, "simulated failure", path)

    disk.on_operation = refuse_the_last
    with pytest.raises(OSError, match="simulated"):
        compact(disk, request_of(log), lambda count: None)
    disk.on_operation = None

    assert refused
    assert not any(name.endswith(".tmp") for name in disk.list_directory(DIRECTORY))


def test_segments_that_were_trimmed_meanwhile_are_not_brought_back(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(2):
        append(log, (b"a", b"1"), (b"a", b"2"))
        seal_segment(log)
    result = compact(disk, request_of(log), lambda count: None)
    log.trim(log.segment_bases[1])

    first, second = result.segments
    assert not log.replace(first.replaces, first.path)
    assert log.replace(second.replaces, second.path)
    assert not any(name.endswith(".tmp") for name in disk.list_directory(DIRECTORY))
    assert records(log) == [(3, b"a", b"2")]


def test_what_is_left_of_a_log_that_is_trimmed_while_it_is_compacted_is_compacted(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(3):
        append(log, (b"a", b"1"), (b"a", b"2"))
        seal_segment(log)
    request = request_of(log)

    log.trim(log.segment_bases[1])
    result = run(disk, log, request)

    assert [segment.replaces for segment in result.segments] == [[2], [4]]
    assert records(log) == [(5, b"a", b"2")]


def test_a_log_is_not_compacted_that_lacks_a_segment(disk: SimulatedFileSystem, log: Log) -> None:
    for _ in range(3):
        append(log, (b"a", b"1"), (b"a", b"2"))
        seal_segment(log)
    request = request_of(log)

    disk.remove(f"{DIRECTORY}/{2:020}.log")
    with pytest.raises(FileNotFoundError):
        compact(disk, request, lambda count: None)


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_covers_something_else_is_refused(
    disk: SimulatedFileSystem, log: Log, which: int
) -> None:
    """It ends before what it is to replace ends, or begins behind where that begins."""
    for _ in range(2):
        append(log, (b"a", b"1"), (b"a", b"2"))
        seal_segment(log)
    half = compact(disk, request_of(log), lambda count: None).segments[which]

    with pytest.raises(CorruptionError, match="expected"):
        log.replace(list(log.segment_bases[:2]), half.path)

    assert len(records(log)) == 4


def test_a_hole_that_was_found_before_a_compaction_is_not_filled_after_it(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append(log, (b"a", b"1"), (b"a", b"2"))
    seal_segment(log)
    append(log, (b"b", b"1"), (b"a", b"2"))
    seal_segment(log)
    path = f"{DIRECTORY}/{2:020}.log"
    disk.flip(path, 4096 + 5)
    _, hole = log.scrub(log.scrub_start(Offset(2)), 10_000)
    assert hole is not None
    disk.flip(path, 4096 + 5)
    run(disk, log, request_of(log))

    with pytest.raises(CorruptionError, match="compacted meanwhile"):
        log.fill(hole, b"")


def test_a_reader_goes_on_across_a_compaction(disk: SimulatedFileSystem, log: Log) -> None:
    for _ in range(4):
        for key in range(5):
            append(log, (b"%d" % key, b"x" * 100))
        seal_segment(log)
    disk.kill()
    log_again = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)  # Nothing open, no index loaded.
    result = compact(disk, request_of(log_again, segment_bytes=100 * KIB), lambda count: None)

    def replace(operation: str, path: str) -> None:
        if operation == "open" and path.endswith(f"{10:020}.log"):
            disk.on_operation = None
            for segment in result.segments:
                log_again.replace(segment.replaces, segment.path)

    disk.on_operation = replace
    found = log_again.read(Offset(10), Offset(20), 10_000, cached_only=False)

    assert found is not None
    assert decode_header(found[0]).base_offset <= 10 < decode_header(found[0]).end_offset


# --- what was replaced goes into the trash ----------------------------------------------


@pytest.fixture
def trash(disk: SimulatedFileSystem, log: Log) -> Trash:
    return trash_of(disk)


def trash_of(disk: SimulatedFileSystem) -> Trash:
    make_directory_durably(disk, TRASH)
    return Trash(disk, TRASH, "/data/groups")


def seal_rewritten(log: Log, segments: int) -> None:
    """Sealed segments of which little will be left, and which become one."""
    for _ in range(segments):
        for key in range(5):
            append(log, (b"%d" % key, b"x" * 100))
        seal_segment(log)


def test_what_was_replaced_is_in_the_trash_as_it_was(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    seal_rewritten(log, 3)
    paths = [f"{DIRECTORY}/{base:020}.log" for base in log.segment_bases[:-1]]
    before = [disk.content(path) for path in paths]

    run(disk, log, request_of(log, segment_bytes=100 * KIB), TRASH)

    assert len(log.segment_bases) == 2
    assert trash.names() == [f"{GROUP:020}-1-{base:020}.log" for base in (0, 5, 10)]
    assert [disk.content(f"{TRASH}/{name}") for name in trash.names()] == before
    assert not any("old-" in name for name in disk.list_directory(DIRECTORY))
    assert_is_log(disk, log, 15)


def test_what_is_replaced_again_lies_beside_what_it_replaced(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    for number in range(3):
        append(log, (b"a", b"%d" % number), (b"b", b"%d" % number))
        seal_segment(log)
        run(disk, log, request_of(log, segment_bytes=100 * KIB), TRASH)
    disk.kill()
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)  # It counts from the beginning.
    append(log, (b"a", b"end"), (b"b", b"end"))
    seal_segment(log)
    run(disk, log, request_of(log, segment_bytes=100 * KIB), TRASH)
    log.trim(log.segment_bases[-1], TRASH)

    trimmed, replaced = f"{0:020}", ((1, 0), (1, 2), (1, 6), (2, 0), (2, 4), (3, 0))
    assert trash.names() == [
        f"{GROUP:020}-{name}.log"
        for name in (trimmed, *(f"{number}-{base:020}" for number, base in replaced))
    ]


def test_a_file_system_without_second_names_gives_back_the_first_file_at_once(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    disk.has_links = False
    seal_rewritten(log, 3)

    run(disk, log, request_of(log, segment_bytes=100 * KIB), TRASH)

    assert trash.names() == [f"{GROUP:020}-1-{base:020}.log" for base in (5, 10)]
    assert_is_log(disk, log, 15)


def first_replacement(disk: SimulatedFileSystem, log: Log) -> CompactedSegment:
    """What takes the place of the first of two segments, with six batches in all."""
    seal_rewritten(log, 1)
    append(log, (b"0", b"end"))
    seal_segment(log)
    first, *_ = compact(disk, request_of(log), lambda count: None).segments
    return first


def test_a_disk_that_cannot_set_the_old_file_aside_is_no_reason_to_give_up_the_log(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    first = first_replacement(disk, log)

    def refuse(operation: str, path: str) -> None:
        if operation == "link":
            raise OSError(errno.ENOSPC, "simulated failure", path)

    disk.on_operation = refuse
    with pytest.raises(StorageError, match="cannot put"):
        log.replace(first.replaces, first.path, TRASH)
    disk.on_operation = None

    assert log.failure is None
    assert log.replace(first.replaces, first.path, TRASH)
    assert_is_log(disk, log, 6)


def test_a_segment_whose_file_was_deleted_can_be_replaced(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    """A repair puts another one in the place of what is not there."""
    first = first_replacement(disk, log)
    disk.remove(f"{DIRECTORY}/{0:020}.log")

    assert log.replace(first.replaces, first.path, TRASH)

    assert trash.names() == []
    assert_is_log(disk, log, 6)


def test_who_reads_what_is_being_replaced_reads_it_to_its_end(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    seal_rewritten(log, 3)
    walk = log.headers(Offset(0))
    first = next(walk)

    run(disk, log, request_of(log), TRASH)

    assert [first.base_offset, *(next(walk).base_offset for _ in range(4))] == [0, 1, 2, 3, 4]


def test_a_read_that_finds_its_file_cut_in_the_trash_reads_the_one_in_its_place(
    disk: SimulatedFileSystem, log: Log, trash: Trash
) -> None:
    seal_rewritten(log, 3)
    result = compact(disk, request_of(log, segment_bytes=100 * KIB), lambda count: None)

    def replace_and_cut(operation: str, path: str) -> None:
        if operation == "read" and path.endswith(f"{0:020}.log"):
            disk.on_operation = None
            for segment in result.segments:
                log.replace(segment.replaces, segment.path, TRASH)
            for name in trash.names():
                disk.open(f"{TRASH}/{name}").truncate(4100)

    disk.on_operation = replace_and_cut
    found = log.read(Offset(3), Offset(15), 10_000, cached_only=False)

    assert found is not None
    (header,) = map(decode_header, found[:1])
    assert header.is_gap
    assert header.base_offset <= 3 < header.end_offset


@pytest.mark.parametrize("is_opened_first", [True, False])
@pytest.mark.parametrize("power", [True, False])
def test_a_crash_at_any_step_leaves_no_file_that_is_both_in_the_log_and_in_the_trash(
    power: bool, is_opened_first: bool
) -> None:
    steps, was_cut_off = 0, True
    while was_cut_off:
        for seed in range(20 if power else 1):
            rng = random.Random(seed)
            disk = SimulatedFileSystem(rng)
            trash = trash_of(disk)
            log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
            seal_rewritten(log, 3)
            log.sync_mark(log.end_offset)
            old = records(log)
            result = compact(disk, request_of(log, segment_bytes=100 * KIB), lambda count: None)
            with disk.dying_after(steps) as life:
                for segment in result.segments:
                    log.replace(segment.replaces, segment.path, TRASH)
            was_cut_off = life.was_cut_off
            disk.crash(rng) if power else disk.kill()

            if is_opened_first:
                Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
            names = trash.names()
            trash.settle(names)
            for name in names:
                trash.remove_piece([name], 300)
            disk.crash(rng) if power else disk.kill()
            log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

            assert not log.recovery.is_damaged, (steps, seed, log.recovery)
            assert records(log) in (old, old[-5:]), (steps, seed)
            assert not any(name.endswith(".tmp") for name in disk.list_directory(DIRECTORY))
        steps += 1
    assert steps > 10


def test_a_compacted_segment_still_says_that_another_follows_it(
    disk: SimulatedFileSystem, log: Log
) -> None:
    seal_rewritten(log, 3)
    for segment in compact(disk, request_of(log, segment_bytes=100 * KIB), lambda _: None).segments:
        log.replace(segment.replaces, segment.path)
    newest = log.segment_bases[-1]
    log.close()

    disk.remove(f"{DIRECTORY}/{newest:020}.log")

    damage = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS).recovery.damage
    assert damage
    assert f"from offset {newest}, is gone" in damage[0]


def test_a_request_crosses_a_process_boundary(log: Log) -> None:
    append(log, (b"a", b"1"))
    seal_segment(log)
    request = request_of(log)

    encoded = msgspec.json.encode(request)

    assert msgspec.json.decode(encoded, type=CompactionRequest) == request


# --- any history, any crash -------------------------------------------------------------


def expected_of(rows: Sequence[tuple[int, Row]], bound: int) -> list[tuple[int, Row]]:
    last = {row[0]: offset for offset, row in rows if offset < bound}
    return [
        (offset, row)
        for offset, row in rows
        if row[0] is None or offset >= bound or last[row[0]] == offset
    ]


def random_log(
    rng: random.Random, disk: SimulatedFileSystem, batches_max: int = 60
) -> tuple[Log, list[tuple[int, Row]]]:
    log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
    rows: list[tuple[int, Row]] = []
    term = 1
    for _ in range(rng.randint(batches_max // 2, batches_max)):
        if rng.random() < 0.1:
            term += 1
            control(log, term=term)
        batch: list[Row] = [
            (
                rng.choice([b"%d" % rng.randrange(12), b"k" * rng.choice([31, 32, 40]), None]),
                rng.choice([None, b"v" * rng.randrange(200)]),
            )
            for _ in range(rng.randint(1, 5))
        ]
        rows += [(log.end_offset + n, row) for n, row in enumerate(batch)]
        producer_id = rng.randrange(4)
        append(log, *batch, term=term, producer_id=producer_id, codec=rng.choice(list(Codec)))
        if log.needs_roll:
            seal_segment(log)
    if log.end_offset > log.segment_bases[-1]:
        seal_segment(log)
    return log, rows


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_any_history_compacted_in_any_steps_keeps_the_last_of_each_key(first: int) -> None:
    for seed in range(first, first + 20):
        rng = random.Random(seed)
        disk = SimulatedFileSystem(rng)
        log, rows = random_log(rng, disk)
        end, dirty_from = log.end_offset, Offset(0)
        while dirty_from < log.segment_bases[-1]:
            request = request_of(
                log,
                dirty_from=dirty_from,
                keys_max=rng.choice([1, 5, 1000]),
                segment_bytes=rng.choice([1, 8 * KIB, 100 * KIB]),
            )
            dirty_from = run(disk, log, request).clean_to
            expected = expected_of(rows, dirty_from)
            assert [(o, (k, v)) for o, k, v in records(log)] == expected, seed
        assert_is_log(disk, log, end)


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_any_step_loses_no_last_record_and_brings_none_back(
    seed: int, power: bool
) -> None:
    steps, was_cut_off = 0, True
    while was_cut_off:
        rng = random.Random(seed)
        disk = SimulatedFileSystem(rng)
        log, rows = random_log(rng, disk, batches_max=14)
        end = log.end_offset
        log.sync(end)
        log.sync_mark(end)
        request = request_of(log, segment_bytes=8 * KIB, tombstones_below=end)
        steps, left = steps + 1, steps + 1

        def stop(operation: str, _path: str) -> None:
            nonlocal left
            if operation in ("size", "read", "open", "list", "map"):
                return
            left -= 1
            if left < 0:
                raise EndOfLifeError

        disk.on_operation = stop
        try:
            run(disk, log, request)
            was_cut_off = False
        except EndOfLifeError:
            pass
        disk.on_operation = None
        disk.crash(rng) if power else disk.kill()

        log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
        assert not log.recovery.is_damaged, (seed, steps, log.recovery)
        found = records(log)
        # Whoever replays the log from its start has the same picture at the end.
        assert picture(found) == picture([(o, *row) for o, row in rows]), (seed, steps)
        assert set(found) <= {(offset, *row) for offset, row in rows}
        assert not any(name.endswith(".tmp") for name in disk.list_directory(DIRECTORY))
        log = assert_is_log(disk, log, end)
    assert steps > 4


def picture(
    found: Sequence[tuple[int, bytes | None, bytes | None]],
) -> dict[bytes, bytes]:
    state: dict[bytes, bytes] = {}
    for _, key, value in found:
        if key is None:
            continue
        state.pop(key, None)
        if value is not None:
            state[key] = value
    return state


# --- a follower of a compacted log ------------------------------------------------------


def test_a_gap_that_reaches_over_a_followers_end_is_taken_from_there_on() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            whole = [batch_of(Offset(offset), Term(2)) for offset in range(5)]
            replica.append(whole, term=Term(2), start=Offset(0))
            await until(lambda: replica.group.log.end_offset == 5)

            gap = make_gap(Offset(3), Offset(8), term=Term(2), append_time_ms=0, group=GROUP)
            replica.append([gap, batch_of(Offset(8), Term(2))], term=Term(2), start=Offset(3))
            await until(lambda: replica.group.log.end_offset == 9)

            spans = [(h.base_offset, h.end_offset) for h in replica.group.log.headers(Offset(3))]
            assert spans == [(3, 4), (4, 5), (5, 8), (8, 9)]
            assert replica.group.state.end_offset == 9

    play(story)


def test_a_gap_does_not_hide_that_a_follower_holds_another_terms_batches() -> None:
    async def story() -> None:
        async with open_replica() as replica:
            whole = [batch_of(Offset(offset), Term(2)) for offset in range(5)]
            replica.append(whole, term=Term(2), start=Offset(0))
            stale = [batch_of(Offset(5), Term(3)), batch_of(Offset(6), Term(3))]
            replica.append(stale, term=Term(3), start=Offset(5))
            await until(lambda: replica.group.log.end_offset == 7)

            gap = make_gap(Offset(3), Offset(9), term=Term(2), append_time_ms=0, group=GROUP)
            replica.append([gap], term=Term(4), start=Offset(3), prev_term=Term(2))
            await until(lambda: replica.group.log.end_offset == 9)

            found = [(h.base_offset, h.term) for h in replica.group.log.headers(Offset(3))]
            assert found == [(3, 2), (4, 2), (5, 2)]

    play(story)


# --- a segment made anew of what peers hold ---------------------------------------------


def test_a_segment_is_made_anew_of_pieces_whose_gaps_do_not_fit(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append(log, (b"a", b"1"))
    seal_segment(log)
    for number in range(5):
        append(log, (b"a", b"%d" % number))
    seal_segment(log)
    _, segment = log.sealed_segments()
    before = records(log)
    whole = read_all(log)
    copy = SegmentCopy(disk, DIRECTORY, IDENTITY, segment)

    copy.add(make_gap(Offset(0), Offset(3), term=Term(1), append_time_ms=0, group=GROUP))
    assert copy.wanted_from == 3
    with pytest.raises(CorruptionError, match="expected"):
        copy.add(whole[4])
    copy.add(whole[3])
    copy.add(make_gap(Offset(4), Offset(9), term=Term(1), append_time_ms=0, group=GROUP))

    assert copy.is_complete
    assert log.replace([segment.base_offset], copy.finish(), is_of_peers=True)
    assert records(log) == [before[0], before[3]]
    assert_is_log(disk, log, 6)


def test_a_copy_that_is_given_up_leaves_nothing_behind(disk: SimulatedFileSystem, log: Log) -> None:
    append(log, (b"a", b"1"))
    seal_segment(log)
    names = disk.list_directory(DIRECTORY)

    SegmentCopy(disk, DIRECTORY, IDENTITY, log.sealed_segments()[0]).discard()

    assert disk.list_directory(DIRECTORY) == names


# --- a replica --------------------------------------------------------------------------


async def commit_rows(replica: Replica, *rows: Row) -> None:
    sealed = seal_batch(
        values=[value for _, value in rows], keys=[key for key, _ in rows], timestamps_ms=0
    )
    await replica.group.commit(sealed, replica.node.now_ms() + 10_000)


async def follow(replica: Replica, batches: Sequence[bytes], end: Offset) -> None:
    """Take ``batches``, which end at ``end``, and learn that they are committed."""
    replica.append(batches, term=Term(1), commit_offset=end)
    await until(lambda: replica.group.commit_offset == end)


async def roll(replica: Replica) -> None:
    """Seal the active segment, and wait for the checkpoint."""
    bases = len(replica.group.log.segment_bases)
    replica.group.roller.roll_soon()
    await until(lambda: len(replica.group.log.segment_bases) > bases)
    await trio.sleep(1)


def compactor_of(replica: Replica, others: Iterator[int] | None = None) -> LogCompactor:
    """A compactor, and what other replicas say of their logs each time."""

    async def settled_elsewhere(group: Group) -> Offset:
        return Offset(OFFSET_MAX if others is None else next(others))

    return LogCompactor(replica.group, replica.node, settled_elsewhere)


def rows_of(replica: Replica) -> list[Row]:
    return [(key, value) for _, key, value in records(replica.group.log)]


async def deleted(replica: Replica) -> None:
    """A log that says that there was a key, and that it was deleted, long ago."""
    await replica.lead()
    await commit_rows(replica, (b"a", b"1"), (b"b", b"1"))
    await roll(replica)
    await commit_rows(replica, (b"a", None))
    await roll(replica)
    await trio.sleep(100)
    await commit_rows(replica, (b"c", b"1"))


def test_a_tombstone_goes_a_while_after_what_it_deletes_however_old_it_is() -> None:
    """Who reads on had read that by then, and must learn of the tombstone."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            compactor, policy = compactor_of(replica), CompactionPolicy(60_000, 1, 0)
            for _ in range(6):
                await compactor.apply(policy, TRASH)
                assert rows_of(replica) == [(b"b", b"1"), (b"a", None), (b"c", b"1")]
                await trio.sleep(9)
            await trio.sleep(10)
            await compactor.apply(policy, TRASH)
            assert rows_of(replica) == [(b"b", b"1"), (b"c", b"1")]

    play(story)


def test_a_log_keeps_what_may_be_retried_for_as_long_as_a_delivery_may_take() -> None:
    def sealed(value: bytes, sequence: int | None = None) -> bytearray:
        return seal_batch(
            values=[value],
            keys=[b"a"],
            timestamps_ms=0,
            producer_id=0 if sequence is None else 1,
            base_sequence=sequence or 0,
        )

    async def story() -> None:
        async with open_replica() as replica:
            batches = [placed(sealed(b"x", n), Offset(n), Term(1)) for n in range(3)]
            found = []
            for later_ms in (DELIVERY_TIMEOUT_MS_MAX, DELIVERY_TIMEOUT_MS_MAX + 1):
                base = Offset(replica.group.log.end_offset + len(batches))
                batches.append(placed(sealed(bytes(KIB)), base, Term(1), time_ms=later_ms))
                await follow(replica, batches, Offset(base + 1))
                batches.clear()
                await roll(replica)
                await compactor_of(replica).apply(CompactionPolicy(0, 1, 0), TRASH)
                of_producer = [h for h in headers(replica.group.log) if h.producer_id]
                found.append([h.base_sequence for h in of_producer])
            assert found == [[0, 1, 2], [2]]

    play(story)


def test_a_tombstone_stays_while_another_replica_may_hold_what_it_deletes() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            tombstone = records(replica.group.log)[2][0]
            others = iter([0, tombstone, 0, tombstone + 1])
            compactor, policy = compactor_of(replica, others), CompactionPolicy(60_000, 1, 0)
            await compactor.apply(policy, TRASH)
            for _ in range(3):
                await trio.sleep(100)
                await compactor.apply(policy, TRASH)
                assert (b"a", None) in rows_of(replica)
            await compactor.apply(policy, TRASH)
            assert (b"a", None) not in rows_of(replica)
            assert not [*others]

    play(story)


def test_a_log_that_is_compacted_all_the_time_still_lets_go_of_its_tombstones() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            compactor, policy = compactor_of(replica), CompactionPolicy(6_000, 1, 0)
            tombstones = []
            for minute in range(12):
                for second in range(4):
                    key = b"%d-%d" % (minute, second)
                    await commit_rows(replica, (key, b"1"), (key, None), (b"b", bytes(300)))
                    await roll(replica)
                    await trio.sleep(0.4)
                    await compactor.apply(policy, TRASH)
                tombstones.append(sum(value is None for _, value in rows_of(replica)))
            assert max(tombstones) <= 12, tombstones
            note = await replica.group.upkeep.read_clean_note()
            assert note is not None
            assert len(note.since) <= 5

    play(story)


def test_how_far_a_log_is_clean_is_known_after_a_restart() -> None:
    """The first compaction then does not begin anew, and its tombstones need not wait again."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            policy = CompactionPolicy(60_000, 1, 0)
            await compactor_of(replica).apply(policy, TRASH)
            await trio.sleep(100)
            before = replica.group.log.replacements
            compactor = compactor_of(replica)
            await compactor.apply(policy, TRASH)
            assert (b"a", None) in rows_of(replica)  # By the log it may still be then.
            assert replica.group.log.replacements == before
            await commit_rows(replica, (b"d", b"1"))
            await compactor.apply(policy, TRASH)
            assert (b"a", None) not in rows_of(replica)

    play(story)


@pytest.mark.parametrize("damage", ["cut short", "another content", "no MessagePack"])
def test_a_note_that_cannot_be_read_is_as_good_as_none(damage: str) -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            group, files = replica.group, replica.files
            compactor, policy = compactor_of(replica), CompactionPolicy(60_000, 1, 0)
            await compactor.apply(policy, TRASH)
            path = f"{group.directory}/{NOTE_NAME}"
            match damage:
                case "cut short":
                    files.overwrite(path, 0, bytes(len(files.content(path))))
                case "another content":
                    files.flip(path, FILE_HEADER_BYTES + 3)
                case _:
                    header = FileHeader(group.identity)
                    write_payload_file(files, path, CLEAN_MAGIC, header, b"\x93\x01")
            assert await group.upkeep.read_clean_note() is None
            for _ in range(2):
                await trio.sleep(40)
                await compactor.apply(policy, TRASH)
                assert (b"a", None) in rows_of(replica)
            await trio.sleep(40)
            await compactor.apply(policy, TRASH)
            assert (b"a", None) not in rows_of(replica)

    play(story)


def test_who_reads_a_compacted_log_is_not_told_what_memory_still_has_of_it() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            await commit_rows(replica, (b"a", b"1"), (b"b", b"1"))
            await roll(replica)
            await commit_rows(replica, (b"a", b"2"))
            await roll(replica)
            await commit_rows(replica, (b"c", b"3"))
            await compactor_of(replica).apply(CompactionPolicy(60_000, 1, 0), TRASH)

            reader, offset, values = replica.group.reader, Offset(0), list[bytes | None]()
            while (found := await reader.read_committed(offset, 64 * KIB)) is not None:
                whole = memoryview(b"".join(found.buffers))
                for header, view in split_batches(whole):
                    if not header.is_control and header.record_count:
                        values += decode_batch(view).values
                offset = found.end_offset
            assert values == [b"1", b"2", b"3"]

    play(story)


def test_what_was_repaired_is_compacted_anew_before_a_tombstone_goes() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            group, files = replica.group, replica.files
            first = group.log.sealed_segments()[0]
            original = b"".join(read_all(group.log))[: first.size_bytes]
            compactor, policy = compactor_of(replica), CompactionPolicy(60_000, 1, 0)
            await compactor.apply(policy, TRASH)
            await trio.sleep(40)
            await compactor.apply(policy, TRASH)

            # A peer that has not compacted gives back what it has.
            copy = SegmentCopy(files, group.directory, group.identity, first)
            copy.add(original)
            await group.upkeep.replace([first.base_offset], copy.finish(), TRASH, is_of_peers=True)
            for _ in range(2):
                await trio.sleep(40)  # Without the repair it would go now.
                await compactor.apply(policy, TRASH)
                assert rows_of(replica) == [(b"b", b"1"), (b"a", None), (b"c", b"1")]
            await trio.sleep(40)
            await compactor.apply(policy, TRASH)
            assert rows_of(replica) == [(b"b", b"1"), (b"c", b"1")]

    play(story)


def test_a_repair_ends_at_once_what_a_replica_says_of_its_log() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            group, files = replica.group, replica.files
            written = [bytes(batch) for batch in read_all(group.log)]
            first, second = group.log.sealed_segments()
            for number in range(2):
                group.settled_to = second.end_offset
                copy = SegmentCopy(files, group.directory, group.identity, first)
                copy.add(b"".join(written)[: first.size_bytes])
                done = await group.upkeep.replace(
                    [first.base_offset], copy.finish(), TRASH, is_of_peers=bool(number)
                )
                assert (done, group.settled_to) == (True, 0 if number else second.end_offset)

            group.settled_to = second.end_offset
            path = f"{group.directory}/{second.base_offset:020}.log"
            files.flip(path, SEGMENT_HEADER_BYTES + 50)
            found = await group.upkeep.scrub(group.log.scrub_start(second.base_offset), MIB)
            assert found is not None
            assert found[1] is not None
            await group.upkeep.fill(found[1], written[2])
            assert group.settled_to == 0

    play(story)


def test_a_tombstone_stays_if_what_it_deletes_was_trimmed_only_in_part_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            group, env = replica.group, replica.env
            await replica.lead()
            for rows in ([(b"b", bytes(400))], [(b"a", b"1")], [(b"a", None), (b"c", bytes(800))]):
                await commit_rows(replica, *rows)
                await roll(replica)
            await trio.sleep(100)
            await commit_rows(replica, (b"d", b"1"))
            sealed = group.log.sealed_segments()
            compact_as_ever = env.run_apart

            async def trim_meanwhile(work: ApartWork, request: bytes) -> bytes:
                answer = await compact_as_ever(work, request)
                assert await group.upkeep.trim(sealed[1].base_offset, TRASH)
                return answer

            compactor = compactor_of(replica)
            policy = CompactionPolicy(60_000, SEGMENT_HEADER_BYTES + 1200, 0)
            with monkeypatch.context() as patched:
                patched.setattr(env, "run_apart", trim_meanwhile)
                await compactor.apply(policy, TRASH)

            keys = [key for _, key, _ in records(group.log)]
            assert keys == [b"a", b"a", b"c", b"d"]
            names = replica.files.list_directory(group.directory)
            assert not any(name.endswith(".tmp") for name in names)
            for _ in range(2):
                await trio.sleep(40)
                await compactor.apply(policy, TRASH)
                assert [key for _, key, _ in records(group.log)] == [b"a", b"c", b"d"]
            await trio.sleep(40)
            await compactor.apply(policy, TRASH)
            assert [key for _, key, _ in records(group.log)] == [b"c", b"d"]

    play(story)


def test_a_log_is_compacted_although_it_is_trimmed_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what was merged with something that is gone by now nothing comes, and of the rest all."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            group, env = replica.group, replica.env
            await replica.lead()
            for number in range(6):
                await commit_rows(replica, (b"%d" % number, bytes(400)), (b"a", b"1"))
                await roll(replica)
            bases = group.log.segment_bases
            compact_as_ever = env.run_apart

            async def trim_meanwhile(work: ApartWork, request: bytes) -> bytes:
                answer = await compact_as_ever(work, request)
                assert await group.upkeep.trim(bases[1], TRASH)
                return answer

            policy = CompactionPolicy(60_000, SEGMENT_HEADER_BYTES + 1400, 0)
            with monkeypatch.context() as patched:
                patched.setattr(env, "run_apart", trim_meanwhile)
                await compactor_of(replica).apply(policy, TRASH)

            # The second segment, which was merged with the first, is as it was.
            assert [key for _, key, _ in records(group.log)].count(b"a") == 2
            names = replica.files.list_directory(group.directory)
            assert not any(name.endswith(".tmp") for name in names)

    play(story)


def test_a_replica_that_has_stopped_keeps_nothing_of_a_compaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            group, env = replica.group, replica.env
            await deleted(replica)
            compact_as_ever = env.run_apart

            async def stop_meanwhile(work: ApartWork, request: bytes) -> bytes:
                answer = await compact_as_ever(work, request)
                group.fail(OSError("simulated"))
                return answer

            with monkeypatch.context() as patched:
                patched.setattr(env, "run_apart", stop_meanwhile)
                await compactor_of(replica).apply(CompactionPolicy(60_000, 1, 0), TRASH)

            names = replica.files.list_directory(group.directory)
            assert not any(name.endswith(".tmp") for name in names)

    play(story)


def test_a_tombstone_stays_while_a_batch_cannot_let_go_of_what_it_deletes() -> None:
    """So full a batch that it has no room for the offsets of the records that would be left."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,), segment_bytes=8192 * KIB) as replica:
            await replica.lead()
            others = [(b"%d" % key, bytes(190)) for key in range(20_950)]
            await commit_rows(replica, (b"a", b"1"), *others)
            await roll(replica)
            await commit_rows(replica, (b"a", None))
            await roll(replica)
            compactor = compactor_of(replica)
            for _ in range(3):
                await trio.sleep(100)
                await commit_rows(replica, *[(b"b%d" % key, bytes(1000 * KIB)) for key in range(4)])
                await roll(replica)
                await compactor.apply(CompactionPolicy(60_000, 1, 0), TRASH)

                found = records(replica.group.log)
                assert [value for _, key, value in found if key == b"a"] == [b"1", None]

    play(story)


def test_a_log_is_not_compacted_at_the_price_of_appends() -> None:
    """With less than a minimum free they are refused, and a compaction can wait."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await deleted(replica)
            compactor, files = compactor_of(replica), replica.files
            needed = sum(segment.size_bytes for segment in replica.group.log.sealed_segments())
            policy = CompactionPolicy(60_000, 1, 0, free_bytes_min=64 * KIB)
            files.capacity_bytes = files.used_bytes() + needed + 64 * KIB - 1
            await compactor.apply(policy, TRASH)
            assert (b"a", b"1") in rows_of(replica)
            files.capacity_bytes += 1
            await compactor.apply(policy, TRASH)
            assert (b"a", b"1") not in rows_of(replica)

    play(story)


def test_a_log_is_compacted_only_as_far_as_a_checkpoint_vouches_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What lies behind may yet be replayed for its state."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            for value in (b"1", b"2", b"3"):
                await commit_rows(replica, (b"a", value))
                await roll(replica)
            kept_at = replica.group.log.segment_bases[2]

            async def restorable_offset(_: Checkpoints) -> Offset:
                return kept_at

            with monkeypatch.context() as patched:
                patched.setattr(Checkpoints, "restorable_offset", restorable_offset)
                await compactor_of(replica).apply(CompactionPolicy(60_000, 1, 0), TRASH)
            assert rows_of(replica) == [(b"a", b"2"), (b"a", b"3")]

    play(story)


def test_a_log_is_compacted_again_when_half_as_much_has_come_since() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            compactor = compactor_of(replica)
            policy = CompactionPolicy(60_000, 1, 0)
            for key in range(10):
                await commit_rows(replica, (b"%d" % key, bytes(1000)))
            await roll(replica)
            await compactor.apply(policy, TRASH)
            kept = []
            for _ in range(8):
                await commit_rows(replica, (b"0", bytes(1000)))
                await roll(replica)
                await compactor.apply(policy, TRASH)
                kept.append(len(records(replica.group.log)))

            assert kept[:3] == [11, 12, 13]
            assert min(kept[3:]) == 10

    play(story)
