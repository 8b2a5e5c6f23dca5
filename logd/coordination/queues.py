"""Work queues: items that are put, claimed, and completed once.

An item is *ready*, *delayed* (by its putter or by a back-off), *claimed*, *behind* another of its
key, or *dead*.  A claim's token is the revision of the command that made it, so each claim of an
item has a greater one, and nothing but the latest can complete, renew or release it.

Whatever is not completed counts as an attempt and waits a back-off, also if the session was lost:
an item that kills its workers must end among the dead like any other.  Only a worker that says that
it was stopped hands an item back as it got it.  An item of a key holds its place while it waits or
is retried, and the others of the key wait behind it; when it is completed or dead the next one
follows.

Every command costs the logarithm of the items for each that it touches: what is ready, delayed or
claimed lies in heaps.  Heaps are no part of snapshots.  They follow from the items, but for those
that are due and were not yet moved, since one command moves a bounded number.

Invariants, asserted by ``check_invariants``:

C6  An item is in one of the places above; of the items of a key, only the first is not behind.
C7  Claimed items are of sessions that live, and the sessions know them.
C8  Put = completed + waiting + dead + dropped, counted per queue.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Final

import msgspec

from logd.limits import RESULT_BYTES_MAX
from logd.wire.coordination import ClaimedItem, DeadItem, QueueOptions, QueueStatistics

NOT_IN_TIME: Final = "not completed in time"
SESSION_LOST: Final = "the session of the claim ended"
_DOUBLINGS_MAX: Final = 40
_HEAP_SPARE: Final = 64
PLACED_AT_ONCE: Final = 2_000
"""Items whose place is found without a rest."""


class QueueItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Replaced when it changes; also how a snapshot keeps it."""

    item: int
    place: int
    """Order among items of a key, and among ready ones of a priority."""
    payload: bytes
    put_ms: int
    key: bytes = b""
    priority: int = 0
    due_ms: int = 0
    attempts: int = 0
    token: int = 0
    """0: not claimed."""
    session: int = 0
    until_ms: int = 0
    """The claim holds before this log time."""

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + len(self.key)


class DeadRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    item: QueueItem
    reason: str
    died_ms: int


class QueueCounts(msgspec.Struct):
    """What a queue knows of items that it does not hold any more."""

    put: int = 0
    completed: int = 0
    dropped: int = 0
    """Dead items that went for newer ones."""
    next_place: int = 0


