"""What the client costs by itself: the real client beside a broker that only answers.

A figure of the whole product on a busy machine does not tell whose it is.  Here the broker is
a process of its own that keeps nothing, so what is counted is the client's processor time,
its page faults and its switches per record, and they hardly depend on what else runs.

    python -m bench.client_alone                       every workload, under trio
    python -m bench.client_alone single --backend asyncio
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import anyio
import msgspec

from logd.limits import FRAME_BYTES_MAX
from logd.record.batch import seal_batch
from logd.record.header import Codec, decode_header, leader_part
from logd.types import GroupId, Offset, Term
from logd.wire.coordination import (
    COORDINATION_TOPIC,
    Acquire,
    Claim,
    Command,
    Done,
    Event,
    Keys,
    Opened,
    OpenSession,
    Result,
    Transact,
    Transacted,
)
from logd.wire.frame import (
    FLAG_PUSH,
    FLAG_RESPONSE,
    Frame,
    FrameDecoder,
    decode_message,
    encode_message,
)
from logd.wire.messages import (
    BrokerInfo,
    CoordinateResponse,
    Credit,
    Deliver,
    HelloResponse,
    InitProducerResponse,
    Kind,
    Message,
    MetadataResponse,
    PartitionInfo,
    ProduceResponse,
    QueryResponse,
    SubscribeRequest,
    SubscribeResponse,
    TopicInfo,
    UnsubscribeResponse,
    UnwatchResponse,
    WatchEvents,
    WatchRequest,
    WatchResponse,
)
from logd_client import Client, Producer, WouldBlock, connect
from logd_client.coordination.watches import Watch

HOST: Final = "127.0.0.1"
PARENT_LOOK_S: Final = 1.0
GROUP: Final = GroupId(1)
TOPIC: Final = "alone"
VALUES: Final = [b"%0100d" % number for number in range(10_000)]
RECORDS_PER_DELIVERY: Final = 2000
CONNECTIONS: Final = 256
IN_FLIGHT: Final = 500
"""Puts of one client."""
LOCK_WORKERS: Final = 64
WATCHERS: Final = 500
"""Of one key, in one client."""


# --- the broker -------------------------------------------------------------------------


class _Session:
    """One connection, at the broker that only answers."""

    def __init__(self, sock: socket.socket, port: int) -> None:
        self.sock = sock
        self._port = port
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)
        self._next_offset = 0
        self._credit_bytes = 0
        self._subscription: SubscribeRequest | None = None
        self._watches: list[WatchRequest] = []

    def on_readable(self) -> bool:
        """Answer what has arrived, in one send; False when the client has gone."""
        try:
            count = self.sock.recv_into(self._decoder.writable())
        except OSError:
            return False
        if not count:
            return False
        self._decoder.received(count)
        answers: list[bytes] = []
        while (frame := self._decoder.next_frame()) is not None:
            if frame.kind == Kind.COORDINATE:
                answers += _coordinated(frame)
                answers += map(_told, self._watches)
            elif frame.kind == Kind.QUERY:
                answers += _with_body(frame, QueryResponse(), Keys(revision=1))
            else:
                answers += self._answers(frame)
        try:
            if answers:
                self.sock.sendall(b"".join(answers))
        except OSError:
            return False
        return True

    def _answers(self, frame: Frame) -> Iterator[bytes]:
        if frame.kind == Kind.CREDIT:
            self._credit_bytes += decode_message(Credit, frame.header).bytes
            yield from self._deliveries()
            return
        answer = self._answer(frame)
        yield encode_message(frame.kind, answer, frame.correlation_id, flags=FLAG_RESPONSE)
        if frame.kind == Kind.SUBSCRIBE:
            yield from self._deliveries()

    def _answer(self, frame: Frame) -> Message:
        match frame.kind:
            case Kind.PRODUCE:
                base = self._next_offset
                self._next_offset += decode_header(frame.body, 0).record_count
                return ProduceResponse(
                    base_offset=base, end_offset=self._next_offset, append_time_ms=1
                )
            case Kind.SUBSCRIBE:
                self._subscription = decode_message(SubscribeRequest, frame.header)
                self._credit_bytes = self._subscription.credit_bytes
                self._next_offset = 0
                return SubscribeResponse(position=0, log_start=0, commit_offset=0)
            case Kind.UNSUBSCRIBE:
                self._subscription = None
                return UnsubscribeResponse()
            case Kind.WATCH:
                self._watches.append(decode_message(WatchRequest, frame.header))
                return WatchResponse(revision=1)
            case Kind.UNWATCH:
                self._watches.clear()
                return UnwatchResponse()
            case Kind.HELLO:
                return HelloResponse(protocol=1, cluster_id="alone", node_id=1, version="0")
            case Kind.INIT_PRODUCER:
                return InitProducerResponse(producer_id=7)
            case _:
                return self._metadata()

    def _metadata(self) -> MetadataResponse:
        partition = PartitionInfo(partition=0, group=GROUP, replicas=[1], leader=1, term=1)
        return MetadataResponse(
            cluster_id="alone",
            controller=1,
            brokers=[BrokerInfo(node_id=1, host=HOST, port=self._port)],
            topics=[
                TopicInfo(name=TOPIC, topic_id=1, partitions=[partition]),
                TopicInfo(name=COORDINATION_TOPIC, topic_id=2, partitions=[partition]),
            ],
        )

    def _deliveries(self) -> Iterator[bytes]:
        """Batches of the same records, for as long as there is credit."""
        while self._subscription is not None and self._credit_bytes > 0:
            body = _delivered_batch(self._next_offset)
            self._next_offset += RECORDS_PER_DELIVERY
            self._credit_bytes -= len(body)
            push = Deliver(
                subscription=self._subscription.subscription,
                generation=self._subscription.generation,
                next_offset=self._next_offset,
                commit_offset=self._next_offset,
            )
            yield encode_message(Kind.DELIVER, push, 0, len(body), FLAG_PUSH)
            yield body


_COMMAND: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)


def _coordinated(frame: Frame) -> tuple[bytes, bytes]:
    """The answer to a command, as if it were the only one there ever was."""
    return _with_body(frame, CoordinateResponse(), _result(_COMMAND.decode(frame.body)))


def _with_body(frame: Frame, answer: Message, content: Result | Keys) -> tuple[bytes, bytes]:
    body = msgspec.msgpack.encode(content)
    head = encode_message(frame.kind, answer, frame.correlation_id, len(body), FLAG_RESPONSE)
    return head, body


def _result(command: Command) -> Result:
    match command:
        case OpenSession():
            return Opened(revision=1, session=1, ttl_ms=command.ttl_ms)
        case Transact():
            return Transacted(revision=2, succeeded=True)
        case Acquire():
            return Claim(revision=3, ticket=3, token=3)
        case _:
            return Done(revision=4)


_EVENT: Final = msgspec.msgpack.encode(
    [Event(revision=2, kind="key", name=b"k", change="put", value=VALUES[0])]
)


def _told(watch: WatchRequest) -> bytes:
    """One event, pushed to one watch."""
    push = WatchEvents(watch=watch.watch, generation=watch.generation, revision=2)
    return encode_message(Kind.WATCH_EVENTS, push, 0, len(_EVENT), FLAG_PUSH) + _EVENT


_SEALED: Final = seal_batch(values=VALUES[:RECORDS_PER_DELIVERY], timestamps_ms=1, codec=Codec.NONE)


def _delivered_batch(base_offset: int) -> bytes:
    header = leader_part(
        _SEALED, base_offset=Offset(base_offset), term=Term(1), append_time_ms=1, group=GROUP
    )
    return bytes(header) + _SEALED[len(header) :]


def _serve(listener: socket.socket) -> None:
    """Until told to end, or whoever started it has ended without a word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it.
    parent = os.getppid()
    port = listener.getsockname()[1]
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    sessions: dict[int, _Session] = {}
    while os.getppid() == parent:
        for ready, _ in poll.poll(PARENT_LOOK_S):
            if ready == listener.fileno():
                sock = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sessions[sock.fileno()] = _Session(sock, port)
                poll.register(sock, select.EPOLLIN)
            elif not sessions[ready].on_readable():
                sessions.pop(ready).sock.close()


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """A broker that only answers, for the length of the block; its address."""
    with socket.create_server((HOST, 0), backlog=CONNECTIONS) as listener:
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener,))
        process.start()
        try:
            yield f"{HOST}:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


