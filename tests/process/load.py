"""Producers whose every record is known, and the comparison with what brokers have stored."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio

from logd.types import NodeId
from logd_client import Producer
from tests.process.harness import StoredRecord

RECORDS_PER_CALL: Final = 20
SHOWN_MAX: Final = 5


class AckLog:
    """What was acknowledged, where and when."""

    def __init__(self) -> None:
        self.offsets: dict[bytes, int] = {}
        self.times: list[float] = []
        self._advanced = anyio.Event()

    def add(self, value: bytes, offset: int) -> None:
        """One record was acknowledged just now; call ``advance`` behind the last of them."""
        assert value not in self.offsets
        self.offsets[value] = offset

    def advance(self) -> None:
        """Acknowledgements have come in."""
        self.times.append(time.monotonic())
        self._advanced.set()
        self._advanced = anyio.Event()

    async def one_more(self) -> float:
        """Wait for the next acknowledgement; return when it came."""
        await self._advanced.wait()
        return self.times[-1]

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two acknowledgements."""
        return max(after - before for before, after in itertools.pairwise(self.times))


class Load:
    """Appends until told to stop.  Every record's value is its own.

    Args:
        pause_s: between one acknowledgement and the next append of each task: steady load
            that can go on for long, in place of as much as possible.
    """

    def __init__(self, producer: Producer, *, pause_s: float = 0.0) -> None:
        self.acks = AckLog()
        self._producer = producer
        self._pause_s = pause_s
        self._is_stopped = False

    def stop(self) -> None:
        """Let what is under way be the last."""
        self._is_stopped = True

    async def append_one_by_one(self) -> None:
        """Each record waits for the acknowledgement of the one before."""
        for number in itertools.count():
            if self._is_stopped:
                return
            value = b"record %d" % number
            ack = await self._producer.append(value)
            self.acks.add(value, ack.offset)
            self.acks.advance()
            await self._pause()

    async def append_many(self, worker: int) -> None:
        """A few records at a time; run several of these."""
        for call in itertools.count():
            if self._is_stopped:
                return
            values = [b"%d.%d.%d" % (worker, call, n) for n in range(RECORDS_PER_CALL)]
            remaining = iter(values)
            for part in await self._producer.append_many(values):
                for at, value in enumerate(itertools.islice(remaining, part.count)):
                    self.acks.add(value, part.base_offset + at)
            assert next(remaining, None) is None
            self.acks.advance()
            await self._pause()

    async def _pause(self) -> None:
        if self._pause_s > 0:
            await anyio.sleep(self._pause_s)


@dataclass
class Differences:
    """How the replicas differ from what was acknowledged, and from each other."""

    lost: int = 0
    duplicated: int = 0
    misplaced: int = 0
    """Stored once, but at another offset than the acknowledgement said."""
    examples: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.lost + self.duplicated + self.misplaced

    def note(self, text: str) -> None:
        """Keep the first few."""
        if len(self.examples) < SHOWN_MAX:
            self.examples.append(text)


def compare(
    acknowledged: Mapping[bytes, int], replicas: Mapping[NodeId, Sequence[StoredRecord]]
) -> Differences:
    """Every acknowledged record is on every replica, at its offset, and none is there twice."""
    found = Differences()
    for node, records in replicas.items():
        places = {record.value: record.offset for record in records}
        for value, count in Counter(record.value for record in records).items():
            if count > 1:
                found.duplicated += count - 1
                found.note(f"broker {node} holds {value!r} {count} times")
        for value, offset in acknowledged.items():
            if value not in places:
                found.lost += 1
                found.note(f"broker {node} lacks {value!r}, acknowledged at {offset}")
            elif places[value] != offset:
                found.misplaced += 1
                found.note(f"broker {node} holds {value!r} at {places[value]}, not at {offset}")
    first = next(iter(replicas))
    for node in replicas:
        if replicas[node] != replicas[first]:
            found.misplaced += 1
            found.note(f"brokers {first} and {node} hold different records")
    return found
