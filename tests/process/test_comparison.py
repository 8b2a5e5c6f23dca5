"""What the verdicts of scripts and process tests rest on finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from logd.types import NodeId
from tests.process.harness import StoredRecord
from tests.process.load import Differences, compare
from tests.process.rolling import longest_gap_s
from tests.process.scratch import scratch

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


@pytest.mark.parametrize(
    ("times", "longest_s"),
    [
        pytest.param([1, 2, 3, 4, 5, 6], 1, id="steady"),
        pytest.param([1, 4, 5, 6], 3, id="it began before"),
        pytest.param([1, 2, 3, 4, 9], 5, id="it ended afterwards"),
        pytest.param([1, 2, 3], 3, id="it has not ended"),
        pytest.param([], 4, id="nothing ever came"),
        pytest.param([0, 1.5, 2, 3, 4, 5, 6, 9], 1, id="those before and afterwards do not count"),
    ],
)
def test_the_longest_gap_from_2_to_6_is_found(times: list[float], longest_s: float) -> None:
    assert longest_gap_s(times, 2, 6) == longest_s


def test_what_a_run_leaves_behind_is_removed_if_all_was_well(tmp_path: Path) -> None:
    with scratch("run", tmp_path) as found:
        (found.path / "broker.log").write_text("all is well")

    assert not found.path.exists()


def test_what_a_run_leaves_behind_is_kept_and_named_if_something_was_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scratch("run", tmp_path) as said:
        said.is_kept = True
    with pytest.raises(KeyboardInterrupt), scratch("run", tmp_path) as ended:
        raise KeyboardInterrupt
    with pytest.raises(AssertionError, match="a bug"), scratch("run", tmp_path) as reported:
        (reported.path / "broker.log").write_text("Traceback: a bug")

    told = capsys.readouterr().err
    for found in (said, ended, reported):
        assert found.path.exists()
        assert str(found.path) in told
