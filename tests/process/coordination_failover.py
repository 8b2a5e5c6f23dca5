"""Brokers that are killed under locks, keys and a queue: what the clients had stays theirs.

The clients speak the wire protocol themselves (``tests/support``): the gap that is measured is
the brokers', with a client that asks again at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import trio

from logd.cli.local_cluster import LocalCluster
from logd.errors import LogdError
from logd.runtime.network import TcpNetwork
from logd.types import NodeId
from logd.wire.coordination import (
    Acquire,
    Claim,
    ClaimItems,
    CompleteItems,
    Holders,
    Item,
    ItemClaim,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    Put,
    PutItems,
    QueueStatistics,
    ReadLock,
    ReadQueue,
    Transact,
)
from tests.support.coordination_wire import WireClient, WireSession

NAMESPACE: Final = "failover"
LOCKS: Final = 20
WRITERS: Final = 4
WORKERS: Final = 3
TTL_MS: Final = 5_000
CALM_S: Final = 1.0


@dataclass(frozen=True)
class Outcome:
    """What one kill did to the clients of the partition that it led."""

    acknowledged: int
    longest_gap_s: float
    """Between two acknowledged writes, over the whole run."""
    locks_lost: int
    sessions_lost: int
    items_put: int
    items_completed: int
    items_completed_twice: int
    queue: QueueStatistics
    leader_before: NodeId
    leader_after: NodeId


class _Load:
    """Clients that go on until they are told to stop."""

    def __init__(self, client: WireClient, queue: str) -> None:
        self.client = client
        self.queue = queue
        self.acknowledged_at: list[float] = []
        self.put: list[int] = []
        self.completed: list[int] = []
        self.is_over = False

    async def write(self, session: WireSession, number: int) -> None:
        count = 0
        while not self.is_over:
            count += 1
            await session.do(Transact(then=[Put(key=b"k%d" % number, value=b"%d" % count)]))
            self.acknowledged_at.append(time.monotonic())

    async def put_items(self, session: WireSession) -> None:
        count = 0
        while not self.is_over:
            count += 1
            items = [Item(payload=b"%d-%d" % (count, part)) for part in range(5)]
            result = await session.do(PutItems(queue=self.queue, items=items))
            assert isinstance(result, ItemsPut)
            self.put += result.items
            await trio.sleep(0.01)

    async def work(self, session: WireSession) -> None:
        """Until the queue is empty, once the load is over."""
        while True:
            was_over = self.is_over
            claimed = await session.do(ClaimItems(queue=self.queue, count=5, visibility_ms=10_000))
            assert isinstance(claimed, ItemsClaimed)
            if claimed.items:
                claims = [ItemClaim(item=item.item, token=item.token) for item in claimed.items]
                done = await session.do(CompleteItems(queue=self.queue, claims=claims))
                assert isinstance(done, ItemsSettled)
                self.completed += done.settled
            elif was_over:
                return
            else:
                await trio.sleep(0.01)


def kill_the_leader(cluster: LocalCluster) -> Outcome:
    """SIGKILL of the leader of the namespace's partition, under load."""
    return trio.run(_run, cluster, _kill)


async def _kill(cluster: LocalCluster, leader: NodeId) -> None:
    await trio.to_thread.run_sync(cluster.kill, leader)


async def _run(
    cluster: LocalCluster, disturb: Callable[[LocalCluster, NodeId], Awaitable[None]]
) -> Outcome:
    network = TcpNetwork()
    async with trio.open_nursery() as nursery:
        addresses = [broker.address for broker in cluster.brokers]
        client = WireClient(network.connect, addresses, nursery)
        group = await client.group_of(NAMESPACE)
        sessions = [
            await client.open_session(NAMESPACE, os.urandom(16), TTL_MS)
            for _ in range(LOCKS + WRITERS + WORKERS + 1)
        ]
        for session in sessions:
            nursery.start_soon(session.stay)
        names = [f"lock{number}-{os.urandom(4).hex()}" for number in range(LOCKS)]
        held = [
            await session.do(Acquire(kind="lock", name=name))
            for session, name in zip(sessions, names, strict=False)
        ]
        load = _Load(client, f"queue-{os.urandom(4).hex()}")
        before = await _leader(client, group)
        async with trio.open_nursery() as working:
            for number in range(WRITERS):
                working.start_soon(load.write, sessions[LOCKS + number], number)
            working.start_soon(load.put_items, sessions[-1])
            for number in range(WORKERS):
                working.start_soon(load.work, sessions[LOCKS + WRITERS + number])
            await trio.sleep(CALM_S)
            await disturb(cluster, before)
            await trio.sleep(2 * TTL_MS / 1000)
            load.is_over = True
        lost = 0
        for name, claim in zip(names, held, strict=True):
            assert isinstance(claim, Claim)
            answer = await client.query(NAMESPACE, ReadLock(kind="lock", name=name))
            assert isinstance(answer, Holders)
            lost += [holder.token for holder in answer.holders] != [claim.token]
        statistics = await client.query(NAMESPACE, ReadQueue(queue=load.queue))
        assert isinstance(statistics, QueueStatistics)
        after = await _leader(client, group)
        nursery.cancel_scope.cancel()
    times = load.acknowledged_at
    return Outcome(
        acknowledged=len(times),
        longest_gap_s=max(later - earlier for earlier, later in pairwise(times)),
        locks_lost=lost,
        sessions_lost=sum(session.is_expired for session in sessions),
        items_put=len(load.put),
        items_completed=len(set(load.completed)),
        items_completed_twice=len(load.completed) - len(set(load.completed)),
        queue=statistics,
        leader_before=before,
        leader_after=after,
    )


async def _leader(client: WireClient, group: int) -> NodeId:
    while True:
        with suppress(LogdError):
            await client.refresh()
        leader = client.leaders.get(group)
        if leader is not None:
            return NodeId(leader)
        await trio.sleep(0.05)
