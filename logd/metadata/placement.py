"""Where the replicas of a new topic go: a pure function from brokers to lists of nodes.

Every broker computes the placement when it applies the command, so the same brokers must
give the same placement, always: ties are broken by node id, and **the result is part of the
meaning of the metadata log**.  A better rule is a new rule, chosen by a new field of the
command; golden tests hold this one still.

The rule, in order of importance, for each replica of a partition:

1. a failure domain (a host) that holds the fewest replicas of this partition,
2. a rack that does,
3. the broker with the fewest replicas, then the fewest leaders, then the lowest id.

Rule 1 before 3 means that a cluster of unequal hosts is unequally loaded rather than
unsafely placed.  The first replica is the preferred leader: the one of them that leads the
fewest partitions.  The second campaigns first when it dies, so the others are ordered to
give each leader's partitions to different successors.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from logd.errors import InvalidPartitionError, InvalidRequestError, NotEnoughBrokersError
from logd.limits import PARTITIONS_PER_TOPIC_MAX, REPLICAS_MAX
from logd.types import NodeId

REPLICAS_DEFAULT: Final = 3

assert REPLICAS_DEFAULT <= REPLICAS_MAX


class BrokerPlacementInfo(NamedTuple):
    """What placement may know about a broker."""

    failure_domain: str
    """Brokers that fail together, usually those on one host."""
    rack: str
    replica_count: int
    leader_count: int
    """Partitions whose preferred leader it is."""


def place(
    partitions: int,
    replicas: int | None,
    brokers: Mapping[NodeId, BrokerPlacementInfo],
) -> tuple[tuple[NodeId, ...], ...]:
    """Choose the replicas of each partition, preferred leader first.

    Args:
        partitions: how many, 1 to ``PARTITIONS_PER_TOPIC_MAX``.
        replicas: of each partition; None: min(3, brokers).
        brokers: those that may hold replicas, with what they hold already.

    Raises:
        InvalidPartitionError: ``partitions`` is out of range.
        NotEnoughBrokersError: ``replicas`` exceeds the brokers.
        InvalidRequestError: ``replicas`` is less than 1 or more than ``REPLICAS_MAX``.
    """
    if not 1 <= partitions <= PARTITIONS_PER_TOPIC_MAX:
        raise InvalidPartitionError(
            f"{partitions} partitions, a topic has 1 to {PARTITIONS_PER_TOPIC_MAX}"
        )
    replica_count = _replica_count(replicas, len(brokers))
    planner = _Planner(brokers)
    return tuple(planner.next_partition(replica_count) for _ in range(partitions))


def _replica_count(asked: int | None, registered: int) -> int:
    count = min(REPLICAS_DEFAULT, max(1, registered)) if asked is None else asked
    if count < 1:
        raise InvalidRequestError(f"{count} replicas, a partition has 1 to {REPLICAS_MAX}")
    if count > registered:
        raise NotEnoughBrokersError(
            f"a partition of {count} replicas needs as many brokers; registered: {registered}"
        )
    if count > REPLICAS_MAX:
        raise InvalidRequestError(f"{count} replicas, a partition has 1 to {REPLICAS_MAX}")
    return count


class _Load(NamedTuple):
    """A broker in order of preference: the least loaded first."""

    replica_count: int
    leader_count: int
    node: NodeId


class _Planner:
    """The loads while a topic is being placed.

    Brokers are kept in order of load, so that a search usually ends at one of the first: 10,000
    partitions on 1,000 brokers must not stop a broker for seconds.
    """

    def __init__(self, brokers: Mapping[NodeId, BrokerPlacementInfo]) -> None:
        self._brokers = brokers
        self._loads = {
            node: _Load(info.replica_count, info.leader_count, node)
            for node, info in brokers.items()
        }
        self._by_load = sorted(self._loads.values())
        self._domain_count = len({info.failure_domain for info in brokers.values()})
        self._rack_count = len({info.rack for info in brokers.values()})
        self._successions: Counter[tuple[NodeId, NodeId]] = Counter()

    def next_partition(self, replica_count: int) -> tuple[NodeId, ...]:
        """Replicas of one more partition, in order; their load is counted."""
        nodes = self._choose(replica_count)
        leader = min(nodes, key=lambda node: (self._loads[node].leader_count, node))
        others = sorted(
            (node for node in nodes if node != leader),
            key=lambda node: (self._successions[leader, node], node),
        )
        if others:
            self._successions[leader, others[0]] += 1
        for node in nodes:
            self._add_load(node, leads=node == leader)
        return (leader, *others)

    def _choose(self, replica_count: int) -> list[NodeId]:
        chosen: list[NodeId] = []
        domains: Counter[str] = Counter()
        racks: Counter[str] = Counter()
        for _ in range(replica_count):
            node = self._best(chosen, domains, racks)
            chosen.append(node)
            domains[self._brokers[node].failure_domain] += 1
            racks[self._brokers[node].rack] += 1
        return chosen

    def _best(
        self, chosen: list[NodeId], domains: Mapping[str, int], racks: Mapping[str, int]
    ) -> NodeId:
        """The broker least used by this partition; of those, the first in order of load."""
        unbeatable = (
            _least_used(domains, self._domain_count),
            _least_used(racks, self._rack_count),
        )
        best: NodeId | None = None
        best_use = (0, 0)
        for load in self._by_load:
            if load.node in chosen:
                continue
            info = self._brokers[load.node]
            use = (domains.get(info.failure_domain, 0), racks.get(info.rack, 0))
            if best is None or use < best_use:
                best, best_use = load.node, use
                if use == unbeatable:
                    break
        assert best is not None, "there are at least as many brokers as replicas"
        return best

    def _add_load(self, node: NodeId, *, leads: bool) -> None:
        old = self._loads[node]
        del self._by_load[bisect_left(self._by_load, old)]
        new = _Load(old.replica_count + 1, old.leader_count + leads, node)
        insort(self._by_load, new)
        self._loads[node] = new


def _least_used(used: Mapping[str, int], count: int) -> int:
    """The smallest number of uses among ``count`` names, of which ``used`` lists the used."""
    return min(used.values()) if len(used) == count else 0
