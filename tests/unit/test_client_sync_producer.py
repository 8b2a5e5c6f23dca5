"""The blocking producer: what is handed over to the event loop's thread, and what waits there."""

from __future__ import annotations

from collections.abc import Iterator
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
from logd_client.portal import Portal
from logd_client.sync_producer import Producer
from tests.support.producing import Leader, opened

LARGE = bytes(MIB - KIB)
FIT = 4
"""So many of these in a buffer of ``BATCH_BYTES_MAX``; one more is handed over meanwhile."""


class Bench:
    """A producer, its leader, and the thread that both of them live in."""

    def __init__(self, portal: Portal, leader: Leader, producer: Producer) -> None:
        self.portal = portal
        self.leader = leader
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
        context: AbstractContextManager[Any] = thread.wrap_async_context_manager(opened(**options))
        with context as (cluster, producer):
            portal = Portal(thread)
            yield Bench(portal, cluster.leaders[0], Producer(portal, producer))


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
        with pytest.raises(WouldBlock, match="buffer is full"):
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


def test_what_was_still_being_handed_over_when_a_block_failed_is_not_waited_for() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.producer.__exit__(ValueError, ValueError("enough"), None)

        for ticket in tickets:
            with pytest.raises(UsageError, match="producer"):
                ticket.result()
        with pytest.raises(UsageError, match="not open"):
            it.producer.append_nowait(b"more")


def test_leaving_waits_for_what_was_handed_over() -> None:
    with bench(buffer_bytes=BATCH_BYTES_MAX) as it:
        tickets = [it.producer.append_nowait(LARGE) for _ in range(FIT + 1)]
        it.answer_from_now_on()
        it.producer.close()

        assert [ticket.is_done for ticket in tickets] == [True] * (FIT + 1)
