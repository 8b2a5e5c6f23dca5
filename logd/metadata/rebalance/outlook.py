"""What becomes of the replicas on a broker that is missing: said before it is tried.

It tells what the planner will find, without what only the brokers know: whether their disks have
room is seen when a plan is made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from logd.metadata.rebalance.cluster import is_majority_alive
from logd.types import NodeId
from logd.wording import are, count_of


class Outlook(NamedTuple):
    """The replicas of one missing broker, counted by what can be done for them."""

    rebuilt: int
    unplaced: int
    """Every broker that could take it has a replica of the partition already."""
    stranded: int
    """The partition has no leader: too few of its replicas are alive."""

    def text(self, when: str) -> str:
        """For a person; ``when`` says of replicas that can be rebuilt when they are, without the
        verb."""
        total = sum(self)
        parts: list[str] = []
        for count, what in (
            (self.rebuilt, f"{are(self.rebuilt)} {when}"),
            (self.unplaced, "cannot be rebuilt: there is no other broker to take them"),
            (self.stranded, "cannot be rebuilt: too few copies are alive to elect a leader"),
        ):
            if count and parts:
                parts.append(f"{count} {what}")
            elif count:
                which = "its" if count == total else f"{count} of its"
                parts.append(f"{which} {count_of(total, 'replica')} {what}")
        return "; ".join(parts)


def outlook(
    node: NodeId,
    replica_lists: Iterable[Sequence[NodeId]],
    missing: Collection[NodeId],
    takers: Collection[NodeId],
) -> Outlook:
    """What can be done for the replicas on ``node``.

    Args:
        replica_lists: of the partitions that have one there.
        missing: the brokers that are away, ``node`` among them.
        takers: those that may be given replicas.
    """
    assert node in missing
    rebuilt = unplaced = stranded = 0
    for replicas in replica_lists:
        assert node in replicas
        free = sum(taker not in replicas for taker in takers)
        # The planner finds places for them in this order, and before those that are draining.
        waiting = [holder for holder in replicas if holder in missing]
        if not is_majority_alive(replicas, missing):
            stranded += 1
        elif waiting.index(node) < free:
            rebuilt += 1
        else:
            unplaced += 1
    return Outlook(rebuilt, unplaced, stranded)
