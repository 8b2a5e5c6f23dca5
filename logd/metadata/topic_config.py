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
from logd.limits import (
    GIB,
    KIB,
    MIB,
    RETENTION_BYTES_MAX,
    RETENTION_MS_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SEGMENT_MS_MIN,
)
from logd.metadata.names import quoted

Durability = Literal["synced", "replicated"]
FencePolicy = Literal["none", "required"]
Cleanup = Literal["delete", "compact", "compact,delete"]

RETENTION: Final = ("retention_bytes", "retention_ms")
"""Options whose absence keeps everything; elsewhere -1 says so."""

TOMBSTONE_MS_DEFAULT: Final = 24 * 3600 * 1000

SEGMENTS_PER_RETENTION: Final = 4
"""What retention keeps is spread over so many segments, unless the topic says otherwise: the
grain in which it goes."""


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A topic's options, read and checked."""

    durability: Durability = "synced"
    fence: FencePolicy = "none"
    segment_bytes: int | None = None
    segment_ms: int | None = None
    retention_bytes: int | None = None
    retention_ms: int | None = None
    cleanup: Cleanup = "delete"
    tombstone_ms: int = TOMBSTONE_MS_DEFAULT

    @property
    def is_compacted(self) -> bool:
        """Of each key only the last record is kept, in time."""
        return self.cleanup != "delete"

    @property
    def segment_age_ms(self) -> int | None:
        """A segment is rolled at this age: chosen, or what retention by time needs."""
        if self.segment_ms is not None or self.retention_ms is None:
            return self.segment_ms
        return max(self.retention_ms // SEGMENTS_PER_RETENTION, SEGMENT_MS_MIN)

    def segment_bytes_of(self, broker_default: int) -> int:
        """A segment is rolled at this size: chosen, or what suits retention by size."""
        if self.segment_bytes is not None:
            return self.segment_bytes
        if self.retention_bytes is None:
            return broker_default
        fitting = max(self.retention_bytes // SEGMENTS_PER_RETENTION, SEGMENT_BYTES_MIN)
        return min(broker_default, fitting)


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
            hint = "; without it nothing is removed" if text == "-1" and name in RETENTION else ""
            raise InvalidConfigError(f"{name}={quoted(text)}: {error}{hint}") from None
    options = msgspec.convert(values, TopicOptions)
    _check_retention(options)
    return options


def _check_retention(options: TopicOptions) -> None:
    """Retention removes whole segments, so it cannot keep less than one."""
    for kept in RETENTION:
        if options.cleanup == "compact" and getattr(options, kept) is not None:
            raise InvalidConfigError(
                f"{kept} removes records, which cleanup=compact does not allow; choose "
                f"cleanup=compact,delete, or leave {kept} out"
            )
    for kept, segment, unit in (
        ("retention_bytes", "segment_bytes", "bytes"),
        ("retention_ms", "segment_ms", "ms"),
    ):
        limit, least = getattr(options, kept), getattr(options, segment)
        if limit is not None and least is not None and limit < least:
            raise InvalidConfigError(
                f"{kept} of {limit} {unit} is below {segment} of {least} {unit}: whole segments "
                f"are removed, so retention cannot be shorter than one; choose {kept} >= {least} "
                f"or a smaller {segment}"
            )


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
    if text not in ("synced", "replicated"):
        raise InvalidConfigError("allowed are synced, replicated")
    return "replicated" if text == "replicated" else "synced"


def _read_fence(text: str) -> FencePolicy:
    if text not in ("none", "required"):
        raise InvalidConfigError("allowed are none, required")
    return "none" if text == "none" else "required"


def _read_segment_bytes(text: str) -> int:
    segment_bytes = _read_bytes(text)
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
        raise InvalidConfigError(f"allowed are {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} bytes")
    return segment_bytes


def _read_cleanup(text: str) -> Cleanup:
    match text:
        case "delete" | "compact" | "compact,delete":
            return text
        case _:
            raise InvalidConfigError("allowed are delete, compact, compact,delete")


def _read_retention_bytes(text: str) -> int:
    retention_bytes = _read_bytes(text)
    if not SEGMENT_BYTES_MIN <= retention_bytes <= RETENTION_BYTES_MAX:
        raise InvalidConfigError(f"allowed are {SEGMENT_BYTES_MIN} to {RETENTION_BYTES_MAX} bytes")
    return retention_bytes


def _read_duration(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidConfigError(
            "expected a number of milliseconds such as 60000, or 90s, 15m, 36h or 7d"
        )
    duration_ms = int(match[1]) * _DURATION_UNITS[match[2]]
    if not SEGMENT_MS_MIN <= duration_ms <= RETENTION_MS_MAX:
        raise InvalidConfigError(f"allowed are {SEGMENT_MS_MIN} to {RETENTION_MS_MAX} ms")
    return duration_ms


_SIZE: Final = re.compile(r"([0-9]{1,18})(|KiB|MiB|GiB)")
_UNITS: Final = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_DURATION: Final = re.compile(r"([0-9]{1,15})(|s|m|h|d)")
_DURATION_UNITS: Final = {"": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


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
            "replicas. `replicated` is in the memory of a majority, and on stable storage a moment "
            "later: quicker, and lost if so many lose power at once. It can be changed at any "
            "time; each acknowledgement says which it got.",
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
            "grain, at the cost of more files. With `retention_bytes`, at most a quarter of that "
            "unless chosen here.",
        ),
        TopicOption(
            "segment_ms",
            "a quarter of `retention_ms`, if that is set",
            _read_duration,
            "Roll to a new segment file when the first batch of the last one is this old, so that "
            "retention and compaction get at what it holds. Milliseconds, or with a unit: 90s, "
            "15m, 36h, 7d.",
        ),
        TopicOption(
            "retention_bytes",
            "no limit",
            _read_retention_bytes,
            "Each replica of a partition takes at most about this much disk: the oldest whole "
            "segments go. Not below `segment_bytes`.",
        ),
        TopicOption(
            "retention_ms",
            "no limit",
            _read_duration,
            "Records are kept at least this long after they were appended, and go with their "
            "segment when its newest is older. Not below `segment_ms`. Same form as that.",
        ),
        TopicOption(
            "cleanup",
            "delete",
            _read_cleanup,
            "What happens to old records: `delete` removes them as `retention_bytes` and "
            "`retention_ms` say. `compact` keeps the last record of each key for ever, and "
            "producers refuse records without a key. `compact,delete` does both.",
        ),
        TopicOption(
            "tombstone_ms",
            "24h",
            _read_duration,
            "In a compacted topic a record with a null value, which deletes its key, is kept until "
            "no replica has held anything of what it deletes for this long: whoever reads on "
            "within that time learns of it. Same form as `segment_ms`.",
        ),
    )
}

assert tuple(OPTIONS) == TopicOptions.__struct_fields__


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name[:100], OPTIONS, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(OPTIONS)}"
