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

from logd.limits import (
    DESCRIPTIONS_BEGUN_PER_TURN,
    REQUEST_TASKS_MAX,
    REQUESTS_BEGUN_PER_TURN,
)


class Turns:
    """Of what comes at once a few begin in each turn of the event loop."""

    def __init__(self, begun_max: int) -> None:
        self._begun_max = begun_max
        self._begun = 0
        """In this turn."""
        self._later = trio.lowlevel.ParkingLot()

    async def turn(self) -> None:
        """Begin now, or in a later turn: who came first is first.

        The first of each turn lets the next ones in when that is over: a task switch for each would
        take as long as most answers do.
        """
        if self._begun >= self._begun_max or self._later:
            await self._later.park()
        self._begun += 1
        if self._begun == 1:
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._begun = 0
                self._later.unpark(count=self._begun_max)


class RequestRoom:
    """That of one broker."""

    def __init__(self) -> None:
        self.tasks = 0
        """Requests that have one."""
        self.describing = Turns(DESCRIPTIONS_BEGUN_PER_TURN)
        self.others = Turns(REQUESTS_BEGUN_PER_TURN)
        self._waiting: dict[trio.lowlevel.ParkingLot, None] = {}
        """Where connections wait that are not read, in the order in which they came."""

    @property
    def is_crowded(self) -> bool:
        return self.tasks >= REQUEST_TASKS_MAX

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
