"""Real brokers tell over HTTP how they are, also when they are not well."""

from __future__ import annotations

import json
import signal
import subprocess
from functools import partial
from typing import IO

import pytest

from logd.cli.local_cluster import LocalBroker, LocalCluster
from logd.types import NodeId
from logd_client import sync
from tests.process.harness import BROKERS, COMMAND_TIMEOUT_S, logd_command, send_signal
from tests.process.web import get, scrape, status_of, until

pytestmark = pytest.mark.process


def test_a_scrape_counts_what_was_appended(cluster: LocalCluster) -> None:
    topic = "scraped"
    with sync.connect(cluster.bootstrap) as client:
        client.admin.create_topic(topic, partitions=3, replicas=BROKERS)
        with client.producer(topic) as producer:
            producer.append_many([b"value"] * 5000)

    scrapes = [scrape(broker) for broker in cluster.brokers]

    labels = (("topic", topic),)
    assert sum(found["logd_records_in_total", labels] for found in scrapes) >= 5000
    assert sum(found["logd_commit_seconds_count", ()] for found in scrapes) > 0
    assert all(found["logd_disk_free_bytes", ()] > 0 for found in scrapes)
    assert all(found["process_resident_memory_bytes", ()] > 2**20 for found in scrapes)
    until(lambda: sum(scrape(b)["logd_controller", ()] for b in cluster.brokers) == 1, "one leads")


def test_every_broker_is_live_and_ready_and_shows_all_of_them(cluster: LocalCluster) -> None:
    for broker in cluster.brokers:
        until(lambda broker=broker: get(broker, "/readyz")[0] == 200, "ready")  # type: ignore[misc]
        assert get(broker, "/livez") == (200, "ok\n")
        until(partial(shows_a_report_of_each, broker), "a report of each")


def shows_a_report_of_each(broker: LocalBroker) -> bool:
    """Those that take too long to report are left out of one look."""
    known = status_of(broker)["brokers"]
    assert [one["id"] for one in known] == [1, 2, 3]
    return all(one["report"] is not None for one in known)


def test_without_a_majority_a_broker_is_live_and_not_ready_and_says_why(
    cluster: LocalCluster,
) -> None:
    survivor = cluster.brokers[0]
    for node in (2, 3):
        cluster.kill(NodeId(node))

    until(lambda: get(survivor, "/readyz")[0] == 503, "not ready")

    assert "no controller" in get(survivor, "/readyz")[1]
    assert get(survivor, "/livez")[0] == 200
    until(partial(is_told_alone, survivor), "unavailable, and the others dead")


def is_told_alone(survivor: LocalBroker) -> bool:
    """It may hear of the end of one before that of the other."""
    status = status_of(survivor)
    alive = [known["alive"] for known in status["brokers"]]
    return status["state"] == "unavailable" and alive == [True, False, False]


def test_a_broker_that_hangs_is_not_live_and_its_peers_say_so(cluster: LocalCluster) -> None:
    send_signal(cluster, NodeId(3), signal.SIGSTOP)

    def is_told_by(broker: LocalBroker) -> bool:
        status = status_of(broker)
        problems, texts = status["problems"], [event["text"] for event in status["events"]]
        is_named = any(problem.startswith("broker 3 at ") for problem in problems)
        return status["state"] == "degraded" and is_named and "lost broker 3" in texts

    for broker in cluster.brokers[:2]:  # Each notices by itself.
        until(partial(is_told_by, broker), "told")


def test_a_watch_is_one_json_object_per_look_until_it_is_interrupted(
    cluster: LocalCluster,
) -> None:
    with sync.connect(cluster.bootstrap) as client:
        # Each leads one of these, and has just said so.
        client.admin.create_topic("watched", partitions=BROKERS, replicas=BROKERS)
        for partition in range(BROKERS):
            until(partial(has_leader, client, "watched", partition), "a leader")
    command = logd_command(
        *("cluster", "status", "--watch", "--output", "json", "--bootstrap", cluster.bootstrap)
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        # A broker that takes too long to report is left out of one look.
        until(partial(shows_events_of_each, watch.stdout), "a look with events of each broker")
        watch.send_signal(signal.SIGINT)
        status = watch.wait(COMMAND_TIMEOUT_S)

    assert status == 130
    assert len(first["brokers"]) == BROKERS


def shows_events_of_each(looks: IO[bytes]) -> bool:
    look = json.loads(looks.readline())
    return look["controller"] is not None and {e["broker"] for e in look["events"]} == {1, 2, 3}


def has_leader(client: sync.Client, topic: str, partition: int) -> bool:
    return client.admin.describe_topic(topic).partitions[partition].leader is not None


def test_what_is_not_there_is_said_to_be_elsewhere(cluster: LocalCluster) -> None:
    status, text = get(cluster.brokers[0], "/metric")

    assert status == 404
    assert "/metrics" in text
