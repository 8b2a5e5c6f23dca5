"""Names of locks, queues and the rest: ``name`` or ``namespace/name``.

A broker would refuse what is no name too; here it is refused before a session is opened for it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from logd.errors import InvalidNameError, UsageError
from logd.limits import KEY_BYTES_MAX, NAME_CHARACTERS_MAX
from logd.wire.coordination import DEFAULT_NAMESPACE

_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}")


class Name(NamedTuple):
    """Something in a namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def parse_name(text: object) -> Name:
    """Split at the slash, if there is one.

    Raises:
        InvalidNameError: one of the two parts is no name.
    """
    if not isinstance(text, str):
        raise InvalidNameError(f"a name is a str, not {text!r}")
    namespace, separator, name = text.partition("/")
    if not separator:
        namespace, name = DEFAULT_NAMESPACE, text
    return Name(checked_name(namespace), checked_name(name))


def checked_name(name: object) -> str:
    """``name`` itself.

    Raises:
        InvalidNameError: says what a name looks like.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidNameError(
            f"{_shortened(name)} is not a name: expected 1 to {NAME_CHARACTERS_MAX} characters of "
            "A-Z a-z 0-9 . _ - and not '.' or '..'; a namespace stands before a slash"
        )
    return name


def checked_key(key: bytes | str) -> bytes:
    """A key as it is stored; text is UTF-8.

    Raises:
        UsageError: it is neither bytes nor text, empty, or too long.
    """
    stored = checked_bytes("a key", key)
    if not stored:
        raise UsageError("a key has at least one byte")
    if len(stored) > KEY_BYTES_MAX:
        raise UsageError(f"a key of {len(stored)} bytes, the limit is {KEY_BYTES_MAX}")
    return stored


def checked_bytes(what: str, value: bytes | str) -> bytes:
    """Bytes; text is UTF-8.

    Raises:
        UsageError: it is neither.
    """
    given: object = value
    if isinstance(given, str):
        try:
            return given.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{what} {given!r} is not text: {error.reason}") from error
    if not isinstance(given, bytes):
        raise UsageError(f"{what} must be bytes or a str, not {type(given).__name__}")
    return given


def shown(key: bytes) -> str:
    """A key in quotes: as text, if it is text."""
    try:
        return repr(key.decode())
    except UnicodeDecodeError:
        return repr(key)


def _shortened(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:80]}… ({len(text)} characters)"
