"""A process that was granted something and appends with its fence, whatever becomes of the grant.

    python -m tests.process.fenced_writer BOOTSTRAP lock|election|shard NAME TOPIC TTL_S

It tells on stdout, one JSON object per line, its token once it has one, how far it has come, and in
the end what became of its appends.  It is meant to be stopped and continued from outside: like a
holder with a bug it goes on after its lease is lost, and only the log is in its way.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import msgspec

from logd.errors import FencedError, LogdError
from logd_client import Client, connect
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.fences import Fence

REFUSALS_WANTED = 20
WRITERS = 4
PAUSE_S = 0.002
TOLD_EVERY = 20


class Report(msgspec.Struct):
    """What became of the appends."""

    token: int
    acknowledged: list[int]
    """Offsets."""
    refused: int
    doubtful: int
    """Refused, but told as perhaps applied: there must be none."""
    lease_was_lost: bool
    """The client knew it, when the first append was refused."""


async def write(client: Client, topic: str, fence: Fence, is_lost: anyio.Event) -> Report:
    """Append with ``fence`` until enough appends were refused."""
    report = Report(fence.token, [], 0, 0, False)

    async def one() -> None:
        while report.refused < REFUSALS_WANTED:
            try:
                ack = await producer.append(b"%d" % fence.token, fence=fence)
            except FencedError as error:
                if not report.refused:
                    report.lease_was_lost = is_lost.is_set()
                report.refused += 1
                report.doubtful += error.may_have_applied
            else:
                report.acknowledged.append(ack.offset)
                if len(report.acknowledged) % TOLD_EVERY == 1:
                    tell({"acknowledged": len(report.acknowledged)})
            await anyio.sleep(PAUSE_S)

    async with client.producer(topic) as producer, anyio.create_task_group() as tasks:
        for _ in range(WRITERS):
            tasks.start_soon(one)
    return report


@asynccontextmanager
async def granted(
    client: Client, kind: str, name: str, topic: str, ttl_s: float
) -> AsyncIterator[tuple[Fence, anyio.Event]]:
    """The fence of what was granted, and an event for its loss.

    Not ``async with client.lock(...)``: that would cancel the writer, which is to go on.
    """
    is_lost = anyio.Event()
    if kind == "shard":
        grants: list[OwnedShard] = []
        is_granted = anyio.Event()

        async def run_shard(shard: OwnedShard) -> None:
            grants.append(shard)
            is_granted.set()
            await anyio.sleep_forever()

        async def work() -> None:
            try:
                await client.assignments(name, ttl_s=ttl_s).work("stopped", run_shard)
            except* LogdError:
                is_lost.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await is_granted.wait()
            async with client.producer(topic) as producer:
                await producer.raise_fence(grants[0])
            yield grants[0].fence, is_lost
            tasks.cancel_scope.cancel()
        return
    if kind == "lock":
        lease = await client.lock(name, protects=[topic], ttl_s=ttl_s).acquire()
    else:
        lease = await client.election(name, protects=[topic], ttl_s=ttl_s).campaign(b"a").win()
    lease.call_on_loss(is_lost.set)
    yield lease.fence, is_lost


def tell(row: object) -> None:
    """One line for whoever started us."""
    sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    sys.stdout.flush()


async def main(bootstrap: str, kind: str, name: str, topic: str, ttl_s: str) -> None:
    """Be granted, append, report."""
    async with (
        connect(bootstrap, client_id="the stopped one") as client,
        granted(client, kind, name, topic, float(ttl_s)) as (fence, is_lost),
    ):
        tell({"token": fence.token})
        tell(await write(client, topic, fence, is_lost))


if __name__ == "__main__":
    anyio.run(partial(main, *sys.argv[1:]), backend="asyncio")
