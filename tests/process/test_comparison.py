"""The comparison that all verdicts rest on finds what it is there to find."""

from __future__ import annotations

import pytest

from logd.types import NodeId
from tests.process.harness import StoredRecord
from tests.process.load import Differences, compare

ACKNOWLEDGED = {b"a": 1, b"b": 2, b"c": 4}
STORED = (StoredRecord(1, b"a"), StoredRecord(2, b"b"), StoredRecord(4, b"c"))


def compared(second: tuple[StoredRecord, ...]) -> Differences:
    return compare(ACKNOWLEDGED, {NodeId(1): STORED, NodeId(2): second})


def test_equal_replicas_with_everything_acknowledged_differ_in_nothing() -> None:
    assert compared(STORED).count == 0


def test_a_record_that_was_never_acknowledged_may_be_there() -> None:
    more = (*STORED, StoredRecord(5, b"in doubt"))

    assert compare(ACKNOWLEDGED, {NodeId(1): more, NodeId(2): more}).count == 0


@pytest.mark.parametrize(
    ("second", "lost", "duplicated", "misplaced"),
    [
        pytest.param(STORED[:2], 1, 0, 1, id="lost"),
        pytest.param((*STORED, StoredRecord(5, b"a")), 0, 1, 2, id="stored twice"),
        pytest.param((*STORED[:2], StoredRecord(5, b"c")), 0, 0, 2, id="at another offset"),
        pytest.param((*STORED, StoredRecord(5, b"d")), 0, 0, 1, id="only on one replica"),
    ],
)
def test_every_way_to_differ_is_counted(
    second: tuple[StoredRecord, ...], lost: int, duplicated: int, misplaced: int
) -> None:
    found = compared(second)

    assert (found.lost, found.duplicated, found.misplaced) == (lost, duplicated, misplaced)
    assert found.examples
