"""What a leader knows about one follower, and how far it has sent ahead.

Two states.  In PROBE the leader does not know where the logs agree: it sends one empty
request and waits for the answer.  In PIPELINE it sends without waiting, within a window of
bytes that have not been acknowledged as durable.  Anything that may have lost a request (a
new connection, a silence, a refusal) leads back to PROBE; an accepted request leads out.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from logd.types import NodeId, Offset


class ProgressState(IntEnum):
    PROBE = 0
    PIPELINE = 1


class Progress:
    """``match ≤ next_offset`` always; ``match`` is durable on the follower and never falls."""

    __slots__ = (
        "doubt",
        "enrolment",
        "held",
        "in_flight",
        "in_flight_bytes",
        "is_agreeing",
        "is_departing",
        "is_up",
        "match",
        "next_offset",
        "node",
        "retry_at_ms",
        "round_echoed",
        "sent_commit",
        "state",
        "whole_end",
    )

    def __init__(self, node: NodeId, next_offset: Offset, is_up: bool, enrolment: Offset) -> None:
        self.node = node
        self.enrolment = enrolment
        """Which membership of this node: only answers that echo it count."""
        self.is_departing = False
        """It was left out, and is only sent what tells it so."""
        self.state = ProgressState.PROBE
        self.next_offset = next_offset
        self.match = Offset(0)
        """Below it the follower's log is durable and equals the leader's."""
        self.held = Offset(0)
        """Below it the follower vouches for the leader's log, be it in memory.  Not below ``match``
        in effect; it ends when the follower says that it has lost its memory."""
        self.doubt = 0
        """The boot in which it found that it had; 0: it is whole."""
        self.whole_end = Offset(0)
        """Where the leader's log ended when it noticed: caught up to there it is whole again."""
        self.in_flight: deque[tuple[Offset, int]] = deque()
        """(end offset, bytes) of each request that is not acknowledged, oldest first."""
        self.in_flight_bytes = 0
        self.sent_commit = Offset(0)
        """The commit offset the last request carried."""
        self.round_echoed = 0
        self.is_up = is_up
        """By the failure detector."""
        self.is_agreeing = False
        """It is up and has answered this leader in this term since it was last connected."""
        self.retry_at_ms: int | None = None
        """When silence has lasted too long; None: nothing is awaited."""

    def probe_again(self, log_start: Offset) -> None:
        """Requests may have been lost: ask where to go on, at the log's start at the lowest.

        What is in flight stays in the books until the answer tells what has arrived, or a
        slow disk would be sent a new window with each silence.
        """
        if self.state is ProgressState.PIPELINE:
            self.state = ProgressState.PROBE
            self.next_offset = max(self.match, log_start)

    def probe_from(self, next_offset: Offset) -> None:
        """The follower refused: try at ``next_offset``."""
        assert next_offset >= self.match
        self.state = ProgressState.PROBE
        self.next_offset = next_offset
        self._drop_in_flight_above(next_offset)

    def lose_contact(self, log_start: Offset) -> None:
        """The node is down: nothing is in flight, nothing is awaited."""
        self.probe_again(log_start)
        self.is_up = self.is_agreeing = False
        self.retry_at_ms = None
        self._drop_in_flight_above(self.match)

    def enter_pipeline(self, received_end: Offset) -> None:
        """The follower accepted a probe and has everything below ``received_end``."""
        self.state = ProgressState.PIPELINE
        self.next_offset = max(self.match, received_end)
        self._drop_in_flight_above(self.next_offset)

    def sent(self, end_offset: Offset, size_bytes: int) -> None:
        """A request with the batches [next_offset, end_offset) is on its way."""
        assert self.state is ProgressState.PIPELINE
        assert end_offset > self.next_offset
        self.next_offset = end_offset
        self.in_flight.append((end_offset, size_bytes))
        self.in_flight_bytes += size_bytes

    def acknowledge(self, synced_end: Offset) -> bool:
        """The follower is durable below ``synced_end``; whether that is news."""
        if synced_end <= self.match:
            return False
        self.match = synced_end
        if self.next_offset < synced_end:
            self.next_offset = synced_end
        in_flight = self.in_flight
        while in_flight and in_flight[0][0] <= synced_end:
            self.in_flight_bytes -= in_flight.popleft()[1]
        return True

    def hold(self, held_end: Offset) -> bool:
        """The follower vouches for everything below ``held_end``; whether that is news.

        Until it is synced it stays in flight, so the window bounds what a follower has not synced.
        """
        if held_end <= self.held:
            return False
        self.held = held_end
        return True

    def note_doubt(self, doubt: int, log_end: Offset) -> bool:
        """The follower is whole (0), or lost its memory before that boot; whether that is news."""
        if doubt == self.doubt:
            return False
        self.doubt = doubt
        self.held = Offset(0)
        self.whole_end = log_end if doubt else Offset(0)
        return doubt != 0

    def _drop_in_flight_above(self, offset: Offset) -> None:
        while self.in_flight and self.in_flight[-1][0] > offset:
            self.in_flight_bytes -= self.in_flight.pop()[1]
