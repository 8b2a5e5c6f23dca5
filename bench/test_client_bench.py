"""What a record costs in the client before it is on the wire, and after it came off it.

``append_many`` is the fast path: nothing is done per record but in C.  ``append_nowait`` is
one Python call per record, and at 400,000 records/s has 2.5 µs for everything.

    pytest bench/test_client_bench.py --benchmark-enable
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from logd.limits import KIB
from logd.record.header import Codec
from logd.record.timestamps import TimestampRuns
from logd.types import ProducerId
from logd.wire.messages import ProduceResponse
from logd_client.accumulator import OpenBatch, record_bytes
from logd_client.columns import Column, Slices
from logd_client.delivery import Delivery
from logd_client.pipeline import Pipeline

RECORDS = 10_000
VALUES = [b"%100d" % number for number in range(RECORDS)]
BATCH_BYTES = 256 * KIB


def open_batch(values: list[bytes | None]) -> OpenBatch:
    return OpenBatch(
        Delivery("orders", 0),
        opened_at=0,
        deadline=1e9,
        values=values,
        keys=None,
        timestamps=TimestampRuns(1),
    )


def test_cut_10_000_values_into_batches(benchmark: BenchmarkFixture) -> None:
    def cut() -> list[tuple[int, int, int]]:
        return list(Slices(Column.of("values", VALUES), None).bounds(BATCH_BYTES))

    bounds = benchmark(cut)

    assert bounds[-1][1] == RECORDS


def test_add_1_000_records_one_by_one(benchmark: BenchmarkFixture) -> None:
    def add() -> OpenBatch:
        batch = open_batch([])
        batch.timestamps = TimestampRuns()
        for value in VALUES[:1000]:
            batch.add(value, None, (), 1, record_bytes(value, None, 0))
        return batch

    assert len(benchmark(add).values) == 1000


@pytest.mark.parametrize("records", [1, 1000])
def test_seal_send_and_settle_a_batch(benchmark: BenchmarkFixture, records: int) -> None:
    settled: list[int] = []
    pipeline = Pipeline(
        producer_id=ProducerId(1),
        codec=Codec.NONE,
        linger_s=0,
        batches_in_flight=8,
        on_settled=settled.append,
        on_failed=lambda _: None,
    )
    values: list[bytes | None] = list(VALUES[:records])
    response = ProduceResponse(base_offset=0, end_offset=records, append_time_ms=1)

    def travel() -> Delivery:
        pipeline.enqueue(open_batch(values))
        batch = pipeline.take(0.0)
        assert batch is not None
        pipeline.acknowledge(batch, batch.session, response)
        return batch.delivery

    assert benchmark(travel).is_settled
