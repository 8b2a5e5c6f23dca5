"""What names, keys, values and numbers may be, in one place.

Names stand in tables, shells and logs like those of topics, so the same characters are allowed.
Keys are any bytes: whoever wants order by number or by tuple encodes it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from logd.errors import InvalidNameError, InvalidRequestError, QuotaExceededError
from logd.limits import (
    COMMAND_BYTES_MAX,
    DATA_BYTES_MAX,
    KEY_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    TEXT_BYTES_MAX,
    VALUE_BYTES_MAX,
)

_ALLOWED: Final = re.compile(rf"(?!\.\.?\Z)[A-Za-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}", re.ASCII)
_QUOTED_MAX: Final = 60


def check_name(what: str, name: str) -> None:
    """Accept the name of a namespace, lock, group, member, shard or queue."""
    if _ALLOWED.fullmatch(name) is None:
        raise InvalidNameError(
            f"{what} {quoted(name)} of {len(name)} characters is no name: 1 to "
            f"{NAME_CHARACTERS_MAX} of A-Z a-z 0-9 . _ - are, except '.' and '..'"
        )


def check_key(key: bytes) -> None:
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise InvalidRequestError(f"a key has 1 to {KEY_BYTES_MAX} bytes, found {len(key)}")


def check_range(key: bytes, end: bytes | None) -> None:
    """A key, or ``[key, end)``; a range may begin and end with nothing."""
    if end is None:
        check_key(key)
    elif len(key) > KEY_BYTES_MAX or len(end) > KEY_BYTES_MAX:
        raise InvalidRequestError(f"the ends of a range have at most {KEY_BYTES_MAX} bytes")


def check_value(what: str, value: bytes) -> None:
    _check_size(what, len(value), VALUE_BYTES_MAX)


def check_data(data: bytes) -> None:
    _check_size("data", len(data), DATA_BYTES_MAX)


def check_text(what: str, text: str) -> None:
    _check_size(what, len(text.encode()), TEXT_BYTES_MAX)


def check_count(what: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise InvalidRequestError(f"{what} must be {least:,} to {most:,}, found {count:,}")


def check_ttl(ttl_ms: int) -> None:
    check_count("ttl_ms", ttl_ms, SESSION_TTL_MS_MIN, SESSION_TTL_MS_MAX)


def check_command_bytes(size: int) -> None:
    if size > COMMAND_BYTES_MAX:
        raise QuotaExceededError(
            f"a command holds at most {COMMAND_BYTES_MAX:,} bytes, found {size:,}: send several"
        )


def quoted(text: str | bytes) -> str:
    """``text`` fit for an error message: escaped, and shortened in the middle.  Keys are bytes, but
    mostly text."""
    if isinstance(text, bytes):
        with suppress(UnicodeDecodeError):
            text = text.decode()
    if len(text) <= _QUOTED_MAX:
        return repr(text)
    half = _QUOTED_MAX // 2
    return f"{text[:half]!r}...{text[-half:]!r}"


def _check_size(what: str, size: int, most: int) -> None:
    if size > most:
        raise InvalidRequestError(f"{what} has at most {most:,} bytes, found {size:,}")
