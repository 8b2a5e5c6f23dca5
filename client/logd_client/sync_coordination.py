"""Coordination for programs that block: the same verbs as ``logd_client.coordination``.

    with connect() as client, client.lock("orders/compactor") as lease:
        lease.check()

What an event loop can cancel when a lease is lost, a thread cannot: ask ``lease.check()`` between
steps, or have ``on_lost`` called; and let what is written carry the lease's fence, which needs
no asking.  Leaving the block raises ``LeaseLostError`` if the lease was lost within it.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import iscoroutine
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio.to_thread

from logd.errors import UsageError
from logd.wire.coordination import (
    Assignment,
    Compare,
    DeadItem,
    Event,
    Holders,
    Item,
    Keys,
    KeyValue,
    Member,
    Members,
    Operation,
    QueueOptions,
    QueueStatistics,
    Transacted,
)
from logd_client.arguments import require_each, require_function
from logd_client.coordination import assignments as async_assignments
from logd_client.coordination import elections as async_elections
from logd_client.coordination import keys as async_keys
from logd_client.coordination import leases as async_leases
from logd_client.coordination import locks as async_locks
from logd_client.coordination import members as async_members
from logd_client.coordination import queues as async_queues
from logd_client.coordination import recipes as async_recipes
from logd_client.coordination import watches as async_watches
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.elections import Leader
from logd_client.coordination.fences import Fence
from logd_client.coordination.views import View
from logd_client.portal import Awaited, Portal

A = TypeVar("A")
T = TypeVar("T")
L = TypeVar("L", bound="Lease")


# --- leases -----------------------------------------------------------------------------


class Lease:
    """See ``logd_client.coordination.leases.Lease``."""

    def __init__(self, portal: Portal, lease: async_leases.Lease) -> None:
        self._portal = portal
        self._lease = lease

    def __repr__(self) -> str:
        return repr(self._lease)

    @property
    def name(self) -> str:
        return self._lease.name

    @property
    def ticket(self) -> int:
        return self._lease.ticket

    @property
    def token(self) -> int:
        return self._lease.token

    @property
    def fence(self) -> Fence:
        return self._lease.fence

    @property
    def session_id(self) -> int:
        return self._lease.session_id

    @property
    def is_lost(self) -> bool:
        return self._portal.call(lambda: self._lease.is_lost)

    @property
    def time_left_s(self) -> float:
        return self._portal.call(lambda: self._lease.time_left_s)

    def check(self) -> None:
        self._portal.call(self._lease.check)

    def call_on_loss(self, on_lost: Callable[[], None]) -> None:
        """``on_lost`` is called once, when the lease is lost, in the client's thread: it must not
        block, and not call this client."""
        self._portal.call(self._lease.call_on_loss, on_lost)

    def wait_until_over(self) -> None:
        self._portal.call(self._lease.wait_until_over)

    def release(self) -> None:
        self._portal.call(self._lease.release)

    def leave(self, has_failed: bool) -> None:
        """As a block around it is left."""
        _leave(self._portal, self._lease, self._lease.release, has_failed)


def _leave(
    portal: Portal,
    held: async_leases.Lease | async_members.Membership,
    give_back: Callable[[], Awaitable[None]],
    has_failed: bool,
) -> None:
    """Give it back; raise for its loss unless something else is being raised."""
    if portal.leads_somewhere:
        is_lost = portal.call(lambda: held.is_lost)
        portal.call(give_back)
    else:  # The client gave it back when it was closed, or it is another process's.
        is_lost = portal.is_closed and held.is_lost
    if is_lost and not has_failed:
        raise held.lost_error()


class Leadership(Lease):
    """See ``logd_client.coordination.elections.Leadership``."""

    def __init__(self, portal: Portal, lease: async_elections.Leadership) -> None:
        super().__init__(portal, lease)
        self._leadership = lease

    def proclaim(self, data: bytes | str) -> None:
        self._portal.call(self._leadership.proclaim, data)

    def resign(self) -> None:
        self._portal.call(self._leadership.resign)

    def hand_over(self, to: int | None = None) -> None:
        self._portal.call(self._leadership.hand_over, to)


class _Held(threading.local, Generic[L]):
    """What one thread has entered: several may share a semaphore, and each gives back its own."""

    def __init__(self) -> None:
        self.leases: list[L] = []


class _Holding(Generic[L]):
    """``with … as lease``."""

    def __init__(self) -> None:
        self._held = _Held[L]()

    def _obtain(self) -> L:
        raise NotImplementedError

    def __enter__(self) -> L:
        lease = self._obtain()
        self._held.leases.append(lease)
        return lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.leases.pop().leave(error is not None)


async def _release(lease: async_leases.Lease | None) -> None:
    if lease is not None:
        await lease.release()


class Lock(_Holding[Lease]):
    """See ``logd_client.coordination.locks.Lock``."""

    def __init__(self, portal: Portal, lock: async_locks.Lock) -> None:
        super().__init__()
        self._portal = portal
        self._lock = lock

    def _obtain(self) -> Lease:
        return self.acquire()

    def acquire(self, timeout_s: float | None = None) -> Lease:
        obtain = partial(self._lock.acquire, timeout_s)
        return Lease(self._portal, self._portal.obtain(obtain, _release))

    def try_acquire(self) -> Lease | None:
        lease = self._portal.obtain(self._lock.try_acquire, _release)
        return None if lease is None else Lease(self._portal, lease)

    def holders(self) -> Holders:
        return self._portal.call(self._lock.holders)

    def verify(self, token: int) -> bool:
        return self._portal.call(self._lock.verify, token)


class Election:
    """See ``logd_client.coordination.elections.Election``."""

    def __init__(self, portal: Portal, election: async_elections.Election) -> None:
        self._portal = portal
        self._election = election

    def campaign(self, data: bytes | str = b"", *, timeout_s: float | None = None) -> Campaign:
        return Campaign(self._portal, self._election.campaign(data, timeout_s=timeout_s))

    def observe(self) -> Iterator[Leader | None]:
        """Leaders as they come, the present one first; ends when the client is closed, and when
        it is interrupted."""
        return _iterate(self._portal, self._portal.call(self._election.observe))

    def leader(self) -> Leader | None:
        return self._portal.call(self._election.leader)

    def candidates(self) -> Holders:
        return self._portal.call(self._election.candidates)

    def verify(self, token: int) -> bool:
        return self._portal.call(self._election.verify, token)


class Campaign(_Holding[Leadership]):
    """See ``logd_client.coordination.elections.Campaign``."""

    def __init__(self, portal: Portal, campaign: async_elections.Campaign) -> None:
        super().__init__()
        self._portal = portal
        self._campaign = campaign

    def _obtain(self) -> Leadership:
        return self.win()

    def win(self) -> Leadership:
        return Leadership(self._portal, self._portal.obtain(self._campaign.win, _release))

    def win_now(self) -> Leadership | None:
        won = self._portal.obtain(self._campaign.win_now, _release)
        return None if won is None else Leadership(self._portal, won)


# --- watches ----------------------------------------------------------------------------


class Watch:
    """See ``logd_client.coordination.watches.Watch``; ``with … as events: for event in events``."""

    def __init__(self, portal: Portal, watch: async_watches.Watch) -> None:
        self._portal = portal
        self._watch = watch
        self._events = Awaited[Event | None](portal, watch.next, at_end=None)

    def __enter__(self) -> Watch:
        self._portal.call(self._watch.__aenter__)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; iteration in progress, in another thread, stops."""
        if self._portal.leads_somewhere:
            self._portal.call(self._watch.aclose)

    def next(self, timeout_s: float | None = None) -> Event | None:
        """Wait for the next event; None when the watch is closed, or the client.  Interrupted, it
        loses none.

        Raises:
            TimeoutError: none came within ``timeout_s``.  The next call goes on waiting.
        """
        return self._events.take(timeout_s)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.next, None)


