"""ZooKeeper: three servers; a record is a setData of a node, a lock the recipe of its manual.

Spoken to in its own protocol, over one connection to the leader: one session, whose calls are
answered in the order in which they were made.  Messages: ZooKeeper's zookeeper.jute.

Servers that have just started have yet to compile what runs often: their first calls cost them
three times the processor time of later ones.  So they are asked for a good many that nobody
measures before anything is.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import struct
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.calls import Encoded, Reply, Steps, by_turns, pipelined
from bench.peers.peer import (
    HOST,
    READY_TIMEOUT_S,
    RECEIVE_BYTES,
    PeerError,
    PeerRun,
    Server,
    Workload,
    connected,
    running,
    version_in,
)
from logd.cli.local_cluster import free_ports

SERVERS: Final = 3
JAR: Final = Path("/usr/share/java/zookeeper.jar")
"""Debian's; it names the others that it needs."""

VERSION_FILE: Final = "META-INF/maven/org.apache.zookeeper/zookeeper/pom.properties"
MAIN_CLASS: Final = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
HEAP: Final = "-Xmx256m"
SESSION_TTL_S: Final = 600
"""Longer than whatever else is measured between two of its calls: nothing renews it."""

NODES: Final = 5_000
CREATES_IN_FLIGHT: Final = 500

WARM_UP_PUTS: Final = 60_000
WARM_UP_LOCKS: Final = 15_000
"""Rates double until about then."""

WARM_UP_VALUE: Final = bytes(256)
WARM_UP_IN_FLIGHT: Final = 1_000
WARM_UP_WORKERS: Final = 64

CREATE, DELETE, SET_DATA, GET_CHILDREN = 1, 2, 5, 8
PERSISTENT: Final = 0
EPHEMERAL_SEQUENTIAL: Final = 3
ALL_PERMISSIONS: Final = 31
PASSWORD_BYTES: Final = 16

_LENGTH: Final = struct.Struct(">i")
_HELLO: Final = struct.Struct(">iqiq")
"""Protocol version, last zxid seen, time to live in ms, session; a password and a flag follow."""

_WELCOME: Final = struct.Struct(">iiiq")
"""Length, protocol version, time to live in ms, session; a password and a flag follow."""

_REQUEST: Final = struct.Struct(">iii")
"""Length, call, kind."""

_REPLY: Final = struct.Struct(">iiqi")
"""Length, call, zxid, error."""

_ANY_VERSION: Final = _LENGTH.pack(-1)
_MODE: Final = re.compile(rb"^Mode: (\w+)$", re.MULTILINE)
_CONFIGURATION: Final = """
tickTime=2000
initLimit=10
syncLimit=5
maxSessionTimeout={session_ttl_ms}
dataDir={directory}
clientPort={port}
clientPortAddress={host}
admin.enableServer=false
4lw.commands.whitelist=srvr
{servers}
"""


