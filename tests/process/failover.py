"""Brokers that are killed, stopped and frozen under a producer; how long it goes without
acknowledgement, and whether the replicas agree with what was acknowledged.

The longest gap is taken over the whole run, from the first to the last acknowledgement: a
slow recovery afterwards counts as much as the election does.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import anyio

from logd.cli.local_cluster import LocalCluster
from logd.cli.ready import wait_until_ready
from logd.types import GroupId, NodeId
from logd_client import Client, connect
from tests.process.harness import (
    BROKERS,
    dump_replicas,
    kill_all,
    leader_of,
    send_signal,
    wait_until_caught_up,
)
from tests.process.load import Differences, Load, compare

LOAD_WORKERS: Final = 4
CALM_S: Final = 0.7
"""Undisturbed load before the disturbance and behind it."""

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


Disturb = Callable[[Client, str, Load], Awaitable[float]]


def kill_the_leader(cluster: LocalCluster) -> Outcome:
    """One producer, one record at a time; SIGKILL of the partition's leader.

    ``disturbed_s`` runs from the kill to the next acknowledgement.
    """

    async def disturb(client: Client, topic: str, load: Load) -> float:
        leader = await leader_of(client, topic)
        killed = time.monotonic()
        await anyio.to_thread.run_sync(cluster.kill, leader)
        while (acknowledged := await load.acks.one_more()) < killed:
            pass
        return acknowledged - killed

    return anyio.run(_run, cluster, disturb, 0, backend="trio")


def kill_everybody(cluster: LocalCluster) -> Outcome:
    """SIGKILL of all brokers at once under load, and their restart.

    ``disturbed_s`` runs from the start of the processes to the next acknowledgement, at a
    producer that was there all along.
    """

    async def disturb(client: Client, topic: str, load: Load) -> float:
        await anyio.to_thread.run_sync(kill_all, cluster)
        await anyio.sleep(0.1)
        started = time.monotonic()
        cluster.start_all()
        return await load.acks.one_more() - started

    return anyio.run(_run, cluster, disturb, LOAD_WORKERS, backend="trio")


def stop_the_leader(cluster: LocalCluster) -> Outcome:
    """SIGTERM of the partition's leader under load.

    ``disturbed_s`` runs from the signal to the end of the process.
    """

    async def disturb(client: Client, topic: str, load: Load) -> float:
        leader = await leader_of(client, topic)
        began = time.monotonic()
        send_signal(cluster, leader, signal.SIGTERM)
        status = await anyio.to_thread.run_sync(cluster.wait, leader)
        assert status == 0, f"broker {leader} ended with status {status}"
        return time.monotonic() - began

    return anyio.run(_run, cluster, disturb, LOAD_WORKERS, backend="trio")


def freeze_the_leader(cluster: LocalCluster, frozen_s: float) -> Outcome:
    """SIGSTOP of the partition's leader, and SIGCONT after ``frozen_s``.

    ``disturbed_s`` runs from SIGSTOP to the next acknowledgement that came of another leader.
    """

    async def disturb(client: Client, topic: str, load: Load) -> float:
        leader = await leader_of(client, topic)
        frozen = time.monotonic()
        send_signal(cluster, leader, signal.SIGSTOP)
        try:
            # What was on its way when the leader froze may still arrive.
            await anyio.sleep(0.1)
            acknowledged = await load.acks.one_more()
            await anyio.sleep(max(0.0, frozen + frozen_s - time.monotonic()))
        finally:
            send_signal(cluster, leader, signal.SIGCONT)
        return acknowledged - frozen

    return anyio.run(_run, cluster, disturb, 0, backend="trio")


async def _run(cluster: LocalCluster, disturb: Disturb, workers: int) -> Outcome:
    """Load, disturbance, load; then everybody is made whole and every replica is read.

    Args:
        workers: 0 for one producer that appends one record at a time.
    """
    topic = f"failover-{next(_topic_numbers)}"
    async with connect(cluster.bootstrap) as client:
        created = await client.admin.create_topic(topic, partitions=1, replicas=BROKERS)
        before = await leader_of(client, topic)
        async with client.producer(topic) as producer:
            load = Load(producer)
            async with anyio.create_task_group() as tasks:
                if workers == 0:
                    tasks.start_soon(load.append_one_by_one)
                for worker in range(workers):
                    tasks.start_soon(load.append_many, worker)
                await anyio.sleep(CALM_S)
                disturbed_s = await disturb(client, topic, load)
                await anyio.sleep(CALM_S)
                load.stop()
        for broker in cluster.brokers:
            if not cluster.is_running(broker.node_id):
                cluster.start(broker.node_id)
        await wait_until_ready(cluster)
        await wait_until_caught_up(client, topic, [0])
        after = await leader_of(client, topic)
    group = GroupId(created.partitions[0].group)
    replicas = await anyio.to_thread.run_sync(dump_replicas, cluster, group)
    return Outcome(
        acknowledged=len(load.acks.offsets),
        longest_gap_s=load.acks.longest_gap_s,
        disturbed_s=disturbed_s,
        leader_before=before,
        leader_after=after,
        differences=compare(load.acks.offsets, replicas),
    )
