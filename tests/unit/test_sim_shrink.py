"""A failing seed is shown with the faults that it takes, and no others."""

from __future__ import annotations

import pytest

from tests.sim.faults import FAULTS, plan_faults
from tests.sim.settings import Settings
from tests.sim.shrink import shrink
from tests.sim.verdict import Verdict

PLANNED = list(range(1, 31))


def fails_if_all_of(*needed: int) -> Verdict:
    """The verdict, after shrinking, of a seed that fails if all these faults happen."""

    def run(seed: int, faults: list[int]) -> Verdict:
        signature = "LOST" if {*needed} <= {*faults} else ""
        return Verdict(seed, signature=signature, fault_numbers=tuple(faults))

    return shrink(run(1, PLANNED), PLANNED, run=run)


@pytest.mark.parametrize("needed", [(3,), (1, 30), (7, 8), (2, 15, 29)])
def test_only_the_faults_that_it_takes_are_left(needed: tuple[int, ...]) -> None:
    assert fails_if_all_of(*needed).fault_numbers == needed


def test_a_seed_that_fails_by_itself_needs_no_fault() -> None:
    assert fails_if_all_of().fault_numbers == ()


def test_another_failure_is_not_the_one_looked_for() -> None:
    def run(seed: int, faults: list[int]) -> Verdict:
        signature = "LOST" if 5 in faults else "STUCK"
        return Verdict(seed, signature=signature, fault_numbers=tuple(faults))

    assert shrink(run(1, PLANNED), PLANNED, run=run).fault_numbers == (5,)


def test_each_kind_of_fault_is_planned_in_many_seeds() -> None:
    planned = [
        {fault.kind for fault in plan_faults(seed, Settings.draw(seed))} for seed in range(200)
    ]
    for kind in FAULTS:
        assert sum(kind in kinds for kinds in planned) >= 0.05 * len(planned), kind
