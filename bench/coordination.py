"""The figures of coordination: three brokers as processes, the Python client in this one.

What etcd's and ZooKeeper's users measure: puts with many in flight, a lock alone, many workers
with a lock each, a work queue, a crowd that watches one key, sessions that do nothing.  A rate on
a shared machine says little by itself, so each row also has what it cost: microseconds of
processor time per operation of the leader, of a follower (the mean of the two), and of the client.

    python -m bench.coordination                       every workload, once
    python -m bench.coordination puts locks --runs 3   medians of three, on one cluster
    python -m bench.coordination puts --backend asyncio --output json
    python -m bench.coordination puts lock locks --runs 3 --beside etcd zookeeper

With ``--beside`` three servers of each peer that is named run too.  In every round, after logd's
`puts`, `lock` and `locks`, each peer is asked for the same: in its own protocol, over one
connection to its leader, with no client library's cost (``bench/peers/etcd.py``,
``zookeeper.py``) and, like logd, for a fifth of it before, which is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import anyio
import msgspec

from bench.peers import etcd, zookeeper
from bench.peers.peer import PeerRun
from logd.cli.local_cluster import LocalCluster, open_cluster, process_cpu_seconds, stopping
from logd.cli.measure import Latency, latency_of, this_machine
from logd.cli.ready import wait_until_ready
from logd.errors import NotLeaderError
from logd.types import GroupId
from logd.wire.coordination import Opened, OpenSession
from logd.wire.messages import CoordinateRequest, Message
from logd_client import Client, connect
from logd_client.coordination.calls import Calls
from logd_client.coordination.queues import Queue
from logd_client.coordination.watches import Watch

BROKERS: Final = 3
KEYS: Final = 5_000
VALUE: Final = bytes(256)
"""etcd's own benchmark writes values of this size."""

PUTS_IN_FLIGHT: Final = 1_000
PUT_CLIENTS: Final = 2
"""A session has fewer commands than that in flight: it keeps their results."""

LOCK_WORKERS: Final = 64
QUEUE_WORKERS: Final = 16
ITEMS_PER_CALL: Final = 50
ITEM: Final = bytes(100)
WATCH_CLIENTS: Final = 20
WATCHERS_PER_CLIENT: Final = 50
UPDATES_PER_S: Final = 100
WATCHED_SPACE: Final = "bench-watches"
WATCHED_KEY: Final = "k"
SESSION_CLIENTS: Final = 100
IDLE_SESSIONS: Final = 10_000
SESSION_TTL_S: Final = 30
KEEP_ALIVES_PER_TTL: Final = 3
KEEP_ALIVE_ATTEMPTS: Final = 3
IDLE_WARM_UP_S: Final = 2.0
SCALE_MIN: Final = 0.01
"""Below it some have nothing to do."""

W = TypeVar("W")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one workload gave."""

    name: str
    operation: str
    operations: int
    seconds: float
    per_s: float
    latency_ms: Latency
    leader_us: float
    """Processor time per operation, as the next two."""
    follower_us: float
    client_us: float
    leader_core_percent: float
    """How busy the leader was."""
    load: float


class OfPeer(msgspec.Struct, frozen=True, kw_only=True):
    """One workload of one peer; medians."""

    per_s: float
    p50_ms: float
    ratio: float
    """Median over the rounds of logd's rate to the peer's."""


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """One workload of logd and of its peers, in the same rounds; medians."""

    operation: str
    logd_per_s: float
    logd_p50_ms: float
    peers: Mapping[str, OfPeer]


class Measured:
    """The measured part of a workload."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.latencies_s: list[float] = []
        self.seconds = 0.0
        self._brokers_s: list[float] = []
        self._client_s = 0.0

    def _used(self) -> list[float]:
        return [process_cpu_seconds(self._cluster.pid(at.node_id)) for at in self._cluster.brokers]

    @asynccontextmanager
    async def part(self) -> AsyncIterator[list[float]]:
        """The block; append what each operation took to what is yielded."""
        brokers, client, began = self._used(), time.process_time(), time.perf_counter()
        yield self.latencies_s
        self.seconds = time.perf_counter() - began
        self._client_s = time.process_time() - client
        self._brokers_s = [
            after - before for before, after in zip(brokers, self._used(), strict=True)
        ]

    def row(self, name: str, operation: str, operations: int) -> Row:
        """``operations``: how many were done, of which each stands for a latency or part of one."""
        leader_s, *followers_s = sorted(self._brokers_s, reverse=True)

        def each_us(seconds: float) -> float:
            return round(seconds * 1e6 / operations, 1)

        return Row(
            name=name,
            operation=operation,
            operations=operations,
            seconds=round(self.seconds, 3),
            per_s=round(operations / self.seconds, 1),
            latency_ms=latency_of(self.latencies_s),
            leader_us=each_us(leader_s),
            follower_us=each_us(statistics.mean(followers_s)),
            client_us=each_us(self._client_s),
            leader_core_percent=round(100 * leader_s / self.seconds, 1),
            load=round(os.getloadavg()[0], 1),
        )


