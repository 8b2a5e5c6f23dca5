"""Logs for tests: batches that are quickly made, and a way to read everything back."""

from __future__ import annotations

from typing import Final

from logd.limits import KIB
from logd.record.batch import seal_batch, seal_opaque
from logd.record.control import Control, encode_control
from logd.record.header import LEADER_PART_BYTES, BatchKind, decode_header, leader_part
from logd.storage.file_header import LogIdentity
from logd.storage.log import Log, LogBatch, LogOptions
from logd.types import Buffer, DirectoryId, GroupId, NodeId, Offset, Term
from tests.sim.files import SimulatedFileSystem

GROUP: Final = GroupId(7)
IDENTITY: Final = LogIdentity(DirectoryId("a-directory"), NodeId(1), GROUP)
DIRECTORY: Final = "/data/groups/00000000000000000007"
OPTIONS: Final = LogOptions(
    segment_bytes=16 * KIB, index_interval_bytes=512, allocate_bytes=8 * KIB
)
"""Small, so that a few batches fill a segment and have more than one entry in its index."""


def reopen(disk: SimulatedFileSystem) -> Log:
    """The log after its process was killed."""
    disk.kill()
    return Log.open(disk, DIRECTORY, IDENTITY, OPTIONS)


def make_batch(
    base_offset: int,
    *,
    term: int = 1,
    records: int = 1,
    value: bytes = b"value",
    time_ms: int = 0,
    group: GroupId = GROUP,
) -> LogBatch:
    """A sealed batch with the leader's part, in two pieces, as a leader writes it."""
    sealed = seal_batch(values=[value] * records, timestamps_ms=0)
    return _placed(sealed, base_offset, records, term, time_ms, group, is_data=True)


def make_control_batch(base_offset: int, control: Control, *, term: int = 1) -> LogBatch:
    """As ``make_batch``, of what a leader says to those who replicate."""
    sealed = seal_opaque(encode_control(control), kind=BatchKind.CONTROL, timestamp_ms=0)
    return _placed(sealed, base_offset, 1, term, 0, GROUP, is_data=False)


def _placed(
    sealed: Buffer,
    base_offset: int,
    records: int,
    term: int,
    time_ms: int,
    group: GroupId,
    *,
    is_data: bool,
) -> LogBatch:
    first = leader_part(
        sealed,
        base_offset=Offset(base_offset),
        term=Term(term),
        append_time_ms=time_ms,
        group=group,
    )
    return LogBatch(
        base_offset=Offset(base_offset),
        end_offset=Offset(base_offset + records),
        term=Term(term),
        append_time_ms=time_ms,
        is_data=is_data,
        size_bytes=len(sealed),
        buffers=(first, memoryview(sealed)[LEADER_PART_BYTES:]),
    )


def batch_bytes(batch: LogBatch) -> bytes:
    return b"".join(batch.buffers)


def append_some(
    log: Log, count: int, *, term: int = 1, value: bytes = b"value", time_ms: int = 0
) -> list[bytes]:
    """Append ``count`` batches of one record, one by one."""
    written = []
    for _ in range(count):
        batch = make_batch(log.end_offset, term=term, value=value, time_ms=time_ms)
        log.append([batch])
        written.append(batch_bytes(batch))
    return written


def read_all(log: Log, start: Offset | None = None, bytes_max: int = 4096) -> list[bytes]:
    """Every batch from ``start`` on, as bytes."""
    batches: list[bytes] = []
    offset = log.start_offset if start is None else start
    while offset < log.end_offset:
        found = log.read(offset, log.end_offset, bytes_max, cached_only=False)
        assert found
        batches += map(bytes, found)
        offset = decode_header(found[-1]).end_offset
    return batches
