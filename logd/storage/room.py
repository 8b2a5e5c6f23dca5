"""A full disk is not a failed one: what it refused may be done again when there is room.

That holds of reserving, writing and creating, as long as whoever was refused leaves things as they
were.  It does not hold of a sync: what that was to write may be lost, whatever it says.

Nor is a disk at fault that was never asked, because there was no file descriptor to ask it with.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from logd.errors import NoRoomError

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)


def is_no_room(error: BaseException | None) -> bool:
    """Whether that is what the disk has said, or what ``error`` was made of."""
    return _is_of(_NO_ROOM, error)


def is_no_descriptor(error: BaseException | None) -> bool:
    """Whether nothing was asked of the disk, for want of a file descriptor to ask it with."""
    return _is_of(_NO_DESCRIPTOR, error)


def what_lacks(error: BaseException | None) -> str | None:
    """What there was too little of, so that the same may be done when there is more; else None."""
    if is_no_room(error):
        return "room"
    return "file descriptor" if is_no_descriptor(error) else None


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Around what opens a file that is there, to read it or before anything is written.

    Raises:
        NoRoomError: there is no file descriptor for it.
    """
    try:
        yield
    except OSError as error:
        lack = what_lacks(error)
        if lack is None:
            raise
        raise NoRoomError(f"no {lack} to open {path}") from error


def _is_of(numbers: tuple[int, ...], error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        error = error.__cause__
    return False
