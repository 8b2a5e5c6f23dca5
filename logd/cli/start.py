"""Where to begin reading: what ``--from`` may say, and what of it goes for ``trim --before``.

``start`` and ``end`` are names, which say nothing where something is to be trimmed; a whole number
is an offset; everything about time says so by its shape: an ISO 8601 timestamp with a zone, or an
age such as ``-15m``.  A bare number is never a time, and a timestamp without a zone is refused:
guessing seconds or the local zone finds the wrong records without anybody noticing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from logd.limits import OFFSET_MAX


@dataclass(frozen=True, slots=True)
class FromStart:
    """The first record that is retained."""


@dataclass(frozen=True, slots=True)
class FromEnd:
    """Records committed from now on."""


@dataclass(frozen=True, slots=True)
class FromOffset:
    """A position."""

    offset: int


@dataclass(frozen=True, slots=True)
class FromTime:
    """The first record appended at or after a time."""

    time: datetime


Start = FromStart | FromEnd | FromOffset | FromTime

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_AGE: Final = re.compile(r"-(?P<count>\d+)(?P<unit>[smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_start(text: str, now: datetime) -> Start:
    """Read one ``--from`` value; ages count back from ``now``, which has a zone.

    Raises:
        ValueError: says what was expected.
    """
    if text == "start":
        return FromStart()
    if text == "end":
        return FromEnd()
    return parse_place(text, now, names="start, end, ")


def parse_place(text: str, now: datetime, *, names: str = "") -> FromOffset | FromTime:
    """Read an offset, a timestamp or an age.

    Args:
        names: what else is expected, to be told to whoever gives something else.

    Raises:
        ValueError: says what was expected.
    """
    assert now.tzinfo is not None
    if text.isascii() and text.isdigit():
        return _offset(text)
    age = _AGE.fullmatch(text)
    if age is not None:
        return _age(age, now)
    return _timestamp(text, names)


def _offset(text: str) -> FromOffset:
    offset = int(text) if len(text) <= len(str(OFFSET_MAX)) else OFFSET_MAX + 1
    if offset > OFFSET_MAX:
        raise ValueError(f"an offset is at most {OFFSET_MAX}, found {text}")
    return FromOffset(offset)


def _age(age: re.Match[str], now: datetime) -> FromTime:
    try:
        time = now - timedelta(**{_UNITS[age["unit"]]: int(age["count"])})
    except OverflowError:
        time = EPOCH - timedelta(days=1)
    if time < EPOCH:
        raise ValueError(f"{age[0]} is before 1970")
    return FromTime(time)


def _timestamp(text: str, names: str) -> FromTime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"expected {names}an offset, a timestamp such as 2026-01-31T12:00:00Z, "
            f"or an age such as -15m; found {text!r}"
        ) from None
    if time.tzinfo is None:
        raise ValueError(
            f"{text!r} names no time zone: write {time.isoformat()}Z for UTC, "
            f"or {time.isoformat()}+01:00"
        )
    if time < EPOCH:
        raise ValueError(f"{text!r} is before 1970")
    try:
        return FromTime(time.astimezone(UTC))
    except OverflowError:
        raise ValueError(f"{text!r} is after the year 9999 in UTC") from None