def _iterate(portal: Portal, view: View[T]) -> Iterator[T]:
    """The states that a view tells.

    Interrupted, it is over: it tells of a state, and the next one begins with the present one.
    """
    portal.call(view.__aenter__)
    try:
        while True:
            try:
                item = portal.call(_next_or_end, view)
            except _EndError:
                return
            except UsageError:
                if portal.is_closed:
                    return
                raise
            yield item
    finally:
        if portal.leads_somewhere:
            portal.call(view.__aexit__, None, None, None)


class _EndError(Exception):
    """``StopAsyncIteration`` cannot cross from a coroutine."""


async def _next_or_end(view: View[T]) -> T:
    try:
        return await view.__anext__()
    except StopAsyncIteration:
        raise _EndError from None


async def _in_thread(function: Callable[[A], T], argument: A) -> T:
    """In a thread of its own: of those that anyio lends to everybody there are forty, and a shard
    keeps its thread for as long as it is owned."""
    own = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(function, argument, limiter=own)


# --- members and assignments ------------------------------------------------------------


class Group:
    """See ``logd_client.coordination.members.Group``."""

    def __init__(self, portal: Portal, group: async_members.Group) -> None:
        self._portal = portal
        self._group = group

    def join(self, member: str | None = None, data: bytes | str = b"") -> Membership:
        return Membership(self._portal, self._portal.call(self._group.join, member, data))

    def list(self) -> Members:
        return self._portal.call(self._group.list)

    def watch(self, revision: int | None = None) -> Watch:
        return Watch(self._portal, self._portal.call(self._group.watch, revision))

    def follow(self) -> Iterator[tuple[Member, ...]]:
        """The members after each change, the present ones first; ends when the client is closed,
        and when it is interrupted."""
        return _iterate(self._portal, self._portal.call(self._group.follow))


