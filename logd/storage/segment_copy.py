"""A sealed segment made anew, of what peers hold at its offsets.

Where logs were compacted, replicas need not hold the same bytes at the same offsets, and a
hole cannot be filled byte for byte.  But any replica's committed batches for a whole segment's
offsets are as good as what was there: they cover the same offsets in the same terms, and of each
key they have the last record or a later one is in the log, be it a tombstone: those stay until no
replica holds anything of what they delete.  So the segment is written again, whole, beside the
damaged one, and takes its place at once.

Batches keep their boundaries in every log; only gaps may have to be cut where the segment
begins, ends, or one peer's answer ends and another's begins.
"""

from __future__ import annotations

from logd.env import FileSystem
from logd.errors import CorruptionError
from logd.record.compacted import cut_gap
from logd.record.header import decode_header, split_batches, verify_header, verify_seal
from logd.storage.file_header import LogIdentity
from logd.storage.log_contents import SealedSegment
from logd.storage.recovery import LogEnd
from logd.storage.segment import FIRST_POSITION, segment_header_block, segment_name
from logd.storage.synced_mark import MarkSlot
from logd.storage.whole_file import UNFINISHED_SUFFIX
from logd.types import Buffer, FilePosition, Offset


class SegmentCopy:
    """Gathers one segment's batches in an unfinished file."""

    def __init__(
        self, files: FileSystem, directory: str, identity: LogIdentity, segment: SealedSegment
    ) -> None:
        self._files = files
        self._identity = identity
        self._segment = segment
        # Not the name that a compaction of the same segment uses.
        name = segment_name(segment.base_offset)
        self.path = f"{directory}/copy-{name}{UNFINISHED_SUFFIX}"
        if files.exists(self.path):
            files.remove(self.path)
        self._file = files.open(self.path, create=True)
        self._at = LogEnd(segment.base_offset, segment.prev_term, FIRST_POSITION)

    @property
    def wanted_from(self) -> Offset:
        """What comes next."""
        return self._at.offset

    @property
    def is_complete(self) -> bool:
        return self._at.offset == self._segment.end_offset

    def add(self, batches: bytes) -> None:
        """Take committed batches that follow on.

        Raises:
            CorruptionError: they do not, or are not intact; nothing was written.
            OSError: the disk failed.
        """
        at, group = self._at, self._identity.group
        written: list[Buffer] = []
        for header, view in split_batches(memoryview(batches)):
            verify_header(view, header, group)
            verify_seal(view)
            batch: Buffer = view
            end_offset = self._segment.end_offset
            if header.is_gap and header.base_offset < end_offset:
                start = max(header.base_offset, at.offset)
                batch = cut_gap(header, start, min(header.end_offset, end_offset), group)
                header = decode_header(batch)
            if (
                header.base_offset != at.offset
                or header.end_offset > end_offset
                or not at.term <= header.term <= self._segment.end_term
            ):
                raise CorruptionError(
                    f"{self.path}: offered offsets [{header.base_offset}, {header.end_offset}) of "
                    f"term {header.term}, expected [{at.offset}, {end_offset}) of terms "
                    f"{at.term} to {self._segment.end_term}"
                )
            written.append(batch)
            position = FilePosition(at.position + header.size_bytes)
            at = LogEnd(header.end_offset, header.term, position)
        self._file.pwritev(written, self._at.position)
        self._at = at

    def finish(self) -> str:
        """Make the complete file durable; its path, for ``Log.replace``.

        Raises:
            CorruptionError: it does not end in the term that the segment ended in.
            OSError: the disk failed.
        """
        segment, at = self._segment, self._at
        assert self.is_complete
        if at.term != segment.end_term:
            raise CorruptionError(f"{self.path} ends in term {at.term}, not {segment.end_term}")
        mark = MarkSlot(1, at.term, at.offset, at.position, at.offset)
        block = segment_header_block(self._identity, segment.base_offset, segment.prev_term, mark)
        self._file.pwritev([block], 0)
        self._file.sync()
        self._file.close()
        return self.path

    def discard(self) -> None:
        """Nothing has come of it."""
        self._file.close()
        if self._files.exists(self.path):
            self._files.remove(self.path)
