"""The metadata as bytes: what a broker keeps of it, and ships to those that need what is gone.

Format: a magic with the format's number, then one MessagePack map.  What can be derived (who holds
what, loads) is not in it.  A field that is added has a default, so that what an older version kept
can be read; a change that older versions must not overlook takes another format.

A snapshot that was read is one that commands could have led to, as far as that is relied on later:
M1 and M2 of ``state.py`` hold in it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from logd.errors import CorruptionError, NewerFormatError
from logd.limits import FEATURE_LEVEL, FEATURE_LEVEL_MIN
from logd.metadata.layout import Broker, PartitionPlacement, Topic
from logd.metadata.moves import Plan, RebalanceSettings, RemovedBroker
from logd.metadata.names import quoted
from logd.record.state_magic import StateMagic
from logd.types import METADATA_GROUP, DirectoryId, GroupId, NodeId, Offset, ProducerId, TopicId

_MAGIC: Final = StateMagic(b"logd metadata ", 2, "metadata snapshot")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of the state that is not derived from the rest of it."""

    version: Offset
    cluster_id: str | None
    voters: dict[NodeId, DirectoryId]
    brokers: list[Broker]
    topics: list[Topic]
    next_topic_id: TopicId
    next_group: GroupId
    next_producer_id: ProducerId
    layout_version: Offset = Offset(0)
    removed: list[RemovedBroker] = []
    plan: Plan | None = None
    next_plan_id: int = 1
    settings: RebalanceSettings = RebalanceSettings()
    feature_level: int = 1


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Snapshot)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    return _MAGIC.written + _ENCODER.encode(snapshot)


def decode_snapshot(payload: bytes | memoryview) -> Snapshot:
    """Read and check a snapshot.

    Raises:
        NewerFormatError: a newer version of logd wrote it.
        CorruptionError: it is not a snapshot.
    """
    _MAGIC.check(payload)
    try:
        snapshot = _DECODER.decode(payload[len(_MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"metadata snapshot cannot be read: {error}") from error
    plan = snapshot.plan
    if plan is not None and len(plan.moves) != len(plan.states):
        raise CorruptionError(
            f"metadata snapshot has a plan of {len(plan.moves)} moves, "
            f"of which {len(plan.states)} have a state"
        )
    if not FEATURE_LEVEL_MIN <= snapshot.feature_level <= FEATURE_LEVEL:
        raise NewerFormatError(
            f"the cluster is at feature level {snapshot.feature_level}, this version supports "
            f"{FEATURE_LEVEL_MIN} to {FEATURE_LEVEL}"
        )
    _check_topics(snapshot)
    return snapshot


def _check_topics(snapshot: Snapshot) -> None:
    """M1 and M2, which everything after relies on."""
    brokers = {broker.node for broker in snapshot.brokers}
    names: set[str] = set()
    groups: set[GroupId] = set()
    for topic in snapshot.topics:
        if topic.topic_id >= snapshot.next_topic_id or topic.name in names:
            raise CorruptionError(
                f"metadata snapshot holds topic {quoted(topic.name)} twice, or its id "
                f"{topic.topic_id}, though the next one is {snapshot.next_topic_id}"
            )
        names.add(topic.name)
        for number, placement in enumerate(topic.partitions):
            _check_identity(placement, topic, number)
            group = placement.group
            if group in groups or not METADATA_GROUP < group < snapshot.next_group:
                raise CorruptionError(
                    f"metadata snapshot gives {placement.name} the group {group}, "
                    f"which is another's or not below {snapshot.next_group}"
                )
            groups.add(group)
            _check_replicas(placement, brokers)


def _check_identity(placement: PartitionPlacement, topic: Topic, number: int) -> None:
    named = (placement.topic, placement.topic_id, placement.partition)
    if named != (topic.name, topic.topic_id, number):
        raise CorruptionError(
            f"metadata snapshot names partition {number} of {quoted(topic.name)} {named}"
        )


def _check_replicas(placement: PartitionPlacement, brokers: set[NodeId]) -> None:
    replicas = placement.replicas
    are_different = len(set(replicas)) == len(replicas) > 0
    if not (are_different and brokers.issuperset(placement.holders)):
        raise CorruptionError(
            f"metadata snapshot places {placement.name} on brokers {replicas}, "
            "not all of them registered and different"
        )
