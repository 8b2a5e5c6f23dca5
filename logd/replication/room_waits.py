"""What finds no room on the disk, or no file descriptor, changes nothing and is done later.

Nobody's replica fails for it: room is made by others, who must not be kept from that meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
import trio

from logd.errors import NoRoomError
from logd.replication import log_events
from logd.storage.room import is_no_descriptor
from logd.types import GroupId

T = TypeVar("T")

log = structlog.get_logger(__name__)

ROOM_LOOK_S: Final = 1.0
"""How often it is tried again."""


async def when_there_is_room(group_id: GroupId, do: Callable[[], Awaitable[T]]) -> T:
    """The result of ``do``, which is called until it finds room.

    Args:
        do: sees for itself whether it is still wanted, and holds no lock between two calls: others
            make room, or close the files.
    """
    was_told = False
    while True:
        try:
            return await do()
        except NoRoomError as error:
            if not was_told:
                tell_what_lacks(group_id, error)
            was_told = True
        await trio.sleep(ROOM_LOOK_S)


def tell_what_lacks(group_id: GroupId, error: NoRoomError) -> None:
    """To the log: room on the disk, or a file descriptor."""
    event = log_events.NO_DESCRIPTOR if is_no_descriptor(error) else log_events.NO_ROOM
    log.error(event, group=group_id, reason=str(error))
