"""Random histories: invariants after every command, and a restored state goes on like the one it
was taken of."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Literal

import pytest

from logd.coordination.state import CoordinationState
from logd.errors import NotAuthorizedError, RequestError
from logd.types import Offset
from logd.wire.coordination import (
    Acquire,
    Advance,
    Assign,
    Claim,
    ClaimItems,
    CloseSession,
    Command,
    Compare,
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
    ItemsClaimed,
    Join,
    Leave,
    LetGo,
    ListNames,
    OpenSession,
    Operation,
    Proclaim,
    Put,
    PutItems,
    Query,
    QueueOptions,
    ReadAssignment,
    ReadKeys,
    ReadLock,
    ReadMembers,
    ReadQueue,
    ReadSessions,
    RedriveItems,
    Release,
    ReleaseItems,
    RenewItems,
    ReportLoad,
    Transact,
)

LockKind = Literal["lock", "semaphore", "election"]

NAMESPACES: Final = ("one", "two")
QUERIES: Final[tuple[Query, ...]] = (
    ReadKeys(get=Get(key=b"", end=b"")),
    ReadLock(kind="lock", name="a"),
    ReadLock(kind="semaphore", name="a"),
    ReadLock(kind="election", name="b"),
    ReadMembers(group="a"),
    ReadAssignment(group="a"),
    ReadQueue(queue="a", dead=10),
    ReadQueue(queue="b", dead=10),
    ReadSessions(),
    ListNames(kind="lock"),
    ListNames(kind="queue"),
)


class History:
    """Draws commands that often make sense, because they name what lately was there."""

    def __init__(self, seed: int, state: CoordinationState) -> None:
        self.chance = random.Random(seed)
        self.state = state
        self.sessions: list[tuple[str, int]] = []
        self.sequences: dict[int, int] = {}
        self.session = 0
        self.tickets: list[tuple[int, LockKind, str, int]] = [(0, "lock", "a", 1)]
        """Session, kind, name, ticket."""
        self.claims: list[tuple[int, str, ItemClaim]] = [(0, "a", ItemClaim(item=1, token=1))]
        """Session, queue, claim."""
        self.now_ms = 1_000
        self.sent: list[Entry] = []

    def draw(self, revision: int) -> Entry:
        chance = self.chance
        self.now_ms += chance.choice((0, 0, 0, 0, 0, 1, 20, 400))
        roll = chance.random()
        living = [at for at in self.sessions if self.state.session_ttl_ms(*at) is not None]
        if roll < 0.01 or len(living) < 3:
            return self._leader_s(
                chance.choice(NAMESPACES),
                OpenSession(token=revision.to_bytes(16, "big"), ttl_ms=5_000),
            )
        namespace, session = chance.choice(self.sessions if roll > 0.98 else living)
        if roll < 0.02:
            return self._leader_s(namespace, ExpireSession(session=session))
        if roll < 0.06:
            return self._leader_s(namespace, Advance())
        if roll < 0.10 and self.sent:
            return chance.choice(self.sent[-20:])
        self.session = session
        sequence = self.sequences[session] = self.sequences.get(session, 0) + 1
        acknowledged = max(1, sequence - chance.choice((0, 0, 3)))
        command = chance.choice(self._makers())()
        entry = Entry(namespace, session, sequence, acknowledged, self.now_ms, command)
        self.sent.append(entry)
        return entry

    def learn(self, entry: Entry, result: object) -> None:
        if isinstance(entry.command, OpenSession):
            opened = getattr(result, "session", None)
            if opened is not None:
                self.sessions.append((entry.namespace, opened))
                self.sessions = self.sessions[-6:]
        if isinstance(result, Claim) and isinstance(entry.command, Acquire):
            command = entry.command
            self.tickets.append((entry.session, command.kind, command.name, result.ticket))
            self.tickets = self.tickets[-30:]
        if isinstance(result, ItemsClaimed) and isinstance(entry.command, ClaimItems):
            for item in result.items:
                claim = ItemClaim(item=item.item, token=item.token)
                self.claims.append((entry.session, entry.command.queue, claim))
            self.claims = self.claims[-30:]

    def _leader_s(self, namespace: str, command: Command) -> Entry:
        return Entry(namespace, 0, 0, 0, self.now_ms, command)

    def _makers(self) -> tuple[Callable[[], Command], ...]:
        return (
            self._transact,
            self._transact,
            self._acquire,
            self._acquire,
            self._release,
            self._release,
            self._election,
            self._election,
            self._group,
            self._group,
            self._assignment,
            self._put,
            self._put,
            self._claim,
            self._claim,
            self._settle,
            self._settle,
            self._settle,
            self._queue,
            CloseSession if self.chance.random() < 0.1 else self._transact,
        )

    def _name(self) -> str:
        return self.chance.choice("ab")

    def _key(self) -> bytes:
        return self.chance.choice((b"a", b"b", b"c", b"n"))

    def _transact(self) -> Command:
        operations: list[Operation] = [
            Put(key=self._key(), value=b"1", ephemeral=self.chance.random() < 0.5),
            Put(key=self._key(), value=b"text"),
            Delete(key=self._key()),
            Delete(key=self._key(), end=self._key()),
            Increment(key=self._key(), by=self.chance.randint(-3, 3)),
            Get(key=self._key(), end=b""),
        ]
        return Transact(
            compare=[Compare(key=self._key(), exists=True)] if self.chance.random() < 0.3 else [],
            then=self.chance.choices(operations, k=3),
            otherwise=self.chance.choices(operations, k=1),
        )

    def _lock_kind(self) -> LockKind:
        kinds: tuple[LockKind, ...] = ("lock", "semaphore", "election", "election")
        return self.chance.choice(kinds)

    def _acquire(self) -> Command:
        kind = self._lock_kind()
        capacity = 3 if kind == "semaphore" else 0
        return Acquire(
            kind=kind,
            name=self._name(),
            mode="shared" if kind == "lock" and self.chance.random() < 0.5 else "exclusive",
            permits=self.chance.randint(1, capacity) if capacity else 1,
            capacity=capacity,
            queue=self.chance.random() < 0.9,
        )

    def _ticket(self, kinds: tuple[LockKind, ...]) -> tuple[LockKind, str, int]:
        """Mostly one of the session's own."""
        mine = [at for at in self.tickets if at[0] == self.session and at[1] in kinds][:2]
        chosen = mine if mine and self.chance.random() < 0.8 else self.tickets
        return self.chance.choice(chosen)[1:]

    def _release(self) -> Command:
        kind, name, ticket = self._ticket(("lock", "semaphore", "election"))
        return Release(kind=kind, name=name, ticket=ticket)

    def _election(self) -> Command:
        _, name, ticket = self._ticket(("election",))
        if self.chance.random() < 0.2:
            return Proclaim(name=name, ticket=ticket, data=b"x")
        to = self.chance.choice((None, None, self.chance.choice(self.tickets)[3]))
        return HandOver(name=name, ticket=ticket, to=to)

    def _member(self) -> str:
        """Mostly the session's own name."""
        return f"m{self.session if self.chance.random() < 0.8 else 1}"

    def _group(self) -> Command:
        group, member = self._name(), self._member()
        if self.chance.random() < 0.7:
            return Join(group=group, member=member, data=self._key())
        return Leave(group=group, member=member)

    def _assignment(self) -> Command:
        group, member = self._name(), self._member()
        shards = [f"s{at}" for at in range(self.chance.randint(0, 6))]
        roll = self.chance.random()
        if roll < 0.4:
            weights = [self.chance.choice((0.0, 1.0, 7.5)) for _ in shards]
            return Assign(group=group, shards=shards, weights=weights if roll < 0.2 else [])
        if roll < 0.8:
            return LetGo(group=group, member=member, shards=shards)
        return ReportLoad(group=group, member=member, loads=dict.fromkeys(shards, 2.5))

    def _put(self) -> Command:
        return PutItems(
            queue=self._name(),
            items=[
                Item(
                    payload=self._key(),
                    key=self.chance.choice((b"", b"k", b"l")),
                    delay_ms=self.chance.choice((0, 0, 700)),
                    priority=self.chance.randint(-1, 1),
                )
                for _ in range(self.chance.randint(1, 3))
            ],
        )

    def _claim(self) -> Command:
        return ClaimItems(queue=self._name(), count=self.chance.randint(1, 3), visibility_ms=1_000)

    def _settle(self) -> Command:
        mine = [claim for claim in self.claims if claim[0] == self.session]
        chosen = mine[-3:] if mine and self.chance.random() < 0.9 else self.claims
        picked = [self.chance.choice(chosen)]
        queue = picked[0][1]
        claims = list({claim.item: claim for _, _, claim in picked}.values())
        roll = self.chance.random()
        if roll < 0.5:
            return CompleteItems(queue=queue, claims=claims)
        if roll < 0.7:
            return RenewItems(queue=queue, claims=claims)
        return ReleaseItems(
            queue=queue, claims=claims, dead=roll < 0.8, uncounted=roll > 0.9, reason="r"
        )

    def _queue(self) -> Command:
        roll = self.chance.random()
        if roll < 0.3:
            return DeleteQueue(queue=self._name())
        if roll < 0.6:
            return RedriveItems(queue=self._name())
        options = QueueOptions(attempts_max=2, backoff_ms=10, dead_items_max=3)
        changed = None if roll < 0.8 else ["attempts_max"]
        return ConfigureQueue(queue=self._name(), options=options, changed=changed)


