"""Where the replicas of a new topic go: a pure function from brokers to lists of nodes.

Every broker computes the placement when it applies the command, so the same brokers must
give the same placement, always: ties are broken by node id, and **the result is part of the
meaning of the metadata log**.  A better rule is a new rule, chosen by a new field of the
command; golden tests hold this one still.

A topic is spread over all brokers before anything else is evened out, because partitions of
one topic are busy together: a broker that was just added gets its share of the new topic,
not all of it.  What the brokers hold already decides who gets what cannot be shared evenly,
which for topics of few partitions is everything.

Leaders (the first replica) take turns: each broker leads one partition before any leads a
second.  Then, in order of importance, for each other replica:

1. a failure domain (a host) that holds the fewest replicas of this partition,
2. a rack that does,
3. the broker with the fewest replicas of the topic, then of all, then the lowest id.

Rule 1 before 3 means that a cluster of unequal hosts is unequally loaded rather than
unsafely placed.  The second replica campaigns first when the leader dies, so the others are
ordered to give each leader's partitions to different successors.

Brokers that a command tells to avoid, because they are down, are passed over as long as there are
enough others, before any of these rules: a replica beside another one of its host is worth more
than one that is not there.  If there are too few others, each partition is on all of them, and
has the rest of its replicas on those to avoid, last in the list: so a topic can be created while
a broker is away, and waits for nobody to lead it.

Those whose disks are full or failing the controller tells to avoid likewise, if the others are a
majority of each partition's replicas: then it takes records at once.  Otherwise it takes none
whatever is done, and these brokers, which vote at least, are worth more than those that are down.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from logd.errors import InvalidPartitionError, InvalidRequestError, NotEnoughBrokersError
from logd.limits import PARTITIONS_PER_TOPIC_MAX, REPLICAS_MAX
from logd.types import NodeId
from logd.wording import are, count_of

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
    avoid: Collection[NodeId] = (),
) -> tuple[tuple[NodeId, ...], ...]:
    """Choose the replicas of each partition, preferred leader first.

    Args:
        partitions: how many, 1 to ``PARTITIONS_PER_TOPIC_MAX``.
        replicas: of each partition; None: min(3, brokers).
        brokers: those that may hold replicas, with what they hold already.
        avoid: those of them that hold any only if the others are too few.

    Raises:
        InvalidPartitionError: ``partitions`` is out of range.
        NotEnoughBrokersError: ``replicas`` exceeds these brokers.
        InvalidRequestError: ``replicas`` is less than 1 or more than ``REPLICAS_MAX``.
    """
    if not 1 <= partitions <= PARTITIONS_PER_TOPIC_MAX:
        raise InvalidPartitionError(
            f"{partitions} partitions, a topic has 1 to {PARTITIONS_PER_TOPIC_MAX}"
        )
    replica_count = _replica_count(replicas, len(brokers))
    avoided = set(avoid)
    preferred = {node: info for node, info in brokers.items() if node not in avoided} or brokers
    missing = max(0, replica_count - len(preferred))
    planner = _Planner(preferred, preferred)
    reserve = _Planner(brokers, [node for node in brokers if node not in preferred])
    return tuple(
        reserve.extended(planner.next_partition(replica_count - missing), missing)
        for _ in range(partitions)
    )


def to_avoid(
    replicas: int | None,
    brokers: Collection[NodeId],
    down: Collection[NodeId],
    unfit: Collection[NodeId],
) -> tuple[NodeId, ...]:
    """Whom the controller tells a command to avoid.

    Args:
        replicas: of each partition, as for ``place``.
        brokers: those that may hold replicas.
        down: those that are not alive.
        unfit: those whose disks are full or failing.
    """
    fit = [node for node in brokers if node not in down and node not in unfit]
    serves = 2 * len(fit) > _count_asked(replicas, len(brokers))
    return tuple(sorted({*down, *unfit} if serves else down))


def _count_asked(replicas: int | None, available: int) -> int:
    return min(REPLICAS_DEFAULT, max(1, available)) if replicas is None else replicas


def _replica_count(asked: int | None, available: int) -> int:
    count = _count_asked(asked, available)
    if count < 1:
        raise InvalidRequestError(f"{count} replicas, a partition has 1 to {REPLICAS_MAX}")
    if count > available:
        raise NotEnoughBrokersError(
            f"a partition of {count_of(count, 'replica')} needs as many brokers; "
            f"{available} {are(available)} registered and not draining"
        )
    if count > REPLICAS_MAX:
        raise InvalidRequestError(f"{count} replicas, a partition has 1 to {REPLICAS_MAX}")
    return count


class _Load(NamedTuple):
    """A broker in order of preference: the least loaded first."""

    in_topic: int
    """Replicas of the topic that is being placed."""
    in_others: int
    node: NodeId


class _Planner:
    """The loads while a topic is being placed.

    Brokers are kept in order of load, so that a search usually ends at one of the first: 10,000
    partitions on 1,000 brokers must not stop a broker for seconds.
    """

    def __init__(
        self, brokers: Mapping[NodeId, BrokerPlacementInfo], candidates: Collection[NodeId]
    ) -> None:
        """
        Args:
            brokers: those on which the partitions may have replicas.
            candidates: those of them among which this chooses.
        """
        self._brokers = brokers
        self._loads = {node: _Load(0, brokers[node].replica_count, node) for node in candidates}
        self._by_load = sorted(self._loads.values())
        self._turns: list[set[NodeId]] = []
        self._domain_count = len({info.failure_domain for info in brokers.values()})
        self._rack_count = len({info.rack for info in brokers.values()})
        self._successions: Counter[tuple[NodeId, NodeId]] = Counter()

    def next_partition(self, replica_count: int) -> tuple[NodeId, ...]:
        """Replicas of one more partition, in order; their load is counted."""
        leader = self._next_leader()
        others = sorted(
            self._others([leader], replica_count - 1),
            key=lambda node: (self._successions[leader, node], node),
        )
        if others:
            self._successions[leader, others[0]] += 1
        for node in (leader, *others):
            self._add_load(node)
        return (leader, *others)

    def extended(self, replicas: Sequence[NodeId], count: int) -> tuple[NodeId, ...]:
        """``replicas``, and ``count`` more behind them; the load of those is counted."""
        others = self._others(replicas, count)
        for node in others:
            self._add_load(node)
        return (*replicas, *others)

    def _next_leader(self) -> NodeId:
        """The least loaded of those whose turn it is."""
        if not self._turns:
            self._turns = self._next_round()
        turn = self._turns[-1]
        leader = next(load.node for load in self._by_load if load.node in turn)
        turn.remove(leader)
        if not turn:
            self._turns.pop()
        return leader

    def _next_round(self) -> list[set[NodeId]]:
        """Every broker once; those that lead the fewest partitions already stand last, and
        are taken first."""
        by_count: dict[int, set[NodeId]] = {}
        for node, info in self._brokers.items():
            by_count.setdefault(info.leader_count, set()).add(node)
        return [by_count[count] for count in sorted(by_count, reverse=True)]

    def _others(self, replicas: Sequence[NodeId], count: int) -> list[NodeId]:
        chosen = list(replicas)
        domains = Counter(self._brokers[node].failure_domain for node in replicas)
        racks = Counter(self._brokers[node].rack for node in replicas)
        for _ in range(count):
            node = self._best(chosen, domains, racks)
            chosen.append(node)
            domains[self._brokers[node].failure_domain] += 1
            racks[self._brokers[node].rack] += 1
        return chosen[len(replicas) :]

    def _best(
        self, chosen: list[NodeId], domains: Mapping[str, int], racks: Mapping[str, int]
    ) -> NodeId:
        """The broker least used by this partition; of those, the first in order of load."""
        unbeatable = (
            _least_used(domains, self._domain_count),
            _least_used(racks, self._rack_count),
        )
        best: NodeId | None = None
        best_use = unbeatable
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

    def _add_load(self, node: NodeId) -> None:
        old = self._loads[node]
        del self._by_load[bisect_left(self._by_load, old)]
        new = old._replace(in_topic=old.in_topic + 1)
        insort(self._by_load, new)
        self._loads[node] = new


def _least_used(used: Mapping[str, int], count: int) -> int:
    """The smallest number of uses among ``count`` names, of which ``used`` lists the used."""
    return min(used.values()) if len(used) == count else 0
