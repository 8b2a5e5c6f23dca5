"""Who has appended what: the table that makes a retry idempotent.

A producer numbers its records per partition, from 0 in each epoch.  The table keeps where
the next number stands, and where the last batches landed, so that a retry of one of them
gets its first answer instead of a second copy.  Every replica builds the same table from the
same batch headers; so the answer survives the leader.

Bounded twice: by time (``PRODUCER_EXPIRY_MS`` of append time without a batch, leaps of a leader's
clock left out) and by number (the producer that has been silent longest goes).  Both depend on
the log alone, so replicas forget together.  A producer that was forgotten must begin anew, at
sequence 0: accepting anything else could store a record twice.

Remembered batches are rows in one ``bytes`` per producer rather than objects: a tenth of the
memory, and a checkpoint shares them as they are.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Final, NamedTuple

import msgspec

from logd.errors import CorruptionError, OutOfSequenceError, ProducerFencedError
from logd.limits import (
    PRODUCER_BATCHES_REMEMBERED,
    PRODUCER_EXPIRY_MS,
    PRODUCERS_PER_PARTITION_MAX,
)
from logd.record.header import BatchHeader
from logd.types import NO_PRODUCER, Offset, ProducerId

_ROW: Final = struct.Struct("<QIIqq")
"""base_sequence, record_count, offset_span, base_offset, append_time_ms."""

_ROWS_BYTES_MAX: Final = _ROW.size * PRODUCER_BATCHES_REMEMBERED


class Duplicate(NamedTuple):
    """The batch is in the log already: this is what its first attempt was, or will be, told."""

    base_offset: Offset
    end_offset: Offset
    append_time_ms: int


class ProducerRow(msgspec.Struct, frozen=True, array_like=True):
    """One producer in a checkpoint."""

    producer_id: ProducerId
    epoch: int
    next_sequence: int
    last_append_time_ms: int
    batches: bytes


class _Producer:
    __slots__ = ("batches", "epoch", "last_append_time_ms", "next_sequence")

    def __init__(
        self, epoch: int, next_sequence: int, last_append_time_ms: int, batches: bytes
    ) -> None:
        self.epoch = epoch
        self.next_sequence = next_sequence
        self.last_append_time_ms = last_append_time_ms
        self.batches = batches
        """The newest of this epoch, oldest first."""


class ProducerTable:
    """The idempotent producers of one partition, those that appended last at the end."""

    def __init__(self) -> None:
        self._producers: OrderedDict[int, _Producer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._producers)

    def check(
        self, producer_id: int, epoch: int, base_sequence: int, record_count: int
    ) -> Duplicate | None:
        """May this producer append this batch next?  Changes nothing.

        Returns:
            None: it may.  Otherwise where the batch is already.

        Raises:
            ProducerFencedError: a newer epoch of the producer has appended.  Nothing is known
                of the older one any more, so ``may_have_applied`` is True.
            OutOfSequenceError: the batch does not follow the last one.  Its
                ``may_have_applied`` is False only if the table knows that no attempt at
                the batch was stored.
        """
        assert producer_id != NO_PRODUCER
        known = self._producers.get(producer_id)
        if known is not None and epoch == known.epoch:
            if base_sequence == known.next_sequence:
                return None
            return _check_known(known, producer_id, base_sequence, record_count)
        if known is not None and epoch < known.epoch:
            fenced = ProducerFencedError(
                f"producer {producer_id} has appended in epoch {known.epoch}, "
                f"this batch is of epoch {epoch}"
            )
            fenced.may_have_applied = True
            raise fenced
        if base_sequence == 0:
            return None
        if known is None:
            raise _out_of_sequence(
                f"producer {producer_id} is not known here (any more), so it must begin a new "
                f"epoch at sequence 0; found {base_sequence}",
                may_have_applied=True,
            )
        raise _out_of_sequence(
            f"epoch {epoch} of producer {producer_id} must begin at sequence 0, "
            f"found {base_sequence}",
            may_have_applied=False,
        )

    def note_placed(self, header: BatchHeader, base_offset: Offset, append_time_ms: int) -> None:
        """Take in a batch of an idempotent producer that is in the log now.

        Its leader's part need not be in ``header`` yet.  Compaction takes records out of a batch
        and leaves its span: that is how many sequences it has.
        """
        producer_id = header.producer_id
        producers = self._producers
        row = _ROW.pack(
            header.base_sequence,
            header.offset_span,
            header.offset_span,
            base_offset,
            append_time_ms,
        )
        producer = producers.get(producer_id)
        if producer is None:
            producers[producer_id] = _Producer(
                header.producer_epoch,
                header.base_sequence + header.offset_span,
                append_time_ms,
                row,
            )
            if len(producers) > PRODUCERS_PER_PARTITION_MAX:
                producers.popitem(last=False)
        else:
            if producer.epoch != header.producer_epoch:
                producer.epoch = header.producer_epoch
                producer.batches = b""
            batches = producer.batches
            if len(batches) == _ROWS_BYTES_MAX:
                batches = batches[_ROW.size :]
            producer.batches = batches + row
            producer.next_sequence = header.base_sequence + header.offset_span
            producer.last_append_time_ms = append_time_ms
            producers.move_to_end(producer_id)
        self._expire(append_time_ms)

    def leave_out(self, leap_ms: int) -> None:
        """So much of the append time before the next batch is nobody's silence."""
        for producer in self._producers.values():
            producer.last_append_time_ms += leap_ms

    def rows(self) -> list[ProducerRow]:
        """The table for a checkpoint, silent longest first."""
        return [
            ProducerRow(
                ProducerId(producer_id),
                producer.epoch,
                producer.next_sequence,
                producer.last_append_time_ms,
                producer.batches,
            )
            for producer_id, producer in self._producers.items()
        ]

    @classmethod
    def from_rows(cls, rows: list[ProducerRow]) -> ProducerTable:
        """The table that ``rows`` was taken of.

        Raises:
            CorruptionError: the rows are not those of a table.
        """
        if len(rows) > PRODUCERS_PER_PARTITION_MAX:
            raise CorruptionError(
                f"{len(rows)} producers in a checkpoint, at most {PRODUCERS_PER_PARTITION_MAX}"
            )
        table = cls()
        for row in rows:
            size = len(row.batches)
            if not 0 < size <= _ROWS_BYTES_MAX or size % _ROW.size:
                raise CorruptionError(f"producer {row.producer_id} has {size} bytes of batches")
            table._producers[row.producer_id] = _Producer(
                row.epoch, row.next_sequence, row.last_append_time_ms, row.batches
            )
        if len(table) != len(rows):
            raise CorruptionError("a checkpoint lists a producer twice")
        return table

    def _expire(self, now_ms: int) -> None:
        """Forget whoever is silent for too long.  The oldest stands first, so this is cheap."""
        while True:
            producer_id = next(iter(self._producers))
            silent_ms = now_ms - self._producers[producer_id].last_append_time_ms
            if silent_ms <= PRODUCER_EXPIRY_MS:
                return
            del self._producers[producer_id]


def _check_known(
    known: _Producer, producer_id: int, base_sequence: int, record_count: int
) -> Duplicate:
    if base_sequence > known.next_sequence:
        raise _out_of_sequence(
            f"producer {producer_id} continues at sequence {known.next_sequence}, "
            f"found {base_sequence}",
            may_have_applied=False,
        )
    for sequence, count, span, base_offset, append_time_ms in _ROW.iter_unpack(known.batches):
        if sequence == base_sequence and count == record_count:
            return Duplicate(Offset(base_offset), Offset(base_offset + span), append_time_ms)
    raise _out_of_sequence(
        f"producer {producer_id} has appended up to sequence {known.next_sequence}, and "
        f"[{base_sequence}, {base_sequence + record_count}) is none of its "
        f"batches that are remembered, the last {len(known.batches) // _ROW.size}",
        may_have_applied=True,
    )


def _out_of_sequence(message: str, *, may_have_applied: bool) -> OutOfSequenceError:
    error = OutOfSequenceError(message)
    error.may_have_applied = may_have_applied
    return error
