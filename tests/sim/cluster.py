"""Whole brokers in one process: the code that runs in production, on simulated everything.

A ``SimNode`` is a machine: its disk outlives the lives of the broker on it.  A life ends
cleanly (``stop``), by ``kill -9`` (the page cache stays) or by a power cut (of what was not
synced any legal part is lost).  The order of a crash matters and is always the same: the
incarnation ends first, so that nothing the dying process still does has an effect, then its
disk and sockets, then its tasks.

A node can also be *paused*, as by SIGSTOP: none of its tasks takes a step, its blocking calls
do not come back and its timers do not fire, while its kernel goes on accepting connections
and filling their buffers.  Resumed, it finds that time has passed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from logd.broker import server
from logd.broker.broker import Broker
from logd.config import BrokerConfig
from logd.errors import ForeignDirectoryError, LogdError
from logd.limits import FEATURE_LEVEL, KIB
from logd.replication.group import Group
from logd.storage.hard_state import boot_number, rests_on_by
from logd.storage.room import is_no_room
from logd.types import GroupId, HostPort, NodeId
from logd_client import Client, connect
from tests.sim.clock import HOST, current_clock
from tests.sim.env import BlockingConditions, SimEnv
from tests.sim.files import CAPACITY_BYTES_DEFAULT, SimulatedFileSystem
from tests.sim.incarnation import Crashed, Incarnation
from tests.sim.knobs import Knobs
from tests.sim.network import NetworkConditions, SimHostNetwork, SimNetwork, SimTransport
from tests.sim.referee import Referee
from tests.sim.trace import Trace

CLIENT_PORT = 7171
PEER_PORT = 7181
DATA_DIR = "/data"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How one simulated cluster is made."""

    brokers: int = 3
    segment_bytes: int = 64 * KIB
    index_interval_bytes: int = 4 * KIB
    tail_cache_bytes: int = 1024 * KIB
    liveness_timeout_ms: int = 1000
    disk_free_bytes_min: int = 0
    replace_after_ms: int = 0
    rebalance_interval_ms: int = 0
    feature_level_max: int = FEATURE_LEVEL
    companion: server.Companion | None = None
    """Runs beside each broker."""
    clock_rates: tuple[float, ...] = ()
    """How fast each node's wall clock runs; a node beyond the end has a good one."""
    network: NetworkConditions = field(default_factory=NetworkConditions)
    blocking: BlockingConditions = field(default_factory=BlockingConditions)
    knobs: Knobs = field(default_factory=Knobs)


