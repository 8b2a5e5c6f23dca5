"""One partition of the coordination log on this broker: applied always, served while leading.

Every replica applies what is committed, so that whoever is elected serves at once.  Usually a
leader does that within the very call that moves the commit offset, from memory, so that the answer
leaves with the turn in which the followers' acknowledgements came in; a follower does it once it
has acknowledged what came in that turn.  A replica that has much to catch up with applies it piece
by piece in a task of its own.

What only the leader knows (deadlines of sessions, watches, who waits for what) begins when the
no-op of its term is applied, and with it all that earlier leaders have committed, and ends with
its leadership.  Nothing of it decides what the log says: a leader that was deposed without
knowing can answer nobody, because a command's answer needs its commit, and any other a round that
confirms its leadership, begun after the question came in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from logd.broker import log_events
from logd.broker.coordination.claim_waits import ClaimWait, ClaimWaits
from logd.broker.coordination.commands import (
    ENTRY_OVERHEAD_BYTES,
    NEVER_MS,
    CommandQueue,
    Flight,
    PendingCommand,
)
from logd.broker.coordination.confirmations import Confirmations, Confirmed
from logd.broker.coordination.kept_state import KeptState
from logd.broker.coordination.log_time import LogTime
from logd.broker.coordination.renewals import KeptAlive, Renewals
from logd.broker.coordination.session_clock import SessionClock
from logd.broker.coordination.watches import PartitionWatches
from logd.coordination.state import CoordinationState
from logd.errors import CorruptionError, LeadershipLostError, LogdError, UnavailableError
from logd.limits import FETCH_BYTES_MAX
from logd.raft.messages import TransferLeadership
from logd.record.header import HEADER_BYTES, split_batches
from logd.types import Offset
from logd.wire.coordination import (
    Advance,
    Answer,
    CloseSession,
    Command,
    Entry,
    ExpireSession,
    Opened,
    OpenSession,
    Query,
    ReadClaim,
    Result,
)

if TYPE_CHECKING:
    from logd.replication.group import Group
    from logd.replication.node import Node

log = structlog.get_logger(__name__)

APPLIED_AT_ONCE_MAX: Final = 2_048
"""Entries applied without a pause; what is more goes to the task, which lets others run."""

CAUGHT_UP_AT_ONCE_MAX: Final = 256
"""Entries that the task applies before it lets others run.  Some milliseconds: with a turn of the
event loop for each, a broker that is busy from its start on would serve late by as many turns."""

READ_AGAIN_S: Final = 1.0
LOOK_AGAIN_MS: Final = 500
"""The clock of sessions looks at least so often while there are any."""

EXPIRE_REQUESTS_MS: Final = 100
"""How often those whose time is up are looked for."""

PROGRESS_MS: Final = 10_000
"""How often a watch that saw nothing learns how far things are."""

_ABOUT_SESSIONS: Final = frozenset((OpenSession, ExpireSession, CloseSession))
_DECODER: Final = msgspec.msgpack.Decoder(list[Entry])

QueryAnswer = Callable[[Answer | LogdError], None]


class CoordinationPartition:
    """Feeds one replica's state, and serves it while this broker leads."""

    def __init__(self, group: Group, node: Node, trash_path: str) -> None:
        self.group = group
        self.state = CoordinationState()
        self.watches = PartitionWatches()
        self.entries_applied = 0
        self.sessions_expired = 0
        self._node = node
        self._kept = KeptState(group, node, trash_path)
        self._applied = Offset(0)
        self._shipped: tuple[Offset, bytes] | None = None
        """A state to go on with in place of this one; the log begins with it."""
        self._is_behind = True
        """The task applies; else whoever moves the commit offset does."""
        self._applies_afterwards = False
        """At the end of the open turn."""
        self._is_serving = False
        self._queue = CommandQueue()
        self._confirmations = Confirmations(group)
        self._after_applied: list[tuple[Offset, Confirmed]] = []
        """Confirmed, and waiting until what was committed is applied."""
        self._clock = SessionClock()
        self._claim_waits = ClaimWaits()
        self._renewals = Renewals(self._clock, self.confirmed)
        self._time = LogTime()
        self._noticed_due_ms: float = math.inf
        """When the clock will look for what is due by log time."""
        self._is_expiring_requests = False
        """The clock looks for those whose time is up."""
        self._work = trio.Event()
        self._clock_news = trio.Event()

    def attach(self) -> None:
        """Follow the group.  Before it takes any news."""
        self.group.application = self
        self.group.proposals.source = self._queue
        self.group.watch(self)

    # --- facts ----------------------------------------------------------------------------------

    @property
    def applied_offset(self) -> Offset:
        return self._applied

    @property
    def revision(self) -> int:
        """The last that has been applied."""
        return max(self._applied - 1, 0)

    @property
    def is_serving(self) -> bool:
        return self._is_serving

    @property
    def session_count(self) -> int:
        """As the leader counts them."""
        return len(self._clock)

    @property
    def rounds(self) -> int:
        """That were begun to confirm leadership."""
        return self._confirmations.rounds

    def check_serving(self) -> None:
        """Refuse unless this broker leads, and knows all that earlier leaders have committed.

        Raises:
            NotLeaderError, UnavailableError: another broker does, or this one soon will.
        """
        if self._is_serving:
            return
        if not self.group.is_leader:
            raise self.group.leadership.not_leader()
        raise UnavailableError(f"{self.group.name} has a new leader that is taking over")

    def _now_ms(self) -> int:
        """As it is, not as it was when the turn began.  What counts from when something was asked
        for must not count from before, and a turn in which the broker stood still is long."""
        return int(trio.current_time() * 1000)

    # --- commands -------------------------------------------------------------------------------

    def submit(
        self,
        namespace: str,
        session: int,
        sequence: int,
        acknowledged: int,
        command: Command,
        *,
        size_bytes: int,
        timeout_ms: int,
        answer: Callable[[Result | LogdError], None],
    ) -> None:
        """Have a client's command committed and applied; ``answer`` is called once.

        Raises:
            RequestError: refused at once; nothing was done.
        """
        self.check_serving()
        now_ms = self._now_ms()
        time_ms = self._time.at(now_ms)
        entry = Entry(namespace, session, sequence, acknowledged, time_ms, command)
        self.state.check(entry)
        self._time.note(time_ms)
        self._clock.renew(session, now_ms)
        size_bytes += ENTRY_OVERHEAD_BYTES + len(namespace)
        self._add(PendingCommand(entry, size_bytes, now_ms + timeout_ms, answer))

    def _add(self, command: PendingCommand) -> None:
        is_alone = self._queue.is_idle
        self._queue.add(command)
        if is_alone:
            self.group.flush_soon()
            if not self._is_expiring_requests and not self._queue.is_idle:
                self._clock_news.set()
        elif self._queue.wants_flush:
            self.group.flush_later()

    def _propose_own(self, command: Command, answer: Callable[[Result | LogdError], None]) -> None:
        time_ms = self._time.at(self._now_ms())
        self._time.note(time_ms)
        entry = Entry("", 0, 0, 0, time_ms, command)
        self._add(PendingCommand(entry, ENTRY_OVERHEAD_BYTES, NEVER_MS, answer))

    # --- questions ------------------------------------------------------------------------------

    def confirmed(self, then: Confirmed) -> None:
        """Call ``then(None)`` once it is certain that this broker led after the call, and all
        that was committed before it is applied; else ``then(error)``.

        Raises:
            NotLeaderError, UnavailableError: it does not serve.
        """
        self.check_serving()

        def answered(doubt: LogdError | None) -> None:
            if doubt is not None:
                then(doubt)
            elif self._applied >= self.group.commit_offset:
                then(None)
            else:
                self._after_applied.append((self.group.commit_offset, then))

        self._confirmations.add(answered)

    def query(
        self,
        namespace: str,
        query: Query,
        wait_ms: int,
        answer: QueryAnswer,
        is_wanted: Callable[[], bool],
    ) -> None:
        """Answer from the applied state, once that is known to be current.

        Args:
            is_wanted: whether anybody is left who waits for the answer.

        Raises:
            NotLeaderError, UnavailableError: it does not serve.
        """

        def confirmed(doubt: LogdError | None) -> None:
            if doubt is not None:
                answer(doubt)
                return
            if wait_ms and isinstance(query, ReadClaim) and self.state.waits(namespace, query):
                self._wait_for_claim(namespace, query, wait_ms, answer, is_wanted)
            else:
                answer(self._answer(namespace, query))

        self.confirmed(confirmed)

    def _wait_for_claim(
        self,
        namespace: str,
        query: ReadClaim,
        wait_ms: int,
        answer: QueryAnswer,
        is_wanted: Callable[[], bool],
    ) -> None:
        deadline_ms = self._now_ms() + wait_ms

        def look(may_have_changed: bool) -> None:
            if not self._is_serving:
                answer(self.group.leadership.not_leader())
                return
            if not may_have_changed:
                # It says that the ticket still waits: that is to be current.
                try:
                    self.query(namespace, query, 0, answer, is_wanted)
                except LogdError as error:
                    answer(error)
            elif self.state.waits(namespace, query):
                self._claim_waits.add(wait)
            else:
                answer(self._answer(namespace, query))

        wait = ClaimWait(namespace, query, deadline_ms, look, is_wanted)
        self._claim_waits.add(wait)
        self._clock_news.set()

    def _answer(self, namespace: str, query: Query) -> Answer:
        return self.state.answer(namespace, query, self._time.at(self._now_ms()))

    # --- sessions -------------------------------------------------------------------------------

    def keep_alive(self, sessions: list[int], answer: KeptAlive) -> None:
        """Renew sessions, and say which of them are no more.

        Raises:
            NotLeaderError, UnavailableError: it does not serve.
        """
        self.check_serving()
        if self._renewals.add(sessions, answer, self._now_ms()):
            self._clock_news.set()

    def _end_session(self, session: int) -> None:
        self._clock.close(session)
        self._renewals.on_session_ended()

    # --- applying -------------------------------------------------------------------------------

    def on_commit(self, commit_offset: Offset) -> None:
        if self._is_behind:
            self._work.set()
        elif self._is_serving or self.group.is_leader or not self._node.turn.is_open:
            self._apply_up_to(commit_offset)
        elif not self._applies_afterwards:
            # Nobody waits for what a follower applies, but its leader does for the sync and the
            # acknowledgement of what has come with this news.
            self._applies_afterwards = True
            self._node.turn.afterwards(self._apply_afterwards)

    def _apply_afterwards(self) -> None:
        self._applies_afterwards = False
        if not self._is_behind:
            self._apply_up_to(self.group.commit_offset)

    def _apply_up_to(self, commit_offset: Offset) -> None:
        try:
            has_caught_up = self._apply_here(commit_offset)
        except LogdError:
            has_caught_up = False  # The task meets it too, and says so.
        if has_caught_up:
            self._caught_up()
        else:
            self._is_behind = True
            self._work.set()

    def _apply_here(self, commit_offset: Offset) -> bool:
        """Apply from memory, without waiting; False if that does not reach far enough."""
        left = APPLIED_AT_ONCE_MAX
        while self._applied < commit_offset:
            flight = self._queue.placed_at(self._applied)
            if flight is not None:
                self._apply([command.entry for command in flight.commands], flight)
                continue
            if left <= 0:
                return False
            tail = self.group.reader.read_tail(self._applied, FETCH_BYTES_MAX)
            batch = None if tail is None else tail[0]
            if batch is None or batch.base_offset != self._applied:
                return False
            left -= batch.end_offset - batch.base_offset
            if batch.is_data:
                payload = memoryview(b"".join(batch.buffers))[HEADER_BYTES:]
                self._apply_payload(payload)
            else:
                self._step_over(batch.end_offset)
        return True

    def _apply_payload(self, payload: memoryview) -> None:
        self._kept.count(0, len(payload))
        self._apply(_decode(payload), None)

    def _step_over(self, end_offset: Offset) -> None:
        """A control batch: it takes an offset and changes nothing."""
        self.state.advance(end_offset)
        self._applied = end_offset

    def _apply(self, entries: list[Entry], flight: Flight | None) -> None:
        """Apply one batch, whose first entry lies at the applied offset."""
        state, base = self.state, self._applied
        results = state.apply_all(entries, base, are_checked=flight is not None)
        self._applied = Offset(base + len(entries))
        self.entries_applied += len(entries)
        if self._is_serving:
            self._note_sessions(entries, results)
        events = state.take_events()
        if events and self._is_serving:
            self.watches.publish(events, self.revision)
            self._claim_waits.wake_for(events)
        size_bytes = 0
        if flight is not None:
            for command, result in zip(flight.commands, results, strict=True):
                size_bytes += command.size_bytes
                command.finish(result)
        self._kept.count(len(entries), size_bytes)

    def _note_sessions(self, entries: list[Entry], results: list[Result]) -> None:
        """What the leader's clock has to know of a batch."""
        has_ended = False
        for entry, result in zip(entries, results, strict=True):
            command = entry.command
            if type(command) not in _ABOUT_SESSIONS:
                continue
            if isinstance(command, OpenSession):
                if isinstance(result, Opened):
                    self._clock.open(result.session, result.ttl_ms, self._now_ms())
                    self._clock_news.set()
            elif isinstance(command, ExpireSession):
                self._end_session(command.session)
                has_ended = True
            elif not self._lives(entry):
                self._end_session(entry.session)
                has_ended = True
        if has_ended:
            self._claim_waits.wake_all()

    def _lives(self, entry: Entry) -> bool:
        return self.state.session_ttl_ms(entry.namespace, entry.session) is not None

    def _caught_up(self) -> None:
        """All that is known to be committed has been applied."""
        self._is_behind = False
        if not self._is_serving:
            if self.group.is_ready:
                self._begin_serving()
        else:
            self._answer_confirmed()
            if self._queue.wants_flush:
                self.group.flush_later()
            due_ms = self.state.due_ms
            if due_ms is not None and due_ms < self._noticed_due_ms:
                self._clock_news.set()
        if self._kept.is_due:
            self._work.set()

    def _answer_confirmed(self) -> None:
        if self._after_applied:
            waits, self._after_applied = self._after_applied, []
            for offset, then in waits:
                if offset <= self._applied:
                    then(None)
                else:
                    self._after_applied.append((offset, then))

    # --- leading --------------------------------------------------------------------------------

    def _begin_serving(self) -> None:
        now_ms = self._now_ms()
        committed_ms = self.state.log_time_ms or self._node.env.wall_clock_ms()
        self._time.begin(committed_ms, now_ms)
        self._clock.begin(self.state.sessions(), now_ms)
        self._renewals.begin()
        self._is_serving = True
        self._clock_news.set()
        log.info(
            log_events.COORDINATION_SERVED,
            partition=self.group.name,
            sessions=len(self._clock),
            revision=self.revision,
        )

    def on_leadership_lost(self) -> None:
        error = self.group.leadership.not_leader()
        self._queue.refuse_gathered(error)
        if self._is_serving:
            self._is_serving = False
            self._clock.end()
            self.watches.end_all(error)
            self._claim_waits.wake_all()
            self._renewals.end(error)
            unapplied, self._after_applied = self._after_applied, []
            for _, then in unapplied:
                then(error)
        self._work.set()
        self._clock_news.set()

    async def keep_time(self) -> None:
        """Propose what time brings about, while this broker leads; ends with the group."""
        progress_at_ms = expire_at_ms = 0
        while self.group.failure is None:
            self._clock_news = trio.Event()
            wait_ms: float = math.inf
            if self._is_serving:
                now_ms = self._now_ms()
                self._renewals.begin_due(now_ms)
                self._expire_sessions(now_ms)
                self._advance_if_due(now_ms)
                if now_ms >= expire_at_ms:
                    self._queue.expire(now_ms)
                    self._claim_waits.expire(now_ms)
                    expire_at_ms = now_ms + EXPIRE_REQUESTS_MS
                if now_ms >= progress_at_ms:
                    self.watches.tell_progress(self.revision)
                    progress_at_ms = now_ms + PROGRESS_MS
                wait_ms = self._next_look_in_ms(now_ms)
            with trio.move_on_after(wait_ms / 1000):
                await self._clock_news.wait()

    def _next_look_in_ms(self, now_ms: int) -> float:
        waits: list[float] = [math.inf]
        self._is_expiring_requests = not self._queue.is_idle or len(self._claim_waits) > 0
        if self._is_expiring_requests:
            waits.append(EXPIRE_REQUESTS_MS)
        round_in_ms = self._renewals.next_in_ms(now_ms)
        if round_in_ms is not None:
            waits.append(round_in_ms)
        if len(self.watches):
            waits.append(PROGRESS_MS)
        next_session = self._clock.next_in_ms
        if next_session is not None:
            waits.append(min(next_session + 1, LOOK_AGAIN_MS))
        due_ms = self.state.due_ms
        advance = self._time.commit_in_ms(due_ms, self.state.log_time_ms, now_ms)
        self._noticed_due_ms = math.inf if due_ms is None else due_ms
        if advance is not None:
            waits.append(max(advance, 1))
        return min(waits)

    def _expire_sessions(self, now_ms: int) -> None:
        for session in self._clock.take_due(now_ms):
            answered = functools.partial(self._on_expiry_answered, session)
            self._propose_own(ExpireSession(session=session), answered)

    def _on_expiry_answered(self, session: int, outcome: Result | LogdError) -> None:
        """A full disk refuses it: tried again if the session is not heard of for as long anew."""
        if not isinstance(outcome, LogdError):
            log.info(log_events.SESSION_EXPIRED, partition=self.group.name, session=session)
            self.sessions_expired += 1
        elif not outcome.may_have_applied:
            self._clock.keep(session, self._now_ms())
            self._renewals.on_session_ended()

    def _advance_if_due(self, now_ms: int) -> None:
        in_ms = self._time.commit_in_ms(self.state.due_ms, self.state.log_time_ms, now_ms)
        if in_ms is None or in_ms > 0:
            return
        self._time.is_advancing = True

        def done(outcome: Result | LogdError) -> None:
            self._time.is_advancing = False
            if isinstance(outcome, LogdError):
                self._time.put_off(self._now_ms())
            self._clock_news.set()

        self._propose_own(Advance(), done)

    # --- the task -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Begin with the state that was kept last, and apply what is too much to be applied at
        once; keep the state now and then.  Ends with the group."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keep_time)
            await self._restore()
            while self.group.failure is None:
                self._work = trio.Event()
                try:
                    await self._take_over_shipped()
                    if self._applied < self.group.log.start_offset:
                        # What was kept can be read no more: a peer's takes its place.
                        found = await self._node.repairer.restore_application(self.group)
                        await self._take_over(*found)
                    if self._is_behind:
                        await self._catch_up()
                except (OSError, LogdError) as error:
                    if self._shipped is not None:
                        continue  # What could not be read is not needed any more.
                    # Nothing is skipped: this replica serves nobody until it can read on.
                    log.error(
                        log_events.COORDINATION_UNREADABLE,
                        partition=self.group.name,
                        offset=self._applied,
                        reason=str(error),
                    )
                    if self.group.is_leader:
                        self.group.post(TransferLeadership(None))
                    await trio.sleep(READ_AGAIN_S)
                    continue
                await self._keep_state_now_and_then()
                if self.group.failure is None:
                    await self._work.wait()
            stopped = UnavailableError(f"the replica of {self.group.name} stopped")
            self._queue.forget_placed(stopped)
            self._renewals.end(stopped)
            nursery.cancel_scope.cancel()

    async def _keep_state_now_and_then(self) -> None:
        if not self._kept.is_due or self._shipped is not None:
            return
        try:
            await self._kept.save(self.state, self._applied)
        except (OSError, LogdError) as error:
            # Tried again after as many commands; until then the log that it would spare stays.
            log.warning(
                log_events.COORDINATION_NOT_KEPT,
                partition=self.group.name,
                offset=self._applied,
                reason=str(error),
            )

    async def _catch_up(self) -> None:
        pause_at = self._applied + CAUGHT_UP_AT_ONCE_MAX
        while self._applied < self.group.commit_offset and self.group.failure is None:
            found = await self.group.reader.read_committed(self._applied, FETCH_BYTES_MAX)
            assert found is not None
            for header, view in split_batches(memoryview(b"".join(found.buffers))):
                if self._shipped is not None:
                    return
                if header.is_control:
                    self._step_over(header.end_offset)
                    continue
                flight = self._queue.placed_at(header.base_offset)
                if flight is None:
                    self._apply_payload(view[HEADER_BYTES:])
                else:
                    self._apply([command.entry for command in flight.commands], flight)
                if self._applied >= pause_at:
                    await trio.lowlevel.checkpoint()
                    pause_at = self._applied + CAUGHT_UP_AT_ONCE_MAX
        if self._applied >= self.group.commit_offset and self._shipped is None:
            self._caught_up()

    # --- snapshots ------------------------------------------------------------------------------

    async def _restore(self) -> None:
        """Begin with the state that was kept last; what follows it comes from the log."""
        try:
            found = await self.group.checkpoints.load_application()
            if found is not None:
                await self._take_over(*found)
        except LogdError as error:
            # It would have to guess what came before: better that this replica stops.
            self.group.fail(error)

    def on_installed(self, offset: Offset, payload: bytes) -> None:
        """The log begins anew further on, with this state."""
        self._shipped = (offset, payload)
        self._is_behind = True
        self._work.set()

    async def _take_over_shipped(self) -> None:
        while self._shipped is not None:
            (offset, payload), self._shipped = self._shipped, None
            if offset <= self._applied:
                continue  # This replica was further already.
            try:
                await self._take_over(offset, payload)
            except LogdError as error:
                self.group.fail(error)

    async def _take_over(self, offset: Offset, payload: bytes) -> None:
        """Nothing is applied meanwhile: this is done by the task that does."""
        state = CoordinationState()
        for _ in state.fill(payload):
            await trio.lowlevel.checkpoint()
        if state.applied > offset:
            raise CorruptionError(f"the state kept for offset {offset} is that of {state.applied}")
        state.advance(offset)
        self._queue.forget_placed(
            LeadershipLostError("this broker has fallen behind: what came of it is not known here")
        )
        self.state = state
        self._applied = offset
        self._kept.begin_at(offset, len(payload))


def _decode(payload: memoryview) -> list[Entry]:
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"entries of the coordination log: {error}") from error
