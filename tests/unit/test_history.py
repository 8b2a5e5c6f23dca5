"""A history that a log can have is accepted; each way to break a promise is named."""

from __future__ import annotations

import pytest

from logd.types import TopicPartition
from tests.sim.history import AppendId, History, Outcome, Rule, check_history

P0 = TopicPartition("events", 0)
P1 = TopicPartition("events", 1)


def appended(history: History, *records: tuple[int, bytes]) -> None:
    """Appends, one after the other, acknowledged at these offsets."""
    for offset, value in records:
        history.acknowledge(history.invoke("producer", P0, value), offset)


def consumed(history: History, *records: tuple[int, bytes], consumer: str = "consumer") -> None:
    for offset, value in records:
        history.read(consumer, P0, offset, value)


def rules(history: History) -> list[Rule]:
    return [violation.rule for violation in check_history(history)]


def test_an_empty_history_is_fine() -> None:
    assert check_history(History()) == []


def test_everything_acknowledged_and_read_everywhere_is_fine() -> None:
    history = History()
    appended(history, (1, b"a"), (2, b"b"), (5, b"c"))
    consumed(history, (1, b"a"), (2, b"b"), (5, b"c"))
    for node in ("node-1", "node-2"):
        history.read_finally(node, P0, [(1, b"a"), (2, b"b"), (5, b"c")])

    assert check_history(history) == []


def test_an_append_of_unknown_outcome_may_be_seen_or_not() -> None:
    history = History()
    history.invoke("producer", P0, b"seen")
    history.invoke("producer", P0, b"never seen")
    history.read_finally("node-1", P0, [(0, b"seen")])

    assert check_history(history) == []


def test_a_refused_append_that_is_not_seen_is_fine() -> None:
    history = History()
    history.refuse(history.invoke("producer", P0, b"a"))
    history.read_finally("node-1", P0, [])

    assert check_history(history) == []


def test_a_consumer_that_begins_late_and_stops_early_is_fine() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"), (2, b"c"))
    consumed(history, (1, b"b"))

    assert check_history(history) == []


def test_a_consumer_may_seek_back() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    consumed(history, (0, b"a"), (1, b"b"))
    history.seek("consumer", P0, 0)
    consumed(history, (0, b"a"), (1, b"b"))

    assert check_history(history) == []


def test_what_lies_below_the_log_start_of_a_copy_is_not_missed() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    history.read_finally("node-1", P0, [(1, b"b")], log_start=1)

    assert check_history(history) == []


def test_an_acknowledged_record_absent_from_one_copy_is_lost_there() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    history.read_finally("node-1", P0, [(0, b"a"), (1, b"b")])
    history.read_finally("node-2", P0, [(0, b"a")])

    [violation] = check_history(history)

    assert violation.rule is Rule.LOST
    assert "node-2 lacks b'b' at 1" in violation.details


def test_a_record_read_by_a_consumer_and_absent_from_a_copy_is_lost() -> None:
    history = History()
    history.invoke("producer", P0, b"a")
    consumed(history, (0, b"a"))
    history.read_finally("node-1", P0, [])

    assert rules(history) == [Rule.LOST]


def test_an_acknowledged_record_that_the_only_reader_passed_is_lost() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"), (2, b"c"))
    consumed(history, (0, b"a"), (2, b"c"))

    assert rules(history) == [Rule.LOST]


def test_a_record_that_one_consumer_passed_and_another_read_is_skipped() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"), (2, b"c"))
    consumed(history, (0, b"a"), (1, b"b"), (2, b"c"))
    consumed(history, (0, b"a"), (2, b"c"), consumer="other")

    [violation] = check_history(history)

    assert violation.rule is Rule.SKIPPED
    assert violation.details == "other passed b'b' at 1"


def test_a_record_between_the_position_sought_and_the_first_one_read_is_skipped() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    consumed(history, (0, b"a"), (1, b"b"))
    history.seek("other", P0, 0)
    consumed(history, (1, b"b"), consumer="other")

    assert rules(history) == [Rule.SKIPPED]


def test_one_value_at_two_offsets_is_a_duplicate() -> None:
    history = History()
    appended(history, (0, b"a"))
    history.read_finally("node-1", P0, [(0, b"a"), (1, b"a")])

    assert rules(history) == [Rule.DUPLICATE]


