"""Clients of coordination in one run: keys, locks that protect a log, and a queue of work.

What is checked does not rest on what the broker says of itself.  Keys: a search for an order that
explains all answers.  Locks: nobody is granted one while another, by its own clock, still certainly
holds it; and the log that a lock protects never has an older token behind a newer.  Queues: every
item is completed exactly once, and not handed out after that.  Sessions: none is lost that was
kept alive.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from logd.errors import LogdError, NotHeldError, SessionExpiredError, UnknownNameError
from logd.record.batch import seal_batch
from logd.types import HostPort
from logd.wire.coordination import (
    Acquire,
    Claim,
    ClaimItems,
    CloseSession,
    Compare,
    CompleteItems,
    Get,
    Item,
    ItemClaim,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    Keys,
    Put,
    PutItems,
    QueueStatistics,
    ReadClaim,
    ReadKeys,
    ReadQueue,
    Refused,
    Release,
    Transact,
    Transacted,
    fence_id_of,
)
from logd.wire.messages import Kind, ProduceRequest, ProduceResponse
from tests.sim.cluster import CLIENT_PORT, SimCluster
from tests.sim.incarnation import Incarnation
from tests.support.coordination_wire import WireClient, WireSession
from tests.support.linearizability import Model, NotLinearizableError, Operation, check

if TYPE_CHECKING:
    from tests.sim.workload import Workload

NAMESPACE = "n"
PROTECTED_TOPIC = "protected"
QUEUE = "q"
KEYS = (b"a", b"b", b"c")
LOCKS = ("l", "m")
OPERATIONS_PER_KEY_MAX = 150
ITEMS_MAX = 200
TTL_MS = (1_000, 3_000, 6_000)
VISIBILITY_MS = 2_000
PAUSE_S = 0.5
"""Between two things that a worker does; the mean."""

SETTLED_S = 60.0


KeyState = tuple[bytes | None]


def _step(state: KeyState, operation: Operation) -> KeyState | None:
    """A key that holds one value, or none."""
    kind, *arguments = operation.asked
    if kind == "get":
        return state if state[0] == operation.answered else None
    if kind == "put":
        return (arguments[0],)
    value, expected = arguments
    holds = state[0] == expected
    if operation.returned is not None and operation.answered != holds:
        return None
    return (value,) if holds else state


KEY: Final[Model[KeyState]] = Model((None,), _step)


@dataclass(slots=True)
class _Held:
    """Somebody was told that it has a lock, and has not begun to give it back."""

    session: WireSession
    token: int


@dataclass(slots=True)
class CoordinationWorkload:
    """Starts the clients and judges what they were told."""

    cluster: SimCluster
    workload: Workload
    protected_group: int
    wrong: list[str] = field(default_factory=list)
    operations: dict[bytes, list[Operation]] = field(default_factory=dict)
    held: dict[str, _Held] = field(default_factory=dict)
    put_items: set[bytes] = field(default_factory=set)
    doubtful_items: set[bytes] = field(default_factory=set)
    """Whether they were put is not known."""
    completed: dict[int, int] = field(default_factory=dict)
    """Item → revision at which it was completed."""
    hosts: int = 0
    tokens: int = 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[WireClient]:
        """A client on a machine of its own."""
        self.hosts += 1
        host = self.cluster.network.attach(Incarnation(f"coordinator{self.hosts}", 1))
        async with trio.open_nursery() as nursery:
            client = WireClient(
                host.connect_stream,
                [HostPort(f"node{node}", CLIENT_PORT) for node in self.cluster.nodes],
                nursery,
            )
            client.topics.append(PROTECTED_TOPIC)
            yield client
            nursery.cancel_scope.cancel()

    async def coordinate(self, number: int) -> None:
        """One worker, session after session, until the run is over."""
        chance = random.Random(f"{self.cluster.seed}:coordinator{number}")
        async with self.client() as client:
            while not self.workload.is_over:
                self.tokens += 1
                session = await client.open_session(
                    NAMESPACE, self.tokens.to_bytes(16, "big"), chance.choice(TTL_MS)
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._stay, session)
                    with suppress(SessionExpiredError):
                        await self._work(session, chance, f"coordinator{number}")
                    nursery.cancel_scope.cancel()

    async def _stay(self, session: WireSession) -> None:
        await session.stay()
        # One that is being closed may be gone before the answer is here.
        if trio.current_time() < session.deadline and not session.is_closing:
            self.wrong.append(
                f"coordination: session {session.session} expired before the time it was promised"
            )

    async def _work(self, session: WireSession, chance: random.Random, name: str) -> None:
        calls = (self._key, self._key, self._lock, self._put_items, self._work_items)
        until = trio.current_time() + chance.choice([5.0, 20.0, 1000.0])
        while not self.workload.is_over and trio.current_time() < until:
            await chance.choice(calls)(session, chance, name)
            await trio.sleep(chance.expovariate(1.0) * PAUSE_S)
        with suppress(LogdError):
            for lock, held in list(self.held.items()):
                if held.session is session:
                    del self.held[lock]
            session.is_closing = True
            await session.do(CloseSession())

    # --- keys -----------------------------------------------------------------------------------

    async def _key(self, session: WireSession, chance: random.Random, name: str) -> None:
        key = chance.choice(KEYS)
        history = self.operations.setdefault(key, [])
        if len(history) >= OPERATIONS_PER_KEY_MAX:
            return
        self.tokens += 1
        value = b"%s-%d" % (name.encode(), self.tokens)
        called = trio.current_time()
        kind = chance.choice(["get", "put", "swap"])
        place = len(history)
        if kind == "get":
            answer = await session.client.query(NAMESPACE, ReadKeys(get=Get(key=key)))
            assert isinstance(answer, Keys)
            found = answer.found[0].value if answer.found else None
            history.append(Operation(("get",), found, called, trio.current_time(), name))
            return
        if kind == "put":
            asked: tuple[object, ...] = ("put", value)
            compare = []
        else:
            expected = next((o.answered for o in reversed(history) if o.asked[0] == "get"), None)
            asked = ("swap", value, expected)
            compare = [
                Compare(key=key, exists=False)
                if expected is None
                else Compare(key=key, value=expected)
            ]
        history.append(Operation(asked, called=called, client=name))
        result = await session.do(Transact(compare=compare, then=[Put(key=key, value=value)]))
        assert isinstance(result, Transacted)
        history[place] = Operation(asked, result.succeeded, called, trio.current_time(), name)

    # --- locks ----------------------------------------------------------------------------------

    async def _lock(self, session: WireSession, chance: random.Random, name: str) -> None:
        lock = chance.choice(LOCKS)
        claim = await session.do(Acquire(kind="lock", name=lock))
        assert isinstance(claim, Claim)
        query = ReadClaim(kind="lock", name=lock, ticket=claim.ticket)
        given_up_at = trio.current_time() + chance.choice([1.0, 10.0])
        answer: Claim = claim
        while answer.token is None and trio.current_time() < given_up_at:
            found = await session.client.query(NAMESPACE, query, wait_ms=1_000)
            if isinstance(found, Refused):
                raise SessionExpiredError(found.message)  # It was taken along.
            assert isinstance(found, Claim)
            answer = found
        if answer.token is not None:
            self._granted(lock, session, answer.token)
            for _ in range(chance.randint(0, 3)):
                await self._append(session, lock, answer.token)
                await trio.sleep(chance.choice([0.0, 0.1, 0.5]))
        held = self.held.get(lock)
        if held is not None and held.session is session:
            del self.held[lock]
        with suppress(NotHeldError):
            await session.do(Release(kind="lock", name=lock, ticket=claim.ticket))

    def _granted(self, lock: str, session: WireSession, token: int) -> None:
        self.cluster.trace.record("coordinators", "lock_granted", lock=lock, token=token)
        if not session.is_certain:
            return  # It was told too late to rely on it.
        held = self.held.get(lock)
        if held is not None and held.session is not session and held.session.is_certain:
            self.wrong.append(
                f"coordination: lock {lock} granted to session {session.session} while "
                f"{held.session.session} certainly had it"
            )
        self.held[lock] = _Held(session, token)

    async def _append(self, session: WireSession, lock: str, token: int) -> None:
        """Write to the log that the lock protects, whether the lock is still held or not."""
        batch = bytes(
            seal_batch(
                values=[f"{lock} {token}".encode()],
                timestamps_ms=0,
                fence_id=fence_id_of(NAMESPACE, "lock", lock),
                fence_token=token,
            )
        )
        request = ProduceRequest(group=self.protected_group, timeout_ms=1_000)
        with suppress(LogdError):
            await session.client.ask_leader(
                self.protected_group, Kind.PRODUCE, request, ProduceResponse, batch
            )
            self.cluster.trace.record("coordinators", "protected_append", lock=lock, token=token)

    # --- queues ---------------------------------------------------------------------------------

    async def _put_items(self, session: WireSession, chance: random.Random, name: str) -> None:
        if len(self.put_items) >= ITEMS_MAX:
            return
        payloads = []
        for _ in range(chance.randint(1, 4)):
            self.tokens += 1
            payloads.append(b"%s-%d" % (name.encode(), self.tokens))
        self.doubtful_items.update(payloads)
        key = chance.choice([b"", b"", b"k"])
        items = [
            Item(payload=payload, key=key, delay_ms=chance.choice([0, 0, 1_000]))
            for payload in payloads
        ]
        result = await session.do(PutItems(queue=QUEUE, items=items))
        assert isinstance(result, ItemsPut)
        self.doubtful_items.difference_update(payloads)
        self.put_items.update(payloads)

    async def _work_items(self, session: WireSession, chance: random.Random, name: str) -> None:
        with suppress(UnknownNameError):
            claimed = await session.do(
                ClaimItems(queue=QUEUE, count=chance.randint(1, 4), visibility_ms=VISIBILITY_MS)
            )
            assert isinstance(claimed, ItemsClaimed)
            if not claimed.items:
                return
            for item in claimed.items:
                completed = self.completed.get(item.item)
                if completed is not None and item.token > completed:
                    self.wrong.append(
                        f"coordination: item {item.item}, completed at {completed}, was handed "
                        f"out again at {item.token}"
                    )
            await trio.sleep(chance.choice([0.0, 0.1, 1.0, 3.0]))
            if chance.random() < 0.2:
                return  # It forgets them.
            await self._complete(session, claimed)

    async def _complete(self, session: WireSession, claimed: ItemsClaimed) -> None:
        claims = [ItemClaim(item=item.item, token=item.token) for item in claimed.items]
        result = await session.do(CompleteItems(queue=QUEUE, claims=claims))
        assert isinstance(result, ItemsSettled)
        for settled in result.settled:
            self.cluster.trace.record("coordinators", "item_completed", item=settled)
            if settled in self.completed:
                self.wrong.append(f"coordination: item {settled} was completed twice")
            self.completed[settled] = result.revision

    # --- the end --------------------------------------------------------------------------------

    async def finish(self) -> None:
        """The cluster is healed and the workers have ended: what is left is done, and all agree."""
        async with self.client() as client:
            self.tokens += 1
            session = await client.open_session(NAMESPACE, self.tokens.to_bytes(16, "big"), 60_000)
            await self._drain(session)
            for lock in LOCKS:
                claim = await session.do(Acquire(kind="lock", name=lock))
                assert isinstance(claim, Claim)
                token = claim.token
                while token is None:
                    query = ReadClaim(kind="lock", name=lock, ticket=claim.ticket)
                    answer = await client.query(NAMESPACE, query, wait_ms=1_000)
                    assert isinstance(answer, Claim), answer
                    token = answer.token
            await self._replicas_agree()

    async def _drain(self, session: WireSession) -> None:
        """Complete whatever the queue still has."""
        while True:
            answer = await session.client.query(NAMESPACE, ReadQueue(queue=QUEUE))
            if not isinstance(answer, QueueStatistics):
                if self.put_items:
                    self.wrong.append(f"coordination: the queue is gone: {answer}")
                return
            if not answer.ready + answer.delayed + answer.in_flight:
                break
            claimed = await session.do(ClaimItems(queue=QUEUE, count=100))
            assert isinstance(claimed, ItemsClaimed)
            if claimed.items:
                await self._complete(session, claimed)
            else:
                await trio.sleep(0.2)
        done = answer.completed + answer.dead
        least, most = len(self.put_items), len(self.put_items) + len(self.doubtful_items)
        if not least <= done <= most:
            self.wrong.append(
                f"coordination: {done} items were completed or died, put were {least} to {most}"
            )

    async def _replicas_agree(self) -> None:
        """Every replica of every partition comes to the same state."""
        with trio.move_on_after(SETTLED_S):
            while self._differing():
                await trio.sleep(0.5)
        self.wrong += self._differing()

    def _differing(self) -> list[str]:
        states: dict[int, dict[tuple[int, bytes], str]] = {}
        for node in self.cluster.alive():
            assert node.broker is not None
            for partition in node.broker.coordination:
                partition.state.check_invariants()
                state = (int(partition.applied_offset), partition.state.snapshot())
                found = states.setdefault(partition.group.group_id, {})
                found[state] = f"{found.get(state, '')} {node.host}@{partition.applied_offset}"
        return [
            f"coordination: replicas of group {group} differ:{';'.join(found.values())}"
            for group, found in states.items()
            if len(found) > 1
        ]

    def judge(self, protected: list[bytes]) -> list[str]:
        """What cannot be true of all that was seen.

        Args:
            protected: values of the protected log, in its order.
        """
        wrong = list(self.wrong)
        for key, history in self.operations.items():
            try:
                check(history, KEY)
            except NotLinearizableError as error:
                wrong.append(f"coordination: key {key.decode()}: {error}")
        newest: dict[str, int] = {}
        for value in protected:
            lock, _, text = value.decode().partition(" ")
            if int(text) < newest.get(lock, 0):
                wrong.append(
                    f"coordination: behind token {newest[lock]} of lock {lock} stands {text}"
                )
            newest[lock] = max(newest.get(lock, 0), int(text))
        return wrong
