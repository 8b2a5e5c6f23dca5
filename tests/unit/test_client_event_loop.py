"""What the client takes from its event loop is the same to its callers under either."""

from __future__ import annotations

import asyncio
import socket
import sys
from types import ModuleType

import anyio
import pytest

from logd_client.event_loop import (
    BodyScope,
    Waker,
    current_loop,
    is_being_cancelled,
    new_scope,
    new_waker,
    when_readable,
)

pytestmark = pytest.mark.anyio


async def wait(waker: Waker) -> None:
    await waker.wait()


async def test_a_waker_wakes_whoever_waits_again_and_again() -> None:
    waker = new_waker()
    times = 0

    async def count() -> None:
        nonlocal times
        while times < 3:
            await waker.wait()
            times += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        for before in range(3):
            await anyio.wait_all_tasks_blocked()
            assert times == before
            waker.wake()
            waker.wake()  # One turn: the task has not run yet.


async def test_a_waker_remembers_nothing() -> None:
    waker = new_waker()
    waker.wake()

    with anyio.move_on_after(0.01) as scope:
        await waker.wait()

    assert scope.cancelled_caught


async def test_who_was_cancelled_is_not_woken_and_can_wait_again() -> None:
    waker = new_waker()
    with anyio.move_on_after(0.01):
        await waker.wait()
    waker.wake()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, waker)
        await anyio.wait_all_tasks_blocked()
        waker.wake()


async def test_who_was_woken_and_is_cancelled_before_it_runs_can_wait_again() -> None:
    waker = new_waker()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, waker)
        await anyio.wait_all_tasks_blocked()
        waker.wake()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, waker)
        await anyio.wait_all_tasks_blocked()
        waker.wake()


async def test_a_scope_that_is_cancelled_ends_what_waits_in_it_and_says_so(
    anyio_backend: object,
) -> None:
    scope = new_scope()
    with scope:
        scope.cancel()
        await anyio.sleep_forever()

    assert scope.cancelled_caught


async def test_a_scope_ends_what_waits_in_it_once_its_time_is_up(anyio_backend: object) -> None:
    began = anyio.current_time()
    with new_scope(timeout_s=0.01):
        await anyio.sleep_forever()

    assert 0.009 < anyio.current_time() - began < 5


async def test_nothing_around_a_scope_ends_what_it_shields(anyio_backend: object) -> None:
    steps: list[str] = []
    with anyio.CancelScope() as around:
        around.cancel()
        with new_scope(timeout_s=5, shield=True):
            await anyio.sleep(0.001)
            steps.append("shielded")
        await anyio.sleep(0.001)
        steps.append("not shielded")

    assert steps == ["shielded"]


def test_what_is_called_for_a_readable_socket_may_begin_tasks_also_under_bare_asyncio() -> None:
    # anyio.run, which all other tests run in, tells what it calls which event loop it is.
    async def begin_a_task_when_something_arrives() -> bool:
        near, far = socket.socketpair()
        has_run = anyio.Event()

        async def run() -> None:
            has_run.set()

        def read() -> None:
            near.recv(1)
            tasks.start_soon(run)

        with near, far, anyio.move_on_after(5):
            async with anyio.create_task_group() as tasks:
                end = when_readable(near, read)
                far.send(b"x")
                await has_run.wait()
                end()
        return has_run.is_set()

    assert asyncio.run(begin_a_task_when_something_arrives())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_thread_that_is_importing_trio_disturbs_nobody_under_asyncio(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trio", ModuleType("trio"))  # Its names come later.

    assert current_loop() is asyncio.get_running_loop()


async def test_who_is_cancelled_by_a_scope_is_being_cancelled() -> None:
    found: list[bool] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            found.append(is_being_cancelled())

    assert found == [True]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_waits_for_what_is_cancelled_is_not_being_cancelled(
    anyio_backend: object,
) -> None:
    found: list[bool] = []

    async def wait_for(waiting: asyncio.Future[None]) -> None:
        try:
            await waiting
        except asyncio.CancelledError:
            found.append(is_being_cancelled())

    its_own = asyncio.get_running_loop().create_future()
    its_own.cancel()
    await wait_for(its_own)
    task = asyncio.create_task(wait_for(asyncio.get_running_loop().create_future()))
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await task

    assert found == [False, True]


async def get_over_a_task_group_that_fails() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())


async def test_a_body_that_is_cancelled_ends_in_silence() -> None:
    has_gone_on = False
    scope = BodyScope()
    with scope:
        scope.cancel()
        await anyio.sleep_forever()
    has_gone_on = True

    assert has_gone_on


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_body_in_which_a_task_group_has_failed_ends_in_silence_too(
    anyio_backend: object,
) -> None:
    async def run() -> str:
        scope = BodyScope()
        with scope:
            await get_over_a_task_group_that_fails()
            scope.cancel()
            await anyio.sleep_forever()
        return "over"

    assert await asyncio.create_task(run()) == "over"


async def test_what_cancels_a_body_from_outside_goes_on() -> None:
    scope = BodyScope()
    with anyio.CancelScope() as around:
        with scope:
            around.cancel()
            scope.cancel()
            await anyio.sleep_forever()
        pytest.fail("it goes on behind the body")

    assert around.cancelled_caught


@pytest.mark.parametrize("is_cancelled", [True, False])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_cancels_the_task_of_a_body_does_so_although_a_task_group_has_failed_there(
    anyio_backend: object, is_cancelled: bool
) -> None:
    scope = BodyScope()

    async def run() -> None:
        with scope:
            await get_over_a_task_group_that_fails()
            await anyio.sleep_forever()

    task = asyncio.create_task(run())
    await anyio.wait_all_tasks_blocked()
    if is_cancelled:
        scope.cancel()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
