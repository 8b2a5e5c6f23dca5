"""What the disk path costs: append, sync, read, recovery, on the real file system.

The event loop pays for ``append`` and for reads of what is cached; the sync runs beside it.
Batches are 1,000 records of 100 bytes, 100 kB: at 2 M records/s the loop has 500 µs for each,
for everything.

    make bench-compare, or: pytest bench/test_storage_bench.py --benchmark-enable
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from logd.limits import MIB
from logd.record.batch import seal_batch
from logd.record.header import LEADER_PART_BYTES, leader_part
from logd.runtime.files import RealFileSystem
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogBatch, LogOptions
from logd.types import Buffer, NodeId, Offset, Term
from tests.support.logs import GROUP, IDENTITY

T = TypeVar("T")

RECORDS = 1000
SEALED = seal_batch(values=[bytes([n % 256]) * 100 for n in range(RECORDS)], timestamps_ms=1)
ONE = seal_batch(values=[b"v" * 100], timestamps_ms=1)


def batch_at(offset: int, sealed: Buffer = SEALED, records: int = RECORDS) -> LogBatch:
    part = leader_part(
        sealed, base_offset=Offset(offset), term=Term(1), append_time_ms=1, group=GROUP
    )
    return LogBatch(
        base_offset=Offset(offset),
        end_offset=Offset(offset + records),
        term=Term(1),
        append_time_ms=1,
        is_data=True,
        size_bytes=len(sealed),
        buffers=(part, memoryview(sealed)[LEADER_PART_BYTES:]),
    )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log.create(
        RealFileSystem(), f"{tmp_path}/log", IDENTITY, LogOptions(segment_bytes=512 * MIB)
    )


def run_rounds(
    benchmark: BenchmarkFixture, function: Callable[[], T], *, rounds: int, warmup_rounds: int = 0
) -> T:
    """As often as said, and not as often as fits a time: each round makes the log longer."""
    result: T = benchmark.pedantic(function, rounds=rounds, warmup_rounds=warmup_rounds)  # type: ignore[no-untyped-call]
    return result


@pytest.mark.parametrize("count", [1, 8])
def test_append_batches_of_100_kb(benchmark: BenchmarkFixture, log: Log, count: int) -> None:
    def append() -> None:
        base = log.end_offset
        log.append([batch_at(base + number * RECORDS) for number in range(count)])

    run_rounds(benchmark, append, rounds=200, warmup_rounds=20)


def test_append_one_small_batch(benchmark: BenchmarkFixture, log: Log) -> None:
    run_rounds(
        benchmark,
        lambda: log.append([batch_at(log.end_offset, ONE, 1)]),
        rounds=5000,
        warmup_rounds=100,
    )


def test_append_100_small_batches_at_once(benchmark: BenchmarkFixture, log: Log) -> None:
    def append() -> None:
        base = log.end_offset
        log.append([batch_at(base + number, ONE, 1) for number in range(100)])

    run_rounds(benchmark, append, rounds=500, warmup_rounds=10)


@pytest.mark.parametrize("count", [1, 8])
def test_append_and_sync(benchmark: BenchmarkFixture, log: Log, count: int) -> None:
    def append_and_sync() -> None:
        base = log.end_offset
        log.append([batch_at(base + number * RECORDS) for number in range(count)])
        log.sync(base)

    run_rounds(benchmark, append_and_sync, rounds=200, warmup_rounds=20)


def test_save_a_vote(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    hard_state = HardStateFile.create(RealFileSystem(), f"{tmp_path}/hard_state", IDENTITY)
    terms = itertools.count(1)

    run_rounds(benchmark, lambda: hard_state.save(Term(next(terms)), NodeId(1)), rounds=500)


@pytest.mark.parametrize("cached_only", [True, False])
def test_read_1_mib_of_large_batches(
    benchmark: BenchmarkFixture, log: Log, cached_only: bool
) -> None:
    for _ in range(100):
        log.append([batch_at(log.end_offset)])

    found = benchmark(
        lambda: log.read(Offset(50 * RECORDS), log.end_offset, 1 * MIB, cached_only=cached_only)
    )

    assert found is not None
    assert len(found) == 10


def test_read_one_small_batch_at_the_tail(benchmark: BenchmarkFixture, log: Log) -> None:
    for _ in range(10_000):
        log.append([batch_at(log.end_offset, ONE, 1)])
    offset = Offset(log.end_offset - 1)

    found = benchmark(lambda: log.read(offset, log.end_offset, 1 * MIB, cached_only=True))

    assert found is not None
    assert len(found) == 1


def test_read_1000_small_batches(benchmark: BenchmarkFixture, log: Log) -> None:
    for _ in range(10_000):
        log.append([batch_at(log.end_offset, ONE, 1)])

    found = benchmark(lambda: log.read(Offset(2000), Offset(3000), 1 * MIB, cached_only=True))

    assert found is not None
    assert len(found) == 1000


def test_open_a_killed_log_of_200_mib(
    benchmark: BenchmarkFixture, log: Log, tmp_path: Path
) -> None:
    for _ in range(2000):
        log.append([batch_at(log.end_offset)])
        log.sync(Offset(0))

    opened = run_rounds(
        benchmark,
        lambda: Log.open(RealFileSystem(), f"{tmp_path}/log", IDENTITY, LogOptions()),
        rounds=20,
    )

    assert opened.end_offset == 2000 * RECORDS
