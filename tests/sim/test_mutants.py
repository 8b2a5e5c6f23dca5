"""Every mutant names code that exists, exactly once: a refactoring takes the list along."""

from __future__ import annotations

import pytest

from tests.sim.mutants import FAST_TESTS, MUTANTS, fits
from tests.spec.mutants import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source(mutant: Mutant) -> None:
    assert fits(mutant)
    assert mutant.old != mutant.new
    assert any(mutant.file.startswith(folder) for folder in FAST_TESTS)
