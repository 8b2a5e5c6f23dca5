"""Real brokers are evened out, drained and removed under load, whoever is killed meanwhile.

Small; ``scripts/rebalancing.py`` does it in full size.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from logd.cli.local_cluster import stopping
from logd.limits import MIB
from tests.process.elastic import found_cluster
from tests.process.harness import require_no_bug_reported
from tests.process.rebalancing import Size, rebalance_under_load

pytestmark = pytest.mark.process


SMALL = Size(
    partitions=6,
    fill_bytes=6 * MIB,
    throttle_bytes_per_s=5 * MIB,
    kills=2,
    appends_per_s=25,
)
"""Moves of a second or two, under a load that leaves the machine to the brokers."""


def test_two_brokers_join_two_leave_and_one_that_was_wiped_is_replaced(tmp_path: Path) -> None:
    cluster = found_cluster(tmp_path)

    with stopping(cluster):
        cluster.start_all()
        figures = rebalance_under_load(cluster, SMALL)

    assert figures.run_outcome == "done"
    assert set(figures.replicas) == {1, 2, 3, 4, 5}
    assert max(figures.replicas.values()) - min(figures.replicas.values()) <= 1
    assert figures.left == []
    assert figures.acknowledged > 0
    assert (figures.missing, figures.twice, figures.out_of_order) == (0, 0, 0)
    require_no_bug_reported(cluster)
