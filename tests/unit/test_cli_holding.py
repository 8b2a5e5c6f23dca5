"""A command that runs while something is held: how it ends, and what is held until when."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import anyio
import click
import pytest

from logd.cli.holding import open_signals, run_while_held
from logd.errors import LeaseLostError

ENOUGH_S = 10
"""A test that waits so long has failed."""


class Grant:
    """What the command depends on."""

    def __init__(self) -> None:
        self.looked_at = anyio.Event()
        """When the command has ended, or the grant."""
        self._lost = anyio.Event()

    def lose(self) -> None:
        self._lost.set()

    @property
    def is_lost(self) -> bool:
        self.looked_at.set()
        return self._lost.is_set()

    async def wait_until_over(self) -> None:
        await self._lost.wait()

    def lost_error(self) -> LeaseLostError:
        return LeaseLostError("lost")


async def run(command: Sequence[str], grant: Grant, *, ttl_s: float = 15, hold_s: float = 0) -> int:
    async with open_signals() as signals:
        return await run_while_held(command, {}, grant, ttl_s, hold_s, signals=signals)


missed: list[int] = []


def miss(number: int, _: object) -> None:
    missed.append(number)


@pytest.fixture
def signals_missed() -> Iterator[list[int]]:
    """Signals that would have ended the program where it stood."""
    missed.clear()
    before = signal.signal(signal.SIGTERM, miss)
    yield missed
    signal.signal(signal.SIGTERM, before)


async def signal_once_heard(after: anyio.Event | None = None) -> None:
    """Ask this program to end as soon as it listens to that, and not before ``after``."""
    if after is not None:
        await after.wait()
    while signal.getsignal(signal.SIGTERM) is miss:
        await anyio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_ends_a_hold_that_outlasts_the_command(signals_missed: list[int]) -> None:
    async def hold() -> None:
        grant = Grant()
        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signal_once_heard, grant.looked_at)
                with pytest.raises(click.exceptions.Exit) as ended:
                    await run(("true",), grant, hold_s=3600)

        assert ended.value.exit_code == 128 + signal.SIGTERM

    anyio.run(hold, backend="trio")

    assert signals_missed == []


def test_a_signal_that_ends_the_command_ends_the_hold_too(signals_missed: list[int]) -> None:
    async def hold() -> None:
        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signal_once_heard)
                with pytest.raises(click.exceptions.Exit) as ended:
                    await run(("sleep", "20"), Grant(), hold_s=3600)

        assert ended.value.exit_code == 128 + signal.SIGTERM

    anyio.run(hold, backend="trio")

    assert signals_missed == []


def test_a_command_that_may_not_be_sent_a_signal_is_held_for_until_it_ends(
    signals_missed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """It runs as somebody else."""
    asked: list[int] = []
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    command = ("sh", "-c", 'read line <"$0"', str(tmp_path / "pipe"))

    def refuse(group: int, number: int) -> None:
        asked.append(number)
        os.write(pipe, b"\n")  # Only now does it end.
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "killpg", refuse)

    async def hold() -> None:
        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signal_once_heard)
                with pytest.raises(click.exceptions.Exit) as ended:
                    await run(command, Grant())

        assert ended.value.exit_code == 0

    anyio.run(hold, backend="trio")
    os.close(pipe)

    assert signals_missed == []
    assert asked == [signal.SIGTERM]
    assert "cannot be sent SIGTERM" in capsys.readouterr().err


DEAF_CHILD = 'exec 3>"$0"; trap "" TERM; sleep 20 & trap - TERM; echo begun >&3; wait'
"""It ends when it is told to.  What it started does not, and has the pipe open until it ends."""


def test_what_a_command_started_ends_with_it_when_the_grant_is_lost(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ("sh", "-c", DEAF_CHILD, str(pipe))

    async def lose() -> None:
        grant = Grant()

        async def lose_once_begun() -> None:
            # What it started may stay: then nobody waits for it here.
            in_thread = partial(anyio.to_thread.run_sync, abandon_on_cancel=True)
            with await in_thread(pipe.open) as told:
                assert await in_thread(told.readline) == "begun\n"
                grant.lose()
                assert await in_thread(told.read) == ""

        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lose_once_begun)
                with pytest.raises(LeaseLostError):
                    await run(command, grant, ttl_s=0.5)

    anyio.run(lose, backend="trio")


def test_a_signal_for_which_nobody_listens_waits_for_who_does_next(
    signals_missed: list[int],
) -> None:
    asked: list[str] = []

    async def ask() -> str:
        asked.append("asked")
        await anyio.sleep_forever()
        raise AssertionError

    async def stand_again() -> None:
        with anyio.fail_after(ENOUGH_S):
            async with open_signals() as signals:
                await signals.obtain(partial(anyio.sleep, 0))
                os.kill(os.getpid(), signal.SIGTERM)  # While what was held is given back.
                await anyio.sleep(0.01)
                with pytest.raises(click.exceptions.Exit) as ended:
                    await signals.obtain(ask)

        assert ended.value.exit_code == 128 + signal.SIGTERM

    anyio.run(stand_again, backend="trio")

    assert asked == ["asked"]
    assert signals_missed == []


def test_a_signal_that_comes_with_the_grant_reaches_the_command(signals_missed: list[int]) -> None:
    async def obtain_and_run() -> None:
        grant = Grant()
        with anyio.fail_after(ENOUGH_S):
            async with open_signals() as signals:

                async def obtain() -> None:
                    with anyio.CancelScope(shield=True):
                        os.kill(os.getpid(), signal.SIGTERM)
                        await anyio.sleep(0.01)

                await signals.obtain(obtain)
                with pytest.raises(click.exceptions.Exit) as ended:
                    await run_while_held(("sleep", "20"), {}, grant, 15, signals=signals)

        assert ended.value.exit_code == 128 + signal.SIGTERM

    anyio.run(obtain_and_run, backend="trio")

    assert signals_missed == []


async def test_who_was_started_by_nohup_is_not_ended_by_its_terminal(anyio_backend: object) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with open_signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            await signals.obtain(partial(anyio.sleep, 0.05))
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(click.exceptions.Exit):
                await signals.obtain(partial(anyio.sleep, ENOUGH_S))
    finally:
        signal.signal(signal.SIGHUP, before)
