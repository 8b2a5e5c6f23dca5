"""Users of the client library's coordination in one run: keys, locks, elections, shards, queues.

``coordination_workload.py`` speaks the wire protocol and judges the brokers; here it is the
library that is judged, by what it lets its users believe:

- a lease or a shard that is not lost, by the clock of the client that has it, is nobody else's,
  and an append with its fence is not refused;
- behind a newer token of one lock, election or shard no older one is in the log;
- leaders are observed in the order of their tokens;
- a key's history is linearizable, where what "certainly had no effect" had none;
- an item is completed once, not claimed again after that, and handled by one worker at a time.

Their processes are stopped now and then, for longer than their sessions live: no clock helps
against that, the fences have to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from logd.errors import CompareFailedError, FencedError, LogdError, ProtocolError, UsageError
from logd_client import Client, Producer
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.fences import HasFence
from logd_client.coordination.queues import Claim
from tests.sim.clock import HOST, current_clock
from tests.sim.cluster import SimCluster
from tests.sim.coordination_workload import KEY, OPERATIONS_PER_KEY_MAX, PAUSE_S, PROTECTED_TOPIC
from tests.support.linearizability import NotLinearizableError, Operation, check

if TYPE_CHECKING:
    from tests.sim.workload import Workload

NAMESPACE = "library"
KEYS = (b"a", b"b")
LOCKS = ("l", "m")
ELECTION = f"{NAMESPACE}/e"
GROUP = f"{NAMESPACE}/g"
SHARDS = ("s0", "s1", "s2", "s3")
CLAIMED_QUEUE = f"{NAMESPACE}/claimed"
WORKED_QUEUE = f"{NAMESPACE}/worked"
ITEMS_MAX = 100
TTL_MS = (1_000, 3_000, 6_000)
LIBRARY_PAUSE_S = 4 * PAUSE_S
"""Between two things of the same kind that a user does, on average; it does several at a time."""

VISIBILITY_S = 2.0
PAUSED_EVERY_S = 6.0
"""Somebody or other, on average."""

REQUEST_TIMEOUT_MS = 5_000
RETRY_S = 0.5


class Tenure(HasFence, Protocol):
    """Something that one user has at a time, with a token that grows."""

    @property
    def is_lost(self) -> bool: ...

    @property
    def token(self) -> int: ...


@dataclass(slots=True)
class LibraryWorkload:
    """Starts the users and judges what they were told."""

    cluster: SimCluster
    workload: Workload
    wrong: list[str] = field(default_factory=list)
    operations: dict[bytes, list[Operation | None]] = field(default_factory=dict)
    """By key; None: it certainly had no effect."""
    held: dict[str, list[Tenure]] = field(default_factory=dict)
    put_counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By queue: items put for certain, and those of which nobody knows."""
    completed: dict[int, int] = field(default_factory=dict)
    """Item of the claimed queue → token of the claim that completed it."""
    handled: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Item of the worked queue → whose handler runs, and since when."""
    paused_at: dict[str, float] = field(default_factory=dict)
    """User → when its process was last stopped; infinity: it is."""
    values: int = 0

    async def use(self, number: int) -> None:
        """One user with one client, doing everything at the same time, until the run is over."""
        name = f"user{number}"
        HOST.set(name)  # A process of its own, which can be paused.
        self.paused_at[name] = -math.inf
        chance = random.Random(f"{self.cluster.seed}:{name}")
        ttl_ms = chance.choice(TTL_MS)
        async with (
            self.workload.connected(
                name, session_ttl_ms=ttl_ms, request_timeout_ms=REQUEST_TIMEOUT_MS
            ) as client,
            self.workload.open_producer(client, PROTECTED_TOPIC, chance) as producer,
            trio.open_nursery() as background,
        ):
            user = _User(self, client, producer, chance, name)
            if number == 0:
                background.start_soon(user.again, user.set_shards)
            background.start_soon(user.again, user.observe)
            background.start_soon(user.again, user.own_shards)
            background.start_soon(user.again, user.work)
            async with trio.open_nursery() as foreground:
                for act in (user.use_key, user.lock, user.campaign, user.put_items, user.claim):
                    foreground.start_soon(user.repeat, act)
            background.cancel_scope.cancel()

    async def pause_users(self) -> None:
        """Stop one's process now and then (SIGSTOP), for less or more than its session lives."""
        chance = random.Random(f"{self.cluster.seed}:pauses")
        clock = current_clock()
        while not self.workload.is_over:
            await trio.sleep(chance.expovariate(1.0) * PAUSED_EVERY_S)
            if not self.paused_at:
                continue
            user = chance.choice(sorted(self.paused_at))
            self.cluster.trace.record(user, "user_paused")
            clock.freeze(user)
            self.paused_at[user] = math.inf
            await trio.sleep(chance.choice([0.5, 2.0, 7.0]))
            clock.thaw(user)
            self.paused_at[user] = trio.current_time()

    def is_handled(self, item: int) -> bool:
        """Its handler runs, in a process that was not stopped since it began."""
        user, began = self.handled.get(item, ("", 0.0))
        return bool(user) and self.paused_at[user] < began

    @contextmanager
    def having(self, what: str, tenure: Tenure) -> Iterator[None]:
        """Somebody has ``tenure`` of ``what`` for as long as the block takes."""
        self.cluster.trace.record("users", "granted", what=what, token=tenure.token)
        others = self.held.setdefault(what, [])
        for other in others:
            if not (other.is_lost or tenure.is_lost):
                self.wrong.append(
                    f"library: {what} is had with token {tenure.token}, while {other.token} of it "
                    "is not lost"
                )
        others.append(tenure)
        try:
            yield
        finally:
            others.remove(tenure)

    # --- the end --------------------------------------------------------------------------------

    async def finish(self) -> None:
        """The cluster is healed and the users have gone: what is left is done."""
        async with self.workload.connected() as client:
            for name in (CLAIMED_QUEUE, WORKED_QUEUE):
                await self._drain(client, name)
            for lock in LOCKS:
                async with client.lock(f"{NAMESPACE}/{lock}", protects=[PROTECTED_TOPIC]):
                    pass

    async def _drain(self, client: Client, name: str) -> None:
        least, doubtful = self.put_counts.get(name, (0, 0))
        if not least:
            return
        queue = client.queue(name)
        while True:
            await queue.work(_do_nothing, until_empty=True)
            found = await queue.statistics()
            if not found.ready + found.delayed + found.in_flight:
                break
            await trio.sleep(RETRY_S)
        done = found.completed + found.dead
        if not least <= done <= least + doubtful:
            self.wrong.append(
                f"library: {done} items of {name} were completed or died, put were {least} to "
                f"{least + doubtful}"
            )

    def judge(self) -> list[str]:
        """What cannot be true of all that was seen; the protected log is judged with the rest."""
        wrong = list(self.wrong)
        for key, history in self.operations.items():
            try:
                check([operation for operation in history if operation is not None], KEY)
            except NotLinearizableError as error:
                wrong.append(f"library: key {key.decode()}: {error}")
        return wrong


