"""One seed, one run: a cluster, clients that write and read, faults, healing, and the verdict.

Safety is checked after every step by the brokers' own assertions; after the faults all is
healed and the cluster must make progress within bounded virtual time; then every node's copy
is read separately, the files of all replicas are compared (``checks.py``) and the history is
held against the promises (``history.py``).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import trio

from logd.errors import LogdError, NotAReplicaError, TopicExistsError
from logd.types import GroupId, TopicPartition
from logd.wire.messages import PartitionInfo, TopicInfo
from logd_client import Client
from tests.sim.checks import KeyWatch, check_members, check_metadata, check_replicas
from tests.sim.cluster import SimCluster, open_cluster
from tests.sim.coordination_workload import (
    NAMESPACE,
    PROTECTED_TOPIC,
    CoordinationWorkload,
)
from tests.sim.faults import Fault, Trouble, plan_faults
from tests.sim.history import Outcome, check_history
from tests.sim.keyed_workload import KEYED_TOPIC, name_of
from tests.sim.library_workload import NAMESPACE as LIBRARY_NAMESPACE
from tests.sim.library_workload import LibraryWorkload
from tests.sim.messages import show_messages
from tests.sim.settings import Settings
from tests.sim.trace import Trace
from tests.sim.workload import CONDITIONAL_TOPIC, TOPIC, Workload

LOOK_AROUND_S = 2.0
LOOK_AT_KEYS_S = 1.0
HEAL_S = 60.0
"""Virtual time within which a healed cluster must have done whatever is asked of it."""


@dataclass(slots=True)
class Report:
    """What happened in one run."""

    seed: int
    settings: Settings
    faults: list[Fault]
    violations: list[str]
    acknowledged: int
    uncertain: int
    events: Counter[str]
    trace: Trace = field(repr=False)

    @property
    def leader_changes(self) -> int:
        return max(0, self.events["leader_elected"] - 1 - self.settings.partitions)


class CountingTrace(Trace):
    """A trace that also counts events by name: what was exercised."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def record(self, source: str, name: str, **fields: object) -> None:
        self.counts[name] += 1
        super().record(source, name, **fields)


async def run_scenario(
    seed: int,
    settings: Settings | None = None,
    *,
    faults: Sequence[int] | None = None,
    messages: bool = False,
    trace: CountingTrace | None = None,
) -> Report:
    """Run one seed.  Raises what a broker raises; violations are in the report.

    Args:
        seed: decides everything.
        settings: instead of those drawn from the seed.
        faults: numbers of the planned faults that shall happen; default: all.
        messages: put what brokers say to each other into the trace, too.
        trace: where events go; for whoever wants to read it if the run raises.
    """
    settings = Settings.draw(seed) if settings is None else settings
    planned = plan_faults(seed, settings)
    if faults is not None:
        planned = [fault for fault in planned if fault.number in faults]
    trace = CountingTrace() if trace is None else trace
    with show_messages(trace) if messages else contextlib.nullcontext():
        async with open_cluster(seed, settings.cluster, trace) as cluster:
            run = _Run(cluster, settings, planned)
            await run.play()
    history = run.workload.history
    violations = [str(violation) for violation in check_history(history)]
    return Report(
        seed=seed,
        settings=settings,
        faults=planned,
        violations=[*violations, *run.workload.wrong, *run.wrong],
        acknowledged=history.count(Outcome.ACKNOWLEDGED),
        uncertain=history.count(Outcome.UNKNOWN),
        events=trace.counts,
        trace=trace,
    )


