"""A topic derived from another, each record once, whoever copies and however often it dies.

What is written says where it came from, in a header.  So whoever takes over reads the last record
of the copy and knows where to go on.  That is safe because nobody else can still be writing: the
lock lets one in, and ``protects`` has the log refuse whoever was in before, already when this one
looks.

    python scripts/recipes/copy_once.py [HOST:PORT]
"""

import contextlib
import sys
from collections import deque

import anyio

from logd_client import Client, Ticket, connect

SOURCE, TARGET = "recipe-words", "recipe-words-in-capitals"
COUNT = 5000
UNDER_WAY_MAX = 100


class KilledError(Exception):
    """Stands for a process that ends."""


async def copied_to(client: Client, partition: int) -> int:
    """Where to go on in the source, by the last record of the copy."""
    end = (await client.admin.offsets(TARGET, partition)).data_end
    if end == 0:
        return 0
    async with client.consumer(TARGET, start={partition: end - 1}) as consumer:
        record = await consumer.next_record()
        assert record is not None
        return int(dict(record.headers)["source"]) + 1


async def copy(client: Client, partition: int, records_max: int) -> None:
    """Up to the end of the source; killed after so many records."""
    async with client.lock(f"recipes/copy-{partition}", protects=[TARGET]) as lease:
        start = await copied_to(client, partition)
        async with (
            client.producer(TARGET) as producer,
            client.consumer(SOURCE, start={partition: start}, stop="latest") as consumer,
        ):
            tickets: deque[Ticket] = deque()
            async for record in consumer:
                assert record.value is not None
                if records_max == 0:
                    raise KilledError
                records_max -= 1
                tickets.append(
                    await producer.enqueue(
                        record.value.upper(),
                        key=record.key,
                        headers=[*record.headers, ("source", b"%d" % record.offset)],
                        partition=partition,
                        fence=lease,
                    )
                )
                if len(tickets) > UNDER_WAY_MAX:
                    await tickets.popleft()
            await producer.flush()


async def main(bootstrap: str) -> None:
    words = [b"word %d" % number for number in range(COUNT)]
    async with connect(bootstrap) as client:
        for topic in (SOURCE, TARGET):
            await client.admin.create_topic(topic, exist_ok=True)
        async with client.producer(SOURCE) as producer:
            await producer.append_many(words)
        lives, is_done = 0, False
        while not is_done:
            lives += 1
            with contextlib.suppress(KilledError):
                await copy(client, 0, records_max=1500)
                is_done = True
        async with client.consumer(TARGET, start="earliest", stop="latest") as consumer:
            copied = [record.value async for record in consumer]
        for topic in (SOURCE, TARGET):
            await client.admin.delete_topic(topic)
    assert copied == [word.upper() for word in words]
    print(f"{COUNT:,} records, copied in {lives} lives, each once")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
