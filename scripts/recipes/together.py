"""Begin together, end together, count, number: barriers, latches, semaphores and sequences.

python scripts/recipes/together.py [HOST:PORT]
"""

import sys
import uuid

import anyio

from logd_client import Client, connect


async def main(bootstrap: str) -> None:
    name = f"recipes/load-test-{uuid.uuid4()}"
    inside = 0
    inside_most = 0

    async def client_of_test(client: Client, member: str) -> None:
        nonlocal inside, inside_most
        async with client.double_barrier(name, 3, member):  # All three begin together.
            async with client.semaphore(name, 2):  # Two of them at a time.
                inside += 1
                inside_most = max(inside_most, inside)
                number = await client.sequence(name, block=1).next()
                print(f"{member} has number {number}")
                inside -= 1
            await client.latch(name, 3).count_down()

    async with (
        connect(bootstrap) as one,
        connect(bootstrap) as two,
        connect(bootstrap) as three,
        anyio.create_task_group() as tasks,
    ):
        for client, member in ((one, "a"), (two, "b"), (three, "c")):
            tasks.start_soon(client_of_test, client, member)
        await one.latch(name, 3).wait()
    assert 1 <= inside_most <= 2


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
