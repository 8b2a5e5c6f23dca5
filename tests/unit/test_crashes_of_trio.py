"""Tests of the client run in anyio's runner, and notice what goes wrong beside them."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue

import pytest
import trio


async def fail() -> None:
    raise ZeroDivisionError("a fault of ours")


async def leave_it_failing() -> None:
    trio.lowlevel.spawn_system_task(fail)


def test_a_task_of_the_event_loop_that_fails_behind_a_test_is_told_of() -> None:
    calls: Queue[Callable[[], object]] = Queue()
    ends: list[object] = []

    # As the runner does it.
    trio.lowlevel.start_guest_run(
        leave_it_failing, run_sync_soon_threadsafe=calls.put, done_callback=ends.append
    )

    def run_to_the_end() -> None:
        while not ends:
            calls.get()()

    with pytest.raises(trio.TrioInternalError) as caught:
        run_to_the_end()

    assert len(ends) == 1
    assert "a fault of ours" in repr(caught.value.__cause__)
