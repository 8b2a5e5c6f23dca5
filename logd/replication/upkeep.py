"""Work on a log's files that nobody waits for: verifying, filling holes, trimming, replacing.

Each piece is asked for by somebody who decides (the repairer, the trimmer, the compactor) and may
have decided a while ago.  So each waits for its turn at the files and looks again there: the
replica may have stopped since, or another log may have been installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logd.errors import LogdError, StorageFailedError
from logd.replication.room_waits import when_there_is_room
from logd.storage.clean_note import read_clean_note, write_clean_note
from logd.types import Offset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logd.replication.group import Group
    from logd.replication.seams import GroupHost
    from logd.storage.clean_note import CleanNote
    from logd.storage.holes import Hole
    from logd.storage.scrub import ScrubPosition


class Upkeep:
    """Keeps the files of one group's log in order."""

    __slots__ = ("_group", "_host")

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._host = host

    async def scrub(
        self, position: ScrubPosition, bytes_max: int
    ) -> tuple[ScrubPosition | None, Hole | None] | None:
        """Verify a piece of the log on the disk (see ``Log.scrub``); None if the group stopped."""
        group = self._group

        async def scrub_if_running() -> tuple[ScrubPosition | None, Hole | None] | None:
            async with group.io_lock:
                if self._has_stopped:
                    return None
                return await self._host.env.run_blocking(group.log.scrub, position, bytes_max)

        try:
            return await when_there_is_room(group.group_id, scrub_if_running)
        except (OSError, LogdError) as error:
            group.fail(error)
            return None

    async def fill(self, hole: Hole, batches: bytes) -> Hole | None:
        """Put back part of a hole below the commit offset; what is left of it, if anything.

        Raises:
            CorruptionError: ``batches`` are not what was there.
            StorageFailedError: the disk failed, and the group with it.
        """
        group = self._group
        assert hole.end.offset <= group.commit_offset

        async def fill_if_running() -> Hole | None:
            async with group.io_lock:
                if self._has_stopped:
                    raise StorageFailedError(f"the replica of {group.name} has stopped")
                group.settled_to = Offset(0)
                try:
                    return await self._host.env.run_blocking(group.log.fill, hole, batches)
                except StorageFailedError as error:
                    group.fail(error)
                    raise

        return await when_there_is_room(group.group_id, fill_if_running)

    async def trim(self, offset: Offset, trash: str) -> bool:
        """Drop the segments below ``offset``; False if there are none, or the group stopped.

        Args:
            offset: committed, and not above ``Checkpoints.restorable_offset``.
            trash: where the segments go.
        """
        group, run_blocking = self._group, self._host.env.run_blocking

        async def trim_if_due() -> bool:
            async with group.io_lock:
                # Judged here: another log may have been installed since it was decided.
                bases = group.log.segment_bases
                start = max((base for base in bases if base <= offset), default=offset)
                is_due = start > group.log.start_offset or not group.log.is_trim_finished
                if self._has_stopped or not is_due:
                    return False
                await run_blocking(group.log.require_descriptor)
                if group.is_held or self._has_stopped:
                    return False  # The core may be ahead: another log may be about to be installed.
                # First: what is gone must not be asked for.
                group.core.trim(start)
                self._host.set_deadline(group, group.core.deadline_ms)
                await run_blocking(group.log.trim, start, trash)
                return True

        try:
            return await when_there_is_room(group.group_id, trim_if_due)
        except (OSError, LogdError) as error:
            group.fail(error)
            return False

    async def trim_behind_state(self, offset: Offset, trash: str) -> bool:
        """As ``trim``, as far as a checkpoint reaches; and seal the active segment, so that it can
        go in its turn.  For a log that is there only for the state machine that it feeds.

        Args:
            offset: committed: a state that was kept holds all below it.

        Raises:
            StorageError: the disk failed.
        """
        restorable = await self._group.checkpoints.restorable_offset()
        is_trimmed = await self.trim(min(offset, restorable), trash)
        self._group.roller.roll_soon()
        return is_trimmed

    async def replace(
        self, bases: Sequence[Offset], path: str, trash: str, *, is_of_peers: bool = False
    ) -> bool:
        """Put another file in the place of segments (see ``Log.replace``); False if they are no
        longer there, or the replica has stopped: the file was removed.

        Args:
            trash: where the segments go.
            is_of_peers: it holds what peers do, who may not have compacted it.

        Raises:
            StorageError, CorruptionError: the file is not what it should be.
            OSError: it could not be removed.
        """
        group, run_blocking = self._group, self._host.env.run_blocking

        async def replace_if_running() -> bool:
            async with group.io_lock:
                if self._has_stopped:
                    await run_blocking(self._host.env.files.remove, path)
                    return False
                await run_blocking(group.log.require_descriptor)
                if is_of_peers:
                    group.settled_to = Offset(0)
                try:
                    is_done = await run_blocking(
                        lambda: group.log.replace(bases, path, trash, is_of_peers=is_of_peers)
                    )
                except StorageFailedError as error:
                    group.fail(error)
                    return False
                if is_done:
                    # Or who reads would be told what was left out for as long as memory has it.
                    after = next(base for base in group.log.segment_bases if base > bases[-1])
                    self._host.tail_cache.forget_below(group.group_id, after)
                return is_done

        return await when_there_is_room(group.group_id, replace_if_running)

    async def read_clean_note(self) -> CleanNote | None:
        """How far the log has been compacted, as far as that is known.

        Raises:
            OSError, StorageError: the note cannot be read, or is of another log.
        """
        group, env = self._group, self._host.env
        async with group.io_lock:
            return await env.run_blocking(
                read_clean_note, env.files, group.directory, group.identity
            )

    async def write_clean_note(self, note: CleanNote, *, instead_of: CleanNote | None) -> bool:
        """Keep ``note`` beside the log; False if another than ``instead_of`` is there by now, which
        stays, or the replica has stopped.

        Raises:
            OSError, StorageError: it could not be kept.
        """
        group, env = self._group, self._host.env
        async with group.io_lock:
            if self._has_stopped:
                return False
            return await env.run_blocking(
                lambda: write_clean_note(
                    env.files, group.directory, group.identity, note, instead_of=instead_of
                )
            )

    @property
    def _has_stopped(self) -> bool:
        """Or its log is gone, and another one waits for room to take its place."""
        return self._group.failure is not None or not self._group.log.is_open
