"""Who waits is told why, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import anyio
import pytest
import trio
import trio.testing

from logd.cli import patience
from logd.errors import ConnectionFailedError, LogdError, ReplicaDamagedError

LOST = ReplicaDamagedError("what leads to offset 7 is damaged")
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
    progress: Callable[[], int] = lambda: 0,
    gives_up: bool = True,
    stuck_after_s: float | None = None,
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
                    client,
                    say=said.append,
                    progress=progress,
                    gives_up=gives_up,
                    stuck_after_s=stuck_after_s,
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

    said = run_with_virtual_time(client, seconds=60, progress=lambda: 1)

    assert said == [f"logd: waiting: {REFUSED}"]


def test_what_was_never_reached_is_given_up() -> None:
    client = Waiting()
    client.trouble = REFUSED

    with pytest.raises(ExceptionGroup) as caught:
        run_with_virtual_time(client, seconds=60)

    assert caught.value.exceptions == (REFUSED,)


def test_what_worked_before_is_waited_for_and_so_is_a_follower() -> None:
    for done, gives_up in ((1, True), (0, False)):
        client = Waiting()
        client.trouble = REFUSED

        said = run_with_virtual_time(
            client, seconds=60, progress=partial(int, done), gives_up=gives_up
        )

        assert said == [f"logd: waiting: {REFUSED}"]


def test_who_reads_to_an_end_gives_up_where_nothing_more_comes() -> None:
    """A range that all replicas have lost comes from none of them, however long one waits."""
    client = Waiting()
    client.trouble = LOST

    with pytest.raises(ExceptionGroup) as caught:
        run_with_virtual_time(
            client, seconds=60, progress=lambda: 7, stuck_after_s=patience.STUCK_AFTER_S
        )

    assert caught.value.exceptions == (LOST,)


def test_who_reads_to_an_end_waits_while_other_partitions_get_on() -> None:
    client = Waiting()
    client.trouble = LOST

    said = run_with_virtual_time(
        client,
        seconds=60,
        progress=count().__next__,
        stuck_after_s=patience.STUCK_AFTER_S,
    )

    assert said == [f"logd: waiting: {LOST}"]
