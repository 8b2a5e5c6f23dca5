"""After a crash a log holds what was promised, bit for bit, and nothing that is not intact.

What lies above the synced mark is kept as far as it is whole and then cut.  What is missing
or damaged below the mark is corruption: reported, left as it is, and no reason not to open.
The last part cuts the power in the middle of everything, many times over.
"""

from __future__ import annotations

import random

import pytest

from logd.errors import CorruptionError, LogdError, StorageFailedError
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogOptions, SyncedMark
from logd.storage.offline import check_chain, find_segments
from logd.storage.repair import survey_log
from logd.storage.segment_index import OFFSET_SUFFIX, TIME_SUFFIX
from logd.storage.synced_mark import SLOT_POSITIONS, MarkSlot, write_mark
from logd.types import FilePosition, NodeId, Offset, Term
from tests.sim.files import EndOfLifeError, SimulatedFileSystem
from tests.support.logs import (
    DIRECTORY,
    IDENTITY,
    OPTIONS,
    append_some,
    batch_bytes,
    make_batch,
    read_all,
    reopen,
)

FIRST = f"{DIRECTORY}/{0:020}.log"


@pytest.fixture
def log(disk: SimulatedFileSystem) -> Log:
    return Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)


def position_of(log_batches: list[bytes], number: int) -> int:
    return SEGMENT_HEADER_BYTES + sum(map(len, log_batches[:number]))


# --- above the mark ---------------------------------------------------------------------


def test_a_killed_process_loses_nothing_that_was_appended(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 20, term=2)

    log = reopen(disk)

    assert read_all(log) == written
    assert log.recovery.scanned_bytes == sum(map(len, written))
    assert log.recovery.cut_bytes == 0


def test_what_recovery_keeps_it_has_synced(disk: SimulatedFileSystem, log: Log) -> None:
    written = append_some(log, 20, term=2)
    log = reopen(disk)

    assert log.mark == SyncedMark(Term(2), Offset(20), Offset(0))
    disk.crash(random.Random(2))

    assert read_all(reopen(disk)) == written


def test_only_what_lies_behind_the_mark_is_scanned(disk: SimulatedFileSystem, log: Log) -> None:
    append_some(log, 20)
    log.sync(Offset(20))
    log.sync_mark(Offset(20))
    tail = append_some(log, 2)

    log = reopen(disk)

    assert log.recovery.scanned_bytes == sum(map(len, tail))


def test_a_clean_close_leaves_nothing_to_scan(disk: SimulatedFileSystem, log: Log) -> None:
    written = append_some(log, 20)
    log.close()

    log = reopen(disk)

    assert log.recovery.scanned_bytes == 0
    assert len(disk.content(FIRST)) == position_of(written, 20)


@pytest.mark.parametrize("lost", ["half", "all", "flipped"])
def test_a_torn_tail_is_cut_whatever_follows(
    disk: SimulatedFileSystem, log: Log, lost: str
) -> None:
    written = append_some(log, 10)
    position, end = position_of(written, 6), position_of(written, 7)
    if lost == "flipped":
        disk.flip(FIRST, end - 1)
    else:
        start = position if lost == "all" else (position + end) // 2
        disk.overwrite(FIRST, start, bytes(end - start))

    log = reopen(disk)

    assert not log.recovery.is_damaged
    assert read_all(log) == written[:6]
    assert log.recovery.cut_bytes > 0
    assert str(position) in (log.recovery.cut_reason or "")
    assert len(disk.content(FIRST)) == position


def test_what_was_cut_cannot_follow_on_from_what_is_appended_later(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 10)
    disk.flip(FIRST, position_of(written, 6))
    log = reopen(disk)
    written[6:] = append_some(log, 1)  # As long as the one that was cut.

    log = reopen(disk)

    assert read_all(log) == written[:7]


