"""docs/failure_model.md names its tests, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[2]
DOCUMENT: Final = (REPOSITORY / "docs" / "failure_model.md").read_text(encoding="utf-8")
NAMED: Final = re.compile(r"`(tests/[^`]+)`")
TEST_COLUMN: Final = {"promise": 2, "phase": 3}
"""By the first column's title: where the test stands."""


def tables() -> list[list[list[str]]]:
    """Cells of the rows of each table, its head first."""
    found: list[list[list[str]]] = [[]]
    for line in DOCUMENT.splitlines():
        if line.startswith("| "):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found[-1] and not line.startswith("|-"):
            found.append([])
    return [table for table in found if table]


@pytest.mark.parametrize("named", sorted(set(NAMED.findall(DOCUMENT))))
def test_a_test_that_is_named_exists(named: str) -> None:
    path, _, function = named.partition("::")
    file = REPOSITORY / path

    assert file.is_file()
    if function:
        source = file.read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {function}\(", source, re.MULTILINE)


def test_every_fault_and_every_phase_has_a_test() -> None:
    for head, *rows in tables():
        column = TEST_COLUMN[head[0]]
        for row in rows:
            assert len(row) == len(head), row
            tested = NAMED.search(row[column]) or re.search(r"`make \w+`", row[column])
            assert tested, f"no test for: {row[:2]}"
