"""A change is called one only if no run of either side falls among the other's, and what cannot be
compared is said."""

from __future__ import annotations

import pytest

from bench.changes import compare, unmatched


@pytest.mark.parametrize(
    ("before", "after", "is_beyond_noise"),
    [
        ([10.0, 11.0, 12.0], [20.0, 21.0, 22.0], True),
        ([20.0, 21.0, 22.0], [10.0, 11.0, 12.0], True),
        ([10.0, 11.0, 30.0], [20.0, 21.0, 22.0], False),  # They overlap.
        ([10.0, 10.1, 10.2], [10.3, 10.4, 10.5], False),  # Apart, but by little.
    ],
)
def test_a_change_is_beyond_noise(
    before: list[float], after: list[float], is_beyond_noise: bool
) -> None:
    (change,) = compare({"a": before, "gone": [1.0]}, {"a": after, "new": [1.0]})

    assert change.is_beyond_noise is is_beyond_noise
    assert change.ratio == pytest.approx(sorted(after)[1] / sorted(before)[1])


def test_a_benchmark_that_only_one_side_has_is_named() -> None:
    found = unmatched({"a": [1.0], "old name": [1.0]}, {"a": [1.0], "new name": [1.0]})

    assert found == ["only before: old name", "only here: new name"]
