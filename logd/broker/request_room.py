"""How many requests a broker takes up, of all its clients together.

One connection may have a thousand that are not answered yet.  Thousands of connections that use
this would have millions of tasks, and the broker nothing but these to do.  So there is a bound for
all, beyond which each may still have a few; and of those that have a task only some begin in each
turn of the event loop, which has the network, the disks and the other brokers to see to in between.
"""

from __future__ import annotations

import trio

from logd.limits import REQUESTS_BEGUN_PER_TURN, REQUESTS_OF_ALL_IN_FLIGHT_MAX


class RequestRoom:
    """That of one broker."""

    def __init__(self) -> None:
        self.in_flight = 0
        """Requests of connections that are open, not answered yet."""
        self._beginning = trio.CapacityLimiter(REQUESTS_BEGUN_PER_TURN)

    @property
    def is_crowded(self) -> bool:
        return self.in_flight >= REQUESTS_OF_ALL_IN_FLIGHT_MAX

    async def turn(self) -> None:
        """Begin now, or in a later turn of the event loop: who came first is first."""
        async with self._beginning:
            pass
