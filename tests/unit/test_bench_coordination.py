"""The row that is reported is one that was measured, and never the best of a few."""

from __future__ import annotations

import pytest

from bench.coordination import Row, beside, median_row
from bench.peers.peer import PeerRun
from logd.cli.measure import Latency

LATENCY = Latency(p50=1.0, p99=2.0, p999=3.0, max=4.0)


def row(per_s: float) -> Row:
    return Row(
        name="puts",
        operation="put",
        operations=100,
        seconds=1.0,
        per_s=per_s,
        latency_ms=LATENCY,
        leader_us=1.0,
        follower_us=1.0,
        client_us=1.0,
        leader_core_percent=1.0,
        load=1.0,
    )


@pytest.mark.parametrize(
    ("rates", "reported"), [([5], 5), ([7, 5], 5), ([9, 5, 7], 7), ([9, 5, 7, 8], 7)]
)
def test_the_run_in_the_middle_is_reported_and_of_two_the_slower_one(
    rates: list[float], reported: float
) -> None:
    assert median_row([row(rate) for rate in rates]).per_s == reported


def test_the_ratio_to_a_peer_is_the_median_of_the_rounds_and_not_of_the_medians() -> None:
    ours = [row(rate) for rate in (100.0, 200.0, 900.0)]
    theirs = [PeerRun(rate, 1.0, 2.0) for rate in (100.0, 50.0, 300.0)]

    found = beside(ours, {"peer": theirs}).peers["peer"]

    assert found.per_s == 100.0
    assert found.ratio == 3.0
