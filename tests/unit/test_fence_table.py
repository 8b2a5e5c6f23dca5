"""Nobody who was replaced gets past the fence, not even when it was forgotten."""

import pytest

from logd.errors import CorruptionError, FencedError
from logd.limits import FENCES_PER_PARTITION_MAX
from logd.partition.fences import FenceTable

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
    assert table.floor == 10
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
    assert table.floor == 2


def test_a_restored_table_is_the_same() -> None:
    table = FenceTable()
    for fence in (3, 1, 2, 3):
        table.raise_to(fence, fence)

    restored = FenceTable.from_rows(table.rows(), floor=7)

    assert restored.rows() == table.rows() == [(1, 1), (2, 2), (3, 3)]
    assert restored.floor == 7


def test_a_fence_listed_twice_is_corruption() -> None:
    with pytest.raises(CorruptionError, match="each once"):
        FenceTable.from_rows([(1, 1), (1, 2)], floor=0)
