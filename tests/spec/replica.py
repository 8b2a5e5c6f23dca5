"""A driver for one ``RaftCore`` over a disk made of lists: no task, no socket, no file.

It keeps the driver's side of the contract and nothing else: persist before send, cut before
append, the no-op first, configurations told as they are appended.  What a crash keeps is
the disk; when a sync begins and completes is the test's choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from logd.raft.core import RaftCore, RaftOptions
from logd.raft.messages import (
    Appended,
    BatchSpan,
    Configuration,
    Event,
    HardState,
    Message,
    Output,
    Received,
    SnapshotReceived,
    Synced,
)
from logd.raft.term_history import TermHistory
from logd.types import GroupId, NodeId, Offset, Term

GROUP = GroupId(7)
BATCH_BYTES = 100
NO_OP = "no-op"

Value = str | Configuration


class Batch(NamedTuple):
    """One batch with its content; a configuration is a control batch."""

    span: BatchSpan
    value: Value


@dataclass(frozen=True)
class Shipment:
    """State on its way from a leader to a follower that needs what was trimmed."""

    source: NodeId
    target: NodeId
    event: SnapshotReceived
    state_offset: Offset
    """Up to where batches are in the state: those below it are appended, and that is all."""
    batches: tuple[Batch, ...] = ()

    @property
    def message(self) -> Shipment:
        return self


class Envelope(NamedTuple):
    """A message and the batches that travel with it."""

    message: Message
    batches: tuple[Batch, ...] = ()

    @property
    def event(self) -> Received:
        return Received(self.message, tuple(batch.span for batch in self.batches))


@dataclass
class Disk:
    """What survives a crash."""

    hard_state: HardState = field(default_factory=lambda: HardState(Term(0), None))
    batches: list[Batch] = field(default_factory=list)
    commit_offset: Offset = field(default=Offset(0))
    """Of the synced mark: what was known to be committed when the last sync completed."""
    start: Offset = field(default=Offset(0))
    term_rows: tuple[tuple[Term, Offset], ...] = ()
    """Of what lies below the start."""
    state_offset: Offset = field(default=Offset(0))
    state_configuration: Configuration | None = None
    """As of the state at ``state_offset``, which may lie above the end of a log that began anew."""

    @property
    def end(self) -> Offset:
        return max(self.start, end_of(self.batches))


def end_of(batches: Sequence[Batch]) -> Offset:
    return batches[-1].span.end_offset if batches else Offset(0)


class Replica:
    """One running replica."""

    def __init__(
        self,
        node: NodeId,
        configuration: Configuration,
        disk: Disk,
        *,
        options: RaftOptions,
        draw: Callable[[], float],
        now_ms: int,
        tail: Sequence[Batch] = (),
        boot: int = 0,
    ) -> None:
        """Recover from ``disk`` and the part of the unsynced ``tail`` that the crash kept."""
        disk.batches += tail
        self.node = node
        self.disk = disk
        self.batches = list(disk.batches)
        self.syncs_done: deque[Synced] = deque()
        self._sync_count: int | None = None
        self._first = configuration
        self._commit_offset = max(disk.commit_offset, disk.start)
        terms = TermHistory(disk.term_rows)
        for batch in self.batches:
            terms.append(batch.span.term, batch.span.base_offset)
        self.core = RaftCore(
            node=node,
            group=GROUP,
            configuration=disk.state_configuration or configuration,
            configuration_changes=[
                (batch.span.base_offset, batch.value)
                for batch in self.batches
                if isinstance(batch.value, Configuration)
                if batch.span.base_offset >= disk.state_offset
            ],
            hard_state=disk.hard_state,
            term_history=terms,
            log_start=disk.start,
            log_end=disk.end,
            commit_offset=self._commit_offset,
            options=options,
            draw=draw,
            now_ms=now_ms,
            boot=boot,
        )

    @property
    def unsynced(self) -> list[Batch]:
        return self.batches[len(self.disk.batches) :]

    def step(
        self,
        event: Event,
        now_ms: int,
        batches: Sequence[Batch] = (),
        shipment: Shipment | None = None,
    ) -> tuple[Output, list[Envelope]]:
        """Step the core and do what it asks, except leading (``append`` the no-op next)."""
        output = self.core.step(event, now_ms)
        return output, self.carry_out(output, batches, now_ms, shipment)

    def trim(self, offset: Offset, state_offset: Offset) -> None:
        """Drop the batches below ``offset``, with a state at ``state_offset`` to begin from."""
        self.complete_sync()
        disk = self.disk
        assert disk.start <= offset <= state_offset <= min(self._commit_offset, disk.end)
        changes = [
            batch.value
            for batch in self.batches
            if isinstance(batch.value, Configuration) and batch.span.base_offset < state_offset
        ]
        disk.term_rows = tuple(row for row in self.core.term_history.rows if row[1] < offset)
        if state_offset >= disk.state_offset:
            disk.state_offset = state_offset
            known = disk.state_configuration or self._first
            disk.state_configuration = changes[-1] if changes else known
        disk.start = offset
        self.batches = [batch for batch in self.batches if batch.span.base_offset >= offset]
        disk.batches = [batch for batch in disk.batches if batch.span.base_offset >= offset]
        self.core.trim(offset)

    def ship(self, target: NodeId) -> Shipment | None:
        """What a follower behind the log's start needs; None if there is nothing to ship."""
        disk, core = self.disk, self.core
        if disk.state_configuration is None or not core.is_leader:
            return None
        event = SnapshotReceived(
            source=self.node,
            term=core.term,
            enrolment=core.progress(target).enrolment,
            start_offset=disk.start,
            term_rows=disk.term_rows,
            configuration=disk.state_configuration,
        )
        return Shipment(self.node, target, event, disk.state_offset)

    def carry_out(
        self,
        output: Output,
        batches: Sequence[Batch],
        now_ms: int,
        shipment: Shipment | None = None,
    ) -> list[Envelope]:
        envelopes = [Envelope(message) for message in output.send_now]
        if output.persist is not None:
            self.disk.hard_state = output.persist
        if output.truncate_to is not None:
            self._truncate(output.truncate_to)
        if output.install_snapshot:
            assert shipment is not None
            self._install(shipment)
        if output.append_from is not None:
            envelopes += self._write(batches[output.append_from :], now_ms)
        if output.commit_offset is not None:
            # Not before: until the cut and the append it is not these batches that are committed.
            self._commit_offset = output.commit_offset
        return envelopes + [Envelope(message) for message in output.send_after_persist]

    def append(self, value: Value, span_offsets: int, now_ms: int) -> tuple[Output, list[Envelope]]:
        """Append one batch as the leader."""
        base_offset = self.core.log_end
        span = BatchSpan(base_offset, Offset(base_offset + span_offsets), self.core.term)
        output = self.core.step(Appended((span,), isinstance(value, Configuration)), now_ms)
        envelopes = self.carry_out(output, (), now_ms)
        return output, envelopes + self._write([Batch(span, value)], now_ms)

    def pump(self, count_max: int, now_ms: int) -> list[Envelope]:
        """Send what the core says can be sent, up to ``count_max`` batches per request."""
        envelopes = []
        while sendable := self.core.sendable():
            follower = sendable[0]
            start = self.core.next_offset(follower)
            first = next(i for i, b in enumerate(self.batches) if b.span.base_offset == start)
            batches = tuple(self.batches[first : first + count_max])
            size_bytes = BATCH_BYTES * len(batches)
            request = self.core.make_append(follower, end_of(batches), size_bytes, now_ms)
            envelopes.append(Envelope(request, batches))
        for follower in self.core.commit_lagging():
            end_offset = self.core.next_offset(follower)
            envelopes.append(Envelope(self.core.make_append(follower, end_offset, 0, now_ms)))
        return envelopes

    def begin_sync(self) -> bool:
        """Begin to sync all there is; False: nothing to do, or one is under way."""
        if self._sync_count is not None or not self.unsynced:
            return False
        self._sync_count = len(self.batches)
        return True

    def complete_sync(self) -> bool:
        """Make durable what the sync under way covers; its event waits in ``syncs_done``."""
        if self._sync_count is None:
            return False
        self.disk.batches += self.batches[len(self.disk.batches) : self._sync_count]
        self.disk.commit_offset = min(self._commit_offset, self.disk.end)
        self.syncs_done.append(Synced(self.disk.end, self.disk.batches[-1].span.term))
        self._sync_count = None
        return True

    def _install(self, shipment: Shipment) -> None:
        self.complete_sync()  # As for a cut.
        disk, event = self.disk, shipment.event
        self.batches, disk.batches = [], []
        disk.start, disk.term_rows = event.start_offset, event.term_rows
        disk.commit_offset = event.start_offset
        disk.state_offset = shipment.state_offset
        disk.state_configuration = event.configuration

    def _truncate(self, offset: Offset) -> None:
        self.complete_sync()  # A cut waits for the sync under way; the event comes late.
        assert max(self.disk.commit_offset, self.disk.state_offset) <= offset
        self.batches = [batch for batch in self.batches if batch.span.base_offset < offset]
        assert (end_of(self.batches) or self.disk.start) == offset
        del self.disk.batches[len(self.batches) :]

    def _write(self, batches: Sequence[Batch], now_ms: int) -> list[Envelope]:
        envelopes: list[Envelope] = []
        for batch in batches:
            assert batch.span.base_offset == (end_of(self.batches) or self.disk.start)
            self.batches.append(batch)
        for batch in batches:
            is_news = batch.span.base_offset >= self.disk.state_offset
            if isinstance(batch.value, Configuration) and is_news:
                output = self.core.apply_configuration(batch.span.base_offset, batch.value, now_ms)
                envelopes += self.carry_out(output, (), now_ms)
        assert (end_of(self.batches) or self.disk.start) == self.core.log_end
        return envelopes
