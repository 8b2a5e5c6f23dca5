"""Compacts one replica's log when that is worth it.

The work is done apart (``storage/compaction.py``); here it is decided when, up to where, and
what is made is put in place, oldest first.

The bound: sealed segments below the commit offset, so that nothing has to be undone, and below
a checkpoint that was read back, so that recovery never derives state from what compaction left.
Replicas compact independently; nothing depends on their having the same files.

When: as soon as what has come since is half of what was left last time.  So each byte is
written again a bounded number of times, however long the log becomes.

Tombstones: one may go when no replica has held anything of what it deletes for as long as the topic
says.  Each replica notes since when its own log has been clean up to where
(``storage/clean_note.py``), and asks the others before it drops any.  While one of them does not
answer, tombstones stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from logd.errors import CorruptionError, LogdError, StorageError
from logd.limits import COMPACTION_KEYS_MAX, DELIVERY_TIMEOUT_MS_MAX
from logd.replication import log_events
from logd.storage.clean_note import CleanNote
from logd.storage.compaction import (
    CompactionRefusal,
    CompactionRequest,
    CompactionResult,
    compact_apart,
    read_answer,
)
from logd.storage.retention import LogClock
from logd.types import NO_OFFSET, Offset

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from logd.replication.group import Group
    from logd.replication.seams import GroupHost
    from logd.storage.log_contents import SealedSegment

log = structlog.get_logger(__name__)

_DIRTY_SHARE: Final = 0.5
"""Of what was left last time: so much more is worth a compaction."""


class CompactionPolicy(NamedTuple):
    """What a topic's options and the broker's configuration say."""

    tombstone_ms: int
    segment_bytes: int
    bytes_per_s: int
    free_bytes_min: int = 0
    """Left on the disk meanwhile: with less, appends are refused."""


class LogCompactor:
    """Compaction of one replica.

    Args:
        settled_elsewhere: up to where all other replicas of a group have been clean for as long as
            tombstones are kept; 0 unless all say so.
    """

    def __init__(
        self,
        group: Group,
        host: GroupHost,
        settled_elsewhere: Callable[[Group], Awaitable[Offset]],
    ) -> None:
        self._group = group
        self._host = host
        self._settled_elsewhere = settled_elsewhere
        self._clock = LogClock()

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
        group, env = self._group, self._host.env
        if group.commit_offset <= group.log.start_offset:
            return
        last = Offset(group.commit_offset - 1)
        append_time_ms = await env.run_blocking(group.log.append_time_at, last)
        now_ms = self._clock.now_ms(append_time_ms, self._host.now_ms())
        noted = await group.upkeep.read_clean_note()
        note = noted or CleanNote()
        # At once: a repair ends what is said here as soon as it has its turn at the files.
        group.settled_to = note.settled_to(now_ms - policy.tombstone_ms)
        segments = self._below(group.commit_offset)
        tombstones_below = await self._tombstones_below(note)
        if not (self._is_dirty(segments, note) or tombstones_below):
            return
        segments = self._below(await group.checkpoints.restorable_offset())
        if not segments:
            group.checkpoints.take()
            return
        await self._check_space(segments, policy.free_bytes_min)
        if noted is None and not await group.upkeep.write_clean_note(note, instead_of=None):
            return
        request = CompactionRequest(
            directory=group.directory,
            identity=group.identity,
            segments=segments,
            dirty_from=max(note.clean_to, segments[0].base_offset),
            tombstones_below=tombstones_below,
            retried_since_ms=now_ms - DELIVERY_TIMEOUT_MS_MAX,
            segment_bytes=policy.segment_bytes,
            keys_max=COMPACTION_KEYS_MAX,
            bytes_per_s=policy.bytes_per_s,
        )
        encoded = msgspec.json.encode(request)
        answer = read_answer(await env.run_apart(compact_apart, encoded))
        match answer:
            case CompactionRefusal():
                self._report(answer.reason)
                if answer.is_damage:
                    self._host.damage_met(group)
            case CompactionResult():
                before_bytes = group.log.size_bytes
                if await self._put_in_place(answer, trash):
                    # Wall clocks of brokers differ, and log time stands still while nothing is
                    # appended.
                    since_ms = max(now_ms, env.wall_clock_ms())
                    after = note.compacted(
                        clean_to=answer.clean_to,
                        has_stale=answer.has_stale,
                        oldest_tombstone=answer.oldest_tombstone,
                        now_ms=since_ms,
                        tombstone_ms=policy.tombstone_ms,
                    )
                    # Not if anything of a peer has come in meanwhile: it is all done anew.
                    await group.upkeep.write_clean_note(after, instead_of=note)
                    self._tell(answer, before_bytes)

    async def _tombstones_below(self, note: CleanNote) -> Offset:
        """Up to where tombstones may go; 0 if there is none that may."""
        group = self._group
        if not NO_OFFSET < note.oldest_tombstone < group.settled_to:
            return Offset(0)  # Nobody need be asked.
        below = min(group.settled_to, await self._settled_elsewhere(group))
        return below if note.oldest_tombstone < below else Offset(0)

    def _below(self, offset: Offset) -> list[SealedSegment]:
        segments = self._group.log.sealed_segments()
        return [segment for segment in segments if segment.end_offset <= offset]

    def _is_dirty(self, segments: list[SealedSegment], note: CleanNote) -> bool:
        dirty = sum(each.size_bytes for each in segments if each.end_offset > note.clean_to)
        clean = sum(each.size_bytes for each in segments) - dirty
        return dirty > clean * _DIRTY_SHARE

    async def _check_space(self, segments: list[SealedSegment], free_bytes_min: int) -> None:
        """The copies are made before what they replace is removed, and must not cost appends what
        they need: it is those that cannot wait."""
        env = self._host.env
        free_bytes = await env.run_blocking(env.files.free_bytes, self._group.directory)
        needed_bytes = sum(segment.size_bytes for segment in segments)
        if free_bytes < needed_bytes + free_bytes_min:
            raise StorageError(
                f"{free_bytes} bytes are free, it may take {needed_bytes} for a while, and "
                f"appends need {free_bytes_min}"
            )

    async def _put_in_place(self, result: CompactionResult, trash: str) -> bool:
        """Put the new files in place, oldest first; False if what one of them should have
        replaced is still there, or a part of it."""
        group = self._group
        is_clean = True
        for made in result.segments:
            is_done = await group.upkeep.replace(made.replaces, made.path, trash)
            if not is_done and any(base in group.log.segment_bases for base in made.replaces):
                # Some of it was trimmed meanwhile, or the replica has stopped.  What is left of it
                # is not clean, and is done anew; what follows need not be.
                is_clean = False
        return is_clean

    def _tell(self, result: CompactionResult, before_bytes: int) -> None:
        group = self._group
        log.info(
            log_events.LOG_COMPACTED,
            group=group.group_id,
            end=result.clean_to,
            keys=result.keys,
            records_read=result.records_read,
            records_kept=result.records_kept,
            bytes_read=result.bytes_read,
            bytes_written=result.bytes_written,
            log_bytes_before=before_bytes,
            log_bytes=group.log.size_bytes,
        )

    def _report(self, reason: str) -> None:
        log.warning(log_events.COMPACTION_FAILED, group=self._group.group_id, reason=reason)
