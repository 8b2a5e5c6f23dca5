"""A consumer gets each committed record once, in order, from its position on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from logd.errors import CorruptionError, MalformedBatchError
from logd.record.batch import seal_batch, seal_opaque
from logd.record.compacted import keep_nothing
from logd.record.header import BatchKind, decode_header, leader_part
from logd.types import GroupId, Offset, Term
from logd.wire.messages import Deliver, SubscribeResponse
from logd_client.cursor import Cursor
from tests.support.malformed import malformed_batch

GROUP = GroupId(4)
CREDIT_BYTES = 1000


def placed(batch: bytearray, base_offset: int, group: GroupId = GROUP) -> bytes:
    """A sealed batch as the leader stores it."""
    part = leader_part(
        batch, base_offset=Offset(base_offset), term=Term(1), append_time_ms=50, group=group
    )
    return part + batch[len(part) :]


def data(base_offset: int, *values: bytes, group: GroupId = GROUP) -> bytes:
    return placed(seal_batch(values=values, timestamps_ms=1), base_offset, group)


def control(base_offset: int) -> bytes:
    return placed(seal_opaque(b"", kind=BatchKind.CONTROL, timestamp_ms=1), base_offset)


def malformed(base_offset: int, group: GroupId = GROUP) -> bytes:
    return placed(malformed_batch(), base_offset, group)


def cursor_at(position: int) -> Cursor:
    cursor = Cursor(
        topic="orders",
        partition=2,
        group=GROUP,
        start=("offset", position),
        credit_bytes=CREDIT_BYTES,
        any_replica=False,
    )
    subscribe(cursor, position)
    return cursor


def subscribe(cursor: Cursor, position: int) -> None:
    request = cursor.subscribe(1)
    response = SubscribeResponse(position=position, log_start=0, commit_offset=position)
    cursor.on_subscribed(request.generation, response)


def deliver(
    cursor: Cursor, body: bytes, next_offset: int, *, generation: int | None = None
) -> bool:
    message = Deliver(
        subscription=1,
        generation=cursor.generation if generation is None else generation,
        next_offset=next_offset,
        commit_offset=next_offset,
    )
    return cursor.on_delivered(message, body)


def read_all(cursor: Cursor, *, skips_malformed: bool = False) -> list[tuple[int, bytes | None]]:
    rows: list[tuple[int, bytes | None]] = []
    while (batch := cursor.next_batch(skips_malformed=skips_malformed)) is not None:
        rows += zip(batch.offsets, batch.values, strict=True)
    return rows


def test_batches_come_one_by_one_and_the_position_moves_behind_each() -> None:
    cursor = cursor_at(5)
    deliver(cursor, data(5, b"a", b"b") + data(7, b"c"), 8)

    first = cursor.next_batch(skips_malformed=False)
    between = cursor.position
    second = cursor.next_batch(skips_malformed=False)

    assert first is not None
    assert second is not None
    assert (list(first.values), list(second.values)) == ([b"a", b"b"], [b"c"])
    assert (between, cursor.position) == (7, 8)
    assert (first.topic, first.partition, first.append_time_ms) == ("orders", 2, 50)


def test_records_below_the_position_are_not_given_out() -> None:
    cursor = cursor_at(6)
    deliver(cursor, data(3, b"x", b"y") + data(5, b"a", b"b", b"c"), 8)

    assert read_all(cursor) == [(6, b"b"), (7, b"c")]


def test_control_batches_move_the_position_unseen() -> None:
    cursor = cursor_at(0)
    deliver(cursor, control(0) + data(1, b"a") + control(2), 3)

    assert read_all(cursor) == [(1, b"a")]
    assert cursor.position == 3


def test_a_delivery_may_move_the_position_over_offsets_without_batches() -> None:
    cursor = cursor_at(0)
    deliver(cursor, b"", 9)

    assert read_all(cursor) == []
    assert cursor.position == 9


def test_frames_of_an_earlier_subscription_are_dropped() -> None:
    cursor = cursor_at(0)
    old_generation = cursor.generation
    subscribe(cursor, 0)

    assert not deliver(cursor, data(0, b"stale"), 1, generation=old_generation)
    assert read_all(cursor) == []


def test_frames_after_the_end_of_a_subscription_are_dropped() -> None:
    cursor = cursor_at(0)
    generation = cursor.generation
    cursor.end()

    assert not deliver(cursor, data(0, b"late"), 1, generation=generation)


def test_a_new_subscription_begins_behind_what_has_arrived_and_keeps_it() -> None:
    cursor = cursor_at(0)
    body = data(0, b"a", b"b")
    deliver(cursor, body, 2)

    request = cursor.subscribe(2)
    cursor.on_subscribed(
        request.generation, SubscribeResponse(position=2, log_start=0, commit_offset=3)
    )
    deliver(cursor, data(2, b"c"), 3)

    assert (request.start, request.value) == ("offset", 2)
    assert request.credit_bytes == CREDIT_BYTES - len(body)
    assert read_all(cursor) == [(0, b"a"), (1, b"b"), (2, b"c")]


def test_a_position_found_out_once_is_kept() -> None:
    cursor = Cursor(
        topic="orders",
        partition=0,
        group=GROUP,
        start=("latest", 0),
        credit_bytes=CREDIT_BYTES,
        any_replica=False,
    )
    first = cursor.subscribe(1)
    before = cursor.position
    cursor.on_subscribed(
        first.generation, SubscribeResponse(position=70, log_start=0, commit_offset=70)
    )

    again = cursor.subscribe(2)

    assert (first.start, before) == ("latest", None)
    assert (again.start, again.value) == ("offset", 70)


def test_credit_returns_when_the_caller_comes_back_for_more() -> None:
    cursor = cursor_at(0)
    body = data(0, b"x" * 300)
    deliver(cursor, body, 1)

    cursor.next_batch(skips_malformed=False)
    while_in_use = cursor.take_credit()
    cursor.finish()
    credit = cursor.take_credit()

    assert while_in_use is None
    assert credit is not None
    assert (credit.bytes, credit.generation) == (len(body), cursor.generation)
    assert cursor.take_credit() is None


def test_small_credit_is_gathered_before_it_is_worth_a_frame() -> None:
    cursor = cursor_at(0)
    sizes = 0
    for offset in range(2):
        body = data(offset, b"x")
        sizes += len(body)
        deliver(cursor, body, offset + 1)
        read_all(cursor)
        if offset == 0:
            assert cursor.take_credit() is None

    credit = cursor.take_credit()

    assert credit is not None
    assert credit.bytes == sizes


def test_what_is_held_beyond_the_credit_comes_off_the_credit_of_the_next_subscription() -> None:
    """Else each subscription could leave more behind for the next one."""
    cursor = cursor_at(0)
    body = data(0, b"x" * 3 * CREDIT_BYTES)
    deliver(cursor, body, 1)

    request = cursor.subscribe(1)
    cursor.on_subscribed(
        request.generation, SubscribeResponse(position=1, log_start=0, commit_offset=1)
    )
    read_all(cursor)
    credit = cursor.take_credit()

    assert credit is not None
    assert request.credit_bytes + credit.bytes == CREDIT_BYTES


def flipped(body: bytes, at: int) -> bytes:
    damaged = bytearray(body)
    damaged[at] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize(
    "body",
    [
        flipped(data(0, b"abc"), 130),
        flipped(data(0, b"abc"), 9),
        data(0, b"abc")[:-1],
        data(0, b"abc", group=GroupId(5)),
        data(1, b"abc"),
    ],
    ids=["payload", "leader's part", "cut short", "of another group", "a record is missing"],
)
def test_damage_is_refused_and_fetched_again_from_the_position(body: bytes) -> None:
    cursor = cursor_at(0)
    deliver(cursor, body, 1)

    with pytest.raises(CorruptionError):
        read_all(cursor)
    cursor.restart_at_position()
    request = cursor.subscribe(2)

    assert (request.start, request.value) == ("offset", 0)
    assert request.credit_bytes == CREDIT_BYTES


def test_an_answer_to_an_earlier_subscription_changes_nothing() -> None:
    cursor = cursor_at(5)
    earlier = cursor.generation
    cursor.subscribe(2)
    subscribed_before_the_answer = cursor.is_subscribed

    late = SubscribeResponse(position=9, log_start=0, commit_offset=9)
    cursor.on_subscribed(earlier, late)

    assert not subscribed_before_the_answer
    assert not cursor.is_subscribed
    assert cursor.commit_offset == 5


def test_the_commit_offset_is_the_one_that_the_broker_told_last() -> None:
    cursor = cursor_at(5)
    at_first = cursor.commit_offset
    deliver(cursor, data(5, b"a"), 6)

    assert (at_first, cursor.commit_offset) == (5, 6)


def test_a_batch_of_which_compaction_has_left_nothing_is_passed_over() -> None:
    cursor = cursor_at(0)
    emptied = keep_nothing(decode_header(data(0, b"a", b"b")), GROUP)
    deliver(cursor, emptied + data(2, b"c"), 3)

    batches = []
    while (batch := cursor.next_batch(skips_malformed=False)) is not None:
        batches.append(list(batch.values))

    assert batches == [[b"c"]]


def test_what_holds_nothing_for_the_caller_gives_its_credit_back_at_once() -> None:
    """Else a partition that gets nothing but control batches for a while would use it up."""
    cursor = cursor_at(0)
    bodies = [control(offset) for offset in range(4)]
    deliver(cursor, b"".join(bodies), 4)

    assert read_all(cursor) == []
    credit = cursor.take_credit()

    assert credit is not None
    assert credit.bytes == sum(map(len, bodies))


def test_no_credit_is_given_to_a_broker_that_has_not_taken_the_subscription_yet() -> None:
    cursor = cursor_at(0)
    body = data(0, bytes(CREDIT_BYTES))
    deliver(cursor, body, 1)
    read_all(cursor)
    cursor.end()

    assert cursor.take_credit() is None


def test_what_lies_behind_the_stop_is_not_looked_at() -> None:
    cursor = cursor_at(0)
    cursor.stop = Offset(1)
    deliver(cursor, data(0, b"a"), 1)
    deliver(cursor, flipped(data(1, b"b"), 130), 2)

    assert read_all(cursor) == [(0, b"a")]


def test_what_was_read_before_the_damage_is_held_until_the_caller_comes_back_and_no_longer() -> (
    None
):
    cursor = cursor_at(0)
    good = data(0, b"a")
    deliver(cursor, good + flipped(data(1, b"b"), 130), 2)
    cursor.next_batch(skips_malformed=False)

    cursor.restart_at_position()
    held = cursor.subscribe(2)
    cursor.finish()
    later = cursor.subscribe(3)

    assert held.credit_bytes == CREDIT_BYTES - len(good)
    assert (later.value, later.credit_bytes) == (1, CREDIT_BYTES)


def test_a_malformed_batch_is_reported_until_it_is_skipped_knowingly() -> None:
    cursor = cursor_at(0)
    deliver(cursor, malformed(0) + data(1, b"a"), 2)

    told: list[str] = []
    for _ in range(2):
        with pytest.raises(MalformedBatchError) as caught:
            read_all(cursor)
        assert (caught.value.base_offset, caught.value.end_offset) == (0, 1)
        told.append(str(caught.value))
        assert told[-1].startswith("orders/2: malformed batch at offsets [0, 1): ")

    skipped: list[str] = []
    cursor.on_skipped = lambda error: skipped.append(str(error))
    assert read_all(cursor, skips_malformed=True) == [(1, b"a")]
    assert cursor.malformed_count == 1
    assert skipped == told[1:]


def test_a_batch_gives_its_records_row_by_row() -> None:
    cursor = cursor_at(0)
    deliver(
        cursor,
        placed(
            seal_batch(
                values=[b"a", None],
                keys=[None, b"k"],
                headers=[(("h", b"1"),), ()],
                timestamps_ms=[8, 9],
            ),
            0,
        ),
        2,
    )
    batch = cursor.next_batch(skips_malformed=False)
    assert batch is not None

    first, second = batch.records()

    assert first == ("orders", 2, 0, 8, None, b"a", (("h", b"1"),))
    assert (second.offset, second.key, second.value, second.headers) == (1, b"k", None, ())


def offsets_of(rows: Sequence[tuple[int, bytes | None]]) -> list[int]:
    return [offset for offset, _ in rows]


def test_deliveries_that_overlap_after_a_resubscribe_give_each_record_once() -> None:
    cursor = cursor_at(0)
    deliver(cursor, data(0, b"a", b"b", b"c"), 3)
    first = read_all(cursor)
    subscribe(cursor, 3)
    deliver(cursor, data(2, b"c", b"d") + data(4, b"e"), 5)

    assert offsets_of(first + read_all(cursor)) == [0, 1, 2, 3, 4]


# --- what was trimmed away --------------------------------------------------------------


def test_a_leap_over_what_was_trimmed_gives_out_first_what_has_arrived() -> None:
    cursor = cursor_at(0)
    deliver(cursor, data(0, b"a", b"b"), 2)
    wanted = [cursor.wanted_offset]

    cursor.leap_to_earliest()

    wanted.append(cursor.wanted_offset)
    assert wanted == [2, None]
    request = cursor.subscribe(2)
    assert request.start == "earliest"
    cursor.on_subscribed(
        request.generation, SubscribeResponse(position=10, log_start=10, commit_offset=20)
    )
    deliver(cursor, data(10, b"c"), 11)
    assert read_all(cursor) == [(0, b"a"), (1, b"b"), (10, b"c")]
    assert cursor.position == 11


def test_a_leap_moves_the_position_also_when_nothing_follows() -> None:
    cursor = cursor_at(3)
    cursor.leap_to_earliest()
    request = cursor.subscribe(2)
    cursor.on_subscribed(
        request.generation, SubscribeResponse(position=10, log_start=10, commit_offset=10)
    )

    assert read_all(cursor) == []
    assert cursor.position == 10


# --- a stop ---------------------------------------------------------------------------------


def test_nothing_is_given_out_from_the_stop_on() -> None:
    cursor = cursor_at(5)
    cursor.stop = Offset(8)
    deliver(cursor, data(5, b"a", b"b") + data(7, b"c") + data(8, b"d"), 9)

    assert read_all(cursor) == [(5, b"a"), (6, b"b"), (7, b"c")]
    assert (cursor.is_at_stop, cursor.position, cursor.has_arrived) == (True, 8, False)
    assert read_all(cursor) == []


def test_a_batch_that_reaches_over_the_stop_is_cut_there_and_the_rest_is_not_lost() -> None:
    cursor = cursor_at(5)
    cursor.stop = Offset(7)
    batch = data(5, b"a", b"b", b"c", b"d")
    deliver(cursor, batch, 9)

    assert read_all(cursor) == [(5, b"a"), (6, b"b")]
    assert (cursor.is_at_stop, cursor.position) == (True, 7)
    later = cursor_at(7)
    deliver(later, batch, 9)
    assert read_all(later) == [(7, b"c"), (8, b"d")]


@pytest.mark.parametrize("stop", [6, 7, 8])
def test_a_stop_is_reached_over_offsets_that_hold_no_records(stop: int) -> None:
    cursor = cursor_at(5)
    cursor.stop = Offset(stop)
    deliver(cursor, data(5, b"a"), 6)
    assert read_all(cursor) == [(5, b"a")]
    assert cursor.is_at_stop is (stop == 6)
    deliver(cursor, control(6), 8)

    assert read_all(cursor) == []
    assert cursor.is_at_stop
    assert cursor.position is not None
    assert stop <= cursor.position <= 8


def test_a_start_at_or_behind_the_stop_is_at_its_stop() -> None:
    cursor = Cursor(
        topic="orders",
        partition=2,
        group=GROUP,
        start=("latest", 0),
        credit_bytes=CREDIT_BYTES,
        any_replica=False,
    )
    cursor.stop = Offset(8)
    before = cursor.is_at_stop  # It is not known yet.
    subscribe(cursor, 9)
    assert (before, cursor.is_at_stop) == (False, True)
    deliver(cursor, data(9, b"a"), 10)
    assert read_all(cursor) == []


def test_without_a_stop_there_is_none() -> None:
    cursor = cursor_at(5)
    deliver(cursor, data(5, b"a"), 6)

    assert read_all(cursor) == [(5, b"a")]
    assert not cursor.is_at_stop
