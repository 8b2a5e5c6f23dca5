"""A layout that is being worked out: who holds what, and what that costs.

The *cost* of a layout are the penalties of its brokers for loads outside their ranges, of its
partitions for replicas that would fail together, and the bytes that must move to get there.
The weights are a hundred and more apart, which is what "in order of importance" means here; a
penalty grows faster than its excess, so that of two brokers out of range the worse one is
helped first.

A draft works on positions in lists instead of ids: brokers by node id, partitions in the order
given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from logd.metadata.rebalance.cluster import BrokerLoad, PartitionLoad
from logd.metadata.rebalance.shares import Ranges
from logd.types import NodeId

DOMAIN_WEIGHT: Final = 1e12
"""Per pair of replicas that share a failure domain."""

RACK_WEIGHT: Final = 1e10
ROOM_WEIGHT: Final = 1e8
"""Per share of bytes that a disk cannot hold."""

REPLICAS_WEIGHT: Final = 1e6
BYTES_WEIGHT: Final = 1e4
TRAFFIC_WEIGHT: Final = 1e2

GAIN_MIN: Final = 1e-12
"""Less is rounding."""


class Step(NamedTuple):
    """Replica of ``partition`` from ``source`` to ``target``; with ``other`` an exchange: its
    replica goes the other way."""

    partition: int
    source: int
    target: int
    other: int | None = None


class Draft:
    """Who holds what, and what that costs."""

    def __init__(
        self,
        brokers: Sequence[BrokerLoad],
        partitions: Sequence[PartitionLoad],
        ranges: Mapping[NodeId, Ranges],
    ) -> None:
        position = {broker.node: at for at, broker in enumerate(brokers)}
        self.brokers = brokers
        self.targets = [at for at, broker in enumerate(brokers) if broker.is_target]
        self.is_target = [broker.is_target for broker in brokers]
        self.sizes = [partition.size_bytes for partition in partitions]
        self.rates = [partition.write_bytes_per_s for partition in partitions]
        self.wanted = [partition.wanted_count for partition in partitions]
        self.holders = [[position[node] for node in p.replicas] for p in partitions]
        self.original = [frozenset(holders) for holders in self.holders]
        self.on: list[dict[int, None]] = [{} for _ in brokers]
        self.replica_loads = [0] * len(brokers)
        self.byte_loads = [0] * len(brokers)
        self.traffic_loads = [0] * len(brokers)
        self.ranges = [ranges.get(broker.node) for broker in brokers]
        self._domains = [broker.failure_domain for broker in brokers]
        self._racks = [broker.rack for broker in brokers]
        self._domain_count = len({brokers[at].failure_domain for at in self.targets})
        self._rack_count = len({brokers[at].rack for at in self.targets})
        self._is_always_apart = self._rack_count == 1 and self._domain_count == len(self.targets)
        self._bounds = [
            None if ranges is None else _bounds(ranges, broker.bytes_max)
            for ranges, broker in zip(self.ranges, brokers, strict=True)
        ]
        self._bytes_total = max(1, sum(map(int.__mul__, self.sizes, self.wanted)))
        for partition, holders in enumerate(self.holders):
            for broker in holders:
                self._count(partition, broker, 1)

    # --- cost -------------------------------------------------------------------------------

    def penalty(self, broker: int, replicas: int, size: int, traffic: int) -> float:
        """What a broker with these loads adds to the cost."""
        bounds = self._bounds[broker]
        if bounds is None:
            return 0.0
        (
            replicas_low, replicas_high,
            size_low, size_high, size_even,
            traffic_low, traffic_high, traffic_even,
            room,
        ) = bounds  # fmt: skip
        total = 0.0
        if not replicas_low <= replicas <= replicas_high:
            over = replicas > replicas_high
            excess = float(replicas - replicas_high if over else replicas_low - replicas)
            total += REPLICAS_WEIGHT * excess * (1 + excess)
        if not size_low <= size <= size_high:
            excess = (size - size_high if size > size_high else size_low - size) / size_even
            total += BYTES_WEIGHT * excess * (1 + excess)
        if not traffic_low <= traffic <= traffic_high:
            excess = traffic - traffic_high if traffic > traffic_high else traffic_low - traffic
            excess /= traffic_even
            total += TRAFFIC_WEIGHT * excess * (1 + excess)
        if room is not None and size > room:
            total += ROOM_WEIGHT * (1 + (size - room) / size_even)
        return total

    def penalty_now(self, broker: int) -> float:
        return self.penalty(
            broker,
            self.replica_loads[broker],
            self.byte_loads[broker],
            self.traffic_loads[broker],
        )

    def penalty_with(self, broker: int, partition: int, count: int) -> float:
        """As ``penalty_now``, with ``count`` replicas of ``partition`` more."""
        return self.penalty(
            broker,
            self.replica_loads[broker] + count,
            self.byte_loads[broker] + count * self.sizes[partition],
            self.traffic_loads[broker] + count * self.rates[partition],
        )

    def togetherness(self, partition: int, broker: int, leaving: int | None = None) -> float:
        """What a replica on ``broker`` costs for sharing its domain or rack with the others."""
        total = 0.0
        for holder in self.holders[partition]:
            if holder != leaving and holder != broker:
                if self._domains[holder] == self._domains[broker]:
                    total += DOMAIN_WEIGHT
                if self._rack_count > 1 and self._racks[holder] == self._racks[broker]:
                    total += RACK_WEIGHT
        return total

    def is_apart(self, partition: int) -> bool:
        """Its replicas share domains and racks no more than their number makes them."""
        holders = self.holders[partition]
        return all(
            max(Counter(names[broker] for broker in holders).values()) <= -(-len(holders) // count)
            for names, count in (
                (self._domains, self._domain_count),
                (self._racks, self._rack_count),
            )
        )

    def cost(self) -> float:
        """Of the whole layout, but for what its replicas share, which steps account for."""
        return sum(map(self.penalty_now, self.targets)) + self.bytes_moved / self._bytes_total

    def unevenness(self) -> tuple[int, float, float, float]:
        """How many partitions have replicas that would fail together although they need not; and
        how far the brokers are out of their ranges, in shares of an even load, added up: by
        replicas, bytes and traffic."""
        together = sum(not self.is_apart(partition) for partition in range(len(self.holders)))
        out = [0.0, 0.0, 0.0]
        for broker in self.targets:
            ranges = self.ranges[broker]
            assert ranges is not None
            loads = (self.replica_loads, self.byte_loads, self.traffic_loads)
            for at, (even, load) in enumerate(zip(ranges, loads, strict=True)):
                out[at] += even.excess(load[broker]) / max(1.0, even.even)
        return together, out[0], out[1], out[2]

    @property
    def bytes_moved(self) -> int:
        return sum(
            size * sum(broker not in original for broker in holders)
            for size, holders, original in zip(self.sizes, self.holders, self.original, strict=True)
        )

    def gain(self, step: Step) -> float:
        """By how much a step lowers the cost; negative if it raises it."""
        partition, source, target, other = step
        if other is None:
            before = self.penalty_now(source) + self.penalty_now(target)
            after = self.penalty_with(source, partition, -1) + self.penalty_with(
                target, partition, 1
            )
            return before - after + self._gain_of_one(partition, source, target)
        size = self.sizes[other] - self.sizes[partition]
        traffic = self.rates[other] - self.rates[partition]
        gain = self._gain_of_one(partition, source, target)
        gain += self._gain_of_one(other, target, source)
        for broker, sign in ((source, 1), (target, -1)):
            gain += self.penalty_now(broker) - self.penalty(
                broker,
                self.replica_loads[broker],
                self.byte_loads[broker] + sign * size,
                self.traffic_loads[broker] + sign * traffic,
            )
        return gain

    def _gain_of_one(self, partition: int, source: int, target: int) -> float:
        """What a replica's way from ``source`` to ``target`` gains apart from the loads."""
        original = self.original[partition]
        gain = 0.0
        if (source in original) != (target in original):
            # One more, so that an empty partition is not moved for nothing either.
            moved = (self.sizes[partition] + 1) / self._bytes_total
            gain += -moved if source in original else moved
        if not self._is_always_apart:
            # Taken together: next to one of these weights the bytes would be rounded away.
            gain += self.togetherness(partition, source, source) - self.togetherness(
                partition, target, source
            )
        return gain

    # --- change -----------------------------------------------------------------------------

    def take(self, step: Step) -> None:
        partition, source, target, other = step
        self.relocate(partition, source, target)
        if other is not None:
            self.relocate(other, target, source)

    def relocate(self, partition: int, source: int, target: int) -> None:
        holders = self.holders[partition]
        assert target not in holders
        holders[holders.index(source)] = target
        self._count(partition, source, -1)
        self._count(partition, target, 1)

    def add(self, partition: int, broker: int) -> None:
        assert broker not in self.holders[partition]
        self.holders[partition].append(broker)
        self._count(partition, broker, 1)

    def remove(self, partition: int, broker: int) -> None:
        self.holders[partition].remove(broker)
        self._count(partition, broker, -1)

    def _count(self, partition: int, broker: int, sign: int) -> None:
        self.replica_loads[broker] += sign
        self.byte_loads[broker] += sign * self.sizes[partition]
        self.traffic_loads[broker] += sign * self.rates[partition]
        if sign > 0:
            self.on[broker][partition] = None
        else:
            del self.on[broker][partition]

    # --- placing ----------------------------------------------------------------------------

    def best_place(self, partition: int, leaving: int | None = None) -> int | None:
        """The broker that can best take a replica; None if every one holds one already."""
        holders = self.holders[partition]
        best: tuple[float, float, int] | None = None
        for broker in self.targets:
            if broker in holders:
                continue
            cost = (
                self.togetherness(partition, broker, leaving)
                + self.penalty_with(broker, partition, 1)
                - self.penalty_now(broker)
            )
            if broker in self.original[partition]:
                cost -= self.sizes[partition] / self._bytes_total
            found = (cost, self._fill(broker), broker)
            if best is None or found < best:
                best = found
        return None if best is None else best[2]

    def _fill(self, broker: int) -> float:
        """How full a broker is, in shares of its even load."""
        ranges = self.ranges[broker]
        assert ranges is not None
        return (
            self.replica_loads[broker] / max(1.0, ranges.replicas.even)
            + self.byte_loads[broker] / max(1.0, ranges.bytes.even)
            + self.traffic_loads[broker] / max(1.0, ranges.traffic.even)
        )


def _bounds(
    ranges: Ranges, room: int | None
) -> tuple[int, int, int, int, float, int, int, float, int | None]:
    """The numbers of ``ranges`` in one flat tuple, which the innermost loop unpacks at once."""
    replicas, size, traffic = ranges
    return (
        replicas.low, replicas.high,
        size.low, size.high, max(1.0, size.even),
        traffic.low, traffic.high, max(1.0, traffic.even),
        room,
    )  # fmt: skip
