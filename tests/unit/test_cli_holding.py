"""A command that runs while something is held: how it ends, and what is held until when."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import anyio
import click
import pytest

from logd.cli.holding import run_while_held
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


@pytest.fixture
def signals_missed() -> Iterator[list[int]]:
    """Signals that would have ended the program where it stood."""
    missed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: missed.append(number))
    yield missed
    signal.signal(signal.SIGTERM, before)


def test_a_signal_ends_a_hold_that_outlasts_the_command(signals_missed: list[int]) -> None:
    async def hold() -> None:
        grant = Grant()
        unheard = signal.getsignal(signal.SIGTERM)

        async def signal_once_heard() -> None:
            await grant.looked_at.wait()
            while signal.getsignal(signal.SIGTERM) is unheard:
                await anyio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)

        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signal_once_heard)
                with pytest.raises(click.exceptions.Exit) as ended:
                    await run_while_held(("true",), {}, grant, ttl_s=15, hold_s=3600)

        assert ended.value.exit_code == 128 + signal.SIGTERM

    anyio.run(hold, backend="trio")

    assert signals_missed == []
