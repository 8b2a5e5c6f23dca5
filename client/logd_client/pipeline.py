"""One partition's batches: in order, several in flight, each stored once (P4).

Sans-I/O.  The producer's driver asks for the next batch to send (``take``) and tells what
became of each (``acknowledge``, ``refuse``, ``abandon``, ``expire``).  How order is kept:

- A batch is sealed once, with the sequence that follows the one before it, and retried
  unchanged.  The leader stores a sequence only behind the one before it, so batches that
  were pipelined behind a failed one are refused with a gap and cannot overtake it.
- After a failure that a retry can cure, nothing more is sent until every batch in flight has
  been answered; then the driver finds the leader and calls ``restart``, and every unresolved
  batch is sent again, in order.  What was sent between two restarts is one *session*.
- A batch that failed for good leaves a *hole* in the sequences: no leader will ever take what
  was sealed behind it.  The batches behind the hole are settled first: one that may have been
  stored is sent again under its old sequence, and is either a duplicate after all or refused.
  When none of them can have been stored, the producer epoch is raised, sequences begin at 0,
  and they are sealed again.
- What was sent on a connection that was given up may still arrive, all of it in its order.  A
  batch of which that is true cannot be sealed again, unless one before it certainly never
  arrives: it fails, and its callers are told that it may be stored.
- A conditional append (``expected_offset``) travels alone, so that its refusal makes no hole
  for others to fall into.

``is_in_doubt`` says about a batch: some attempt of it may have been stored and nothing said
since can exclude that.  It becomes ``may_have_applied`` of the error its callers get.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Final

from logd.errors import (
    DeliveryTimeoutError,
    FencedError,
    LogdError,
    OutOfSequenceError,
    UnexpectedOffsetError,
)
from logd.record.batch import decode_batch, seal_batch
from logd.record.header import Codec
from logd.types import ProducerId
from logd.wire.messages import ProduceResponse
from logd_client.accumulator import OpenBatch
from logd_client.delivery import Delivery
from logd_client.refusals import same_error

_JUDGED_ON_THE_LOG: Final = (OutOfSequenceError, UnexpectedOffsetError, FencedError)
"""Refusals that are made only after the leader looked for a duplicate: what they say about
earlier attempts holds.  But of some it holds only for those that have arrived by then."""

_BEFORE_GATHERING: Final = 2
"""With so many batches under way a batch that can grow does, until one of them is answered.  Its
records wait for half a round trip at most, and many small batches are what costs the brokers."""

_NO_SESSION: Final = -1


class SealedBatch:
    """A batch that has a place in the sequence."""

    __slots__ = (
        "base_sequence",
        "data",
        "deadline",
        "delivery",
        "expected_offset",
        "has_lost_attempt",
        "is_in_doubt",
        "is_outstanding",
        "record_count",
        "sent_at",
        "session",
        "size_bytes",
    )

    def __init__(self, source: OpenBatch, data: bytearray, base_sequence: int) -> None:
        self.data = data
        self.base_sequence = base_sequence
        self.record_count = len(source.values)
        self.size_bytes = source.size_bytes
        self.deadline = source.deadline
        self.delivery: Delivery = source.delivery
        self.expected_offset = source.expected_offset
        self.session = _NO_SESSION
        """The session it was last sent in."""
        self.sent_at = 0.0
        self.is_outstanding = False
        """Sent, and not answered yet."""
        self.is_in_doubt = False
        self.has_lost_attempt = False
        """One was never answered: it may still be on its way."""

    @property
    def is_certainly_not_stored(self) -> bool:
        return not self.is_outstanding and not self.is_in_doubt

    def is_awaited_in(self, session: int) -> bool:
        """An answer in ``session`` is to the attempt that is under way, and somebody waits for
        it.  Else it is late: of an earlier epoch, or after the delivery has expired."""
        return self.is_outstanding and session == self.session and not self.delivery.is_settled


class Pipeline:
    """What one producer has on its way to one partition."""

    def __init__(
        self,
        *,
        producer_id: ProducerId,
        codec: Codec,
        linger_s: float,
        batches_in_flight: int,
        on_settled: Callable[[int], None],
        on_failed: Callable[[Delivery], None],
    ) -> None:
        """``on_settled`` gets the estimated size of each batch that is acknowledged or failed,
        ``on_failed`` the delivery of each that failed."""
        assert batches_in_flight == 1 or producer_id, "only sequences keep pipelined batches apart"
        self._producer_id = producer_id
        self._codec = codec
        self._linger_s = linger_s
        self._batches_in_flight = batches_in_flight
        self._on_settled = on_settled
        self._on_failed = on_failed
        self._queue: deque[OpenBatch] = deque()
        self._unresolved: deque[SealedBatch] = deque()
        self._epoch = 0
        self._next_sequence = 0
        self._hole: int | None = None
        """Lowest sequence, in this epoch, that failed."""
        self._never_stored: int | None = None
        """Lowest sequence, in this epoch, that certainly was not stored and never will be."""
        self._session = 0
        self._is_halted = False
        self._may_resend = False
        """Some unresolved batch may have to be sent (again) in this session."""
        self.trouble: LogdError | None = None
        """What stood in the way last; told when a delivery expires."""

    # --- what is there ------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Every batch is settled."""
        return not self._unresolved and not self._queue

    @property
    def is_busy(self) -> bool:
        """Something was sent and is not settled."""
        return bool(self._unresolved)

    @property
    def is_flowing(self) -> bool:
        """Nothing is known to stand in the way of a new batch."""
        return not self._is_halted and self._hole is None

    @property
    def needs_restart(self) -> bool:
        """A failure was met and everything in flight has been answered since."""
        return self._is_halted and not any(batch.is_outstanding for batch in self._unresolved)

    @property
    def epoch(self) -> int:
        return self._epoch

    def growing(self) -> OpenBatch | None:
        """The batch that single records may still join."""
        return self._queue[-1] if self._queue and not self._queue[-1].is_closed else None

    def deliveries(self) -> Iterator[Delivery]:
        """Of all batches that are not settled, in order."""
        for sealed in self._unresolved:
            yield sealed.delivery
        for waiting in self._queue:
            yield waiting.delivery

    def next_deadline(self) -> float | None:
        """When ``expire`` is wanted next."""
        first = self._unresolved or self._queue
        return first[0].deadline if first else None

    def oldest_sent_at(self) -> float | None:
        """When the batch that has waited longest for its answer was sent."""
        return min((b.sent_at for b in self._unresolved if b.is_outstanding), default=None)

    def lingers_until(self) -> float | None:
        """When the first waiting batch may be sent although it could still grow; None if that is
        not what it waits for."""
        if not self._queue or self._queue[0].is_closed:
            return None
        first = self._queue[0]
        if self._is_halted or not self._may_follow(first):
            return None
        return first.opened_at + self._linger_s

    # --- filling and sending ------------------------------------------------------------

    def enqueue(self, batch: OpenBatch) -> None:
        """Put a batch behind all others; the one before it stops growing."""
        if self._queue:
            self._queue[-1].is_closed = True
        self._queue.append(batch)

    def close_growing(self) -> None:
        """Send what is there without waiting for more."""
        if self._queue:
            self._queue[-1].is_closed = True

    def take(self, now: float) -> SealedBatch | None:
        """The next batch to send, or None if there is none now.

        The caller sends it, and reports its fate with the batch's ``session`` as it is now.
        """
        if self._is_halted:
            return None
        if self._may_resend:
            for sealed in self._unresolved:
                if sealed.session != self._session and not self._is_behind_hole(sealed):
                    return self._hand_out(sealed, now)
            self._may_resend = False
        while self._may_seal(now):
            sealed_now = self._seal(self._queue.popleft())
            if sealed_now is not None:
                return self._hand_out(sealed_now, now)
        return None

    def _may_seal(self, now: float) -> bool:
        if not self._queue:
            return False
        first = self._queue[0]
        is_ripe = first.is_closed or now >= first.opened_at + self._linger_s
        return is_ripe and self._may_follow(first)

    def _may_follow(self, first: OpenBatch) -> bool:
        """Whether what is under way lets the first waiting batch go."""
        if self._hole is not None:
            return False
        if not self._unresolved:
            return True
        if not first.is_closed and len(self._unresolved) >= _BEFORE_GATHERING:
            return False
        if first.expected_offset is not None or self._unresolved[-1].expected_offset is not None:
            return False
        return len(self._unresolved) < self._batches_in_flight

    def _seal(self, batch: OpenBatch) -> SealedBatch | None:
        batch.is_closed = True
        try:
            data = batch.seal(
                self._codec,
                producer_id=self._producer_id,
                producer_epoch=self._epoch,
                base_sequence=self._next_sequence,
            )
        except LogdError as error:
            self._drop(batch, error)
            return None
        sealed = SealedBatch(batch, data, self._next_sequence)
        if self._producer_id:
            self._next_sequence += sealed.record_count
        self._unresolved.append(sealed)
        return sealed

    def _hand_out(self, batch: SealedBatch, now: float) -> SealedBatch:
        assert not batch.is_outstanding
        batch.session = self._session
        batch.sent_at = now
        batch.is_outstanding = True
        return batch

    # --- what became of it --------------------------------------------------------------

    def acknowledge(self, batch: SealedBatch, session: int, response: ProduceResponse) -> None:
        """The batch is committed.  True whichever session the answer is of."""
        if session == batch.session:
            batch.is_outstanding = False
        if batch.delivery.is_settled:
            return  # Expired before, with an error that said it may be stored.
        self.trouble = None
        self._unresolved.remove(batch)
        batch.delivery.succeed(response)
        self._on_settled(batch.size_bytes)
        if self._hole is not None:
            self._fill_hole()

    def refuse(self, batch: SealedBatch, session: int, error: LogdError) -> None:
        """The batch was not acknowledged."""
        if session != batch.session or not batch.is_outstanding:
            return  # Given up since, and counted as in doubt then.
        batch.is_outstanding = False
        self.trouble = error
        if batch.delivery.is_settled:
            return
        if error.may_have_applied:
            batch.is_in_doubt = batch.has_lost_attempt = True
        elif isinstance(error, _JUDGED_ON_THE_LOG) and not self._may_still_arrive(batch, error):
            batch.is_in_doubt = False

        if self._is_gap(batch, error):
            if not self._is_behind_hole(batch):
                self._halt()
        elif error.retriable and (self._producer_id or not batch.is_in_doubt):
            self._halt()
        else:
            error.may_have_applied = batch.is_in_doubt
            self._fail(batch, error)
        self._fill_hole()

    def _may_still_arrive(self, batch: SealedBatch, error: LogdError) -> bool:
        """An earlier attempt of what was refused could yet be stored: what was out of sequence,
        behind earlier attempts of all that is before it; what is expected beyond the end of the
        log, once that has grown."""
        if not batch.has_lost_attempt:
            return False
        if isinstance(error, UnexpectedOffsetError):
            return batch.expected_offset is None or error.log_end < batch.expected_offset
        return isinstance(error, OutOfSequenceError) and not self._is_cut_off(batch)

    def _is_cut_off(self, batch: SealedBatch) -> bool:
        """Something before it is certainly never stored in this epoch."""
        if self._never_stored is not None and batch.base_sequence > self._never_stored:
            return True
        before = takewhile(lambda other: other is not batch, self._unresolved)
        return any(map(self._is_behind_hole, before))

    def _is_gap(self, batch: SealedBatch, error: LogdError) -> bool:
        """Refused only because a batch before it is missing, which does not end its way."""
        if not isinstance(error, OutOfSequenceError) or error.may_have_applied:
            return False
        return self._is_behind_hole(batch) or self._unresolved[0] is not batch

    def abandon(self, error: LogdError) -> None:
        """Stop waiting for the answers of this session; they may be lost, or still come."""
        self.trouble = error
        self._halt()
        for batch in list(self._unresolved):
            if batch.is_outstanding:
                batch.is_in_doubt = batch.has_lost_attempt = True
            batch.is_outstanding = False
            if batch.is_in_doubt and not self._producer_id:
                self._fail(batch, same_error(error, may_have_applied=True))
        self._fill_hole()

    def note_trouble(self, error: LogdError) -> None:
        """The driver could not find or reach the leader."""
        self.trouble = error
        self._halt()

    def _halt(self) -> None:
        """Send nothing before the next restart.  Records that could go elsewhere do."""
        if not self._is_halted:
            self._is_halted = True
            self.close_growing()

    def restart(self) -> None:
        """The leader was found (again): send all unresolved batches from the first."""
        assert not any(batch.is_outstanding for batch in self._unresolved)
        self._session += 1
        self._is_halted = False
        self._may_resend = True

    def expire(self, now: float) -> None:
        """Fail what has not been acknowledged by its deadline."""
        while self._unresolved and self._unresolved[0].deadline <= now:
            batch = self._unresolved[0]
            # An attempt that is still out may yet be stored; nobody will ask for its fate.
            is_in_doubt = batch.is_in_doubt or batch.is_outstanding
            self._fail(batch, _expired(self.trouble, is_in_doubt))
        while self._queue and self._queue[0].deadline <= now:
            self._drop(self._queue.popleft(), _expired(self.trouble, is_in_doubt=False))
        self._fill_hole()

    def fail_all(self, error: LogdError) -> None:
        """Nothing of this can succeed any more: ``error`` says why, without a doubt of its own."""
        for batch in list(self._unresolved):
            is_in_doubt = batch.is_in_doubt or batch.is_outstanding
            self._fail(batch, same_error(error, may_have_applied=is_in_doubt))
        while self._queue:
            self._drop(self._queue.popleft(), same_error(error, may_have_applied=False))
        self._fill_hole()

    def _fail(self, batch: SealedBatch, error: LogdError) -> None:
        self._unresolved.remove(batch)
        if self._producer_id and self._hole is None:
            self._hole = batch.base_sequence
        elif self._hole is not None:
            self._hole = min(self._hole, batch.base_sequence)
        if not error.may_have_applied and self._producer_id:
            lowest = self._never_stored
            self._never_stored = (
                batch.base_sequence if lowest is None else min(lowest, batch.base_sequence)
            )
        self._settle_as_failed(batch, error)

    def _drop(self, batch: OpenBatch, error: LogdError) -> None:
        batch.is_closed = True
        self._settle_as_failed(batch, error)

    def _settle_as_failed(self, batch: SealedBatch | OpenBatch, error: LogdError) -> None:
        batch.delivery.fail(error)
        self._on_failed(batch.delivery)
        self._on_settled(batch.size_bytes)

    # --- holes --------------------------------------------------------------------------

    def _is_behind_hole(self, batch: SealedBatch) -> bool:
        """It waits for the next epoch: nothing of it is stored or on its way."""
        return (
            self._hole is not None
            and batch.base_sequence > self._hole
            and batch.is_certainly_not_stored
        )

    def _fill_hole(self) -> None:
        """Raise the epoch as soon as that can duplicate nothing."""
        if self._hole is None or not all(map(self._is_behind_hole, self._unresolved)):
            return
        self._epoch += 1
        self._may_resend = True
        self._next_sequence = 0
        self._hole = self._never_stored = None
        for batch in self._unresolved:
            batch.data = _sealed_again(batch.data, self._codec, self._epoch, self._next_sequence)
            batch.base_sequence = self._next_sequence
            batch.session = _NO_SESSION
            batch.has_lost_attempt = False
            self._next_sequence += batch.record_count


def _sealed_again(data: bytearray, codec: Codec, epoch: int, base_sequence: int) -> bytearray:
    """The same records under another epoch and sequence."""
    batch = decode_batch(data)
    return seal_batch(
        values=batch.values,
        keys=batch.keys,
        headers=batch.headers,
        timestamps_ms=batch.timestamps_ms,
        codec=codec,
        producer_id=batch.header.producer_id,
        producer_epoch=epoch,
        base_sequence=base_sequence,
        fence_id=batch.header.fence_id,
        fence_token=batch.header.fence_token,
    )


def _expired(last_error: LogdError | None, is_in_doubt: bool) -> DeliveryTimeoutError:
    fate = "it may still be committed" if is_in_doubt else "it was not stored"
    reason = f"; the last attempt met: {last_error}" if last_error is not None else ""
    error = DeliveryTimeoutError(f"not acknowledged within the delivery timeout, {fate}{reason}")
    error.may_have_applied = is_in_doubt
    error.retriable = not is_in_doubt
    error.__cause__ = last_error
    return error
