"""Acknowledgements of many records: by input position, however they were spread over batches.

And failures: those that nobody has heard of, and not much besides.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio

from logd.errors import NotLeaderError, PartialAppendError
from logd.wire.messages import ProduceResponse
from logd_client.delivery import UNHEARD_MAX, Delivery, Failures, ManyDeliveries


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


class Failure:
    def __init__(self, name: str, *, is_unheard: bool) -> None:
        self.name = name
        self.is_unheard = is_unheard


def test_the_first_failure_that_nobody_has_heard_of_is_told_once() -> None:
    failures = Failures[Failure]()
    for name in ("heard", "first", "second"):
        failures.note(Failure(name, is_unheard=name != "heard"))

    told = failures.take()

    assert told is not None
    assert told.name == "first"
    assert failures.take() is None


def test_failures_that_were_heard_of_make_room_for_others_and_are_not_kept() -> None:
    """What a caller's error holds on to may be large."""
    failures = Failures[Failure]()
    unheard = [Failure(f"unheard {number}", is_unheard=True) for number in range(3)]
    kept = weakref.WeakSet[Failure]()
    for number in range(10 * UNHEARD_MAX):
        failures.note(heard := Failure("heard", is_unheard=False))
        kept.add(heard)
        if number % UNHEARD_MAX == 0 and unheard:
            failures.note(unheard.pop())

    assert len(kept) < 20
    told = failures.take()
    assert told is not None
    assert told.name == "unheard 2"


def test_of_failures_that_nobody_hears_of_only_so_many_are_kept() -> None:
    failures = Failures[Failure]()
    kept = weakref.WeakSet[Failure]()
    for _ in range(3 * UNHEARD_MAX):
        failures.note(unheard := Failure("unheard", is_unheard=True))
        kept.add(unheard)

    assert len(kept) == UNHEARD_MAX + 1  # We have the last one.
