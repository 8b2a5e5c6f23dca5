"""One failure detector per node pair, for all the groups the two share.

Any received byte is life.  A node is given up when nothing was heard for
``timeout_ms``, or at once when its connections were reset and the next one is refused: then
nobody is there.  A node that comes back in a new incarnation was gone in between, even if
nobody noticed: what was known of the old one ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from logd.types import NodeId


class Change(Enum):
    """What became of a node."""

    UP = "up"
    DOWN = "down"
    RESTARTED = "restarted"


@dataclass(slots=True)
class _Peer:
    heard_ms: int = 0
    is_up: bool = False
    incarnation: int = 0
    connections: int = 0


class FailureDetector:
    """Pure bookkeeping: the caller supplies the time."""

    def __init__(self, peers: tuple[NodeId, ...], timeout_ms: int) -> None:
        assert timeout_ms > 0
        self._timeout_ms = timeout_ms
        self._peers = {peer: _Peer() for peer in peers}

    def add(self, node: NodeId) -> None:
        """Another peer; it counts as dead until it is heard."""
        self._peers.setdefault(node, _Peer())

    def is_up(self, node: NodeId) -> bool:
        """Whether the node counts as alive.  Unknown nodes do not."""
        peer = self._peers.get(node)
        return peer is not None and peer.is_up

    def up(self) -> list[NodeId]:
        """All peers that are alive."""
        return [node for node, peer in self._peers.items() if peer.is_up]

    def accepted(self, node: NodeId, incarnation: int, now_ms: int) -> Change | None:
        """A connection from ``node`` was accepted and greeted."""
        peer = self._peers[node]
        restarted = peer.is_up and peer.incarnation != incarnation
        came = not peer.is_up
        peer.incarnation = incarnation
        peer.connections += 1
        peer.heard_ms = now_ms
        peer.is_up = True
        if restarted:
            return Change.RESTARTED
        return Change.UP if came else None

    def closed(self, node: NodeId) -> None:
        """A connection from ``node`` ended."""
        peer = self._peers[node]
        assert peer.connections > 0
        peer.connections -= 1

    def heard(self, node: NodeId, now_ms: int) -> Change | None:
        """Bytes arrived from ``node``."""
        peer = self._peers[node]
        peer.heard_ms = now_ms
        if not peer.is_up:
            peer.is_up = True
            return Change.UP
        return None

    def nobody_there(self, node: NodeId) -> Change | None:
        """A connection to ``node`` was refused.  It is down unless one from it still stands."""
        peer = self._peers[node]
        if peer.is_up and peer.connections == 0:
            peer.is_up = False
            return Change.DOWN
        return None

    def expire(self, now_ms: int) -> list[NodeId]:
        """Give up, and return, the nodes that were not heard for too long."""
        gone = []
        for node, peer in self._peers.items():
            if peer.is_up and now_ms - peer.heard_ms >= self._timeout_ms:
                peer.is_up = False
                gone.append(node)
        return gone
