"""What clients saw, and whether a log could have shown it to them.

Clients record every append (invoked, then acknowledged, refused, or neither: it may have
happened) and every record read; at the end each node's copy is read on its own.  Values
are unique in a run, so each record read points to the one append that made it.

``check_history`` knows nothing of brokers.  It holds the history against the promises:

- what was acknowledged is in every final copy, at the offset acknowledged, once (P1, P4);
- an offset holds one value, whoever reads it, whenever;
- what was refused for certain is never seen, nor is what nobody appended;
- a consumer reads forward and leaves nothing out;
- an append that began after another was acknowledged lies behind it;
- a conditional append lies where no record was at or above the offset it expected, so that
  each expected offset has at most one winner; and it is refused only if there was one;
- where a log is compacted, a record is left out only if its key got a later one before, or if
  it is a tombstone that has been there for as long as promised, and for as long as whoever leaves
  it out has known anything of the key.

Offsets need not be dense: control batches take some.  What a reader left out is therefore
judged by the offsets at which somebody knows a record to be.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, NewType

from logd.types import TopicPartition

AppendId = NewType("AppendId", int)


class Outcome(Enum):
    UNKNOWN = "unknown"
    """Not answered, or answered with ``may_have_applied``."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass(slots=True)
class Append:
    """One record that a client asked to append."""

    client: str
    partition: TopicPartition
    value: bytes
    floor: int
    """Highest offset acknowledged in the partition when the append began, or -1."""

    expected_offset: int | None = None
    """Append only if no record lies at or above it."""

    key: bytes | None = None
    """If there is one, the log is compacted: a later record of the key replaces this one."""

    deletes: bool = False
    """It is a tombstone."""

    begun_s: float = 0.0
    outcome: Outcome = Outcome.UNKNOWN
    offset: int = -1
    refused_before: int | None = None
    """Its condition did not hold, said the broker, when so many appends had begun."""


class Read(NamedTuple):
    """One record that a reader was given."""

    offset: int
    value: bytes
    at_s: float = 0.0


@dataclass(slots=True)
class Scan:
    """An unbroken stretch of reading: a consumer from one ``seek`` to the next, or a node's
    final copy."""

    reader: str
    partition: TopicPartition
    start: int | None
    """Nothing at or above it may be left out; None: until the first record, anything may."""

    reads: list[Read] = field(default_factory=list)
    begun_s: float = 0.0


class Rule(Enum):
    """What a violation violates."""

    LOST = "an acknowledged record is gone"
    DUPLICATE = "one append is in the log twice"
    INCONSISTENT = "two values were seen at one offset"
    ABORTED = "a record was seen whose append was refused for certain"
    INVENTED = "a record was seen that nobody appended there"
    BACKWARDS = "a consumer was given an offset it had passed"
    SKIPPED = "a consumer was not given a record that it passed"
    WRONG_OFFSET = "a record is not where its acknowledgement says"
    CONDITION = "a conditional append lies behind a record that it was not to follow"
    UNJUSTIFIED = "a conditional append was refused although its condition held"
    OUT_OF_ORDER = "an append that began later lies before one acknowledged earlier"


class Violation(NamedTuple):
    rule: Rule
    partition: TopicPartition
    details: str

    def __str__(self) -> str:
        return f"{self.partition}: {self.rule.value}: {self.details}"


