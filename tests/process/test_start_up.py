"""A broker that cannot start says why in one line, and touches nothing."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from logd.cli.local_cluster import LocalCluster
from logd.runtime.files import RealFileSystem
from logd.storage.directory import DataDirectory
from logd.storage.file_header import FILE_HEADER_BYTES
from logd.types import NodeId
from tests.process.harness import run_logd

pytestmark = pytest.mark.process

FAILED, USAGE = 1, 2
ANY_PORT = "127.0.0.1:0"


def serve(
    data_dir: Path, *options: str | Path, node_id: int = 1, listen: str = ANY_PORT
) -> tuple[int, str]:
    """Start a broker that is expected to end by itself; its exit code and its last words."""
    ended = run_logd(
        *("serve", "--node-id", str(node_id), "--data-dir", data_dir),
        *("--listen", listen, "--peer-listen", ANY_PORT, *options),
        timeout_s=20,
    )
    assert b"Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.decode().splitlines()[-1]


def make_directory(path: Path, node_id: int) -> None:
    DataDirectory.open(RealFileSystem(), str(path), NodeId(node_id), lambda: "an-id").close()


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with taken_port() as port:
        code, words = serve(tmp_path / "data", listen=f"127.0.0.1:{port}")

    assert code == FAILED
    assert f"127.0.0.1:{port}" in words
    assert "in use" in words


def test_a_peer_port_in_use_is_named(tmp_path: Path) -> None:
    with taken_port() as port:
        code, words = serve(tmp_path / "data", "--peer-listen", f"127.0.0.1:{port}")

    assert code == FAILED
    assert f"127.0.0.1:{port}" in words
    assert "in use" in words


def test_a_locked_directory_names_the_process_that_holds_it(cluster: LocalCluster) -> None:
    broker = cluster.brokers[0]

    code, words = serve(broker.data_dir, node_id=broker.node_id)

    assert code == FAILED
    assert str(broker.data_dir) in words
    assert str(cluster.pid(broker.node_id)) in words


def test_another_nodes_directory_is_refused(tmp_path: Path) -> None:
    make_directory(tmp_path / "data", node_id=1)

    code, words = serve(tmp_path / "data", node_id=2)

    assert code == FAILED
    assert f"{tmp_path}/data belongs to node 1, this is node 2" in words


def test_a_directory_of_a_formed_cluster_is_not_started_with_another_list(tmp_path: Path) -> None:
    files = RealFileSystem()
    directory = DataDirectory.open(files, str(tmp_path / "data"), NodeId(1), lambda: "an-id")
    directory.form({1: "an-id", 2: "another", 3: "a-third"})
    directory.close()

    code, words = serve(tmp_path / "data")

    assert code == FAILED
    assert "cluster of nodes 1, 2, 3" in words
    assert "cluster list of 1, which is the one without --cluster: give it the list" in words


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "data").write_bytes(b"something else")

    code, words = serve(tmp_path / "data" / below)

    assert code == FAILED
    assert f"cannot use data directory {tmp_path}/data" in words
    assert "is no directory" in words
    assert (tmp_path / "data").read_bytes() == b"something else"


def test_an_unwritable_directory_is_refused() -> None:
    code, words = serve(Path("/proc/logd-data"))

    assert code == FAILED
    assert "cannot use data directory /proc/logd-data" in words


def test_a_newer_format_is_told_from_damage(tmp_path: Path) -> None:
    make_directory(tmp_path / "data", node_id=1)
    meta = tmp_path / "data" / "meta"
    content = bytearray(meta.read_bytes())
    struct.pack_into("<I", content, 16, 99)
    struct.pack_into("<Q", content, 0, xxh3_64_intdigest(content[8:FILE_HEADER_BYTES]))
    meta.write_bytes(content)

    code, words = serve(tmp_path / "data")

    assert code == FAILED
    assert str(meta) in words
    assert "format version 99" in words


def test_a_damaged_directory_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    make_directory(tmp_path / "data", node_id=1)
    meta = tmp_path / "data" / "meta"
    content = bytearray(meta.read_bytes())
    content[20] ^= 1
    meta.write_bytes(content)

    code, words = serve(tmp_path / "data")

    assert code == FAILED
    assert str(meta) in words
    assert meta.read_bytes() == content


def test_an_unknown_key_of_the_configuration_is_named_with_its_file(tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text("segment_byte = 1048576\n")

    code, words = serve(tmp_path / "data", "--config", config)

    assert code == USAGE
    assert str(config) in words
    assert "segment_byte" in words
    assert "segment_bytes" in words
    assert not (tmp_path / "data").exists()