async def _do_nothing(claim: Claim) -> None:
    """It is done as soon as it is claimed."""


@dataclass(slots=True)
class _User:
    """What one of them does."""

    all: LibraryWorkload
    client: Client
    producer: Producer
    chance: random.Random
    name: str
    newest_leader: int = 0
    """The largest token that was observed."""

    @property
    def is_over(self) -> bool:
        return self.all.workload.is_over

    async def repeat(self, act: Callable[[], Awaitable[None]]) -> None:
        """One ``act`` after another, with pauses, until the run is over."""
        while not self.is_over:
            try:
                await act()
            except (UsageError, ProtocolError):
                raise  # Of no fault of the world's.
            except LogdError:
                pass
            await trio.sleep(self.chance.expovariate(1.0) * LIBRARY_PAUSE_S)

    async def again(self, task: Callable[[], Awaitable[None]]) -> None:
        """``task`` for as long as it is not cancelled, whatever it meets."""
        while True:
            try:
                await task()
            except* (UsageError, ProtocolError):
                raise
            except* LogdError:
                self.all.cluster.trace.record(self.name, "begins_again", what=task.__name__)
            await trio.sleep(RETRY_S)

    def _value(self) -> bytes:
        self.all.values += 1
        return f"{self.name}-{self.all.values}".encode()

    async def _dwell(self, what: str, tenure: Tenure) -> None:
        """Have something for a while, and write under its protection."""
        with self.all.having(what, tenure):
            for _ in range(self.chance.randint(0, 3)):
                await self._append(what, tenure)
                await trio.sleep(self.chance.choice([0.0, 0.1, 0.5]))

    async def _append(self, what: str, tenure: Tenure) -> None:
        try:
            await self.producer.append(f"{what} {tenure.token}".encode(), fence=tenure)
        except FencedError as error:
            if not tenure.is_lost:
                self.all.wrong.append(
                    f"library: {what} is not lost with token {tenure.token}, and fenced: {error}"
                )
        except LogdError:
            return  # It may have been stored: its token says where it may stand.

    # --- keys -----------------------------------------------------------------------------------

    async def use_key(self) -> None:
        kv, key = self.client.kv(NAMESPACE), self.chance.choice(KEYS)
        history = self.all.operations.setdefault(key, [])
        if len(history) >= OPERATIONS_PER_KEY_MAX:
            return
        called = trio.current_time()
        kind = self.chance.choice(["get", "put", "swap"])
        if kind == "get":
            found = await kv.get(key)
            value = None if found is None else found.value
            history.append(Operation(("get",), value, called, trio.current_time(), self.name))
            return
        value = self._value()
        expected = next(
            (o.answered for o in reversed(history) if o is not None and o.asked[0] == "get"), None
        )
        if kind == "swap" and expected is None:
            return
        asked = ("put", value) if kind == "put" else ("swap", value, expected)
        place = len(history)
        history.append(Operation(asked, called=called, client=self.name))
        succeeded = True
        try:
            if kind == "put":
                await kv.put(key, value)
            else:
                await kv.cas(key, value, expected=expected)
        except CompareFailedError:
            succeeded = False
        except LogdError as error:
            if not error.may_have_applied:
                history[place] = None
            raise
        history[place] = Operation(asked, succeeded, called, trio.current_time(), self.name)
        self.all.cluster.trace.record(self.name, "key_changed", key=key, value=value)

    # --- locks and elections --------------------------------------------------------------------

    async def lock(self) -> None:
        lock = self.chance.choice(LOCKS)
        protects = self.chance.choice([(), (PROTECTED_TOPIC,)])
        async with self.client.lock(
            f"{NAMESPACE}/{lock}", timeout_s=self.chance.choice([1.0, 10.0]), protects=protects
        ) as lease:
            await self._dwell(f"lock-{lock}", lease)

    async def campaign(self) -> None:
        election = self.client.election(ELECTION)
        async with election.campaign(self.name, timeout_s=10.0) as leadership:
            await self._dwell("election", leadership)

    async def observe(self) -> None:
        async with self.client.election(ELECTION).observe() as leaders:
            async for leader in leaders:
                if leader is None:
                    continue
                if leader.token < self.newest_leader:
                    self.all.wrong.append(
                        f"library: {self.name} saw leader {leader.token} after {self.newest_leader}"
                    )
                self.newest_leader = leader.token

    # --- shards ---------------------------------------------------------------------------------

    async def set_shards(self) -> None:
        await self.client.assignments(GROUP).set(SHARDS)
        await trio.sleep_forever()

    async def own_shards(self) -> None:
        """For a while: those that come and go are what makes shards move."""
        with trio.move_on_after(self.chance.choice([3.0, 10.0, 1000.0])):
            await self.client.assignments(GROUP).work(self.name, self._run_shard)

    async def _run_shard(self, owned: OwnedShard) -> None:
        await self._dwell(f"shard-{owned.shard}", owned)
        with self.all.having(f"shard-{owned.shard}", owned):
            await trio.sleep_forever()

    # --- queues ---------------------------------------------------------------------------------

    async def put_items(self) -> None:
        queue = self.chance.choice([CLAIMED_QUEUE, WORKED_QUEUE])
        payloads = [self._value() for _ in range(self.chance.randint(1, 4))]
        certain, doubtful = self.all.put_counts.get(queue, (0, 0))
        if certain + doubtful >= ITEMS_MAX:
            return
        try:
            await self.client.queue(queue).put_many(payloads)
        except LogdError as error:
            if error.may_have_applied:
                self._count_put(queue, 0, len(payloads))
            raise
        except BaseException:
            self._count_put(queue, 0, len(payloads))
            raise
        self._count_put(queue, len(payloads), 0)

    def _count_put(self, queue: str, certain: int, doubtful: int) -> None:
        before = self.all.put_counts.get(queue, (0, 0))
        self.all.put_counts[queue] = (before[0] + certain, before[1] + doubtful)

    async def claim(self) -> None:
        queue, completed = self.client.queue(CLAIMED_QUEUE), self.all.completed
        claims = await queue.claim(self.chance.randint(1, 3), visibility_s=VISIBILITY_S)
        for claim in claims:
            if claim.token > completed.get(claim.id, claim.token):
                self.all.wrong.append(f"library: item {claim.id} was claimed after its completion")
        await trio.sleep(self.chance.choice([0.0, 0.1, 1.0, 3.0]))
        for claim in claims:
            if self.chance.random() < 0.2:
                continue  # It is forgotten.
            await claim.complete()
            if claim.id in completed:
                self.all.wrong.append(f"library: item {claim.id} was completed twice")
            completed[claim.id] = claim.token
            self.all.cluster.trace.record(self.name, "claim_completed", item=claim.id)

    async def work(self) -> None:
        """For a while; then those under way are given back."""
        with trio.move_on_after(self.chance.choice([5.0, 1000.0])):
            await self.client.queue(WORKED_QUEUE).work(
                self._handle, concurrency=self.chance.choice([1, 3]), visibility_s=VISIBILITY_S
            )

    async def _handle(self, claim: Claim) -> None:
        if self.all.is_handled(claim.id):
            self.all.wrong.append(f"library: item {claim.id} is handled twice at a time")
        mine = self.all.handled[claim.id] = (self.name, trio.current_time())
        self.all.cluster.trace.record(self.name, "item_handled", item=claim.id)
        try:
            await trio.sleep(self.chance.choice([0.0, 0.1, 3.0, 6.0]))
            if self.chance.random() < 0.1:
                raise ValueError("this one failed")
        finally:
            if self.all.handled.get(claim.id) == mine:
                del self.all.handled[claim.id]
