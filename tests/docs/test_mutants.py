"""docs/mutants.md lists every mutant there is, in its place, and names tests that exist."""

from __future__ import annotations

from pathlib import Path

from tests.sim.mutants import (
    MUTANTS,
    PAGE,
    UNTRIED,
    killers_on_page,
    layer_of,
    render,
    told_of_others,
)

ROOT = PAGE.parents[1]
ANEW = "try the new ones: python -m tests.sim.mutants --write NAME…"


def test_the_page_is_what_the_lists_say() -> None:
    killers = killers_on_page()

    assert [mutant.name for mutant in MUTANTS if mutant.name not in killers] == [], ANEW
    assert PAGE.read_text("utf-8") == render(killers), ANEW


def test_what_killed_a_mutant_is_still_there() -> None:
    for killer in killers_on_page().values():
        if killer == UNTRIED:
            continue
        assert layer_of(killer)
        file, _, test = killer.partition("::")
        if test:
            assert f"def {test}(" in Path(ROOT, file).read_text("utf-8"), killer


def test_who_meets_another_killer_than_the_page_names_is_told() -> None:
    on_page = {"a": "tests/x.py::one", "b": "tests/x.py::two"}
    found = {"a": "tests/x.py::one", "b": "tests/y.py::new", "c": "tests/z.py::one"}

    assert told_of_others(on_page, found) == [
        "b: mutants.md has it killed by tests/x.py::two; --write corrects that"
    ]
