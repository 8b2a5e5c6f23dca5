"""Work in a process of its own, a piece at a time: what it does lies between what others do.

It is plain code that waits now and then (``wait_s``), so it needs a stack of its own, hence a
thread: one that runs only while the simulator stands still for it.  So a run stays what its seed
makes it, and whoever trims, repairs, fills or kills meanwhile does so between two pieces.  Ended
early it leaves behind what it had written by then: no handler of its own gets to clean up.
"""

from __future__ import annotations

import contextvars
import threading

import outcome
import trio._core._run as trio_run

from logd.env import ApartWork
from tests.sim.files import EndOfLifeError, SimulatedFileSystem


class ApartProcess:
    """One piece of work, from its start to its answer or its end."""

    def __init__(self, files: SimulatedFileSystem, work: ApartWork, request: bytes) -> None:
        self._files = files
        self._result: outcome.Outcome[bytes] | None = None
        self._pause_s = 0.0
        self._is_killed = False
        self._may_run = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        context = contextvars.copy_context()
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner

        def run() -> None:
            trio_run.GLOBAL_RUN_CONTEXT.runner = runner  # It asks for the time.
            self._may_run.acquire()
            if not self._is_killed:
                self._result = outcome.capture(context.run, work, files, request, self._wait_s)
            self._has_stopped.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def go_on(self) -> float | None:
        """Let it run until it waits next, and for how long; None: it is done."""
        self._let_run()
        return self._pause_s if self._result is None else None

    def answer(self) -> bytes:
        """What it answered, or what it raised."""
        assert self._result is not None
        return self._result.unwrap()

    def end(self) -> None:
        """Kill it, unless it is done: none of its operations has an effect any more."""
        if self._result is None:
            self._is_killed = True
            with self._files.killing():
                self._let_run()
        self._thread.join()

    def _let_run(self) -> None:
        self._may_run.release()
        self._has_stopped.acquire()

    def _wait_s(self, seconds: float) -> None:
        self._pause_s = seconds
        self._has_stopped.release()
        self._may_run.acquire()
        if self._is_killed:
            raise EndOfLifeError
