"""Fault after fault on real brokers under steady load, for as long as one likes.

What the simulator cannot have: real processes, sockets, files and signals, all of a broker's
threads, and time.  Faults come in rounds, each kind once per rotation in a new order.  After
each the cluster must be whole again within a bounded time, by itself; then there is calm.
At the end every replica is read from its broker's own files, and what consumers saw is held
against the same acknowledgements as if they were replicas.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import statistics
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from logd.cli.local_cluster import LocalBroker
from logd.errors import LogdError
from logd.limits import KIB
from logd.testing.peer_proxy import Pair, ProxiedCluster, Shape
from logd.types import GroupId, NodeId
from logd_client import Client, Producer, connect
from tests.process.damage import flip_bit
from tests.process.harness import (
    BROKERS,
    POLL_S,
    StoredRecord,
    anonymous_bytes,
    descriptor_count,
    dump_replicas,
    kill_all,
    leader_of,
    logged_events,
    make_whole,
    run_logd,
    send_signal,
    stop,
    wait_until_caught_up,
)
from tests.process.load import Differences, Load, compare
from tests.process.memory import GROWTH_BYTES_MAX

TOPICS: Final = 3
"""Each has one partition, so that every broker leads something."""

MANY_WORKERS: Final = 2
PAUSE_S: Final = 0.1
SEGMENT_BYTES: Final = "64KiB"
"""Small, so that there soon are sealed segments to damage."""

FAULT_S: Final = 3.0
"""How long a fault lasts that has to be ended: three times what a broker waits for a sign
of life."""

CALM_S: Final = 2.0
WHOLE_TIMEOUT_S: Final = 60.0
FLIPPED_BITS: Final = 20
SLOW_DELAY_S: Final = 0.1
SLOW_BYTES_PER_S: Final = 32 * KIB

GROWTH_DESCRIPTORS_MAX: Final = 16
CONSUMED: Final = 1_000_000
"""Consumers stand beside replicas in the comparison, under node ids that no broker has."""


class Usage(NamedTuple):
    """What a broker held in a time of calm."""

    memory_bytes: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Round:
    """One fault and what followed."""

    fault: str
    longest_gap_s: float
    """On the topic that had the longest, from the fault until everybody was whole."""
    whole_after_s: float
    """From the end of the fault until every broker and replica was back."""


@dataclass
class SoakReport:
    """Everything that was measured, and what was wrong."""

    seed: int
    took_s: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    acknowledged: int = 0
    consumed: int = 0
    links: int = 0
    differences: Differences = field(default_factory=Differences)
    usage: dict[NodeId, list[Usage]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    """What brokers logged, by kind: that nothing went wrong says little if nothing happened."""

    violations: list[str] = field(default_factory=list)

    def start_and_end(self, node: NodeId) -> tuple[Usage, Usage]:
        """Medians of the first and of the last quarter of the run."""
        samples = self.usage[node]
        count = max(len(samples) // 4, 1)
        return _median(samples[:count]), _median(samples[-count:])


def _median(samples: Sequence[Usage]) -> Usage:
    return Usage(
        int(statistics.median(one.memory_bytes for one in samples)),
        int(statistics.median(one.descriptors for one in samples)),
    )


class Stream:
    """One topic: its load, and the consumers that follow it."""

    def __init__(self, topic: str, group: GroupId, producer: Producer) -> None:
        self.topic = topic
        self.group = group
        self.load = Load(producer, pause_s=PAUSE_S)
        self.seen: dict[NodeId, list[StoredRecord]] = {}

    def start(self, tasks: TaskGroup) -> None:
        """Begin to append."""
        tasks.start_soon(self.load.append_one_by_one)
        for worker in range(MANY_WORKERS):
            tasks.start_soon(self.load.append_many, worker)

    async def follow(self, client: Client, number: int, replica: NodeId | None) -> None:
        """Consume for ever: at the leader, or pinned to one replica."""
        seen = self.seen[NodeId(CONSUMED + number)] = []
        async with client.consumer(self.topic, start="earliest", from_replica=replica) as consumer:
            async for batch in consumer.batches():
                seen += map(StoredRecord, batch.offsets, batch.values)

    async def wait_until_consumed(self) -> None:
        """Return once every consumer has seen the last acknowledged record."""
        last = max(self.load.acks.offsets.values())
        with anyio.fail_after(WHOLE_TIMEOUT_S):
            while not all(seen and seen[-1].offset >= last for seen in self.seen.values()):
                await anyio.sleep(POLL_S)

    def longest_gap_s(self, began: float, ended: float) -> float:
        """Without acknowledgement, between these times."""
        times = self.load.acks.times
        within = [began, *times[bisect_left(times, began) : bisect_left(times, ended)], ended]
        return max(after - before for before, after in itertools.pairwise(within))


class Soak:
    """The cluster under load, for faults to act on."""

    def __init__(self, cluster: ProxiedCluster, client: Client, chance: random.Random) -> None:
        self.cluster = cluster
        self.proxy = cluster.proxy
        self.chance = chance
        self.streams: list[Stream] = []
        self._client = client

    @property
    def nodes(self) -> list[NodeId]:
        return [broker.node_id for broker in self.cluster.brokers]

    def any_broker(self) -> NodeId:
        return self.chance.choice(self.nodes)

    async def any_leader(self) -> NodeId:
        """Who leads one of the topics."""
        return await leader_of(self._client, self.chance.choice(self.streams).topic)

    async def whole(self) -> None:
        """Return once everybody runs, every replica has everything, and every topic is
        appended to."""
        with anyio.fail_after(WHOLE_TIMEOUT_S):
            await anyio.to_thread.run_sync(make_whole, self.cluster)
            for stream in self.streams:
                await stream.load.acks.one_more()
                await self._wait_until_in_sync(stream.topic)

    async def _wait_until_in_sync(self, topic: str) -> None:
        """Unlike caught up: under load the leader is always ahead by what is under way."""
        while True:
            with contextlib.suppress(LogdError):
                known = await self._client.admin.describe_partition(topic, 0)
                if all(replica.alive and replica.in_sync for replica in known.replicas):
                    return
            await anyio.sleep(POLL_S)

    @contextlib.contextmanager
    def frozen(self, nodes: Sequence[NodeId]) -> Iterator[None]:
        """SIGSTOP now, SIGCONT afterwards."""
        for node in nodes:
            send_signal(self.cluster, node, signal.SIGSTOP)
        try:
            yield
        finally:
            for node in nodes:
                send_signal(self.cluster, node, signal.SIGCONT)

    async def shaped(self, pairs: Sequence[Pair], shape: Shape) -> None:
        """These paths have that shape for as long as a fault lasts."""
        self.proxy.shape(pairs, shape)
        await anyio.sleep(FAULT_S)
        self.proxy.heal()


# --- faults -----------------------------------------------------------------------------

Fault = Callable[[Soak], Awaitable[None]]


async def kill_a_leader(soak: Soak) -> None:
    await _kill_and_start(soak, await soak.any_leader())


async def kill_any(soak: Soak) -> None:
    await _kill_and_start(soak, soak.any_broker())


async def _kill_and_start(soak: Soak, node: NodeId) -> None:
    await anyio.to_thread.run_sync(soak.cluster.kill, node)
    await anyio.sleep(soak.chance.uniform(0, FAULT_S))
    soak.cluster.start(node)


async def kill_everybody(soak: Soak) -> None:
    await anyio.to_thread.run_sync(kill_all, soak.cluster)
    for node in soak.nodes:
        soak.cluster.start(node)


async def kill_rolling(soak: Soak) -> None:
    for node in soak.nodes:
        await _kill_and_start(soak, node)
        await soak.whole()


async def restart_rolling(soak: Soak) -> None:
    for node in soak.nodes:
        await stop(soak.cluster, node)
        soak.cluster.start(node)
        await soak.whole()


async def freeze_a_leader(soak: Soak) -> None:
    with soak.frozen([await soak.any_leader()]):
        await anyio.sleep(FAULT_S)


async def freeze_a_majority(soak: Soak) -> None:
    with soak.frozen(soak.chance.sample(soak.nodes, BROKERS // 2 + 1)):
        await anyio.sleep(FAULT_S)


async def cut_what_a_leader_sends(soak: Soak) -> None:
    await soak.shaped(soak.proxy.pairs_from(await soak.any_leader()), Shape(is_cut=True))


async def cut_what_a_leader_hears(soak: Soak) -> None:
    await soak.shaped(soak.proxy.pairs_to(await soak.any_leader()), Shape(is_cut=True))


async def cut_one_pair_one_way(soak: Soak) -> None:
    await soak.shaped([soak.chance.choice(soak.proxy.all_pairs)], Shape(is_cut=True))


async def cut_everybody_off(soak: Soak) -> None:
    await soak.shaped(soak.proxy.all_pairs, Shape(is_cut=True))


async def half_open_a_leader(soak: Soak) -> None:
    leader = await soak.any_leader()
    pairs = [*soak.proxy.pairs_from(leader), *soak.proxy.pairs_to(leader)]
    await soak.shaped(pairs, Shape(is_half_open=True))


async def half_open_one_pair(soak: Soak) -> None:
    await soak.shaped([soak.chance.choice(soak.proxy.all_pairs)], Shape(is_half_open=True))


async def delay_all(soak: Soak) -> None:
    await soak.shaped(soak.proxy.all_pairs, Shape(delay_s=SLOW_DELAY_S))


async def throttle_all(soak: Soak) -> None:
    await soak.shaped(soak.proxy.all_pairs, Shape(bytes_per_s=SLOW_BYTES_PER_S))


async def reset_all(soak: Soak) -> None:
    for _ in range(5):
        soak.proxy.reset_all()
        await anyio.sleep(soak.chance.uniform(0, FAULT_S / 5))


async def flip_bits(soak: Soak) -> None:
    """In sealed segments of one broker, while it is down; until its files verify again."""
    broker = soak.cluster.broker(soak.any_broker())
    with anyio.fail_after(WHOLE_TIMEOUT_S):  # Soon after the beginning there is none yet.
        while not _sealed_segments(broker):
            await anyio.sleep(POLL_S)
    await stop(soak.cluster, broker.node_id)
    sealed = _sealed_segments(broker)
    for _ in range(FLIPPED_BITS):
        flip_bit(soak.chance.choice(sealed), soak.chance)
    soak.cluster.start(broker.node_id)
    with anyio.fail_after(WHOLE_TIMEOUT_S):
        while (
            await anyio.to_thread.run_sync(run_logd, "segment", "verify", broker.data_dir)
        ).returncode != 0:
            await anyio.sleep(0.5)


def _sealed_segments(broker: LocalBroker) -> list[Path]:
    return [
        path
        for group in broker.data_dir.glob("groups/*")
        for path in sorted(group.glob("*.log"))[:-1]
    ]


FAULTS: Final[dict[str, Fault]] = {
    "kill a leader": kill_a_leader,
    "kill any broker": kill_any,
    "kill everybody at once": kill_everybody,
    "kill rolling": kill_rolling,
    "restart rolling": restart_rolling,
    "freeze a leader": freeze_a_leader,
    "freeze a majority": freeze_a_majority,
    "cut what a leader sends": cut_what_a_leader_sends,
    "cut what a leader hears": cut_what_a_leader_hears,
    "cut one pair one way": cut_one_pair_one_way,
    "cut everybody off": cut_everybody_off,
    "half-open a leader": half_open_a_leader,
    "half-open one pair": half_open_one_pair,
    "delay all": delay_all,
    "throttle all": throttle_all,
    "reset all": reset_all,
    "flip bits": flip_bits,
}


# --- the run ----------------------------------------------------------------------------


def run_soak(
    cluster: ProxiedCluster,
    duration_s: float,
    seed: int,
    faults: Sequence[str],
    tell: Callable[[Round], None],
) -> SoakReport:
    """Rounds of faults until the time is over; then everything is compared.

    Args:
        tell: called after each round.
    """
    report = SoakReport(seed, usage={broker.node_id: [] for broker in cluster.brokers})
    began = time.monotonic()
    try:
        anyio.run(_run, cluster, report, began + duration_s, faults, tell, backend="trio")
    except Exception as error:  # What ends a soak is its finding: the report has it.
        report.violations += [repr(leaf) for leaf in _leaves(error)]
    report.took_s = time.monotonic() - began
    report.links = cluster.proxy.link_count
    for broker in cluster.brokers:
        report.events.update(event["event"] for event in logged_events(broker))
    report.violations += _judge(cluster, report)
    return report


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _judge(cluster: ProxiedCluster, report: SoakReport) -> Iterator[str]:
    found = report.differences
    if found.count:
        yield f"lost {found.lost}, duplicated {found.duplicated}, inconsistent {found.misplaced}"
        yield from found.examples
    for broker in cluster.brokers:
        if b"Traceback" in broker.log_path.read_bytes():
            yield f"broker {broker.node_id} logged a traceback: {broker.log_path}"
        if not report.usage[broker.node_id]:
            continue
        start, end = report.start_and_end(broker.node_id)
        if end.memory_bytes > start.memory_bytes + GROWTH_BYTES_MAX:
            yield f"broker {broker.node_id}: memory grew"
        if end.descriptors > start.descriptors + GROWTH_DESCRIPTORS_MAX:
            yield f"broker {broker.node_id}: descriptors grew"


async def _run(
    cluster: ProxiedCluster,
    report: SoakReport,
    deadline: float,
    faults: Sequence[str],
    tell: Callable[[Round], None],
) -> None:
    async with connect(cluster.bootstrap) as client, contextlib.AsyncExitStack() as stack:
        soak = Soak(cluster, client, random.Random(report.seed))
        for number in range(TOPICS):
            topic = f"soak-{number}"
            created = await client.admin.create_topic(
                topic, partitions=1, replicas=BROKERS, config={"segment_bytes": SEGMENT_BYTES}
            )
            producer = await stack.enter_async_context(client.producer(topic))
            soak.streams.append(Stream(topic, GroupId(created.partitions[0].group), producer))
        async with anyio.create_task_group() as following:
            for number, stream in enumerate(soak.streams):
                following.start_soon(stream.follow, client, 0, None)
                pinned = soak.nodes[number % len(soak.nodes)]
                following.start_soon(stream.follow, client, 1, pinned)
            async with anyio.create_task_group() as loading:
                for stream in soak.streams:
                    stream.start(loading)
                await anyio.sleep(CALM_S)
                await _take_turns(soak, report, deadline, faults, tell)
                for stream in soak.streams:
                    stream.load.stop()
            for stream in soak.streams:
                await wait_until_caught_up(client, stream.topic, [0])
                await stream.wait_until_consumed()
            following.cancel_scope.cancel()
    for stream in soak.streams:
        await anyio.to_thread.run_sync(_compare, cluster, stream, report)


async def _take_turns(
    soak: Soak,
    report: SoakReport,
    deadline: float,
    faults: Sequence[str],
    tell: Callable[[Round], None],
) -> None:
    rotation: list[str] = []
    while time.monotonic() < deadline:
        if not rotation:
            rotation = soak.chance.sample(list(faults), len(faults))
        fault = rotation.pop()
        began = time.monotonic()
        try:
            await FAULTS[fault](soak)
            ended = time.monotonic()
            await soak.whole()
        except TimeoutError as error:
            raise AssertionError(f"not whole {WHOLE_TIMEOUT_S:.0f} s after: {fault}") from error
        whole = time.monotonic()
        gap_s = max(stream.longest_gap_s(began, whole) for stream in soak.streams)
        report.rounds.append(Round(fault, gap_s, whole - ended))
        tell(report.rounds[-1])
        await anyio.sleep(CALM_S)
        for node in soak.nodes:
            pid = soak.cluster.pid(node)
            report.usage[node].append(Usage(anonymous_bytes(pid), descriptor_count(pid)))
    assert report.rounds, "not one fault: there was no time for it"


def _compare(cluster: ProxiedCluster, stream: Stream, report: SoakReport) -> None:
    """Add one topic's records and differences to the report."""
    copies = {**dump_replicas(cluster, stream.group), **stream.seen}
    found = compare(stream.load.acks.offsets, copies)
    report.acknowledged += len(stream.load.acks.offsets)
    report.consumed += sum(len(seen) for seen in stream.seen.values())
    total = report.differences
    total.lost += found.lost
    total.duplicated += found.duplicated
    total.misplaced += found.misplaced
    for example in found.examples:
        total.note(f"{stream.topic}: {example}")
