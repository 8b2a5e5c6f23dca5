"""Keys: compare-and-set, transactions that are all or nothing, ranges, keys of a session."""

from __future__ import annotations

import pytest

from logd.coordination import keys
from logd.coordination.events import bytes_of
from logd.coordination.snapshots import RECORDS_PER_PART
from logd.coordination.state import CoordinationState
from logd.errors import (
    CompactedError,
    ConflictError,
    CorruptionError,
    InvalidNameError,
    InvalidRequestError,
    NewerFormatError,
    QuotaExceededError,
)
from logd.limits import (
    EVENT_BYTES_PER_NAMESPACE_MAX,
    EVENTS_PER_NAMESPACE_MAX,
    ITEMS_PER_COMMAND_MAX,
    OPERATIONS_PER_TRANSACTION_MAX,
    VALUE_BYTES_MAX,
)
from logd.wire.coordination import (
    Compare,
    Delete,
    Event,
    Get,
    Increment,
    Item,
    Keys,
    KeyValue,
    Operation,
    Put,
    PutItems,
    ReadKeys,
    ReadQueue,
    Refused,
    Transact,
    Transacted,
)
from tests.support.coordination import NAMESPACE, Partition, error_of


def transact(partition: Partition, session: int, *then: Operation) -> Transacted:
    done = partition.do(session, Transact(then=list(then)))
    assert isinstance(done, Transacted), done
    return done


def read(partition: Partition, key: bytes, end: bytes | None = None, limit: int = 0) -> Keys:
    keys = partition.state.answer(NAMESPACE, ReadKeys(get=Get(key=key, end=end, limit=limit)))
    assert isinstance(keys, Keys), keys
    return keys


def find(partition: Partition, key: bytes) -> KeyValue | None:
    return next(iter(read(partition, key).found), None)


def test_a_key_has_the_revision_of_its_change_and_of_its_creation() -> None:
    partition = Partition()
    session = partition.open()
    first = transact(partition, session, Put(key=b"k", value=b"1"))
    second = transact(partition, session, Put(key=b"k", value=b"2"))

    assert find(partition, b"k") == KeyValue(
        key=b"k", value=b"2", revision=second.revision, created=first.revision
    )


def test_compare_and_set_takes_the_branch_that_holds() -> None:
    partition = Partition()
    session = partition.open()

    def create(value: bytes) -> bool:
        done = partition.do(
            session,
            Transact(
                compare=[Compare(key=b"k", revision=0)],
                then=[Put(key=b"k", value=value)],
                otherwise=[Get(key=b"k")],
            ),
        )
        assert isinstance(done, Transacted)
        assert done.succeeded or done.results[0].found[0].value == b"1"
        return done.succeeded

    assert [create(b"1"), create(b"2")] == [True, False]


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(key=b"k", exists=True), True),
        (Compare(key=b"k", exists=False), False),
        (Compare(key=b"x", exists=False), True),
        (Compare(key=b"k", value=b"1"), True),
        (Compare(key=b"k", value=b"2"), False),
        (Compare(key=b"x", value=b""), False),
        (Compare(key=b"k", revision=2), True),
        (Compare(key=b"k", revision=1), False),
        (Compare(key=b"x", revision=0, created=0), True),
        (Compare(key=b"k", created=2, value=b"2"), False),
    ],
)
def test_comparisons(compare: Compare, holds: bool) -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=b"k", value=b"1"))

    done = partition.do(session, Transact(compare=[compare]))

    assert isinstance(done, Transacted)
    assert done.succeeded == holds


def test_a_transaction_sees_its_own_changes_and_has_one_event_a_key() -> None:
    partition = Partition()
    session = partition.open()

    done = transact(
        partition,
        session,
        Put(key=b"a", value=b"1"),
        Put(key=b"a", value=b"2"),
        Get(key=b"a"),
        Put(key=b"brief", value=b""),
        Delete(key=b"brief"),
    )

    assert [result.count for result in done.results] == [0, 0, 1, 0, 1]
    assert done.results[2].found[0].value == b"2"
    assert [(e.name, e.change, e.value) for e in partition.events()] == [(b"a", "put", b"2")]


