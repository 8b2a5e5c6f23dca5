"""The column of timestamps: a producer's own time of each record.

Hundreds of records come in one millisecond, so they are gathered in runs of equal times and not
one by one; and most who read a batch never look at them, so what is stored, distances from the
first, is made into times only for who asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import add
from typing import Final

from logd.errors import MalformedBatchError, UsageError
from logd.record.header import BatchHeader

TIMESTAMP_MS_MAX: Final = 2**62 - 1
"""Either side of 1970: the difference of two timestamps always fits in 64 bits."""

Column = tuple[int, int, list[int] | None]
"""First and largest timestamp, and the distances from the first if they differ."""


class TimestampRuns:
    """Times of records in the order they came, kept once for all that follow each other."""

    __slots__ = ("_starts", "_times_ms", "last_ms")

    def __init__(self, timestamp_ms: int | None = None) -> None:
        """``timestamp_ms``: of all records, or of those until another is noted."""
        self._starts: list[int] = []
        self._times_ms: list[int] = []
        self.last_ms: int | None = None
        if timestamp_ms is not None:
            self.note(0, timestamp_ms)

    def note(self, row: int, timestamp_ms: int) -> None:
        """The records from ``row`` on, behind all noted before, have this time."""
        if timestamp_ms != self.last_ms:
            self.last_ms = timestamp_ms
            self._starts.append(row)
            self._times_ms.append(timestamp_ms)

    def column(self, count: int) -> Column:
        """Of ``count`` records.

        Raises:
            UsageError: a time is out of range.
        """
        times = self._times_ms
        first, largest = times[0], max(times)
        _require_in_range(min(times), largest)
        if len(times) == 1:
            return first, largest, None
        deltas: list[int] = []
        ends = [*self._starts[1:], count]
        for start, end, timestamp_ms in zip(self._starts, ends, times, strict=True):
            deltas += [timestamp_ms - first] * (end - start)
        return first, largest, deltas


def timestamp_column(timestamps_ms: TimestampRuns | Sequence[int] | int, count: int) -> Column:
    """Of ``count`` records: of one by one, in runs, or the same for all.

    Raises:
        UsageError: not as many times as records, or not integers in range.
    """
    if isinstance(timestamps_ms, TimestampRuns):
        return timestamps_ms.column(count)
    if isinstance(timestamps_ms, int):
        _require_in_range(timestamps_ms, timestamps_ms)
        return timestamps_ms, timestamps_ms, None
    if len(timestamps_ms) != count:
        raise UsageError(f"{len(timestamps_ms)} timestamps, {count} records")
    if set(map(type, timestamps_ms)) != {int}:
        raise UsageError("timestamps must be integers: milliseconds since 1970")
    first, largest, smallest = timestamps_ms[0], max(timestamps_ms), min(timestamps_ms)
    _require_in_range(smallest, largest)
    if smallest == largest:
        return first, largest, None
    return first, largest, list(map(add, timestamps_ms, repeat(-first)))


def _require_in_range(smallest: int, largest: int) -> None:
    if not -TIMESTAMP_MS_MAX <= smallest <= largest <= TIMESTAMP_MS_MAX:
        raise UsageError(f"timestamps {smallest} to {largest} ms are out of range")


def check_timestamp_deltas(header: BatchHeader, deltas: Sequence[int] | None) -> None:
    """Refuse a stored column that is not what its header says.

    Raises:
        MalformedBatchError: other than as many distances as records, beginning with 0, of which
            the largest leads to the header's largest time.
    """
    first = smallest = largest = header.first_timestamp_ms
    if deltas is not None:
        if len(deltas) != header.record_count:
            raise MalformedBatchError(f"{len(deltas)} timestamps, {header.record_count} records")
        if deltas[0] != 0:
            raise MalformedBatchError(
                f"the first timestamp differs from the header by {deltas[0]} ms"
            )
        different = set(deltas)  # Few, of many.
        smallest, largest = first + min(different), first + max(different)
    if largest != header.max_timestamp_ms:
        raise MalformedBatchError(
            f"the largest timestamp is {largest}, the header says {header.max_timestamp_ms}"
        )
    if not -TIMESTAMP_MS_MAX <= smallest <= largest <= TIMESTAMP_MS_MAX:
        raise MalformedBatchError("timestamps are out of range")


def expand_timestamps(first_ms: int, deltas: Sequence[int] | None, count: int) -> Iterator[int]:
    """The stored column → a time for each of ``count`` records, made when it is taken."""
    return repeat(first_ms, count) if deltas is None else map(add, deltas, repeat(first_ms))
