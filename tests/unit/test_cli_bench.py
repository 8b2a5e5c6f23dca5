"""How ``logd bench`` decides what is offered when, and what it is made of."""

from __future__ import annotations

import pytest

from logd.cli.benchmark.pace import CALLS_PER_S_MAX, pace_of
from logd.cli.benchmark.settings import Settings
from logd.cli.benchmark.values import CALL_BYTES, stamp_of, stamped, values_of_a_call


@pytest.mark.parametrize("rate", [1, 7, CALLS_PER_S_MAX, CALLS_PER_S_MAX + 1, 1_000_000])
def test_a_pace_offers_the_rate_in_few_enough_calls(rate: int) -> None:
    pace = pace_of(rate, records=10 * rate)

    assert pace.records_per_call / pace.interval_s == pytest.approx(rate)
    assert 1 / pace.interval_s <= CALLS_PER_S_MAX
    assert 10 * rate <= pace.calls * pace.records_per_call < 10 * rate + pace.records_per_call


def test_a_late_call_does_not_move_the_ones_behind_it() -> None:
    pace = pace_of(100, records=1000)

    assert [pace.due_s(call) for call in (0, 1, 500)] == [0, 0.01, 5]


def test_one_size_gives_values_of_that_size() -> None:
    values = values_of_a_call(Settings(brokers=None, records=1, record_bytes=1000))

    assert {len(value) for value in values} == {1000}
    assert sum(map(len, values)) == CALL_BYTES


def test_mixed_sizes_reach_from_one_bound_to_the_other_and_repeat() -> None:
    settings = Settings(brokers=None, records=1, record_bytes=10, record_bytes_max=10_000)

    values = values_of_a_call(settings)
    sizes = sorted(map(len, values))

    assert values == values_of_a_call(settings)
    assert 10 <= sizes[0] < 20
    assert 5_000 < sizes[-1] <= 10_000
    assert sizes[len(sizes) // 2] < 1_000  # Mostly small.


def test_a_record_larger_than_a_call_is_a_call_of_its_own() -> None:
    values = values_of_a_call(Settings(brokers=None, records=1, record_bytes=CALL_BYTES + 1))

    assert len(values) == 1


def test_a_stamp_is_read_back_and_sorts_by_time() -> None:
    early, late = stamped(b"v" * 20, 255), stamped(b"v" * 20, 256)

    assert (stamp_of(early), stamp_of(late)) == (255, 256)
    assert early < late
    assert len(early) == 20