def test_two_values_at_one_offset_are_inconsistent() -> None:
    history = History()
    history.invoke("producer", P0, b"a")
    history.invoke("producer", P0, b"b")
    consumed(history, (0, b"a"))
    consumed(history, (0, b"b"), consumer="other")

    assert rules(history) == [Rule.INCONSISTENT]


def test_two_acknowledgements_of_one_offset_are_inconsistent() -> None:
    history = History()
    first, second = history.invoke("one", P0, b"a"), history.invoke("two", P0, b"b")
    history.acknowledge(first, 0)
    history.acknowledge(second, 0)

    assert rules(history) == [Rule.INCONSISTENT]


def test_a_refused_append_that_is_seen_is_an_aborted_read() -> None:
    history = History()
    history.refuse(history.invoke("producer", P0, b"a"))
    consumed(history, (0, b"a"))

    assert rules(history) == [Rule.ABORTED]


def test_a_value_nobody_appended_is_invented() -> None:
    history = History()
    consumed(history, (0, b"from nowhere"))

    assert rules(history) == [Rule.INVENTED]


def test_a_value_in_another_partition_than_it_was_appended_to_is_invented_there() -> None:
    history = History()
    history.invoke("producer", P1, b"a")
    consumed(history, (0, b"a"))

    [violation] = check_history(history)

    assert violation.rule is Rule.INVENTED
    assert violation.partition == P0


def test_a_consumer_that_is_given_an_earlier_offset_went_backwards() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    consumed(history, (0, b"a"), (1, b"b"), (0, b"a"))

    assert rules(history) == [Rule.BACKWARDS]


def test_a_consumer_that_is_given_one_record_twice_went_backwards() -> None:
    history = History()
    appended(history, (0, b"a"))
    consumed(history, (0, b"a"), (0, b"a"))

    assert rules(history) == [Rule.BACKWARDS]


def test_a_record_below_the_position_sought_is_backwards() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    history.seek("consumer", P0, 1)
    consumed(history, (0, b"a"), (1, b"b"))

    assert rules(history) == [Rule.BACKWARDS]


def test_a_record_found_elsewhere_than_acknowledged_has_the_wrong_offset() -> None:
    history = History()
    appended(history, (0, b"a"))
    consumed(history, (1, b"a"))

    assert rules(history) == [Rule.WRONG_OFFSET]


def test_an_append_begun_after_an_acknowledgement_may_not_lie_before_it() -> None:
    history = History()
    appended(history, (5, b"a"), (4, b"b"))

    assert rules(history) == [Rule.OUT_OF_ORDER]


def test_an_unanswered_append_begun_after_an_acknowledgement_may_not_lie_before_it() -> None:
    history = History()
    appended(history, (5, b"a"))
    history.invoke("producer", P0, b"b")
    consumed(history, (4, b"b"), (5, b"a"))

    assert rules(history) == [Rule.OUT_OF_ORDER]


def test_appends_under_way_at_the_same_time_may_lie_in_either_order() -> None:
    history = History()
    first, second = history.invoke("one", P0, b"a"), history.invoke("two", P0, b"b")
    history.acknowledge(first, 1)
    history.acknowledge(second, 0)

    assert check_history(history) == []


def test_outcomes_are_counted() -> None:
    history = History()
    appended(history, (0, b"a"), (1, b"b"))
    history.refuse(history.invoke("producer", P0, b"c"))
    history.invoke("producer", P0, b"d")

    assert [history.count(outcome) for outcome in Outcome] == [1, 2, 1]


def conditional(history: History, value: bytes, expected: int, offset: int | None) -> None:
    """A conditional append: committed at ``offset``, or refused because of its condition."""
    append = history.invoke("writer", P0, value, expected_offset=expected)
    if offset is None:
        history.refuse_condition(append)
    else:
        history.acknowledge(append, offset)


def test_conditional_appends_that_follow_one_another_are_fine() -> None:
    history = History()
    conditional(history, b"a", 0, 0)
    conditional(history, b"b", 0, None)  # It lost against a.
    conditional(history, b"c", 1, 3)  # No records were at 1 and 2.
    history.read_finally("node-1", P0, [(0, b"a"), (3, b"c")])

    assert check_history(history) == []


