"""Fencing tokens carried to the log, which refuses those who were replaced.

A lease that is checked by its holder's clock protects nothing from a holder that stands still
between the check and the write.  So the write carries the lease's token, and the partition's
leader refuses one that is older than the newest it has seen (``FencedError``,
``may_have_applied=False``).  Raising a fence makes a partition see a token before anything is
written with it: from then on nothing of an earlier holder can land.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from logd.errors import UsageError
from logd.limits import COORDINATION_TIMEOUT_MS_MAX
from logd.types import GroupId
from logd.wire.messages import RaiseFenceRequest, RaiseFenceResponse
from logd_client.arguments import require_list, require_text
from logd_client.background import for_each
from logd_client.routing import Routing

_RAISES_AT_ONCE = 64
_FENCE_NUMBER_MAX = 2**64 - 1
"""What a batch's header holds."""


class Fence(NamedTuple):
    """What an append carries: which lock, election or shard, and which grant of it."""

    id: int
    token: int


class HasFence(Protocol):
    """A lease, or whatever else has been granted."""

    @property
    def fence(self) -> Fence: ...


def fence_of(fence: Fence | HasFence) -> Fence:
    """The fence of a lease; a fence stays as it is.

    Raises:
        UsageError: it is neither, or a lease that several may hold, or no batch can carry it.
    """
    found: object = fence
    if not isinstance(found, Fence):
        found = getattr(found, "fence", None)
    if not isinstance(found, Fence):
        raise UsageError(f"fence must be a lease, or a lease's fence, not {fence!r}")
    fence_id, token = found
    if not (
        type(fence_id) is type(token) is int
        and 0 < fence_id <= _FENCE_NUMBER_MAX  # 0 stands for none: the append would go unfenced.
        and 0 <= token <= _FENCE_NUMBER_MAX
    ):
        raise UsageError(f"a fence has an id from 1 and a token from 0, in 64 bits, not {found}")
    return found


async def require_topics(routing: Routing, names: Sequence[str]) -> None:
    """Accept topics that are to be protected.

    Raises:
        UnknownTopicError: there is no such topic.
        UsageError: not a list of names.
    """
    if isinstance(names, str):
        raise UsageError(f"protects must be a list of topics, not the str {names!r}")
    require_list("protects", names)
    for name in names:
        require_text("a topic", name)
    for name in names:
        await routing.topic(name)


async def raise_fences(
    routing: Routing, names: Sequence[str], fence: Fence
) -> dict[tuple[str, int], int]:
    """Have every partition of the topics ``names`` refuse what is older than ``fence``.

    Which they are is asked anew, of the controller: some may have been added since this client
    heard of the topic, and whoever held the lease before may know them.

    Returns:
        By topic and partition the offset below which all lies that older tokens have written.

    Raises:
        FencedError: a partition has seen a newer token: this lease is over.
        UnknownTopicError: there is no such topic.
        LogdError: a partition could not be reached in time; others may have been raised.

    Cancelled, some partitions may have been raised: that is harmless.
    """
    topics = [await routing.describe_topic(name, routing.controller_connection) for name in names]
    offsets: dict[tuple[str, int], int] = {}

    async def raise_one(topic: str, partition: int, group: GroupId) -> None:
        request = RaiseFenceRequest(
            group=group,
            fence_id=fence.id,
            token=fence.token,
            timeout_ms=min(int(routing.request_timeout_s * 1000), COORDINATION_TIMEOUT_MS_MAX),
        )
        response = await routing.call_leader(
            group, request, RaiseFenceResponse, effect="repeatable"
        )
        offsets[topic, partition] = response.offset

    rows = [
        (topic.name, row.partition, GroupId(row.group))
        for topic in topics
        for row in topic.partitions
    ]
    await for_each(rows, raise_one, at_once=_RAISES_AT_ONCE)
    return offsets
