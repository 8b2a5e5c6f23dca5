"""Who says that it leads what, and what follows if somebody does not say so.

There are no heartbeats per group.  A node says which groups it leads, all of them, whenever that
changes and to whoever connects; as long as it lives that holds.  A leader that is missing from
its own node's claims is given up at once, however alive the node is.

Claims are not acknowledged, and so one may be lost, or forgotten with a node that seemed dead for
a moment.  Every few seconds the sign of life carries a digest of what is claimed; who knows
something else asks for all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.raft.messages import LeaderDisclaimed
from logd.replication import log_events
from logd.replication.peer_protocol import Claims, Ping, digest_of
from logd.types import GroupId, NodeId, Term

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logd.replication.node import Node

log = structlog.get_logger(__name__)

CLAIM_ROUNDS_MAX: Final = 2
"""Signs of life without a claim after which a leader is not believed: its claim follows its
first message on the same connection."""

CLAIMS_COMPARED_EVERY_S: Final = 3.0
"""An announcement that did not arrive, or was forgotten with a node that seemed dead for a
moment, is made up for within this time."""


class LeaderClaims:
    """The claims of one node's peers, and its own."""

    __slots__ = (
        "_by_peer",
        "_compare_at",
        "_digest_by_peer",
        "_node",
        "_own_digest",
        "_unclaimed",
        "are_dirty",
    )

    def __init__(self, node: Node, peers: Iterable[NodeId]) -> None:
        self._node = node
        self._by_peer: dict[NodeId, dict[int, int]] = {peer: {} for peer in peers}
        """What each claims: group → term."""
        self._digest_by_peer: dict[NodeId, int] = {}
        """Of that, as far as it was worked out."""
        self._own_digest: int | None = None
        self._unclaimed: dict[GroupId, int] = {}
        """Groups whose leader was learnt from its messages → rounds without its claim."""
        self._compare_at = 0.0
        self.are_dirty = False
        """This node's own have changed, and the peers have not been told yet."""

    # --- of peers -----------------------------------------------------------------------------

    def add_peer(self, peer: NodeId) -> None:
        """``peer`` is a broker of this cluster; what it claims is not known yet."""
        self._by_peer.setdefault(peer, {})

    def knows(self, peer: NodeId) -> bool:
        """Whether ``peer`` was ever a broker of this cluster, as far as is known here."""
        return peer in self._by_peer

    def forget(self, peer: NodeId) -> None:
        """``peer`` is dead: it leads nothing."""
        self._set(peer, {})

    def leader_of(self, group_id: GroupId) -> tuple[NodeId | None, Term]:
        """Who claims a group in the latest term, of those that are alive."""
        best: tuple[NodeId | None, Term] = (None, Term(0))
        for peer, claims in self._by_peer.items():
            term = claims.get(group_id, 0)
            if term > best[1] and self._node.is_up(peer):
                best = (peer, Term(term))
        return best

    def take(self, source: NodeId, claims: dict[int, int]) -> None:
        """``source`` leads these groups in these terms, and no others."""
        self._set(source, claims)
        self._node.tell_leadership_news()
        for group in list(self._node.groups.values()):
            core = group.core
            if core.leader == source and claims.get(group.group_id, 0) < core.term:
                group.post(LeaderDisclaimed(source, core.term))

    def _set(self, peer: NodeId, claims: dict[int, int]) -> None:
        self._by_peer[peer] = claims
        self._digest_by_peer.pop(peer, None)

    def leader_learnt(self, group_id: GroupId) -> None:
        """A group has another leader, or none: its claim is to come."""
        self._unclaimed[group_id] = 0

    def check(self) -> None:
        """Give up leaders that were learnt from messages which they have outlived.

        A leader that fails says so at once, and what it sent before may be taken up later: it
        waited for this node's disk, or came on the other lane.  Claims are not repeated, and
        as long as its node is alive such a leader would be believed.
        """
        unclaimed, self._unclaimed = self._unclaimed, {}
        for group_id, rounds in unclaimed.items():
            group = self._node.groups.get(group_id)
            leader = None if group is None else group.core.leader
            if group is None or leader is None or leader == self._node.node:
                continue
            if self._by_peer[leader].get(group_id, 0) >= group.core.term:
                continue
            if rounds < CLAIM_ROUNDS_MAX:
                self._unclaimed[group_id] = rounds + 1
            else:
                group.post(LeaderDisclaimed(leader, group.core.term))

    # --- of this node -------------------------------------------------------------------------

    def changed(self) -> None:
        """This node leads other groups than it did, or in another term."""
        self.are_dirty = True
        self._own_digest = None

    def own(self) -> Claims:
        """All that this node leads."""
        groups = self._node.groups.values()
        return Claims(groups=[(g.group_id, g.core.term) for g in groups if g.is_leader])

    # --- comparing ----------------------------------------------------------------------------

    def digest_if_due(self) -> int | None:
        """What a sign of life says of this node's own claims now and then, to be compared."""
        if trio.current_time() >= self._compare_at and not self.are_dirty:
            self._compare_at = trio.current_time() + CLAIMS_COMPARED_EVERY_S
            if self._own_digest is None:
                self._own_digest = digest_of(self.own().groups)
            return self._own_digest
        return None

    def compare(self, source: NodeId, ping: Ping) -> None:
        """Answer what a sign of life asks and says about claims."""
        if ping.wants_claims:
            self._node.send_peer(source, self.own())
        if ping.claims_digest is not None and ping.claims_digest != self._digest_of(source):
            log.info(log_events.CLAIMS_MISSED, peer=source)
            self._node.send_peer(source, Ping(wants_claims=True))

    def _digest_of(self, peer: NodeId) -> int:
        digest = self._digest_by_peer.get(peer)
        if digest is None:
            digest = self._digest_by_peer[peer] = digest_of(self._by_peer[peer].items())
        return digest
