"""A partition's state as bytes, made in parts.

A state may hold a million records, and encoding them takes longer than an event loop may stand
still.  So a snapshot is *frozen* first, which copies references only, and then encoded part by
part, with a rest between any two.  Records are immutable for this reason.

Format: a magic with the format's number, then parts ``u32 length | u8 kind | MessagePack`` (little
endian), then a part of kind 0 with the checksum of all before it.  What can be derived (the order
of keys, who holds what, what is due when, quotas) is not in it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from logd.coordination.assignments import Shard
from logd.coordination.locks import Lock, LockKind, Ticket
from logd.coordination.members import MemberRecord
from logd.coordination.namespace import Namespace
from logd.coordination.queues import DeadRecord, Queue, QueueCounts, QueueItem
from logd.coordination.sessions import Session, keep_result
from logd.errors import CorruptionError
from logd.record.state_magic import StateMagic
from logd.wire.coordination import KeyValue, QueueOptions, Result

_MAGIC: Final = StateMagic(b"logd coordination ", 1, "coordination snapshot")
_PREFIX: Final = struct.Struct("<IB")
RECORDS_PER_PART: Final = 1_000
_ENCODER: Final = msgspec.msgpack.Encoder()


class _SessionRecord(msgspec.Struct, frozen=True, array_like=True):
    session: int
    token: bytes
    client: str
    ttl_ms: int
    opened_ms: int
    acknowledged: int
    results: dict[int, Result]


class _LockRecord(msgspec.Struct, frozen=True, array_like=True):
    kind: LockKind
    name: str
    capacity: int
    holders: list[Ticket]
    waiting: list[Ticket]


class _QueueRecord(msgspec.Struct, frozen=True, array_like=True):
    name: str
    options: QueueOptions
    counts: QueueCounts
    overdue: list[int]


class _ItemsRecord(msgspec.Struct, frozen=True, array_like=True):
    """Some of a queue's items."""

    queue: str
    items: list[QueueItem]
    dead: list[DeadRecord]


class _Header(msgspec.Struct, frozen=True):
    applied: int
    log_time_ms: int


class _Section(NamedTuple):
    """How records of one kind are taken from a namespace, and put into one."""

    record: Any
    take: Callable[[Namespace, int], Sequence[Any]]
    put: Callable[[Namespace, list[Any]], None]
    per_part: int = RECORDS_PER_PART


def _take_sessions(space: Namespace, _now_ms: int) -> list[_SessionRecord]:
    return [
        _SessionRecord(
            session.session,
            session.token,
            session.client,
            session.ttl_ms,
            session.opened_ms,
            session.acknowledged,
            dict(session.results),
        )
        for session in space.sessions.values()
    ]


def _put_sessions(space: Namespace, records: list[_SessionRecord]) -> None:
    for record in records:
        session = Session(
            record.session,
            token=record.token,
            client=record.client,
            ttl_ms=record.ttl_ms,
            opened_ms=record.opened_ms,
        )
        session.acknowledged = record.acknowledged
        space.add_session(session)
        for sequence, result in record.results.items():
            keep_result(session, sequence, result, space.usage)


def _take_locks(space: Namespace, _now_ms: int) -> list[_LockRecord]:
    return [
        _LockRecord(
            lock.kind,
            lock.name,
            lock.capacity,
            list(lock.holders.values()),
            list(lock.waiting.values()),
        )
        for lock in space.locks.all()
    ]


def _put_locks(space: Namespace, records: list[_LockRecord]) -> None:
    for record in records:
        lock = Lock(record.kind, record.name, record.capacity)
        space.locks.restore(lock, record.holders, record.waiting)


def _take_queues(space: Namespace, now_ms: int) -> list[_QueueRecord]:
    return [
        _QueueRecord(queue.name, queue.options, copy(queue.counts), queue.overdue(now_ms))
        for queue in space.work.all()
    ]


def _put_queues(space: Namespace, records: list[_QueueRecord]) -> None:
    for record in records:
        queue = Queue(record.name, record.options)
        queue.counts = record.counts
        space.work.begin_restore(queue, record.overdue)


def _take_items(space: Namespace, _now_ms: int) -> list[_ItemsRecord]:
    taken = []
    for queue in space.work.all():
        items, dead = list(queue.items.values()), list(queue.dead.values())
        for start in range(0, max(len(items), len(dead)), RECORDS_PER_PART):
            part = slice(start, start + RECORDS_PER_PART)
            taken.append(_ItemsRecord(queue.name, items[part], dead[part]))
    return taken


def _put_items(space: Namespace, records: list[_ItemsRecord]) -> None:
    for record in records:
        space.work.restore_items(record.queue, record.items, record.dead)


