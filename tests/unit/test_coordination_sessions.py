"""Sessions: results once, what a session holds goes with it."""

from __future__ import annotations

import random

import pytest

from logd.coordination import sessions
from logd.coordination.checks import check_sequence
from logd.coordination.state import CoordinationState
from logd.errors import (
    InvalidNameError,
    InvalidRequestError,
    NotAuthorizedError,
    OverloadedError,
    RequestError,
    SessionExpiredError,
)
from logd.limits import RESULTS_PER_SESSION_MAX
from logd.types import Offset
from logd.wire.coordination import (
    Acquire,
    Advance,
    Claim,
    CloseSession,
    Command,
    Done,
    Entry,
    Get,
    Increment,
    Keys,
    Opened,
    OpenSession,
    Put,
    ReadKeys,
    ReadLock,
    ReadSessions,
    Refused,
    Release,
    Result,
    Sessions,
    Transact,
    Transacted,
)
from logd_client.coordination.sessions import (
    ADOPTED_LOWEST,
    ADOPTERS_WAIT_MINUTES,
    MINUTE_MS,
    adopters_place,
)
from tests.support.coordination import NAMESPACE, Partition, error_of

TOKEN = bytes(16)
COUNT_ONE = Transact(then=[Increment(key=b"n")])


def value(partition: Partition, key: bytes = b"n") -> bytes | None:
    keys = partition.state.answer(NAMESPACE, ReadKeys(get=Get(key=key)))
    assert isinstance(keys, Keys)
    return keys.found[0].value if keys.found else None


def test_opening_again_with_the_same_token_is_the_same_session() -> None:
    partition = Partition()
    entry = Entry(NAMESPACE, 0, 0, 0, 5, OpenSession(token=TOKEN, ttl_ms=10_000))

    first, second = partition.apply(entry), partition.apply(entry)

    assert isinstance(first, Opened)
    assert isinstance(second, Opened)
    assert first.session == second.session
    assert list(partition.state.sessions()) == [(first.session, 10_000)]


def test_a_command_that_comes_again_is_answered_and_not_repeated() -> None:
    partition = Partition()
    session = partition.open()
    entry = partition.entry(session, COUNT_ONE)

    first = partition.apply(entry)

    assert partition.apply(entry) == first
    assert value(partition) == b"1"


def test_a_refusal_that_comes_again_is_the_same_refusal() -> None:
    partition = Partition()
    session, other = partition.open(), partition.open()
    held = partition.do(other, Acquire(kind="lock", name="a"))
    entry = partition.entry(session, Acquire(kind="lock", name="a", queue=False))
    refused = partition.apply(entry)
    assert isinstance(held, Claim)
    partition.do(other, Release(kind="lock", name="a", ticket=held.ticket))

    assert isinstance(refused, Refused)
    assert partition.apply(entry) == refused


def test_commands_of_a_session_may_come_in_any_order_each_once() -> None:
    partition = Partition()
    session = partition.open()
    first, second = (Entry(NAMESPACE, session, at, 0, 5, COUNT_ONE) for at in (1, 2))

    results = [partition.apply(entry) for entry in (second, first, second, first)]

    assert results[:2] == results[2:]
    assert value(partition) == b"2"


def test_a_command_whose_result_was_acknowledged_is_not_applied_again() -> None:
    partition = Partition()
    session = partition.open()
    old = partition.entry(session, COUNT_ONE)
    partition.apply(old)
    partition.do(session, COUNT_ONE)

    assert error_of(partition.apply(old)) is InvalidRequestError
    assert value(partition) == b"2"


def test_results_are_kept_up_to_a_bound_and_taking_some_makes_room() -> None:
    partition = Partition()
    session = partition.open()

    def count(sequence: int, acknowledged: int) -> object:
        return partition.apply(Entry(NAMESPACE, session, sequence, acknowledged, 5, COUNT_ONE))

    for sequence in range(1, RESULTS_PER_SESSION_MAX + 1):
        assert isinstance(count(sequence, 1), Transacted)
    beyond = RESULTS_PER_SESSION_MAX + 1
    refused = count(beyond, 1)
    taken = count(beyond, 2)

    assert error_of(refused) is OverloadedError
    assert isinstance(taken, Transacted)
    assert value(partition) == b"%d" % beyond


