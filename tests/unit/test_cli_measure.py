"""Percentiles are values that were measured: nearest rank, nothing in between."""

from __future__ import annotations

import pytest

from logd.cli.measure import latency_of, measurement, percentile


@pytest.mark.parametrize(("permille", "value"), [(500, 50), (990, 99), (999, 100), (1000, 100)])
def test_nearest_rank_of_one_to_a_hundred(permille: int, value: int) -> None:
    assert percentile(range(1, 101), permille) == value


def test_one_value_is_every_percentile() -> None:
    latency = latency_of([0.002])

    assert (latency.p50, latency.p99, latency.p999, latency.max) == (2.0, 2.0, 2.0, 2.0)


def test_rates_count_values_and_processor_time_counts_per_million() -> None:
    found = measurement(
        "produce",
        records=2_000_000,
        value_bytes=200_000_000,
        seconds=4.0,
        latencies_s=[0.003, 0.001, 0.002],
        cpu_s=6.0,
        settings={},
    )

    assert found.records_per_s == 500_000
    assert found.mb_per_s == 50
    assert found.cpu_s_per_million == 3
    assert found.latency_ms.p50 == 2.0
