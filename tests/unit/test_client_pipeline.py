"""One partition's batches are stored once, in order, whatever happens to single attempts."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from logd.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    DeliveryTimeoutError,
    FencedError,
    InvalidBatchError,
    LogdError,
    NotLeaderError,
    OutOfSequenceError,
    OverloadedError,
    UnexpectedOffsetError,
)
from logd.limits import BATCH_BYTES_MAX
from logd.record.batch import decode_batch
from logd.record.header import Codec, decode_header
from logd.record.timestamps import TimestampRuns
from logd.types import NO_PRODUCER, ProducerId
from logd.wire.messages import ProduceResponse
from logd_client.accumulator import OpenBatch
from logd_client.delivery import Delivery
from logd_client.pipeline import Pipeline, SealedBatch

PRODUCER = ProducerId(7)
DEADLINE = 100.0


class Bench:
    """A pipeline, what was put into it, and what it gave back of the buffer."""

    def __init__(
        self, *, producer_id: ProducerId = PRODUCER, in_flight: int = 5, linger_s: float = 0
    ) -> None:
        self.released = 0
        self.deliveries: list[Delivery] = []
        self.failed: list[Delivery] = []
        self.pipeline = Pipeline(
            producer_id=producer_id,
            codec=Codec.NONE,
            linger_s=linger_s,
            batches_in_flight=in_flight,
            on_settled=self._release,
            on_failed=self.failed.append,
        )

    def _release(self, size: int) -> None:
        self.released += size

    def put(
        self,
        *values: bytes,
        expected_offset: int | None = None,
        deadline: float = DEADLINE,
        is_closed: bool = True,
    ) -> Delivery:
        delivery = Delivery("orders", 0)
        self.deliveries.append(delivery)
        self.pipeline.enqueue(
            OpenBatch(
                delivery,
                opened_at=0,
                deadline=deadline,
                values=list(values),
                keys=None,
                timestamps=TimestampRuns(1),
                size_bytes=sum(map(len, values)),
                is_closed=is_closed,
                expected_offset=expected_offset,
            )
        )
        return delivery

    def take_all(self, now: float = 1) -> list[SealedBatch]:
        taken = []
        while (batch := self.pipeline.take(now)) is not None:
            taken.append(batch)
        return taken

    def refuse(self, batch: SealedBatch, error: LogdError) -> None:
        self.pipeline.refuse(batch, batch.session, error)

    def acknowledge(self, batch: SealedBatch, base_offset: int = 0) -> None:
        end_offset = base_offset + batch.record_count
        response = ProduceResponse(base_offset=base_offset, end_offset=end_offset, append_time_ms=5)
        self.pipeline.acknowledge(batch, batch.session, response)


def sequence_of(batch: SealedBatch) -> tuple[int, int]:
    header = decode_header(batch.data)
    return header.producer_epoch, header.base_sequence


def gap(*, may_have_applied: bool = False) -> OutOfSequenceError:
    error = OutOfSequenceError("a batch before it is missing")
    error.may_have_applied = may_have_applied
    return error


def lost() -> ConnectionLostError:
    return ConnectionLostError("reset by peer")


# --- sending ----------------------------------------------------------------------------


def test_a_batch_that_can_grow_does_while_others_are_under_way() -> None:
    """Many small batches cost the brokers more than their records lose by waiting."""
    bench = Bench()
    first, second = bench.put(b"a"), bench.put(b"b")
    sent = bench.take_all()
    bench.put(b"c", is_closed=False)

    assert bench.take_all() == []

    bench.acknowledge(sent[0])
    assert [batch.delivery for batch in bench.take_all()] == [bench.deliveries[2]]
    assert first.is_settled
    assert not second.is_settled


def test_a_full_batch_is_sent_with_any_number_under_way_that_is_allowed() -> None:
    bench = Bench(in_flight=5)
    for value in (b"a", b"b", b"c", b"d", b"e", b"f"):
        bench.put(value)

    assert len(bench.take_all()) == 5


def test_records_join_the_last_batch_as_long_as_it_may_grow() -> None:
    bench = Bench(linger_s=5)
    assert bench.pipeline.growing() is None
    bench.put(b"a", is_closed=False)
    first = bench.pipeline.growing()
    bench.put(b"b", is_closed=False)
    second = bench.pipeline.growing()

    assert first is not None
    assert first.is_closed
    assert second is not None
    assert second.values == [b"b"]
    bench.pipeline.close_growing()
    assert bench.pipeline.growing() is None


def test_the_oldest_batch_that_waits_for_its_answer_tells_how_long_a_leader_is_silent() -> None:
    bench = Bench()
    assert bench.pipeline.oldest_sent_at() is None
    batches = []
    for now in (1.0, 5.0):
        bench.put(b"a")
        batches += bench.take_all(now)

    assert bench.pipeline.oldest_sent_at() == 1.0
    bench.acknowledge(batches[0])
    assert bench.pipeline.oldest_sent_at() == 5.0
    bench.acknowledge(batches[1])
    assert bench.pipeline.oldest_sent_at() is None


def test_one_batch_under_way_does_not_hold_up_the_next() -> None:
    bench = Bench()
    bench.put(b"a")
    bench.take_all()
    bench.put(b"b", is_closed=False)

    assert len(bench.take_all()) == 1


def test_batches_are_numbered_by_their_records_and_sent_in_order() -> None:
    bench = Bench()
    for values in ((b"a", b"b"), (b"c",), (b"d", b"e", b"f")):
        bench.put(*values)

    taken = bench.take_all()

    assert [sequence_of(batch) for batch in taken] == [(0, 0), (0, 2), (0, 3)]


def test_no_more_batches_are_in_flight_than_allowed() -> None:
    bench = Bench(in_flight=2)
    for _ in range(3):
        bench.put(b"x")

    first, _ = bench.take_all()
    bench.acknowledge(first)

    assert len(bench.take_all()) == 1


def test_a_growing_batch_waits_for_its_linger_and_a_closed_one_does_not() -> None:
    bench = Bench(linger_s=0.5)
    bench.put(b"x")
    closed = bench.take_all(now=0)
    growing = OpenBatch(
        Delivery("orders", 0),
        opened_at=0,
        deadline=9,
        values=[b"y"],
        keys=None,
        timestamps=TimestampRuns(1),
    )
    bench.pipeline.enqueue(growing)

    early = bench.take_all(now=0.4)
    late = bench.take_all(now=0.5)

    assert (len(closed), len(early), len(late)) == (1, 0, 1)
    assert bench.pipeline.growing() is None


def test_a_batch_that_waits_for_something_else_than_its_age_does_not_linger() -> None:
    """Whoever sends would look again and again, until the other thing has happened."""
    bench = Bench(linger_s=2)
    bench.put(b"growing", is_closed=False)
    by_age = bench.pipeline.lingers_until()
    bench.put(b"sent")
    first, second = bench.take_all()
    bench.put(b"also growing", is_closed=False)
    while_two_are_under_way = bench.pipeline.lingers_until()
    bench.acknowledge(first)
    while_one_is = bench.pipeline.lingers_until()
    bench.refuse(second, NotLeaderError())

    assert (by_age, while_two_are_under_way, while_one_is) == (2, None, 2)
    assert bench.pipeline.lingers_until() is None


def test_an_acknowledged_batch_gives_each_record_its_offset_and_frees_its_bytes() -> None:
    bench = Bench()
    delivery = bench.put(b"aa", b"bb")

    (batch,) = bench.take_all()
    bench.acknowledge(batch, base_offset=40)

    assert [delivery.ack(row).offset for row in (0, 1)] == [40, 41]
    assert bench.released == 4
    assert bench.pipeline.is_idle


def test_a_record_that_cannot_be_sealed_fails_alone_and_takes_no_sequence() -> None:
    bench = Bench()
    broken = bench.put(bytes(BATCH_BYTES_MAX))
    bench.put(b"fine")

    taken = bench.take_all()

    assert isinstance(broken.error, LogdError)
    assert bench.failed == [broken]
    assert [sequence_of(batch) for batch in taken] == [(0, 0)]


# --- retries ----------------------------------------------------------------------------


def test_after_a_lost_connection_every_unresolved_batch_is_sent_again_unchanged() -> None:
    bench = Bench()
    for _ in range(3):
        bench.put(b"x")
    first = bench.take_all()
    bytes_before = [batch.data for batch in first]

    for batch in first:
        bench.refuse(batch, lost())
    assert bench.pipeline.needs_restart
    assert bench.take_all() == []
    bench.pipeline.restart()

    assert [batch.data for batch in bench.take_all()] == bytes_before


def test_nothing_is_sent_again_before_everything_in_flight_was_answered() -> None:
    bench = Bench()
    bench.put(b"a")
    bench.put(b"b")
    first, second = bench.take_all()

    bench.refuse(first, OverloadedError("full"))
    waits = bench.pipeline.needs_restart
    bench.refuse(second, gap())

    assert not waits
    assert bench.pipeline.needs_restart


def test_a_batch_refused_behind_a_failed_one_is_retried_not_reported() -> None:
    bench = Bench()
    bench.put(b"a")
    second_delivery = bench.put(b"b")
    first, second = bench.take_all()

    bench.refuse(second, gap())
    bench.refuse(first, NotLeaderError())
    bench.pipeline.restart()

    assert not second_delivery.is_settled
    assert [sequence_of(batch) for batch in bench.take_all()] == [(0, 0), (0, 1)]


def test_an_answer_of_an_abandoned_session_is_believed_only_if_it_is_a_success() -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    (batch,) = bench.take_all()
    old_session = batch.session
    bench.pipeline.abandon(lost())
    bench.pipeline.restart()
    (again,) = bench.take_all()

    bench.pipeline.refuse(batch, old_session, InvalidBatchError("of the old attempt"))
    refused = delivery.is_settled
    response = ProduceResponse(base_offset=3, end_offset=4, append_time_ms=5)
    bench.pipeline.acknowledge(batch, old_session, response)

    assert again is batch
    assert not refused
    assert delivery.ack(0).offset == 3


def test_a_refusal_that_comes_after_all_was_abandoned_excludes_nothing() -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    (batch,) = bench.take_all()
    bench.pipeline.abandon(lost())

    bench.refuse(batch, FencedError("of the attempt that was given up"))
    bench.pipeline.expire(now=DEADLINE)

    assert isinstance(delivery.error, DeliveryTimeoutError)
    assert delivery.error.may_have_applied


def test_what_was_answered_before_all_was_abandoned_is_not_in_doubt() -> None:
    bench = Bench()
    bench.put(b"a")
    refused = bench.put(b"b")
    _, second = bench.take_all()
    bench.refuse(second, NotLeaderError())

    bench.pipeline.abandon(lost())
    bench.pipeline.expire(now=DEADLINE)

    assert refused.error is not None
    assert not refused.error.may_have_applied


def test_a_batch_abandoned_while_it_was_out_may_be_stored_when_it_expires() -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    bench.take_all()
    bench.pipeline.abandon(lost())
    bench.pipeline.expire(1e9)

    with pytest.raises(DeliveryTimeoutError) as caught:
        delivery.ack(0)
    assert caught.value.may_have_applied


# --- final failures ---------------------------------------------------------------------


def test_what_is_pipelined_behind_a_refused_batch_goes_on_in_the_next_epoch() -> None:
    bench = Bench()
    refused = bench.put(b"a")
    bench.put(b"b", b"c")
    bench.put(b"d")
    first, second, third = bench.take_all()

    bench.refuse(first, InvalidBatchError("no"))
    bench.refuse(second, gap())
    before_last_answer = bench.take_all()
    bench.refuse(third, gap())

    assert isinstance(refused.error, InvalidBatchError)
    assert not refused.error.may_have_applied
    assert before_last_answer == []
    taken = bench.take_all()
    assert [sequence_of(batch) for batch in taken] == [(1, 0), (1, 2)]
    assert [decode_batch(batch.data).values for batch in taken] == [[b"b", b"c"], [b"d"]]


def test_what_is_sealed_again_for_the_next_epoch_is_the_same_in_all_else() -> None:
    bench = Bench()
    bench.put(b"refused")
    batch = OpenBatch(
        Delivery("orders", 0),
        opened_at=0,
        deadline=DEADLINE,
        values=[],
        keys=None,
        timestamps=TimestampRuns(),
        fence=(3, 9),
    )
    batch.add(b"v", None, (("trace", b"1"),), 5, 10)
    batch.add(None, b"k", (), 6, 10)
    batch.is_closed = True
    bench.pipeline.enqueue(batch)
    first, second = bench.take_all()
    bench.refuse(first, InvalidBatchError("no"))

    bench.refuse(second, gap())
    if bench.pipeline.needs_restart:
        bench.pipeline.restart()
    (again,) = bench.take_all()

    after = decode_batch(again.data)
    assert sequence_of(again) == (1, 0)
    assert after.header.producer_id == PRODUCER
    assert (after.header.fence_id, after.header.fence_token) == (3, 9)
    assert list(after.values) == [b"v", None]
    assert list(after.keys) == [None, b"k"]
    assert list(after.headers) == [(("trace", b"1"),), ()]
    assert list(after.timestamps_ms) == [5, 6]


def test_nothing_is_sealed_behind_a_hole_that_no_leader_would_take() -> None:
    bench = Bench()
    bench.put(b"too large")
    bench.put(b"behind it")
    failed, behind = bench.take_all()

    bench.refuse(failed, InvalidBatchError("refused for good"))
    bench.put(b"later")
    meanwhile = bench.take_all()
    bench.refuse(behind, gap())

    assert meanwhile == []
    assert [sequence_of(batch) for batch in bench.take_all()] == [(1, 0), (1, 1)]


def test_a_batch_in_doubt_behind_a_hole_is_settled_in_its_own_epoch_first() -> None:
    bench = Bench()
    bench.put(b"a", deadline=10)
    second_delivery = bench.put(b"b")
    first, second = bench.take_all()
    bench.refuse(first, lost())
    bench.refuse(second, lost())

    bench.pipeline.expire(now=10)
    bench.pipeline.restart()
    (retried,) = bench.take_all()
    settled_in = sequence_of(retried)
    bench.acknowledge(retried, base_offset=8)
    bench.put(b"c")

    assert settled_in == (0, 1)
    assert second_delivery.ack(0).offset == 8
    assert [sequence_of(batch) for batch in bench.take_all()] == [(1, 0)]


def test_a_lost_batch_behind_a_lost_one_that_expired_may_still_be_stored() -> None:
    """Both may be on their way on the connection that was lost, and arrive in order."""
    bench = Bench()
    bench.put(b"a", deadline=10)
    behind = bench.put(b"b")
    for batch in bench.take_all():
        bench.refuse(batch, lost())

    bench.pipeline.expire(now=10)
    bench.pipeline.restart()
    (retried,) = bench.take_all()
    bench.refuse(retried, gap())
    bench.put(b"c")

    assert isinstance(behind.error, OutOfSequenceError)
    assert behind.error.may_have_applied
    assert [decode_batch(batch.data).values for batch in bench.take_all()] == [[b"c"]]


def test_a_lost_batch_behind_one_that_was_refused_for_good_goes_to_the_next_epoch() -> None:
    """What was lost of it cannot be stored any more, wherever it is."""
    bench = Bench()
    bench.put(b"a")
    bench.put(b"b")
    first, second = bench.take_all()
    bench.refuse(first, NotLeaderError())
    bench.refuse(second, lost())
    bench.pipeline.restart()
    first, second = bench.take_all()

    bench.refuse(first, InvalidBatchError("no"))
    bench.refuse(second, gap())

    (retried,) = bench.take_all()
    assert sequence_of(retried) == (1, 0)
    assert decode_batch(retried.data).values == [b"b"]


def test_a_lost_batch_behind_one_that_is_not_sent_again_goes_to_the_next_epoch_with_it() -> None:
    bench = Bench()
    bench.put(b"a", deadline=10)
    bench.put(b"b")
    bench.put(b"c")
    first, second, third = bench.take_all()
    bench.refuse(first, lost())
    bench.refuse(second, NotLeaderError())
    bench.refuse(third, lost())
    bench.pipeline.expire(now=10)
    bench.pipeline.restart()

    (retried,) = bench.take_all()
    bench.refuse(retried, gap())

    assert retried is third
    assert [sequence_of(batch) for batch in bench.take_all()] == [(1, 0), (1, 1)]


def test_a_lost_batch_before_one_that_was_refused_for_good_may_still_be_stored() -> None:
    bench = Bench()
    lost_one = bench.put(b"a")
    bench.put(b"b")
    first, second = bench.take_all()
    bench.refuse(first, lost())
    bench.refuse(second, NotLeaderError())
    bench.pipeline.restart()
    first, second = bench.take_all()

    bench.refuse(second, InvalidBatchError("no"))
    bench.refuse(first, gap())

    assert lost_one.error is not None
    assert lost_one.error.may_have_applied


def test_what_is_between_two_that_were_refused_for_good_goes_to_the_next_epoch() -> None:
    bench = Bench()
    for value in (b"a", b"b", b"c", b"d"):
        bench.put(value)
    first, second, third, fourth = bench.take_all()

    bench.refuse(third, InvalidBatchError("no"))
    bench.refuse(first, InvalidBatchError("no"))
    bench.refuse(second, gap())
    bench.refuse(fourth, gap())

    taken = bench.take_all()
    assert [decode_batch(batch.data).values for batch in taken] == [[b"b"], [b"d"]]
    assert [sequence_of(batch) for batch in taken] == [(1, 0), (1, 1)]


def test_a_lost_batch_whose_gap_is_told_before_that_of_one_before_it_is_sent_again_soon() -> None:
    """Answers may overtake one another, and its deadline may be far."""
    bench = Bench()
    bench.put(b"a", deadline=10)
    bench.put(b"b")
    bench.put(b"c")
    for batch in bench.take_all():
        bench.refuse(batch, lost())
    bench.pipeline.expire(now=10)
    bench.pipeline.restart()
    second, third = bench.take_all()

    bench.refuse(third, gap())
    bench.refuse(second, gap())

    assert not bench.deliveries[2].is_settled
    assert bench.pipeline.needs_restart


@pytest.mark.parametrize(("log_end", "may_have_applied"), [(5, True), (11, False)])
def test_a_lost_conditional_append_may_be_stored_as_long_as_the_log_is_too_short_for_it(
    log_end: int, may_have_applied: bool
) -> None:
    bench = Bench()
    delivery = bench.put(b"a", expected_offset=10)
    (batch,) = bench.take_all()
    bench.refuse(batch, lost())
    bench.pipeline.restart()
    (retried,) = bench.take_all()

    bench.refuse(retried, UnexpectedOffsetError("it does not hold", log_end=log_end))

    assert isinstance(delivery.error, UnexpectedOffsetError)
    assert delivery.error.may_have_applied is may_have_applied


def test_late_answers_are_awaited_by_nobody() -> None:
    """Such as that a newer epoch has appended, which is this producer's own."""
    bench = Bench()
    bench.put(b"expires", deadline=10)
    bench.put(b"refused")
    bench.put(b"sealed again")
    expired, refused, again = bench.take_all()
    sent_in = again.session
    before = [batch.is_awaited_in(sent_in) for batch in (expired, refused, again)]

    bench.pipeline.expire(now=10)
    bench.refuse(refused, InvalidBatchError("no"))
    bench.refuse(again, gap())
    (sealed_again,) = bench.take_all()

    assert before == [True, True, True]
    assert expired.is_outstanding
    assert not expired.is_awaited_in(expired.session)
    assert not refused.is_awaited_in(refused.session)
    assert sealed_again is again
    assert sequence_of(again) == (1, 0)
    bench.pipeline.abandon(lost())
    bench.pipeline.restart()
    assert bench.take_all() == [again]
    assert [again.is_awaited_in(session) for session in (sent_in, again.session)] == [False, True]


