"""Whether a command makes sense at all, whatever the state.

The leader asks before it proposes, so that nonsense takes no place in the log; and every replica
asks again before it applies, since what lies in the log is the only thing that it can rely on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final, assert_never

from logd.coordination.names import (
    check_command_bytes,
    check_count,
    check_data,
    check_key,
    check_name,
    check_range,
    check_text,
    check_ttl,
    check_value,
    quoted,
)
from logd.errors import InvalidRequestError, NotAuthorizedError, UnsupportedVersionError
from logd.limits import (
    ANSWER_ENTRIES_MAX,
    ATTEMPTS_MAX,
    DEAD_ITEMS_MAX,
    DELAY_MS_MAX,
    ITEMS_PER_COMMAND_MAX,
    KEY_BYTES_MAX,
    NUMBER_MAX,
    OPERATIONS_PER_TRANSACTION_MAX,
    PERMITS_MAX,
    PRIORITY_MAX,
    SHARDS_PER_GROUP_MAX,
    VALUE_BYTES_MAX,
    VISIBILITY_MS_MAX,
    VISIBILITY_MS_MIN,
)
from logd.wire.coordination import (
    Acquire,
    Advance,
    Assign,
    ClaimItems,
    CloseSession,
    Command,
    CompleteItems,
    ConfigureQueue,
    Delete,
    DeleteQueue,
    Entry,
    ExpireSession,
    Get,
    HandOver,
    Increment,
    Item,
    ItemClaim,
    Join,
    Leave,
    LetGo,
    OpenSession,
    Operation,
    Proclaim,
    Put,
    PutItems,
    Query,
    QueueOptions,
    ReadKeys,
    ReadQueue,
    RedriveItems,
    Release,
    ReleaseItems,
    RenewItems,
    ReportLoad,
    Transact,
)
from logd.wording import count_of

_TOKEN_BYTES: Final = 16
_LOAD_MAX: Final = 1e12


def check_entry(entry: Entry) -> None:
    """Accept what a client may propose.

    Raises:
        RequestError: says what is wrong with it.
    """
    check_name("namespace", entry.namespace)
    check_command(entry.command)
    check_sequence(entry)


def check_sequence(entry: Entry) -> None:
    """Accept an entry whose place in its session makes sense.

    Raises:
        RequestError: says what is wrong with it.
    """
    if type(entry.command) is OpenSession:
        return
    if type(entry.command) in LEADERS_OWN:
        raise NotAuthorizedError("only the leader of the partition may propose this")
    if entry.session < 1 or entry.sequence < 1:
        raise InvalidRequestError(
            f"a command belongs to a session and has a sequence from 1 on, found session "
            f"{entry.session}, sequence {entry.sequence}"
        )
    if entry.acknowledged > entry.sequence:
        raise InvalidRequestError(
            f"command {entry.sequence} acknowledges results below {entry.acknowledged}, "
            "its own included"
        )


def check_command(command: Command) -> None:
    """Accept a command whose names, sizes and numbers are within bounds."""
    check = _CHECKS.get(type(command))
    if check is None:
        raise UnsupportedVersionError(f"{type(command).__name__} is no command")
    check(command)


def check_query(query: Query) -> None:
    """Accept a question that can be answered; names that are none are just not there.

    Raises:
        RequestError: says what is wrong with it.
    """
    match query:
        case ReadKeys():
            _check_operation(query.get)
        case ReadQueue():
            check_count("dead", query.dead, 0, ANSWER_ENTRIES_MAX)
        case _:
            pass


def _check_open(command: OpenSession) -> None:
    check_ttl(command.ttl_ms)
    check_text("client", command.client)
    if len(command.token) != _TOKEN_BYTES:
        raise InvalidRequestError(
            f"a session's token has {_TOKEN_BYTES} bytes, found {len(command.token)}"
        )


def _check_nothing(command: CloseSession | ExpireSession | Advance) -> None:
    pass


def _check_transact(command: Transact) -> None:
    parts = len(command.compare) + len(command.then) + len(command.otherwise)
    check_count("comparisons and operations", parts, 0, OPERATIONS_PER_TRANSACTION_MAX)
    size = 0
    for compare in command.compare:
        check_key(compare.key)
        size += len(compare.key) + len(compare.value or b"")
    for operation in (*command.then, *command.otherwise):
        size += _check_operation(operation)
    check_command_bytes(size)


def _check_operation(operation: Operation) -> int:
    """How many bytes it holds."""
    match operation:
        case Put():
            check_key(operation.key)
            check_value("a key's value", operation.value)
            return len(operation.key) + len(operation.value)
        case Get():
            check_range(operation.key, operation.end)
            check_count("limit", operation.limit, 0, NUMBER_MAX)
        case Delete():
            check_range(operation.key, operation.end)
        case Increment():
            check_key(operation.key)
            check_count("by", operation.by, -NUMBER_MAX, NUMBER_MAX)
        case _:
            assert_never(operation)
    return len(operation.key)


def _check_acquire(command: Acquire) -> None:
    check_name(command.kind, command.name)
    check_data(command.data)
    if command.kind == "semaphore":
        check_count("capacity", command.capacity, 1, PERMITS_MAX)
        check_count("permits", command.permits, 1, command.capacity)
    else:
        check_count("permits", command.permits, 1, 1)
        check_count("capacity", command.capacity, 0, 1)
    if command.mode == "shared" and command.kind != "lock":
        raise InvalidRequestError(f"only a lock can be shared, found one of kind {command.kind}")


def _check_ticket(command: Release | HandOver) -> None:
    check_name("name", command.name)


def _check_proclaim(command: Proclaim) -> None:
    check_name("election", command.name)
    check_data(command.data)


def _check_join(command: Join) -> None:
    _check_member(command)
    check_data(command.data)


def _check_member(command: Join | Leave | LetGo | ReportLoad) -> None:
    check_name("group", command.group)
    check_name("member", command.member)


def _check_assign(command: Assign) -> None:
    check_name("group", command.group)
    _check_shards(command.shards)
    if command.weights and len(command.weights) != len(command.shards):
        raise InvalidRequestError(
            f"{count_of(len(command.weights), 'weight')} for "
            f"{count_of(len(command.shards), 'shard')}: "
            "give one each, or none"
        )
    _check_loads(command.weights)


def _check_let_go(command: LetGo) -> None:
    _check_member(command)
    _check_shards(command.shards)


def _check_report(command: ReportLoad) -> None:
    _check_member(command)
    _check_shards(list(command.loads))
    _check_loads(command.loads.values())


def _check_shards(shards: list[str]) -> None:
    check_count("shards", len(shards), 0, SHARDS_PER_GROUP_MAX)
    seen: set[str] = set()
    for shard in shards:
        check_name("shard", shard)
        if shard in seen:
            raise InvalidRequestError(f"shard {shard!r} is named twice")
        seen.add(shard)


def _check_loads(loads: Iterable[float]) -> None:
    for load in loads:
        if not (math.isfinite(load) and 0 <= load <= _LOAD_MAX):
            raise InvalidRequestError(f"a weight is 0 to {_LOAD_MAX:g}, found {load}")


def _check_configure(command: ConfigureQueue) -> None:
    check_name("queue", command.queue)
    check_options(command.options)
    changed, known = command.changed or (), QueueOptions.__struct_fields__
    check_count("options", len(changed), 0, len(known))
    for name in changed:
        if name not in known:
            raise InvalidRequestError(f"queues have no option {quoted(name)}")


def check_options(options: QueueOptions) -> None:
    """Whether a queue may have these.

    Raises:
        InvalidRequestError: one is out of range.
    """
    check_count("attempts_max", options.attempts_max, 1, ATTEMPTS_MAX)
    check_count("backoff_ms", options.backoff_ms, 0, DELAY_MS_MAX)
    check_count("backoff_max_ms", options.backoff_max_ms, options.backoff_ms, DELAY_MS_MAX)
    check_count("dead_items_max", options.dead_items_max, 0, DEAD_ITEMS_MAX)
    _check_visibility(options.visibility_ms)


def _check_put_items(command: PutItems) -> None:
    check_name("queue", command.queue)
    check_count("items", len(command.items), 1, ITEMS_PER_COMMAND_MAX)
    size = 0
    for item in command.items:
        payload_bytes, key_bytes = len(item.payload), len(item.key)
        size += payload_bytes + key_bytes
        if (
            payload_bytes > VALUE_BYTES_MAX
            or key_bytes > KEY_BYTES_MAX
            or not 0 <= item.delay_ms <= DELAY_MS_MAX
            or not -PRIORITY_MAX <= item.priority <= PRIORITY_MAX
        ):
            _refuse_item(item)
    check_command_bytes(size)


def _refuse_item(item: Item) -> None:
    """Say what is wrong with it."""
    check_value("an item's payload", item.payload)
    check_count("bytes of an item's key", len(item.key), 0, KEY_BYTES_MAX)
    check_count("delay_ms", item.delay_ms, 0, DELAY_MS_MAX)
    check_count("priority", item.priority, -PRIORITY_MAX, PRIORITY_MAX)


def _check_claim(command: ClaimItems) -> None:
    check_name("queue", command.queue)
    check_count("count", command.count, 1, ITEMS_PER_COMMAND_MAX)
    _check_visibility(command.visibility_ms)


def _check_renew(command: RenewItems) -> None:
    _check_claims(command.queue, command.claims)
    _check_visibility(command.visibility_ms)


def _check_complete(command: CompleteItems) -> None:
    _check_claims(command.queue, command.claims)


def _check_release_items(command: ReleaseItems) -> None:
    _check_claims(command.queue, command.claims)
    check_text("reason", command.reason)
    check_count("delay_ms", command.delay_ms or 0, 0, DELAY_MS_MAX)
    if command.dead and command.uncounted:
        raise InvalidRequestError("an item that dies of a claim was attempted: dead or uncounted")


def _check_redrive(command: RedriveItems) -> None:
    check_name("queue", command.queue)
    check_count("items", len(command.items), 0, ITEMS_PER_COMMAND_MAX)


def _check_delete_queue(command: DeleteQueue) -> None:
    check_name("queue", command.queue)


def _check_claims(queue: str, claims: list[ItemClaim]) -> None:
    check_name("queue", queue)
    check_count("claims", len(claims), 1, ITEMS_PER_COMMAND_MAX)
    if len({claim.item for claim in claims}) != len(claims):
        raise InvalidRequestError("an item is named twice")


def _check_visibility(visibility_ms: int | None) -> None:
    if visibility_ms is not None:
        check_count("visibility_ms", visibility_ms, VISIBILITY_MS_MIN, VISIBILITY_MS_MAX)


LEADERS_OWN: Final = (ExpireSession, Advance)

_CHECKS: Final[dict[type, Callable[[Any], None]]] = {
    OpenSession: _check_open,
    CloseSession: _check_nothing,
    ExpireSession: _check_nothing,
    Advance: _check_nothing,
    Transact: _check_transact,
    Acquire: _check_acquire,
    Release: _check_ticket,
    Proclaim: _check_proclaim,
    HandOver: _check_ticket,
    Join: _check_join,
    Leave: _check_member,
    Assign: _check_assign,
    LetGo: _check_let_go,
    ReportLoad: _check_report,
    ConfigureQueue: _check_configure,
    PutItems: _check_put_items,
    ClaimItems: _check_claim,
    RenewItems: _check_renew,
    CompleteItems: _check_complete,
    ReleaseItems: _check_release_items,
    RedriveItems: _check_redrive,
    DeleteQueue: _check_delete_queue,
}
