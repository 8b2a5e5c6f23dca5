"""All sessions of one client: opened when first used, kept alive by one small message.

There is one per namespace, and one more for each other time to live that is asked for.  Those of
one partition are renewed together.  A session that another client has left open can be *adopted*,
to settle what was claimed in it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

import anyio

from logd.errors import LogdError, RequestTimeoutError, SessionExpiredError, UsageError
from logd.limits import (
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    SESSIONS_PER_KEEP_ALIVE_MAX,
    TEXT_BYTES_MAX,
)
from logd.types import GroupId
from logd.wire.coordination import CloseSession, Command, Done, Opened, OpenSession, Result
from logd.wire.messages import CoordinateRequest, Message
from logd_client.arguments import require_between
from logd_client.backoff import Backoff
from logd_client.coordination.calls import Calls
from logd_client.coordination.session import RENEWALS_PER_TTL, Session
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC

SESSION_TTL_MS_DEFAULT: Final = 30_000
KEEP_ALIVE_TIMEOUT_S_MAX: Final = 2.0
MINUTE_MS: Final = 60_000
ADOPTERS_WAIT_MINUTES: Final = 10
"""Whoever goes on with a session that its client has left has its answers within so long, and
clocks of machines that do so are no further apart."""

ADOPTED_BITS: Final = 36
"""Of a sequence in such a session, what is drawn; above them are the minutes since 1970."""

ADOPTED_LOWEST: Final = 2**32
"""Drawn at least: no client has come so far in a session of its own."""

MINUTES_MAX: Final = 2 ** (63 - ADOPTED_BITS) - 1

CLOSE_TIMEOUT_S: Final = 2.0
"""How long leaving a client may take to give back what it holds; else it expires."""

_CLOSED: Final = "the client was closed"

R = TypeVar("R", bound=Result)


class Sessions:
    """All sessions of one client, and what keeps them alive."""

    def __init__(self, calls: Calls, client_id: str, ttl_ms: int) -> None:
        require_ttl("session_ttl_ms", ttl_ms)
        self.calls = calls
        self._routing = calls.routing
        self._client_id = client_id.encode()[:TEXT_BYTES_MAX].decode(errors="ignore")
        self._ttl_ms = ttl_ms
        self._sessions: dict[tuple[str, int], Session] = {}
        self._opening: dict[tuple[str, int], anyio.Lock] = {}
        self._renewing: set[GroupId] = set()
        self._wake = anyio.Event()
        self._is_keeping = False
        self._is_closed = False
        self.leaves_open = False
        """Leaving the client closes no session: they expire unless somebody goes on with them."""

    async def get(self, namespace: str, ttl_ms: int | None = None) -> Session:
        """The session of a namespace, opened if there is none.

        Asked for another time to live than the client's, it is one of its own.

        Raises:
            UsageError: the time to live is out of range.
            LogdError: it could not be opened.

        Cancelled, a session may be left that expires by itself.
        """
        key = (namespace, self._ttl_ms if ttl_ms is None else require_ttl("ttl", ttl_ms))
        session = self._sessions.get(key)
        if session is not None and not session.is_lost():
            return session
        async with self._opening.setdefault(key, anyio.Lock()):
            session = self._sessions.get(key)
            if session is None or session.is_lost():
                session = self._sessions[key] = await self._open(*key)
            return session

    async def call(
        self, namespace: str, command: Command, expected: type[R], *, timeout_s: float | None = None
    ) -> R:
        """Have a command carried out in whichever session there is: one that had been lost
        unnoticed is replaced by another, if the command certainly took no effect in it.

        Raises and is cancelled as ``Session.call``.
        """
        session = self._sessions.get((namespace, self._ttl_ms))
        if session is None or session.error is not None:
            session = await self.get(namespace)
        try:
            return await session.call(command, expected, timeout_s=timeout_s)
        except SessionExpiredError as error:
            if error.may_have_applied:
                raise
        session = await self.get(namespace)
        return await session.call(command, expected, timeout_s=timeout_s)

    async def adopt(
        self, namespace: str, session_id: int, *, owner_is_gone: bool = False
    ) -> Session:
        """A session that another process opened, and left open, to settle what it claimed.

        It is not kept alive beyond what is done in it, and not closed.

        Args:
            owner_is_gone: the client that opened it is closed.  Then results are acknowledged,
                those of some minutes ago; else there is room for as many as a session may have.

        Raises:
            UsageError: the id is no session's.
        """
        require_between("session", session_id, 1)
        group = await self.calls.group_of(namespace)
        opened = Opened(revision=session_id, session=session_id, ttl_ms=self._ttl_ms)
        session = Session(self.calls, namespace, group, opened)
        environment = self._routing.environment
        if owner_is_gone:
            chance = environment.identities
            sequence, acknowledged = adopters_place(environment.wall_clock_ms(), chance)
            session.adopt(sequence, acknowledged, place_of_minute(MINUTES_MAX, chance))
        else:
            session.adopt(environment.identities.randrange(ADOPTED_LOWEST, 2**62), 0)
        session.start(self.calls.lease_clock())
        return session

    async def _open(self, namespace: str, ttl_ms: int) -> Session:
        if self._is_closed:
            raise UsageError("the client is closed: make another one with connect(...)")
        token = self._routing.environment.identities.randbytes(16)
        sent_at: list[float] = []
        command = OpenSession(token=token, ttl_ms=ttl_ms, client=self._client_id)

        def request(group: GroupId, timeout_ms: int) -> Message:
            sent_at.append(self.calls.lease_clock())
            return CoordinateRequest(group=group, namespace=namespace, timeout_ms=timeout_ms)

        opened = await self.calls.command(namespace, command, request)
        assert isinstance(opened, Opened)
        group = await self.calls.group_of(namespace)
        session = Session(self.calls, namespace, group, opened)
        session.start(sent_at[0])
        session.check()
        if self._is_closed:  # Meanwhile: nobody would renew it.
            raise UsageError(_CLOSED)
        self._keep_soon()
        return session

    def _keep_soon(self) -> None:
        self._wake.set()
        if not self._is_keeping:
            self._is_keeping = True
            self._routing.tasks.start_soon(self._keep)

    # --- keeping them alive -------------------------------------------------------------

    def _alive(self) -> list[Session]:
        for key, session in list(self._sessions.items()):
            if session.is_lost():
                del self._sessions[key]
        return list(self._sessions.values())

    async def _keep(self) -> None:
        """Renew what is due, and notice what is lost, for as long as the client is open."""
        while True:
            self._wake = anyio.Event()
            alive = self._alive()
            now = self.calls.lease_clock()
            for session in alive:
                if session.renew_at <= now and session.group not in self._renewing:
                    self._renewing.add(session.group)
                    self._routing.tasks.start_soon(self._renew, session.group)
            times = [session.deadline for session in alive]
            times += [s.renew_at for s in alive if s.group not in self._renewing]
            with anyio.move_on_after(max(min(times) - now, 0.001) if times else None):
                await self._wake.wait()

    async def _renew(self, group: GroupId) -> None:
        """Renew all sessions of one partition, however many attempts it takes."""
        backoff = Backoff(self._routing.environment.rng)
        patience = 1
        try:
            while sessions := [one for one in self._alive() if one.group == group]:
                sent_at = self.calls.lease_clock()
                try:
                    expired = await self._renew_once(group, sessions, patience)
                except LogdError as error:
                    if isinstance(error, RequestTimeoutError):
                        patience *= 2  # It may be slow and not gone.
                    for session in sessions:
                        session.trouble = error
                    await self._look_again(group, backoff)
                    continue
                for session in sessions:
                    if session.id in expired:
                        session.lose(
                            SessionExpiredError(f"session {session.id} has expired at the broker")
                        )
                    else:
                        session.renewed(sent_at)
                return
        finally:
            self._renewing.discard(group)
            self._wake.set()

    async def _renew_once(self, group: GroupId, sessions: list[Session], patience: int) -> set[int]:
        shortest_s = min(session.ttl_s for session in sessions)
        timeout_s = min(shortest_s / (2 * RENEWALS_PER_TTL), KEEP_ALIVE_TIMEOUT_S_MAX) * patience
        ids = [session.id for session in sessions]
        expired: set[int] = set()
        for at in range(0, len(ids), SESSIONS_PER_KEEP_ALIVE_MAX):
            part = ids[at : at + SESSIONS_PER_KEEP_ALIVE_MAX]
            expired.update(await self.calls.keep_alive(group, part, timeout_s))
        return expired

    async def _look_again(self, group: GroupId, backoff: Backoff) -> None:
        await anyio.sleep(backoff.next_delay_s())
        failures = min(backoff.failures, FAILURES_BEFORE_DOUBTING_THE_TOPIC - 1)
        suspect = self._routing.view.leader(group)
        try:
            await self.calls.look_again(group, failures, suspect)
        except LogdError:
            return  # The next attempt will say what is wrong.

    # --- the end ------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Give back all that is held.  Bounded, also if no broker answers: then it expires.

        Whatever became of that, what hangs on a session here is lost: nobody renews it any more.
        """
        if self._is_closed:
            return
        self._is_closed = True
        sessions = self._alive()
        self._sessions.clear()
        try:
            if not self.leaves_open:
                await self._close_all(sessions)
        finally:
            for session in sessions:
                session.lose(UsageError(_CLOSED))

    async def _close_all(self, sessions: Sequence[Session]) -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(self._close, session)

    async def _close(self, session: Session) -> None:
        try:
            closing = await session.prepare(CloseSession())
            session.lose(UsageError(_CLOSED))
            await closing.result(Done, timeout_s=CLOSE_TIMEOUT_S)
        except LogdError:
            return  # It is gone, or will expire.