def test_a_lost_batch_refused_while_one_before_it_is_retried_is_retried_too() -> None:
    bench = Bench()
    bench.put(b"a")
    behind = bench.put(b"b")
    for batch in bench.take_all():
        bench.refuse(batch, lost())
    bench.pipeline.restart()
    first, second = bench.take_all()

    bench.refuse(first, NotLeaderError())
    bench.refuse(second, gap())
    bench.pipeline.restart()

    assert not behind.is_settled
    assert [sequence_of(batch) for batch in bench.take_all()] == [(0, 0), (0, 1)]


def test_the_first_batch_out_of_sequence_is_reported_with_the_brokers_doubt() -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    (batch,) = bench.take_all()

    bench.refuse(batch, gap(may_have_applied=True))

    assert isinstance(delivery.error, OutOfSequenceError)
    assert delivery.error.may_have_applied
    assert bench.pipeline.epoch == 1


def test_a_batch_that_the_broker_may_have_forgotten_is_reported_not_retried() -> None:
    bench = Bench()
    before, forgotten = bench.put(b"a"), bench.put(b"b")
    _, second = bench.take_all()

    bench.refuse(second, gap(may_have_applied=True))

    assert isinstance(forgotten.error, OutOfSequenceError)
    assert forgotten.error.may_have_applied
    assert not before.is_settled


