"""One benchmark from beginning to end: its cluster, its topics, its measured part.

A benchmark first does its work once unmeasured, on a topic that it then deletes: memory that
is touched for the first time is several times slower on a virtual machine, and the figure
wanted is that of a broker that has been running.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from logd.cli.benchmark.meter import Meter
from logd.cli.benchmark.settings import Settings
from logd.cli.measure import (
    Measurement,
    histogram_of,
    ladder_of,
    latency_of,
    measurement,
    this_machine,
)
from logd.errors import LogdError

if TYPE_CHECKING:
    from logd.cli.local_cluster import LocalCluster
    from logd_client import Client

DELETE_TIMEOUT_S: Final = 3.0
"""A run that is broken off may be so because the cluster does not answer."""


class Bench:
    """One run: the cluster, the client and what was asked."""

    def __init__(
        self, client: Client, bootstrap: str, cluster: LocalCluster | None, settings: Settings
    ) -> None:
        self.client = client
        self.bootstrap = bootstrap
        self.settings = settings
        self._cluster = cluster
        self._run = f"{int(time.time())}-{os.getpid()}"

    async def create_topic(self, purpose: str) -> str:
        """A topic for this run."""
        name = f"bench-{purpose}-{self._run}"
        config = {} if self.settings.durability == "synced" else {"durability": "replicated"}
        await self.client.admin.create_topic(
            name, partitions=self.settings.partitions, config=config
        )
        return name

    async def delete_topic(self, name: str) -> None:
        """Give its space back."""
        await self.client.admin.delete_topic(name)

    @asynccontextmanager
    async def topic(self, purpose: str) -> AsyncIterator[str]:
        """A topic for the length of the block, however it ends."""
        name = await self.create_topic(purpose)
        try:
            yield name
        except BaseException:
            with suppress(LogdError), anyio.move_on_after(DELETE_TIMEOUT_S, shield=True):
                await self.delete_topic(name)
            raise
        await self.delete_topic(name)

    def meter(self) -> Meter:
        """For one measured part; sees the brokers that were started for this run."""
        if self._cluster is None:
            return Meter({})
        return Meter(
            {int(at.node_id): self._cluster.pid(at.node_id) for at in self._cluster.brokers}
        )

    def result(
        self, name: str, meter: Meter, *, append_latencies_s: Sequence[float] = (), **facts: Any
    ) -> Measurement:
        """The figures of a measured part."""
        found = measurement(
            name,
            records=meter.records,
            value_bytes=meter.value_bytes,
            seconds=meter.seconds,
            latencies_s=meter.latencies_s,
            cpu_s=meter.client_cpu_s + meter.broker_cpu_s,
            settings={**asdict(self.settings), "cpu_includes_brokers": self._cluster is not None},
        )
        return replaced(
            found,
            client_cpu_s_per_million=round(meter.client_cpu_s * 1e6 / meter.records, 3),
            brokers=meter.broker_uses(),
            append_latency_ms=latency_of(append_latencies_s) if append_latencies_s else None,
            latency_percentiles=ladder_of(meter.latencies_s),
            latency_histogram=histogram_of(meter.latencies_s),
            samples=meter.samples,
            machine=this_machine(),
            **facts,
        )


def replaced(found: Measurement, **facts: Any) -> Measurement:
    """A copy with some fields set."""
    from msgspec.structs import replace

    return replace(found, **facts)


Measure = Callable[[Bench], Awaitable[Measurement]]


def run(bootstrap: str, settings: Settings, measure: Measure) -> Measurement:
    """Measure on a cluster of its own if ``settings`` say so, else on the one that is there."""
    from logd.cli.local_cluster import open_cluster, stopping
    from logd.cli.session import run_async

    if settings.brokers is None:
        return run_async(_measured, bootstrap, None, settings, measure)
    with tempfile.TemporaryDirectory(prefix="logd-bench-") as directory:
        cluster = open_cluster(
            Path(directory) / "cluster", broker_count=settings.brokers, port=None
        )
        with stopping(cluster):
            cluster.start_all()
            return run_async(_measured, cluster.bootstrap, cluster, settings, measure)


async def _measured(
    bootstrap: str, cluster: LocalCluster | None, settings: Settings, measure: Measure
) -> Measurement:
    from logd.cli.ready import wait_until_ready
    from logd.cli.session import connected

    if cluster is not None:
        await wait_until_ready(cluster)
    async with connected(bootstrap) as client:
        return await measure(Bench(client, bootstrap, cluster, settings))
