"""A service that runs on one of many machines, and clients that find it.

python scripts/recipes/leader_service.py [HOST:PORT]
"""

import sys

import anyio

from logd.errors import LeaseLostError
from logd_client import Client, connect

ELECTION = "recipes/controller"


async def serve(client: Client, address: bytes, served: list[bytes], ended: anyio.Event) -> None:
    """What each machine runs; for ever, in real life."""
    try:
        async with client.election(ELECTION).campaign(address) as leadership:
            # Cancelled when leadership is lost.  What is written carries ``fence=leadership``.
            served.append(address)
            leadership.check()
            await ended.wait()
    except LeaseLostError as error:
        print(f"{error}: standing again")


async def main(bootstrap: str) -> None:
    served: list[bytes] = []
    first_ended, second_ended = anyio.Event(), anyio.Event()
    async with (
        connect(bootstrap) as one,
        connect(bootstrap) as two,
        connect(bootstrap) as user,
        user.election(ELECTION).observe() as leaders,
        anyio.create_task_group() as tasks,
    ):
        assert await leaders.next() is None
        tasks.start_soon(serve, one, b"10.0.0.1:80", served, first_ended)
        leader = await leaders.next()
        assert leader is not None
        print(f"the service is at {leader.data.decode()} (token {leader.token})")
        tasks.start_soon(serve, two, b"10.0.0.2:80", served, second_ended)
        first_ended.set()
        while (following := await leaders.next()) is None:
            pass
        print(f"the service is at {following.data.decode()} (token {following.token})")
        assert following.token > leader.token
        second_ended.set()
    assert served == [b"10.0.0.1:80", b"10.0.0.2:80"]


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
