"""The work queues of one namespace: commands, quotas, and what sessions claim."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from logd.coordination import quotas
from logd.coordination.checks import check_options
from logd.coordination.names import quoted
from logd.coordination.queues import NOT_IN_TIME, SESSION_LOST, DeadRecord, Queue, QueueItem
from logd.coordination.quotas import Usage
from logd.coordination.sessions import Session
from logd.errors import NotHeldError, UnknownNameError
from logd.limits import ITEMS_PER_COMMAND_MAX
from logd.wire.coordination import (
    ClaimItems,
    CompleteItems,
    ConfigureQueue,
    DeleteQueue,
    Event,
    ItemClaim,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    PutItems,
    QueueOptions,
    QueueStatistics,
    RedriveItems,
    ReleaseItems,
    RenewItems,
)
from logd.wording import count_of

_ITEM_BITS: Final = 10
"""An item's id is the revision that put it, and its number among those of the command: no two
items of a partition have the same, also when a queue is deleted and made again."""

assert ITEMS_PER_COMMAND_MAX <= 1 << _ITEM_BITS


class Work:
    """Queues by name."""

    def __init__(
        self,
        usage: Usage,
        sessions: Mapping[int, Session],
        emit: Callable[[Event], None],
        schedule: Callable[[str, int | None], None],
    ) -> None:
        """``schedule`` is told a queue that has changed, and when it is due next."""
        self._usage = usage
        self._sessions = sessions
        self._emit = emit
        self._schedule = schedule
        self._queues: dict[str, Queue] = {}
        self._overdue: dict[str, list[int]] = {}
        """While a snapshot is read."""

    # --- commands -----------------------------------------------------------------------

    def configure(self, command: ConfigureQueue) -> None:
        options = command.options
        if command.changed is not None:
            known = self._queues.get(command.queue)
            before = QueueOptions() if known is None else known.options
            named = {name: getattr(options, name) for name in command.changed}
            options = msgspec.structs.replace(before, **named)
            check_options(options)  # Each may be what it is, and yet not beside the others.
        queue = self._existing_or_new(command.queue, 0, 0)
        queue.options = options
        self._drop_dead(queue)

    def put(self, command: PutItems, revision: int, now_ms: int) -> ItemsPut:
        size = sum(len(item.payload) + len(item.key) for item in command.items)
        queue = self._existing_or_new(command.queue, len(command.items), size)
        was_ready = queue.ready_count
        ids = []
        for number, item in enumerate(command.items):
            ids.append(revision << _ITEM_BITS | number)
            added = QueueItem(
                ids[-1],
                0,
                item.payload,
                now_ms,
                item.key,
                item.priority,
                now_ms + item.delay_ms,
            )
            queue.add(added, now_ms)
        queue.counts.put += len(ids)
        self._usage.add(quotas.ITEMS, len(ids))
        self._usage.add(quotas.ITEM_BYTES, size)
        self._tell(queue, was_ready, revision)
        return ItemsPut(revision=revision, items=ids)

    def claim(
        self, command: ClaimItems, session: Session, revision: int, now_ms: int
    ) -> ItemsClaimed:
        """Perhaps nothing: a worker may be there before the first item is."""
        queue = self._queues.get(command.queue)
        if queue is None:
            return ItemsClaimed(revision=revision)
        until_ms = now_ms + (command.visibility_ms or queue.options.visibility_ms)
        claimed = queue.claim(command.count, session.session, revision, now_ms, until_ms)
        session.claims.update((queue.name, item.item) for item in claimed)
        if claimed:
            self._schedule(queue.name, queue.next_due_ms())
        return ItemsClaimed(revision=revision, items=claimed)

    def renew(self, command: RenewItems, session: Session, now_ms: int) -> None:
        held, lost = self._claims(command.queue, command.claims, session, now_ms)
        queue = self._queues.get(command.queue)
        if lost or queue is None:
            raise NotHeldError(
                f"queue {quoted(command.queue)}: {count_of(len(lost), 'claim')} of "
                f"{len(command.claims)} lost, the first of item {lost[0]}; none was renewed"
            )
        until_ms = now_ms + (command.visibility_ms or queue.options.visibility_ms)
        for item in held:
            queue.renew(item, until_ms)
        self._schedule(queue.name, queue.next_due_ms())

    def complete(
        self, command: CompleteItems, session: Session, revision: int, now_ms: int
    ) -> ItemsSettled:
        held, lost = self._claims(command.queue, command.claims, session, now_ms)
        queue = self._queues.get(command.queue)
        if queue is not None:
            was_ready = queue.ready_count
            claims = session.claims
            size = 0
            for item in held:
                queue.complete(item, now_ms)
                claims.discard((queue.name, item.item))
                size += item.size_bytes
            self._usage.add(quotas.ITEMS, -len(held))
            self._usage.add(quotas.ITEM_BYTES, -size)
            self._tell(queue, was_ready, revision)
        return ItemsSettled(revision=revision, settled=[i.item for i in held], stale=lost)

    def release(
        self, command: ReleaseItems, session: Session, revision: int, now_ms: int
    ) -> ItemsSettled:
        held, lost = self._claims(command.queue, command.claims, session, now_ms)
        queue = self._queues.get(command.queue)
        if queue is not None:
            was_ready = queue.ready_count
            for item in held:
                if command.dead:
                    queue.bury(item, command.reason, now_ms)
                elif command.uncounted:
                    queue.hand_back(item, now_ms, command.delay_ms or 0)
                else:
                    queue.fail(item, command.reason, now_ms, command.delay_ms)
                self._unclaim(queue, item)
            self._drop_dead(queue)
            self._tell(queue, was_ready, revision)
        return ItemsSettled(revision=revision, settled=[i.item for i in held], stale=lost)

    def redrive(self, command: RedriveItems, revision: int, now_ms: int) -> ItemsSettled:
        """As many as one command may take, the oldest first, if none is named."""
        queue = self._existing(command.queue)
        named = command.items or list(queue.dead)[:ITEMS_PER_COMMAND_MAX]
        was_ready = queue.ready_count
        settled = [item for item in named if queue.redrive(item, now_ms)]
        self._tell(queue, was_ready, revision)
        done = set(settled)
        stale = [item for item in named if item not in done]
        return ItemsSettled(revision=revision, settled=settled, stale=stale)

    def delete(self, command: DeleteQueue) -> None:
        queue = self._existing(command.queue)
        for item in queue.items.values():
            if item.token:
                self._unclaim(queue, item)
            self._forget(item)
        for record in queue.dead.values():
            self._forget(record.item)
        del self._queues[queue.name]
        self._usage.add(quotas.QUEUES, -1)
        self._schedule(queue.name, None)

    def end_session(self, session: Session, revision: int, now_ms: int) -> None:
        """Its claims end like those that ran out."""
        for name, item in sorted(session.claims):
            queue = self._queues[name]
            was_ready = queue.ready_count
            self._fail(queue, queue.items[item], SESSION_LOST, now_ms)
            self._tell(queue, was_ready, revision)

    # --- time ---------------------------------------------------------------------------

    def due_ms(self, name: str) -> int | None:
        queue = self._queues.get(name)
        return None if queue is None else queue.next_due_ms()

    def take_due(self, name: str, revision: int, now_ms: int) -> None:
        """The first thing that this queue waits for has come."""
        queue = self._queues[name]
        was_ready = queue.ready_count
        expired = queue.take_due(now_ms)
        if expired is not None:
            self._fail(queue, expired, NOT_IN_TIME, now_ms)
        self._tell(queue, was_ready, revision)

    # --- questions ----------------------------------------------------------------------

    def statistics(self, name: str, revision: int, now_ms: int, dead: int) -> QueueStatistics:
        return self._existing(name).statistics(revision, now_ms, dead)

    def names(self, start: str, count: int) -> list[str]:
        return heapq.nsmallest(count, (name for name in self._queues if name >= start))

    # --- snapshots ----------------------------------------------------------------------

    def all(self) -> Iterator[Queue]:
        return iter(self._queues.values())

    def begin_restore(self, queue: Queue, overdue: list[int]) -> None:
        """A queue whose items follow in parts; ``finish_restore`` puts them in their places."""
        self._queues[queue.name] = queue
        self._overdue[queue.name] = overdue
        self._usage.add(quotas.QUEUES, 1)

    def restore_items(self, name: str, items: list[QueueItem], dead: list[DeadRecord]) -> None:
        queue = self._queues[name]
        for item in items:
            queue.items[item.item] = item
            if item.token:
                self._sessions[item.session].claims.add((name, item.item))
        for record in dead:
            queue.dead[record.item.item] = record
        for item in (*items, *(record.item for record in dead)):
            self._usage.add(quotas.ITEMS, 1)
            self._usage.add(quotas.ITEM_BYTES, item.size_bytes)

    def finish_restore(self, now_ms: int) -> Iterator[None]:
        """Derive what is no part of a snapshot.  Yields now and then."""
        for name, queue in self._queues.items():
            yield from queue.find_places(self._overdue.get(name, []), now_ms)
            self._schedule(name, queue.next_due_ms())
        self._overdue.clear()

    def check_invariants(self) -> None:
        for queue in self._queues.values():
            queue.check_invariants()
        held = {
            (queue.name, item.item, item.session)
            for queue in self._queues.values()
            for item in queue.items.values()
            if item.token
        }
        known = {(*at, s.session) for s in self._sessions.values() for at in s.claims}
        assert held == known  # C7

    # --- inside -------------------------------------------------------------------------

    def _existing(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            raise UnknownNameError(f"there is no queue {quoted(name)}")
        return queue

    def _existing_or_new(self, name: str, more_items: int, more_bytes: int) -> Queue:
        """The queue, if there is room for what is to come."""
        self._usage.require(quotas.ITEMS, more_items)
        self._usage.require(quotas.ITEM_BYTES, more_bytes)
        queue = self._queues.get(name)
        if queue is None:
            self._usage.require(quotas.QUEUES, 1)
            queue = self._queues[name] = Queue(name, QueueOptions())
            self._usage.add(quotas.QUEUES, 1)
        return queue

    def _claims(
        self, name: str, claims: list[ItemClaim], session: Session, now_ms: int
    ) -> tuple[list[QueueItem], list[int]]:
        """Items whose claims hold, and ids of the others."""
        queue = self._queues.get(name)
        held: list[QueueItem] = []
        lost: list[int] = []
        for claim in claims:
            found = queue and queue.find_claim(claim.item, claim.token, session.session, now_ms)
            if found:
                held.append(found)
            else:
                lost.append(claim.item)
        return held, lost

    def _fail(self, queue: Queue, item: QueueItem, reason: str, now_ms: int) -> None:
        queue.fail(item, reason, now_ms)
        self._unclaim(queue, item)
        self._drop_dead(queue)

    def _unclaim(self, queue: Queue, item: QueueItem) -> None:
        self._sessions[item.session].claims.discard((queue.name, item.item))

    def _drop_dead(self, queue: Queue) -> None:
        while (dropped := queue.drop_oldest_dead()) is not None:
            self._forget(dropped)

    def _forget(self, item: QueueItem) -> None:
        self._usage.add(quotas.ITEMS, -1)
        self._usage.add(quotas.ITEM_BYTES, -item.size_bytes)

    def _tell(self, queue: Queue, was_ready: int, revision: int) -> None:
        """Workers that found nothing are told when there is something again."""
        self._schedule(queue.name, queue.next_due_ms())
        if queue.ready_count and not was_ready:
            self._emit(
                Event(revision=revision, kind="queue", name=queue.name.encode(), change="ready")
            )
