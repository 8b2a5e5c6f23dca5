"""One session: for how long it certainly lasts, and the commands that are carried out in it.

All that a client holds in a namespace hangs on its session: locks, candidacies, memberships,
ephemeral keys, claims.  The brokers let a session go when nothing was heard of it for its time
to live.  The client has to know before they do, so it counts from when it *sent* the last
renewal that was acknowledged, on a monotonic clock that goes on while the machine is suspended,
and gives up at ``SAFE_SHARE`` of the time to live: clocks that run a little faster or slower do
not matter then, and what depends on the session is cancelled before anybody else can be given
it.  What no counting can exclude, a process that stands still in the middle of a write, is the
fencing token's business.

Once lost, a session stays lost, also if the brokers would still renew it: what hung on it has
been told.  The next use opens another one (``sessions.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType
from typing import Final, TypeVar

import anyio

from logd.errors import InvalidRequestError, LogdError, SessionExpiredError
from logd.limits import RESULTS_PER_SESSION_MAX
from logd.types import GroupId
from logd.wire.coordination import Command, Opened, Result
from logd.wire.messages import CoordinateRequest, Message
from logd_client.coordination.calls import Calls
from logd_client.event_loop import Event, new_event, new_scope

SAFE_SHARE: Final = 0.8
"""Of the time to live, what the client counts on."""

RENEWALS_PER_TTL: Final = 3
WINDOW: Final = 1_000
"""How far the newest command may be ahead of the oldest that is not answered."""

# So the brokers never keep more results: each command says which of them are here.
assert WINDOW <= RESULTS_PER_SESSION_MAX

# A lost renewal can be repeated before the session is given up.
assert 2 / RENEWALS_PER_TTL < SAFE_SHARE < 1

R = TypeVar("R", bound=Result)
OnLoss = Callable[[LogdError], None]


class Session:
    """One session.  Made by ``Sessions``."""

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
        self._spare_sequence: int | None = None
        """Of such a session: where its places go on if those that it has are refused."""
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

    def adopt(
        self, first_sequence: int, acknowledged: int, spare_sequence: int | None = None
    ) -> None:
        """Another client opened it, and others may go on with it at the same time: sequences
        begin far from theirs, and no result is acknowledged that one of them may wait for.

        Args:
            spare_sequence: where to go on without acknowledging anything, if that is refused:
                somebody whose clock is ahead may have acknowledged it already.
        """
        assert acknowledged < first_sequence
        self._next_sequence = first_sequence
        self._acknowledged_elsewhere = acknowledged
        self._spare_sequence = spare_sequence

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
        except InvalidRequestError as error:
            spare = self._spare_sequence
            if spare is None or pending.sequence >= spare or error.may_have_applied:
                raise
            if self._next_sequence < spare:  # Else another call has met the same.
                self.adopt(spare, 0, spare)
        finally:
            self.finish(pending.sequence)
        return await self.call(command, expected, timeout_s=timeout_s)

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
