"""Kafka: three nodes, each broker and controller, a topic with three replicas, Kafka's protocol.

``KAFKA_HOME`` names a Kafka that needs no ZooKeeper (3.3 or later): its ``libs`` are all that is
used of it, with the ``java`` of the ``PATH``.  Requests are of versions that every such Kafka
knows.

Servers that have just started have yet to compile what runs often: in their first second they do a
half to a third of what they do half a minute later.  So they are asked for a good many appends that
nobody measures before anything is.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from bench.peers.peer import (
    HOST,
    RECEIVE_BYTES,
    TIMEOUT_S,
    PeerError,
    PeerRun,
    Server,
    Taken,
    Workload,
    connected,
    pump,
    running,
    varint,
    version_in,
)
from logd.cli.local_cluster import free_ports

T = TypeVar("T")

NODES: Final = 3
READY_TIMEOUT_S: Final = 120
TOPIC: Final = "bench"
BATCH_BYTES: Final = 1_000_000
"""Of a batch where throughput is asked for, about as large as Kafka takes by default: it works on
one request of a connection at a time, so what waits together had better be sent together."""

RECORD_OVERHEAD_BYTES: Final = 12
"""At most, in such a batch."""

WARM_UP_RECORDS: Final = 3_000_000
WARM_UP_APPENDS: Final = 15_000
"""One at a time.  Rates and latencies hold still from about then on."""

MEASURED_TIMES: Final = 5
"""So many times the records of the workload in such batches: else it is over in half a second."""

CLUSTER_ID: Final = "bG9nZC1iZW5jaC1wZWVycw"
OK: Final = 0
ALREADY_THERE: Final = 36

PRODUCE: Final = (0, 7)
METADATA: Final = (3, 4)
CREATE_TOPICS: Final = (19, 2)
"""Number of a request, and its version."""

_CONFIGURATION: Final = """
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
log.dirs={directory}
min.insync.replicas=2
"""


class Kafka:
    """A topic, by itself or with a sync before each acknowledgement."""

    def __init__(self, *, synced: bool) -> None:
        self._synced = synced
        self.name = f"Kafka, {'flush.messages=1' if synced else 'default flush'}"
        what = "synced" if synced else "written"
        self.durability = f"{what} by all in-sync replicas, two at least"

    def missing(self) -> str | None:
        if "KAFKA_HOME" not in os.environ:
            return "set KAFKA_HOME"
        if not self.version():
            return f"no libs/kafka-server-*.jar in {os.environ['KAFKA_HOME']}"
        return None if shutil.which("java") else "no java in the PATH"

    def version(self) -> str:
        jars = sorted(Path(os.environ["KAFKA_HOME"], "libs").glob("kafka-server-[0-9]*.jar"))
        return version_in(jars[-1].stem) if jars else ""

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        warm_up = workload._replace(records=WARM_UP_APPENDS)
        if workload.per_chunk > 1:
            per_batch = BATCH_BYTES // (workload.record_bytes + RECORD_OVERHEAD_BYTES)
            warm_up = workload._replace(records=WARM_UP_RECORDS, per_chunk=per_batch)
            workload = warm_up._replace(records=MEASURED_TIMES * workload.records)
        ports = free_ports(2 * NODES, random.Random())
        nodes = [_node(directory, at, ports) for at in range(NODES)]
        config = {"flush.messages": "1"} if self._synced else {}
        with running(nodes, directory), _connected_to_leader(ports[0], config) as sock:
            batch = _batch(os.urandom(workload.record_bytes), workload.per_chunk)
            all_in_sync, timeout_ms = -1, TIMEOUT_S * 1000
            chunk = _request(
                PRODUCE,
                _text(None)
                + struct.pack(">hi", all_in_sync, timeout_ms)
                + _array([_text(TOPIC) + _array([struct.pack(">ii", 0, len(batch)) + batch])]),
            )

            def taken(received: bytes) -> Taken:
                return _taken(received, workload.per_chunk)

            pump(sock, chunk, warm_up, taken)
            return pump(sock, chunk, workload, taken)


def _node(directory: Path, at: int, ports: Sequence[int]) -> Server:
    """Make the directory of a node, and say how it is started."""
    own = directory / f"node-{at}"
    own.mkdir()
    configuration = own / "server.properties"
    controllers = enumerate(ports[NODES:], 1)
    configuration.write_text(
        _CONFIGURATION.format(
            host=HOST,
            node=at + 1,
            voters=",".join(f"{node}@{HOST}:{port}" for node, port in controllers),
            port=ports[at],
            controller_port=ports[NODES + at],
            directory=own / "data",
        ),
        encoding="ascii",
    )
    java = ("java", "-Xms256m", "-Xmx512m", "-cp", f"{os.environ['KAFKA_HOME']}/libs/*")
    formatting = ("format", "--cluster-id", CLUSTER_ID, "--config", str(configuration))
    try:
        formatted = subprocess.run(
            [*java, "kafka.tools.StorageTool", *formatting],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=READY_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"Kafka's directories were not formatted in time: {error}") from error
    if formatted.returncode != 0:
        said = (formatted.stderr or formatted.stdout).decode(errors="replace").strip()
        raise PeerError(f"Kafka's directories cannot be formatted: {said}")
    return Server([*java, "kafka.Kafka", str(configuration)])


# --- Kafka's protocol -------------------------------------------------------------------


def _request(kind: tuple[int, int], content: bytes) -> bytes:
    number, version = kind
    correlation = 1  # Answers come in order: nothing has to be told apart.
    header = struct.pack(">hhi", number, version, correlation) + _text("bench")
    return struct.pack(">i", len(header) + len(content)) + header + content


def _text(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">h", -1)
    return struct.pack(">h", len(text)) + text.encode()


def _array(parts: Sequence[bytes]) -> bytes:
    return struct.pack(">i", len(parts)) + b"".join(parts)


class _Answer:
    """What one says, field by field."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 4  # Behind the correlation id.

    def integer(self, layout: str) -> int:
        (value,) = struct.unpack_from(f">{layout}", self._content, self._at)
        self._at += struct.calcsize(f">{layout}")
        return int(value)

    def text(self) -> str:
        length = max(0, self.integer("h"))
        self._at += length
        return self._content[self._at - length : self._at].decode()

    def array(self, part: Callable[[], T]) -> list[T]:
        return [part() for _ in range(self.integer("i"))]


