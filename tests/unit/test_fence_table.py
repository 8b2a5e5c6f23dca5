"""Nobody who was replaced gets past the fence, not even when it was forgotten."""

import pytest

from logd.errors import CorruptionError, FencedError
from logd.limits import FENCES_PER_PARTITION_MAX
from logd.partition.fences import FenceTable
from logd.wire.coordination import fence_id_of

LOCK = 5


def test_an_unused_fence_admits_any_token() -> None:
    FenceTable().check(LOCK, 0)


def test_the_newest_token_and_newer_ones_are_admitted() -> None:
    table = FenceTable()
    table.raise_to(LOCK, 10)

    table.check(LOCK, 10)
    table.check(LOCK, 11)


def test_an_older_token_is_refused_with_both_tokens() -> None:
    table = FenceTable()
    table.raise_to(LOCK, 10)

    with pytest.raises(FencedError, match="fence 5 stands at token 10, found 9"):
        table.check(LOCK, 9)


def test_each_holder_shuts_out_the_one_before_it() -> None:
    table = FenceTable()
    for token in (10, 11, 20):
        table.check(LOCK, token)
        table.raise_to(LOCK, token)

        with pytest.raises(FencedError, match=f"stands at token {token}, found {token - 1}"):
            table.check(LOCK, token - 1)


def test_a_fence_is_never_lowered() -> None:
    table = FenceTable()
    table.raise_to(LOCK, 10)

    table.raise_to(LOCK, 3)

    assert table.rows() == [(LOCK, 10)]


def test_fences_do_not_see_each_other() -> None:
    table = FenceTable()
    table.raise_to(LOCK, 10)

    table.check(LOCK + 1, 1)


def test_a_fence_that_was_forgotten_still_shuts_out_who_was_replaced() -> None:
    table = FenceTable()
    table.raise_to(LOCK, 10)
    for other in range(FENCES_PER_PARTITION_MAX):
        table.raise_to(1_000 + other, 20)

    assert len(table) == FENCES_PER_PARTITION_MAX
    assert table.floors[0] == (LOCK, 10)
    table.check(LOCK, 10)
    with pytest.raises(FencedError, match="take the lock again"):
        table.check(LOCK, 9)


def test_the_fence_that_was_not_used_longest_is_forgotten() -> None:
    table = FenceTable()
    for fence in range(1, FENCES_PER_PARTITION_MAX + 1):
        table.raise_to(fence, fence)
    table.raise_to(1, 1)

    table.raise_to(99_999, 50_000)

    kept = [fence for fence, _ in table.rows()]
    assert kept[0] == 3
    assert kept[-2:] == [1, 99_999]
    assert table.floors == [(2, 2)]


def test_a_restored_table_is_the_same() -> None:
    table = FenceTable()
    for fence in (3, 1, 2, 3):
        table.raise_to(fence, fence)

    restored = FenceTable.from_rows(table.rows(), floors=[(1, 7), (255, 9)])

    assert restored.rows() == table.rows() == [(1, 1), (2, 2), (3, 3)]
    assert restored.floors == [(1, 7), (255, 9)]


def test_a_fence_listed_twice_is_corruption() -> None:
    with pytest.raises(CorruptionError, match="each once"):
        FenceTable.from_rows([(1, 1), (1, 2)], floors=[])
    for floors in ([(1, 1), (1, 2)], [(256, 1)]):
        with pytest.raises(CorruptionError, match="floors"):
            FenceTable.from_rows([], floors=floors)


def test_tokens_of_namespaces_in_other_partitions_are_not_held_against_a_fence() -> None:
    """Its own partition may have given out far smaller ones, and getting the lock again would
    not change that."""
    busy, quiet = fence_id_of("busy", "queue", "work/1"), fence_id_of("quiet", "lock", "nightly")
    assert busy % 256 != quiet % 256
    table = FenceTable()
    for item in range(FENCES_PER_PARTITION_MAX + 1):
        table.raise_to(fence_id_of("busy", "queue", f"work/{item}"), 1_000_000 + item)

    table.check(quiet, 5)
    with pytest.raises(FencedError, match="forgotten"):
        table.check(fence_id_of("busy", "lock", "nightly"), 999_999)
