"""How fast a leader may feed one newcomer.

Only what was in the log when the budget was made is counted.  What is written since follows at
the pace of ordinary replication: a limit below the rate of writes would otherwise never let the
newcomer catch up, and the time that the limit makes it take would not be known beforehand.
"""

from __future__ import annotations

from logd.types import Offset


class CatchUpBudget:
    """Bytes that may be sent now; may be overdrawn by one request."""

    __slots__ = ("bytes_left", "end_offset")

    def __init__(self, end_offset: Offset) -> None:
        self.end_offset = end_offset
        """From here on nothing is counted."""
        self.bytes_left = 0.0

    def allows(self, start: Offset) -> bool:
        """Whether a request that begins at ``start`` may be sent."""
        return self.bytes_left > 0 or start >= self.end_offset

    def spend(self, start: Offset, size_bytes: int) -> None:
        """A request has been sent."""
        if start < self.end_offset:
            self.bytes_left -= size_bytes

    def refill(self, size_bytes: float, bytes_max: float) -> None:
        """Time has passed; what is saved up is bounded."""
        self.bytes_left = min(self.bytes_left + size_bytes, bytes_max)
