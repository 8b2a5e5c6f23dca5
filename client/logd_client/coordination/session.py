"""Sessions: one per client and namespace, kept alive by one small message.

All that a client holds in a namespace hangs on its session: locks, candidacies, memberships,
ephemeral keys, claims.  The brokers let a session go when nothing was heard of it for its time
to live.  The client has to know before they do, so it counts from when it *sent* the last
renewal that was acknowledged, on a monotonic clock that goes on while the machine is suspended,
and gives up at ``SAFE_SHARE`` of the time to live: clocks that run a little faster or slower do
not matter then, and what depends on the session is cancelled before anybody else can be given
it.  What no counting can exclude, a process that stands still in the middle of a write, is the
fencing token's business.

Once lost, a session stays lost, also if the brokers would still renew it: what hung on it has
been told.  The next use opens another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType
from typing import Final, TypeVar

import anyio

from logd.errors import LogdError, RequestTimeoutError, SessionExpiredError, UsageError
from logd.limits import (
    RESULTS_PER_SESSION_MAX,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    TEXT_BYTES_MAX,
)
from logd.types import GroupId
from logd.wire.coordination import CloseSession, Command, Done, Opened, OpenSession, Result
from logd.wire.messages import CoordinateRequest, Message
from logd_client.arguments import require_between
from logd_client.backoff import Backoff
from logd_client.coordination.calls import Calls
from logd_client.event_loop import Event, new_event, new_scope
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC

SESSION_TTL_MS_DEFAULT: Final = 30_000
SAFE_SHARE: Final = 0.8
"""Of the time to live, what the client counts on."""

RENEWALS_PER_TTL: Final = 3
KEEP_ALIVE_TIMEOUT_S_MAX: Final = 2.0
SESSIONS_PER_KEEP_ALIVE: Final = 4096
WINDOW: Final = 1_000
"""How far the newest command may be ahead of the oldest that is not answered."""

# So the brokers never keep more results: each command says which of them are here.
assert WINDOW <= RESULTS_PER_SESSION_MAX

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

# A lost renewal can be repeated before the session is given up.
assert 2 / RENEWALS_PER_TTL < SAFE_SHARE < 1

R = TypeVar("R", bound=Result)
OnLoss = Callable[[LogdError], None]


class Session:
    """One session.  Made by ``Sessions.get``."""

    def __init__(self, calls: Calls, namespace: str, group: GroupId, opened: Opened) -> None:
        self.calls = calls
        self.namespace = namespace
        self.group = group
        self.id = opened.session
        self.ttl_s = opened.ttl_ms / 1000
        self.error: LogdError | None = None
        """Why it is lost, if it is."""
        self._on_loss: dict[object, OnLoss] = {}
        """What has to end with it."""
        self.trouble: LogdError | None = None
        """What stood in the way of the last renewal."""
        self._renewed_at = 0.0
        self._next_sequence = 1
        self._unanswered: dict[int, None] = {}
        """Sequences in increasing order."""
        self._waiting: dict[Event, None] = {}
        """Those whose command has no place yet, in order."""
        self._promised = 0
        """Places of those who were woken and have not come yet."""
        self._acknowledged_elsewhere: int | None = None
        """Of a session that another client opened: what it acknowledges instead."""
        self.unsettled: dict[object, anyio.Event] = {}
        """What is still being given back, after its caller has gone on."""

    # --- how long it lasts ----------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When it is to be given up, unless it is renewed before."""
        return self._renewed_at + self.ttl_s * SAFE_SHARE

    @property
    def renew_at(self) -> float:
        return self._renewed_at + self.ttl_s / RENEWALS_PER_TTL

    def start(self, sent_at: float) -> None:
        """It was asked for at ``sent_at``, the first time."""
        self._renewed_at = sent_at

    def renewed(self, sent_at: float) -> None:
        """A renewal that was sent at ``sent_at`` was acknowledged."""
        if not self.is_lost():
            self._renewed_at = max(self._renewed_at, sent_at)
            self.trouble = None

    def is_lost(self) -> bool:
        """Whether it is lost, judged by the clock and not by when its keeper last had its turn."""
        if self.error is None and self.calls.lease_clock() >= self.deadline:
            reason = "" if self.trouble is None else f"; the last attempt met: {self.trouble}"
            self.lose(
                SessionExpiredError(
                    f"session {self.id} was not renewed for "
                    f"{self.calls.lease_clock() - self._renewed_at:.1f} s, its time to live is "
                    f"{self.ttl_s:g} s{reason}"
                )
            )
        return self.error is not None

    def lose(self, error: LogdError) -> None:
        """Tell all that depends on it.  The first call counts."""
        if self.error is not None:
            return
        self.error = error
        dependants, self._on_loss = self._on_loss, {}
        for on_loss in dependants.values():
            on_loss(error)
        for turn in self._waiting:
            turn.set()

    def call_on_loss(self, dependant: object, on_loss: OnLoss) -> None:
        """``on_loss`` is called once, when it is lost: now, if it is.

        Whoever begins to depend on it has just had an answer, and may have had it late.
        """
        if self.is_lost():
            assert self.error is not None
            on_loss(self.error)
        else:
            self._on_loss[dependant] = on_loss

    def forget_dependant(self, dependant: object) -> None:
        """It does not depend on the session any more."""
        self._on_loss.pop(dependant, None)

    def check(self) -> None:
        """Raise why it is lost, if it is."""
        if self.is_lost():
            assert self.error is not None
            raise self.error.with_traceback(None)

    def scope(self) -> AbstractContextManager[None]:
        """The body is cancelled when the session is lost; then why is raised."""
        return _SessionScope(self)

    # --- commands -----------------------------------------------------------------------

    @property
    def acknowledged(self) -> int:
        """The results of all sequences below are here."""
        if self._acknowledged_elsewhere is not None:
            return self._acknowledged_elsewhere
        return next(iter(self._unanswered), self._next_sequence)

    def adopt(self, first_sequence: int, acknowledged: int) -> None:
        """Another client opened it, and others may go on with it at the same time: sequences
        begin far from theirs, and no result is acknowledged that one of them may wait for."""
        assert acknowledged < first_sequence
        self._next_sequence = first_sequence
        self._acknowledged_elsewhere = acknowledged

    async def call(
        self, command: Command, expected: type[R], *, timeout_s: float | None = None
    ) -> R:
        """Have a command carried out, once.

        Raises:
            SessionExpiredError: the session is lost.
            LogdError: as ``Calls.command``.

        Cancelled, it may still be carried out.
        """
        self.check()
        pending = self._place(command) if self._places_left > 0 else await self.prepare(command)
        try:
            return await pending.result(expected, timeout_s=timeout_s)
        finally:
            self.finish(pending.sequence)

    async def prepare(self, command: Command) -> PendingCommand:
        """Give a command its place in the session."""
        self.check()
        if self._places_left <= 0:
            await self._wait_for_a_place()
        return self._place(command)

    def _place(self, command: Command) -> PendingCommand:
        sequence = self._next_sequence
        self._next_sequence += 1
        self._unanswered[sequence] = None
        return PendingCommand(self, command, sequence)

    @property
    def _places_left(self) -> int:
        oldest = next(iter(self._unanswered), self._next_sequence)
        return WINDOW - (self._next_sequence - oldest) - self._promised

    async def _wait_for_a_place(self) -> None:
        turn = new_event()
        self._waiting[turn] = None
        try:
            await turn.wait()
            self.check()
        except BaseException:
            if turn in self._waiting:
                del self._waiting[turn]
            else:
                self._promised -= 1
                self._let_in()
            raise
        self._promised -= 1

    def _let_in(self) -> None:
        """Wake as many as there are places, and nobody in vain: a thousand may wait."""
        for turn in list(islice(self._waiting, max(self._places_left, 0))):
            del self._waiting[turn]
            self._promised += 1
            turn.set()

    def finish(self, sequence: int) -> None:
        """Nobody will ask for that result again."""
        self._unanswered.pop(sequence, None)
        if self._waiting:
            self._let_in()


