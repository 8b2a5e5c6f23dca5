"""Compaction by key: of each key only the last record is kept, below a bound.

Two passes over sealed segments.  The first reads the *dirty* part, what no compaction has
looked at yet, and remembers for each key where its last record there is; memory is bounded by
ending the part where so many keys have been met, and the next compaction goes on from there.
The second reads everything from the log's start to that end and writes it anew, without the
records that a later one replaces.  Offsets stay what they are, and so do batch boundaries:
see ``logd/record/compacted.py``.

What stays: control batches, records without a key, batches that cannot be decoded (they are
not this module's to judge), those that would become too large, and the last batch of each
producer and fence, without records if need be, so that whoever follows the log learns what its
state rests on.  So do, in the same way, the batches that a producer may still retry: several can be
in flight when their leader is lost, and the next one may have learnt of them from what was left
here.  Up to where a tombstone may go is for the caller to say: what it deletes must have been gone
before, everywhere.

Keys of up to 31 bytes are compared as they are; longer ones by a 32-byte BLAKE2b digest,
which no other key has by chance nor by anybody's effort: a collision would lose a record.

This module decompresses and decodes, so it runs in a process of its own.  It only writes files
named ``.tmp``, which are nobody's until the broker puts them in place (``Log.replace``); a crash
at any point leaves some of them behind, and recovery removes them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import compress, count
from typing import Final

import msgspec

from logd.env import File, FileSystem
from logd.errors import CorruptionError, MalformedBatchError, RecordTooLargeError
from logd.limits import (
    MIB,
    OFFSET_MAX,
    PRODUCER_BATCHES_REMEMBERED,
    PRODUCERS_PER_PARTITION_MAX,
)
from logd.record.batch import RecordBatch, decode_batch
from logd.record.compacted import GAP_SPAN_MAX, keep_nothing, keep_rows, make_gap
from logd.record.header import BatchHeader, PayloadFormat
from logd.storage.batch_walk import walk_batches, walk_headers
from logd.storage.file_header import LogIdentity
from logd.storage.log_contents import SealedSegment
from logd.storage.segment import FIRST_POSITION, segment_header_block, segment_name
from logd.storage.segment_index import RELATIVE_OFFSET_MAX
from logd.storage.synced_mark import MarkSlot
from logd.storage.whole_file import UNFINISHED_SUFFIX
from logd.types import NO_OFFSET, Buffer, FilePosition, GroupId, Offset, Term

_PLAIN_KEY_BYTES_MAX: Final = 31
_DIGEST_BYTES: Final = 32
_WRITE_BYTES: Final = 1 * MIB

# A key as it is must never look like a digest.
assert _PLAIN_KEY_BYTES_MAX < _DIGEST_BYTES

_PAUSE_BYTES: Final = 4 * MIB
"""A compaction waits after so much has been read and written, as long as its rate asks."""

Throttle = Callable[[int], None]
"""Called with the bytes that were read or written since the last call; may wait."""


class CompactionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to compact.  Crosses a process boundary as JSON."""

    directory: str
    identity: LogIdentity
    segments: list[SealedSegment]
    """Consecutive, from the log's start."""
    dirty_from: Offset
    """Below it every key has one record, as far as the records there go."""
    tombstones_below: Offset
    """Tombstones below may go: what they delete has gone before, here and elsewhere."""
    retried_since_ms: int
    """Batches appended before, by append time, are retried by no producer any more."""
    segment_bytes: int
    """Neighbours are merged up to this size."""
    keys_max: int
    """Keys remembered at a time."""
    bytes_per_s: int
    """For whoever runs it: how fast to read and write; 0: as fast as possible."""


class CompactedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A file that can take the place of consecutive segments."""

    replaces: list[Offset]
    """Their base offsets."""
    path: str


class CompactionResult(msgspec.Struct, frozen=True, kw_only=True, tag="made"):
    """What was made."""

    segments: list[CompactedSegment]
    """In order; segments in which nothing changed are left out."""
    clean_to: Offset
    """The next compaction's ``dirty_from``, once these are in place."""
    oldest_tombstone: Offset
    """The base offset of the batch that holds the oldest tombstone that was kept; -1: none was."""
    has_stale: bool
    """Somewhere a record is left that a later one replaces: a tombstone may be what does."""
    keys: int
    records_read: int
    records_kept: int
    bytes_read: int
    bytes_written: int


