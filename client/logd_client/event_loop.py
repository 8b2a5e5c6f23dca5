"""What the client takes from its event loop directly: events, scopes, time, and readable sockets.

Everything else goes through anyio, which asks on each call which event loop it is on and wraps
what that gives.  A record that is appended alone pays for that a dozen times, and twice more
for a task that reads its connection: more than for all the rest of its way.  So the few things
that are on the way of every record, or of every lock that is taken, are here, once for each event
loop; what they are to their callers does not depend on it.

Readable sockets are told by a call instead of to a waiting task.  asyncio has that
(``add_reader``).  Under trio all sockets of a run stand in one ``epoll``, which one task waits
for: a turn of the event loop reads all that are readable, without a switch and without a
system call for each to wait again.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import select
import socket
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

if TYPE_CHECKING:
    from trio.lowlevel import RunVar

_READABLE_AT_ONCE_MAX: Final = 128
"""So many sockets are read before other tasks run."""


class Event(Protocol):
    """Something that happens once; several tasks may wait for it."""

    def set(self) -> object: ...

    async def wait(self) -> object: ...


def new_event() -> Event:
    """The event loop's own event.  Waiting for one that is set may return without a checkpoint."""
    trio = _trio()
    return asyncio.Event() if trio is None else trio.Event()


class Waker(Protocol):
    """Wakes one task, any number of times: cheaper than events, as there are thousands of them.

    It remembers nothing: whoever waits looks first whether there is something to wait for.
    """

    def wake(self) -> None:
        """The task that waits goes on; nothing happens if none does."""

    def wait(self) -> Awaitable[object]:
        """Await what this returns, at once."""


def new_waker() -> Waker:
    """The event loop's own."""
    trio = _trio()
    return _AsyncioWaker() if trio is None else _TrioWaker(trio.lowlevel)


