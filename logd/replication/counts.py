"""What a broker counts while it works: plain numbers on the objects that do the work.

Whoever wants to know reads them; nothing is computed, labelled or locked when something is
counted.  The busiest counters move once per group of batches that shared a write, a commit
or a sync, never once per record, so that being watched costs next to nothing.

Counters only grow for as long as the process lives.  Those of a partition outlive its replica
here (a moved partition that comes back goes on counting), or a rate over them would jump.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

SECONDS_BOUNDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
"""Inclusive upper bounds in seconds: from a sync of a fast disk to an outage."""


class Histogram:
    """How long something took: observations per bucket, and their sum."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BOUNDS) + 1)
        """Per bucket, not cumulative; the last one has no upper bound."""
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.total_s += seconds

    def quantile(self, share: float) -> float | None:
        """The upper bound of the bucket that holds the quantile; None without observations.

        Of the last bucket the largest bound there is: it may have been longer.
        """
        assert 0.0 < share <= 1.0
        wanted = share * sum(self.counts)
        seen = 0
        for bound, count in zip(SECONDS_BOUNDS, self.counts, strict=False):
            seen += count
            if seen and seen >= wanted:
                return bound
        return SECONDS_BOUNDS[-1] if sum(self.counts) else None


@dataclass(slots=True)
class GroupCounts:
    """One partition's traffic through this broker.  Records are offsets: control batches,
    a handful per term, count with them."""

    batches_in: int = 0
    """Appended as the leader."""
    records_in: int = 0
    bytes_in: int = 0
    batches_replicated: int = 0
    """Appended as a follower."""
    bytes_replicated: int = 0
    records_out: int = 0
    """Handed to consumers."""
    bytes_out: int = 0
    elections_won: int = 0
    leaderships_lost: int = 0
    leader_changes: int = 0
    """Leaders that this replica came to know, itself included."""
    restarts_with_loss: int = 0
    """Times that it began to lead although a majority had lost its memory."""

    def delivered(self, records: int, size_bytes: int) -> None:
        """Committed batches are on their way to a consumer."""
        self.records_out += records
        self.bytes_out += size_bytes


@dataclass(slots=True)
class NodeCounts:
    """What all groups of one broker share."""

    commit_s: Histogram = field(default_factory=Histogram)
    """From a write by the leader to its commit; one observation per write."""
    sync_s: Histogram = field(default_factory=Histogram)
    """Syncs of logs, with the wait for a thread if it takes one."""
    holes_found: int = 0
    holes_repaired: int = 0
    peers_lost: int = 0
    """How often another broker was given up."""
