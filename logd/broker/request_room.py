"""How many requests a broker carries out at a time, of all its clients together.

One connection may have a thousand that are not answered yet.  Thousands of connections that use
this would have millions of tasks, and the broker nothing but these to do.  So there is a bound for
all, beyond which each may still have a few; and of those that have a task only some begin in each
turn of the event loop, which has the network, the disks and the other brokers to see to in between.

Appends, commands and questions to coordination have no task, and are not counted: tens of thousands
may wait for a lock, and keep nobody from anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from logd.limits import REQUEST_TASKS_MAX, REQUESTS_BEGUN_PER_TURN


class RequestRoom:
    """That of one broker."""

    def __init__(self) -> None:
        self.tasks = 0
        """Requests that have one."""
        self._beginning = trio.CapacityLimiter(REQUESTS_BEGUN_PER_TURN)
        self._waiting: dict[trio.lowlevel.ParkingLot, None] = {}
        """Where connections wait that are not read, in the order in which they came."""

    @property
    def is_crowded(self) -> bool:
        return self.tasks >= REQUEST_TASKS_MAX

    async def turn(self) -> None:
        """Begin now, or in a later turn of the event loop: who came first is first."""
        async with self._beginning:
            pass

    def ended(self) -> None:
        """The task of a request has: if there is room again, one connection more looks for it."""
        self.tasks -= 1
        if self._waiting and not self.is_crowded:
            lot = next(iter(self._waiting))
            del self._waiting[lot]
            lot.unpark()

    @contextmanager
    def waits(self, lot: trio.lowlevel.ParkingLot) -> Iterator[None]:
        """A connection is not read.  If for want of room, then whoever waits at ``lot`` looks again
        when there is some: its own requests may take a minute."""
        if self.is_crowded:
            self._waiting[lot] = None
        try:
            yield
        finally:
            self._waiting.pop(lot, None)
