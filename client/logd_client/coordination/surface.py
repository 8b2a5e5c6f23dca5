"""What ``Client`` offers for coordination: one method for each thing that can be made.

Names are ``name`` or ``namespace/name``; without a namespace it is ``default``.  All that a
client holds in a namespace hangs on one session, opened when it is first needed and kept alive
in the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from logd.wire.coordination import (
    DEFAULT_NAMESPACE,
    Holders,
    Kind,
    ListNames,
    LockMode,
    Names,
    ReadSessions,
    SessionInfo,
)
from logd.wire.coordination import Sessions as SessionsAnswer
from logd_client.arguments import require_one_of, require_seconds
from logd_client.coordination.assignments import Assignments
from logd_client.coordination.elections import Election
from logd_client.coordination.keys import KeyValues
from logd_client.coordination.leases import LeaseKind, read_holders
from logd_client.coordination.locks import Lock, Semaphore
from logd_client.coordination.members import Group
from logd_client.coordination.names import checked_name, parse_name
from logd_client.coordination.queues import Queue
from logd_client.coordination.recipes import Barrier, Counter, DoubleBarrier, Latch, NumberSequence
from logd_client.coordination.sessions import Sessions, require_ttl

SEQUENCE_BLOCK_DEFAULT: Final = 100


class Coordination:
    """The part of a client that locks, elects, counts members and hands out work."""

    def _open_sessions(self) -> Sessions:
        raise NotImplementedError

    def lock(
        self,
        name: str,
        *,
        mode: LockMode = "exclusive",
        protects: Sequence[str] = (),
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        data: bytes | str = b"",
    ) -> Lock:
        """A lock: ``async with client.lock("orders/compactor") as lease``.

        Who asks first is granted first.  The body is cancelled when the lease is lost, and
        ``LeaseLostError`` raised then; leaving it gives the lock back.

        Args:
            mode: "exclusive", or "shared" with others that share it.
            protects: topics whose partitions refuse, before the lease is handed out, whatever
                earlier holders still append with their fence.
            ttl_s: a session of its own with this time to live, instead of the client's: how
                long a holder that crashed keeps others waiting.
            timeout_s: how long entering waits (``AcquireTimeoutError``); default: for ever.
            data: shown to whoever lists the holders.

        Raises:
            InvalidNameError, UsageError: an argument is out of range.

        Raises, on entering:
            AcquireTimeoutError: not granted within ``timeout_s``; the place was given back.
            SessionExpiredError: this process stood still, or was cut off, for longer than the time
                to live while it waited: its place is gone, and entering again takes another.
            UnknownTopicError: one of the topics to protect does not exist.
        """
        return Lock(
            self._open_sessions(),
            parse_name(name),
            mode=mode,
            protects=protects,
            ttl_ms=_ttl_ms(ttl_s),
            timeout_s=timeout_s,
            data=data,
        )

    def semaphore(
        self,
        name: str,
        capacity: int,
        *,
        permits: int = 1,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        data: bytes | str = b"",
    ) -> Semaphore:
        """``permits`` out of ``capacity``: ``async with client.semaphore("api", 10) as lease``.

        Who asks first is granted first: a small request does not overtake a large one.  All who
        use it name the same capacity (``ConflictError``).  Otherwise as ``lock``; a lease has a
        token, but no fence, as several hold it.
        """
        return Semaphore(
            self._open_sessions(),
            parse_name(name),
            capacity=capacity,
            permits=permits,
            ttl_ms=_ttl_ms(ttl_s),
            timeout_s=timeout_s,
            data=data,
        )

    def election(
        self, name: str, *, protects: Sequence[str] = (), ttl_s: float | None = None
    ) -> Election:
        """An election: ``async with client.election("controller").campaign(b"host:port")``.

        Args:
            protects: as for ``lock``: topics to which an earlier leader writes no more.
            ttl_s: as for ``lock``.
        """
        return Election(
            self._open_sessions(), parse_name(name), protects=protects, ttl_ms=_ttl_ms(ttl_s)
        )

    def members(self, group: str, *, ttl_s: float | None = None) -> Group:
        """A group: ``async with client.members("workers").join("host-1", b"address")``."""
        return Group(self._open_sessions(), parse_name(group), _ttl_ms(ttl_s))

    def assignments(self, group: str, *, ttl_s: float | None = None) -> Assignments:
        """Shards spread over the members of a group:
        ``await client.assignments("indexers").work("host-1", run_shard)``."""
        return Assignments(self._open_sessions(), parse_name(group), _ttl_ms(ttl_s))

    def queue(self, name: str) -> Queue:
        """A work queue: ``await client.queue("emails").put(b"...")``."""
        return Queue(self._open_sessions(), parse_name(name))

    def kv(self, namespace: str = DEFAULT_NAMESPACE) -> KeyValues:
        """The keys of a namespace: ``await client.kv("config").put("feature", b"on")``."""
        return KeyValues(self._open_sessions(), namespace)

    def barrier(self, name: str) -> Barrier:
        """Holds back whoever waits for as long as it is set."""
        return Barrier(self._open_sessions(), parse_name(name))

    def double_barrier(self, name: str, count: int, member: str) -> DoubleBarrier:
        """``count`` members begin together and end together."""
        return DoubleBarrier(self._open_sessions(), parse_name(name), count, member)

    def latch(self, name: str, count: int) -> Latch:
        """Opens once it was counted down from ``count``."""
        return Latch(self._open_sessions(), parse_name(name), count)

    def counter(self, name: str) -> Counter:
        """A number that many add to."""
        return Counter(self._open_sessions(), parse_name(name))

    def sequence(self, name: str, *, block: int = SEQUENCE_BLOCK_DEFAULT) -> NumberSequence:
        """Numbers that nobody else gets, taken from the log ``block`` at a time."""
        return NumberSequence(self._open_sessions(), parse_name(name), block)

    def leave_sessions_open(self) -> None:
        """Closing this client gives nothing back: it is held until its sessions expire, or until
        another process settles it (``Queue.adopt``).  Here it is lost all the same: nobody renews
        it any more."""
        self._open_sessions().leaves_open = True

    async def list_names(self, kind: Kind, namespace: str = DEFAULT_NAMESPACE) -> list[str]:
        """The names of all locks (or semaphores, elections, groups, queues) that there are in a
        namespace.  A lock is there while somebody holds it or waits."""
        require_one_of("kind", kind, get_args(Kind))
        calls = self._open_sessions().calls
        names: list[str] = []
        start: str | None = ""
        while start is not None:
            query = ListNames(kind=kind, start=start)
            answer = await calls.query(checked_name(namespace), query)
            assert isinstance(answer, Names)
            names += answer.names
            start = answer.next
        return names

    async def read_holders(self, kind: LeaseKind, name: str) -> Holders:
        """Who holds a lock, semaphore or election, since when, and who waits."""
        require_one_of("kind", kind, get_args(LeaseKind))
        return await read_holders(self._open_sessions(), kind, parse_name(name))

    async def list_sessions(self, namespace: str = DEFAULT_NAMESPACE) -> list[SessionInfo]:
        """All sessions of a namespace, and how much each holds."""
        answer = await self._open_sessions().calls.query(checked_name(namespace), ReadSessions())
        assert isinstance(answer, SessionsAnswer)
        return answer.sessions


def _ttl_ms(ttl_s: float | None) -> int | None:
    if ttl_s is None:
        return None
    require_seconds("ttl_s", ttl_s)
    return require_ttl("ttl_s in milliseconds", int(min(ttl_s, 1e9) * 1000))
