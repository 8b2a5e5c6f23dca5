"""Stories that tests tell to a formed cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from logd.errors import LogdError
from logd_client import Client
from tests.sim.cluster import ClusterSettings, SimCluster, open_cluster
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

Story = Callable[[SimCluster, Client], Awaitable[None]]

RETRY_S = 0.2
PATIENCE_S = 60.0


@asynccontextmanager
async def connected(
    cluster: SimCluster, host: str | None = None, **options: object
) -> AsyncIterator[Client]:
    """A client, as soon as there is a broker to reach; arguments as ``SimCluster.client``."""
    async with AsyncExitStack() as stack:
        client: Client | None = None
        while client is None:
            try:
                client = await stack.enter_async_context(cluster.client(host, **options))
            except LogdError:
                await trio.sleep(RETRY_S)
        yield client


def play(
    story: Story,
    settings: ClusterSettings | None = None,
    *,
    seed: int = 1,
    patience_s: float = PATIENCE_S,
) -> None:
    """Tell the story to a cluster whose brokers all have registered, on a calm network unless
    ``settings`` say otherwise."""
    settings = settings or ClusterSettings(network=CALM)

    async def main() -> None:
        with trio.fail_after(patience_s):
            async with open_cluster(seed, settings) as cluster, connected(cluster) as client:
                while len((await client.admin.describe_cluster()).brokers) < settings.brokers:
                    await trio.sleep(0.1)
                await story(cluster, client)

    run_deterministic(main, seed=seed)
