"""Blocking calls run in threads; their results always come back, whatever is cancelled."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from logd.runtime.threads import BlockingPool, open_blocking_pool

Scenario = Callable[[BlockingPool], Awaitable[None]]


def run(scenario: Scenario, threads: int = 2) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            async with open_blocking_pool(threads) as pool:
                await scenario(pool)

    trio.run(main)


def logd_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("logd-blocking")]


def test_a_call_returns_what_the_function_returns() -> None:
    async def scenario(pool: BlockingPool) -> None:
        assert await pool.run(divmod, 17, 5) == (3, 2)

    run(scenario)


def test_the_function_runs_in_another_thread() -> None:
    async def scenario(pool: BlockingPool) -> None:
        assert await pool.run(threading.get_ident) != threading.get_ident()

    run(scenario)


def test_an_exception_arrives_with_the_traceback_of_the_thread() -> None:
    def fail_deep_inside() -> None:
        raise OSError(5, "disk on fire")

    async def scenario(pool: BlockingPool) -> None:
        with pytest.raises(OSError, match="disk on fire") as caught:
            await pool.run(fail_deep_inside)
        frames = [frame.name for frame in traceback.extract_tb(caught.tb)]
        assert "fail_deep_inside" in frames

    run(scenario)


def test_the_loop_goes_on_while_a_call_blocks() -> None:
    async def scenario(pool: BlockingPool) -> None:
        released = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, released.wait)
            await trio.testing.wait_all_tasks_blocked()
            released.set()

    run(scenario)


def test_calls_run_at_the_same_time_up_to_the_number_of_threads() -> None:
    async def scenario(pool: BlockingPool) -> None:
        together = threading.Barrier(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run, together.wait)
            nursery.start_soon(pool.run, together.wait)

    run(scenario, threads=2)


def test_more_calls_than_threads_all_complete() -> None:
    async def scenario(pool: BlockingPool) -> None:
        results: list[int] = []

        async def call(number: int) -> None:
            results.append(await pool.run(abs, -number))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, number)
        assert sorted(results) == list(range(100))

    run(scenario)


def test_a_call_that_began_is_waited_for_and_its_result_is_not_lost_to_a_cancellation() -> None:
    async def scenario(pool: BlockingPool) -> None:
        released = threading.Event()
        results: list[bool] = []

        async def call() -> None:
            results.append(await pool.run(released.wait))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert results == []
                released.set()
        assert results == [True]

    run(scenario)


def test_a_cancelled_caller_does_not_begin_a_call() -> None:
    async def scenario(pool: BlockingPool) -> None:
        called: list[int] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.run(called.append, 1)
        assert called == []

    run(scenario)


def test_leaving_the_pool_waits_for_calls_and_joins_the_threads() -> None:
    async def main() -> None:
        released = threading.Event()
        results: list[bool] = []

        async def call(pool: BlockingPool) -> None:
            results.append(await pool.run(released.wait))

        async with trio.open_nursery() as nursery:
            async with open_blocking_pool(2) as pool:
                nursery.start_soon(call, pool)
                await trio.testing.wait_all_tasks_blocked()
                assert len(logd_threads()) == 2
                released.set()
            assert logd_threads() == []
        assert results == [True]

    trio.run(main)


def test_an_exception_of_the_block_leaves_as_itself_and_no_thread_stays() -> None:
    async def scenario(_: BlockingPool) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(scenario)
    assert logd_threads() == []


def test_a_cancelled_block_still_gets_the_results_of_its_calls() -> None:
    results: list[int] = []

    async def main() -> None:
        with trio.move_on_after(5) as scope:
            async with open_blocking_pool(1) as pool:

                def cancel_then_answer() -> int:
                    trio.from_thread.run_sync(scope.cancel, trio_token=token)
                    return 7

                token = trio.lowlevel.current_trio_token()
                results.append(await pool.run(cancel_then_answer))

    trio.run(main)

    assert results == [7]
    assert logd_threads() == []


def test_where_the_machine_gives_too_few_threads_none_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    begun: list[threading.Thread] = []

    def start_two(thread: threading.Thread) -> None:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    async def main() -> None:
        async with open_blocking_pool(3):
            pass

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        trio.run(main)

    assert logd_threads() == []
