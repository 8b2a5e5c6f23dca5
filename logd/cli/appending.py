"""Keep a producer busy without losing the order.

One ``append_many`` at a time would leave the cluster idle while its acknowledgement
travels, so a few are under way together.  They are *started* strictly one after the other:
``TaskGroup.start`` returns only once the call has begun, and a producer queues the values of
a call as it begins, unless its buffer is full.  So the buffer must never be full: what may
be under way together is less than what it holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import anyio
import anyio.abc

from logd.errors import PartialAppendError
from logd.limits import MIB, RECORD_BYTES_MAX
from logd_client.accumulator import RECORD_OVERHEAD_BYTES
from logd_client.budget import TAKEN_PER_LEFT
from logd_client.producer import BATCHES_IN_FLIGHT_DEFAULT, BUFFER_BYTES_DEFAULT

if TYPE_CHECKING:
    from logd_client import AckRange, Producer
    from logd_client.coordination.fences import Fence

CALLS_UNDER_WAY_MAX: Final = BATCHES_IN_FLIGHT_DEFAULT
"""A call is about as large as a batch.  With fewer the brokers have less to do in one go: half as
many cost a sixth of the rate where the disk is quick, and answer in half the time."""
RECORDS_PER_CALL_MAX: Final = 32_768
CALL_BYTES_MAX: Final = 2 * MIB
"""Keys and values of one call."""

# Calls that wait for the producer's buffer could overtake each other, and all may be for one
# partition.
assert CALLS_UNDER_WAY_MAX * (
    CALL_BYTES_MAX + RECORDS_PER_CALL_MAX * RECORD_OVERHEAD_BYTES
) <= BUFFER_BYTES_DEFAULT * TAKEN_PER_LEFT // (TAKEN_PER_LEFT + 1)

OnAppended = Callable[[Sequence["AckRange"], float], None]
"""Called with each call's acknowledgements and the seconds they took."""


class AppendLane:
    """Appends of one producer: ordered, several under way, bounded."""

    def __init__(
        self,
        producer: Producer,
        tasks: anyio.abc.TaskGroup,
        on_appended: OnAppended,
        fence: Fence | None = None,
    ) -> None:
        """``fence`` is carried by all that is appended."""
        self._fence = fence
        self._producer = producer
        self._tasks = tasks
        self._on_appended = on_appended
        self._slots = anyio.Semaphore(CALLS_UNDER_WAY_MAX)

    async def append(
        self,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partition: int | None = None,
    ) -> None:
        """Begin to append ``values`` and return; waits while enough is under way.

        At most ``RECORDS_PER_CALL_MAX`` values of ``CALL_BYTES_MAX`` bytes together.

        An error of the append surfaces in the task group.
        """
        assert len(values) <= RECORDS_PER_CALL_MAX
        await self._slots.acquire()
        await self._tasks.start(self._append, values, keys, partition)

    async def _append(
        self,
        values: Sequence[bytes],
        keys: Sequence[bytes | None] | None,
        partition: int | None,
        *,
        task_status: anyio.abc.TaskStatus[None],
    ) -> None:
        began = time.perf_counter()
        task_status.started()
        try:
            acks = await self._producer.append_many(
                values, keys=keys, partition=partition, fence=self._fence
            )
        except PartialAppendError as error:
            acks = cast("tuple[AckRange, ...]", error.acks)
            self._on_appended(acks, time.perf_counter() - began)
            # Positions within this call mean nothing to whoever knows lines.
            raise error.failures[0][2] from error
        self._slots.release()
        self._on_appended(acks, time.perf_counter() - began)


class LineLane:
    """Appends of lines that are values, or key and value."""

    line_bytes_max: Final = RECORD_BYTES_MAX
    line_limit: Final = "the record limit"

    def __init__(self, lane: AppendLane, *, separator: bytes | None, partition: int | None) -> None:
        self._lane = lane
        self._separator = separator
        self._partition = partition

    async def append(self, lines: list[bytes]) -> None:
        """Begin to append, as many at a time as a call takes."""
        for first in range(0, len(lines), RECORDS_PER_CALL_MAX):
            part = lines[first : first + RECORDS_PER_CALL_MAX]
            keys, values = split_keys(part, self._separator)
            await self._lane.append(values, keys=keys, partition=self._partition)

    async def finish(self) -> None:
        """What is under way is waited for by the task group."""


def split_keys(
    lines: list[bytes], separator: bytes | None
) -> tuple[Sequence[bytes | None] | None, Sequence[bytes]]:
    """Keys and values; a line without the separator has no key."""
    if separator is None:
        return None, lines
    keys: list[bytes | None] = []
    values: list[bytes] = []
    for line in lines:
        before, found, after = line.partition(separator)
        keys.append(before if found else None)
        values.append(after if found else line)
    return keys, values
