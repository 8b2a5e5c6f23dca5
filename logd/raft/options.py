"""What may be tuned about consensus.  Safety never depends on any of it."""

from __future__ import annotations

from dataclasses import dataclass

from logd.errors import UsageError
from logd.limits import PEER_WINDOW_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftOptions:
    """How patient one replica is, and how much it sends ahead."""

    campaign_stagger_ms: int = 50
    """A replica without a leader waits this long for each live voter preferred to itself.

    Long enough for one election (two round trips and two syncs), so that the second in line
    rarely disturbs the first.
    """

    campaign_jitter_ms: int = 20
    """Random part of that first wait: many groups that lose one node do not all start at once."""

    election_timeout_ms_min: int = 150
    election_timeout_ms_max: int = 300
    """A campaign that has not been decided is repeated after a random time in this range; it
    grows by half with each failure, up to four times."""

    check_quorum_ms: int = 1000
    """A leader that has not had a quorum alive and agreeing for this long steps down."""

    probe_retry_ms: int = 500
    """A probe that a live follower has not answered is repeated after this time."""

    append_retry_ms: int = 2000
    """Appends to a live follower that have made no progress for this long are probed for."""

    transfer_timeout_ms: int = 1000
    """A leadership transfer that has not happened by then is given up."""

    farewell_ms: int = 500
    """A member that was left out is sent what follows for so long, so that it learns of it."""

    restart_wait_ms: int = 30_000
    """If a majority of the voters has lost its memory, so long the rest is waited for that could
    have the longest log.  Voters that are alive but do not answer are waited for twice as long."""

    window_bytes_max: int = PEER_WINDOW_BYTES_MAX
    """Bytes sent to one follower and not acknowledged; one request may pass the bound."""

    def __post_init__(self) -> None:
        for holds, rule in (
            (self.campaign_stagger_ms >= 0, "campaign_stagger_ms must not be negative"),
            (self.campaign_jitter_ms >= 0, "campaign_jitter_ms must not be negative"),
            (self.election_timeout_ms_min > 0, "election_timeout_ms_min must be positive"),
            (
                self.election_timeout_ms_max >= self.election_timeout_ms_min,
                "election_timeout_ms_max must not be below election_timeout_ms_min",
            ),
            (self.check_quorum_ms > 0, "check_quorum_ms must be positive"),
            (self.probe_retry_ms > 0, "probe_retry_ms must be positive"),
            (self.append_retry_ms > 0, "append_retry_ms must be positive"),
            (self.transfer_timeout_ms > 0, "transfer_timeout_ms must be positive"),
            (self.farewell_ms >= 0, "farewell_ms must not be negative"),
            (self.restart_wait_ms >= 0, "restart_wait_ms must not be negative"),
            (self.window_bytes_max > 0, "window_bytes_max must be positive"),
        ):
            if not holds:
                raise UsageError(f"{rule}: {self}")
