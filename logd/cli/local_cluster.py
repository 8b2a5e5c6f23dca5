"""Brokers on this machine, one process each: what ``dev``, ``bench`` and the demo run.

The addresses of a cluster are part of its identity (brokers refuse a member list that
differs from the one they were formed with), so they are chosen once and kept in
``dev.json`` in its directory; starting again there resumes that cluster.

Ports are taken from below the range the kernel hands to outgoing connections.  A port from
within it can be lost to a stranger while a broker is down, and a client that retries it can
even end up connected to itself.

No broker outlives its parent: each watches a pipe whose other end the parent holds, and the
kernel closes that end however the parent dies.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from logd.cli.display import say
from logd.config import parse_host_port
from logd.errors import StorageError, UsageError
from logd.runtime.files import RealFileSystem
from logd.storage.directory import GROUPS_NAME, cannot_use
from logd.types import HostPort, NodeId
from logd.wording import count_of

HOST: Final = "127.0.0.1"
PEER_PORT_DISTANCE: Final = 1000
HTTP_PORT_DISTANCE: Final = 20
PORT_LOWEST: Final = 10_240
EPHEMERAL_PORT_LOWEST_DEFAULT: Final = 32_768
STOP_TIMEOUT_S: Final = 5.0
STOP_REPLICA_TIMEOUT_S: Final = 0.005
"""A broker that has not stopped by then, and so much later for each replica that it hands over,
syncs and closes, is killed, and that is said."""

CLUSTER_FILE: Final = "dev.json"
LOG_FILE: Final = "broker.log"
LOG_TAIL_BYTES: Final = 64 * 1024


class BrokerEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One broker in the cluster file."""

    id: int
    address: str
    peer_address: str


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a local cluster's directory remembers."""

    format: int = 1
    brokers: Annotated[list[BrokerEntry], msgspec.Meta(min_length=1)]
    """Those that founded it: the whole list is part of its identity, whoever is removed."""
    registered_at: int = 0
    """How long the metadata log was when all of them had been seen registered; 0: they never were.
    Whoever is not in the metadata of a later state is no member any more."""
    removed: list[int] = []
    """Found to be no members any more: their ids are never used again."""

    @property
    def members(self) -> list[BrokerEntry]:
        return [entry for entry in self.brokers if entry.id not in self.removed]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBroker:
    """Where one broker listens and keeps its data."""

    node_id: NodeId
    address: HostPort
    peer_address: HostPort
    directory: Path
    http_address: HostPort | None = None
    """Where its metrics and status page are, if anywhere."""

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log_path(self) -> Path:
        return self.directory / LOG_FILE

    @property
    def replica_count(self) -> int:
        """As many as its data directory holds."""
        try:
            return len(os.listdir(self.data_dir / GROUPS_NAME))
        except FileNotFoundError:
            return 0


