"""``logd serve --join``: a broker becomes a member of a cluster that runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from tests.process.harness import POLL_S, logd_command, run_logd

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
DEAF_S = 3.0
FAILED = 1
ANY_PORT = "127.0.0.1:0"


@contextmanager
def one_broker(directory: Path) -> Iterator[LocalCluster]:
    cluster = open_cluster(directory, broker_count=1, port=None)
    with stopping(cluster):
        cluster.start_all()
        yield cluster


def join_options(cluster: LocalCluster, data_dir: Path, *, node_id: int = 2) -> list[str | Path]:
    return [
        *("serve", "--node-id", str(node_id), "--data-dir", data_dir),
        *("--listen", ANY_PORT, "--peer-listen", ANY_PORT),
        *("--join", str(cluster.brokers[0].peer_address)),
    ]


@contextmanager
def joined(cluster: LocalCluster, data_dir: Path) -> Iterator[None]:
    process = subprocess.Popen(
        logd_command(*join_options(cluster, data_dir)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_brokers(cluster, 2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=PATIENCE_S)
    assert code == 0
    wait_for_brokers(cluster, 1)  # Else who comes back would be there before it has come.


def wait_for_brokers(cluster: LocalCluster, count: int) -> None:
    """So many are alive."""
    bootstrap = str(cluster.brokers[0].address)
    give_up = time.monotonic() + PATIENCE_S
    while True:
        listed = run_logd("broker", "list", "--output", "json", "--bootstrap", bootstrap)
        if listed.returncode == 0:
            alive = sum(broker["alive"] for broker in json.loads(listed.stdout))
            if alive == count:
                return
        assert time.monotonic() < give_up, listed
        time.sleep(POLL_S)


def test_a_broker_joins_comes_back_and_is_told_what_it_is_when_it_was_wiped(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "second"
    with one_broker(tmp_path / "cluster") as cluster:
        bootstrap = str(cluster.brokers[0].address)
        with joined(cluster, data_dir):
            made = run_logd(
                *("topic", "create", "pairs", "--replicas", "2", "--bootstrap", bootstrap)
            )
            assert made.returncode == 0, made.stderr
        with joined(cluster, data_dir):
            pass
        shutil.rmtree(data_dir)

        ended = run_logd(*join_options(cluster, data_dir))

    assert ended.returncode == FAILED
    words = ended.stderr.decode().splitlines()[-1]
    assert "known with data directory" in words
    assert "never used" in words


def test_who_meets_a_removed_broker_first_is_served_by_the_others(tmp_path: Path) -> None:
    with one_broker(tmp_path / "cluster") as cluster, joined(cluster, tmp_path / "second"):
        bootstrap = str(cluster.brokers[0].address)
        listed = run_logd("broker", "list", "--output", "json", "--bootstrap", bootstrap)
        [second] = [broker["address"] for broker in json.loads(listed.stdout) if broker["id"] == 2]
        removed = run_logd("broker", "remove", "2", "--bootstrap", bootstrap)
        assert removed.returncode == 0, removed.stderr

        time.sleep(DEAF_S)  # Now it takes the others for dead.
        status = run_logd("cluster", "status", "--bootstrap", second)

    assert status.returncode == 0, status.stderr


def test_who_names_the_address_for_clients_is_told_which_one_it_has_to_be_and_that_once(
    tmp_path: Path,
) -> None:
    with one_broker(tmp_path / "cluster") as cluster:
        wait_for_brokers(cluster, 1)
        wrong = cluster.brokers[0].address
        options = [*join_options(cluster, tmp_path / "second"), "--join", str(wrong)]
        with subprocess.Popen(logd_command(*options), stderr=subprocess.PIPE) as started:
            assert started.stderr is not None
            failed = next(line for line in started.stderr if b'"join_failed"' in line)
            time.sleep(1.5)  # It asks twice a second.
            started.terminate()
            _, logged = started.communicate(timeout=PATIENCE_S)

    assert b'"join_failed"' not in logged
    assert json.loads(failed)["reason"] == (
        f"{wrong} does not answer brokers: "
        "it has to be the address where a member listens for brokers, its peer_listen"
    )


def test_who_names_the_address_of_the_status_page_is_told_what_that_is(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path / "cluster", broker_count=1, port=None, http=True)
    with stopping(cluster):
        cluster.start_all()
        wait_for_brokers(cluster, 1)
        wrong = cluster.brokers[0].http_address
        options = [*join_options(cluster, tmp_path / "second"), "--join", str(wrong)]
        with subprocess.Popen(logd_command(*options), stderr=subprocess.PIPE) as started:
            assert started.stderr is not None
            failed = next(line for line in started.stderr if b'"join_failed"' in line)
            started.terminate()

    assert json.loads(failed)["reason"] == (
        f"{wrong} does not answer brokers (this looks like an HTTP response, not like logd's "
        "protocol: b'HTTP/1.1 400 \\r\\nC'): "
        "it has to be the address where a member listens for brokers, its peer_listen"
    )


def test_joining_and_founding_at_once_is_refused(tmp_path: Path) -> None:
    ended = run_logd(
        *("serve", "--node-id", "1", "--data-dir", tmp_path / "data", "--join", "h:1"),
        *("--cluster", "1=h:1,2=h:2"),
    )

    assert ended.returncode == 2
    assert b"founds a cluster, or joins one" in ended.stderr