class History:
    """Collects what the clients of one run did and saw, in the order of virtual time."""

    def __init__(self, now: Callable[[], float] = lambda: 0.0) -> None:
        self.tombstones_last_s = 0.0
        """So long at least, as far as clocks can be trusted."""
        self.appends: list[Append] = []
        self.consumed: list[Scan] = []
        self.final: list[Scan] = []
        self._open_scans: dict[tuple[str, TopicPartition], Scan] = {}
        self._acknowledged_last: dict[TopicPartition, int] = {}
        self._ids: dict[bytes, AppendId] = {}
        self._now = now

    # --- appends --------------------------------------------------------------------------

    def invoke(
        self,
        client: str,
        partition: TopicPartition,
        value: bytes,
        *,
        expected_offset: int | None = None,
        key: bytes | None = None,
        deletes: bool = False,
    ) -> AppendId:
        """An append begins.  ``value`` must be unique in the run."""
        assert value not in self._ids, "values must be unique in a run"
        floor = self.acknowledged_last(partition)
        append_id = self._ids[value] = AppendId(len(self.appends))
        self.appends.append(
            Append(
                client,
                partition,
                value,
                floor,
                expected_offset,
                key=key,
                deletes=deletes,
                begun_s=self._now(),
            )
        )
        return append_id

    def append_of(self, value: bytes) -> Append | None:
        """Who made it; None if nobody did."""
        append_id = self._ids.get(value)
        return None if append_id is None else self.appends[append_id]

    def acknowledge(self, append_id: AppendId, offset: int) -> None:
        """It was committed at ``offset``, says the broker."""
        append = self._settle(append_id, Outcome.ACKNOWLEDGED)
        append.offset = offset
        last = self.acknowledged_last(append.partition)
        self._acknowledged_last[append.partition] = max(last, offset)

    def acknowledged_last(self, partition: TopicPartition) -> int:
        """The highest offset acknowledged so far, or -1."""
        return self._acknowledged_last.get(partition, -1)

    def refuse(self, append_id: AppendId) -> None:
        """It failed and certainly had no effect (``may_have_applied`` is False)."""
        self._settle(append_id, Outcome.REFUSED)

    def refuse_condition(self, append_id: AppendId) -> None:
        """It was refused because of the offset it expected, which the log reached by then."""
        append = self._settle(append_id, Outcome.REFUSED)
        assert append.expected_offset is not None
        append.refused_before = len(self.appends)

    def _settle(self, append_id: AppendId, outcome: Outcome) -> Append:
        append = self.appends[append_id]
        assert append.outcome is Outcome.UNKNOWN
        append.outcome = outcome
        return append

    # --- reads ----------------------------------------------------------------------------

    def seek(self, consumer: str, partition: TopicPartition, position: int | None) -> None:
        """The consumer goes on from ``position``; None if it cannot tell (the end)."""
        scan = Scan(consumer, partition, position, begun_s=self._now())
        self.consumed.append(scan)
        self._open_scans[consumer, partition] = scan

    def read(self, consumer: str, partition: TopicPartition, offset: int, value: bytes) -> None:
        """The consumer was given a record."""
        if (consumer, partition) not in self._open_scans:
            self.seek(consumer, partition, None)
        self._open_scans[consumer, partition].reads.append(Read(offset, value, self._now()))

    def read_finally(
        self,
        node: str,
        partition: TopicPartition,
        records: Iterable[tuple[int, bytes]],
        *,
        log_start: int = 0,
    ) -> None:
        """The node's copy, from its log start to the commit offset, after all has healed."""
        now_s = self._now()
        reads = [Read(offset, value, now_s) for offset, value in records]
        scan = Scan(node, partition, log_start, reads, begun_s=now_s)
        self.final.append(scan)

    def count(self, outcome: Outcome) -> int:
        return sum(append.outcome is outcome for append in self.appends)


def check_history(history: History) -> list[Violation]:
    """Every broken promise; none if the history is one that a log can have."""
    partitions: dict[TopicPartition, None] = {}
    for append in history.appends:
        partitions[append.partition] = None
    for scan in (*history.consumed, *history.final):
        partitions[scan.partition] = None
    makers = {append.value: append for append in history.appends}
    return [
        violation
        for partition in partitions
        for violation in _PartitionCheck(history, partition, makers).violations()
    ]


