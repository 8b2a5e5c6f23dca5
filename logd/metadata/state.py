"""The metadata of the cluster, as a replicated state machine.

Every broker applies the same commands in the same order and must reach the same state, so
``apply`` uses nothing but its arguments: no clock, no chance, no order that came from
outside.  A command is checked whole before anything changes; a refusal is therefore the same
on every broker, leaves nothing half-done, and only moves the version.

Ids come from counters that are part of the state and never go back: a topic deleted and
created again is another topic with other groups, so nothing meant for the old one can reach
the new one.

Invariants, asserted by ``check_invariants`` in tests and in the simulator:

M1  ids are below their counters; no group belongs to two partitions.
M2  every replica is on a registered broker, and a partition has each broker once.
M3  the per-broker lists and loads are those of the topics.
M4  no broker is leaving a partition that it is to hold.
M5  a move of the running plan is running if its partition is being moved, unless an earlier plan
    has left that behind.
M6  only a broker that is drained keeps something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from logd.errors import (
    InvalidPartitionError,
    InvalidRequestError,
    TopicExistsError,
    UnavailableError,
    UnknownTopicError,
)
from logd.limits import (
    BROKERS_MAX,
    FEATURE_LEVEL_MIN,
    METADATA_VOTERS_MAX,
    PARTITIONS_MAX,
    PARTITIONS_PER_TOPIC_MAX,
    PORT_MAX,
    PRODUCER_IDS_PER_BLOCK,
    REGISTERED_CHARACTERS_MAX,
    TOPICS_MAX,
)
from logd.metadata.commands import (
    AddPartitions,
    AllocateProducerIds,
    AlterTopic,
    Command,
    CreateInternalTopic,
    CreateTopic,
    DeleteTopic,
    FormCluster,
    RaiseFeatureLevel,
    RegisterBroker,
)
from logd.metadata.features import (
    AVOID_LEVEL,
    ORDER_LEVEL,
    REPLICA_COUNT_LEVEL,
    check_level,
    check_supported,
    registered_range,
)
from logd.metadata.layout import Broker, PartitionPlacement, Topic
from logd.metadata.moving import MovingResult, MovingState
from logd.metadata.names import INTERNAL_PREFIX, quoted, validate_internal_name, validate_topic_name
from logd.metadata.placement import BrokerPlacementInfo, place, to_avoid
from logd.metadata.snapshot import Snapshot, decode_snapshot, encode_snapshot
from logd.metadata.topic_config import check_option_names, parse_options
from logd.types import (
    METADATA_GROUP,
    NO_PRODUCER,
    NODE_ID_MAX,
    DirectoryId,
    GroupId,
    HostPort,
    NodeId,
    Offset,
    ProducerId,
    TopicId,
)
from logd.wording import count_of, named

_FEATURES_MAX: Final = 64
_BROKERS_NAMED_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFormed:
    cluster_id: str
    voters: Mapping[NodeId, DirectoryId]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerRegistered:
    broker: Broker
    replaced: Broker | None
    """The registration before this one, if there was one; equal if nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicCreated:
    topic: Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDeleted:
    topic: Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicAltered:
    topic: Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerIdBlock:
    """Producer ids [start, end)."""

    start: ProducerId
    end: ProducerId


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLevelRaised:
    level: int


Result = (
    ClusterFormed
    | BrokerRegistered
    | TopicCreated
    | TopicDeleted
    | TopicAltered
    | ProducerIdBlock
    | FeatureLevelRaised
    | MovingResult
)

__all__ = ["Broker", "MetadataState", "PartitionPlacement", "Result", "Topic"]


