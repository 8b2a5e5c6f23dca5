"""What is damaged in a log is found, and filled with exactly what was there or with nothing."""

from __future__ import annotations

import random

import pytest

from logd.errors import CorruptionError
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.record.header import decode_header, leader_part
from logd.storage.holes import Hole, fill_hole
from logd.storage.log import Log, LogOptions, ScrubPosition
from logd.storage.log_contents import SealedSegment
from logd.storage.recovery import LogEnd, segment_bases
from logd.storage.repair import (
    Survey,
    begin_with,
    mend_headers,
    put_in_place,
    segment_with,
    survey_log,
)
from logd.storage.segment_copy import SegmentCopy
from logd.storage.synced_mark import SLOT_POSITIONS
from logd.storage.whole_file import make_directory_durably
from logd.types import FilePosition, Offset, Term
from tests.sim.files import SimulatedFile, SimulatedFileSystem
from tests.support.logs import DIRECTORY, GROUP, IDENTITY, append_some, read_all

OPTIONS = LogOptions(segment_bytes=4096, index_interval_bytes=512)


def written_log(files: SimulatedFileSystem, batches: int = 120) -> list[bytes]:
    """A closed log of several segments; returns its batches, one record each."""
    log = Log.create(files, DIRECTORY, IDENTITY, OPTIONS)
    written: list[bytes] = []
    for number in range(batches):
        written += append_some(log, 1, term=1 + number // 50, value=b"v" * (number % 90))
        if log.needs_roll:
            log.roll()
    written += append_some(log, 3, term=3)
    log.sync(Offset(batches))
    log.close()
    return written


def fresh() -> tuple[SimulatedFileSystem, list[bytes]]:
    files = SimulatedFileSystem(random.Random(1))
    return files, written_log(files)


def segments(files: SimulatedFileSystem) -> list[str]:
    return [f"{DIRECTORY}/{n}" for n in files.list_directory(DIRECTORY) if n.endswith(".log")]


def fill_all(files: SimulatedFileSystem, survey: Survey, written: list[bytes]) -> None:
    for hole in survey.holes:
        assert fill_hole(files, GROUP, hole, peer_has(written, hole)) is None


def peer_has(written: list[bytes], hole: Hole) -> bytes:
    return b"".join(written[hole.start.offset : hole.end.offset])


def reopened(files: SimulatedFileSystem) -> Log:
    log = Log.open(files, DIRECTORY, IDENTITY, OPTIONS)
    assert not log.recovery.is_damaged, log.recovery.damage
    return log


def test_an_intact_log_has_no_holes() -> None:
    files, written = fresh()

    assert survey_log(files, DIRECTORY, IDENTITY) == Survey((), Offset(len(written)))
    assert mend_headers(files, DIRECTORY, IDENTITY) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_bits_below_the_headers_are_found_and_filled(seed: int) -> None:
    chance = random.Random(seed)
    files, written = fresh()
    for _ in range(chance.choice([1, 2, 20])):
        path = chance.choice(segments(files))
        size = len(files.content(path))
        if size > SEGMENT_HEADER_BYTES:
            files.flip(path, chance.randrange(SEGMENT_HEADER_BYTES, size), chance.randrange(8))

    fill_all(files, survey_log(files, DIRECTORY, IDENTITY), written)

    assert survey_log(files, DIRECTORY, IDENTITY).holes == ()
    assert read_all(reopened(files)) == written


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_header_block_of_a_sealed_segment_is_made_whole(seed: int) -> None:
    chance = random.Random(seed)
    files, written = fresh()
    for path in segments(files)[:-1]:
        for _ in range(chance.choice([0, 3])):
            files.flip(path, chance.randrange(1536), chance.randrange(8))

    survey = survey_log(files, DIRECTORY, IDENTITY)
    assert survey.beyond_repair is None
    fill_all(files, survey, written)
    mend_headers(files, DIRECTORY, IDENTITY)

    assert read_all(reopened(files)) == written


def copy_what_does_not_fit(
    files: SimulatedFileSystem, survey: Survey, written: list[bytes]
) -> None:
    """Where the bytes of a hole do not fit, its whole segment is made anew."""
    for hole in survey.holes:
        try:
            fill_hole(files, GROUP, hole, peer_has(written, hole))
        except CorruptionError:
            segment = segment_with(files, DIRECTORY, IDENTITY, hole)
            assert segment is not None
            copy = SegmentCopy(files, DIRECTORY, IDENTITY, segment)
            copy.add(b"".join(written[segment.base_offset : segment.end_offset]))
            put_in_place(files, copy.finish(), DIRECTORY, segment)


@pytest.mark.parametrize("left", [0, 100, 600, 1030, SEGMENT_HEADER_BYTES, 5000])
def test_a_sealed_segment_that_lost_its_end_and_its_marks_is_made_whole(left: int) -> None:
    files, written = fresh()
    for path in segments(files)[:-1]:
        file = files.open(path)
        file.truncate(left)
        file.close()
        if left > 512:
            files.overwrite(path, 512, bytes(min(left, 1536) - 512))

        copy_what_does_not_fit(files, survey_log(files, DIRECTORY, IDENTITY), written)
        mend_headers(files, DIRECTORY, IDENTITY)

        assert read_all(reopened(files)) == written


def test_a_sealed_segment_with_the_file_of_another_is_made_whole() -> None:
    files, written = fresh()
    paths = segments(files)
    for path, other in ((paths[1], paths[0]), (paths[1], paths[-1]), (paths[0], paths[1])):
        files.overwrite(path, 0, files.content(other))

        copy_what_does_not_fit(files, survey_log(files, DIRECTORY, IDENTITY), written)
        mend_headers(files, DIRECTORY, IDENTITY)

        assert read_all(reopened(files)) == written


def test_a_log_that_ends_below_its_mark_is_filled_up_to_the_mark() -> None:
    files, written = fresh()
    last = segments(files)[-1]
    file = files.open(last)
    file.truncate(file.size() - 150)
    file.close()

    survey = survey_log(files, DIRECTORY, IDENTITY)
    assert [hole.end.offset for hole in survey.holes] == [len(written)]
    fill_all(files, survey, written)

    assert read_all(reopened(files)) == written


def test_lost_marks_of_the_active_segment_are_beyond_repair() -> None:
    files, _ = fresh()
    files.overwrite(segments(files)[-1], 512, bytes(1024))

    assert "both synced marks" in str(survey_log(files, DIRECTORY, IDENTITY).beyond_repair)


def hole_of(files: SimulatedFileSystem) -> Hole:
    files.flip(segments(files)[0], SEGMENT_HEADER_BYTES + 130)
    (hole,) = survey_log(files, DIRECTORY, IDENTITY).holes
    return hole


def test_batches_of_other_offsets_are_not_filled_in() -> None:
    files, written = fresh()
    hole = hole_of(files)
    before = files.content(hole.path)

    with pytest.raises(CorruptionError, match="expected offset 0"):
        fill_hole(files, GROUP, hole, written[1])
    assert files.content(hole.path) == before


def test_batches_of_a_term_that_cannot_lie_there_are_not_filled_in() -> None:
    """They were appended there too, by a leader whose batches were replaced."""
    files, written = fresh()
    hole = hole_of(files)
    batch = written[hole.start.offset]
    late = Term(hole.end.term + 1)
    part = leader_part(
        batch, base_offset=hole.start.offset, term=late, append_time_ms=0, group=GROUP
    )

    with pytest.raises(CorruptionError, match=f"of term {late}, expected"):
        fill_hole(files, GROUP, hole, part + batch[len(part) :])


def test_batches_of_another_length_are_not_filled_in() -> None:
    files, written = fresh()
    hole = hole_of(files)

    with pytest.raises(CorruptionError, match="expected"):
        fill_hole(files, GROUP, hole, written[0] + written[1])


def test_a_hole_can_be_filled_batch_by_batch() -> None:
    files, written = fresh()
    file = files.open(path := segments(files)[1])
    file.pwritev([bytes(1500)], SEGMENT_HEADER_BYTES)
    file.close()
    (hole,) = survey_log(files, DIRECTORY, IDENTITY).holes
    assert hole.path == path

    left: Hole | None = hole
    for batch in written[hole.start.offset : hole.end.offset]:
        assert left is not None
        left = fill_hole(files, GROUP, left, batch)

    assert left is None
    assert read_all(reopened(files)) == written


def test_damaged_batches_are_not_filled_in() -> None:
    files, written = fresh()
    hole = hole_of(files)
    damaged = bytearray(peer_has(written, hole))
    damaged[-1] ^= 1

    with pytest.raises(CorruptionError):
        fill_hole(files, GROUP, hole, bytes(damaged))


def test_the_copy_of_an_older_batch_inside_a_record_is_not_taken_for_a_batch() -> None:
    files = SimulatedFileSystem(random.Random(1))
    log = Log.create(files, DIRECTORY, IDENTITY, LogOptions(segment_bytes=65536))
    written = append_some(log, 2)
    written += append_some(log, 1, value=written[0])
    written += append_some(log, 1)
    log.sync(Offset(4))
    log.close()
    (path,) = segments(files)
    third = SEGMENT_HEADER_BYTES + len(written[0]) + len(written[1])
    files.flip(path, third + 60)

    (hole,) = survey_log(files, DIRECTORY, IDENTITY).holes

    assert (hole.start.offset, hole.end.offset) == (2, 3)
    fill_hole(files, GROUP, hole, peer_has(written, hole))
    assert read_all(reopened(files)) == written


def scrub_all(log: Log, bytes_max: int) -> list[Hole]:
    holes = []
    position: ScrubPosition | None = log.scrub_start(log.start_offset)
    while position is not None:
        position, hole = log.scrub(position, bytes_max)
        if hole is not None:
            holes.append(hole)
    return holes


@pytest.mark.parametrize("seed", range(10))
def test_a_scrub_finds_damage_in_a_running_log_and_fills_it_in_place(seed: int) -> None:
    chance = random.Random(seed)
    files, written = fresh()
    log = reopened(files)
    for _ in range(3):
        path = chance.choice(segments(files))
        files.flip(path, chance.randrange(SEGMENT_HEADER_BYTES, len(files.content(path))))

    holes = scrub_all(log, bytes_max=1000)
    assert holes
    for hole in holes:
        log.fill(hole, peer_has(written, hole))

    assert scrub_all(log, bytes_max=1000) == []
    written += append_some(log, 5, term=4)
    assert read_all(log) == written


def test_a_scrub_in_pieces_reads_everything_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a piece is: not a megabyte for each."""
    files = SimulatedFileSystem(random.Random(1))
    log = Log.create(files, DIRECTORY, IDENTITY, LogOptions())
    written = append_some(log, 100, value=bytes(5000))
    read: list[int] = []
    pread = SimulatedFile.pread

    def counted(file: SimulatedFile, count: int, position: int) -> bytes:
        found = pread(file, count, position)
        read.append(len(found))
        return found

    monkeypatch.setattr(SimulatedFile, "pread", counted)
    assert scrub_all(log, bytes_max=64 * KIB) == []

    size = sum(map(len, written))
    assert size <= sum(read) <= size * 1.25


def test_a_scrub_finds_that_a_segment_was_cut_short_and_writes_its_end_again() -> None:
    files, written = fresh()
    log = reopened(files)
    path = segments(files)[0]
    files.open(path).truncate(len(files.content(path)) - 300)

    (hole,) = scrub_all(log, bytes_max=1000)
    log.fill(hole, peer_has(written, hole))

    assert scrub_all(log, bytes_max=1000) == []
    assert read_all(log) == written


def test_a_hole_that_is_trimmed_before_it_is_filled_does_not_stop_the_log() -> None:
    """Peers are asked in between, which takes a while."""
    files, written = fresh()
    log = reopened(files)
    files.flip(segments(files)[0], SEGMENT_HEADER_BYTES + 60)
    (hole,) = scrub_all(log, bytes_max=1000)
    log.trim(log.segment_bases[1])

    with pytest.raises(CorruptionError, match="trimmed meanwhile"):
        log.fill(hole, peer_has(written, hole))

    assert log.failure is None
    assert scrub_all(log, bytes_max=1000) == []


def test_all_that_a_damaged_log_may_have_promised_lies_below_the_end_of_its_survey() -> None:
    """The mark lags by a sync: what is intact behind it may have been acknowledged."""
    files = SimulatedFileSystem(random.Random(1))
    log = Log.create(files, DIRECTORY, IDENTITY, LogOptions(segment_bytes=65536))
    append_some(log, 2)
    log.sync(Offset(0))
    append_some(log, 2)
    log.sync(Offset(0))
    files.kill()
    (path,) = segments(files)
    files.flip(path, SEGMENT_HEADER_BYTES + 60)

    survey = survey_log(files, DIRECTORY, IDENTITY)

    assert survey.holes[0].end.offset == 1
    assert survey.end_offset == 4


def test_the_segment_of_a_hole_reaches_to_the_next_one_or_to_the_end_of_the_log() -> None:
    files, written = fresh()
    first, second, *_, last = segments(files)
    for path in (first, last):
        files.flip(path, SEGMENT_HEADER_BYTES + 60)
    sealed, active = survey_log(files, DIRECTORY, IDENTITY).holes

    found = segment_with(files, DIRECTORY, IDENTITY, sealed)
    assert found is not None
    assert (found.base_offset, found.end_offset) == (0, int(second[-24:-4]))

    found = segment_with(files, DIRECTORY, IDENTITY, active)
    assert found is not None
    assert (found.base_offset, found.end_offset) == (int(last[-24:-4]), len(written))


# --- a log that begins within one of its segments -------------------------------------------


TRASH = "/data/trash"


def rest_of(
    files: SimulatedFileSystem, hole: Hole, start: Offset, written: list[bytes]
) -> tuple[str, SealedSegment]:
    """What peers have of the segment of ``hole`` from ``start`` on, in an unfinished file."""
    segment = segment_with(files, DIRECTORY, IDENTITY, hole)
    assert segment is not None
    assert segment.base_offset < start < segment.end_offset
    before = decode_header(written[start - 1])
    rest = segment._replace(base_offset=start, prev_term=before.term)
    copy = SegmentCopy(files, DIRECTORY, IDENTITY, rest)
    copy.add(b"".join(written[start : rest.end_offset]))
    return copy.finish(), rest


def log_of_three_segments(files: SimulatedFileSystem) -> list[bytes]:
    """A closed one; returns its batches, five in each segment."""
    log = Log.create(files, DIRECTORY, IDENTITY, OPTIONS)
    written: list[bytes] = []
    for term in (1, 2, 3):
        for each in (term, term + 1, term + 1, term + 1, term + 1):
            written += append_some(log, 1, term=each, value=b"v" * 300)
        log.sync(log.end_offset)
        if term < 3:
            log.roll()
    log.close()
    return written


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize(
    ("number", "has_marks"), [(1, True), (1, False), (2, True)], ids=["sealed", "lost", "active"]
)
def test_a_crash_leaves_a_log_that_begins_within_a_segment_or_is_as_damaged_as_before(
    number: int, has_marks: bool, power: bool
) -> None:
    steps, was_cut_off = 0, True
    while was_cut_off:
        steps += 1
        files = SimulatedFileSystem(random.Random(steps))
        make_directory_durably(files, TRASH)
        written = log_of_three_segments(files)
        path, bases = segments(files)[number], segment_bases(files, DIRECTORY)
        begun = Offset(bases[number] + 2)
        files.overwrite(path, SEGMENT_HEADER_BYTES + 50, bytes(1000))  # Of the first three.
        if not has_marks:
            files.overwrite(path, SLOT_POSITIONS[0], bytes(1024))
        (hole,) = survey_log(files, DIRECTORY, IDENTITY).holes
        assert hole.start.offset < begun < hole.end.offset
        with files.dying_after(steps) as life:
            made, rest = rest_of(files, hole, begun, written)
            begin_with(files, made, DIRECTORY, IDENTITY, rest, TRASH)
        was_cut_off = life.was_cut_off
        files.crash(random.Random(steps)) if power else files.kill()

        log = Log.open(files, DIRECTORY, IDENTITY, OPTIONS)
        survey = survey_log(files, DIRECTORY, IDENTITY)
        assert survey.beyond_repair is None
        assert survey.end_offset == len(written)
        assert log.start_offset in (*bases[: number + 1], begun)
        if log.start_offset < begun:
            (hole,) = survey.holes
            assert hole.start.offset < begun
            if hole.end.offset == begun:
                log.trim(begun, TRASH)  # As of any log whose peers begin where a segment does.
            else:
                made, rest = rest_of(files, hole, begun, written)
                begin_with(files, made, DIRECTORY, IDENTITY, rest, TRASH)
        log.close()

        assert survey_log(files, DIRECTORY, IDENTITY).holes == ()
        again = reopened(files)
        assert (again.start_offset, again.end_offset) == (begun, len(written))
        assert again.prev_term == decode_header(written[begun - 1]).term
        assert read_all(again) == written[begun:]
    assert steps > 8


def test_what_is_damaged_is_told_with_its_file_once() -> None:
    """What walks a file names it too, and paths are long."""
    start = LogEnd(Offset(7), Term(1), FilePosition(100))
    end = LogEnd(Offset(9), Term(1), FilePosition(300))

    told = str(Hole("/d/7.log", start, end, "/d/7.log, position 100: no batch"))

    assert told == "/d/7.log: offsets [7, 9), bytes [100, 300): position 100: no batch"
