"""The options of a consumer say where it begins in each partition, also in those to come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from logd.errors import UsageError
from logd_client.consumer_options import ConsumerOptions, start_of

NOON = datetime(1970, 1, 1, 12, tzinfo=UTC)
NOON_MS = 12 * 60 * 60 * 1000


def test_a_start_is_a_word_an_offset_or_a_point_in_time() -> None:
    half_past = datetime(1970, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=1)))

    assert start_of("earliest") == ("earliest", 0)
    assert start_of("latest") == ("latest", 0)
    assert start_of(12) == ("offset", 12)
    assert start_of(half_past) == ("time", 30 * 60 * 1000)


def test_a_time_between_two_milliseconds_starts_at_the_later() -> None:
    assert start_of(datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)) == ("time", 1)


@pytest.mark.parametrize("start", [-1, "begin", True, 1.5, datetime(2026, 1, 1), None])
def test_other_starts_are_refused(start: int) -> None:
    with pytest.raises(UsageError, match=r"start|time zone"):
        start_of(start)


@pytest.mark.parametrize(
    "options",
    [
        {"credit_bytes": 1},
        {"on_malformed": "ignore"},
        {"partitions": []},
        {"start": {}},
        {"start": {0: 1}, "partitions": [0]},
        {"start_of_others": "earliest"},
        {"start_of_others": -1, "start": {0: 1}},
    ],
)
def test_consumer_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).removesuffix("_of_others")):
        ConsumerOptions(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_who_has_kept_no_position_yet_names_only_where_the_others_begin() -> None:
    ConsumerOptions(start={}, start_of_others="earliest")


def test_one_start_is_that_of_all_partitions_or_of_those_that_are_named() -> None:
    all_of_them = ConsumerOptions(start="earliest").starts(2)
    some = ConsumerOptions(start=7, partitions=[2, 0, 2]).starts(3)

    assert all_of_them == {0: ("earliest", 0), 1: ("earliest", 0)}
    assert list(some.items()) == [(0, ("offset", 7)), (2, ("offset", 7))]


def test_starts_by_partition_leave_the_others_out_unless_these_have_one_too() -> None:
    kept = {1: 5}

    alone = ConsumerOptions(start=kept).starts(3)
    among_others = ConsumerOptions(start=kept, start_of_others="latest").starts(3)

    assert alone == {1: ("offset", 5)}
    assert among_others == {0: ("latest", 0), 1: ("offset", 5), 2: ("latest", 0)}


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"start": "earliest"}, ("earliest", 0)),
        ({"start": "latest"}, ("earliest", 0)),
        ({"start": 7}, ("earliest", 0)),
        ({"start": NOON}, ("time", NOON_MS)),
        ({"start": {0: 7}, "start_of_others": "latest"}, ("earliest", 0)),
        ({"start": {0: 7}, "start_of_others": NOON}, ("time", NOON_MS)),
    ],
)
def test_partitions_to_come_are_read_from_their_beginning_or_from_a_time(
    options: dict[str, object], start: tuple[str, int]
) -> None:
    assert ConsumerOptions(**options).start_of_added == start  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"start": {0: 7}}, {"partitions": [0]}, {"stop": "latest"}, {"from_replica": 1}],
)
def test_partitions_to_come_are_not_read_by_who_is_told_what_there_is(
    options: dict[str, object],
) -> None:
    assert ConsumerOptions(**options).start_of_added is None  # type: ignore[arg-type]
