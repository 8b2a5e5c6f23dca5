"""The blocking producer: what is handed over to the event loop's thread, and what waits there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import trio.testing
from anyio.from_thread import start_blocking_portal

from logd.errors import (
    InvalidPartitionError,
    LogdError,
    ProducerFencedError,
    RecordTooLargeError,
    UsageError,
    WouldBlock,
)
from logd.limits import BATCH_BYTES_MAX, KIB, MIB, RECORD_BYTES_MAX
from logd_client.coordination.fences import Fence
from logd_client.portal import Portal
from logd_client.sync_producer import Producer, Ticket
from tests.support.producing import Cluster, made

LARGE = bytes(MIB - KIB)
FIT = 4
"""So many of these in a buffer of ``BATCH_BYTES_MAX``; one more is handed over meanwhile."""
THIRD = bytes(MIB // 3 - KIB)
"""Three of them may be handed over while there is no room for one."""


class Bench:
    """A producer, its leader, and the thread that both of them live in."""

    def __init__(self, portal: Portal, cluster: Cluster, producer: Producer) -> None:
        self.portal = portal
        self.leader = cluster.leaders[0]
        self.leaders = cluster.leaders
        self.close = cluster.close
        self.producer = producer

    def answer(self, count: int) -> None:
        """Acknowledge so many requests, as they come."""
        self.portal.call(self._answer, count)

    def answer_from_now_on(self) -> None:
        """Acknowledge what waits, and then whatever comes."""

        async def answer() -> None:
            await trio.testing.wait_all_tasks_blocked()
            self.leader.answers_at_once = True
            self.leader.flush()

        self.portal.start(answer)

    def fail(self, error: LogdError) -> None:
        """Refuse what has waited longest."""

        async def refuse() -> None:
            await trio.testing.wait_all_tasks_blocked()
            self.leader.refuse(error)

        self.portal.call(refuse)

    async def _answer(self, count: int) -> None:
        for _ in range(count):
            await trio.testing.wait_all_tasks_blocked()
            self.leader.answer()


@contextmanager
def bench(**options: Any) -> Iterator[Bench]:
    with start_blocking_portal("trio") as thread:
        context: AbstractContextManager[Any] = thread.wrap_async_context_manager(made(**options))
        with context as (cluster, made_there):
            portal = Portal(thread)
            producer = Producer(portal, made_there).open()
            yield Bench(portal, cluster, producer)


def test_a_ticket_is_there_before_the_record_is_and_tells_what_became_of_it() -> None:
    with bench() as it:
        ticket = it.producer.append_nowait(b"value")
        was_done = ticket.is_done
        it.answer(1)

        assert (was_done, ticket.is_done) == (False, True)
        assert ticket.result().offset == ticket.result().offset == 0


def test_what_a_thread_asks_for_is_done_behind_what_it_handed_over() -> None:
    with bench() as it:
        tickets = [it.producer.append_nowait(b"value") for _ in range(3)]
        it.answer_from_now_on()
        ack = it.producer.append(b"behind")

        assert all(ticket.is_done for ticket in tickets)
        assert ack.offset > max(ticket.result().offset for ticket in tickets)


def test_a_full_buffer_takes_no_more_until_something_is_acknowledged() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        with pytest.raises(WouldBlock, match="buffer has no room"):
            it.producer.append_nowait(LARGE)
        it.answer(1)

        tickets.append(it.producer.append_nowait(LARGE))
        with pytest.raises(WouldBlock):
            it.producer.append_nowait(LARGE)
        it.answer(FIT + 1)
        assert [ticket.result().offset for ticket in tickets] == list(range(FIT + 2))


def test_many_small_records_are_no_reason_to_refuse_while_there_is_room() -> None:
    """However far ahead of the event loop's thread this one gets."""
    with bench() as it:
        tickets = [it.producer.append_nowait(bytes(20_000)) for _ in range(200)]
        it.answer_from_now_on()

        assert [ticket.result().offset for ticket in tickets] == list(range(200))


def test_that_others_were_quicker_is_no_reason_to_refuse_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench() as it:
        call = it.portal.call

        def call_while_others_hand_over(function: Callable[..., Any]) -> Any:
            result = call(function)
            if quicker:
                it.producer.append_nowait(quicker.pop())
            return result

        monkeypatch.setattr(it.portal, "call", call_while_others_hand_over)
        for _ in range(8):
            quicker = [LARGE]
            it.producer.append_nowait(LARGE)


