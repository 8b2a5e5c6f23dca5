"""The tail cache holds the newest batches of all groups within one bound in bytes."""

from __future__ import annotations

from logd.replication.tail_cache import ENTRY_OVERHEAD_BYTES, TailCache
from logd.storage.log import LogBatch
from logd.types import GroupId, Offset, Term

ONE = GroupId(1)
TWO = GroupId(2)
SIZE = 1000


def batch(base: int, end: int) -> LogBatch:
    return LogBatch(Offset(base), Offset(end), Term(1), 0, True, SIZE, (bytes(SIZE),))


def offsets(found: list[LogBatch] | None) -> list[tuple[int, int]] | None:
    return None if found is None else [(b.base_offset, b.end_offset) for b in found]


def cache_of(batches: int) -> TailCache:
    return TailCache(batches * (SIZE + ENTRY_OVERHEAD_BYTES))


def test_a_read_begins_with_the_batch_that_contains_the_offset() -> None:
    cache = cache_of(10)
    cache.add(ONE, [batch(0, 5), batch(5, 9), batch(9, 10)])

    assert offsets(cache.read(ONE, Offset(7), Offset(10), 10 * SIZE)) == [(5, 9), (9, 10)]


def test_a_read_stops_at_the_end_offset_it_was_given() -> None:
    cache = cache_of(10)
    cache.add(ONE, [batch(0, 5), batch(5, 9), batch(9, 10)])

    assert offsets(cache.read(ONE, Offset(0), Offset(9), 10 * SIZE)) == [(0, 5), (5, 9)]
    assert cache.read(ONE, Offset(0), Offset(4), 10 * SIZE) is None


def test_a_read_takes_at_least_one_batch_and_further_ones_while_they_fit() -> None:
    cache = cache_of(10)
    cache.add(ONE, [batch(0, 1), batch(1, 2), batch(2, 3)])

    assert offsets(cache.read(ONE, Offset(0), Offset(3), 1)) == [(0, 1)]
    assert offsets(cache.read(ONE, Offset(0), Offset(3), 2 * SIZE)) == [(0, 1), (1, 2)]


def test_the_oldest_batch_of_all_groups_is_evicted_first() -> None:
    cache = cache_of(2)
    cache.add(ONE, [batch(0, 1)])
    cache.add(TWO, [batch(0, 1)])
    cache.add(ONE, [batch(1, 2)])

    assert cache.read(ONE, Offset(0), Offset(2), SIZE) is None
    assert offsets(cache.read(ONE, Offset(1), Offset(2), SIZE)) == [(1, 2)]
    assert offsets(cache.read(TWO, Offset(0), Offset(1), SIZE)) == [(0, 1)]


def test_the_bound_holds_for_any_number_of_batches() -> None:
    cache = cache_of(100)
    for base in range(2_000):
        cache.add(ONE, [batch(base, base + 1)])
        assert cache.bytes <= 100 * (SIZE + ENTRY_OVERHEAD_BYTES)

    assert offsets(cache.read(ONE, Offset(1_999), Offset(2_000), SIZE)) == [(1_999, 2_000)]
    assert cache.read(ONE, Offset(1_899), Offset(2_000), SIZE) is None
    assert offsets(cache.read(ONE, Offset(1_900), Offset(2_000), SIZE)) == [(1_900, 1_901)]


def test_what_is_forgotten_can_be_appended_again_differently() -> None:
    cache = cache_of(10)
    cache.add(ONE, [batch(0, 5), batch(5, 9)])
    cache.add(TWO, [batch(0, 3)])

    cache.forget(ONE)
    cache.add(ONE, [batch(5, 7)])

    assert cache.read(ONE, Offset(0), Offset(9), SIZE) is None
    assert offsets(cache.read(ONE, Offset(5), Offset(9), SIZE)) == [(5, 7)]
    assert offsets(cache.read(TWO, Offset(0), Offset(9), SIZE)) == [(0, 3)]


def test_a_cache_of_no_bytes_holds_nothing() -> None:
    cache = TailCache(0)
    cache.add(ONE, [batch(0, 1)])

    assert cache.bytes == 0
    assert cache.read(ONE, Offset(0), Offset(1), SIZE) is None


def test_what_was_compacted_is_forgotten_and_the_rest_is_not() -> None:
    cache = cache_of(10)
    for base in range(4):
        cache.add(ONE, [batch(base, base + 1)])
        cache.add(TWO, [batch(base, base + 1)])

    cache.forget_below(ONE, Offset(2))

    assert cache.read(ONE, Offset(1), Offset(4), 10 * SIZE) is None
    assert offsets(cache.read(ONE, Offset(2), Offset(4), 10 * SIZE)) == [(2, 3), (3, 4)]
    assert offsets(cache.read(TWO, Offset(0), Offset(4), SIZE)) == [(0, 1)]
    assert cache.bytes == 6 * (SIZE + ENTRY_OVERHEAD_BYTES)

    cache.forget_below(ONE, Offset(4))
    cache.add(ONE, [batch(4, 5)])

    assert offsets(cache.read(ONE, Offset(4), Offset(5), SIZE)) == [(4, 5)]
    assert cache.bytes == 5 * (SIZE + ENTRY_OVERHEAD_BYTES)
    for base in range(5, 30):
        cache.add(ONE, [batch(base, base + 1)])
    assert offsets(cache.read(ONE, Offset(20), Offset(30), SIZE)) == [(20, 21)]
