"""A broker that runs out of something refuses what it must, says so, lives, and recovers."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from logd.cli.local_cluster import LocalBroker, LocalCluster, open_cluster, stopping
from logd.errors import ConnectionFailedError, DeliveryTimeoutError
from logd.limits import KIB, MIB, RECEIVE_BYTES
from logd.types import HostPort, NodeId
from logd.wire.frame import encode_message, frame_prefix
from logd.wire.messages import HelloRequest, Kind
from logd_client import sync
from tests.process.harness import (
    BROKERS,
    anonymous_bytes,
    descriptor_count,
    logged_events,
    make_whole,
    require_no_bug_reported,
)

pytestmark = pytest.mark.process

PATIENCE_S: Final = 30.0
DESCRIPTORS_LEFT: Final = 160
"""A quarter of the limit that this makes is kept for files, which is enough when all groups elect
at once, and their brokers connect anew; the rest soon is connections."""

CROWD: Final = 2000
CONNECTION_BYTES_MAX: Final = 64 * KIB
"""What a connection that owes the rest of a frame may cost."""

SERVED_WITHIN_S: Final = 5.0

DISK_BYTES: Final = 64 * MIB
LEFT_BYTES: Final = 4 * MIB
SETTINGS: Final = f"""
disk_free_bytes_min = {2 * LEFT_BYTES}
allocate_bytes = {64 * KIB}
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_logged(broker: LocalBroker, name: str) -> None:
    until(lambda: counted(broker, name) > 0)


def counted(broker: LocalBroker, name: str) -> int:
    return sum(event["event"] == name for event in logged_events(broker))


def leading(cluster: LocalCluster, client: sync.Client, topic: str) -> LocalBroker:
    """Who leads its first partition, as that broker says itself."""
    return cluster.broker(NodeId(client.admin.describe_partition(topic, 0).leader))


def test_a_broker_out_of_descriptors_refuses_connections_and_goes_on_with_its_files(
    cluster: LocalCluster,
) -> None:
    with sync.connect(cluster.bootstrap) as client:
        client.admin.create_topic(
            "descriptors", partitions=1, replicas=BROKERS, config={"segment_bytes": "64KiB"}
        )
        with client.producer("descriptors") as producer:
            producer.append(b"before")
            broker = leading(cluster, client, "descriptors")
            pid = cluster.pid(broker.node_id)
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            assert limits[0] == limits[1]
            limit = descriptor_count(pid) + DESCRIPTORS_LEFT
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limits[1]))
            try:
                crowd = connections(broker.address, 4 * DESCRIPTORS_LEFT)
                until_logged(broker, "accept_failed")
                # Each of these fills segments: new files are opened all the time.
                for _ in range(20):
                    producer.append(bytes(60 * KIB))
                assert descriptor_count(pid) < limit
                for connection in crowd:
                    connection.close()
                until(lambda: can_connect(broker.address))
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            producer.append(b"after")
    assert counted(broker, "group_failed") == 0


@pytest.fixture
def many_descriptors(cluster: LocalCluster) -> Iterator[None]:
    """As many as they may have, for who crowds and who is crowded: most begin with 1,024."""
    pids = [os.getpid(), cluster.pid(cluster.brokers[0].node_id)]
    before = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids]
    for pid, (_, most) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
    yield
    for pid, limits in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("many_descriptors")