def test_a_transaction_that_is_refused_changes_nothing() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=b"text", value=b"x"), Put(key=b"old", value=b"1"))
    before = read(partition, b"", b"").found
    partition.events()

    refused = partition.do(
        session,
        Transact(
            then=[
                Put(key=b"new", value=b"", ephemeral=True),
                Delete(key=b"old"),
                Put(key=b"text", value=b"y"),
                Put(key=b"text", value=b"z"),
                Increment(key=b"text"),
            ]
        ),
    )

    assert error_of(refused) is ConflictError
    assert read(partition, b"", b"").found == before
    assert partition.events() == []
    partition.state.check_invariants()


def test_ranges_are_half_open_in_order_and_tell_how_many_there_are() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, *(Put(key=b"k%d" % at, value=b"") for at in (3, 1, 0, 2)))

    assert [e.key for e in read(partition, b"k1", b"k3").found] == [b"k1", b"k2"]
    assert [e.key for e in read(partition, b"k2", b"").found] == [b"k2", b"k3"]
    assert read(partition, b"k3", b"k1").found == []
    limited = read(partition, b"k", b"l", limit=3)
    assert (len(limited.found), limited.count) == (3, 4)


@pytest.mark.parametrize(
    "query",
    [
        ReadKeys(get=Get(key=b"")),
        ReadKeys(get=Get(key=b"a", end=b"", limit=-1)),
        ReadKeys(get=Get(key=b"a", end=bytes(1025))),
        ReadQueue(queue="q", dead=-1),
        ReadQueue(queue="q", dead=10_001),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(query: ReadKeys | ReadQueue) -> None:
    partition = Partition()
    partition.open()

    assert error_of(partition.state.answer(NAMESPACE, query)) is InvalidRequestError
    assert error_of(partition.state.answer("no name", query)) is InvalidNameError


def test_a_range_is_deleted_as_one_change() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, *(Put(key=b"k%d" % at, value=b"") for at in range(4)))
    partition.events()

    done = transact(partition, session, Delete(key=b"k1", end=b"k3"))

    assert done.results[0].count == 2
    assert [(e.name, e.revision) for e in partition.events()] == [
        (b"k1", done.revision),
        (b"k2", done.revision),
    ]


def test_answers_have_a_bound_in_bytes_but_hold_at_least_one() -> None:
    partition = Partition()
    session = partition.open()
    for at in range(80):
        transact(partition, session, Put(key=b"%03d" % at, value=bytes(64 * 1024)))

    answered = read(partition, b"", b"")
    within = transact(partition, session, Get(key=b"", end=b""), Get(key=b"", end=b"")).results

    assert 50 < len(answered.found) < answered.count == 80
    assert 10 < len(within[0].found) < within[0].count == 80
    assert len(within[1].found) == 1


def test_a_transaction_that_reads_too_much_is_refused_and_changes_nothing() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=b"k", value=bytes(64 * 1024)))

    reads = [Get(key=b"k")] * 70
    refused = partition.do(session, Transact(then=[Put(key=b"new", value=b""), *reads]))

    assert error_of(refused) is QuotaExceededError
    assert find(partition, b"new") is None
    assert len(transact(partition, session, *reads[:60]).results) == 60


