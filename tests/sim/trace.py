"""What happened in a simulated run: a timeline to read and a digest to compare.

The digest covers every event, and the bytes that moved, from the first to the last; two runs
of one seed must agree on it, which is how determinism is tested.  The timeline keeps only the
last ``events_max`` events: a failing run is read from its end.

Fields must print the same in every process: no sets, no default ``repr`` with an address.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio
import xxhash

EVENTS_MAX: Final = 20_000

_MOVED: Final = struct.Struct("<dQ")
"""When, and how many bytes."""


class TraceEvent(NamedTuple):
    """One line of the timeline."""

    time_s: float
    source: str
    name: str
    fields: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        fields = "  ".join(f"{name}={value}" for name, value in self.fields)
        return f"{self.time_s:12.6f}  {self.source:<12}  {self.name:<28}  {fields}".rstrip()


class Trace:
    """Collects the events of one run.  ``now`` is virtual time."""

    def __init__(
        self, *, events_max: int = EVENTS_MAX, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._events: deque[TraceEvent] = deque(maxlen=events_max)
        self._now = now
        self._hash = xxhash.xxh3_128()
        self._count = 0

    def record(self, source: str, name: str, **fields: object) -> None:
        """Add an event, kept and digested.  ``source`` is a host, or ``network``, ``test``."""
        printed = tuple((field, str(value)) for field, value in fields.items())
        # An address is another one in each run, and one seed is to give one digest.
        assert not any(" at 0x" in value for _, value in printed), printed
        event = TraceEvent(self._now(), source, name, printed)
        self._events.append(event)
        self._count += 1
        self._hash.update(f"{event.time_s!r}{event.source}{event.name}{event.fields}\n".encode())

    def note(self, source: str, name: str, **fields: object) -> None:
        """Add an event to be read, which follows from others and is not digested."""
        printed = tuple((field, str(value)) for field, value in fields.items())
        self._events.append(TraceEvent(self._now(), source, name, printed))
        self._count += 1

    def digest_bytes(self, source: bytes, data: bytes | bytearray) -> None:
        """Make ``data``, and the time it moved, part of the digest but not of the timeline."""
        self._hash.update(_MOVED.pack(self._now(), len(data)))
        self._hash.update(source)
        self._hash.update(data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def events(self) -> tuple[TraceEvent, ...]:
        """The events still kept, oldest first."""
        return tuple(self._events)

    def timeline(self, last: int = 200) -> str:
        """The ``last`` events, one per line, for a human."""
        kept = list(self._events)[-last:] if last else []
        left_out = self._count - len(kept)
        head = [f"… {left_out} earlier events"] if left_out else []
        return "\n".join([*head, *map(str, kept)])
