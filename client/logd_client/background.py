"""What a client does on its own, for as long as it is open.

Its tasks live in the scope in which the client was opened, and that may be cancelled around
it: a time limit, Ctrl-C, a failure beside it.  Then the client's user still has something to
finish, such as to give a lock back, and that needs connections.  So these tasks are shielded
from the scopes around the client, and end when the client is closed, which comes next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from logd.errors import LogdError

Args = TypeVarTuple("Args")


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group out of which a single error comes as it was raised, so that ``except``
    finds it."""
    single: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        (single,) = group.exceptions
    if single is not None:
        raise single


async def for_each(
    rows: Iterable[tuple[*Args]], function: Callable[[*Args], Awaitable[object]], *, at_once: int
) -> None:
    """Call ``function`` with each row, so many at a time.

    Raises:
        LogdError: the first that one of them raised; the others were cancelled.
    """
    limit = anyio.CapacityLimiter(at_once)
    failures: list[LogdError] = []

    async def call(row: tuple[*Args]) -> None:
        async with limit:
            try:
                await function(*row)
            except LogdError as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for row in rows:
            tasks.start_soon(call, row)
    if failures:
        raise failures[0]


class Background:
    """The tasks of one client."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._scopes: dict[anyio.CancelScope, None] = {}
        self._is_closed = False

    def start_soon(self, function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
        """Run ``function`` until it ends or the client is closed; not at all if it is closed
        already.  An exception of it ends the client."""
        if not self._is_closed:
            self._tasks.start_soon(self._run, function, *args)

    async def _run(self, function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
        with anyio.CancelScope(shield=True) as scope:
            if self._is_closed:
                scope.cancel()
            self._scopes[scope] = None
            try:
                await function(*args)
            finally:
                del self._scopes[scope]

    def close(self) -> None:
        """Cancel all of them; no other begins."""
        self._is_closed = True
        for scope in self._scopes:
            scope.cancel()
