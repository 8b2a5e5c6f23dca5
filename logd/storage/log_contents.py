"""What one log holds, as all its threads see it: its segments, and how far they go.

Appends, a sync and reads go on at the same time, each in its own thread.  No lock is needed:
what they share are the few attributes here, each of them is replaced as a whole, which the
interpreter does atomically, and each is written by one side only:

- ``end`` by the append, after the bytes are in the page cache;
- ``synced`` by the sync, after it has completed;
- ``segments``, with the files that they are, by what is exclusive: rolling, truncating,
  trimming and replacing.  A reader takes the tuple once and keeps to it.

A reader may so come upon bytes in the middle of a truncation, or upon a segment that was just
trimmed.  It is not kept from that: it notes ``changes`` and the segments before it begins and,
if it met something bad, begins again unless all ``is_as_it_was``.

The tuple and the directory change together, in an order that a crash may interrupt anywhere:
what is removed goes one segment at a time, each durably, so that what is left has no gap.

Invariants: there is always a segment; segments are contiguous; only the last is written to;
``synced`` is never ahead of ``end``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, NamedTuple

from logd.env import FileSystem
from logd.errors import CorruptionError, StorageFailedError
from logd.storage.file_header import FileHeader, LogIdentity
from logd.storage.kept_open import KeptOpen
from logd.storage.recovery import LogEnd, read_segment_header
from logd.storage.segment import (
    FIRST_POSITION,
    Segment,
    create_segment,
    first_mark,
    segment_name,
)
from logd.storage.segment_index import remove_indexes, remove_indexes_durably
from logd.storage.successor_note import clear_note
from logd.storage.synced_mark import SLOTS_END, MarkSlot, newest_mark
from logd.storage.trash import throw_away
from logd.types import FilePosition, Offset, Term

_RECENTLY_READ_MAX: Final = 4
"""Sealed segments of one log whose indexes stay loaded after a read, and their files open if there
are descriptors for that."""


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


class LogContents:
    """The segments of one log in one directory, and where the last of them ends."""

    __slots__ = (
        "__weakref__",
        "_cut_off",
        "_files",
        "_kept_open",
        "_recently_read",
        "_unsynced",
        "changes",
        "directory",
        "end",
        "failure",
        "identity",
        "interval_bytes",
        "replacements",
        "segments",
        "synced",
    )

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        identity: LogIdentity,
        interval_bytes: int,
        segments: tuple[Segment, ...],
        end: LogEnd,
        kept_open: KeptOpen | None = None,
    ) -> None:
        self._files = files
        self._kept_open = KeptOpen(files) if kept_open is None else kept_open
        self._recently_read: list[Segment] = []
        self._cut_off: tuple[Segment, ...] = ()
        """What a truncation has left out, and has not removed yet."""
        self._unsynced: tuple[str, ...] = ()
        """Directories that what was dropped has left, or come to, and that does not last yet."""
        self.directory = directory
        self.identity = identity
        self.interval_bytes = interval_bytes
        """One index row per this many bytes, in what is written from now on."""
        self.segments = segments
        self.end = end
        """Behind the last batch that was appended: the end of the active segment."""
        self.synced = end
        """Below it everything is durable."""
        self.failure: BaseException | None = None
        """The error after which nothing above ``synced`` is believed."""
        self.changes = 0
        """Raised whenever bytes that a reader may be looking at become others; odd meanwhile."""
        self.replacements = 0
        """How often a file took the place of segments since the log was opened."""
        self._kept_open.log_opened(self)

    @property
    def active(self) -> Segment:
        """The one that is written to."""
        return self.segments[-1]

    @property
    def sealed(self) -> list[SealedSegment]:
        """The others, oldest first."""
        return [
            SealedSegment(
                segment.base_offset,
                after.base_offset,
                segment.prev_term,
                after.prev_term,
                segment.end,
            )
            for segment, after in pairwise(self.segments)
        ]

    def bytes_from(self, offset: Offset) -> int:
        """About how many bytes of batches lie at and above ``offset``: see ``Log.bytes_from``."""
        total = 0
        base, end = self.active.base_offset, self.end
        spans = [(each.base_offset, each.end_offset, each.size_bytes) for each in self.sealed]
        spans.append((base, end.offset, end.position - FIRST_POSITION))
        for base_offset, end_offset, size_bytes in reversed(spans):
            if offset >= end_offset:
                break
            if end_offset > base_offset:  # Behind a roll the active one is empty.
                above = end_offset - max(offset, base_offset)
                total += size_bytes * above // (end_offset - base_offset)
        return total

    # --- reading ------------------------------------------------------------------------

    def is_as_it_was(self, changes: int, segments: tuple[Segment, ...]) -> bool:
        """Whether nothing was truncated, compacted or trimmed under a reader, who tries again.

        A trimmed segment may be gone, or already cut shorter in the trash.  A reader that began in
        the middle of a change tries again until that is over.
        """
        is_changing = self.changes % 2 == 1
        return changes == self.changes and not is_changing and segments[0] is self.segments[0]

    def note_read(self, segment: Segment) -> None:
        """Keep the few segments at hand that were read last."""
        if segment is self.active:
            return
        recent = [each for each in self._recently_read if each is not segment]
        recent.append(segment)
        for each in recent[:-_RECENTLY_READ_MAX]:
            if each is not self.active:
                self._kept_open.forget(each)
                each.let_go()
        self._recently_read = recent[-_RECENTLY_READ_MAX:]
        self._kept_open.note_read(segment)

    def let_go(self) -> None:
        """Nobody is to read or write here any more."""
        self._kept_open.log_closed(self)
        for segment in self.segments:
            self._kept_open.forget(segment)
            segment.let_go()
        self._recently_read = []

    # --- changing: exclusive, except that reads and, where it is said, appends go on -----

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around what makes bytes that a reader may be looking at become others."""
        self.changes += 1
        try:
            yield
        finally:
            # Again: a read that began half-way must not believe what it saw either.
            self.changes += 1

    def create_next(self, commit_offset: Offset) -> tuple[Segment, MarkSlot]:
        """Create the file of the next segment, behind the end, with its first mark.

        Go on with one that is begun already: nothing but a descriptor was lacking.
        """
        offset, term, _ = self.end
        if self.is_next_begun:
            mark = first_mark(offset, term, commit_offset)
            self._files.sync_directory(self.directory)
        else:
            mark = create_segment(
                self._files, self.directory, self.identity, offset, term, commit_offset
            )
        fresh = self._segment(offset, term, FIRST_POSITION)
        fresh.opened_for_append()
        return fresh, mark

    @property
    def is_next_begun(self) -> bool:
        """Whether ``create_next`` got as far as to give the next segment its name."""
        return self._files.exists(f"{self.directory}/{segment_name(self.end.offset)}")

    def roll_on(self, fresh: Segment) -> None:
        """Everything is durable: go on in ``fresh``, from ``create_next``."""
        active, end = self.active, self.end
        active.end = end.position
        # In this order: a reader takes the end first, and the one from before leads nowhere in
        # the fresh segment.  The new one would say that the segment before it holds nothing.
        self.segments = (*self.segments, fresh)
        self.end = self.synced = LogEnd(end.offset, end.term, FIRST_POSITION)
        self.note_read(active)

    def drop_first(self, trash: str | None) -> None:
        """Drop the first segment, which is not the only one.  Appends may go on.

        Args:
            trash: takes the file; None removes it.
        """
        first = self.segments[0]
        # First: who finds the file gone must find the segment gone as well.
        self.segments = self.segments[1:]
        self._forget_dropped()
        remove_indexes(self._files, first.path)
        # Durable before the next one goes: a gap would be taken for damage.
        self._drop({first.path: first.base_offset}, trash)

    def reopened(self, sealed: Segment) -> Segment:
        """A sealed segment, open for appending.

        Another object: a reader may be about to open the one that is there, for reading, or to let
        go of it.
        """
        fresh = self._segment(sealed.base_offset, sealed.prev_term, sealed.end)
        fresh.opened_for_append()
        return fresh

    def cut_behind(self, number: int, active: Segment, end: LogEnd) -> None:
        """Leave out the segments behind this one: it is active again, and ends durably at ``end``.

        Their files are for ``remove_cut_off``.

        Args:
            active: from ``reopened``.
        """
        self._cut_off = self.segments[number + 1 :]
        # First, and in this order: a reader takes the end first, and who finds a file gone must
        # find its segment gone as well.
        self.end = self.synced = end
        self.segments = (*self.segments[:number], active)
        self._forget_dropped()

    def remove_cut_off(self) -> None:
        """Remove the files of segments that were left out.  Called again, it goes on."""
        while self._cut_off:  # Newest first, each durably: never leave a gap.
            last = self._cut_off[-1]
            remove_indexes(self._files, last.path)
            if self._files.exists(last.path):
                self._files.remove(last.path)
            self._files.sync_directory(self.directory)
            self._cut_off = self._cut_off[:-1]

    def forget_successor(self, segment: Segment) -> None:
        """What follows ``segment`` is about to be removed."""
        file = self._files.open(segment.path)
        try:
            clear_note(file)
        finally:
            file.close()

    def sealed_at(self, bases: Sequence[Offset]) -> tuple[Segment, ...]:
        """The sealed segments that begin at ``bases``, one behind the other; else none."""
        number = max(0, segment_number(self.segments, bases[0]))
        found = self.segments[:-1][number : number + len(bases)]
        is_there = [segment.base_offset for segment in found] == list(bases)
        return found if is_there else ()

    def check_replacement(self, replaced: Sequence[Segment], path: str) -> Segment:
        """The segment that ``path`` will be; it covers exactly what ``replaced`` do.

        Raises:
            CorruptionError: it does not; it was removed.
        """
        first, after = replaced[0], self.segments[self.segments.index(replaced[-1]) + 1]
        header, block, size = read_segment_header(self._files, path)
        mark = newest_mark(block[:SLOTS_END], self.identity.group)
        expected = FileHeader(self.identity, first.base_offset, first.prev_term)
        end = LogEnd(after.base_offset, after.prev_term, FilePosition(size))
        found = None if mark is None else LogEnd(mark.end_offset, mark.term, mark.end_position)
        if header != expected or found != end:
            self._files.remove(path)
            raise CorruptionError(
                f"{path} says {header} and ends at {found}, expected {expected} and {end}"
            )
        return self._segment(first.base_offset, first.prev_term, FilePosition(size))

    def put_in_place(
        self,
        replaced: Sequence[Segment],
        fresh: Segment,
        path: str,
        aside: str | None,
        trash: str | None,
    ) -> None:
        """Let ``fresh``, now at ``path``, take the place of ``replaced``.  Appends may go on.

        It takes the first one's name, which is atomic; the others then lie below the end of
        the one before them, which is how recovery knows that they have been replaced.

        Args:
            aside: a second name of the first one.
            trash: takes the replaced files; None removes them.
        """
        segments = self.segments
        number = segments.index(replaced[0])
        with self.changing():
            remove_indexes_durably(self._files, fresh.path)
            self._files.rename(path, fresh.path)
            # Before the old one is in the trash: what is cut there must have no name here.
            self._files.sync_directory(self.directory)
            behind = number + len(replaced)
            self.segments = (*segments[:number], fresh, *segments[behind:])
            self.replacements += 1
            dropped = {segment.path: segment.base_offset for segment in replaced[1:]}
            if aside is not None:
                dropped[aside] = fresh.base_offset
            if dropped:
                self._drop(dropped, trash, self.replacements)
            for segment in replaced[1:]:
                remove_indexes(self._files, segment.path)
        self._forget_dropped()

    def _forget_dropped(self) -> None:
        """What was read and is no sealed segment here any more is kept open for nobody."""
        recent, sealed = self._recently_read, self.segments[:-1]
        self._recently_read = [each for each in recent if each in sealed]
        for each in recent:
            if each not in sealed:
                self._kept_open.forget(each)

    def _drop(
        self, dropped: Mapping[str, Offset], trash: str | None, number: int | None = None
    ) -> None:
        """Let files of segments go, durably: see ``throw_away``."""
        self._unsynced = (self.directory,) if trash is None else (self.directory, trash)
        if trash is not None:
            throw_away(self._files, trash, self.identity.group, dropped, number)
        else:
            for path in dropped:
                self._files.remove(path)
            self._files.sync_directory(self.directory)
        self._unsynced = ()

    @property
    def is_drop_synced(self) -> bool:
        """Whether what was dropped is gone for good."""
        return not self._unsynced

    def sync_dropped(self) -> None:
        """See that what was dropped is gone for good, if a descriptor was lacking for that."""
        while self._unsynced:
            self._files.sync_directory(self._unsynced[0])
            self._unsynced = self._unsynced[1:]

    def _segment(self, base_offset: Offset, prev_term: Term, end: FilePosition) -> Segment:
        return Segment(
            self._files,
            f"{self.directory}/{segment_name(base_offset)}",
            self.identity.group,
            self.interval_bytes,
            base_offset=base_offset,
            prev_term=prev_term,
            end=end,
        )

    # --- failing ------------------------------------------------------------------------

    def fail(self, action: str, error: OSError) -> StorageFailedError:
        """Poison the log.  Returns what to raise."""
        self.failure = error
        return StorageFailedError(f"{action} failed on the log in {self.directory}: {error}")

    def refusal(self) -> StorageFailedError:
        """What to raise because the log failed before."""
        refusal = StorageFailedError(
            f"the log in {self.directory} failed before and takes nothing more: {self.failure}"
        )
        refusal.__cause__ = self.failure
        return refusal


def segment_number(segments: tuple[Segment, ...], offset: Offset) -> int:
    """Which of ``segments`` holds ``offset``; -1: it lies before them."""
    return bisect_right(segments, offset, key=lambda segment: segment.base_offset) - 1