def test_those_who_go_on_with_a_session_that_its_client_left_make_room_for_each_other() -> None:
    """As many as like, also at one time and by clocks that differ; each is a process of its own."""
    partition, chance = Partition(), random.Random(1)
    session = partition.open()
    partition.do(session, COUNT_ONE)
    count = 2 * RESULTS_PER_SESSION_MAX
    tolerated_ms = ADOPTERS_WAIT_MINUTES * MINUTE_MS

    for at in range(count):
        now_ms = 30_000_000 * MINUTE_MS + at * 20_000 - at % 3 * tolerated_ms // 3
        sequence, acknowledged = adopters_place(now_ms, chance)
        entry = Entry(NAMESPACE, session, sequence, acknowledged, 5, COUNT_ONE)
        assert partition.apply(entry) == partition.apply(entry), at

    assert value(partition) == b"%d" % (count + 1)


@pytest.mark.parametrize("now_ms", [-1, 0, 10 * MINUTE_MS, 2**63 - 1, 10**30])
def test_whatever_the_clock_says_their_sequences_are_possible(now_ms: int) -> None:
    partition = Partition()
    session = partition.open()
    sequence, acknowledged = adopters_place(now_ms, random.Random(2))

    check_sequence(Entry(NAMESPACE, session, sequence, acknowledged, 5, COUNT_ONE))

    assert ADOPTED_LOWEST <= sequence < 2**63


def test_what_a_namespace_keeps_of_results_has_a_bound_for_all_of_its_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "RESULT_BYTES_PER_NAMESPACE_MAX", 5_000)
    partition = Partition()
    first, second = partition.open(), partition.open()
    put, get = Put(key=b"k", value=bytes(3_000)), Get(key=b"k")

    def do(session: int, sequence: int, acknowledged: int, operation: Put | Get) -> object:
        command = Transact(then=[operation])
        return partition.apply(Entry(NAMESPACE, session, sequence, acknowledged, 5, command))

    for sequence, operation in ((1, put), (2, get), (3, get)):
        assert isinstance(do(first, sequence, 1, operation), Transacted)

    assert error_of(do(second, 1, 1, get)) is OverloadedError
    assert isinstance(do(first, 4, 4, put), Transacted)  # It has taken what it was answered.
    assert isinstance(do(second, 1, 1, get), Transacted)


def test_what_all_namespaces_keep_of_results_has_a_bound_until_somebody_takes_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "RESULT_BYTES_PER_PARTITION_MAX", 5_000)
    partition = Partition()
    names = ("one", "two", "three")
    opened = {name: partition.open(name) for name in names}

    def do(name: str, sequence: int, command: Command, acknowledged: int = 1) -> Result:
        entry = Entry(name, opened[name], sequence, acknowledged, 5, command)
        return partition.apply(entry)

    read = Transact(then=[Put(key=b"k", value=bytes(3_000)), Get(key=b"k")])
    kept = [do(name, 1, read) for name in names]
    restored = type(partition.state).restore(partition.state.snapshot())
    taken = do("one", 2, COUNT_ONE, acknowledged=2)
    room = do("three", 1, read)
    full = do("three", 2, COUNT_ONE)
    closed = [do("two", 2, CloseSession()), do("three", 3, CloseSession(), acknowledged=1)]

    assert [isinstance(result, Transacted) for result in kept] == [True, True, False]
    assert error_of(kept[2]) is OverloadedError
    assert restored._usage.result_bytes > 5_000
    assert isinstance(taken, Transacted)
    assert isinstance(room, Transacted)
    assert error_of(full) is OverloadedError
    assert [type(result) for result in closed] == [Done, Done]
    assert 0 < partition.state._usage.result_bytes < 5_000


def test_refusals_count_alike_however_they_are_worded() -> None:
    """A key is quoted as the Python of a replica can show it, and all are to count the same."""
    shown = Refused(revision=1, code=2, message="key '\U0001fae8' holds no decimal integer")
    escaped = Refused(revision=1, code=2, message=r"key '\U0001fae8' holds no decimal integer")

    assert sessions.result_bytes(shown) == sessions.result_bytes(escaped) > len(escaped.message)


def test_acknowledging_far_ahead_takes_no_longer() -> None:
    partition = Partition()
    session = partition.open()

    done = partition.apply(Entry(NAMESPACE, session, 2**60, 2**60, 5, COUNT_ONE))

    assert isinstance(done, Transacted)


@pytest.mark.parametrize("end", ["close", "expire"])
def test_an_ended_session_is_refused_and_holds_nothing(end: str) -> None:
    partition = Partition()
    session, other = partition.open(), partition.open()
    partition.do(session, Transact(then=[Put(key=b"mine", value=b"", ephemeral=True)]))
    partition.do(session, Acquire(kind="lock", name="a"))
    waiting = partition.do(other, Acquire(kind="lock", name="a"))
    assert isinstance(waiting, Claim)

    ended = partition.do(session, CloseSession()) if end == "close" else partition.expire(session)
    late = partition.do(session, COUNT_ONE)

    assert isinstance(ended, Done)
    assert error_of(late) is SessionExpiredError
    assert value(partition, b"mine") is None
    assert [(e.change, e.token) for e in partition.events() if e.revision == ended.revision] == [
        ("released", session + 3),
        ("granted", ended.revision),
        ("deleted", 0),
    ]