class SimNode:
    """One machine: a disk, and at most one broker process at a time."""

    def __init__(self, cluster: SimCluster, node: NodeId) -> None:
        self.node = node
        self.host = f"node{node}"
        self.files = SimulatedFileSystem(random.Random(f"{cluster.seed}:{node}:disk"), pid=node)
        self.clock_skew_ms = 0
        self.blocking = cluster.settings.blocking
        self.env: SimEnv | None = None
        self.broker: Broker | None = None
        """What runs in this life, once it has got that far."""
        self.is_in_danger = False
        """Its disk is about to refuse something, and the memory of it with that."""
        self.has_dead_disk = False
        """Its disk refuses until it is replaced, whatever life it is."""
        self.is_removed = False
        """It is no member any more, and does not come back."""
        self.is_leaving = False
        """Its removal was asked for: it may be told of it at any time, and ends by that."""
        self._cluster = cluster
        self._lives = 0
        self._boots = 1
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()

    @property
    def has_disk_trouble(self) -> bool:
        """In this life its disk has refused something: the broker may end by itself."""
        return self.env is not None and self.env.has_disk_trouble

    @has_disk_trouble.setter
    def has_disk_trouble(self, has_trouble: bool) -> None:
        assert self.env is not None
        self.env.has_disk_trouble = has_trouble

    @property
    def has_lacked_room(self) -> bool:
        """In this life its disk has been full."""
        return self.env is not None and self.env.has_lacked_room

    @has_lacked_room.setter
    def has_lacked_room(self, has_lacked: bool) -> None:
        assert self.env is not None
        self.env.has_lacked_room = has_lacked

    @property
    def is_running(self) -> bool:
        """There is a process, perhaps one that is being killed."""
        return self.env is not None and not self._ended.is_set()

    @property
    def is_alive(self) -> bool:
        """There is a process that can be killed, stopped or paused."""
        return self.is_running and self.env is not None and self.env.incarnation.is_alive

    @property
    def is_paused(self) -> bool:
        return current_clock().is_frozen(self.host)

    @property
    def groups(self) -> dict[GroupId, Group]:
        """Its replicas; none while it is not running."""
        return self.broker.node.groups if self.broker is not None and self.is_alive else {}

    @property
    def boot(self) -> int:
        return boot_number(self._boot_id)

    @property
    def _boot_id(self) -> str:
        return f"{self.host}#{self._boots}"

    def rests_on(self, group: GroupId) -> int | None:
        """The boot in whose memory its replica's promises lie, by its disk; None: it has none."""
        path = f"{DATA_DIR}/groups/{group:020}/hard_state"
        if not self.files.exists(path):
            return None
        with self.files.trouble_suspended():  # It is the test that looks.
            return rests_on_by(self.files, path, group)

    def start(self) -> None:
        """Boot the broker, on the disk as it is."""
        assert not self.is_running
        self._lives += 1
        self._stop, self._scope, self._ended = trio.Event(), trio.CancelScope(), trio.Event()
        self.broker = None
        cluster = self._cluster
        self.env = SimEnv(
            seed=cluster.seed,
            incarnation=Incarnation(self.host, self._lives),
            network=cluster.network,
            files=self.files,
            boot_id=self._boot_id,
            blocking=self.blocking,
            clock_skew_ms=self.clock_skew_ms,
            clock_rate=dict(enumerate(cluster.settings.clock_rates, 1)).get(self.node, 1.0),
        )
        self.has_disk_trouble = self.has_dead_disk
        self.has_lacked_room = self.files.capacity_bytes != CAPACITY_BYTES_DEFAULT
        cluster.trace.record(self.host, "started")
        cluster.nursery.start_soon(self._run, self.env)

    async def _run(self, env: SimEnv) -> None:
        structlog.contextvars.bind_contextvars(host=self.host)
        HOST.set(self.host)
        ended = self._ended
        try:
            with self._scope:
                await server.run_broker(
                    self._cluster.config_of(self.node),
                    env,
                    stop=self._stop,
                    companion=self._cluster.settings.companion,
                )
        except (BaseExceptionGroup, Crashed, OSError, LogdError) as error:
            if not self.may_end_by(error, env):
                raise
            if env.incarnation.is_alive:
                self._cluster.trace.record(self.host, "ended_by_itself", reason=repr(error))
        finally:
            if env.incarnation.is_alive:  # It ended by itself: the process is gone all the same.
                env.crash(vanish=False)
                self.files.kill()
            ended.set()

    def may_end_by(self, error: BaseException, env: SimEnv) -> bool:
        """Code that outlived its node met a dead handle: that is how a crash ends.  A broker
        that lives ends by an error only if its disk gave it one, or if it is told that it was
        removed; or if there is no room to make its data directory."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.may_end_by(each, env) for each in error.exceptions)
        if is_no_room(error) and env.has_lacked_room and self.broker is None:
            return True
        allowed: tuple[type[BaseException], ...] = ()
        if env.has_disk_trouble:
            allowed += (OSError, LogdError)
        if not env.incarnation.is_alive:
            allowed += (Crashed, OSError)
        elif self.is_leaving:
            allowed += (ForeignDirectoryError,)
        return isinstance(error, allowed)

    def pause(self) -> None:
        """SIGSTOP: nothing of it moves until it is resumed or killed."""
        self._cluster.trace.record(self.host, "paused")
        current_clock().freeze(self.host)

    def resume(self) -> None:
        """SIGCONT."""
        if self.is_paused:
            self._cluster.trace.record(self.host, "resumed")
            current_clock().thaw(self.host)

    async def stop(self) -> None:
        """SIGTERM, and wait for the process."""
        self._cluster.trace.record(self.host, "stopping")
        self._stop.set()
        await self._ended.wait()

    async def crash(self, *, power: bool, vanish: bool | None = None) -> None:
        """``kill -9``, or with ``power`` the whole machine loses power."""
        assert self.env is not None
        power = power and self._cluster.may_lose_memory(self)
        self._cluster.trace.record(self.host, "power_cut" if power else "killed")
        self.env.crash(vanish=True if power and vanish is None else vanish)
        if power:
            self.files.crash(self._cluster.chance)
            self._boots += 1
        else:
            self.files.kill()
        self._scope.cancel()
        current_clock().thaw(self.host)
        await self._ended.wait()

    def set_blocking(self, conditions: BlockingConditions) -> None:
        """Make the disk slower or faster, from the next call on."""
        self.blocking = conditions
        if self.env is not None:
            self.env.blocking = conditions

    def set_clock_skew(self, skew_ms: int) -> None:
        """Make the wall clock jump."""
        self.clock_skew_ms = skew_ms
        if self.env is not None:
            self.env.clock_skew_ms = skew_ms


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
        self.founders = tuple(self.nodes)
        self.joined_count = 0
        self._clients = 0
        self._client_hosts: dict[str, SimHostNetwork] = {}
        self.peer_ports: dict[NodeId, int] = {}
        """Where nodes listen for others, from their next start on, if not at ``PEER_PORT``."""
        self.started_without_join: list[NodeId] = []
        """Nodes that have joined, and are told no more where, from their next start on."""
        self.memory_groups: tuple[GroupId, ...] = ()
        """Groups that rest on memory, a majority of which must keep it for them to lose nothing."""

    def join(self, node: NodeId | None = None) -> SimNode:
        """A new machine, whose broker joins the cluster.  Ids are never used again."""
        node = NodeId(max(self.founders) + self.joined_count + 1) if node is None else node
        assert node not in self.nodes
        self.joined_count += 1
        joined = self.nodes[node] = SimNode(self, node)
        joined.start()
        return joined

    def forget(self, node: SimNode) -> None:
        """Its membership has ended: whatever its process still does is no concern of anybody."""
        self.trace.record(node.host, "broker_removed")
        node.is_removed = True
        del self.nodes[node.node]

    def config_of(self, node: NodeId) -> BrokerConfig:
        is_founder = node in self.founders
        return BrokerConfig(
            node_id=node,
            data_dir=DATA_DIR,
            listen=HostPort(f"node{node}", CLIENT_PORT),
            peer_listen=HostPort(f"node{node}", self.peer_ports.get(node, PEER_PORT)),
            cluster={n: HostPort(f"node{n}", PEER_PORT) for n in self.founders if is_founder},
            join=None
            if is_founder or node in self.started_without_join
            else HostPort(f"node{next(iter(self.nodes))}", PEER_PORT),
            failure_domain=f"node{node}",
            segment_bytes=self.settings.segment_bytes,
            index_interval_bytes=self.settings.index_interval_bytes,
            tail_cache_bytes=self.settings.tail_cache_bytes,
            allocate_bytes=16 * KIB,
            # Signs of life are most of what idle brokers say.
            liveness_interval_ms=max(100, self.settings.liveness_timeout_ms // 3),
            liveness_timeout_ms=self.settings.liveness_timeout_ms,
            leader_balance_interval_ms=2000,
            replace_after_ms=self.settings.replace_after_ms,
            rebalance_interval_ms=self.settings.rebalance_interval_ms,
            feature_level_max=self.settings.feature_level_max,
            scrub_interval_s=8,
            coordination_partitions=2,
            retention_interval_ms=2000,
            disk_free_bytes_min=self.settings.disk_free_bytes_min,
        )

    @property
    def bootstrap(self) -> str:
        return ",".join(f"node{node}:{CLIENT_PORT}" for node in self.nodes)

    @property
    def hosts(self) -> list[str]:
        return [node.host for node in self.nodes.values()]

    def client(self, host: str | None = None, **options: object) -> Client:
        """A client on a machine of its own, or on ``host``, beside others; it never crashes."""
        self._clients += 1
        host = host or f"client{self._clients}"
        network = self._client_hosts.get(host)
        if network is None:
            network = self.network.attach(Incarnation(host, self._clients))
            self._client_hosts[host] = network
        chance = random.Random(f"{self.seed}:{host}")
        return connect(
            self.bootstrap,
            transport=SimTransport(network),
            clock=trio.current_time,
            rng=chance,
            client_id=host,
            **{"wall_clock_ms": client_wall_clock_ms, **options},  # type: ignore[arg-type]
        )

    def may_lose_memory(self, victim: SimNode, *, and_disk: bool = False) -> bool:
        """Whether all that rests on memory is vouched for by a majority without ``victim``'s, or,
        ``and_disk``, without ``victim``.  Whoever has a dead disk vouches for nothing.  Of what is
        held by learners nobody is elected, so it has to be a majority of those who vote."""
        for group in self.memory_groups:
            rest_on = {node: node.rests_on(group) for node in self.nodes.values()}
            holders = [node for node, rests_on in rest_on.items() if rests_on is not None]
            whole = [
                node.node
                for node in holders
                if not (node.has_dead_disk or (and_disk and node is victim))
                and (
                    rest_on[node] == 0
                    or (
                        rest_on[node] == node.boot
                        and node is not victim
                        and not (node.has_disk_trouble or node.is_in_danger)
                    )
                )
            ]
            for voters in self._voters(group) or [[node.node for node in holders]]:
                if 2 * len(set(whole).intersection(voters)) <= len(voters):
                    return False
        return True

    def _voters(self, group: GroupId) -> list[Sequence[NodeId]]:
        """Who votes on it, in each configuration that somebody alive goes by."""
        configurations = [
            node.groups[group].configuration for node in self.alive() if group in node.groups
        ]
        halves = [half for c in configurations for half in (c.voters, c.voters_outgoing)]
        return [half for half in halves if half]

    def alive(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.is_alive]

    def leader_of(self, group: GroupId) -> SimNode | None:
        """Who leads the group, as the replicas know it themselves; of several the latest."""
        leaders = [
            (node.groups[group].core.term, node)
            for node in self.alive()
            if group in node.groups and node.groups[group].is_leader
        ]
        return max(leaders, key=lambda leader: leader[0])[1] if leaders else None

    def running(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.is_running]

    def stopped(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if not node.is_running]


def client_wall_clock_ms() -> int:
    """What a client's clock says that is right."""
    return 1_700_000_000_000 + int(trio.current_time() * 1000)


