"""The way from a thread that blocks into the event loop's thread, and back.

Whoever waits here may be interrupted: by Ctrl-C, or by a signal whose handler raises.  Four things
may then become of the call, and who makes it says which: it is cancelled (``Portal.call``), and
waited for until it has ended (``Portal.call_to_its_end``); what it came to all the same is given
back (``Portal.obtain``); or it is kept for the next time (``Awaited``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, suppress
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, overload
from weakref import WeakSet

import anyio
from anyio.from_thread import BlockingPortal

from logd.errors import UsageError
from logd_client.arguments import require_seconds

T = TypeVar("T")

CLOSED: Final = "the client is closed: make another one with connect(...)"
_ELSEWHERE: Final = (
    "the client was opened before this process was forked off, and its event loop runs in the "
    "other one only: open one in each process"
)


class LoopThread:
    """An event loop that runs in a thread of its own for as long as this is entered.

    As anyio's ``start_blocking_portal``, but that is a generator, which does not let go of the
    thread without waiting for it: a process that was forked off, in which there is no such
    thread, could not even end.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._started: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=self._run, name="logd_client", daemon=True)

    def __enter__(self) -> BlockingPortal:
        self._thread.start()
        return self._started.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        portal = self._started.result()
        with suppress(RuntimeError):  # It has ended by itself.
            portal.call(portal.stop, kind is not None)
        self._thread.join()

    def _run(self) -> None:
        try:
            anyio.run(self._serve, backend=self._backend)
        except BaseException as error:
            if self._started.done():
                raise  # A fault of ours: whoever calls hears only that nothing runs here any more.
            self._started.set_exception(error)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()