def _asked(sock: socket.socket, kind: tuple[int, int], content: bytes) -> _Answer:
    sock.sendall(_request(kind, content))
    received = b""
    while len(received) < 4 or len(received) < 4 + struct.unpack_from(">i", received)[0]:
        arrived = sock.recv(RECEIVE_BYTES)
        if not arrived:
            raise PeerError("Kafka closed the connection")
        received += arrived
    return _Answer(received[4:])


def _taken(received: bytes, per_chunk: int) -> Taken:
    used = records = 0
    while len(received) - used >= 4:
        (size,) = struct.unpack_from(">i", received, used)
        if len(received) - used < 4 + size:
            break
        _check_produced(_Answer(received[used + 4 : used + 4 + size]))
        used += 4 + size
        records += per_chunk
    return used, records


def _check_produced(answer: _Answer) -> None:
    def partition() -> None:
        answer.integer("i")
        code = answer.integer("h")
        if code != OK:
            raise PeerError(f"Kafka refused records with code {code}")
        for _base_offset_append_time_log_start in range(3):
            answer.integer("q")

    def topic() -> None:
        answer.text()
        answer.array(partition)

    answer.array(topic)


def _connected_to_leader(port: int, config: dict[str, str]) -> socket.socket:
    """A connection to the broker that leads a new topic of three replicas, all in sync."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            with connected(port) as sock:
                _create(sock, config)
                leader_port = _leader_port(sock)
            return connected(leader_port)
        except (PeerError, OSError) as error:
            if time.monotonic() > deadline:
                raise PeerError(f"Kafka was not ready in {READY_TIMEOUT_S} s: {error}") from error
        time.sleep(0.5)


def _create(sock: socket.socket, config: dict[str, str]) -> None:
    partitions, replicas = 1, NODES
    configs = [_text(name) + _text(value) for name, value in config.items()]
    topic = _text(TOPIC) + struct.pack(">ih", partitions, replicas) + _array([]) + _array(configs)
    content = _array([topic]) + struct.pack(">i?", TIMEOUT_S * 1000, False)
    answer = _asked(sock, CREATE_TOPICS, content)
    answer.integer("i")  # How long it held back.
    for code, reason in answer.array(lambda: _created(answer)):
        if code not in (OK, ALREADY_THERE):
            raise PeerError(f"Kafka did not create a topic: code {code}, {reason}")


def _created(answer: _Answer) -> tuple[int, str]:
    answer.text()
    return answer.integer("h"), answer.text()


def _leader_port(sock: socket.socket) -> int:
    answer = _asked(sock, METADATA, _array([_text(TOPIC)]) + struct.pack(">?", False))
    answer.integer("i")  # How long it held back.

    def broker() -> tuple[int, int]:
        node, _, port, _ = answer.integer("i"), answer.text(), answer.integer("i"), answer.text()
        return node, port

    def partition() -> tuple[int, int]:
        _, _, leader = answer.integer("h"), answer.integer("i"), answer.integer("i")
        _replicas, in_sync = (answer.array(lambda: answer.integer("i")) for _ in range(2))
        return leader, len(in_sync)

    def topic() -> list[tuple[int, int]]:
        _, _, _ = answer.integer("h"), answer.text(), answer.integer("?")
        return answer.array(partition)

    ports = dict(answer.array(broker))
    answer.text()  # The cluster's id.
    answer.integer("i")  # The controller.
    for leader, in_sync in (found for topic in answer.array(topic) for found in topic):
        if in_sync == NODES and leader in ports:
            return ports[leader]
    raise PeerError("the topic's replicas are not all in sync")


# --- a batch of records -----------------------------------------------------------------

_POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's, reversed: a batch's checksum is CRC-32C, which Python does not have."""


def _batch(value: bytes, count: int) -> bytes:
    """``count`` records of one value, as a producer without an id sends them."""
    records = b"".join(_record(value, number) for number in range(count))
    now_ms = time.time_ns() // 1_000_000
    no_id = (-1, -1, -1)
    checked = struct.pack(">hiqqqhii", 0, count - 1, now_ms, now_ms, *no_id, count) + records
    magic = 2
    behind_length = struct.pack(">ibI", -1, magic, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(behind_length)) + behind_length


def _record(value: bytes, number: int) -> bytes:
    no_key = -1
    parts = (b"\0", _signed(0), _signed(number), _signed(no_key), _signed(len(value)), value)
    content = b"".join(parts) + _signed(0)
    return _signed(len(content)) + content


def _signed(value: int) -> bytes:
    """Zigzag: small numbers of either sign are short."""
    return varint((value << 1) ^ (value >> 63))


def _crc32c(content: bytes) -> int:
    table: list[int] = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
