"""When to try again.

Full jitter: each wait is drawn evenly between nothing and a bound that doubles.  Clients that
failed together (a broker died) do not come back together, and half of them come back sooner
than a fixed schedule would let them.  The bound stays below the time that an election takes,
so a leader change costs little more than itself.
"""

from __future__ import annotations

import random
from typing import Final

BACKOFF_FIRST_S: Final = 0.02
BACKOFF_LIMIT_S: Final = 0.5
_DOUBLINGS_MAX: Final = 16

assert BACKOFF_FIRST_S * 2**_DOUBLINGS_MAX > BACKOFF_LIMIT_S


class Backoff:
    """Counts the failures in a row of one thing, and says how long to wait after each."""

    __slots__ = ("_rng", "failures")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.failures = 0

    def next_delay_s(self) -> float:
        """Count one failure; seconds to wait before the next attempt."""
        bound = min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2 ** min(self.failures, _DOUBLINGS_MAX))
        self.failures += 1
        return self._rng.uniform(0, bound)

    def reset(self) -> None:
        """It worked."""
        self.failures = 0
