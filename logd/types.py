"""The nouns, as types.

Most are ``NewType``: free at run time, and a term passed where an offset belongs is found
by mypy instead of by a reader of somebody else's records.  Every range is half-open
``[start, end)``; a name beginning ``last_`` is inclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NewType

NodeId = NewType("NodeId", int)
"""A broker, at least 1, unique for the life of the cluster; never reused after removal."""

GroupId = NewType("GroupId", int)
"""One Raft group: 0 is the metadata log, others are partitions.  Never reused."""

TopicId = NewType("TopicId", int)
"""A topic, by number.  A topic deleted and created again is another topic."""

Offset = NewType("Offset", int)
"""Position of one record in a log, from 0.  Offsets increase; they are not dense to a
consumer, because control batches and compaction take some."""

Term = NewType("Term", int)
"""Raft term.  0 means "before the first election"; no batch carries term 0."""

FilePosition = NewType("FilePosition", int)
"""Bytes from the start of one segment file."""

DirectoryId = NewType("DirectoryId", str)
"""Names one data directory, drawn when it is first used.  A wiped disk is a new directory."""

ProducerId = NewType("ProducerId", int)
"""An idempotent producer, allocated by the metadata log; 0 means "not idempotent"."""

Buffer = bytes | bytearray | memoryview
"""Bytes that are looked at, not kept: whoever keeps them copies them."""

METADATA_GROUP: Final = GroupId(0)
NO_PRODUCER: Final = ProducerId(0)

NO_OFFSET: Final = Offset(-1)
"""Sorts before every real offset."""

NODE_ID_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """Names one log.  Ordered, so that iteration over partitions is deterministic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
