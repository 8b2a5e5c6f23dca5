"""Each record of the batch at hand is given out once, alone or with what is left, whatever comes
meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from logd_client.batch_at_hand import BatchAtHand
from logd_client.records import Batch, Record


class Columns:
    """What a batch is made of."""

    header = SimpleNamespace(append_time_ms=0, first_timestamp_ms=0)

    def __init__(self, offsets: Sequence[int]) -> None:
        self.offsets = offsets
        self.timestamp_deltas = self.keys = self.values = self.headers = offsets

    def __len__(self) -> int:
        return len(self.offsets)


def batch_of(*offsets: int, partition: int = 0) -> Batch:
    return Batch("orders", partition, cast("Any", Columns(offsets)))


def taken_from(at_hand: BatchAtHand, count: int) -> list[int]:
    records = [at_hand.take_record() for _ in range(count)]
    return [record.offset for record in records if record is not None]


def test_records_are_given_out_one_by_one_until_none_is_left() -> None:
    at_hand = BatchAtHand()
    at_hand.bring(batch_of(4, 5, 9))

    assert at_hand.is_left
    assert taken_from(at_hand, 4) == [4, 5, 9]
    assert not at_hand.is_left


def test_the_rest_of_a_batch_is_what_was_not_given_out_of_it() -> None:
    at_hand = BatchAtHand()
    at_hand.bring(batch_of(4, 5, 9))
    taken_from(at_hand, 1)

    rest = at_hand.take_rest()

    assert rest is not None
    assert list(rest.offsets) == [5, 9]
    assert at_hand.take_record() is None
    assert at_hand.take_rest() is None


def test_of_a_batch_that_was_read_to_its_end_there_is_no_rest() -> None:
    at_hand = BatchAtHand()
    at_hand.bring(batch_of(4, 5))
    taken_from(at_hand, 2)

    assert at_hand.take_rest() is None


def test_the_position_is_that_of_the_next_record_while_any_is_left_of_its_partition() -> None:
    at_hand = BatchAtHand()
    at_hand.bring(batch_of(4, 5, 9, partition=1))

    positions = []
    for _ in range(4):
        positions.append(at_hand.position(1))
        at_hand.take_record()

    assert positions == [4, 5, 6, None]
    assert at_hand.position(0) is None


def test_once_it_is_stopped_nothing_is_given_out_and_the_position_stays() -> None:
    at_hand = BatchAtHand()
    at_hand.bring(batch_of(4, 5))

    at_hand.stop()

    assert at_hand.take_record() is None
    assert at_hand.take_rest() is None
    assert at_hand.position(0) == 4


class Watched(BatchAtHand):
    """Something happens as a thread looks at the last record: just before, or just after."""

    def __init__(self) -> None:
        self._last: Record | None = None
        self.before: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None
        super().__init__()

    @property
    def last_record(self) -> Record | None:
        self._happen("before")
        last = self._last
        self._happen("after")
        return last

    @last_record.setter
    def last_record(self, record: Record | None) -> None:
        self._last = record

    def _happen(self, moment: Literal["before", "after"]) -> None:
        happens = self.before if moment == "before" else self.after
        if happens is not None:
            self.before = self.after = None
            happens()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_batch_that_comes_from_a_wait_that_was_interrupted_is_not_swept_away(
    moment: Literal["before", "after"],
) -> None:
    """Whoever was interrupted asks again before the event loop has heard that it was."""
    at_hand = Watched()
    setattr(at_hand, moment, lambda: at_hand.bring(batch_of(0, 1)))

    batch = at_hand.take_rest() or at_hand.take_rest()

    assert batch is not None
    assert list(batch.offsets) == [0, 1]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_batch_that_was_read_is_not_given_out_again_in_place_of_one_that_just_comes(
    moment: Literal["before", "after"],
) -> None:
    at_hand = Watched()
    at_hand.bring(batch_of(0, 1))
    assert taken_from(at_hand, 3) == [0, 1]
    setattr(at_hand, moment, lambda: at_hand.bring(batch_of(2, 3)))

    batch = at_hand.take_rest() or at_hand.take_rest()

    assert batch is not None
    assert list(batch.offsets) == [2, 3]
