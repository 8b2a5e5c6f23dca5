"""The meter: counts what is done and samples what it costs while it is done.

A measured part counts records and latencies into plain memory, eight bytes each, and nothing
is computed until it is over: what the meter does while it runs is charged to the figure.
Four times a second the processor time and the memory of the brokers are looked up, so that a
report can show a run over time and not just its mean.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio

from logd.cli.benchmark.processes import Use, use_of
from logd.cli.measure import BrokerUse, Sample

SAMPLE_S: Final = 0.25
BYTES_PER_MB: Final = 1_000_000


class Meter:
    """Of one measured part."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        """``pids``: node id to process, of the brokers that can be looked at."""
        self._pids = dict(pids)
        self._before: dict[int, Use] = {}
        self._anonymous_bytes_max: dict[int, int] = {}
        self._began = 0.0
        self._own_cpu_before_s = 0.0
        self.latencies_s = array("d")
        self.records = 0
        self.value_bytes = 0
        self.client_cpu_s = 0.0
        self.seconds = 0.0
        self.samples: list[Sample] = []
        self.after: dict[int, Use] = {}

    def count(self, records: int, value_bytes: int, latency_s: float) -> None:
        """So many records are done; the call that did them took so long."""
        self.records += records
        self.value_bytes += value_bytes
        self.latencies_s.append(latency_s)

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        """The measured part is the block."""
        self._before = {node: use_of(pid) for node, pid in self._pids.items()}
        self._own_cpu_before_s = time.process_time()
        self._began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sample_often)
            yield
            self.seconds = time.perf_counter() - self._began
            tasks.cancel_scope.cancel()
        self.client_cpu_s = time.process_time() - self._own_cpu_before_s
        self._sample(self.seconds)
        self.after = {node: use_of(pid) for node, pid in self._pids.items()}

    async def _sample_often(self) -> None:
        while True:
            self._sample(time.perf_counter() - self._began)
            await anyio.sleep(SAMPLE_S)

    def _sample(self, at_s: float) -> None:
        uses = {node: use_of(pid) for node, pid in self._pids.items()}
        for node, use in uses.items():
            peak = max(self._anonymous_bytes_max.get(node, 0), use.anonymous_bytes)
            self._anonymous_bytes_max[node] = peak
        self.samples.append(
            Sample(
                at_s=round(at_s, 3),
                records=self.records,
                broker_cpu_s={
                    node: round(use.cpu_s - self._before[node].cpu_s, 2)
                    for node, use in uses.items()
                },
            )
        )

    @property
    def broker_cpu_s(self) -> float:
        """Of all brokers together."""
        return sum(self.after[node].cpu_s - before.cpu_s for node, before in self._before.items())

    def broker_uses(self) -> list[BrokerUse]:
        """What the measured part cost each broker."""
        return [
            BrokerUse(
                id=node,
                cpu_s_per_million=round(
                    (self.after[node].cpu_s - before.cpu_s) * 1e6 / max(self.records, 1), 3
                ),
                anonymous_mb_max=round(self._anonymous_bytes_max[node] / BYTES_PER_MB, 1),
            )
            for node, before in self._before.items()
        ]