def test_a_conditional_append_travels_alone() -> None:
    bench = Bench()
    bench.put(b"a")
    conditional = bench.put(b"b", expected_offset=1)
    bench.put(b"c")

    (first,) = bench.take_all()
    bench.acknowledge(first, base_offset=0)
    (second,) = bench.take_all()
    bench.refuse(second, UnexpectedOffsetError("data lies above", log_end=9))
    (third,) = bench.take_all()

    assert second.expected_offset == 1
    assert isinstance(conditional.error, UnexpectedOffsetError)
    assert conditional.error.log_end == 9
    assert sequence_of(third) == (1, 0)


# --- doubt ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "in_doubt"),
    [
        (None, True),  # still in flight
        (lost(), True),
        (ConnectionFailedError("not sent"), False),
        (NotLeaderError(), False),
    ],
)
def test_an_expired_batch_says_whether_it_may_be_stored(
    error: LogdError | None, in_doubt: bool
) -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    (batch,) = bench.take_all()
    if error is not None:
        bench.refuse(batch, error)

    bench.pipeline.expire(now=DEADLINE)

    assert isinstance(delivery.error, DeliveryTimeoutError)
    assert delivery.error.may_have_applied is in_doubt
    assert delivery.error.retriable is not in_doubt
    assert bench.released == 1


