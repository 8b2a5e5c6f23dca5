"""The leader of the coordination log is killed under load: no lock is lost by a session that
lives, no item is lost or completed twice."""

from __future__ import annotations

import pytest

from logd.cli.local_cluster import LocalCluster
from tests.process.coordination_failover import kill_the_leader

pytestmark = pytest.mark.process

GAP_S_MAX = 4.0
"""Room for a busy machine; the figure is measured apart."""


def test_a_killed_leader_takes_no_lock_and_no_item_along(cluster: LocalCluster) -> None:
    outcome = kill_the_leader(cluster)

    assert outcome.acknowledged > 50
    assert outcome.leader_after != outcome.leader_before
    assert outcome.locks_lost == outcome.sessions_lost == 0
    assert outcome.items_put > 20
    assert outcome.items_completed == outcome.items_put
    assert outcome.items_completed_twice == 0
    assert outcome.queue.completed == outcome.items_put
    assert outcome.queue.dead == outcome.queue.in_flight == outcome.queue.ready == 0
    assert outcome.longest_gap_s <= GAP_S_MAX
