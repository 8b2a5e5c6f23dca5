"""A worker of a queue, to be killed: ``python -m tests.process.queue_worker BOOTSTRAP QUEUE``."""

from __future__ import annotations

import sys
from functools import partial

import anyio

from logd_client import connect
from logd_client.coordination.queues import Claim

WORK_S = 0.01


async def handle(claim: Claim) -> None:
    """Takes a moment, so that a killed worker has items in hand."""
    await anyio.sleep(WORK_S)
    if claim.payload == b"poison":
        raise ValueError("poisoned")


async def main(bootstrap: str, name: str) -> None:
    """Work until killed."""
    async with connect(bootstrap, session_ttl_ms=2_000) as client:
        await client.queue(name).work(handle, concurrency=8)


if __name__ == "__main__":
    anyio.run(partial(main, *sys.argv[1:]))
