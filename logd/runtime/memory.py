"""Tells the C library to keep the memory it was given.

Frames and batches are large and short-lived.  By default glibc returns each such block to
the kernel and asks for it again with the next frame, and every page is zeroed and mapped
anew: taking a 1 MB frame in took 1.1 ms, and 0.1 ms with these settings.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from logd.limits import MIB

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
TRIM_THRESHOLD_BYTES: Final = 128 * MIB
"""Free memory at the end of the heap beyond this goes back to the kernel."""

MMAP_THRESHOLD_BYTES: Final = 32 * MIB
"""Larger blocks are mapped apart, and returned at once when freed.  glibc's maximum."""


def keep_freed_memory() -> None:
    """Call once, early.  Does nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