_END: Final = 0
_HEADER: Final = 1
_NAMESPACE: Final = 2
_SECTIONS: Final = {
    3: _Section(_SessionRecord, _take_sessions, _put_sessions),
    4: _Section(KeyValue, lambda space, _: space.keys.all(), lambda s, r: s.keys.restore(r)),
    5: _Section(_LockRecord, _take_locks, _put_locks, per_part=100),
    6: _Section(
        MemberRecord, lambda space, _: space.groups.all(), lambda s, r: s.groups.restore(r)
    ),
    7: _Section(
        Shard, lambda space, _: space.assignments.all(), lambda s, r: s.assignments.restore(r)
    ),
    8: _Section(_QueueRecord, _take_queues, _put_queues),
    9: _Section(_ItemsRecord, _take_items, _put_items, per_part=1),
}
"""Sessions first: what follows belongs to them."""

_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    _END: msgspec.msgpack.Decoder(int),
    _HEADER: msgspec.msgpack.Decoder(_Header),
    _NAMESPACE: msgspec.msgpack.Decoder(str),
    **{
        kind: msgspec.msgpack.Decoder(list[section.record])  # type: ignore[name-defined]
        for kind, section in _SECTIONS.items()
    },
}


class Frozen:
    """A state that stays as it was."""

    def __init__(self, header: _Header, frozen: list[tuple[int, Any]]) -> None:
        self._header = header
        self._frozen = frozen

    @classmethod
    def of(cls, applied: int, log_time_ms: int, spaces: Iterable[Namespace]) -> Frozen:
        frozen: list[tuple[int, Any]] = []
        for space in spaces:
            frozen.append((_NAMESPACE, space.name))
            frozen += [(k, section.take(space, log_time_ms)) for k, section in _SECTIONS.items()]
        return cls(_Header(applied, log_time_ms), frozen)

    def parts(self) -> Iterator[bytes]:
        """The bytes of a snapshot, in parts that each take little time to make."""
        checksum = xxhash.xxh3_64()
        for part in self._sealed_parts():
            checksum.update(part)
            yield part
        yield _part(_END, checksum.intdigest())

    def _sealed_parts(self) -> Iterator[bytes]:
        yield _MAGIC.written
        yield _part(_HEADER, self._header)
        for kind, frozen in self._frozen:
            if kind == _NAMESPACE:
                yield _part(kind, frozen)
                continue
            count = _SECTIONS[kind].per_part
            for start in range(0, len(frozen), count):
                yield _part(kind, frozen[start : start + count])


def read_snapshot(
    payload: bytes | memoryview,
    begin: Callable[[int, int], None],
    add_namespace: Callable[[str], Namespace],
) -> Iterator[None]:
    """Call ``begin`` with the applied offset and log time, and fill one namespace after the other.

    Yields after each part.

    Raises:
        NewerFormatError: it was written by a later version.
        CorruptionError: it is not a snapshot.
    """
    space: Namespace | None = None
    for kind, content in _parts_of(memoryview(payload)):
        if kind == _HEADER:
            begin(content.applied, content.log_time_ms)
        elif kind == _NAMESPACE:
            space = add_namespace(content)
        elif kind in _SECTIONS:
            if space is None:
                raise CorruptionError("coordination snapshot has records before any namespace")
            _SECTIONS[kind].put(space, content)
        yield


def _parts_of(payload: memoryview) -> Iterator[tuple[int, Any]]:
    """Kinds and contents of the parts, after the checksum was found to be right."""
    _MAGIC.check(payload)
    spans = list(_spans(payload))
    _, kind, start, _ = spans[-1]
    checksum = _decoded(kind, payload[start:])
    if kind != _END or checksum != xxhash.xxh3_64_intdigest(payload[: start - _PREFIX.size]):
        raise CorruptionError("coordination snapshot does not end with its checksum")
    for _, kind, start, end in spans[:-1]:
        yield kind, _decoded(kind, payload[start:end])


def _spans(payload: memoryview) -> Iterator[tuple[int, int, int, int]]:
    position = len(_MAGIC)
    while position < len(payload):
        if position + _PREFIX.size > len(payload):
            raise CorruptionError("coordination snapshot ends within a part")
        length, kind = _PREFIX.unpack_from(payload, position)
        start = position + _PREFIX.size
        if start + length > len(payload):
            raise CorruptionError("coordination snapshot ends within a part")
        yield position, kind, start, start + length
        position = start + length
    if position == len(_MAGIC):
        raise CorruptionError("coordination snapshot is empty")


def _decoded(kind: int, content: memoryview) -> Any:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise CorruptionError(f"coordination snapshot has a part of unknown kind {kind}")
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"coordination snapshot cannot be read: {error}") from error


def _part(kind: int, content: Any) -> bytes:
    encoded = _ENCODER.encode(content)
    return _PREFIX.pack(len(encoded), kind) + encoded
