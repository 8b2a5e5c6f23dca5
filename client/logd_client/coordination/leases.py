"""Places in queues, and the leases that they become: what locks, semaphores and elections share.

Taking a place, or claiming items, is a command with a result that can be asked for again
(``session.py``), so a caller that is cancelled at any point can be followed by somebody who finds
out what was granted and gives it back.  That somebody is a task of the client's: the cancelled
caller waits for it for a bounded time only, and it goes on for as long as the session lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Generic, Literal, TypeVar

import anyio
import anyio.lowlevel

from logd.errors import (
    AcquireTimeoutError,
    FencedError,
    LeaseLostError,
    LogdError,
    SessionExpiredError,
    UsageError,
    WouldWaitError,
)
from logd.wire.coordination import (
    Acquire,
    Claim,
    ClaimItems,
    Command,
    Done,
    Holders,
    ItemClaim,
    ItemsClaimed,
    ItemsSettled,
    ReadClaim,
    ReadLock,
    Release,
    ReleaseItems,
    fence_id_of,
)
from logd_client.arguments import require_int, require_seconds
from logd_client.backoff import Backoff
from logd_client.coordination.calls import WAIT_S_MAX
from logd_client.coordination.fences import Fence, raise_fences, require_topics
from logd_client.coordination.names import Name
from logd_client.coordination.session import PendingCommand, Session
from logd_client.coordination.sessions import Sessions
from logd_client.event_loop import BodyScope, new_scope

LeaseKind = Literal["lock", "semaphore", "election"]

GIVE_BACK_TIMEOUT_S: Final = 5.0
"""How long leaving waits until what was held is given back; it goes on behind the caller's back."""

GAVE_UP: Final = "the claimer gave up"


class Lease:
    """Something granted for as long as a session lives."""

    def __init__(
        self,
        sessions: Sessions,
        session: Session,
        kind: LeaseKind,
        name: Name,
        claim: Claim,
        *,
        is_exclusive: bool,
    ) -> None:
        assert claim.token is not None
        self.name = str(name)
        self.ticket = claim.ticket
        """Names this place among all that hold or wait."""
        self.token = claim.token
        """The fencing token: grows with every grant."""
        self._sessions = sessions
        self._session = session
        self._kind: LeaseKind = kind
        self._place = name
        self._is_exclusive = is_exclusive
        self._over: anyio.Event | None = None
        """Made by the first who waits for it."""
        self._error: LogdError | None = None
        self._is_given_back = False
        self._on_lost: Callable[[], None] | None = None
        session.call_on_loss(self, self._on_session_lost)

    def __repr__(self) -> str:
        state = "given back" if self._is_given_back else "lost" if self.is_lost else "held"
        return f"<{type(self).__name__} {self._kind} {self.name} token={self.token} {state}>"

    # --- how it stands --------------------------------------------------------------------

    @property
    def fence(self) -> Fence:
        """What an append carries so that it is refused once somebody else has been granted this.

        Raises:
            UsageError: several may hold it at a time, so a newer token does not end an older.
        """
        if not self._is_exclusive:
            raise UsageError(f"{self._kind} {self.name} is shared: its holders have no order")
        return Fence(self.fence_id, self.token)

    @property
    def fence_id(self) -> int:
        """The number by which appends name it."""
        return fence_id_of(self._place.namespace, self._kind, self._place.name)

    @property
    def session_id(self) -> int:
        return self._session.id

    @property
    def is_lost(self) -> bool:
        """Whether it ended without having been given back, judged by the clock as it is now."""
        if not self._is_given_back and self._error is None:
            self._session.is_lost()
        return self._error is not None

    @property
    def time_left_s(self) -> float:
        """How long it lasts if it were not renewed any more."""
        if self._is_given_back or self.is_lost:
            return 0.0
        return max(self._session.deadline - self._session.calls.lease_clock(), 0.0)

    def check(self) -> None:
        """Go on only if it is held.

        It says what this process knows; whether a write still lands is decided where it lands,
        by its fence.

        Raises:
            LeaseLostError: it is lost.
            UsageError: it was given back.
        """
        if self.is_lost:
            raise self.lost_error()
        if self._is_given_back:
            raise UsageError(f"{self._kind} {self.name} was given back")

    async def wait_until_over(self) -> None:
        """Wait until it is lost or given back.  Cancelling the wait changes nothing."""
        if self._error is None and not self._is_given_back:
            if self._over is None:
                self._over = anyio.Event()
            await self._over.wait()
        else:
            await anyio.lowlevel.checkpoint()

    def lost_error(self) -> LeaseLostError:
        """What to raise for its loss."""
        error = LeaseLostError(
            f"{self._kind} {self.name}, token {self.token}, is lost: {self._error}"
        )
        error.__cause__ = self._error
        return error

    def _on_session_lost(self, error: LogdError) -> None:
        if not self._is_given_back and self._error is None:
            self._error = error
            if self._over is not None:
                self._over.set()
            if self._on_lost is not None:
                self._on_lost()

    def call_on_loss(self, on_lost: Callable[[], None] | None) -> None:
        """``on_lost`` is called once, when it is lost, from the event loop."""
        self._on_lost = on_lost
        if on_lost is not None and self.is_lost:
            on_lost()

    # --- giving it back -------------------------------------------------------------------

    async def release(self) -> None:
        """Give it back: who stands next has it.  Lost or given back already, it does nothing.

        Waits a bounded time for the cluster; if it cannot be reached it is tried again for as
        long as the session lives.  Cancelled, it is given back all the same.
        """
        if self._is_given_back or self.is_lost:
            return
        self.end()
        command = Release(kind=self._kind, name=self._place.name, ticket=self.ticket)
        await settle(self._sessions, self._session, command)

    def end(self) -> None:
        """It is held no more, by our own will."""
        self._is_given_back = True
        self._session.forget_dependant(self)
        self._on_lost = None
        if self._over is not None:
            self._over.set()


