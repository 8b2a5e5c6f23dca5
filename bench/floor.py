"""The floor: the barest honest pipeline that does the work of a replicated log.

Three broker processes and a producer process on loopback sockets.  A batch is sealed by the
producer (columns packed, xxh3), received and verified by the leader, given its offset and a
header checksum, sent to two followers, verified there, appended to a file on all three,
synced on each (or not), acknowledged by the followers, and acknowledged to the producer once
a majority has it.  Whatever arrives together is written, sent, synced and acknowledged
together.  There is no Raft, no metadata, no index, no retry and no recovery: what a product
needs for those is what separates it from this.

Why it exists: a figure of a busy or virtual machine means little by itself.  Measured in the
same minutes, product and floor suffer alike, and their ratio says how far the product is from
what Python can do on that machine.  ``bench/against_floor.py`` runs both in turns.

Why files are allocated, filled once and then written round and round: on a virtual machine the
first touch of memory is several times slower than the second, and no log would be the better
for it.  ``--fresh-files`` appends to new blocks instead, as a log does that is not recycled.

    python -m bench.floor                        every workload, both durabilities, 5 runs
    python -m bench.floor produce --runs 1 --output json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import select
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
import trio
from xxhash import xxh3_64_intdigest

from logd.cli.local_cluster import process_cpu_seconds
from logd.cli.measure import Latency, latency_of
from logd.limits import KIB, MIB

Durability = Literal["synced", "replicated"]
DURABILITIES: Final[tuple[Durability, ...]] = get_args(Durability)
Address = tuple[str, int]
Buffer = bytes | bytearray | memoryview

HOST: Final = "127.0.0.1"
REPLICAS: Final = 3
MAJORITY: Final = 2
RUNS_DEFAULT: Final = 5
RECEIVE_BYTES: Final = 1 * MIB
SOCKET_BYTES: Final = 4 * MIB
ALLOCATE_BYTES: Final = 16 * MIB
"""What a file grows by."""

# Leader's part: checksum of the rest of the header, base offset.  Producer's part: seal of
# everything behind it, bytes of the payload, records.
HEADER: Final = struct.Struct("<QQQII")
CHECKSUM: Final = struct.Struct("<Q")
PLACE: Final = struct.Struct("<Q")
SEALED: Final = struct.Struct("<II")
PLACE_AT: Final = 8
SEAL_AT: Final = 16
SEALED_AT: Final = 24
HEADER_BYTES: Final = HEADER.size
POSITION: Final = struct.Struct("<Q")
COUNT: Final = struct.Struct("<I")

assert SEALED_AT + SEALED.size == HEADER_BYTES


class Workload(NamedTuple):
    """What the producer does."""

    records_per_batch: int
    record_bytes: int
    connections: int
    in_flight: int
    """Batches, per connection."""
    batches: int
    """Measured, over all connections."""
    warm_up_batches: int
    file_bytes: int
    """Of each broker's file, which is written round and round."""


WORKLOADS: Final = {
    "produce": Workload(1000, 100, 1, 16, 5000, 1500, 192 * MIB),
    "produce-1k": Workload(100, 1 * KIB, 1, 16, 5000, 1500, 192 * MIB),
    "latency": Workload(1, 100, 1, 1, 3000, 500, ALLOCATE_BYTES),
    "connections": Workload(1, 100, 256, 1, 60_000, 10_000, ALLOCATE_BYTES),
}


