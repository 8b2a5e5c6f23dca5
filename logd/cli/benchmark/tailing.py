"""Consumers at the tail, in a process of their own.

In the producer's process they would take turns with it on one interpreter, and the figures
would be of neither.  The monotonic clock is one for all processes of a machine, so a time
that the producer stamped into a value can be compared with the time of its arrival here.
"""

from __future__ import annotations

import multiprocessing
import time
from array import array
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import msgspec

from logd.cli.benchmark.values import stamp_of
from logd.errors import LogdError

if TYPE_CHECKING:
    from logd_client import Client

READY: Final = b"ready"
LATENCIES_MAX: Final = 5_000_000
"""Of one process; what arrives after is counted, its latency is not kept."""


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """What the consumers are to read."""

    bootstrap: str
    topic: str
    consumers: int
    records: int
    """Each consumer reads this many."""


class TailFailedError(LogdError):
    """The consumers' process ended before it had read everything."""


class Delivered(msgspec.Struct, kw_only=True):
    """What they read."""

    records: int
    """Over all consumers."""
    cpu_s: float
    latency_bytes: bytes

    @property
    def latencies_s(self) -> array[float]:
        """From a record being due to its delivery; one per call, batch and consumer."""
        found = array("d")
        found.frombytes(self.latency_bytes)
        return found


class Tails:
    """The running process."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def _receive(self) -> bytes:
        try:
            return await anyio.to_thread.run_sync(self._pipe.recv_bytes, abandon_on_cancel=True)
        except EOFError as error:
            raise TailFailedError("the consumers' process ended early; see above") from error

    async def wait_until_ready(self) -> None:
        """Return once every consumer has subscribed."""
        assert await self._receive() == READY

    async def result(self) -> Delivered:
        """Wait until every consumer has read everything."""
        return msgspec.msgpack.decode(await self._receive(), type=Delivered)


@asynccontextmanager
async def tailing(tail: Tail) -> AsyncIterator[Tails]:
    """Consumers that read for the length of the block."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_read_tail, args=(tail, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        tails = Tails(ours)
        await tails.wait_until_ready()
        yield tails
    finally:
        process.terminate()
        process.join()


def _read_tail(tail: Tail, pipe: Pipe) -> None:
    from logd.cli.session import run_async

    run_async(_Readers(tail, pipe).run)


class _Readers:
    """All consumers of the process."""

    def __init__(self, tail: Tail, pipe: Pipe) -> None:
        self._tail = tail
        self._pipe = pipe
        self._latencies_s = array("d")
        self._records = 0
        self._waiting = tail.consumers

    async def run(self) -> None:
        from logd_client import connect

        async with connect(self._tail.bootstrap) as client, anyio.create_task_group() as tasks:
            for _ in range(self._tail.consumers):
                tasks.start_soon(self._read, client)
        self._pipe.send_bytes(
            msgspec.msgpack.encode(
                Delivered(
                    records=self._records,
                    cpu_s=time.process_time(),
                    latency_bytes=self._latencies_s.tobytes(),
                )
            )
        )

    async def _read(self, client: Client) -> None:
        left = self._tail.records
        async with client.consumer(self._tail.topic, start="earliest") as consumer:
            self._waiting -= 1
            if self._waiting == 0:
                self._pipe.send_bytes(READY)
            async for batch in consumer.batches():
                self._count(batch.values, time.monotonic_ns())
                left -= len(batch)
                if left <= 0:
                    break

    def _count(self, values: Any, now_ns: int) -> None:
        self._records += len(values)
        at = 0
        while at < len(values) and len(self._latencies_s) < LATENCIES_MAX:
            due_ns = stamp_of(values[at])
            if due_ns:  # Zero: it was appended to warm up.
                self._latencies_s.append((now_ns - due_ns) / 1e9)
            # The records of one call are alike, and later ones sort behind.
            at = bisect_right(values, values[at], lo=at)