# --- workloads --------------------------------------------------------------------------


async def many(client: Client, address: str, records: int) -> None:
    """``append_many``, a few calls under way at a time."""
    async with client.producer(TOPIC) as producer:
        calls = iter(range(records // len(VALUES)))

        async def append() -> None:
            for _ in calls:
                await producer.append_many(VALUES)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(append)


async def nowait(client: Client, address: str, records: int) -> None:
    """``append_nowait``, waiting when the buffer is full."""
    async with client.producer(TOPIC) as producer:
        oldest = ticket = None
        for at in range(records):
            value = VALUES[at % 10_000]
            try:
                ticket = producer.append_nowait(value)
            except WouldBlock:
                await producer.flush()
                ticket = producer.append_nowait(value)
            if at % 1000 == 0:
                if oldest is not None:
                    await oldest
                oldest = ticket


async def single(client: Client, address: str, records: int) -> None:
    """One record, wait, again."""
    async with client.producer(TOPIC) as producer:
        for at in range(records):
            await producer.append(VALUES[at % 10_000])


async def connections(client: Client, address: str, records: int) -> None:
    """Many clients in one process, each with one record at a time."""
    async with AsyncExitStack() as stack:
        producers = []
        for _ in range(CONNECTIONS):
            own = await stack.enter_async_context(connect(address))
            producers.append(await stack.enter_async_context(own.producer(TOPIC)))

        async def append(producer: Producer) -> None:
            for _ in range(records // CONNECTIONS):
                await producer.append(VALUES[0])

        with counted(records):
            async with anyio.create_task_group() as tasks:
                for producer in producers:
                    tasks.start_soon(append, producer)


async def batches(client: Client, address: str, records: int) -> None:
    """Consume batch by batch."""
    async with client.consumer(TOPIC, start="earliest") as consumer:
        async for batch in consumer.batches():
            if batch.last_offset >= records:
                break


async def each(client: Client, address: str, records: int) -> None:
    """Consume record by record."""
    async with client.consumer(TOPIC, start="earliest") as consumer:
        async for record in consumer:
            if record.offset >= records:
                break


async def puts(client: Client, address: str, records: int) -> None:
    """Keys put by many tasks, each one at a time."""
    space = client.kv("bench")
    numbers = iter(range(records))

    async def put() -> None:
        for number in numbers:
            await space.put(b"key-%d" % (number % 5000), VALUES[0])

    async with anyio.create_task_group() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.start_soon(put)


async def lock(client: Client, address: str, records: int) -> None:
    """A lock taken and given back: two commands."""
    for _ in range(records):
        async with client.lock("bench/lock"):
            pass


async def locks(client: Client, address: str, records: int) -> None:
    """The same by many tasks, each with a lock of its own."""
    numbers = iter(range(records))

    async def hold(name: str) -> None:
        for _ in numbers:
            async with client.lock(name):
                pass

    async with anyio.create_task_group() as tasks:
        for number in range(LOCK_WORKERS):
            tasks.start_soon(hold, f"bench/lock-{number}")


async def watches(client: Client, address: str, records: int) -> None:
    """One key, put again and again, and many tasks that watch it: a record is an event told."""
    space = client.kv("bench")
    updates = records // WATCHERS

    async def listen(events: Watch) -> None:
        for _ in range(updates):
            await events.next()

    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for _ in range(WATCHERS):
            tasks.start_soon(listen, await stack.enter_async_context(space.watch("k")))
        for _ in range(updates):
            await space.put("k", VALUES[0])


class Workload(NamedTuple):
    """What is run, and how often."""

    run: Callable[[Client, str, int], Awaitable[None]]
    records: int


WORKLOADS: Final = {
    "many": Workload(many, 4_000_000),
    "nowait": Workload(nowait, 1_000_000),
    "single": Workload(single, 10_000),
    "connections": Workload(connections, 25_600),
    "batches": Workload(batches, 4_000_000),
    "records": Workload(each, 1_000_000),
    "puts": Workload(puts, 60_000),
    "lock": Workload(lock, 4_000),
    "locks": Workload(locks, 12_000),
    "watches": Workload(watches, 500_000),
}


# --- counting ---------------------------------------------------------------------------


@contextlib.contextmanager
def counted(records: int) -> Iterator[None]:
    """Print what this process used in the block, per record."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    user_s, system_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(
        f"{(user_s + system_s) * 1e6 / records:9.3f} us per record"
        f" (user {user_s * 1e6 / records:.3f}, system {system_s * 1e6 / records:.3f}),"
        f" {(after.ru_minflt - before.ru_minflt) * 1e6 / records:,.0f} page faults per million,"
        f" {(after.ru_nvcsw - before.ru_nvcsw) * 1e3 / records:,.1f} waits per thousand,"
        f" {records / seconds:,.0f} records/s",
        flush=True,
    )


async def measure(name: str, address: str) -> None:
    workload = WORKLOADS[name]
    async with connect(address) as client:
        if name == "connections":
            await workload.run(client, address, workload.records)
            return
        await workload.run(client, address, workload.records // 4)
        with counted(workload.records):
            await workload.run(client, address, workload.records)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--runs", type=int, default=1)
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in WORKLOADS]:
        parser.error(f"no workload {unknown[0]!r}, expected one of {', '.join(WORKLOADS)}")
    with broker() as address:
        for _ in range(asked.runs):
            for name in asked.names or WORKLOADS:
                print(f"{name:12}", end="")
                anyio.run(measure, name, address, backend=asked.backend)


if __name__ == "__main__":
    main()
