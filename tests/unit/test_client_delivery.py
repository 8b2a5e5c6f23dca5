"""Acknowledgements of many records: by input position, however they were spread over batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio

from logd.errors import NotLeaderError, PartialAppendError
from logd.wire.messages import ProduceResponse
from logd_client.delivery import Delivery, ManyDeliveries


def acknowledged(partition: int, base_offset: int) -> Delivery:
    delivery = Delivery("orders", partition)
    delivery.succeed(ProduceResponse(base_offset=base_offset, end_offset=0, append_time_ms=5))
    return delivery


def ranges(acks: Sequence[Any]) -> list[tuple[int, int, int]]:
    return [(ack.partition, ack.base_offset, ack.count) for ack in acks]


def test_ranges_are_in_input_order_and_as_long_as_neighbours_stay_together() -> None:
    deliveries = ManyDeliveries()
    deliveries.add_batch([0, 1, 4, 6, 7, 8], acknowledged(0, 100), 0)
    deliveries.add_batch([2, 3, 5], acknowledged(1, 200), 10)
    deliveries.add_batch(range(9, 12), acknowledged(0, 106), 0)

    acks = trio.run(deliveries.wait)

    assert ranges(acks) == [
        (0, 100, 2),
        (1, 210, 2),
        (0, 102, 1),
        (1, 212, 1),
        (0, 103, 3),
        (0, 106, 3),
    ]
    assert {(ack.topic, ack.append_time_ms, ack.durability) for ack in acks} == {
        ("orders", 5, "synced")
    }


def test_what_failed_is_named_by_input_range_beside_what_did_not() -> None:
    failed = Delivery("orders", 1)
    failed.fail(error := NotLeaderError("it moved"))
    deliveries = ManyDeliveries()
    deliveries.add_batch([0, 3], acknowledged(0, 100), 0)
    deliveries.add_batch([1, 2, 4], failed, 0)

    with pytest.raises(PartialAppendError) as caught:
        trio.run(deliveries.wait)

    assert ranges(cast("Sequence[Any]", caught.value.acks)) == [(0, 100, 1), (0, 101, 1)]
    assert caught.value.failures == ((1, 3, error), (4, 5, error))
