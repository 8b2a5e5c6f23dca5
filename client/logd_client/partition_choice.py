"""Which partition a record of one producer goes to.

A record that names its partition, or has a key, has no choice.  Any other goes where it is
acknowledged soon: into the batch that is growing, which is of the partition whose turn it is, and
when that batch is closed, or its partition without a leader that answers, to the next one's turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

from logd.errors import InvalidPartitionError
from logd_client.partitioner import RoundRobin, partition_for_key, partitions_for_keys
from logd_client.routing import partitions_text
from logd_client.sender import ProducerPartition


class PartitionChoice:
    """Among the partitions that a producer knows of its topic."""

    def __init__(self, topic: str, partitions: Sequence[ProducerPartition]) -> None:
        self._topic = topic
        self._partitions = partitions
        """By number; whoever made this may add more, and then has it ``grow``."""
        self._round_robin = RoundRobin(1, 0)

    def begin_with(self, first: int) -> None:
        """It is the turn of the partition with number ``first``, of all that are there by now."""
        self._round_robin = RoundRobin(len(self._partitions), first)

    def grow(self) -> None:
        """Some have been added; who has their turn stays."""
        self._round_robin.grow(len(self._partitions))

    def of(self, key: bytes | None, partition: int | None) -> ProducerPartition:
        """Where a record goes that is to be queued now.

        Raises:
            InvalidPartitionError: there is no such ``partition``.
        """
        if partition is not None:
            if not (type(partition) is int and 0 <= partition < len(self._partitions)):
                raise InvalidPartitionError(
                    f"topic {self._topic!r} has no partition {partition!r}, "
                    f"expected {partitions_text(len(self._partitions))}"
                )
            return self._partitions[partition]
        if key is not None:
            return self._partitions[partition_for_key(key, len(self._partitions))]
        number = self._round_robin.current
        current = self._partitions[number]
        if current.pipeline.growing() is None or not self._is_usable(number):
            return self.advance()
        return current

    def advance(self) -> ProducerPartition:
        """Whose turn is next, of those that can take records."""
        return self._partitions[self._round_robin.advance(self._is_usable)]

    def group(self, keys: Sequence[bytes | None]) -> list[tuple[ProducerPartition, list[int]]]:
        """Positions in ``keys`` per partition; those first that nothing holds up."""
        count = len(self._partitions)
        if None in keys:
            of_keyless = self.of(None, None).number
            numbers: Iterable[int] = [
                of_keyless if key is None else partition_for_key(key, count) for key in keys
            ]
        else:
            numbers = partitions_for_keys(cast("Sequence[bytes]", keys), count)
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for position, number in enumerate(numbers):
            groups[number].append(position)
        in_turn = sorted(groups, key=self._is_usable, reverse=True)
        return [(self._partitions[number], groups[number]) for number in in_turn]

    def _is_usable(self, partition: int) -> bool:
        candidate = self._partitions[partition]
        return not candidate.is_stalled and candidate.pipeline.is_flowing
