"""Locks, semaphores and elections: one queue of tickets each.

They differ in what may be held at once, and in nothing else: an exclusive lock and an election by
one, a shared lock by many readers, a semaphore by as many as have permits.  Whoever asks is behind
all who asked before and wait: no reader overtakes a waiting writer, no small request of a semaphore
a large one, so nobody starves.

A ticket is the revision of its Acquire.  Its token is the revision of the command that granted
it: revisions grow, so tokens of a name do, also if the name was free, and unknown here, between.

Invariants, asserted by ``check_invariants``:

C1  A lock is held by one exclusive ticket, or by shared ones; a semaphore by no more permits than
    it has; an election by one.
C2  Who waits at the head cannot be granted: nothing is free that somebody is waiting for.
C3  Tickets are of sessions that live, and the sessions know them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal

import msgspec

from logd.coordination import quotas
from logd.coordination.names import quoted
from logd.coordination.quotas import Usage
from logd.coordination.sessions import Session
from logd.errors import ConflictError, NotHeldError, WouldWaitError
from logd.limits import HOLDERS_PER_ANSWER_MAX
from logd.wire.coordination import (
    Acquire,
    Claim,
    Event,
    HandOver,
    Holder,
    Holders,
    LockMode,
    Proclaim,
    Release,
)

LockKind = Literal["lock", "semaphore", "election"]


class Ticket(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A place at a lock.  Replaced when it is granted; also how a snapshot keeps it."""

    ticket: int
    session: int
    since_ms: int
    token: int | None = None
    mode: LockMode = "exclusive"
    permits: int = 1
    data: bytes = b""


class Lock:
    """Who holds and who waits.  There is one only while somebody does."""

    __slots__ = ("capacity", "held_permits", "holders", "kind", "name", "waiting")

    def __init__(self, kind: LockKind, name: str, capacity: int) -> None:
        self.kind = kind
        self.name = name
        self.capacity = capacity
        self.holders: dict[int, Ticket] = {}
        self.waiting: OrderedDict[int, Ticket] = OrderedDict()
        self.held_permits = 0

    @property
    def is_free(self) -> bool:
        return not self.holders and not self.waiting

    def admits(self, ticket: Ticket) -> bool:
        """It can be granted beside those who hold, if nobody is before it."""
        if not self.holders:
            return True
        if self.kind == "semaphore":
            return self.held_permits + ticket.permits <= self.capacity
        if ticket.mode == "exclusive":
            return False
        # One holder tells the mode of all: an exclusive one is alone.
        return next(iter(self.holders.values())).mode == "shared"

    def find(self, ticket: int) -> Ticket | None:
        return self.holders.get(ticket) or self.waiting.get(ticket)

    def hold(self, ticket: Ticket) -> None:
        self.holders[ticket.ticket] = ticket
        self.held_permits += ticket.permits

    def remove(self, ticket: int) -> Ticket:
        held = self.holders.pop(ticket, None)
        if held is None:
            return self.waiting.pop(ticket)
        self.held_permits -= held.permits
        return held

    def position(self, ticket: int) -> int:
        """How many hold or wait before one that waits."""
        before = next(at for at, waiting in enumerate(self.waiting) if waiting == ticket)
        return len(self.holders) + before


