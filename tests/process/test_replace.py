"""A broker that was killed, and whose disk is gone, is replaced by another one, by command."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from logd.cli.ready import wait_until_ready
from logd.types import NodeId
from tests.process.elastic import ElasticCluster, found_cluster
from tests.process.harness import (
    POLL_S,
    brokers_of,
    require_done,
    require_no_bug_reported,
    require_refused,
    run_logd,
    wait_until_agreed,
    wait_until_alive,
    wait_until_dead,
)

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
LOST = NodeId(2)
FRESH = NodeId(4)
LINES = 2_000


@contextmanager
def running(directory: Path) -> Iterator[ElasticCluster]:
    """Three brokers, with a topic of which each has a copy."""
    cluster = found_cluster(directory / "cluster")
    try:
        cluster.start_all()
        anyio.run(wait_until_ready, cluster, backend="trio")
        require_done(cluster, "topic", "create", "kept", "--partitions", "4", "--replicas", "3")
        lines = directory / "lines"
        lines.write_text("".join(f"line {number}\n" for number in range(LINES)))
        require_done(cluster, "produce", "kept", str(lines))
        yield cluster
    finally:
        cluster.stop_all()


def wait_for(cluster: ElasticCluster, *arguments: str, code: int = 0) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while (found := run_logd(*arguments, "--bootstrap", cluster.bootstrap)).returncode != code:
        assert time.monotonic() < give_up, (arguments, found.stdout, found.stderr)
        time.sleep(POLL_S)


def wait_until_said(cluster: ElasticCluster, words: bytes, *arguments: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while words not in (said := require_done(cluster, *arguments)):
        assert time.monotonic() < give_up, said
        time.sleep(POLL_S)


def test_a_broker_whose_disk_is_lost_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        cluster.wipe(LOST)
        cluster.start(LOST)
        assert cluster.wait(LOST) == 1
        assert "never used, with --join" in cluster.last_words(LOST)
        # Nobody else could hold a third copy.
        require_refused(cluster, 1, "too few other brokers", "broker", "replace", str(LOST))
        itself = ("broker", "replace", str(LOST), "--with", str(LOST))
        require_refused(cluster, 2, "cannot take its own place", *itself)
        unknown = ("broker", "replace", str(LOST), "--with", "9")
        require_refused(cluster, 3, "no broker 9", *unknown)

        cluster.join(FRESH)
        wait_until_alive(cluster, FRESH)
        replace = ("broker", "replace", str(LOST), "--with", str(FRESH))
        require_done(cluster, *replace, "--dry-run")
        assert brokers_of(cluster)[LOST]["replicas"] == 4
        require_done(cluster, *replace)

        assert sorted(brokers_of(cluster)) == [1, 3, FRESH]
        assert brokers_of(cluster)[FRESH]["replicas"] == 4
        cluster.leave_out(LOST)
        wait_for(cluster, "cluster", "status")
        # All of it is there when another one of the old brokers is gone too.
        cluster.kill(NodeId(1))
        read = require_done(cluster, "consume", "kept", "--count", str(LINES))
        assert sorted(read.split(b"\n")[:-1]) == sorted(b"line %d" % n for n in range(LINES))
        require_no_bug_reported(cluster)


def test_what_only_a_dead_broker_has_is_left_alone_until_it_is_back_and_the_rest_is_replaced(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as cluster:
        require_done(cluster, "topic", "create", "alone", "--partitions", "3", "--replicas", "1")
        cluster.join(FRESH)
        wait_until_alive(cluster, FRESH)
        cluster.kill(LOST)
        wait_until_dead(cluster, LOST)
        replace = ("broker", "replace", str(LOST), "--with", str(FRESH))
        status = ("rebalance", "status")
        there_alone = ("partition", "move", "kept/0", "--to", str(LOST))

        require_refused(cluster, 5, "without it nobody could lead kept/0", *there_alone)
        # A controller that has just become it looks around first.
        wait_until_said(cluster, b"1 cannot be rebuilt: too few copies", *status)
        for _ in range(2):
            require_refused(cluster, 1, f"start broker {LOST} again", *replace)
        require_refused(cluster, 1, "1 partition: alone/", "rebalance", "run", "--replace-dead")

        anyio.run(wait_until_agreed, cluster, backend="trio")
        found = brokers_of(cluster)[LOST]
        assert (found["replicas"], found["draining"]) == (1, True)
        cluster.start(LOST)
        wait_for(cluster, "broker", "remove", str(LOST))
        require_no_bug_reported(cluster)


def test_a_replacement_is_refused_while_its_successor_is_draining(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        cluster.join(FRESH)
        wait_until_alive(cluster, FRESH)
        require_done(cluster, "broker", "drain", str(FRESH))
        words = "is draining: `logd broker resume 4`"
        replace = ("broker", "replace", str(LOST), "--with", str(FRESH))

        require_refused(cluster, 4, words, *replace)

        assert not brokers_of(cluster)[LOST]["draining"]