class CompactionRefusal(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Why nothing was made."""

    reason: str
    is_damage: bool
    """A segment is not intact."""


def compact_apart(files: FileSystem, request: bytes, wait_s: Callable[[float], None]) -> bytes:
    """``compact`` for a process of its own: request and answer are JSON."""
    decoded = msgspec.json.decode(request, type=CompactionRequest)
    answer: CompactionResult | CompactionRefusal
    try:
        answer = compact(files, decoded, _throttled(decoded.bytes_per_s, wait_s))
    except CorruptionError as error:
        answer = CompactionRefusal(reason=str(error), is_damage=True)
    except OSError as error:
        answer = CompactionRefusal(reason=str(error), is_damage=False)
    return msgspec.json.encode(answer)


def read_answer(answer: bytes) -> CompactionResult | CompactionRefusal:
    """What ``compact_apart`` said."""
    return _ANSWER_DECODER.decode(answer)


_ANSWER_DECODER: Final[msgspec.json.Decoder[CompactionResult | CompactionRefusal]] = (
    msgspec.json.Decoder(CompactionResult | CompactionRefusal)
)


def _throttled(bytes_per_s: int, wait_s: Callable[[float], None]) -> Throttle:
    pending = 0

    def throttle(count: int) -> None:
        nonlocal pending
        pending += count
        if pending >= _PAUSE_BYTES:
            wait_s(pending / bytes_per_s if bytes_per_s else 0.0)
            pending = 0

    return throttle


def compact(files: FileSystem, request: CompactionRequest, throttle: Throttle) -> CompactionResult:
    """Write compacted copies of segments, beside them.

    Raises:
        CorruptionError: a segment is damaged; it is not for compaction to decide about it.
        OSError: the disk failed, or a segment behind another one is gone.
    """
    return _Compaction(files, request, throttle).run()


class _Compaction:
    """One run."""

    def __init__(self, files: FileSystem, request: CompactionRequest, throttle: Throttle) -> None:
        self._files = files
        self._request = request
        self._group = GroupId(request.identity.group)
        self._throttle = throttle
        self._latest: dict[bytes, int] = {}
        """Key → the offset of its last record in the dirty part."""
        self._clean_to = request.dirty_from
        self._needed: frozenset[int] = frozenset()
        """Base offsets of the batches that producers and fences still need."""
        self._oldest_tombstone = NO_OFFSET
        self._has_stale = False
        self._records_read = 0
        self._records_kept = 0
        self._bytes_read = 0
        self._bytes_written = 0

    def run(self) -> CompactionResult:
        """See ``compact``."""
        self._find_latest()
        self._find_needed()
        segments: list[CompactedSegment] = []
        try:
            segments.extend(self._write_all())
        except BaseException:
            for segment in segments:
                self._files.remove(segment.path)
            raise
        return CompactionResult(
            segments=segments,
            clean_to=self._clean_to,
            oldest_tombstone=self._oldest_tombstone,
            has_stale=self._has_stale,
            keys=len(self._latest),
            records_read=self._records_read,
            records_kept=self._records_kept,
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
        )

    # --- looking ------------------------------------------------------------------------

    def _batches(self, segment: SealedSegment) -> Iterator[tuple[BatchHeader, memoryview]]:
        """The verified batches of a segment."""
        file = self._open(segment)
        try:
            end = segment.end_position
            for _, header, batch in walk_batches(file, FIRST_POSITION, end, self._group):
                self._bytes_read += header.size_bytes
                self._throttle(header.size_bytes)
                yield header, batch
        finally:
            file.close()

    def _segments_left(self) -> list[SealedSegment]:
        """Those that have not been trimmed by now: it takes long to read a log, and one that is
        also kept short would never be compacted."""
        segments, files = self._request.segments, self._files
        is_there = (files.exists(self._path_of(segment)) for segment in segments)
        first = next(compress(count(), is_there), len(segments))
        return segments[first:]

    def _open(self, segment: SealedSegment) -> File:
        return self._files.open(self._path_of(segment), writable=False)

    def _path_of(self, segment: SealedSegment) -> str:
        return f"{self._request.directory}/{segment_name(segment.base_offset)}"

    def _find_latest(self) -> None:
        """Fill the map from the dirty part, as far as it holds."""
        latest, keys_max = self._latest, self._request.keys_max
        for segment in self._segments_left():
            if segment.end_offset <= self._request.dirty_from:
                continue
            for header, batch in self._batches(segment):
                if header.end_offset <= self._clean_to:
                    continue
                if len(latest) >= keys_max:
                    return
                decoded = _decode(header, batch)
                if decoded is not None:
                    latest.update(zip(_digests(decoded.keys), decoded.offsets, strict=True))
                    latest.pop(_NO_KEY, None)
                self._clean_to = header.end_offset

    def _find_needed(self) -> None:
        """The last batch of each fence and producer, of producers as many as are remembered, and
        those that a producer may still retry."""
        producers: OrderedDict[int, deque[Offset]] = OrderedDict()
        fences: OrderedDict[int, deque[Offset]] = OrderedDict()
        retried_from = Offset(OFFSET_MAX)
        for segment in self._segments_left():
            file = self._open(segment)
            try:
                end = segment.end_position
                for _, header in walk_headers(file, FIRST_POSITION, end, self._group):
                    base = header.base_offset
                    _note_last(producers, header.producer_id, base, PRODUCER_BATCHES_REMEMBERED)
                    _note_last(fences, header.fence_id, base, 1)
                    if header.append_time_ms >= self._request.retried_since_ms:
                        retried_from = min(retried_from, base)
            finally:
                file.close()
        self._needed = frozenset(
            base
            for last in (*producers.values(), *fences.values())
            for base in last
            if base >= retried_from or base == last[-1]
        )

    # --- writing ------------------------------------------------------------------------

    def _write_all(self) -> Iterator[CompactedSegment]:
        writer: _Writer | None = None
        for segment in self._segments_left():
            if segment.base_offset >= self._clean_to:
                break
            if writer is not None and not writer.has_room_for(segment):
                yield from self._finished(writer)
                writer = None
            if writer is None:
                writer = _Writer(self._files, self._request, segment, self._throttle)
            try:
                writer.begin(segment)
                for header, batch in self._batches(segment):
                    self._write_batch(writer, header, batch)
            except BaseException:
                writer.discard()
                raise
        if writer is not None:
            yield from self._finished(writer)

    def _finished(self, writer: _Writer) -> Iterator[CompactedSegment]:
        if writer.is_changed:
            yield writer.finish()
        else:
            writer.discard()
        self._bytes_written += writer.bytes_written

    def _write_batch(self, writer: _Writer, header: BatchHeader, batch: memoryview) -> None:
        if header.is_gap:
            writer.leave_out(header)
            return
        decoded = _decode(header, batch) if header.base_offset < self._clean_to else None
        if decoded is None:
            if not header.is_control and not header.record_count:
                self._write_emptied(writer, header, batch)
            else:
                writer.write(batch)
            return
        rows = self._kept_rows(decoded)
        self._records_read += len(decoded)
        self._records_kept += len(rows)
        if len(rows) == len(decoded):
            writer.write(batch)
        elif not rows:
            self._write_emptied(writer, header, None)
        else:
            try:
                writer.write(keep_rows(decoded, rows, self._group), is_new=True)
            except RecordTooLargeError:
                # Where each record was comes on top, or it was compressed better than we can.
                writer.write(batch)
                self._has_stale = True

    def _write_emptied(
        self, writer: _Writer, header: BatchHeader, batch: memoryview | None
    ) -> None:
        """A batch without records: the old one, a new one, or none."""
        if header.base_offset not in self._needed:
            writer.leave_out(header)
        elif batch is not None:
            writer.write(batch)
        else:
            writer.write(keep_nothing(header, self._group), is_new=True)

    def _kept_rows(self, batch: RecordBatch) -> list[int]:
        get_latest = self._latest.get
        rows = [
            row
            for row, (key, offset) in enumerate(
                zip(_digests(batch.keys), batch.offsets, strict=True)
            )
            if get_latest(key, offset) <= offset
        ]
        keys, values = batch.keys, batch.values
        if None not in values:
            return rows
        if batch.header.end_offset <= self._request.tombstones_below:
            return [row for row in rows if values[row] is not None or keys[row] is None]
        if self._oldest_tombstone == NO_OFFSET and any(values[row] is None for row in rows):
            self._oldest_tombstone = batch.header.base_offset
        return rows


_NO_KEY: Final = bytes(_DIGEST_BYTES + 1)
"""Stands for the missing key.  Longer than a digest, so it is nobody's."""


def _digests(keys: Sequence[bytes | None]) -> Sequence[bytes]:
    """What keys are compared by."""
    try:
        if max(map(len, keys)) <= _PLAIN_KEY_BYTES_MAX:  # type: ignore[arg-type]
            return keys  # type: ignore[return-value]
    except TypeError:
        pass  # Some have no key.
    return [_NO_KEY if key is None else _digest(key) for key in keys]


def _digest(key: bytes) -> bytes:
    if len(key) <= _PLAIN_KEY_BYTES_MAX:
        return key
    return blake2b(key, digest_size=_DIGEST_BYTES).digest()


def _decode(header: BatchHeader, batch: memoryview) -> RecordBatch | None:
    """The records of a batch; None if it is none whose records compaction may touch."""
    if (
        header.is_control
        or header.payload_format != PayloadFormat.COLUMNS
        or not header.record_count
    ):
        return None
    try:
        return decode_batch(batch)
    except MalformedBatchError:
        return None


def _note_last(
    last: OrderedDict[int, deque[Offset]], key: int, base_offset: Offset, count: int
) -> None:
    if key:
        last.setdefault(key, deque(maxlen=count)).append(base_offset)
        last.move_to_end(key)
        if len(last) > PRODUCERS_PER_PARTITION_MAX:
            last.popitem(last=False)


class _Writer:
    """One compacted file, from the first segment that it replaces to the last."""

    def __init__(
        self,
        files: FileSystem,
        request: CompactionRequest,
        first: SealedSegment,
        throttle: Throttle,
    ) -> None:
        self._files = files
        self._request = request
        self._first = first
        self._last = first
        self._throttle = throttle
        self._replaces: list[Offset] = []
        self._path = f"{request.directory}/{segment_name(first.base_offset)}{UNFINISHED_SUFFIX}"
        if files.exists(self._path):
            files.remove(self._path)
        self._file = files.open(self._path, create=True)
        self._position = FIRST_POSITION
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._gap: tuple[Offset, Offset, Term, int] | None = None
        self._gap_sources = 0
        self.is_changed = False
        self.bytes_written = 0

    def has_room_for(self, segment: SealedSegment) -> bool:
        """Whether ``segment`` may be merged into this file, whatever is kept of it."""
        size = self._position + self._pending_bytes + segment.end_position - FIRST_POSITION
        span = segment.end_offset - self._first.base_offset
        return size <= self._request.segment_bytes and span <= RELATIVE_OFFSET_MAX // 2

    def begin(self, segment: SealedSegment) -> None:
        """What comes now is of ``segment``."""
        self._replaces.append(segment.base_offset)
        self._last = segment
        self.is_changed = self.is_changed or len(self._replaces) > 1

    def write(self, batch: Buffer, *, is_new: bool = False) -> None:
        """Keep a batch, in this form."""
        self._close_gap()
        self._put(bytes(batch))
        self.is_changed = self.is_changed or is_new

    def leave_out(self, header: BatchHeader) -> None:
        """Of this batch nothing is left."""
        base, end, term = header.base_offset, header.end_offset, header.term
        if self._gap is not None:
            start, _, gap_term, _ = self._gap
            if gap_term != term or end - start > GAP_SPAN_MAX:
                self._close_gap()
            else:
                base = start
        self._gap = (base, end, term, header.append_time_ms)
        self._gap_sources += 1
        if not header.is_gap or self._gap_sources > 1:
            self.is_changed = True

    def finish(self) -> CompactedSegment:
        """Make the file whole and durable, under its unfinished name.

        Raises:
            OSError: the disk failed or is full; nothing has come of it.
        """
        try:
            self._complete()
        except BaseException:
            self.discard()
            raise
        return CompactedSegment(replaces=self._replaces, path=self._path)

    def _complete(self) -> None:
        self._close_gap()
        self._flush()
        last = self._last
        mark = MarkSlot(1, last.end_term, last.end_offset, self._position, last.end_offset)
        # Only what is sealed is compacted, so there is one behind it.
        block = segment_header_block(
            self._request.identity,
            self._first.base_offset,
            self._first.prev_term,
            mark,
            is_followed=True,
        )
        self._file.pwritev([block], 0)
        self._file.sync()
        self._file.close()

    def discard(self) -> None:
        """Nothing has come of it."""
        self._file.close()
        self._files.remove(self._path)

    def _close_gap(self) -> None:
        if self._gap is None:
            return
        base, end, term, append_time_ms = self._gap
        self._gap = None
        self._gap_sources = 0
        group = GroupId(self._request.identity.group)
        self._put(make_gap(base, end, term=term, append_time_ms=append_time_ms, group=group))

    def _put(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._file.pwritev(self._pending, self._position)
            self._position = FilePosition(self._position + self._pending_bytes)
            self.bytes_written += self._pending_bytes
            self._throttle(self._pending_bytes)
            self._pending = []
            self._pending_bytes = 0