def test_an_old_batch_that_does_not_follow_on_is_not_taken_for_the_next(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 3, term=5)
    for stale in (make_batch(7, term=5), make_batch(2, term=5), make_batch(3, term=4)):
        disk.overwrite(FIRST, position_of(written, 3), batch_bytes(stale))

        log = reopen(disk)

        assert log.end_offset == 3
        assert not log.recovery.is_damaged


def test_a_segment_that_was_never_finished_is_removed(disk: SimulatedFileSystem, log: Log) -> None:
    written = append_some(log, 3)
    for name in (f"{3:020}.log.tmp", f"{3:020}.log.index"):
        disk.open(f"{DIRECTORY}/{name}", create=True).pwritev([b"half"], 0)

    log = reopen(disk)

    assert read_all(log) == written
    assert disk.list_directory(DIRECTORY) == [f"{0:020}.log"]


def test_an_empty_newest_segment_is_where_the_log_goes_on(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 3, term=4)
    log.roll()

    log = reopen(disk)
    assert (log.end_offset, log.last_term, log.segment_bases) == (3, 4, (0, 3))

    written += append_some(log, 1, term=4)
    assert read_all(log) == written


# --- below the mark ---------------------------------------------------------------------


def marked_log(log: Log, count: int) -> list[bytes]:
    """Batches that the mark covers."""
    written = append_some(log, count, term=3)
    log.sync(Offset(count))
    log.sync_mark(Offset(count))
    return written


def assert_damaged(log: Log, readable: list[bytes]) -> None:
    assert log.recovery.is_damaged
    assert read_all(log) == readable
    with pytest.raises(StorageFailedError, match="damaged"):
        log.append([make_batch(log.end_offset, term=9)])
    with pytest.raises(StorageFailedError, match="damaged"):
        log.sync(Offset(0))


