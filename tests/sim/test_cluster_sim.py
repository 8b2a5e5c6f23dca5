"""Whole clusters of the real broker keep every promise under crashes, partitions and loss.

A small slice of ``make sim``, which runs hundreds of seeds.
"""

from __future__ import annotations

import pytest

from tests.sim.run import run_deterministic
from tests.sim.scenario import run_scenario

SEEDS = range(1001, 1005)
COMPACTED_SEED = 1006
"""Some of its work is done in threads, in step with everything else."""

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_breaks_no_promise(seed: int) -> None:
    report = run_deterministic(run_scenario, seed, seed=seed)

    assert report.violations == [], f"replay with: make sim SEED={seed}"
    assert report.acknowledged > 0
    assert (report.events["log_compacted"] > 0) is bool(report.settings.compaction)


def test_the_same_seed_gives_the_same_run() -> None:
    first = run_deterministic(run_scenario, COMPACTED_SEED, seed=COMPACTED_SEED)
    second = run_deterministic(run_scenario, COMPACTED_SEED, seed=COMPACTED_SEED)

    assert first.events["log_compacted"] > 0
    assert first.trace.digest == second.trace.digest
    assert first.acknowledged == second.acknowledged
