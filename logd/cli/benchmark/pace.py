"""An offered rate, kept whatever the cluster does: an open loop.

A client that waits for an answer before it sends again stops asking just when the cluster is
slow, and its percentiles leave out the requests it would have made (Gil Tene calls it
coordinated omission).  Here every call has a time at which it is due, fixed before the run,
and its latency counts from then: a call that went out late because others were in its way is
late by that much.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CALLS_PER_S_MAX: Final = 1000
"""Above this a call carries several records: a client that makes so many small calls would
measure itself."""


class Pace(NamedTuple):
    """Calls of ``records_per_call`` records, ``interval_s`` apart."""

    records_per_call: int
    interval_s: float
    calls: int

    def due_s(self, call: int) -> float:
        """When a call is due, in seconds from the beginning."""
        return call * self.interval_s


def pace_of(rate: int, records: int) -> Pace:
    """``records`` records at ``rate`` a second, the last call made whole."""
    assert rate > 0
    assert records > 0
    records_per_call = -(-rate // CALLS_PER_S_MAX)
    return Pace(records_per_call, records_per_call / rate, -(-records // records_per_call))