class Queue:
    """One queue.  Quotas and sessions are its caller's: see ``work.py``."""

    def __init__(self, name: str, options: QueueOptions) -> None:
        self.name = name
        self.options = options
        self.items: dict[int, QueueItem] = {}
        self.dead: OrderedDict[int, DeadRecord] = OrderedDict()
        self.counts = QueueCounts()
        self.in_flight = 0
        self._ready: list[tuple[int, int, int]] = []
        """(-priority, place, item)"""
        self._delayed: list[tuple[int, int, int]] = []
        """(due, place, item)"""
        self._claims: list[tuple[int, int]] = []
        """(until, item); stale unless the item is claimed until then."""
        self._ages: list[tuple[int, int]] = []
        """(put, item); stale unless the item is there."""
        self._keys: dict[bytes, deque[int]] = {}

    @property
    def ready_count(self) -> int:
        """Items that could be claimed now."""
        return len(self._ready)

    # --- items come ---------------------------------------------------------------------

    def add(self, item: QueueItem, now_ms: int) -> None:
        """A new item, or one that begins anew: behind all others of its key."""
        item = msgspec.structs.replace(item, place=self.counts.next_place)
        self.counts.next_place += 1
        self.items[item.item] = item
        heapq.heappush(self._ages, (item.put_ms, item.item))
        if item.key:
            following = self._keys.setdefault(item.key, deque())
            following.append(item.item)
            if len(following) > 1:
                return
        self._line_up(item, now_ms)

    # --- claims -------------------------------------------------------------------------

    def claim(
        self, count: int, session: int, token: int, now_ms: int, until_ms: int
    ) -> list[ClaimedItem]:
        """Take what is ready, by priority and place, as far as a result can hold it."""
        claimed: list[ClaimedItem] = []
        bytes_left = RESULT_BYTES_MAX
        while self._ready and len(claimed) < count:
            item = self.items[self._ready[0][2]]
            bytes_left -= item.size_bytes
            if bytes_left < 0 and claimed:
                break
            heapq.heappop(self._ready)
            claimed.append(self._claim(item, session, token, until_ms))
        return claimed

    def find_claim(self, item: int, token: int, session: int, now_ms: int) -> QueueItem | None:
        """The item, if this very claim of this session holds."""
        found = self.items.get(item)
        if found is None or found.token != token or found.session != session:
            return None
        return found if found.token and now_ms < found.until_ms else None

    def renew(self, item: QueueItem, until_ms: int) -> None:
        self._hold(msgspec.structs.replace(item, until_ms=until_ms))

    def complete(self, item: QueueItem, now_ms: int) -> None:
        self.in_flight -= 1
        self.counts.completed += 1
        self._remove(item, now_ms)

    def fail(self, item: QueueItem, reason: str, now_ms: int, delay_ms: int | None = None) -> bool:
        """A claim ends without completion.  Returns whether the item died of it."""
        if item.attempts >= self.options.attempts_max:
            self.bury(item, reason, now_ms)
            return True
        backoff_ms = self._backoff_ms(item.attempts) if delay_ms is None else delay_ms
        self._free(item, item.attempts, now_ms + backoff_ms, now_ms)
        return False

    def hand_back(self, item: QueueItem, now_ms: int, delay_ms: int) -> None:
        """A claim ends as if it had never been: it is no attempt."""
        self._free(item, item.attempts - 1, now_ms + delay_ms, now_ms)

    def bury(self, item: QueueItem, reason: str, now_ms: int) -> None:
        """A claimed item is dead."""
        self.in_flight -= 1
        self._remove(item, now_ms)
        dead = msgspec.structs.replace(item, token=0, session=0, until_ms=0)
        self.dead[item.item] = DeadRecord(dead, reason, now_ms)

    # --- dead items ---------------------------------------------------------------------

    def drop_oldest_dead(self) -> QueueItem | None:
        """The next one that is too many."""
        if len(self.dead) <= self.options.dead_items_max:
            return None
        _, dropped = self.dead.popitem(last=False)
        self.counts.dropped += 1
        return dropped.item

    def redrive(self, item: int, now_ms: int) -> bool:
        """A dead item begins anew.  Returns whether there was one."""
        dead = self.dead.pop(item, None)
        if dead is None:
            return False
        self.add(msgspec.structs.replace(dead.item, attempts=0, due_ms=0), now_ms)
        return True

    # --- time ---------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """When the next delay is over, or the next claim runs out."""
        self._skip_stale_claims()
        dues = [heap[0][0] for heap in (self._delayed, self._claims) if heap]
        return min(dues, default=None)

    def take_due(self, now_ms: int) -> QueueItem | None:
        """Carry out what was due first: a delayed item lines up, or a claim has run out, whose
        item is returned and the caller's to fail."""
        self._skip_stale_claims()
        if self._delayed and (not self._claims or self._delayed[0][0] <= self._claims[0][0]):
            _, _, item = heapq.heappop(self._delayed)
            self._line_up(self.items[item], now_ms)
            return None
        return self.items[heapq.heappop(self._claims)[1]]

    # --- questions ----------------------------------------------------------------------

    def statistics(self, revision: int, now_ms: int, dead: int) -> QueueStatistics:
        while self._ages and self._ages[0][1] not in self.items:
            heapq.heappop(self._ages)
        return QueueStatistics(
            revision=revision,
            ready=len(self.items) - len(self._delayed) - self.in_flight,
            delayed=len(self._delayed),
            in_flight=self.in_flight,
            dead=len(self.dead),
            completed=self.counts.completed,
            oldest_ms=now_ms - self._ages[0][0] if self._ages else None,
            options=self.options,
            dead_items=list(self._described_dead(dead)),
        )

    def _described_dead(self, count: int) -> Iterator[DeadItem]:
        bytes_left = RESULT_BYTES_MAX
        for _, record in zip(range(count), reversed(self.dead.values()), strict=False):
            bytes_left -= record.item.size_bytes
            if bytes_left < 0:
                return
            yield DeadItem(
                item=record.item.item,
                payload=record.item.payload,
                reason=record.reason,
                attempts=record.item.attempts,
                died_ms=record.died_ms,
                key=record.item.key,
            )

    # --- snapshots ----------------------------------------------------------------------

    def overdue(self, now_ms: int) -> list[int]:
        """Items that are due and not yet moved."""
        if not self._delayed or self._delayed[0][0] > now_ms:
            return []
        return sorted(item for due_ms, _, item in self._delayed if due_ms <= now_ms)

    def find_places(self, overdue: Iterable[int], now_ms: int) -> Iterator[None]:
        """Derive all that is no part of a snapshot from the items.  Yields now and then."""
        still_delayed = set(overdue)
        in_order = sorted(self.items.values(), key=attrgetter("place"))
        for number, item in enumerate(in_order):
            if number % PLACED_AT_ONCE == 0:
                yield
            if item.key:
                following = self._keys.setdefault(item.key, deque())
                following.append(item.item)
                if len(following) > 1:
                    continue
            if item.token:
                self.in_flight += 1
                heapq.heappush(self._claims, (item.until_ms, item.item))
            elif item.item in still_delayed:
                heapq.heappush(self._delayed, (item.due_ms, item.place, item.item))
            else:
                self._line_up(item, now_ms)
        self._ages = [(item.put_ms, item.item) for item in self.items.values()]
        heapq.heapify(self._ages)

    def check_invariants(self) -> None:
        held = [item for item in self.items.values() if item.token]
        at_their_turn = [item for _, _, item in (*self._ready, *self._delayed)]
        behind = [item for following in self._keys.values() for item in list(following)[1:]]
        places = [*at_their_turn, *behind, *(item.item for item in held)]
        assert sorted(places) == sorted(self.items)  # C6
        assert self.in_flight == len(held)
        assert {(i.until_ms, i.item) for i in held} <= set(self._claims)
        for key, following in self._keys.items():
            assert following
            in_order = [self.items[item].place for item in following]
            assert in_order == sorted(in_order)
            assert all(self.items[item].key == key for item in following)
        counts = self.counts
        gone = counts.completed + counts.dropped
        assert counts.put == gone + len(self.items) + len(self.dead)  # C8

    # --- inside -------------------------------------------------------------------------

    def _line_up(self, item: QueueItem, now_ms: int) -> None:
        """It is at its turn among those of its key: ready, or delayed."""
        if item.due_ms > now_ms:
            heapq.heappush(self._delayed, (item.due_ms, item.place, item.item))
        else:
            heapq.heappush(self._ready, (-item.priority, item.place, item.item))

    def _claim(self, item: QueueItem, session: int, token: int, until_ms: int) -> ClaimedItem:
        attempt = item.attempts + 1
        self.in_flight += 1
        self._hold(
            msgspec.structs.replace(
                item, attempts=attempt, token=token, session=session, until_ms=until_ms
            )
        )
        return ClaimedItem(
            item=item.item,
            token=token,
            payload=item.payload,
            key=item.key,
            attempt=attempt,
            put_ms=item.put_ms,
        )

    def _hold(self, item: QueueItem) -> None:
        self.items[item.item] = item
        heapq.heappush(self._claims, (item.until_ms, item.item))
        if len(self._claims) > 2 * self.in_flight + _HEAP_SPARE:
            self._claims = [claim for claim in self._claims if self._is_held(claim)]
            heapq.heapify(self._claims)

    def _free(self, item: QueueItem, attempts: int, due_ms: int, now_ms: int) -> None:
        """A claimed item waits again, in its old place."""
        self.in_flight -= 1
        freed = msgspec.structs.replace(
            item, attempts=attempts, token=0, session=0, until_ms=0, due_ms=due_ms
        )
        self.items[item.item] = freed
        self._line_up(freed, now_ms)

    def _is_held(self, claim: tuple[int, int]) -> bool:
        until_ms, item = claim
        found = self.items.get(item)
        return found is not None and found.token != 0 and found.until_ms == until_ms

    def _skip_stale_claims(self) -> None:
        while self._claims and not self._is_held(self._claims[0]):
            heapq.heappop(self._claims)

    def _remove(self, item: QueueItem, now_ms: int) -> None:
        """It was at its turn; the next of its key follows."""
        del self.items[item.item]
        if len(self._ages) > 2 * len(self.items) + _HEAP_SPARE:
            self._ages = [age for age in self._ages if age[1] in self.items]
            heapq.heapify(self._ages)
        if not item.key:
            return
        following = self._keys[item.key]
        first = following.popleft()
        assert first == item.item
        if following:
            self._line_up(self.items[following[0]], now_ms)
        else:
            del self._keys[item.key]

    def _backoff_ms(self, attempts: int) -> int:
        doubled = self.options.backoff_ms << min(attempts - 1, _DOUBLINGS_MAX)
        return min(doubled, self.options.backoff_max_ms)
