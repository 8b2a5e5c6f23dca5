"""Real brokers are evened out, drained and removed under load, whoever is killed meanwhile.

Small; ``scripts/rebalancing.py`` does it in full size.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from logd.cli.local_cluster import open_cluster, stopping
from logd.limits import MIB
from tests.process.elastic import found_cluster
from tests.process.harness import require_no_bug_reported
from tests.process.rebalancing import BROKERS, Size, rebalance_under_load

pytestmark = pytest.mark.process


def small(*, kills: int, joins: bool = False) -> Size:
    """Moves of a second or two, under a load that leaves the machine to the brokers."""
    return Size(
        partitions=6,
        fill_bytes=6 * MIB,
        throttle_bytes_per_s=5 * MIB,
        kills=kills,
        joins=joins,
        appends_per_s=25,
    )


def test_two_empty_brokers_get_their_share_and_another_leaves(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path, broker_count=BROKERS, port=None)
    size = small(kills=2)

    with stopping(cluster):
        cluster.start_all()
        figures = rebalance_under_load(cluster, size)

    assert figures.run_outcome == "done"
    assert set(figures.replicas) == {1, 2, 3, 4, 5}
    assert max(figures.replicas.values()) - min(figures.replicas.values()) <= 1
    assert figures.left == []
    assert figures.acknowledged > 0
    assert (figures.missing, figures.twice, figures.out_of_order) == (0, 0, 0)
    require_no_bug_reported(cluster)


def test_two_brokers_join_two_leave_and_one_that_was_wiped_is_replaced(tmp_path: Path) -> None:
    cluster = found_cluster(tmp_path)
    size = small(kills=1, joins=True)

    with stopping(cluster):
        cluster.start_all()
        figures = rebalance_under_load(cluster, size)

    assert figures.run_outcome == "done"
    assert set(figures.replicas) == {1, 2, 3, 4, 5}
    assert figures.left == []
    assert figures.acknowledged > 0
    assert (figures.missing, figures.twice, figures.out_of_order) == (0, 0, 0)
    require_no_bug_reported(cluster)
