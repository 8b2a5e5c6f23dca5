"""The client for programs that block: the same verbs, without ``await``.

    with connect("127.0.0.1:7171") as client, client.producer("orders") as producer:
        ack = producer.append(b"value")

An event loop runs in a thread of its own for as long as the client is open, and every call is
handed to it, so that batching, retries and subscriptions go on between calls.  Objects may be
used from several threads.  Arguments, results and errors are those of the asynchronous
client; see there.

Waiting for what may come at any time (``next_record``, ``next_batch``, a watch's ``next``) ends
after ``timeout_s`` with Python's own ``TimeoutError``: nothing has failed, and the next call goes
on waiting.  Waiting for what was asked for, a lock or a leadership, ends with
``AcquireTimeoutError``, as in the asynchronous client, and the place in line is given back.

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
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Literal

from logd.errors import LogdError, UsageError
from logd.wire.coordination import DEFAULT_NAMESPACE, Holders, Kind, LockMode, SessionInfo
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
from logd_client.admin import Admin as AsyncAdmin
from logd_client.arguments import require_one_of
from logd_client.client import (
    CLIENT_ID_DEFAULT,
    CONNECT_TIMEOUT_MS_DEFAULT,
    REQUEST_TIMEOUT_MS_DEFAULT,
)
from logd_client.consumer import Consumer as AsyncConsumer
from logd_client.consumer_options import (
    CREDIT_BYTES_DEFAULT,
    OnMalformed,
    OnTrimmed,
    Start,
    Starts,
    Stop,
)
from logd_client.coordination.leases import LeaseKind
from logd_client.coordination.sessions import SESSION_TTL_MS_DEFAULT
from logd_client.coordination.surface import SEQUENCE_BLOCK_DEFAULT
from logd_client.environment import wall_clock_ms
from logd_client.portal import Awaited, Entered, LoopThread, Portal
from logd_client.producer import (
    BATCH_BYTES_DEFAULT,
    BATCHES_IN_FLIGHT_DEFAULT,
    BUFFER_BYTES_DEFAULT,
    DELIVERY_TIMEOUT_MS_DEFAULT,
    Compression,
)
from logd_client.records import Batch, Record
from logd_client.sync_coordination import (
    Assignments,
    Barrier,
    Claim,
    Counter,
    DoubleBarrier,
    Election,
    Group,
    KeyValues,
    Latch,
    Leadership,
    Lease,
    Lock,
    Membership,
    NumberSequence,
    Queue,
    Watch,
)
from logd_client.sync_producer import Producer, Ticket
from logd_client.transport import Transport

__all__ = [
    "Admin",
    "Assignments",
    "Barrier",
    "Claim",
    "Client",
    "Consumer",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Group",
    "KeyValues",
    "Latch",
    "Leadership",
    "Lease",
    "Lock",
    "Membership",
    "NumberSequence",
    "Producer",
    "Queue",
    "Ticket",
    "Watch",
    "connect",
]


def connect(
    bootstrap: str = asynchronous.BOOTSTRAP_DEFAULT,
    *,
    backend: str = "asyncio",
    client_id: str = CLIENT_ID_DEFAULT,
    connect_timeout_ms: int = CONNECT_TIMEOUT_MS_DEFAULT,
    request_timeout_ms: int = REQUEST_TIMEOUT_MS_DEFAULT,
    session_ttl_ms: int = SESSION_TTL_MS_DEFAULT,
    transport: Transport | None = None,
    clock: Callable[[], float] | None = None,
    wall_clock_ms: Callable[[], int] = wall_clock_ms,
    rng: random.Random | None = None,
) -> Client:
    """A blocking client; use as ``with connect(...) as client``.

    Args:
        bootstrap: ``HOST:PORT[,HOST:PORT...]``.
        backend: which event loop runs in the thread, "asyncio" or "trio".

    The others are those of ``logd_client.connect``.

    Raises:
        UsageError: the bootstrap list cannot be read, or an option is out of range.
    """
    require_one_of("backend", backend, ("asyncio", "trio"))
    client = asynchronous.connect(
        bootstrap,
        client_id=client_id,
        connect_timeout_ms=connect_timeout_ms,
        request_timeout_ms=request_timeout_ms,
        session_ttl_ms=session_ttl_ms,
        transport=transport,
        clock=clock,
        wall_clock_ms=wall_clock_ms,
        rng=rng,
    )
    return Client(client, backend)


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

    def producer(
        self,
        topic: str,
        *,
        linger_ms: float = 0,
        batch_bytes: int = BATCH_BYTES_DEFAULT,
        compression: Compression = "none",
        buffer_bytes: int = BUFFER_BYTES_DEFAULT,
        delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS_DEFAULT,
        batches_in_flight: int = BATCHES_IN_FLIGHT_DEFAULT,
        idempotent: bool = True,
    ) -> Producer:
        """See ``logd_client.Client.producer``."""
        portal = self._open_portal()
        made = portal.call(
            partial(
                self._client.producer,
                topic,
                linger_ms=linger_ms,
                batch_bytes=batch_bytes,
                compression=compression,
                buffer_bytes=buffer_bytes,
                delivery_timeout_ms=delivery_timeout_ms,
                batches_in_flight=batches_in_flight,
                idempotent=idempotent,
            )
        )
        return Producer(portal, made)

    def consumer(
        self,
        topic: str,
        *,
        start: Starts = "latest",
        start_of_others: Start | None = None,
        stop: Stop | None = None,
        partitions: Sequence[int] | None = None,
        from_replica: int | None = None,
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        on_malformed: OnMalformed = "raise",
        on_trimmed: OnTrimmed = "raise",
    ) -> Consumer:
        """See ``logd_client.Client.consumer``."""
        portal = self._open_portal()
        made = portal.call(
            partial(
                self._client.consumer,
                topic,
                start=start,
                start_of_others=start_of_others,
                stop=stop,
                partitions=partitions,
                from_replica=from_replica,
                credit_bytes=credit_bytes,
                on_malformed=on_malformed,
                on_trimmed=on_trimmed,
            )
        )
        return Consumer(portal, made)

    # --- coordination: arguments are those of ``logd_client.Client`` -----------------------

    def lock(
        self,
        name: str,
        *,
        mode: LockMode = "exclusive",
        protects: Sequence[str] = (),
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        data: bytes | str = b"",
    ) -> Lock:
        """``with client.lock("orders/compactor") as lease``."""
        portal = self._open_portal()
        made = portal.call(
            partial(
                self._client.lock,
                name,
                mode=mode,
                protects=protects,
                ttl_s=ttl_s,
                timeout_s=timeout_s,
                data=data,
            )
        )
        return Lock(portal, made)

    def semaphore(
        self,
        name: str,
        capacity: int,
        *,
        permits: int = 1,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        data: bytes | str = b"",
    ) -> Lock:
        portal = self._open_portal()
        made = portal.call(
            partial(
                self._client.semaphore,
                name,
                capacity,
                permits=permits,
                ttl_s=ttl_s,
                timeout_s=timeout_s,
                data=data,
            )
        )
        return Lock(portal, made)

    def election(
        self, name: str, *, protects: Sequence[str] = (), ttl_s: float | None = None
    ) -> Election:
        portal = self._open_portal()
        make = partial(self._client.election, name, protects=protects, ttl_s=ttl_s)
        return Election(portal, portal.call(make))

    def members(self, group: str, *, ttl_s: float | None = None) -> Group:
        portal = self._open_portal()
        return Group(portal, portal.call(partial(self._client.members, group, ttl_s=ttl_s)))

    def assignments(self, group: str, *, ttl_s: float | None = None) -> Assignments:
        portal = self._open_portal()
        made = portal.call(partial(self._client.assignments, group, ttl_s=ttl_s))
        return Assignments(portal, made)

    def queue(self, name: str) -> Queue:
        portal = self._open_portal()
        return Queue(portal, portal.call(self._client.queue, name))

    def kv(self, namespace: str = DEFAULT_NAMESPACE) -> KeyValues:
        portal = self._open_portal()
        return KeyValues(portal, portal.call(self._client.kv, namespace))

    def barrier(self, name: str) -> Barrier:
        portal = self._open_portal()
        return Barrier(portal, portal.call(self._client.barrier, name))

    def double_barrier(self, name: str, count: int, member: str) -> DoubleBarrier:
        portal = self._open_portal()
        made = portal.call(self._client.double_barrier, name, count, member)
        return DoubleBarrier(portal, made)

    def latch(self, name: str, count: int) -> Latch:
        portal = self._open_portal()
        return Latch(portal, portal.call(self._client.latch, name, count))

    def counter(self, name: str) -> Counter:
        portal = self._open_portal()
        return Counter(portal, portal.call(self._client.counter, name))

    def sequence(self, name: str, *, block: int = SEQUENCE_BLOCK_DEFAULT) -> NumberSequence:
        portal = self._open_portal()
        made = portal.call(partial(self._client.sequence, name, block=block))
        return NumberSequence(portal, made)

    def leave_sessions_open(self) -> None:
        self._open_portal().call(self._client.leave_sessions_open)

    def list_names(self, kind: Kind, namespace: str = DEFAULT_NAMESPACE) -> list[str]:
        return self._open_portal().call(self._client.list_names, kind, namespace)

    def read_holders(self, kind: LeaseKind, name: str) -> Holders:
        return self._open_portal().call(self._client.read_holders, kind, name)

    def list_sessions(self, namespace: str = DEFAULT_NAMESPACE) -> list[SessionInfo]:
        return self._open_portal().call(self._client.list_sessions, namespace)

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
        exist_ok: bool = False,
    ) -> TopicInfo:
        return self._portal.call(
            partial(
                self._admin.create_topic,
                name,
                partitions=partitions,
                replicas=replicas,
                config=config,
                exist_ok=exist_ok,
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

    def cancel_plan(self, plan_id: int, *, gives_way: bool = False) -> str:
        return self._portal.call(partial(self._admin.cancel_plan, plan_id, gives_way=gives_way))

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

    def describe_broker(
        self, node: int, *, timeout_s: float | None = None
    ) -> DescribeBrokerResponse:
        return self._portal.call(partial(self._admin.describe_broker, node, timeout_s=timeout_s))

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
        self._at_hand = consumer.at_hand
        self._arrival = Awaited(portal, consumer.wait_for_batch, at_end=False)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over records.  Only whole batches cross between the threads.

        Interrupted, by Ctrl-C or a signal that raises, it loses no record: the next iteration
        begins with the one that was not given out, and so does the next ``next``.
        """
        return iter(self.next_record, None)

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches, as columns.  Interrupted, it loses none."""
        return iter(self.next_batch, None)

    def next_record(self, timeout_s: float | None = None) -> Record | None:
        """Wait for the next record; None when the consumer is closed, or at its ``stop``.

        Raises:
            TimeoutError: none came within ``timeout_s``.  The next call goes on waiting.
        """
        while (record := self._at_hand.take_record()) is None:
            if not self._arrival.take(timeout_s):
                return None
        return record

    def next_batch(self, timeout_s: float | None = None) -> Batch | None:
        """Wait for the next batch.  Returns and raises as ``next_record``."""
        while (batch := self._at_hand.take_rest()) is None:
            if not self._arrival.take(timeout_s):
                return None
        return batch

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
