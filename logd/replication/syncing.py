"""Syncs one replica's log, and tells its core what is durable by then.

When a sync is due, and in which thread it is made, the node's ``SyncPool`` decides for all
replicas together; how one is made is said here.  There are three ways.  A log that has several
files to sync does it in a thread.  One file is handed to the environment, which may have a
quicker way than a thread.  And a brief sync that nobody is in the way of is made on the event
loop, for the way to a thread and back would take longer.

A failed sync stops the replica.  It is never tried again: the next one would succeed, although
the pages that failed are gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from logd.errors import LogdError
from logd.limits import KIB, UNSYNCED_BYTES_BEHIND_MAX, UNSYNCED_BYTES_MAX
from logd.raft.messages import Synced

if TYPE_CHECKING:
    from logd.raft.core import RaftCore
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost
    from logd.types import Offset, Term

BRIEF_SYNC_BYTES_MAX: Final = 64 * KIB
"""A sync of more may take a while, and the event loop has better things to do meanwhile."""


class Syncer:
    """Syncs the log of one group, at most once at a time."""

    __slots__ = ("_core", "_group", "_host", "waiting_since")

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._core: RaftCore = group.core
        self._host = host
        self.waiting_since = math.inf
        """When the sync was begun that is under way off the event loop."""

    @property
    def needs_sync(self) -> bool:
        group = self._group
        return group.failure is None and self._core.synced_end < group.log.end_offset

    @property
    def needs_another_sync(self) -> bool:
        """As ``needs_sync``, when a sync has just been made."""
        log = self._group.log
        if self._group.is_held and log.synced_end == log.end_offset:
            return False  # The core will be told of that one: another would say the same.
        return self.needs_sync

    @property
    def may_sync_later(self) -> bool:
        """What was written counts as it is: nobody waits for its sync."""
        return self._core.vouches and self._group.log.unsynced_bytes < UNSYNCED_BYTES_MAX

    @property
    def is_disk_behind(self) -> bool:
        """Nobody waits for this log's syncs, and so they must be waited for by who appends."""
        return self._core.vouches and self._group.log.unsynced_bytes >= UNSYNCED_BYTES_BEHIND_MAX

    @property
    def _may_sync(self) -> bool:
        """The log takes more.  Where another one waits for room to take its place, it is closed."""
        group = self._group
        return group.failure is None and group.log.failure is None and group.log.is_open

    async def sync_once(self) -> None:
        """Sync what is appended.  Called by the sync pool, at most once at a time."""
        group = self._group
        self.waiting_since = trio.current_time()
        try:
            async with group.io_lock:
                if not self._may_sync:
                    return
                began = trio.current_time()
                end, term = await self._sync_log()
                self._host.counts.sync_s.observe(trio.current_time() - began)
                self._forget_cached()
        except (OSError, LogdError) as error:
            group.fail(error)
            return
        finally:
            self.waiting_since = math.inf
        with self._host.turn:
            self._synced(end, term)

    async def _sync_log(self) -> tuple[Offset, Term]:
        log = self._group.log
        commit_offset = self._group.commit_offset
        if log.sync_has_company:
            return await self._host.env.run_blocking(log.sync, commit_offset)
        syncing = log.begin_sync(commit_offset)
        try:
            await self._host.env.sync_file(syncing.file)
        except OSError as error:
            raise log.fail_sync(error) from error
        else:
            return log.finish_sync(syncing)
        finally:
            log.give_up_sync()

    @property
    def may_sync_here(self) -> bool:
        """A sync now would be short, and nobody else is at the log."""
        group = self._group
        if group.is_held or self._core.vouches:
            # The core of a held group hears of a sync only later, and one that counts what is in
            # memory does not wait for any: nothing is gained by holding up the event loop.
            return False
        return group.log.unsynced_bytes <= BRIEF_SYNC_BYTES_MAX and not group.io_lock.locked()

    def sync_here(self) -> float:
        """As ``sync_once``, on the event loop, at the end of a turn.  Only if ``may_sync_here``.

        Returns the seconds that it took; 0 if the log has failed.
        """
        group = self._group
        log = group.log
        if not self._may_sync:
            return 0.0
        began = trio.current_time()
        try:
            end, term = log.sync(group.commit_offset)
        except (OSError, LogdError) as error:
            group.fail(error)
            return 0.0
        seconds = trio.current_time() - began
        self._synced(end, term)
        self._host.turn.afterwards(lambda: self._after_sync_here(seconds))
        return seconds

    def _after_sync_here(self, seconds: float) -> None:
        self._host.counts.sync_s.observe(seconds)
        if self._group.failure is None:
            try:
                self._forget_cached()
            except (OSError, LogdError) as error:
                self._group.fail(error)

    def _forget_cached(self) -> None:
        """What consumers read, they read from the leader: its files deserve the page cache."""
        if not self._core.is_leader:
            self._group.log.forget_cached(self._host.follower_cached_bytes)

    def _synced(self, end: Offset, term: Term) -> None:
        group = self._group
        group.post(Synced(end, term))
        if group.proposals.queued:
            self._host.mark_dirty(group)
        if group.log.end_offset > end:
            self._host.request_sync(group)
        else:
            self._host.mark_idle(group)

    async def sync_mark(self) -> None:
        """The log has been idle: let the mark catch up with the last sync."""
        group = self._group
        try:
            async with group.io_lock:
                if not self._may_sync:
                    return
                await self._host.env.run_blocking(group.log.sync_mark, group.commit_offset)
        except (OSError, LogdError) as error:
            group.fail(error)
