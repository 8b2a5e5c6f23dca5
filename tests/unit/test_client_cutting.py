"""The records of one call are cut into parts of a batch's size; each part goes to one partition."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from logd.errors import PartialAppendError, RecordTooLargeError
from logd.limits import KIB, RECORD_BYTES_MAX
from logd_client.columns import Column
from logd_client.cutting import Cutter, Part
from logd_client.delivery import ManyDeliveries
from logd_client.partition_choice import PartitionChoice
from logd_client.partitioner import partition_for_key
from logd_client.sender import ProducerPartition
from tests.support.producing import TOPIC, grow, unattached

VALUE = bytes(KIB)
FOUR_PER_BATCH = 5 * KIB
KEY_OF = {partition_for_key(key, 2): key for key in (b"a", b"b", b"c", b"d")}


def cutter_for(partitions: list[ProducerPartition]) -> Cutter:
    choice = PartitionChoice(TOPIC, partitions)
    choice.begin_with(0)
    return Cutter(choice, FOUR_PER_BATCH)


def column(elements: list[bytes | None]) -> Column:
    return Column.of("values", elements)


def places(parts: Iterable[Part]) -> list[tuple[int, list[int]]]:
    return [(part.partition.number, list(part.positions)) for part in parts]


def test_without_keys_full_batches_take_turns_and_what_is_left_stays_with_the_last() -> None:
    parts = cutter_for(unattached(3)).in_order(column([VALUE] * 10), None, None, ManyDeliveries())

    assert places(parts) == [(1, [0, 1, 2, 3]), (2, [4, 5, 6, 7]), (2, [8, 9])]


def test_less_than_a_batch_goes_where_one_is_growing() -> None:
    partitions = unattached(3)
    grow(partitions[0])

    parts = cutter_for(partitions).in_order(column([VALUE] * 2), None, None, ManyDeliveries())

    assert places(parts) == [(0, [0, 1])]


def test_where_a_part_goes_is_decided_when_it_is_asked_for() -> None:
    partitions = unattached(3)
    parts = cutter_for(partitions).in_order(column([VALUE] * 14), None, None, ManyDeliveries())
    first = next(parts)

    partitions[2].is_stalled = True

    assert first.partition.number == 1
    assert [part.partition.number for part in parts] == [0, 1, 1]


def test_one_key_of_all_is_kept_as_one_and_many_are_cut_with_their_values() -> None:
    cutter = cutter_for(unattached(2))
    keys = [KEY_OF[0], None] * 3

    (one,) = cutter.in_order(column([VALUE] * 3), KEY_OF[1], None, ManyDeliveries())
    many = list(cutter.in_order(column([VALUE] * 6), column(keys), 0, ManyDeliveries()))

    assert (one.partition.number, one.keys) == (1, KEY_OF[1])
    assert [part.keys for part in many] == [keys[:4], keys[4:]]


def test_by_key_each_partition_gets_its_own_in_order() -> None:
    keys: list[bytes | None] = [KEY_OF[0], KEY_OF[1]] * 5

    parts = list(
        cutter_for(unattached(2)).by_key(column([VALUE] * 10), column(keys), ManyDeliveries())
    )

    assert places(parts) == [(0, [0, 2, 4, 6]), (0, [8]), (1, [1, 3, 5, 7]), (1, [9])]
    assert [len(part.values) for part in parts] == [4, 1, 4, 1]


@pytest.mark.parametrize("is_by_key", [False, True])
@pytest.mark.anyio
async def test_what_no_batch_can_hold_is_in_no_part_and_fails_alone(
    anyio_backend: object, is_by_key: bool
) -> None:
    cutter, outcome = cutter_for(unattached(1)), ManyDeliveries()
    values = column([VALUE, bytes(RECORD_BYTES_MAX + 1), VALUE])
    keys = column([b"a"] * 3)

    parts = (
        cutter.by_key(values, keys, outcome)
        if is_by_key
        else cutter.in_order(values, keys, 0, outcome)
    )

    positions = [at for part in parts for at in part.positions]
    with pytest.raises(PartialAppendError) as caught:
        await outcome.wait()
    ((start, end, error),) = caught.value.failures
    assert positions == [0, 2]
    assert (start, end) == (1, 2)
    assert isinstance(error, RecordTooLargeError)
