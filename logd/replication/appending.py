"""Puts batches into one replica's log, and notes in the partition's state what they do.

A leader's own batches are noted first, when each is given its place, because the next one is
judged by that state; then all of them are written at once.  A follower writes what its leader
sent, and notes it then.  Either way log and state end at the same offset when the group's turn
is over.

Append times are the leader's: its monotonic clock on top of what the log said when it was
elected, so that they never go back, whatever the wall clock does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from logd.errors import LogdError
from logd.limits import KIB
from logd.record.batch import seal_opaque
from logd.record.control import ConfigurationChange, Control, decode_control, encode_control
from logd.record.header import (
    HEADER_BYTES,
    LEADER_PART_BYTES,
    BatchHeader,
    BatchKind,
    decode_header,
    leader_part,
)
from logd.replication.opening import configuration_of
from logd.storage.log import LogBatch
from logd.types import Buffer, Offset

if TYPE_CHECKING:
    from logd.raft.core import RaftCore
    from logd.replication.group import Group
    from logd.replication.received import ReceivedBatch
    from logd.replication.seams import GroupHost

CONTROL_BYTES_MAX: Final = 1 * KIB
"""A control batch is no longer than this."""


class Appender:
    """Appends to the log of one group."""

    __slots__ = ("_core", "_group", "_host", "_log_time_base_ms", "_written")

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._core: RaftCore = group.core
        self._host = host
        self._log_time_base_ms = 0
        self._written: deque[tuple[Offset, float]] = deque()
        """As the leader: ends of writes that are not committed yet, and when they were made."""

    # --- as the leader ------------------------------------------------------------------------

    def begin_leading(self) -> None:
        """Let log time go on from where the log, or else the wall clock, stands."""
        self._log_time_base_ms = (
            max(self._host.env.wall_clock_ms(), self._group.state.last_append_time_ms)
            - self._host.now_ms()
        )

    def end_leading(self) -> None:
        """When what was written will be committed is not known here any more."""
        self._written.clear()

    def _log_time_ms(self) -> int:
        """This leader's clock: monotonic, and never behind what the log already says."""
        last_ms = self._group.state.last_append_time_ms
        return max(self._log_time_base_ms + self._host.now_ms(), last_ms)

    def place(self, batch: Buffer, header: BatchHeader) -> LogBatch:
        """Give a batch the next offsets and the leader's part, and note it in the state."""
        group = self._group
        base = group.state.end_offset
        term = self._core.term
        now_ms = self._log_time_ms()
        part = leader_part(
            batch, base_offset=base, term=term, append_time_ms=now_ms, group=group.group_id
        )
        placed = LogBatch(
            base_offset=base,
            end_offset=Offset(base + header.offset_span),
            term=term,
            append_time_ms=now_ms,
            is_data=not header.is_control,
            size_bytes=header.size_bytes,
            buffers=(part, memoryview(batch)[LEADER_PART_BYTES:]),
        )
        self._note(header, placed)
        return placed

    def place_control(self, control: Control) -> LogBatch:
        """As ``place``, of a batch that is this leader's own."""
        batch = seal_opaque(
            encode_control(control), kind=BatchKind.CONTROL, timestamp_ms=self._log_time_ms()
        )
        return self.place(batch, decode_header(batch))

    def write_placed(self, batches: list[LogBatch]) -> bool:
        """Write what was placed; False if the log failed."""
        size = self._write(batches)
        if not size:
            return False
        self._written.append((batches[-1].end_offset, trio.current_time()))
        counts = self._group.counts
        counts.batches_in += len(batches)
        counts.bytes_in += size
        counts.records_in += batches[-1].end_offset - batches[0].base_offset
        return True

    def count_commits(self, commit_offset: Offset) -> None:
        """The commit offset has moved: note how long that took what lies below it."""
        written = self._written
        if not written:
            return
        now, commit_s = trio.current_time(), self._host.counts.commit_s
        while written and written[0][0] <= commit_offset:
            commit_s.observe(now - written.popleft()[1])

    # --- as a follower ------------------------------------------------------------------------

    def write_received(self, batches: tuple[ReceivedBatch, ...]) -> bool:
        """Write a leader's batches, and put in force what they say; False if that failed."""
        group = self._group
        written = [batch.log_batch for batch in batches]
        size = self._write(written)
        if not size:
            return False
        group.counts.batches_replicated += len(written)
        group.counts.bytes_replicated += size
        try:
            for batch in batches:
                placed = batch.log_batch
                control = self._note(batch.header, placed)
                if isinstance(control, ConfigurationChange):
                    group.members.put_in_force(placed.base_offset, configuration_of(control))
        except LogdError as error:
            # Intact, but not of this version: what follows from it cannot be known here.
            group.fail(error)
            return False
        return True

    # --- as either ----------------------------------------------------------------------------

    def _write(self, batches: list[LogBatch]) -> int:
        """Bytes written; 0 if the log failed."""
        group = self._group
        try:
            size = group.log.append(batches)
        except (OSError, LogdError) as error:
            group.fail(error)
            return 0
        self._host.tail_cache.add(group.group_id, batches)
        self._host.request_sync(group)
        return size

    def _note(self, header: BatchHeader, batch: LogBatch) -> Control | None:
        """Note ``batch`` in the state; its place may not be in ``header`` yet."""
        group = self._group
        base_offset = batch.base_offset
        if base_offset < group.state.end_offset:
            return None  # The state was shipped, and has it.
        control = None
        if not batch.is_data:
            control = decode_control(b"".join(batch.buffers)[HEADER_BYTES:])
        group.state.note_placed(header, base_offset, batch.append_time_ms, control)
        group.checkpoints.batches_since += 1
        return control
