"""The log of one replica: batches in segments, and the rules for keeping what was promised.

Division of labour between two threads.  ``append`` and most reads run on the event loop and
touch the page cache only; ``sync`` runs in a worker thread, or in the kernel between
``begin_sync`` and ``finish_sync``, *while appends go on*.  No lock is
needed, because they share three attributes and each of them is replaced as a whole, which
the interpreter does atomically:

- ``_end`` is written by ``append`` only, after the bytes are in the page cache; ``sync``
  reads it once, before it syncs, and so promises no batch that it did not sync;
- ``_synced`` and ``_mark`` are written by ``sync`` only, after it has completed.

``roll``, ``truncate`` and ``close`` are exclusive: the caller makes sure that no append and no
sync is under way; with ``trim`` an append may be.  Reads may be, in any thread: they look at a
snapshot of the segment list, files stay open as long as somebody reads them, and a read that
met bytes in the middle of a truncation, or a segment that was just trimmed, starts again.

A failed write or sync poisons the log: after a failed sync the next one succeeds although
the data is gone, so nothing is tried again and nothing further is promised.  Reads below the
last completed sync go on.  What happens after a restart is recovery's business.

Format: segment_format.md, section 5.  Invariants: segments are contiguous; only the last is
written to; what the synced mark claims was synced before the mark was.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

from logd.env import File, FileSystem
from logd.errors import CorruptionError, OffsetOutOfRangeError, StorageError, StorageFailedError
from logd.limits import KIB, MIB, SEGMENT_BYTES_MAX
from logd.record.header import BatchHeader
from logd.storage.batch_read import Wanted, read_batches
from logd.storage.batch_walk import header_at, walk_headers
from logd.storage.file_header import FileHeader, LogIdentity
from logd.storage.holes import Hole, fill_hole, next_hole
from logd.storage.recovery import (
    LogEnd,
    Recovered,
    RecoveryReport,
    read_segment_header,
    recover,
    segment_bases,
)
from logd.storage.segment import (
    FIRST_POSITION,
    Segment,
    create_segment,
    segment_name,
)
from logd.storage.segment_index import (
    RELATIVE_OFFSET_MAX,
    remove_indexes,
    remove_indexes_durably,
)
from logd.storage.space_ahead import SpaceAhead
from logd.storage.synced_mark import SLOTS_END, MarkSlot, encode_mark, newest_mark
from logd.storage.whole_file import make_directory_durably, write_in_new_directory
from logd.types import Buffer, FilePosition, Offset, Term

__all__ = [
    "Log",
    "LogBatch",
    "LogIdentity",
    "LogOptions",
    "RecoveryReport",
    "ScrubPosition",
    "SyncedMark",
]

_SEALED_OPEN_MAX: Final = 4
"""Sealed segments of one log that stay open after a read."""

_SEGMENT_FILE: Final = re.compile(r"\d{20}\.log", re.ASCII)
"""How the names of segments, of their indexes and of what was never finished begin."""


class LogBatch(NamedTuple):
    """One batch on its way to the disk."""

    base_offset: Offset
    end_offset: Offset
    term: Term
    append_time_ms: int
    is_data: bool
    size_bytes: int
    buffers: tuple[Buffer, ...]
    """The bytes as they will stand in the file, in order, in as many pieces as there are."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a log is laid out.  May differ each time it is opened."""

    segment_bytes: int = 256 * MIB
    """The active segment asks to be rolled once it has this size."""

    index_interval_bytes: int = 4 * KIB
    """One index row per this many bytes: bounds the walk from a row to an offset."""

    allocate_bytes: int = 16 * MIB
    """Space is reserved in steps that double with the segment, up to this."""

    def __post_init__(self) -> None:
        assert 0 < self.segment_bytes <= SEGMENT_BYTES_MAX
        assert self.index_interval_bytes > 0
        assert self.allocate_bytes > 0


@dataclass(frozen=True, slots=True)
class SyncedMark:
    """What the log can prove to have been durable when it was last closed or lost power."""

    term: Term
    end_offset: Offset
    commit_offset: Offset


class Syncing(NamedTuple):
    """A sync that was begun: its mark is written."""

    file: File
    end: LogEnd
    """What will be durable."""
    mark: MarkSlot


