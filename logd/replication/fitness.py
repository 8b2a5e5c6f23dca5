"""Which nodes, although they are alive, are unfit for something.

A disk that is full takes no records, one that fails may fail again, and who has no descriptors left
refuses clients.  Each node knows this of itself and says it with every ping; what is said of others
is forgotten when they go down.  What follows from it is decided by whoever looks: what a follower
is sent, who is given to lead, where partitions are placed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from logd.replication.peer_protocol import ClusterView, Ping
from logd.types import NodeId

CROWDED_S: Final = 60.0
"""A node that had to refuse a client is taken for crowded for so long: with what it leads it gives
its clients away, and they would all be back at once."""


class Fitness:
    """What one node knows of itself and the others."""

    def __init__(self, node: NodeId, on_room: Callable[[NodeId], None]) -> None:
        """``on_room`` is called with each node whose disk was full and is not any more."""
        self._node = node
        self._on_room = on_room
        self.full_disks: dict[NodeId, None] = {}
        """Live nodes, perhaps this one, whose disks have little left: that is not for records."""
        self.failing_disks: dict[NodeId, None] = {}
        """Those, too, on which replicas have failed: others may, as soon as they write."""
        self.crowded_peers: dict[NodeId, None] = {}
        """Those that are alive and refuse clients, or did a while ago."""
        self._crowded_until = -math.inf

    @property
    def is_crowded(self) -> bool:
        """Whether this node refuses clients, or did a while ago: others had better lead."""
        return trio.current_time() < self._crowded_until

    def note_crowd(self) -> None:
        """A client had to be refused here, for want of descriptors."""
        self._crowded_until = trio.current_time() + CROWDED_S

    def note_failure(self) -> None:
        """A replica here has failed because of its disk."""
        self.failing_disks[self._node] = None

    def note_disk(self, node: NodeId, *, is_full: bool) -> None:
        """Whether a node, or this one, has so little room left that it takes no more records."""
        if is_full:
            self.full_disks[node] = None
        elif node in self.full_disks:
            del self.full_disks[node]
            self._on_room(node)

    def ping(self, view: ClusterView | None = None, claims_digest: int | None = None) -> Ping:
        """What this node says of itself, with what else is to be said."""
        return Ping(
            view=view,
            claims_digest=claims_digest,
            disk_full=self._node in self.full_disks,
            disk_failing=self._node in self.failing_disks,
            is_crowded=self.is_crowded,
        )

    def take(self, source: NodeId, ping: Ping) -> None:
        """A peer has said how it is."""
        if ping.disk_full is not None:
            self.note_disk(source, is_full=ping.disk_full)
            _note(self.failing_disks, source, ping.disk_failing)
        _note(self.crowded_peers, source, ping.is_crowded)

    def forget(self, node: NodeId) -> None:
        """``node`` is down: nobody knows how it will come back."""
        for unfit in (self.full_disks, self.failing_disks, self.crowded_peers):
            unfit.pop(node, None)


def _note(unfit: dict[NodeId, None], node: NodeId, holds: bool) -> None:
    if holds:
        unfit[node] = None
    else:
        unfit.pop(node, None)
