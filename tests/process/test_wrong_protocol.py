"""Whatever comes to a port, it is shut out with a reason, and the broker goes on unharmed."""

from __future__ import annotations

import time

import pytest

from logd.cli.local_cluster import LocalCluster
from logd_client import sync
from tests.process.harness import descriptor_count
from tests.process.intruders import INTRUDERS, Intruder, intrude

pytestmark = pytest.mark.process

ROUNDS = 3
SETTLE_S = 30.0


@pytest.mark.parametrize("intruder", INTRUDERS, ids=str)
def test_who_speaks_something_else_is_shut_out_with_a_reason(
    cluster: LocalCluster, intruder: Intruder
) -> None:
    reason = intrude(cluster.brokers[0], intruder)

    assert intruder.reason in reason


def test_a_broker_goes_on_serving_and_keeps_nothing_of_its_intruders(
    cluster: LocalCluster,
) -> None:
    broker = cluster.brokers[0]
    with sync.connect(str(broker.address)) as client:
        client.admin.create_topic("undisturbed", partitions=3, replicas=3)
        with client.producer("undisturbed") as producer:
            producer.append_many([b"before"] * 3)
            before = descriptor_count(cluster.pid(broker.node_id))

            for _ in range(ROUNDS):
                for intruder in INTRUDERS:
                    intrude(broker, intruder)
            acks = [producer.append(b"after", partition=number) for number in range(3)]

        assert len(acks) == 3
    # Closing is finished by the kernel and the event loop in their own time.
    deadline = time.monotonic() + SETTLE_S
    while (after := descriptor_count(cluster.pid(broker.node_id))) > before:
        assert time.monotonic() < deadline, f"{before} descriptors before, {after} now"
        time.sleep(0.05)
