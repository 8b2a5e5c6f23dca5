"""Every mutant names code that exists, exactly once: a refactoring takes the list along."""

from __future__ import annotations

import pytest

from tests.spec.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source(mutant: Mutant) -> None:
    source = (ROOT / "logd/raft" / mutant.file).read_text("utf-8")

    assert source.count(mutant.old) == 1
    assert mutant.old != mutant.new
