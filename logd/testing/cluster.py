"""``Cluster``: brokers of a test, one process each, that can be killed, paused and cut off."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio

from logd.cli.cluster import ask_status
from logd.cli.local_cluster import LocalCluster, open_cluster
from logd.cli.ready import READY_TIMEOUT_S, wait_until_ready
from logd.errors import LogdError, UnavailableError, UsageError
from logd.limits import METADATA_VOTERS_MAX
from logd.testing.peer_proxy import Pair, ProxiedCluster, Shape, proxied
from logd.types import NodeId
from logd.wording import listed
from logd_client import connect

LEADER_TIMEOUT_S: Final = 30.0
WHOLE_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05

T = TypeVar("T")


class Cluster:
    """Real brokers on free ports of this machine, that run while its ``with`` block does.

    What works on them works on a cluster of machines, synced appends and all.  Every method
    blocks until what it says is so; none needs, nor minds, a running event loop, but one that
    has other tasks to run should call them in a thread (``anyio.to_thread.run_sync``).

    Args:
        brokers: how many, 1 to 5; their ids count from 1.
        directory: where they keep data and logs, empty or missing, or that of an earlier
            ``Cluster`` of as many brokers, which goes on.  None: a temporary one, removed at
            the end.
        breakable_network: brokers reach each other through a proxy in a thread of this process,
            which is what ``isolate``, ``cut`` and ``delay`` need.
        settings: options of ``logd serve`` for every broker, as on its command line.
    """

    def __init__(
        self,
        brokers: int = 3,
        *,
        directory: Path | str | None = None,
        breakable_network: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        if not 1 <= brokers <= METADATA_VOTERS_MAX:
            raise UsageError(f"brokers={brokers}: expected 1 to {METADATA_VOTERS_MAX}")
        self._broker_count = brokers
        self._directory = directory
        self._is_network_breakable = breakable_network
        self._settings = tuple(settings)
        self._owned = ExitStack()
        self._running: LocalCluster | None = None
        self._paused: set[NodeId] = set()

    # --- life ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start all brokers and wait until each sees every other.

        Raises:
            StorageError: the directory cannot be used, or a port was taken meanwhile.
            BrokerDiedError: a broker ended instead; says why.
            UnavailableError: the cluster was not ready in time; names a broker's log.
        """
        if self._running is not None:
            raise UsageError("the cluster is running already")
        with ExitStack() as owned:
            self._own_parts(owned)
            self._owned = owned.pop_all()
        return self

    def _own_parts(self, owned: ExitStack) -> None:
        directory = self._directory
        if directory is None:
            directory = tempfile.mkdtemp(prefix="logd-")
            owned.callback(shutil.rmtree, directory)
        brokers = open_cluster(
            Path(directory), broker_count=self._broker_count, port=None, settings=self._settings
        )
        if self._is_network_breakable:
            brokers = proxied(brokers.brokers, settings=self._settings)
            owned.enter_context(brokers.proxy)
        owned.callback(self._end)
        self._running = brokers
        brokers.start_all()
        self._ask(wait_until_ready, brokers)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop all brokers; one that does not stop in time is killed."""
        self._owned.close()

    def _end(self) -> None:
        self._resume_all()
        self._brokers.stop_all()
        self._running = None

    @property
    def _brokers(self) -> LocalCluster:
        if self._running is None:
            raise UsageError("the cluster is not running: use it inside `with Cluster() as …`")
        return self._running

    def _ask(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run it to its end in a thread, for this one may have an event loop of its own."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(anyio.run, function, *args, backend="trio").result()

    # --- who is there -------------------------------------------------------------------

    @property
    def bootstrap(self) -> str:
        """The address of every broker, as ``connect`` and ``--bootstrap`` take it."""
        return self._brokers.bootstrap

    @property
    def nodes(self) -> tuple[int, ...]:
        """Ids of all brokers, running or not."""
        return tuple(broker.node_id for broker in self._brokers.brokers)

    def log(self, node: int) -> Path:
        """The file that the broker logs to, one JSON object per line."""
        return self._brokers.broker(self._known(node)).log_path

    def leader(self, topic: str, partition: int = 0) -> int:
        """The broker that leads a partition and says so itself; waits while there is none.

        Raises:
            UnknownTopicError, InvalidPartitionError: there is no such topic or partition.
            UnavailableError: nobody led it for 30 s.
        """
        return self._ask(self._find_leader, topic, partition)

    async def _find_leader(self, topic: str, partition: int) -> int:
        trouble: LogdError | None = None
        with anyio.move_on_after(LEADER_TIMEOUT_S):
            while True:
                try:
                    async with connect(self.bootstrap) as client:
                        return (await client.admin.describe_partition(topic, partition)).leader
                except LogdError as error:
                    if not error.retriable:
                        raise
                    trouble = error
                await anyio.sleep(POLL_S)
        raise UnavailableError(
            f"nobody led {topic}/{partition} for {LEADER_TIMEOUT_S:.0f} s: {trouble}"
        )

    # --- processes ----------------------------------------------------------------------

    def kill(self, *nodes: int) -> None:
        """SIGKILL: the brokers end without running another instruction, all of them before any
        can notice that another is gone.

        What they have handed to the kernel survives, unlike what a machine that loses power has.
        """
        chosen = [self._up(node) for node in nodes]
        for node in chosen:
            os.kill(self._brokers.pid(node), signal.SIGSTOP)
        for node in chosen:
            self._paused.discard(node)
            self._brokers.kill(node)

    def kill_all(self) -> None:
        """``kill`` every broker that runs."""
        self.kill(*(node for node in self.nodes if self._brokers.is_running(NodeId(node))))

    def stop(self, node: int) -> None:
        """SIGTERM: the broker hands over what it leads, closes its files and ends."""
        chosen = self._up(node)
        self.resume(chosen)
        self._brokers.stop(chosen)

    def start(self, node: int) -> None:
        """Start a broker that was killed or stopped, on what it has on its disk.

        Returns once its process runs; ``make_whole`` waits until it takes part again.
        """
        chosen = self._known(node)
        if self._brokers.is_running(chosen):
            raise UsageError(f"broker {node} is running")
        self._brokers.start(chosen)

    def pause(self, node: int) -> None:
        """SIGSTOP: the broker stands still, its connections stay open.  Others take over what it
        led; what it does first when it goes on, it does in a world that has moved on."""
        chosen = self._up(node)
        self._paused.add(chosen)
        os.kill(self._brokers.pid(chosen), signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """SIGCONT: it goes on where it stood."""
        chosen = self._up(node)
        self._paused.discard(chosen)
        os.kill(self._brokers.pid(chosen), signal.SIGCONT)

    def _resume_all(self) -> None:
        for node in tuple(self._paused):
            if self._brokers.is_running(node):
                self.resume(node)
        self._paused.clear()

    def _known(self, node: int) -> NodeId:
        if node not in self.nodes:
            raise UsageError(f"there is no broker {node}: there are {listed(self.nodes)}")
        return NodeId(node)

    def _up(self, node: int) -> NodeId:
        known = self._known(node)
        if not self._brokers.is_running(known):
            raise UsageError(f"broker {node} is not running")
        return known

    # --- the network between brokers ----------------------------------------------------

    def isolate(self, node: int) -> None:
        """Nothing passes between this broker and all others until ``heal``; no connection is
        reset.  Clients still reach it: one that led goes on to believe so for a moment."""
        known = self._known(node)
        self._cut([pair for pair in self._proxied.proxy.all_pairs if known in pair])

    def cut(self, source: int, destination: int) -> None:
        """Nothing that ``source`` sends reaches ``destination`` until ``heal``; the other way stays
        open."""
        self._cut([(self._known(source), self._known(destination))])

    def _cut(self, pairs: Sequence[Pair]) -> None:
        self._proxied.proxy.shape(pairs, Shape(is_cut=True))

    def delay(self, seconds: float) -> None:
        """What brokers send each other takes this much longer, each way, until ``heal``."""
        self._proxied.proxy.shape(self._proxied.proxy.all_pairs, Shape(delay_s=seconds))

    def heal(self) -> None:
        """The network is whole again: what was held back arrives."""
        self._proxied.proxy.heal()

    @property
    def _proxied(self) -> ProxiedCluster:
        if not isinstance(self._brokers, ProxiedCluster):
            raise UsageError("this network cannot be broken: Cluster(breakable_network=True)")
        return self._brokers

    # --- all together -------------------------------------------------------------------

    def make_whole(self) -> None:
        """Undo all faults and wait until every replica of every partition is in sync.

        For what runs between two tests that share a cluster.

        Raises:
            BrokerDiedError: a broker ended; says why.
            UnavailableError: something was still missing after 60 s; says what.
        """
        self._resume_all()
        if self._is_network_breakable:
            self.heal()
        for node in self.nodes:
            if not self._brokers.is_running(NodeId(node)):
                self.start(node)
        self._ask(wait_until_ready, self._brokers, max(READY_TIMEOUT_S, WHOLE_TIMEOUT_S))
        self._ask(self._wait_until_ok)

    async def _wait_until_ok(self) -> None:
        found: object = "no broker answers"
        with anyio.move_on_after(WHOLE_TIMEOUT_S):
            while True:
                try:
                    async with connect(self.bootstrap) as client:
                        while (status := await ask_status(client)).state != "ok":
                            found = status.problems
                            await anyio.sleep(POLL_S)
                    return
                except LogdError as error:
                    found = error
                    await anyio.sleep(POLL_S)
        raise UnavailableError(f"the cluster was not whole after {WHOLE_TIMEOUT_S:.0f} s: {found}")
