"""Who syncs which log when: group commit without a timer.

A log is synced as soon as a worker is free; whatever is appended meanwhile shares the next
sync.  So an idle log syncs at once, and a busy one in groups that grow with the load.
Several workers, because a device completes several syncs at once faster than one by one.

A single log with little to sync is synced on the event loop, at the end of the turn that
wrote to it: the way to a thread and back would take longer than the sync.  That holds while
the disk is quick.  A sync that was not sends all that follow to the threads, until a number
of them in a row have been quick again: a disk that stalls holds the loop once.

A log whose batches count in memory already (``durability=replicated``) is synced a little later,
by a thread: nobody waits for it, but what a power cut may take stays bounded.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from logd.limits import UNSYNCED_S_MAX

if TYPE_CHECKING:
    from logd.env import Env
    from logd.replication.group import Group

WORKERS: Final = 32
"""Syncs under way at a time.  A file system writes its journal once for all that wait for it: when
a thousand logs begin at once, eight at a time left the last of them unsynced for seconds."""

IDLE_S: Final = 0.05
"""After this long without an append a log's synced mark is brought up to date."""

BRIEF_SYNCS_IN_A_ROW: Final = 16
"""So many must have been brief before the next one may be made on the event loop."""


class SyncPool:
    """Syncs logs that have unsynced batches, each at most once at a time."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._brief_in_a_row = 0
        self._queue: deque[Group] = deque()
        # By group, not by its id: another replica may have that by now.
        self._queued: dict[Group, bool] = {}
        """True while it is queued, False while it is being synced."""
        self._idle: dict[Group, float] = {}
        """When the mark of each is due to be brought up to date."""
        self._later: dict[Group, float] = {}
        """Logs whose batches count in memory: when each is due to be synced all the same."""
        self._later_wanted = trio.Event()
        self._workers = trio.lowlevel.ParkingLot()
        self._marks = trio.Event()

    def request(self, group: Group, *, is_noticed: bool) -> None:
        """Sync ``group``'s log soon.

        Args:
            is_noticed: ``sync_here`` is called before the event loop goes on.
        """
        if group in self._queued:
            return
        self._idle.pop(group, None)
        if group.syncer.may_sync_later:
            if group not in self._later:
                self._later[group] = trio.current_time() + UNSYNCED_S_MAX
                self._later_wanted.set()
            return
        self._queue_now(group, is_noticed)

    def _queue_now(self, group: Group, is_noticed: bool) -> None:
        self._later.pop(group, None)
        self._queued[group] = True
        self._queue.append(group)
        if not is_noticed:
            self._workers.unpark()

    def under_way(self) -> list[Group]:
        """The groups whose logs are being synced."""
        return [group for group, is_queued in self._queued.items() if not is_queued]

    def mark_idle(self, group: Group) -> None:
        """All of ``group``'s log is synced: bring its mark up to date unless more comes."""
        self._idle[group] = trio.current_time() + IDLE_S
        self._marks.set()

    async def run(self) -> None:
        """Work until cancelled.  Syncs under way are finished first."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            nursery.start_soon(self._write_marks)
            nursery.start_soon(self._sync_later)

    # --- on the event loop --------------------------------------------------------------------

    def sync_here(self) -> bool:
        """Sync the only log that waits, if that is brief; the workers take what else there is.

        Returns whether a log was synced: it may have answered somebody.
        """
        may = self._may_sync_here()
        if may:
            group = self._queue.popleft()
            self._queued[group] = False
            self._note(group.syncer.sync_here() <= self._env.brief_call_s)
            self._done(group)
        if self._queue:
            self._workers.unpark(count=len(self._queue))
        return may

    def _may_sync_here(self) -> bool:
        # One that is queued and none that is being synced.
        if len(self._queue) != 1 or len(self._queued) != 1:
            return False
        if self._brief_in_a_row < BRIEF_SYNCS_IN_A_ROW or self._env.brief_call_s == 0:
            return False
        return self._queue[0].syncer.may_sync_here

    def _note(self, was_brief: bool) -> None:
        self._brief_in_a_row = self._brief_in_a_row + 1 if was_brief else 0

    # --- by workers ---------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            if not self._queue:
                await self._workers.park()
                continue
            group = self._queue.popleft()
            self._queued[group] = False
            began = trio.current_time()
            try:
                await group.syncer.sync_once()
            finally:
                self._done(group)
            self._note(trio.current_time() - began <= self._env.brief_call_s)

    def _done(self, group: Group) -> None:
        del self._queued[group]
        if group.syncer.needs_another_sync:
            self.request(group, is_noticed=False)

    async def _sync_later(self) -> None:
        while True:
            if not self._later:
                self._later_wanted = trio.Event()
                await self._later_wanted.wait()
            await trio.sleep_until(min(self._later.values(), default=0))
            now = trio.current_time()
            for group in [group for group, due_at in self._later.items() if due_at <= now]:
                del self._later[group]
                if group not in self._queued and group.syncer.needs_sync:
                    self._queue_now(group, is_noticed=False)

    async def _write_marks(self) -> None:
        while True:
            if not self._idle:
                self._marks = trio.Event()
                await self._marks.wait()
            await trio.sleep(IDLE_S)
            now = trio.current_time()
            for group in [group for group, due_at in self._idle.items() if due_at <= now]:
                if self._idle.pop(group, None) is not None:
                    await group.syncer.sync_mark()