class Locks:
    """Those of one namespace."""

    def __init__(
        self, usage: Usage, sessions: Mapping[int, Session], emit: Callable[[Event], None]
    ) -> None:
        self._usage = usage
        self._sessions = sessions
        self._emit = emit
        self._locks: dict[tuple[str, str], Lock] = {}

    # --- commands -----------------------------------------------------------------------

    def acquire(self, command: Acquire, session: Session, revision: int, time_ms: int) -> Claim:
        at = (command.kind, command.name)
        lock = self._locks.get(at) or Lock(command.kind, command.name, _capacity(command))
        ticket = Ticket(
            revision,
            session.session,
            time_ms,
            None,
            command.mode,
            command.permits,
            command.data,
        )
        self._check_acquire(lock, command, ticket)
        self._locks[at] = lock
        self._count(ticket, 1)
        session.tickets[revision] = at
        if not lock.waiting and lock.admits(ticket):
            self._grant(lock, ticket, revision, time_ms)
            return Claim(revision=revision, ticket=revision, token=revision)
        position = len(lock.holders) + len(lock.waiting)
        lock.waiting[revision] = ticket
        return Claim(revision=revision, ticket=revision, position=position)

    def release(self, command: Release, session: Session, revision: int, time_ms: int) -> None:
        lock, _ = self._own(command.kind, command.name, command.ticket, session)
        self._remove(lock, command.ticket, revision)
        self._settle(lock, revision, time_ms)

    def proclaim(self, command: Proclaim, session: Session, revision: int) -> None:
        lock, found = self._own("election", command.name, command.ticket, session)
        self._usage.require(quotas.DATA_BYTES, len(command.data) - len(found.data))
        self._usage.add(quotas.DATA_BYTES, len(command.data) - len(found.data))
        changed = msgspec.structs.replace(found, data=command.data)
        if found.token is None:
            lock.waiting[command.ticket] = changed
        else:
            lock.holders[command.ticket] = changed
        self._tell(lock, changed, "data", revision)

    def hand_over(self, command: HandOver, session: Session, revision: int, time_ms: int) -> None:
        lock, found = self._own("election", command.name, command.ticket, session)
        if found.token is None:
            raise NotHeldError(
                f"candidate {command.ticket} of election {quoted(command.name)} does not lead"
            )
        to = next(iter(lock.waiting), None) if command.to is None else command.to
        heir = None if to is None else lock.waiting.get(to)
        if heir is None:
            raise ConflictError(
                f"no candidate {'waits' if to is None else f'{to} waits'} "
                f"in election {quoted(command.name)}: nobody to hand over to"
            )
        self._remove(lock, command.ticket, revision)
        del lock.waiting[heir.ticket]
        self._grant(lock, heir, revision, time_ms)

    def end_session(self, session: Session, revision: int, time_ms: int) -> None:
        """All its places go before anybody is granted what they held: it is granted nothing."""
        touched: dict[tuple[str, str], Lock] = {}
        for ticket, at in sorted(session.tickets.items()):
            touched[at] = self._locks[at]
            self._remove(touched[at], ticket, revision)
        for at in sorted(touched):
            self._settle(touched[at], revision, time_ms)

    # --- questions ----------------------------------------------------------------------

    def claim(self, kind: LockKind, name: str, ticket: int, revision: int) -> Claim:
        lock = self._locks.get((kind, name))
        found = lock.find(ticket) if lock else None
        if lock is None or found is None:
            raise _not_held(kind, name, ticket)
        if found.token is not None:
            return Claim(revision=revision, ticket=ticket, token=found.token)
        return Claim(revision=revision, ticket=ticket, position=lock.position(ticket))

    def waits(self, kind: LockKind, name: str, ticket: int) -> bool:
        lock = self._locks.get((kind, name))
        return lock is not None and ticket in lock.waiting

    def holders(self, kind: LockKind, name: str, revision: int) -> Holders:
        """As many as an answer takes of each, in order."""
        lock = self._locks.get((kind, name))
        if lock is None:
            return Holders(revision=revision)
        return Holders(
            revision=revision,
            holders=self._described(lock.holders.values()),
            waiting=self._described(lock.waiting.values()),
            capacity=lock.capacity,
        )

    def names(self, kind: str, start: str, count: int) -> list[str]:
        """The first of those from ``start`` on."""
        return heapq.nsmallest(
            count, (name for of, name in self._locks if of == kind and name >= start)
        )

    # --- snapshots ----------------------------------------------------------------------

    def all(self) -> Iterator[Lock]:
        return iter(self._locks.values())

    def restore(self, lock: Lock, holders: Iterable[Ticket], waiting: Iterable[Ticket]) -> None:
        at = (lock.kind, lock.name)
        self._locks[at] = lock
        for ticket in holders:
            lock.hold(ticket)
        for ticket in waiting:
            lock.waiting[ticket.ticket] = ticket
        for ticket in (*lock.holders.values(), *lock.waiting.values()):
            self._sessions[ticket.session].tickets[ticket.ticket] = at
            self._count(ticket, 1)

    def check_invariants(self) -> None:
        for at, lock in self._locks.items():
            modes = [ticket.mode for ticket in lock.holders.values()]
            held = sum(ticket.permits for ticket in lock.holders.values())
            assert held == lock.held_permits
            if lock.kind == "semaphore":
                assert held <= lock.capacity  # C1
            else:
                assert len(modes) <= 1 or set(modes) == {"shared"}  # C1
            for head in islice(lock.waiting.values(), 1):
                assert not lock.admits(head)  # C2
            for ticket in (*lock.holders.values(), *lock.waiting.values()):
                assert self._sessions[ticket.session].tickets[ticket.ticket] == at  # C3

    # --- inside -------------------------------------------------------------------------

    def _check_acquire(self, lock: Lock, command: Acquire, ticket: Ticket) -> None:
        if command.kind == "semaphore" and command.capacity != lock.capacity:
            raise ConflictError(
                f"semaphore {quoted(command.name)} has {lock.capacity} permits while it is used, "
                f"not {command.capacity}"
            )
        if not command.queue and (lock.waiting or not lock.admits(ticket)):
            raise WouldWaitError(
                f"{command.kind} {quoted(command.name)} is held: {len(lock.holders)} hold, "
                f"{len(lock.waiting)} wait"
            )
        self._usage.require(quotas.TICKETS, 1)
        self._usage.require(quotas.DATA_BYTES, len(command.data))

    def _own(self, kind: LockKind, name: str, ticket: int, session: Session) -> tuple[Lock, Ticket]:
        """The lock and ticket, which must be the session's."""
        lock = self._locks.get((kind, name))
        found = lock.find(ticket) if lock else None
        if lock is None or found is None or found.session != session.session:
            raise _not_held(kind, name, ticket)
        return lock, found

    def _remove(self, lock: Lock, ticket: int, revision: int) -> None:
        removed = lock.remove(ticket)
        self._count(removed, -1)
        del self._sessions[removed.session].tickets[ticket]
        if removed.token is not None:
            self._tell(lock, removed, "released", revision)

    def _settle(self, lock: Lock, revision: int, time_ms: int) -> None:
        """Grant what has become free to those at the head; forget a lock that nobody wants."""
        while lock.waiting:
            ticket = next(iter(lock.waiting.values()))
            if not lock.admits(ticket):
                break
            del lock.waiting[ticket.ticket]
            self._grant(lock, ticket, revision, time_ms)
        if lock.is_free:
            del self._locks[lock.kind, lock.name]

    def _grant(self, lock: Lock, ticket: Ticket, revision: int, time_ms: int) -> None:
        granted = Ticket(
            ticket.ticket,
            ticket.session,
            time_ms,
            revision,
            ticket.mode,
            ticket.permits,
            ticket.data,
        )
        lock.hold(granted)
        self._tell(lock, granted, "granted", revision)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self._usage.add(quotas.TICKETS, sign)
        if ticket.data:
            self._usage.add(quotas.DATA_BYTES, sign * len(ticket.data))

    def _tell(self, lock: Lock, ticket: Ticket, change: str, revision: int) -> None:
        self._emit(
            Event(
                revision=revision,
                kind=lock.kind,
                name=lock.name.encode(),
                change=change,
                value=ticket.data,
                ticket=ticket.ticket,
                token=ticket.token or 0,
                session=ticket.session,
            )
        )

    def _described(self, tickets: Iterable[Ticket]) -> list[Holder]:
        return [
            Holder(
                ticket=ticket.ticket,
                token=ticket.token,
                session=ticket.session,
                client=self._sessions[ticket.session].client,
                since_ms=ticket.since_ms,
                mode=ticket.mode,
                permits=ticket.permits,
                data=ticket.data,
            )
            for ticket in islice(tickets, HOLDERS_PER_ANSWER_MAX)
        ]


def _capacity(command: Acquire) -> int:
    return command.capacity or 1


def _not_held(kind: str, name: str, ticket: int) -> NotHeldError:
    return NotHeldError(
        f"{kind} {quoted(name)}: ticket {ticket} is not, or no longer, held by this session"
    )
