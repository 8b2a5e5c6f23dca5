"""Work in a process of its own gets the request, gives the answer, and fails with a reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from logd.env import FileSystem
from logd.limits import KIB
from logd.runtime.apart import run_apart
from logd.runtime.files import RealFileSystem
from logd.storage.compaction import (
    CompactionRefusal,
    CompactionRequest,
    CompactionResult,
    compact_apart,
    read_answer,
)
from logd.storage.log import Log, LogOptions
from logd.types import Offset
from tests.support.logs import IDENTITY
from tests.unit.test_compaction import append, records, seal_segment


def work_that_fails(files: FileSystem, request: bytes, wait_s: Callable[[float], None]) -> bytes:
    raise ValueError(f"asked for {request.decode()}")


def test_a_real_log_is_compacted_by_a_real_process(tmp_path: Path) -> None:
    import msgspec

    files, directory = RealFileSystem(), str(tmp_path / "log")
    log = Log.create(files, directory, IDENTITY, LogOptions(segment_bytes=64 * KIB))
    chance = random.Random(1)
    for number in range(2000):
        append(log, (b"%d" % chance.randrange(50), b"%d" % number))
        if log.needs_roll:
            seal_segment(log)
    seal_segment(log)
    expected = {key: (offset, value) for offset, key, value in records(log)}
    request = CompactionRequest(
        directory=directory,
        identity=IDENTITY,
        segments=log.sealed_segments(),
        dirty_from=Offset(0),
        tombstones_below=Offset(0),
        retried_since_ms=0,
        segment_bytes=64 * KIB,
        keys_max=1000,
        bytes_per_s=0,
    )

    answer = read_answer(trio.run(run_apart, compact_apart, msgspec.json.encode(request)))

    assert isinstance(answer, CompactionResult), answer
    for made in answer.segments:
        assert log.replace(made.replaces, made.path)
    assert {key: (offset, value) for offset, key, value in records(log)} == expected
    assert len(records(log)) == 50
    missing = read_answer(trio.run(run_apart, compact_apart, msgspec.json.encode(request)))
    assert isinstance(missing, CompactionRefusal)
    log.close()


def test_a_failure_is_told_with_its_reason() -> None:
    with pytest.raises(OSError, match="asked for the moon"):
        trio.run(run_apart, work_that_fails, b"the moon")