def test_a_batch_never_sent_expires_without_a_doubt() -> None:
    bench = Bench(in_flight=1)
    bench.put(b"a")
    waiting = bench.put(b"b")
    bench.take_all()

    bench.pipeline.expire(now=DEADLINE)

    assert isinstance(waiting.error, DeliveryTimeoutError)
    assert not waiting.error.may_have_applied


def test_an_expired_delivery_says_what_stood_in_the_way() -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    (batch,) = bench.take_all()
    bench.refuse(batch, OverloadedError("the disk is slow"))

    bench.pipeline.expire(now=DEADLINE)

    assert "the disk is slow" in str(delivery.error)


def test_an_earlier_doubt_outlives_a_refusal_that_did_not_look_at_the_log() -> None:
    bench = Bench()
    delivery = bench.put(b"a")
    (batch,) = bench.take_all()
    bench.refuse(batch, lost())
    bench.pipeline.restart()
    (again,) = bench.take_all()

    bench.refuse(again, InvalidBatchError("no"))

    assert delivery.error is not None
    assert delivery.error.may_have_applied


def test_without_a_producer_id_batches_are_not_numbered() -> None:
    bench = Bench(producer_id=NO_PRODUCER, in_flight=1)
    bench.put(b"a")
    bench.put(b"b")
    (first,) = bench.take_all()
    bench.acknowledge(first)
    (second,) = bench.take_all()

    assert [sequence_of(first), sequence_of(second)] == [(0, 0), (0, 0)]