def test_who_enqueues_waits_for_room() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.enqueue(LARGE) for _ in range(FIT + 1)]
        it.answer_from_now_on()
        tickets.append(it.producer.enqueue(LARGE))

        assert [ticket.result().offset for ticket in tickets] == list(range(FIT + 2))


@pytest.mark.parametrize(
    ("value", "given", "error"),
    [
        ("text", {}, UsageError),
        (b"value", {"key": 1}, UsageError),
        (b"value", {"timestamp_ms": 1.5}, UsageError),
        (b"value", {"headers": "text"}, UsageError),
        (b"value", {"fence": 3}, UsageError),
        (bytes(RECORD_BYTES_MAX + 1), {}, RecordTooLargeError),
        (b"value", {"partition": 7}, InvalidPartitionError),
    ],
)
def test_what_is_wrong_with_a_record_is_said_at_once(
    value: Any, given: dict[str, Any], error: type[LogdError]
) -> None:
    with bench() as it:
        with pytest.raises(error):
            it.producer.append_nowait(value, **given)
        it.producer.append_nowait(b"fine")
        it.answer(1)
        it.producer.flush()


def test_a_failure_that_nobody_heard_of_is_raised_by_the_next_flush() -> None:
    refused = ProducerFencedError("another one has this id")
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        heard, *others = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.fail(refused)

        with pytest.raises(ProducerFencedError):
            heard.result()
        for _ in range(2):  # What was queued, and what could not be any more.
            with pytest.raises(ProducerFencedError):
                it.producer.flush()
        it.producer.flush()
        for ticket in others:
            with pytest.raises(ProducerFencedError):
                ticket.result()


def test_a_flush_tells_of_each_record_that_could_not_be_queued_and_nobody_has_heard_of() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        queued = [it.producer.append_nowait(LARGE) for _ in range(FIT)]
        first, _ = (it.producer.append_nowait(THIRD) for _ in range(2))
        it.fail(ProducerFencedError("another one has this id"))
        for ticket in [*queued, first]:
            with pytest.raises(ProducerFencedError):
                ticket.result()

        with pytest.raises(ProducerFencedError):
            it.producer.flush()
        it.producer.flush()


def test_what_became_of_a_record_is_known_after_the_client_was_closed() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        fine, *failed = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.answer(1)
        it.fail(ProducerFencedError("another one has this id"))
        it.portal.is_closed = True

        assert fine.result().offset == 0
        for ticket in failed:
            with pytest.raises(ProducerFencedError):
                ticket.result()


@pytest.mark.parametrize("is_ended", [False, True])
def test_leaving_tells_of_what_was_given_up_because_the_client_was_closed(is_ended: bool) -> None:
    """By another thread, which may still be at it."""
    with bench() as it:
        it.producer.append_nowait(b"value")
        it.portal.call(trio.testing.wait_all_tasks_blocked)
        if is_ended:
            it.portal.call(it.close)
        it.portal.is_closed = True

        with pytest.raises(UsageError, match="closed before the record was acknowledged"):
            it.producer.close()


def test_leaving_tells_of_what_was_never_queued_because_the_client_was_closed() -> None:
    with bench() as it:
        it.producer._is_told = True  # The event loop has ended before it came to it.
        it.producer.append_nowait(b"value")
        it.portal.is_closed = True

        with pytest.raises(UsageError, match="closed before the record was queued"):
            it.producer.close()


def test_leaving_after_the_client_was_closed_is_fine_if_all_was_acknowledged() -> None:
    with bench() as it:
        it.producer.append_nowait(b"value")
        it.answer(1)
        it.portal.call(it.close)
        it.portal.is_closed = True

        it.producer.close()


def test_who_waits_for_a_record_does_not_wait_for_room_for_those_behind_it() -> None:
    with bench(partition_count=2, buffer_bytes=BATCH_BYTES_MAX) as it:
        ticket = it.producer.append_nowait(b"value", partition=1)
        for _ in range(FIT):  # Which is one too many for one of two.
            it.producer.append_nowait(LARGE, partition=0)

        async def answer_later() -> None:
            await trio.sleep(0.05)
            it.leaders[1].answer()

        it.portal.call(trio.testing.wait_all_tasks_blocked)
        it.portal.start(answer_later)

        assert ticket.result().partition == 1