class Scope(Protocol):
    """As a cancel scope of anyio's."""

    @property
    def cancelled_caught(self) -> bool: ...

    def cancel(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool: ...


def new_scope(*, timeout_s: float = math.inf, shield: bool = False) -> Scope:
    """The event loop's own; time counts from now."""
    deadline = math.inf if timeout_s == math.inf else monotonic_clock()() + timeout_s
    trio = _trio()
    made: Scope = (anyio if trio is None else trio).CancelScope(deadline=deadline, shield=shield)
    return made


class BodyScope:
    """The scope of what a caller does with something that it may lose, which cancels it.

    It also swallows its own cancellation where a scope of anyio's would let it out: under asyncio
    before Python 3.13 a task that got over a failed ``asyncio.TaskGroup`` counts as cancelled ever
    after, which looks as if somebody else cancelled it together with the scope.
    """

    __slots__ = ("_cancelled_before", "_scope", "_task")

    def __init__(self) -> None:
        self._scope = new_scope()
        self._task: object = None
        self._cancelled_before: int | None = None
        """How often its task counted as cancelled when this scope was."""

    def __enter__(self) -> None:
        self._task = current_task()
        self._scope.__enter__()

    def cancel(self) -> None:
        if self._cancelled_before is None and isinstance(self._task, asyncio.Task):
            self._cancelled_before = self._task.cancelling()
        self._scope.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._scope.__exit__(kind, error, traceback):
            return True
        if self._cancelled_before is None or not isinstance(error, asyncio.CancelledError):
            return False
        assert isinstance(self._task, asyncio.Task)
        is_of_others = anyio.current_effective_deadline() == -math.inf
        return not is_of_others and self._task.cancelling() <= self._cancelled_before


def monotonic_clock() -> Callable[[], float]:
    """The clock that the event loop's timeouts go by."""
    trio = _trio()
    if trio is None:
        return asyncio.get_running_loop().time
    clock: Callable[[], float] = trio.lowlevel.current_clock().current_time
    return clock


def current_loop() -> object:
    """The event loop that runs here: an object that no other has; None if none runs."""
    trio = _trio()
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def current_task() -> object:
    """The task that runs here."""
    trio = _trio()
    return asyncio.current_task() if trio is None else trio.lowlevel.current_task()


def is_being_cancelled() -> bool:
    """Whether somebody cancels the task that runs here, and meets its cancellation now.

    If nobody does, that is of something else: under asyncio, who waits for a task or a future that
    is cancelled is told so by the same exception.
    """
    if _trio() is not None or anyio.current_effective_deadline() == -math.inf:
        return True
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def when_readable(sock: socket.socket, call: Callable[[], None]) -> Callable[[], None]:
    """Call ``call`` whenever ``sock`` is readable; returns what ends that.

    ``call`` must not raise.  It runs in no task of the caller's.  End it before the socket is
    closed.

    Raises:
        NotImplementedError: this event loop cannot do that; wait for the socket in a task.
    """
    if _trio() is not None:
        return _poller().add(sock, call)
    loop = asyncio.get_running_loop()
    _where_anyio_knows_asyncio().run(loop.add_reader, sock, call)
    return lambda: _without_result(loop.remove_reader(sock))


def _without_result(_: object) -> None:
    return


def _trio() -> Any:
    """trio, if this is one of its tasks."""
    trio = sys.modules.get("trio")
    # Another thread may be in the middle of importing it: then nothing runs under it here.
    lowlevel = getattr(trio, "lowlevel", None)
    return trio if lowlevel is not None and lowlevel.in_trio_task() else None


# --- asyncio ----------------------------------------------------------------------------


def _where_anyio_knows_asyncio() -> contextvars.Context:
    """A context in which anyio can be used by what asyncio calls outside of all tasks.

    anyio asks sniffio which event loop runs, if that is installed, as it is beside trio.  sniffio
    goes by the task that runs, or by what it was told.  ``anyio.run`` tells it, for all that is
    called from within, ``asyncio.run`` does not.
    """
    context = contextvars.copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


class _AsyncioWaker:
    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():  # Cancelled, with the task that waited.
            future.set_result(None)

    def wait(self) -> Awaitable[object]:
        self._future = future = self._loop.create_future()
        return future


# --- trio -------------------------------------------------------------------------------


class _TrioWaker:
    __slots__ = ("_lowlevel", "_task")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task: Any = None

    def wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._lowlevel.reschedule(task)

    def wait(self) -> Awaitable[object]:
        lowlevel = self._lowlevel
        self._task = lowlevel.current_task()
        waiting: Awaitable[object] = lowlevel.wait_task_rescheduled(self._give_up)
        return waiting

    def _give_up(self, _: object) -> Any:
        self._task = None
        return self._lowlevel.Abort.SUCCEEDED


class _Poller:
    """All sockets of one trio run that somebody wants to read."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def add(self, sock: socket.socket, call: Callable[[], None]) -> Callable[[], None]:
        number = sock.fileno()
        self._epoll.register(number, select.EPOLLIN)
        self._calls[number] = call

        def end() -> None:
            if self._calls.pop(number, None) is not None and not self._epoll.closed:
                self._epoll.unregister(number)

        return end

    async def run(self) -> None:
        """In a task of its own, for as long as the run takes."""
        import trio

        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for number, _ in self._epoll.poll(0, _READABLE_AT_ONCE_MAX):
                    # One of the calls before may have ended this one.
                    call = self._calls.get(number)
                    if call is not None:
                        call()
        finally:
            self._epoll.close()


_poller_of_run: RunVar[_Poller | None] | None = None


def _poller() -> _Poller:
    import trio

    global _poller_of_run
    if not hasattr(select, "epoll"):
        raise NotImplementedError("this system has no epoll")
    if _poller_of_run is None:
        _poller_of_run = trio.lowlevel.RunVar[_Poller | None]("logd_client poller", None)
    poller = _poller_of_run.get()
    if poller is None:
        poller = _Poller()
        _poller_of_run.set(poller)
        trio.lowlevel.spawn_system_task(poller.run)
    return poller
