"""One table of what the peers that can be had here do with the same records.

Each peer runs alone, on files in the same directory, in rounds that take all peers in turn, every
other round the other way round: who follows another one finds the disk busy with what that has left
behind.  The ratio of a row is the median over the rounds of logd's figure to the peer's.  A peer
that cannot be had is listed with the reason, and no figure is made up for it.

    python -m bench.peers --runs 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.against_floor import Figure, product_once
from bench.peers.etcd import Etcd
from bench.peers.kafka import Kafka
from bench.peers.nats import Nats
from bench.peers.peer import Peer, PeerError, PeerRun, Workload
from bench.peers.rabbitmq import RabbitMq
from bench.peers.redis import Redis
from bench.peers.zookeeper import ZooKeeper
from logd import __version__
from logd.cli.measure import this_machine

RUNS_DEFAULT: Final = 3
RECORD_BYTES: Final = 100
WORKLOADS: Final = {
    "produce": Workload(400_000, RECORD_BYTES, per_chunk=500, in_flight=16),
    "latency": Workload(2_000, RECORD_BYTES, per_chunk=1, in_flight=1),
}
LOGD_ARGUMENTS: Final = {
    "produce": ("produce", "--records", "4000000", "--record-bytes", str(RECORD_BYTES)),
    "latency": ("latency", "--records", "2000", "--record-bytes", str(RECORD_BYTES)),
}
"""Of ours more records than of most others: it would be over too soon."""


class Logd:
    """Ourselves, as ``logd bench`` finds it."""

    name = "logd"
    durability = "synced by a majority"

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return __version__

    def run(self, workload: Workload, directory: Path) -> PeerRun:
        del directory
        name = next(name for name, known in WORKLOADS.items() if known == workload)
        found = product_once(Figure(None, LOGD_ARGUMENTS[name]), "synced", brokers=3)
        latency = found["latency_ms"]
        return PeerRun(found["records_per_s"], latency["p50"], latency["p99"])


PEERS: Final[tuple[Peer, ...]] = (
    Logd(),
    Nats(synced=True),
    Nats(synced=False),
    Redis(synced=True),
    Redis(synced=False),
    RabbitMq(),
    Kafka(synced=True),
    Kafka(synced=False),
    Etcd(),
    ZooKeeper(),
)


def measure(
    peers: list[Peer], runs: int, missing: dict[str, str]
) -> dict[str, dict[str, list[PeerRun]]]:
    """Workload → peer → one run per round.  Who fails goes from ``peers`` to ``missing``."""
    found: dict[str, dict[str, list[PeerRun]]] = {
        name: {peer.name: [] for peer in peers} for name in WORKLOADS
    }
    for number in range(runs):
        for name, workload in WORKLOADS.items():
            for peer in peers[:: -1 if number % 2 else 1]:
                try:
                    with tempfile.TemporaryDirectory(prefix="logd-peers-") as directory:
                        run = peer.run(workload, Path(directory))
                except (PeerError, OSError) as error:
                    missing[peer.name] = f"it failed: {error}"
                    peers.remove(peer)
                    continue
                found[name][peer.name].append(run)
                print(f"{number + 1}/{runs} {name} {peer.name}: {run}", file=sys.stderr)
    return found


def row(peer: Peer, found: dict[str, dict[str, list[PeerRun]]]) -> dict[str, Any]:
    """Medians of one peer, and of the rounds' ratios to logd."""
    produce, latency = (found[name][peer.name] for name in ("produce", "latency"))
    ours_produce, ours_latency = (found[name][Logd.name] for name in ("produce", "latency"))
    return {
        "name": peer.name,
        "version": peer.version(),
        "durability": peer.durability,
        "records_per_s": statistics.median(run.records_per_s for run in produce),
        "p50_ms": statistics.median(run.p50_ms for run in latency),
        "p99_ms": statistics.median(run.p99_ms for run in latency),
        "logd_rate_ratio": round(
            statistics.median(
                ours.records_per_s / theirs.records_per_s
                for ours, theirs in zip(ours_produce, produce, strict=True)
            ),
            2,
        ),
        "logd_p50_ratio": round(
            statistics.median(
                ours.p50_ms / theirs.p50_ms
                for ours, theirs in zip(ours_latency, latency, strict=True)
            ),
            2,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS_DEFAULT)
    parser.add_argument("--save", type=Path, help="write the table here as JSON")
    asked = parser.parse_args()
    missing = {peer.name: reason for peer in PEERS if (reason := peer.missing())}
    peers = [peer for peer in PEERS if peer.name not in missing]
    found = measure(peers, asked.runs, missing)
    rows = [row(peer, found) for peer in peers]
    print(
        f"three servers each, {RECORD_BYTES}-byte records, {asked.runs} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n\n"
        f"{'':53}{'records/s':>12}{'logd is':>9}{'p50 ms':>9}{'p99 ms':>9}{'logd is':>9}"
    )
    for one in rows:
        print(
            f"{one['name']:44} {one['version']:8}"
            f"{one['records_per_s']:12,.0f}{one['logd_rate_ratio']:8.2f}x"
            f"{one['p50_ms']:9.3f}{one['p99_ms']:9.3f}{one['logd_p50_ratio']:8.2f}x"
            f"  {one['durability']}"
        )
    for name, reason in missing.items():
        print(f"{name:44}not measured: {reason}")
    if asked.save:
        document = {"machine": this_machine(), "runs": asked.runs, "rows": rows, "missing": missing}
        asked.save.parent.mkdir(parents=True, exist_ok=True)
        asked.save.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


if __name__ == "__main__":
    main()
