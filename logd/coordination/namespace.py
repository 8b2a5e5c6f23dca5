"""One namespace: its sessions, and everything that they hold.

A session that ends gives back what it holds in this order, all at one revision: claims of items,
places at locks, memberships with their shards, keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, assert_never

from logd.coordination import quotas
from logd.coordination.assignments import Assignments
from logd.coordination.events import EventRing
from logd.coordination.keys import KeySpace
from logd.coordination.locks import Locks
from logd.coordination.members import Groups
from logd.coordination.quotas import PartitionUsage, Usage
from logd.coordination.sessions import Session, forget_results
from logd.coordination.timers import Place
from logd.coordination.work import Work
from logd.errors import InvalidRequestError, UnsupportedVersionError
from logd.limits import NAMES_PER_ANSWER_MAX
from logd.types import Offset
from logd.wire.coordination import (
    Acquire,
    Answer,
    Assign,
    ClaimItems,
    Command,
    CompleteItems,
    ConfigureQueue,
    DeleteQueue,
    Done,
    Event,
    HandOver,
    Join,
    Kind,
    Leave,
    LetGo,
    ListNames,
    Names,
    Opened,
    OpenSession,
    Proclaim,
    PutItems,
    Query,
    ReadAssignment,
    ReadClaim,
    ReadKeys,
    ReadLock,
    ReadMembers,
    ReadQueue,
    ReadSessions,
    RedriveItems,
    Release,
    ReleaseItems,
    RenewItems,
    ReportLoad,
    Result,
    SessionInfo,
    Sessions,
    Transact,
)


class Namespace:
    """What one namespace holds, and how commands and questions reach it."""

    def __init__(
        self,
        name: str,
        partition: PartitionUsage,
        oldest_event: Offset,
        emit: Callable[[tuple[str, Event]], None],
        schedule: Callable[[Place, int | None], None],
    ) -> None:
        """``emit`` and ``schedule`` are told of this namespace's events, and of what is due."""
        self.name = name
        self.ring = EventRing(oldest_event)
        self._emit_outside = emit
        self._schedule_outside = schedule
        self.usage = Usage(partition)
        self.sessions: dict[int, Session] = {}
        self._tokens: dict[bytes, int] = {}
        self.keys = KeySpace(self.usage, self.sessions, self._emit)
        self.locks = Locks(self.usage, self.sessions, self._emit)
        self.groups = Groups(self.usage, self.sessions, self._emit, self._on_members_changed)
        self.assignments = Assignments(self.usage, self._emit, self.groups.session_of)
        self.work = Work(self.usage, self.sessions, self._emit, self._schedule)

    @property
    def is_empty(self) -> bool:
        return self.usage.is_empty

    # --- sessions -----------------------------------------------------------------------

    def open(self, command: OpenSession, revision: int, time_ms: int) -> Opened:
        known = self._tokens.get(command.token)
        if known is not None:
            return Opened(revision=revision, session=known, ttl_ms=self.sessions[known].ttl_ms)
        self.usage.require(quotas.SESSIONS, 1)
        session = Session(
            revision,
            token=command.token,
            client=command.client,
            ttl_ms=command.ttl_ms,
            opened_ms=time_ms,
        )
        self.add_session(session)
        return Opened(revision=revision, session=revision, ttl_ms=command.ttl_ms)

    def add_session(self, session: Session) -> None:
        self.sessions[session.session] = session
        self._tokens[session.token] = session.session
        self.usage.add(quotas.SESSIONS, 1)

    def end_session(self, session: Session, revision: int, time_ms: int) -> None:
        """Give back all that it holds."""
        self.work.end_session(session, revision, time_ms)
        self.locks.end_session(session, revision, time_ms)
        self.groups.end_session(session, revision)
        self.keys.end_session(session, revision)
        assert not session.holds
        forget_results(session, self.usage)
        del self.sessions[session.session]
        del self._tokens[session.token]
        self.usage.add(quotas.SESSIONS, -1)

    def check_invariants(self) -> None:
        """What must hold between any two entries; for tests and the simulator."""
        self.keys.check_invariants()
        self.locks.check_invariants()
        self.groups.check_invariants()
        self.assignments.check_invariants(self.groups.members)
        self.work.check_invariants()
        assert self.usage.count(quotas.SESSIONS) == len(self.sessions)

    # --- commands and questions ---------------------------------------------------------

    def execute(self, command: Command, session: Session, revision: int, time_ms: int) -> Result:
        """Carry out a command of a session.

        Raises:
            RequestError: it is refused, and nothing has changed.
        """
        execute = _EXECUTE.get(type(command))
        if execute is None:
            raise UnsupportedVersionError(f"{type(command).__name__} is not a session's command")
        return execute(self, command, session, revision, time_ms)

    def answer(self, query: Query, revision: int, time_ms: int) -> Answer:
        match query:
            case ReadKeys():
                return self.keys.read(query.get, revision)
            case ReadClaim():
                return self.locks.claim(query.kind, query.name, query.ticket, revision)
            case ReadLock():
                return self.locks.holders(query.kind, query.name, revision)
            case ReadMembers():
                return self.groups.described(query.group, revision)
            case ReadAssignment():
                return self.assignments.described(query.group, revision)
            case ReadQueue():
                return self.work.statistics(query.queue, revision, time_ms, query.dead)
            case ListNames():
                return self._names(query, revision)
            case ReadSessions():
                return self._sessions(revision)
            case _:
                assert_never(query)

    def _names(self, query: ListNames, revision: int) -> Names:
        asked = NAMES_PER_ANSWER_MAX + 1
        found = self._first_names(query.kind, query.start, asked)
        following = found[-1] if len(found) == asked else None
        return Names(revision=revision, names=found[:NAMES_PER_ANSWER_MAX], next=following)

    def _first_names(self, kind: Kind, start: str, count: int) -> list[str]:
        match kind:
            case "lock" | "semaphore" | "election":
                return self.locks.names(kind, start, count)
            case "member":
                return self.groups.names(start, count)
            case "assignment":
                return self.assignments.names(start, count)
            case "queue":
                return self.work.names(start, count)
            case "key":
                raise InvalidRequestError("keys are no names: read a range of them")

    def _sessions(self, revision: int) -> Sessions:
        return Sessions(
            revision=revision,
            sessions=[
                SessionInfo(
                    session=session.session,
                    client=session.client,
                    ttl_ms=session.ttl_ms,
                    opened_ms=session.opened_ms,
                    holds=session.holds,
                )
                for session in self.sessions.values()
            ],
        )

    def _on_members_changed(self, group: str, members: list[str], revision: int) -> None:
        self.assignments.spread(group, members, revision)

    def _schedule(self, queue: str, due_ms: int | None) -> None:
        self._schedule_outside((self.name, queue), due_ms)

    def _emit(self, event: Event) -> None:
        self.ring.append(event)
        self._emit_outside((self.name, event))


