"""Long-lived threads for calls that block, waking the event loop through an eventfd.

Why not ``trio.to_thread``: every synced acknowledgement pays this hop.  Measured on two
cores for a call that does nothing, alone and with eight callers at once: ``to_thread``
200 and 145 µs, these threads with ``run_sync_soon`` 140 and 60 µs, with an eventfd 110 and
17 µs.  The gain under load comes from waking the loop once for all calls that finished
meanwhile, instead of once per call.

Why calls are not abandoned: a sync whose outcome nobody waited for leaves the log not
knowing what is durable.  A late exit is the smaller evil, so ``run`` waits for its result
whatever is cancelled around it.

The threads are not daemons: leaving the pool joins them, and the interpreter cannot exit
in the middle of a write.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeVar, cast

import outcome
import trio

T = TypeVar("T")

BLOCKING_THREADS: Final = 8
"""More threads sync no faster: 64 files took 5-8 ms with 8 threads, 11-13 ms with one."""


class _Job(NamedTuple):
    caller: trio.lowlevel.Task
    function: Callable[..., object]
    args: tuple[object, ...]


class _Finished(NamedTuple):
    caller: trio.lowlevel.Task
    result: outcome.Outcome[object]


class BlockingPool:
    """Runs blocking calls off the event loop.  Made by ``open_blocking_pool``."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._finished: deque[_Finished] = deque()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._under_way = 0
        self._idle = trio.Event()
        self._idle.set()
        self._is_open = True
        # Shielded: cancelling all around must not leave a caller whose result is never
        # handed over.  Ends only when the pool is left.
        self._waking = trio.CancelScope(shield=True)
        self._woke_last = trio.Event()

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call ``function(*args)`` in a thread and return, or raise, what it does.

        Cancelled before the call: it is not begun.  Cancelled later: the call is waited for
        and its result returned; the cancellation takes effect at the next checkpoint.
        """
        assert self._is_open
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._under_way == 0:
            self._idle = trio.Event()
        self._under_way += 1
        self._jobs.put(_Job(trio.lowlevel.current_task(), function, args))
        try:
            return cast(T, await trio.lowlevel.wait_task_rescheduled(refuse_to_abort))
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._idle.set()

    def _work(self) -> None:
        """A thread's life: one job after the other until it is told to end."""
        while (job := self._jobs.get()) is not None:
            result = outcome.capture(job.function, *job.args)
            self._finished.append(_Finished(job.caller, result))
            # Drop the references now, or the last job's buffers live until the next job.
            del job, result
            os.eventfd_write(self._wakeup, 1)

    async def _wake_callers(self) -> None:
        """The loop's side: hand each result to the task that waits for it."""
        with self._waking:
            while True:
                await trio.lowlevel.wait_readable(self._wakeup)
                # Reset before draining: a job that finishes in between wakes us once more.
                os.eventfd_read(self._wakeup)
                while self._finished:
                    finished = self._finished.popleft()
                    trio.lowlevel.reschedule(finished.caller, finished.result)
        self._woke_last.set()

    async def _close(self) -> None:
        self._is_open = False
        with trio.CancelScope(shield=True):
            await self._idle.wait()
            self._waking.cancel()
            await self._woke_last.wait()


def refuse_to_abort(_raise_cancel: object) -> trio.lowlevel.Abort:
    """For a task that waits for what goes on although the task was cancelled."""
    return trio.lowlevel.Abort.FAILED


@asynccontextmanager
async def open_blocking_pool(threads: int = BLOCKING_THREADS) -> AsyncIterator[BlockingPool]:
    """A pool of ``threads`` threads for the length of the block.

    Order at the end: calls still under way finish, the task that wakes callers stops, the
    threads are joined.  That task is a system task, not a nursery around the block, so that
    an exception of the block leaves as itself and not in a group.
    """
    assert threads > 0
    pool = BlockingPool()
    workers: list[threading.Thread] = []
    try:
        for number in range(1, threads + 1):
            worker = threading.Thread(target=pool._work, name=f"logd-blocking-{number}")
            worker.start()
            workers.append(worker)
        trio.lowlevel.spawn_system_task(pool._wake_callers)
        try:
            yield pool
        finally:
            await pool._close()
    finally:
        # Also where the machine gave fewer than asked for: one that stays would keep the
        # process from ending.
        for _ in workers:
            pool._jobs.put(None)
        for worker in workers:
            worker.join()
        os.close(pool._wakeup)
