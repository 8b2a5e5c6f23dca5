"""The state of one partition of ``__coordination``: what a replica makes of its log.

Every replica applies the same entries at the same revisions and reaches the same state, so nothing
is used but the entries: no clock, no chance, no order from outside.  An entry is judged whole
before anything changes, or put back; what a client sent never raises, it is refused.

Time is that of the entries.  What is due by an entry's time is brought about before the entry, so
a claim that has run out by log time is lost to whatever comes after, whether or not the leader had
proposed an ``Advance`` yet.

Results of a session's commands are part of the state: a command that comes again is answered with
what it was answered before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from logd.coordination import quotas
from logd.coordination.checks import check_command, check_entry, check_query, check_sequence
from logd.coordination.events import compacted
from logd.coordination.names import check_name
from logd.coordination.namespace import Namespace
from logd.coordination.quotas import PartitionUsage
from logd.coordination.sessions import Session, acknowledge, keep_result
from logd.coordination.snapshots import Frozen, read_snapshot
from logd.coordination.timers import Place, Timers
from logd.errors import (
    QuotaExceededError,
    RequestError,
    SessionExpiredError,
)
from logd.limits import DUE_PER_COMMAND_MAX, NAMESPACES_PER_PARTITION_MAX
from logd.types import Offset
from logd.wire.coordination import (
    Advance,
    Answer,
    CloseSession,
    Done,
    Entry,
    Event,
    ExpireSession,
    Kind,
    OpenSession,
    Query,
    ReadClaim,
    Refused,
    Result,
)


class CoordinationState:
    """Sessions, keys, locks, groups and queues of the namespaces of one partition."""

    def __init__(self) -> None:
        self._applied = Offset(0)
        self._log_time_ms = 0
        self._namespaces: dict[str, Namespace] = {}
        self._where: dict[int, Namespace] = {}
        """Session → its namespace."""
        self._usage = PartitionUsage()
        self._timers = Timers(self._queue_due_ms)
        self._events: list[tuple[str, Event]] = []
        self._events_forgotten = Offset(0)
        """No namespace has events below, unless its ring does."""

    # --- the log ------------------------------------------------------------------------

    @property
    def applied(self) -> Offset:
        """End of what has been applied."""
        return self._applied

    @property
    def log_time_ms(self) -> int:
        """Of the last entry that was applied."""
        return self._log_time_ms

    @property
    def due_ms(self) -> int | None:
        """Log time from which an ``Advance`` would change something."""
        first = self._timers.first()
        return None if first is None else first[0]

    def fullest(self) -> tuple[float, str, str] | None:
        """The largest part of a quota that is used, by which namespace, and of which quota.

        Looks at all namespaces: for those who watch, not for each command.
        """
        spaces = self._namespaces.values()
        found = max(((*space.usage.fullest(), space.name) for space in spaces), default=None)
        if found is None:
            return None
        used, quota, name = found
        if self._usage.used > used:
            return self._usage.used, "", quotas.STATE_BYTES
        return used, name, quota

    def check(self, entry: Entry) -> None:
        """Accept what a client may propose, whatever the state.

        Raises:
            RequestError: says what is wrong with it.
        """
        check_entry(entry)

    def apply(self, entry: Entry, revision: Offset) -> Result:
        """The next entry of the log, at its offset.  What a client sent wrongly is Refused."""
        return self.apply_all([entry], revision)[0]

    def apply_all(
        self, entries: Iterable[Entry], revision: Offset, *, are_checked: bool = False
    ) -> list[Result]:
        """The next entries of the log, the first at ``revision``, each at one more than that
        before it: what each is answered.

        Args:
            are_checked: this very replica has accepted them (``check``).  What is asked there
                depends on nothing but the entry, so asking again would give the same.
        """
        assert revision >= self._applied
        results = []
        for entry in entries:
            self._applied = Offset(revision + 1)
            self._log_time_ms = max(self._log_time_ms, entry.time_ms)
            if self._timers.may_be_due(self._log_time_ms):
                self._bring_about_what_is_due(revision)
            try:
                results.append(self._apply(entry, revision, are_checked))
            except RequestError as refused:
                results.append(_refused(refused, revision))
            revision = self._applied
        return results

    def advance(self, end_offset: Offset) -> None:
        """Control batches lie up to here: nothing changes, but so far the log has been applied."""
        self._applied = max(self._applied, end_offset)

    def take_events(self) -> list[tuple[str, Event]]:
        """Namespaces and events since the last call, in order of revisions."""
        events, self._events = self._events, []
        return events

    # --- questions ----------------------------------------------------------------------

    def answer(self, namespace: str, query: Query, now_ms: int = 0) -> Answer:
        """What the applied state says; a question that makes no sense is Refused.

        Args:
            now_ms: log time as the leader has it, by which ages are told.  Without any command what
                was applied last knows nothing of the time that has passed.
        """
        revision = max(self._applied - 1, 0)
        space = self._namespaces.get(namespace)
        try:
            check_name("namespace", namespace)
            check_query(query)
            if space is None:
                space = Namespace(namespace, PartitionUsage(), self._applied, _ignore, _ignore)
            return space.answer(query, revision, max(now_ms, self._log_time_ms))
        except RequestError as refused:
            return _refused(refused, revision)

    def waits(self, namespace: str, claim: ReadClaim) -> bool:
        """Whether a ticket stands in line.  Cheap: the answer says how many stand before it, which
        takes time for each of them."""
        space = self._namespaces.get(namespace)
        return space is not None and space.locks.waits(claim.kind, claim.name, claim.ticket)

    def history(
        self, namespace: str, kind: Kind, start: bytes, end: bytes | None, from_revision: int
    ) -> list[Event]:
        """Events about ``start``, or ``[start, end)`` (an empty ``end`` is behind everything),
        from a revision on, for a watch that resumes.

        Raises:
            CompactedError: some are no longer kept; names the oldest revision available.
        """
        space = self._namespaces.get(namespace)
        if space is not None:
            return space.ring.between(kind, start, end, from_revision)
        if from_revision < self._events_forgotten:
            raise compacted(from_revision, self._events_forgotten)
        return []

    def sessions(self) -> Iterator[tuple[int, int]]:
        """Each live session and its time to live in milliseconds."""
        for session, space in self._where.items():
            yield session, space.sessions[session].ttl_ms

    def session_ttl_ms(self, namespace: str, session: int) -> int | None:
        """The time to live of a session of this namespace; None if there is no such session."""
        space = self._where.get(session)
        if space is None or space.name != namespace:
            return None
        return space.sessions[session].ttl_ms

    # --- snapshots ----------------------------------------------------------------------

    def freeze(self) -> Frozen:
        """The state as it is now, to be encoded in parts while this one goes on.

        Takes time for each record, but not for its bytes: records are replaced, never changed.
        """
        return Frozen.of(self._applied, self._log_time_ms, self._namespaces.values())

    def snapshot(self) -> bytes:
        """The whole state; ``restore`` reads it."""
        return b"".join(self.freeze().parts())

    @classmethod
    def restore(cls, payload: bytes | memoryview) -> CoordinationState:
        """The state that ``snapshot`` was taken of.

        Raises:
            NewerFormatError: it was written by a later version.
            CorruptionError: it is not a snapshot.
        """
        state = cls()
        for _ in state.fill(payload):
            pass
        return state

    def fill(self, payload: bytes | memoryview) -> Iterator[None]:
        """Take over what ``snapshot`` was taken of: as ``restore``, part by part.

        Between any two parts others may run, for all of them may take seconds.  Until it has
        ended the state is of no use.  It is empty before.
        """
        assert not self._namespaces
        yield from read_snapshot(payload, self._begin, self._add_namespace)
        for space in self._namespaces.values():
            yield from space.work.finish_restore(self._log_time_ms)
            for session in space.sessions:
                self._where[session] = space

    def check_invariants(self) -> None:
        """What must hold between any two entries; for tests and the simulator."""
        for session, space in self._where.items():
            assert session in space.sessions
        assert len(self._where) == sum(len(s.sessions) for s in self._namespaces.values())
        for space in self._namespaces.values():
            assert not space.is_empty
            space.check_invariants()

    def _begin(self, applied: int, log_time_ms: int) -> None:
        self._applied = Offset(applied)
        self._events_forgotten = Offset(applied)
        self._log_time_ms = log_time_ms

    # --- inside -------------------------------------------------------------------------

    def _apply(self, entry: Entry, revision: Offset, is_checked: bool) -> Result:
        command = entry.command
        if type(command) not in _BESIDES_SESSIONS:
            return self._apply_once(entry, revision, is_checked)
        match command:
            case OpenSession():
                return self._open(entry, command, revision)
            case ExpireSession():
                return self._end(command.session, revision)
            case CloseSession() if self._session_of(entry) is not None:
                return self._apply_once(entry, revision, is_checked)
            case _:
                return Done(revision=revision)

    def _open(self, entry: Entry, command: OpenSession, revision: Offset) -> Result:
        check_entry(entry)
        space = self._namespaces.get(entry.namespace)
        if space is None:
            if len(self._namespaces) >= NAMESPACES_PER_PARTITION_MAX:
                raise QuotaExceededError(
                    f"a partition holds at most {NAMESPACES_PER_PARTITION_MAX:,} namespaces"
                )
            space = self._new_namespace(entry.namespace)
        opened = space.open(command, revision, self._log_time_ms)
        # Not before: one without a session would be left over when that was refused.
        self._namespaces[entry.namespace] = self._where[opened.session] = space
        return opened

    def _new_namespace(self, name: str) -> Namespace:
        return Namespace(
            name, self._usage, self._events_forgotten, self._emit, self._timers.schedule
        )

    def _add_namespace(self, name: str) -> Namespace:
        space = self._namespaces[name] = self._new_namespace(name)
        return space

    def _bring_about_what_is_due(self, revision: Offset) -> None:
        """A bounded part of it: what is left is still due, and the leader asks again."""
        for _ in range(DUE_PER_COMMAND_MAX):
            first = self._timers.first()
            if first is None or first[0] > self._log_time_ms:
                return
            namespace, queue = first[1]
            self._namespaces[namespace].work.take_due(queue, revision, self._log_time_ms)

    def _queue_due_ms(self, place: Place) -> int | None:
        namespace, queue = place
        space = self._namespaces.get(namespace)
        return None if space is None else space.work.due_ms(queue)

    def _emit(self, event: tuple[str, Event]) -> None:
        self._events.append(event)

    def _session_of(self, entry: Entry) -> Session | None:
        space = self._where.get(entry.session)
        if space is None or space.name != entry.namespace:
            return None
        return space.sessions[entry.session]

    def _apply_once(self, entry: Entry, revision: Offset, is_checked: bool) -> Result:
        """A command of a session, unless it was applied before."""
        session = self._session_of(entry)
        if session is None:
            raise SessionExpiredError(
                f"session {entry.session} of namespace {entry.namespace} is closed or expired"
            )
        sequence, command = entry.sequence, entry.command
        earlier = session.earlier_result(sequence)
        if earlier is not None:
            return earlier
        if not is_checked:
            # The name of the namespace was looked at when it came to be.
            check_command(command)
            check_sequence(entry)
        space = self._where[session.session]
        usage = space.usage
        if entry.acknowledged > session.acknowledged:
            acknowledge(session, entry.acknowledged, usage)
        if type(command) is CloseSession:
            return self._end(entry.session, revision)
        session.check_room(usage)
        try:
            result = space.execute(command, session, revision, self._log_time_ms)
        except RequestError as refused:
            result = _refused(refused, revision)
        keep_result(session, sequence, result, usage)
        return result

    def _end(self, session: int, revision: Offset) -> Result:
        """A session goes; a namespace in which nothing is left goes with it."""
        space = self._where.pop(session, None)
        if space is not None:
            space.end_session(space.sessions[session], revision, self._log_time_ms)
            if space.is_empty:
                self._events_forgotten = Offset(revision + 1)
                del self._namespaces[space.name]
        return Done(revision=revision)


_BESIDES_SESSIONS: Final = frozenset((OpenSession, ExpireSession, Advance, CloseSession))
"""Commands that are not simply one of a session that lives."""


def _refused(error: RequestError, revision: int) -> Refused:
    return Refused(revision=revision, code=error.code, message=str(error))


def _ignore(*ignored: object) -> None:
    """For a namespace that is not there: it only answers."""