def test_a_log_that_ends_below_its_mark_is_damaged_and_not_shortened_further(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = marked_log(log, 10)
    disk.kill()
    disk.open(FIRST).truncate(position_of(written, 7) + 5)
    before = disk.content(FIRST)

    log = reopen(disk)

    assert_damaged(log, written[:7])
    assert log.mark == SyncedMark(Term(3), Offset(10), Offset(10))
    log.close()
    assert disk.content(FIRST) == before


def test_zeros_where_the_mark_promises_batches_are_damage(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = marked_log(log, 10)
    disk.overwrite(FIRST, position_of(written, 9), bytes(len(written[9])))

    assert_damaged(reopen(disk), written[:9])


@pytest.mark.parametrize("number", [0, 4])
def test_a_batch_in_anothers_place_below_the_mark_is_damage(
    disk: SimulatedFileSystem, log: Log, number: int
) -> None:
    """Each is intact; a disk that wrote one of them to the wrong place is found out."""
    written = marked_log(log, 10)
    disk.overwrite(FIRST, position_of(written, number), written[number + 1])

    log = reopen(disk)

    assert f"a batch at offset {number + 1} of term 3" in log.recovery.damage[0]
    assert f"expected offset {number} of term" in log.recovery.damage[0]
    assert_damaged(log, written[:number])


@pytest.mark.parametrize(("term", "end"), [(4, 10), (3, 11)])
def test_batches_that_are_not_those_of_which_the_mark_speaks_are_damage(
    disk: SimulatedFileSystem, log: Log, term: int, end: int
) -> None:
    """What a truncation was followed by never reached the disk, and the old batches fit as well."""
    written = marked_log(log, 10)
    said = MarkSlot(9, Term(term), Offset(end), FilePosition(position_of(written, 10)), Offset(0))
    disk.kill()
    write_mark(disk.open(FIRST), said, IDENTITY.group)

    log = reopen(disk)

    expected = f"ends at offset 10 in term 3, the mark says offset {end} in term {term}"
    assert expected in log.recovery.damage[0]
    assert_damaged(log, written)


def test_index_rows_that_name_no_batch_are_built_anew(disk: SimulatedFileSystem, log: Log) -> None:
    """Of an index that a crash left from before a truncation only the last row may be wrong."""
    append_some(log, 40, term=3)
    log.close()
    names = [FIRST.replace(".log", ".log" + suffix) for suffix in (OFFSET_SUFFIX, TIME_SUFFIX)]
    stale = [disk.content(name) for name in names]
    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)
    log.truncate(Offset(5))
    append_some(log, 40, term=4, value=b"of another length")
    log.sync(Offset(45))
    log.sync_mark(Offset(45))
    written = read_all(log)
    disk.kill()
    assert not any(map(disk.exists, names)), "a truncation leaves no index behind"
    for name, content in zip(names, stale, strict=True):
        disk.open(name, create=True).pwritev([content], 0)

    log = reopen(disk)

    assert not log.recovery.is_damaged
    assert read_all(log) == written
    for offset in range(45):
        assert read_all(log, Offset(offset))[0] == written[offset]
    disk.crash(random.Random(1))
    assert not any(map(disk.exists, names)), "beside the batches that follow they may look right"


def test_rot_deep_below_the_mark_is_found_when_it_is_read(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = marked_log(log, 10)
    disk.flip(FIRST, position_of(written, 5) - 1)

    log = reopen(disk)

    assert not log.recovery.is_damaged
    with pytest.raises(CorruptionError, match=rf"position {position_of(written, 4)}"):
        log.read(Offset(4), Offset(10), 1000, cached_only=False)
    assert read_all(log, Offset(5)) == written[5:]


def test_one_rotten_mark_slot_falls_back_to_the_other(disk: SimulatedFileSystem, log: Log) -> None:
    written = marked_log(log, 10)

    for position in SLOT_POSITIONS:
        disk.flip(FIRST, position + 20)
        log = reopen(disk)
        assert not log.recovery.is_damaged
        assert read_all(log) == written
        append_some(log, 1, term=3)
        log.sync(Offset(0))
        log.sync_mark(Offset(0))
        written = read_all(log)


def test_a_lost_mark_is_reported_and_the_whole_segment_is_scanned(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = marked_log(log, 10)
    for position in SLOT_POSITIONS:
        disk.overwrite(FIRST, position, b"\xff" * 48)

    log = reopen(disk)

    assert log.recovery.mark_lost
    assert log.mark is None
    assert log.recovery.scanned_bytes == sum(map(len, written))
    assert_damaged(log, written)


def test_a_file_that_is_cut_short_while_it_is_recovered_is_an_error(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 20)
    disk.kill()

    def cut(operation: str, path: str) -> None:
        if operation == "write" and path == FIRST:  # All has been scanned by then.
            disk.on_operation = None
            disk.open(FIRST).truncate(SEGMENT_HEADER_BYTES + 200)

    disk.on_operation = cut

    with pytest.raises(CorruptionError, match="cut short"):
        Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)


def test_the_file_of_another_segment_says_nothing_about_this_one(
    disk: SimulatedFileSystem, log: Log
) -> None:
    """Its mark neither, although that is intact: it would promise too little, or too much."""
    append_some(log, 20)
    log.sync(Offset(0))
    log.roll()
    append_some(log, 3)
    log.sync(Offset(0))
    log.sync_mark(Offset(0))
    disk.kill()
    active = f"{DIRECTORY}/{20:020}.log"
    disk.overwrite(active, 0, disk.content(FIRST))

    log = Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    assert log.recovery.is_damaged
    assert log.mark is None


def test_a_missing_segment_is_damage(disk: SimulatedFileSystem, log: Log) -> None:
    for _ in range(3):
        append_some(log, 5)
        log.roll()
    disk.kill()
    disk.remove(f"{DIRECTORY}/{5:020}.log")

    log = reopen(disk)

    assert log.recovery.is_damaged
    assert "the next segment begins at 10" in log.recovery.damage[0]
    found = log.read(Offset(0), Offset(15), 10_000, cached_only=False)
    assert found is not None
    assert len(found) == 5
    with pytest.raises(CorruptionError):
        log.read(Offset(5), Offset(15), 10_000, cached_only=False)


def test_a_segment_that_follows_another_term_than_the_one_before_it_ends_in_is_damage(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 5, term=3)
    log.roll()
    disk.kill()
    Log.create(disk, "/another", IDENTITY, OPTIONS, Offset(5), Term(2))
    name = f"{5:020}.log"
    disk.overwrite(f"{DIRECTORY}/{name}", 0, disk.content(f"/another/{name}"))

    log = reopen(disk)

    assert log.recovery.damage == (f"{FIRST} ends in term 3, the next segment follows term 2",)


def test_a_missing_newest_segment_is_damage_that_nobody_can_mend(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(2):
        append_some(log, 5)
        log.roll()
    append_some(log, 5)
    log.sync(Offset(0))
    disk.kill()
    disk.remove(f"{DIRECTORY}/{10:020}.log")

    log = reopen(disk)

    gone = f"{DIRECTORY}/{5:020}.log: the segment that followed it, from offset 10, is gone"
    assert log.recovery.damage == (gone,)
    assert survey_log(disk, DIRECTORY, IDENTITY).beyond_repair == gone
    assert check_chain(find_segments(disk, DIRECTORY)) == [gone]
    assert check_chain(find_segments(disk, FIRST)) == []
    assert check_chain(find_segments(disk, f"{DIRECTORY}/{5:020}.log")) == []
    with pytest.raises(StorageFailedError, match="is gone"):
        append_some(log, 1)


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("offset", [3, 5, 7])
def test_a_truncation_over_borders_that_a_crash_cuts_off_leaves_no_damage(
    power: bool, offset: int
) -> None:
    steps, was_cut_off = 0, True
    while was_cut_off:
        for seed in range(10 if power else 1):
            rng = random.Random(seed)
            disk = SimulatedFileSystem(rng)
            log = Log.create(disk, DIRECTORY, IDENTITY, OPTIONS)
            for _ in range(3):
                append_some(log, 5)
                log.roll()
            append_some(log, 5)
            log.sync(Offset(0))
            if rng.random() < 0.5:  # As time does: what sealed segments say is durable.
                for name in disk.list_directory(DIRECTORY):
                    disk.open(f"{DIRECTORY}/{name}").sync()
            with disk.dying_after(steps) as life:
                log.truncate(Offset(offset))
            was_cut_off = life.was_cut_off
            disk.crash(rng) if power else disk.kill()

            log = reopen(disk)

            assert not log.recovery.is_damaged, (steps, seed, log.recovery)
            assert log.end_offset >= offset
            assert was_cut_off or log.end_offset == offset
            append_some(log, 3)
            log.roll()
            disk.kill()
            assert not reopen(disk).recovery.is_damaged
        steps += 1
    assert steps > 10


def test_a_log_that_goes_on_behind_a_truncation_is_followed_by_nothing_yet(
    disk: SimulatedFileSystem, log: Log
) -> None:
    append_some(log, 5)
    log.roll()
    append_some(log, 2)
    log.sync(Offset(0))
    log.truncate(Offset(4))
    append_some(log, 1)
    log.close()

    assert not reopen(disk).recovery.is_damaged


def test_a_sealed_segment_cut_short_is_damage(disk: SimulatedFileSystem, log: Log) -> None:
    append_some(log, 5)
    log.roll()
    disk.kill()
    file = disk.open(FIRST)
    file.truncate(file.size() - 1)

    assert reopen(disk).recovery.is_damaged


def test_sealed_segments_are_not_scanned_however_many_there_are(
    disk: SimulatedFileSystem, log: Log
) -> None:
    for _ in range(20):
        append_some(log, 5)
        log.roll()
    disk.kill()
    operations: list[str] = []
    disk.on_operation = lambda operation, path: operations.append(f"{operation} {path[-24:]}")

    Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)

    assert max(operations.count(f"read {base:020}.log") for base in range(0, 100, 5)) == 1


# --- a failed sync, and a life after it -------------------------------------------------


def test_what_an_earlier_life_failed_to_sync_is_durable_once_recovery_reports_it(
    disk: SimulatedFileSystem, log: Log
) -> None:
    # The cache shows what the disk does not have, and a plain sync would not write it.
    for seed in range(20):
        append_some(log, 5)

        def fail(operation: str, _: str) -> None:
            if operation == "sync":
                raise OSError(5, "Input/output error")

        disk.on_operation = fail
        with pytest.raises(StorageFailedError):
            log.sync(Offset(0))
        disk.on_operation = None
        log = reopen(disk)
        reported = read_all(log)

        disk.crash(random.Random(seed))

        log = reopen(disk)
        assert not log.recovery.is_damaged
        assert read_all(log) == reported


def test_a_segment_whose_name_was_not_synced_before_a_kill_does_not_vanish_later(
    disk: SimulatedFileSystem, log: Log
) -> None:
    written = append_some(log, 3)

    def stop(operation: str, _: str) -> None:
        if operation == "sync_directory":
            raise EndOfLifeError

    disk.on_operation = stop
    with pytest.raises(EndOfLifeError):
        log.roll()
    disk.on_operation = None
    log = reopen(disk)
    assert log.segment_bases == (0, 3)
    written += append_some(log, 2)
    log.sync(Offset(0))

    disk.crash(random.Random(2))  # Of names that are not durable this keeps none.

    assert read_all(reopen(disk)) == written


# --- the power goes, anywhere -----------------------------------------------------------


class Life:
    """A log under a random workload, on a disk that is about to lose power.

    Keeps the books: what was promised, and what else may legally be found.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{seed}:workload")
        self.disk = SimulatedFileSystem(random.Random(f"{seed}:disk"))
        self.options = LogOptions(
            segment_bytes=self.rng.choice((2, 8, 64)) * KIB,
            index_interval_bytes=self.rng.choice((1, 300, 4096)),
            allocate_bytes=self.rng.choice((1, 64)) * KIB,
        )
        self.is_faulty = self.rng.random() < 0.4
        self.batches: list[bytes] = []  # Of one record each: the offset is the place.
        self.also_legal: list[bytes] = []  # The end before a truncation that was cut off.
        self.promised_end = 0
        self.commit_offset = 0
        self.term = 1
        self.vote: tuple[int, int | None] = (0, None)
        self.vote_in_doubt: tuple[int, int | None] = (0, None)
        Log.create(self.disk, DIRECTORY, IDENTITY, self.options)
        HardStateFile.create(self.disk, f"{DIRECTORY}/hard_state", IDENTITY)
        self.disk.kill()

    def run(self) -> None:
        """Live until the power goes or the disk fails."""
        self._end_after(self.rng.choice((4, 20, 80, 250)))
        try:
            self._open()
            while True:
                self._step()
        except EndOfLifeError:
            pass
        except LogdError:
            assert self.is_faulty
        self.disk.on_operation = None
        if self.rng.random() < 0.6:
            self.disk.crash(self.rng)
        else:
            self.disk.kill()

    def check(self) -> None:
        """Open in peace and compare with the books."""
        log = Log.open(self.disk, DIRECTORY, IDENTITY, self.options)
        assert not log.recovery.is_damaged, log.recovery
        found = read_all(log, bytes_max=self.rng.choice((1, 5000)))
        assert len(found) >= self.promised_end
        assert found[: self.promised_end] == self.batches[: self.promised_end]
        for legal in (self.batches, self.also_legal):
            if found == legal[: len(found)]:
                break
        else:
            raise AssertionError("a batch was found that was never appended there")
        assert log.mark is not None
        assert log.mark.commit_offset <= self.commit_offset
        hard_state = HardStateFile.open(self.disk, f"{DIRECTORY}/hard_state", IDENTITY)
        assert hard_state.load() in (self.vote, self.vote_in_doubt)
        self._note_opened(log, hard_state, found)
        fresh = make_batch(log.end_offset, term=self.term, value=self._value())
        log.append([fresh])
        self.batches.append(batch_bytes(fresh))
        self.disk.kill()

    def _open(self) -> None:
        self.log = Log.open(self.disk, DIRECTORY, IDENTITY, self.options)
        self.hard_state = HardStateFile.open(self.disk, f"{DIRECTORY}/hard_state", IDENTITY)
        self._note_opened(self.log, self.hard_state, read_all(self.log))

    def _note_opened(self, log: Log, hard_state: HardStateFile, found: list[bytes]) -> None:
        assert found[: self.promised_end] == self.batches[: self.promised_end]
        self.batches = found
        self.also_legal = []
        self.promised_end = len(found)  # Recovery synced it.
        self.term = max(self.term, log.last_term)
        self.vote = self.vote_in_doubt = hard_state.load()

    def _step(self) -> None:
        choice = self.rng.random()
        if choice < 0.5:
            self._append()
        elif choice < 0.75:
            self.promised_end, _ = self.log.sync(self._committed())
        elif choice < 0.8:
            self.log.sync_mark(self._committed())
        elif choice < 0.86:
            self._truncate()
        elif choice < 0.92:
            self._vote()
        elif choice < 0.95:
            self.log.close()
            self.disk.kill()
            self._open()
        if self.log.needs_roll:
            self.log.roll()
            self.promised_end = len(self.batches)

    def _append(self) -> None:
        self.term += self.rng.random() < 0.2
        group = []
        for _ in range(self.rng.randint(1, 4)):
            group.append(make_batch(len(self.batches), term=self.term, value=self._value()))
            self.batches.append(batch_bytes(group[-1]))
        self.log.append(group)

    def _value(self) -> bytes:
        # Often of one length: what was cut off would then lie just where it could follow on.
        return self.rng.randbytes(self.rng.choice((400, 400, 400, 30, 3000)))

    def _truncate(self) -> None:
        offset = self.rng.randint(self.commit_offset, len(self.batches))
        self.also_legal = self.batches
        self.batches = self.batches[:offset]
        self.promised_end = min(self.promised_end, offset)
        self.log.truncate(Offset(offset))
        self.also_legal = []
        self.term += 1

    def _vote(self) -> None:
        term = self.vote[0] + 1
        self.vote_in_doubt = (term, self.rng.choice((None, 1, 2, 3)))
        voted_for = self.vote_in_doubt[1]
        self.hard_state.save(Term(term), None if voted_for is None else NodeId(voted_for))
        self.vote = self.vote_in_doubt

    def _committed(self) -> Offset:
        self.commit_offset = self.rng.randint(self.commit_offset, self.promised_end)
        return Offset(self.commit_offset)

    def _end_after(self, changes_max: int) -> None:
        """Let the life end after a number of changes to the disk, perhaps failing one before."""
        left = self.rng.randint(1, changes_max)
        fails = {"write": 0.02, "sync": 0.1, "sync_directory": 0.1} if self.is_faulty else {}

        def before(operation: str, path: str) -> None:
            nonlocal left
            if operation in ("size", "read", "map", "open", "list"):
                return
            left -= 1
            if left <= 0:
                raise EndOfLifeError
            if self.rng.random() < fails.get(operation, 0.0):
                raise OSError(5, "Input/output error", path)

        self.disk.on_operation = before


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_nothing_promised_is_lost_and_nothing_else_is_found(first: int) -> None:
    for seed in range(first, first + 30):
        try:
            life = Life(seed)
            for _ in range(4):
                life.run()
                life.check()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
