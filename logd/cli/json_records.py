"""Records as lines of JSON, read back: what ``consume`` and ``segment dump --records`` print.

A backup, or what is left of a lost majority, is put back by that.  Key, value, headers and
timestamp are what a record is.  Where it lay is not: it gets an offset of its own, in the
partition that its key or the caller chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import msgspec

from logd.errors import LogdError, UsageError
from logd.limits import RECORD_BYTES_MAX
from logd_client import AckRange

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from logd_client import Producer, Ticket
    from logd_client.coordination.fences import Fence

SHOWN_BYTES: Final = 80
"""Of a line that is no record."""

CALLS_UNDER_WAY_MAX: Final = 4
"""Each of as many records as one read brought."""


class _Header(msgspec.Struct, frozen=True):
    name: str
    value: str | msgspec.UnsetType = msgspec.UNSET
    value_base64: bytes | msgspec.UnsetType = msgspec.UNSET


class _Line(msgspec.Struct, frozen=True):
    value: str | msgspec.UnsetType | None = msgspec.UNSET
    value_base64: bytes | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType | None = msgspec.UNSET
    key_base64: bytes | msgspec.UnsetType = msgspec.UNSET
    headers: list[_Header] = []
    timestamp_ms: int | None = None


_DECODER: Final = msgspec.json.Decoder(_Line)


class NoRecordError(UsageError):
    """One of some lines is no record; says why."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at
        """Which of them, from 0."""


class Record(NamedTuple):
    """What is appended of one line."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp_ms: int | None
    """None: of now."""


def parse_record(line: bytes) -> Record:
    """The record that a line of JSON describes; fields of where it lay are passed over.

    Raises:
        UsageError: says what is wrong, and shows the beginning of the line.
    """
    if not line.strip():
        raise UsageError("no record: it is empty")
    try:
        found = _DECODER.decode(line)
        headers = []
        for header in found.headers:
            content = _bytes_of("a header's value", header.value, header.value_base64)
            assert content is not None  # Only records have null values.
            headers.append((header.name, content))
        is_keyless = found.key is found.key_base64 is msgspec.UNSET
        return Record(
            key=None if is_keyless else _bytes_of("key", found.key, found.key_base64),
            value=_bytes_of("value", found.value, found.value_base64),
            headers=headers,
            timestamp_ms=found.timestamp_ms,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UsageError) as error:
        begin = line[:SHOWN_BYTES].decode(errors="backslashreplace")
        more = "…" if len(line) > SHOWN_BYTES else ""
        raise UsageError(f"no record: {error}: {begin}{more}") from error


def _bytes_of(
    name: str, text: str | msgspec.UnsetType | None, data: bytes | msgspec.UnsetType
) -> bytes | None:
    if isinstance(text, msgspec.UnsetType):
        if isinstance(data, msgspec.UnsetType):
            raise UsageError(f"{name} is missing, as text and in base64")
        return data
    if not isinstance(data, msgspec.UnsetType):
        raise UsageError(f"{name} is there twice, as text and in base64")
    return None if text is None else text.encode()


class RecordLane:
    """Appends of one producer, each record with its own key, headers and timestamp.

    Ordered and bounded.  An error of an append surfaces in the task group.
    """

    line_bytes_max: Final = 8 * RECORD_BYTES_MAX
    """JSON writes up to six characters for a byte of text."""
    line_limit: Final = "the limit"

    def __init__(
        self,
        producer: Producer,
        tasks: TaskGroup,
        on_appended: Callable[[Sequence[AckRange]], None],
        *,
        partition: int | None,
        fence: Fence | None,
    ) -> None:
        self._producer = producer
        self._on_appended = on_appended
        self._partition = partition
        self._fence = fence
        self._tasks = tasks
        self._slots = anyio.Semaphore(CALLS_UNDER_WAY_MAX)

    async def append(self, lines: Sequence[bytes]) -> None:
        """Queue the records of ``lines``; waits while enough is under way.

        Raises:
            NoRecordError: a line is none; those before it are acknowledged.
        """
        await self._slots.acquire()
        tickets: list[Ticket] = []
        failure: LogdError | None = None
        try:
            for line in lines:
                record = self._parsed(line, len(tickets))
                ticket = await self._producer.enqueue(
                    record.value,
                    key=record.key,
                    headers=record.headers,
                    timestamp_ms=record.timestamp_ms,
                    partition=self._partition,
                    fence=self._fence,
                )
                tickets.append(ticket)
        except LogdError as error:
            failure = error
        self._tasks.start_soon(self._hear, tickets)
        if failure is not None:
            await self.finish()
            raise failure

    @staticmethod
    def _parsed(line: bytes, at: int) -> Record:
        try:
            return parse_record(line)
        except UsageError as error:
            raise NoRecordError(str(error), at) from error

    async def finish(self) -> None:
        """Nothing more comes; wait until all is acknowledged."""
        for _ in range(CALLS_UNDER_WAY_MAX):
            await self._slots.acquire()

    async def _hear(self, tickets: Sequence[Ticket]) -> None:
        acks: list[AckRange] = []
        try:
            for ticket in tickets:
                topic, partition, offset, append_time_ms, durability = await ticket
                acks.append(AckRange(topic, partition, offset, 1, append_time_ms, durability))
        finally:
            self._on_appended(acks)
        self._slots.release()
