"""Counting majorities, of one set of voters or, in joint consensus, of both.

Learners never count.  A set without voters has no quorum.
"""

from __future__ import annotations

from collections.abc import Callable

from logd.raft.messages import Configuration
from logd.types import NodeId


def majority(count: int) -> int:
    """How many of ``count`` voters are more than half of them."""
    return count // 2 + 1


def is_quorum(configuration: Configuration, agrees: Callable[[NodeId], bool]) -> bool:
    """Whether those who agree are a majority of each set of voters."""
    if not _is_majority(configuration.voters, agrees):
        return False
    outgoing = configuration.voters_outgoing
    return not outgoing or _is_majority(outgoing, agrees)


def quorum_value(configuration: Configuration, value: Callable[[NodeId], int]) -> int:
    """The largest value that a quorum has reached: each of its voters is there or beyond."""
    reached = _majority_value(configuration.voters, value)
    outgoing = configuration.voters_outgoing
    return min(reached, _majority_value(outgoing, value)) if outgoing else reached


def is_voter(configuration: Configuration, node: NodeId) -> bool:
    """Whether ``node`` counts in quorums."""
    return node in configuration.voters or node in configuration.voters_outgoing


def _is_majority(voters: tuple[NodeId, ...], agrees: Callable[[NodeId], bool]) -> bool:
    return sum(map(agrees, voters)) >= majority(len(voters))


def _majority_value(voters: tuple[NodeId, ...], value: Callable[[NodeId], int]) -> int:
    return sorted(map(value, voters), reverse=True)[majority(len(voters)) - 1]
