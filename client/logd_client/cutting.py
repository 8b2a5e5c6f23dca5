"""How the records of one ``append_many`` are cut into parts that travel in one batch each.

Parts are cut one after the other, as they are asked for: who queues one may wait for room, and
where the next goes best is known when that one is queued.  Records that no batch can hold are in
no part: they fail alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from logd_client.accumulator import Value, too_large
from logd_client.columns import Column, Slices
from logd_client.delivery import ManyDeliveries
from logd_client.partition_choice import PartitionChoice
from logd_client.sender import ProducerPartition


class Part(NamedTuple):
    """Those records of one ``append_many`` that travel in one batch."""

    positions: Sequence[int]
    """Where they stand in the input, increasing."""
    partition: ProducerPartition
    values: list[Value]
    keys: list[bytes | None] | bytes | None
    size: int
    """What they take if they are alone in it."""


class Cutter:
    """Cuts records into parts of about ``batch_bytes``."""

    def __init__(self, choice: PartitionChoice, batch_bytes: int) -> None:
        self._choice = choice
        self._batch_bytes = batch_bytes

    def in_order(
        self,
        values: Column,
        keys: Column | bytes | None,
        partition: int | None,
        outcome: ManyDeliveries,
    ) -> Iterator[Part]:
        """All records go where ``partition`` or the one key says; without them each batch goes
        where there is room when it is queued."""
        key = keys if isinstance(keys, bytes) else None
        slices = Slices(values, keys)
        bounds = list(slices.bounds(self._batch_bytes))
        chosen: ProducerPartition | None = None
        for start, end, size in bounds:
            if key is not None or partition is not None or len(bounds) == 1:
                chosen = self._choice.of(key, partition)
            elif chosen is None or end < bounds[-1][1]:
                chosen = self._choice.advance()
            # Else it is what is left over, and stays with the last full batch.  With turns of its
            # own it could always be the turn of the same partitions, which would get little else.
            part_keys = keys.part(start, end) if isinstance(keys, Column) else keys
            yield Part(range(start, end), chosen, values.part(start, end), part_keys, size)
        for position, size in slices.too_large:
            outcome.add_failure(position, too_large(size))

    def by_key(self, values: Column, keys: Column, outcome: ManyDeliveries) -> Iterator[Part]:
        """Each record goes where its key says; keyless ones are spread together."""
        for chosen, positions in self._choice.group(keys.elements):
            group_values, group_keys = values.at(positions), keys.at(positions)
            slices = Slices(group_values, group_keys)
            for start, end, size in slices.bounds(self._batch_bytes):
                yield Part(
                    positions[start:end],
                    chosen,
                    group_values.part(start, end),
                    group_keys.part(start, end),
                    size,
                )
            for at, size in slices.too_large:
                outcome.add_failure(positions[at], too_large(size))
