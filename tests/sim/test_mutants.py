"""Every mutant names code that exists, exactly once: a refactoring takes the list along."""

from __future__ import annotations

import pytest

from tests.sim.mutants import FAST_TESTS, MUTANTS, ROOT, fits
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