class MetadataState(MovingState):
    """All metadata of one cluster.  Everything it returns is immutable, or not to be changed."""

    def __init__(self) -> None:
        super().__init__()
        self._cluster_id: str | None = None
        self._voters: dict[NodeId, DirectoryId] = {}
        self._next_topic_id = TopicId(1)
        self._next_producer_id = ProducerId(NO_PRODUCER + 1)

    # --- queries ------------------------------------------------------------------------

    @property
    def cluster_id(self) -> str | None:
        """None until the cluster has been formed."""
        return self._cluster_id

    @property
    def voters(self) -> Mapping[NodeId, DirectoryId]:
        """The first voters of the metadata log, by node id."""
        return MappingProxyType(self._voters)

    @property
    def feature_level(self) -> int:
        """What came with a higher level is refused (``features.py``)."""
        return self._feature_level

    @property
    def feature_level_available(self) -> int:
        """The highest level that every registered broker supports."""
        highest = [registered_range(broker.features)[1] for broker in self._brokers.values()]
        return max(self._feature_level, min(highest, default=FEATURE_LEVEL_MIN))

    @property
    def next_group(self) -> GroupId:
        """Groups below it that are not here have been deleted."""
        return self._next_group

    def altered(self, command: AlterTopic) -> Topic:
        """The topic as ``command`` would leave it, which ``apply`` makes of it.

        Raises:
            RequestError: as ``apply`` would.
        """
        check_level(command, self._feature_level)
        topic = self._existing_topic(command.name)
        merged = topic.config | command.config
        config = {name: text for name, text in sorted(merged.items()) if text is not None}
        check_option_names(command.config)
        parse_options(config)
        return msgspec.structs.replace(topic, config=config)

    def counting(self, command: Command) -> Command:
        """``command`` as the controller proposes it, who says how many replicas partitions get that
        are added to a topic: as many as most of it has.

        What is under way is taken as done, for its partitions differ while a topic is given more
        replicas, or is rid of one that nobody can mend.  Of two counts that are as frequent the
        greater one holds.  Brokers of an older version would take what partition 0 has.
        """
        if not isinstance(command, AddPartitions) or self._feature_level < REPLICA_COUNT_LEVEL:
            return command
        topic = self._topics.get(command.name)
        if topic is None:
            return command  # Which will be refused.
        counts = Counter(len(replicas) for replicas in self.intended_replicas(topic))
        usual = max(counts, key=lambda count: (counts[count], count))
        return msgspec.structs.replace(command, replicas=usual)

    def avoiding(
        self, command: Command, down: Collection[NodeId], unfit: Collection[NodeId]
    ) -> Command:
        """``command`` as the controller proposes it, who says where nothing new shall go if there
        are others: to the brokers that it holds to be down, or to have ``unfit`` disks.

        Who is up is known to each broker for itself alone, and all must place alike: so what the
        controller knows becomes part of the command, once the cluster is at a level that has it.
        """
        match command:
            case CreateTopic() | AddPartitions():
                replicas = command.replicas
            case CreateInternalTopic():
                replicas = None
            case _:
                return command
        if self._feature_level < AVOID_LEVEL:
            return command
        avoid = to_avoid(replicas, self._placement_info(), down, unfit)
        return msgspec.structs.replace(command, avoid=avoid)

    def in_order(self, command: RegisterBroker) -> RegisterBroker:
        """``command`` as it is proposed for a broker that knows of this state."""
        if self._feature_level < ORDER_LEVEL:
            return command
        return msgspec.structs.replace(command, instead_of=self._incarnation_of(command.node))

    def _incarnation_of(self, node: NodeId) -> int:
        """Of the registration that holds; 0: there is none."""
        known = self._brokers.get(node)
        return 0 if known is None else known.incarnation

    # --- commands -----------------------------------------------------------------------

    def apply(self, command: Command, offset: Offset) -> Result:
        """Apply the committed command that lies at ``offset``.

        Raises:
            RequestError: refused; nothing but the version has changed.
        """
        self.advance(Offset(offset + 1))
        check_level(command, self._feature_level)
        match command:
            case FormCluster():
                return self._form_cluster(command)
            case RegisterBroker():
                return self._register_broker(command)
            case CreateTopic():
                return self._create_topic(command)
            case CreateInternalTopic():
                return self._create_internal_topic(command)
            case DeleteTopic():
                return self._delete_topic(command)
            case AlterTopic():
                return self._alter_topic(command)
            case AllocateProducerIds():
                return self._allocate_producer_ids(command)
            case AddPartitions():
                return self._add_partitions(command)
            case RaiseFeatureLevel():
                return self._raise_feature_level(command)
            case _:
                return self._apply_move(command)

    def advance(self, end_offset: Offset) -> None:
        """Step over control batches: they take offsets and change nothing here."""
        assert end_offset >= self._version, "the metadata log is applied in order"
        self._version = end_offset

    def _form_cluster(self, command: FormCluster) -> ClusterFormed:
        _check_text("cluster id", command.cluster_id)
        if not 1 <= len(command.voters) <= METADATA_VOTERS_MAX:
            raise InvalidRequestError(
                f"{len(command.voters)} voters, a cluster begins with 1 to {METADATA_VOTERS_MAX}"
            )
        for node, directory_id in sorted(command.voters.items()):
            _check_node(node)
            _check_text(f"directory id of voter {node}", directory_id)
        voters = dict(sorted(command.voters.items()))
        if self._cluster_id is not None and (
            command.cluster_id != self._cluster_id or voters != self._voters
        ):
            raise InvalidRequestError(
                f"the cluster was formed before, as {quoted(self._cluster_id)} "
                f"of brokers {', '.join(map(str, self._voters))}"
            )

        if self._cluster_id is None:
            if command.feature_level < FEATURE_LEVEL_MIN:
                raise InvalidRequestError(f"feature level {command.feature_level}, the first is 1")
            self._feature_level = command.feature_level
        self._cluster_id = command.cluster_id
        self._voters = voters
        return ClusterFormed(cluster_id=self._cluster_id, voters=self.voters)

    def _register_broker(self, command: RegisterBroker) -> BrokerRegistered:
        self._check_formed()
        broker = _broker_of(command)
        replaced = self._brokers.get(broker.node)
        self._check_not_removed(broker)
        self._check_directory(broker, replaced)
        self._check_feature_levels(broker)
        self._check_order(command)
        if replaced is None and len(self._brokers) >= BROKERS_MAX:
            raise InvalidRequestError(f"the cluster has {BROKERS_MAX} brokers, the most it can")

        if replaced is not None:
            broker = msgspec.structs.replace(
                broker, is_draining=replaced.is_draining, keeps=replaced.keeps
            )
        if replaced is None or _where(replaced) != _where(broker):
            self._layout_changed()
        self._brokers[broker.node] = broker
        self._held.setdefault(broker.node, {})
        self._leader_counts.setdefault(broker.node, 0)
        return BrokerRegistered(broker=broker, replaced=replaced)

    def _check_not_removed(self, broker: Broker) -> None:
        if broker.node in self._removed:
            raise InvalidRequestError(
                f"broker {broker.node} was removed from the cluster: start it with an empty data "
                "directory, under a node id that was never used"
            )

    def _check_directory(self, broker: Broker, known: Broker | None) -> None:
        """A node is its data directory: a wiped disk under an old id has forgotten its votes."""
        expected = self._voters.get(broker.node) if known is None else known.directory_id
        if expected is not None and broker.directory_id != expected:
            raise InvalidRequestError(
                f"broker {broker.node} is known with data directory {quoted(expected)}, "
                f"found {quoted(broker.directory_id)}: start it with its own directory, "
                "or under a node id that was never used"
            )

    def _check_feature_levels(self, broker: Broker) -> None:
        who = f"broker {broker.node} (logd {broker.version or 'of an unknown version'})"
        check_supported(who, registered_range(broker.features), self._feature_level)

    def _check_order(self, command: RegisterBroker) -> None:
        """An attempt of an earlier start may come late, and another attempt of this one twice."""
        if self._feature_level < ORDER_LEVEL:
            return
        holding = self._incarnation_of(command.node)
        if holding not in (command.instead_of, command.incarnation):
            raise UnavailableError(
                f"broker {command.node} has another registration by now than the one that this was "
                "to take the place of"
            )

    def _raise_feature_level(self, command: RaiseFeatureLevel) -> FeatureLevelRaised:
        self._check_formed()
        if command.level < self._feature_level:
            raise InvalidRequestError(
                f"the cluster is at feature level {self._feature_level}, which is never lowered"
            )
        behind = [
            broker
            for broker in self.brokers
            if registered_range(broker.features)[1] < command.level
        ]
        if behind:
            listed = [
                f"{b.node} (logd {b.version or '?'}, up to {registered_range(b.features)[1]})"
                for b in behind[:_BROKERS_NAMED_MAX]
            ]
            raise InvalidRequestError(
                f"feature level {command.level} is not supported by {named('broker', listed)}: "
                "start a newer version of logd there first, or remove what does not run it"
            )

        self._feature_level = command.level
        return FeatureLevelRaised(level=self._feature_level)

    def _create_topic(self, command: CreateTopic) -> TopicCreated:
        self._check_formed()
        validate_topic_name(command.name)
        return self._add_topic(
            command.name,
            command.partitions,
            command.replicas,
            command.config,
            command.now_ms,
            command.avoid,
        )

    def _create_internal_topic(self, command: CreateInternalTopic) -> TopicCreated:
        self._check_formed()
        validate_internal_name(command.name)
        return self._add_topic(
            command.name, command.partitions, None, command.config, command.now_ms, command.avoid
        )

    def _add_topic(
        self,
        name: str,
        partitions: int,
        replicas: int | None,
        config: Mapping[str, str],
        now_ms: int,
        avoid: Sequence[NodeId],
    ) -> TopicCreated:
        if name in self._topics:
            raise TopicExistsError(f"topic {quoted(name)} exists")
        if len(self._topics) >= TOPICS_MAX:
            raise InvalidRequestError(f"the cluster has {TOPICS_MAX} topics, the most it can")
        parse_options(config)
        replica_lists = place(partitions, replicas, self._placement_info(), avoid)
        self._check_partition_count(len(replica_lists))

        topic = Topic(
            name=name,
            topic_id=self._next_topic_id,
            partitions=self._number(name, self._next_topic_id, replica_lists),
            config=dict(sorted(config.items())),
            created_ms=now_ms,
        )
        self._next_topic_id = TopicId(topic.topic_id + 1)
        self._next_group = GroupId(self._next_group + len(topic.partitions))
        self._add(topic)
        self._layout_changed()
        return TopicCreated(topic=topic)

    def _placement_info(self) -> dict[NodeId, BrokerPlacementInfo]:
        return {
            broker.node: BrokerPlacementInfo(
                failure_domain=broker.failure_domain,
                rack=broker.rack,
                replica_count=len(self._held[broker.node]),
                leader_count=self._leader_counts[broker.node],
            )
            for broker in self.brokers
            if not broker.is_draining
        }

    def _number(
        self,
        name: str,
        topic_id: TopicId,
        replica_lists: Sequence[tuple[NodeId, ...]],
        first: int = 0,
    ) -> tuple[PartitionPlacement, ...]:
        """Give partitions from number ``first`` on their groups."""
        return tuple(
            PartitionPlacement(
                group=GroupId(self._next_group + at),
                topic=name,
                topic_id=topic_id,
                partition=first + at,
                replicas=replicas,
            )
            for at, replicas in enumerate(replica_lists)
        )

    def _check_partition_count(self, added: int) -> None:
        if len(self._placements) + added > PARTITIONS_MAX:
            raise InvalidPartitionError(
                f"{count_of(added, 'partition')} more than the "
                f"{len(self._placements):,} that there are, a cluster holds at most "
                f"{PARTITIONS_MAX}"
            )

    def _add_partitions(self, command: AddPartitions) -> TopicAltered:
        topic = self._existing_topic(command.name)
        there = len(topic.partitions)
        if not there < command.partitions <= PARTITIONS_PER_TOPIC_MAX:
            raise InvalidPartitionError(
                f"topic {quoted(topic.name)} has {count_of(there, 'partition')} and can only get "
                f"more, up to {PARTITIONS_PER_TOPIC_MAX}; found {command.partitions}"
            )
        added = command.partitions - there
        self._check_partition_count(added)
        replica_count = command.replicas
        if replica_count is None:
            replica_count = len(topic.partitions[0].replicas)
        replica_lists = place(added, replica_count, self._placement_info(), command.avoid)

        new = self._number(topic.name, topic.topic_id, replica_lists, first=there)
        self._next_group = GroupId(self._next_group + added)
        altered = msgspec.structs.replace(topic, partitions=topic.partitions + new)
        self._topics[topic.name] = altered
        for placement in new:
            self._add_placement(placement)
        self._layout_changed()
        return TopicAltered(topic=altered)

    def _delete_topic(self, command: DeleteTopic) -> TopicDeleted:
        topic = self._existing_topic(command.name)

        del self._topics[topic.name]
        for placement in topic.partitions:
            self._drop_placement(placement)
        self._skip_deleted(topic, command.now_ms)
        self._layout_changed()
        return TopicDeleted(topic=topic)

    def _alter_topic(self, command: AlterTopic) -> TopicAltered:
        altered = self.altered(command)

        self._topics[altered.name] = altered
        self._options_version = self._version
        return TopicAltered(topic=altered)

    def _allocate_producer_ids(self, command: AllocateProducerIds) -> ProducerIdBlock:
        self._check_formed()
        _check_node(command.node)
        if not 1 <= command.count <= PRODUCER_IDS_PER_BLOCK:
            raise InvalidRequestError(
                f"{command.count} producer ids, a block has 1 to {PRODUCER_IDS_PER_BLOCK}"
            )

        start = self._next_producer_id
        self._next_producer_id = ProducerId(start + command.count)
        return ProducerIdBlock(start=start, end=self._next_producer_id)

    def _check_formed(self) -> None:
        if self._cluster_id is None:
            raise UnavailableError("the cluster has not been formed yet")

    def _existing_topic(self, name: str) -> Topic:
        """A topic that users may change."""
        topic = self._topics.get(name)
        if topic is None:
            raise UnknownTopicError(f"no topic {quoted(name)}")
        if name.startswith(INTERNAL_PREFIX):
            raise InvalidRequestError(f"topic {quoted(name)} belongs to logd")
        return topic

    # --- snapshot -----------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The whole state, for ``restore``.  Equal states give equal bytes."""
        return encode_snapshot(
            Snapshot(
                version=self._version,
                cluster_id=self._cluster_id,
                voters=self._voters,
                brokers=list(self.brokers),
                topics=sorted(self._topics.values(), key=lambda topic: topic.topic_id),
                next_topic_id=self._next_topic_id,
                next_group=self._next_group,
                next_producer_id=self._next_producer_id,
                layout_version=self._layout_version,
                removed=[self._removed[node] for node in sorted(self._removed)],
                plan=self._plan,
                next_plan_id=self._next_plan_id,
                settings=self._settings,
                feature_level=self._feature_level,
            )
        )

    @classmethod
    def restore(cls, payload: bytes | memoryview) -> MetadataState:
        """The state that ``snapshot`` was taken of.

        Raises:
            NewerFormatError: a newer version of logd wrote it.
            CorruptionError: it is not a snapshot.
        """
        snapshot = decode_snapshot(payload)
        state = cls()
        state._version = snapshot.version
        state._cluster_id = snapshot.cluster_id
        state._voters = dict(sorted(snapshot.voters.items()))
        for broker in snapshot.brokers:
            state._brokers[broker.node] = broker
            state._held[broker.node] = {}
            state._leader_counts[broker.node] = 0
        state._next_topic_id = snapshot.next_topic_id
        state._next_group = snapshot.next_group
        state._next_producer_id = snapshot.next_producer_id
        state._layout_version = snapshot.layout_version
        state._options_version = snapshot.version
        state._removed = {broker.node: broker for broker in snapshot.removed}
        state._plan = snapshot.plan
        state._next_plan_id = snapshot.next_plan_id
        state._settings = snapshot.settings
        state._feature_level = snapshot.feature_level
        for topic in snapshot.topics:
            state._add(topic)
        return state

    def check_invariants(self) -> None:
        """Assert M1 to M6.  Walks everything: for tests and the simulator."""
        held: dict[NodeId, dict[GroupId, PartitionPlacement]] = {n: {} for n in self._brokers}
        leader_counts = dict.fromkeys(self._brokers, 0)
        placements: dict[GroupId, PartitionPlacement] = {}
        for topic in sorted(self._topics.values(), key=lambda topic: topic.topic_id):
            # M1
            assert topic.topic_id < self._next_topic_id
            for number, placement in enumerate(topic.partitions):
                assert (placement.topic, placement.topic_id) == (topic.name, topic.topic_id)
                assert placement.partition == number
                assert METADATA_GROUP < placement.group < self._next_group
                assert placement.group not in placements
                placements[placement.group] = placement
                # M2
                assert len(set(placement.replicas)) == len(placement.replicas) > 0
                # M4
                assert not set(placement.leaving) & set(placement.holders)
                leader_counts[placement.replicas[0]] += 1
                for node in placement.holders:
                    held[node][placement.group] = placement
        # M3
        assert placements == self._placements
        assert leader_counts == self._leader_counts
        assert held == self._held
        moving = {group: p for group, p in placements.items() if p.move is not None}
        assert moving == self._moving
        # M5
        if self._plan is not None and not self._plan.is_over:
            for move, progress in zip(self._plan.moves, self._plan.states, strict=True):
                under_way = placements[move.group].move if move.group in placements else None
                is_moving = under_way is not None and not under_way.is_left
                assert (progress == "running") == is_moving
        # M6
        assert all(broker.is_draining for broker in self._brokers.values() if broker.keeps)


