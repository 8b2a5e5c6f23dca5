"""Who waits is told why, and not for ever."""

from __future__ import annotations

import anyio
import pytest
import trio
import trio.testing

from logd.cli import patience
from logd.errors import ConnectionFailedError, LogdError

REFUSED = ConnectionFailedError("node 1 at h:1: Connection refused")


class Waiting:
    """A producer or consumer with what stands in its way."""

    def __init__(self) -> None:
        self.trouble: LogdError | None = None


class Flickering:
    """Nothing stands in its way each twentieth time that it is looked at."""

    def __init__(self) -> None:
        self._looks = 0

    @property
    def trouble(self) -> LogdError | None:
        self._looks += 1
        return REFUSED if self._looks % 20 else None


def run_with_virtual_time(
    client: patience.Client,
    *,
    seconds: float,
    has_begun: bool = False,
    gives_up: bool = True,
    cured_after: float | None = None,
) -> list[str]:
    said: list[str] = []

    async def cure() -> None:
        if cured_after is not None:
            assert isinstance(client, Waiting)
            await anyio.sleep(cured_after)
            client.trouble = None

    async def main() -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cure)
                await patience.watch(
                    client, say=said.append, has_begun=lambda: has_begun, gives_up=gives_up
                )

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return said


def test_an_election_passes_unmentioned() -> None:
    client = Waiting()
    client.trouble = REFUSED

    assert run_with_virtual_time(client, seconds=60, cured_after=1) == []


def test_longer_trouble_is_told_once_and_so_is_its_end() -> None:
    client = Waiting()
    client.trouble = REFUSED

    said = run_with_virtual_time(client, seconds=60, cured_after=4)

    assert said == [f"logd: waiting: {REFUSED}", "logd: going on"]


def test_a_moment_between_two_attempts_is_no_end_of_it() -> None:
    client = Flickering()

    said = run_with_virtual_time(client, seconds=60, has_begun=True)

    assert said == [f"logd: waiting: {REFUSED}"]


def test_what_was_never_reached_is_given_up() -> None:
    client = Waiting()
    client.trouble = REFUSED

    with pytest.raises(ExceptionGroup) as caught:
        run_with_virtual_time(client, seconds=60)

    assert caught.value.exceptions == (REFUSED,)


def test_what_worked_before_is_waited_for_and_so_is_a_follower() -> None:
    for has_begun, gives_up in ((True, True), (False, False)):
        client = Waiting()
        client.trouble = REFUSED

        said = run_with_virtual_time(client, seconds=60, has_begun=has_begun, gives_up=gives_up)

        assert said == [f"logd: waiting: {REFUSED}"]
