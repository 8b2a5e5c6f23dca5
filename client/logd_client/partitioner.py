"""Which partition a record goes to.

A key decides by its hash, so that records of one key stay in order for as long as the topic
keeps its partition count; every client uses the same hash (docs/wire_protocol.md).  Records
without a key fill one batch after another, each in the next partition: spreading them one by
one would give every partition batches too small to be worth a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from operator import mod

from xxhash import xxh3_64_intdigest


def partition_for_key(key: bytes, partition_count: int) -> int:
    """The partition of all records with ``key``."""
    assert partition_count > 0
    return xxh3_64_intdigest(key) % partition_count


def partitions_for_keys(keys: Sequence[bytes], partition_count: int) -> Iterable[int]:
    """``partition_for_key`` of each, without a call of Python's own for each."""
    assert partition_count > 0
    return map(mod, map(xxh3_64_intdigest, keys), repeat(partition_count))


class RoundRobin:
    """Takes the partitions in turn, passing over those that cannot take records now."""

    def __init__(self, partition_count: int, first: int) -> None:
        assert 0 <= first < partition_count
        self._count = partition_count
        self.current = first

    def grow(self, partition_count: int) -> None:
        """There are more now; who has their turn stays."""
        assert partition_count >= self._count
        self._count = partition_count

    def advance(self, is_usable: Callable[[int], bool]) -> int:
        """Go to the next usable partition, or to the next if none is."""
        if self._count == 1:
            return self.current
        following = (self.current + 1) % self._count
        candidates = ((following + step) % self._count for step in range(self._count))
        self.current = next(filter(is_usable, candidates), following)
        return self.current
