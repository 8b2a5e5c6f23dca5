"""What every peer has in common: servers started here, and a client that costs little.

The peers are spoken to in their own protocols over plain sockets, with requests encoded once
before the measured part: what is measured is the server, and no client library's share of
two cores is charged to it.  logd is measured through its own client, which does all it
always does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from logd.cli.measure import latency_of

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60
READY_TIMEOUT_S: Final = 30
RECEIVE_BYTES: Final = 1 << 18
STOP_TIMEOUT_S: Final = 10
_VERSION: Final = re.compile(r"\d+(\.\d+)+")


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

    def version(self) -> str:
        """Of what ``run`` starts: a figure without it cannot be looked at again."""
        ...

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        """Start its servers in an empty directory, warm up, measure, stop them."""
        ...


class Server(NamedTuple):
    """How one process is started."""

    command: Sequence[str]
    environment: Mapping[str, str] = {}


@contextmanager
def running(servers: Sequence[Server], directory: Path) -> Iterator[None]:
    """Processes for the length of the block; what they say goes to files in ``directory``.

    Raises:
        PeerError: the block failed, and so had one of them, for the reason that it gave.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        for at, server in enumerate(servers):
            log = stack.enter_context(_log_path(directory, at).open("wb"))
            process = subprocess.Popen(
                server.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=directory,
                env={**os.environ, **server.environment},
                start_new_session=True,
            )
            processes.append(process)
            stack.callback(_stop, process)
        try:
            yield
        except (PeerError, OSError) as error:
            for at, process in enumerate(processes):
                if process.poll() is not None:
                    raise PeerError(
                        f"{error}; server {at} had ended with {process.returncode}: "
                        f"{_last_line(_log_path(directory, at))}"
                    ) from error
            raise


def _log_path(directory: Path, at: int) -> Path:
    return directory / f"server-{at}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, and end whatever is left of what the process started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def version_said(*command: str) -> str:
    """The first version in what a command prints; empty if it says none."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False
    )
    return version_in(done.stdout.decode(errors="replace"))


def version_in(text: str) -> str:
    """The first version in ``text``; empty if there is none."""
    found = _VERSION.search(text)
    return found[0] if found else ""


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


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, as protocol buffers and Kafka have them."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


Taken = tuple[int, int]
"""Bytes that made whole replies, and the records they acknowledge."""


def measured(
    sock: socket.socket, chunk: bytes, workload: Workload, take: Callable[[bytes], Taken]
) -> PeerRun:
    """As ``pump``, after half as much to warm up."""
    pump(sock, chunk, workload._replace(records=workload.records // 2), take)
    return pump(sock, chunk, workload, take)


def pump(
    sock: socket.socket, chunk: bytes, workload: Workload, take: Callable[[bytes], Taken]
) -> PeerRun:
    """Send ``chunk`` again and again with so many under way.

    ``take`` is given what has arrived and was not taken before.
    """
    chunks = -(-workload.records // workload.per_chunk)
    sent: list[float] = []
    latencies_s: list[float] = []
    acknowledged = 0
    received = b""
    began = time.perf_counter()
    while len(latencies_s) < chunks:
        while len(sent) < chunks and len(sent) - len(latencies_s) < workload.in_flight:
            sent.append(time.perf_counter())
            sock.sendall(chunk)
        arrived = sock.recv(RECEIVE_BYTES)
        if not arrived:
            raise PeerError("the server closed the connection")
        received += arrived
        used, records = take(received)
        received = received[used:]
        acknowledged += records
        now = time.perf_counter()
        while len(latencies_s) < acknowledged // workload.per_chunk:
            latencies_s.append(now - sent[len(latencies_s)])
    seconds = time.perf_counter() - began
    latency = latency_of(latencies_s)
    return PeerRun(round(chunks * workload.per_chunk / seconds, 1), latency.p50, latency.p99)
