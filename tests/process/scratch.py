"""Where a script's cluster has its logs and data: gone if all was well, else kept and named."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from logd.cli.display import say
from tests.process.harness import require_no_traceback


@dataclass
class Scratch:
    """A directory."""

    path: Path
    is_kept: bool = False
    """Somebody will want to look at it."""


@contextmanager
def scratch(name: str, parent: Path | None = None) -> Iterator[Scratch]:
    """A directory for the length of the block, in which the brokers must have stopped by its end.

    It is kept if the block says so or fails, Ctrl-C included, and if a broker has logged a
    traceback.

    Raises:
        AssertionError: all was well otherwise, and a broker logged a traceback.
    """
    found = Scratch(Path(tempfile.mkdtemp(prefix=f"logd-{name}-", dir=parent)))
    try:
        yield found
        if not found.is_kept:
            require_no_traceback(sorted(found.path.rglob("broker.log")))
    except BaseException:
        found.is_kept = True
        raise
    finally:
        if found.is_kept:
            say(f"logs and data are kept in {found.path}")
        else:
            shutil.rmtree(found.path)
