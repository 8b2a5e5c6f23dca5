"""The holder that slept: stopped beyond its time to live, replaced, and continued.

This is what locks are sold for and cannot do alone: the stopped process does not know that it is
no longer the holder, and is in the middle of writing.  Here the log knows.  A round stops the
holder while it appends, waits until another has been granted the same, lets that one write, then
continues the first; every append of the first that comes late must be refused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import msgspec

from logd_client import Client
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.fences import Fence
from tests.process.fenced_writer import Report

TTL_S: Final = 3.0
SUCCESSOR_TTL_S: Final = 30.0
"""That one does not sleep, although its process may stand still."""

APPENDS_BEFORE_STOP: Final = 40
TIMEOUT_S: Final = 60.0
KINDS: Final = ("lock", "election", "shard")


class Round(NamedTuple):
    """One round, to be judged."""

    stopped: Report
    token: int
    """The successor's."""
    fenced_at: int
    """Offset of the successor's first record."""
    records: list[tuple[int, int]]
    """Offset and token of all that the topic holds."""


def late_writes(found: Round) -> list[tuple[int, int]]:
    """Records of the stopped holder at or above the successor's first: there must be none."""
    return [
        (offset, token)
        for offset, token in found.records
        if token < found.token and offset >= found.fenced_at
    ]


async def play_round(client: Client, bootstrap: str, kind: str, name: str, topic: str) -> Round:
    """Stop, replace, continue; what came of it.  ``topic`` has one partition and is empty."""
    if kind == "shard":
        await client.assignments(name).set(["only"])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.process.fenced_writer", bootstrap, kind, name, topic,
         str(TTL_S)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        with anyio.fail_after(TIMEOUT_S):
            token = (await _line(process))["token"]
            while (await _line(process)).get("acknowledged", 0) < APPENDS_BEFORE_STOP:
                pass
            os.kill(process.pid, signal.SIGSTOP)
            async with _successor(client, kind, name, topic) as fence:
                assert fence.token > token
                async with client.producer(topic) as producer:
                    first = await producer.append(b"%d" % fence.token, fence=fence)
                    os.kill(process.pid, signal.SIGCONT)
                    report = await _report(process)
                    await producer.append(b"%d" % fence.token, fence=fence)
        return Round(report, fence.token, first.offset, await _records(client, topic))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def _line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
    assert line, "the writer ended early"
    found: dict[str, Any] = msgspec.json.decode(line)
    return found


async def _report(process: subprocess.Popen[bytes]) -> Report:
    while "refused" not in (row := await _line(process)):
        pass
    return msgspec.convert(row, Report)


@asynccontextmanager
async def _successor(client: Client, kind: str, name: str, topic: str) -> AsyncIterator[Fence]:
    if kind == "lock":
        async with client.lock(name, protects=[topic], ttl_s=SUCCESSOR_TTL_S) as lease:
            yield lease.fence
    elif kind == "election":
        election = client.election(name, protects=[topic], ttl_s=SUCCESSOR_TTL_S)
        async with election.campaign(b"b") as leadership:
            yield leadership.fence
    else:
        granted: list[OwnedShard] = []
        is_granted = anyio.Event()

        async def run_shard(shard: OwnedShard) -> None:
            granted.append(shard)
            is_granted.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            assignments = client.assignments(name, ttl_s=SUCCESSOR_TTL_S)
            tasks.start_soon(assignments.work, "successor", run_shard)
            await is_granted.wait()
            async with client.producer(topic) as producer:
                await producer.raise_fence(granted[0])
            yield granted[0].fence
            tasks.cancel_scope.cancel()


async def _records(client: Client, topic: str) -> list[tuple[int, int]]:
    offsets = await client.admin.offsets(topic, 0)
    found: list[tuple[int, int]] = []
    async with client.consumer(topic, start="earliest") as consumer:
        async for record in consumer:
            assert record.value is not None
            found.append((record.offset, int(record.value)))
            if record.offset >= offsets.data_end - 1:
                break
    return found
