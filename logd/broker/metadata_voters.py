"""Which brokers vote in the metadata log: an odd number, from as many failure domains as there are.

What fails together shall not be a majority of them, if that can be had: with several brokers on
each machine, one machine would stop the metadata log.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from logd.limits import METADATA_VOTERS_MAX
from logd.types import NodeId

WORTH_A_CHANGE: Final = 2
"""A failure domain gives a vote to one that has so many fewer: a difference of one stays."""


def voters_wanted(brokers: int) -> int:
    """How many of so many brokers vote in the metadata log: an odd number, and not many."""
    return next(count for count in (METADATA_VOTERS_MAX, 3, 1, 0) if count <= brokers)


def choose_voters(
    voters: Sequence[NodeId],
    heirs: Collection[NodeId],
    domains: Mapping[NodeId, str],
    *,
    lost: Collection[NodeId],
    controller: NodeId,
) -> list[NodeId]:
    """Who shall vote: the present voters, with as little changed as has to be.

    Args:
        voters: who votes now and is still a broker.
        heirs: who could: alive, and has caught up.
        domains: failure domain of every registered broker.
        lost: brokers that were given up.  One that votes is replaced if there is an heir; it
            follows when it comes back, and no second failure stops the metadata log meanwhile.
        controller: it votes, and goes on to.
    """
    chosen = list(voters)
    left = sorted(heirs)

    def crowding(node: NodeId) -> int:
        domain = domains.get(node)
        if domain is None:
            return 1  # It votes, and has not been registered yet.
        return sum(domains.get(voter) == domain for voter in chosen)

    def take_heir() -> NodeId:
        heir = min(left, key=crowding)
        left.remove(heir)
        return heir

    for at, node in enumerate(voters):
        if node in lost and left:
            chosen[at] = take_heir()
    while left and len(chosen) < voters_wanted(len(domains)):
        chosen.append(take_heir())
    while left:
        crowded = max((node for node in chosen if node != controller), key=crowding, default=None)
        if crowded is None or crowding(crowded) - min(map(crowding, left)) < WORTH_A_CHANGE:
            break
        chosen[chosen.index(crowded)] = take_heir()
    return chosen