@asynccontextmanager
async def clients(cluster: LocalCluster, count: int) -> AsyncIterator[list[Client]]:
    """So many, each with connections and sessions of its own."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                connect(cluster.bootstrap, session_ttl_ms=SESSION_TTL_S * 1000)
            )
            for _ in range(count)
        ]


async def timed(latencies_s: list[float], operation: Callable[[], Awaitable[object]]) -> None:
    began = time.perf_counter()
    await operation()
    latencies_s.append(time.perf_counter() - began)


async def share(
    count: int,
    workers: Iterable[W],
    work: Callable[[W, Iterator[int]], Coroutine[object, object, None]],
) -> None:
    """Have ``workers`` do so many operations between them, each the next as soon as it can."""
    numbers = iter(range(count))
    async with anyio.create_task_group() as tasks:
        for worker in workers:
            tasks.start_soon(work, worker, numbers)


@contextmanager
def what_is_there_left_alone() -> Iterator[None]:
    """By the search for garbage: else looking through twenty clients or ten thousand tasks, of
    40 ms and more each time, is what the slow end of the latencies shows."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# --- workloads --------------------------------------------------------------------------


async def puts(cluster: LocalCluster, scale: float) -> Row:
    """A thousand tasks put a key each, again and again."""
    total, measured = int(30_000 * scale), Measured(cluster)
    async with clients(cluster, PUT_CLIENTS) as found:
        spaces = [client.kv("bench-puts") for client in found]

        async def put(latencies_s: list[float], worker: int, numbers: Iterator[int]) -> None:
            space = spaces[worker % len(spaces)]
            for number in numbers:
                key = b"key-%d" % (number * 7919 % KEYS)
                await timed(latencies_s, partial(space.put, key, VALUE))

        await share(total // 5, range(PUTS_IN_FLIGHT), partial(put, []))
        async with measured.part() as latencies_s:
            await share(total, range(PUTS_IN_FLIGHT), partial(put, latencies_s))
    return measured.row("puts", "put, 1,000 in flight", total)


async def lock(cluster: LocalCluster, scale: float) -> Row:
    """One client takes a lock that nobody wants and gives it back."""
    total, measured = int(1_000 * scale), Measured(cluster)
    async with clients(cluster, 1) as (client,):

        async def hold() -> None:
            async with client.lock("bench-lock/alone"):
                pass

        for _ in range(total // 5):
            await hold()
        async with measured.part() as latencies_s:
            for _ in range(total):
                await timed(latencies_s, hold)
    return measured.row("lock", "acquire + release, alone", total)


async def locks(cluster: LocalCluster, scale: float) -> Row:
    """64 workers of one client, each with a lock of its own."""
    total, measured = int(10_000 * scale), Measured(cluster)
    async with clients(cluster, 1) as (client,):

        async def hold(name: str) -> None:
            async with client.lock(name):
                pass

        async def work(latencies_s: list[float], worker: int, numbers: Iterator[int]) -> None:
            for _ in numbers:
                await timed(latencies_s, partial(hold, f"bench-locks/lock-{worker}"))

        await share(total // 5, range(LOCK_WORKERS), partial(work, []))
        async with measured.part() as latencies_s:
            await share(total, range(LOCK_WORKERS), partial(work, latencies_s))
    return measured.row("locks", "acquire + release, 64 workers", total)


async def queue(cluster: LocalCluster, scale: float) -> Row:
    """16 workers put, claim and complete, fifty items a call."""
    rounds, measured = int(600 * scale), Measured(cluster)
    completed = 0
    async with clients(cluster, QUEUE_WORKERS) as found:

        async def turn(work: Queue) -> None:
            nonlocal completed
            await work.put_many([ITEM] * ITEMS_PER_CALL)
            claimed = await work.claim(ITEMS_PER_CALL)
            await work.complete(*claimed)
            completed += len(claimed)

        async def work(latencies_s: list[float], own: Queue, numbers: Iterator[int]) -> None:
            for _ in numbers:
                await timed(latencies_s, partial(turn, own))

        queues = [client.queue("bench-queue/q") for client in found]
        await share(rounds // 5, queues, partial(work, []))
        completed = 0
        async with measured.part() as latencies_s:
            await share(rounds, queues, partial(work, latencies_s))
    return measured.row("queue", "item put, claimed, completed", completed)


async def watches(cluster: LocalCluster, scale: float) -> Row:
    """A thousand watch one key that changes a hundred times a second; how late each hears.

    Who writes is a process of its own: here each update would wait for a thousand tasks to run.
    """
    updates, measured = max(int(500 * scale), 10), Measured(cluster)
    async with clients(cluster, WATCH_CLIENTS) as found, AsyncExitStack() as stack:
        writer = await stack.enter_async_context(watched_writer(cluster.bootstrap))
        opened: list[Watch] = [
            await stack.enter_async_context(client.kv(WATCHED_SPACE).watch(WATCHED_KEY))
            for client in found
            for _ in range(WATCHERS_PER_CLIENT)
        ]

        async def listen(latencies_s: list[float], events: Watch, count: int) -> None:
            for _ in range(count):
                event = await events.next()
                assert event is not None
                latencies_s.append(time.perf_counter() - float(event.value))

        async def run(latencies_s: list[float], count: int) -> None:
            async with anyio.create_task_group() as tasks:
                for events in opened:
                    tasks.start_soon(listen, latencies_s, events, count)
                writer.send(count)
                await anyio.to_thread.run_sync(writer.recv)

        await run([], updates // 5)
        with what_is_there_left_alone():
            async with measured.part() as latencies_s:
                await run(latencies_s, updates)
    return measured.row("watches", "event told, 1,000 watchers", updates * len(opened))


@asynccontextmanager
async def watched_writer(bootstrap: str) -> AsyncIterator[Pipe]:
    """A process that is sent how many updates to write, and answers when it has."""
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")  # A fork would share the event loop's files.
    process = spawn.Process(target=_write_when_told, args=(bootstrap, there), daemon=True)
    process.start()
    there.close()
    try:
        await anyio.to_thread.run_sync(here.recv)
        yield here
        here.send(0)
    finally:
        here.close()
        process.join()


def _write_when_told(bootstrap: str, told: Pipe) -> None:
    anyio.run(_write_on_time, bootstrap, told)


async def _write_on_time(bootstrap: str, told: Pipe) -> None:
    async with connect(bootstrap) as client:
        space = client.kv(WATCHED_SPACE)
        await space.put("another", b"")
        told.send(None)
        while count := await anyio.to_thread.run_sync(told.recv):
            began = time.perf_counter()  # The same clock in all processes.
            async with anyio.create_task_group() as tasks:
                for number in range(count):
                    due = began + number / UPDATES_PER_S
                    await anyio.sleep(max(due - time.perf_counter(), 0))
                    tasks.start_soon(space.put, WATCHED_KEY, b"%.6f" % due)
            told.send(None)


async def sessions(cluster: LocalCluster, scale: float) -> Row:
    """Ten thousand clients' worth of sessions, each kept alive by messages of its own."""
    seconds, measured = max(10 * scale, 1), Measured(cluster)
    per_client = IDLE_SESSIONS // SESSION_CLIENTS
    every_s = SESSION_TTL_S / KEEP_ALIVES_PER_TTL
    sent = [0]
    async with clients(cluster, SESSION_CLIENTS) as found:
        calls = [client._open_sessions().calls for client in found]
        group = await calls[0].group_of("bench-sessions")
        ids: list[tuple[Calls, int]] = []
        for own in calls:
            await _open_sessions(own, per_client, ids)

        async def keep(own: Calls, session: int, first_s: float, latencies_s: list[float]) -> None:
            await anyio.sleep(first_s)
            while True:
                await timed(latencies_s, partial(_keep_alive, own, group, session))
                sent[0] += 1
                await anyio.sleep(every_s)

        with what_is_there_left_alone():
            async with anyio.create_task_group() as tasks:
                for number, (own, session) in enumerate(ids):
                    first_s = every_s * number / len(ids)
                    tasks.start_soon(keep, own, session, first_s, measured.latencies_s)
                await anyio.sleep(every_s + IDLE_WARM_UP_S)
                measured.latencies_s.clear()
                sent[0] = 0
                async with measured.part():
                    await anyio.sleep(seconds)
                tasks.cancel_scope.cancel()
    return measured.row("sessions", "keep-alive of an idle session", sent[0])


async def _open_sessions(own: Calls, count: int, ids: list[tuple[Calls, int]]) -> None:
    def request(group: GroupId, timeout_ms: int) -> Message:
        return CoordinateRequest(group=group, namespace="bench-sessions", timeout_ms=timeout_ms)

    async def open_one() -> None:
        command = OpenSession(token=os.urandom(16), ttl_ms=SESSION_TTL_S * 1000)
        opened = await own.command("bench-sessions", command, request)
        assert isinstance(opened, Opened)
        ids.append((own, opened.session))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(open_one)


async def _keep_alive(own: Calls, group: GroupId, session: int) -> None:
    for attempt in range(KEEP_ALIVE_ATTEMPTS):
        try:
            assert not await own.keep_alive(group, [session], SESSION_TTL_S)
        except NotLeaderError:  # Says who leads: leadership is balanced soon after the start.
            if attempt + 1 == KEEP_ALIVE_ATTEMPTS:
                raise
        else:
            return


WORKLOADS: Final[dict[str, Callable[[LocalCluster, float], Awaitable[Row]]]] = {
    "puts": puts,
    "lock": lock,
    "locks": locks,
    "queue": queue,
    "watches": watches,
    "sessions": sessions,
}


# --- the same of peers ------------------------------------------------------------------

C = TypeVar("C")


class Asked(NamedTuple):
    """A workload of a peer that runs."""

    operations: int
    run: Callable[[int], PeerRun]

    def warmed_up(self, scale: float) -> PeerRun:
        """A fifth of it first, as of ours, which is not counted."""
        count = int(self.operations * scale)
        self.run(max(count // 5, 1))
        return self.run(count)


@dataclass(frozen=True, slots=True)
class CoordinatingPeer(Generic[C]):
    """Another system that has keys and locks; ``C`` is a connection to it."""

    missing: Callable[[], str | None]
    leader: Callable[[Path], AbstractContextManager[C]]
    puts: Callable[[C, bytes, int, int], PeerRun]
    locks: Callable[[C, int, int], PeerRun]

    @contextmanager
    def running(self, directory: Path) -> Iterator[dict[str, Asked]]:
        """Its servers, for the length of the block; those of our workloads that it has too."""
        directory.mkdir()
        with self.leader(directory) as connection:
            yield {
                "puts": Asked(30_000, lambda n: self.puts(connection, VALUE, n, PUTS_IN_FLIGHT)),
                "lock": Asked(1_000, lambda n: self.locks(connection, 1, n)),
                "locks": Asked(10_000, lambda n: self.locks(connection, LOCK_WORKERS, n)),
            }


PEERS: Final[dict[str, CoordinatingPeer[Any]]] = {
    "etcd": CoordinatingPeer(etcd.Etcd().missing, etcd.leader, etcd.puts, etcd.locks),
    "zookeeper": CoordinatingPeer(
        zookeeper.ZooKeeper().missing, zookeeper.leader, zookeeper.puts, zookeeper.locks
    ),
}


# --- the report -------------------------------------------------------------------------


def median_row(rows: Sequence[Row]) -> Row:
    """The run whose rate is in the middle, of two the slower one: its figures belong together."""
    return sorted(rows, key=lambda row: row.per_s)[(len(rows) - 1) // 2]


def print_table(rows: Sequence[Row]) -> None:
    heads = ("what", "per s", "p50 ms", "p99 ms", "leader us", "follower us", "client us")
    print(f"| {' | '.join((*heads, 'leader %', 'load'))} |")
    print("|---" + "|---:" * (len(heads) + 1) + "|")
    for row in rows:
        print(
            f"| {row.operation} | {row.per_s:,.0f} | {row.latency_ms.p50:.2f} | "
            f"{row.latency_ms.p99:.2f} | {row.leader_us:,.0f} | {row.follower_us:,.0f} | "
            f"{row.client_us:,.0f} | {row.leader_core_percent:.0f} | {row.load} |"
        )


def print_beside(found: Sequence[Beside]) -> None:
    heads = ["what", "logd per s", "p50 ms"]
    for name in found[0].peers:
        heads += [f"{name} per s", "p50 ms", "ratio"]
    print(f"\n| {' | '.join(heads)} |")
    print("|---" + "|---:" * (len(heads) - 1) + "|")
    for row in found:
        cells = [row.operation, f"{row.logd_per_s:,.0f}", f"{row.logd_p50_ms:.2f}"]
        for peer in row.peers.values():
            cells += [f"{peer.per_s:,.0f}", f"{peer.p50_ms:.2f}", f"{peer.ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


def beside(rows: Sequence[Row], runs: Mapping[str, Sequence[PeerRun]]) -> Beside:
    """The rounds of one workload; ``runs`` are the peers'."""
    return Beside(
        operation=rows[0].operation,
        logd_per_s=statistics.median(row.per_s for row in rows),
        logd_p50_ms=statistics.median(row.latency_ms.p50 for row in rows),
        peers={name: _of_peer(rows, of) for name, of in runs.items()},
    )


def _of_peer(rows: Sequence[Row], runs: Sequence[PeerRun]) -> OfPeer:
    return OfPeer(
        per_s=statistics.median(run.records_per_s for run in runs),
        p50_ms=statistics.median(run.p50_ms for run in runs),
        ratio=statistics.median(
            row.per_s / run.records_per_s for row, run in zip(rows, runs, strict=True)
        ),
    )


async def measure(
    cluster: LocalCluster,
    names: Sequence[str],
    runs: int,
    scale: float,
    peers: Mapping[str, Mapping[str, Asked]],
) -> tuple[list[Row], list[Beside]]:
    """``peers``: name → workload."""
    await wait_until_ready(cluster)
    found: dict[str, list[Row]] = {name: [] for name in names}
    of_peers: dict[str, dict[str, list[PeerRun]]] = {name: {} for name in names}
    for number, name in product(range(runs), names):
        row = await WORKLOADS[name](cluster, scale)
        found[name].append(row)
        print(f"{number + 1}/{runs} {name}: {row.per_s:,.0f}/s", file=sys.stderr)
        for peer, workloads in peers.items():
            if name in workloads:
                run = workloads[name].warmed_up(scale)  # Nothing else is to run now.
                of_peers[name].setdefault(peer, []).append(run)
                print(f"{number + 1}/{runs} {name} {peer}: {run}", file=sys.stderr)
    return [median_row(found[name]) for name in names], [
        beside(found[name], of_peers[name]) for name in names if of_peers[name]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the operations")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    parser.add_argument(
        "--beside", nargs="+", choices=list(PEERS), default=[], help="the same of these, in turns"
    )
    asked = parser.parse_args()
    for peer in asked.beside:
        if missing := PEERS[peer].missing():
            parser.error(missing)
    if unknown := [name for name in asked.names if name not in WORKLOADS]:
        parser.error(f"no workload {unknown[0]!r}, expected one of {', '.join(WORKLOADS)}")
    if asked.runs < 1 or asked.scale < SCALE_MIN:
        parser.error(f"--runs is 1 or more, --scale {SCALE_MIN} or more")
    names = asked.names or list(WORKLOADS)
    with (
        tempfile.TemporaryDirectory(prefix="logd-bench-") as directory,
        contextlib.ExitStack() as stack,
    ):
        cluster = open_cluster(Path(directory) / "cluster", broker_count=BROKERS, port=None)
        peers = {
            name: stack.enter_context(PEERS[name].running(Path(directory) / name))
            for name in dict.fromkeys(asked.beside)
        }
        stack.enter_context(stopping(cluster))
        cluster.start_all()
        rows, compared = anyio.run(
            measure, cluster, names, asked.runs, asked.scale, peers, backend=asked.backend
        )
    if asked.output == "json":
        found = {
            "machine": msgspec.to_builtins(this_machine()),
            "backend": asked.backend,
            "rows": msgspec.to_builtins(rows),
            "beside": msgspec.to_builtins(compared),
        }
        print(json.dumps(found, indent=2))
    else:
        print_table(rows)
        if compared:
            print_beside(compared)


if __name__ == "__main__":
    main()