class _PartitionCheck:
    """The evidence about one partition, and the rules applied to it."""

    def __init__(
        self, history: History, partition: TopicPartition, makers: dict[bytes, Append]
    ) -> None:
        self._partition = partition
        self._makers = makers
        self._consumed = [scan for scan in history.consumed if scan.partition == partition]
        self._final = [scan for scan in history.final if scan.partition == partition]
        self._acknowledged = [
            append
            for append in history.appends
            if append.partition == partition and append.outcome is Outcome.ACKNOWLEDGED
        ]
        self._seen_at: dict[bytes, dict[int, str]] = defaultdict(dict)
        self._values_at: dict[int, dict[bytes, str]] = defaultdict(dict)
        for append in self._acknowledged:
            self._values_at[append.offset].setdefault(
                append.value, f"acknowledged to {append.client}"
            )
        for scan in (*self._consumed, *self._final):
            for offset, value, _ in scan.reads:
                self._seen_at[value].setdefault(offset, scan.reader)
                self._values_at[offset].setdefault(value, scan.reader)
        self._known_offsets = sorted(self._values_at)
        self._order = {append.value: n for n, append in enumerate(history.appends)}
        self._conditional = [
            append
            for append in history.appends
            if append.partition == partition and append.expected_offset is not None
        ]
        self._tombstones_last_s = history.tombstones_last_s
        self._of_key: dict[bytes, list[tuple[int, float]]] = defaultdict(list)
        """Key → offset and beginning of each record that somebody knows of, in order."""
        for offset in self._known_offsets:
            for value in self._values_at[offset]:
                maker = makers.get(value)
                if maker is not None and maker.key is not None:
                    self._of_key[maker.key].append((offset, maker.begun_s))
        self._perhaps_deleted = {
            append.key: append.begun_s
            for append in reversed(history.appends)
            if append.deletes
            and append.outcome is Outcome.UNKNOWN
            and append.value not in self._seen_at
        }
        """Key → when a tombstone was begun of which nobody knows whether it is in the log."""
        self._found: list[Violation] = []

    def violations(self) -> list[Violation]:
        self._check_values()
        self._check_offsets()
        self._check_acknowledgements()
        for append in self._conditional:
            self._check_condition(append)
        for scan in self._consumed:
            self._check_order(scan)
            self._check_gaps(scan)
        for scan in self._final:
            self._check_order(scan)
            self._check_copy(scan)
        return self._found

    def _add(self, rule: Rule, details: str) -> None:
        self._found.append(Violation(rule, self._partition, details))

    def _check_values(self) -> None:
        """Each value seen has a maker who may have made it here, once."""
        for value, places in self._seen_at.items():
            maker = self._makers.get(value)
            where = ", ".join(f"{offset} (by {reader})" for offset, reader in places.items())
            if maker is None:
                self._add(Rule.INVENTED, f"{value!r} at {where}")
            elif maker.partition != self._partition:
                self._add(Rule.INVENTED, f"{value!r} of {maker.partition} at {where}")
            elif maker.outcome is Outcome.REFUSED:
                self._add(Rule.ABORTED, f"{value!r} at {where}")
            if len(places) > 1:
                self._add(Rule.DUPLICATE, f"{value!r} at {where}")

    def _check_offsets(self) -> None:
        for offset in self._known_offsets:
            values = self._values_at[offset]
            if len(values) > 1:
                said = ", ".join(f"{value!r} ({reader})" for value, reader in values.items())
                self._add(Rule.INCONSISTENT, f"offset {offset}: {said}")

    def _check_acknowledgements(self) -> None:
        for append in self._acknowledged:
            places = self._seen_at.get(append.value, {})
            if places and append.offset not in places:
                seen = ", ".join(map(str, places))
                self._add(
                    Rule.WRONG_OFFSET,
                    f"{append.value!r} acknowledged at {append.offset}, seen at {seen}",
                )
        for value, places in self._seen_at.items():
            maker = self._makers.get(value)
            if maker is not None and maker.partition == self._partition:
                self._check_floor(maker, min(places))
        for append in self._acknowledged:
            if append.value not in self._seen_at:
                self._check_floor(append, append.offset)

    def _check_floor(self, append: Append, offset: int) -> None:
        if offset <= append.floor:
            self._add(
                Rule.OUT_OF_ORDER,
                f"{append.value!r} at {offset}, begun when {append.floor} was acknowledged",
            )

    def _check_condition(self, append: Append) -> None:
        """What the log holds from the expected offset on decides, for it is the order."""
        assert append.expected_offset is not None
        first = bisect.bisect_left(self._known_offsets, append.expected_offset)
        behind = self._known_offsets[first:]
        places = dict.fromkeys(self._seen_at.get(append.value, {}))
        if append.outcome is Outcome.ACKNOWLEDGED:
            places[append.offset] = None
        for offset in places:
            if offset < append.expected_offset or behind[0] < offset:
                self._add(
                    Rule.CONDITION,
                    f"{append.value!r}, expected at {append.expected_offset}, is at {offset} "
                    f"and the first from there on at {behind[0]}",
                )
        if append.refused_before is not None and not any(
            self._order.get(value, append.refused_before) < append.refused_before
            for offset in behind
            for value in self._values_at[offset]
        ):
            self._add(
                Rule.UNJUSTIFIED,
                f"{append.value!r}, expected at {append.expected_offset}, and nothing lay there",
            )

    def _check_order(self, scan: Scan) -> None:
        """Offsets rise, from the start of the scan on."""
        before = -1 if scan.start is None else scan.start - 1
        for offset, value, _ in scan.reads:
            if offset <= before:
                self._add(
                    Rule.BACKWARDS,
                    f"{scan.reader} was given {value!r} at {offset} when at {before + 1}",
                )
            before = max(before, offset)

    def _check_gaps(self, scan: Scan) -> None:
        """Between what a consumer was given, nobody knows of a record."""
        position = scan.start
        for read in scan.reads:
            if position is not None:
                self._check_gap(scan, position, read)
            position = read.offset + 1 if position is None else max(position, read.offset + 1)

    def _check_gap(self, scan: Scan, start: int, read: Read) -> None:
        known = self._known_offsets
        first = bisect.bisect_left(known, start)
        for offset in known[first : bisect.bisect_left(known, read.offset, lo=first)]:
            for value in self._values_at[offset]:
                if self._may_be_gone(scan, offset, value, read.at_s):
                    continue
                rule = Rule.SKIPPED if value in self._seen_at else Rule.LOST
                self._add(rule, f"{scan.reader} passed {value!r} at {offset}")

    def _check_copy(self, scan: Scan) -> None:
        """A node's final copy has everything acknowledged, and whatever anybody was given."""
        assert scan.start is not None
        present = {read.value for read in scan.reads}
        acknowledged = {append.value for append in self._acknowledged}
        for offset in self._known_offsets[bisect.bisect_left(self._known_offsets, scan.start) :]:
            for value, reader in self._values_at[offset].items():
                if value not in present and not self._may_be_gone(
                    scan, offset, value, scan.begun_s
                ):
                    why = "acknowledged" if value in acknowledged else f"seen by {reader}"
                    self._add(Rule.LOST, f"{scan.reader} lacks {value!r} at {offset}, {why}")

    # --- compacted logs -------------------------------------------------------------------

    def _may_be_gone(self, scan: Scan, offset: int, value: bytes, at_s: float) -> bool:
        """Whether a scan that is beyond a record by then may not have been given it."""
        append = self._makers.get(value)
        if append is None or append.key is None:
            return False
        records = self._of_key[append.key]
        if any(later > offset and begun_s <= at_s for later, begun_s in records):
            return True
        if self._perhaps_deleted.get(append.key, math.inf) <= at_s:
            return True
        return append.deletes and not self._is_needed(scan, offset, append, at_s)

    def _is_needed(self, scan: Scan, offset: int, tombstone: Append, at_s: float) -> bool:
        """Whether it is too early for the tombstone to be gone, at least for who knows its key."""
        lasts_s = self._tombstones_last_s
        if at_s < tombstone.begun_s + lasts_s:
            return True
        has_key = any(
            read.offset < offset and self._makers[read.value].key == tombstone.key
            for read in scan.reads
            if read.value in self._makers
        )
        return has_key and at_s < scan.begun_s + lasts_s