class SealedSegment(NamedTuple):
    """What one sealed segment covers."""

    base_offset: Offset
    end_offset: Offset
    prev_term: Term
    end_term: Term
    """Of its last batch."""
    end_position: FilePosition

    @property
    def size_bytes(self) -> int:
        """Of its batches."""
        return self.end_position - FIRST_POSITION


class ScrubPosition(NamedTuple):
    """How far a scrub has come."""

    base_offset: Offset
    """Of the segment."""
    at: LogEnd
    replacements: int
    """Segments that had been replaced by then: positions are those of that time."""


class Log:
    """One replica's log.  Make one with ``create`` or ``open``."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        identity: LogIdentity,
        options: LogOptions,
        found: Recovered,
    ) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._options = options
        self._segments = found.segments
        self._end = found.end
        self._synced = found.end
        self._mark = found.mark
        self._space = SpaceAhead(found.end.position, options.segment_bytes, options.allocate_bytes)
        self._recently_read: list[Segment] = []
        self._changes = 0
        """Raised whenever bytes that a reader may be looking at become others."""
        self._replacements = 0
        self._is_syncing = False
        self.recovery = found.report
        """What was found when the log was opened."""
        self.failure: BaseException | None = None
        """The error that poisoned the log, if one did."""

    # --- making one ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        files: FileSystem,
        directory: str,
        identity: LogIdentity,
        options: LogOptions,
        start_offset: Offset = Offset(0),  # noqa: B008 - a NewType is an int
        prev_term: Term = Term(0),  # noqa: B008
    ) -> Log:
        """Create an empty log, durably.  The directory may exist; a log in it may not.

        Args:
            start_offset: where the log begins: after a snapshot it is not 0.
            prev_term: term of the batch that ends there, elsewhere.

        Raises:
            StorageError: it cannot be created.
        """
        try:
            make_directory_durably(files, directory)
            assert not segment_bases(files, directory), f"there is a log in {directory}"
            # A log that begins later begins where something committed ends.
            create_segment(files, directory, identity, start_offset, prev_term, start_offset)
        except OSError as error:
            raise StorageError(f"cannot create a log in {directory}: {error}") from error
        return cls.open(files, directory, identity, options)

    @staticmethod
    def lay_out(files: FileSystem, directory: str, identity: LogIdentity) -> None:
        """Put the files of an empty log into a directory that is unfinished itself.

        What they hold is synced.  That they are there is not: the caller syncs the directory
        once everything else in it is there too, and then gives it its name.

        Raises:
            OSError: the disk failed.
        """
        beginning = (Offset(0), Term(0), Offset(0))
        create_segment(files, directory, identity, *beginning, write=write_in_new_directory)

    @classmethod
    def open(
        cls,
        files: FileSystem,
        directory: str,
        identity: LogIdentity,
        options: LogOptions,
        *,
        is_new: bool = False,
    ) -> Log:
        """Open a log and recover its end.  All that it holds afterwards is synced.

        Damage does not raise: see ``recovery``.  A damaged log can be read where it is
        intact and takes no appends.

        Args:
            is_new: the caller has just laid it out, and synced it.

        Raises:
            StorageError: no log there, not ours, of a newer format, or the disk failed.
        """
        try:
            found = recover(files, directory, identity, options.index_interval_bytes, is_new=is_new)
            log = cls(files, directory, identity, options, found)
            if not is_new:
                log._sync_recovered()
        except OSError as error:
            raise StorageError(f"cannot open the log in {directory}: {error}") from error
        return log

    @staticmethod
    def remove(files: FileSystem, directory: str) -> None:
        """Remove all files of the log in ``directory``, which is not open.

        Durable with what follows; a crash may leave some of them.

        Raises:
            OSError: the disk failed.
        """
        for name in files.list_directory(directory):
            if _SEGMENT_FILE.match(name):
                files.remove(f"{directory}/{name}")

    @staticmethod
    def exists(files: FileSystem, directory: str) -> bool:
        """Whether there is a log in ``directory``."""
        return files.is_directory(directory) and bool(segment_bases(files, directory))

    def _sync_recovered(self) -> None:
        if self.recovery.is_damaged:
            return
        file, _ = self._active.active()
        marked = self._mark
        assert marked is not None
        # If a sync failed before the process ended, the page cache may show bytes that the
        # disk does not have, and syncing would not write them: they count as written.  So all
        # that was not yet known to be synced is written once more.
        self._write_mark(file, marked)
        _write_again(file, marked.end_position, self._end.position)
        file.sync()
        mark = self._next_mark(self._end, Offset(0))
        if mark is not self._mark:
            self._write_mark(file, mark)
            file.sync()
            self._mark = mark

    # --- what it holds ------------------------------------------------------------------

    @property
    def start_offset(self) -> Offset:
        """The first offset it holds, or would hold."""
        return self._segments[0].base_offset

    @property
    def end_offset(self) -> Offset:
        """The offset of the next batch to be appended."""
        return self._end.offset

    @property
    def last_term(self) -> Term:
        """Term of the last batch; if there is none, of the one before the log's start."""
        return self._end.term

    @property
    def prev_term(self) -> Term:
        """Term of the batch that ends at ``start_offset``; 0 at the very beginning."""
        return self._segments[0].prev_term

    @property
    def synced_end(self) -> Offset:
        """Everything below was synced by this object or found synced when it was opened."""
        return self._synced.offset

    @property
    def unsynced_bytes(self) -> int:
        """Appended and not synced yet."""
        return self._end.position - self._synced.position

    @property
    def mark(self) -> SyncedMark | None:
        """The synced mark that is on the disk; None if it was lost."""
        mark = self._mark
        if mark is None:
            return None
        return SyncedMark(mark.term, mark.end_offset, mark.commit_offset)

    @property
    def size_bytes(self) -> int:
        """Bytes of batches, in all segments."""
        sealed = sum(segment.end - FIRST_POSITION for segment in self._segments[:-1])
        return sealed + self._end.position - FIRST_POSITION

    @property
    def segment_bases(self) -> tuple[Offset, ...]:
        """Base offsets of the segments: where ``trim`` and replay can begin."""
        return tuple(segment.base_offset for segment in self._segments)

    def bytes_from(self, offset: Offset) -> int:
        """About how many bytes of batches lie at and above ``offset``.

        A guess within one segment, which is not looked into.
        """
        total = 0
        base, end = self._active.base_offset, self._end
        spans = [
            (each.base_offset, each.end_offset, each.size_bytes) for each in self.sealed_segments()
        ]
        spans.append((base, end.offset, end.position - FIRST_POSITION))
        for base_offset, end_offset, size_bytes in reversed(spans):
            if offset >= end_offset:
                break
            if end_offset > base_offset:  # Behind a roll the active one is empty.
                above = end_offset - max(offset, base_offset)
                total += size_bytes * above // (end_offset - base_offset)
        return total

    @property
    def replacements(self) -> int:
        """How often a file took the place of segments since the log was opened."""
        return self._replacements

    def sealed_segments(self) -> list[SealedSegment]:
        """Oldest first."""
        return [
            SealedSegment(
                segment.base_offset,
                after.base_offset,
                segment.prev_term,
                after.prev_term,
                segment.end,
            )
            for segment, after in pairwise(self._segments)
        ]

    @property
    def needs_roll(self) -> bool:
        """Whether the active segment is full.  ``append`` never rolls by itself."""
        end = self._end
        held = end.offset - self._active.base_offset
        is_full = end.position >= self._options.segment_bytes
        return held > 0 and (is_full or held > RELATIVE_OFFSET_MAX // 2)

    def set_options(self, options: LogOptions) -> None:
        """Lay out what comes from now on differently; what is there stays as it is."""
        self._options = options
        self._space.set_bounds(options.segment_bytes, options.allocate_bytes)

    @property
    def _active(self) -> Segment:
        return self._segments[-1]

    # --- writing ------------------------------------------------------------------------

    def append(self, batches: Sequence[LogBatch]) -> int:
        """Put batches behind the end, in the page cache.  Durable after the next ``sync``.

        Returns how many bytes they are.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        end = self._end
        offset, term, position = end
        active = self._active
        file, indexes = active.active()
        buffers: list[Buffer] = []
        for batch in batches:
            assert batch.base_offset == offset, f"{batch.base_offset} after {offset}"
            assert batch.end_offset > offset
            assert batch.term >= term
            if position >= indexes.next_position:
                indexes.add(offset - active.base_offset, batch.append_time_ms, position)
            buffers += batch.buffers
            offset = batch.end_offset
            term = batch.term
            position = FilePosition(position + batch.size_bytes)
        assert position - end.position == sum(map(len, buffers))
        assert position <= RELATIVE_OFFSET_MAX, "index rows hold positions in 32 bits"
        space = self._space
        try:
            if position > space.allocated:
                space.allocate(file, position)
            if position > space.filled:
                buffers += space.zeros_behind(position, position - end.position)
            file.pwritev(buffers, end.position)
        except OSError as error:
            raise self._fail("append", error) from error
        self._end = LogEnd(offset, term, position)
        return position - end.position

    def sync(self, commit_offset: Offset) -> tuple[Offset, Term]:
        """Make everything appended so far durable; say up to where that is.

        Writes the mark of the *previous* completed sync on the way, so that the mark never
        claims more than is true.

        Args:
            commit_offset: as far as known; goes into the mark.

        Returns:
            End offset and last term of what is durable now.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        syncing = self.begin_sync(commit_offset)
        file, indexes = self._active.active()
        try:
            self._space.reserve(file, syncing.end.position)
            syncing.file.sync()
        except OSError as error:
            raise self.fail_sync(error) from error
        finally:
            self._is_syncing = False
        synced = self.finish_sync(syncing)
        if indexes.has_much_unwritten:
            indexes.write(self._files, self._active.path)
        return synced

    @property
    def sync_has_company(self) -> bool:
        """Besides the sync itself there is something to do that may block: ``sync`` does both."""
        _, indexes = self._active.active()
        return indexes.has_much_unwritten or self._space.is_wanted(self._end.position)

    def begin_sync(self, commit_offset: Offset) -> Syncing:
        """The first part of ``sync``, for who syncs the file by other means.

        It is followed by the sync of ``file``, then ``finish_sync`` if that was done,
        ``fail_sync`` if it failed, or ``give_up_sync`` if it was not begun.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        assert not self._is_syncing
        end = self._end  # Read once: appends go on meanwhile.
        file, _ = self._active.active()
        mark = self._next_mark(self._synced, commit_offset)
        if mark is not self._mark:
            try:
                self._write_mark(file, mark)
            except OSError as error:
                raise self.fail_sync(error) from error
        self._is_syncing = True
        return Syncing(file, end, mark)

    def finish_sync(self, syncing: Syncing) -> tuple[Offset, Term]:
        """The file has been synced.  Returns what ``sync`` does."""
        self._is_syncing = False
        self._mark = syncing.mark
        self._synced = syncing.end
        return syncing.end.offset, syncing.end.term

    def fail_sync(self, error: OSError) -> StorageFailedError:
        """The file could not be synced: the log is poisoned.  Returns what to raise."""
        self._is_syncing = False
        return self._fail("sync", error)

    def give_up_sync(self) -> None:
        """The file was not synced, and nobody tried to.  Harmless after the other two."""
        self._is_syncing = False

    def sync_mark(self, commit_offset: Offset) -> None:
        """Bring the mark up to the last completed sync.  For when the log is idle.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        is_current = self._next_mark(self._synced, commit_offset) is self._mark
        if not is_current or self._end is not self._synced:
            self.sync(commit_offset)

    def roll(self) -> None:
        """Seal the active segment and start the next one.  Exclusive.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        end = self._end
        active = self._active
        assert end.offset > active.base_offset, "an empty segment is not rolled"
        try:
            commit_offset = self._settle()
            active.active()[1].write(self._files, active.path)
            mark = create_segment(
                self._files,
                self._directory,
                self._identity,
                end.offset,
                end.term,
                commit_offset,
            )
            fresh = self._segment(end.offset, end.term)
            fresh.opened_for_append()
        except OSError as error:
            raise self._fail("roll", error) from error
        active.end = end.position
        self._mark = mark
        self._end = self._synced = LogEnd(end.offset, end.term, FIRST_POSITION)
        self._space.begin(FIRST_POSITION)
        self._segments = (*self._segments, fresh)
        self._note_read(active)

    def truncate(self, offset: Offset) -> None:
        """Remove everything from ``offset`` on, durably.  Exclusive.

        The mark is lowered and synced before anything is cut, so that recovery never takes
        the cut for damage; the cut is synced before the next append, so that nothing of what
        was removed can follow on from it.

        Args:
            offset: where a batch begins; not below the start, nor below a commit offset that
                was ever passed to ``sync``.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
            CorruptionError: a header on the way to ``offset`` is damaged; nothing was done.
        """
        self._check_usable()
        assert self.start_offset <= offset <= self._end.offset
        assert self._mark is not None
        assert offset >= self._mark.commit_offset, "what is committed is never removed"
        if offset == self._end.offset:
            return
        number = self._segment_number(self._segments, offset)
        self._changes += 1
        try:
            if number < len(self._segments) - 1:
                self._drop_segments_behind(number)
            self._cut_active(offset)
        except OSError as error:
            raise self._fail("truncate", error) from error
        finally:
            # Again: a read that began half-way must not believe what it saw either.
            self._changes += 1

    def trim(self, offset: Offset, trash: str | None = None) -> None:
        """Drop the segments that lie wholly below ``offset``; never the active one.

        Exclusive, except with ``append``: that one only looks at the last segment.  A damaged
        log may be trimmed, too: what goes need not be intact.

        Args:
            trash: a directory on the same disk that takes the segment files; None removes
                them.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        if self.failure is not None:
            raise self._failed()
        try:
            while len(self._segments) > 1 and self._segments[1].base_offset <= offset:
                self._drop_first_segment(trash)
        except OSError as error:
            raise self._fail("trim", error) from error

    def replace(self, bases: Sequence[Offset], path: str) -> bool:
        """Put a compacted file in the place of the sealed segments that begin at ``bases``.

        The file takes the first one's name, which is atomic; the others then lie below the
        end of the one before them, which is how recovery knows that they have been replaced.
        Exclusive, except with ``append``.

        Args:
            path: whole and synced, under an unfinished name.

        Returns:
            False if the segments are no longer there: the file was removed.

        Raises:
            CorruptionError: the file does not cover exactly what they do; it was removed.
            StorageError: the file cannot be read; nothing was done.
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        number = self._segment_number(self._segments, bases[0])
        behind = number + len(bases)
        replaced = self._segments[max(0, number) : behind]
        is_there = [segment.base_offset for segment in replaced] == list(bases)
        try:
            if not is_there or behind >= len(self._segments):
                self._files.remove(path)
                return False
            fresh = self._check_replacement(replaced[0], self._segments[behind], path)
        except OSError as error:
            # Nothing has been touched yet.
            raise StorageError(f"cannot put {path} in place: {error}") from error
        try:
            self._put_in_place(number, replaced, fresh, path)
        except OSError as error:
            raise self._fail("compaction", error) from error
        self._recently_read = [each for each in self._recently_read if each in self._segments]
        return True

    def _put_in_place(
        self, number: int, replaced: tuple[Segment, ...], fresh: Segment, path: str
    ) -> None:
        segments = self._segments
        self._changes += 1
        try:
            remove_indexes_durably(self._files, fresh.path)
            self._files.rename(path, fresh.path)
            self._files.sync_directory(self._directory)
            behind = number + len(replaced)
            self._segments = (*segments[:number], fresh, *segments[behind:])
            self._replacements += 1
            for segment in replaced[1:]:
                self._files.remove(segment.path)
                remove_indexes(self._files, segment.path)
            if len(replaced) > 1:
                self._files.sync_directory(self._directory)
        finally:
            # Again: what a reader saw half-way is not to be believed either.
            self._changes += 1

    def _check_replacement(self, first: Segment, after: Segment, path: str) -> Segment:
        """The segment that ``path`` will be; it covers ``first`` up to ``after``."""
        header, block, size = read_segment_header(self._files, path)
        mark = newest_mark(block[:SLOTS_END], self._identity.group)
        expected = FileHeader(self._identity, first.base_offset, first.prev_term)
        end = LogEnd(after.base_offset, after.prev_term, FilePosition(size))
        found = None if mark is None else LogEnd(mark.end_offset, mark.term, mark.end_position)
        if header != expected or found != end:
            self._files.remove(path)
            raise CorruptionError(
                f"{path} says {header} and ends at {found}, expected {expected} and {end}"
            )
        return Segment(
            self._files,
            first.path,
            self._identity.group,
            self._options.index_interval_bytes,
            base_offset=first.base_offset,
            prev_term=first.prev_term,
            end=FilePosition(size),
        )

    def close(self) -> None:
        """Settle what can be settled, and let go of the files.  Exclusive.

        Raises:
            StorageFailedError: the last sync failed.
        """
        if not self._segments[-1].is_open:
            return
        _, indexes = self._active.active()
        try:
            if self.failure is None and not self.recovery.is_damaged:
                indexes.write(self._files, self._active.path)
                self._settle()
        except OSError as error:
            raise self._fail("close", error) from error
        finally:
            for segment in self._segments:
                segment.let_go()

    # --- reading ------------------------------------------------------------------------

    def read(
        self, offset: Offset, end_offset: Offset, bytes_max: int, *, cached_only: bool
    ) -> list[memoryview] | None:
        """Whole verified batches, from the one that holds ``offset``, below ``end_offset``.

        Args:
            end_offset: a batch that ends above it is not returned.
            bytes_max: the first batch is returned even if it alone is larger.
            cached_only: return None rather than wait for the disk.

        Returns:
            Batches back to back in offset order; empty where none lies in the range.

        Raises:
            OffsetOutOfRangeError: ``offset`` is outside the log.
            CorruptionError: a batch is damaged; names file and position.
            StorageFailedError: the disk failed, or failed before and the range is in doubt.
        """
        while True:
            changes = self._changes
            end = self._end
            segments = self._segments
            limit = min(end_offset, end.offset)
            if not segments[0].base_offset <= offset <= end.offset:
                raise OffsetOutOfRangeError(
                    f"offset {offset} is outside [{segments[0].base_offset}, {end.offset}]",
                    segments[0].base_offset,
                    end.offset,
                )
            if self.failure is not None and limit > self._synced.offset:
                raise self._failed()
            if offset >= limit:
                return []
            try:
                return self._read(segments, end, offset, limit, bytes_max, cached_only=cached_only)
            except OSError as error:
                if self._is_as_it_was(changes, segments):
                    raise StorageFailedError(f"reading {self._directory}: {error}") from error
            except CorruptionError:
                if self._is_as_it_was(changes, segments):
                    raise

    def headers(self, from_offset: Offset) -> Iterator[BatchHeader]:
        """Verified headers, from the batch that holds ``from_offset`` to the present end.

        Raises:
            CorruptionError: a header is damaged; names file and position.
        """
        assert from_offset >= self.start_offset
        end = self._end
        segments = self._segments
        for number in range(self._segment_number(segments, from_offset), len(segments)):
            segment = segments[number]
            segment_end = end.position if number == len(segments) - 1 else segment.end
            position = segment.floor(from_offset, segment_end)
            file = segment.opened_file()
            for _, header in walk_headers(file, position, segment_end, self._identity.group):
                if header.end_offset > from_offset:
                    yield header
            self._note_read(segment)

    def append_time_at(self, offset: Offset) -> int:
        """When the batch that holds ``offset`` was appended.

        Raises:
            CorruptionError: a header on the way is damaged.
        """
        while True:
            changes, segments = self._changes, self._segments
            try:
                return next(self.headers(offset)).append_time_ms
            except (OSError, CorruptionError):
                if self._is_as_it_was(changes, segments):
                    raise

    def offset_for_time(self, time_ms: int) -> Offset | None:
        """Base offset of the first batch appended at ``time_ms`` or later; None if none was.

        Raises:
            CorruptionError: a header on the way is damaged.
            OSError: the disk failed.
        """
        while True:
            changes = self._changes
            end = self._end
            segments = self._segments
            try:
                return self._offset_for_time(segments, end, time_ms)
            except (OSError, CorruptionError):
                if self._is_as_it_was(changes, segments):
                    raise

    def _offset_for_time(
        self, segments: tuple[Segment, ...], end: LogEnd, time_ms: int
    ) -> Offset | None:
        held = segments if end.offset > segments[-1].base_offset else segments[:-1]
        later = bisect_right(held, time_ms - 1, key=self._first_append_time)
        # The first of that time lies in the segment before, unless all there is older.
        for segment in held[max(later - 1, 0) : later + 1]:
            file, indexes = segment.opened()
            segment_end = end.position if segment is segments[-1] else segment.end
            position = segment.floor(
                Offset(segment.base_offset + indexes.offset_before_time(time_ms)), segment_end
            )
            self._note_read(segment)
            for _, header in walk_headers(file, position, segment_end, self._identity.group):
                if header.append_time_ms >= time_ms:
                    return header.base_offset
        return None

    def scrub_start(self, offset: Offset) -> ScrubPosition:
        """The beginning of the segment that holds ``offset``."""
        segment = self._segments[self._segment_number(self._segments, offset)]
        begin = LogEnd(segment.base_offset, segment.prev_term, FIRST_POSITION)
        return ScrubPosition(segment.base_offset, begin, self._replacements)

    def scrub(
        self, position: ScrubPosition, bytes_max: int
    ) -> tuple[ScrubPosition | None, Hole | None]:
        """Verify what is on the disk, a piece at a time.  Exclusive, except with ``append``.

        Args:
            position: from ``scrub_start`` or the last call.
            bytes_max: about how much to read.

        Returns:
            Where to go on (None: the log's end is reached), and the hole that ends there.

        Raises:
            StorageFailedError: the disk failed.
        """
        end = self._end
        segments = self._segments
        number = max(0, self._segment_number(segments, position.base_offset))
        segment = segments[number]
        after = segments[number + 1] if number < len(segments) - 1 else None
        if after is not None:
            end = LogEnd(after.base_offset, after.prev_term, segment.end)
        at = position.at
        replacements = self._replacements
        if (segment.base_offset, replacements) != (position.base_offset, position.replacements) or (
            at.position > end.position
        ):
            at = self.scrub_start(segment.base_offset).at  # Trimmed, truncated or replaced.
        try:
            file = segment.opened_file()
            at, hole = next_hole(file, self._identity.group, at, end, bytes_max)
            self._note_read(segment)
        except OSError as error:
            raise StorageFailedError(f"scrubbing {segment.path}: {error}") from error
        if hole is not None:
            hole = replace(hole, version=replacements)
        if at.position < end.position:
            return ScrubPosition(segment.base_offset, at, replacements), hole
        return (None if after is None else self.scrub_start(after.base_offset)), hole

    def fill(self, hole: Hole, batches: bytes) -> Hole | None:
        """Put back what a peer still has of a hole that ``scrub`` found.  As exclusive.

        Returns what is left of the hole; None if it is filled.

        Raises:
            CorruptionError: ``batches`` are not what was there; nothing was written.
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        if hole.version != self._replacements:
            raise CorruptionError(f"{hole}: the log was compacted meanwhile")
        if all(segment.path != hole.path for segment in self._segments):
            raise CorruptionError(f"{hole}: the log was trimmed meanwhile")
        try:
            return fill_hole(self._files, self._identity.group, hole, batches)
        except OSError as error:
            raise self._fail("repair", error) from error

    # --- reading, inside ----------------------------------------------------------------

    def _is_as_it_was(self, changes: int, segments: tuple[Segment, ...]) -> bool:
        """Whether nothing was truncated, compacted or trimmed under a reader, who tries again.

        A trimmed segment may be gone, or already cut shorter in the trash.
        """
        return changes == self._changes and segments[0] is self._segments[0]

    def _read(
        self,
        segments: tuple[Segment, ...],
        end: LogEnd,
        offset: Offset,
        limit: Offset,
        bytes_max: int,
        *,
        cached_only: bool,
    ) -> list[memoryview] | None:
        segment = segments[self._segment_number(segments, offset)]
        if cached_only and not segment.is_open:
            return None
        file, indexes = segment.opened()
        self._note_read(segment)
        segment_end = end.position if segment is segments[-1] else segment.end
        position = indexes.floor(offset - segment.base_offset)
        wanted = Wanted(
            offset, limit, bytes_max, self._options.index_interval_bytes, self._identity.group
        )
        try:
            return read_batches(file, position, segment_end, wanted, cached_only=cached_only)
        except CorruptionError:
            if cached_only:
                return None  # To be judged where there is time for it.
            # Perhaps only the index is wrong: it is unsynced and proves nothing.
            position = segment.floor(offset, segment_end)
            return read_batches(file, position, segment_end, wanted, cached_only=False)

    def _first_append_time(self, segment: Segment) -> int:
        file = segment.opened_file()
        self._note_read(segment)
        return header_at(file, FIRST_POSITION, self._identity.group).append_time_ms

    def _segment_number(self, segments: tuple[Segment, ...], offset: Offset) -> int:
        return bisect_right(segments, offset, key=lambda segment: segment.base_offset) - 1

    def _note_read(self, segment: Segment) -> None:
        """Keep the few segments open that were read last; descriptors are not endless."""
        if segment is self._active:
            return
        recent = [each for each in self._recently_read if each is not segment]
        recent.append(segment)
        for each in recent[:-_SEALED_OPEN_MAX]:
            if each is not self._active:
                each.let_go()
        self._recently_read = recent[-_SEALED_OPEN_MAX:]

    # --- writing, inside ----------------------------------------------------------------

    def _segment(self, base_offset: Offset, prev_term: Term) -> Segment:
        """A segment that was just created, empty."""
        return Segment(
            self._files,
            f"{self._directory}/{segment_name(base_offset)}",
            self._identity.group,
            self._options.index_interval_bytes,
            base_offset=base_offset,
            prev_term=prev_term,
            end=FIRST_POSITION,
        )

    def _next_mark(self, end: LogEnd, commit_offset: Offset) -> MarkSlot:
        """The mark that claims ``end``; the present one if that already does."""
        last = self._mark
        assert last is not None
        commit_offset = max(last.commit_offset, min(commit_offset, end.offset))
        claimed = (end.term, end.offset, end.position, commit_offset)
        return last if claimed == last[1:] else MarkSlot(last.sequence + 1, *claimed)

    def _write_mark(self, file: File, mark: MarkSlot) -> None:
        file.pwritev([encode_mark(mark, self._identity.group)], mark.position)

    def _settle(self) -> Offset:
        """Sync everything, then a mark that covers it, without the space allocated ahead.

        Returns the commit offset in that mark.
        """
        end = self._end
        file, _ = self._active.active()
        if self._synced is not end:
            file.sync()
            self._synced = end
        assert self._mark is not None
        mark = self._next_mark(end, self._mark.commit_offset)
        is_settled = mark is self._mark and file.size() == end.position
        if not is_settled:
            if mark is not self._mark:
                self._write_mark(file, mark)
            file.truncate(end.position)
            file.sync()
        self._mark = mark
        self._space.begin(end.position)
        return mark.commit_offset

    def _drop_segments_behind(self, number: int) -> None:
        """Remove later segments, newest first, each durably: never leave a gap behind."""
        for segment in reversed(self._segments[number + 1 :]):
            remove_indexes(self._files, segment.path)
            self._files.remove(segment.path)
            self._files.sync_directory(self._directory)
        last = self._segments[number]
        file, _ = last.opened_for_append()
        found = newest_mark(file.pread(SLOTS_END, 0), self._identity.group)
        # Sealed: its mark covers it whole, and said so when it was rolled or opened.
        assert found is not None
        assert found.end_position == last.end
        self._mark = found
        self._end = self._synced = LogEnd(found.end_offset, found.term, found.end_position)
        self._space.begin(found.end_position)
        self._segments = self._segments[: number + 1]
        self._recently_read = [each for each in self._recently_read if each in self._segments[:-1]]

    def _cut_active(self, offset: Offset) -> None:
        active = self._active
        file, indexes = active.active()
        position, term = active.position_after(offset, self._end.position)
        cut = LogEnd(offset, term, position)
        assert self._mark is not None
        if self._mark.end_offset > offset:
            mark = self._next_mark(cut, self._mark.commit_offset)
            self._write_mark(file, mark)
            file.sync()
            self._mark = mark
        file.truncate(position)
        file.sync()
        self._space.begin(position)
        self._end = self._synced = cut
        active.end = position
        active.indexes = indexes.kept_below(position)
        remove_indexes_durably(self._files, active.path)

    def _drop_first_segment(self, trash: str | None) -> None:
        first = self._segments[0]
        # First: who finds the file gone must find the segment gone as well.
        self._segments = self._segments[1:]
        if trash is None:
            self._files.remove(first.path)
        else:
            name = f"{self._identity.group:020}-{segment_name(first.base_offset)}"
            self._files.rename(first.path, f"{trash}/{name}")
            self._files.sync_directory(trash)
        # Durable before the next one goes: a gap would be taken for damage.
        self._files.sync_directory(self._directory)
        remove_indexes(self._files, first.path)
        self._recently_read = [each for each in self._recently_read if each is not first]

    def _check_usable(self) -> None:
        if self.failure is not None:
            raise self._failed()
        if self.recovery.is_damaged:
            raise StorageFailedError(
                f"the log in {self._directory} is damaged: {'; '.join(self.recovery.damage)}"
            )

    def _fail(self, action: str, error: OSError) -> StorageFailedError:
        self.failure = error
        return StorageFailedError(f"{action} failed on the log in {self._directory}: {error}")

    def _failed(self) -> StorageFailedError:
        refusal = StorageFailedError(
            f"the log in {self._directory} failed before and takes nothing more: {self.failure}"
        )
        refusal.__cause__ = self.failure
        return refusal


def _write_again(file: File, position: FilePosition, end: FilePosition) -> None:
    while position < end:
        chunk = file.pread(min(1 * MIB, end - position), position)
        file.pwritev([chunk], position)
        position = FilePosition(position + len(chunk))
