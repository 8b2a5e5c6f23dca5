"""What a client is given instead of reaching for it: network, time and chance.

The defaults are the real ones.  A simulator gives others and runs the same client.
Monotonic time to sleep by is anyio's, which the event loop's own clock may virtualise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from logd_client.transport import Transport


def wall_clock_ms() -> int:
    """Milliseconds since 1970-01-01T00:00Z."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Environment:
    """One client's view of the world."""

    transport: Transport
    clock: Callable[[], float]
    """Monotonic seconds, in step with anyio's timeouts."""
    wall_clock_ms: Callable[[], int]
    """Default timestamps of records."""
    rng: random.Random
