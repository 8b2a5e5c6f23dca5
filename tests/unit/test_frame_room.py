"""Large frames begin only as there is memory for all of each; none keeps others waiting long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from logd.broker.broker import Broker, ProduceBudget
from logd.broker.frame_room import FrameRoom, Intake
from logd.errors import OverloadedError
from logd.limits import FRAME_PATIENCE_S, PROGRESS_TIMEOUT_S

BYTES_MAX = 100


class Sender:
    """A connection on which one large frame comes."""

    def __init__(self, desk: Desk, size: int, host: str = "host") -> None:
        self.size = size
        self.received = 0
        self.has_begun = False
        self.ends: list[OverloadedError] = []
        self.intake = Intake(desk.broker, host, lambda: self.received, self.ends.append)

    async def begin(self) -> None:
        if not self.intake.begins(self.size):
            await self.intake.room()
            assert self.intake.begins(self.size)
        self.has_begun = True

    async def go_on(self, rate: float) -> None:
        """Send at a rate of so many frames within the time that one has."""
        for step in range(1, 1 + int(PROGRESS_TIMEOUT_S / rate)):
            await trio.sleep(1)
            self.received = min(self.size, int(self.size * step * rate / PROGRESS_TIMEOUT_S))
        self.intake.is_over()


class Desk:
    """The senders of one broker."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.room = FrameRoom(BYTES_MAX)
        self.budget = ProduceBudget(BYTES_MAX)
        self.broker = cast("Broker", SimpleNamespace(budget=self.budget, frames=self.room))
        self.nursery = nursery

    async def sender(self, size: int, host: str = "host") -> Sender:
        sender = Sender(self, size, host)
        self.nursery.start_soon(sender.begin)
        await trio.testing.wait_all_tasks_blocked()
        return sender


