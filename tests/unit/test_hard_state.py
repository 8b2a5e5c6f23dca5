"""A vote that was saved is never forgotten; one that may have been hidden by damage is not
guessed at."""

from __future__ import annotations

import random

import pytest

from logd.errors import CorruptionError, ForeignDirectoryError, StorageError, StorageFailedError
from logd.storage.file_header import LogIdentity
from logd.storage.hard_state import (
    BLOCK_BYTES,
    COPY_POSITIONS,
    FILE_BYTES,
    MEMORY_LOST,
    SLOT_POSITIONS,
    HardStateFile,
    boot_number,
)
from logd.types import GroupId, NodeId, Term
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import IDENTITY

PATH = "/data/hard_state"
BOOT = boot_number("this boot")
OTHER_BOOT = boot_number("one before")


@pytest.fixture
def disk() -> SimulatedFileSystem:
    disk = SimulatedFileSystem(random.Random(1))
    disk.make_directory("/data")
    disk.sync_directory("/")
    return disk


def reopen(disk: SimulatedFileSystem) -> HardStateFile:
    return HardStateFile.open(disk, PATH, IDENTITY)


def test_a_new_node_is_in_term_0_and_has_not_voted(disk: SimulatedFileSystem) -> None:
    HardStateFile.create(disk, PATH, IDENTITY)

    disk.crash(random.Random(1))

    assert reopen(disk).load() == (0, None)
    assert len(disk.content(PATH)) == FILE_BYTES


def test_a_newcomer_keeps_what_was_promised_before_and_is_one_until_it_says_otherwise(
    disk: SimulatedFileSystem,
) -> None:
    HardStateFile.create(disk, PATH, IDENTITY, (Term(7), NodeId(2)))
    disk.crash(random.Random(1))
    newcomer = reopen(disk)
    assert (newcomer.load(), newcomer.is_newcomer) == ((7, 2), True)
    newcomer.save(Term(8), None, is_newcomer=True)
    assert reopen(disk).is_newcomer

    newcomer.save(Term(8), NodeId(3))

    disk.crash(random.Random(1))
    assert not reopen(disk).is_newcomer


def test_what_was_saved_last_survives_a_power_cut(disk: SimulatedFileSystem) -> None:
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)
    for term in range(1, 20):
        voted_for = NodeId(term % 3) or None
        hard_state.save(Term(term), voted_for)
        disk.crash(random.Random(term))

        hard_state = reopen(disk)

        assert hard_state.load() == (term, voted_for)


def test_a_save_that_was_interrupted_leaves_the_old_state_or_the_new_one(
    disk: SimulatedFileSystem,
) -> None:
    seen: set[tuple[Term, NodeId | None]] = set()
    for seed in range(40):
        HardStateFile.create(disk, PATH, IDENTITY).save(Term(4), NodeId(1))
        hard_state = reopen(disk)

        def stop(operation: str, _: str) -> None:
            if operation == "sync":
                raise KeyboardInterrupt

        disk.on_operation = stop
        with pytest.raises(KeyboardInterrupt):
            hard_state.save(Term(5), NodeId(2))
        disk.on_operation = None
        disk.crash(random.Random(seed))

        seen.add(reopen(disk).load())
        disk.remove(PATH)

    assert seen == {(4, 1), (5, 2)}


def test_the_state_before_is_intact_while_the_next_is_written(disk: SimulatedFileSystem) -> None:
    """Whatever becomes of the block that is being written, the other one is not touched."""
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)
    written: list[list[int]] = []
    for term in range(1, 5):
        before = disk.content(PATH)
        hard_state.save(Term(term), NodeId(1))
        after = disk.content(PATH)
        blocks = range(0, FILE_BYTES, BLOCK_BYTES)
        written.append([at for at in blocks if block(before, at) != block(after, at)])

    first, second = SLOT_POSITIONS
    assert written == [[first], [second], [first], [second]]


def block(content: bytes, position: int) -> bytes:
    return content[position : position + BLOCK_BYTES]


def test_one_rotten_copy_in_each_slot_hides_nothing(disk: SimulatedFileSystem) -> None:
    HardStateFile.create(disk, PATH, IDENTITY).save(Term(4), NodeId(1))

    disk.flip(PATH, SLOT_POSITIONS[0] + COPY_POSITIONS[0] + 20)
    disk.flip(PATH, SLOT_POSITIONS[1] + COPY_POSITIONS[1] + 20)

    assert reopen(disk).load() == (4, 1)


