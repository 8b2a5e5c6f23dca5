"""Peers are measured alike, and one that does not start says why."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.peers import peer
from bench.peers.peer import (
    PeerError,
    Server,
    Taken,
    Workload,
    connected,
    pump,
    running,
    version_in,
)
from logd.cli.local_cluster import free_ports

CHUNK = b"a chunk\n"
WORKLOAD = Workload(records=10, record_bytes=1, per_chunk=2, in_flight=3)


@contextmanager
def echoing() -> Iterator[socket.socket]:
    """A connection to a server that gives back what it is sent, a little at a time."""
    here, there = socket.socketpair()

    def echo() -> None:
        while arrived := there.recv(3):
            there.sendall(arrived)
        there.close()

    server = threading.Thread(target=echo)
    server.start()
    try:
        yield here
    finally:
        here.close()
        server.join()


def taken(received: bytes) -> Taken:
    whole = received.count(CHUNK)
    return whole * len(CHUNK), whole * WORKLOAD.per_chunk


def test_all_chunks_are_sent_and_acknowledged_whatever_pieces_the_answers_come_in() -> None:
    seen: list[Taken] = []

    def take(received: bytes) -> Taken:
        seen.append(taken(received))
        return seen[-1]

    with echoing() as sock:
        run = pump(sock, CHUNK, WORKLOAD, take)

    assert sum(records for _, records in seen) == WORKLOAD.records
    assert run.records_per_s > 0
    assert 0 < run.p50_ms <= run.p99_ms


def test_a_server_that_goes_away_is_a_peer_that_failed() -> None:
    here, there = socket.socketpair()
    there.shutdown(socket.SHUT_WR)

    with here, there, pytest.raises(PeerError, match="closed the connection"):
        pump(here, CHUNK, WORKLOAD, taken)


def test_a_server_that_ended_says_why_the_peer_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "READY_TIMEOUT_S", 0.5)
    (port,) = free_ports(1, random.Random())
    server = Server(["sh", "-c", "echo no such setting; exit 3"])
    reason = f"nothing listens on port {port}; server 0 had ended with 3: no such setting"

    with pytest.raises(PeerError, match=reason), running([server], tmp_path):
        connected(port)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("nats-server: v2.15.1", "2.15.1"),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "7.0.15"),
        ("etcd Version: 3.4.23\nGit SHA: 4", "3.4.23"),
        ("rabbitmq_server-3.10.8", "3.10.8"),
        ("kafka-server-4.1.2", "4.1.2"),
        ("command not found", ""),
    ],
)
def test_a_version_is_found_in_what_a_server_says_of_itself(said: str, version: str) -> None:
    assert version_in(said) == version
