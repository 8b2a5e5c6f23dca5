"""RabbitMQ streams: three nodes, a stream with three replicas, the stream protocol.

The nodes are found in ``/usr/lib/rabbitmq`` (Debian's package) or by ``RABBITMQ_HOME``.  Each has
its own directory, ports and name, and an ``epmd`` of the run's own, so that nothing of a server
that is installed or running here is touched or left behind.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.peers.peer import (
    HOST,
    RECEIVE_BYTES,
    PeerError,
    PeerRun,
    Server,
    Taken,
    Workload,
    connected,
    measured,
    running,
    version_in,
)
from logd.cli.local_cluster import free_ports

NODES: Final = 3
READY_TIMEOUT_S: Final = 120
STREAM: Final = "bench"
HOME_DEFAULT: Final = "/usr/lib/rabbitmq"
OK: Final = 1

DECLARE_PUBLISHER: Final = 0x01
PUBLISH: Final = 0x02
CONFIRM: Final = 0x03
PUBLISH_ERROR: Final = 0x04
CREATE: Final = 0x0D
DELETE: Final = 0x0E
METADATA: Final = 0x0F
PEER_PROPERTIES: Final = 0x11
SASL_HANDSHAKE: Final = 0x12
SASL_AUTHENTICATE: Final = 0x13
TUNE: Final = 0x14
OPEN: Final = 0x15
RESPONSE: Final = 0x8000

_CONFIGURATION: Final = """
listeners.tcp.1 = {host}:{amqp_port}
stream.listeners.tcp.1 = {host}:{port}
stream.advertised_host = {host}
stream.advertised_port = {port}
cluster_formation.peer_discovery_backend = classic_config
{nodes}
"""


class RabbitMq:
    """Streams; there is no setting that syncs before a confirm."""

    name = "RabbitMQ streams"
    durability = "written by a majority, not synced"

    def missing(self) -> str | None:
        if not _script().exists():
            return f"no {_script()}: apt install rabbitmq-server, or set RABBITMQ_HOME"
        return None if shutil.which("epmd") else "no epmd: install Erlang"

    def version(self) -> str:
        found = sorted((_home() / "lib").glob("rabbitmq_server-*"))
        return version_in(found[-1].name) if found else ""

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        ports = free_ports(1 + 3 * NODES, random.Random())
        epmd_port, ports = ports[0], ports[1:]
        cookie = directory / ".erlang.cookie"
        cookie.write_text("bench", encoding="ascii")
        cookie.chmod(0o400)
        nodes = [_node(directory, at, epmd_port, ports[3 * at : 3 * at + 3]) for at in range(NODES)]
        epmd = Server(["epmd", "-port", str(epmd_port), "-address", HOST])
        with running([epmd, *nodes], directory), _ready_stream(ports[1]) as sock:
            sock.sendall(
                _frame(DECLARE_PUBLISHER, struct.pack(">IB", 9, 1) + _text("") + _text(STREAM))
            )
            _expect(sock, DECLARE_PUBLISHER)
            value = os.urandom(workload.record_bytes)
            one = struct.pack(">QI", 1, len(value)) + value
            chunk = _frame(
                PUBLISH, struct.pack(">BI", 1, workload.per_chunk) + one * workload.per_chunk
            )
            return measured(sock, chunk, workload, _taken)


def _home() -> Path:
    return Path(os.environ.get("RABBITMQ_HOME", HOME_DEFAULT))


def _script() -> Path:
    return _home() / "bin" / "rabbitmq-server"


def _node(directory: Path, at: int, epmd_port: int, ports: list[int]) -> Server:
    own = directory / f"node-{at}"
    own.mkdir()
    amqp_port, port, distribution_port = ports
    names = [f"bench{number}@localhost" for number in range(NODES)]
    (own / "rabbitmq.conf").write_text(
        _CONFIGURATION.format(
            host=HOST,
            amqp_port=amqp_port,
            port=port,
            nodes="\n".join(
                f"cluster_formation.classic_config.nodes.{number} = {name}"
                for number, name in enumerate(names, 1)
            ),
        ),
        encoding="ascii",
    )
    (own / "plugins").write_text("[rabbitmq_stream].", encoding="ascii")
    return Server(
        [str(_script())],
        {
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": names[at],
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONFIG_FILE": str(own / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(own),
            "RABBITMQ_LOG_BASE": str(own),
            "RABBITMQ_PID_FILE": str(own / "pid"),
        },
    )


# --- the stream protocol ----------------------------------------------------------------


def _frame(key: int, content: bytes) -> bytes:
    return struct.pack(">IHH", 4 + len(content), key, 1) + content


def _text(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def _frames(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """End, key and content of each whole frame."""
    at = 0
    while len(received) - at >= 8:
        size, key, _version = struct.unpack_from(">IHH", received, at)
        end = at + 4 + size
        if end > len(received):
            return
        yield end, key, received[at + 8 : end]
        at = end


def _taken(received: bytes) -> Taken:
    used = records = 0
    for end, key, content in _frames(received):
        used = end
        if key == CONFIRM:
            records += int(struct.unpack_from(">BI", content)[1])
        elif key == PUBLISH_ERROR:
            raise PeerError("RabbitMQ refused a record")
    return used, records


def _expect(sock: socket.socket, key: int, *, codes: tuple[int, ...] = (OK,)) -> bytes:
    """The content of the next frame of that kind; others are passed over."""
    received = b""
    while True:
        for _, found, content in _frames(received):
            if found == key:
                return content
            if found == RESPONSE | key:
                code = struct.unpack_from(">IH", content)[1]
                if key != METADATA and code not in codes:
                    raise PeerError(f"RabbitMQ answered request {key:#x} with code {code}")
                return content
        arrived = sock.recv(RECEIVE_BYTES)
        if not arrived:
            raise PeerError("RabbitMQ closed the connection")
        received += arrived


def _ready_stream(port: int) -> socket.socket:
    """A connection to the node that leads a stream of three replicas."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            sock = _opened(port)
            if _replicas(sock) == NODES - 1:
                return sock
            # It was made before the other nodes had joined, and does not grow by itself.
            sock.sendall(_frame(DELETE, struct.pack(">I", 7) + _text(STREAM)))
            _expect(sock, DELETE)
            reason = "the stream has fewer replicas"
            sock.close()
        except (PeerError, OSError) as error:
            reason = str(error)
        if time.monotonic() > deadline:
            raise PeerError(f"RabbitMQ was not ready in {READY_TIMEOUT_S} s: {reason}")
        time.sleep(1)


