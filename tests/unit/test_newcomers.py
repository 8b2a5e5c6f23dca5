"""Of those that have not greeted, one makes room for whoever comes when there is none left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from logd.errors import OverloadedError
from logd.limits import HANDSHAKE_TIMEOUT_S
from logd.replication.newcomers import Newcomers


class Porch:
    """Some that stand before the door, and what became of those that left it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.newcomers = Newcomers()
        self.ends: dict[str, str] = {}
        self._nursery = nursery

    async def comes(self, name: str, greets_after_s: float = 100.0) -> None:
        self._nursery.start_soon(self._greet, name, greets_after_s)
        await trio.testing.wait_all_tasks_blocked()

    async def _greet(self, name: str, after_s: float) -> None:
        try:
            with self.newcomers.greeting(name):
                await trio.sleep(after_s)
        except OverloadedError as error:
            self.ends[name] = str(error)
        except trio.TooSlowError:
            self.ends[name] = "late"
        else:
            self.ends[name] = "greeted"

    async def make_room(self) -> bool:
        made = self.newcomers.make_room()
        await trio.testing.wait_all_tasks_blocked()
        return made


def on_the_porch(story: Callable[[Porch], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await story(Porch(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_room_is_made_by_the_first_of_the_address_that_has_most() -> None:
    async def story(porch: Porch) -> None:
        for name in ("good:1", "bad:1", "bad:2", "::1:7", "bad:3", "good:2"):
            await porch.comes(name)

        made = [await porch.make_room() for _ in range(7)]

        assert list(porch.ends) == ["bad:1", "good:1", "bad:2", "good:2", "bad:3", "::1:7"]
        assert "others wait for the place" in porch.ends["bad:1"]
        assert made == [True] * 6 + [False]

    on_the_porch(story)


def test_who_has_greeted_or_is_late_makes_room_for_nobody() -> None:
    async def story(porch: Porch) -> None:
        await porch.comes("prompt:1", greets_after_s=1)
        await porch.comes("slow:1")
        await trio.sleep(HANDSHAKE_TIMEOUT_S + 1)

        assert not await porch.make_room()
        assert porch.ends == {"prompt:1": "greeted", "slow:1": "late"}

    on_the_porch(story)


@pytest.mark.parametrize("comes_too_late", [False, True])
def test_whose_place_was_given_away_has_not_greeted(comes_too_late: bool) -> None:
    """Even if the greeting was under way: the place can be given to one only."""

    async def story(porch: Porch) -> None:
        ended = False
        with pytest.raises(OverloadedError), porch.newcomers.greeting("good:1"):  # noqa: PT012
            porch.newcomers.make_room()
            if not comes_too_late:
                await trio.sleep(1)
            ended = True
        assert ended is comes_too_late
        assert not porch.newcomers.make_room()

    on_the_porch(story)
