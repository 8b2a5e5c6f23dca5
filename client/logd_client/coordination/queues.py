"""Work queues: put, claim, complete; retries with back-off, dead letters, order per key.

    queue = client.queue("emails")
    await queue.put(b"hello")
    await queue.work(send_email, concurrency=8)        # in each worker

An item that was claimed and neither completed nor renewed in time is handed out again, with a
larger token; the earlier claim can complete it no more.  So an item's *handler* may run more
than once, at the same time even, and its *completion* is taken once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from logd.errors import (
    ClaimLostError,
    LogdError,
    NotHeldError,
    SessionExpiredError,
    UnknownNameError,
)
from logd.limits import (
    ANSWER_ENTRIES_MAX,
    DELAY_MS_MAX,
    ITEMS_PER_COMMAND_MAX,
    NUMBER_MAX,
    PRIORITY_MAX,
    TEXT_BYTES_MAX,
    VISIBILITY_MS_MAX,
)
from logd.wire.coordination import (
    ClaimedItem,
    ClaimItems,
    CompleteItems,
    ConfigureQueue,
    DeadItem,
    DeleteQueue,
    Done,
    Item,
    ItemClaim,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    PutItems,
    QueueOptions,
    QueueStatistics,
    ReadQueue,
    RedriveItems,
    ReleaseItems,
    RenewItems,
    fence_id_of,
)
from logd_client.arguments import (
    milliseconds,
    require_between,
    require_each,
    require_function,
    require_list,
    require_seconds,
)
from logd_client.coordination.fences import Fence
from logd_client.coordination.leases import settle
from logd_client.coordination.names import Name, checked_bytes
from logd_client.coordination.queue_worker import (
    POLL_S,
    HandlerKindError,
    ItemFailedError,
    QueueWorker,
    WorkTally,
    check_release,
)
from logd_client.coordination.session import Session
from logd_client.coordination.sessions import Sessions
from logd_client.coordination.watches import Watch, watch_of

__all__ = [
    "Claim",
    "HandlerKindError",
    "ItemFailedError",
    "Queue",
    "WorkTally",
    "lost_text",
    "make_item",
]

DEAD_ITEMS_SHOWN: Final = 100


class Claim:
    """An item that was handed out, until it is settled or its time runs out."""

    __slots__ = ("asked_at", "item", "queue", "session", "visibility_s")

    def __init__(
        self,
        queue: Queue,
        session: Session,
        item: ClaimedItem,
        visibility_s: float | None,
        asked_at: float,
    ) -> None:
        self.queue = queue
        self.session = session
        self.item = item
        self.asked_at = asked_at
        """When it was asked for, or the last renewal that was granted, by the clock of leases: its
        time began then at the earliest."""
        self.visibility_s = visibility_s
        """For how long it was claimed, and is renewed unless told otherwise; None: the queue's."""

    def __repr__(self) -> str:
        return f"<Claim item={self.id} token={self.token} attempt={self.attempt}>"

    @property
    def id(self) -> int:
        return self.item.item

    @property
    def token(self) -> int:
        """Grows with each claim of the item."""
        return self.item.token

    @property
    def payload(self) -> bytes:
        return self.item.payload

    @property
    def key(self) -> bytes:
        return self.item.key

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self.item.attempt

    @property
    def put_ms(self) -> int:
        """When it was put, by log time: milliseconds since 1970-01-01T00:00Z."""
        return self.item.put_ms

    @property
    def session_id(self) -> int:
        """Of the session that it hangs on."""
        return self.session.id

    @property
    def fence(self) -> Fence:
        """What appends carry, so that those of a claim that was lost are refused."""
        name = self.queue.name
        return Fence(fence_id_of(name.namespace, "queue", f"{name.name}/{self.id}"), self.token)

    async def complete(self) -> None:
        """The item is done: it is never handed out again.

        Raises:
            ClaimLostError: the claim does not hold: it ran out, and somebody else has the item or
                will get it, or it was completed or released before.
            LogdError: the cluster could not be reached; see ``may_have_applied``.

        Cancelled, it may have been completed.
        """
        await self.queue.complete(self)

    async def release(
        self,
        reason: str = "",
        *,
        delay_s: float | None = None,
        dead: bool = False,
        uncounted: bool = False,
    ) -> None:
        """Give the item back, to be handed out again after ``delay_s`` (default: the queue's
        back-off), or ``dead`` to the dead letters.  Raises and is cancelled as ``complete``.

        Args:
            uncounted: this claim is none of the item's attempts, and there is no back-off: you
                were stopped, which says nothing of the item.  Counted all the same while the
                cluster is at a feature level below 7.
        """
        await self.queue.release(
            self, reason=reason, delay_s=delay_s, dead=dead, uncounted=uncounted
        )

    async def renew(self, visibility_s: float | None = None) -> None:
        """Hold it for longer, from now; as long as it was claimed for, unless told otherwise.
        Raises as ``complete``."""
        await self.queue.renew(
            self, visibility_s=self.visibility_s if visibility_s is None else visibility_s
        )