class FloorRun(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of one workload."""

    workload: str
    durability: Durability
    records_per_s: float
    mb_per_s: float
    latency_ms: Latency
    """Of a batch: from its making to its acknowledgement."""
    cpu_s_per_million: float
    """Of all four processes, per million records."""


# --- batches ----------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()


def sealed_batch(values: Sequence[bytes]) -> bytearray:
    """A batch as a producer sends it: the leader's part is zero."""
    batch = bytearray(HEADER_BYTES)
    _encoder.encode_into(values, batch, HEADER_BYTES)
    SEALED.pack_into(batch, SEALED_AT, len(batch) - HEADER_BYTES, len(values))
    CHECKSUM.pack_into(batch, SEAL_AT, xxh3_64_intdigest(memoryview(batch)[SEALED_AT:]))
    return batch


class Whole(NamedTuple):
    """The complete, verified batches at the start of a buffer."""

    starts: list[int]
    record_counts: list[int]
    end: int


def verified(view: memoryview, *, has_place: bool) -> Whole:
    """Verify every complete batch in ``view``; with its place, the header checksum too."""
    starts: list[int] = []
    record_counts: list[int] = []
    at = 0
    while len(view) - at >= HEADER_BYTES:
        checksum, _, seal, payload_bytes, records = HEADER.unpack_from(view, at)
        end = at + HEADER_BYTES + payload_bytes
        if end > len(view):
            break
        if xxh3_64_intdigest(view[at + SEALED_AT : end]) != seal:
            raise RuntimeError(f"a batch at {at} is damaged")
        if has_place and checksum != header_checksum(view, at):
            raise RuntimeError(f"the header of a batch at {at} is damaged")
        starts.append(at)
        record_counts.append(records)
        at = end
    return Whole(starts, record_counts, at)


def header_checksum(view: memoryview, at: int) -> int:
    """Of the header without the checksum itself."""
    return xxh3_64_intdigest(view[at + PLACE_AT : at + HEADER_BYTES])


# --- sockets: non-blocking, trio only for waiting ---------------------------------------


def prepare(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listening() -> socket.socket:
    sock = socket.socket()
    # Set on the listener, because a window is agreed on while connecting.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    sock.bind((HOST, 0))
    sock.listen(1024)
    return sock


def connected(address: Address) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    sock.connect(address)
    return prepare(sock)


async def receive_into(sock: socket.socket, view: memoryview) -> int:
    while True:
        try:
            return sock.recv_into(view)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)


async def send(sock: socket.socket, buffers: Sequence[Buffer]) -> None:
    left = buffers
    while left:
        try:
            sent = sock.sendmsg(left[:1024])
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            continue
        left = unsent(left, sent)


def unsent(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    for at, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[at + 1 :]]
        sent -= len(buffer)
    return []


# --- the file ---------------------------------------------------------------------------


class AppendFile:
    """Appends; syncs in a thread, and whatever comes meanwhile shares the next sync."""

    def __init__(
        self, path: Path, durability: Durability, bytes_max: int, on_durable: Callable[[int], None]
    ) -> None:
        """Begin again at the start of the file after ``bytes_max``; 0: never."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._is_synced = durability == "synced"
        self._bytes_max = bytes_max
        self._on_durable = on_durable
        self._allocated = 0
        self.end = 0
        self._syncing = False
        self._durable = 0
        self._jobs: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        for at in range(0, bytes_max, ALLOCATE_BYTES):
            os.pwrite(self._file, bytes(ALLOCATE_BYTES), at)
        os.fsync(self._file)
        threading.Thread(target=self._work, daemon=True).start()

    def append(self, buffers: Sequence[Buffer], size: int) -> None:
        """Write at the end, and sync soon."""
        at = self.end % (self._bytes_max - RECEIVE_BYTES) if self._bytes_max else self.end
        if not self._bytes_max and at + size > self._allocated:
            os.posix_fallocate(self._file, self._allocated, ALLOCATE_BYTES)
            self._allocated += ALLOCATE_BYTES
        for first in range(0, len(buffers), 1024):
            at += os.pwritev(self._file, buffers[first : first + 1024], at)
        self.end += size
        if not self._is_synced:
            self._on_durable(self.end)
        elif not self._syncing:
            self._begin_sync()

    def _begin_sync(self) -> None:
        self._syncing = True
        self._durable = self.end
        self._jobs.put(None)

    def _work(self) -> None:
        while True:
            self._jobs.get()
            os.fdatasync(self._file)
            os.eventfd_write(self._wakeup, 1)

    async def run(self) -> None:
        """Hand over what was synced."""
        while True:
            await trio.lowlevel.wait_readable(self._wakeup)
            os.eventfd_read(self._wakeup)
            durable = self._durable
            self._syncing = False
            if self.end > durable:
                self._begin_sync()
            self._on_durable(durable)


# --- the brokers ------------------------------------------------------------------------


class Follower:
    """Verify, append, sync, acknowledge a position."""

    def __init__(
        self, listener: socket.socket, path: Path, durability: Durability, file_bytes: int
    ) -> None:
        self._listener = listener
        self._file = AppendFile(path, durability, file_bytes, self._acknowledge)
        self._leader: socket.socket | None = None

    def _acknowledge(self, position: int) -> None:
        assert self._leader is not None
        self._leader.send(POSITION.pack(position))

    async def run(self) -> None:
        self._leader = prepare(self._listener.accept()[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._file.run)
            buffer = memoryview(bytearray(RECEIVE_BYTES))
            filled = 0
            while count := await receive_into(self._leader, buffer[filled:]):
                filled += count
                whole = verified(buffer[:filled], has_place=True).end
                if whole:
                    self._file.append([buffer[:whole]], whole)
                    buffer[: filled - whole] = buffer[whole:filled]
                    filled -= whole
                    # Bytes that always come must not keep the finished syncs waiting.
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


class Connection:
    """One producer's, at the leader."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = prepare(sock)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._filled = 0

    def receive(self) -> tuple[memoryview, Whole] | None:
        """Take what has arrived; the batches that are whole now, verified.  None: it ended."""
        count = self.sock.recv_into(self._buffer[self._filled :])
        if count == 0:
            return None
        self._filled += count
        view = self._buffer[: self._filled]
        return view, verified(view, has_place=False)

    def drop(self, count: int) -> None:
        """These bytes were written and sent."""
        self._buffer[: self._filled - count] = self._buffer[count : self._filled]
        self._filled -= count


class Leader:
    """Everything received meanwhile is one group: one send per follower, one write, one sync.

    One task serves all connections through an ``epoll`` of its own, which saves a task switch
    and a system call per receive.
    """

    def __init__(
        self,
        listener: socket.socket,
        followers: Sequence[Address],
        path: Path,
        durability: Durability,
        file_bytes: int,
    ) -> None:
        self._listener = listener
        self._file = AppendFile(path, durability, file_bytes, self._on_own)
        self._followers = [connected(address) for address in followers]
        self._durable = [0] * (1 + len(followers))
        self._next_offset = 0
        self._uncommitted: deque[tuple[int, socket.socket, int]] = deque()
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._is_done = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._file.run)
            nursery.start_soon(self._accept)
            for at, follower in enumerate(self._followers, 1):
                nursery.start_soon(self._receive_positions, at, follower)
            while not self._is_done:
                await trio.lowlevel.wait_readable(self._epoll)
                await self._append_group([self._connections[at] for at, _ in self._epoll.poll(0)])
            nursery.cancel_scope.cancel()

    async def _accept(self) -> None:
        prepare(self._listener)
        while True:
            await trio.lowlevel.wait_readable(self._listener)
            connection = Connection(self._listener.accept()[0])
            self._connections[connection.sock.fileno()] = connection
            self._epoll.register(connection.sock, select.EPOLLIN)

    async def _append_group(self, readable: list[Connection]) -> None:
        end = self._file.end
        buffers = []
        taken: list[tuple[Connection, int]] = []
        for connection in readable:
            received = connection.receive()
            if received is None:
                self._is_done = True
                return
            view, whole = received
            if not whole.end:
                continue
            self._place(view, whole)
            end += whole.end
            buffers.append(view[: whole.end])
            taken.append((connection, whole.end))
            self._uncommitted.append((end, connection.sock, len(whole.starts)))
        if not taken:
            return
        for follower in self._followers:
            await send(follower, buffers)
        self._file.append(buffers, end - self._file.end)
        for connection, count in taken:
            connection.drop(count)

    def _place(self, view: memoryview, whole: Whole) -> None:
        for at, records in zip(whole.starts, whole.record_counts, strict=True):
            PLACE.pack_into(view, at + PLACE_AT, self._next_offset)
            CHECKSUM.pack_into(view, at, header_checksum(view, at))
            self._next_offset += records

    async def _receive_positions(self, at: int, follower: socket.socket) -> None:
        buffer = memoryview(bytearray(64 * KIB))
        while count := await receive_into(follower, buffer):
            assert count % POSITION.size == 0
            self._durable[at] = POSITION.unpack_from(buffer, count - POSITION.size)[0]
            self._acknowledge()

    def _on_own(self, position: int) -> None:
        self._durable[0] = position
        self._acknowledge()

    def _acknowledge(self) -> None:
        commit = sorted(self._durable, reverse=True)[MAJORITY - 1]
        counts: dict[socket.socket, int] = {}
        while self._uncommitted and self._uncommitted[0][0] <= commit:
            _, sock, batches = self._uncommitted.popleft()
            counts[sock] = counts.get(sock, 0) + batches
        for sock, batches in counts.items():
            sock.send(COUNT.pack(batches))


