"""Partitions of real brokers are moved by command, and one of them is taken back."""

from __future__ import annotations

import random
import time

import pytest

from logd.cli.local_cluster import LocalCluster
from logd.limits import KIB
from logd_client import sync
from tests.process.harness import POLL_S, plan_of, require_done, require_refused, told

pytestmark = pytest.mark.process

PATIENCE_S = 30.0
RECORDS = 60
VALUE = random.Random(1).randbytes(96 * KIB)
"""What is compressed would be there before anybody can cancel it."""
SLOW = "66KB/s"
CONFLICT = 4


def wait_until_under_way(cluster: LocalCluster, name: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not any(move["partition"] == name for move in plan_of(cluster)["running"]):
        assert time.monotonic() < give_up
        time.sleep(POLL_S)


def test_a_move_that_is_cancelled_goes_back_and_loses_nothing(cluster: LocalCluster) -> None:
    name = "not-moved/0"
    with sync.connect(cluster.bootstrap) as client:
        topic = client.admin.create_topic("not-moved", partitions=1, replicas=1)
        (before,) = topic.partitions[0].replicas
        with client.producer("not-moved") as producer:
            for _ in range(RECORDS):
                producer.append(VALUE)
    cancel = ("partition", "move", name, "--cancel")
    require_refused(cluster, CONFLICT, f"{name} is not being moved", *cancel)
    move = ("partition", "move", name, "--to", str(before % 3 + 1))
    try:
        require_done(cluster, *move, "--throttle", SLOW, "--detach")
        wait_until_under_way(cluster, name)

        assert told(cluster, *cancel) == {
            "topic": "not-moved",
            "partition": 0,
            "state": "cancelled",
            "replicas": [before],
            "target": None,
        }
    finally:
        require_done(cluster, "rebalance", "set", "--throttle", "50MB/s")

    plan = plan_of(cluster)
    assert (plan["state"], plan["done"], plan["cancelled"]) == ("done", 0, 1)
    require_refused(cluster, CONFLICT, f"{name} is not being moved", *cancel)
    read = ("consume", "not-moved", "--from", "start", "--output", "json")
    assert len(require_done(cluster, *read).splitlines()) == RECORDS
