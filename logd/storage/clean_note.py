"""How far a log has been compacted, and since when: a note beside its segments.

A tombstone may go once nobody needs it any more: when every replica has held nothing of what it
deletes for as long as the topic says.  So each replica remembers since when its own log has been
clean up to where, and tells the others (``replication/compacting.py``).

The note is true as long as only compactions and appends change the log.  Whatever puts in what
peers hold, who may not have compacted it yet, removes the note first, durably; so does a log that
is replaced.  One that cannot be read is as good as none: the log is compacted anew.

Format: segment_format.md, section 10.
"""

from __future__ import annotations

from typing import Final

import msgspec

from logd.env import FileSystem
from logd.errors import CorruptionError
from logd.storage.file_header import CLEAN_MAGIC, FileHeader, LogIdentity, refuse_foreign
from logd.storage.whole_file import read_payload_file, write_payload_file
from logd.types import NO_OFFSET, Offset

NOTE_NAME: Final = "clean"


class CleanNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a log that has been compacted."""

    clean_to: Offset = Offset(0)
    """Of the records of a key below it only the last one is left, but for what is stale."""
    has_stale: bool = False
    """A record is left there that a later one replaces: its batch could not be rewritten."""
    oldest_tombstone: Offset = NO_OFFSET
    """Where the oldest one below ``clean_to`` was; -1: there is none."""
    since: tuple[tuple[Offset, int], ...] = ()
    """(offset, log time in ms): since then nothing below the offset has been left that another
    record below the offset replaces.  Both increase."""

    def settled_to(self, before_ms: int) -> Offset:
        """Up to where the log had been clean by then."""
        settled = [offset for offset, since_ms in self.since if since_ms <= before_ms]
        return max(settled, default=Offset(0))

    def compacted(
        self,
        *,
        clean_to: Offset,
        has_stale: bool,
        oldest_tombstone: Offset,
        now_ms: int,
        tombstone_ms: int,
    ) -> CleanNote:
        """The note after another compaction.

        What comes close behind shares a row with what came before, and the later time: a log that
        is compacted every minute has few rows, and its tombstones still go.
        """
        has_stale = has_stale or self.has_stale
        settled_to = self.settled_to(now_ms - tombstone_ms)
        since = [row for row in self.since if row[0] >= settled_to]
        if not has_stale and clean_to > max((offset for offset, _ in since), default=0):
            if len(since) > 1 and since[-1][1] - since[-2][1] < tombstone_ms // 2:
                since.pop()
            since.append((clean_to, now_ms))
        return CleanNote(
            clean_to=clean_to,
            has_stale=has_stale,
            oldest_tombstone=oldest_tombstone,
            since=tuple(since),
        )


def read_clean_note(files: FileSystem, directory: str, identity: LogIdentity) -> CleanNote | None:
    """The note of the log in ``directory``; None if there is none, or none that can be read.

    Raises:
        OSError: the disk failed.
        StorageError: it is of another log, or of a newer format.
    """
    path = f"{directory}/{NOTE_NAME}"
    if not files.exists(path):
        return None
    try:
        header, payload = read_payload_file(files, path, CLEAN_MAGIC)
        refuse_foreign(path, header.identity, identity)
        return _DECODER.decode(payload)
    except (CorruptionError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def write_clean_note(
    files: FileSystem,
    directory: str,
    identity: LogIdentity,
    note: CleanNote,
    *,
    instead_of: CleanNote | None,
) -> bool:
    """Keep ``note``, durably; False: another than ``instead_of`` is there, which stays.

    Exclusive with whatever changes the log.

    Raises:
        OSError: the disk failed.
        StorageError: there is one of another log, or of a newer format.
    """
    if read_clean_note(files, directory, identity) != instead_of:
        return False
    header = FileHeader(identity, note.clean_to)
    payload = msgspec.msgpack.encode(note)
    write_payload_file(files, f"{directory}/{NOTE_NAME}", CLEAN_MAGIC, header, payload)
    return True


def withdraw_clean_note(files: FileSystem, directory: str) -> None:
    """Remove the note, durably: what comes into the log may not have been compacted.

    Raises:
        OSError: the disk failed.
    """
    path = f"{directory}/{NOTE_NAME}"
    if files.exists(path):
        files.remove(path)
        files.sync_directory(directory)


_DECODER: Final = msgspec.msgpack.Decoder(CleanNote)
