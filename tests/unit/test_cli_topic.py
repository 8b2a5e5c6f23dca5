"""``logd topic create`` says when what it made cannot be used yet."""

from __future__ import annotations

import pytest

from logd.cli.topic import replica_counts, replicas_shown, told_without_leaders
from logd.wire.messages import PartitionInfo, TopicInfo


def topic(*leaders: int | None) -> TopicInfo:
    partitions = [
        PartitionInfo(partition=number, group=7 + number, replicas=[1, 2], leader=leader)
        for number, leader in enumerate(leaders)
    ]
    return TopicInfo(name="orders", topic_id=1, partitions=partitions)


def test_a_topic_with_leaders_needs_no_word() -> None:
    assert told_without_leaders(topic(1, 2)) == ""


def test_a_partition_on_brokers_that_are_down_is_named() -> None:
    told = told_without_leaders(topic(1, None))

    assert "1 partition of it without a leader yet, such as orders/1 on brokers 1,2" in told
    assert "logd cluster status" in told


@pytest.mark.parametrize(
    ("replicas", "shown", "least"), [([3, 3], 3, 3), ([3, 1, 2], "1 to 3", 1), ([1], 1, 1)]
)
def test_partitions_with_fewer_replicas_are_not_hidden_by_the_first(
    replicas: list[int], shown: int | str, least: int
) -> None:
    partitions = [
        PartitionInfo(partition=number, group=7 + number, replicas=list(range(count)), leader=0)
        for number, count in enumerate(replicas)
    ]
    found = TopicInfo(name="orders", topic_id=1, partitions=partitions)

    assert replicas_shown(found) == shown
    assert min(replica_counts(found)) == least
