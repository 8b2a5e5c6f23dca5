"""When does a replica without a leader campaign?

While there is anything to win: without a live quorum the clock stands still.  First in order of
preference: the first live voter of the replica list after a short jitter, the next one stagger
later, and so on.  Elections therefore rarely collide, and leaders end up where placement wants
them.  After a failed campaign at random, as in the paper, with growing patience.

If so many voters have lost their memory that the group must be restarted with what is left, it
waits a bounded time for the rest, who could have a longer log.

There is no clock here: time comes in as an argument, chance as a callable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from logd.raft.replica import Replica
    from logd.types import NodeId

_GROWTH_MAX: Final = 4.0


class CampaignClock:
    """``deadline_ms`` is when to campaign next, None while there is no reason to."""

    __slots__ = (
        "_attempts",
        "_draw",
        "_jitter_ms",
        "_options",
        "_ordered_since_ms",
        "_replica",
        "_restart_wanted_ms",
        "deadline_ms",
    )

    def __init__(self, replica: Replica, draw: Callable[[], float]) -> None:
        self._replica = replica
        self._options = replica.options
        self._draw = draw
        self._attempts = 0
        self._ordered_since_ms: int | None = None
        self._jitter_ms = 0
        self._restart_wanted_ms: int | None = None
        """Since when it is known that a majority has lost its memory."""
        self.deadline_ms: int | None = None

    def stop(self) -> None:
        """There is a leader, or no chance of winning.  Forget past failures."""
        self.deadline_ms = None
        self._ordered_since_ms = None
        self._attempts = 0

    def watch(self, now_ms: int) -> None:
        """No live leader is known: have the clock running while a campaign could be won.

        In order for the first campaign, as it is after that.  The order may change as peers
        come and go, without starting the wait afresh.
        """
        if not self._replica.may_win:
            self.stop()
            return
        if self.deadline_ms is None:
            self._ordered_since_ms = now_ms
            self._jitter_ms = int(self._draw() * self._options.campaign_jitter_ms)
        if self._ordered_since_ms is not None:
            wait_ms = self._replica.rank * self._options.campaign_stagger_ms + self._jitter_ms
            self.deadline_ms = self._ordered_since_ms + wait_ms

    def postpone(self, now_ms: int) -> None:
        """Somebody else is leading or about to: give it an election timeout."""
        self._ordered_since_ms = None
        self.deadline_ms = now_ms + self._timeout_ms()

    def campaign(self, now_ms: int) -> None:
        """A campaign begins; its result is awaited for an election timeout."""
        self.postpone(now_ms)
        self._attempts += 1

    def may_restart(self, silent: Sequence[NodeId], now_ms: int) -> bool:
        """The group must be restarted: whether ``silent`` have been waited for long enough.

        Who is alive but does not answer is waited for twice as long.
        """
        if self._restart_wanted_ms is None:
            self._restart_wanted_ms = now_ms
        if not silent:
            return True
        patience = 2 if any(map(self._replica.is_up, silent)) else 1
        return now_ms - self._restart_wanted_ms >= patience * self._options.restart_wait_ms

    def forget_restart(self) -> None:
        """There is a leader: the group goes on."""
        self._restart_wanted_ms = None

    def _timeout_ms(self) -> int:
        shortest, longest = (
            self._options.election_timeout_ms_min,
            self._options.election_timeout_ms_max,
        )
        growth = min(1.0 + self._attempts / 2, _GROWTH_MAX)
        return int((shortest + self._draw() * (longest - shortest)) * growth)
