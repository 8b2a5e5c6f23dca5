"""Records on their way into a batch: single ones that share it, or a part of many.

Sizes are estimates that err on the large side, since a batch is sealed only when it can be
sent: the estimate decides when a batch is full and what it takes from the producer's buffer,
never whether it is legal.  Sealing decides that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from logd.errors import RecordTooLargeError, UsageError
from logd.limits import (
    BATCH_BYTES_MAX,
    HEADERS_PER_BATCH_MAX,
    KIB,
    MIB,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
)
from logd.record.batch import seal_batch
from logd.record.header import Codec
from logd.record.payload import NO_HEADERS, RecordHeaders
from logd.record.timestamps import TimestampRuns
from logd_client.delivery import Delivery

Value = bytes | None

RECORD_OVERHEAD_BYTES: Final = 24
"""What the columns may add to one record: lengths, a key's length, a timestamp's distance."""

HEADER_OVERHEAD_BYTES: Final = 12
NO_FENCE: Final = (0, 0)
BATCH_TARGET_BYTES_MIN: Final = 1 * KIB
BATCH_TARGET_BYTES_MAX: Final = 2 * MIB

# A batch that was nearly full may take one more record of the largest size.
assert BATCH_TARGET_BYTES_MAX + RECORD_BYTES_MAX + 64 * KIB <= BATCH_BYTES_MAX


class OpenBatch:
    """Records that will be sealed together."""

    __slots__ = (
        "deadline",
        "delivery",
        "expected_offset",
        "fence",
        "header_count",
        "headers",
        "is_closed",
        "keys",
        "opened_at",
        "size_bytes",
        "timestamps",
        "values",
    )

    def __init__(
        self,
        delivery: Delivery,
        *,
        opened_at: float,
        deadline: float,
        values: list[Value],
        keys: list[bytes | None] | bytes | None,
        timestamps: TimestampRuns,
        size_bytes: int = 0,
        is_closed: bool = False,
        expected_offset: int | None = None,
        fence: tuple[int, int] = NO_FENCE,
    ) -> None:
        self.delivery = delivery
        self.opened_at = opened_at
        self.deadline = deadline
        self.values = values
        self.keys = keys
        self.headers: list[RecordHeaders] | None = None
        self.header_count = 0
        self.timestamps = timestamps
        self.size_bytes = size_bytes
        self.is_closed = is_closed
        """Takes no more records; may be sent at once, whatever its age."""
        self.expected_offset = expected_offset
        self.fence = fence
        """Fence id and token that all of its records carry."""

    def add(
        self, value: Value, key: bytes | None, headers: RecordHeaders, timestamp_ms: int, size: int
    ) -> int:
        """Add one record; its position in the batch."""
        position = len(self.values)
        self.values.append(value)
        self.size_bytes += size
        self.timestamps.note(position, timestamp_ms)
        if key is not None and self.keys is None:
            self.keys = [None] * position
        if self.keys is not None:
            assert isinstance(self.keys, list)
            self.keys.append(key)
        if headers and self.headers is None:
            self.headers = [NO_HEADERS] * position
        if self.headers is not None:
            self.headers.append(headers)
            self.header_count += len(headers)
        return position

    def add_many(
        self,
        values: list[Value],
        keys: list[bytes | None] | bytes | None,
        timestamp_ms: int,
        size: int,
    ) -> int:
        """Add records without headers; the position of the first in the batch."""
        position, count = len(self.values), len(values)
        self.values += values
        self.size_bytes += size
        self.timestamps.note(position, timestamp_ms)
        if keys is not None and self.keys is None:
            self.keys = [None] * position
        if self.keys is not None:
            assert isinstance(self.keys, list)
            self.keys += keys if isinstance(keys, list) else [keys] * count
        if self.headers is not None:
            self.headers += [NO_HEADERS] * count
        return position

    def add_plain(self, value: bytes, timestamp_ms: int, size: int, batch_bytes: int) -> int:
        """``takes`` and ``add`` in one, for a record without key and headers among its like.

        Returns its position in the batch; -1 if it was not added.
        """
        values = self.values
        position = len(values)
        size_bytes = self.size_bytes + size
        if (
            self.is_closed
            or size_bytes > batch_bytes
            or position >= RECORDS_PER_BATCH_MAX
            or self.keys is not None
            or self.headers is not None
        ):
            return -1
        values.append(value)
        if timestamp_ms != self.timestamps.last_ms:
            self.timestamps.note(position, timestamp_ms)
        self.size_bytes = size_bytes
        return position

    def takes(self, size: int, header_count: int, batch_bytes: int, record_count: int = 1) -> bool:
        """Whether records of ``size`` bytes still belong here."""
        return (
            not self.is_closed
            and self.size_bytes + size <= batch_bytes
            and len(self.values) + record_count <= RECORDS_PER_BATCH_MAX
            and self.header_count + header_count <= HEADERS_PER_BATCH_MAX
        )

    def seal(
        self, codec: Codec, *, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> bytearray:
        """The batch as it is sent.

        Raises:
            RecordTooLargeError, UsageError: the records do not make a batch.
        """
        return seal_batch(
            values=self.values,
            keys=self.keys,
            headers=self.headers,
            timestamps_ms=self.timestamps,
            are_checked=True,
            codec=codec,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
            fence_id=self.fence[0],
            fence_token=self.fence[1],
        )


def checked_headers(headers: Sequence[tuple[str, bytes]]) -> tuple[RecordHeaders, int]:
    """One record's headers as they are stored, and their size in bytes.

    Raises:
        UsageError: not pairs of a str and bytes.
        RecordTooLargeError: more of them than a batch may hold.
    """
    if not headers:
        return NO_HEADERS, 0
    given: object = headers
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise UsageError(f"headers must be a list of pairs of a str and bytes, not {headers!r}")
    if len(headers) > HEADERS_PER_BATCH_MAX:
        raise RecordTooLargeError(
            f"{len(headers)} headers, the limit of one batch is {HEADERS_PER_BATCH_MAX}"
        )
    size = 0
    for pair in headers:
        if not _is_header(pair):
            raise UsageError(f"a header is a pair of a str and bytes, not {pair!r}")
        try:
            size += len(pair[0].encode()) + len(pair[1])
        except UnicodeEncodeError as error:
            raise UsageError(f"the header {pair[0]!r} is not text: {error.reason}") from error
    return tuple(headers), size


def _is_header(pair: object) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and type(pair[0]) is str  # Nothing derived from them can be sealed.
        and type(pair[1]) is bytes
    )


def record_bytes(value: Value, key: bytes | None, headers_bytes: int) -> int:
    """Size of one record.

    Raises:
        UsageError: value or key is not bytes.
        RecordTooLargeError: above the limit of a record.
    """
    for name, column in (("value", value), ("key", key)):
        # Nothing derived from bytes can be sealed, and it would take its batch along.
        if column is not None and type(column) is not bytes:
            raise UsageError(f"{name} must be bytes or None, not {type(column).__name__}")
    size = len(value or b"") + len(key or b"") + headers_bytes
    if size > RECORD_BYTES_MAX:
        raise too_large(size)
    return size


def too_large(size: int) -> RecordTooLargeError:
    return RecordTooLargeError(f"record of {size} bytes, the limit is {RECORD_BYTES_MAX}")
