"""A table that any number of processes hold in memory, and that is as long as it has keys.

In a topic with ``cleanup=compact`` the last record of each key stays, and one without a value
deletes its key.  Whoever reads it from the start has the table; whoever reads on keeps it up to
date.

    python scripts/recipes/table_from_a_topic.py [HOST:PORT]
"""

import sys

import anyio

from logd_client import Client, Record, connect

TOPIC = "recipe-profiles"
Rows = dict[bytes, bytes]


def apply(rows: Rows, record: Record) -> None:
    assert record.key is not None
    if record.value is None:
        rows.pop(record.key, None)
    else:
        rows[record.key] = record.value


async def load(client: Client) -> tuple[Rows, dict[int, int]]:
    """The table as it is now, and from where on to follow it."""
    rows: Rows = {}
    partitions = (await client.admin.describe_topic(TOPIC)).partitions
    async with client.consumer(TOPIC, start="earliest", stop="latest") as consumer:
        async for record in consumer:
            apply(rows, record)
        return rows, {each.partition: consumer.position(each.partition) or 0 for each in partitions}


async def main(bootstrap: str) -> None:
    async with connect(bootstrap) as client:
        await client.admin.create_topic(
            TOPIC, partitions=2, config={"cleanup": "compact"}, exist_ok=True
        )
        async with client.producer(TOPIC) as producer:
            for number in range(100):
                await producer.append(b"version %d" % number, key=b"user-%d" % (number % 10))
            await producer.append(None, key=b"user-3")
            rows, positions = await load(client)
            assert len(rows) == 9
            assert rows[b"user-4"] == b"version 94"
            await producer.append(b"version 100", key=b"user-4")
        async with client.consumer(TOPIC, start=positions, start_of_others="earliest") as consumer:
            async for record in consumer:
                apply(rows, record)
                if rows[b"user-4"] == b"version 100":
                    break
        await client.admin.delete_topic(TOPIC)
    print(f"{len(rows)} rows: {b', '.join(sorted(rows)).decode()}")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
