"""What the planner looks at: brokers, partitions with their weights, and what is wanted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from logd.limits import PLAN_MOVES_MAX
from logd.metadata.moves import THROTTLE_BYTES_PER_S_DEFAULT
from logd.types import GroupId, NodeId, TopicPartition

TOLERANCE_DEFAULT: Final = 0.05
"""A broker within this share of an even load is left alone: the last few percent cost as many
bytes as the first, and move again with the next hour's traffic."""

EVALUATIONS_DEFAULT: Final = 100_000
"""About a second, where no plan is found that is provably good.  Thrice as many spare one or two
percent of the bytes."""


DISK_SHARE_MAX: Final = 0.9
"""Of what a broker has free above its minimum: so much a plan may fill."""


class BrokerLoad(NamedTuple):
    """One broker, as a place for replicas."""

    node: NodeId
    failure_domain: str
    rack: str = ""
    is_draining: bool = False
    """Its replicas are to go, and none may come."""
    is_dead: bool = False
    """It has been away for too long: its replicas are to be built anew elsewhere."""
    bytes_max: int | None = None
    """Bytes of partitions that its disk can hold; None: not known, so not looked at."""

    @property
    def is_target(self) -> bool:
        return not self.is_draining and not self.is_dead


class PartitionLoad(NamedTuple):
    """One partition, and what each of its replicas weighs."""

    group: GroupId
    name: TopicPartition
    replicas: tuple[NodeId, ...]
    """The first is the preferred leader."""
    size_bytes: int
    write_bytes_per_s: int = 0
    """Each replica writes all of it, so it weighs the same wherever a replica is."""
    replica_count: int | None = None
    """Replicas it shall have; None: as many as it has."""

    @property
    def wanted_count(self) -> int:
        return len(self.replicas) if self.replica_count is None else self.replica_count


class Stranded(NamedTuple):
    """A partition that nobody can lead, because too few of its replicas are alive.

    Only its leader could move it, so a plan leaves it where it is: it would wait for ever.
    """

    name: TopicPartition
    replicas: tuple[NodeId, ...]
    dead: tuple[NodeId, ...]
    """Those of its replicas that are away: with enough of them back it goes on."""


def is_majority_alive(replicas: Collection[int], dead: Collection[int]) -> bool:
    """Whether a partition with these replicas can have a leader."""
    return 2 * sum(node not in dead for node in replicas) > len(replicas)


class Goals(NamedTuple):
    """What a plan is for.

    Always: replicas in different failure domains and racks, as many as wanted, none on brokers
    that are draining or dead.  With ``is_balancing`` also an even load, in this order: replica
    counts, leader counts, bytes, traffic.  Among layouts that are equally good, the one that
    moves the fewest bytes.
    """

    is_balancing: bool = True
    tolerance: float = TOLERANCE_DEFAULT
    throttle_bytes_per_s: int = THROTTLE_BYTES_PER_S_DEFAULT
    moves_max: int = PLAN_MOVES_MAX
    evaluations_max: int = EVALUATIONS_DEFAULT
    """How thoroughly to look for a plan that moves fewer bytes."""
    gain_min: float = 0.0
    """A layout that is more even by less is not worth its moves, in shares of what a broker should
    hold: small partitions would go to and fro for ever beside a large one that fits nowhere.
    What must be moved is moved all the same."""
