"""Numbers in the names of files and directories: twenty digits, so that names sort as numbers do.

Format: segment_format.md, sections 5, 8 and 9.
"""

from __future__ import annotations

from typing import Final

_DIGITS: Final = 20
"""As many as the largest number of 64 bits has."""


def twenty_digits(number: int) -> str:
    """How ``number``, an offset or a group's id, stands in a name."""
    return f"{number:0{_DIGITS}}"


def number_of(digits: str) -> int | None:
    """The number that stands there; None if none does."""
    is_number = len(digits) == _DIGITS and digits.isascii() and digits.isdigit()
    return int(digits) if is_number else None
