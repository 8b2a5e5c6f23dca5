"""What would do harm is refused before anything moves, by the command that was asked for it.

A plan that would fill a disk is in ``tests/unit/test_cli_plans.py``, draining the last broker of a
failure domain in ``tests/unit/test_metadata_moves.py``, a wiped disk in ``test_replace.py``.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from logd.cli.local_cluster import open_cluster, stopping
from logd.cli.ready import wait_until_ready
from logd.types import NodeId
from tests.process.elastic import found_cluster
from tests.process.harness import (
    brokers_of,
    logd_command,
    plan_of,
    require_done,
    require_no_bug_reported,
    require_refused,
    run_logd,
    wait_until_alive,
)

pytestmark = pytest.mark.process

FAILED, USAGE, CONFLICT = 1, 2, 4
EMPTY = NodeId(4)
ANY_PORT = "127.0.0.1:0"


def test_what_would_do_harm_is_refused_before_anything_moves(tmp_path: Path) -> None:
    cluster = found_cluster(tmp_path / "cluster")
    plan = str(tmp_path / "plan.json")
    with stopping(cluster):
        cluster.start_all()
        anyio.run(wait_until_ready, cluster, backend="trio")
        require_done(cluster, "topic", "create", "kept", "--partitions", "4", "--replicas", "3")
        lines = tmp_path / "lines"
        lines.write_bytes(b"x" * 1000 + b"\n" + (b"y" * 1000 + b"\n") * 4_000)
        require_done(cluster, "produce", "kept", str(lines), "--partition", "0",
                     "--compression", "none")  # fmt: skip

        require_refused(cluster, FAILED, "brokers", "topic", "create", "wide", "--replicas", "4")
        require_refused(
            cluster, FAILED, "4 replicas need as many", "topic", "alter", "kept", "--replicas", "4"
        )
        require_refused(
            cluster, USAGE, "can only get more", "topic", "alter", "kept", "--partitions", "2"
        )
        below = ("--config", "segment_bytes=1MiB", "--config", "retention_bytes=512KiB")
        require_refused(
            cluster, USAGE, "cannot be shorter than one", "topic", "create", "short", *below
        )
        require_refused(cluster, FAILED, "too few other brokers", "broker", "drain", "3")
        require_refused(
            cluster, CONFLICT, "4 partitions: drain it first (logd broker drain 3)",
            "broker", "remove", "3",
        )  # fmt: skip

        cluster.join(EMPTY)
        wait_until_alive(cluster, EMPTY)
        require_done(cluster, "rebalance", "plan", "--save", plan)
        require_done(cluster, "topic", "create", "between", "--replicas", "1")
        require_refused(cluster, CONFLICT, "plan again", "rebalance", "run", "--plan", plan)
        assert plan_of(cluster) is None

        require_done(cluster, "broker", "drain", "3", "--detach", "--throttle", "100kB/s")
        for second in (("rebalance", "run"), ("broker", "drain", "3")):
            require_refused(cluster, CONFLICT, "or cancel it", *second)
        require_done(cluster, "rebalance", "cancel")
        require_no_bug_reported(cluster)


def test_a_drain_that_would_fill_a_disk_is_refused_and_its_rehearsal_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = found_cluster(tmp_path / "cluster")
    with stopping(cluster):
        cluster.start_all()
        anyio.run(wait_until_ready, cluster, backend="trio")
        require_done(cluster, "topic", "create", "kept", "--replicas", "3")
        lines = tmp_path / "lines"
        lines.write_bytes(b"x" * 100_000 + b"\n")
        require_done(cluster, "produce", "kept", str(lines))
        # All that it has free it is told to keep free.
        monkeypatch.setenv("LOGD_CONFIG_DISK_FREE_BYTES_MIN", str(2**50))
        cluster.join(EMPTY)
        wait_until_alive(cluster, EMPTY)

        for rehearsal in (["--dry-run"], []):
            require_refused(
                cluster, FAILED, "free above its disk_free_bytes_min",
                "broker", "drain", "3", *rehearsal,
            )  # fmt: skip
        assert plan_of(cluster) is None


def test_a_directory_of_another_cluster_is_not_let_in(tmp_path: Path) -> None:
    theirs = open_cluster(tmp_path / "theirs", broker_count=1, port=None)
    ours = open_cluster(tmp_path / "ours", broker_count=1, port=None)
    with stopping(theirs):
        theirs.start_all()
        anyio.run(wait_until_ready, theirs, backend="trio")
    with stopping(ours):
        ours.start_all()
        anyio.run(wait_until_ready, ours, backend="trio")

        ended = run_logd(
            *logd_command("serve", "--node-id", "1", "--data-dir", theirs.brokers[0].data_dir)[3:],
            *("--listen", ANY_PORT, "--peer-listen", ANY_PORT),
            *("--join", str(ours.brokers[0].peer_address)),
        )

        assert ended.returncode == FAILED
        assert "the data directory belongs to cluster" in ended.stderr.decode()
        assert sorted(brokers_of(ours)) == [1]
