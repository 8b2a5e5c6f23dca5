"""Answers are made only as there is room for them beside what waits to be sent."""

from __future__ import annotations

import trio
import trio.testing

from logd.broker.answer_room import AnswerRoom
from logd.replication.outbox import Outbox
from logd.replication.turn import Turn

BYTES_MAX = 8
ANSWER_BYTES = 4


class Bench:
    """Five that want to make an answer, and an outbox that nobody empties."""

    def __init__(self) -> None:
        self.outbox = Outbox(BYTES_MAX, Turn(lambda: False))
        self.room = AnswerRoom(BYTES_MAX, self.outbox)
        self.begun: list[int] = []

    async def make(self, number: int) -> None:
        await self.room.take(ANSWER_BYTES)
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

            for last in range(2, 5):
                it.room.give_back(ANSWER_BYTES)
                await trio.testing.wait_all_tasks_blocked()
                assert it.begun == list(range(last + 1))

    trio.run(main)


def test_nobody_makes_an_answer_while_what_was_made_before_waits_to_be_sent() -> None:
    async def main() -> None:
        it = Bench()
        it.outbox.push((bytes(BYTES_MAX),), BYTES_MAX)
        async with trio.open_nursery() as nursery:
            await it.begin(nursery)
            assert it.begun == []

            it.outbox.clear()
            it.room.is_back()
            await trio.testing.wait_all_tasks_blocked()
            assert it.begun == [0, 1]

            nursery.cancel_scope.cancel()

    trio.run(main)
