"""A process of its own for one piece of work: ``python -m logd.runtime.apart MODULE NAME``.

The request comes on standard input, the answer goes to standard output, and what goes wrong
to standard error with an exit code.  It runs at the lowest priority, and ends by itself when the
broker that started it is gone: nobody would take its answer.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Final

import trio

from logd.env import ApartWork
from logd.runtime.files import RealFileSystem

_NICENESS: Final = 19
_REASON_CHARACTERS_MAX: Final = 500


async def run_apart(work: ApartWork, request: bytes) -> bytes:
    """See ``Env.run_apart``."""
    command = [sys.executable, "-m", __name__, work.__module__, work.__qualname__]
    done = await trio.run_process(
        command, stdin=request, capture_stdout=True, capture_stderr=True, check=False
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()[-_REASON_CHARACTERS_MAX:]
        raise OSError(f"{' '.join(command[1:])} ended with {done.returncode}: {reason}")
    assert isinstance(done.stdout, bytes)
    return done.stdout


def main(module: str, name: str) -> None:
    """Do the work."""
    os.nice(_NICENESS)
    parent = os.getppid()
    work: ApartWork = getattr(importlib.import_module(module), name)

    def wait_s(seconds: float) -> None:
        if os.getppid() != parent:
            os._exit(1)
        if seconds > 0:
            time.sleep(seconds)

    answer = work(RealFileSystem(), sys.stdin.buffer.read(), wait_s)
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
