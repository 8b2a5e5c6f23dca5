"""Quotas: refused with the figure, nothing half-done, and room again when something goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from logd import limits
from logd.coordination import assignments, members, quotas, state
from logd.coordination.quotas import QUOTAS, PartitionUsage, Usage
from logd.coordination.state import CoordinationState
from logd.errors import QuotaExceededError
from logd.wire.coordination import (
    Acquire,
    Assign,
    Claim,
    ClaimItems,
    Command,
    Delete,
    DeleteQueue,
    Done,
    Get,
    Item,
    Join,
    Leave,
    LetGo,
    Proclaim,
    Put,
    PutItems,
    Refused,
    Release,
    Transact,
)
from tests.support.coordination import NAMESPACE, Partition, error_of


def make_small(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A namespace holds two of it, or 100 bytes; of all else it has room for more."""
    monkeypatch.setitem(QUOTAS, what, 100 if what.startswith("bytes") else 2)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda at: Transact(then=[Put(key=b"%d" % at, value=b"")]), quotas.KEYS),
        (lambda at: Transact(then=[Put(key=b"k", value=bytes(50 * at))]), quotas.KEY_BYTES),
        (lambda at: Acquire(kind="lock", name=f"n{at}"), quotas.TICKETS),
        (lambda at: Acquire(kind="election", name="e", data=bytes(45)), quotas.DATA_BYTES),
        (lambda at: Join(group="g", member="m", data=bytes(50 * at)), quotas.DATA_BYTES),
        (lambda at: Join(group="g", member=f"m{at}", data=bytes(45)), quotas.DATA_BYTES),
        (lambda at: Join(group="g", member=f"m{at}"), quotas.MEMBERS),
        (lambda at: Assign(group=f"g{at}", shards=["s"]), quotas.SHARDS),
        (lambda at: PutItems(queue=f"q{at}", items=[Item(payload=b"")]), quotas.QUEUES),
        (lambda at: PutItems(queue="q", items=[Item(payload=b"")]), quotas.ITEMS),
        (lambda at: PutItems(queue="q", items=[Item(payload=bytes(45))]), quotas.ITEM_BYTES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_too_much_is_refused_with_the_figure(
    make: Callable[[int], Command], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch, what)
    partition = Partition()
    session = partition.open()
    before, refused = b"", None

    for at in range(4):
        result = partition.do(session, make(at))
        if isinstance(result, Refused):
            refused = result
            break
        before = contents(partition)

    assert refused is not None
    assert error_of(refused) is QuotaExceededError
    assert f" {what}, at most {QUOTAS[what]} are allowed" in refused.message
    assert contents(partition) == before
    partition.state.check_invariants()


def test_who_watches_is_told_which_namespace_has_used_most_of_which_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(QUOTAS, quotas.KEYS, 10)
    monkeypatch.setitem(QUOTAS, quotas.SESSIONS, 4)
    partition = Partition()
    assert partition.state.fullest() is None

    session = partition.open()
    assert partition.state.fullest() == (0.25, NAMESPACE, quotas.SESSIONS)
    other = partition.open("another")
    puts = [Put(key=b"%d" % number, value=b"") for number in range(9)]
    for put in puts:
        partition.do(other, Transact(then=[put]), "another")
    partition.do(session, Transact(then=[*puts[:1]]))
    assert partition.state.fullest() == (0.9, "another", quotas.KEYS)

    monkeypatch.setattr(limits, "STATE_BYTES_PER_PARTITION_MAX", 1)
    used, namespace, quota = partition.state.fullest() or (0, "", "")
    assert used > 1
    assert (namespace, quota) == ("", quotas.STATE_BYTES)


def contents(partition: Partition) -> bytes:
    """A snapshot without what each command changes: its result, the revision, the time."""
    state = CoordinationState.restore(partition.state.snapshot())
    space = state._namespaces[NAMESPACE]
    for session in space.sessions.values():
        session.results.clear()
        session.acknowledged = 0
    state._applied = type(state._applied)(0)
    return state.snapshot()


def test_what_a_candidate_shows_is_held_to_the_quota_when_it_changes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_small(monkeypatch, quotas.DATA_BYTES)
    partition = Partition()
    session = partition.open()
    claim = partition.do(session, Acquire(kind="election", name="e", data=bytes(99)))
    assert isinstance(claim, Claim)

    fits = partition.do(session, Proclaim(name="e", ticket=claim.ticket, data=bytes(100)))
    refused = partition.do(session, Proclaim(name="e", ticket=claim.ticket, data=bytes(101)))

    assert isinstance(fits, Done)
    assert isinstance(refused, Refused)
    assert error_of(refused) is QuotaExceededError
    assert "at most 100 are allowed, 1 more were asked for" in refused.message


def test_a_group_has_so_many_members_and_those_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBERS_PER_GROUP_MAX", 2)
    partition = Partition()
    session = partition.open()
    for member in ("a", "b"):
        assert isinstance(partition.do(session, Join(group="g", member=member)), Done)

    refused = partition.do(session, Join(group="g", member="c"))

    assert isinstance(refused, Refused)
    assert error_of(refused) is QuotaExceededError
    assert "group 'g' has 2 members already" in refused.message
    assert isinstance(partition.do(session, Join(group="g", member="a", data=b"new")), Done)
    assert isinstance(partition.do(session, Join(group="other", member="c")), Done)


def test_a_group_has_so_many_shards_those_included_that_are_not_let_go_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assignments, "SHARDS_PER_GROUP_MAX", 3)
    partition = Partition()
    session = partition.open()
    partition.do(session, Join(group="g", member="owner"))
    assert isinstance(partition.do(session, Assign(group="g", shards=["a", "b", "c"])), Done)
    assert isinstance(partition.do(session, Assign(group="g", shards=["a"])), Done)

    refused = partition.do(session, Assign(group="g", shards=["a", "d"]))

    assert isinstance(refused, Refused)
    assert error_of(refused) is QuotaExceededError
    assert "would have 4 shards" in refused.message
    assert "at most 3 are allowed" in refused.message
    partition.do(session, LetGo(group="g", member="owner", shards=["b", "c"]))
    assert isinstance(partition.do(session, Assign(group="g", shards=["a", "d"])), Done)


