"""The last two minutes of a broker, as rates: what the status page draws.

Counters are read now and then; the differences are the rates.  Nothing on the way of a record
knows that it is measured.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from logd.replication.counts import GroupCounts, Histogram
from logd.types import METADATA_GROUP, GroupId

if TYPE_CHECKING:
    from logd.broker.broker import Broker

INTERVAL_S: Final = 2.0
SAMPLES_KEPT: Final = 60
QUANTILE_SAMPLES: Final = 5
"""A quantile is that of the last ten seconds."""


class Rates(NamedTuple):
    """Per second."""

    records_in: float = 0.0
    bytes_in: float = 0.0
    records_out: float = 0.0
    bytes_out: float = 0.0

    def plus(self, other: Rates) -> Rates:
        """Both together."""
        return Rates(*(a + b for a, b in zip(self, other, strict=True)))


NO_RATES: Final = Rates()


class Sampler:
    """Samples one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.history: deque[Rates] = deque(maxlen=SAMPLES_KEPT)
        """Of the whole broker, newest last."""
        self.by_group: dict[GroupId, Rates] = {}
        """In the last interval; groups without traffic are left out."""
        self._totals: dict[GroupId, Rates] = {}
        self._sampled_at = trio.current_time()
        self._commits = _Window(broker.node.counts.commit_s)
        self._syncs = _Window(broker.node.counts.sync_s)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await trio.sleep(INTERVAL_S)
            self.sample()

    def sample(self) -> None:
        """Take one sample."""
        now = trio.current_time()
        interval_s = now - self._sampled_at
        if interval_s <= 0:
            return
        self._sampled_at = now
        self._forget_deleted()
        self.by_group = {}
        total = NO_RATES
        for group_id, counts in self._broker.node.group_counts.items():
            totals = _totals(counts)
            before = self._totals.get(group_id, NO_RATES)
            self._totals[group_id] = totals
            if totals != before:
                rates = Rates(*((a - b) / interval_s for a, b in zip(totals, before, strict=True)))
                self.by_group[group_id] = rates
                total = total.plus(rates)
        self.history.append(total)
        self._commits.sample()
        self._syncs.sample()

    @property
    def commit_p99_s(self) -> float | None:
        return self._commits.quantile(0.99)

    @property
    def sync_p99_s(self) -> float | None:
        return self._syncs.quantile(0.99)

    def _forget_deleted(self) -> None:
        """Drop the counters of partitions that exist no more."""
        node, state = self._broker.node, self._broker.metadata.state
        for group_id in list(node.group_counts):
            is_known = group_id in node.groups or group_id == METADATA_GROUP
            if not is_known and state.placement(group_id) is None:
                del node.group_counts[group_id]
                self._totals.pop(group_id, None)


class _Window:
    """The last observations of a histogram."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._before: deque[list[int]] = deque(
            [list(histogram.counts)], maxlen=QUANTILE_SAMPLES + 1
        )

    def sample(self) -> None:
        self._before.append(list(self._histogram.counts))

    def quantile(self, share: float) -> float | None:
        recent = Histogram()
        recent.counts = [
            now - then for now, then in zip(self._before[-1], self._before[0], strict=True)
        ]
        return recent.quantile(share)


def _totals(counts: GroupCounts) -> Rates:
    return Rates(counts.records_in, counts.bytes_in, counts.records_out, counts.bytes_out)