class Lease:
    def __init__(self) -> None:
        self.is_over = False

    @property
    def fence(self) -> Fence:
        if self.is_over:
            raise ValueError("it is over")
        return Fence(1, 1)


def test_a_record_is_what_it_was_when_it_was_handed_over() -> None:
    """Not what its caller has made of its headers and its lease since."""
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        headers: list[Any] = [("name", b"value")]
        lease = Lease()
        for _ in range(FIT):
            it.producer.append_nowait(LARGE)
        tickets = [
            it.producer.append_nowait(THIRD, headers=headers),
            it.producer.append_nowait(THIRD, fence=lease),
        ]
        headers.append("something else")
        lease.is_over = True
        it.answer_from_now_on()

        assert [ticket.result().offset for ticket in tickets] == [FIT, FIT + 1]


class Interrupting(deque[Any]):
    """A signal comes when something was put into it."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: list[Callable[[], object]] = []

    def append(self, item: Any) -> None:
        super().append(item)
        if self.handlers:
            self.handlers.pop()()


def test_a_thread_that_stands_still_while_it_hands_over_holds_up_nobody() -> None:
    """In a signal's handler, for example, which waits for the event loop."""
    with bench() as it:
        it.answer_from_now_on()
        tickets: list[Ticket] = []
        handed = it.producer._handed = Interrupting()
        handed.handlers.append(it.producer.flush)
        tickets.append(it.producer.append_nowait(b"value"))
        assert tickets[0].is_done

        handed.handlers.append(lambda: tickets.append(it.producer.enqueue(b"of the handler")))
        tickets.append(it.producer.append_nowait(b"value"))
        assert sorted(ticket.result().offset for ticket in tickets) == [0, 1, 2]


def test_what_was_still_being_handed_over_when_a_block_failed_is_not_waited_for() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.producer.__exit__(ValueError, ValueError("enough"), None)

        for ticket in tickets:
            with pytest.raises(UsageError, match="producer"):
                ticket.result()
        with pytest.raises(UsageError, match="the producer is closed"):
            it.producer.append_nowait(b"more")


def test_leaving_waits_for_what_was_handed_over() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.answer_from_now_on()
        it.producer.close()

        assert [ticket.is_done for ticket in tickets] == [True] * (FIT + 1)


def test_closing_the_client_leaves_its_producers_first() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.answer_from_now_on()
        it.portal.close()

        assert [ticket.result().offset for ticket in tickets] == list(range(FIT + 1))
        assert not it.portal.entered


def test_a_producer_that_was_left_is_not_left_again_with_the_client() -> None:
    with bench() as it:
        it.producer.close()

        assert not it.portal.entered


def test_tickets_tell_the_truth_when_a_failing_program_has_closed_its_client() -> None:
    """What was under way may be stored; what waited behind it is not."""
    with bench(buffer_bytes=BATCH_BYTES_MAX, batches_in_flight=1) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.portal.call(trio.testing.wait_all_tasks_blocked)
        it.portal.close(ValueError, ValueError("enough"))

        doubts = []
        for ticket in tickets:
            assert ticket.is_done
            with pytest.raises(UsageError, match="the producer") as told:
                ticket.result()
            doubts.append(told.value.may_have_applied)
        assert doubts == [True] + [False] * FIT


def test_a_ticket_that_nothing_settles_any_more_admits_that_it_does_not_know() -> None:
    with bench() as it:
        ticket = it.producer.append_nowait(b"value")
        it.portal.entered.clear()  # As when a program ends that has closed nothing.
        it.portal.close()

        with pytest.raises(UsageError, match="the client is closed") as told:
            ticket.result()
        assert told.value.may_have_applied


def test_in_a_forked_process_nothing_is_handed_over_or_waited_for() -> None:
    with bench() as it:
        fine = it.producer.append_nowait(b"value")
        it.answer(1)
        unknown = it.producer.append_nowait(b"value")
        it.portal.is_elsewhere = True

        for use in (lambda: it.producer.append_nowait(b"v"), lambda: it.producer.append(b"v")):
            with pytest.raises(UsageError, match="before this process was forked off"):
                use()
        assert fine.result().offset == 0
        with pytest.raises(UsageError, match="before this process was forked off") as told:
            unknown.result()
        assert told.value.may_have_applied

        assert not it.producer.__exit__(SystemExit, SystemExit(), None)
        it.portal.is_elsewhere = False
