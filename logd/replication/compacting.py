"""Compacts one replica's log when that is worth it.

The work is done apart (``storage/compaction.py``); here it is decided when, up to where, and
what is made is put in place, oldest first.

The bound: sealed segments below the commit offset, so that nothing has to be undone, and below
a checkpoint that was read back, so that recovery never derives state from what compaction left.
Replicas compact independently; nothing depends on their having the same files.

When: as soon as what has come since is half of what was left last time.  So each byte is
written again a bounded number of times, however long the log becomes.  How far a compaction has
come is not kept on the disk: after a restart the first one goes through the whole log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from logd.errors import CorruptionError, LogdError, StorageError
from logd.limits import COMPACTION_KEYS_MAX
from logd.replication import log_events
from logd.storage.compaction import (
    CompactionRefusal,
    CompactionRequest,
    CompactionResult,
    compact_apart,
    read_answer,
)
from logd.storage.retention import LogClock
from logd.types import Offset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logd.replication.group import Group
    from logd.replication.seams import GroupHost
    from logd.storage.compaction import CompactedSegment
    from logd.storage.log_contents import SealedSegment

log = structlog.get_logger(__name__)

_DIRTY_SHARE: Final = 0.5
"""Of what was left last time: so much more is worth a compaction."""


class CompactionPolicy(NamedTuple):
    """What a topic's options and the broker's configuration say."""

    tombstone_ms: int
    segment_bytes: int
    bytes_per_s: int


class LogCompactor:
    """Compaction of one replica."""

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._host = host
        self._clock = LogClock()
        self._log = group.log
        self._replacements = group.log.replacements
        self._clean_to = Offset(0)
        self._oldest_tombstone_ms: int | None = None
        self._has_stale = False
        """Below ``clean_to`` there is what a tombstone may still have to delete."""
        self._tombstones_removed_ms = 0
        """Log time of the last compaction."""

    async def apply(self, policy: CompactionPolicy, trash: str) -> None:
        """Compact if it is worth it.

        Args:
            trash: where the segments go that were replaced.
        """
        try:
            await self._apply(policy, trash)
        except CorruptionError as error:
            self._report(str(error))
            self._host.damage_met(self._group)
        except (OSError, LogdError) as error:
            self._report(str(error))

    async def _apply(self, policy: CompactionPolicy, trash: str) -> None:
        group, run_blocking = self._group, self._host.env.run_blocking
        if group.commit_offset <= group.log.start_offset:
            return
        if group.log is not self._log or group.log.replacements != self._replacements:
            # Installed or repaired: what was clean may hold again what had been left out.
            self._clean_to = Offset(0)
            self._oldest_tombstone_ms = None
            self._has_stale = False
            self._log, self._replacements = group.log, group.log.replacements
        last = Offset(group.commit_offset - 1)
        append_time_ms = await run_blocking(group.log.append_time_at, last)
        now_ms = self._clock.now_ms(append_time_ms, self._host.now_ms())
        segments = self._below(group.commit_offset)
        if not (self._is_dirty(segments) or self._has_old_tombstones(policy, now_ms)):
            return
        segments = self._below(await group.checkpoints.restorable_offset())
        if not segments:
            group.checkpoints.take()
            return
        await self._check_space(segments)
        request = CompactionRequest(
            directory=group.directory,
            identity=group.identity,
            segments=segments,
            dirty_from=max(self._clean_to, segments[0].base_offset),
            tombstones_before_ms=None if self._has_stale else now_ms - policy.tombstone_ms,
            segment_bytes=policy.segment_bytes,
            keys_max=COMPACTION_KEYS_MAX,
            bytes_per_s=policy.bytes_per_s,
        )
        encoded = msgspec.json.encode(request)
        answer = read_answer(await self._host.env.run_apart(compact_apart, encoded))
        match answer:
            case CompactionRefusal():
                self._report(answer.reason)
                if answer.is_damage:
                    self._host.damage_met(group)
            case CompactionResult():
                await self._put_in_place(answer, now_ms, trash)

    def _below(self, offset: Offset) -> list[SealedSegment]:
        segments = self._group.log.sealed_segments()
        return [segment for segment in segments if segment.end_offset <= offset]

    def _is_dirty(self, segments: list[SealedSegment]) -> bool:
        dirty = sum(each.size_bytes for each in segments if each.end_offset > self._clean_to)
        clean = sum(each.size_bytes for each in segments) - dirty
        return dirty > clean * _DIRTY_SHARE

    def _has_old_tombstones(self, policy: CompactionPolicy, now_ms: int) -> bool:
        oldest_ms = self._oldest_tombstone_ms
        return (
            oldest_ms is not None
            and oldest_ms < now_ms - policy.tombstone_ms
            # Not for every single one that grows old.
            and self._tombstones_removed_ms < now_ms - policy.tombstone_ms // 2
        )

    async def _check_space(self, segments: list[SealedSegment]) -> None:
        """The copies are made before what they replace is removed."""
        env = self._host.env
        free_bytes = await env.run_blocking(env.files.free_bytes, self._group.directory)
        needed_bytes = sum(segment.size_bytes for segment in segments)
        if free_bytes < needed_bytes:
            raise StorageError(
                f"{free_bytes} bytes are free, it may take {needed_bytes} for a while"
            )

    async def _put_in_place(self, result: CompactionResult, now_ms: int, trash: str) -> None:
        group = self._group
        before = group.log.size_bytes
        for number, made in enumerate(result.segments):
            if await group.upkeep.replace(made.replaces, made.path, trash):
                self._replacements += 1
            elif group.failure is not None:
                return
            elif any(base in group.log.segment_bases for base in made.replaces):
                # Some of it was trimmed meanwhile.  What the rest still has may be deleted by
                # tombstones that later files have no more: all that follows is made anew.
                await self._host.env.run_blocking(self._discard, result.segments[number + 1 :])
                return
        self._clean_to = result.clean_to
        self._has_stale = self._has_stale or result.has_stale
        self._oldest_tombstone_ms = None if self._has_stale else result.oldest_tombstone_ms
        self._tombstones_removed_ms = now_ms
        log.info(
            log_events.LOG_COMPACTED,
            group=group.group_id,
            end=result.clean_to,
            keys=result.keys,
            records_read=result.records_read,
            records_kept=result.records_kept,
            bytes_read=result.bytes_read,
            bytes_written=result.bytes_written,
            log_bytes_before=before,
            log_bytes=group.log.size_bytes,
        )

    def _discard(self, segments: Sequence[CompactedSegment]) -> None:
        for made in segments:
            self._host.env.files.remove(made.path)

    def _report(self, reason: str) -> None:
        log.warning(log_events.COMPACTION_FAILED, group=self._group.group_id, reason=reason)
