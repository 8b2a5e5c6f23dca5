"""A topic that several processes read together; elsewhere this is called a consumer group.

Each partition is read by one of them at a time.  Where it stands is kept in a key, and whoever is
given the partition next goes on there.  It begins by writing the key anew: after that one who owned
the partition before, and has not noticed that it does not any more, compares in vain and stops.

What was done before it was kept that it was done, whoever takes over does again.

    python scripts/recipes/shared_reading.py [HOST:PORT]
"""

import sys
from collections import Counter
from collections.abc import Callable

import anyio

from logd_client import Batch, Client, connect
from logd_client.coordination.assignments import OwnedShard

TOPIC, READERS = "recipe-orders", "recipes/order-readers"
PARTITIONS, COUNT = 6, 6000
KILLED_AFTER = 20
"""Batches, of all members together; whoever handles that one."""
Handle = Callable[[Batch], None]


class KilledError(Exception):
    """Stands for a process that ends."""


async def read_together(client: Client, member: str, handle: Handle) -> None:
    """Handle what is in the partitions that are this member's, until cancelled."""
    keys = client.kv("recipes")

    async def read(shard: OwnedShard) -> None:
        key = f"positions/{TOPIC}/{shard.shard}"
        kept = await keys.get(key)
        value, revision = (b"earliest", 0) if kept is None else (kept.value, kept.revision)
        revision = await keys.cas(key, value, revision=revision)
        async with client.consumer(
            TOPIC,
            partitions=[int(shard.shard)],
            start=int(value) if value.isdigit() else "earliest",
        ) as consumer:
            async for batch in consumer.batches():
                handle(batch)
                position = batch.offsets[-1] + 1
                revision = await keys.cas(key, str(position), revision=revision)

    await client.assignments(READERS).work(member, read)


async def main(bootstrap: str) -> None:
    handled: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    batches: Counter[str] = Counter()
    all_handled = anyio.Event()

    async def member(name: str) -> None:
        def handle(batch: Batch) -> None:
            batches[name] += 1
            handled[batch.partition] += batch.offsets
            if batches.total() == KILLED_AFTER:
                raise KilledError  # What it did was not kept.
            if sum(len(set(offsets)) for offsets in handled.values()) == COUNT:
                all_handled.set()

        async with connect(bootstrap) as client:
            try:
                await read_together(client, name, handle)
            except* KilledError:
                print(f"{name} is gone after {batches[name]} batches")

    async with connect(bootstrap) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS, exist_ok=True)
        await client.assignments(READERS).set([str(number) for number in range(PARTITIONS)])
        async with client.producer(TOPIC) as producer, anyio.create_task_group() as tasks:
            for name in ("one", "two", "three"):
                tasks.start_soon(member, name)
            for _ in range(60):
                await producer.append_many([b"an order"] * (COUNT // 60))
            with anyio.fail_after(30):
                await all_handled.wait()
            tasks.cancel_scope.cancel()
        await client.assignments(READERS).set([])
        await client.kv("recipes").delete(f"positions/{TOPIC}/", f"positions/{TOPIC}0")
        await client.admin.delete_topic(TOPIC)
    for partition, offsets in handled.items():
        first_times = list(dict.fromkeys(offsets))
        assert first_times == sorted(first_times), partition
    again = sum(map(len, handled.values())) - COUNT
    assert again > 0
    print(f"{COUNT:,} records, handled in {dict(batches)} batches, {again} of them twice")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
