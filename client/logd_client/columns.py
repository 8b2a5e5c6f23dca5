"""The values and keys of one ``append_many``: checked, measured, and cut into batches.

All of it without a call of ours per record: a million records a second leave each less than a
microsecond, of which a look at its type and one at its length took thirty nanoseconds.  Records are
usually alike, and whether all are bytes of one length is a single question to the decoder.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, repeat
from operator import add
from typing import Annotated, Any, Final

import msgspec

from logd.errors import UsageError
from logd.limits import RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX

_TYPES: Final = frozenset((bytes, type(None)))

_LENGTHS_REMEMBERED: Final = 64
"""What is asked of the decoder, for so many lengths, takes a microsecond or two to say."""


class Column:
    """Values or keys of many records, which are bytes or None, and how long they are."""

    __slots__ = ("elements", "lengths")

    def __init__(self, elements: Sequence[bytes | None], lengths: list[int] | int) -> None:
        self.elements = elements
        self.lengths = lengths
        """Of each; one for all if they are alike, and then none of them is None."""

    @classmethod
    def of(cls, name: str, given: Sequence[bytes | None]) -> Column:
        """Check and measure what somebody calls ``name``.

        What only stands for bytes, and is as long, passes in the midst of a column that is alike,
        and is copied: to tell it apart would take longer than all else.

        Raises:
            UsageError: it is no list of bytes and None.
        """
        _check_sequence(name, given)
        first = given[0] if given else None
        if type(first) is bytes and type(given[-1]) is bytes and len(first) == len(given[-1]):
            try:
                alike = msgspec.convert(given, _bytes_of_length(len(first)), builtin_types=(bytes,))
            except msgspec.ValidationError:
                pass  # Which of them is not, and whether that is allowed, is found out below.
            else:
                return cls(alike, len(first))
        types = list(map(type, given))
        if types.count(bytes) != len(types):
            found = set(types)
            if not found <= _TYPES:
                wrong = sorted(kind.__name__ for kind in found - _TYPES)
                raise UsageError(f"{name} must be bytes or None, found {', '.join(wrong)}")
            return cls(given, [0 if element is None else len(element) for element in given])
        return cls(given, list(map(len, given)))  # type: ignore[arg-type]  # None of them is None.

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def has_none(self) -> bool:
        """Some element is None."""
        return not isinstance(self.lengths, int) and None in self.elements

    def part(self, start: int, end: int) -> list[bytes | None]:
        """The elements of a range."""
        part = self.elements[start:end]
        return part if isinstance(part, list) else list(part)

    def at(self, positions: Sequence[int]) -> Column:
        """Those that stand there."""
        lengths = self.lengths
        if not isinstance(lengths, int):
            lengths = list(map(lengths.__getitem__, positions))
        return Column(list(map(self.elements.__getitem__, positions)), lengths)


def columns_of(
    values: Sequence[bytes | None], keys: Sequence[bytes | None] | None
) -> tuple[Column, Column | None]:
    """Check and measure the records of one call.

    Raises:
        UsageError: one of them is no list of bytes and None, or there are more or fewer keys than
            values.
    """
    value_column = Column.of("values", values)
    if keys is None:
        return value_column, None
    key_column = Column.of("keys", keys)
    if len(key_column) != len(value_column):
        raise UsageError(f"{len(key_column)} keys, {len(value_column)} values")
    return value_column, key_column


@lru_cache(_LENGTHS_REMEMBERED)
def _bytes_of_length(length: int) -> Any:
    return list[Annotated[bytes, msgspec.Meta(min_length=length, max_length=length)]]


def _check_sequence(name: str, column: Sequence[bytes | None]) -> None:
    """Refuse what is no list of many values.

    Raises:
        UsageError: it is one value, or cannot be cut into parts, such as a generator or a deque.
    """
    if isinstance(column, bytes | bytearray | memoryview | str):
        raise UsageError(f"{name} must be a sequence of bytes, not {type(column).__name__}")
    given: object = column
    if not isinstance(given, Sequence) or isinstance(given, deque):
        # A generator can be looked at once, and is looked at here: its records would be lost.
        raise UsageError(f"{name} must be a list or a tuple, not {type(column).__name__}")


class Slices:
    """Cuts records into batches, without touching them singly.

    ``bounds(batch_bytes)`` yields half-open ranges of positions, in order, covering every
    record but those above the limit, which stand in ``too_large``.
    """

    def __init__(self, values: Column, keys: Column | bytes | None) -> None:
        """Measure records as for batches in which they are alone."""
        self._count = len(values)
        # A key that all records share is stored once, but counts towards the limit of each.
        self._constant_bytes = len(keys) if isinstance(keys, bytes) else 0
        columns = 1
        lengths = values.lengths
        if isinstance(keys, Column):
            columns = 2
            lengths = _sums(lengths, keys.lengths, self._count)
        self._lengths = lengths
        largest = lengths if isinstance(lengths, int) else max(lengths, default=0)
        # The times are all the same: what the columns add is how long each value and key is.
        self._overhead_bytes = columns * _length_bytes(largest)
        self.too_large: list[tuple[int, int]] = []
        """Positions and sizes of the records above the limit."""
        if largest + self._constant_bytes > RECORD_BYTES_MAX:
            self.too_large = [
                (position, length + self._constant_bytes)
                for position, length in enumerate(_each(lengths, self._count))
                if length + self._constant_bytes > RECORD_BYTES_MAX
            ]

    def bounds(self, batch_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Start, end, and estimated size of each batch."""
        lengths = self._lengths
        if isinstance(lengths, int):
            if not self.too_large:
                yield from self._equal_parts(lengths + self._overhead_bytes, batch_bytes)
            return
        count = self._count
        total = sum(lengths) + count * self._overhead_bytes
        if 0 < count <= RECORDS_PER_BATCH_MAX and total <= batch_bytes and not self.too_large:
            yield 0, count, total + self._constant_bytes
            return
        sizes = map(add, lengths, repeat(self._overhead_bytes))
        ends = list(accumulate(sizes, initial=0))
        start = 0
        for position, _ in self.too_large:
            yield from self._run(ends, start, position, batch_bytes)
            start = position + 1
        yield from self._run(ends, start, count, batch_bytes)

    def _equal_parts(self, size: int, batch_bytes: int) -> Iterator[tuple[int, int, int]]:
        """``_run`` over all records, when they are alike."""
        step = min(max(batch_bytes // size, 1), RECORDS_PER_BATCH_MAX)
        for start in range(0, self._count, step):
            end = min(start + step, self._count)
            yield start, end, (end - start) * size + self._constant_bytes

    def _run(
        self, ends: list[int], start: int, stop: int, batch_bytes: int
    ) -> Iterator[tuple[int, int, int]]:
        while start < stop:
            furthest = min(stop, start + RECORDS_PER_BATCH_MAX)
            end = bisect_right(ends, ends[start] + batch_bytes, start, furthest + 1) - 1
            end = max(end, start + 1)
            yield start, end, ends[end] - ends[start] + self._constant_bytes
            start = end


def _sums(some: list[int] | int, others: list[int] | int, count: int) -> list[int] | int:
    if isinstance(some, int) and isinstance(others, int):
        return some + others
    return list(map(add, _each(some, count), _each(others, count)))


def _each(lengths: list[int] | int, count: int) -> list[int] | repeat[int]:
    return repeat(lengths, count) if isinstance(lengths, int) else lengths


def _length_bytes(size: int) -> int:
    """What MessagePack puts before ``size`` bytes."""
    return 2 if size < 2**8 else 3 if size < 2**16 else 5
