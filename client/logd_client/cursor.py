"""One partition as a consumer sees it: where it stands, what has arrived, what it owes.

Sans-I/O.  Three positions, in this order:

    position         next offset that the consumer's caller gets
    fetch position   next offset that is wanted from a broker: behind all that has arrived
    commit offset    end of what the broker could have sent when it last said so

Flow control is by bytes.  A delivery that has arrived is *held* until its batches were given
out and the caller came back for more; then its bytes become credit for the broker again.  A
new subscription starts at the fetch position, with the credit that is not held: what arrived
before stays good, since committed records never change.  Deliveries of an earlier
subscription carry an earlier generation and are dropped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from logd.errors import CorruptionError, MalformedBatchError
from logd.record.batch import decode_batch
from logd.record.header import BatchHeader, decode_header, verify_header
from logd.types import Buffer, GroupId, Offset
from logd.wire.messages import Credit, Deliver, SubscribeRequest, SubscribeResponse
from logd_client.records import Batch

StartKind = Literal["offset", "earliest", "latest", "time"]

_CREDIT_SHARE: Final = 4
"""Credit is returned when this part of it, one in so many, has been used up."""


class _Arrived:
    """One delivery, and how far it has been read."""

    __slots__ = ("body", "next_offset", "read_bytes")

    def __init__(self, body: memoryview, next_offset: Offset) -> None:
        self.body = body
        self.next_offset = next_offset
        self.read_bytes = 0


class Cursor:
    """The state of one partition of one consumer."""

    def __init__(
        self,
        *,
        topic: str,
        partition: int,
        group: GroupId,
        start: tuple[StartKind, int],
        credit_bytes: int,
        any_replica: bool,
    ) -> None:
        assert credit_bytes > 0
        self.topic = topic
        self.partition = partition
        self.group = group
        self.any_replica = any_replica
        self.commit_offset: Offset | None = None
        self.stop: Offset | None = None
        """Nothing from here on is given out; None: there is no end."""
        self.malformed_count = 0
        """Batches that were skipped because they could not be read."""
        self.on_skipped: Callable[[MalformedBatchError], None] = lambda error: None
        """Told of each of them."""
        self._start = start
        self._position: Offset | None = None
        self._fetch_position: Offset | None = None
        self._subscription = 0
        self._generation = 0
        self._is_subscribed = False
        self._arrived: deque[_Arrived] = deque()
        self._credit_bytes = credit_bytes
        self._held_bytes = 0
        self._in_use_bytes = 0
        self._owed_bytes = 0

    @property
    def position(self) -> Offset | None:
        """Next offset that is given out; None until the start is known."""
        return self._position

    @property
    def is_at_stop(self) -> bool:
        """All that is to be given out has been."""
        return self.stop is not None and self._position is not None and self._position >= self.stop

    @property
    def is_subscribed(self) -> bool:
        return self._is_subscribed

    @property
    def subscription(self) -> int:
        return self._subscription

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def has_arrived(self) -> bool:
        """``next_batch`` has something to look at."""
        return bool(self._arrived) and not self.is_at_stop

    def is_short_of(self, data_end: int) -> bool:
        """All that has arrived was read, and yet there is more, up to ``data_end``: the broker has
        all the credit, and something to send."""
        return (
            self._is_subscribed
            and not self._held_bytes
            and self._fetch_position is not None
            and self._fetch_position < data_end
        )

    # --- subscribing --------------------------------------------------------------------

    def subscribe(self, subscription: int) -> SubscribeRequest:
        """Begin a new subscription; whatever the one before still delivers is dropped.

        Args:
            subscription: never used before: a broker may carry out requests in another order
                than they were sent, and an unsubscribe must not hit a later subscription.
        """
        self._subscription = subscription
        self._generation += 1
        self._is_subscribed = False
        # More than the credit may be held, by one batch: for that nothing is owed.
        self._owed_bytes = min(self._credit_bytes - self._held_bytes, 0)
        kind, value = self._start
        if self._fetch_position is not None:
            kind, value = "offset", self._fetch_position
        return SubscribeRequest(
            subscription=subscription,
            generation=self._generation,
            group=self.group,
            start=kind,
            value=value,
            credit_bytes=max(self._credit_bytes - self._held_bytes, 0),
            any_replica=self.any_replica,
        )

    def on_subscribed(self, generation: int, response: SubscribeResponse) -> None:
        """The broker took the subscription."""
        if generation != self._generation:
            return
        self._is_subscribed = True
        self.commit_offset = Offset(response.commit_offset)
        if self._fetch_position is not None:
            return
        self._fetch_position = Offset(response.position)
        if self._position is None:
            self._position = self._fetch_position
        else:
            # What has arrived before is given out first; then the position leaps.
            self._arrived.append(_Arrived(memoryview(b""), self._fetch_position))

    def leap_to_earliest(self) -> None:
        """What is wanted next was trimmed away: the next subscription begins with what is
        left.  What has arrived stays good."""
        self._start = ("earliest", 0)
        self._fetch_position = None
        self.end()

    @property
    def wanted_offset(self) -> int | None:
        """The offset that a subscription asks for; None: it leaves that to the broker."""
        if self._fetch_position is not None:
            return self._fetch_position
        kind, value = self._start
        return value if kind == "offset" else None

    def end(self) -> None:
        """The subscription is over: whatever still arrives for it is dropped."""
        self._generation += 1
        self._is_subscribed = False

    def on_delivered(self, message: Deliver, body: Buffer) -> bool:
        """Keep a delivery; False if it is not of the current subscription."""
        if message.generation != self._generation or not self._is_subscribed:
            return False
        self._arrived.append(_Arrived(memoryview(body), Offset(message.next_offset)))
        self._held_bytes += len(body)
        self._fetch_position = Offset(message.next_offset)
        self.commit_offset = Offset(message.commit_offset)
        return True

    def restart_at_position(self) -> None:
        """Forget what has arrived and was not given out, to fetch it again."""
        self._held_bytes -= sum(len(item.body) - item.read_bytes for item in self._arrived)
        self._arrived.clear()
        self._fetch_position = self._position
        self.end()

    # --- giving out ---------------------------------------------------------------------

    def next_batch(self, *, skips_malformed: bool) -> Batch | None:
        """The next records, or None if nothing is left of what has arrived, or ``stop`` is reached.

        The position moves behind them.  The batch given out before counts as read.

        Raises:
            MalformedBatchError: intact, but unreadable.  The position stays before it.
            CorruptionError: damaged, misdirected or out of place.  The position stays.
        """
        self.finish()
        while self.has_arrived:
            item = self._arrived[0]
            if item.read_bytes == len(item.body):
                self._leave(item)
                continue
            header, batch_view = self._next_header(item)
            batch = None
            assert self._position is not None
            if header.end_offset > self._position and not header.is_control:
                batch = self._decode(header, batch_view, skips_malformed)
            item.read_bytes += header.size_bytes
            self._in_use_bytes += header.size_bytes
            self._position = max(self._position, header.end_offset)
            if self.stop is not None and self._position > self.stop:
                self._position = self.stop  # Whoever goes on from here misses nothing.
            if item.read_bytes == len(item.body):
                self._leave(item)
            if batch is not None:
                return batch
            self.finish()
        return None

    def _next_header(self, item: _Arrived) -> tuple[BatchHeader, memoryview]:
        header = decode_header(item.body, item.read_bytes)
        end = item.read_bytes + header.size_bytes
        if end > len(item.body):
            raise CorruptionError(
                f"delivery ends {end - len(item.body)} bytes before its last batch"
            )
        batch_view = item.body[item.read_bytes : end]
        verify_header(batch_view, header, self.group)
        assert self._position is not None
        if header.base_offset > self._position:
            raise CorruptionError(
                f"offsets [{self._position}, {header.base_offset}) are missing from a delivery"
            )
        return header, batch_view

    def _decode(
        self, header: BatchHeader, batch_view: memoryview, skips_malformed: bool
    ) -> Batch | None:
        assert self._position is not None
        try:
            decoded = decode_batch(batch_view, header)
        except MalformedBatchError as error:
            named = MalformedBatchError(
                error.reason,
                base_offset=error.base_offset,
                end_offset=error.end_offset,
                log=f"{self.topic}/{self.partition}",
            )
            if not skips_malformed:
                raise named from error
            self.malformed_count += 1
            self.on_skipped(named)
            return None
        first, end = 0, len(decoded)
        if header.base_offset < self._position:
            first = bisect_left(decoded.offsets, self._position)
        if self.stop is not None and header.end_offset > self.stop:
            end = bisect_left(decoded.offsets, self.stop)
        if first >= end:
            return None  # Compacted: no record left at or above the position.
        batch = Batch(self.topic, self.partition, decoded, first)
        if end < len(decoded):
            batch.keep_before(end - first)
        return batch

    def _leave(self, item: _Arrived) -> None:
        self._arrived.popleft()
        if self.is_at_stop:
            return
        if self._position is None or item.next_offset > self._position:
            self._position = item.next_offset

    # --- credit -------------------------------------------------------------------------

    def finish(self) -> None:
        """The caller came back for more: what was given out has been read."""
        self._held_bytes -= self._in_use_bytes
        self._owed_bytes += self._in_use_bytes
        self._in_use_bytes = 0
        assert self._held_bytes >= 0

    def take_credit(self) -> Credit | None:
        """Credit to return to the broker now, if there is enough to be worth a frame."""
        share = self._credit_bytes // _CREDIT_SHARE
        if not self._is_subscribed or self._owed_bytes < share:
            return None
        credit = Credit(
            subscription=self._subscription,
            generation=self._generation,
            bytes=self._owed_bytes,
        )
        self._owed_bytes = 0
        return credit
