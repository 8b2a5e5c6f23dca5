"""The options of a topic.

Options travel and are stored as the text that the user wrote, so that what is shown is what
was set; they are read here and only here.  ``OPTIONS`` is the table: parsing, defaults and
docs/configuration.md all come from it, so an option that is not listed does not exist, and
one that is listed works.

Accepting less than before would refuse commands that are already in the log, so an option's
rules may be widened, never narrowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from logd.errors import InvalidConfigError
from logd.limits import GIB, KIB, MIB, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN
from logd.metadata.names import quoted

Durability = Literal["synced", "replicated"]
FencePolicy = Literal["none", "required"]


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A topic's options, read and checked."""

    durability: Durability = "synced"
    fence: FencePolicy = "none"
    segment_bytes: int | None = None


class TopicOption(NamedTuple):
    """One row of the table."""

    name: str
    default: str
    """As shown; the typed default is in ``TopicOptions``."""
    read: Callable[[str], object]
    """Text to value; raises ``InvalidConfigError`` that says what is allowed."""
    meaning: str


def parse_options(config: Mapping[str, str]) -> TopicOptions:
    """Read the options of a topic; those not given have their default.

    Raises:
        InvalidConfigError: names the option, what was found and what is allowed.
    """
    check_option_names(config)
    values: dict[str, object] = {}
    for name, text in sorted(config.items()):
        try:
            values[name] = OPTIONS[name].read(text)
        except InvalidConfigError as error:
            raise InvalidConfigError(f"{name}={quoted(text)}: {error}") from None
    return msgspec.convert(values, TopicOptions)


def check_option_names(names: Iterable[str]) -> None:
    """Refuse names that are no options.  Also for an option that is only reset: a misspelt
    name would otherwise seem to have worked.

    Raises:
        InvalidConfigError: names the first stranger and the option it resembles.
    """
    for name in sorted(names):
        if name not in OPTIONS:
            raise InvalidConfigError(f"unknown topic option {quoted(name)}{_suggestion(name)}")


def _read_durability(text: str) -> Durability:
    if text == "replicated":
        raise InvalidConfigError("not supported yet; allowed is synced")
    if text != "synced":
        raise InvalidConfigError("allowed is synced")
    return "synced"


def _read_fence(text: str) -> FencePolicy:
    if text not in ("none", "required"):
        raise InvalidConfigError("allowed are none, required")
    return "none" if text == "none" else "required"


def _read_segment_bytes(text: str) -> int:
    segment_bytes = _read_bytes(text)
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
        raise InvalidConfigError(f"allowed are {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} bytes")
    return segment_bytes


_SIZE: Final = re.compile(r"([0-9]{1,18})(|KiB|MiB|GiB)")
_UNITS: Final = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}


def _read_bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidConfigError("expected a number of bytes such as 1048576, 64MiB or 1GiB")
    return int(match[1]) * _UNITS[match[2]]


OPTIONS: Final[Mapping[str, TopicOption]] = {
    option.name: option
    for option in (
        TopicOption(
            "durability",
            "synced",
            _read_durability,
            "What an acknowledgement means: `synced` is on stable storage of a majority of the "
            "replicas. `replicated` (in memory of a majority) is not supported yet.",
        ),
        TopicOption(
            "fence",
            "none",
            _read_fence,
            "`required` refuses appends that carry no fencing token, so that nobody who "
            "forgot to take the lock can write. `none` checks the token of those that do.",
        ),
        TopicOption(
            "segment_bytes",
            "the broker's segment_bytes",
            _read_segment_bytes,
            "Roll to a new segment file at this size. Smaller segments give retention finer "
            "grain, at the cost of more files.",
        ),
    )
}

assert tuple(OPTIONS) == TopicOptions.__struct_fields__


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name[:100], OPTIONS, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(OPTIONS)}"
