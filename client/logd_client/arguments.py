"""Arguments that callers get wrong, refused where they are given.

Python does not check types, so a topic that is no text or a partition that is ``"0"`` would
travel to a broker and come back as something puzzling.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from numbers import Real
from typing import Final

from logd.errors import UsageError

NOT_OPEN: Final = "not open: enter it first (`async with`, or `with` in logd_client.sync)"
"""The blocking client passes on what it is told of the other one."""

LOOP_HAS_ENDED: Final = (
    "the event loop in which the client was opened has ended: open one in each, "
    "or use logd_client.sync"
)
"""As when one ``asyncio.run`` opens it and another one goes on with it: what it did in the
background was cancelled in between, and nobody would ever be answered."""

ANOTHER_LOOP: Final = (
    "the client was opened in another event loop, where its connections are: "
    "open one in each, or use logd_client.sync"
)
"""As of a thread that calls ``asyncio.run``: nothing would wake what waits there.  The thread tells
them apart, as one has one event loop at a time, and costs less to ask for than the loop itself."""


def require_int(name: str, value: object) -> None:
    """Raise ``UsageError`` unless ``value`` is an int, and no bool."""
    if type(value) is not int:
        raise UsageError(f"{name} must be an int, not {value!r}")


def require_bool(name: str, value: object) -> None:
    """Raise ``UsageError`` unless ``value`` is True or False."""
    if type(value) is not bool:
        raise UsageError(f"{name} must be True or False, not {value!r}")


def require_text(name: str, value: object) -> None:
    """Raise ``UsageError`` unless ``value`` is a str that can be sent."""
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a str, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} {value!r} is not text: {error.reason}") from error


def require_between(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise ``UsageError`` unless ``value`` is an int from ``low`` to ``high``."""
    require_int(name, value)
    assert isinstance(value, int)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise UsageError(f"{name} must be {bounds}, not {value}")


def require_number(name: str, value: object) -> None:
    """Raise ``UsageError`` unless ``value`` is a number from 0."""
    # Not a number is not in any range.
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and 0 <= value < math.inf):  # type: ignore[operator]
        raise UsageError(f"{name} must be a number from 0, not {value!r}")


def require_seconds(name: str, value: object, least: float = 0) -> None:
    """Raise ``UsageError`` unless ``value`` is a number of seconds, of ``least`` or more."""
    # Not a number is not least or more either.
    if type(value) not in (int, float) or not least <= value:  # type: ignore[operator]
        raise UsageError(f"{name} must be a number of seconds from {least}, not {value!r}")


def milliseconds(name: str, seconds: float | None, ms_max: int) -> int | None:
    """A time as it is sent, None if none is given; raise ``UsageError`` unless it is a number of
    seconds that are at most ``ms_max`` milliseconds."""
    if seconds is None:
        return None
    given: object = seconds
    if type(given) not in (int, float) or not 0 <= seconds * 1000 <= ms_max:
        bounds = f"from 0 to {ms_max // 1000:,}"
        raise UsageError(f"{name} must be a number of seconds {bounds}, not {seconds!r}")
    return int(seconds * 1000)


def require_list(name: str, value: object) -> None:
    """Raise ``UsageError`` unless ``value`` can be gone through.  Text and bytes can, letter by
    letter, and nobody means that."""
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise UsageError(f"{name} must be a list, not {value!r}")


def require_function(name: str, value: object) -> None:
    """Raise ``UsageError`` unless ``value`` can be called."""
    if not callable(value):
        raise UsageError(f"{name} must be a function, not {value!r}")


def require_each(name: str, values: Iterable[object], *kinds: type) -> None:
    """Raise ``UsageError`` unless each of ``values`` is of one of ``kinds``; ``name`` is of one."""
    for value in values:
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"{name} must be a {wanted}, not {value!r}")


def require_one_of(name: str, value: object, choices: Collection[str]) -> None:
    """Raise ``UsageError`` unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(sorted(choices))}, not {value!r}")
