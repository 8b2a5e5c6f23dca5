"""Which segments of a log retention lets go, and what time it is for that.

Every replica decides for itself, from what is committed: the topic's options, and the append
times in the log.  No command says what is removed, so nothing has to be agreed upon; replicas
differ for a while in where their logs begin, and in nothing else.

Only whole segments go, and only from the front.  By size a replica keeps *at most* what was
chosen, because a full disk is what that limit is for; by time it keeps *at least* what was
chosen, because a reader relies on it.

Log time: a wall clock that jumps would empty a disk, so none is asked.  It is the append time
of the last committed batch, carried on by this machine's monotonic clock.  A leader begins its
term with a batch, so an idle log that nobody writes to ages also across restarts.
"""

from __future__ import annotations

from typing import NamedTuple

from logd.storage.log import Log
from logd.types import Offset


class RetentionPolicy(NamedTuple):
    """What a topic's options say about how long its logs are kept; None: no limit."""

    age_ms: int | None = None
    bytes_max: int | None = None
    segment_age_ms: int | None = None
    """The active segment is rolled at this age, so that it can go one day."""

    @property
    def needs_time(self) -> bool:
        return self.age_ms is not None or self.segment_age_ms is not None


KEEP_EVERYTHING = RetentionPolicy()


class LogClock:
    """The log time of one replica."""

    def __init__(self) -> None:
        self._append_time_ms: int | None = None
        self._seen_ms = 0

    def now_ms(self, committed_append_time_ms: int, monotonic_ms: int) -> int:
        """Log time, given the append time of the last committed batch."""
        if committed_append_time_ms != self._append_time_ms:
            self._append_time_ms = committed_append_time_ms
            self._seen_ms = monotonic_ms
        return committed_append_time_ms + (monotonic_ms - self._seen_ms)


def retained_start(
    log: Log, policy: RetentionPolicy, *, log_time_ms: int, trimmed_to: Offset, limit: Offset
) -> Offset:
    """Where the log may begin: at its present start, or where one of its segments ends.

    Args:
        log_time_ms: see ``LogClock``.
        trimmed_to: nobody may read below it any more.
        limit: nothing above it may go: the commit offset, or less.

    Raises:
        CorruptionError: a header on the way to an append time is damaged.
    """
    start = log.start_offset
    size_bytes = log.size_bytes
    for segment in log.sealed_segments():
        is_superfluous = segment.end_offset <= trimmed_to or (
            policy.bytes_max is not None and size_bytes > policy.bytes_max
        )
        if segment.end_offset > limit or not (
            is_superfluous or _is_older(log, segment.end_offset, policy.age_ms, log_time_ms)
        ):
            break
        size_bytes -= segment.size_bytes
        start = segment.end_offset
    return start


def wants_roll(
    log: Log, policy: RetentionPolicy, *, log_time_ms: int, holds_trimmed: bool = False
) -> bool:
    """Whether the active segment holds what should go soon, and has to be sealed for that.

    Args:
        holds_trimmed: it holds records that were trimmed, and none that were not.

    Raises:
        CorruptionError: its first header is damaged.
    """
    begin, end = log.segment_bases[-1], log.end_offset
    if begin == end:
        return False
    age_ms = policy.segment_age_ms
    return holds_trimmed or (
        age_ms is not None and log.append_time_at(begin) < log_time_ms - age_ms
    )


def _is_older(log: Log, end: Offset, age_ms: int | None, log_time_ms: int) -> bool:
    return age_ms is not None and log.append_time_at(Offset(end - 1)) < log_time_ms - age_ms
