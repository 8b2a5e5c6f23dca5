"""What a consumer is asked to read: of which partitions, from where on, and up to where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from logd.errors import UsageError
from logd.limits import KIB, MIB, OFFSET_MAX, SUBSCRIPTION_CREDIT_BYTES_MAX
from logd_client.arguments import require_between, require_int, require_one_of
from logd_client.cursor import StartKind

Start = Literal["earliest", "latest"] | int | datetime
Starts = Start | Mapping[int, Start]
"""One start for all partitions, or each partition's own."""

Stop = Literal["latest"] | Mapping[int, int]
"""Where iterating ends: at what is committed on entering, or at an offset for each partition."""

OnMalformed = Literal["raise", "skip"]
OnTrimmed = Literal["raise", "earliest"]

CREDIT_BYTES_DEFAULT: Final = 8 * MIB
CREDIT_BYTES_MIN: Final = 64 * KIB
"""Less per partition would make deliveries too small to be worth their frames."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """See ``Client.consumer``."""

    start: Starts = "latest"
    start_of_others: Start | None = None
    stop: Stop | None = None
    partitions: Sequence[int] | None = None
    from_replica: int | None = None
    credit_bytes: int = CREDIT_BYTES_DEFAULT
    on_malformed: OnMalformed = "raise"
    on_trimmed: OnTrimmed = "raise"

    def __post_init__(self) -> None:
        for start in self.start.values() if isinstance(self.start, Mapping) else [self.start]:
            start_of(start)
        require_between(
            "credit_bytes", self.credit_bytes, CREDIT_BYTES_MIN, SUBSCRIPTION_CREDIT_BYTES_MAX
        )
        if isinstance(self.stop, Mapping):
            for partition, offset in self.stop.items():
                require_int("a partition", partition)
                require_between(f"stop[{partition}]", offset, 0, OFFSET_MAX)
        elif self.stop is not None and self.stop != "latest":
            raise UsageError(
                f"stop={self.stop!r}: expected 'latest', or a dict with an offset per partition"
            )
        require_one_of("on_malformed", self.on_malformed, ("raise", "skip"))
        require_one_of("on_trimmed", self.on_trimmed, ("raise", "earliest"))
        if self.from_replica is not None:
            require_int("from_replica", self.from_replica)
        if self.partitions is not None:
            partitions: object = self.partitions
            if not isinstance(partitions, Sequence):
                raise UsageError(f"partitions must be a list of ints, not {self.partitions!r}")
            if not self.partitions:
                raise UsageError("partitions must not be empty")
        if isinstance(self.start, Mapping):
            if self.partitions is not None:
                raise UsageError("start by partition names the partitions itself: leave them out")
            if not self.start and self.start_of_others is None:
                raise UsageError("start by partition must name at least one")
        if self.start_of_others is not None:
            start_of(self.start_of_others)
            if not isinstance(self.start, Mapping):
                raise UsageError("start_of_others needs a start by partition")
        for number in [*(self.partitions or ()), *_numbers_of(self.start)]:
            require_int("a partition", number)

    def starts(self, partition_count: int) -> dict[int, tuple[StartKind, int]]:
        """Where each partition is begun that is read of ``partition_count``, by its number."""
        start, partitions = self.start, self.partitions
        if isinstance(start, Mapping):
            starts = {number: start_of(start[number]) for number in sorted(start)}
            if self.start_of_others is not None:
                others = start_of(self.start_of_others)
                starts = dict.fromkeys(range(partition_count), others) | starts
            return starts
        numbers = range(partition_count) if partitions is None else sorted(set(partitions))
        return {number: start_of(start) for number in numbers}

    @property
    def start_of_added(self) -> tuple[StartKind, int] | None:
        """Where partitions are begun that the topic gets later; None if they are not read.

        That is their beginning, unless it is a time: no record in them is older than they are.
        """
        start = self.start_of_others if isinstance(self.start, Mapping) else self.start
        if self.partitions is not None or start is None:
            return None  # It reads those that it was told to.
        if self.stop is not None:
            return None  # It ends where those end that there were.
        if self.from_replica is not None:
            return None  # That node need not have a replica of them.
        return start_of(start if isinstance(start, datetime) else "earliest")


def _numbers_of(start: Starts) -> Iterable[object]:
    return start if isinstance(start, Mapping) else ()


def start_of(start: Start) -> tuple[StartKind, int]:
    """What a subscription is asked to start with.

    Raises:
        UsageError: not a start; a datetime without a time zone is not a point in time.
    """
    if isinstance(start, datetime):
        if start.utcoffset() is None:
            raise UsageError(f"{start.isoformat()} has no time zone; use an aware datetime")
        # Rounded up: a record appended in the millisecond before is not "at or after".
        return "time", -((_EPOCH - start) // _MILLISECOND)
    if isinstance(start, int) and not isinstance(start, bool):
        if not 0 <= start <= OFFSET_MAX:
            raise UsageError(f"start={start}: offsets are 0 to {OFFSET_MAX}")
        return "offset", start
    if start == "earliest" or start == "latest":
        return start, 0
    raise UsageError(
        f"start={start!r}: expected 'earliest', 'latest', an offset or an aware datetime"
    )
