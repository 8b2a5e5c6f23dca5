"""One seed, one run: a cluster, clients that write and read, faults, healing, and the verdict.

Swarm testing: each seed draws which faults it has and how often, how fast the disks and the
network are, and how small the knobs.  A network that is always punctual hides bugs.

Safety is checked after every step by the brokers' own assertions; after the faults all is
healed and the cluster must make progress within bounded virtual time; then every node's copy
is read separately and the history is held against the promises (``history.py``).
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from logd.errors import LogdError
from logd.limits import KIB
from logd.types import TopicPartition
from logd_client import Client
from tests.sim.cluster import ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.env import BlockingConditions
from tests.sim.history import History, Outcome, check_history
from tests.sim.network import NetworkConditions
from tests.sim.trace import Trace

TOPIC = "t"
HEAL_S = 60.0
"""Virtual time within which a healed cluster must have committed something new everywhere."""

APPENDS_BEFORE_SLOWING = 550
SLOW_PAUSE_S = 1.0
"""Enough appends have been made: from then on faults and elections are worth more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one seed is like."""

    cluster: ClusterSettings
    partitions: int
    producers: int
    consumers: int
    fault_s: float
    """How long faults go on."""
    fault_interval_s: float
    """Mean time between faults."""
    faults: dict[str, int]
    """Kind of fault → weight; kinds that are missing do not happen."""
    pause_s: float
    """Mean time between two appends of a producer."""

    @classmethod
    def draw(cls, seed: int) -> Settings:
        chance = random.Random(f"{seed}:settings")
        kinds = [kind for kind in FAULTS if chance.random() < 0.6] or ["kill"]
        return cls(
            cluster=ClusterSettings(
                brokers=chance.choice([1, 3, 3, 3, 3, 5]),
                segment_bytes=64 * KIB,
                tail_cache_bytes=chance.choice([0, 4 * KIB, 1024 * KIB]),
                liveness_timeout_ms=chance.choice([300, 500, 1000]),
                network=NetworkConditions.draw(chance),
                blocking=BlockingConditions.draw(chance),
            ),
            partitions=chance.choice([1, 1, 2, 3]),
            producers=chance.choice([2, 3, 4]),
            consumers=chance.choice([1, 2]),
            fault_s=chance.choice([10.0, 15.0, 20.0]),
            fault_interval_s=chance.choice([0.5, 1.5, 4.0]),
            faults={kind: chance.choice([1, 3]) for kind in kinds},
            pause_s=chance.choice([0.02, 0.05, 0.1]),
        )


@dataclass(slots=True)
class Report:
    """What happened in one run."""

    seed: int
    settings: Settings
    violations: list[str]
    acknowledged: int
    uncertain: int
    events: Counter[str]
    trace: Trace = field(repr=False)

    @property
    def leader_changes(self) -> int:
        return max(0, self.events["leader_elected"] - 1 - self.settings.partitions)


async def run_scenario(seed: int, settings: Settings | None = None) -> Report:
    """Run one seed.  Raises what a broker raises; violations are in the report."""
    settings = Settings.draw(seed) if settings is None else settings
    trace = CountingTrace()
    async with open_cluster(seed, settings.cluster, trace) as cluster:
        run = _Run(cluster, settings)
        try:
            await run.play()
        except (AssertionError, LogdError, ExceptionGroup):
            trace.record("test", "failed")
            print(trace.timeline(400))  # noqa: T201 - the story of a failing seed
            raise
    violations = [str(violation) for violation in check_history(run.history)]
    return Report(
        seed=seed,
        settings=settings,
        violations=violations,
        acknowledged=run.history.count(Outcome.ACKNOWLEDGED),
        uncertain=run.history.count(Outcome.UNKNOWN),
        events=trace.counts,
        trace=trace,
    )


class CountingTrace(Trace):
    """A trace that also counts events by name: what was exercised."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def record(self, source: str, name: str, **fields: object) -> None:
        self.counts[name] += 1
        super().record(source, name, **fields)


