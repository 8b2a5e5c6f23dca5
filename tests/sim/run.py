"""Run async code so that one seed gives one run: virtual time, seeded scheduling.

trio is deterministic given three things: a clock that moves on when every task waits
(``clock.py``), its scheduling switch with a seeded generator, and nothing in the program that
depends on the outside: no thread, no socket, no iteration over a set.  The switch is not
public, which is why trio is pinned to a minor version; a test compares runs across processes
and hash seeds.

A simulated run may not end with something left over.  Warnings (a coroutine never awaited, a
resource never closed) and exceptions that Python could only print fail it.  So does a run
in which every task waits for an event that nobody will cause: with nothing else to jump to,
the clock jumps to ``time_limit_s`` and the run fails there with a list of who waited where.
One that goes round without time passing is ended where it stands, by ``processor_limit_s``.
"""

from __future__ import annotations

import random
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, TypeVarTuple

import trio
import trio._core._run as trio_run

import tests.sim.clock as clock_module
from tests.sim.clock import VirtualClock, light_sleep

T = TypeVar("T")
Args = TypeVarTuple("Args")

TIME_LIMIT_S: Final = 3600.0
PROCESSOR_LIMIT_S: Final = 300.0
"""Some ten times what the longest runs take."""

_sleep: Final = trio.sleep
"""The watchdog's own: a deadline that the clock goes to when nothing else is to come."""


class StuckError(AssertionError):
    """The run was not over at its limit of virtual time, or of processor time."""


def run_deterministic(
    function: Callable[[*Args], Awaitable[T]],
    *args: *Args,
    seed: int | str,
    time_limit_s: float = TIME_LIMIT_S,
    processor_limit_s: float = PROCESSOR_LIMIT_S,
) -> T:
    """Call ``await function(*args)`` in a run of its own and return its result.

    Virtual time starts at 0.  ``seed`` orders tasks that are ready at the same moment; what
    the simulated world draws is up to the generators given to it.
    """
    clock = VirtualClock()
    with _seeded_scheduling(seed), _nothing_left_over(), light_sleep():
        return trio.run(
            _within_limit,
            clock,
            function,
            args,
            time_limit_s,
            processor_limit_s,
            clock=clock,
            strict_exception_groups=True,
        )


async def _within_limit(
    clock: VirtualClock,
    function: Callable[[*Args], Awaitable[T]],
    args: tuple[*Args],
    time_limit_s: float,
    processor_limit_s: float,
) -> T:
    """What ``function`` returns or raises, as it is: the watchdog is not in a nursery."""
    _leave_out_the_system()
    stuck: list[str] = []
    body = trio.CancelScope()
    watch = trio.CancelScope()

    async def watchdog() -> None:
        with watch:
            await _sleep(time_limit_s)
            stuck.extend(_waiting_tasks())
            clock.thaw_all()
            body.cancel()
            await _sleep(time_limit_s)
            _break_shields()  # Of tasks that have not noticed.

    trio.lowlevel.spawn_system_task(watchdog)
    clock.on_failure = body.cancel
    try:
        with _processor_limit(processor_limit_s, clock), body:
            return await function(*args)
    finally:
        watch.cancel()
        clock.thaw_all()
    if clock.failure is not None:
        raise clock.failure
    raise StuckError("\n".join([f"not over after {time_limit_s:g} virtual seconds:", *stuck]))


class _SilentIO:
    """trio's I/O without I/O: it asks the kernel between any two steps, which costs as much as
    many a step does.  It is asked only if there can be an answer: when all wait for ever, or when
    something outside the run (a signal, the garbage collector) has called for attention."""

    def __init__(self, runner: Any) -> None:
        self._inner = runner.io_manager
        self._calls = runner.entry_queue

    def get_events(self, timeout: float) -> Any:
        calls = self._calls
        if timeout > 0 or calls.queue or calls.idempotent_queue:
            return self._inner.get_events(timeout)
        return ()

    def process_events(self, events: Any) -> None:
        if events:
            self._inner.process_events(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _leave_out_the_system() -> None:
    runner: Any = trio_run.GLOBAL_RUN_CONTEXT.runner
    runner.io_manager = _SilentIO(runner)
    if list(runner.instruments) == ["_all"]:  # None: a plain dict says so faster.
        runner.instruments = {}


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    pending = [root]
    while pending:
        task = pending.pop()
        yield task
        for nursery in task.child_nurseries:
            pending.extend(sorted(nursery.child_tasks, key=lambda child: child._counter))


def _break_shields() -> None:
    for task in list(_tasks()):
        status: Any = task._cancel_status
        while status is not None:
            status._scope.shield = False
            status = status.parent


def _waiting_tasks() -> list[str]:
    """Who waits where: of each task the innermost calls outside trio, the clock and this module."""
    found: list[str] = []
    for task in _tasks():
        calls = [
            f"{frame.f_code.co_name} ({frame.f_code.co_filename.rpartition('/')[2]}:{line})"
            for frame, line in task.iter_await_frames()
            if "/trio/" not in frame.f_code.co_filename
            and frame.f_code.co_filename not in (__file__, clock_module.__file__)
        ]
        if calls:
            found.append(f"  {' > '.join(calls[-3:])}")
    return found


@contextmanager
def _seeded_scheduling(seed: int | str) -> Iterator[None]:
    scheduler = vars(trio_run)
    was_deterministic = scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"]
    chance: random.Random = scheduler["_r"]
    state = chance.getstate()
    scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    chance.seed(f"{seed}:scheduler")
    try:
        yield
    finally:
        chance.setstate(state)
        scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"] = was_deterministic


@contextmanager
def _processor_limit(seconds: float, clock: VirtualClock) -> Iterator[None]:
    """What takes longer is cancelled.  If it comes to no checkpoint, it is raised out of as much
    later: raised at once, it might be trio that does not expect it."""
    token = trio.lowlevel.current_trio_token()
    error = StuckError(f"not over after {seconds:g} s of processor time")
    is_cancelled = False

    def stop(*_: object) -> None:
        nonlocal is_cancelled
        if is_cancelled:
            raise error
        is_cancelled = True
        token.run_sync_soon(clock.fail, error)

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


@contextmanager
def _nothing_left_over() -> Iterator[None]:
    printed: list[str] = []

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        printed.append(f"{unraisable.exc_value!r} in {unraisable.object!r}")

    hook = sys.unraisablehook
    sys.unraisablehook = keep
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        sys.unraisablehook = hook
    assert not printed, f"left over by the run: {printed}"