def test_two_thousand_connections_of_a_byte_a_second_keep_nobody_from_being_served(
    cluster: LocalCluster,
) -> None:
    """When each of them is cut off is a matter of the fuzz tests, where time is virtual."""
    broker = cluster.brokers[0]
    pid = cluster.pid(broker.node_id)
    before = anonymous_bytes(pid)
    crowd = connections(broker.address, CROWD)
    hello = encode_message(Kind.HELLO, HelloRequest(client="slow"), 1)
    # Of larger ones not all could begin, and those that had would be cut off.
    promised = frame_prefix(Kind.PRODUCE, 0, b"", 2, body_bytes=RECEIVE_BYTES - KIB)
    for connection in crowd[::2]:
        send_if_open(connection, hello + promised)
    longest_s = 0.0
    with sync.connect(str(broker.address)) as client:
        client.admin.create_topic("crowded", partitions=3, replicas=BROKERS)
        with client.producer("crowded") as producer:
            for _ in range(5):
                second = time.monotonic() + 1.0
                for connection in crowd:
                    send_if_open(connection, b"\0")
                while time.monotonic() < second:
                    began = time.monotonic()
                    producer.append(b"served")
                    longest_s = max(longest_s, time.monotonic() - began)
    grown = anonymous_bytes(pid) - before
    for connection in crowd:
        connection.close()
    assert longest_s < SERVED_WITHIN_S
    assert grown < CROWD * CONNECTION_BYTES_MAX
    until(lambda: descriptor_count(pid) < CROWD)


def connections(address: HostPort, count: int) -> list[socket.socket]:
    return [socket.create_connection((address.host, address.port)) for _ in range(count)]


def send_if_open(connection: socket.socket, data: bytes) -> None:
    """On a slow machine its time may be up."""
    with suppress(ConnectionError):
        connection.sendall(data)


def can_connect(address: HostPort) -> bool:
    """A client that comes anew is served; it is refused while the crowd is being let go."""
    try:
        with sync.connect(str(address)) as client:
            client.admin.describe_cluster()
    except ConnectionFailedError:
        return False
    return True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of some megabytes."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("only root can make a small disk")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_on_a_full_disk_appends_are_refused_and_all_else_goes_on_also_over_a_restart(
    small_disk: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS, encoding="utf-8")
    cluster = open_cluster(
        small_disk, broker_count=BROKERS, port=None, settings=("--config", str(settings))
    )
    ballast = small_disk / "ballast"
    with stopping(cluster):
        make_whole(cluster)
        with sync.connect(cluster.bootstrap) as client:
            client.admin.create_topic(
                "full", partitions=1, replicas=BROKERS, config={"segment_bytes": "64KiB"}
            )
            with client.producer("full") as producer:
                producer.append_many([b"%d" % number for number in range(1000)])

            with ballast.open("wb") as file:
                os.posix_fallocate(
                    file.fileno(), 0, shutil.disk_usage(small_disk).free - LEFT_BYTES
                )
            for broker in cluster.brokers:
                until_logged(broker, "disk_full")
            require_refused(client)
            assert len(read_all(client)) == 1000

            broker = leading(cluster, client, "full")
            cluster.kill(broker.node_id)  # There is an election, and a start, on full disks.
            assert len(read_all(client)) == 1000
            cluster.start(broker.node_id)
            for broker in cluster.brokers:
                cluster.kill(broker.node_id)
            make_whole(cluster)
            require_refused(client)
            assert len(read_all(client)) == 1000

            ballast.unlink()
            with client.producer("full") as producer:
                producer.append(b"there is space")
            assert read_all(client)[-1] == b"there is space"
        require_no_bug_reported(cluster)
        assert not any(counted(broker, "group_failed") for broker in cluster.brokers)


def require_refused(client: sync.Client) -> None:
    """Tried until its time is up; if that finds an attempt under way, its fate is not known."""
    with (
        client.producer("full", delivery_timeout_ms=2000) as producer,
        pytest.raises(DeliveryTimeoutError, match="free some space"),
    ):
        producer.append(b"refused")


def read_all(client: sync.Client) -> list[bytes | None]:
    """Every record there is."""
    end = client.admin.offsets("full", 0).data_end
    found: list[bytes | None] = []
    with client.consumer("full", start="earliest") as consumer:
        for batch in consumer.batches():
            found += batch.values
            if batch.offsets[-1] + 1 >= end:
                return found
    raise AssertionError("the consumer ended")
