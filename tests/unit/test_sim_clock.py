"""Virtual time moves when all wait; a frozen process stands still in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from tests.sim.clock import HOST, current_clock
from tests.sim.run import run_deterministic


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    run_deterministic(scenario, seed=1)


async def tick_as(host: str, ticks: list[float]) -> None:
    """A process of ``host`` that notes the time every second."""
    HOST.set(host)
    async with trio.open_nursery() as nursery:  # A task that inherits its host.

        async def tick() -> None:
            while True:
                await trio.sleep(1.0)
                ticks.append(trio.current_time())

        nursery.start_soon(tick)


def test_calls_happen_at_their_time_in_the_order_they_were_put_down() -> None:
    async def scenario() -> None:
        happened: list[tuple[str, float]] = []

        def note(name: str) -> None:
            happened.append((name, trio.current_time()))

        for name, at_s in (("late", 2.0), ("early", 1.0), ("late too", 2.0)):
            current_clock().call_at(at_s, partial(note, name))
        await trio.sleep(3.0)
        assert happened == [("early", 1.0), ("late", 2.0), ("late too", 2.0)]

    play(scenario)


def test_a_call_that_raises_fails_the_run() -> None:
    async def scenario() -> None:
        def fail() -> None:
            raise ZeroDivisionError

        current_clock().call_at(1.0, fail)
        await trio.sleep(2.0)

    with pytest.raises(ZeroDivisionError):
        play(scenario)


def test_a_frozen_process_takes_no_step_and_the_others_go_on() -> None:
    async def scenario() -> None:
        frozen: list[float] = []
        other: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_as, "frozen", frozen)
            nursery.start_soon(tick_as, "other", other)
            await trio.sleep(2.5)
            current_clock().freeze("frozen")
            await trio.sleep(3.0)
            current_clock().thaw("frozen")
            await trio.sleep(1.2)
            nursery.cancel_scope.cancel()
        assert frozen == [1.0, 2.0, 5.5, 6.5]
        assert other == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    play(scenario)


def test_what_a_frozen_process_was_about_to_do_happens_when_it_is_thawed() -> None:
    async def scenario() -> None:
        happened: list[float] = []
        clock = current_clock()
        clock.freeze("frozen")
        clock.call_at(1.0, lambda: happened.append(trio.current_time()), "frozen")
        await trio.sleep(5.0)
        assert happened == []
        clock.thaw("frozen")
        await trio.sleep(0.1)
        assert happened == [5.0]

    play(scenario)


def test_a_frozen_process_can_be_cancelled_and_ends_when_it_is_thawed() -> None:
    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick_as, "frozen", [])
            await trio.sleep(0.5)
            current_clock().freeze("frozen")
            nursery.cancel_scope.cancel()
            current_clock().thaw("frozen")
        assert trio.current_time() == 0.5

    play(scenario)
