"""What ``bench`` computes: exact percentiles, and processor time per million records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

PERMILLE_P50: Final = 500
PERMILLE_P99: Final = 990
PERMILLE_P999: Final = 999


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    p50: float
    p99: float
    p999: float
    max: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark's result, as ``--output json`` has it."""

    bench: str
    records: int
    seconds: float
    records_per_s: float
    mb_per_s: float
    """Megabytes (10^6 bytes) of values per second."""
    latency_ms: Latency
    cpu_s_per_million: float
    """Processor seconds of all processes that took part, per million records."""
    settings: dict[str, object]


def percentile(sorted_values: Sequence[float], permille: int) -> float:
    """The smallest value that at least ``permille`` of a thousand do not exceed.

    Nearest rank: always a value that was measured, never one between two.
    """
    assert sorted_values
    assert 0 < permille <= 1000
    rank = math.ceil(len(sorted_values) * permille / 1000)
    return sorted_values[rank - 1]


def latency_of(seconds: Sequence[float]) -> Latency:
    """Percentiles of measured times, in milliseconds."""
    ordered = sorted(seconds)

    def at(permille: int) -> float:
        return round(percentile(ordered, permille) * 1000, 3)

    return Latency(p50=at(PERMILLE_P50), p99=at(PERMILLE_P99), p999=at(PERMILLE_P999), max=at(1000))


def measurement(
    bench: str,
    *,
    records: int,
    record_bytes: int,
    seconds: float,
    latencies_s: Sequence[float],
    cpu_s: float,
    settings: dict[str, object],
) -> Measurement:
    """Put the figures of one run together."""
    assert records > 0
    assert seconds > 0
    return Measurement(
        bench=bench,
        records=records,
        seconds=round(seconds, 3),
        records_per_s=round(records / seconds, 1),
        mb_per_s=round(records * record_bytes / seconds / 1e6, 3),
        latency_ms=latency_of(latencies_s),
        cpu_s_per_million=round(cpu_s * 1e6 / records, 3),
        settings=settings,
    )
