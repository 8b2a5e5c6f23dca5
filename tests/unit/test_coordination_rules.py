"""The rules of coordination against models that are too simple to be wrong.

Each model knows one promise and nothing of how it is kept: a lock is a list of who asked, a queue a
set of items, keys are a dictionary, an assignment is who was told that a shard is its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from logd.coordination.state import CoordinationState
from logd.wire.coordination import (
    Acquire,
    Assign,
    Assignment,
    Claim,
    ClaimedItem,
    ClaimItems,
    Compare,
    CompleteItems,
    Delete,
    Get,
    Holders,
    Item,
    ItemClaim,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    Join,
    Keys,
    Leave,
    LetGo,
    LockMode,
    Put,
    PutItems,
    QueueStatistics,
    ReadAssignment,
    ReadKeys,
    ReadLock,
    ReadQueue,
    Release,
    ReleaseItems,
    Transact,
    Transacted,
)
from tests.support.coordination import NAMESPACE, Partition

PLAIN = settings(max_examples=40, stateful_step_count=40, deadline=None)
SESSIONS = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """Four clients, each with a session that is opened anew when it is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.partition = Partition()
        self.sessions = [self.partition.open() for _ in range(4)]

    def lose_session(self, client: int) -> int:
        """Returns the session that was lost."""
        lost = self.sessions[client]
        self.partition.expire(lost)
        self.sessions[client] = self.partition.open()
        return lost

    @rule()
    def restart(self) -> None:
        self.partition.state = CoordinationState.restore(self.partition.state.snapshot())

    @invariant()
    def invariants_hold(self) -> None:
        self.partition.state.check_invariants()


