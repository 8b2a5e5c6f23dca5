"""What a process has used so far, as /proc tells it.

Anonymous memory (RssAnon) is what a broker itself takes; the rest of its resident set is the
page cache and shared with everybody.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from logd.cli.local_cluster import process_cpu_seconds
from logd.limits import KIB


class Use(NamedTuple):
    """Of one process, since it began."""

    cpu_s: float
    anonymous_bytes: int


def use_of(pid: int) -> Use:
    """Processor time and memory of a running process."""
    return Use(process_cpu_seconds(pid), anonymous_bytes(pid))


def anonymous_bytes(pid: int) -> int:
    """Memory of a running process that is not file contents."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * KIB
    return 0  # It is ending: its memory is gone already.
