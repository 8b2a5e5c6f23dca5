"""Each record takes effect in a database once, whenever this program is killed.

The position is kept where the effect is, and moves in the same transaction: a program that comes
back finds both or neither.  A position that is kept anywhere else is behind, or ahead, of what was
done when the power goes.

    python scripts/recipes/into_a_database.py [HOST:PORT]
"""

import contextlib
import sqlite3
import sys

import anyio

from logd_client import Batch, Client, connect

TOPIC = "recipe-payments"
COUNT = 10_000


class KilledError(Exception):
    """Stands for the power that goes."""


def apply(database: sqlite3.Connection, batch: Batch) -> None:
    with database:  # One transaction.
        for value in batch.values:
            assert value is not None
            database.execute("update account set balance = balance + ?", (int(value),))
        database.execute(
            "replace into position values (?, ?)", (batch.partition, batch.offsets[-1] + 1)
        )


async def follow(client: Client, database: sqlite3.Connection, batches_max: int) -> None:
    """Go on from where the database is, up to the end; killed after so many batches."""
    kept: dict[int, int] = dict(database.execute("select partition, next from position"))
    async with client.consumer(
        TOPIC, start=kept, start_of_others="earliest", stop="latest"
    ) as consumer:
        async for batch in consumer.batches():
            if batches_max == 0:
                raise KilledError
            batches_max -= 1
            apply(database, batch)


async def main(bootstrap: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table account (balance integer)")
    database.execute("create table position (partition integer primary key, next integer)")
    database.execute("insert into account values (0)")
    database.commit()
    async with connect(bootstrap) as client:
        await client.admin.create_topic(TOPIC, partitions=2, exist_ok=True)
        async with client.producer(TOPIC, batch_bytes=4096) as producer:
            await producer.append_many([b"1"] * COUNT)
        lives, is_done = 0, False
        while not is_done:
            lives += 1
            with contextlib.suppress(KilledError):
                await follow(client, database, batches_max=3)
                is_done = True
        await client.admin.delete_topic(TOPIC)
    (balance,) = database.execute("select balance from account").fetchone()
    assert balance == COUNT, balance
    print(f"{COUNT:,} payments, taken {lives} times from where the last life ended: {balance:,}")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
