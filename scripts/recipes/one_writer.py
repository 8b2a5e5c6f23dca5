"""One writer at a time, and nothing of an earlier one after the first of a later one.

The lock lets one in.  Its fence, carried by each append, has the log refuse whoever was let in
before and does not know yet that it was replaced; ``protects`` makes the log know the new token
before this writer has written anything.

    python scripts/recipes/one_writer.py [HOST:PORT]
"""

import sys

import anyio

from logd.errors import FencedError
from logd_client import Client, connect

TOPIC = "recipe-journal"


async def compact(client: Client, step: bytes) -> None:
    async with (
        client.lock("recipes/compactor", protects=[TOPIC]) as lease,
        client.producer(TOPIC) as producer,
    ):
        await producer.append(step, fence=lease)


async def main(bootstrap: str) -> None:
    async with connect(bootstrap) as client:
        await client.admin.create_topic(TOPIC, exist_ok=True)
        await compact(client, b"begin")
        # One that slept through its lease: it has the fence of a grant that is over.
        old = await client.lock("recipes/compactor").acquire()
        await old.release()
        await compact(client, b"go on")
        async with client.producer(TOPIC) as producer:
            try:
                await producer.append(b"too late", fence=old)
            except FencedError as error:
                fate = "perhaps written" if error.may_have_applied else "certainly not written"
                print(f"refused, {fate}: {error}")
                return
    raise AssertionError("a late write was taken")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
