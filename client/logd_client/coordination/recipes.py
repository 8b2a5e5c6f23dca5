"""Barriers, latches, counters and sequences: small recipes over keys.

Each is a few keys and a watch, and shows how others are made: read, then watch from behind the
revision that was read, so that no change falls between the two.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import anyio

from logd.errors import LogdError, UsageError
from logd.limits import NUMBER_MAX
from logd.wire.coordination import Compare
from logd_client.arguments import require_between, require_text
from logd_client.coordination.keys import KeyValues, delete
from logd_client.coordination.names import Name
from logd_client.coordination.sessions import Sessions

TIDY_UP_TIMEOUT_S: Final = 5.0
"""How long whoever gives up entering may take to see that the others count it no more."""


class _Recipe:
    """Keys under ``logd.<recipe>/<name>``, so that they meet nobody else's."""

    kind = ""

    def __init__(self, sessions: Sessions, name: Name) -> None:
        self.name = str(name)
        self.kv = KeyValues(sessions, name.namespace)
        self.key = f"logd.{self.kind}/{name.name}"


class Barrier(_Recipe):
    """Holds back whoever waits for as long as it is set.  Made by ``Client.barrier``."""

    kind = "barrier"

    async def set(self) -> None:
        """Hold back from now on.  Cancelled, it may have been set."""
        await self.kv.put(self.key, b"")

    async def lift(self) -> None:
        """Let everybody pass.  Cancelled, it may have been lifted."""
        await self.kv.delete(self.key)

    async def wait(self) -> None:
        """Pass as soon as it is not set.  Cancelling the wait changes nothing."""
        await _wait_until_gone(self.kv, self.key)


class DoubleBarrier(_Recipe):
    """``count`` members begin together and end together.  Made by ``Client.double_barrier``.

        async with client.double_barrier("load-test", count=3, member="host-1"):
            ...                         # runs once three have entered; ends once all have left

    A member whose session is lost counts as one that has left.
    """

    kind = "double_barrier"

    def __init__(self, sessions: Sessions, name: Name, count: int, member: str) -> None:
        super().__init__(sessions, name)
        require_between("count", count, 1)
        require_text("member", member)
        if not member:
            raise UsageError("member must name who enters")
        self.count = count
        self._sessions = sessions
        self._namespace = name.namespace
        self._ready = f"{self.key}/ready"
        self._members = f"{self.key}/member/"
        self._mine = f"{self._members}{member}"

    async def enter(self) -> None:
        """Wait until ``count`` members have entered.  Cancelled, this one leaves again.

        Raises:
            SessionExpiredError: the session was lost meanwhile, so this one has not entered.
        """
        session = await self._sessions.get(self._namespace)
        try:
            with session.scope():
                entered_at = await self.kv.put(self._mine, b"", ephemeral=True)
                present = await self.kv.prefix(self._members, keys_only=True)
                if present.count >= self.count:
                    await self.kv.put(self._ready, b"")
                async with self.kv.watch(self._ready, tells_gaps=True) as events:
                    while not await self._is_ready(entered_at):
                        await events.next()
        except BaseException:
            with anyio.move_on_after(TIDY_UP_TIMEOUT_S, shield=True), suppress(LogdError):
                await self.kv.delete(self._mine)
            raise

    async def _is_ready(self, entered_at: int) -> bool:
        """Since this one has entered: it may have been before, for members that have crashed and
        did not tidy up."""
        ready = await self.kv.get(self._ready)
        return ready is not None and ready.revision > entered_at

    async def leave(self) -> None:
        """Wait until all members have left.  Cancelled, this one has left, or will with its
        session."""
        left_at = (await self.kv.transact(then=[delete(self._mine)])).revision
        async with self.kv.watch(prefix=self._members, tells_gaps=True) as events:
            while await self._is_anybody_left(left_at):
                await events.next()
        # Whoever comes first tidies up for the next time.
        ready = await self.kv.get(self._ready)
        if ready is not None and ready.revision < left_at:
            same = Compare(key=ready.key, revision=ready.revision)
            await self.kv.transact(compare=[same], then=[delete(ready.key)])

    async def _is_anybody_left(self, left_at: int) -> bool:
        """Of those who were together: who has entered since waits for the next time."""
        present = await self.kv.prefix(self._members, keys_only=True)
        return any(member.created < left_at for member in present.found)

    async def __aenter__(self) -> DoubleBarrier:
        await self.enter()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.leave()


class Latch(_Recipe):
    """Opens once it was counted down to 0, for ever.  Made by ``Client.latch``."""

    kind = "latch"

    def __init__(self, sessions: Sessions, name: Name, count: int) -> None:
        super().__init__(sessions, name)
        require_between("count", count, 0)
        self.count = count

    async def count_down(self, by: int = 1) -> int:
        """Count; what is left.  Counted once, however often it had to be sent."""
        require_between("by", by, 1, NUMBER_MAX)
        return max(self.count - await self.kv.increment(self.key, by), 0)

    async def left(self) -> int:
        """What is left to count."""
        found = await self.kv.get(self.key)
        return self.count if found is None else max(self.count - int(found.value), 0)

    async def wait(self) -> None:
        """Until nothing is left.  Cancelling the wait changes nothing."""
        async with self.kv.watch(self.key, tells_gaps=True) as events:
            while await self.left():
                await events.next()


class Counter(_Recipe):
    """A number that many add to.  Made by ``Client.counter``."""

    kind = "counter"

    async def add(self, by: int = 1) -> int:
        """Add; what it is then.  Added once, however often it had to be sent."""
        return await self.kv.increment(self.key, by)

    async def get(self) -> int:
        """What it is."""
        found = await self.kv.get(self.key)
        return 0 if found is None else int(found.value)

    async def reset(self, value: int = 0) -> None:
        """Set it."""
        require_between("value", value, -NUMBER_MAX, NUMBER_MAX)
        await self.kv.put(self.key, str(value).encode())


class NumberSequence(_Recipe):
    """Numbers that nobody else gets, in increasing order per client.  Made by
    ``Client.sequence``.

    Numbers are taken from the log ``block`` at a time: of a client that ends, the rest of its
    block is never given out.
    """

    kind = "sequence"

    def __init__(self, sessions: Sessions, name: Name, block: int) -> None:
        super().__init__(sessions, name)
        require_between("block", block, 1, NUMBER_MAX)
        self.block = block
        self._next = 0
        self._end = 0
        self._reserving = anyio.Lock()

    async def next(self) -> int:
        """The next number, from 0.  Cancelled, one may be left out."""
        async with self._reserving:
            if self._next == self._end:
                self._end = await self.kv.increment(self.key, self.block)
                self._next = self._end - self.block
            self._next += 1
            return self._next - 1


async def _wait_until_gone(kv: KeyValues, key: str) -> None:
    async with kv.watch(key, tells_gaps=True) as events:
        while await kv.get(key) is not None:
            await events.next()
