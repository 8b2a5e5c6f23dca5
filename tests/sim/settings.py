"""What one seed is like: how large, how fast, how small the knobs, and which faults it has.

Swarm testing: each seed leaves out most kinds of fault and exaggerates some of the others.  A
network that is always punctual hides bugs, and so does one in which everything always fails.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from logd.limits import KIB
from tests.sim.cluster import ClusterSettings
from tests.sim.env import BlockingConditions
from tests.sim.faults import FAULTS, OF_MEMBERS
from tests.sim.knobs import Knobs
from tests.sim.network import NetworkConditions

FAULT_SHARE = 0.4
"""Of all kinds of fault, so many are possible in one seed."""

COMPACTED_SHARE = 0.4
"""Of all seeds, so many have a topic that is compacted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Drawn from the seed."""

    cluster: ClusterSettings
    partitions: int
    producers: int
    conditional_writers: int
    consumers: int
    replica_readers: int
    pinned_readers: int
    admins: int
    fault_s: float
    """How long faults begin; each then lasts as long as it lasts."""
    fault_interval_s: float
    """Mean time between two of them."""
    faults: dict[str, int]
    """Kind of fault → weight; kinds that are missing do not happen."""
    pause_s: float
    """Mean time between two calls of a producer."""
    cold_share: float
    """Of the nodes, so many never find anything in their page cache."""
    coordinators: int
    """Who take locks, write keys and work on a queue, over the wire."""
    library_users: int
    """Who do so through the client library, and are elected and own shards besides."""
    retention: tuple[tuple[str, str], ...]
    """Options of the topic that most write to and read; empty: it keeps everything."""
    appends: int = 510
    """So many are made quickly: from then on faults and elections are worth more."""
    durability: str = "synced"
    """Of that topic.  While a majority keeps its memory, ``replicated`` loses as little."""
    compaction: tuple[tuple[str, str], ...] = ()
    """Options of another topic, whose records have keys; empty: there is none."""

    @property
    def has_moves(self) -> bool:
        """Replicas do not stay where they were made."""
        return "move" in self.faults

    @property
    def has_good_clocks(self) -> bool:
        """All wall clocks say the same."""
        rates = self.cluster.clock_rates
        return "clock_jump" not in self.faults and all(rate == 1.0 for rate in rates)

    @property
    def coordinates(self) -> bool:
        """Some clients take locks, write keys and work on queues."""
        return self.coordinators + self.library_users > 0

    @classmethod
    def draw(cls, seed: int) -> Settings:
        chance = random.Random(f"{seed}:settings")
        brokers = chance.choice([1, 3, 3, 3, 3, 3, 3, 5])
        kinds = [
            kind for kind in FAULTS if kind not in OF_MEMBERS and chance.random() < FAULT_SHARE
        ] or ["kill"]
        drawn = cls(
            cluster=ClusterSettings(
                brokers=brokers,
                segment_bytes=chance.choice([5, 16, 64]) * KIB,
                index_interval_bytes=chance.choice([512, 4 * KIB]),
                tail_cache_bytes=chance.choice([0, 4 * KIB, 1024 * KIB, 1024 * KIB]),
                liveness_timeout_ms=chance.choice([500, 1000, 1500]),
                disk_free_bytes_min=chance.choice([0, 64 * KIB]),
                clock_rates=tuple(
                    chance.choice([1.0, 1.0, 0.5, 0.999, 1.001, 2.0]) for _ in range(brokers)
                ),
                network=NetworkConditions.draw(chance),
                blocking=BlockingConditions.draw(chance),
                knobs=Knobs.draw(chance),
            ),
            partitions=chance.choice([1, 1, 1, 2, 3]),
            producers=chance.choice([2, 2, 3, 4]),
            conditional_writers=chance.choice([0, 2]),
            consumers=chance.choice([1, 2]),
            replica_readers=chance.choice([0, 1]),
            pinned_readers=chance.choice([0, 1]),
            admins=chance.choice([0, 1]),
            fault_s=30.0,
            fault_interval_s=chance.choice([2.0, 3.0, 5.0]),
            faults={kind: chance.choice([1, 3]) for kind in kinds} | _of_members(seed),
            pause_s=chance.choice([0.05, 0.1, 0.2]),
            cold_share=chance.choice([0.0, 0.0, 0.5]),
            # Last: a knob that is added moves no other draw of the seed.
            retention=chance.choice(
                [(), (), (), (("retention_bytes", "64KiB"),), (("retention_ms", "8s"),)]
            ),
            **_who_coordinates(seed, chance.choice([0, 0, 0, 0, 3])),
            durability=chance.choice(["synced", "synced", "replicated"]),
            appends=chance.choice([150, 510, 510, 510]),
            compaction=_compaction(seed),
        )
        return _with_clocks_for_tombstones(seed, drawn)


def _who_coordinates(seed: int, count: int) -> dict[str, int]:
    """Either kind of client in half of the seeds that coordinate."""
    use_library = random.Random(f"{seed}:library").random() < 0.5
    return {
        "coordinators": 0 if use_library else count,
        "library_users": min(count, 2) if use_library else 0,
    }


def _compaction(seed: int) -> tuple[tuple[str, str], ...]:
    """A generator of its own, as for members."""
    chance = random.Random(f"{seed}:compaction")
    if chance.random() >= COMPACTED_SHARE:
        return ()
    options = [
        ("cleanup", "compact"),
        ("segment_ms", chance.choice(["1s", "3s"])),
        ("tombstone_ms", chance.choice(["1s", "4s", "10s"])),
    ]
    if chance.random() < 0.2:
        kept = chance.choice([("retention_bytes", "64KiB"), ("retention_ms", "8s")])
        options = [("cleanup", "compact,delete"), kept, *options[1:]]
    return tuple(options)


def _with_clocks_for_tombstones(seed: int, settings: Settings) -> Settings:
    """How long tombstones stay can be told only where clocks agree: in half of these seeds."""
    if not settings.compaction or random.Random(f"{seed}:clocks").random() < 0.5:
        return settings
    faults = {kind: weight for kind, weight in settings.faults.items() if kind != "clock_jump"}
    cluster = replace(settings.cluster, clock_rates=())
    return replace(settings, faults=faults or {"kill": 1}, cluster=cluster)


def _of_members(seed: int) -> dict[str, int]:
    """A generator of their own: seeds without these are as they were before there were any."""
    chance = random.Random(f"{seed}:members")
    if chance.random() >= FAULT_SHARE:
        return {}
    # A cluster of three has nowhere to move anything until somebody joins.
    return {kind: chance.choice([3, 6] if kind == "move" else [1, 3]) for kind in OF_MEMBERS}