class LockRules(Machine):
    """Who asked first is granted first, exclusively, with a token above all before."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int, LockMode]] = []
        """Session, ticket, mode, in order of asking."""
        self.newest_exclusive = 0
        self.tokens: dict[int, int] = {}

    @rule(client=SESSIONS, mode=st.sampled_from(["exclusive", "shared"]))
    def acquire(self, client: int, mode: LockMode) -> None:
        session = self.sessions[client]
        claim = self.partition.do(session, Acquire(kind="lock", name="a", mode=mode))
        assert isinstance(claim, Claim)
        self.asked.append((session, claim.ticket, mode))
        self.check()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        session, ticket, _ = asked
        self.partition.do(session, Release(kind="lock", name="a", ticket=ticket))
        self.asked.remove(asked)
        self.check()

    @rule(client=SESSIONS)
    def lose(self, client: int) -> None:
        lost = self.lose_session(client)
        self.asked = [asked for asked in self.asked if asked[0] != lost]
        self.check()

    def check(self) -> None:
        answer = self.partition.state.answer(NAMESPACE, ReadLock(kind="lock", name="a"))
        assert isinstance(answer, Holders)
        expected = self.expected_holders()
        assert [holder.ticket for holder in answer.holders] == expected
        waiting = [ticket for _, ticket, _ in self.asked if ticket not in expected]
        assert [holder.ticket for holder in answer.waiting] == waiting
        for holder in answer.holders:
            self.check_token(holder.ticket, holder.token or 0, holder.mode)

    def expected_holders(self) -> list[int]:
        """The first, and the readers behind it up to the first writer, if it is one."""
        holders: list[int] = []
        for _, ticket, mode in self.asked:
            if holders and mode == "exclusive":
                break
            holders.append(ticket)
            if mode == "exclusive":
                break
        return holders

    def check_token(self, ticket: int, token: int, mode: LockMode) -> None:
        if ticket in self.tokens:
            assert token == self.tokens[ticket]
            return
        assert token > self.newest_exclusive
        self.tokens[ticket] = token
        if mode == "exclusive":
            assert all(token > other for at, other in self.tokens.items() if at != ticket)
            self.newest_exclusive = token


class QueueRules(Machine):
    """Every item that was put is completed once, or still there; none is claimed by two."""

    def __init__(self) -> None:
        super().__init__()
        self.put_items: set[int] = set()
        self.completed: set[int] = set()
        self.claims: dict[int, tuple[int, ClaimedItem, int]] = {}
        """Item → session, claim, until when it holds."""
        self.old_claims: list[tuple[int, ClaimedItem]] = []
        self.key_of: dict[int, bytes] = {}

    @rule(count=st.integers(1, 4), key=st.sampled_from([b"", b"", b"k", b"l"]), delay=st.booleans())
    def put(self, count: int, key: bytes, delay: bool) -> None:
        items = [Item(payload=b"x", key=key, delay_ms=5_000 if delay else 0)] * count
        result = self.partition.do(self.sessions[0], PutItems(queue="q", items=items))
        assert isinstance(result, ItemsPut)
        assert not self.put_items & set(result.items)
        self.put_items.update(result.items)
        self.key_of.update(dict.fromkeys(result.items, key))

    @rule(client=SESSIONS, count=st.integers(1, 4))
    def claim(self, client: int, count: int) -> None:
        self.forget_what_ran_out()
        session = self.sessions[client]
        result = self.partition.do(session, ClaimItems(queue="q", count=count))
        assert isinstance(result, ItemsClaimed)
        for item in result.items:
            assert item.item in self.put_items - self.completed
            assert item.item not in self.claims
            keys = [self.key_of[claimed] for claimed in self.claims]
            assert not item.key or item.key not in keys
            assert all(
                item.token > old.token for _, old in self.old_claims if old.item == item.item
            )
            self.claims[item.item] = (session, item, self.partition.now_ms + 30_000)

    @precondition(lambda self: self.claims or self.old_claims)
    @rule(data=st.data(), release=st.booleans())
    def settle(self, data: st.DataObject, release: bool) -> None:
        self.forget_what_ran_out()
        live = [(session, item) for session, item, _ in self.claims.values()]
        session, item = data.draw(st.sampled_from([*live, *self.old_claims]))
        claims = [ItemClaim(item=item.item, token=item.token)]
        command = ReleaseItems(queue="q", claims=claims) if release else None
        result = self.partition.do(session, command or CompleteItems(queue="q", claims=claims))
        if (session, item) not in live:
            assert not isinstance(result, ItemsSettled) or result.stale == [item.item]
            return
        assert isinstance(result, ItemsSettled)
        assert result.settled == [item.item]
        del self.claims[item.item]
        self.old_claims.append((session, item))
        if not release:
            assert item.item not in self.completed
            self.completed.add(item.item)

    @rule(ms=st.sampled_from([1, 1_000, 29_999, 30_000, 60_000]))
    def sleep(self, ms: int) -> None:
        self.partition.sleep(ms)

    @rule(client=SESSIONS)
    def lose(self, client: int) -> None:
        self.forget_what_ran_out()
        lost = self.lose_session(client)
        for item, (session, claimed, _) in list(self.claims.items()):
            if session == lost:
                del self.claims[item]
                self.old_claims.append((session, claimed))

    def forget_what_ran_out(self) -> None:
        for item, (session, claimed, until_ms) in list(self.claims.items()):
            if until_ms <= self.partition.now_ms:
                del self.claims[item]
                self.old_claims.append((session, claimed))

    @invariant()
    def nothing_is_lost(self) -> None:
        if not self.put_items:
            return
        found = self.partition.state.answer(NAMESPACE, ReadQueue(queue="q"))
        assert isinstance(found, QueueStatistics)
        held = found.ready + found.delayed + found.in_flight + found.dead
        assert found.completed == len(self.completed)
        assert held == len(self.put_items) - len(self.completed)


class AssignmentRules(Machine):
    """Who was told that a shard is its own, and has not let go of it or left, is the only one."""

    def __init__(self) -> None:
        super().__init__()
        self.working: dict[str, tuple[int, str]] = {}
        """Shard → session and member that may be working on it."""
        self.newest: dict[str, int] = {}
        self.listed: set[str] = set()
        self.present: dict[str, int] = {}

    @rule(client=SESSIONS)
    def join(self, client: int) -> None:
        member = f"m{client}"
        self.partition.do(self.sessions[client], Join(group="g", member=member))
        self.present[member] = self.sessions[client]

    @rule(client=SESSIONS)
    def leave(self, client: int) -> None:
        self.partition.do(self.sessions[client], Leave(group="g", member=f"m{client}"))
        self.present.pop(f"m{client}", None)
        self.stop(lambda session: session == self.sessions[client])

    @rule(client=SESSIONS)
    def lose(self, client: int) -> None:
        self.present.pop(f"m{client}", None)
        lost = self.sessions[client]
        self.stop(lambda session: session == lost)
        self.lose_session(client)

    @rule(
        count=st.integers(0, 9),
        weights=st.lists(st.sampled_from([0.0, 1.0, 10.0]), min_size=9, max_size=9),
        weighted=st.booleans(),
    )
    def assign(self, count: int, weights: list[float], weighted: bool) -> None:
        shards = [f"s{at}" for at in range(count)]
        command = Assign(group="g", shards=shards, weights=weights[:count] if weighted else [])
        self.partition.do(self.sessions[0], command)
        self.listed = set(shards)

    @rule(client=SESSIONS)
    def let_go(self, client: int) -> None:
        member, session = f"m{client}", self.sessions[client]
        mine = [s.shard for s in self.read().shards if s.revoked and s.owner == member]
        if not mine:
            return
        for shard in mine:
            self.working.pop(shard, None)
        self.partition.do(session, LetGo(group="g", member=member, shards=mine))

    def stop(self, of: Callable[[int], bool]) -> None:
        self.working = {s: who for s, who in self.working.items() if not of(who[0])}

    def read(self) -> Assignment:
        answer = self.partition.state.answer(NAMESPACE, ReadAssignment(group="g"))
        assert isinstance(answer, Assignment)
        return answer

    @invariant()
    def no_shard_has_two_owners(self) -> None:
        for event in self.partition.events():
            if event.kind != "assignment" or event.change != "owner":
                continue
            who = (event.session, event.owner)
            assert self.working.setdefault(event.subject, who) == who
            assert event.token >= self.newest.get(event.subject, 0)
            self.newest[event.subject] = event.token

    @invariant()
    def every_shard_is_somebody_s(self) -> None:
        shards = {shard.shard: shard for shard in self.read().shards}
        assert self.listed <= set(shards)
        for shard in shards.values():
            assert shard.owner is None or shard.owner in self.present
            assert shard.owner is not None or not self.present


class KeyRules(Machine):
    """A dictionary, with an owner for each key that goes with a session."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[bytes, tuple[bytes, int, int]] = {}
        """Key → value, owner, revision."""
        self.watched: dict[bytes, bytes] = {}

    keys = st.sampled_from([b"\x00", b"a", b"a\x00", b"ab", b"b", b"\xff"])

    @rule(client=SESSIONS, key=keys, value=st.binary(max_size=3), ephemeral=st.booleans())
    def put(self, client: int, key: bytes, value: bytes, ephemeral: bool) -> None:
        session = self.sessions[client]
        command = Transact(then=[Put(key=key, value=value, ephemeral=ephemeral)])
        done = self.partition.do(session, command)
        self.model[key] = (value, session if ephemeral else 0, done.revision)

    @rule(start=keys, end=st.none() | keys | st.just(b""))
    def delete(self, start: bytes, end: bytes | None) -> None:
        done = self.partition.do(self.sessions[0], Transact(then=[Delete(key=start, end=end)]))
        gone = self.within(start, end)
        assert isinstance(done, Transacted)
        assert done.results[0].count == len(gone)
        for key in gone:
            del self.model[key]

    @rule(key=keys, right=st.booleans())
    def compare_and_set(self, key: bytes, right: bool) -> None:
        revision = self.model[key][2] if key in self.model else 0
        compare = Compare(key=key, revision=revision if right else revision + 1)
        command = Transact(compare=[compare], then=[Put(key=key, value=b"set")])
        done = self.partition.do(self.sessions[1], command)
        assert isinstance(done, Transacted)
        assert done.succeeded == right
        if right:
            self.model[key] = (b"set", 0, done.revision)

    @rule(client=SESSIONS)
    def lose(self, client: int) -> None:
        lost = self.lose_session(client)
        self.model = {key: entry for key, entry in self.model.items() if entry[1] != lost}

    @rule(start=keys, end=st.none() | keys | st.just(b""))
    def read(self, start: bytes, end: bytes | None) -> None:
        answer = self.partition.state.answer(NAMESPACE, ReadKeys(get=Get(key=start, end=end)))
        assert isinstance(answer, Keys)
        assert [(e.key, e.value, e.session, e.revision) for e in answer.found] == [
            (key, *self.model[key]) for key in self.within(start, end)
        ]

    def within(self, start: bytes, end: bytes | None) -> list[bytes]:
        if end is None:
            return [start] if start in self.model else []
        above = sorted(key for key in self.model if operator.ge(key, start))
        return [key for key in above if not end or key < end]

    @invariant()
    def a_watch_sees_what_there_is(self) -> None:
        for event in self.partition.events():
            if event.change == "put":
                self.watched[event.name] = event.value
            else:
                del self.watched[event.name]
        assert self.watched == {key: entry[0] for key, entry in self.model.items()}


def test_locks_are_exclusive_and_fair() -> None:
    run_state_machine_as_test(LockRules, settings=PLAIN)


def test_each_item_is_completed_once_or_still_there() -> None:
    run_state_machine_as_test(QueueRules, settings=PLAIN)


def test_no_shard_has_two_owners_ever() -> None:
    run_state_machine_as_test(AssignmentRules, settings=PLAIN)


def test_keys_are_a_dictionary() -> None:
    run_state_machine_as_test(KeyRules, settings=PLAIN)