@pytest.mark.parametrize("slot", SLOT_POSITIONS)
def test_a_slot_without_an_intact_copy_may_hide_a_vote_and_is_refused(
    disk: SimulatedFileSystem, slot: int
) -> None:
    HardStateFile.create(disk, PATH, IDENTITY).save(Term(4), NodeId(1))

    for copy in COPY_POSITIONS:
        disk.flip(PATH, slot + copy + 20)

    with pytest.raises(CorruptionError, match="must not vote again"):
        reopen(disk)


def test_every_flipped_bit_of_the_copies_and_the_header_is_harmless_or_refused(
    disk: SimulatedFileSystem,
) -> None:
    HardStateFile.create(disk, PATH, IDENTITY).save(Term(4), NodeId(1))
    before = disk.content(PATH)
    for position in range(0, FILE_BYTES, 7):
        disk.flip(PATH, position, position % 8)
        try:
            assert reopen(disk).load() == (4, 1)
        except CorruptionError:
            assert position < 128
        disk.overwrite(PATH, 0, before)


def test_a_file_that_was_cut_short_is_refused(disk: SimulatedFileSystem) -> None:
    HardStateFile.create(disk, PATH, IDENTITY)
    for size in (0, 100, 4096, 8191, 8192 + 500):
        disk.open(PATH).truncate(size)

        with pytest.raises(CorruptionError, match="hard_state"):
            reopen(disk)


def test_a_failed_save_is_not_tried_again(disk: SimulatedFileSystem) -> None:
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)

    def fail(operation: str, _: str) -> None:
        if operation == "sync":
            raise OSError(5, "Input/output error")

    disk.on_operation = fail
    with pytest.raises(StorageFailedError, match="Input/output error"):
        hard_state.save(Term(1), NodeId(1))
    disk.on_operation = None

    assert hard_state.load() == (0, None)
    with pytest.raises(StorageFailedError, match="failed before"):
        hard_state.save(Term(1), NodeId(1))


def test_terms_never_go_back_and_votes_never_change(disk: SimulatedFileSystem) -> None:
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)
    hard_state.save(Term(3), None)
    hard_state.save(Term(3), NodeId(2))

    for term, voted_for in ((2, None), (3, 1), (3, None)):
        with pytest.raises(AssertionError):
            hard_state.save(Term(term), NodeId(voted_for) if voted_for else None)


def test_the_hard_state_of_another_group_is_refused(disk: SimulatedFileSystem) -> None:
    HardStateFile.create(disk, PATH, IDENTITY)
    other = LogIdentity(IDENTITY.directory, IDENTITY.node, GroupId(8))

    with pytest.raises(ForeignDirectoryError, match="group 7"):
        HardStateFile.open(disk, PATH, other)


def test_a_missing_file_is_not_a_new_one(disk: SimulatedFileSystem) -> None:
    with pytest.raises(StorageError, match="No such file"):
        reopen(disk)


def test_what_rests_on_memory_rests_on_the_disk_after_a_clean_end(
    disk: SimulatedFileSystem,
) -> None:
    hard_state = HardStateFile.create(disk, PATH, IDENTITY, (Term(3), NodeId(2)))
    hard_state.save(Term(3), NodeId(2), is_newcomer=True, rests_on=BOOT)

    hard_state.rest_on_disk(BOOT)

    disk.crash(random.Random(1))
    found = reopen(disk)
    assert (found.load(), found.is_newcomer, found.rests_on) == ((3, 2), True, 0)


def test_a_log_that_failed_is_not_vouched_for_by_this_boot_or_another(
    disk: SimulatedFileSystem,
) -> None:
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)
    hard_state.save(Term(3), NodeId(2), rests_on=BOOT)

    hard_state.lose_memory(BOOT)

    disk.crash(random.Random(1))
    found = reopen(disk)
    assert (found.load(), found.rests_on) == ((3, 2), MEMORY_LOST)
    found.rest_on_disk(BOOT)  # Nothing that is written now gives it back.
    assert reopen(disk).rests_on == MEMORY_LOST


@pytest.mark.parametrize("rests_on", [0, MEMORY_LOST, OTHER_BOOT])
def test_what_another_boot_left_open_stays_open(disk: SimulatedFileSystem, rests_on: int) -> None:
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)
    hard_state.save(Term(3), NodeId(2), rests_on=rests_on)

    hard_state.rest_on_disk(BOOT)
    hard_state.lose_memory(BOOT)

    assert hard_state.rests_on == rests_on
    assert reopen(disk).rests_on == rests_on


def test_what_rests_on_no_memory_has_none_to_lose(disk: SimulatedFileSystem) -> None:
    """Where the boot is not known nothing is acknowledged from memory."""
    hard_state = HardStateFile.create(disk, PATH, IDENTITY)

    hard_state.lose_memory(0)

    assert hard_state.rests_on == reopen(disk).rests_on == 0
