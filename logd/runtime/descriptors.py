"""What a process that serves does about its file descriptors.

Every replica takes one, and every connection.  A process is given a low limit, mostly 1024, that
it may raise itself, because programs that wait with ``select`` break beyond that.  This one does
not, so that the limit that counts is the one that an administrator has set.
"""

from __future__ import annotations

import contextlib
import resource


def use_all_descriptors() -> None:
    """Call once, early: raise the soft limit to the hard one, where the kernel lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