# --- commands to what carries them out ----------------------------------------------------


def _transact(
    space: Namespace, command: Transact, session: Session, revision: int, time_ms: int
) -> Result:
    return space.keys.transact(command, session.session, revision)


def _acquire(
    space: Namespace, command: Acquire, session: Session, revision: int, time_ms: int
) -> Result:
    return space.locks.acquire(command, session, revision, time_ms)


def _release(
    space: Namespace, command: Release, session: Session, revision: int, time_ms: int
) -> Result:
    space.locks.release(command, session, revision, time_ms)
    return Done(revision=revision)


def _proclaim(
    space: Namespace, command: Proclaim, session: Session, revision: int, time_ms: int
) -> Result:
    space.locks.proclaim(command, session, revision)
    return Done(revision=revision)


def _hand_over(
    space: Namespace, command: HandOver, session: Session, revision: int, time_ms: int
) -> Result:
    space.locks.hand_over(command, session, revision, time_ms)
    return Done(revision=revision)


def _join(space: Namespace, command: Join, session: Session, revision: int, time_ms: int) -> Result:
    space.groups.join(command, session, revision)
    return Done(revision=revision)


def _leave(
    space: Namespace, command: Leave, session: Session, revision: int, time_ms: int
) -> Result:
    space.groups.leave(command, session, revision)
    return Done(revision=revision)


def _assign(
    space: Namespace, command: Assign, session: Session, revision: int, time_ms: int
) -> Result:
    space.assignments.assign(command, space.groups.members(command.group), revision)
    return Done(revision=revision)


def _let_go(
    space: Namespace, command: LetGo, session: Session, revision: int, time_ms: int
) -> Result:
    space.groups.check_own(command.group, command.member, session)
    space.assignments.let_go(command, revision)
    return Done(revision=revision)


def _report_load(
    space: Namespace, command: ReportLoad, session: Session, revision: int, time_ms: int
) -> Result:
    space.groups.check_own(command.group, command.member, session)
    space.assignments.report(command)
    return Done(revision=revision)


def _configure_queue(
    space: Namespace, command: ConfigureQueue, session: Session, revision: int, time_ms: int
) -> Result:
    space.work.configure(command)
    return Done(revision=revision)


def _put_items(
    space: Namespace, command: PutItems, session: Session, revision: int, time_ms: int
) -> Result:
    return space.work.put(command, revision, time_ms)


def _claim_items(
    space: Namespace, command: ClaimItems, session: Session, revision: int, time_ms: int
) -> Result:
    return space.work.claim(command, session, revision, time_ms)


def _renew_items(
    space: Namespace, command: RenewItems, session: Session, revision: int, time_ms: int
) -> Result:
    space.work.renew(command, session, time_ms)
    return Done(revision=revision)


def _complete_items(
    space: Namespace, command: CompleteItems, session: Session, revision: int, time_ms: int
) -> Result:
    return space.work.complete(command, session, revision, time_ms)


def _release_items(
    space: Namespace, command: ReleaseItems, session: Session, revision: int, time_ms: int
) -> Result:
    return space.work.release(command, session, revision, time_ms)


def _redrive_items(
    space: Namespace, command: RedriveItems, session: Session, revision: int, time_ms: int
) -> Result:
    return space.work.redrive(command, revision, time_ms)


def _delete_queue(
    space: Namespace, command: DeleteQueue, session: Session, revision: int, time_ms: int
) -> Result:
    space.work.delete(command)
    return Done(revision=revision)


_EXECUTE: Final[dict[type, Callable[[Namespace, Any, Session, int, int], Result]]] = {
    Transact: _transact,
    Acquire: _acquire,
    Release: _release,
    Proclaim: _proclaim,
    HandOver: _hand_over,
    Join: _join,
    Leave: _leave,
    Assign: _assign,
    LetGo: _let_go,
    ReportLoad: _report_load,
    ConfigureQueue: _configure_queue,
    PutItems: _put_items,
    ClaimItems: _claim_items,
    RenewItems: _renew_items,
    CompleteItems: _complete_items,
    ReleaseItems: _release_items,
    RedriveItems: _redrive_items,
    DeleteQueue: _delete_queue,
}
