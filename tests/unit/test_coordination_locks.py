"""Locks, semaphores, elections: who is granted what, in which order, with which token."""

from __future__ import annotations

from typing import Literal

from logd.errors import ConflictError, NotHeldError, WouldWaitError
from logd.wire.coordination import (
    Acquire,
    Claim,
    Done,
    HandOver,
    Holders,
    ListNames,
    Names,
    Proclaim,
    ReadClaim,
    ReadLock,
    Release,
)
from tests.support.coordination import NAMESPACE, Partition, error_of

LockKind = Literal["lock", "semaphore", "election"]


def acquire(partition: Partition, session: int, **fields: object) -> Claim:
    command = Acquire(**{"kind": "lock", "name": "a", **fields})  # type: ignore[arg-type]
    claim = partition.do(session, command)
    assert isinstance(claim, Claim), claim
    return claim


def release(
    partition: Partition, session: int, ticket: int, kind: LockKind = "lock", name: str = "a"
) -> object:
    return partition.do(session, Release(kind=kind, name=name, ticket=ticket))


def claim_of(partition: Partition, ticket: int, kind: LockKind = "lock", name: str = "a") -> Claim:
    claim = partition.state.answer(NAMESPACE, ReadClaim(kind=kind, name=name, ticket=ticket))
    assert isinstance(claim, Claim), claim
    return claim


def holders(partition: Partition, kind: LockKind = "lock", name: str = "a") -> Holders:
    found = partition.state.answer(NAMESPACE, ReadLock(kind=kind, name=name))
    assert isinstance(found, Holders)
    return found


def holding(partition: Partition, kind: LockKind = "lock", name: str = "a") -> list[int]:
    return [holder.ticket for holder in holders(partition, kind, name).holders]


def test_a_free_lock_is_granted_at_once_its_token_is_the_ticket() -> None:
    partition = Partition()
    session = partition.open()

    claim = acquire(partition, session)

    assert claim.ticket == claim.token == claim.revision
    assert holding(partition) == [claim.ticket]


def test_who_waits_is_granted_in_order_with_the_revision_that_freed_it() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(3)]
    first, second, third = (acquire(partition, session) for session in sessions)

    released = release(partition, sessions[0], first.ticket)

    assert (second.token, second.position, third.position) == (None, 1, 2)
    assert isinstance(released, Done)
    assert claim_of(partition, second.ticket).token == released.revision
    assert claim_of(partition, third.ticket).position == 1


def test_whether_a_ticket_waits_is_what_its_claim_says() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(3)]
    tickets = [acquire(partition, session).ticket for session in sessions]

    def waiting(namespace: str = NAMESPACE, name: str = "a") -> list[bool]:
        return [
            partition.state.waits(namespace, ReadClaim(kind="lock", name=name, ticket=ticket))
            for ticket in tickets
        ]

    before = waiting()
    release(partition, sessions[0], tickets[0])
    partition.expire(sessions[2])

    assert before == [False, True, True]
    assert waiting() == [False, False, False]
    assert claim_of(partition, tickets[1]).token is not None
    assert waiting(namespace="another") == waiting(name="b") == [False, False, False]


def test_tokens_grow_also_when_the_lock_was_free_between() -> None:
    partition = Partition()
    session = partition.open()
    tokens = []

    for _ in range(3):
        claim = acquire(partition, session)
        tokens.append(claim.token or 0)
        release(partition, session, claim.ticket)

    assert tokens == sorted(set(tokens))
    assert holders(partition).capacity == 1


def test_a_lock_that_cannot_be_had_at_once_is_refused_to_who_does_not_queue() -> None:
    partition = Partition()
    holder, other = partition.open(), partition.open()
    acquire(partition, holder)

    refused = partition.do(other, Acquire(kind="lock", name="a", queue=False))

    assert error_of(refused) is WouldWaitError
    assert holders(partition).waiting == []


def test_readers_share_and_do_not_overtake_a_waiting_writer() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(4)]
    first = acquire(partition, sessions[0], mode="shared")
    second = acquire(partition, sessions[1], mode="shared")
    writer = acquire(partition, sessions[2])
    late = acquire(partition, sessions[3], mode="shared")

    assert (first.token, second.token) == (first.ticket, second.ticket)
    assert (writer.token, late.token) == (None, None)

    release(partition, sessions[0], first.ticket)
    release(partition, sessions[1], second.ticket)
    assert holding(partition) == [writer.ticket]

    release(partition, sessions[2], writer.ticket)
    assert holding(partition) == [late.ticket]


def test_readers_at_the_head_are_granted_together() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(4)]
    writer = acquire(partition, sessions[0])
    readers = [acquire(partition, session, mode="shared") for session in sessions[1:3]]
    acquire(partition, sessions[3])

    release(partition, sessions[0], writer.ticket)

    assert holding(partition) == [reader.ticket for reader in readers]


def test_a_writer_that_gives_up_waiting_lets_the_readers_behind_it_in() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(3)]
    first = acquire(partition, sessions[0], mode="shared")
    writer = acquire(partition, sessions[1])
    behind = acquire(partition, sessions[2], mode="shared")

    release(partition, sessions[1], writer.ticket)

    assert holding(partition) == [first.ticket, behind.ticket]


