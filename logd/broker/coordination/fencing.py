"""Raising a fence in a partition that a lock protects, before its holder is told of the lock.

From the commit on nobody who held the lock before can append there, whether or not the new holder
ever writes.  A token is a revision at which a lock was granted: whoever brings a larger one has
been granted the lock since, so an older one is refused although nothing here knows the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logd.errors import FencedError, InvalidRequestError
from logd.limits import COORDINATION_TIMEOUT_MS_MAX
from logd.record.batch import seal_opaque
from logd.record.control import RaiseFence, encode_control
from logd.record.header import BatchKind
from logd.types import METADATA_GROUP
from logd.wire.messages import RaiseFenceRequest, RaiseFenceResponse

if TYPE_CHECKING:
    from logd.broker.broker import Broker

_U64_MAX = 2**64 - 1


async def raise_fence(broker: Broker, request: RaiseFenceRequest) -> RaiseFenceResponse:
    """Commit that appends with an older token are refused from here on."""
    if not 0 < request.timeout_ms <= COORDINATION_TIMEOUT_MS_MAX:
        raise InvalidRequestError(
            f"timeout_ms is {request.timeout_ms}, expected 1 to {COORDINATION_TIMEOUT_MS_MAX}"
        )
    if not 1 <= request.fence_id <= _U64_MAX:
        raise InvalidRequestError(f"fence_id is {request.fence_id}, expected 1 to {_U64_MAX}")
    if not 0 <= request.token <= _U64_MAX:
        raise InvalidRequestError(f"token is {request.token}, expected 0 to {_U64_MAX}")
    deadline_ms = broker.node.now_ms() + request.timeout_ms
    group = broker.leading_group(request.group)
    if group.group_id == METADATA_GROUP or group.application is not None:
        raise InvalidRequestError(f"{group.name} takes commands, and no fences")
    broker.disk.check()
    group.feeder.check_disks()
    try:
        group.state.fences.check(request.fence_id, request.token)
    except FencedError:
        # By a leader that was deposed, or a fence that is not committed yet: ask again then.
        await group.leadership.confirmed()
        group.state.fences.check(request.fence_id, request.token)
    control = encode_control(RaiseFence(fence_id=request.fence_id, fence_token=request.token))
    batch = seal_opaque(control, kind=BatchKind.CONTROL, timestamp_ms=broker.env.wall_clock_ms())
    placed = await group.commit(batch, deadline_ms)
    # A newer one may have come in between: then this batch changed nothing.
    group.state.fences.check(request.fence_id, request.token)
    return RaiseFenceResponse(offset=placed.end_offset)
