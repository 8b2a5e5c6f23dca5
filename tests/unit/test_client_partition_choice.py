"""A record goes where its partition or key says; any other joins what is growing, or moves on."""

from __future__ import annotations

import pytest

from logd.errors import InvalidPartitionError
from logd_client.partition_choice import PartitionChoice
from logd_client.partitioner import partition_for_key
from tests.support.producing import TOPIC, grow, unattached


def test_a_partition_that_is_named_is_taken_whatever_the_key() -> None:
    choice = PartitionChoice(TOPIC, unattached(3))

    assert choice.of(b"key", 2).number == 2


def test_a_key_goes_to_its_partition_although_that_is_stalled() -> None:
    partitions = unattached(3)
    choice = PartitionChoice(TOPIC, partitions)
    number = partition_for_key(b"key", 3)
    partitions[number].is_stalled = True

    assert choice.of(b"key", None).number == number


@pytest.mark.parametrize("partition", [-1, 3, True, 1.0])
def test_a_partition_that_there_is_not_is_refused_with_those_that_there_are(partition: int) -> None:
    choice = PartitionChoice(TOPIC, unattached(3))

    with pytest.raises(InvalidPartitionError, match="expected 0 to 2"):
        choice.of(None, partition)


def test_what_may_go_anywhere_stays_with_the_batch_that_grows_and_moves_on_behind_it() -> None:
    partitions = unattached(3)
    choice = PartitionChoice(TOPIC, partitions)
    choice.begin_with(1)
    grow(partitions[1])

    joining = [choice.of(None, None).number for _ in range(2)]
    partitions[1].pipeline.close_growing()

    assert joining == [1, 1]
    assert choice.of(None, None).number == 2


def test_what_may_go_anywhere_leaves_a_batch_that_grows_where_the_leader_is_silent() -> None:
    partitions = unattached(2)
    choice = PartitionChoice(TOPIC, partitions)
    choice.begin_with(0)
    grow(partitions[0])
    partitions[0].is_stalled = True

    assert choice.of(None, None).number == 1


def test_partitions_that_are_added_get_their_turn() -> None:
    partitions = unattached(1)
    choice = PartitionChoice(TOPIC, partitions)
    choice.begin_with(0)

    partitions += unattached(3)[1:]
    choice.grow()

    assert [choice.advance().number for _ in range(3)] == [1, 2, 0]


def test_of_many_with_keys_those_without_one_stay_together_and_what_is_stalled_comes_last() -> None:
    partitions = unattached(2)
    choice = PartitionChoice(TOPIC, partitions)
    choice.begin_with(0)
    keys = {partition_for_key(key, 2): key for key in (b"a", b"b", b"c", b"d")}
    partitions[0].is_stalled = True

    groups = choice.group([keys[0], None, keys[1], keys[0], None])

    assert [(partition.number, positions) for partition, positions in groups] == [
        (1, [1, 2, 4]),
        (0, [0, 3]),
    ]
