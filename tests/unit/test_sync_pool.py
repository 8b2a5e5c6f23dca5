"""A log that nobody waits for is synced a little later, and never not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from logd.limits import UNSYNCED_S_MAX
from logd.replication import sync_pool
from logd.replication.sync_pool import SyncPool
from tests.sim.run import run_deterministic

SYNC_S = 0.01


class Threads:
    """What the pool asks of its environment: nothing is quick enough for the event loop."""

    brief_call_s = 0.0


class Log:
    """A group and its syncer in one, as far as the pool can see them."""

    def __init__(self, pool: SyncPool, group_id: int, *, may_sync_later: bool) -> None:
        self.group_id = group_id
        self.may_sync_later = may_sync_later
        self.may_sync_here = False
        self.appended = self.synced = 0
        self.synced_at: list[float] = []
        self._pool = pool

    @property
    def syncer(self) -> Log:
        return self

    @property
    def needs_sync(self) -> bool:
        return self.synced < self.appended

    @property
    def needs_another_sync(self) -> bool:
        return self.needs_sync

    def append(self) -> None:
        self.appended += 1
        request(self._pool, self)

    async def sync_once(self) -> None:
        end = self.appended
        await trio.sleep(SYNC_S)
        self.synced = end
        self.synced_at.append(trio.current_time())


def request(pool: SyncPool, log: Log) -> None:
    group: Any = log
    pool.request(group, is_noticed=False)


def play(story: Callable[[SyncPool], Awaitable[None]]) -> None:
    env: Any = Threads()

    async def main() -> None:
        pool = SyncPool(env)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            await story(pool)
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1, time_limit_s=60)


def test_a_log_that_somebody_waits_for_is_synced_at_once() -> None:
    async def story(pool: SyncPool) -> None:
        log = Log(pool, 1, may_sync_later=False)
        log.append()
        await trio.sleep(UNSYNCED_S_MAX / 2)

        assert log.synced_at == [SYNC_S]

    play(story)


def test_one_that_nobody_waits_for_is_synced_when_its_first_batch_has_waited() -> None:
    async def story(pool: SyncPool) -> None:
        log = Log(pool, 1, may_sync_later=True)
        log.append()
        await trio.sleep(UNSYNCED_S_MAX / 2)
        log.append()  # It does not put the sync off.
        await trio.sleep(UNSYNCED_S_MAX)

        assert log.synced_at == [UNSYNCED_S_MAX + SYNC_S]
        assert not log.needs_sync

    play(story)


def test_it_is_synced_at_once_when_it_has_too_much_or_counts_in_memory_no_more() -> None:
    async def story(pool: SyncPool) -> None:
        log = Log(pool, 1, may_sync_later=True)
        log.append()
        await trio.sleep(UNSYNCED_S_MAX / 2)
        log.may_sync_later = False
        log.append()
        await trio.sleep(2 * UNSYNCED_S_MAX)

        assert log.synced_at == [UNSYNCED_S_MAX / 2 + SYNC_S]  # Once: the later one has no work.

    play(story)


def test_what_is_appended_during_a_sync_that_was_put_off_is_put_off_anew() -> None:
    async def story(pool: SyncPool) -> None:
        log = Log(pool, 1, may_sync_later=True)
        log.append()
        await trio.sleep(UNSYNCED_S_MAX + SYNC_S / 2)
        log.append()
        await trio.sleep(2 * UNSYNCED_S_MAX)

        first, second = log.synced_at
        assert first == UNSYNCED_S_MAX + SYNC_S
        assert second == first + UNSYNCED_S_MAX + SYNC_S
        assert not log.needs_sync

    play(story)


def test_each_log_that_is_put_off_has_a_time_of_its_own() -> None:
    async def story(pool: SyncPool) -> None:
        early, late = (Log(pool, number, may_sync_later=True) for number in (1, 2))
        early.append()
        await trio.sleep(UNSYNCED_S_MAX / 2)
        late.append()
        await trio.sleep(2 * UNSYNCED_S_MAX)

        assert early.synced_at == [UNSYNCED_S_MAX + SYNC_S]
        assert late.synced_at == [1.5 * UNSYNCED_S_MAX + SYNC_S]

    play(story)


def test_a_replica_that_came_back_is_synced_although_the_one_before_it_still_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was closed while it stood in line behind slow disks, and another one has its group now."""
    monkeypatch.setattr(sync_pool, "WORKERS", 1)

    async def story(pool: SyncPool) -> None:
        slow, closed, opened = (Log(pool, number, may_sync_later=False) for number in (1, 2, 2))
        slow.append()
        closed.append()
        await trio.sleep(SYNC_S / 2)

        opened.append()
        await trio.sleep(3 * SYNC_S)

        assert not opened.needs_sync

    play(story)