# --- the producer -----------------------------------------------------------------------


class Producer:
    """Keeps a number of batches under way on each connection."""

    def __init__(self, workload: Workload, leader: Address) -> None:
        self._workload = workload
        self._values = [
            os.urandom(workload.record_bytes) for _ in range(workload.records_per_batch)
        ]
        self._epoll = select.epoll()
        self._under_way: dict[int, tuple[socket.socket, deque[float]]] = {}
        for _ in range(workload.connections):
            sock = connected(leader)
            self._under_way[sock.fileno()] = (sock, deque())
            self._epoll.register(sock, select.EPOLLIN)
        self._left = 0
        self.latencies_s: list[float] = []

    async def produce(self, batches: int) -> float:
        """Append ``batches``; return the seconds they took."""
        self._left = batches
        self.latencies_s = []
        began = time.perf_counter()
        for sock, sent in self._under_way.values():
            await self._fill(sock, sent)
        while len(self.latencies_s) < batches:
            await trio.lowlevel.wait_readable(self._epoll)
            for at, _ in self._epoll.poll(0):
                sock, sent = self._under_way[at]
                now = time.perf_counter()
                for (count,) in COUNT.iter_unpack(sock.recv(4 * KIB)):
                    self.latencies_s += [now - sent.popleft() for _ in range(count)]
                await self._fill(sock, sent)
        return time.perf_counter() - began

    async def _fill(self, sock: socket.socket, sent: deque[float]) -> None:
        while self._left and len(sent) < self._workload.in_flight:
            self._left -= 1
            sent.append(time.perf_counter())
            await send(sock, [sealed_batch(self._values)])


