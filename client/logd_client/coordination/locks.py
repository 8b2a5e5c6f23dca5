"""Locks and semaphores: fair queues whose grants carry fencing tokens.

    async with client.lock("orders/compactor", protects=["orders"]) as lease:
        async with client.producer("orders") as producer:
            await producer.append(b"...", fence=lease)

The body runs in a scope that is cancelled when the lease is lost, which this client knows before
anybody else can be granted it, as far as clocks can tell.  What clocks cannot tell the fence
does: the append of a holder that was replaced is refused by the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from logd.limits import PERMITS_MAX
from logd.wire.coordination import Acquire, Holders, LockMode
from logd_client.arguments import require_between, require_one_of
from logd_client.coordination.leases import Lease, LeaseContext, Place
from logd_client.coordination.names import Name, checked_bytes
from logd_client.coordination.sessions import Sessions


class Lock:
    """A lock.  Made by ``Client.lock``; ``async with`` holds it, or call ``acquire``."""

    def __init__(
        self,
        sessions: Sessions,
        name: Name,
        *,
        mode: LockMode,
        protects: Sequence[str],
        ttl_ms: int | None,
        timeout_s: float | None,
        data: bytes | str,
    ) -> None:
        require_one_of("mode", mode, ("exclusive", "shared"))
        acquire = Acquire(kind="lock", name=name.name, mode=mode, data=checked_bytes("data", data))
        self._place = Place(
            sessions,
            name,
            acquire,
            Lease,
            is_exclusive=mode == "exclusive",
            protects=protects,
            ttl_ms=ttl_ms,
        )
        self._timeout_s = timeout_s
        self._context = LeaseContext(self.acquire)

    async def acquire(self, timeout_s: float | None = None) -> Lease:
        """Stand in line for the lock.  The caller gives the lease back, and watches for its loss.

        Raises:
            AcquireTimeoutError: not granted within ``timeout_s``, by default the lock's own.
            SessionExpiredError: the session was lost meanwhile, and the place with it.
            UnknownTopicError: a topic to protect does not exist.

        Cancelled, the place or the lease is given back: shielded, for a bounded time, and then
        behind the caller's back.
        """
        return await self._place.obtain(self._timeout_s if timeout_s is None else timeout_s)

    async def try_acquire(self) -> Lease | None:
        """The lease if it can be had at once, else None.  Cancelled, nothing is left held."""
        return await self._place.obtain_now()

    async def __aenter__(self) -> Lease:
        """As ``acquire``; the body is cancelled when the lease is lost."""
        return await self._context.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return await self._context.__aexit__(kind, error, traceback)

    async def holders(self) -> Holders:
        """Who holds it, since when, and who waits.  Cancelling it changes nothing."""
        return await self._place.holders()

    async def verify(self, token: int) -> bool:
        """Whether ``token`` is held at this moment; see ``Place.verify`` for what that is worth."""
        return await self._place.verify(token)


class Semaphore(Lock):
    """``permits`` of a semaphore's ``capacity``.  Made by ``Client.semaphore``."""

    def __init__(
        self,
        sessions: Sessions,
        name: Name,
        *,
        capacity: int,
        permits: int,
        ttl_ms: int | None,
        timeout_s: float | None,
        data: bytes | str,
    ) -> None:
        require_between("capacity", capacity, 1, PERMITS_MAX)
        require_between("permits", permits, 1, capacity)
        acquire = Acquire(
            kind="semaphore",
            name=name.name,
            permits=permits,
            capacity=capacity,
            data=checked_bytes("data", data),
        )
        self._place = Place(sessions, name, acquire, Lease, is_exclusive=False, ttl_ms=ttl_ms)
        self._timeout_s = timeout_s
        self._context = LeaseContext(self.acquire)