def test_a_number_is_counted_from_nothing_and_kept_within_64_bits() -> None:
    partition = Partition()
    session = partition.open()

    up = transact(partition, session, Increment(key=b"n", by=5), Increment(key=b"n", by=-7))
    beyond = partition.do(session, Transact(then=[Increment(key=b"n", by=2**63 - 1)] * 2))

    assert [result.found[0].value for result in up.results] == [b"5", b"-2"]
    assert error_of(beyond) is ConflictError
    assert (found := find(partition, b"n")) is not None
    assert found.value == b"-2"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (b"visits", "'visits'"),
        ("gr\u00f6\u00dfe".encode(), "'gr\u00f6\u00dfe'"),
        (b"\xff\x00", r"b'\xff\x00'"),
        (b"k" * 500, f"'{30 * 'k'}'...'{30 * 'k'}'"),
    ],
)
def test_what_is_no_number_is_refused_with_its_key_as_one_would_write_it(
    key: bytes, shown: str
) -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=key, value=b"many"))

    refused = partition.do(session, Transact(then=[Increment(key=key)]))

    assert isinstance(refused, Refused)
    assert refused.message == f"key {shown} holds no decimal integer"


def test_an_ephemeral_key_is_its_last_writer_s() -> None:
    partition = Partition()
    first, second = partition.open(), partition.open()
    mine = Put(key=b"k", value=b"", ephemeral=True)
    transact(partition, first, mine)
    transact(partition, second, mine)
    transact(partition, first, Put(key=b"kept", value=b"", ephemeral=True))
    transact(partition, second, Put(key=b"kept", value=b""))

    partition.expire(first)
    assert [e.key for e in read(partition, b"", b"").found] == [b"k", b"kept"]

    partition.expire(second)
    assert [e.key for e in read(partition, b"", b"").found] == [b"kept"]


def test_an_ephemeral_key_that_was_put_among_other_changes_goes_with_its_session_too() -> None:
    partition = Partition()
    session = partition.open()
    transact(
        partition,
        session,
        Put(key=b"mine", value=b"", ephemeral=True),
        Put(key=b"kept", value=b""),
    )

    partition.expire(session)

    assert [e.key for e in read(partition, b"", b"").found] == [b"kept"]


def test_an_ephemeral_key_that_is_counted_up_stays_its_owner_s() -> None:
    partition = Partition()
    owner, other = partition.open(), partition.open()
    transact(partition, owner, Put(key=b"n", value=b"1", ephemeral=True))

    transact(partition, other, Increment(key=b"n"))
    assert (found := find(partition, b"n")) is not None
    assert (found.value, found.session) == (b"2", owner)

    partition.expire(owner)
    assert find(partition, b"n") is None


