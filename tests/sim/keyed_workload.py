"""Clients of a compacted topic: who overwrites and deletes keys, and who reads what is left.

A tombstone has no value, so each record is known by a name in its headers, unique in the run: to
the history it is what the value is elsewhere.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import trio

from logd.errors import LogdError
from logd.record.payload import RecordHeaders
from logd.types import TopicPartition
from logd_client import Client, Producer
from logd_client.delivery import Ticket
from logd_client.records import Record
from tests.sim.history import AppendId

if TYPE_CHECKING:
    from tests.sim.workload import Workload

KEYED_TOPIC: Final = "k"
"""Of one partition; keeps the last record of each key."""

KEYS: Final = (*(b"k%d" % number for number in range(12)), *(b"%d" % n + bytes(40) for n in (1, 2)))
"""The last ones are compared by a digest."""

PROGRESS_KEY: Final = b"progress"
NAME: Final = "name"
RETRY_S: Final = 0.2
REREAD_S: Final = 10.0
"""Who is not through by then begins again."""


def name_of(headers: RecordHeaders) -> bytes:
    """What the history knows a record of a compacted topic by."""
    return dict(headers)[NAME]


class KeyedWorkload:
    """Writes to one compacted topic, and reads it from its beginning, again and again."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._where = TopicPartition(KEYED_TOPIC, 0)

    async def write(self, name: str) -> None:
        """Overwrite and delete keys, in batches of one and of several, until the run is over."""
        workload = self._workload
        chance = random.Random(f"{workload.cluster.seed}:{name}")
        async with (
            workload.connected() as client,
            workload.open_producer(client, KEYED_TOPIC, chance) as producer,
        ):
            while not workload.is_over:
                count = chance.choice([1, 1, 4, 12])
                rows = [(chance.choice(KEYS), chance.random() < 0.25) for _ in range(count)]
                queued = [self._append(name, producer, key, deletes) for key, deletes in rows]
                for appended, ticket in queued:
                    if ticket is not None:
                        await self._settle(appended, ticket)
                await trio.sleep(chance.expovariate(1.0) * workload.pause_s())

    def _append(
        self, client: str, producer: Producer, key: bytes, deletes: bool
    ) -> tuple[AppendId, Ticket | None]:
        workload = self._workload
        name = workload.value(client)
        appended = workload.history.invoke(client, self._where, name, key=key, deletes=deletes)
        value = None if deletes else name
        try:
            ticket = producer.append_nowait(value, key=key, headers=[(NAME, name)], partition=0)
        except LogdError as error:
            workload.failed(appended, error)
            return appended, None
        return appended, ticket

    async def _settle(self, appended: AppendId, ticket: Ticket) -> None:
        try:
            ack = await ticket
        except LogdError as error:
            self._workload.failed(appended, error)
        else:
            self._workload.acknowledged(appended, 0, ack.partition, ack.offset, ack.durability)

    async def reread(self, name: str) -> None:
        """What somebody sees who begins now, at this replica or at that, until cancelled."""
        workload = self._workload
        chance = random.Random(f"{workload.cluster.seed}:{name}")
        async with workload.connected() as client:
            while True:
                node = chance.choice([None, *workload.cluster.nodes])
                try:
                    with trio.move_on_after(REREAD_S):
                        await self._read_all(client, name, node)
                except LogdError as error:
                    workload.cluster.trace.note(name, "reading_failed", error=repr(error))
                await trio.sleep(chance.random() * 2)

    async def _read_all(self, client: Client, name: str, node: int | None) -> None:
        held = await client.admin.offsets(KEYED_TOPIC, 0, from_replica=node)
        self._workload.history.seek(name, self._where, held.log_start)
        async with client.consumer(
            KEYED_TOPIC,
            start={0: held.log_start},
            stop={0: held.commit_offset},
            from_replica=node,
        ) as consumer:
            async for record in consumer:
                self.read(name, record)

    def read(self, reader: str, record: Record) -> None:
        """A reader was given a record."""
        workload, name = self._workload, name_of(record.headers)
        workload.history.read(reader, self._where, record.offset, name)
        append = workload.history.append_of(name)
        if append is not None and not _is_as_appended(record, append.key, append.deletes):
            workload.wrong.append(f"{reader} was given {name!r} as {record}")


def _is_as_appended(record: Record, key: bytes | None, deletes: bool) -> bool:
    value = None if deletes else name_of(record.headers)
    return record.key == key and record.value == value
