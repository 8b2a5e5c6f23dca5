"""The batch that a consumer gives out, record by record or as it is, and how far it has.

A blocking consumer reads it in its own thread, without a lock, while the event loop's thread may
bring the next: a wait that was interrupted ends a moment later than its thread goes on.  And that
thread may be interrupted, by a signal whose handler raises, wherever it calls something.  Nothing
is lost by either: what has been given out follows from the batch and its last record alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from logd_client.records import Batch, Record


class BatchAtHand:
    """The one that was brought last."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self.rows: Iterator[Record] = iter(())
        """The rest of it: what needs no waiting."""
        self.last_record: Record | None = None
        """The last one given out of it; set by whoever takes one out of ``rows``."""
        self._is_stopped = False

    def bring(self, batch: Batch) -> None:
        """The next, of which nothing is given out."""
        self.last_record = None  # First: whoever has looked at it looks again.
        self._batch, self.rows = batch, batch.records()

    def stop(self) -> None:
        """Give out no more of it."""
        self._is_stopped = True
        self.rows = iter(())

    def take_record(self) -> Record | None:
        """The next record if it needs no waiting.

        A thread that is interrupted in here has either got a record or not taken it: a loop takes
        one without calling anything, and signal handlers run when something was called.
        """
        for record in self.rows:
            self.last_record = record
            return record
        return None

    def take_rest(self) -> Batch | None:
        """What is left of the batch, if anything is.

        A thread that is interrupted in here, as in ``take_record``, loses nothing.
        """
        batch, last = self._look()
        no_rows: Iterator[Record] = iter(())
        if batch is None or self._is_stopped:
            return None
        if last is not None:
            row = bisect_right(batch.offsets, last.offset)
            if row == len(batch):
                return None
            batch.drop_before(row)
        self._batch, self.rows, self.last_record = None, no_rows, None
        return batch

    @property
    def is_left(self) -> bool:
        """Something of it has not been given out."""
        batch, last = self._look()
        return batch is not None and (last is None or last.offset < batch.last_offset)

    def position(self, partition: int) -> int | None:
        """The next offset that is given out of the batch; None if it is not of ``partition``, or
        nothing is left of it."""
        batch, last = self._look()
        if batch is None or batch.partition != partition:
            return None
        if last is None:
            return batch.base_offset
        return last.offset + 1 if last.offset < batch.last_offset else None

    def _look(self) -> tuple[Batch | None, Record | None]:
        """The batch, and the last record that was given out of it.

        Another batch may come between one look and the next.
        """
        while True:
            last, batch = self.last_record, self._batch
            if self.last_record is last:
                return batch, last
