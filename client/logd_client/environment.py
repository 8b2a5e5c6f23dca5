"""What a client is given instead of reaching for it: network, time and chance.

The defaults are the real ones.  A simulator gives others and runs the same client.
Monotonic time to sleep by is anyio's, which the event loop's own clock may virtualise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from logd_client.transport import Transport


def wall_clock_ms() -> int:
    """Milliseconds since 1970-01-01T00:00Z."""
    return time.time_ns() // 1_000_000


_SUSPENDED_TIME_COUNTS: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock() -> float:
    """Monotonic seconds, those included in which the machine was suspended.

    Linux leaves them out of the clock that event loops go by: a lease that ran out while its
    holder's machine slept would look as if it had just been renewed.
    """
    return time.clock_gettime(_SUSPENDED_TIME_COUNTS)


@dataclass(frozen=True, slots=True)
class Environment:
    """One client's view of the world."""

    transport: Transport
    clock: Callable[[], float]
    """Monotonic seconds, in step with anyio's timeouts."""
    wall_clock_ms: Callable[[], int]
    """Default timestamps of records."""
    rng: random.Random
    lease_clock: Callable[[], float] = lease_clock
    """Monotonic seconds that go on while the machine is suspended."""
    identities: random.Random = field(default_factory=random.SystemRandom)
    """What no other client may draw as well comes from here: sessions are told apart by it."""
