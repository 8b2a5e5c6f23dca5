"""What a file per partition costs in syncs, beside one file that all partitions share.

In each round so many partitions have appended one batch each, and all of it is to be durable: with
a file for each, every one is written and synced, as a broker does it; with one for all there is one
write and one sync.  Files are filled before anything is measured, and rounds of the two kinds take
turns.

Processor time is this process's.  What the kernel does for a sync in a thread of its own, some
0.06 ms each, is not in it, and would make the difference larger.

What a shared file costs later is not in it: everything is written once more, into files that can be
read, trimmed and compacted by partition, or else found by an index of all of it.

    python -m bench.shared_file --partitions 1 8 64 256 --batch-bytes 4096
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from bench.growth import Row, markdown
from logd.env import Env, File
from logd.limits import KIB, MIB
from logd.runtime.env import open_real_env

ROUNDS: Final = 100
ROUNDS_PER_FILE: Final = 8
"""A file is written from its beginning again after so many."""


class Round(NamedTuple):
    """What one took."""

    ms: float
    cpu_ms: float


async def measure(partitions: int, batch_bytes: int, directory: Path) -> Row:
    """Medians of rounds with a file for each partition and with one for all."""
    own: list[Round] = []
    shared: list[Round] = []
    async with open_real_env() as env:
        files = [
            _filled(env, directory / f"own-{number}", batch_bytes) for number in range(partitions)
        ]
        one = _filled(env, directory / "shared", partitions * batch_bytes)
        for number in range(ROUNDS):
            at = number % ROUNDS_PER_FILE
            own.append(await _round(env, files, os.urandom(batch_bytes), at))
            shared.append(await _round(env, [one], os.urandom(partitions * batch_bytes), at))
        for file in (*files, one):
            file.close()
    own_ms, shared_ms = (statistics.median(found.ms for found in kind) for kind in (own, shared))
    own_cpu, shared_cpu = (
        statistics.median(found.cpu_ms for found in kind) for kind in (own, shared)
    )
    return {
        "partitions": partitions,
        "own files, p50 ms": round(own_ms, 2),
        "one file, p50 ms": round(shared_ms, 2),
        "ratio": round(own_ms / shared_ms, 1),
        "own files, CPU ms": round(own_cpu, 2),
        "one file, CPU ms": round(shared_cpu, 2),
    }


def _filled(env: Env, path: Path, batch_bytes: int) -> File:
    file = env.files.open(str(path), create=True)
    size = ROUNDS_PER_FILE * batch_bytes
    for position in range(0, size, MIB):
        file.pwritev([b"\1" * min(MIB, size - position)], position)
    file.sync()
    return file


async def _round(env: Env, files: Sequence[File], batch: bytes, at: int) -> Round:
    """Write the batch to each file and sync them all."""
    began, cpu_began = time.perf_counter(), time.process_time()
    for file in files:
        file.pwritev([batch], at * len(batch))
    async with trio.open_nursery() as nursery:
        for file in files:
            nursery.start_soon(env.sync_file, file)
    return Round(1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu_began))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--batch-bytes", type=int, default=4 * KIB)
    asked = parser.parse_args()
    rows: list[Row] = []
    for partitions in asked.partitions:
        with tempfile.TemporaryDirectory(prefix="logd-shared-") as directory:
            rows.append(trio.run(measure, partitions, asked.batch_bytes, Path(directory)))
    print(markdown(rows))
    print(f"\n{asked.batch_bytes} bytes per batch, {ROUNDS} rounds; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
