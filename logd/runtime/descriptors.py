"""What a process that serves does about its file descriptors.

Every replica takes one, and every connection.  A process is given a low limit, mostly 1024, that
it may raise itself, because programs that wait with ``select`` break beyond that.  This one does
not, so that the limit that counts is the one that an administrator has set.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from typing import Final

ALL_SPARED_OF: Final = 1024
"""Of a lower limit than that, which is what most processes begin with, a part is kept."""


def use_all_descriptors() -> None:
    """Call once, early: raise the soft limit to the hard one, where the kernel lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def keep_spare(held: int, spare: int) -> None:
    """Refuse another descriptor if the ``held`` ones leave only the last ``spare``.

    Raises:
        OSError: says how many are kept.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    kept = min(spare, spare * limit // ALL_SPARED_OF)
    if held >= limit - kept:
        raise OSError(
            errno.EMFILE,
            f"the last {kept} of {limit} descriptors are kept for votes, files and other brokers",
        )