class Queue:
    """A work queue.  Made by ``Client.queue``."""

    def __init__(self, sessions: Sessions, name: Name) -> None:
        self.name = name
        self._sessions = sessions

    # --- putting ------------------------------------------------------------------------

    async def put(
        self,
        payload: bytes | str,
        *,
        key: bytes | str = b"",
        delay_s: float = 0,
        priority: int = 0,
    ) -> int:
        """Put one item; its id.  It is in the queue, once, when this returns.

        Args:
            key: items of one key are handed out one at a time, in order.
            delay_s: not handed out before.
            priority: higher ones first, among those that are due.

        Raises:
            QuotaExceededError: the namespace is full; the message has the figure.
            LogdError: refused, or not answered in time; see ``may_have_applied``.

        Cancelled, it may have been put.
        """
        ids = await self.put_many([make_item(payload, key=key, delay_s=delay_s, priority=priority)])
        return ids[0]

    async def put_many(self, items: Sequence[Item | bytes | str]) -> list[int]:
        """Put items; their ids in order.  Items of one call, up to
        ``ITEMS_PER_COMMAND_MAX``, are put together or not at all.  Raises as ``put``: of more, the
        first may be in the queue, and the error has ``may_have_applied`` then."""
        require_list("items", items)
        whole = [item if isinstance(item, Item) else make_item(item) for item in items]
        ids: list[int] = []
        for at in range(0, len(whole), ITEMS_PER_COMMAND_MAX):
            command = PutItems(queue=self.name.name, items=whole[at : at + ITEMS_PER_COMMAND_MAX])
            try:
                put = await self._sessions.call(self.name.namespace, command, ItemsPut)
            except LogdError as error:
                # Only from the second on; then who puts all of them again puts the first twice.
                error.may_have_applied |= bool(ids)
                raise
            ids += put.items
        return ids

    # --- claiming -----------------------------------------------------------------------

    async def claim(
        self, count: int = 1, *, visibility_s: float | None = None, wait_s: float = 0
    ) -> list[Claim]:
        """Take up to ``count`` items that are due; perhaps none.

        Args:
            visibility_s: how long the claims hold unless renewed; default: the queue's.
            wait_s: wait so long for the first, if none is due.

        Raises:
            LogdError: refused, or the cluster cannot be reached.

        Cancelled, or if it is not known whether any were claimed, those are given back: the caller
        waits for that for a bounded time, and it goes on as long as the session lives.
        """
        require_between("count", count, 1, ITEMS_PER_COMMAND_MAX)
        require_seconds("wait_s", wait_s)
        milliseconds("visibility_s", visibility_s, VISIBILITY_MS_MAX)  # Before a session is opened.
        claims = await self._claim_now(count, visibility_s)
        if claims or not wait_s:
            return claims
        deadline = self._sessions.calls.clock() + wait_s
        async with self.watch(tells_gaps=True) as watch:
            while True:
                claims = await self._claim_now(count, visibility_s)
                left_s = deadline - self._sessions.calls.clock()
                if claims or left_s <= 0:
                    return claims
                await watch.wait_for_news(min(left_s, POLL_S))

    async def adopt(
        self, item: int, token: int, session: int, *, owner_is_gone: bool = False
    ) -> Claim:
        """A claim that another process made, and whose session it left open
        (``Coordination.leave_sessions_open``): to complete, renew or release it here.

        Args:
            owner_is_gone: the client that claimed it is closed, and nobody else but adopters uses
                its session: any number of commands can follow each other there.  A client that
                still used it would have its next commands refused.
        """
        require_between("item", item, 0, NUMBER_MAX)
        require_between("token", token, 0, NUMBER_MAX)
        adopted = await self._sessions.adopt(
            self.name.namespace, session, owner_is_gone=owner_is_gone
        )
        claimed = ClaimedItem(item=item, token=token, payload=b"")
        return Claim(self, adopted, claimed, None, self._sessions.calls.lease_clock())

    async def _claim_now(self, count: int, visibility_s: float | None) -> list[Claim]:
        session = await self._sessions.get(self.name.namespace)
        command = ClaimItems(
            queue=self.name.name,
            count=count,
            visibility_ms=milliseconds("visibility_s", visibility_s, VISIBILITY_MS_MAX),
        )
        asked_at = self._sessions.calls.lease_clock()
        pending = await session.prepare(command)
        try:
            claimed = await pending.result(ItemsClaimed)
        except BaseException as error:
            if isinstance(error, LogdError) and not error.may_have_applied:
                pending.finish()
            else:
                # Whatever was, or is yet to be, claimed is somebody else's to do.
                await settle(self._sessions, session, pending)
            raise
        pending.finish()
        return [Claim(self, session, item, visibility_s, asked_at) for item in claimed.items]

    # --- settling -----------------------------------------------------------------------

    async def complete(self, *claims: Claim) -> None:
        """Done with these.  Raises as ``Claim.complete``, naming those that were lost; the
        others are completed."""
        await self._settle(claims, lambda named: CompleteItems(queue=self.name.name, claims=named))

    async def release(
        self,
        *claims: Claim,
        reason: str = "",
        delay_s: float | None = None,
        dead: bool = False,
        uncounted: bool = False,
    ) -> None:
        """Give claims back; see ``Claim.release``."""
        require_each("reason", [reason], str)
        delay_ms = check_release(delay_s, dead=dead, uncounted=uncounted)
        await self._settle(
            claims,
            lambda named: ReleaseItems(
                queue=self.name.name,
                claims=named,
                reason=reason.encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore"),
                delay_ms=delay_ms,
                dead=dead,
                uncounted=uncounted,
            ),
        )

    async def renew(self, *claims: Claim, visibility_s: float | None = None) -> None:
        """Hold claims for longer, from now; all of them, or ``ClaimLostError`` and none of those
        that were claimed by the same session."""
        visibility_ms = milliseconds("visibility_s", visibility_s, VISIBILITY_MS_MAX)
        by_session = _by_session(claims)
        asked_at = self._sessions.calls.lease_clock()
        for session, named in by_session:
            command = RenewItems(queue=self.name.name, claims=named, visibility_ms=visibility_ms)
            try:
                await session.call(command, Done)
            except SessionExpiredError as error:
                lost = lost_text([claim.item for claim in named])
                raise ClaimLostError(f"queue {self.name}: {lost}") from error
            except NotHeldError as error:
                raise ClaimLostError(str(error)) from error
        for claim in claims:
            claim.asked_at = max(claim.asked_at, asked_at)

    async def _settle(
        self,
        claims: Iterable[Claim],
        command: Callable[[list[ItemClaim]], CompleteItems | ReleaseItems],
    ) -> None:
        stale: list[int] = []
        for session, named in _by_session(claims):
            try:
                settled = await session.call(command(named), ItemsSettled)
            except SessionExpiredError as error:
                if error.may_have_applied:
                    raise
                stale += [claim.item for claim in named]
            else:
                stale += settled.stale
        if stale:
            raise ClaimLostError(f"queue {self.name}: {lost_text(stale)}")

    # --- looking after it ---------------------------------------------------------------

    async def configure(
        self,
        *,
        attempts_max: int | None = None,
        backoff_ms: int | None = None,
        backoff_max_ms: int | None = None,
        visibility_ms: int | None = None,
        dead_items_max: int | None = None,
    ) -> QueueOptions:
        """Make the queue, or change its options; what is not named keeps its value, or has its
        default in a new queue.

        Args:
            attempts_max: after so many claims that were not completed an item is dead; default: 10.
            backoff_ms: before the second attempt, doubled with each; default: 1,000.
            backoff_max_ms: the longest that becomes; default: 60,000.
            visibility_ms: how long a claim holds unless it is renewed; default: 30,000.
            dead_items_max: so many dead items are kept, the newest; default: 10,000.

        Raises:
            UsageError, InvalidRequestError: a value is out of range.

        Returns what the queue has then, without what others change at the same time.  Cancelled, it
        may have been done.  While the cluster is at a feature level below 9, two that change
        options at the same time may undo each other's.
        """
        named = {
            "attempts_max": attempts_max,
            "backoff_ms": backoff_ms,
            "backoff_max_ms": backoff_max_ms,
            "visibility_ms": visibility_ms,
            "dead_items_max": dead_items_max,
        }
        options = {name: value for name, value in named.items() if value is not None}
        for name, value in options.items():
            require_between(name, value, 0)
        try:
            current = (await self.statistics()).options
        except UnknownNameError:
            current = QueueOptions()
        changed = msgspec.structs.replace(current, **options)
        # All of them: below the level for it those that are named count for nothing.
        command = ConfigureQueue(queue=self.name.name, options=changed, changed=list(options))
        await self._sessions.call(self.name.namespace, command, Done)
        return changed

    async def statistics(self, *, dead: int = 0) -> QueueStatistics:
        """Depth, oldest age, in flight, dead, completed; and ``dead`` of the dead items.

        Raises:
            UnknownNameError: there is no such queue.
        """
        require_between("dead", dead, 0, ANSWER_ENTRIES_MAX)
        answer = await self._sessions.calls.query(
            self.name.namespace, ReadQueue(queue=self.name.name, dead=dead)
        )
        assert isinstance(answer, QueueStatistics)
        return answer

    async def dead_letters(self, count: int = DEAD_ITEMS_SHOWN) -> list[DeadItem]:
        """The newest dead items, each with why it died."""
        require_between("count", count, 0, ANSWER_ENTRIES_MAX)
        return (await self.statistics(dead=count)).dead_items

    async def redrive(self, *items: int) -> list[int]:
        """Let dead items begin anew, those named or all; which ones did.  Cancelled, it may have
        been done."""
        for item in items:
            require_between("an item", item, 1, NUMBER_MAX)
        command = RedriveItems(queue=self.name.name, items=list(items))
        settled = await self._sessions.call(self.name.namespace, command, ItemsSettled)
        return settled.settled

    async def delete(self) -> None:
        """Delete the queue with all its items.  Cancelled, it may have been done."""
        command = DeleteQueue(queue=self.name.name)
        await self._sessions.call(self.name.namespace, command, Done)

    def watch(self, revision: int | None = None, *, tells_gaps: bool = False) -> Watch:
        """Hear when items become ready: ``async with queue.watch() as events``."""
        return watch_of(self._sessions.calls, "queue", self.name, revision, tells_gaps=tells_gaps)

    # --- working ------------------------------------------------------------------------

    async def work(
        self,
        handler: Callable[[Claim], Awaitable[None]],
        *,
        concurrency: int = 1,
        batch: int | None = None,
        visibility_s: float | None = None,
        until_empty: bool = False,
        tally: WorkTally | None = None,
    ) -> int:
        """Claim items, run ``handler`` for each, complete those that return; how many did.

        Claims are renewed while their handlers run.  An item whose handler raises is released
        with the exception as its reason: it is tried again after the back-off, and dead after
        ``attempts_max``; ``ItemFailedError`` says otherwise.  A handler whose claim is lost is
        cancelled: its item is another's.  So is one whose claim could not be renewed for four
        fifths of its time, or whose session is lost: it may be another's soon.

        Args:
            concurrency: handlers that run at the same time.
            batch: items claimed at once; default: as many as there is room for.
            visibility_s: how long a claim holds without renewal; default: the queue's, also after
                that was changed.
            until_empty: return when nothing is due, instead of waiting for more.
            tally: of this call alone: counts what becomes of the items, also if it is cancelled.

        Raises:
            UsageError: ``handler`` is no async function; its item was given back.
            LogdError: refused, or the cluster cannot be reached.

        Cancelled, running handlers are cancelled and their items given back, at once and without
        counting as attempts: items do not die of workers that are stopped.
        """
        require_function("handler", handler)
        require_between("concurrency", concurrency, 1, ITEMS_PER_COMMAND_MAX)
        batch = concurrency if batch is None else batch
        require_between("batch", batch, 1, ITEMS_PER_COMMAND_MAX)
        milliseconds("visibility_s", visibility_s, VISIBILITY_MS_MAX)  # Before anything is claimed.
        tally = WorkTally() if tally is None else tally
        worker = QueueWorker(
            self, self._sessions.calls, handler, concurrency, batch, visibility_s, tally
        )
        await worker.run(until_empty=until_empty)
        return tally.completed


