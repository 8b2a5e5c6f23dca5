"""Seals a group's active segment and begins the next one.

That blocks, and no append may be under way: the group is held meanwhile.  Nothing of the core's is
left to be carried out, so a leader that is held for this alone may still step aside.  A disk that
has no room for another segment ends nothing: the log goes on in the one that it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from logd.errors import LogdError, NoRoomError
from logd.raft.messages import Synced
from logd.replication import log_events
from logd.replication.room_waits import tell_what_lacks, when_there_is_room

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost

log = structlog.get_logger(__name__)


class Roller:
    """Rolls one group's log."""

    __slots__ = ("_group", "_host", "_lacks_room", "is_rolling")

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._host = host
        self.is_rolling = False
        """That is why the group is held."""
        self._lacks_room = False
        """For another segment, when one was last tried: it is tried again with each append."""

    def roll_soon(self) -> None:
        """Seal the active segment, unless it is empty or the group has something else to do.

        Whoever asks may have judged a while ago: another roll, a truncation or an installed
        snapshot may have left the active segment empty since.
        """
        group = self._group
        is_empty = group.log.end_offset == group.log.segment_bases[-1]
        if not group.is_held and group.failure is None and not is_empty:
            group.hold(is_disk_asked=True)
            self.is_rolling = True
            self._host.start_soon(self._roll)

    async def _roll(self) -> None:
        group = self._group
        try:
            is_rolled = await when_there_is_room(group.group_id, self._roll_or_go_on)
        except (OSError, LogdError) as error:
            group.fail(error)
            return
        if group.failure is not None:
            return
        self._lacks_room = not is_rolled
        if is_rolled:
            end_offset = group.log.end_offset
            log.debug(log_events.SEGMENT_ROLLED, group=group.group_id, base_offset=end_offset)
            if group.checkpoints.batches_since:
                group.checkpoints.take_now()
        self.is_rolling = False
        with self._host.turn:
            group.release(Synced(group.log.end_offset, group.log.last_term))
            if is_rolled:
                self._host.segment_rolled(group)

    async def _roll_or_go_on(self) -> bool:
        """False: there is no room for another segment, and the log goes on in the one that it has.

        Raises:
            NoRoomError: the other segment is begun: the log goes on in none before it is there.
        """
        group, run_blocking = self._group, self._host.env.run_blocking
        async with group.io_lock:
            if group.failure is not None:
                return False
            try:
                await run_blocking(group.log.roll)
            except NoRoomError as error:
                if await run_blocking(lambda: group.log.is_roll_begun):
                    raise
                if not self._lacks_room:
                    tell_what_lacks(group.group_id, error)
                return False
            return True
