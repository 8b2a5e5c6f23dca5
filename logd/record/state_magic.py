"""How a state begins that was written down: of what it is, and in which format.

What an older version wrote is read; a format that is not known yet is told from damage.
"""

from __future__ import annotations

from logd.errors import CorruptionError, NewerFormatError
from logd.types import Buffer


class StateMagic:
    """The first bytes of one kind of state: a name, then its format as u16, little endian."""

    __slots__ = ("_what", "format", "name", "written")

    def __init__(self, name: bytes, number: int, what: str) -> None:
        """``what`` it begins is for messages."""
        self.name = name
        self.format = number
        self._what = what
        self.written = name + number.to_bytes(2, "little")

    def __len__(self) -> int:
        return len(self.written)

    def check(self, payload: Buffer) -> None:
        """Whether ``payload`` begins so.

        Raises:
            NewerFormatError: a newer version of logd wrote it.
            CorruptionError: it is something else.
        """
        magic = bytes(payload[: len(self)])
        if len(magic) < len(self) or not magic.startswith(self.name):
            raise CorruptionError(f"not a {self._what}: it begins with {magic!r}")
        number = int.from_bytes(magic[len(self.name) :], "little")
        if number > self.format:
            raise NewerFormatError(
                f"{self._what} of format {number}, this version reads {self.format}"
            )
        if number < 1:
            raise CorruptionError(f"{self._what} of format {number}, the first is 1")
