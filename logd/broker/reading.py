"""Reading without a subscription: bounded fetches, and where a log begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from logd.broker.subscriptions import find_replica, start_position
from logd.errors import CorruptionError, InvalidRequestError, ReplicaDamagedError
from logd.limits import FETCH_BYTES_MAX
from logd.replication.group import Group
from logd.replication.log_reader import CommittedBatches
from logd.types import Offset
from logd.wire.messages import (
    FetchRequest,
    FetchResponse,
    OffsetsRequest,
    OffsetsResponse,
)

if TYPE_CHECKING:
    from logd.broker.broker import Broker

FETCH_WAIT_MS_MAX: Final = 60_000


class _CommitWaiter:
    """Wakes a long poll when anything is committed, or when the leader changes."""

    def __init__(self) -> None:
        self.changed = trio.Event()

    def on_commit(self, commit_offset: Offset) -> None:
        self.changed.set()

    def on_leadership_lost(self) -> None:
        self.changed.set()


async def until_committed(broker: Broker, request: FetchRequest) -> None:
    """Wait until something is committed at the offset, for no longer than ``wait_ms``."""
    if not 0 < request.bytes_max <= FETCH_BYTES_MAX:
        raise InvalidRequestError(
            f"bytes_max is {request.bytes_max}, expected 1 to {FETCH_BYTES_MAX}"
        )
    if not 0 <= request.wait_ms <= FETCH_WAIT_MS_MAX:
        raise InvalidRequestError(
            f"wait_ms is {request.wait_ms}, expected 0 to {FETCH_WAIT_MS_MAX}"
        )
    group = find_replica(broker, request.group, any_replica=request.any_replica)
    offset = await start_position(broker, group, "offset", request.offset)
    if offset >= group.commit_offset and request.wait_ms:
        await _wait_for_commit(group, request.wait_ms)


async def fetch(
    broker: Broker, request: FetchRequest, room_bytes: int
) -> tuple[FetchResponse, CommittedBatches | None]:
    """The committed batches from ``offset`` on that there is room for, or one, if there are any."""
    group = find_replica(broker, request.group, any_replica=request.any_replica)
    offset = Offset(request.offset)
    try:
        found = await group.reader.read_committed(offset, min(request.bytes_max, room_bytes))
    except CorruptionError as error:
        raise ReplicaDamagedError(str(error)) from error
    if found is not None:
        group.counts.delivered(found.end_offset - offset, found.size_bytes)
    return (
        FetchResponse(
            next_offset=offset if found is None else found.end_offset,
            log_start=group.log_start,
            commit_offset=group.commit_offset,
        ),
        found,
    )


async def _wait_for_commit(group: Group, wait_ms: int) -> None:
    waiter = _CommitWaiter()
    key = group.watch(waiter)
    try:
        with trio.move_on_after(wait_ms / 1000):
            await waiter.changed.wait()
    finally:
        group.unwatch(key)


async def offsets(broker: Broker, request: OffsetsRequest) -> OffsetsResponse:
    """Where the log begins and ends, and what lies at a time."""
    group = find_replica(broker, request.group, any_replica=request.any_replica)
    if not request.any_replica:
        await group.leadership.confirmed()
    time_offset = None
    if request.time_ms is not None:
        time_offset = await start_position(broker, group, "time", request.time_ms)
    return OffsetsResponse(
        log_start=group.log_start,
        commit_offset=group.commit_offset,
        data_end=group.committed_data_end,
        time_offset=time_offset,
    )