def test_without_a_producer_id_what_may_be_stored_is_reported_not_retried() -> None:
    bench = Bench(producer_id=NO_PRODUCER, in_flight=1)
    doubtful, certain = bench.put(b"a"), bench.put(b"b")
    (first,) = bench.take_all()

    bench.refuse(first, lost())
    (second,) = bench.take_all()
    bench.refuse(second, NotLeaderError())

    assert isinstance(doubtful.error, ConnectionLostError)
    assert not certain.is_settled
    assert bench.pipeline.needs_restart


def test_without_a_producer_id_what_is_abandoned_may_be_stored_and_is_not_sent_again() -> None:
    bench = Bench(producer_id=NO_PRODUCER, in_flight=1)
    abandoned, waiting = bench.put(b"a"), bench.put(b"b")
    bench.take_all()

    bench.pipeline.abandon(lost())
    bench.pipeline.restart()

    assert isinstance(abandoned.error, ConnectionLostError)
    assert abandoned.error.may_have_applied
    assert not waiting.is_settled
    assert [decode_batch(batch.data).values for batch in bench.take_all()] == [[b"b"]]


# --- everything together ----------------------------------------------------------------


class Attempt(NamedTuple):
    """A batch on its way to the leader, as the bytes were when they were sent."""

    batch: SealedBatch
    session: int
    data: bytes