def _where(broker: Broker) -> tuple[DirectoryId, str, str]:
    """What placement depends on."""
    return broker.directory_id, broker.failure_domain, broker.rack


# --- checks -----------------------------------------------------------------------------


def _broker_of(command: RegisterBroker) -> Broker:
    _check_node(command.node)
    _check_text("directory id", command.directory_id)
    _check_text("failure domain", command.failure_domain, may_be_empty=True)
    _check_text("rack", command.rack, may_be_empty=True)
    _check_text("version", command.version, may_be_empty=True)
    if not 0 <= command.incarnation < 2**63:
        raise InvalidRequestError(f"incarnation {command.incarnation} is out of range")
    if len(command.features) > _FEATURES_MAX:
        raise InvalidRequestError(
            f"{len(command.features)} features, at most {_FEATURES_MAX} are allowed"
        )
    return Broker(
        node=command.node,
        directory_id=command.directory_id,
        incarnation=command.incarnation,
        address=_address_of("host", command.host, command.port),
        peer_address=_address_of("peer host", command.peer_host, command.peer_port),
        failure_domain=command.failure_domain,
        rack=command.rack,
        version=command.version,
        features=dict(sorted(command.features.items())),
    )


def _address_of(what: str, host: str, port: int) -> HostPort:
    _check_text(what, host)
    if not 1 <= port <= PORT_MAX:
        raise InvalidRequestError(
            f"{what} {quoted(host)} has port {port}, expected 1 to {PORT_MAX}"
        )
    return HostPort(host, port)


def _check_node(node: NodeId) -> None:
    if not 1 <= node <= NODE_ID_MAX:
        raise InvalidRequestError(f"node id {node}, expected 1 to {NODE_ID_MAX}")


def _check_text(what: str, text: str, *, may_be_empty: bool = False) -> None:
    if not text and not may_be_empty:
        raise InvalidRequestError(f"the {what} is empty")
    if len(text) > REGISTERED_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"{what} {quoted(text)} has {len(text)} characters, "
            f"at most {REGISTERED_CHARACTERS_MAX} are allowed"
        )
