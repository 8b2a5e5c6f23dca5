"""Keys with values: ranges, compare-and-set, transactions, keys that go with a session.

Values lie in a dictionary and the keys once more in a sorted list: most commands name a key, and
only ranges, new keys and deletions pay for the order.

A transaction changes keys as it goes along and keeps what was there before.  If one of its
operations is refused all is put back; so there is no second copy of the rules that foretells what
an operation will say.  A key has one event per revision, the difference a transaction made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from sortedcontainers import SortedList

from logd.coordination import quotas
from logd.coordination.names import quoted
from logd.coordination.quotas import Usage
from logd.coordination.sessions import Session
from logd.errors import ConflictError, QuotaExceededError, RequestError
from logd.limits import (
    ANSWER_BYTES_MAX,
    ANSWER_ENTRIES_MAX,
    KEYS_DELETED_MAX,
    NUMBER_MAX,
    RECORD_OVERHEAD_BYTES,
    RESULT_BYTES_MAX,
)
from logd.wire.coordination import (
    Compare,
    Delete,
    Event,
    Get,
    Increment,
    Keys,
    KeyValue,
    Operation,
    OperationResult,
    Put,
    Transact,
    Transacted,
)

_NUMBER: Final = re.compile(rb"-?[0-9]{1,19}")
_NO_RESULT: Final = OperationResult()


class KeySpace:
    """The keys of one namespace."""

    def __init__(
        self, usage: Usage, sessions: Mapping[int, Session], emit: Callable[[Event], None]
    ) -> None:
        self._usage = usage
        self._sessions = sessions
        self._emit = emit
        self._found: dict[bytes, KeyValue] = {}
        self._order: SortedList[bytes] = SortedList()
        self._before: dict[bytes, KeyValue | None] = {}
        """What the command under way has changed so far."""
        self._result_bytes_left = 0

    # --- commands -----------------------------------------------------------------------

    def transact(self, command: Transact, session: int, revision: int) -> Transacted:
        compares = command.compare
        succeeded = not compares or all(map(self._holds, compares))
        operations = command.then if succeeded else command.otherwise
        if len(operations) == 1 and type(operations[0]) is Put:
            self._put_alone(operations[0], session, revision)
            return Transacted(revision=revision, succeeded=succeeded, results=[_NO_RESULT])
        self._result_bytes_left = RESULT_BYTES_MAX
        try:
            results = [self._operate(operation, session, revision) for operation in operations]
        except RequestError:
            self._put_back()
            raise
        self._announce(revision)
        return Transacted(revision=revision, succeeded=succeeded, results=results)

    def end_session(self, session: Session, revision: int) -> None:
        """Its ephemeral keys go, in order."""
        for key in sorted(session.keys):
            self._set(key, None)
        self._announce(revision)

    # --- questions ----------------------------------------------------------------------

    def read(self, get: Get, revision: int) -> Keys:
        found, count = self._get(get, ANSWER_BYTES_MAX)
        return Keys(revision=revision, found=found, count=count)

    def __len__(self) -> int:
        return len(self._found)

    def all(self) -> list[KeyValue]:
        """In order of the keys' last creation, for snapshots."""
        return list(self._found.values())

    def restore(self, entries: Sequence[KeyValue]) -> None:
        """Those of a snapshot that are not here yet: it may come in parts."""
        for entry in entries:
            self._found[entry.key] = entry
            if entry.session:
                self._sessions[entry.session].keys.add(entry.key)
            self._usage.add(quotas.KEY_BYTES, len(entry.key) + len(entry.value))
            self._usage.add(quotas.KEYS, 1)
        self._order.update(entry.key for entry in entries)

    def check_invariants(self) -> None:
        assert list(self._order) == sorted(self._found)
        assert not self._before
        owned = {(entry.session, key) for key, entry in self._found.items() if entry.session}
        known = {(s.session, key) for s in self._sessions.values() for key in s.keys}
        assert owned == known

    # --- comparisons and operations -----------------------------------------------------

    def _holds(self, compare: Compare) -> bool:
        found = self._found.get(compare.key)
        return (
            (compare.exists is None or compare.exists == (found is not None))
            and (compare.revision is None or compare.revision == (found.revision if found else 0))
            and (compare.created is None or compare.created == (found.created if found else 0))
            and (compare.value is None or (found is not None and compare.value == found.value))
        )

    def _operate(self, operation: Operation, session: int, revision: int) -> OperationResult:
        match operation:
            case Put():
                owner = session if operation.ephemeral else 0
                self._put(operation.key, operation.value, owner, revision)
                return _NO_RESULT
            case Get():
                return self._get_within_result(operation)
            case Delete():
                return OperationResult(count=self._delete(operation))
            case Increment():
                return OperationResult(found=[self._increment(operation, revision)])

    def _put(self, key: bytes, value: bytes, owner: int, revision: int) -> KeyValue:
        found = self._found.get(key)
        entry = self._next_entry(found, key, value, owner, revision)
        self._set(key, entry)
        return entry

    def _put_alone(self, operation: Put, session: int, revision: int) -> None:
        """A put that nothing stands beside: refused or done, there is nothing to put back."""
        key = operation.key
        found = self._found.get(key)
        owner = session if operation.ephemeral else 0
        entry = self._next_entry(found, key, operation.value, owner, revision)
        self._exchange(key, found, entry)
        self._tell_put(entry, revision)

    def _next_entry(
        self, found: KeyValue | None, key: bytes, value: bytes, owner: int, revision: int
    ) -> KeyValue:
        """What follows ``found``, if there is room for it."""
        if found is None:
            self._usage.require(quotas.KEYS, 1)
        grown = len(value) - len(found.value) if found else len(value) + len(key)
        if grown > 0:
            self._usage.require(quotas.KEY_BYTES, grown)
        created = found.created if found else revision
        return KeyValue(key=key, value=value, revision=revision, created=created, session=owner)

    def _delete(self, operation: Delete) -> int:
        if operation.end is None:
            keys = [operation.key] if operation.key in self._found else []
        else:
            count = self._count_in(operation.key, operation.end)
            if count > KEYS_DELETED_MAX:
                raise QuotaExceededError(
                    f"the range holds {count:,} keys, at most {KEYS_DELETED_MAX:,} are deleted "
                    "at once: delete it in parts"
                )
            keys = list(self._keys_in(operation.key, operation.end))
        for key in keys:
            self._set(key, None)
        return len(keys)

    def _increment(self, operation: Increment, revision: int) -> KeyValue:
        found = self._found.get(operation.key)
        if found is not None and _NUMBER.fullmatch(found.value) is None:
            raise ConflictError(f"key {quoted(operation.key)} holds no decimal integer")
        number = operation.by + (int(found.value) if found else 0)
        if abs(number) > NUMBER_MAX:
            raise ConflictError(f"key {quoted(operation.key)} would pass {NUMBER_MAX:,}")
        owner = found.session if found else 0
        return self._put(operation.key, b"%d" % number, owner, revision)

    def _get_within_result(self, operation: Get) -> OperationResult:
        found, count = self._get(operation, max(self._result_bytes_left, 0))
        self._result_bytes_left -= sum(map(_bytes_in_result, found))
        if self._result_bytes_left < RESULT_BYTES_MAX - ANSWER_BYTES_MAX:
            raise QuotaExceededError(
                f"what a transaction reads has at most {ANSWER_BYTES_MAX:,} bytes: read in parts"
            )
        return OperationResult(found=found, count=count)

    def _get(self, get: Get, bytes_max: int) -> tuple[list[KeyValue], int]:
        """What is found, as far as bounds allow (but at least one), and how many there are."""
        if get.end is None:
            entry = self._found.get(get.key)
            found = [] if entry is None else [_shown(entry, get.keys_only)]
            return found, len(found)
        count = self._count_in(get.key, get.end)
        limit = min(get.limit or ANSWER_ENTRIES_MAX, ANSWER_ENTRIES_MAX)
        found = []
        for key in self._keys_in(get.key, get.end):
            entry = _shown(self._found[key], get.keys_only)
            bytes_max -= _bytes_in_result(entry)
            if len(found) == limit or (bytes_max < 0 and found):
                break
            found.append(entry)
        return found, count

    # --- order --------------------------------------------------------------------------

    def _keys_in(self, start: bytes, end: bytes) -> Iterable[bytes]:
        keys: Iterable[bytes] = self._order.irange(start, end or None, inclusive=(True, False))
        return keys

    def _count_in(self, start: bytes, end: bytes) -> int:
        stop = self._order.bisect_left(end) if end else len(self._order)
        return max(0, int(stop - self._order.bisect_left(start)))

    # --- changes ------------------------------------------------------------------------

    def _set(self, key: bytes, entry: KeyValue | None) -> None:
        """Replace, add or remove, and keep what was there for events and for putting back."""
        found = self._found.get(key)
        if key not in self._before:
            self._before[key] = found
        self._exchange(key, found, entry)

    def _exchange(self, key: bytes, found: KeyValue | None, entry: KeyValue | None) -> None:
        grown = 0
        if found is not None:
            grown -= len(key) + len(found.value)
        if found is not None and found.session:
            self._sessions[found.session].keys.discard(key)
        if entry is not None:
            self._found[key] = entry
            grown += len(key) + len(entry.value)
            if entry.session:
                self._sessions[entry.session].keys.add(key)
            if found is None:
                self._order.add(key)
                self._usage.add(quotas.KEYS, 1)
        elif found is not None:
            del self._found[key]
            self._order.remove(key)
            self._usage.add(quotas.KEYS, -1)
        if grown:
            self._usage.add(quotas.KEY_BYTES, grown)

    def _put_back(self) -> None:
        for key, before in self._before.items():
            self._exchange(key, self._found.get(key), before)
        self._before.clear()

    def _announce(self, revision: int) -> None:
        """One event for each key that differs from before the command, in order of change."""
        if not self._before:
            return
        for key, before in self._before.items():
            entry = self._found.get(key)
            if entry is not None:
                self._tell_put(entry, revision)
            elif before is not None:
                self._emit(Event(revision=revision, kind="key", name=key, change="deleted"))
        self._before.clear()

    def _tell_put(self, entry: KeyValue, revision: int) -> None:
        self._emit(
            Event(
                revision=revision,
                kind="key",
                name=entry.key,
                change="put",
                value=entry.value,
                session=entry.session,
            )
        )


def _shown(entry: KeyValue, keys_only: bool) -> KeyValue:
    if not keys_only:
        return entry
    return KeyValue(
        key=entry.key,
        value=b"",
        revision=entry.revision,
        created=entry.created,
        session=entry.session,
    )


def _bytes_in_result(entry: KeyValue) -> int:
    return len(entry.key) + len(entry.value) + RECORD_OVERHEAD_BYTES
