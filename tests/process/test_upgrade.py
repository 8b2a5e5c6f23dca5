"""Brokers are upgraded one after the other, and then the cluster; as docs/operations.md has it.

An older version is played by ``feature_level_max``.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from logd.cli.local_cluster import stopping
from logd.cli.ready import wait_until_ready
from logd.limits import FEATURE_LEVEL
from logd.types import NodeId
from tests.process.elastic import ElasticCluster, found_cluster
from tests.process.harness import (
    POLL_S,
    require_no_bug_reported,
    run_logd,
    send_signal,
    wait_until_agreed,
)

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
FAILED = 1
DEGRADED = 6
LEVEL = "LOGD_CONFIG_FEATURE_LEVEL_MAX"
COORDINATED = ("kv", "put", "key", "value")


def logd(cluster: ElasticCluster, *arguments: str) -> Any:
    done = run_logd(*arguments, "--output", "json", "--bootstrap", cluster.bootstrap)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return json.loads(done.stdout)


def refusal(cluster: ElasticCluster, *arguments: str) -> str:
    done = run_logd(*arguments, "--bootstrap", cluster.bootstrap)
    assert done.returncode == FAILED, (arguments, done.stdout, done.stderr)
    return done.stderr.decode()


def waits_for(cluster: ElasticCluster) -> set[int]:
    """Brokers that keep the cluster at the level where it is."""
    done = run_logd("cluster", "upgrade", "--output", "json", "--bootstrap", cluster.bootstrap)
    found = json.loads(done.stdout)
    assert (done.returncode, found["level"]) == (DEGRADED, 1)
    assert b"waits for broker" in done.stderr
    return set(found["waits_for"])


def restart(cluster: ElasticCluster, node: int) -> None:
    send_signal(cluster, NodeId(node), signal.SIGTERM)
    assert cluster.wait(NodeId(node)) == 0
    cluster.start(NodeId(node))
    anyio.run(wait_until_ready, cluster, backend="trio")


def level_available(cluster: ElasticCluster) -> int:
    """As somebody may find it who asks while not all is well again after a restart."""
    status = run_logd("cluster", "status", "--output", "json", "--bootstrap", cluster.bootstrap)
    return int(json.loads(status.stdout)["feature_level_available"]) if status.stdout else 0


def wait_until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(POLL_S)


def test_a_cluster_is_upgraded_once_all_of_its_brokers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = found_cluster(tmp_path)
    monkeypatch.setenv(LEVEL, "1")
    with stopping(cluster):
        cluster.start_all()
        anyio.run(wait_until_ready, cluster, backend="trio")
        assert waits_for(cluster) == {1, 2, 3}
        newer = ("topic", "create", "fast", "--config", "durability=replicated")
        assert "needs feature level 2" in refusal(cluster, *newer)
        assert "needs feature level 3" in refusal(cluster, *COORDINATED)

        monkeypatch.delenv(LEVEL)
        for node in (1, 2):
            restart(cluster, node)
        # A broker that is alive again may have yet to say what it supports.
        wait_until(lambda: waits_for(cluster) == {3})
        too_early = refusal(cluster, "cluster", "upgrade", "--level", f"{FEATURE_LEVEL}")
        assert "not supported by broker 3" in too_early
        assert "not supported by broker 3" in refusal(
            cluster, "cluster", "upgrade", "--dry-run", "--level", f"{FEATURE_LEVEL}"
        )
        restart(cluster, 3)
        wait_until(lambda: level_available(cluster) == FEATURE_LEVEL)
        anyio.run(wait_until_agreed, cluster, backend="trio")
        assert logd(cluster, "cluster", "upgrade", "--dry-run")["level"] == 1
        assert logd(cluster, "cluster", "upgrade")["level"] == FEATURE_LEVEL
        anyio.run(wait_until_agreed, cluster, backend="trio")
        assert run_logd(*COORDINATED, "--bootstrap", cluster.bootstrap).returncode == 0

        # There is no way back, nor a way in for an older version.
        monkeypatch.setenv(LEVEL, "1")
        for node in (NodeId(3), NodeId(4)):
            if node == 3:
                send_signal(cluster, node, signal.SIGTERM)
                cluster.wait(node)
                cluster.start(node)
            else:
                cluster.join(node)
            assert cluster.wait(node) == FAILED
            refused = f"feature levels 1 to 1, the cluster is at {FEATURE_LEVEL}"
            assert refused in cluster.last_words(node)
        require_no_bug_reported(cluster)