def at_a_desk(story: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await story(Desk(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def begun(*senders: Sender) -> list[bool]:
    return [sender.has_begun for sender in senders]


def test_frames_begin_while_all_of_each_fits_and_then_in_turn_as_others_become_whole() -> None:
    async def story(desk: Desk) -> None:
        one, two, three = [await desk.sender(60) for _ in range(3)]
        assert begun(one, two, three) == [True, False, False]
        assert desk.room.bytes == 60

        one.intake.is_over()
        await trio.testing.wait_all_tasks_blocked()
        assert begun(two, three) == [True, False]

        two.intake.is_over()
        three.intake.is_over()  # It has not begun: there is nothing to give back.
        await trio.testing.wait_all_tasks_blocked()
        assert begun(three) == [True]
        assert desk.room.bytes == 60

    at_a_desk(story)


def test_a_small_one_does_not_pass_a_larger_one_that_waits() -> None:
    async def story(desk: Desk) -> None:
        first, large, small = [await desk.sender(size) for size in (60, 100, 10)]
        assert begun(first, large, small) == [True, False, False]

        first.intake.is_over()
        await trio.testing.wait_all_tasks_blocked()
        assert begun(large, small) == [True, False]

        large.intake.is_over()
        await trio.testing.wait_all_tasks_blocked()
        assert begun(small) == [True]

    at_a_desk(story)


def test_who_sends_no_more_is_left_alone_while_nobody_waits() -> None:
    async def story(desk: Desk) -> None:
        idle = await desk.sender(60)
        other = await desk.sender(40)
        await trio.sleep(PROGRESS_TIMEOUT_S)
        assert not idle.ends
        assert not other.ends

    at_a_desk(story)


def test_who_sends_no_more_is_cut_off_as_soon_as_it_keeps_somebody_waiting_for_long() -> None:
    async def story(desk: Desk) -> None:
        idle = [await desk.sender(50) for _ in range(2)]
        await trio.sleep(FRAME_PATIENCE_S / 2)
        good = await desk.sender(50)

        await trio.sleep(FRAME_PATIENCE_S / 4)
        assert begun(good) == [False]

        await trio.sleep(FRAME_PATIENCE_S / 2)
        assert begun(good) == [True]
        # One was enough to make room.
        assert [len(sender.ends) for sender in idle] == [1, 0]
        assert "0 of 50 bytes" in str(idle[0].ends[0])
        assert desk.room.bytes == 100

    at_a_desk(story)


def test_of_two_that_are_late_the_one_that_is_farther_behind_is_cut_off() -> None:
    async def story(desk: Desk) -> None:
        better, worse = [await desk.sender(50) for _ in range(2)]
        better.received = 10
        await trio.sleep(PROGRESS_TIMEOUT_S / 2)
        good = await desk.sender(50)
        assert begun(good) == [True]
        assert (len(better.ends), len(worse.ends)) == (0, 1)

    at_a_desk(story)


def test_who_keeps_the_pace_is_not_cut_off_however_long_others_wait() -> None:
    async def story(desk: Desk) -> None:
        slow = await desk.sender(100)
        desk.nursery.start_soon(slow.go_on, 1.0)
        good = await desk.sender(50)
        await trio.sleep(PROGRESS_TIMEOUT_S - 1)
        assert begun(good) == [False]
        assert not slow.ends

        await trio.sleep(2)
        assert begun(good) == [True]

    at_a_desk(story)


def test_who_sends_at_half_the_pace_is_cut_off_when_it_has_fallen_behind() -> None:
    async def story(desk: Desk) -> None:
        slow = await desk.sender(100)
        desk.nursery.start_soon(slow.go_on, 0.5)
        good = await desk.sender(50)
        await trio.sleep(2 * FRAME_PATIENCE_S + 2)
        assert begun(good) == [True]
        assert len(slow.ends) == 1

    at_a_desk(story)


@pytest.mark.parametrize("stalled", [10, 100])
def test_many_that_send_no_more_keep_nobody_waiting_for_longer_than_they_fill_it(
    stalled: int,
) -> None:
    """They come again and again; a good one stands in line behind those that were there."""

    async def story(desk: Desk) -> None:
        for _ in range(stalled):
            await desk.sender(50)
        good = await desk.sender(50)
        await trio.sleep(FRAME_PATIENCE_S * stalled / 2 + 1)
        assert begun(good) == [True]

    at_a_desk(story)


def test_many_of_one_address_that_send_no_more_keep_others_waiting_as_long_as_one_would() -> None:
    async def story(desk: Desk) -> None:
        for _ in range(300):
            await desk.sender(50, "flooding")
        good = [await desk.sender(50, "good") for _ in range(2)]
        other = await desk.sender(50, "other")

        await trio.sleep(FRAME_PATIENCE_S + 1)
        assert begun(*good, other) == [True, False, False]
        await trio.sleep(FRAME_PATIENCE_S)
        assert begun(*good, other) == [True, False, True]
        await trio.sleep(FRAME_PATIENCE_S)
        assert begun(*good) == [True, True]

    at_a_desk(story)


def test_nothing_begins_while_the_produce_budget_is_exhausted() -> None:
    async def story(desk: Desk) -> None:
        desk.budget.take(BYTES_MAX)
        sender = Sender(desk, 50)
        assert not sender.intake.begins(50)
        assert desk.room.bytes == 0

    at_a_desk(story)


def test_an_address_all_of_whose_senders_left_the_line_has_no_turn() -> None:
    async def story(desk: Desk) -> None:
        first = await desk.sender(100)
        head = await desk.sender(100)
        gone = Sender(desk, 100, "gone")
        with trio.move_on_after(FRAME_PATIENCE_S / 2):
            await gone.begin()
        last = await desk.sender(100, "other")
        for sender in (first, head):
            sender.intake.is_over()
            await trio.testing.wait_all_tasks_blocked()
        assert begun(head, gone, last) == [True, False, True]

        last.intake.is_over()
        assert desk.room.take_now(last.intake, 100)

    at_a_desk(story)


def test_who_leaves_the_line_leaves_its_place_to_the_next() -> None:
    async def story(desk: Desk) -> None:
        first = await desk.sender(100)
        gone = Sender(desk, 100)
        with trio.move_on_after(FRAME_PATIENCE_S / 2):
            await gone.begin()
        next_one = await desk.sender(100)
        first.intake.is_over()
        await trio.testing.wait_all_tasks_blocked()
        assert begun(gone, next_one) == [False, True]
        assert desk.room.bytes == 100

    at_a_desk(story)