def test_two_winners_of_one_expected_offset_are_a_violation() -> None:
    history = History()
    conditional(history, b"a", 0, 0)
    conditional(history, b"b", 0, 1)

    assert rules(history) == [Rule.CONDITION]


def test_a_conditional_append_behind_a_record_nobody_was_told_of_is_a_violation() -> None:
    history = History()
    history.invoke("producer", P0, b"unknown")
    conditional(history, b"a", 0, 1)
    history.read_finally("node-1", P0, [(0, b"unknown"), (1, b"a")])

    assert rules(history) == [Rule.CONDITION]


def test_a_conditional_append_refused_while_nothing_lay_there_is_a_violation() -> None:
    history = History()
    conditional(history, b"a", 0, None)
    appended(history, (0, b"later"))  # Begun after the refusal: no excuse for it.
    history.read_finally("node-1", P0, [(0, b"later")])

    assert rules(history) == [Rule.UNJUSTIFIED]


# --- compacted logs -----------------------------------------------------------------------


class Keys:
    """A history of one key in a compacted log; time passes as the tests say."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.history = History(lambda: self.now_s)
        self.history.tombstones_last_s = 10.0

    def appended(self, offset: int, value: bytes, *, deletes: bool = False) -> None:
        self.history.acknowledge(self.begun(value, deletes=deletes), offset)

    def begun(self, value: bytes, *, deletes: bool = False) -> AppendId:
        return self.history.invoke("producer", P0, value, key=b"key", deletes=deletes)

    def consumed(self, *records: tuple[int, bytes]) -> None:
        """By somebody who begins at 0."""
        self.history.seek("consumer", P0, 0)
        consumed(self.history, *records)

    def other(self, offset: int) -> tuple[int, bytes]:
        """A record of another key."""
        value = b"%d" % offset
        self.history.acknowledge(self.history.invoke("producer", P0, value, key=b"other"), offset)
        return offset, value


def test_a_record_whose_key_got_a_later_one_may_be_gone() -> None:
    keys = Keys()
    keys.appended(0, b"old")
    keys.appended(1, b"new")
    keys.consumed((1, b"new"))
    keys.history.read_finally("node-1", P0, [(1, b"new")])

    assert check_history(keys.history) == []


def test_the_last_record_of_a_key_may_not_be_gone() -> None:
    keys = Keys()
    keys.appended(0, b"old")
    keys.appended(1, b"new")
    other = keys.other(2)
    keys.consumed((0, b"old"), other)
    keys.history.read_finally("node-1", P0, [(0, b"old"), other])

    assert rules(keys.history) == [Rule.LOST, Rule.LOST]


def test_a_record_may_not_be_gone_before_its_key_got_a_later_one() -> None:
    keys = Keys()
    keys.appended(0, b"old")
    keys.consumed(keys.other(1))
    keys.now_s = 1.0
    keys.appended(2, b"new")

    assert rules(keys.history) == [Rule.LOST]


def test_a_record_may_be_gone_whose_key_was_perhaps_deleted() -> None:
    keys = Keys()
    keys.appended(0, b"value")
    keys.begun(b"deletion", deletes=True)
    keys.history.read_finally("node-1", P0, [])

    assert check_history(keys.history) == []


def test_a_tombstone_may_be_gone_after_some_time() -> None:
    keys = Keys()
    keys.appended(0, b"value")
    keys.appended(1, b"deletion", deletes=True)
    keys.now_s = 10.0
    keys.consumed(keys.other(2))

    assert check_history(keys.history) == []


def test_a_tombstone_may_not_be_gone_at_once() -> None:
    keys = Keys()
    keys.appended(0, b"value")
    keys.appended(1, b"deletion", deletes=True)
    keys.now_s = 9.0
    keys.consumed(keys.other(2))

    assert rules(keys.history) == [Rule.LOST]


@pytest.mark.parametrize(("takes_s", "found"), [(9.0, [Rule.LOST]), (10.0, [])])
def test_who_was_given_a_value_has_time_to_learn_that_it_was_deleted(
    takes_s: float, found: list[Rule]
) -> None:
    keys = Keys()
    keys.appended(0, b"value")
    keys.appended(1, b"deletion", deletes=True)
    keys.now_s = 60.0
    keys.consumed((0, b"value"))
    keys.now_s += takes_s
    consumed(keys.history, keys.other(2))

    assert rules(keys.history) == found
