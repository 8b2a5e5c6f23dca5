"""Peers that answer calls: any number under way over one connection, a latency for each.

A connection says how a call is encoded and which call a reply is to; when to make which, and
what is timed, is the same for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

from bench.peers.peer import PeerRun
from logd.cli.measure import latency_of


class Reply(NamedTuple):
    """To one call."""

    call: int
    message: bytes


Encoded = tuple[int, bytes]
"""The number of a call, and its bytes."""

Steps = Generator[Encoded, bytes, None]
"""Calls one after the other, each made with the reply to the one before."""


class Connection(Protocol):
    """To one server."""

    @property
    def has_room(self) -> bool:
        """A small message may be sent now; else ``receive`` first."""
        ...

    def send(self, encoded: bytes) -> None: ...

    def receive(self) -> list[Reply]:
        """Wait for bytes; the replies that are whole by then."""
        ...


def pipelined(
    connection: Connection, count: int, in_flight: int, encode: Callable[[int], Encoded]
) -> PeerRun:
    """``count`` calls, at most ``in_flight`` under way."""
    sent_at: dict[int, float] = {}
    latencies_s: list[float] = []
    begun = 0
    began = time.perf_counter()
    while len(latencies_s) < count:
        out: list[bytes] = []
        while begun < count and len(sent_at) < in_flight and connection.has_room:
            call, encoded = encode(begun)
            sent_at[call] = time.perf_counter()
            out.append(encoded)
            begun += 1
        if out:
            connection.send(b"".join(out))
        replies = connection.receive()
        now = time.perf_counter()
        latencies_s += [now - sent_at.pop(reply.call) for reply in replies]
    return _run(time.perf_counter() - began, latencies_s)


def by_turns(
    connection: Connection, workers: int, count: int, steps: Callable[[int], Steps]
) -> PeerRun:
    """Each worker takes its steps again and again; ``count`` times in all.  A latency is of all
    the steps of one time."""
    under_way: dict[int, tuple[int, Steps, float]] = {}
    """Call → worker, what it does with the reply, and when it began."""
    latencies_s: list[float] = []
    begun = 0

    def begin(worker: int) -> bytes:
        nonlocal begun
        begun += 1
        at, own = time.perf_counter(), steps(worker)
        call, encoded = next(own)
        under_way[call] = (worker, own, at)
        return encoded

    began = time.perf_counter()
    connection.send(b"".join(begin(worker) for worker in range(min(workers, count))))
    while len(latencies_s) < count:
        out: list[bytes] = []
        for reply in connection.receive():
            worker, own, at = under_way.pop(reply.call)
            try:
                call, encoded = own.send(reply.message)
            except StopIteration:
                latencies_s.append(time.perf_counter() - at)
                if begun < count:
                    out.append(begin(worker))
            else:
                under_way[call] = (worker, own, at)
                out.append(encoded)
        if out:
            connection.send(b"".join(out))
    return _run(time.perf_counter() - began, latencies_s)


def _run(seconds: float, latencies_s: Sequence[float]) -> PeerRun:
    latency = latency_of(latencies_s)
    return PeerRun(round(len(latencies_s) / seconds, 1), latency.p50, latency.p99)
