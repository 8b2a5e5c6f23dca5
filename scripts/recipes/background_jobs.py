"""Jobs that are done once, retried when they fail, and put aside when they keep failing.

A handler may run again for the same item (its worker was lost after the work and before the
completion): make its effect repeatable, or let it carry ``fence=claim``.

    python scripts/recipes/background_jobs.py [HOST:PORT]
"""

import sys
from functools import partial

import anyio

from logd_client import connect
from logd_client.coordination.queues import Claim, make_item

QUEUE = "recipes/emails"


async def main(bootstrap: str) -> None:
    sent: list[bytes] = []

    async def send(claim: Claim) -> None:
        if claim.payload == b"nobody@nowhere":
            raise ValueError("no such address")
        sent.append(claim.payload)

    async with connect(bootstrap) as client:
        queue = client.queue(QUEUE)
        await queue.configure(attempts_max=2, backoff_ms=10)
        # Items of one key are done in order, one at a time.
        await queue.put_many([make_item(b"%d" % number, key=b"ann") for number in range(3)])
        await queue.put(b"nobody@nowhere", priority=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(queue.work, send, concurrency=4))
            async with queue.watch() as events:
                while (found := await queue.statistics()).completed + found.dead < 4:
                    with anyio.move_on_after(0.1):
                        await events.next()
            tasks.cancel_scope.cancel()
        assert sent == [b"0", b"1", b"2"]
        (dead,) = await queue.dead_letters()
        print(f"put aside: {dead.payload.decode()}, because of {dead.reason}")
        await queue.delete()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
