"""State in place of batches: what a follower gets that needs what its leader has trimmed.

A snapshot begins where the leader's log begins and holds the partition's state at some
committed offset behind that.  The follower installs it, and its log begins where the leader's
does; the batches up to the state's offset are then appended like any others, but are in the
state already.  A group with a state machine of its own (the metadata) ships its state too.

On the way a snapshot is cut into chunks.  Each says what it is a piece of; a receiver puts
pieces together that follow one another, and begins again with any that says it is the first.

Format of the file: segment_format.md, section 8.
"""

from __future__ import annotations

from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from logd.errors import CorruptionError, MalformedBatchError
from logd.limits import SNAPSHOT_BYTES_MAX
from logd.partition.state import Checkpoint, PartitionState
from logd.replication.peer_protocol import SnapshotChunk
from logd.types import Buffer, NodeId, Offset, Term


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed."""

    start_offset: Offset
    """Where the log begins."""
    state_offset: Offset
    state: bytes
    """A partition checkpoint, with term history and configuration, as of ``state_offset``."""
    application_offset: Offset = Offset(0)
    application: bytes | None = None
    """The same of the state machine that is fed from the log, if there is one."""

    def decode_state(self) -> Checkpoint:
        """The partition's state.

        Raises:
            CorruptionError: it is not one, or not of this log.
        """
        found = PartitionState.decode(self.state)
        if found.state.end_offset != self.state_offset or found.configuration is None:
            raise CorruptionError(
                f"snapshot of a state at {self.state_offset}: it ends at {found.state.end_offset}, "
                f"its configuration is {found.configuration}"
            )
        if not found.term_rows or found.term_rows[0].start_offset >= self.start_offset:
            raise CorruptionError(
                f"snapshot of a log that begins at {self.start_offset}: the term before is missing"
            )
        return found

    def terms_below_start(self) -> tuple[tuple[Term, Offset], ...]:
        """The term history below the log's start; the last row is that of its predecessor."""
        rows = self.decode_state().term_rows
        return tuple((row.term, row.start_offset) for row in rows if self._is_below(row[1]))

    def _is_below(self, offset: Offset) -> bool:
        return offset < self.start_offset


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Snapshot)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """What travels, and what is kept while it is installed."""
    return _ENCODER.encode(snapshot)


def decode_snapshot(encoded: Buffer) -> Snapshot:
    """Read what ``encode_snapshot`` wrote, all of it.

    Raises:
        CorruptionError: it is not a snapshot that could be installed.
    """
    try:
        snapshot = _DECODER.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"snapshot cannot be read: {error}") from error
    if not 0 < snapshot.start_offset <= snapshot.state_offset:
        raise CorruptionError(
            f"snapshot of a log from {snapshot.start_offset} with a state at "
            f"{snapshot.state_offset}"
        )
    if snapshot.application is not None and snapshot.application_offset < snapshot.start_offset:
        raise CorruptionError(
            f"snapshot of a log from {snapshot.start_offset} whose application is at "
            f"{snapshot.application_offset}"
        )
    snapshot.decode_state()
    return snapshot


def checksum_of(encoded: Buffer) -> int:
    """Names an encoded snapshot, and tells whether all of it has arrived."""
    return xxh3_64_intdigest(encoded)


class SnapshotAssembly:
    """Puts chunks together; keeps at most one snapshot."""

    def __init__(self) -> None:
        self._first: tuple[NodeId, SnapshotChunk] | None = None
        self._received = bytearray()

    def add(self, source: NodeId, chunk: SnapshotChunk, body: Buffer) -> Snapshot | None:
        """Take one chunk; the snapshot if it was the last.

        Raises:
            MalformedBatchError: no leader of ours would send such a chunk.
            CorruptionError: what has arrived is not what was sent.
        """
        if not 0 < chunk.total_bytes <= SNAPSHOT_BYTES_MAX or not body:
            raise MalformedBatchError(
                f"{len(body)} bytes of a snapshot of {chunk.total_bytes}, "
                f"the most is {SNAPSHOT_BYTES_MAX}"
            )
        if chunk.position == 0:
            self._first = (source, chunk)
            self._received = bytearray()
        if not self._continues(source, chunk) or chunk.position != len(self._received):
            return None  # A piece is missing: the leader begins again before long.
        self._received += body
        if len(self._received) < chunk.total_bytes:
            return None
        received = self._received
        self.forget()
        if len(received) > chunk.total_bytes or checksum_of(received) != chunk.checksum:
            raise CorruptionError(
                f"a snapshot of {chunk.total_bytes} bytes arrived as {len(received)}, "
                f"with another checksum"
            )
        return decode_snapshot(received)

    def forget_all_but(self, source: NodeId | None, term: Term) -> None:
        """Let go of what has arrived, unless ``source`` sent it as leader of ``term``."""
        if self._first is not None:
            sender, first = self._first
            if (sender, first.term) != (source, term):
                self.forget()

    def forget(self) -> None:
        """Let go of what has arrived."""
        self._first = None
        self._received = bytearray()

    def _continues(self, source: NodeId, chunk: SnapshotChunk) -> bool:
        if self._first is None:
            return False
        first_source, first = self._first
        return (source, chunk.term, chunk.checksum) == (first_source, first.term, first.checksum)
