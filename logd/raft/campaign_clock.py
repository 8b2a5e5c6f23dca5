"""When does a replica without a leader campaign?

First in order of preference: the first live voter of the replica list after a short jitter,
the next one stagger later, and so on.  Elections therefore rarely collide, and leaders end
up where placement wants them.  After a failed campaign at random, as in the paper, with
growing patience.

There is no clock here: time comes in as an argument, chance as a callable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from logd.raft.options import RaftOptions

_GROWTH_MAX: Final = 4.0


class CampaignClock:
    """``deadline_ms`` is when to campaign next, None while there is no reason to."""

    __slots__ = ("_attempts", "_draw", "_jitter_ms", "_options", "_ordered_since_ms", "deadline_ms")

    def __init__(self, options: RaftOptions, draw: Callable[[], float]) -> None:
        self._options = options
        self._draw = draw
        self._attempts = 0
        self._ordered_since_ms: int | None = None
        self._jitter_ms = 0
        self.deadline_ms: int | None = None

    def stop(self) -> None:
        """There is a leader, or no chance of winning.  Forget past failures."""
        self.deadline_ms = None
        self._ordered_since_ms = None
        self._attempts = 0

    def run(self, rank: int, now_ms: int) -> None:
        """Have the clock running: in order for the first campaign, as it is after that.

        Args:
            rank: how many live voters are preferred to this one; may change as peers come
                and go, without starting the wait afresh.
        """
        if self.deadline_ms is None:
            self._ordered_since_ms = now_ms
            self._jitter_ms = int(self._draw() * self._options.campaign_jitter_ms)
        if self._ordered_since_ms is not None:
            wait_ms = rank * self._options.campaign_stagger_ms + self._jitter_ms
            self.deadline_ms = self._ordered_since_ms + wait_ms

    def postpone(self, now_ms: int) -> None:
        """Somebody else is leading or about to: give it an election timeout."""
        self._ordered_since_ms = None
        self.deadline_ms = now_ms + self._timeout_ms()

    def campaign(self, now_ms: int) -> None:
        """A campaign begins; its result is awaited for an election timeout."""
        self.postpone(now_ms)
        self._attempts += 1

    def _timeout_ms(self) -> int:
        shortest, longest = (
            self._options.election_timeout_ms_min,
            self._options.election_timeout_ms_max,
        )
        growth = min(1.0 + self._attempts / 2, _GROWTH_MAX)
        return int((shortest + self._draw() * (longest - shortest)) * growth)