def _opened(port: int) -> socket.socket:
    sock = connected(port)
    sock.sendall(_frame(PEER_PROPERTIES, struct.pack(">II", 1, 0)))
    _expect(sock, PEER_PROPERTIES)
    sock.sendall(_frame(SASL_HANDSHAKE, struct.pack(">I", 2)))
    _expect(sock, SASL_HANDSHAKE)
    login = b"\0guest\0guest"
    sock.sendall(
        _frame(
            SASL_AUTHENTICATE,
            struct.pack(">I", 3) + _text("PLAIN") + struct.pack(">I", len(login)) + login,
        )
    )
    tune = _expect(sock, TUNE)
    sock.sendall(_frame(TUNE, tune) + _frame(OPEN, struct.pack(">I", 4) + _text("/")))
    _expect(sock, OPEN)
    return sock


def _replicas(sock: socket.socket) -> int:
    """Make the stream on this node if it is not there; how many replicas follow it."""
    already_there = 5
    arguments = {"queue-leader-locator": "client-local", "initial-cluster-size": str(NODES)}
    content = struct.pack(">I", 5) + _text(STREAM) + struct.pack(">I", len(arguments))
    content += b"".join(_text(name) + _text(value) for name, value in arguments.items())
    sock.sendall(_frame(CREATE, content))
    _expect(sock, CREATE, codes=(OK, already_there))
    sock.sendall(_frame(METADATA, struct.pack(">II", 6, 1) + _text(STREAM)))
    answer = _expect(sock, METADATA)
    (brokers,) = struct.unpack_from(">I", answer, 4)
    at = 8
    for _ in range(brokers):
        (length,) = struct.unpack_from(">H", answer, at + 2)
        at += 2 + 2 + length + 4
    (length,) = struct.unpack_from(">H", answer, at + 4)
    _code, _leader, replicas = struct.unpack_from(">HHI", answer, at + 4 + 2 + length)
    return int(replicas)
