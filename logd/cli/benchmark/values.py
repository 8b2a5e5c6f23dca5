"""The values that are appended.

Random, so that nothing on the way can compress them.  Made before the measured part, and from
a fixed seed, so that two runs append the same sizes.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache
from typing import Final

from logd.cli.benchmark.settings import Settings

RECORDS_PER_CALL_MAX: Final = 10_000
CALL_BYTES: Final = 1_000_000
"""Values that one ``append_many`` is given, unless one record is larger."""

SEED: Final = 20
STAMP: Final = struct.Struct(">Q")
"""When a record was due, in nanoseconds of the monotonic clock, at the start of its value.
Big-endian: later values sort behind earlier ones."""


@lru_cache(maxsize=1)
def values_of_a_call(settings: Settings) -> list[bytes]:
    """What one ``append_many`` is given; the same list for every producer, made once."""
    chance = random.Random(SEED)
    values: list[bytes] = []
    call_bytes = 0
    while not values or (call_bytes < CALL_BYTES and len(values) < RECORDS_PER_CALL_MAX):
        value = chance.randbytes(_size(settings, chance))
        values.append(value)
        call_bytes += len(value)
    return values


@lru_cache(maxsize=1)
def keys_of_a_call(settings: Settings) -> list[bytes] | None:
    """The key of each of ``values_of_a_call``, drawn at random; None if there are none."""
    if settings.keys is None:
        return None
    chance = random.Random(SEED)
    return [b"key-%d" % chance.randrange(settings.keys) for _ in values_of_a_call(settings)]


def _size(settings: Settings, chance: random.Random) -> int:
    """Mixed sizes are spread evenly over orders of magnitude: mostly small, some large."""
    if settings.record_bytes_max is None:
        return settings.record_bytes
    span = settings.record_bytes_max / settings.record_bytes
    drawn: float = settings.record_bytes * span ** chance.random()
    return min(round(drawn), settings.record_bytes_max)


def stamped(value: bytes, due_ns: int) -> bytes:
    """``value`` with a time at its start."""
    return STAMP.pack(due_ns) + value[STAMP.size :]


def stamp_of(value: bytes) -> int:
    """The time at the start of a value."""
    due_ns: int = STAMP.unpack_from(value)[0]
    return due_ns
