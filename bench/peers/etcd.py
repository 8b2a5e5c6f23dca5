"""etcd: three servers; a record is a put of one of 5,000 keys, a lock one of its lock service.

Spoken to by gRPC, over one connection to the leader, with no more of it than the calls need
(``http2.py``).  Messages: etcd's api/etcdserverpb/rpc.proto and v3lockpb/v3lock.proto.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.calls import Steps, by_turns, pipelined
from bench.peers.http2 import Channel
from bench.peers.peer import (
    HOST,
    READY_TIMEOUT_S,
    PeerError,
    PeerRun,
    Server,
    Workload,
    running,
    varint,
    version_said,
)
from logd.cli.local_cluster import free_ports

SERVERS: Final = 3
PUT: Final = "/etcdserverpb.KV/Put"
GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
STATUS: Final = "/etcdserverpb.Maintenance/Status"
LOCK: Final = "/v3lockpb.Lock/Lock"
UNLOCK: Final = "/v3lockpb.Lock/Unlock"
LEASE_TTL_S: Final = 600
KEYS: Final = 5_000
IN_FLIGHT_MAX: Final = 1_000
"""Of several thousand it refuses some ("too many requests")."""


class Etcd:
    """etcd with its defaults: every write is synced before it is acknowledged."""

    name = "etcd, a put per record"
    durability = "synced by a majority"

    def missing(self) -> str | None:
        return None if shutil.which("etcd") else "no etcd on the path (Debian: etcd-server)"

    def version(self) -> str:
        return version_said("etcd", "--version")

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        with leader(directory) as channel:
            value = os.urandom(workload.record_bytes)
            in_flight = min(workload.per_chunk * workload.in_flight, IN_FLIGHT_MAX)
            puts(channel, value, workload.records // 4, in_flight)
            return puts(channel, value, workload.records, in_flight)


def puts(channel: Channel, value: bytes, count: int, in_flight: int) -> PeerRun:
    """So many puts, with at most so many under way."""
    value_field = field(2, value)
    keys = [field(1, b"key-%d" % number) + value_field for number in range(KEYS)]
    return pipelined(
        channel, count, in_flight, lambda number: channel.encode(PUT, keys[number % KEYS])
    )


def locks(channel: Channel, workers: int, count: int) -> PeerRun:
    """``workers`` take a lock of their own and give it back, again and again; ``count`` times in
    all.  A latency is of both."""
    lease = number_in(channel.call(GRANT, varint_field(1, LEASE_TTL_S)), 2)
    asks = [field(1, b"lock-%d" % worker) + varint_field(2, lease) for worker in range(workers)]

    def hold(worker: int) -> Steps:
        held = yield channel.encode(LOCK, asks[worker])
        yield channel.encode(UNLOCK, field(1, bytes_in(held, 2)))

    return by_turns(channel, workers, count, hold)


# --- the servers --------------------------------------------------------------------------


@contextmanager
def leader(directory: Path) -> Iterator[Channel]:
    """Three servers, and a channel to the one that leads."""
    ports = free_ports(SERVERS, random.Random())
    peer_ports = free_ports(SERVERS, random.Random(), taken=ports)
    with running([_server(at, ports, peer_ports, directory) for at in range(SERVERS)], directory):
        channel = _channel_to_leader(ports)
        try:
            yield channel
        finally:
            channel.close()


def _server(at: int, ports: Sequence[int], peer_ports: Sequence[int], directory: Path) -> Server:
    client, peer = f"http://{HOST}:{ports[at]}", f"http://{HOST}:{peer_ports[at]}"
    members = ",".join(f"n{n}=http://{HOST}:{port}" for n, port in enumerate(peer_ports))
    options = {
        "name": f"n{at}",
        "data-dir": str(directory / f"data-{at}"),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": members,
        "initial-cluster-state": "new",
        "initial-cluster-token": "bench",
    }
    return Server(["etcd", *(f"--{name}={value}" for name, value in options.items())])


def _channel_to_leader(ports: Sequence[int]) -> Channel:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        for port in ports:
            channel = Channel(port)
            status = channel.call(STATUS, b"")
            member, leads = number_in(bytes_in(status, 1), 2), number_in(status, 4)
            if leads and member == leads:
                return channel
            channel.close()
        time.sleep(0.1)
    raise PeerError("nobody was elected in time")


# --- as much of protocol buffers as that takes ------------------------------------------------


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0

    def take_varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(message):
        key = take_varint()
        value = take_varint()
        if key & 7 == 2:
            yield key >> 3, message[at : at + value]
            at += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise PeerError(f"a field of an unexpected kind: {key & 7}")


def number_in(message: bytes, number: int) -> int:
    """An integer field; 0 if it is not there."""
    return next((v for n, v in _fields(message) if n == number and isinstance(v, int)), 0)


def bytes_in(message: bytes, number: int) -> bytes:
    """A field of bytes; none if it is not there."""
    return next((v for n, v in _fields(message) if n == number and isinstance(v, bytes)), b"")