def test_a_semaphore_has_its_permits_and_a_large_request_is_not_overtaken() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(4)]
    permits = [2, 1, 3, 1]
    one, two, large, small = (
        acquire(partition, session, kind="semaphore", permits=count, capacity=3)
        for session, count in zip(sessions, permits, strict=True)
    )

    assert (one.token, two.token) == (one.ticket, two.ticket)
    assert (large.token, small.token) == (None, None)

    release(partition, sessions[0], one.ticket, "semaphore")
    assert holding(partition, "semaphore") == [two.ticket]

    release(partition, sessions[1], two.ticket, "semaphore")
    assert holding(partition, "semaphore") == [large.ticket]


def test_a_semaphore_in_use_has_one_capacity_and_another_once_it_is_free() -> None:
    partition = Partition()
    session = partition.open()
    claim = acquire(partition, session, kind="semaphore", capacity=2)
    other = Acquire(kind="semaphore", name="a", capacity=3)

    assert error_of(partition.do(session, other)) is ConflictError

    release(partition, session, claim.ticket, "semaphore")
    assert isinstance(partition.do(session, other), Claim)


def test_what_is_lost_or_another_s_cannot_be_released() -> None:
    partition = Partition()
    holder, other = partition.open(), partition.open()
    claim = acquire(partition, holder)

    assert error_of(release(partition, other, claim.ticket)) is NotHeldError
    assert isinstance(release(partition, holder, claim.ticket), Done)
    assert error_of(release(partition, holder, claim.ticket)) is NotHeldError


def test_a_session_that_died_while_waiting_is_never_granted() -> None:
    partition = Partition()
    holder, dead, alive = (partition.open() for _ in range(3))
    claim = acquire(partition, holder)
    acquire(partition, dead)
    behind = acquire(partition, alive)

    partition.expire(dead)
    release(partition, holder, claim.ticket)

    assert holding(partition) == [behind.ticket]
    assert dead not in {e.session for e in partition.events() if e.change == "granted"}


def test_a_session_that_dies_is_not_granted_what_it_gives_back_itself() -> None:
    partition = Partition()
    session, other = partition.open(), partition.open()
    acquire(partition, session)
    acquire(partition, session)
    acquire(partition, session, mode="shared")
    behind = acquire(partition, other)
    partition.events()

    partition.expire(session)

    assert [(e.change, e.session) for e in partition.events()] == [
        ("released", session),
        ("granted", other),
    ]
    assert holding(partition) == [behind.ticket]


def test_kinds_have_names_of_their_own() -> None:
    partition = Partition()
    session = partition.open()
    for kind in ("lock", "semaphore", "election"):
        acquire(partition, session, kind=kind, name=kind[:1], capacity=int(kind == "semaphore"))

    names = [partition.state.answer(NAMESPACE, ListNames(kind=k)) for k in ("lock", "election")]

    assert [found.names for found in names if isinstance(found, Names)] == [["l"], ["e"]]


def test_a_leader_hands_over_to_whom_it_names() -> None:
    partition = Partition()
    sessions = [partition.open() for _ in range(3)]
    leader, second, third = (acquire(partition, s, kind="election") for s in sessions)

    refused = partition.do(sessions[1], HandOver(name="a", ticket=second.ticket))
    unknown = partition.do(sessions[0], HandOver(name="a", ticket=leader.ticket, to=4711))
    done = partition.do(sessions[0], HandOver(name="a", ticket=leader.ticket, to=third.ticket))

    assert error_of(refused) is NotHeldError
    assert error_of(unknown) is ConflictError
    assert isinstance(done, Done)
    assert claim_of(partition, third.ticket, "election").token == done.revision
    assert claim_of(partition, second.ticket, "election").position == 1
    assert error_of(release(partition, sessions[0], leader.ticket, "election")) is NotHeldError


def test_a_leader_hands_over_to_the_next_or_stays_if_there_is_none() -> None:
    partition = Partition()
    first, second = partition.open(), partition.open()
    leader = acquire(partition, first, kind="election")
    hand_over = HandOver(name="a", ticket=leader.ticket)

    assert error_of(partition.do(first, hand_over)) is ConflictError
    assert holding(partition, "election") == [leader.ticket]

    following = acquire(partition, second, kind="election")
    partition.do(first, hand_over)
    assert holding(partition, "election") == [following.ticket]


def test_what_a_candidate_proclaims_is_seen() -> None:
    partition = Partition()
    first, second = partition.open(), partition.open()
    leader = acquire(partition, first, kind="election", data=b"old")
    waiting = acquire(partition, second, kind="election")
    partition.events()

    partition.do(first, Proclaim(name="a", ticket=leader.ticket, data=b"new"))
    partition.do(second, Proclaim(name="a", ticket=waiting.ticket, data=b"me too"))

    found = holders(partition, "election")
    assert [h.data for h in (*found.holders, *found.waiting)] == [b"new", b"me too"]
    assert [(e.change, e.value, e.token) for e in partition.events()] == [
        ("data", b"new", leader.token),
        ("data", b"me too", 0),
    ]


def test_a_holder_is_shown_with_its_client_and_since_when() -> None:
    partition = Partition()
    session = partition.open(client="worker 7")
    partition.now_ms += 5
    acquire(partition, session, data=b"x")

    (holder,) = holders(partition).holders

    assert (holder.client, holder.since_ms, holder.data) == ("worker 7", partition.now_ms, b"x")