@asynccontextmanager
async def open_cluster(
    seed: int, settings: ClusterSettings, trace: Trace | None = None
) -> AsyncIterator[SimCluster]:
    """A cluster of freshly started nodes; at the end of the block all of it vanishes."""
    trace = Trace() if trace is None else trace
    network = SimNetwork(random.Random(f"{seed}:network"), conditions=settings.network, trace=trace)
    with _log_into(trace), settings.knobs.in_force(), Referee(trace).on_duty():
        async with trio.open_nursery() as nursery:
            cluster = SimCluster(seed, settings, network, nursery)
            with _brokers_shown(cluster):
                for node in cluster.nodes.values():
                    node.start()
                yield cluster
                for node in cluster.running():
                    await node.crash(power=False)
            nursery.cancel_scope.cancel()


@contextmanager
def _brokers_shown(cluster: SimCluster) -> Iterator[None]:
    """Let the cluster look into its brokers: which leads, what each holds."""

    def make(**parts: Any) -> Broker:
        broker = Broker(**parts)
        for node in cluster.nodes.values():  # Without it, if its removal has just ended.
            if node.host == HOST.get():
                node.broker = broker
        return broker

    replaced: Any = server
    replaced.Broker = make
    try:
        yield
    finally:
        replaced.Broker = Broker


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
