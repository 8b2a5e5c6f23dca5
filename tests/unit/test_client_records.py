"""What a consumer gets of a batch: the same columns, whichever rows of it are left."""

from __future__ import annotations

import pytest

from logd.record import timestamps
from logd.record.batch import decode_batch, seal_batch
from logd_client.records import Batch

TIMES_MS = [70, 70, 71, 69, 70]


def batch_of(times_ms: list[int], first: int = 0) -> Batch:
    values: list[bytes | None] = [b"%d" % row for row in range(len(times_ms))]
    return Batch(
        "orders", 3, decode_batch(seal_batch(values=values, timestamps_ms=times_ms)), first
    )


@pytest.mark.parametrize("times_ms", [TIMES_MS, [70] * 5], ids=["different", "all the same"])
def test_each_record_keeps_its_time_whatever_is_left_out_before_and_behind_it(
    times_ms: list[int],
) -> None:
    batch = batch_of(times_ms, first=1)
    assert list(batch.timestamps_ms) == times_ms[1:]

    batch.keep_before(3)
    batch.drop_before(1)

    assert list(batch.timestamps_ms) == times_ms[2:4]
    assert [(record.value, record.timestamp_ms) for record in batch.records()] == [
        (b"2", times_ms[2]),
        (b"3", times_ms[3]),
    ]


def test_times_are_made_once_however_often_they_are_asked_for() -> None:
    batch = batch_of(TIMES_MS)

    assert batch.timestamps_ms is batch.timestamps_ms


def test_who_reads_batches_by_their_values_pays_for_no_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A consumer has rows at hand before it knows whether records or batches are asked for."""
    batch = batch_of(TIMES_MS)
    added: list[int] = []

    def noted(delta: int, first: int) -> int:
        added.append(delta)
        return delta + first

    monkeypatch.setattr(timestamps, "add", noted)
    rows = batch.records()
    assert added == []
    next(rows)
    assert added == [0]
