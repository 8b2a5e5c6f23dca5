"""Running somebody's command while something is held: a lock, a leadership, a membership.

The command is told what was granted in its environment, gets our standard streams, and is ended
when the grant is lost: SIGTERM, then SIGKILL while there is still time before anybody else can be
granted it.  Signals that ask us to end are passed on, and what was held is given back when
the command has ended.

Without a terminal the command runs in a session of its own, so that what it started ends with it.
With one it stays in ours: a command that a person may type to must not be in the background.  To
one whose input comes from us nobody types, nor to one of several: these are always apart, so that
Ctrl-C reaches them through us alone, who end them in order.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Final, NoReturn, Protocol, TypeVar

import anyio
import anyio.abc
import click

from logd.cli.display import say
from logd.cli.exits import ExitCode
from logd.errors import LeaseLostError
from logd_client.background import task_group

T = TypeVar("T")

TERM_SHARE: Final = 0.1
"""Of the time to live: how long a command may take to end by itself when the grant is lost.  What
is left until others can be granted it is twice that."""

SIGNAL_EXIT_BASE: Final = 128
"""As shells report a command that a signal ended."""

NOT_FOUND_EXIT: Final = 127
LOOK_S: Final = 0.02
"""Nobody tells us when what a command started has ended."""

HEAR_S: Final = 0.1
"""How long we wait to hear of a signal that has ended a command: it may be for us too."""

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_CODES_OF_ENDING: Final = frozenset(
    code for number in _PASSED_ON for code in (-number, SIGNAL_EXIT_BASE + number)
)
"""Of a command that one of these has ended, and of a shell whose command it has."""

_IS_THERE: Final = 0
"""A signal that is not sent: it only tells whether there is anybody to send one to."""


class Held(Protocol):
    """What the command depends on."""

    @property
    def is_lost(self) -> bool: ...
    async def wait_until_over(self) -> None: ...
    def lost_error(self) -> LeaseLostError: ...


def client_name() -> str:
    """Who we are, for whoever lists the holders."""
    return f"logd@{socket.gethostname()[:100]}:{os.getpid()}"


def fence_environment(bootstrap: str, name: str, fence_id: int, token: int) -> dict[str, str]:
    """What a command is told of what it holds."""
    return {
        "LOGD_BOOTSTRAP": bootstrap,
        "LOGD_FENCE_NAME": name,
        "LOGD_FENCE_ID": str(fence_id),
        "LOGD_FENCE_TOKEN": str(token),
        "LOGD_FENCE": f"{fence_id}:{token}",
    }


async def run_while_held(
    command: Sequence[str],
    environment: Mapping[str, str],
    held: Held,
    ttl_s: float,
    hold_s: float = 0,
    *,
    signals: Signals | None,
) -> int:
    """Run ``command`` to its end, and wait until it was held for ``hold_s``; its exit code, as a
    shell would tell it.

    Args:
        signals: to pass on to the command; None if our caller, who may run several, cancels us
            for them.

    Raises:
        LeaseLostError: what it depended on was lost, and it was ended.
        Exit: a signal asked us to end, while it ran or while it was held on.
    """
    is_apart = signals is None or _is_without_terminal()
    signals = signals or Signals()
    until = anyio.current_time() + hold_s
    received: list[int] = []

    def pass_on(number: int) -> None:
        received.append(number)
        # From a terminal an interrupt reaches the command by itself.
        if number != signal.SIGINT or running.is_apart:
            running.send(number)

    try:
        running = await _start(command, environment, is_apart=is_apart)
    except OSError as error:
        _end_without_command(command, error)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_when_lost, running, held, ttl_s)
        try:
            with signals.heard_by(pass_on):
                code = await running.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await running.end(ttl_s * TERM_SHARE)
            raise
        tasks.cancel_scope.cancel()
    if held.is_lost:
        raise held.lost_error()
    code = SIGNAL_EXIT_BASE - code if code < 0 else code
    if received:
        raise click.exceptions.Exit(code)
    if hold_s:
        await signals.obtain(partial(anyio.sleep_until, until))
    return code


class Grant(Held, Protocol):
    """What is held and carries a fence: a lease."""

    @property
    def name(self) -> str: ...
    @property
    def fence_id(self) -> int: ...
    @property
    def token(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The command that is to run while something is held, and how long it is held."""

    command: Sequence[str]
    bootstrap: str
    ttl_s: float
    hold_s: float

    async def run(self, held: Grant, *, signals: Signals) -> int:
        """See ``run_while_held``."""
        environment = fence_environment(self.bootstrap, held.name, held.fence_id, held.token)
        return await run_while_held(
            self.command, environment, held, self.ttl_s, self.hold_s, signals=signals
        )


async def run_for_input(
    command: Sequence[str],
    environment: Mapping[str, str],
    grace_s: float,
    *,
    stdin: IO[bytes],
    stderr: IO[bytes],
) -> int:
    """Run ``command`` to its end; its exit code, negative if a signal ended it.

    Cancelled, it is ended first, with ``grace_s`` to end by itself; if it ends with code 0 then, it
    has done its work, and that is what is returned.

    Raises:
        OSError: it could not be started.
    """
    running = await _start(command, environment, stdin, stderr, is_apart=True)
    try:
        code = await running.wait()
        if code in _CODES_OF_ENDING:
            # Whoever asked it to end may have asked us as well, as systemd does: then we are
            # about to be cancelled, and it has not failed.
            await anyio.sleep(HEAR_S)
    except BaseException:
        with anyio.CancelScope(shield=True):
            code = await running.end(grace_s)
        if code != 0:
            raise
    return code


