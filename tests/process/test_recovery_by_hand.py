"""What docs/operations.md says to do when a majority is lost for good, and how to make a backup."""

from __future__ import annotations

import json
import time
from pathlib import Path

import anyio
import pytest

from logd.cli.local_cluster import stopping
from logd.cli.ready import wait_until_ready
from logd.types import NodeId
from tests.process.elastic import found_cluster
from tests.process.harness import require_done, run_logd

pytestmark = pytest.mark.process

UNREACHABLE = 5
PATIENCE_S = 30.0
PLACE = {"topic", "partition", "offset"}
LINES = [f"line {number}" for number in range(500)]


def test_a_survivor_of_a_lost_majority_is_read_and_a_backup_is_put_back(tmp_path: Path) -> None:
    cluster = found_cluster(tmp_path / "cluster")
    written = tmp_path / "written"
    written.write_text("".join(f"{line}\n" for line in LINES))
    with stopping(cluster):
        cluster.start_all()
        anyio.run(wait_until_ready, cluster, backend="trio")
        require_done(cluster, "topic", "create", "orders", "--replicas", "3")
        require_done(cluster, "produce", "orders", str(written))

        # A backup in plain lines is taken back by `logd produce`.
        backup = tmp_path / "backup"
        backup.write_bytes(
            require_done(cluster, "consume", "orders", "--from", "start", "--count", "500")
        )
        assert backup.read_text().splitlines() == LINES
        require_done(cluster, "topic", "create", "again")
        require_done(cluster, "produce", "again", str(backup))
        read = require_done(cluster, "consume", "again", "--from", "start", "--count", "500")
        assert read.decode().splitlines() == LINES

        # One in JSON has keys, headers and timestamps too, and what has line breaks or is no text.
        put = [
            {"key": "k", "value_base64": "/wo=", "timestamp_ms": 7, "headers": []},
            {
                "key": "k",
                "value": None,
                "timestamp_ms": 8,
                "headers": [{"name": "h", "value": "v"}],
            },
        ]
        backup.write_text("".join(f"{json.dumps(record)}\n" for record in put))
        require_done(cluster, "topic", "create", "whole")
        for _ in range(2):  # As written by hand, and then as printed.
            require_done(cluster, "produce", "whole", "--input", "json", str(backup))
            backup.write_bytes(require_done(cluster, "consume", "whole", "--output", "json"))
        rows = [json.loads(line) for line in backup.read_text().splitlines()]
        found_again = [{name: row[name] for name in row.keys() - PLACE} for row in rows]
        assert found_again == [*put, *put]

        # Two of three brokers are gone with their disks.
        for lost in (NodeId(2), NodeId(3)):
            cluster.wipe(lost)
        give_up = time.monotonic() + PATIENCE_S
        while True:  # Until the survivor has noticed that it leads nobody any more.
            status = run_logd("cluster", "status", "--bootstrap", cluster.bootstrap)
            if status.returncode == UNREACHABLE:
                break
            assert time.monotonic() < give_up, status
        assert b"nodes 2, 3" in status.stderr or b"missing: 2" in status.stderr, status.stderr
        survivor = require_done(
            cluster, "consume", "orders", "--replica", "1", "--partition", "0",
            "--from", "start", "--count", "500", "--output", "json",
        )  # fmt: skip
        assert [json.loads(row)["value"] for row in survivor.splitlines()] == LINES

    # Its files can be read without any broker, also from a copy.
    groups = sorted((cluster.broker(NodeId(1)).data_dir / "groups").iterdir())
    found = [
        [row.get("value") for row in map(json.loads, dump.stdout.splitlines())]
        for group in groups
        if (dump := run_logd("segment", "dump", group, "--records", "--output", "json")).stdout
    ]
    assert LINES in found