def test_a_range_of_too_many_keys_is_refused_and_nothing_of_it_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One command must not hold the event loop of every replica for long."""
    monkeypatch.setattr(keys, "KEYS_DELETED_MAX", 3)
    partition = Partition()
    session = partition.open()
    transact(partition, session, *[Put(key=b"k%d" % number, value=b"") for number in range(4)])

    refused = partition.do(session, Transact(then=[Delete(key=b"k", end=b"l")]))
    assert error_of(refused) is QuotaExceededError
    assert len(read(partition, b"", b"").found) == 4

    transact(partition, session, Delete(key=b"k", end=b"k3"))
    assert [entry.key for entry in read(partition, b"", b"").found] == [b"k3"]


def history(
    partition: Partition, start: bytes, end: bytes | None, from_revision: int
) -> list[Event]:
    return partition.state.history(NAMESPACE, "key", start, end, from_revision)


def test_a_watch_resumes_with_what_it_has_not_seen() -> None:
    partition = Partition()
    session = partition.open()
    revisions = [
        transact(partition, session, Put(key=key, value=b"")).revision for key in (b"a", b"b", b"a")
    ]

    assert [e.revision for e in history(partition, b"a", None, 0)] == [revisions[0], revisions[2]]
    assert [e.revision for e in history(partition, b"a", b"", revisions[1])] == revisions[1:]
    assert history(partition, b"a", b"b", partition.state.applied) == []
    assert partition.state.history(NAMESPACE, "lock", b"a", b"", 0) == []


def test_a_watch_from_what_is_no_longer_kept_is_told_what_is() -> None:
    partition = Partition()
    session = partition.open()
    for _ in range(EVENTS_PER_NAMESPACE_MAX + 50):
        transact(partition, session, Put(key=b"a", value=b""))

    with pytest.raises(CompactedError) as refused:
        history(partition, b"a", None, 0)

    oldest = refused.value.oldest
    assert len(history(partition, b"a", None, oldest)) == EVENTS_PER_NAMESPACE_MAX
    with pytest.raises(CompactedError):
        history(partition, b"a", None, oldest - 1)


def test_large_events_after_many_small_ones_are_kept_within_the_bound_in_bytes() -> None:
    partition = Partition()
    session = partition.open()
    for _ in range(EVENTS_PER_NAMESPACE_MAX):
        transact(partition, session, Put(key=b"a", value=b""))
    for _ in range(300):
        transact(partition, session, Put(key=b"a", value=bytes(VALUE_BYTES_MAX)))

    with pytest.raises(CompactedError) as refused:
        history(partition, b"a", None, 0)
    kept = history(partition, b"a", None, refused.value.oldest)
    assert 0 < sum(map(bytes_of, kept)) <= EVENT_BYTES_PER_NAMESPACE_MAX
    assert kept[-1].revision == partition.revision


def test_a_restored_state_has_no_events_from_before() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=b"a", value=b""))

    partition.state = CoordinationState.restore(partition.state.snapshot())

    with pytest.raises(CompactedError) as refused:
        history(partition, b"a", None, 1)
    assert refused.value.oldest == partition.state.applied
    put = transact(partition, session, Put(key=b"a", value=b"2"))
    assert history(partition, b"a", None, refused.value.oldest)[0].revision == put.revision


def test_a_snapshot_of_more_keys_than_fit_one_part_has_each_of_them_once() -> None:
    partition = Partition()
    session = partition.open()
    keys = [b"%05d" % number for number in range(2 * RECORDS_PER_PART + 500)]
    for key in keys:
        transact(partition, session, Put(key=key, value=b"1"))

    partition.state = CoordinationState.restore(partition.state.snapshot())

    partition.state.check_invariants()
    found = read(partition, b"", b"")
    assert [entry.key for entry in found.found] == keys
    assert found.count == len(keys)
    transact(partition, session, Delete(key=keys[0]))
    assert read(partition, b"", b"", limit=1).found[0].key == keys[1]


def test_a_large_state_is_taken_over_with_a_rest_after_each_part() -> None:
    """All of it at once would hold an event loop for seconds."""
    partition = Partition()
    session = partition.open()
    for first in range(0, 10 * RECORDS_PER_PART, OPERATIONS_PER_TRANSACTION_MAX):
        numbers = range(first, first + OPERATIONS_PER_TRANSACTION_MAX)
        transact(partition, session, *(Put(key=b"%06d" % number, value=b"") for number in numbers))
    for number in range(10):
        items = [Item(payload=b"") for _ in range(ITEMS_PER_COMMAND_MAX)]
        partition.do(session, PutItems(queue=f"q{number % 2}", items=items))

    snapshot = partition.state.snapshot()
    state = CoordinationState()
    rests = sum(1 for _ in state.fill(snapshot))

    assert rests >= 10 + 2
    state.check_invariants()
    assert state.snapshot() == snapshot


def test_a_namespace_that_was_forgotten_has_forgotten_its_events() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=b"a", value=b"", ephemeral=True))
    partition.expire(session)

    for _ in range(2):
        with pytest.raises(CompactedError):
            history(partition, b"a", None, session)
        partition.open()


def test_what_is_no_snapshot_is_refused() -> None:
    partition = Partition()
    session = partition.open()
    transact(partition, session, Put(key=b"a", value=b"1"))
    whole = partition.state.snapshot()

    for length in range(len(whole)):
        with pytest.raises(CorruptionError):
            CoordinationState.restore(whole[:length])
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        with pytest.raises((CorruptionError, NewerFormatError)):
            CoordinationState.restore(bytes(damaged))