def adopters_place(now_ms: int, chance: random.Random) -> tuple[int, int]:
    """Where the sequences of a process begin that goes on with a session which its client has
    left, and what it acknowledges.

    Any number may do so, one after the other and at the same time, and know nothing of each other.
    So their sequences begin with the time, and each acknowledges what is too old to be waited for.
    One whose clock is behind by more than that is refused, nothing of it is done, and it asks again
    from a place in the last minute of all, which nobody acknowledges: there is room for as many of
    these as a session may have results.
    """
    minutes = min(max(now_ms // MINUTE_MS, 0), MINUTES_MAX)
    acknowledged = max(minutes - ADOPTERS_WAIT_MINUTES, 0) << ADOPTED_BITS
    return place_of_minute(minutes, chance), acknowledged


def place_of_minute(minutes: int, chance: random.Random) -> int:
    """A sequence that nobody else draws in that minute."""
    return (minutes << ADOPTED_BITS) + chance.randrange(ADOPTED_LOWEST, 2**ADOPTED_BITS)


def require_ttl(name: str, ttl_ms: object) -> int:
    """``ttl_ms`` itself.

    Raises:
        UsageError: says which times are possible.
    """
    require_between(name, ttl_ms, SESSION_TTL_MS_MIN, SESSION_TTL_MS_MAX)
    assert isinstance(ttl_ms, int)
    return ttl_ms