# --- one run ----------------------------------------------------------------------------


@contextlib.contextmanager
def brokers(
    durability: Durability, file_bytes: int, directory: Path
) -> Iterator[tuple[Address, list[int]]]:
    """Three broker processes for the length of the block: the leader's address, their pids."""
    fork = multiprocessing.get_context("fork")
    listeners = [listening() for _ in range(REPLICAS)]
    addresses = [listener.getsockname() for listener in listeners]
    paths = [directory / f"floor-{number}.log" for number in range(REPLICAS)]

    def follow(number: int) -> None:
        trio.run(Follower(listeners[number], paths[number], durability, file_bytes).run)

    def lead() -> None:
        trio.run(Leader(listeners[0], addresses[1:], paths[0], durability, file_bytes).run)

    processes = [fork.Process(target=follow, args=(number,)) for number in range(1, REPLICAS)]
    processes.append(fork.Process(target=lead))
    for process in processes:
        process.start()
    try:
        yield addresses[0], [process.pid for process in processes if process.pid is not None]
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for listener in listeners:
            listener.close()


def _measure(
    name: str, durability: Durability, leader: Address, pids: list[int], pipe: Pipe
) -> None:
    workload = WORKLOADS[name]
    producer = Producer(workload, leader)

    async def measured() -> FloorRun:
        await producer.produce(workload.warm_up_batches)
        cpu = sum(map(process_cpu_seconds, [*pids, os.getpid()]))
        seconds = await producer.produce(workload.batches)
        cpu = sum(map(process_cpu_seconds, [*pids, os.getpid()])) - cpu
        records = workload.batches * workload.records_per_batch
        return FloorRun(
            workload=name,
            durability=durability,
            records_per_s=round(records / seconds, 1),
            mb_per_s=round(records * workload.record_bytes / seconds / 1e6, 3),
            latency_ms=latency_of(producer.latencies_s),
            cpu_s_per_million=round(cpu * 1e6 / records, 3),
        )

    pipe.send_bytes(msgspec.msgpack.encode(trio.run(measured)))


