"""What every peer has in common: servers started here, and a client that costs little.

The peers are spoken to in their own protocols over plain sockets, with requests encoded once
before the measured part: what is measured is the server, and no client library's share of
two cores is charged to it.  logd is measured through its own client, which does all it
always does.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from logd.cli.measure import latency_of

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60
READY_TIMEOUT_S: Final = 30
RECEIVE_BYTES: Final = 1 << 18
STOP_TIMEOUT_S: Final = 10


class PeerError(Exception):
    """A peer refused, or ended."""


class PeerRun(NamedTuple):
    """One measurement."""

    records_per_s: float
    p50_ms: float
    p99_ms: float


class Workload(NamedTuple):
    """What is asked of every peer alike: records appended in pipelined chunks, or one by one."""

    records: int
    record_bytes: int
    per_chunk: int
    in_flight: int
    """Chunks."""


class Peer(Protocol):
    """One system with one setting of durability."""

    @property
    def name(self) -> str: ...

    @property
    def durability(self) -> str:
        """What its acknowledgement means, in words."""
        ...

    def missing(self) -> str | None:
        """Why it cannot be had here; None: it can."""
        ...

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        """Start its servers in an empty directory, warm up, measure, stop them."""
        ...


@contextmanager
def servers(commands: Sequence[Sequence[str | Path]], directory: Path) -> Iterator[None]:
    """Processes for the length of the block; what they say goes to files in ``directory``."""
    with ExitStack() as stack:
        for at, command in enumerate(commands):
            log = stack.enter_context((directory / f"server-{at}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
            stack.callback(_stop, process)
        yield


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def connected(port: int) -> socket.socket:
    """Connect; waits for the server to listen."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            sock = socket.create_connection((HOST, port), TIMEOUT_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise PeerError(f"nothing listens on port {port}") from None
            time.sleep(0.05)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock


def pump(
    sock: socket.socket, chunk: bytes, workload: Workload, acknowledged: Callable[[bytes], int]
) -> PeerRun:
    """Send ``chunk`` again and again with so many under way.

    ``acknowledged`` is given whole lines as they arrive, and tells how many records they
    acknowledge.
    """
    chunks = -(-workload.records // workload.per_chunk)
    sent: list[float] = []
    latencies_s: list[float] = []
    replies = 0
    rest = b""
    began = time.perf_counter()
    while len(latencies_s) < chunks:
        while len(sent) < chunks and len(sent) - len(latencies_s) < workload.in_flight:
            sent.append(time.perf_counter())
            sock.sendall(chunk)
        received = sock.recv(RECEIVE_BYTES)
        if not received:
            raise PeerError("the server closed the connection")
        whole, end, rest = (rest + received).rpartition(b"\r\n")
        replies += acknowledged(whole + end)
        now = time.perf_counter()
        while len(latencies_s) < replies // workload.per_chunk:
            latencies_s.append(now - sent[len(latencies_s)])
    seconds = time.perf_counter() - began
    latency = latency_of(latencies_s)
    return PeerRun(round(chunks * workload.per_chunk / seconds, 1), latency.p50, latency.p99)