class Membership:
    """See ``logd_client.coordination.members.Membership``."""

    def __init__(self, portal: Portal, membership: async_members.Membership) -> None:
        self._portal = portal
        self._membership = membership
        self.member = membership.member

    def __repr__(self) -> str:
        return self._portal.call(repr, self._membership)

    def __enter__(self) -> Self:
        self.join()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _leave(self._portal, self._membership, self._membership.leave, error is not None)

    @property
    def is_lost(self) -> bool:
        return self._portal.call(lambda: self._membership.is_lost)

    def join(self) -> None:
        self._portal.call(self._membership.join)

    def wait_until_over(self) -> None:
        self._portal.call(self._membership.wait_until_over)

    def update(self, data: bytes | str) -> None:
        self._portal.call(self._membership.update, data)

    def leave(self) -> None:
        self._portal.call(self._membership.leave)


class Assignments:
    """See ``logd_client.coordination.assignments.Assignments``."""

    def __init__(self, portal: Portal, assignments: async_assignments.Assignments) -> None:
        self._portal = portal
        self._assignments = assignments

    def set(self, shards: Sequence[str], weights: Sequence[float] = ()) -> None:
        self._portal.call(self._assignments.set, shards, weights)

    def list(self) -> Assignment:
        return self._portal.call(self._assignments.list)

    def watch(self, revision: int | None = None) -> Watch:
        return Watch(self._portal, self._portal.call(self._assignments.watch, revision))

    def verify(self, shard: str, token: int) -> bool:
        return self._portal.call(self._assignments.verify, shard, token)

    def work(
        self,
        member: str | None,
        run_shard: Callable[[OwnedShard], None],
        *,
        data: bytes | str = b"",
    ) -> None:
        """Run ``run_shard`` in a thread for each shard owned.  It has to return soon after
        ``shard.must_stop``: the shard moves once it has.  Interrupted, or when the client is
        closed, it leaves the group once all have returned."""

        require_function("run_shard", run_shard)

        async def in_thread(shard: OwnedShard) -> None:
            await _in_thread(run_shard, shard)

        work = partial(self._assignments.work, member, in_thread, data=data)
        self._portal.call_to_its_end(work)

    def report_load(self, member: str, loads: Mapping[str, float]) -> None:
        self._portal.call(self._assignments.report_load, member, loads)


# --- queues -----------------------------------------------------------------------------


class Claim:
    """See ``logd_client.coordination.queues.Claim``."""

    def __init__(self, portal: Portal, claim: async_queues.Claim) -> None:
        self._portal = portal
        self._claim = claim

    def __repr__(self) -> str:
        return repr(self._claim)

    @property
    def id(self) -> int:
        return self._claim.id

    @property
    def token(self) -> int:
        return self._claim.token

    @property
    def payload(self) -> bytes:
        return self._claim.payload

    @property
    def key(self) -> bytes:
        return self._claim.key

    @property
    def attempt(self) -> int:
        return self._claim.attempt

    @property
    def put_ms(self) -> int:
        return self._claim.put_ms

    @property
    def session_id(self) -> int:
        return self._claim.session_id

    @property
    def fence(self) -> Fence:
        return self._claim.fence

    def complete(self) -> None:
        self._portal.call(self._claim.complete)

    def release(
        self,
        reason: str = "",
        *,
        delay_s: float | None = None,
        dead: bool = False,
        uncounted: bool = False,
    ) -> None:
        self._portal.call(
            partial(self._claim.release, reason, delay_s=delay_s, dead=dead, uncounted=uncounted)
        )

    def renew(self, visibility_s: float | None = None) -> None:
        self._portal.call(self._claim.renew, visibility_s)


