"""Carries the batches of one producer to whoever leads their partitions.

All decisions about order, retries and sequences are made by one ``Pipeline`` per partition.
This file moves bytes for them: one task takes batches and queues them on connections, one
short-lived task per partition in trouble finds its leader, one watch task notices deadlines and
leaders that fell silent.  Batching needs no timer: whatever was appended while there was no room,
or before the task had its turn, travels together.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import anyio
import anyio.lowlevel

from logd.errors import (
    LogdError,
    NotLeaderError,
    ProducerFencedError,
    RequestTimeoutError,
    UnavailableError,
    UnknownTopicError,
    UsageError,
)
from logd.limits import KIB
from logd.types import GroupId, NodeId
from logd.wire.messages import ProduceRequest, ProduceResponse
from logd_client.arguments import LOOP_HAS_ENDED
from logd_client.backoff import Backoff
from logd_client.budget import Share
from logd_client.connection import Answer, Connection, Lane
from logd_client.delivery import Delivery, Failures
from logd_client.pipeline import Pipeline, SealedBatch
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC, Routing

_STALL_S: Final = 1.0
"""A batch unanswered for this long makes the sender ask whether the leader has changed."""

_STALL_REPEAT_S: Final = 0.25
"""It asks again this often: the others may only just be finding out themselves."""

_SILENCE_GRACE_S: Final = 5.0
"""A broker answers within the request's timeout; silent for this much longer it is gone."""

_SEALED_BYTES_PER_TURN: Final = 256 * KIB
"""Sealing is computing: after this much the sender lets others run."""


class ProducerPartition:
    """One partition: what is on its way there, and by which connection."""

    __slots__ = ("backoff", "checked_at", "connection", "group", "is_asking", "is_attaching",
                 "is_stalled", "number", "pipeline", "share", "was_redirected")  # fmt: skip

    def __init__(
        self, number: int, group: GroupId, pipeline: Pipeline, share: Share, backoff: Backoff
    ) -> None:
        self.number = number
        self.group = group
        self.pipeline = pipeline
        self.share = share
        """Of the producer's buffer."""
        self.backoff = backoff
        self.connection: Connection | None = None
        self.is_attaching = False
        self.was_redirected = False
        """The last refusal named another leader: worth trying at once, but only once."""
        self.checked_at = 0.0
        self.is_asking = False
        """The others are being asked whether its leader, which is silent, still leads."""
        self.is_stalled = False
        """Its leader is silent: no place for what could go to another partition as well."""

    def flush(self) -> None:
        """Let what was given to the connection leave."""
        if self.connection is not None:
            self.connection.flush()


