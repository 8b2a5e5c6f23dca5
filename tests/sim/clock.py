"""Virtual time: when every task waits, the clock moves to what comes next and makes it happen.

Two things come next: a deadline of a task, which is trio's own business, and an entry of the
*agenda*: a plain call at a time, such as bytes that arrive or a disk that has finished.  The
calls are carried out between the steps of tasks, without a task of their own; most of what a
simulated world does costs one heap operation and no task switch.

A process can be *frozen*, as by SIGSTOP: its tasks take no further step and its agenda waits
(``call_at`` with a host), while the world around goes on and time passes.  Thawed, it finds
out how late it is.

trio asks its clock how long it may sleep exactly when no task can run; that question is where
time moves on.  Freezing reaches into trio's queue of ready tasks, which is not public and one
reason why trio is pinned to a minor version.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock

import trio
import trio._core._run as trio_run

HOST: ContextVar[str] = ContextVar("simulated host")
"""The host whose process a task belongs to; tasks inherit it from who started them."""

_AgendaEntry = tuple[float, int, str | None, Callable[[], None]]


class VirtualClock(trio.abc.Clock):
    """The clock of one run, its agenda, and the processes that are frozen."""

    def __init__(self) -> None:
        self.on_failure: Callable[[], object] | None = None
        """Called once, when a call of the agenda raised or somebody said ``fail``."""
        self.failure: BaseException | None = None
        self.now = 0.0
        """Virtual seconds since the run began."""
        self._agenda: list[_AgendaEntry] = []
        self._count = 0
        self._frozen: dict[str, list[trio.lowlevel.Task]] = {}
        self._held_calls: dict[str, list[Callable[[], None]]] = {}

    def current_time(self) -> float:
        return self.now

    def start_clock(self) -> None:
        """Nothing ticks by itself."""

    def call_at(self, time_s: float, call: Callable[[], None], host: str | None = None) -> None:
        """Call ``call`` at ``time_s``, or as soon after as all tasks wait.  With ``host`` it is
        something that process does, and waits while the process is frozen."""
        self._count += 1
        heapq.heappush(self._agenda, (time_s, self._count, host, call))

    # --- frozen processes -----------------------------------------------------------------

    def is_frozen(self, host: str) -> bool:
        return host in self._frozen

    def freeze(self, host: str) -> None:
        """Let no task of ``host`` take another step until it is thawed."""
        assert host not in self._frozen
        if not self._frozen:
            self._hold_tasks()
        self._frozen[host] = []
        self._held_calls[host] = []

    def thaw(self, host: str) -> None:
        """Go on where it stopped.  Nothing happens if it is not frozen."""
        if host not in self._frozen:
            return
        tasks, calls = self._frozen.pop(host), self._held_calls.pop(host)
        if not self._frozen:
            self._release_tasks()
        trio_run.GLOBAL_RUN_CONTEXT.runner.runq.extend(tasks)
        for call in calls:
            self.call_at(self.now, call, host)

    def thaw_all(self) -> None:
        for host in list(self._frozen):
            self.thaw(host)

    def _hold_tasks(self) -> None:
        """Take tasks of frozen hosts off the queue as soon as something would run them."""
        runner_type: Any = trio_run.Runner
        reschedule = self._reschedule = runner_type.reschedule
        frozen = self._frozen

        def hold_or_reschedule(
            runner: Any, task: trio.lowlevel.Task, next_send: Any = trio_run._NO_SEND
        ) -> None:
            reschedule(runner, task, next_send)
            held = frozen.get(task.context.get(HOST, ""))
            if held is not None:
                assert runner.runq.pop() is task
                held.append(task)

        runner_type.reschedule = hold_or_reschedule

    def _release_tasks(self) -> None:
        runner_type: Any = trio_run.Runner
        runner_type.reschedule = self._reschedule

    # --- time -----------------------------------------------------------------------------

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """All tasks wait: go to what comes next, until a task has something to do."""
        runnable = trio_run.GLOBAL_RUN_CONTEXT.runner.runq
        agenda = self._agenda
        while agenda and agenda[0][0] <= deadline < math.inf:
            self.now = max(self.now, agenda[0][0])
            self._carry_out_due()
            if runnable:
                return 0
        if deadline == math.inf:
            return deadline  # The run is over but for trio's own tasks, which do real I/O.
        self.now = max(self.now, deadline)
        return 0

    def _carry_out_due(self) -> None:
        """What is due now.  What that makes due has to wait for the tasks that it has woken."""
        agenda, last = self._agenda, self._count
        while agenda and agenda[0][0] <= self.now and agenda[0][1] <= last:
            _, _, host, call = heapq.heappop(agenda)
            if host is not None and host in self._frozen:
                self._held_calls[host].append(call)
                continue
            try:
                call()
            except BaseException as error:
                # Out of here it would look like a fault of trio's.
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the run with ``error``, unless it is about to end with another."""
        if self.failure is None:
            self.failure = error
            assert self.on_failure is not None
            self.on_failure()


# --- sleeping ---------------------------------------------------------------------------


@contextmanager
def light_sleep() -> Iterator[None]:
    """Let whoever sleeps meanwhile wait for a call of the agenda.

    trio's own ``sleep`` is a cancel scope that expires, made anew for each; brokers that look
    around every so often spent a tenth of a run on that.
    """
    with (
        mock.patch.object(trio, "sleep", sleep),
        mock.patch.object(trio, "sleep_until", sleep_until),
    ):
        yield


async def sleep(seconds: float) -> None:
    """As ``trio.sleep``."""
    if not seconds >= 0:
        raise ValueError("`seconds` must be non-negative, and a number")
    await sleep_until(current_clock().now + seconds)


async def sleep_until(deadline: float) -> None:
    """As ``trio.sleep_until``."""
    clock = current_clock()
    if deadline <= clock.now:
        await trio.lowlevel.checkpoint()
    elif deadline == math.inf:
        await trio.sleep_forever()
    else:
        await _Sleep(clock, deadline).over()


class _Sleep:
    """One task that sleeps."""

    __slots__ = ("_task",)

    def __init__(self, clock: VirtualClock, deadline: float) -> None:
        self._task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        clock.call_at(deadline, self._wake, HOST.get(None))

    async def over(self) -> None:
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


def current_clock() -> VirtualClock:
    """The clock of this run, which must be a simulated one."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, VirtualClock)
    return clock
