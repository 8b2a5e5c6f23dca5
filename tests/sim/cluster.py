"""Whole brokers in one process: the code that runs in production, on simulated everything.

A ``SimNode`` is a machine: its disk outlives the lives of the broker on it.  A life ends
cleanly (``stop``), by ``kill -9`` (the page cache stays) or by a power cut (of what was not
synced any legal part is lost).  The order of a crash matters and is always the same: the
incarnation ends first, so that nothing the dying process still does has an effect, then its
disk and sockets, then its tasks.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import structlog
import trio

from logd.broker.server import run_broker
from logd.config import BrokerConfig
from logd.limits import KIB
from logd.types import HostPort, NodeId
from logd_client import Client, connect
from tests.sim.env import BlockingConditions, SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Crashed, Incarnation
from tests.sim.network import NetworkConditions, SimNetwork, SimTransport
from tests.sim.trace import Trace

CLIENT_PORT = 7171
PEER_PORT = 7181
DATA_DIR = "/data"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How one simulated cluster is made."""

    brokers: int = 3
    segment_bytes: int = 64 * KIB
    tail_cache_bytes: int = 1024 * KIB
    liveness_timeout_ms: int = 1000
    network: NetworkConditions = field(default_factory=NetworkConditions)
    blocking: BlockingConditions = field(default_factory=BlockingConditions)


class SimNode:
    """One machine: a disk, and at most one broker process at a time."""

    def __init__(self, cluster: SimCluster, node: NodeId) -> None:
        self.node = node
        self.host = f"node{node}"
        self.files = SimulatedFileSystem(random.Random(f"{cluster.seed}:{node}:disk"), pid=node)
        self.clock_skew_ms = 0
        self.env: SimEnv | None = None
        self.error: BaseException | None = None
        self._cluster = cluster
        self._lives = 0
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        return self.env is not None and not self._ended.is_set()

    def start(self) -> None:
        """Boot the broker, on the disk as it is."""
        assert not self.is_running
        self._lives += 1
        self._stop, self._scope, self._ended = trio.Event(), trio.CancelScope(), trio.Event()
        cluster = self._cluster
        self.env = SimEnv(
            seed=cluster.seed,
            incarnation=Incarnation(self.host, self._lives),
            network=cluster.network,
            files=self.files,
            boot_id=f"{self.host}#{self._lives}",
            blocking=cluster.settings.blocking,
            clock_skew_ms=self.clock_skew_ms,
        )
        cluster.trace.record(self.host, "started")
        cluster.nursery.start_soon(self._run, self.env)

    async def _run(self, env: SimEnv) -> None:
        structlog.contextvars.bind_contextvars(host=self.host)
        ended = self._ended
        try:
            with self._scope:
                await run_broker(self._cluster.config_of(self.node), env, stop=self._stop)
        except BaseExceptionGroup as group:
            # Code that outlived its node met a dead handle: that is how a crash ends.
            if env.incarnation.is_alive or group.split(Crashed)[1] is not None:
                raise
        except Crashed:
            if env.incarnation.is_alive:
                raise
        except OSError:
            # A dead disk or socket refused: only a crash may do that to a broker.
            if env.incarnation.is_alive:
                raise
        finally:
            if env.incarnation.is_alive:  # It ended by itself: the process is gone all the same.
                env.crash(vanish=False)
                self.files.kill()
            ended.set()

    async def stop(self) -> None:
        """SIGTERM, and wait for the process."""
        self._cluster.trace.record(self.host, "stopping")
        self._stop.set()
        await self._ended.wait()

    async def crash(self, *, power: bool, vanish: bool | None = None) -> None:
        """``kill -9``, or with ``power`` the whole machine loses power."""
        assert self.env is not None
        self._cluster.trace.record(self.host, "power_cut" if power else "killed")
        self.env.crash(vanish=True if power and vanish is None else vanish)
        if power:
            self.files.crash(self._cluster.chance)
        else:
            self.files.kill()
        self._scope.cancel()
        await self._ended.wait()


class SimCluster:
    """Some nodes and the network between them.  Made by ``open_cluster``."""

    def __init__(
        self, seed: int, settings: ClusterSettings, network: SimNetwork, nursery: trio.Nursery
    ) -> None:
        self.seed = seed
        self.settings = settings
        self.network = network
        self.trace = network.trace
        self.nursery = nursery
        self.chance = random.Random(f"{seed}:crashes")
        self.nodes = {
            NodeId(node): SimNode(self, NodeId(node)) for node in range(1, settings.brokers + 1)
        }
        self._clients = 0

    def config_of(self, node: NodeId) -> BrokerConfig:
        return BrokerConfig(
            node_id=node,
            data_dir=DATA_DIR,
            listen=HostPort(f"node{node}", CLIENT_PORT),
            peer_listen=HostPort(f"node{node}", PEER_PORT),
            cluster={n: HostPort(f"node{n}", PEER_PORT) for n in self.nodes},
            failure_domain=f"node{node}",
            segment_bytes=self.settings.segment_bytes,
            tail_cache_bytes=self.settings.tail_cache_bytes,
            allocate_bytes=16 * KIB,
            liveness_timeout_ms=self.settings.liveness_timeout_ms,
            leader_balance_interval_ms=2000,
            disk_free_bytes_min=0,
        )

    @property
    def bootstrap(self) -> str:
        return ",".join(f"node{node}:{CLIENT_PORT}" for node in self.nodes)

    @property
    def hosts(self) -> list[str]:
        return [node.host for node in self.nodes.values()]

    def client(self, **options: object) -> Client:
        """A client on a machine of its own; it never crashes."""
        self._clients += 1
        host = f"client{self._clients}"
        incarnation = Incarnation(host, 1)
        chance = random.Random(f"{self.seed}:{host}")
        return connect(
            self.bootstrap,
            transport=SimTransport(self.network.attach(incarnation)),
            clock=trio.current_time,
            wall_clock_ms=lambda: 1_700_000_000_000 + int(trio.current_time() * 1000),
            rng=chance,
            client_id=host,
            **options,  # type: ignore[arg-type]
        )

    def running(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.is_running]

    def stopped(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if not node.is_running]


@asynccontextmanager
async def open_cluster(
    seed: int, settings: ClusterSettings, trace: Trace | None = None
) -> AsyncIterator[SimCluster]:
    """A cluster of freshly started nodes; at the end of the block all of it vanishes."""
    trace = Trace() if trace is None else trace
    network = SimNetwork(random.Random(f"{seed}:network"), conditions=settings.network, trace=trace)
    with _log_into(trace):
        async with trio.open_nursery() as nursery:
            cluster = SimCluster(seed, settings, network, nursery)
            for node in cluster.nodes.values():
                node.start()
            yield cluster
            for node in cluster.running():
                await node.crash(power=False)
            nursery.cancel_scope.cancel()


@contextmanager
def _log_into(trace: Trace) -> Iterator[None]:
    """The brokers' log becomes part of the timeline, each line under its host."""

    def record(
        logger: object, method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        name = str(event.pop("event"))
        host = str(event.pop("host", "test"))
        trace.record(host, name, **event)
        raise structlog.DropEvent

    was = structlog.get_config()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, record],
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**was)
