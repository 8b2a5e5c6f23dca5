"""Brokers that are killed, stopped and frozen under a producer; how long it goes without
acknowledgement, and whether the replicas agree with what was acknowledged.

The longest gap is taken over the whole run, from the first to the last acknowledgement: a
slow recovery afterwards counts as much as the election does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import anyio

from logd.cli.local_cluster import LocalCluster
from logd.cli.ready import wait_until_ready
from logd.errors import ConnectionFailedError
from logd.limits import KIB
from logd.types import GroupId, NodeId
from logd_client import Client, Producer, connect
from tests.process.harness import (
    BROKERS,
    POLL_S,
    acting_leader,
    dump_replicas,
    kill_all,
    send_signal,
    stop,
    wait_until_caught_up,
)
from tests.process.load import Differences, Load, compare

LOAD_WORKERS: Final = 4
CALM_S: Final = 0.7
"""Undisturbed load before the disturbance and behind it, at least."""

CALM_ACKNOWLEDGEMENTS: Final = 51
"""So many appends are acknowledged in it, however slow the machine is."""

_topic_numbers = iter(range(1_000_000))


@dataclass(frozen=True)
class Outcome:
    """What one disturbance did."""

    acknowledged: int
    longest_gap_s: float
    disturbed_s: float
    """How long the disturbance itself took: what it means is said where it is made."""
    leader_before: NodeId
    leader_after: NodeId
    differences: Differences


@dataclass(frozen=True)
class Disturbance:
    """What was done, and to whom."""

    took_s: float
    leader_before: NodeId
    leader_after: NodeId
    """Who answered as the leader before the other one could be it again: leaders go back to where
    there are few, as soon as that broker has caught up."""


Disturb = Callable[[Client, str, Load], Awaitable[Disturbance]]


def kill_the_leader(cluster: LocalCluster) -> Outcome:
    """One producer, one record at a time; SIGKILL of the partition's leader.

    ``disturbed_s`` runs from the kill to the next acknowledgement.
    """

    async def disturb(client: Client, topic: str, load: Load) -> Disturbance:
        leader = await acting_leader(client, topic)
        killed = time.monotonic()
        await anyio.to_thread.run_sync(cluster.kill, leader)
        while (acknowledged := await load.acks.one_more()) < killed:
            pass
        return Disturbance(acknowledged - killed, leader, await acting_leader(client, topic))

    return anyio.run(_run, cluster, disturb, 0, backend="trio")


def kill_everybody(cluster: LocalCluster) -> Outcome:
    """SIGKILL of all brokers at once under load, and their restart.

    ``disturbed_s`` runs from the start of the processes to the next acknowledgement, at a
    producer that was there all along.
    """

    async def disturb(client: Client, topic: str, load: Load) -> Disturbance:
        leader = await acting_leader(client, topic)
        await anyio.to_thread.run_sync(kill_all, cluster)
        await anyio.sleep(0.1)
        started = time.monotonic()
        cluster.start_all()
        took_s = await load.acks.one_more() - started
        return Disturbance(took_s, leader, await acting_leader(client, topic))

    return anyio.run(_run, cluster, disturb, LOAD_WORKERS, backend="trio")


def stop_the_leader(cluster: LocalCluster) -> Outcome:
    """SIGTERM of the partition's leader under load.

    ``disturbed_s`` runs from the signal to the end of the process.
    """

    async def disturb(client: Client, topic: str, load: Load) -> Disturbance:
        leader = await acting_leader(client, topic)
        began = time.monotonic()
        await stop(cluster, leader)
        took_s = time.monotonic() - began
        return Disturbance(took_s, leader, await acting_leader(client, topic))

    return anyio.run(_run, cluster, disturb, LOAD_WORKERS, backend="trio")


def freeze_the_leader(cluster: LocalCluster, frozen_s: float) -> Outcome:
    """SIGSTOP of the partition's leader, and SIGCONT after ``frozen_s``.

    ``disturbed_s`` runs from SIGSTOP to the next acknowledgement that came of another leader.
    """

    async def disturb(client: Client, topic: str, load: Load) -> Disturbance:
        leader = await acting_leader(client, topic)
        frozen = time.monotonic()
        send_signal(cluster, leader, signal.SIGSTOP)
        try:
            # What was on its way when the leader froze may still arrive.
            await anyio.sleep(0.1)
            acknowledged = await load.acks.one_more()
            after = await acting_leader(client, topic)
            await anyio.sleep(max(0.0, frozen + frozen_s - time.monotonic()))
        finally:
            send_signal(cluster, leader, signal.SIGCONT)
        return Disturbance(acknowledged - frozen, leader, after)

    return anyio.run(_run, cluster, disturb, 0, backend="trio")


BULK_TOPIC: Final = "bulk"
BULK_PARTITIONS: Final = 4
BULK_RECORD_BYTES: Final = 1 * KIB
BULK_RECORDS_PER_CALL: Final = 4_000


def fill(cluster: LocalCluster, bytes_per_broker: int) -> int:
    """Give every broker that much data; return the number of records."""
    record_count = bytes_per_broker // BULK_RECORD_BYTES

    async def append(producer: Producer, partition: int) -> None:
        values = [bytes(BULK_RECORD_BYTES)] * BULK_RECORDS_PER_CALL
        for _ in range(record_count // BULK_PARTITIONS // BULK_RECORDS_PER_CALL + 1):
            await producer.append_many(values, partition=partition)

    async def append_all() -> int:
        async with connect(cluster.bootstrap) as client:
            await client.admin.create_topic(
                BULK_TOPIC, partitions=BULK_PARTITIONS, replicas=BROKERS
            )
            async with client.producer(BULK_TOPIC) as producer, anyio.create_task_group() as tasks:
                for partition in range(BULK_PARTITIONS):
                    tasks.start_soon(append, producer, partition)
            await wait_until_caught_up(client, BULK_TOPIC, range(BULK_PARTITIONS))
            offsets = [await client.admin.offsets(BULK_TOPIC, n) for n in range(BULK_PARTITIONS)]
            return sum(one.data_end for one in offsets)

    return anyio.run(append_all, backend="trio")


@dataclass(frozen=True)
class Restart:
    """How long brokers that hold much data take to serve again, from their start on."""

    first_ack_s: float
    last_ack_s: float
    """When every partition had acknowledged one more record."""
    is_complete: bool
    """No partition ends below what it had acknowledged."""


def restart_with_data(cluster: LocalCluster, *, is_cold: bool) -> Restart:
    """Kill everybody under load and start them again; a new client appends to every partition
    of ``fill``.

    Args:
        is_cold: the brokers' files are dropped from the page cache meanwhile.
    """

    async def run() -> Restart:
        async with connect(cluster.bootstrap) as client:
            before = [await client.admin.offsets(BULK_TOPIC, n) for n in range(BULK_PARTITIONS)]
            async with client.producer(BULK_TOPIC) as producer:
                load = Load(producer)
                async with anyio.create_task_group() as tasks:
                    for worker in range(LOAD_WORKERS):
                        tasks.start_soon(load.append_many, worker)
                    await anyio.sleep(CALM_S)
                    await anyio.to_thread.run_sync(kill_all, cluster)
                    if is_cold:
                        await anyio.to_thread.run_sync(_drop_from_page_cache, cluster)
                    acks = await _acks_after_start(cluster)
                    load.stop()
            after = [await client.admin.offsets(BULK_TOPIC, n) for n in range(BULK_PARTITIONS)]
        grown = sum(a.data_end - b.data_end for a, b in zip(after, before, strict=True))
        is_complete = grown >= len(load.acks.offsets) + BULK_PARTITIONS
        return Restart(min(acks), max(acks), is_complete)

    return anyio.run(run, backend="trio")


async def _acks_after_start(cluster: LocalCluster) -> list[float]:
    """Start every broker; when each partition acknowledged a record to a new client."""
    started = time.monotonic()
    cluster.start_all()
    acks: list[float] = []
    while True:
        try:
            async with (
                connect(cluster.bootstrap) as client,
                client.producer(BULK_TOPIC) as producer,
            ):
                for partition in range(BULK_PARTITIONS):
                    await producer.append(b"served again", partition=partition)
                    acks.append(time.monotonic() - started)
                return acks
        except ConnectionFailedError:
            await anyio.sleep(POLL_S)


def _drop_from_page_cache(cluster: LocalCluster) -> None:
    for broker in cluster.brokers:
        for path in broker.data_dir.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)  # Only clean pages can be dropped.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


async def _stay_calm(load: Load) -> None:
    enough = len(load.acks.times) + CALM_ACKNOWLEDGEMENTS
    await anyio.sleep(CALM_S)
    while len(load.acks.times) < enough:
        await load.acks.one_more()


async def _run(cluster: LocalCluster, disturb: Disturb, workers: int) -> Outcome:
    """Load, disturbance, load; then everybody is made whole and every replica is read.

    Args:
        workers: 0 for one producer that appends one record at a time.
    """
    topic = f"failover-{next(_topic_numbers)}"
    async with connect(cluster.bootstrap) as client:
        created = await client.admin.create_topic(topic, partitions=1, replicas=BROKERS)
        async with client.producer(topic) as producer:
            load = Load(producer)
            async with anyio.create_task_group() as tasks:
                if workers == 0:
                    tasks.start_soon(load.append_one_by_one)
                for worker in range(workers):
                    tasks.start_soon(load.append_many, worker)
                await _stay_calm(load)
                disturbance = await disturb(client, topic, load)
                await _stay_calm(load)
                load.stop()
        for broker in cluster.brokers:
            if not cluster.is_running(broker.node_id):
                cluster.start(broker.node_id)
        await wait_until_ready(cluster)
        await wait_until_caught_up(client, topic, [0])
    group = GroupId(created.partitions[0].group)
    replicas = await anyio.to_thread.run_sync(dump_replicas, cluster, group)
    return Outcome(
        acknowledged=len(load.acks.offsets),
        longest_gap_s=load.acks.longest_gap_s,
        disturbed_s=disturbance.took_s,
        leader_before=disturbance.leader_before,
        leader_after=disturbance.leader_after,
        differences=compare(load.acks.offsets, replicas),
    )
