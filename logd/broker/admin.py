"""Administration: topics, leadership, and what this broker knows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from logd import __version__
from logd.broker.broker import check_timeout
from logd.broker.coordination.fencing import raise_fence
from logd.broker.coordination.topic import ensure_topic
from logd.broker.rebalancing import REBALANCING_HANDLERS, broker_info
from logd.broker.subscriptions import start_position
from logd.errors import (
    InvalidRequestError,
    LogdError,
    NotAReplicaError,
    OffsetOutOfRangeError,
    RequestTimeoutError,
    UnavailableError,
)
from logd.limits import METADATA_PARTITIONS_PER_ANSWER, METADATA_TOPICS_PER_ANSWER
from logd.metadata.commands import AddPartitions, AlterTopic, CreateTopic, DeleteTopic
from logd.metadata.features import OUTCOME_LEVEL
from logd.metadata.state import Topic, TopicAltered, TopicCreated
from logd.raft.messages import Role, TransferLeadership
from logd.record.batch import seal_opaque
from logd.record.control import Trim, encode_control
from logd.record.header import BatchKind
from logd.replication.standing import role_name, trouble_of
from logd.types import METADATA_GROUP, GroupId, NodeId, Offset
from logd.wire.coordination import COORDINATION_TOPIC
from logd.wire.messages import (
    AlterTopicRequest,
    AlterTopicResponse,
    CreateTopicRequest,
    CreateTopicResponse,
    DeleteTopicRequest,
    DeleteTopicResponse,
    DescribeBrokerRequest,
    DescribeBrokerResponse,
    DescribePartitionRequest,
    DescribePartitionResponse,
    InitProducerRequest,
    InitProducerResponse,
    Kind,
    LocalReplicaInfo,
    Message,
    MetadataRequest,
    MetadataResponse,
    PartitionInfo,
    QuotaInfo,
    ReplicaInfo,
    TopicInfo,
    TransferLeaderRequest,
    TransferLeaderResponse,
    TrimPartitionRequest,
    TrimPartitionResponse,
)

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.replication.group import Group

INIT_PRODUCER_TIMEOUT_MS: Final = 10_000
METADATA_LAG_S: Final = 1.0
"""How long a question about what this broker has not applied yet waits for it."""
EVENTS_DESCRIBED_MAX: Final = 50
LEADERS_AWAITED_SHARE: Final = 0.8
"""Of the time that creating a topic may take."""

LOOK_AGAIN_S: Final = 0.1
"""While waiting for a leader: news come as they happen, this is for those that do not."""


async def metadata(broker: Broker, request: MetadataRequest) -> MetadataResponse:
    """The cluster as this broker has applied it, with leaders as far as it knows."""
    broker.check_known()
    await broker.metadata.reach(Offset(request.at_least), METADATA_LAG_S)
    if request.topics is not None and COORDINATION_TOPIC in request.topics:
        await ensure_topic(broker)
    state = broker.metadata.state
    if request.topics is None:
        topics = [topic for topic in state.topics if topic.name >= request.start]
        unknown: list[str] = []
    else:
        names = sorted({name for name in request.topics if name >= request.start})
        topics = [topic for name in names if (topic := state.topic(name)) is not None]
        unknown = [name for name in names if state.topic(name) is None]
    count = _fitting_count(topics)
    following = topics[count].name if count < len(topics) else None
    assert state.cluster_id is not None
    return MetadataResponse(
        cluster_id=state.cluster_id,
        controller=broker.controller,
        brokers=[broker_info(broker, known) for known in state.brokers],
        topics=[_topic_info(broker, topic) for topic in topics[:count]],
        unknown=[name for name in unknown if following is None or name < following],
        metadata_offset=broker.metadata.applied_offset,
        next=following,
        feature_level=state.feature_level,
        feature_level_available=state.feature_level_available,
    )


def _fitting_count(topics: Sequence[Topic]) -> int:
    """How many of them, from the first on, one answer describes."""
    partitions = 0
    for count, topic in enumerate(topics[:METADATA_TOPICS_PER_ANSWER]):
        partitions += len(topic.partitions)
        if partitions > METADATA_PARTITIONS_PER_ANSWER:
            assert count > 0
            return count
    return min(len(topics), METADATA_TOPICS_PER_ANSWER)


def _topic_info(broker: Broker, topic: Topic) -> TopicInfo:
    partitions = []
    for placement in topic.partitions:
        leader, term = broker.node.leader_of(placement.group)
        partitions.append(
            PartitionInfo(
                partition=placement.partition,
                group=placement.group,
                replicas=list(placement.replicas),
                target=None if placement.move is None else list(placement.move.target),
                leader=leader,
                term=term,
            )
        )
    return TopicInfo(
        name=topic.name, topic_id=topic.topic_id, partitions=partitions, config=topic.config
    )


async def init_producer(broker: Broker, request: InitProducerRequest) -> InitProducerResponse:
    broker.check_known()
    producer_id = await broker.metadata.next_producer_id(INIT_PRODUCER_TIMEOUT_MS)
    return InitProducerResponse(producer_id=producer_id)


async def create_topic(broker: Broker, request: CreateTopicRequest) -> CreateTopicResponse:
    """Create a topic, and wait until its partitions have leaders or most of the time is up."""
    check_timeout(request.timeout_ms)
    broker.check_known()
    leaders_by = trio.current_time() + LEADERS_AWAITED_SHARE * request.timeout_ms / 1000
    result = await broker.metadata.execute(
        CreateTopic(
            name=request.name,
            partitions=request.partitions,
            replicas=request.replicas,
            config=request.config,
            now_ms=broker.env.wall_clock_ms(),
        ),
        timeout_ms=request.timeout_ms,
        safe_to_repeat=False,
    )
    assert isinstance(result, TopicCreated)
    # The topic exists now, whatever follows: waiting for leaders is a courtesy, which must not
    # make the answer come when nobody waits for it any more.
    with trio.move_on_at(leaders_by):
        for placement in result.topic.partitions:
            while broker.node.leader_of(placement.group)[0] is None:
                await broker.node.leadership_news(LOOK_AGAIN_S)
    return CreateTopicResponse(
        topic=_topic_info(broker, result.topic), metadata_offset=broker.metadata.applied_offset
    )


async def delete_topic(broker: Broker, request: DeleteTopicRequest) -> DeleteTopicResponse:
    check_timeout(request.timeout_ms)
    broker.check_known()
    is_timed = broker.metadata.state.feature_level >= OUTCOME_LEVEL
    await broker.metadata.execute(
        DeleteTopic(name=request.name, now_ms=broker.env.wall_clock_ms() if is_timed else None),
        timeout_ms=request.timeout_ms,
        safe_to_repeat=False,
    )
    return DeleteTopicResponse(metadata_offset=broker.metadata.applied_offset)


async def alter_topic(broker: Broker, request: AlterTopicRequest) -> AlterTopicResponse:
    """Add partitions, set options, or both: two commands then, the first of which stays."""
    check_timeout(request.timeout_ms)
    broker.check_known()
    deadline_ms = broker.node.now_ms() + request.timeout_ms
    result: object = None
    change = AlterTopic(name=request.name, config=request.config)
    if request.partitions is not None:
        state = broker.metadata.state
        if state.topic(request.name) is not None:  # Else it may have been created elsewhere.
            state.altered(change)  # What refuses the options must come before the partitions do.
        result = await broker.metadata.execute(
            AddPartitions(name=request.name, partitions=request.partitions),
            timeout_ms=request.timeout_ms,
            safe_to_repeat=False,
        )
    if request.config or result is None:
        try:
            result = await broker.metadata.execute(
                change,
                timeout_ms=max(1, deadline_ms - broker.node.now_ms()),
                safe_to_repeat=True,
            )
        except LogdError as error:
            if result is not None:  # Whatever it says of the options: there are more partitions.
                error.may_have_applied = True
            raise
    assert isinstance(result, TopicAltered)
    return AlterTopicResponse(
        topic=_topic_info(broker, result.topic), metadata_offset=broker.metadata.applied_offset
    )


async def describe_partition(
    broker: Broker, request: DescribePartitionRequest
) -> DescribePartitionResponse:
    """A partition as its leader knows it."""
    group = broker.leading_group(request.group)
    return DescribePartitionResponse(
        group=group.group_id,
        leader=broker.node.node,
        term=group.core.term,
        replicas=[_replica_info(broker, group, n) for n in group.core.configuration.members],
        log_start=group.log_start,
        log_end=group.log.end_offset,
        commit_offset=group.commit_offset,
        data_end=group.committed_data_end,
        size_bytes=group.log.size_bytes,
    )


def _replica_info(broker: Broker, group: Group, member: NodeId) -> ReplicaInfo:
    if member == broker.node.node:
        return ReplicaInfo(
            node_id=member,
            synced_end=group.core.synced_end,
            in_sync=True,
            alive=True,
            bytes_behind=0,
        )
    alive = broker.node.is_up(member)
    synced_end = group.feeder.acknowledged_end(member)
    return ReplicaInfo(
        node_id=member,
        synced_end=synced_end,
        in_sync=alive and group.feeder.is_in_sync(member),
        alive=alive,
        voter=member not in group.core.configuration.learners,
        bytes_behind=None if synced_end is None else group.log.bytes_from(synced_end),
    )


async def transfer_leader(broker: Broker, request: TransferLeaderRequest) -> TransferLeaderResponse:
    """Hand leadership over, and wait until somebody else has it."""
    check_timeout(request.timeout_ms)
    group = broker.leading_group(request.group)
    target = None if request.target is None else NodeId(request.target)
    voters = group.core.configuration.voters
    if target is None and voters == (broker.node.node,):
        raise NotAReplicaError(
            f"no other broker holds a replica of {group.name} that votes: "
            f"node {broker.node.node} is the only one that can lead it"
        )
    if target is not None:
        if target not in voters:
            raise NotAReplicaError(
                f"node {target} holds no replica of {group.name}: "
                f"its voters are {', '.join(map(str, voters))}"
            )
        if target == broker.node.node:
            return TransferLeaderResponse(leader=target)
        if not broker.node.is_up(target):
            raise UnavailableError(f"node {target} is not alive")
    group.post(TransferLeadership(target))
    with trio.move_on_after(request.timeout_ms / 1000):
        while True:
            leader, term = broker.node.leader_of(GroupId(request.group))
            if leader is not None and leader != broker.node.node:
                return TransferLeaderResponse(leader=leader)
            is_leader = group.core.role is Role.LEADER
            is_told = not group.is_held  # It may seal a segment just now.
            if is_told and is_leader and not group.core.is_transferring:
                heir = "no other node took" if target is None else f"node {target} did not take"
                raise UnavailableError(f"{heir} over: still leading in term {term}")
            await broker.node.leadership_news(LOOK_AGAIN_S)
    raise RequestTimeoutError(f"no new leader within {request.timeout_ms} ms")


async def trim_partition(broker: Broker, request: TrimPartitionRequest) -> TrimPartitionResponse:
    """Commit that nobody reads below an offset any more."""
    check_timeout(request.timeout_ms)
    if (request.before_offset is None) == (request.before_time_ms is None):
        raise InvalidRequestError("expected one of before_offset and before_time_ms")
    deadline_ms = broker.node.now_ms() + request.timeout_ms
    group = broker.leading_group(request.group)
    if group.group_id == METADATA_GROUP or group.application is not None:
        raise InvalidRequestError(f"{group.name} is not trimmed by command")
    if request.before_offset is None:
        assert request.before_time_ms is not None
        start = await start_position(broker, group, "time", request.before_time_ms)
    else:
        start = Offset(request.before_offset)
    commit_offset = group.commit_offset
    if not 0 <= start <= commit_offset:
        raise OffsetOutOfRangeError(
            f"cannot trim before offset {start}: committed are {group.log_start} to "
            f"{commit_offset}",
            group.log_start,
            commit_offset,
        )
    if start > group.log_start:
        control = encode_control(Trim(start_offset=start))
        now_ms = broker.env.wall_clock_ms()
        batch = seal_opaque(control, kind=BatchKind.CONTROL, timestamp_ms=now_ms)
        await group.commit(batch, deadline_ms)
    return TrimPartitionResponse(log_start=group.log_start)


async def describe_broker(broker: Broker, request: DescribeBrokerRequest) -> DescribeBrokerResponse:
    return DescribeBrokerResponse(
        node_id=broker.node.node,
        version=__version__,
        uptime_ms=broker.node.now_ms() - broker.started_ms,
        replicas=[
            *(_local_replica(group) for group in broker.node.groups.values()),
            *(
                LocalReplicaInfo(
                    group=group_id,
                    role="stopped",
                    term=0,
                    log_start=0,
                    log_end=0,
                    commit_offset=0,
                    reason=shut.reason,
                )
                for group_id, shut in broker.node.shut.items()
            ),
        ],
        peers_alive=[int(node) for node in broker.node.peers_up()],
        events=broker.events.told(broker.name_of, EVENTS_DESCRIBED_MAX),
        disk_full=broker.disk.is_full,
        disk_free_bytes=broker.disk.free_bytes,
        disk_room_bytes=broker.disk.room_bytes,
        fullest_quota=_fullest_quota(broker),
        disk_failing=broker.node.node in broker.node.fitness.failing_disks,
    )


def _fullest_quota(broker: Broker) -> QuotaInfo | None:
    fullest = broker.coordination.fullest()
    if fullest is None:
        return None
    used, namespace, quota = fullest
    return QuotaInfo(namespace=namespace, quota=quota, used=used)


def _local_replica(group: Group) -> LocalReplicaInfo:
    return LocalReplicaInfo(
        group=group.group_id,
        role=role_name(group),
        term=group.core.term,
        log_start=group.log_start,
        log_end=group.log.end_offset,
        commit_offset=Offset(group.commit_offset),
        reason=trouble_of(group),
        size_bytes=group.log.size_bytes,
        bytes_in=group.counts.bytes_in,
    )


ADMIN_HANDLERS: Final[dict[int, Callable[[Broker, Any], Awaitable[Message]]]] = {
    Kind.METADATA: metadata,
    Kind.INIT_PRODUCER: init_producer,
    Kind.CREATE_TOPIC: create_topic,
    Kind.DELETE_TOPIC: delete_topic,
    Kind.ALTER_TOPIC: alter_topic,
    Kind.DESCRIBE_PARTITION: describe_partition,
    Kind.TRANSFER_LEADER: transfer_leader,
    Kind.DESCRIBE_BROKER: describe_broker,
    Kind.TRIM_PARTITION: trim_partition,
    Kind.RAISE_FENCE: raise_fence,
    **REBALANCING_HANDLERS,
}
"""Request kind → handler."""
