"""Every broker restarted in turn under load: nobody loses a record, and nobody waits for long.

The bound leaves room for a busy machine; ``scripts/rolling_restart.py`` measures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from logd.cli.local_cluster import open_cluster, stopping
from tests.process.harness import require_no_bug_reported
from tests.process.rolling import restart_in_turn

pytestmark = pytest.mark.process

GAP_S_MAX = 3.0


def test_a_rolling_restart_loses_nothing_and_stops_no_producer(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path, broker_count=3, port=None)

    with stopping(cluster):
        cluster.start_all()
        figures = restart_in_turn(cluster, partitions=3)

    assert [one.node for one in figures.restarts] == [1, 2, 3]
    assert figures.acknowledged > 100
    assert (figures.missing, figures.twice, figures.out_of_order) == (0, 0, 0)
    assert figures.longest_gap_s <= GAP_S_MAX
    require_no_bug_reported(cluster)