class _SessionScope(AbstractContextManager[None]):
    """Without a generator around it: each lock that is taken enters one."""

    __slots__ = ("_scope", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._scope = new_scope()

    def __enter__(self) -> None:
        self._session.check()
        self._session.call_on_loss(self, self._on_loss)
        self._scope.__enter__()

    def _on_loss(self, _: LogdError) -> None:
        self._scope.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._session.forget_dependant(self)
        is_swallowed = bool(self._scope.__exit__(kind, error, traceback))
        if self._scope.cancelled_caught:
            lost = self._session.error
            assert lost is not None
            # The cancellation is no part of the story.
            raise lost.with_traceback(None) from lost.__cause__
        return is_swallowed


class PendingCommand:
    """A command with its sequence: its result can be asked for again, also after the task that
    wanted it was cancelled."""

    __slots__ = ("command", "first_sent_at", "sequence", "session")

    def __init__(self, session: Session, command: Command, sequence: int) -> None:
        self.session = session
        self.command = command
        self.sequence = sequence
        self.first_sent_at: float | None = None
        """Of all attempts, also of those before whoever asks now: late enough for a renewal."""

    @property
    def is_sent(self) -> bool:
        """It may be carried out."""
        return self.first_sent_at is not None

    async def result(self, expected: type[R], *, timeout_s: float | None = None) -> R:
        """Its result, carried out once however often this is called."""
        session = self.session
        try:
            result = await session.calls.command(
                session.namespace, self.command, self._request, timeout_s=timeout_s
            )
        except SessionExpiredError as error:
            session.lose(error)
            raise
        assert self.first_sent_at is not None
        session.renewed(self.first_sent_at)
        assert isinstance(result, expected)
        return result

    def _request(self, group: GroupId, timeout_ms: int) -> Message:
        session = self.session
        if self.first_sent_at is None:
            self.first_sent_at = session.calls.lease_clock()
        return CoordinateRequest(
            group=group,
            namespace=session.namespace,
            session=session.id,
            sequence=self.sequence,
            acknowledged=session.acknowledged,
            timeout_ms=timeout_ms,
        )

    def finish(self) -> None:
        """Nobody will ask for the result again."""
        self.session.finish(self.sequence)


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
            session.adopt(*adopters_place(environment.wall_clock_ms(), environment.rng))
        else:
            session.adopt(environment.rng.randrange(ADOPTED_LOWEST, 2**62), 0)
        session.start(self.calls.lease_clock())
        return session

    async def _open(self, namespace: str, ttl_ms: int) -> Session:
        if self._is_closed:
            raise UsageError("the client is closed: make another one with connect(...)")
        token = self._routing.environment.rng.randbytes(16)
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
        for at in range(0, len(ids), SESSIONS_PER_KEEP_ALIVE):
            part = ids[at : at + SESSIONS_PER_KEEP_ALIVE]
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
    One whose clock is behind by more than that is refused, and nothing of it is done.
    """
    minutes = min(max(now_ms // MINUTE_MS, 0), MINUTES_MAX)
    drawn = chance.randrange(ADOPTED_LOWEST, 2**ADOPTED_BITS)
    acknowledged = max(minutes - ADOPTERS_WAIT_MINUTES, 0) << ADOPTED_BITS
    return (minutes << ADOPTED_BITS) + drawn, acknowledged


def require_ttl(name: str, ttl_ms: object) -> int:
    """``ttl_ms`` itself.

    Raises:
        UsageError: says which times are possible.
    """
    require_between(name, ttl_ms, SESSION_TTL_MS_MIN, SESSION_TTL_MS_MAX)
    assert isinstance(ttl_ms, int)
    return ttl_ms