def answers(state: CoordinationState) -> list[object]:
    return [state.answer(namespace, query) for namespace in NAMESPACES for query in QUERIES]


@pytest.mark.parametrize("seed", range(12))
def test_invariants_hold_and_a_restored_state_is_the_same_after_every_command(seed: int) -> None:
    state = CoordinationState()
    history = History(seed, state)
    followers: list[CoordinationState] = []

    for revision in range(1, 200):
        entry = history.draw(revision)
        result = state.apply(entry, Offset(revision))
        history.learn(entry, result)
        events = state.take_events()
        state.check_invariants()
        for follower in followers:
            assert follower.apply(entry, Offset(revision)) == result
            assert follower.take_events() == events
        snapshot = state.snapshot()
        restored = CoordinationState.restore(snapshot)
        restored.check_invariants()
        assert restored.snapshot() == snapshot
        assert restored.due_ms == state.due_ms
        assert all(follower.snapshot() == snapshot for follower in followers)
        if revision % 50 == 0:
            assert answers(restored) == answers(state)
            followers.append(restored)


def test_histories_hit_every_kind_of_command_and_mostly_take_effect() -> None:
    state = CoordinationState()
    history = History(4711, state)
    done: dict[str, int] = {}

    for revision in range(1, 6_000):
        entry = history.draw(revision)
        result = state.apply(entry, Offset(revision))
        history.learn(entry, result)
        if type(result).__name__ != "Refused":
            name = type(entry.command).__name__
            done[name] = done.get(name, 0) + 1

    assert len(done) == 22
    assert sorted(done.values())[2] >= 20, done


@pytest.mark.parametrize("seed", range(8))
def test_batches_that_were_checked_before_give_what_single_entries_give(seed: int) -> None:
    """As a leader applies its own batches, and a follower entry by entry."""
    state, leader = CoordinationState(), CoordinationState()
    history = History(seed, state)
    entries: list[Entry] = []
    results = []
    for revision in range(1, 400):
        entry = history.draw(revision)
        results.append(state.apply(entry, Offset(revision)))
        history.learn(entry, results[-1])
        entries.append(entry)

    at, found = 0, []
    while at < len(entries):
        batch = entries[at : at + history.chance.randint(1, 40)]
        found += leader.apply_all(batch, Offset(at + 1), are_checked=all(map(passes, batch)))
        at += len(batch)

    assert found == results
    assert leader.snapshot() == state.snapshot()
    assert leader.take_events() == state.take_events()


def passes(entry: Entry) -> bool:
    """What the leader proposes of its own it need not check."""
    try:
        CoordinationState().check(entry)
    except NotAuthorizedError:
        return True
    except RequestError:
        return False
    return True
