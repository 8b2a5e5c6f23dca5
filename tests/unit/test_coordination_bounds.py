"""A command is carried out up to each of its bounds, and refused beyond with what is too much."""

from __future__ import annotations

import pytest

from logd.coordination.checks import check_command
from logd.errors import InvalidNameError, InvalidRequestError
from logd.limits import (
    ATTEMPTS_MAX,
    DEAD_ITEMS_MAX,
    DELAY_MS_MAX,
    ITEMS_PER_COMMAND_MAX,
    KEY_BYTES_MAX,
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
    Assign,
    ClaimItems,
    Command,
    CompleteItems,
    ConfigureQueue,
    Delete,
    DeleteQueue,
    Get,
    HandOver,
    Increment,
    Item,
    ItemClaim,
    Join,
    Leave,
    LetGo,
    Operation,
    Proclaim,
    Put,
    PutItems,
    QueueOptions,
    RedriveItems,
    Release,
    ReleaseItems,
    RenewItems,
    ReportLoad,
    Transact,
)


def put(**item: object) -> PutItems:
    return PutItems(queue="q", items=[Item(**{"payload": b"", **item})])  # type: ignore[arg-type]


def claims(count: int) -> list[ItemClaim]:
    return [ItemClaim(item=item, token=1) for item in range(count)]


