"""Overload slows producers down; it does not grow brokers.

Short versions of what ``scripts/acceptance.py`` does for a minute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from tests.process.harness import BROKERS, make_whole, require_no_bug_reported
from tests.process.memory import GROWTH_BYTES_MAX, push, push_past_a_frozen_follower

pytestmark = pytest.mark.process


@pytest.fixture
def fresh_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Its memory has not been used yet, and its data does not stay."""
    cluster = open_cluster(tmp_path / "cluster", broker_count=BROKERS, port=None)
    try:
        with stopping(cluster):
            make_whole(cluster)
            yield cluster
        require_no_bug_reported(cluster)
    finally:
        for broker in cluster.brokers:
            shutil.rmtree(broker.data_dir)


def test_producers_that_push_do_not_grow_brokers(fresh_cluster: LocalCluster) -> None:
    run = push(fresh_cluster, push_s=4.0)

    assert run.growth_bytes <= GROWTH_BYTES_MAX


def test_a_frozen_follower_does_not_grow_its_leaders_and_catches_up(
    fresh_cluster: LocalCluster,
) -> None:
    run = push_past_a_frozen_follower(fresh_cluster, frozen_s=3.0)

    assert run.caught_up_s > 0
    assert run.growth_bytes <= GROWTH_BYTES_MAX
