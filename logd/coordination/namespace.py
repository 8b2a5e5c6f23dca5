"""One namespace: its sessions, and everything that they hold.

A session that ends gives back what it holds in this order, all at one revision: claims of items,
places at locks, memberships with their shards, keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from logd.coordination import quotas
from logd.coordination.events import EventRing
from logd.coordination.keys import KeySpace
from logd.coordination.locks import Locks
from logd.coordination.quotas import PartitionUsage, Usage
from logd.coordination.sessions import Session, forget_results
from logd.errors import InvalidRequestError, UnsupportedVersionError
from logd.limits import NAMES_PER_ANSWER_MAX
from logd.types import Offset
from logd.wire.coordination import (
    Acquire,
    Answer,
    Command,
    Done,
    Event,
    HandOver,
    ListNames,
    Names,
    Opened,
    OpenSession,
    Proclaim,
    Query,
    ReadClaim,
    ReadKeys,
    ReadLock,
    ReadSessions,
    Release,
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
    ) -> None:
        self.name = name
        self.ring = EventRing(oldest_event)
        self._emit_outside = emit
        self.usage = Usage(partition)
        self.sessions: dict[int, Session] = {}
        self._tokens: dict[bytes, int] = {}
        self.keys = KeySpace(self.usage, self.sessions, self._emit)
        self.locks = Locks(self.usage, self.sessions, self._emit)

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
        self.locks.end_session(session, revision, time_ms)
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
            case ListNames():
                return self._names(query, revision)
            case ReadSessions():
                return self._sessions(revision)
            case _:
                raise UnsupportedVersionError(f"{type(query).__name__} is no question")

    def _names(self, query: ListNames, revision: int) -> Names:
        asked = NAMES_PER_ANSWER_MAX + 1
        match query.kind:
            case "lock" | "semaphore" | "election":
                found = self.locks.names(query.kind, query.start, asked)
            case _:
                raise InvalidRequestError("keys are no names: read a range of them")
        following = found[-1] if len(found) == asked else None
        return Names(revision=revision, names=found[:NAMES_PER_ANSWER_MAX], next=following)

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


_EXECUTE: Final[dict[type, Callable[[Namespace, Any, Session, int, int], Result]]] = {
    Transact: _transact,
    Acquire: _acquire,
    Release: _release,
    Proclaim: _proclaim,
    HandOver: _hand_over,
}