def shards(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def options(**changed: int) -> ConfigureQueue:
    return ConfigureQueue(queue="q", options=QueueOptions(**changed))


def transaction(*operations: Operation) -> Transact:
    return Transact(then=list(operations))


def semaphore(*, permits: int, capacity: int) -> Acquire:
    return Acquire(kind="semaphore", name="s", permits=permits, capacity=capacity)


KEY = bytes(KEY_BYTES_MAX)
VALUE = bytes(VALUE_BYTES_MAX)
MANY = ITEMS_PER_COMMAND_MAX


@pytest.mark.parametrize(
    ("fits", "too_much"),
    [
        (put(payload=VALUE), put(payload=VALUE + b"x")),
        (put(key=KEY), put(key=KEY + b"x")),
        (put(delay_ms=DELAY_MS_MAX), put(delay_ms=DELAY_MS_MAX + 1)),
        (put(delay_ms=0), put(delay_ms=-1)),
        (put(priority=PRIORITY_MAX), put(priority=PRIORITY_MAX + 1)),
        (put(priority=-PRIORITY_MAX), put(priority=-PRIORITY_MAX - 1)),
        (
            PutItems(queue="q", items=[Item(payload=b"")] * MANY),
            PutItems(queue="q", items=[Item(payload=b"")] * (MANY + 1)),
        ),
        (put(), PutItems(queue="q", items=[])),
        (ClaimItems(queue="q", count=MANY), ClaimItems(queue="q", count=MANY + 1)),
        (ClaimItems(queue="q", count=1), ClaimItems(queue="q", count=0)),
        (
            ClaimItems(queue="q", visibility_ms=VISIBILITY_MS_MIN),
            ClaimItems(queue="q", visibility_ms=VISIBILITY_MS_MIN - 1),
        ),
        (
            RenewItems(queue="q", claims=claims(1), visibility_ms=VISIBILITY_MS_MAX),
            RenewItems(queue="q", claims=claims(1), visibility_ms=VISIBILITY_MS_MAX + 1),
        ),
        (
            RenewItems(queue="q", claims=claims(MANY)),
            RenewItems(queue="q", claims=claims(MANY + 1)),
        ),
        (
            CompleteItems(queue="q", claims=claims(MANY)),
            CompleteItems(queue="q", claims=claims(MANY + 1)),
        ),
        (CompleteItems(queue="q", claims=claims(1)), CompleteItems(queue="q", claims=[])),
        (
            CompleteItems(queue="q", claims=claims(2)),
            CompleteItems(queue="q", claims=claims(1) * 2),
        ),
        (
            ReleaseItems(queue="q", claims=claims(MANY), delay_ms=DELAY_MS_MAX),
            ReleaseItems(queue="q", claims=claims(MANY + 1)),
        ),
        (
            ReleaseItems(queue="q", claims=claims(1), delay_ms=DELAY_MS_MAX),
            ReleaseItems(queue="q", claims=claims(1), delay_ms=DELAY_MS_MAX + 1),
        ),
        (
            RedriveItems(queue="q", items=[1] * MANY),
            RedriveItems(queue="q", items=[1] * (MANY + 1)),
        ),
        (options(attempts_max=ATTEMPTS_MAX), options(attempts_max=ATTEMPTS_MAX + 1)),
        (options(attempts_max=1), options(attempts_max=0)),
        (options(dead_items_max=DEAD_ITEMS_MAX), options(dead_items_max=DEAD_ITEMS_MAX + 1)),
        (options(dead_items_max=0), options(dead_items_max=-1)),
        (
            options(backoff_ms=5, backoff_max_ms=5),
            options(backoff_ms=5, backoff_max_ms=4),
        ),
        (options(backoff_max_ms=DELAY_MS_MAX), options(backoff_max_ms=DELAY_MS_MAX + 1)),
        (options(visibility_ms=VISIBILITY_MS_MAX), options(visibility_ms=VISIBILITY_MS_MAX + 1)),
        (
            semaphore(permits=PERMITS_MAX, capacity=PERMITS_MAX),
            semaphore(permits=1, capacity=PERMITS_MAX + 1),
        ),
        (semaphore(permits=2, capacity=2), semaphore(permits=3, capacity=2)),
        (semaphore(permits=1, capacity=1), semaphore(permits=0, capacity=1)),
        (
            Acquire(kind="lock", name="l", capacity=1),
            Acquire(kind="lock", name="l", capacity=2),
        ),
        (Acquire(kind="lock", name="l"), Acquire(kind="lock", name="l", permits=2)),
        (
            Assign(group="g", shards=shards(SHARDS_PER_GROUP_MAX)),
            Assign(group="g", shards=shards(SHARDS_PER_GROUP_MAX + 1)),
        ),
        (Assign(group="g", shards=["a", "b"]), Assign(group="g", shards=["a", "a"])),
        (
            Assign(group="g", shards=["a"], weights=[0]),
            Assign(group="g", shards=["a"], weights=[-1]),
        ),
        (
            ReportLoad(group="g", member="m", loads={"a": 1e12}),
            ReportLoad(group="g", member="m", loads={"a": float("inf")}),
        ),
        (
            transaction(*[Delete(key=b"k")] * OPERATIONS_PER_TRANSACTION_MAX),
            transaction(*[Delete(key=b"k")] * (OPERATIONS_PER_TRANSACTION_MAX + 1)),
        ),
        (transaction(Put(key=KEY, value=VALUE)), transaction(Put(key=KEY, value=VALUE + b"x"))),
        (transaction(Put(key=KEY, value=b"")), transaction(Put(key=KEY + b"x", value=b""))),
        (transaction(Increment(key=KEY)), transaction(Increment(key=KEY + b"x"))),
        (transaction(Get(key=KEY, end=KEY)), transaction(Get(key=b"", end=KEY + b"x"))),
    ],
)
def test_a_command_beyond_a_bound_is_refused(fits: Command, too_much: Command) -> None:
    check_command(fits)

    with pytest.raises(InvalidRequestError):
        check_command(too_much)


@pytest.mark.parametrize(
    "command",
    [
        Acquire(kind="lock", name="no name"),
        Release(kind="lock", name="no name", ticket=1),
        HandOver(name="no name", ticket=1),
        Proclaim(name="no name", ticket=1, data=b""),
        Join(group="no name", member="m"),
        Join(group="g", member="no name"),
        Leave(group="no name", member="m"),
        Leave(group="g", member="no name"),
        LetGo(group="g", member="no name", shards=[]),
        LetGo(group="g", member="m", shards=["no name"]),
        ReportLoad(group="g", member="m", loads={"no name": 1}),
        Assign(group="no name"),
        Assign(group="g", shards=["no name"]),
        ConfigureQueue(queue="no name", options=QueueOptions()),
        PutItems(queue="no name", items=[Item(payload=b"")]),
        ClaimItems(queue="no name"),
        RenewItems(queue="no name", claims=claims(1)),
        CompleteItems(queue="no name", claims=claims(1)),
        ReleaseItems(queue="no name", claims=claims(1)),
        RedriveItems(queue="no name"),
        DeleteQueue(queue="no name"),
    ],
)
def test_a_command_with_a_name_that_is_none_is_refused(command: Command) -> None:
    with pytest.raises(InvalidNameError):
        check_command(command)
