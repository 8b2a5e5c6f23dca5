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

    @property
    def end(self) -> Offset:
        return end_of(self.batches)


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
    ) -> None:
        """Recover from ``disk`` and the part of the unsynced ``tail`` that the crash kept."""
        disk.batches += tail
        self.node = node
        self.disk = disk
        self.batches = list(disk.batches)
        self.syncs_done: deque[Synced] = deque()
        self._sync_count: int | None = None
        self._commit_offset = disk.commit_offset
        terms = TermHistory()
        for batch in self.batches:
            terms.append(batch.span.term, batch.span.base_offset)
        self.core = RaftCore(
            node=node,
            group=GROUP,
            configuration=configuration,
            configuration_changes=[
                (batch.span.base_offset, batch.value)
                for batch in self.batches
                if isinstance(batch.value, Configuration)
            ],
            hard_state=disk.hard_state,
            term_history=terms,
            log_start=Offset(0),
            log_end=disk.end,
            commit_offset=disk.commit_offset,
            options=options,
            draw=draw,
            now_ms=now_ms,
        )

    @property
    def unsynced(self) -> list[Batch]:
        return self.batches[len(self.disk.batches) :]

    def step(
        self, event: Event, now_ms: int, batches: Sequence[Batch] = ()
    ) -> tuple[Output, list[Envelope]]:
        """Step the core and do what it asks, except leading (``append`` the no-op next)."""
        output = self.core.step(event, now_ms)
        return output, self.carry_out(output, batches, now_ms)

    def carry_out(self, output: Output, batches: Sequence[Batch], now_ms: int) -> list[Envelope]:
        envelopes = [Envelope(message) for message in output.send_now]
        if output.persist is not None:
            self.disk.hard_state = output.persist
        if output.truncate_to is not None:
            self._truncate(output.truncate_to)
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
        output = self.core.step(Appended((span,)), now_ms)
        envelopes = self.carry_out(output, (), now_ms)
        return output, envelopes + self._write([Batch(span, value)], now_ms)

    def pump(self, count_max: int) -> list[Envelope]:
        """Send what the core says can be sent, up to ``count_max`` batches per request."""
        envelopes = []
        while sendable := self.core.sendable():
            follower = sendable[0]
            start = self.core.next_offset(follower)
            first = next(i for i, b in enumerate(self.batches) if b.span.base_offset == start)
            batches = tuple(self.batches[first : first + count_max])
            size_bytes = BATCH_BYTES * len(batches)
            request = self.core.make_append(follower, end_of(batches), size_bytes)
            envelopes.append(Envelope(request, batches))
        for follower in self.core.commit_lagging():
            end_offset = self.core.next_offset(follower)
            envelopes.append(Envelope(self.core.make_append(follower, end_offset, 0)))
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

    def _truncate(self, offset: Offset) -> None:
        self.complete_sync()  # A cut waits for the sync under way; the event comes late.
        assert self.disk.commit_offset <= offset
        self.batches = [batch for batch in self.batches if batch.span.base_offset < offset]
        assert end_of(self.batches) == offset
        del self.disk.batches[len(self.batches) :]

    def _write(self, batches: Sequence[Batch], now_ms: int) -> list[Envelope]:
        envelopes: list[Envelope] = []
        for batch in batches:
            assert batch.span.base_offset == end_of(self.batches)
            self.batches.append(batch)
        for batch in batches:
            if isinstance(batch.value, Configuration):
                output = self.core.apply_configuration(batch.span.base_offset, batch.value, now_ms)
                envelopes += self.carry_out(output, (), now_ms)
        assert end_of(self.batches) == self.core.log_end
        return envelopes
