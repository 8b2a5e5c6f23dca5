"""What a topic may be called.

Names are shown in tables, typed in shells and written into logs, so they hold nothing that
needs quoting in any of these.  They are never used as file names (directories are numbered),
but ``.`` and ``..`` are refused all the same: somebody's backup script will make the mistake
that we avoided.

Names that begin with ``__`` belong to logd itself.
"""

from __future__ import annotations

import re
from typing import Final

from logd.errors import InvalidNameError
from logd.limits import NAME_CHARACTERS_MAX

INTERNAL_PREFIX: Final = "__"

_ALLOWED: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_QUOTED_CHARACTERS_MAX: Final = 60


def validate_topic_name(name: str) -> None:
    """Accept a name that a user may give to a topic.

    Raises:
        InvalidNameError: says what was found and what is allowed.
    """
    _validate_characters(name)
    if name.startswith(INTERNAL_PREFIX):
        raise InvalidNameError(
            f"topic name {quoted(name)} is reserved: names that begin with "
            f"{INTERNAL_PREFIX!r} belong to logd"
        )


def validate_internal_name(name: str) -> None:
    """Accept a name that logd may give to a topic of its own.

    Raises:
        InvalidNameError: says what was found and what is allowed.
    """
    _validate_characters(name)
    if not name.startswith(INTERNAL_PREFIX):
        raise InvalidNameError(
            f"topic name {quoted(name)} of logd's own begins with {INTERNAL_PREFIX!r}"
        )


def quoted(text: str) -> str:
    """``text`` fit for an error message: escaped, and shortened in the middle."""
    if len(text) <= _QUOTED_CHARACTERS_MAX:
        return repr(text)
    half = _QUOTED_CHARACTERS_MAX // 2
    return f"{text[:half]!r}...{text[-half:]!r}"


def _validate_characters(name: str) -> None:
    if not name:
        raise InvalidNameError("a topic name is at least one character, found an empty one")
    if len(name) > NAME_CHARACTERS_MAX:
        raise InvalidNameError(
            f"topic name {quoted(name)} has {len(name)} characters, "
            f"at most {NAME_CHARACTERS_MAX} are allowed"
        )
    if _ALLOWED.fullmatch(name) is None:
        stranger = next(found for found in name if _ALLOWED.fullmatch(found) is None)
        raise InvalidNameError(
            f"topic name {quoted(name)} contains {stranger!r}; allowed are A-Z a-z 0-9 . _ -"
        )
    if name in (".", ".."):
        raise InvalidNameError(f"a topic may not be called {name!r}: it would read as a directory")
