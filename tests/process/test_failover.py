"""Brokers are killed, stopped and frozen under load: nothing is lost, nothing is there twice.

The bounds here leave room for a busy machine; ``scripts/acceptance.py`` measures.
"""

from __future__ import annotations

import signal
import time

import pytest

from logd.cli.local_cluster import LocalCluster
from tests.process.failover import (
    Outcome,
    freeze_the_leader,
    kill_everybody,
    kill_the_leader,
    stop_the_leader,
)
from tests.process.harness import send_signal

pytestmark = pytest.mark.process

GAP_S_MAX = 4.0
RESTART_S_MAX = 10.0
STOP_S_MAX = 3.0


def require_nothing_lost(outcome: Outcome) -> None:
    assert outcome.acknowledged > 100
    assert outcome.differences.count == 0, outcome.differences


def test_a_killed_leader_loses_and_duplicates_nothing(cluster: LocalCluster) -> None:
    outcome = kill_the_leader(cluster)

    require_nothing_lost(outcome)
    assert outcome.leader_after != outcome.leader_before
    assert outcome.longest_gap_s <= GAP_S_MAX


def test_all_brokers_killed_at_once_have_every_acknowledged_record(cluster: LocalCluster) -> None:
    outcome = kill_everybody(cluster)

    require_nothing_lost(outcome)
    assert outcome.disturbed_s <= RESTART_S_MAX


def test_a_leader_that_is_told_to_stop_hands_over_and_ends(cluster: LocalCluster) -> None:
    outcome = stop_the_leader(cluster)

    require_nothing_lost(outcome)
    assert outcome.leader_after != outcome.leader_before
    assert outcome.disturbed_s <= STOP_S_MAX
    assert outcome.longest_gap_s <= STOP_S_MAX


def test_a_broker_whose_terminal_is_closed_stops_as_if_it_was_told_to(
    cluster: LocalCluster,
) -> None:
    """It is hung up on by the shell and by the kernel, at any time until it has ended."""
    one, *_ = cluster.brokers
    while cluster.is_running(one.node_id):
        send_signal(cluster, one.node_id, signal.SIGHUP)
        time.sleep(0.002)

    assert cluster.wait(one.node_id) == 0


def test_a_frozen_leader_is_replaced_and_follows_when_it_wakes(cluster: LocalCluster) -> None:
    outcome = freeze_the_leader(cluster, frozen_s=3.0)

    require_nothing_lost(outcome)
    assert outcome.leader_after != outcome.leader_before
    assert outcome.longest_gap_s <= GAP_S_MAX
