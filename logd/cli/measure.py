"""What ``bench`` computes: percentiles, and processor time per million records.

Every latency of a run is kept, so the percentiles are exact.  The same latencies are also put
into an HdrHistogram, the form in which other tools take them and several runs can be added
up; for that the package ``hdrhistogram`` is needed (``pip install logd[report]``).
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

PERMILLE_P50: Final = 500
PERMILLE_P99: Final = 990
PERMILLE_P999: Final = 999
LADDER: Final = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999, 100)
"""Percentiles that a plot goes through."""

HISTOGRAM_LOWEST_US: Final = 1
HISTOGRAM_HIGHEST_US: Final = 3_600_000_000
HISTOGRAM_DIGITS: Final = 3


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    p50: float
    p99: float
    p999: float
    max: float


class BrokerUse(msgspec.Struct, frozen=True, kw_only=True):
    """What the measured part cost one broker."""

    id: int
    cpu_s_per_million: float
    anonymous_mb_max: float
    """Peak of its anonymous memory (RssAnon), in 10^6 bytes."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run was at one moment."""

    at_s: float
    records: int
    broker_cpu_s: dict[int, float]
    """Used since the measured part began, by node id."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cores: int
    load: float
    """Processes that wanted a core, mean of the minute before."""
    python: str
    system: str


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
    client_cpu_s_per_million: float = 0.0
    brokers: list[BrokerUse] = []
    append_latency_ms: Latency | None = None
    """End to end only: from a call being due to its acknowledgement."""
    delivered_records: int | None = None
    """End to end only: over all consumers."""
    delivery_cpu_s_per_million: float | None = None
    """End to end only: of the consumers' process, per million records delivered."""
    latency_percentiles: list[tuple[float, float]] = []
    """Percent and milliseconds."""
    latency_histogram: str | None = None
    """Microseconds, as an HdrHistogram (V2, compressed, base64)."""
    samples: list[Sample] = []
    machine: Machine | None = None


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


def ladder_of(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """The percentiles of ``LADDER``, in milliseconds, by nearest rank."""
    ordered = sorted(seconds)
    ranks = ((percent, math.ceil(len(ordered) * percent / 100)) for percent in LADDER)
    return [(percent, round(ordered[max(rank, 1) - 1] * 1000, 4)) for percent, rank in ranks]


def histogram_of(seconds: Iterable[float]) -> str | None:
    """The latencies as an encoded HdrHistogram; None without the package."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        return None
    histogram = HdrHistogram(HISTOGRAM_LOWEST_US, HISTOGRAM_HIGHEST_US, HISTOGRAM_DIGITS)
    for value in seconds:
        histogram.record_value(max(round(value * 1e6), HISTOGRAM_LOWEST_US))
    encoded: bytes = histogram.encode()
    return encoded.decode("ascii")


def this_machine() -> Machine:
    """Where this runs, and how busy it is."""
    return Machine(
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release().partition('-')[0]}",
    )


def measurement(
    bench: str,
    *,
    records: int,
    value_bytes: int,
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
        mb_per_s=round(value_bytes / seconds / 1e6, 3),
        latency_ms=latency_of(latencies_s),
        cpu_s_per_million=round(cpu_s * 1e6 / records, 3),
        settings=settings,
    )