class LocalCluster:
    """Starts, kills and stops brokers.  Blocking; own it with ``with``, which stops all."""

    def __init__(
        self,
        brokers: Sequence[LocalBroker],
        *,
        settings: Sequence[str] = (),
        founders: Mapping[int, str] | None = None,
    ) -> None:
        """``founders`` are the peer addresses of those that formed the cluster, if they are others
        than ``brokers``."""
        assert brokers
        self.brokers = tuple(brokers)
        self._settings = tuple(settings)
        self._founding = founders
        self._processes: dict[NodeId, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[NodeId, int] = {}

    @property
    def bootstrap(self) -> str:
        """Every client address, as ``--bootstrap`` takes it."""
        return ",".join(str(broker.address) for broker in self.brokers)

    def broker(self, node_id: NodeId) -> LocalBroker:
        """The broker of that id."""
        return next(broker for broker in self.brokers if broker.node_id == node_id)

    def command(self, broker: LocalBroker) -> list[str]:
        """The command line of one broker: what a person would type, and the leash."""
        founders = self._founding or {each.node_id: str(each.peer_address) for each in self.brokers}
        members = ",".join(f"{node}={address}" for node, address in founders.items())
        return [
            *(sys.executable, "-m", "logd", "serve"),
            *("--node-id", str(broker.node_id), "--data-dir", str(broker.data_dir)),
            *("--listen", str(broker.address), "--peer-listen", str(broker.peer_address)),
            *("--cluster", members),
            *(("--http-listen", str(broker.http_address)) if broker.http_address else ()),
            *self._settings,
            "--exit-with-parent",
        ]

    def start(self, node_id: NodeId) -> int:
        """Start one broker; return its process id.  Its output is appended to its log."""
        assert not self.is_running(node_id), f"broker {node_id} is running"
        broker = self.broker(node_id)
        self._release(node_id)
        broker.directory.mkdir(parents=True, exist_ok=True)
        with broker.log_path.open("ab") as log:
            self._log_starts[node_id] = log.tell()
            process = subprocess.Popen(
                self.command(broker),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches a whole process group; the parent decides who stops when.
                start_new_session=True,
            )
        self._processes[node_id] = process
        return process.pid

    def start_all(self) -> None:
        """Start every broker.

        The addresses are looked at before anything is started on them: whoever answers there
        would otherwise be taken for the brokers that were just started.

        Raises:
            StorageError: names the first address that is taken.
        """
        for broker in self.brokers:
            for address in (broker.address, broker.peer_address, broker.http_address):
                if address is not None and not is_free(address.port):
                    raise StorageError(
                        f"cannot start broker {broker.node_id}: {address} is in use; is this "
                        "cluster running already?  If not, choose another --port"
                    )
        for broker in self.brokers:
            self.start(broker.node_id)

    def is_running(self, node_id: NodeId) -> bool:
        """Whether its process exists and has not ended."""
        process = self._processes.get(node_id)
        return process is not None and process.poll() is None

    def pid(self, node_id: NodeId) -> int:
        """Process id of a broker that was started."""
        return self._processes[node_id].pid

    def wait(self, node_id: NodeId) -> int:
        """Block until the broker's process ends; return its exit status."""
        return self._processes[node_id].wait()

    def kill(self, node_id: NodeId) -> None:
        """SIGKILL: the process ends without running another instruction."""
        process = self._processes[node_id]
        process.kill()
        process.wait()

    def leave_out(self, node_id: NodeId) -> None:
        """It is no member of the cluster any more: end it, and know it no longer."""
        if self.is_running(node_id):
            self.kill(node_id)
        self._release(node_id)
        self.brokers = tuple(broker for broker in self.brokers if broker.node_id != node_id)

    @property
    def stop_timeout_s(self) -> float:
        """How long all of them may take to stop, together: they share the machine."""
        replicas = max(broker.replica_count for broker in self.brokers)
        return STOP_TIMEOUT_S + replicas * STOP_REPLICA_TIMEOUT_S

    def stop(self, *node_ids: NodeId) -> list[NodeId]:
        """Ask these to stop, which are running, and wait; return those that had to be killed."""
        for node_id in node_ids:
            self._processes[node_id].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.stop_timeout_s
        killed = []
        for node_id in node_ids:
            try:
                self._processes[node_id].wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(node_id)
                killed.append(node_id)
        return killed

    def stop_all(self) -> list[NodeId]:
        """Ask every broker to stop and wait; return those that had to be killed."""
        killed = self.stop(*(b.node_id for b in self.brokers if self.is_running(b.node_id)))
        for node_id in self._processes:
            self._release(node_id)
        return killed

    def _release(self, node_id: NodeId) -> None:
        """Close our end of the pipe that an ended broker watched."""
        process = self._processes.get(node_id)
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def last_words(self, node_id: NodeId) -> str:
        """Why a broker ended, as the last line of its log since its start has it."""
        path = self.broker(node_id).log_path
        with path.open("rb") as log:
            log.seek(max(self._log_starts[node_id], path.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        spoken = [line for line in lines if line.startswith("logd: ")] or lines
        return spoken[-1].removeprefix("logd: ") if spoken else f"see {path}"


@contextmanager
def stopping(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """Stop the cluster when the block ends, however it ends."""
    try:
        yield cluster
    finally:
        within_s = cluster.stop_timeout_s
        for node_id in cluster.stop_all():
            say(f"logd: broker {node_id} did not stop within {within_s:.0f} s and was killed")


def open_cluster(
    directory: Path,
    *,
    broker_count: int | None,
    port: int | None,
    broker_count_default: int = 3,
    port_default: int | None = None,
    settings: Sequence[str] = (),
    http: bool = False,
) -> LocalCluster:
    """The cluster of a directory: the one that was made there, or a new one.

    Args:
        directory: made if missing.
        broker_count: None: as it was, or ``broker_count_default``.
        port: first client port; None: as it was, or ``port_default``, or any free ones.
        settings: passed on to every ``logd serve``.
        http: every broker has a status page.  Its address is not the cluster's identity, and is
            found anew each time.

    Raises:
        UsageError: the directory holds a cluster of another size.
        StorageError: the directory holds something else, or cannot be made or written.
    """
    directory = directory.absolute()
    path = directory / CLUSTER_FILE
    if path.exists():
        saved = _resumed(path, broker_count, port)
    else:
        _refuse_foreign(directory)
        chosen = _chosen(broker_count or broker_count_default, port or port_default)
        saved = ClusterFile(brokers=chosen)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_cluster_file(directory, saved)
    except OSError as error:
        raise StorageError(cannot_use(RealFileSystem(), str(directory), error)) from error
    entries = saved.members
    http_addresses = _http_addresses(entries) if http else [None] * len(entries)
    return LocalCluster(
        [
            LocalBroker(
                node_id=NodeId(entry.id),
                address=parse_host_port(entry.address),
                peer_address=parse_host_port(entry.peer_address),
                directory=directory / f"broker-{entry.id}",
                http_address=http_address,
            )
            for entry, http_address in zip(entries, http_addresses, strict=True)
        ],
        settings=settings,
        founders={entry.id: entry.peer_address for entry in saved.brokers},
    )


def read_cluster_file(directory: Path) -> ClusterFile:
    """What the directory of a local cluster remembers.

    Raises:
        StorageError: it is something else.
    """
    path = directory / CLUSTER_FILE
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=ClusterFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is not a cluster file: {error}") from error
    if saved.format != 1:
        raise StorageError(f"{path} has format {saved.format}; this version reads format 1")
    if not saved.members:
        raise StorageError(f"{path} is not a cluster file: all brokers in it were removed")
    return saved


def save_cluster_file(directory: Path, content: ClusterFile) -> None:
    """Have the directory remember it."""
    path = directory / CLUSTER_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    temporary.replace(path)


def process_cpu_seconds(pid: int) -> float:
    """User and system time of one process, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    # Fields 14 and 15 of proc(5), counted after the name, which is field 2.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_ports(count: int, chance: random.Random, *, taken: Iterable[int] = ()) -> list[int]:
    """Ports that nobody listens on and that the kernel will not hand out by itself."""
    found: list[int] = []
    avoided = set(taken)
    highest = max(_ephemeral_port_lowest() - 1, PORT_LOWEST + 1000)
    while len(found) < count:
        port = chance.randint(PORT_LOWEST, highest)
        if port not in avoided and is_free(port):
            found.append(port)
            avoided.add(port)
    return found


def _resumed(path: Path, broker_count: int | None, port: int | None) -> ClusterFile:
    saved = read_cluster_file(path.parent)
    # The command that founded it resumes it, also when a broker has been removed since.
    if broker_count not in (None, len(saved.brokers), len(saved.members)):
        raise UsageError(
            f"{path.parent} holds a cluster of {count_of(len(saved.members), 'broker')}, not "
            f"{broker_count}: "
            "leave --brokers out, or name another --data-dir"
        )
    if port is None:
        return saved
    moved = [
        BrokerEntry(id=entry.id, address=f"{HOST}:{port + at}", peer_address=entry.peer_address)
        for at, entry in enumerate(saved.brokers)
    ]
    return msgspec.structs.replace(saved, brokers=moved)


def _chosen(broker_count: int, port: int | None) -> list[BrokerEntry]:
    chance = random.Random()
    if port is None:
        ports = free_ports(broker_count, chance)
        peer_ports = free_ports(broker_count, chance, taken=ports)
    else:
        ports = list(range(port, port + broker_count))
        peer_ports = [client_port + PEER_PORT_DISTANCE for client_port in ports]
        # A cluster that is resumed wants the same again: none that the kernel hands out meanwhile.
        is_kept = peer_ports[-1] < _ephemeral_port_lowest()
        if not (is_kept and all(map(is_free, peer_ports))):
            peer_ports = free_ports(broker_count, chance, taken=ports)
    return [
        BrokerEntry(
            id=at + 1, address=f"{HOST}:{ports[at]}", peer_address=f"{HOST}:{peer_ports[at]}"
        )
        for at in range(broker_count)
    ]


def _http_addresses(entries: Sequence[BrokerEntry]) -> list[HostPort]:
    """Beside the client ports if those are free, so that a bookmark goes on to work."""
    used = {
        parse_host_port(address).port
        for entry in entries
        for address in (entry.address, entry.peer_address)
    }
    wanted = [parse_host_port(entry.address).port + HTTP_PORT_DISTANCE for entry in entries]
    if not all(port not in used and is_free(port) for port in wanted):
        wanted = free_ports(len(entries), random.Random(), taken=used)
    return [HostPort(HOST, port) for port in wanted]


def _refuse_foreign(directory: Path) -> None:
    """A directory with other things in it is probably a mistake, and is not touched."""
    if directory.is_dir() and any(directory.iterdir()):
        raise StorageError(
            f"{directory} is not empty and holds no {CLUSTER_FILE}: "
            "name an empty or missing directory as --data-dir"
        )


def is_free(port: int) -> bool:
    """Whether nobody listens on it."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def _ephemeral_port_lowest() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return EPHEMERAL_PORT_LOWEST_DEFAULT
    return int(text.split()[0])