def _asynchronous(claims: Sequence[Claim]) -> list[async_queues.Claim]:
    require_each("a claim", claims, Claim)
    return [claim._claim for claim in claims]


async def _release_claims(claims: Sequence[async_queues.Claim]) -> None:
    for claim in claims:
        await claim.release("interrupted", delay_s=0, uncounted=True)


class Queue:
    """See ``logd_client.coordination.queues.Queue``."""

    def __init__(self, portal: Portal, queue: async_queues.Queue) -> None:
        self._portal = portal
        self._queue = queue

    def put(
        self,
        payload: bytes | str,
        *,
        key: bytes | str = b"",
        delay_s: float = 0,
        priority: int = 0,
    ) -> int:
        return self._portal.call(
            partial(self._queue.put, payload, key=key, delay_s=delay_s, priority=priority)
        )

    def put_many(self, items: Sequence[Item | bytes | str]) -> list[int]:
        return self._portal.call(self._queue.put_many, items)

    def claim(
        self, count: int = 1, *, visibility_s: float | None = None, wait_s: float = 0
    ) -> list[Claim]:
        claim = partial(self._queue.claim, count, visibility_s=visibility_s, wait_s=wait_s)
        claims = self._portal.obtain(claim, _release_claims)
        return [Claim(self._portal, claim) for claim in claims]

    def complete(self, *claims: Claim) -> None:
        self._portal.call(self._queue.complete, *_asynchronous(claims))

    def release(
        self,
        *claims: Claim,
        reason: str = "",
        delay_s: float | None = None,
        dead: bool = False,
        uncounted: bool = False,
    ) -> None:
        self._portal.call(
            partial(
                self._queue.release,
                *_asynchronous(claims),
                reason=reason,
                delay_s=delay_s,
                dead=dead,
                uncounted=uncounted,
            )
        )

    def renew(self, *claims: Claim, visibility_s: float | None = None) -> None:
        named = _asynchronous(claims)
        self._portal.call(partial(self._queue.renew, *named, visibility_s=visibility_s))

    def adopt(self, item: int, token: int, session: int, *, owner_is_gone: bool = False) -> Claim:
        adopt = partial(self._queue.adopt, item, token, session, owner_is_gone=owner_is_gone)
        return Claim(self._portal, self._portal.call(adopt))

    def watch(self, revision: int | None = None) -> Watch:
        return Watch(self._portal, self._portal.call(self._queue.watch, revision))

    def configure(
        self,
        *,
        attempts_max: int | None = None,
        backoff_ms: int | None = None,
        backoff_max_ms: int | None = None,
        visibility_ms: int | None = None,
        dead_items_max: int | None = None,
    ) -> QueueOptions:
        return self._portal.call(
            partial(
                self._queue.configure,
                attempts_max=attempts_max,
                backoff_ms=backoff_ms,
                backoff_max_ms=backoff_max_ms,
                visibility_ms=visibility_ms,
                dead_items_max=dead_items_max,
            )
        )

    def statistics(self, *, dead: int = 0) -> QueueStatistics:
        return self._portal.call(partial(self._queue.statistics, dead=dead))

    def dead_letters(self, count: int = async_queues.DEAD_ITEMS_SHOWN) -> list[DeadItem]:
        return self._portal.call(self._queue.dead_letters, count)

    def redrive(self, *items: int) -> list[int]:
        return self._portal.call(self._queue.redrive, *items)

    def delete(self) -> None:
        self._portal.call(self._queue.delete)

    def work(
        self,
        handler: Callable[[Claim], None],
        *,
        concurrency: int = 1,
        visibility_s: float | None = None,
        until_empty: bool = False,
    ) -> int:
        """Run ``handler`` in threads, ``concurrency`` at a time.  A handler whose claim is lost
        cannot be stopped, but what it completes then is not taken.  Interrupted, or when the
        client is closed, handlers that run are waited for, and complete their items."""

        require_function("handler", handler)

        async def in_thread(claim: async_queues.Claim) -> None:
            returned: object = await _in_thread(handler, Claim(self._portal, claim))
            if iscoroutine(returned):
                returned.close()
                raise async_queues.HandlerKindError("a function that is not async", returned)

        return self._portal.call_to_its_end(
            partial(
                self._queue.work,
                in_thread,
                concurrency=concurrency,
                visibility_s=visibility_s,
                until_empty=until_empty,
            )
        )


