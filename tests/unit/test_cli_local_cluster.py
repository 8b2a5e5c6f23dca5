"""A local cluster's addresses are chosen once and kept in its directory."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from logd.cli import local_cluster
from logd.cli.local_cluster import (
    LocalCluster,
    free_ports,
    open_cluster,
    process_cpu_seconds,
    stopping,
)
from logd.errors import StorageError, UsageError
from logd.storage.directory import GROUPS_NAME
from logd.types import NodeId


def test_a_directory_that_holds_a_cluster_gives_the_same_cluster_again(tmp_path: Path) -> None:
    first = open_cluster(tmp_path / "c", broker_count=5, port=None)

    again = open_cluster(tmp_path / "c", broker_count=None, port=None)

    assert again.brokers == first.brokers
    assert [broker.node_id for broker in again.brokers] == [1, 2, 3, 4, 5]


def test_client_ports_follow_the_first_one(tmp_path: Path) -> None:
    (port,) = free_ports(1, random.Random())

    cluster = open_cluster(tmp_path / "c", broker_count=3, port=port)

    assert cluster.bootstrap == ",".join(f"127.0.0.1:{port + at}" for at in range(3))


def test_another_port_moves_the_clients_but_not_the_peers(tmp_path: Path) -> None:
    first = open_cluster(tmp_path / "c", broker_count=2, port=20_000)

    moved = open_cluster(tmp_path / "c", broker_count=None, port=21_000)

    assert moved.bootstrap == "127.0.0.1:21000,127.0.0.1:21001"
    assert [b.peer_address for b in moved.brokers] == [b.peer_address for b in first.brokers]


def test_another_size_is_refused(tmp_path: Path) -> None:
    open_cluster(tmp_path / "c", broker_count=3, port=None)

    with pytest.raises(UsageError, match="holds a cluster of 3 brokers, not 5"):
        open_cluster(tmp_path / "c", broker_count=5, port=None)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"brokers": 1}', b'{"other": 1}', b'{"brokers": []}']
)
def test_a_damaged_cluster_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dev.json").write_bytes(content)

    with pytest.raises(StorageError, match=r"dev\.json is not a cluster file"):
        open_cluster(tmp_path, broker_count=None, port=None)


@pytest.mark.parametrize(("path", "told"), [("c", "it"), ("c/deeper/still", "{}/c")])
def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path, path: str, told: str) -> None:
    (tmp_path / "c").write_bytes(b"something else")

    with pytest.raises(StorageError) as refused:
        open_cluster(tmp_path / path, broker_count=3, port=None)

    words = f"cannot use data directory {tmp_path / path}: {told.format(tmp_path)} is no directory"
    assert str(refused.value) == words


def test_a_directory_that_cannot_be_made_is_named_with_why() -> None:
    with pytest.raises(StorageError, match="cannot use data directory /proc/c: No such file"):
        open_cluster(Path("/proc/c"), broker_count=3, port=None)


def test_free_ports_are_distinct() -> None:
    ports = free_ports(20, random.Random(1))

    assert len(set(ports)) == 20


def test_a_port_in_use_is_not_chosen() -> None:
    (port,) = free_ports(1, random.Random(1))
    with socket.create_server(("127.0.0.1", port)):
        chosen = free_ports(1, random.Random(1))

    assert chosen != [port]


def test_a_cluster_is_not_started_on_ports_in_use(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path / "c", broker_count=1, port=None)
    address = cluster.brokers[0].peer_address
    with (
        socket.create_server((address.host, address.port)),
        pytest.raises(StorageError, match=f"cannot start broker 1: {address} is in use"),
    ):
        cluster.start_all()


def test_brokers_meet_on_no_ports_that_the_kernel_hands_out(tmp_path: Path) -> None:
    """Any connection of anybody may have them when the cluster is resumed."""
    lowest = local_cluster._ephemeral_port_lowest()

    cluster = open_cluster(tmp_path / "c", broker_count=3, port=lowest - 500)

    assert all(broker.peer_address.port < lowest for broker in cluster.brokers)


def test_the_command_line_is_what_a_person_would_type(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path / "c", broker_count=2, port=None)
    first, second = cluster.brokers

    command = cluster.command(first)

    assert command[1:6] == ["-m", "logd", "serve", "--node-id", "1"]
    members = command[command.index("--cluster") + 1]
    assert members == f"1={first.peer_address},2={second.peer_address}"


def test_processor_time_of_a_process_is_read() -> None:
    assert process_cpu_seconds(os.getpid()) > 0


def test_who_holds_many_replicas_has_longer_to_stop(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path / "c", broker_count=2, port=None)
    new = cluster.stop_timeout_s

    for group in range(1000):
        (cluster.brokers[1].data_dir / GROUPS_NAME / f"{group:020}").mkdir(parents=True)

    assert (new, cluster.stop_timeout_s) == (5.0, 10.0)


class Deaf(LocalCluster):
    """A cluster of which a broker does not stop when it is asked to."""

    def stop_all(self) -> list[NodeId]:
        return [NodeId(2)]


def test_a_broker_that_had_to_be_killed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stopping(Deaf(open_cluster(tmp_path / "c", broker_count=3, port=None).brokers)):
        pass

    assert capsys.readouterr().err == "logd: broker 2 did not stop within 5 s and was killed\n"
