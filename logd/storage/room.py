"""A full disk is not a failed one: what it refused may be done again when there is room.

That holds of reserving, writing and creating, as long as whoever was refused leaves things as they
were.  It does not hold of a sync: what that was to write may be lost, whatever it says.
"""

from __future__ import annotations

import errno
from typing import Final

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


def is_no_room(error: BaseException | None) -> bool:
    """Whether that is what the disk has said, or what ``error`` was made of."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__
    return False