class _Run:
    """The order of one run: clients, faults, healing, and the end."""

    def __init__(self, cluster: SimCluster, settings: Settings, faults: list[Fault]) -> None:
        self.workload = Workload(cluster, settings)
        self.wrong: list[str] = []
        self._cluster = cluster
        self._settings = settings
        self._faults = faults
        self._library = LibraryWorkload(cluster, self.workload)
        self._keys: KeyWatch | None = None

    async def play(self) -> None:
        workload = self.workload
        async with workload.connected() as admin:
            partitions = await self._set_up(admin)
            groups = [GroupId(partition.group) for partition in partitions]
            coordination = await self._set_up_coordination(admin)
            if coordination is not None:
                namespace = LIBRARY_NAMESPACE if self._settings.library_users else NAMESPACE
                async with coordination.client() as client:
                    groups.append(GroupId(await client.group_of(namespace)))
            trouble = Trouble(self._cluster, groups)
            async with trio.open_nursery() as readers:
                readers.start_soon(_look_around, admin)
                if self._keys is not None:
                    readers.start_soon(self._watch_keys, self._keys)
                await workload.read(readers, partitions[0].replicas)
                async with trio.open_nursery() as writers:
                    await workload.write(writers)
                    if coordination is not None:
                        for number in range(self._settings.coordinators):
                            writers.start_soon(coordination.coordinate, number)
                        for number in range(self._settings.library_users):
                            writers.start_soon(self._library.use, number)
                        if self._settings.library_users:
                            writers.start_soon(self._library.pause_users)
                    await trouble.play(self._faults, self._settings.fault_s)
                    await trouble.heal()
                    with self._in_time("append to every partition"):
                        await workload.make_progress(admin)
                    await trouble.replace_disks()
                    if self._settings.has_moves:
                        with self._in_time("end its moves"):
                            await trouble.moves_have_ended(admin)
                    workload.is_over = True
                async with trio.open_nursery() as endings:
                    if coordination is not None:
                        endings.start_soon(self._end_coordination, coordination, admin)
                    ends = await self._read_finally(admin)
                    with self._in_time("bring every reader to the end"):
                        await workload.all_arrive(ends)
                    await workload.check_topics(admin)
                readers.cancel_scope.cancel()
            await self._check_brokers()

    async def _watch_keys(self, keys: KeyWatch) -> None:
        """Whatever is wrong with what is deleted may be right again a moment later."""
        while True:
            self.wrong += keys.wrong(self.workload.history)
            await trio.sleep(LOOK_AT_KEYS_S)

    async def _end_coordination(self, coordination: CoordinationWorkload, admin: Client) -> None:
        with self._in_time("finish what coordination left"):
            if self._settings.library_users:
                await self._library.finish()
            await coordination.finish()
        self.wrong += coordination.judge(await self._protected_log(admin))
        self.wrong += self._library.judge()

    async def _check_brokers(self) -> None:
        """Compare the replicas' files, as soon as the scrubbers have found what rotted; and what
        the brokers know, as soon as all have heard everything."""

        def differing() -> list[str]:
            return (
                check_replicas(self._cluster, None if self._keys is None else self._keys.group)
                + check_metadata(self._cluster)
                + check_members(self._cluster)
            )

        with trio.move_on_after(HEAL_S):
            while differing():
                await trio.sleep(1.0)
        self.wrong += differing()

    @contextlib.contextmanager
    def _in_time(self, what: str) -> Iterator[None]:
        with trio.move_on_after(HEAL_S) as scope:
            yield
        assert not scope.cancelled_caught, f"a healed cluster did not {what} in {HEAL_S:g} s"

    async def _set_up(self, admin: Client) -> list[PartitionInfo]:
        """Create the topics; returns their partitions."""
        brokers = self._settings.cluster.brokers
        with self._in_time("form"):
            while True:
                with contextlib.suppress(LogdError):
                    if len((await admin.admin.describe_cluster()).brokers) == brokers:
                        break
                await trio.sleep(0.2)
            topics = {TOPIC: self._settings.partitions}
            if self._settings.conditional_writers:
                topics[CONDITIONAL_TOPIC] = 1
            if self._settings.compaction:
                topics[KEYED_TOPIC] = 1
            made = [
                await _create(
                    admin,
                    name,
                    partitions=count,
                    replicas=min(3, brokers),
                    config=self._config(name),
                )
                for name, count in topics.items()
            ]
        if self._settings.durability == "replicated":
            self._cluster.memory_groups = tuple(
                GroupId(partition.group)
                for topic in made
                if topic.name != CONDITIONAL_TOPIC
                for partition in topic.partitions
            )
        if self._settings.compaction:
            self._keys = KeyWatch(self._cluster, GroupId(made[-1].partitions[0].group))
        for number in range(round(brokers * self._settings.cold_share)):
            self._cluster.nodes[list(self._cluster.nodes)[number]].files.is_cold = True
        return [partition for topic in made for partition in topic.partitions]

    async def _set_up_coordination(self, admin: Client) -> CoordinationWorkload | None:
        if not self._settings.coordinates:
            return None
        with self._in_time("create a topic"):
            topic = await _create(
                admin,
                PROTECTED_TOPIC,
                partitions=1,
                replicas=min(3, self._settings.cluster.brokers),
                config={"fence": "required"},
            )
        return CoordinationWorkload(self._cluster, self.workload, topic.partitions[0].group)

    async def _protected_log(self, client: Client) -> list[bytes]:
        """What was written under the locks, in the order of the log."""
        values: list[bytes] = []
        with self._in_time("give what was written under locks"):
            end = (await client.admin.offsets(PROTECTED_TOPIC, 0)).commit_offset
            async with client.consumer(PROTECTED_TOPIC, start="earliest") as consumer:
                while (consumer.position(0) or 0) < end:
                    with trio.move_on_after(0.5):
                        async for batch in consumer.batches():
                            values += [value or b"" for value in batch.values]
                            if (consumer.position(0) or 0) >= end:
                                break
        return values

    def _config(self, topic: str) -> dict[str, str]:
        settings = self._settings
        if topic == CONDITIONAL_TOPIC:
            return {}
        options = settings.retention if topic == TOPIC else settings.compaction
        return {**dict(options), "durability": settings.durability}

    async def _read_finally(self, client: Client) -> dict[TopicPartition, int]:
        """Read every replica, from the node itself, up to what the leader has committed.

        Returns:
            The end of the data in each partition.
        """
        ends: dict[TopicPartition, int] = {}
        async with trio.open_nursery() as copies:
            for where in self.workload.partitions:
                topic = await client.admin.describe_topic(where.topic)
                offsets = await client.admin.offsets(where.topic, where.partition)
                ends[where] = offsets.data_end
                for node in topic.partitions[where.partition].replicas:
                    copies.start_soon(self._read_copy, client, where, node, offsets.commit_offset)
        read = {copy.partition for copy in self.workload.history.final}
        self.wrong += [f"nobody has a copy of {where}" for where in ends if where not in read]
        return ends

    async def _read_copy(self, client: Client, where: TopicPartition, node: int, end: int) -> None:
        try:
            with self._in_time(f"give what node {node} has of {where}"):
                records = await self._copy_of(client, where, node, end)
                # Afterwards: what was read below it was there, and need not be any more.
                held = await client.admin.offsets(where.topic, where.partition, from_replica=node)
        except NotAReplicaError:
            # A broker that drains is emptied as soon as that is possible, which may be now.
            topic = await client.admin.describe_topic(where.topic)
            if node in topic.partitions[where.partition].replicas:
                raise
            return
        if held.log_start and not self.workload.is_trimmed(where.topic):
            self.wrong.append(f"node {node} has let go of {where} below {held.log_start}")
        kept = [record for record in records if record[0] >= held.log_start]
        self.workload.history.read_finally(f"node{node}", where, kept, log_start=held.log_start)

    async def _copy_of(
        self, client: Client, where: TopicPartition, node: int, end: int
    ) -> list[tuple[int, bytes]]:
        records: list[tuple[int, bytes]] = []
        async with client.consumer(
            where.topic,
            start="earliest",
            partitions=[where.partition],
            from_replica=node,
            on_trimmed="earliest" if self.workload.is_trimmed(where.topic) else "raise",
        ) as consumer:
            while (consumer.position(where.partition) or 0) < end:
                with trio.move_on_after(0.5):
                    async for batch in consumer.batches():
                        values: Sequence[bytes | None] = batch.values
                        if where.topic == KEYED_TOPIC:
                            values = list(map(name_of, batch.headers))
                        records += [
                            (offset, value or b"")
                            for offset, value in zip(batch.offsets, values, strict=True)
                        ]
                        if (consumer.position(where.partition) or 0) >= end:
                            break
        return records


async def _look_around(admin: Client) -> None:
    """A client that asks nothing hears of brokers that join after minutes only, longer than a run
    takes, and may know nobody any more by then."""
    while True:
        with contextlib.suppress(LogdError):
            await admin.admin.describe_cluster()
        await trio.sleep(LOOK_AROUND_S)


async def _create(
    admin: Client, name: str, *, partitions: int, replicas: int, config: dict[str, str]
) -> TopicInfo:
    """Create a topic on a cluster that may still change its controller: an attempt that was
    not answered may have taken effect."""
    while True:
        try:
            return await admin.admin.create_topic(
                name, partitions=partitions, replicas=replicas, config=config
            )
        except TopicExistsError:
            return await admin.admin.describe_topic(name)
        except LogdError:
            await trio.sleep(0.2)
