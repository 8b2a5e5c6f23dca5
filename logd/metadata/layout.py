"""What the metadata consists of, and who holds what: the part of the state that moves change.

``Layout`` keeps the topics together with what is derived from them, so that neither queries nor
placement walk them all; whatever changes a placement does so here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from logd.limits import FEATURE_LEVEL_MIN
from logd.metadata.moves import Move, Plan, RebalanceSettings, RemovedBroker
from logd.metadata.topic_config import TopicOptions, parse_options
from logd.types import (
    METADATA_GROUP,
    DirectoryId,
    GroupId,
    HostPort,
    NodeId,
    Offset,
    TopicId,
    TopicPartition,
)


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """A broker that has registered, as of its last start."""

    node: NodeId
    directory_id: DirectoryId
    incarnation: int
    address: HostPort
    """Where clients reach it."""
    peer_address: HostPort
    """Where brokers reach it."""
    failure_domain: str = ""
    rack: str = ""
    version: str = ""
    features: dict[str, int] = {}
    is_draining: bool = False
    """Nothing is placed on it, and what it holds is to go, but for what it ``keeps``."""
    keeps: tuple[GroupId, ...] = ()
    """What a drain leaves with it until the next one is asked for: its moves were cancelled."""


class PartitionPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """One partition and the brokers that replicate it."""

    group: GroupId
    topic: str
    topic_id: TopicId
    partition: int
    replicas: tuple[NodeId, ...]
    """The first is the preferred leader; the others campaign in this order."""
    move: Move | None = None
    """Under way, if there is one."""
    leaving: tuple[NodeId, ...] = ()
    """Brokers that held it, and have not put their copies into the trash yet."""
    left_at: Offset = Offset(0)
    """The version at which the last of them left; 0: below feature level 7."""

    @property
    def holders(self) -> tuple[NodeId, ...]:
        """The brokers that are to have a copy now: those of a move both ways."""
        if self.move is None:
            return self.replicas
        return tuple(dict.fromkeys(self.replicas + self.move.target))

    @property
    def name(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    topic_id: TopicId
    partitions: tuple[PartitionPlacement, ...]
    """By partition number, from 0."""
    config: dict[str, str]
    """The options that were set; ``options`` has the others too."""
    created_ms: int

    @property
    def options(self) -> TopicOptions:
        return parse_options(self.config)


class Layout:
    """Brokers, topics and where their replicas are."""

    def __init__(self) -> None:
        self._version = Offset(0)
        self._layout_version = Offset(0)
        self._options_version = Offset(0)
        self._brokers: dict[NodeId, Broker] = {}
        self._removed: dict[NodeId, RemovedBroker] = {}
        self._topics: dict[str, Topic] = {}
        self._next_group = GroupId(METADATA_GROUP + 1)
        self._plan: Plan | None = None
        self._next_plan_id = 1
        self._feature_level = FEATURE_LEVEL_MIN
        self._settings = RebalanceSettings()
        # Derived from the topics, kept so that neither queries nor placement walk them all.
        self._placements: dict[GroupId, PartitionPlacement] = {}
        self._held: dict[NodeId, dict[GroupId, PartitionPlacement]] = {}
        self._leader_counts: dict[NodeId, int] = {}
        self._moving: dict[GroupId, PartitionPlacement] = {}
        self._leaving: dict[NodeId, dict[GroupId, PartitionPlacement]] = {}

    # --- queries ------------------------------------------------------------------------

    @property
    def version(self) -> Offset:
        """The applied offset: everything below it in the metadata log is in this state."""
        return self._version

    @property
    def layout_version(self) -> Offset:
        """The version at which brokers, topics or placements last changed."""
        return self._layout_version

    @property
    def options_version(self) -> Offset:
        """The version at which the options of a topic last changed, or one since then."""
        return self._options_version

    @property
    def brokers(self) -> tuple[Broker, ...]:
        """By node id."""
        return tuple(self._brokers[node] for node in sorted(self._brokers))

    def broker(self, node: NodeId) -> Broker | None:
        return self._brokers.get(node)

    @property
    def removed_brokers(self) -> Mapping[NodeId, RemovedBroker]:
        return MappingProxyType(self._removed)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """By name."""
        return tuple(self._topics[name] for name in sorted(self._topics))

    def topic(self, name: str) -> Topic | None:
        return self._topics.get(name)

    def placement(self, group: GroupId) -> PartitionPlacement | None:
        """The partition that ``group`` replicates; None for group 0 and for deleted ones."""
        return self._placements.get(group)

    def partitions_on(self, node: NodeId) -> tuple[PartitionPlacement, ...]:
        """The partitions of which ``node`` is to have a copy, by group id."""
        held = self._held.get(node, {})
        return tuple(held[group] for group in sorted(held))

    @property
    def moving(self) -> tuple[PartitionPlacement, ...]:
        """The partitions that are being moved, by group id; also those that plans left behind."""
        return tuple(self._moving[group] for group in sorted(self._moving))

    def leaving(self, node: NodeId) -> tuple[PartitionPlacement, ...]:
        """Partitions that have moved away from ``node``, which has not said that it is done."""
        left = self._leaving.get(node, {})
        return tuple(left[group] for group in sorted(left))

    @property
    def plan(self) -> Plan | None:
        """The plan that is carried out, or else the last one."""
        return self._plan

    def intended_replicas(self, topic: Topic) -> list[tuple[NodeId, ...]]:
        """Where each partition of ``topic`` is, or goes by a move or by the running plan."""
        planned = {}
        if self._plan is not None and self._plan.state == "running":
            planned = {
                move.group: move.target
                for move, state in zip(self._plan.moves, self._plan.states, strict=True)
                if state == "pending"
            }
        return [
            planned.get(placement.group, placement.replicas)
            if placement.move is None or placement.move.is_cancelled
            else placement.move.target
            for placement in topic.partitions
        ]

    @property
    def rebalance_settings(self) -> RebalanceSettings:
        return self._settings

    # --- change -------------------------------------------------------------------------

    def _layout_changed(self) -> None:
        self._layout_version = self._version

    def _add(self, topic: Topic) -> None:
        self._topics[topic.name] = topic
        for placement in topic.partitions:
            self._add_placement(placement)

    def _add_placement(self, placement: PartitionPlacement) -> None:
        self._placements[placement.group] = placement
        self._leader_counts[placement.replicas[0]] += 1
        for node in placement.holders:
            self._held[node][placement.group] = placement
        for node in placement.leaving:
            self._leaving.setdefault(node, {})[placement.group] = placement
        if placement.move is not None:
            self._moving[placement.group] = placement

    def _drop_placement(self, placement: PartitionPlacement) -> None:
        del self._placements[placement.group]
        self._leader_counts[placement.replicas[0]] -= 1
        for node in placement.holders:
            del self._held[node][placement.group]
        for node in placement.leaving:
            del self._leaving[node][placement.group]
        self._moving.pop(placement.group, None)

    def _replace_placement(self, placement: PartitionPlacement) -> None:
        """Put ``placement`` in the place of the one of its group."""
        self._drop_placement(self._placements[placement.group])
        topic = self._topics[placement.topic]
        partitions = list(topic.partitions)
        partitions[placement.partition] = placement
        self._topics[topic.name] = msgspec.structs.replace(topic, partitions=tuple(partitions))
        self._add_placement(placement)