class Portal:
    """The way into the event loop's thread."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self.is_closed = False
        self.is_elsewhere = False
        """This process was forked off the one in which that thread is: nothing goes through."""
        _portals.add(self)
        self.entered: dict[AbstractContextManager[object], None] = {}
        """What has to be left before the client is closed, in the order in which it was entered."""

    def close(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Leave what is still entered, as leaving ``with`` blocks would; then nothing goes through
        any more."""
        blocks = ExitStack()
        for block in list(self.entered):
            blocks.push(block)
        try:
            blocks.__exit__(kind, error, traceback)
        finally:
            self.is_closed = True

    @overload
    def call(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T: ...

    @overload
    def call(self, function: Callable[..., T], *arguments: object) -> T: ...

    def call(self, function: Callable[..., object], *arguments: object) -> object:
        """Call ``function`` there and wait for what it returns, or for what it awaits.  If this
        thread is interrupted meanwhile, it is cancelled."""
        called = self._begin(function, *arguments)
        try:
            return _result_of(called)
        except BaseException:
            # Interrupted, by Ctrl-C for example: nobody is there to have what it would come to.
            called.cancel()
            raise

    def call_to_its_end(self, function: Callable[[], Awaitable[T]]) -> T:
        """As ``call``, of what gives back what it holds before it ends.  If this thread is
        interrupted, or the client is closed, it is cancelled and waited for; who is interrupted
        once more does not wait."""
        work = _Work(function)
        self.entered[work] = None
        try:
            return _result_of(work.begin(self._begin))
        except BaseException:
            work.close()
            raise
        finally:
            self.entered.pop(work, None)

    def start(self, function: Callable[[], Awaitable[None]]) -> None:
        """Have ``function``, which does not raise, called there, without waiting for it.  What it
        raises all the same goes to the log of ``concurrent.futures``."""
        self._begin(function).add_done_callback(_require_no_fault)

    def _begin(self, function: Callable[..., object], *arguments: object) -> Future[Any]:
        if self.leads_somewhere:
            try:
                return self._portal.start_task_soon(function, *arguments)
            except RuntimeError:
                if not self.is_closed:  # Meanwhile.
                    raise
        raise self.refusal()

    def obtain(
        self, obtain: Callable[[], Awaitable[T]], give_back: Callable[[T], Awaitable[None]]
    ) -> T:
        """As ``call``, of something that others wait for: if this thread is interrupted before it
        has it, it is given back."""
        errand = _Errand(obtain, give_back)
        try:
            return self.call(errand.run)
        except BaseException:
            if self.leads_somewhere:
                self._portal.start_task_soon(errand.give_up)
            raise

    @property
    def leads_somewhere(self) -> bool:
        """What is called is done."""
        return not (self.is_closed or self.is_elsewhere)

    def refusal(self) -> UsageError:
        """Why it leads nowhere."""
        return UsageError(_ELSEWHERE if self.is_elsewhere else CLOSED)


_portals: Final = WeakSet[Portal]()


def _lose_portals() -> None:
    for portal in _portals:
        portal.is_elsewhere = True


os.register_at_fork(after_in_child=_lose_portals)


def _result_of(called: Future[T]) -> T:
    try:
        return called.result()
    except CancelledError:
        # By the end of the client, which waits for nobody if it comes with an exception.
        error = UsageError(CLOSED)
        error.may_have_applied = True
        raise error from None


class _Work(AbstractContextManager[None], Generic[T]):
    """A call that ends in order."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._called: Future[T] | None = None
        self._beginning = threading.RLock()
        """A signal's handler may close the client in the middle of it."""
        self._has_ended = threading.Event()

    def begin(self, begin: Callable[[Callable[[], Awaitable[T]]], Future[T]]) -> Future[T]:
        """Have it called by ``begin``.  Who closes it meanwhile waits for that."""
        with self._beginning:
            self._called = begin(self._run)
            return self._called

    async def _run(self) -> T:
        try:
            return await self._function()
        finally:
            self._has_ended.set()

    def close(self) -> None:
        """Cancel it, and wait until it has ended."""
        with self._beginning:
            called = self._called
        if called is not None:
            called.cancel()
            self._has_ended.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _require_no_fault(done: Future[Any]) -> None:
    if not done.cancelled():
        done.result()


class Entered:
    """Something whose asynchronous context is entered and left from another thread."""

    def __init__(self, portal: Portal, context: AbstractAsyncContextManager[object]) -> None:
        self._portal = portal
        self._context = context

    def open(self) -> Self:
        """Do what entering a ``with`` block does."""
        self._portal.call(self._context.__aenter__)
        return self

    def close(self) -> None:
        """Do what leaving a ``with`` block does: a producer waits for its acknowledgements."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if not self._portal.leads_somewhere:
            return None  # The client has closed it too, or another process has it.
        return self._portal.call(self._context.__aexit__, kind, error, traceback)


class _Errand(Generic[T]):
    """Obtains something for a thread that may be gone by then."""

    def __init__(
        self, obtain: Callable[[], Awaitable[T]], give_back: Callable[[T], Awaitable[None]]
    ) -> None:
        self._obtain = obtain
        self._give_back = give_back
        self._obtained: list[T] = []
        self._is_given_up = False

    async def run(self) -> T:
        obtained = await self._obtain()
        self._obtained.append(obtained)
        if self._is_given_up:
            await self.give_up()
        return obtained

    async def give_up(self) -> None:
        self._is_given_up = True
        with anyio.CancelScope(shield=True):
            while self._obtained:
                await self._give_back(self._obtained.pop())


class Awaited(Generic[T]):
    """What a thread waits for again and again, of which none is lost if it is interrupted.

    The event loop keeps here what has come until the thread has it.  Were it the result of the
    call that waits, who is interrupted just then would never see it.
    """

    def __init__(self, portal: Portal, wait: Callable[[], Awaitable[T]], *, at_end: T) -> None:
        """``at_end``: what ``wait`` comes to when nothing more comes."""
        self._portal = portal
        self._wait = wait
        """Cancelled, it loses nothing."""
        self._at_end = at_end
        self._is_waiting = anyio.Lock()
        """An interrupted wait takes a moment to end."""
        self._come: list[T] = []

    def take(self, timeout_s: float | None = None) -> T:
        """Wait for the next one.  Once the client is closed nothing more comes.

        Raises:
            TimeoutError: none came within ``timeout_s``.
        """
        if timeout_s is not None:
            require_seconds("timeout_s", timeout_s)
        come: list[T] = []
        while not come:
            try:
                in_time = self._portal.call(self._fetch, timeout_s)
            except UsageError:
                if self._portal.is_closed:
                    return self._at_end
                raise
            # Signal handlers run when something was called, and from here on nothing is.
            come, self._come = self._come, []
            if not (come or in_time):
                raise TimeoutError(f"nothing came within {timeout_s:g} s")
        return come[0]

    async def _fetch(self, timeout_s: float | None) -> bool:
        """False if nothing came in time."""
        with anyio.move_on_after(timeout_s) as limit:
            async with self._is_waiting:
                if not self._come:
                    self._come = [await self._wait()]
        return not limit.cancelled_caught