# --- keys and recipes -------------------------------------------------------------------


class KeyValues:
    """See ``logd_client.coordination.keys.KeyValues``."""

    def __init__(self, portal: Portal, kv: async_keys.KeyValues) -> None:
        self._portal = portal
        self._kv = kv

    def get(self, key: bytes | str) -> KeyValue | None:
        return self._portal.call(self._kv.get, key)

    def range(
        self, start: bytes | str, end: bytes | str, *, limit: int = 0, keys_only: bool = False
    ) -> Keys:
        return self._portal.call(
            partial(self._kv.range, start, end, limit=limit, keys_only=keys_only)
        )

    def prefix(self, prefix: bytes | str, *, limit: int = 0, keys_only: bool = False) -> Keys:
        return self._portal.call(partial(self._kv.prefix, prefix, limit=limit, keys_only=keys_only))

    def put(self, key: bytes | str, value: bytes | str, *, ephemeral: bool = False) -> int:
        return self._portal.call(partial(self._kv.put, key, value, ephemeral=ephemeral))

    def delete(self, key: bytes | str, end: bytes | str | None = None) -> int:
        return self._portal.call(self._kv.delete, key, end)

    def cas(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        revision: int | None = None,
        expected: bytes | str | None = None,
        ephemeral: bool = False,
    ) -> int:
        return self._portal.call(
            partial(
                self._kv.cas,
                key,
                value,
                revision=revision,
                expected=expected,
                ephemeral=ephemeral,
            )
        )

    def increment(self, key: bytes | str, by: int = 1) -> int:
        return self._portal.call(self._kv.increment, key, by)

    def transact(
        self,
        *,
        compare: Sequence[Compare] = (),
        then: Sequence[Operation] = (),
        otherwise: Sequence[Operation] = (),
    ) -> Transacted:
        return self._portal.call(
            partial(self._kv.transact, compare=compare, then=then, otherwise=otherwise)
        )

    def watch(
        self,
        key: bytes | str | None = None,
        *,
        prefix: bytes | str | None = None,
        end: bytes | str | None = None,
        revision: int | None = None,
    ) -> Watch:
        watch = self._portal.call(
            partial(self._kv.watch, key, prefix=prefix, end=end, revision=revision)
        )
        return Watch(self._portal, watch)


class Barrier:
    """See ``logd_client.coordination.recipes.Barrier``."""

    def __init__(self, portal: Portal, barrier: async_recipes.Barrier) -> None:
        self._portal = portal
        self._barrier = barrier

    def set(self) -> None:
        self._portal.call(self._barrier.set)

    def lift(self) -> None:
        self._portal.call(self._barrier.lift)

    def wait(self) -> None:
        self._portal.call(self._barrier.wait)


class DoubleBarrier:
    """See ``logd_client.coordination.recipes.DoubleBarrier``."""

    def __init__(self, portal: Portal, barrier: async_recipes.DoubleBarrier) -> None:
        self._portal = portal
        self._barrier = barrier

    def enter(self) -> None:
        self._portal.call(self._barrier.enter)

    def leave(self) -> None:
        self._portal.call(self._barrier.leave)

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()


class Latch:
    """See ``logd_client.coordination.recipes.Latch``."""

    def __init__(self, portal: Portal, latch: async_recipes.Latch) -> None:
        self._portal = portal
        self._latch = latch

    def count_down(self, by: int = 1) -> int:
        return self._portal.call(self._latch.count_down, by)

    def left(self) -> int:
        return self._portal.call(self._latch.left)

    def wait(self) -> None:
        self._portal.call(self._latch.wait)


class Counter:
    """See ``logd_client.coordination.recipes.Counter``."""

    def __init__(self, portal: Portal, counter: async_recipes.Counter) -> None:
        self._portal = portal
        self._counter = counter

    def add(self, by: int = 1) -> int:
        return self._portal.call(self._counter.add, by)

    def get(self) -> int:
        return self._portal.call(self._counter.get)

    def reset(self, value: int = 0) -> None:
        self._portal.call(self._counter.reset, value)


class NumberSequence:
    """See ``logd_client.coordination.recipes.NumberSequence``."""

    def __init__(self, portal: Portal, sequence: async_recipes.NumberSequence) -> None:
        self._portal = portal
        self._sequence = sequence

    def next(self) -> int:
        return self._portal.call(self._sequence.next)
