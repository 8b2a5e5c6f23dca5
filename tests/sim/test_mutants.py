"""Every mutant names code that exists, exactly once: a refactoring takes the list along."""

from __future__ import annotations

import pytest

from tests.sim.mutants import FAST_TESTS, MUTANTS, ROOT, choose, fits
from tests.spec.mutants import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source(mutant: Mutant) -> None:
    assert fits(mutant)
    assert mutant.old != mutant.new
    assert any(mutant.file.startswith(folder) for folder in FAST_TESTS)


def test_what_looks_at_mutants_is_there() -> None:
    """A test file that was renamed fails for every mutant, and would be said to kill it."""
    missing = [
        test for tests in FAST_TESTS.values() for test in tests if not (ROOT / test).exists()
    ]

    assert missing == []


def test_what_ci_tries_of_one_commit_or_another_are_all() -> None:
    every = 20

    parts = [choose([], every, first) for first in range(every)]

    assert sorted(mutant.name for part in parts for mutant in part) == sorted(
        mutant.name for mutant in MUTANTS
    )
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("names", "every", "first"), [(["no such mutant"], 1, 0), ([], 20, 20), (["watch"], 20, 19)]
)
def test_to_try_none_is_a_mistake(names: list[str], every: int, first: int) -> None:
    with pytest.raises(ValueError, match=r"no mutant|--first|none"):
        choose(names, every, first)
