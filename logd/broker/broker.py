"""What the parts of one broker share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from logd.broker.recent_events import RecentEvents
from logd.broker.request_room import RequestRoom
from logd.errors import (
    InvalidRequestError,
    LogdError,
    NotLeaderError,
    UnavailableError,
    UnknownTopicError,
)
from logd.limits import ADMIN_TIMEOUT_MS_MAX
from logd.replication.group import Group
from logd.replication.newcomers import Newcomers
from logd.types import METADATA_GROUP, GroupId, HostPort, NodeId

if TYPE_CHECKING:
    from logd.broker.answer_room import SendRoom
    from logd.broker.coordination.service import Coordination
    from logd.broker.disk_guard import DiskGuard
    from logd.broker.frame_room import FrameRoom
    from logd.broker.metadata_service import MetadataService
    from logd.broker.session import Session
    from logd.config import BrokerConfig
    from logd.env import Env
    from logd.replication.membership import Membership
    from logd.replication.node import Node


METADATA_LOG: Final = "the metadata log"
"""What people call group 0."""


def check_timeout(timeout_ms: int) -> None:
    """Accept the time that a request about the cluster gives the broker.

    Raises:
        InvalidRequestError: says what may be given.
    """
    if not 0 < timeout_ms <= ADMIN_TIMEOUT_MS_MAX:
        raise InvalidRequestError(
            f"timeout_ms is {timeout_ms}, expected 1 to {ADMIN_TIMEOUT_MS_MAX}"
        )


class ProduceBudget:
    """Bytes of produce requests that are not answered yet, over all connections.

    A connection takes before it queues a batch and stops reading its socket while the budget
    is exhausted, so the producer's own send blocks: overload slows producers down (P6).
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def has_room(self) -> bool:
        return self._bytes < self._bytes_max

    def take(self, count: int) -> None:
        """Take ``count`` bytes; the last taker may go over by one batch."""
        self._bytes += count

    def give_back(self, count: int) -> None:
        was_exhausted = self._bytes >= self._bytes_max
        self._bytes -= count
        assert self._bytes >= 0
        if was_exhausted and self._bytes < self._bytes_max:
            self._waiting.unpark_all()

    async def room(self) -> None:
        """Wait until there is room."""
        while not self.has_room:
            await self._waiting.park()


@dataclass(slots=True)
class Broker:
    """One running broker."""

    config: BrokerConfig
    env: Env
    node: Node
    membership: Membership
    metadata: MetadataService
    disk: DiskGuard
    budget: ProduceBudget
    frames: FrameRoom
    sends: SendRoom
    coordination: Coordination
    address: HostPort
    """What clients are told."""
    peer_address: HostPort
    """What other brokers are told."""
    started_ms: int
    events: RecentEvents = field(default_factory=RecentEvents)
    sessions: dict[Session, None] = field(default_factory=dict)
    """Connected clients, in the order in which they came."""
    newcomers: Newcomers = field(default_factory=Newcomers)
    """Those of them that have not greeted."""
    requests: RequestRoom = field(default_factory=RequestRoom)
    connections_accepted: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    """Requests that were answered with an error, by its class."""
    is_stopping: bool = False
    lost_brokers: list[NodeId] = field(default_factory=list)
    """Those that the cluster shall do without by now; only the controller knows any."""
    autonomy_waits_until: float = -math.inf
    """A person wants something: until then nothing is begun that nobody has asked for."""
    autonomy_notes: list[str] = field(default_factory=list)
    """What the cluster does by itself, for people; only the controller has any."""

    def count_refusal(self, error: LogdError) -> None:
        """A request is answered with ``error``."""
        name = type(error).__name__
        self.refusals[name] = self.refusals.get(name, 0) + 1

    def group(self, group_id: int) -> Group:
        """The local replica of a group.

        Raises:
            UnknownTopicError: there is no such partition (any more).
            NotLeaderError: it has no replica here; says who leads it.
            UnavailableError: its replica here is not open (yet).
        """
        found = self.node.groups.get(GroupId(group_id))
        if found is not None:
            if found.failure is not None:
                raise self.elsewhere(group_id, f"its replica has failed: {found.failure}")
            return found
        self.check_known()
        placement = self.metadata.state.placement(GroupId(group_id))
        if placement is None:
            raise UnknownTopicError("there is no such partition: it may have been deleted")
        if self.node.node in placement.replicas:
            shut = self.node.shut.get(placement.group)
            why = " yet" if shut is None else f": {shut.reason}"
            raise UnavailableError(f"the replica of {placement.name} is not open{why}")
        raise self.elsewhere(group_id, "it has no replica here")

    def elsewhere(self, group_id: int, reason: str) -> LogdError:
        """Not here: the error that sends a client to the leader."""
        leader, _ = self.node.leader_of(GroupId(group_id))
        if leader == self.node.node:
            leader = None
        return NotLeaderError(
            f"node {self.node.node} does not serve {self.name_of(group_id)}: {reason}", leader
        )

    def name_of(self, group_id: int) -> str:
        """What people call a group."""
        if group_id == METADATA_GROUP:
            return METADATA_LOG
        state = self.metadata.state
        placement = state.placement(GroupId(group_id))
        if placement is not None:
            return str(placement.name)
        return f"a {'deleted' if group_id < state.next_group else 'new'} partition"

    def leading_group(self, group_id: int) -> Group:
        """The local replica of a group that this broker leads and may serve."""
        found = self.group(group_id)
        if not found.is_leader:
            raise found.leadership.not_leader()
        if not found.is_ready:
            raise UnavailableError(f"{found.name} has a new leader that is taking over")
        return found

    def leader_counts(self) -> dict[NodeId, int]:
        """How many partitions each broker leads, as far as this one knows; if it leads any."""
        counts: dict[NodeId, int] = {}
        for topic in self.metadata.state.topics:
            for placement in topic.partitions:
                leader, _ = self.node.leader_of(placement.group)
                if leader is not None:
                    counts[leader] = counts.get(leader, 0) + 1
        return counts

    def check_known(self) -> None:
        """Refuse, saying what is missing, while this broker does not know the cluster."""
        if self.metadata.is_known:
            return
        missing = self.membership.missing()
        if self.membership.directory.members is None and missing:
            names = ", ".join(f"{node} at {self.config.cluster[NodeId(node)]}" for node in missing)
            raise UnavailableError(
                f"the cluster is not formed: node {self.node.node} has not seen node {names}"
            )
        up = self.node.peers_up()
        raise UnavailableError(
            f"node {self.node.node} is starting and does not know the cluster yet; "
            f"it hears {'nodes ' + ', '.join(map(str, up)) if up else 'no other node'}"
        )

    @property
    def controller(self) -> int | None:
        return self.node.leader_of(METADATA_GROUP)[0]
