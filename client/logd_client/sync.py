"""The client for programs that block: the same verbs, without ``await``.

    with connect("127.0.0.1:7171") as client, client.producer("orders") as producer:
        ack = producer.append(b"value")

An event loop runs in a thread of its own for as long as the client is open, and every call is
handed to it, so that batching, retries and subscriptions go on between calls.  Objects may be
used from several threads.  Arguments, results and errors are those of the asynchronous
client; see there.

Where a ``with`` block does not fit, as in a notebook, ``open()`` and ``close()`` do the same:

    client = connect("127.0.0.1:7171").open()
    producer = client.producer("orders").open()

Closing the client closes its producers, which wait for their acknowledgements.  A program that
ends without closing its client ends all the same: what was not acknowledged by then is given up.

A process that is forked off has no use for a client that was opened before: whatever is asked of
it there raises ``UsageError``, and closing it there leaves it to the process that opened it.  Open
one in each, as in the ``post_fork`` hook of a server that forks its workers.

Whoever is interrupted while waiting, by Ctrl-C or a signal whose handler raises, loses no record
and no event by it: iterating goes on with the next.  A lock that comes too late is given back.
But a signal's handler must not use the client itself: it may have interrupted a call to it that
holds a lock of Python's own, and would wait for ever.  It may raise, or set something.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal

from logd.errors import LogdError, UsageError
from logd.wire.coordination import DEFAULT_NAMESPACE
from logd.wire.messages import (
    BrokerInfo,
    DescribeBrokerResponse,
    DescribePartitionResponse,
    DescribeRebalanceResponse,
    MetadataResponse,
    OffsetsResponse,
    PlannedMoveInfo,
    SetRebalancingResponse,
    TopicInfo,
)
from logd_client import client as asynchronous
from logd_client import sync_coordination as blocking
from logd_client.admin import Admin as AsyncAdmin
from logd_client.arguments import require_one_of
from logd_client.consumer import Consumer as AsyncConsumer
from logd_client.portal import Awaited, Entered, LoopThread, Portal
from logd_client.records import Batch, Record
from logd_client.sync_producer import Producer as Producer
from logd_client.sync_producer import Ticket as Ticket


def connect(
    bootstrap: str = asynchronous.BOOTSTRAP_DEFAULT,
    *,
    backend: str = "asyncio",
    **options: Any,
) -> Client:
    """A blocking client; use as ``with connect(...) as client``.

    Args:
        bootstrap: ``HOST:PORT[,HOST:PORT...]``.
        backend: which event loop runs in the thread, "asyncio" or "trio".
        options: those of ``logd_client.connect``.

    Raises:
        UsageError: the bootstrap list cannot be read, or an option is out of range.
    """
    require_one_of("backend", backend, ("asyncio", "trio"))
    return Client(asynchronous.connect(bootstrap, **options), backend)


class Client:
    """See ``logd_client.Client``."""

    def __init__(self, client: asynchronous.Client, backend: str) -> None:
        self._client = client
        self._backend = backend
        self._stack = ExitStack()
        self._portal: Portal | None = None

    def open(self) -> Client:
        """Meet the cluster.

        Raises:
            ConnectionFailedError: no broker could be reached; names each address and reason.
        """
        if self._portal is not None:
            raise UsageError("a client is opened once; make another one")
        with ExitStack() as stack:
            thread = stack.enter_context(LoopThread(self._backend))
            stack.enter_context(thread.wrap_async_context_manager(self._client))
            portal = Portal(thread)
            stack.push(portal.close)
            self._stack = stack.pop_all()
        self._portal = portal
        # The interpreter cannot end while the loop's thread waits to be told to.
        atexit.register(self._give_up)
        return self

    def close(self) -> None:
        """Close whatever was made with this client, and its connections; producers wait for their
        acknowledgements."""
        self.__exit__(None, None, None)

    def _give_up(self) -> None:
        """The program ends, and waits for nothing."""
        if self._portal is not None:
            self._portal.entered.clear()
        self.close()

    def __enter__(self) -> Client:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        atexit.unregister(self._give_up)
        if self._portal is not None and self._portal.is_elsewhere:
            return None
        return self._stack.__exit__(kind, error, traceback)

    @property
    def admin(self) -> Admin:
        """Topics, brokers and partitions."""
        return Admin(self._open_portal(), self._client.admin)

    @property
    def cluster_id(self) -> str:
        return self._client.cluster_id

    def producer(self, topic: str, **options: Any) -> Producer:
        """Options are those of ``logd_client.Client.producer``."""
        portal = self._open_portal()
        return Producer(portal, portal.call(partial(self._client.producer, topic, **options)))

    def consumer(self, topic: str, **options: Any) -> Consumer:
        """Options are those of ``logd_client.Client.consumer``."""
        portal = self._open_portal()
        return Consumer(portal, portal.call(partial(self._client.consumer, topic, **options)))

    # --- coordination: arguments are those of ``logd_client.Client`` -----------------------

    def lock(self, name: str, **options: Any) -> blocking.Lock:
        """``with client.lock("orders/compactor") as lease``."""
        portal = self._open_portal()
        return blocking.Lock(portal, portal.call(partial(self._client.lock, name, **options)))

    def semaphore(self, name: str, capacity: int, **options: Any) -> blocking.Lock:
        portal = self._open_portal()
        made = portal.call(partial(self._client.semaphore, name, capacity, **options))
        return blocking.Lock(portal, made)

    def election(self, name: str, **options: Any) -> blocking.Election:
        portal = self._open_portal()
        return blocking.Election(
            portal, portal.call(partial(self._client.election, name, **options))
        )

    def members(self, group: str, **options: Any) -> blocking.Group:
        portal = self._open_portal()
        return blocking.Group(portal, portal.call(partial(self._client.members, group, **options)))

    def assignments(self, group: str, **options: Any) -> blocking.Assignments:
        portal = self._open_portal()
        made = portal.call(partial(self._client.assignments, group, **options))
        return blocking.Assignments(portal, made)

    def queue(self, name: str) -> blocking.Queue:
        portal = self._open_portal()
        return blocking.Queue(portal, portal.call(self._client.queue, name))

    def kv(self, namespace: str = DEFAULT_NAMESPACE) -> blocking.KeyValues:
        portal = self._open_portal()
        return blocking.KeyValues(portal, portal.call(self._client.kv, namespace))

    def barrier(self, name: str) -> blocking.Barrier:
        portal = self._open_portal()
        return blocking.Barrier(portal, portal.call(self._client.barrier, name))

    def double_barrier(self, name: str, count: int, member: str) -> blocking.DoubleBarrier:
        portal = self._open_portal()
        made = portal.call(self._client.double_barrier, name, count, member)
        return blocking.DoubleBarrier(portal, made)

    def latch(self, name: str, count: int) -> blocking.Latch:
        portal = self._open_portal()
        return blocking.Latch(portal, portal.call(self._client.latch, name, count))

    def counter(self, name: str) -> blocking.Counter:
        portal = self._open_portal()
        return blocking.Counter(portal, portal.call(self._client.counter, name))

    def sequence(self, name: str, **options: Any) -> blocking.NumberSequence:
        portal = self._open_portal()
        made = portal.call(partial(self._client.sequence, name, **options))
        return blocking.NumberSequence(portal, made)

    def _open_portal(self) -> Portal:
        if self._portal is None:
            raise UsageError("the client is not open: use `with connect(...)`")
        return self._portal


class Admin:
    """See ``logd_client.Admin``."""

    def __init__(self, portal: Portal, admin: AsyncAdmin) -> None:
        self._portal = portal
        self._admin = admin

    def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replicas: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        return self._portal.call(
            partial(
                self._admin.create_topic,
                name,
                partitions=partitions,
                replicas=replicas,
                config=config,
            )
        )

    def delete_topic(self, name: str) -> None:
        self._portal.call(self._admin.delete_topic, name)

    def alter_topic(
        self,
        name: str,
        config: Mapping[str, str | None] | None = None,
        *,
        partitions: int | None = None,
    ) -> TopicInfo:
        return self._portal.call(
            partial(self._admin.alter_topic, name, config, partitions=partitions)
        )

    def alter_broker(self, node: int, action: Literal["drain", "resume", "remove"]) -> BrokerInfo:
        return self._portal.call(self._admin.alter_broker, node, action)

    def describe_rebalance(self) -> DescribeRebalanceResponse:
        return self._portal.call(self._admin.describe_rebalance)

    def start_plan(
        self, purpose: str, layout_version: int, moves: Sequence[PlannedMoveInfo]
    ) -> int:
        return self._portal.call(self._admin.start_plan, purpose, layout_version, moves)

    def cancel_plan(self, plan_id: int) -> str:
        return self._portal.call(self._admin.cancel_plan, plan_id)

    def cancel_move(self, plan_id: int, group: int) -> str:
        return self._portal.call(self._admin.cancel_move, plan_id, group)

    def set_rebalancing(
        self,
        *,
        throttle_bytes_per_s: int | None = None,
        concurrency: int | None = None,
        autonomous: bool | None = None,
    ) -> SetRebalancingResponse:
        return self._portal.call(
            partial(
                self._admin.set_rebalancing,
                throttle_bytes_per_s=throttle_bytes_per_s,
                concurrency=concurrency,
                autonomous=autonomous,
            )
        )

    def raise_feature_level(self, level: int | None = None) -> int:
        return self._portal.call(self._admin.raise_feature_level, level)

    def list_topics(self) -> list[TopicInfo]:
        return self._portal.call(self._admin.list_topics)

    def describe_topic(self, name: str) -> TopicInfo:
        return self._portal.call(self._admin.describe_topic, name)

    def describe_cluster(self) -> MetadataResponse:
        return self._portal.call(self._admin.describe_cluster)

    def describe_broker(self, node: int) -> DescribeBrokerResponse:
        return self._portal.call(self._admin.describe_broker, node)

    def describe_partition(self, topic: str, partition: int) -> DescribePartitionResponse:
        return self._portal.call(self._admin.describe_partition, topic, partition)

    def transfer_leader(self, topic: str, partition: int, target: int | None = None) -> int:
        return self._portal.call(self._admin.transfer_leader, topic, partition, target)

    def trim_partition(self, topic: str, partition: int, before: int | datetime) -> int:
        return self._portal.call(self._admin.trim_partition, topic, partition, before)

    def offsets(
        self,
        topic: str,
        partition: int,
        *,
        at: datetime | None = None,
        from_replica: int | None = None,
    ) -> OffsetsResponse:
        return self._portal.call(
            partial(self._admin.offsets, topic, partition, at=at, from_replica=from_replica)
        )


class Consumer(Entered):
    """See ``logd_client.Consumer``."""

    def __init__(self, portal: Portal, consumer: AsyncConsumer) -> None:
        super().__init__(portal, consumer)
        self._consumer = consumer
        self._arrival = Awaited(portal, consumer.wait_for_batch)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over records.  Only whole batches cross between the threads.

        Interrupted, by Ctrl-C or a signal that raises, it loses no record: the next iteration
        begins with the one that was not given out, and so does the next ``next``.
        """
        return iter(self.next_record, None)

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches, as columns.  Interrupted, it loses none."""
        return iter(self.next_batch, None)

    def next_record(self) -> Record | None:
        """Wait for the next record; None when the consumer is closed."""
        while (record := self._consumer.take_buffered()) is None:
            if not self._wait_for_batch():
                return None
        return record

    def next_batch(self) -> Batch | None:
        """Wait for the next batch; None when the consumer is closed."""
        while (batch := self._consumer.take_batch()) is None:
            if not self._wait_for_batch():
                return None
        return batch

    def _wait_for_batch(self) -> bool:
        """False once the client is closed, which has closed this too."""
        try:
            return self._arrival.take()
        except UsageError:
            if self._portal.is_closed:
                return False
            raise

    @property
    def trouble(self) -> LogdError | None:
        return self._portal.call(lambda: self._consumer.trouble)

    def position(self, partition: int) -> int | None:
        return self._portal.call(self._consumer.position, partition)

    @property
    def lag(self) -> int | None:
        return self._portal.call(lambda: self._consumer.lag)

    @property
    def malformed_count(self) -> int:
        return self._portal.call(lambda: self._consumer.malformed_count)

    def close(self) -> None:
        """End the subscriptions; iteration in progress, in another thread, stops."""
        if self._portal.leads_somewhere:
            self._portal.call(self._consumer.aclose)