class _Run:
    """The clients, the faults and the end of one run."""

    def __init__(self, cluster: SimCluster, settings: Settings) -> None:
        self.cluster = cluster
        self.settings = settings
        self.history = History()
        self.chance = random.Random(f"{cluster.seed}:faults")
        self.is_over = False
        self._values = 0

    async def play(self) -> None:
        async with self._connected() as admin:
            await self._set_up(admin)
            async with trio.open_nursery() as readers:
                for number in range(self.settings.consumers):
                    readers.start_soon(self._consume, f"consumer{number}")
                async with trio.open_nursery() as writers:
                    for number in range(self.settings.producers):
                        writers.start_soon(self._produce, f"producer{number}")
                    await self._make_trouble()
                    await self._heal()
                    with trio.fail_after(HEAL_S):
                        await self._make_progress(admin)
                    self.is_over = True
                await self._read_finally(admin)
                readers.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        """A client, as soon as there is a broker to reach."""
        async with contextlib.AsyncExitStack() as stack:
            client: Client | None = None
            while client is None:
                try:
                    client = await stack.enter_async_context(self.cluster.client())
                except LogdError:
                    await trio.sleep(0.2)
            yield client

    async def _set_up(self, admin: Client) -> None:
        with trio.fail_after(HEAL_S):
            while True:
                try:
                    description = await admin.admin.describe_cluster()
                    if len(description.brokers) == self.settings.cluster.brokers:
                        break
                except LogdError:
                    pass
                await trio.sleep(0.2)
            await admin.admin.create_topic(
                TOPIC,
                partitions=self.settings.partitions,
                replicas=min(3, self.settings.cluster.brokers),
            )

    # --- clients --------------------------------------------------------------------------

    def _value(self, client: str) -> bytes:
        self._values += 1
        filler = "x" * self.chance.choice([0, 0, 20, 400])
        return f"{client}-{self._values}-{filler}".encode()

    async def _produce(self, name: str) -> None:
        """Append one record after another, each to one partition, until the run is over."""
        chance = random.Random(f"{self.cluster.seed}:{name}")
        async with (
            self._connected() as client,
            client.producer(
                TOPIC, batches_in_flight=chance.choice([1, 2, 5]), delivery_timeout_ms=20_000
            ) as producer,
            trio.open_nursery() as nursery,
        ):
            limiter = trio.CapacityLimiter(chance.choice([1, 4]))
            while not self.is_over:
                partition = chance.randrange(self.settings.partitions)
                await limiter.acquire_on_behalf_of(append := object())

                async def one(partition: int = partition, borrower: object = append) -> None:
                    try:
                        await self._append(name, producer, partition)
                    finally:
                        limiter.release_on_behalf_of(borrower)

                nursery.start_soon(one)
                pause_s = self.settings.pause_s
                if len(self.history.appends) > APPENDS_BEFORE_SLOWING:
                    pause_s = SLOW_PAUSE_S
                await trio.sleep(chance.expovariate(1.0) * pause_s)

    async def _append(self, name: str, producer: object, partition: int) -> None:
        value = self._value(name)
        where = TopicPartition(TOPIC, partition)
        appended = self.history.invoke(name, where, value)
        try:
            ack = await producer.append(value, partition=partition)  # type: ignore[attr-defined]
        except LogdError as error:
            if not error.may_have_applied:
                self.history.refuse(appended)
        else:
            self.history.acknowledge(appended, ack.offset)

    async def _consume(self, name: str) -> None:
        """Follow the topic from the start until cancelled."""
        async with (
            self._connected() as client,
            client.consumer(TOPIC, start="earliest") as consumer,
        ):
            for partition in range(self.settings.partitions):
                self.history.seek(name, TopicPartition(TOPIC, partition), 0)
            async for record in consumer:
                assert record.value is not None
                where = TopicPartition(TOPIC, record.partition)
                self.history.read(name, where, record.offset, record.value)

    # --- faults ---------------------------------------------------------------------------

    async def _make_trouble(self) -> None:
        kinds = list(self.settings.faults)
        weights = [self.settings.faults[kind] for kind in kinds]
        end = trio.current_time() + self.settings.fault_s
        while trio.current_time() < end:
            await trio.sleep(self.chance.expovariate(1.0) * self.settings.fault_interval_s)
            (kind,) = self.chance.choices(kinds, weights)
            self.cluster.trace.record("test", f"fault_{kind}")
            await FAULTS[kind](self)

    async def kill(self) -> None:
        await self._end_one(lambda node: node.crash(power=False))

    async def power_cut(self) -> None:
        await self._end_one(lambda node: node.crash(power=True))

    async def stop(self) -> None:
        await self._end_one(lambda node: node.stop())

    async def _end_one(self, end: Callable[[SimNode], Awaitable[None]]) -> None:
        running = self.cluster.running()
        if running:
            node = self.chance.choice(running)
            await end(node)
            self.cluster.nursery.start_soon(self._restart_later, node)

    async def blackout(self) -> None:
        """All lose power at once: only what was synced is left anywhere."""
        for node in self.cluster.running():
            await node.crash(power=True)
            self.cluster.nursery.start_soon(self._restart_later, node)

    async def _restart_later(self, node: SimNode) -> None:
        await trio.sleep(self.chance.choice([0.0, 0.3, 2.0]) * self.chance.random())
        if not node.is_running:
            node.start()

    async def partition(self) -> None:
        hosts = self.cluster.hosts
        self.chance.shuffle(hosts)
        cut = self.chance.randint(0, len(hosts))
        self.cluster.network.partition(hosts[:cut], hosts[cut:])
        self.cluster.nursery.start_soon(self._mend_later)

    async def isolate(self) -> None:
        incoming, outgoing = self.chance.choice([(True, True), (True, False), (False, True)])
        host = self.chance.choice(self.cluster.hosts)
        self.cluster.network.isolate(host, incoming=incoming, outgoing=outgoing)
        self.cluster.nursery.start_soon(self._mend_later)

    async def _mend_later(self) -> None:
        await trio.sleep(self.chance.choice([0.2, 2.0, 5.0]))
        self.cluster.network.heal()

    async def clog(self) -> None:
        source, target = self.chance.sample([*self.cluster.hosts, "client1"], 2)
        self.cluster.network.clog(source, target, self.chance.choice([0.1, 1.5, 4.0]))

    async def reset(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.cluster.network.reset_random()

    async def disk_error(self) -> None:
        """Some operations on one replica's files fail; the process is restarted after a while."""
        running = self.cluster.running()
        if not running:
            return
        node = self.chance.choice(running)
        groups = node.files.list_directory("/data/groups")
        if not groups:
            return
        path = f"/groups/{self.chance.choice(groups)}/"
        operations = self.chance.choice([("sync",), ("write",), ("read",), ("sync", "write")])
        failures = self.chance.choice([1, 1, 3, 1000])
        life = node.env

        def refuse(operation: str, where: str) -> None:
            nonlocal failures
            if failures and node.env is life and operation in operations and path in where:
                failures -= 1
                raise OSError(errno.EIO, "simulated failure", where)

        node.files.on_operation = refuse
        self.cluster.nursery.start_soon(self._replace_later, node)

    async def _replace_later(self, node: SimNode) -> None:
        await trio.sleep(self.chance.choice([0.1, 1.0, 3.0]))
        is_clean = self.chance.random() < 0.5
        if node.is_running:
            await (node.stop() if is_clean else node.crash(power=self.chance.random() < 0.5))
        node.files.on_operation = None
        if not node.is_running:
            node.start()

    async def clock_jump(self) -> None:
        node = self.chance.choice(list(self.cluster.nodes.values()))
        node.clock_skew_ms += self.chance.choice([-3_600_000, -50, 50, 3_600_000])
        if node.env is not None:
            node.env.clock_skew_ms = node.clock_skew_ms

    # --- the end --------------------------------------------------------------------------

    async def _heal(self) -> None:
        self.cluster.trace.record("test", "healing")
        await trio.sleep(6.0)  # Whatever was to be restarted or mended later has been.
        self.cluster.network.heal()
        for node in self.cluster.stopped():
            node.start()

    async def _make_progress(self, client: Client) -> None:
        """A healed cluster accepts an append in every partition."""
        async with client.producer(TOPIC) as producer:
            for partition in range(self.settings.partitions):
                await self._append("progress", producer, partition)
        progress = [a for a in self.history.appends if a.client == "progress"]
        assert all(a.outcome is Outcome.ACKNOWLEDGED for a in progress), "no progress after healing"

    async def _read_finally(self, client: Client) -> None:
        """Read every replica, from the node itself, up to what the leader has committed."""
        topic = await client.admin.describe_topic(TOPIC)
        for description in topic.partitions:
            end = (await client.admin.offsets(TOPIC, description.partition)).commit_offset
            for node in description.replicas:
                with trio.fail_after(HEAL_S):
                    records = await self._copy_of(client, description.partition, node, end)
                where = TopicPartition(TOPIC, description.partition)
                self.history.read_finally(f"node{node}", where, records)

    async def _copy_of(
        self, client: Client, partition: int, node: int, end: int
    ) -> list[tuple[int, bytes]]:
        records: list[tuple[int, bytes]] = []
        async with client.consumer(
            TOPIC, start="earliest", partitions=[partition], from_replica=node
        ) as consumer:
            while (consumer.position(partition) or 0) < end:
                with trio.move_on_after(0.5):
                    async for batch in consumer.batches():
                        records += [
                            (offset, value or b"")
                            for offset, value in zip(batch.offsets, batch.values, strict=True)
                        ]
                        if (consumer.position(partition) or 0) >= end:
                            break
        return records


FAULTS: dict[str, Callable[[_Run], Awaitable[None]]] = {
    "kill": _Run.kill,
    "power_cut": _Run.power_cut,
    "blackout": _Run.blackout,
    "stop": _Run.stop,
    "partition": _Run.partition,
    "isolate": _Run.isolate,
    "clog": _Run.clog,
    "reset": _Run.reset,
    "clock_jump": _Run.clock_jump,
    "disk_error": _Run.disk_error,
}
"""Kind of fault → what makes it."""
