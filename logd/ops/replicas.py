"""What is known of each replica on this broker, for metrics and for the status page alike.

A broker may hold thousands, and the event loop that looks at them is the one that serves
them: others run in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from logd.replication.standing import role_name, trouble_of
from logd.types import GroupId, NodeId, Offset

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.replication.group import Group
    from logd.replication.standing import RoleName

REPLICAS_PER_TURN: Final = 100
"""Looked at without letting others run: about a millisecond."""


class ReplicaFacts(NamedTuple):
    """One replica that is open here."""

    group: GroupId
    topic: str | None
    """None: the metadata log, or a topic that has just been deleted."""
    partition: int
    role: RoleName
    term: int
    log_start: Offset
    log_end: Offset
    commit: Offset
    log_bytes: int
    voters: tuple[NodeId, ...]
    in_sync: tuple[NodeId, ...]
    """As its leader sees it; empty unless this replica leads."""
    follower_lag: int
    """As its leader sees it: offsets that the furthest follower lacks, of those heard of."""
    copied: float | None
    """As its leader sees it: the share of the log that the furthest newcomer has; None: there is
    no newcomer."""
    readers: int
    reader_lag: int
    """Committed offsets that the slowest subscription here has not been sent."""
    reason: str
    """What is wrong with it, if anything."""
    is_quarantined: bool = False
    """It is damaged, or has failed."""

    @property
    def is_leading(self) -> bool:
        return self.role == "leader"

    @property
    def is_under_replicated(self) -> bool:
        return self.is_leading and len(self.in_sync) < len(self.voters)


class Readers(NamedTuple):
    """The subscriptions to one replica."""

    readers: int
    lag: int


async def look_at_replicas(broker: Broker) -> list[ReplicaFacts]:
    """Every replica that is open here, by group."""
    readers = readers_by_group(broker)
    facts = []
    for at, group in enumerate(list(broker.node.groups.values()), 1):
        facts.append(_facts(broker, group, readers.get(group.group_id, Readers(0, 0))))
        if at % REPLICAS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
    return facts


def readers_by_group(broker: Broker) -> dict[GroupId, Readers]:
    """The subscriptions of all clients, by what they read."""
    found: dict[GroupId, Readers] = {}
    for session in broker.sessions:
        for subscription in session.subscriptions:
            group = subscription.group
            lag = max(0, group.committed_data_end - subscription.position)
            known = found.get(group.group_id, Readers(0, 0))
            found[group.group_id] = Readers(known.readers + 1, max(known.lag, lag))
    return found


def _facts(broker: Broker, group: Group, readers: Readers) -> ReplicaFacts:
    core, ourselves = group.core, broker.node.node
    # A newcomer that is being copied to is nothing that the partition lacks.
    voters = core.configuration.voters
    in_sync: tuple[NodeId, ...] = ()
    follower_lag = 0
    if group.is_leader:
        followers = [voter for voter in voters if voter != ourselves]
        in_sync = tuple(
            voter
            for voter in voters
            if voter == ourselves or (broker.node.is_up(voter) and group.feeder.is_in_sync(voter))
        )
        ends = [end for f in followers if (end := group.feeder.acknowledged_end(f)) is not None]
        follower_lag = max((group.log.end_offset - end for end in ends), default=0)
    placement = broker.metadata.state.placement(group.group_id)
    return ReplicaFacts(
        group=group.group_id,
        topic=None if placement is None else placement.topic,
        partition=0 if placement is None else placement.partition,
        role=role_name(group),
        term=core.term,
        log_start=group.log.start_offset,
        log_end=group.log.end_offset,
        commit=group.commit_offset,
        log_bytes=group.log.size_bytes,
        voters=voters,
        in_sync=in_sync,
        follower_lag=follower_lag,
        copied=_copied(group),
        readers=readers.readers,
        reader_lag=readers.lag,
        reason=trouble_of(group),
        is_quarantined=bool(group.failure or group.damage),
    )


def _copied(group: Group) -> float | None:
    newcomers = group.core.configuration.learners
    if not newcomers or not group.is_leader:
        return None
    start, end = group.log.start_offset, group.log.end_offset
    if end == start:
        return 1.0
    has = min((group.feeder.acknowledged_end(newcomer) or start) for newcomer in newcomers)
    return max(0, has - start) / (end - start)