def run_once(name: str, durability: Durability, *, fresh: bool, directory: Path) -> FloorRun:
    """Start brokers and a producer, warm up, measure, stop everything."""
    fork = multiprocessing.get_context("fork")
    file_bytes = 0 if fresh else WORKLOADS[name].file_bytes
    with (
        tempfile.TemporaryDirectory(prefix="logd-floor-", dir=directory) as data,
        brokers(durability, file_bytes, Path(data)) as (leader, pids),
    ):
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_measure, args=(name, durability, leader, pids, theirs))
        process.start()
        theirs.close()
        try:
            return msgspec.msgpack.decode(ours.recv_bytes(), type=FloorRun)
        finally:
            process.terminate()
            process.join()


# --- the command ------------------------------------------------------------------------


def summary(runs: Sequence[FloorRun]) -> dict[str, Any]:
    """The medians of several runs of one workload."""

    def median(figure: Callable[[FloorRun], float]) -> float:
        return round(statistics.median(map(figure, runs)), 3)

    return {
        "workload": runs[0].workload,
        "durability": runs[0].durability,
        "runs": len(runs),
        "records_per_s": median(lambda run: run.records_per_s),
        "mb_per_s": median(lambda run: run.mb_per_s),
        "latency_ms": {
            name: median(lambda run, name=name: getattr(run.latency_ms, name))  # type: ignore[misc]
            for name in Latency.__struct_fields__
        },
        "cpu_s_per_million": median(lambda run: run.cpu_s_per_million),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--durability", choices=[*DURABILITIES, "both"], default="both")
    parser.add_argument("--runs", type=int, default=RUNS_DEFAULT)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--fresh-files", action="store_true", help="append to new blocks")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    asked = parser.parse_args()
    if unknown := [name for name in asked.workloads if name not in WORKLOADS]:
        parser.error(f"no workload {unknown[0]!r}, expected one of {', '.join(WORKLOADS)}")
    kinds: list[tuple[str, Durability]] = [
        (name, durability)
        for name in asked.workloads or WORKLOADS
        for durability in DURABILITIES
        if asked.durability in (durability, "both")
    ]
    # Whole rounds, so that a busy minute of the machine falls on all workloads alike.
    found: dict[tuple[str, Durability], list[FloorRun]] = {kind: [] for kind in kinds}
    for _ in range(asked.runs):
        for kind in kinds:
            run = run_once(*kind, fresh=asked.fresh_files, directory=asked.directory)
            found[kind].append(run)
            print(f"{kind[0]} {kind[1]}: {run.records_per_s:,.0f}/s", file=sys.stderr)
    rows = [summary(runs) for runs in found.values()]
    if asked.output == "json":
        print(json.dumps({"runs": rows, "load": os.getloadavg()[0]}))
        return
    for row in rows:
        latency = row["latency_ms"]
        print(
            f"{row['workload']:12} {row['durability']:10} {row['records_per_s']:>12,.0f} records/s"
            f" {row['mb_per_s']:>8,.1f} MB/s   p50 {latency['p50']:.3f}"
            f"  p99 {latency['p99']:.3f} ms   {row['cpu_s_per_million']:.2f} CPU s/million"
        )


if __name__ == "__main__":
    main()
