"""Where a partition's log begins and ends, and what lies at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from logd.types import GroupId, NodeId, Offset
from logd.wire.messages import OffsetsRequest, OffsetsResponse, PartitionInfo
from logd_client.background import for_each

if TYPE_CHECKING:
    from logd_client.routing import Routing

_ASKED_AT_ONCE: Final = 64


async def ask_offsets(
    routing: Routing,
    topic: str,
    group: GroupId,
    *,
    time_ms: int | None = None,
    from_replica: int | None = None,
) -> OffsetsResponse:
    """Ask the leader of a partition, or the replica on a node.

    Raises:
        NotAReplicaError: ``from_replica`` holds no replica of the partition.
        LogdError: nobody answered in time.
    """
    if from_replica is None:
        request = OffsetsRequest(group=group, time_ms=time_ms)
        return await routing.call_leader(group, request, OffsetsResponse)
    node = NodeId(from_replica)
    await routing.require_replica(topic, group, node)
    request = OffsetsRequest(group=group, time_ms=time_ms, any_replica=True)
    return await routing.call_node(node, request, OffsetsResponse, group=group)


async def data_ends(
    routing: Routing, topic: str, partitions: Iterable[PartitionInfo], from_replica: int | None
) -> dict[int, Offset]:
    """Where the committed records of each partition end now, by its number."""
    ends: dict[int, Offset] = {}

    async def ask(partition: PartitionInfo) -> None:
        group = GroupId(partition.group)
        offsets = await ask_offsets(routing, topic, group, from_replica=from_replica)
        ends[partition.partition] = Offset(offsets.data_end)

    await for_each([(partition,) for partition in partitions], ask, at_once=_ASKED_AT_ONCE)
    return ends