def test_sessions_have_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch, quotas.SESSIONS)
    partition = Partition()
    partition.open()
    session = partition.open()

    with pytest.raises(AssertionError, match="2 sessions, at most 2 are allowed, 1 more"):
        partition.open()

    partition.expire(session)
    partition.open()


def test_namespaces_share_the_partition_s_bytes() -> None:
    partition = PartitionUsage()
    first, second = Usage(partition), Usage(partition)
    first.add(quotas.KEY_BYTES, limits.STATE_BYTES_PER_PARTITION_MAX - 10)

    second.require(quotas.KEY_BYTES, 10)
    with pytest.raises(QuotaExceededError):
        second.require(quotas.KEY_BYTES, 11)


def test_a_partition_has_so_many_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "NAMESPACES_PER_PARTITION_MAX", 2)
    partition = Partition()
    partition.open()
    partition.open("another")

    with pytest.raises(AssertionError, match="a partition holds at most 2 namespaces"):
        partition.open("too-many")

    partition.open("another")


def test_a_session_that_is_refused_leaves_no_namespace_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partition = Partition()
    partition.open()
    monkeypatch.setattr(limits, "STATE_BYTES_PER_PARTITION_MAX", 0)

    with pytest.raises(AssertionError, match="share a partition would hold"):
        partition.open("another")

    assert list(partition.state._namespaces) == [NAMESPACE]
    partition.state.check_invariants()


def test_what_goes_leaves_no_trace_in_what_is_counted() -> None:
    partition = Partition()
    session = partition.open()
    claim = partition.do(session, Acquire(kind="election", name="e", data=b"x"))
    commands: list[Command] = [
        Transact(then=[Put(key=b"k", value=b"v", ephemeral=True), Put(key=b"l", value=b"v")]),
        Transact(then=[Get(key=b"", end=b""), Delete(key=b"", end=b"")]),
        Join(group="g", member="m", data=b"1"),
        Join(group="g", member="m", data=b"123"),
        Assign(group="g", shards=["s", "t"]),
        Leave(group="g", member="m"),
        Assign(group="g", shards=[]),
        PutItems(queue="q", items=[Item(payload=b"x", key=b"k"), Item(payload=b"y")]),
        ClaimItems(queue="q"),
        DeleteQueue(queue="q"),
        Release(kind="election", name="e", ticket=claim.revision),
    ]
    for command in commands:
        assert not isinstance(partition.do(session, command), Refused)

    partition.expire(session)

    assert partition.state._usage.state_bytes == 0
    assert partition.state._namespaces == {}


def test_a_restored_state_has_counted_the_same() -> None:
    partition = Partition()
    session = partition.open(client="c")
    for command in (
        Acquire(kind="lock", name="a", data=b"data"),
        Transact(then=[Put(key=b"k", value=b"v"), Get(key=b"k")]),
        Join(group="g", member="m", data=b"1"),
        Assign(group="g", shards=["s", "t"]),
        PutItems(queue="q", items=[Item(payload=b"x", key=b"k"), Item(payload=b"y")]),
        ClaimItems(queue="q"),
    ):
        partition.do(session, command)

    restored = CoordinationState.restore(partition.state.snapshot())

    assert restored._usage.state_bytes == partition.state._usage.state_bytes