class Sender:
    """The batches of one producer, from its pipelines to the brokers and back."""

    def __init__(
        self, routing: Routing, topic: str, *, linger_s: float, is_idempotent: bool
    ) -> None:
        self.partitions: list[ProducerPartition] = []
        """By number."""
        self.is_open = False
        self.fatal: LogdError | None = None
        """Why nothing can be appended any more."""
        self.failures = Failures[Delivery]()
        self._routing = routing
        self._topic = topic
        self._linger_s = linger_s
        self._is_idempotent = is_idempotent
        self._clock = routing.environment.clock
        self._dirty: dict[int, ProducerPartition] = {}
        self._wake_sender = anyio.Event()
        self._wake_watch = anyio.Event()
        self._scope = anyio.CancelScope()

    # --- life ---------------------------------------------------------------------------

    def add_partition(self, group: GroupId, pipeline: Pipeline, share: Share) -> None:
        """The next partition."""
        backoff = Backoff(self._routing.environment.rng)
        number = len(self.partitions)
        self.partitions.append(ProducerPartition(number, group, pipeline, share, backoff))

    def open(self) -> None:
        """Send what the pipelines hold, until closed."""
        self.is_open = True
        self._routing.tasks.start_soon(self._run)

    def close(self, error: LogdError) -> None:
        """Give up all that is under way, because of ``error``."""
        self.is_open = False
        self._scope.cancel()
        for partition in self.partitions:
            partition.pipeline.fail_all(error)

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way of some partition's records just now, if anything does."""
        for partition in self.partitions:
            if partition.is_attaching and partition.pipeline.trouble is not None:
                return partition.pipeline.trouble
        return None

    # --- sending ------------------------------------------------------------------------

    def mark_dirty(self, partition: ProducerPartition) -> None:
        """``partition`` may have something to send."""
        self._dirty[partition.number] = partition
        self._wake_sender.set()
        self._wake_watch.set()

    def send_at_once(self, partition: ProducerPartition) -> None:
        """Send a record that its caller waits for, if nothing of its partition is under way:
        there is nothing to share a batch with."""
        if self._linger_s or partition.pipeline.is_busy or not self._send_one(partition):
            self.mark_dirty(partition)
        else:
            partition.flush()
            self._wake_watch.set()

    async def _run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._send)
                    tasks.start_soon(self._watch)
        finally:
            if self.is_open:  # It was not closed, and nothing is sent or expires any more.
                self.fatal = UsageError(LOOP_HAS_ENDED)
                self.close(self.fatal)

    async def _send(self) -> None:
        """Hand batches to connections, a batch per partition in turn."""
        sealed_bytes = 0
        while True:
            await self._wait_for_work()
            dirty, self._dirty = self._dirty, {}
            while dirty:
                for partition in list(dirty.values()):
                    sent = self._send_one(partition)
                    if not sent:
                        del dirty[partition.number]
                        partition.flush()
                    sealed_bytes += sent
                if sealed_bytes >= _SEALED_BYTES_PER_TURN:
                    sealed_bytes = 0
                    for partition in dirty.values():
                        partition.flush()
                    await anyio.lowlevel.checkpoint()

    async def _wait_for_work(self) -> None:
        if not self._linger_s:
            await self._wake_sender.wait()
            self._wake_sender = anyio.Event()
            return
        partitions = list(self.partitions)
        # Of what waits for its leader the time may be over: looking again does not help it.
        times = [
            None if partition.is_attaching else partition.pipeline.lingers_until()
            for partition in partitions
        ]
        wanted = min((time for time in times if time is not None), default=None)
        left_s = None if wanted is None else max(wanted - self._clock(), 0)
        with anyio.move_on_after(left_s):
            await self._wake_sender.wait()
        self._wake_sender = anyio.Event()
        now = self._clock()
        for partition, time in zip(partitions, times, strict=True):
            if time is not None and time <= now:
                self._dirty[partition.number] = partition

    def _send_one(self, partition: ProducerPartition) -> int:
        """Give its connection the next batch of ``partition``, if it may be sent; its size in
        bytes, or 0."""
        pipeline = partition.pipeline
        if partition.is_attaching or pipeline.is_idle:
            return 0
        connection = partition.connection
        if pipeline.needs_restart or connection is None or not connection.is_open:
            # What is in flight on a lost connection has failed by now: nothing is outstanding.
            self._attach_soon(partition)
            return 0
        now = self._clock()
        batch = pipeline.take(now)
        if batch is None:
            return 0
        on_done = partial(self._on_answer, partition, connection, batch, batch.session)
        left_s = batch.deadline - now
        if left_s > self._routing.request_timeout_s:
            left_s = self._routing.request_timeout_s
        request = ProduceRequest(
            group=partition.group,
            timeout_ms=max(1, int(left_s * 1000)),
            expected_offset=batch.expected_offset,
        )
        try:
            connection.enqueue(request, on_done, batch.data)
        except LogdError as error:
            pipeline.refuse(batch, batch.session, error)
            self.mark_dirty(partition)
        return len(batch.data)

    def _on_answer(
        self,
        partition: ProducerPartition,
        connection: Connection,
        batch: SealedBatch,
        session: int,
        answer: Answer | LogdError,
    ) -> None:
        if isinstance(answer, LogdError):
            self._on_refused(partition, connection, batch, session, answer)
        else:
            assert isinstance(answer.message, ProduceResponse)
            partition.backoff.reset()
            partition.was_redirected = partition.is_stalled = False
            partition.pipeline.acknowledge(batch, session, answer.message)
        if not partition.pipeline.is_idle:
            self.mark_dirty(partition)

    def _on_refused(
        self,
        partition: ProducerPartition,
        connection: Connection,
        batch: SealedBatch,
        session: int,
        error: LogdError,
    ) -> None:
        # Late bytes of an earlier epoch are refused like those of a producer that was replaced.
        if isinstance(error, ProducerFencedError) and batch.is_awaited_in(session):
            self._end_all(error)
            return
        if isinstance(error, UnknownTopicError):
            # The broker may only be behind: look_again asks one that is not.
            failures = max(partition.backoff.failures, FAILURES_BEFORE_DOUBTING_THE_TOPIC)
            partition.backoff.failures = failures
            error = UnavailableError(str(error))
        if isinstance(error, NotLeaderError) and connection is partition.connection:
            hint = None if error.leader is None else NodeId(error.leader)
            if hint != connection.node:
                self._routing.view.note_leader(partition.group, hint)
                partition.was_redirected = hint is not None
        partition.pipeline.refuse(batch, session, error)

    def _end_all(self, error: LogdError) -> None:
        """This producer can never append again."""
        self.fatal = error
        for partition in self.partitions:
            partition.pipeline.fail_all(error)

    # --- finding the leader -------------------------------------------------------------

    def _attach_soon(self, partition: ProducerPartition) -> None:
        partition.is_attaching = True
        self._routing.tasks.start_soon(self._attach, partition)

    async def _attach(self, partition: ProducerPartition) -> None:
        """Find the partition's leader, connect to it, and start the pipeline (again)."""
        pipeline = partition.pipeline
        # A pipeline that has stopped gets no records without a key: were it left so because all
        # that it had has expired, it would never get any again.
        while self.is_open and not (pipeline.is_idle and pipeline.is_flowing):
            try:
                partition.connection = await self._find_leader(partition)
            except UnknownTopicError as error:
                pipeline.fail_all(error)
                break
            except LogdError as error:
                pipeline.note_trouble(error)
            else:
                partition.is_stalled = False
                pipeline.restart()
                break
        partition.is_attaching = False
        self.mark_dirty(partition)

    async def _find_leader(self, partition: ProducerPartition) -> Connection:
        routing, backoff = self._routing, partition.backoff
        failures = backoff.failures
        if partition.was_redirected and failures <= 1:
            backoff.failures += 1
        elif failures or partition.connection is not None:
            await anyio.sleep(backoff.next_delay_s())
            suspect = None if partition.connection is None else partition.connection.node
            await routing.look_again(self._topic, partition.group, failures, suspect)
        else:
            backoff.failures += 1
        return await routing.leader_connection(partition.group, Lane.PRODUCE, failures)

    # --- watching -----------------------------------------------------------------------

    async def _watch(self) -> None:
        """Expire deliveries, and notice leaders that fell silent."""
        while True:
            await self._wake_watch.wait()
            now = self._clock()
            due: list[float] = []
            for partition in self.partitions:
                self._expire(partition, now)
                stalls_at = self._check_for_stall(partition, now)
                deadline = partition.pipeline.next_deadline()
                if deadline is not None:
                    due += (deadline, stalls_at)
            if not due:
                self._wake_watch = anyio.Event()
                continue
            await anyio.sleep(max(min(due) - now, 0.001))

    def _expire(self, partition: ProducerPartition, now: float) -> None:
        deadline = partition.pipeline.next_deadline()
        if deadline is None or now < deadline:
            return
        partition.pipeline.expire(now)
        # Of what nobody waits for an answer may never be heard: the next record finds out.
        partition.is_stalled = partition.is_stalled and partition.pipeline.is_busy
        self.mark_dirty(partition)

    def _check_for_stall(self, partition: ProducerPartition, now: float) -> float:
        """Ask who leads if it is time to; returns when that is, at the earliest."""
        sent_at = partition.pipeline.oldest_sent_at()
        if sent_at is None or partition.connection is None:
            return now + _STALL_S
        stalls_at = max(sent_at + _STALL_S, partition.checked_at + _STALL_REPEAT_S)
        if now < stalls_at:
            return stalls_at
        partition.checked_at = now
        if not partition.is_stalled:
            partition.is_stalled = True
            partition.pipeline.close_growing()
        if now >= sent_at + self._routing.request_timeout_s + _SILENCE_GRACE_S:
            partition.connection.fail_if_silent_since(
                sent_at, RequestTimeoutError(f"no answer for {now - sent_at:.0f} s")
            )
        elif self._is_idempotent and not partition.is_asking:
            partition.is_asking = True
            self._routing.tasks.start_soon(self._leave_if_deposed, partition, partition.connection)
        return now + _STALL_REPEAT_S

    async def _leave_if_deposed(self, partition: ProducerPartition, connection: Connection) -> None:
        """Ask the others who leads; go there if it is no longer the broker that is silent."""
        try:
            await self._routing.refresh(connection.node)
        except LogdError:
            return  # Nobody else can be reached either: go on waiting.
        finally:
            partition.is_asking = False
        leader = self._routing.view.leader(partition.group)
        if leader in (None, connection.node) or partition.connection is not connection:
            return
        if partition.pipeline.oldest_sent_at() is None or partition.is_attaching:
            return
        partition.was_redirected = True
        partition.pipeline.abandon(
            RequestTimeoutError(f"{connection.name} is silent and node {leader} leads now")
        )
        self.mark_dirty(partition)