L = TypeVar("L", bound=Lease)


class Place(Generic[L]):
    """A way to one kind of lease on one thing: waits in its queue, and hands the lease out."""

    def __init__(
        self,
        sessions: Sessions,
        name: Name,
        acquire: Acquire,
        lease_type: type[L],
        *,
        is_exclusive: bool = True,
        protects: Sequence[str] = (),
        ttl_ms: int | None = None,
    ) -> None:
        if protects and not is_exclusive:
            raise UsageError("only what one alone can hold protects topics")
        self.sessions = sessions
        self.name = name
        self._acquire = acquire
        self._lease_type = lease_type
        self._is_exclusive = is_exclusive
        self._protects = protects
        self._ttl_ms = ttl_ms

    @property
    def kind(self) -> LeaseKind:
        return self._acquire.kind

    async def obtain(self, timeout_s: float | None) -> L:
        """Stand in line for it.

        Raises:
            AcquireTimeoutError: not granted within ``timeout_s``; the place was given back.
            SessionExpiredError: the session was lost meanwhile.
            UnknownTopicError: one of the topics to protect does not exist.
            LogdError: the cluster could not be reached, or refused.

        Cancelled, the place, or the lease, is given back: the caller waits for that for a
        bounded time, and it goes on as long as the session lives.
        """
        if timeout_s is None:
            return await self._obtain(self._acquire)
        require_seconds("timeout_s", timeout_s)
        lease: L | None = None
        with anyio.move_on_after(timeout_s):
            lease = await self._obtain(self._acquire)
        if lease is None:
            raise AcquireTimeoutError(
                f"{self.kind} {self.name} was not granted within {timeout_s:g} s"
            )
        return lease

    async def obtain_now(self) -> L | None:
        """Take it if it can be had at once, else None.  Raises and is cancelled as ``obtain``."""
        acquire = Acquire(
            kind=self._acquire.kind,
            name=self._acquire.name,
            mode=self._acquire.mode,
            permits=self._acquire.permits,
            capacity=self._acquire.capacity,
            queue=False,
            data=self._acquire.data,
        )
        try:
            return await self._obtain(acquire)
        except WouldWaitError:
            return None

    async def _obtain(self, acquire: Acquire) -> L:
        if self._protects:
            await require_topics(self.sessions.calls.routing, self._protects)
        session = await self.sessions.get(self.name.namespace, self._ttl_ms)
        with session.scope():
            pending = await session.prepare(acquire)
            claim: Claim | None = None
            lease: L | None = None
            try:
                claim = await pending.result(Claim)
                # From here on the ticket is enough to give it back by.  A result that was kept for
                # as long as it waits in line would hold up all other commands of the session.
                pending.finish()
                while claim.token is None:
                    claim = await self._wait(session, claim)
                lease = self._lease(session, claim)
                if self._protects:
                    await self._raise_fences(lease)
                # The grant may have been learnt of too late, without a moment to be cancelled in.
                session.check()
            except BaseException as error:
                if lease is not None:
                    lease.end()
                if claim is not None:
                    await settle(self.sessions, session, self._release(claim.ticket))
                elif isinstance(error, LogdError) and not error.may_have_applied:
                    pending.finish()
                else:
                    await settle(self.sessions, session, pending)
                raise
            return lease

    def _lease(self, session: Session, claim: Claim) -> L:
        return self._lease_type(
            self.sessions, session, self.kind, self.name, claim, is_exclusive=self._is_exclusive
        )

    def _release(self, ticket: int) -> Release:
        return Release(kind=self.kind, name=self.name.name, ticket=ticket)

    async def _wait(self, session: Session, claim: Claim) -> Claim:
        query = ReadClaim(kind=self.kind, name=self.name.name, ticket=claim.ticket)
        answer = await session.calls.query(self.name.namespace, query, wait_s=WAIT_S_MAX)
        assert isinstance(answer, Claim)
        return answer

    async def _raise_fences(self, lease: L) -> None:
        try:
            await raise_fences(self.sessions.calls.routing, self._protects, lease.fence)
        except FencedError as error:
            raise LeaseLostError(
                f"{lease.name}: a newer holder is known already: {error}"
            ) from error

    async def holders(self) -> Holders:
        """Who holds it and who waits, as of now."""
        return await read_holders(self.sessions, self.kind, self.name)

    async def verify(self, token: int) -> bool:
        """Whether ``token`` is held at this moment, for a resource that is not a topic of logd.

        By the time that the resource acts on the answer it may be out of date: what is certain
        is to keep the largest token next to the data, and to refuse smaller ones in the same
        transaction that writes (docs/coordination.md).

        Raises:
            UsageError: it is no int.  As text, which tokens are in the environment of a command, it
                would never be held.
        """
        require_int("token", token)
        holders = await self.holders()
        return any(holder.token == token for holder in holders.holders)