class ZooKeeper:
    """ZooKeeper with its defaults: every write is synced before it is acknowledged."""

    name = "ZooKeeper, a setData per record"
    durability = "synced by a majority"

    def missing(self) -> str | None:
        if not JAR.exists():
            return f"no {JAR} (Debian: zookeeper)"
        return (
            None if shutil.which("java") else "no java on the path (Debian: default-jre-headless)"
        )

    def version(self) -> str:
        """As its archive has it."""
        with zipfile.ZipFile(JAR) as archive:
            return version_in(archive.read(VERSION_FILE).decode())

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        with leader(directory) as session:
            value = os.urandom(workload.record_bytes)
            in_flight = workload.per_chunk * workload.in_flight
            puts(session, value, workload.records // 4, in_flight)
            return puts(session, value, workload.records, in_flight)


class Session:
    """One connection, and the session that lives with it."""

    has_room = True
    """The server reads no more while it has enough to do."""

    def __init__(self, port: int) -> None:
        self._sock: socket.socket = connected(port)
        self._next_call = 1
        self._received = b""
        self._nodes: set[bytes] = set()
        ttl_ms = SESSION_TTL_S * 1000
        hello = _HELLO.pack(0, 0, ttl_ms, 0) + _sized(bytes(PASSWORD_BYTES)) + b"\0"
        self._sock.sendall(_sized(hello))
        granted_ms = _WELCOME.unpack_from(self._receive_frame())[2]
        if granted_ms != ttl_ms:
            raise PeerError(f"a session of {granted_ms} ms, expected {ttl_ms} ms")

    def close(self) -> None:
        self._sock.close()

    def encode(self, kind: int, body: bytes) -> Encoded:
        """The next call, and its bytes."""
        call = self._next_call
        self._next_call += 1
        length = _REQUEST.size - _LENGTH.size + len(body)
        return call, _REQUEST.pack(length, call, kind) + body

    def send(self, encoded: bytes) -> None:
        self._sock.sendall(encoded)

    def receive(self) -> list[Reply]:
        """Wait for bytes; the replies that are whole by then."""
        received = self._received + self._arrived()
        replies: list[Reply] = []
        at = 0
        while len(received) - at >= _REPLY.size:
            length, call, _, error = _REPLY.unpack_from(received, at)
            end = at + _LENGTH.size + length
            if end > len(received):
                break
            if error:
                raise PeerError(f"a call failed: error {error}")
            replies.append(Reply(call, received[at + _REPLY.size : end]))
            at = end
        self._received = received[at:]
        return replies

    def create_once(self, paths: Sequence[bytes]) -> None:
        """Create nodes without content, but for those that this did before."""
        new = [path for path in paths if path not in self._nodes]
        if new:
            bodies = [_creation(path, PERSISTENT) for path in new]
            pipelined(
                self,
                len(new),
                CREATES_IN_FLIGHT,
                lambda number: self.encode(CREATE, bodies[number]),
            )
            self._nodes.update(new)

    def _arrived(self) -> bytes:
        arrived = self._sock.recv(RECEIVE_BYTES)
        if not arrived:
            raise PeerError("the server closed the connection")
        return arrived

    def _receive_frame(self) -> bytes:
        """One frame; no other is under way."""
        received = self._arrived()
        while len(received) < _LENGTH.size + int.from_bytes(received[: _LENGTH.size], "big"):
            received += self._arrived()
        return received


def puts(session: Session, value: bytes, count: int, in_flight: int) -> PeerRun:
    """So many setData of nodes that are there, with at most so many under way."""
    paths = [b"/key-%d" % number for number in range(NODES)]
    session.create_once(paths)
    content = _sized(value) + _ANY_VERSION
    bodies = [_sized(path) + content for path in paths]
    return pipelined(
        session, count, in_flight, lambda number: session.encode(SET_DATA, bodies[number % NODES])
    )


def locks(session: Session, workers: int, count: int) -> PeerRun:
    """``workers`` take a lock of their own and give it back, again and again; ``count`` times in
    all.  A latency is of creating a node that would queue for the lock, seeing that it is the
    first, and deleting it."""
    paths = [b"/lock-%d" % worker for worker in range(workers)]
    session.create_once(paths)
    creations = [_creation(path + b"/holder-", EPHEMERAL_SEQUENTIAL) for path in paths]
    questions = [_sized(path) + b"\0" for path in paths]

    def hold(worker: int) -> Steps:
        created = yield session.encode(CREATE, creations[worker])
        own = _text_at(created, 0)
        found = yield session.encode(GET_CHILDREN, questions[worker])
        if paths[worker] + b"/" + min(_texts(found)) != own:
            raise PeerError(f"{own.decode()} is not the first: {found!r}")
        yield session.encode(DELETE, _sized(own) + _ANY_VERSION)

    return by_turns(session, workers, count, hold)


# --- the servers --------------------------------------------------------------------------


@contextmanager
def leader(directory: Path) -> Iterator[Session]:
    """Three servers that are warm, and a session with the one that leads."""
    ports = free_ports(3 * SERVERS, random.Random())
    client_ports = ports[:SERVERS]
    members = [
        f"server.{number}={HOST}:{port}:{election_port}"
        for number, (port, election_port) in enumerate(
            zip(ports[SERVERS : 2 * SERVERS], ports[2 * SERVERS :], strict=True), 1
        )
    ]
    servers = [
        _server(number, port, members, directory) for number, port in enumerate(client_ports, 1)
    ]
    with running(servers, directory):
        session = Session(_leading(client_ports))
        try:
            puts(session, WARM_UP_VALUE, WARM_UP_PUTS, WARM_UP_IN_FLIGHT)
            locks(session, WARM_UP_WORKERS, WARM_UP_LOCKS)
            yield session
        finally:
            session.close()


def _server(number: int, port: int, members: Sequence[str], directory: Path) -> Server:
    own = directory / f"data-{number}"
    own.mkdir()
    (own / "myid").write_text(f"{number}\n", encoding="ascii")
    path = directory / f"zoo-{number}.cfg"
    path.write_text(
        _CONFIGURATION.format(
            session_ttl_ms=SESSION_TTL_S * 1000,
            directory=own,
            port=port,
            host=HOST,
            servers="\n".join(members),
        ),
        encoding="utf-8",
    )
    return Server(["java", HEAP, "-cp", str(JAR), MAIN_CLASS, str(path)])


def _leading(ports: Sequence[int]) -> int:
    """The port of the server that leads, once all take part."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        modes = [_mode(port) for port in ports]
        if b"leader" in modes and None not in modes:
            return ports[modes.index(b"leader")]
        time.sleep(0.1)
    raise PeerError("nobody was elected in time")


def _mode(port: int) -> bytes | None:
    """What a server says it is; None: it does not serve yet."""
    with connected(port) as sock:
        sock.sendall(b"srvr")
        said = b""
        while arrived := sock.recv(RECEIVE_BYTES):
            said += arrived
    found = _MODE.search(said)
    return found[1] if found else None


# --- as much of jute as that takes --------------------------------------------------------


def _sized(value: bytes) -> bytes:
    """Bytes or a text; a frame too."""
    return _LENGTH.pack(len(value)) + value


def _creation(path: bytes, flags: int) -> bytes:
    """Of a node without content that anyone may do anything with."""
    anyone = _LENGTH.pack(ALL_PERMISSIONS) + _sized(b"world") + _sized(b"anyone")
    return _sized(path) + _sized(b"") + _LENGTH.pack(1) + anyone + _LENGTH.pack(flags)


def _text_at(message: bytes, at: int) -> bytes:
    begin = at + _LENGTH.size
    return message[begin : begin + _LENGTH.unpack_from(message, at)[0]]


def _texts(message: bytes) -> list[bytes]:
    """A message that is a list of them."""
    found: list[bytes] = []
    at = _LENGTH.size
    for _ in range(_LENGTH.unpack_from(message)[0]):
        found.append(_text_at(message, at))
        at += _LENGTH.size + len(found[-1])
    return found
