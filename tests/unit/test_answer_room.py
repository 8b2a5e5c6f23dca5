"""Answers are made only as there is room for them beside what waits to be sent, to this client and
to all; who takes nothing keeps nobody waiting for ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from logd.broker.answer_room import AnswerRoom, SendRoom
from logd.broker.subscriptions import DELIVERY_BYTES
from logd.limits import FETCH_BYTES_MAX, KIB, SEND_PATIENCE_S
from logd.replication.outbox import Outbox
from logd.replication.turn import Turn

BYTES_MAX = 2 * FETCH_BYTES_MAX
BYTES_FREE = 64 * KIB
SHARED_BYTES_MAX = 4 * BYTES_MAX


class Bench:
    """Five that want to make an answer, and an outbox that nobody empties."""

    def __init__(self) -> None:
        self.sends = SendRoom(SHARED_BYTES_MAX, ())
        self.outbox = Outbox(
            BYTES_MAX, Turn(lambda: False), shared=self.sends, bytes_free=BYTES_FREE
        )
        self.room = AnswerRoom(self.outbox, self.sends)
        self.begun: list[int] = []
        self.sizes: list[int] = []

    async def make(self, number: int) -> None:
        self.sizes.append(await self.room.take())
        self.begun.append(number)

    async def begin(self, nursery: trio.Nursery) -> None:
        for number in range(5):
            nursery.start_soon(self.make, number)
            await trio.testing.wait_all_tasks_blocked()


def test_so_many_make_answers_at_once_as_there_is_room_for_and_the_others_in_turn() -> None:
    async def main() -> None:
        it = Bench()
        async with trio.open_nursery() as nursery:
            await it.begin(nursery)
            assert it.begun == [0, 1]
            assert it.sends.bytes == 2 * FETCH_BYTES_MAX

            for last in range(2, 5):
                it.room.give_back(FETCH_BYTES_MAX)
                await trio.testing.wait_all_tasks_blocked()
                assert it.begun == list(range(last + 1))

    trio.run(main)


def test_nobody_makes_an_answer_while_what_was_made_before_waits_to_be_sent() -> None:
    async def main() -> None:
        it = Bench()
        it.outbox.push((bytes(BYTES_MAX),), BYTES_MAX)
        async with trio.open_nursery() as nursery:
            await it.begin(nursery)
            nursery.start_soon(it.room.take_own)
            await trio.testing.wait_all_tasks_blocked()
            assert it.begun == []
            assert len(nursery.child_tasks) == 6

            it.outbox.clear()
            it.room.is_back()
            await trio.testing.wait_all_tasks_blocked()
            assert it.begun == [0, 1]

            nursery.cancel_scope.cancel()

    trio.run(main)


def test_room_for_what_may_be_refused_waits_for_no_other_client() -> None:
    async def main() -> None:
        it = Bench()
        it.sends.bytes += SHARED_BYTES_MAX
        assert await it.room.take_own() == DELIVERY_BYTES
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.room.take_own)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1  # Only for its own client's other answers.
            it.room.give_back_own(DELIVERY_BYTES)
        assert it.sends.bytes == SHARED_BYTES_MAX

    trio.run(main)


def test_while_all_hold_much_each_makes_one_answer_at_a_time_and_a_small_one() -> None:
    async def main() -> None:
        it = Bench()
        it.sends.bytes += SHARED_BYTES_MAX // 2
        async with trio.open_nursery() as nursery:
            await it.begin(nursery)
            assert (it.begun, it.sizes) == ([0], [DELIVERY_BYTES])

            it.outbox.push((bytes(BYTES_FREE),), BYTES_FREE)
            it.room.give_back(DELIVERY_BYTES)
            await trio.testing.wait_all_tasks_blocked()
            assert it.begun == [0]
            had_room = [it.outbox.has_room]
            it.sends.less(SHARED_BYTES_MAX // 2)
            had_room.append(it.outbox.has_room)
            assert had_room == [False, True]

            nursery.cancel_scope.cancel()

    trio.run(main)


# --- over all connections -----------------------------------------------------------------------


class Client:
    """Holds something that it does not take."""

    def __init__(self, hall: Hall, queued_bytes: int, sending_since_s: float | None = None) -> None:
        self.queued_bytes = queued_bytes
        self.sending_since_s = sending_since_s
        self.is_cut_off = False
        self._hall = hall
        hall.sends.bytes += queued_bytes

    def cut_off(self) -> None:
        self.is_cut_off = True
        self.sending_since_s = None
        self._hall.sends.less(self.queued_bytes)


class Hall:
    """All clients of one broker, and who wants something found for one."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.clients: list[Client] = []
        self.sends = SendRoom(100, self.clients)
        self.served: list[str] = []
        self._nursery = nursery

    async def ask(self, name: str) -> None:
        async def take() -> None:
            await self.sends.take(10)
            self.served.append(name)

        self._nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()