async def read_holders(sessions: Sessions, kind: LeaseKind, name: Name) -> Holders:
    """Who holds something and who waits."""
    answer = await sessions.calls.query(name.namespace, ReadLock(kind=kind, name=name.name))
    assert isinstance(answer, Holders)
    return answer


class LeaseContext(Generic[L]):
    """``async with …  as lease``: the body runs in a scope that is cancelled when the lease is
    lost, and then ``LeaseLostError`` is raised in place of the cancellation.

    An exception of the body's own goes on as it is.  A body that ran to its end although the
    lease was lost meanwhile ends in ``LeaseLostError`` too: it was not alone.
    """

    def __init__(self, obtain: Callable[[], Awaitable[L]]) -> None:
        self._obtain = obtain
        self._is_entered = False
        self._lease: L | None = None
        self._scope: BodyScope | None = None

    async def __aenter__(self) -> L:
        if self._is_entered:
            raise UsageError("it is entered already: each task makes one of its own")
        self._is_entered = True
        try:
            lease = await self._obtain()
        except BaseException:
            self._is_entered = False
            raise
        self._lease = lease
        self._scope = BodyScope()
        self._scope.__enter__()
        lease.call_on_loss(self._scope.cancel)
        return lease

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._lease is not None
        assert self._scope is not None
        lease, scope = self._lease, self._scope
        self._lease = self._scope = None
        self._is_entered = False
        lost = lease.lost_error() if lease.is_lost else None
        lease.call_on_loss(None)
        try:
            is_swallowed = scope.__exit__(kind, error, traceback)
        finally:  # The event loop refuses a scope that another task leaves, or in another order.
            await lease.release()
        if lost is not None and (error is None or is_swallowed):
            raise lost
        return is_swallowed


async def settle(sessions: Sessions, session: Session, work: Command | PendingCommand) -> None:
    """Have something given back, waiting for a bounded time, cancelled or not.

    A command is simply carried out.  A pending ``Acquire`` or ``ClaimItems`` is given back whatever
    it came to.
    """
    is_settled = False
    try:
        with new_scope(timeout_s=GIVE_BACK_TIMEOUT_S, shield=True):
            is_settled = await _settle_once(session, work)
    finally:  # Also if asyncio itself cancels the task: no shield holds that off.
        if not is_settled:
            _settle_later(sessions, session, work)


def _settle_later(sessions: Sessions, session: Session, work: Command | PendingCommand) -> None:
    """Have it given back by a task of the client's."""
    if not session.is_lost() and work not in session.unsettled:
        session.unsettled[work] = anyio.Event()
        sessions.calls.routing.tasks.start_soon(_settle, session, work)


async def _settle(session: Session, work: Command | PendingCommand) -> None:
    """Go on for as long as the session lives."""
    backoff = Backoff(session.calls.routing.environment.rng)
    try:
        while not session.is_lost():
            if await _settle_once(session, work):
                return
            await anyio.sleep(backoff.next_delay_s())
    finally:
        session.unsettled.pop(work).set()


async def wait_until_settled(session: Session, work: Command) -> None:
    """Wait while ``work`` of this session is given back behind somebody's back: what comes after
    it must not be taken for it."""
    unsettled = session.unsettled.get(work)
    if unsettled is not None:
        await unsettled.wait()


async def _settle_once(session: Session, work: Command | PendingCommand) -> bool:
    """Whether it is settled, or nothing can be."""
    try:
        if isinstance(work, PendingCommand):
            await _give_back(session, work)
        else:
            await session.call(work, Done)
    except (SessionExpiredError, WouldWaitError):
        pass  # Nothing is held.
    except LogdError as error:
        if error.retriable:
            return False
    if isinstance(work, PendingCommand):
        work.finish()
    return True


async def _give_back(session: Session, pending: PendingCommand) -> None:
    """Whatever it came to."""
    if not pending.is_sent:
        return
    command = pending.command
    if isinstance(command, Acquire):
        claim = await pending.result(Claim)
        release = Release(kind=command.kind, name=command.name, ticket=claim.ticket)
        await session.call(release, Done)
        return
    assert isinstance(command, ClaimItems)
    claimed = await pending.result(ItemsClaimed)
    if claimed.items:
        claims = [ItemClaim(item=one.item, token=one.token) for one in claimed.items]
        unclaim = ReleaseItems(
            queue=command.queue, claims=claims, reason=GAVE_UP, delay_ms=0, uncounted=True
        )
        await session.call(unclaim, ItemsSettled)
