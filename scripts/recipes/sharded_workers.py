"""Shards spread over workers, each worked on by one at a time.

python scripts/recipes/sharded_workers.py [HOST:PORT]
"""

import sys

import anyio

from logd_client import Client, connect
from logd_client.coordination.assignments import OwnedShard

GROUP = "recipes/indexers"


async def main(bootstrap: str) -> None:
    owners: dict[str, str] = {}

    async def work(client: Client, member: str) -> None:
        async def run_shard(shard: OwnedShard) -> None:
            assert shard.shard not in owners  # The one before has stopped.
            owners[shard.shard] = member
            try:
                await anyio.sleep_forever()  # Work; what is written carries ``fence=shard``.
            finally:
                del owners[shard.shard]

        await client.assignments(GROUP).work(member, run_shard)

    async with connect(bootstrap) as one, connect(bootstrap) as two:
        await one.assignments(GROUP).set([f"shard-{number}" for number in range(6)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, one, "host-1")
            async with one.assignments(GROUP).watch() as changes:
                while len(owners) < 6:
                    with anyio.move_on_after(0.1):
                        await changes.next()
            tasks.start_soon(work, two, "host-2")
            async with one.assignments(GROUP).watch() as changes:
                while sorted(owners.values()) != ["host-1"] * 3 + ["host-2"] * 3:
                    with anyio.move_on_after(0.1):
                        await changes.next()
            print(f"owners: {dict(sorted(owners.items()))}")
            tasks.cancel_scope.cancel()
        await one.assignments(GROUP).set([])


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
