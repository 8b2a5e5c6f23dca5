"""Who syncs which log when: group commit without a timer.

A log is synced as soon as a worker is free; whatever is appended meanwhile shares the next
sync.  So an idle log syncs at once, and a busy one in groups that grow with the load.
Several workers, because a device completes several syncs at once faster than one by one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from logd.replication.group import Group

WORKERS: Final = 8
IDLE_S: Final = 0.05
"""After this long without an append a log's synced mark is brought up to date."""


class SyncPool:
    """Syncs logs that have unsynced batches, each at most once at a time."""

    def __init__(self) -> None:
        self._queue: deque[Group] = deque()
        self._queued: dict[int, bool] = {}
        """Group → True while it is queued, False while it is being synced."""
        self._idle: dict[int, tuple[float, Group]] = {}
        self._workers = trio.lowlevel.ParkingLot()
        self._marks = trio.Event()

    def request(self, group: Group) -> None:
        """Sync ``group``'s log soon."""
        if group.group_id in self._queued:
            return
        self._idle.pop(group.group_id, None)
        self._queued[group.group_id] = True
        self._queue.append(group)
        self._workers.unpark()

    def mark_idle(self, group: Group) -> None:
        """All of ``group``'s log is synced: bring its mark up to date unless more comes."""
        self._idle[group.group_id] = (trio.current_time() + IDLE_S, group)
        self._marks.set()

    async def run(self) -> None:
        """Work until cancelled.  Syncs under way are finished first."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            nursery.start_soon(self._write_marks)

    async def _work(self) -> None:
        while True:
            if not self._queue:
                await self._workers.park()
                continue
            group = self._queue.popleft()
            self._queued[group.group_id] = False
            try:
                await group.sync_once()
            finally:
                self._queued.pop(group.group_id, None)
            if group.needs_sync:
                self.request(group)

    async def _write_marks(self) -> None:
        while True:
            if not self._idle:
                self._marks = trio.Event()
                await self._marks.wait()
            await trio.sleep(IDLE_S)
            now = trio.current_time()
            due = [(key, group) for key, (at, group) in self._idle.items() if at <= now]
            for key, group in due:
                if self._idle.pop(key, None) is not None:
                    await group.sync_mark()
