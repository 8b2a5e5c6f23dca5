"""Memory that the machine has already.

A virtual machine may have given memory that was free for a while back to its host, and fetches it
again page by page as it is touched: writing into pages that were fetched just now took 0.4 GB/s
where pages that were there took 5.  A log takes pages for all that it appends, so a machine that
has just been started, or has just dropped its caches, measures its host.  One that has run for a
while has no free memory: its page cache is full, and what is written takes the place of what nobody
reads any more.

    with full_page_cache() as fill:
        fill()      before each run: what a run removes is free again
        ...
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from logd.limits import GIB, KIB, MIB

FREE_BYTES_MAX: Final = 1 * GIB
"""As little is free on a machine that has run for a while."""

READ_BYTES: Final = 4 * MIB


@contextmanager
def full_page_cache() -> Iterator[Callable[[], None]]:
    """Fill the page cache whenever what it yields is called, until the block ends.

    By reading a file without contents: it takes memory, and nothing on the disk.
    """
    with tempfile.TemporaryFile(dir=tempfile.gettempdir()) as file:
        file.truncate(memory_bytes("MemAvailable"))
        buffer = memoryview(bytearray(READ_BYTES))

        def fill() -> None:
            position = 0
            while memory_bytes("MemFree") > FREE_BYTES_MAX:
                count = os.preadv(file.fileno(), [buffer], position)
                if count == 0:
                    return  # The kernel keeps more free than that.
                position += count

        yield fill


def memory_bytes(name: str) -> int:
    """A line of ``/proc/meminfo``."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KIB
    raise LookupError(f"/proc/meminfo has no {name}")
