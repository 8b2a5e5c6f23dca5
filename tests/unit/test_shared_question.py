"""A question that many tasks ask at the same time is asked once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio.testing

from logd.errors import ConnectionFailedError
from logd_client.shared_question import REST_FACTOR, REST_S_MAX, SharedQuestion


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


class Oracle:
    """Answers with how often it was asked, after a while."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.asked_at: list[float] = []
        self.failures_left = 0

    async def __call__(self) -> int:
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.takes_s)
        if self.failures_left:
            self.failures_left -= 1
            raise ConnectionFailedError("nobody answers")
        return len(self.asked_at)


async def ask_all(question: SharedQuestion[int], oracle: Oracle, count: int) -> list[int]:
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await question.ask(oracle))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(ask)
    return answers


@in_virtual_time
async def test_those_who_ask_at_the_same_time_share_one_answer() -> None:
    question, oracle = SharedQuestion[int](trio.current_time), Oracle(0.01)

    assert await ask_all(question, oracle, 1000) == [1] * 1000


@in_virtual_time
async def test_after_an_answer_nobody_is_asked_for_a_few_times_as_long_as_it_took() -> None:
    question, oracle = SharedQuestion[int](trio.current_time), Oracle(0.01)
    assert await question.ask(oracle) == 1

    assert await ask_all(question, oracle, 10) == [2] * 10, "an answer is not used again later"

    first, second = oracle.asked_at
    assert second - first == pytest.approx(0.01 + REST_FACTOR * 0.01)


@in_virtual_time
async def test_a_slow_answer_is_not_rested_from_for_long() -> None:
    question, oracle = SharedQuestion[int](trio.current_time), Oracle(2.0)
    await question.ask(oracle)
    await question.ask(oracle)

    first, second = oracle.asked_at
    assert second - first == pytest.approx(2.0 + REST_S_MAX)


@in_virtual_time
async def test_who_asks_after_the_rest_is_answered_at_once() -> None:
    question, oracle = SharedQuestion[int](trio.current_time), Oracle(0.01)
    await question.ask(oracle)
    await trio.sleep(REST_FACTOR * 0.01)

    began = trio.current_time()
    await question.ask(oracle)
    assert trio.current_time() - began == pytest.approx(0.01)


@in_virtual_time
async def test_a_failure_is_told_to_who_asked_and_the_others_ask_themselves() -> None:
    question, oracle = SharedQuestion[int](trio.current_time), Oracle(0.01)
    oracle.failures_left = 1
    outcomes: list[object] = []

    async def ask() -> None:
        try:
            outcomes.append(await question.ask(oracle))
        except ConnectionFailedError as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)

    assert outcomes == ["nobody answers", 2, 2]


@in_virtual_time
async def test_who_waits_for_an_answer_gets_one_though_the_one_who_asked_is_cancelled() -> None:
    question, oracle = SharedQuestion[int](trio.current_time), Oracle(0.01)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await question.ask(oracle))

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as given_up:
                given_up.start_soon(ask)
                await trio.sleep(0.005)
                tasks.start_soon(ask)
                await trio.sleep(0.001)
                scope.cancel()

    assert answers == [2]
