"""When to try again.

Full jitter: each wait is drawn evenly between nothing and a bound that doubles.  Clients that
failed together (a broker died) do not come back together, and half of them come back sooner
than a fixed schedule would let them.  For as long as an election usually takes, with a second
one behind it, the bound stands still: whoever waits for a leader learns of it soon after it is
there, instead of waiting as long again as the election took.
"""

from __future__ import annotations

import random
from typing import Final

BACKOFF_FIRST_S: Final = 0.02
BACKOFF_LIMIT_S: Final = 0.5
ELECTION_BOUND_S: Final = 0.08
_DOUBLINGS_FIRST: Final = 2
_ATTEMPTS_IN_ELECTION: Final = 12
"""At ``ELECTION_BOUND_S``: half a second of them, as waits are half their bound."""

_DOUBLINGS_MAX: Final = 16

assert BACKOFF_FIRST_S * 2**_DOUBLINGS_FIRST == ELECTION_BOUND_S
assert ELECTION_BOUND_S * 2**_DOUBLINGS_MAX > BACKOFF_LIMIT_S


class Backoff:
    """Counts the failures in a row of one thing, and says how long to wait after each."""

    __slots__ = ("_rng", "failures")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.failures = 0

    def next_delay_s(self) -> float:
        """Count one failure; seconds to wait before the next attempt."""
        bound = BACKOFF_FIRST_S * 2 ** min(self.failures, _DOUBLINGS_FIRST)
        beyond = self.failures - _DOUBLINGS_FIRST - _ATTEMPTS_IN_ELECTION
        if beyond > 0:
            bound = min(BACKOFF_LIMIT_S, bound * 2 ** min(beyond, _DOUBLINGS_MAX))
        self.failures += 1
        return self._rng.uniform(0, bound)

    def reset(self) -> None:
        """It worked."""
        self.failures = 0
