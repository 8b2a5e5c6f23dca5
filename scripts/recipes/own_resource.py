"""The same for a resource of your own, here a database: keep the largest token beside the data.

Asking the cluster whether a token still holds (``lock.verify``) and writing then is no protection:
the answer may be old by the time of the write.  What protects is to compare tokens *in the
transaction that writes*: whoever comes with a smaller one than was seen is refused.

    python scripts/recipes/own_resource.py [HOST:PORT]
"""

import sqlite3
import sys

import anyio

from logd_client import connect

LOCK = "recipes/accounts"


class StaleTokenError(Exception):
    """The writer was replaced."""


def write(database: sqlite3.Connection, token: int, balance: int) -> None:
    with database:  # One transaction.
        raised = database.execute(
            "update guard set token = ? where lock = ? and token <= ?", (token, LOCK, token)
        )
        if raised.rowcount == 0:
            raise StaleTokenError(f"token {token} is older than what was seen")
        database.execute("update account set balance = ?", (balance,))


async def main(bootstrap: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table guard (lock text primary key, token integer)")
    database.execute("create table account (balance integer)")
    database.execute("insert into guard values (?, 0)", (LOCK,))
    database.execute("insert into account values (0)")
    database.commit()
    async with connect(bootstrap) as client:
        first = await client.lock(LOCK).acquire()
        write(database, first.token, 10)
        await first.release()
        async with client.lock(LOCK) as second:
            # Good for a warning or a page; not what the writes below rely on.
            assert await client.lock(LOCK).verify(second.token)
            assert not await client.lock(LOCK).verify(first.token)
            write(database, second.token, 20)
            try:
                write(database, first.token, 11)
            except StaleTokenError as error:
                print(f"refused: {error}")
            else:
                raise AssertionError("a late write was taken")
    assert database.execute("select balance from account").fetchone() == (20,)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
