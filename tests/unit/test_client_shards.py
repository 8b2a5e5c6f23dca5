"""A worker lets go of a shard only while it does not run it."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from logd.errors import UsageError
from logd.wire.coordination import Assignment, Done, LetGo, ShardOwner
from logd_client.background import task_group
from logd_client.coordination.assignments import Assignments, OwnedShard, Worker
from logd_client.coordination.members import Group
from logd_client.coordination.names import parse_name

if TYPE_CHECKING:
    from logd_client.coordination.session import Session
    from logd_client.coordination.sessions import Sessions

pytestmark = pytest.mark.anyio

NAME = parse_name("indexers")


class Cluster:
    """What a worker uses of sessions: one, whose commands take as long as the test wants."""

    def __init__(self) -> None:
        self.calls = self.routing = self.environment = self
        self.rng = random.Random(0)
        self.let_go: list[str] = []
        """What has been asked, in order."""
        self.may_answer = anyio.Event()

    async def call(self, command: LetGo, expected: type[Done]) -> Done:
        self.let_go += command.shards
        await self.may_answer.wait()
        return Done(revision=9)


async def test_a_shard_that_comes_back_is_run_again_only_once_it_was_let_go() -> None:
    cluster = Cluster()
    session = cast("Session", cluster)
    sessions = cast("Sessions", cluster)
    group = Group(sessions, NAME, None)
    worker = Worker(sessions, NAME, group, Assignments(sessions, NAME, None), "one", b"")
    tokens: list[int] = []

    async def run_shard(shard: OwnedShard) -> None:
        tokens.append(shard.token)
        await anyio.sleep_forever()

    def row(token: int, *, revoked: bool = False) -> ShardOwner:
        return ShardOwner(shard="s", owner="one", token=token, revoked=revoked)

    async with anyio.create_task_group() as tasks:

        async def follow(row: ShardOwner, *, revision: int = 5) -> None:
            found = Assignment(revision=revision, shards=[row])
            worker._follow(found, session, tasks, run_shard)
            await anyio.wait_all_tasks_blocked()

        tasks.start_soon(worker._let_go, session)
        await follow(row(3))
        await follow(row(3, revoked=True))  # It stops, and says so.
        assert cluster.let_go == ["s"]
        await follow(row(3))  # Taken back, before that was heard.
        await follow(row(3, revoked=True))
        assert tokens == [3]
        assert worker.owned == {}

        cluster.may_answer.set()
        await anyio.wait_all_tasks_blocked()
        assert worker._changed.is_set()  # It looks again.
        await follow(row(3))  # Read before.
        assert tokens == [3]
        await follow(row(7), revision=9)

        assert tokens == [3, 7]
        assert cluster.let_go == ["s"]  # Not what it runs by now.
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_shard_whose_own_task_group_has_failed_before_is_let_go_like_any_other(
    anyio_backend: object,
) -> None:
    """Before Python 3.13 a task that has got over that counts as cancelled ever after."""
    cluster = Cluster()
    session = cast("Session", cluster)
    sessions = cast("Sessions", cluster)
    group = Group(sessions, NAME, None)
    worker = Worker(sessions, NAME, group, Assignments(sessions, NAME, None), "one", b"")

    async def fail() -> None:
        raise ValueError("no")

    async def run_shard(shard: OwnedShard) -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker._let_go, session)
        for revoked in (False, True):
            row = ShardOwner(shard="s", owner="one", token=3, revoked=revoked)
            found = Assignment(revision=5, shards=[row])
            worker._follow(found, session, tasks, run_shard)
            await anyio.wait_all_tasks_blocked()

        assert cluster.let_go == ["s"]
        assert worker.owned == {}
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_shard_does_not_end_in_silence_when_what_it_waits_for_is_cancelled(
    anyio_backend: object,
) -> None:
    """asyncio tells of that as if the shard's own task were cancelled, which ends a task without
    a word: nobody would run the shard."""
    cluster = Cluster()
    session = cast("Session", cluster)
    sessions = cast("Sessions", cluster)
    group = Group(sessions, NAME, None)
    worker = Worker(sessions, NAME, group, Assignments(sessions, NAME, None), "one", b"")

    async def run_shard(shard: OwnedShard) -> None:
        other = asyncio.create_task(asyncio.sleep(60))
        other.cancel()
        await other

    row = ShardOwner(shard="s", owner="one", token=3, revoked=False)
    with pytest.raises(UsageError, match="run_shard of 's'"):
        async with task_group() as tasks:
            worker._follow(Assignment(revision=5, shards=[row]), session, tasks, run_shard)
