"""What an even load would be, and how far from it a broker may be.

Even is not the same for every broker: a partition has at most one replica in a failure domain
while there are enough domains, so a host that stands alone cannot be given more than one copy of
everything, however many brokers another host has.  What such a domain cannot take is shared by
the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from logd.metadata.rebalance.cluster import BrokerLoad, PartitionLoad
from logd.types import NodeId


class Range(NamedTuple):
    """An even load, and the loads around it that are even enough; both ends are inclusive."""

    even: float
    low: int
    high: int

    def excess(self, load: int) -> int:
        """How far ``load`` is out of the range, either way."""
        return max(load - self.high, self.low - load, 0)


class Ranges(NamedTuple):
    """The loads that one broker may have."""

    replicas: Range
    bytes: Range
    traffic: Range


def ranges_of(
    targets: Sequence[BrokerLoad], partitions: Sequence[PartitionLoad], tolerance: float
) -> dict[NodeId, Ranges]:
    """The even loads of ``targets``, the brokers that may hold replicas."""
    domains: dict[str, list[NodeId]] = {}
    for broker in targets:
        domains.setdefault(broker.failure_domain, []).append(broker.node)
    replicas = _evenly(domains, [(1, p.wanted_count) for p in partitions])
    size = _evenly(domains, [(p.size_bytes, p.wanted_count) for p in partitions])
    traffic = _evenly(domains, [(p.write_bytes_per_s, p.wanted_count) for p in partitions])
    replica_count = max(1, sum(p.wanted_count for p in partitions))
    return {
        broker.node: Ranges(
            _range(replicas[broker.node], tolerance, 0.0),
            _range(size[broker.node], tolerance, sum(size.values()) / replica_count / 2),
            _range(traffic[broker.node], tolerance, sum(traffic.values()) / replica_count / 2),
        )
        for broker in targets
    }


def _range(even: float, tolerance: float, grain: float) -> Range:
    """The loads near ``even``, and at least the whole numbers next to it.

    Nearer than ``grain``, half of what a replica weighs on average, is as even as it gets without
    moving things to and fro for the one combination that fits.
    """
    away = max(even * tolerance, grain)
    return Range(
        even,
        min(math.floor(even), math.ceil(even - away)),
        max(math.ceil(even), math.floor(even + away)),
    )


def _evenly(
    domains: Mapping[str, Sequence[NodeId]], weights: Sequence[tuple[int, int]]
) -> dict[NodeId, float]:
    """Share (weight, copies) among brokers, where no domain takes more copies than it must."""
    left = float(sum(weight * copies for weight, copies in weights))
    most = sum(weight * math.ceil(copies / len(domains)) for weight, copies in weights)
    even: dict[NodeId, float] = {}
    open_domains = dict(sorted(domains.items(), key=lambda item: (len(item[1]), item[0])))
    # The largest domains are the first that cannot take their share.
    while open_domains:
        _, nodes = open_domains.popitem()
        others = sum(map(len, open_domains.values()))
        share = min(left * len(nodes) / (len(nodes) + others), float(most))
        for node in nodes:
            even[node] = share / len(nodes)
        left -= share
    return even