class Signals:
    """Signals that ask us to end, as ``open_signals`` takes them: from then on none of them ends
    us where we stand.  One for which nobody listens waits for whoever does next.
    """

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._hear: Callable[[int], None] | None = None

    def take(self, number: int) -> None:
        """One has come."""
        if self._hear is not None:
            self._hear(number)
        elif number not in self._waiting:
            self._waiting.append(number)

    @contextmanager
    def heard_by(self, hear: Callable[[int], None]) -> Iterator[None]:
        """For the length of the block ``hear`` is called with each, those that waited first."""
        assert self._hear is None
        self._hear = hear
        waiting, self._waiting = self._waiting, []
        for number in waiting:
            hear(number)
        try:
            yield
        finally:
            self._hear = None

    async def obtain(self, obtain: Callable[[], Awaitable[T]]) -> T:
        """What ``obtain`` gives; a signal meanwhile gives the place in line back and ends us.

        Raises:
            Exit: a signal came.
        """
        got, number = await self._unless_one_comes(obtain)
        if not got:
            raise click.exceptions.Exit(SIGNAL_EXIT_BASE + number)
        if number:
            self.take(number)  # It came too late for this, and not for what comes.
        return got[0]

    async def run(self, function: Callable[[], Awaitable[None]]) -> int:
        """Run ``function`` to its end, or until a signal asks us to end: then it is cancelled, and
        gives back what it holds.  Returns the exit code."""
        _, number = await self._unless_one_comes(function)
        return SIGNAL_EXIT_BASE + number if number not in (0, signal.SIGTERM) else 0

    async def _unless_one_comes(self, function: Callable[[], Awaitable[T]]) -> tuple[list[T], int]:
        """What it gave, unless it was cancelled, and the signal that came."""
        got: list[T] = []
        came = 0

        def cancel(number: int) -> None:
            nonlocal came
            came = came or number
            scope.cancel()

        with anyio.CancelScope() as scope, self.heard_by(cancel):
            got.append(await function())
        return got, came


@asynccontextmanager
async def open_signals() -> AsyncIterator[Signals]:
    """Take signals that ask us to end, for the length of the block: SIGTERM, and the others unless
    whoever started us has them ignored, as ``nohup`` does.

    Whatever waits there must be over soon by itself, or listen.
    """
    signals = Signals()

    async def listen() -> None:
        async for number in received:
            signals.take(number)

    taken = [
        number
        for number in _PASSED_ON
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    ]
    with anyio.open_signal_receiver(*taken) as received:
        async with task_group() as tasks:
            tasks.start_soon(listen)
            yield signals
            tasks.cancel_scope.cancel()


async def run_until_signalled(function: Callable[[], Awaitable[None]]) -> int:
    """``Signals.run`` for what is all that there is to do."""
    async with open_signals() as signals:
        return await signals.run(function)


def require_command(command: Sequence[str]) -> None:
    """End as a shell would, and before anything is asked of the cluster, if there is no such
    command."""
    if shutil.which(command[0]) is None:
        why = errno.EACCES if os.path.exists(command[0]) else errno.ENOENT
        _end_without_command(command, OSError(why, os.strerror(why)))


class _Running:
    """A command that was started."""

    def __init__(self, process: anyio.abc.Process, *, is_apart: bool) -> None:
        self._process = process
        self.is_apart = is_apart
        """In a session of its own, with all that it starts."""

    async def wait(self) -> int:
        """Its exit code, negative if a signal ended it."""
        return await self._process.wait()

    def send(self, number: int) -> bool:
        """To the command, and where it is apart to what it started; False if nobody is there."""
        process = self._process
        if process.returncode is not None and not self.is_apart:
            return False
        try:
            if self.is_apart:
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            # It runs as somebody else, by sudo for example.  What it depends on is held for it all
            # the same, and must not be given back while it runs.
            if number != _IS_THERE:
                name = signal.Signals(number).name
                say(f"logd: the command cannot be sent {name}: not permitted")
        return True

    async def end(self, grace_s: float) -> int:
        """Ask it to end, and make it after ``grace_s``; its exit code as ``wait``."""
        self.send(signal.SIGTERM)
        with anyio.move_on_after(grace_s):
            await self.wait()
            while True:
                if not self.send(_IS_THERE):
                    return await self.wait()
                await anyio.sleep(LOOK_S)
        self.send(signal.SIGKILL)
        return await self.wait()


async def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    stdin: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    *,
    is_apart: bool,
) -> _Running:
    process = await anyio.open_process(
        list(command),
        stdin=stdin,
        stdout=None,
        stderr=stderr,
        env={**os.environ, **environment},
        start_new_session=is_apart,
    )
    return _Running(process, is_apart=is_apart)


def _end_without_command(command: Sequence[str], error: OSError) -> NoReturn:
    say(f"logd: {command[0]}: {error.strerror}")
    raise click.exceptions.Exit(NOT_FOUND_EXIT) from error


def _is_without_terminal() -> bool:
    return sys.stdin is None or not sys.stdin.isatty()


async def _end_when_lost(running: _Running, held: Held, ttl_s: float) -> None:
    await held.wait_until_over()
    if held.is_lost:
        say(f"logd: {held.lost_error()}: ending the command")
        # Not over when the command has ended: what it started has to end too.
        with anyio.CancelScope(shield=True):
            await running.end(ttl_s * TERM_SHARE)


def leave_with(code: int) -> None:
    """End as the command did."""
    if code != ExitCode.OK:
        raise click.exceptions.Exit(code)