def make_item(
    payload: bytes | str, *, key: bytes | str = b"", delay_s: float = 0, priority: int = 0
) -> Item:
    """An item to be put; arguments as ``Queue.put``."""
    delay_ms = milliseconds("delay_s", delay_s, DELAY_MS_MAX)
    assert delay_ms is not None
    require_between("priority", priority, -PRIORITY_MAX, PRIORITY_MAX)
    return Item(
        payload=checked_bytes("payload", payload),
        key=checked_bytes("key", key),
        delay_ms=delay_ms,
        priority=priority,
    )


def lost_text(items: Sequence[int]) -> str:
    """Why ``items`` were not settled, or renewed.  The cluster knows that nobody holds them so, and
    not why."""
    named = ", ".join(map(str, items))
    what = f"claim of item {named} does" if len(items) == 1 else f"claims of items {named} do"
    return f"the {what} not hold: run out, completed or released before, or never made"


def _by_session(claims: Iterable[Claim]) -> list[tuple[Session, list[ItemClaim]]]:
    found: dict[int, tuple[Session, list[ItemClaim]]] = {}
    for claim in claims:
        require_each("a claim", [claim], Claim)
        _, named = found.setdefault(claim.session.id, (claim.session, []))
        named.append(ItemClaim(item=claim.id, token=claim.token))
    return list(found.values())
