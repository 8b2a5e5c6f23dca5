"""What a consumer gets: records one by one, or the columns of a batch.

A record is a named tuple, built in C from the columns; nothing is copied that decoding has
not made already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Final, NamedTuple

from logd.record.batch import RecordBatch
from logd.record.payload import RecordHeaders
from logd.record.timestamps import expand_timestamps


class Record(NamedTuple):
    """One record as it was appended."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """The producer's, in milliseconds since 1970-01-01T00:00Z."""
    key: bytes | None
    value: bytes | None
    """None: a tombstone."""
    headers: RecordHeaders


_record_of_row: Final[Callable[[tuple[object, ...]], Record]] = partial(tuple.__new__, Record)
"""As ``Record._make``, without a Python frame for each record."""


class Batch:
    """Consecutive records of one partition, as columns: one element per record in each."""

    __slots__ = (
        "_first_timestamp_ms",
        "_timestamp_deltas",
        "_timestamps_ms",
        "append_time_ms",
        "headers",
        "keys",
        "offsets",
        "partition",
        "topic",
        "values",
    )

    def __init__(self, topic: str, partition: int, source: RecordBatch, first: int = 0) -> None:
        """The records of ``source`` from row ``first`` on."""
        assert 0 <= first < len(source)
        self.topic = topic
        self.partition = partition
        self.append_time_ms = source.header.append_time_ms
        """When the leader appended the batch, in milliseconds since 1970-01-01T00:00Z."""
        self.offsets: Sequence[int] = source.offsets
        self._first_timestamp_ms = source.header.first_timestamp_ms
        self._timestamp_deltas = source.timestamp_deltas
        self._timestamps_ms: Sequence[int] | None = None
        self.keys: Sequence[bytes | None] = source.keys
        self.values: Sequence[bytes | None] = source.values
        self.headers: Sequence[RecordHeaders] = source.headers
        if first:
            self.drop_before(first)

    def drop_before(self, row: int) -> None:
        """Keep only the records from ``row`` on."""
        self.offsets = self.offsets[row:]
        self._timestamps_ms = None
        if self._timestamp_deltas is not None:
            self._timestamp_deltas = self._timestamp_deltas[row:]
        self.keys = self.keys[row:]
        self.values = self.values[row:]
        self.headers = self.headers[row:]

    def keep_before(self, row: int) -> None:
        """Keep only the records before ``row``."""
        self.offsets = self.offsets[:row]
        self._timestamps_ms = None
        if self._timestamp_deltas is not None:
            self._timestamp_deltas = self._timestamp_deltas[:row]
        self.keys = self.keys[:row]
        self.values = self.values[:row]
        self.headers = self.headers[:row]

    @property
    def timestamps_ms(self) -> Sequence[int]:
        """The producer's, in milliseconds since 1970-01-01T00:00Z."""
        if self._timestamps_ms is None:
            self._timestamps_ms = list(self._expand_timestamps())
        return self._timestamps_ms

    def _expand_timestamps(self) -> Iterator[int]:
        return expand_timestamps(self._first_timestamp_ms, self._timestamp_deltas, len(self))

    @property
    def base_offset(self) -> int:
        """Offset of the first record."""
        return self.offsets[0]

    @property
    def last_offset(self) -> int:
        """Offset of the last record (inclusive)."""
        return self.offsets[-1]

    def __len__(self) -> int:
        return len(self.offsets)

    def records(self) -> Iterator[Record]:
        """The same, record by record, each made when it is taken."""
        return map(
            _record_of_row,
            zip(
                repeat(self.topic),
                repeat(self.partition),
                self.offsets,
                self._expand_timestamps(),
                self.keys,
                self.values,
                self.headers,
                strict=False,
            ),
        )