def test_closing_again_and_expiring_again_change_nothing() -> None:
    partition = Partition()
    session = partition.open()
    partition.do(session, CloseSession())

    assert isinstance(partition.do(session, CloseSession()), Done)
    assert isinstance(partition.expire(session), Done)


def test_a_session_belongs_to_one_namespace() -> None:
    partition = Partition()
    session = partition.open("one")

    assert error_of(partition.do(session, COUNT_ONE, "other")) is SessionExpiredError
    assert partition.state.session_ttl_ms("one", session) == 10_000
    assert partition.state.session_ttl_ms("other", session) is None


def test_an_empty_namespace_is_forgotten_and_its_revisions_go_on() -> None:
    partition = Partition()
    for _ in range(3):
        session = partition.open("brief")
        partition.do(session, Acquire(kind="lock", name="a"), "brief")
        partition.expire(session, "brief")

    assert partition.state.answer("brief", ReadLock(kind="lock", name="a")).revision == 9


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (OpenSession(token=TOKEN, ttl_ms=999), InvalidRequestError),
        (OpenSession(token=TOKEN, ttl_ms=24 * 3600 * 1000 + 1), InvalidRequestError),
        (OpenSession(token=b"short", ttl_ms=1_000), InvalidRequestError),
        (OpenSession(token=TOKEN, ttl_ms=1_000, client="x" * 201), InvalidRequestError),
        (Advance(), NotAuthorizedError),
        (Acquire(kind="lock", name=".."), InvalidNameError),
        (Acquire(kind="lock", name="a\n"), InvalidNameError),
        (Acquire(kind="lock", name="x" * 201), InvalidNameError),
        (Acquire(kind="lock", name=""), InvalidNameError),
        (Acquire(kind="semaphore", name="a", capacity=1, permits=-1), InvalidRequestError),
        (Acquire(kind="semaphore", name="a"), InvalidRequestError),
        (Acquire(kind="semaphore", name="a", capacity=2, permits=3), InvalidRequestError),
        (Acquire(kind="election", name="a", mode="shared"), InvalidRequestError),
        (Acquire(kind="lock", name="a", data=bytes(4097)), InvalidRequestError),
        (Transact(then=[Put(key=b"", value=b"")]), InvalidRequestError),
        (Transact(then=[Put(key=bytes(1025), value=b"")]), InvalidRequestError),
        (Transact(then=[Put(key=b"k", value=bytes(64 * 1024 + 1))]), InvalidRequestError),
    ],
)
def test_what_makes_no_sense_is_refused_before_and_after_it_lies_in_the_log(
    command: Command, error: type[RequestError]
) -> None:
    partition = Partition()
    session = partition.open()
    is_open = isinstance(command, OpenSession)
    number = 0 if is_open else 1
    entry = Entry(NAMESPACE, 0 if is_open else session, number, number, 5, command)

    with pytest.raises(error):
        CoordinationState().check(entry)

    if not isinstance(command, Advance):
        assert error_of(partition.apply(entry)) is error


@pytest.mark.parametrize(
    ("session", "sequence", "acknowledged"), [(0, 1, 0), (1, 0, 0), (1, 1, 2), (-1, 1, 1)]
)
def test_a_command_without_session_or_sequence_is_refused(
    session: int, sequence: int, acknowledged: int
) -> None:
    entry = Entry(NAMESPACE, session, sequence, acknowledged, 5, COUNT_ONE)

    with pytest.raises(InvalidRequestError):
        CoordinationState().check(entry)


def test_log_time_never_goes_back() -> None:
    state = CoordinationState()
    state.apply(Entry(NAMESPACE, 0, 0, 0, 50, Advance()), Offset(1))
    state.apply(Entry(NAMESPACE, 0, 0, 0, 40, Advance()), Offset(2))

    assert (state.log_time_ms, state.applied) == (50, 3)


def test_sessions_can_be_listed_with_what_they_hold() -> None:
    partition = Partition()
    session = partition.open(client="worker 1")
    partition.do(session, Acquire(kind="lock", name="a"))
    partition.do(session, Transact(then=[Put(key=b"mine", value=b"", ephemeral=True)]))

    answer = partition.state.answer(NAMESPACE, ReadSessions())

    assert isinstance(answer, Sessions)
    (found,) = answer.sessions
    assert (found.session, found.client, found.holds) == (session, "worker 1", 2)