def in_a_hall(story: Callable[[Hall], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await story(Hall(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_when_all_of_it_is_used_up_those_who_want_more_wait_in_line() -> None:
    async def story(hall: Hall) -> None:
        Client(hall, 95)
        for name in "abc":
            await hall.ask(name)
        assert hall.served == ["a"]
        assert hall.sends.bytes == 105

        hall.sends.less(10)
        await hall.ask("d")
        assert hall.served == ["a", "b"]

        hall.sends.less(50)
        await trio.testing.wait_all_tasks_blocked()
        assert hall.served == ["a", "b", "c", "d"]

    in_a_hall(story)


def test_who_is_sent_something_may_take_its_time_while_nobody_waits() -> None:
    async def story(hall: Hall) -> None:
        slow = Client(hall, 95, trio.current_time())
        hall.clients.append(slow)
        await trio.sleep(2 * SEND_PATIENCE_S)
        await hall.ask("a")
        assert hall.served == ["a"]
        assert not slow.is_cut_off

    in_a_hall(story)


def test_of_those_that_took_nothing_for_long_the_one_that_holds_most_makes_room() -> None:
    async def story(hall: Hall) -> None:
        began = trio.current_time()
        little, much = Client(hall, 10, began), Client(hall, 40, began)
        fresh, quick = Client(hall, 45, began + SEND_PATIENCE_S), Client(hall, 5)
        hall.clients += [little, much, fresh, quick]
        await trio.sleep(SEND_PATIENCE_S)
        await hall.ask("a")
        assert hall.served == ["a"]
        assert [client.is_cut_off for client in hall.clients] == [False, True, False, False]

    in_a_hall(story)


@pytest.mark.parametrize("elapsed_s", [0.0, 7.0])
def test_nobody_waits_for_a_client_longer_than_it_may_take(elapsed_s: float) -> None:
    async def story(hall: Hall) -> None:
        client = Client(hall, 100, trio.current_time())
        hall.clients.append(client)
        await trio.sleep(elapsed_s)
        await hall.ask("a")
        await trio.sleep(SEND_PATIENCE_S - elapsed_s - 1)
        assert hall.served == []
        await trio.sleep(2)
        assert hall.served == ["a"]
        assert client.is_cut_off

    in_a_hall(story)


def test_what_an_outbox_holds_counts_until_it_is_sent_or_its_connection_ends() -> None:
    sends = SendRoom(100, ())
    outboxes = [Outbox(80, Turn(lambda: False), shared=sends, bytes_free=5) for _ in range(2)]
    outboxes[0].push((bytes(40),), 40)
    assert outboxes[0].has_room

    outboxes[1].push((bytes(20),), 20)
    assert sends.bytes == 60
    assert [outbox.has_room for outbox in outboxes] == [False, False]

    outboxes[0].stop_sharing()
    outboxes[0].push((bytes(10),), 10)
    assert sends.bytes == 20
    assert outboxes[1].has_room

    outboxes[1].clear()
    assert sends.bytes == 0
