"""Empties the trash, in small pieces and with pauses: nobody waits for it, everybody for the disk.

What lies there begins to go when it has lain there for a round: nobody who had just begun to
read it when it was moved still does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.errors import LogdError
from logd.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logd.env import Env
    from logd.storage.trash import Trash

log = structlog.get_logger(__name__)

PIECE_BYTES: Final = 8 * MIB
"""Removed at once; then the disk is left to others for a while."""

BYTES_PER_S: Final = 128 * MIB
"""How fast a round begins."""

FASTER_EVERY_S: Final = 5
DOUBLINGS_MAX: Final = 5
"""A round that takes longer doubles its speed, again and again: deleting keeps up with writing."""


class TrashEmptying:
    """Empties one broker's trash."""

    def __init__(self, env: Env, trash: Trash, interval_ms: int) -> None:
        self._env = env
        self._trash = trash
        self._interval_s = interval_ms / 1000

    async def run(self) -> None:
        """Do rounds until cancelled."""
        known: frozenset[str] = frozenset()
        while True:
            try:
                names = await self._env.run_blocking(self._trash.names)
                await self._remove([name for name in names if name in known])
                known = frozenset(names)
            except LogdError as error:
                log.error(log_events.TRASHING_FAILED, reason=str(error))
            await trio.sleep(self._interval_s)

    async def _remove(self, names: Sequence[str]) -> None:
        if not names:
            return
        await self._env.run_blocking(self._trash.settle, names)
        began = trio.current_time()
        while True:
            removed = await self._env.run_blocking(self._trash.remove_piece, names, PIECE_BYTES)
            if not removed:
                return
            doublings = min((trio.current_time() - began) // FASTER_EVERY_S, DOUBLINGS_MAX)
            await trio.sleep(removed / (BYTES_PER_S * 2**doublings))
