"""Applies retention to one replica: decides, makes sure that nothing is lost with it, trims.

What a trimmed batch did to the partition's state (producers, fences, terms) has to survive
it.  So the log never begins above a checkpoint that was read back intact just before: recovery
starts from that one.  Where none reaches far enough one is taken, and the next round goes on.

A follower that needs what was trimmed is shipped state (``shipping.py``).  A replica with a
hole that its peers have trimmed lets that go as well: nobody could fill it.

The core is told before the files go, so that it asks for nothing that is gone.  A crash in
between leaves more than was meant to stay, and the next round finds that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from logd.errors import CorruptionError, LogdError
from logd.replication import log_events
from logd.storage.retention import (
    KEEP_EVERYTHING,
    LogClock,
    RetentionPolicy,
    retained_start,
    wants_roll,
)
from logd.types import Offset

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost

log = structlog.get_logger(__name__)


class Trimmer:
    """The front of one replica's log."""

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._host = host
        self._clock = LogClock()

    async def apply(self, policy: RetentionPolicy, trash: str) -> None:
        """Trim what ``policy`` lets go now, and roll what it will let go next.

        Args:
            trash: where segments go.
        """
        try:
            await self._apply(policy, trash)
        except CorruptionError:
            self._host.damage_met(self._group)
        except (OSError, LogdError) as error:
            # What is wrong with the disk, the log finds out for itself; nothing was removed.
            log.warning(log_events.RETENTION_FAILED, group=self._group.group_id, reason=str(error))

    async def _apply(self, policy: RetentionPolicy, trash: str) -> None:
        group = self._group
        group_log, commit_offset = group.log, group.commit_offset
        if commit_offset <= group_log.start_offset:
            return
        is_let_go = group.damage is not None and group_log.start_offset < group.let_go_elsewhere
        if is_let_go and group.application is None:  # Else the repairer sees to it.
            # First of all: what is damaged cannot be read, and nobody has it any more.
            let_go = min(group.let_go_elsewhere, commit_offset)
            await self._trim(let_go, trash)
            if group_log.segment_bases[-1] < let_go:
                # Only sealed segments are trimmed, and nobody may ever append.
                group.roller.roll_soon()
        trimmed_to = group.trimmed_to
        holds_trimmed = False
        if 0 < group.committed_data_end <= trimmed_to:
            # Behind it is nothing that anybody reads either.
            holds_trimmed = group_log.segment_bases[-1] < trimmed_to
            trimmed_to = commit_offset
        if policy == KEEP_EVERYTHING and trimmed_to <= group_log.start_offset:
            return  # Without a thread: there may be thousands of such logs.
        monotonic_ms = self._host.now_ms()

        def look() -> tuple[Offset, bool]:
            log_time_ms = 0
            if policy.needs_time:
                append_time_ms = group_log.append_time_at(Offset(commit_offset - 1))
                log_time_ms = self._clock.now_ms(append_time_ms, monotonic_ms)
            start = retained_start(
                group_log,
                policy,
                log_time_ms=log_time_ms,
                trimmed_to=trimmed_to,
                limit=commit_offset,
            )
            return start, wants_roll(
                group_log, policy, log_time_ms=log_time_ms, holds_trimmed=holds_trimmed
            )

        start, is_roll_due = await self._host.env.run_blocking(look)
        if start > group_log.start_offset:
            await self._trim(start, trash)
        if is_roll_due:
            group.roller.roll_soon()

    async def _trim(self, start: Offset, trash: str) -> None:
        group = self._group
        restorable = await group.checkpoints.restorable_offset()
        if restorable < start:
            group.checkpoints.take()
        was = group.log.start_offset
        if await group.upkeep.trim(min(start, restorable), trash):
            end = group.log.start_offset
            log.info(log_events.LOG_TRIMMED, group=group.group_id, start=was, end=end)
