"""Requests that come at once begin a few at a time, whoever leaves meanwhile."""

from __future__ import annotations

from collections import Counter

import trio

from logd.broker.request_room import Turns
from tests.sim.run import run_deterministic

AT_ONCE = 3
COUNT = 20


def test_a_few_begin_in_each_turn_and_all_of_them_in_the_end() -> None:
    begun: Counter[int] = Counter()

    async def main() -> None:
        turn = 0
        turns = Turns(AT_ONCE)

        async def begin() -> None:
            await turns.turn()
            begun[turn] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(COUNT):
                nursery.start_soon(begin)
            while begun.total() < COUNT:
                await trio.lowlevel.checkpoint()
                turn += 1

    run_deterministic(main, seed=1)
    assert begun.total() == COUNT
    # Who counts and who begins take their turns in any order.
    assert max(begun.values()) <= 2 * AT_ONCE


def test_who_leaves_before_it_begins_keeps_nobody_from_that() -> None:
    """Also the one who would have let the others in."""

    async def main() -> None:
        for turns_before in range(6):
            turns = Turns(AT_ONCE)
            async with trio.open_nursery() as nursery, trio.open_nursery() as leaving:
                for _ in range(COUNT):
                    leaving.start_soon(turns.turn)
                for _ in range(turns_before):
                    await trio.lowlevel.checkpoint()
                for _ in range(COUNT):
                    nursery.start_soon(turns.turn)
                leaving.cancel_scope.cancel()
            with trio.fail_after(1):
                await turns.turn()

    run_deterministic(main, seed=1)
