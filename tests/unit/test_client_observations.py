"""Who watches an election or a group, and stops waiting for a moment, still hears of what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from logd.wire.coordination import Event, Holder, Holders, Member, Members
from logd_client.coordination.elections import Observation
from logd_client.coordination.feeds import GAP
from logd_client.coordination.members import Group
from logd_client.coordination.names import parse_name
from logd_client.coordination.sessions import Sessions

pytestmark = pytest.mark.anyio


class Missed:
    """Sessions, calls and the watch of a client that has just missed events: the answer to its
    question of how things are now does not come the first time."""

    def __init__(self, answer: object) -> None:
        self.calls = self
        self.routing = self
        self._answer = answer
        self._is_asked = anyio.Event()
        self._gaps = [Event(revision=0, kind="election", name=b"n", change=GAP)]

    async def query(self, namespace: str, question: object) -> Any:
        if not self._is_asked.is_set():
            self._is_asked.set()
            await anyio.sleep_forever()
        return self._answer

    async def next(self) -> Event:
        await anyio.lowlevel.checkpoint()
        return self._gaps.pop()

    async def give_up_waiting(self, wait: Callable[[], Any]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await self._is_asked.wait()
            tasks.cancel_scope.cancel()


async def test_who_leads_is_told_although_whoever_waited_was_cancelled_as_it_was_asked_for() -> (
    None
):
    leader = Holder(ticket=7, token=7, session=5, client="c", since_ms=1, data=b"here")
    missed = Missed(Holders(revision=9, holders=[leader]))
    leaders = Observation(cast("Sessions", missed), parse_name("n"))
    leaders._watch = cast("Any", missed)
    leaders._is_first_told = True

    await missed.give_up_waiting(leaders.next)

    found = await leaders.next()
    assert found is not None
    assert found.data == b"here"


async def test_who_joined_is_told_although_whoever_waited_was_cancelled_as_it_was_asked_for() -> (
    None
):
    joined = Member(member="m", session=5, client="c", joined=9)
    missed = Missed(Members(revision=9, members=[joined]))
    members = Group(cast("Sessions", missed), parse_name("n"), None).follow()
    members._watch = cast("Any", missed)
    members._is_first_told = True

    await missed.give_up_waiting(members.next)

    assert await members.next() == (joined,)