class Leader:
    """The rules by which a leader stores batches, and the log that they make."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self._epoch = -1
        self._next_sequence = 0
        self._stored: dict[tuple[int, int], int] = {}

    def append(self, data: bytes) -> ProduceResponse:
        header = decode_header(data)
        place = (header.producer_epoch, header.base_sequence)
        base_offset = self._stored.get(place)
        if base_offset is None:
            begins_epoch = header.producer_epoch > self._epoch and header.base_sequence == 0
            follows = place == (self._epoch, self._next_sequence)
            if not begins_epoch and not follows:
                raise gap()
            base_offset = len(self.log)
            self.log += [value or b"" for value in decode_batch(data).values]
            self._stored[place] = base_offset
            self._epoch = header.producer_epoch
            self._next_sequence = header.base_sequence + header.record_count
        end_offset = base_offset + header.record_count
        return ProduceResponse(base_offset=base_offset, end_offset=end_offset, append_time_ms=0)


class History:
    """One seed: a pipeline, a leader, and a connection that fails in every way it can."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(in_flight=self.random.choice([1, 2, 5]))
        self.leader = Leader()
        self.now = 0.0
        self.deadline = 0.0
        """Of the batch that was put last: none expires before one that is before it."""
        self.values: dict[Delivery, list[bytes]] = {}
        self.on_the_way: list[Attempt] = []
        self.late: list[list[Attempt]] = []
        """What was sent on connections that the client has given up, and is still on its way."""
        self.stands_still_until = 0.0
        """Until then the leader takes up nothing."""
        self.loss = self.random.choice([0.0, 0.05, 0.3])
        self.standstills = self.random.choice([0.0, 0.02])
        self.refusals = self.random.choice([0.0, 0.02])
        self.expiry_s = self.random.choice([20.0, 200.0])

    def run(self) -> None:
        steps: list[Callable[[], None]] = [self.put, self.send, self.receive, self.receive]
        steps.append(self.receive_late)
        for _ in range(300):
            self.now += self.random.random()
            if self.random.random() < self.standstills:
                self.stands_still_until = self.now + self.random.choice([5.0, 25.0])
            self.random.choice(steps)()
            self.tend()
        self.loss = self.refusals = self.stands_still_until = 0
        for _ in range(200):
            self.send()
            self.receive()
            self.receive_late()
            self.tend()

    def put(self) -> None:
        number = len(self.values)
        values = [b"%d.%d" % (number, row) for row in range(self.random.randint(1, 3))]
        self.deadline = max(self.deadline, self.now + self.expiry_s * self.random.random())
        delivery = self.bench.put(*values, deadline=self.deadline)
        self.values[delivery] = values

    def send(self) -> None:
        batch = self.bench.pipeline.take(self.now)
        if batch is not None:
            self.on_the_way.append(Attempt(batch, batch.session, bytes(batch.data)))

    def receive(self) -> None:
        """The leader handles what is first on the connection, or the connection breaks."""
        if self.on_the_way and self.random.random() < self.loss:
            self.lose_connection()
            return
        if not self.on_the_way or self.now < self.stands_still_until:
            return
        attempt = self.on_the_way.pop(0)
        pipeline = self.bench.pipeline
        try:
            if self.random.random() < self.refusals:
                raise self.random.choice([InvalidBatchError("no"), NotLeaderError()])
            response = self.leader.append(attempt.data)
        except LogdError as error:
            pipeline.refuse(attempt.batch, attempt.session, error)
        else:
            pipeline.acknowledge(attempt.batch, attempt.session, response)

    def lose_connection(self) -> None:
        """The leader gets a part of what was sent, some of it later; the client learns of none."""
        lost_attempts, self.on_the_way = self.on_the_way, []
        self.late.append(lost_attempts[: self.random.randint(0, len(lost_attempts))])
        for _ in range(self.random.randint(0, len(lost_attempts))):
            self.receive_late()
        for attempt in lost_attempts:
            self.bench.pipeline.refuse(attempt.batch, attempt.session, lost())

    def receive_late(self) -> None:
        """The leader takes up the next frame of a connection that was given up."""
        self.late = [attempts for attempts in self.late if attempts]
        if self.late and self.now >= self.stands_still_until:
            attempt = self.random.choice(self.late).pop(0)
            with contextlib.suppress(OutOfSequenceError):
                self.leader.append(attempt.data)

    def tend(self) -> None:
        self.bench.pipeline.expire(self.now)
        if self.bench.pipeline.needs_restart:
            self.bench.pipeline.restart()

    def check(self) -> None:
        log = self.leader.log
        assert len(log) == len(set(log)), "a record is stored twice"
        numbers = [tuple(map(int, value.split(b"."))) for value in log]
        assert numbers == sorted(numbers), "records overtook each other"
        for delivery, values in self.values.items():
            assert delivery.is_settled
            if delivery.error is None:
                offset = delivery.ack(0).offset
                assert log[offset : offset + len(values)] == values
            elif not delivery.error.may_have_applied:
                assert not set(values) & set(log), f"stored in spite of {delivery.error!r}"


@pytest.mark.parametrize("seed", range(600))
def test_any_history_keeps_order_stores_once_and_reports_the_truth(seed: int) -> None:
    history = History(seed)

    history.run()

    history.check()
    assert history.bench.pipeline.is_idle
