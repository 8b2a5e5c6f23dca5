"""The log of one replica: batches in segments, and the rules for keeping what was promised.

Division of labour between two threads.  ``append`` and most reads run on the event loop and
touch the page cache only; ``sync`` runs in a worker thread, or in the kernel between
``begin_sync`` and ``finish_sync``, *while appends go on*.  What they share, and why no lock is
needed, is told in ``log_contents.py``; a sync reads the end once, before it syncs, and so
promises no batch that it did not sync.  The mark belongs to the sync alone.

``roll``, ``truncate`` and ``close`` are exclusive: the caller makes sure that no append and no
sync is under way; with ``trim`` and ``replace`` an append may be.  Reads may be, in any thread
(``log_reads.py``).

A failed write or sync poisons the log: after a failed sync the next one succeeds although
the data is gone, so nothing is tried again and nothing further is promised.  Reads below the
last completed sync go on.  What happens after a restart is recovery's business.

Format: segment_format.md, section 5.  Invariant: what the synced mark claims was synced before
the mark was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from logd.env import File, FileSystem
from logd.errors import CorruptionError, NoRoomError, StorageError, StorageFailedError
from logd.limits import KIB, MIB, SEGMENT_BYTES_MAX
from logd.record.header import BatchHeader
from logd.storage.cached_behind import CachedBehind
from logd.storage.clean_note import NOTE_NAME, withdraw_clean_note
from logd.storage.file_header import LogIdentity
from logd.storage.holes import Hole, end_beyond_damage, fill_hole
from logd.storage.kept_open import KeptOpen
from logd.storage.log_contents import LogContents, SealedSegment, segment_number
from logd.storage.log_reads import LogReads
from logd.storage.recovery import LogEnd, Recovered, RecoveryReport, recover, segment_bases
from logd.storage.room import is_no_descriptor, opening, what_lacks
from logd.storage.scrub import ScrubPosition, scrub, scrub_start
from logd.storage.segment import FIRST_POSITION, Segment, create_segment
from logd.storage.segment_index import RELATIVE_OFFSET_MAX, remove_indexes
from logd.storage.space_ahead import SpaceAhead
from logd.storage.successor_note import write_note
from logd.storage.synced_mark import SLOTS_END, MarkSlot, newest_mark, write_mark
from logd.storage.trash import set_aside
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


class Log:
    """One replica's log.  Make one with ``create`` or ``open``."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        identity: LogIdentity,
        options: LogOptions,
        found: Recovered,
        kept_open: KeptOpen | None = None,
    ) -> None:
        self._files = files
        self._group = identity.group
        self._options = options
        self._held = LogContents(
            files,
            directory,
            identity,
            options.index_interval_bytes,
            found.segments,
            found.end,
            kept_open,
        )
        self._reads = LogReads(self._held)
        self._mark = found.mark
        self._is_syncing = False
        self._cached = CachedBehind()
        self._space = SpaceAhead(found.end.position, options.segment_bytes, options.allocate_bytes)
        self.recovery = found.report
        """What was found when the log was opened."""
        self.was_empty = found.end.offset == found.segments[0].base_offset
        """It held nothing when it was opened."""

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
        kept_open: KeptOpen | None = None,
    ) -> Log:
        """Open a log and recover its end.  All that it holds afterwards is synced.

        Damage does not raise: see ``recovery``.  A damaged log can be read where it is
        intact and takes no appends.

        Args:
            is_new: the caller has just laid it out, and synced it.
            kept_open: which files of this and other logs stay open behind a read.

        Raises:
            StorageError: no log there, not ours, of a newer format, or the disk failed.
            CorruptionError: it was cut short meanwhile.
        """
        try:
            found = recover(files, directory, identity, options.index_interval_bytes, is_new=is_new)
        except OSError as error:
            raise StorageError(f"cannot open the log in {directory}: {error}") from error
        return cls(files, directory, identity, options, found, kept_open)

    @staticmethod
    def remove(files: FileSystem, directory: str) -> None:
        """Remove all files of the log in ``directory``, which is not open, and its clean note.

        Durable with what follows; a crash may leave some of them.

        Raises:
            OSError: the disk failed.
        """
        for name in files.list_directory(directory):
            if _SEGMENT_FILE.match(name) or name == NOTE_NAME:
                files.remove(f"{directory}/{name}")

    @staticmethod
    def exists(files: FileSystem, directory: str) -> bool:
        """Whether there is a log in ``directory``."""
        return files.is_directory(directory) and bool(segment_bases(files, directory))

    # --- what it holds ------------------------------------------------------------------

    @property
    def start_offset(self) -> Offset:
        """The first offset it holds, or would hold."""
        return self._held.segments[0].base_offset

    @property
    def end_offset(self) -> Offset:
        """The offset of the next batch to be appended."""
        return self._held.end.offset

    @property
    def last_term(self) -> Term:
        """Term of the last batch; if there is none, of the one before the log's start."""
        return self._held.end.term

    @property
    def prev_term(self) -> Term:
        """Term of the batch that ends at ``start_offset``; 0 at the very beginning."""
        return self._held.segments[0].prev_term

    @property
    def synced_end(self) -> Offset:
        """Everything below was synced by this object or found synced when it was opened."""
        return self._held.synced.offset

    @property
    def unsynced_bytes(self) -> int:
        """Appended and not synced yet."""
        return self._held.end.position - self._held.synced.position

    @property
    def failure(self) -> BaseException | None:
        """The error that poisoned the log, if one did."""
        return self._held.failure

    @property
    def is_open(self) -> bool:
        """It has not been closed, by its owner or for another one to be put in its place."""
        return self._held.active.is_open

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
        sealed = sum(segment.end - FIRST_POSITION for segment in self._held.segments[:-1])
        return sealed + self._held.end.position - FIRST_POSITION

    @property
    def segment_bases(self) -> tuple[Offset, ...]:
        """Base offsets of the segments: where ``trim`` and replay can begin."""
        return tuple(segment.base_offset for segment in self._held.segments)

    def bytes_from(self, offset: Offset) -> int:
        """About how many bytes of batches lie at and above ``offset``.

        A guess within one segment, which is not looked into.
        """
        return self._held.bytes_from(offset)

    @property
    def replacements(self) -> int:
        """How often a file took the place of segments since the log was opened."""
        return self._held.replacements

    def sealed_segments(self) -> list[SealedSegment]:
        """Oldest first."""
        return self._held.sealed

    @property
    def needs_roll(self) -> bool:
        """Whether the active segment is full.  ``append`` never rolls by itself."""
        end = self._held.end
        span = end.offset - self._held.active.base_offset
        is_full = end.position >= self._options.segment_bytes
        return span > 0 and (is_full or span > RELATIVE_OFFSET_MAX // 2)

    def set_options(self, options: LogOptions) -> None:
        """Lay out what comes from now on differently; what is there stays as it is."""
        self._options = options
        self._held.interval_bytes = options.index_interval_bytes
        self._space.set_bounds(options.segment_bytes, options.allocate_bytes)

    # --- writing ------------------------------------------------------------------------

    def make_room(self, size_bytes: int) -> bool:
        """Whether there is room to ``append`` so many bytes: they are reserved, if it is new.

        Asked first, for an append that finds none ends the log.  Nor is there any behind what an
        index can point to, where no segment could be begun for long.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        held = self._held
        position = held.end.position
        needed = FilePosition(position + size_bytes)
        if needed <= self._space.allocated:
            return True
        self._check_usable()
        if needed > RELATIVE_OFFSET_MAX:
            return False
        file, _ = held.active.active()
        try:
            return self._space.find(file, position, needed)
        except OSError as error:
            raise held.fail("append", error) from error

    def append(self, batches: Sequence[LogBatch]) -> int:
        """Put batches behind the end, in the page cache.  Durable after the next ``sync``.

        Returns how many bytes they are.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        held = self._held
        end = held.end
        offset, term, position = end
        active = held.active
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
            raise held.fail("append", error) from error
        held.end = LogEnd(offset, term, position)
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
        file, indexes = self._held.active.active()
        try:
            self._space.reserve(file, syncing.end.position)
            syncing.file.sync()
        except OSError as error:
            raise self.fail_sync(error) from error
        finally:
            self._is_syncing = False
        synced = self.finish_sync(syncing)
        if indexes.has_much_unwritten:
            indexes.write(self._files, self._held.active.path)
        return synced

    @property
    def sync_has_company(self) -> bool:
        """Besides the sync itself there is something to do that may block: ``sync`` does both."""
        _, indexes = self._held.active.active()
        return indexes.has_much_unwritten or self._space.is_wanted(self._held.end.position)

    def begin_sync(self, commit_offset: Offset) -> Syncing:
        """The first part of ``sync``, for who syncs the file by other means.

        It is followed by the sync of ``file``, then ``finish_sync`` if that was done,
        ``fail_sync`` if it failed, or ``give_up_sync`` if it was not begun.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        assert not self._is_syncing
        held = self._held
        end = held.end  # Read once: appends go on meanwhile.
        file, _ = held.active.active()
        mark = self._next_mark(held.synced, commit_offset)
        if mark is not self._mark:
            try:
                write_mark(file, mark, self._group)
            except OSError as error:
                raise self.fail_sync(error) from error
        self._is_syncing = True
        return Syncing(file, end, mark)

    def finish_sync(self, syncing: Syncing) -> tuple[Offset, Term]:
        """The file has been synced.  Returns what ``sync`` does."""
        self._is_syncing = False
        self._mark = syncing.mark
        self._held.synced = syncing.end
        return syncing.end.offset, syncing.end.term

    def fail_sync(self, error: OSError) -> StorageFailedError:
        """The file could not be synced: the log is poisoned.  Returns what to raise."""
        self._is_syncing = False
        return self._held.fail("sync", error)

    def give_up_sync(self) -> None:
        """The file was not synced, and nobody tried to.  Harmless after the other two."""
        self._is_syncing = False

    def sync_mark(self, commit_offset: Offset) -> None:
        """Bring the mark up to the last completed sync.  For when the log is idle.

        Raises:
            StorageFailedError: the disk failed; the log is poisoned.
        """
        held = self._held
        is_current = self._next_mark(held.synced, commit_offset) is self._mark
        if not is_current or held.end is not held.synced:
            self.sync(commit_offset)

    def forget_cached(self, keep_bytes: int) -> None:
        """Leave to others the memory that what is synced takes in the page cache.

        Args:
            keep_bytes: about how much to keep behind the end of the log.
        """
        file, _ = self._held.active.active()
        self._cached.forget_below(file, self._held.synced.position - keep_bytes)

    def roll(self) -> None:
        """Seal the active segment and start the next one.  Exclusive.

        Raises:
            NoRoomError: the disk has none for the next one.  The log goes on as it is, unless
                ``is_roll_begun``: then the same is to be done again, and nothing else before.
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        held = self._held
        end = held.end
        active = held.active
        assert end.offset > active.base_offset, "an empty segment is not rolled"
        file, indexes = active.active()
        try:
            commit_offset = self._settle()
            indexes.write(self._files, active.path)
            fresh, mark = self._create_next(commit_offset)
            write_note(file, fresh.base_offset, self._group)
        except OSError as error:
            raise held.fail("roll", error) from error
        self._cached.leave(file, end.position)
        self._mark = mark
        self._space.begin(FIRST_POSITION)
        held.roll_on(fresh)

    @property
    def is_roll_begun(self) -> bool:
        """Of a roll that was refused: the next one has its name, and only lacks a descriptor."""
        return self._held.is_next_begun

    def truncate(self, offset: Offset) -> None:
        """Remove everything from ``offset`` on, durably.  Exclusive.

        The mark is lowered and synced before anything is cut, so that recovery never takes
        the cut for damage; the cut is synced before the next append, so that nothing of what
        was removed can follow on from it.

        Args:
            offset: where a batch begins; not below the start, nor below a commit offset that
                was ever passed to ``sync``.

        Raises:
            NoRoomError: there is no file descriptor for that: the same is to be done again.
            StorageFailedError: the disk failed; the log is poisoned.
            CorruptionError: what leads to ``offset`` is damaged; nothing was done.
        """
        self._check_usable()
        held = self._held
        assert self.start_offset <= offset <= held.end.offset
        assert self._mark is not None
        assert offset >= self._mark.commit_offset, "what is committed is never removed"
        if offset == held.end.offset:
            return
        number = segment_number(held.segments, offset)
        with held.changing():
            try:
                if number < len(held.segments) - 1:
                    self._drop_segments_behind(number, offset)
                held.remove_cut_off()
                self._cut_active(offset)
            except OSError as error:
                raise self._put_off_or_fail("truncate", error) from error

    def require_descriptor(self) -> None:
        """See that one more file can be opened, before what would end half-way where none can: a
        directory is opened to be synced.

        Raises:
            NoRoomError: there is no file descriptor for it.
        """
        path = self._held.active.path
        with opening(path):
            self._files.open(path, writable=False).close()

    def trim(self, offset: Offset, trash: str | None = None) -> None:
        """Drop the segments that lie wholly below ``offset``; never the active one.

        Exclusive, except with ``append``: that one only looks at the last segment.  A damaged
        log may be trimmed, too: what goes need not be intact.

        Args:
            trash: a directory on the same disk that takes the segment files; None removes
                them.

        Raises:
            NoRoomError: there is no file descriptor for all of it: the same is to be done again.
            StorageFailedError: the disk failed; the log is poisoned.
        """
        held = self._held
        if held.failure is not None:
            raise held.refusal()
        try:
            held.sync_dropped()
            while len(held.segments) > 1 and held.segments[1].base_offset <= offset:
                held.drop_first(trash)
        except OSError as error:
            raise self._put_off_or_fail("trim", error) from error

    @property
    def is_trim_finished(self) -> bool:
        """Whether what was trimmed is gone for good."""
        return self._held.is_drop_synced

    def replace(
        self,
        bases: Sequence[Offset],
        path: str,
        trash: str | None = None,
        *,
        is_of_peers: bool = False,
    ) -> bool:
        """Put another file in the place of the sealed segments that begin at ``bases``.

        Exclusive, except with ``append``.

        Args:
            path: whole and synced, under an unfinished name.
            trash: a directory on the same disk that takes the segment files, as far as its file
                system knows second names; None removes them.
            is_of_peers: it holds what peers do, who may not have compacted it.  Else it was made
                of these segments.

        Returns:
            False if the segments are no longer there: the file was removed.

        Raises:
            CorruptionError: the file does not cover exactly what they do; it was removed.
            StorageError: the file cannot be read; nothing was done.
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        held = self._held
        replaced = held.sealed_at(bases)
        try:
            if not replaced:
                self._files.remove(path)
                return False
            fresh = held.check_replacement(replaced, path)
            if is_of_peers:
                withdraw_clean_note(self._files, held.directory)
            aside = None if trash is None else set_aside(self._files, fresh.path)
        except OSError as error:
            # Nothing has been touched yet.
            raise StorageError(f"cannot put {path} in place: {error}") from error
        try:
            held.put_in_place(replaced, fresh, path, aside, trash)
        except OSError as error:
            raise held.fail("compaction", error) from error
        return True

    def fill(self, hole: Hole, batches: bytes) -> Hole | None:
        """Put back what a peer still has of a hole that ``scrub`` found.

        Exclusive, except with ``append``.  Returns what is left of the hole; None if it is
        filled.

        Raises:
            CorruptionError: ``batches`` are not what was there; nothing was written.
            NoRoomError: there is no room, or no file descriptor for all of it: the same is to be
                done again.
            StorageFailedError: the disk failed; the log is poisoned.
        """
        self._check_usable()
        held = self._held
        if hole.version != held.replacements:
            raise CorruptionError(f"{hole}: the log was compacted meanwhile")
        if all(segment.path != hole.path for segment in held.segments):
            raise CorruptionError(f"{hole}: the log was trimmed meanwhile")
        try:
            return fill_hole(self._files, self._group, hole, batches)
        except OSError as error:
            raise self._put_off_or_fail("repair", error) from error

    def close(self) -> None:
        """Settle what can be settled, and let go of the files.  Exclusive.

        Raises:
            StorageFailedError: the last sync failed.
        """
        held = self._held
        active = held.active
        if not active.is_open:
            return
        _, indexes = active.active()
        try:
            if held.failure is None and not self.recovery.is_damaged:
                indexes.write(self._files, active.path)
                self._settle()
        except OSError as error:
            raise held.fail("close", error) from error
        finally:
            held.let_go()

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
            NoRoomError: there is no file descriptor to read with.
            StorageFailedError: the disk failed, or failed before and the range is in doubt.
        """
        return self._reads.read(offset, end_offset, bytes_max, cached_only=cached_only)

    def headers(self, from_offset: Offset) -> Iterator[BatchHeader]:
        """Verified headers, from the batch that holds ``from_offset`` to the present end.

        Raises:
            CorruptionError: a header is damaged, or they do not follow on from one another up to
                the end; names file and position.
        """
        return self._reads.headers(from_offset)

    def replay(self, from_offset: Offset) -> Iterator[tuple[BatchHeader, Buffer | None]]:
        """As ``headers``, each control batch with its verified bytes.

        Raises:
            CorruptionError: as ``headers``, or a control batch is damaged.
        """
        return self._reads.replay(from_offset)

    def append_time_at(self, offset: Offset) -> int:
        """When the batch that holds ``offset`` was appended.

        Raises:
            CorruptionError: a header on the way is damaged.
        """
        return self._reads.append_time_at(offset)

    def offset_for_time(self, time_ms: int) -> Offset | None:
        """Base offset of the first batch appended at ``time_ms`` or later; None if none was.

        Raises:
            CorruptionError: a header on the way is damaged.
            OSError: the disk failed.
        """
        return self._reads.offset_for_time(time_ms)

    def scrub_start(self, offset: Offset) -> ScrubPosition:
        """The beginning of the segment that holds ``offset``."""
        return scrub_start(self._held, offset)

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
        return scrub(self._held, position, bytes_max)

    # --- writing, inside ----------------------------------------------------------------

    def _next_mark(self, end: LogEnd, commit_offset: Offset) -> MarkSlot:
        """The mark that claims ``end``; the present one if that already does."""
        assert self._mark is not None
        return self._mark.followed_by(end.term, end.offset, end.position, commit_offset)

    def _create_next(self, commit_offset: Offset) -> tuple[Segment, MarkSlot]:
        """As ``LogContents.create_next``.

        Raises:
            NoRoomError: all is as it was, or only a descriptor is lacking.  A sync that failed for
                want of room is none of these.
        """
        held = self._held
        try:
            return held.create_next(commit_offset)
        except OSError as error:
            lack = what_lacks(error)
            can_go_on = is_no_descriptor(error) or not held.is_next_begun
            if lack is not None and can_go_on:
                raise NoRoomError(f"no {lack} for another segment in {held.directory}") from error
            raise

    def _settle(self) -> Offset:
        """Sync everything, then a mark that covers it, without the space allocated ahead.

        Returns the commit offset in that mark.
        """
        held = self._held
        end = held.end
        file, _ = held.active.active()
        if held.synced is not end:
            file.sync()
            held.synced = end
        assert self._mark is not None
        mark = self._next_mark(end, self._mark.commit_offset)
        is_settled = mark is self._mark and file.size() == end.position
        if not is_settled:
            if mark is not self._mark:
                write_mark(file, mark, self._group)
            file.truncate(end.position)
            file.sync()
        self._mark = mark
        self._space.begin(end.position)
        return mark.commit_offset

    def _drop_segments_behind(self, number: int, offset: Offset) -> None:
        """Let this one be the last, and active again as it was when it was sealed.

        It holds ``offset``, and nobody may have looked at it for long.  So it is looked at before
        anything goes.
        """
        held = self._held
        last, after = held.segments[number : number + 2]
        covered = LogEnd(after.base_offset, after.prev_term, last.end)
        self._end_of_batch(offset, last, covered)
        found = newest_mark(last.opened_file().pread(SLOTS_END, 0), self._group)
        if found is None or (found.end_offset, found.term, found.end_position) != covered:
            raise CorruptionError(f"{last.path}: its synced mark does not cover it")
        active = held.reopened(last)
        # First: a crash on the way must not leave one that leads to what is gone.
        for segment in held.segments[number:-1]:
            held.forget_successor(segment)
        self._mark = found
        self._space.begin(found.end_position)
        end = LogEnd(found.end_offset, found.term, found.end_position)
        held.cut_behind(number, active, end)

    def _end_of_batch(self, offset: Offset, segment: Segment, end: LogEnd) -> LogEnd:
        """Where the batch ends that ends at ``offset``, in a segment that ends at ``end``.

        Damage before it is no reason not to cut there: it is found, and filled, all the same.
        """
        try:
            position, term = segment.position_after(offset, end.position)
        except CorruptionError:
            start = LogEnd(segment.base_offset, segment.prev_term, FIRST_POSITION)
            file = segment.opened_file()
            found = end_beyond_damage(file, self._group, start, end, offset)
            if found is None:
                raise
            return found
        return LogEnd(offset, term, position)

    def _cut_active(self, offset: Offset) -> None:
        held = self._held
        active = held.active
        file, indexes = active.active()
        cut = self._end_of_batch(offset, active, held.end)
        # Before anything is cut, for it may lack a descriptor; and also if they are not there, for
        # when it did, they were removed, and would come back.
        remove_indexes(self._files, active.path)
        self._files.sync_directory(held.directory)
        position = cut.position
        assert self._mark is not None
        if self._mark.end_offset > offset:
            mark = self._next_mark(cut, self._mark.commit_offset)
            write_mark(file, mark, self._group)
            file.sync()
            self._mark = mark
        # Before the file is cut: who reads meanwhile must not look for what is gone.
        held.end = held.synced = cut
        active.end = position
        active.indexes = indexes.kept_below(position)
        file.truncate(position)
        file.sync()
        self._space.begin(position)

    def _put_off_or_fail(self, action: str, error: OSError) -> NoRoomError | StorageFailedError:
        """What to raise of what can be done again if it was only kept from asking the disk."""
        if is_no_descriptor(error):
            return NoRoomError(f"no file descriptor to {action} the log in {self._held.directory}")
        return self._held.fail(action, error)

    def _check_usable(self) -> None:
        if self._held.failure is not None:
            raise self._held.refusal()
        if self.recovery.is_damaged:
            raise StorageFailedError(
                f"the log in {self._held.directory} is damaged: {'; '.join(self.recovery.damage)}"
            )
