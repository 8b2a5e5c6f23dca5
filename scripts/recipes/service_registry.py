"""Who is there: machines that join with their address, and a balancer that follows them.

python scripts/recipes/service_registry.py [HOST:PORT]
"""

import sys

import anyio

from logd_client import connect

GROUP = "recipes/web"


async def main(bootstrap: str) -> None:
    async with (
        connect(bootstrap) as balancer,
        connect(bootstrap) as machine,
        balancer.members(GROUP).follow() as views,
    ):
        assert await views.next() == ()
        async with machine.members(GROUP).join("host-1", b"10.0.0.1:80"):
            backends = [member.data.decode() for member in await views.next()]
            print(f"backends: {backends}")
            assert backends == ["10.0.0.1:80"]
        assert await views.next() == ()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])
