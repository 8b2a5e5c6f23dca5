"""Which replicas a data directory holds, so that one whose files are gone is missed.

A replica whose whole directory was taken away, by a hand or by a check of the file system, looks
like one that was not made yet.  It would be made, empty, and vote as if nothing had ever been
promised in its name.  So each one is noted here, in a file apart, when its directory is there for
good, and noted as gone before that goes to the trash.

Rows are appended and synced, those of several threads together; now and then the file is written
anew with what is left.  A row that is damaged is passed over: what it said is found by looking,
unless the directory is gone as well.

Format: segment_format.md, section 9.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from logd.env import FileSystem
from logd.errors import CorruptionError
from logd.storage.checksummed import is_intact, with_checksum
from logd.storage.file_header import (
    FILE_HEADER_BYTES,
    REPLICAS_MAGIC,
    FileHeader,
    LogIdentity,
    decode_file_header,
    encode_file_header,
    refuse_foreign,
)
from logd.storage.whole_file import UNFINISHED_SUFFIX, write_new_file
from logd.types import METADATA_GROUP, GroupId

_ROW: Final = struct.Struct("<QQ")
ROW_BYTES: Final = _ROW.size
_GONE: Final = 1 << 63
"""Beside the group: it is not here any more."""

_Change = tuple[GroupId, int]
"""A group, and 0 or ``_GONE``."""

STALE_ROWS_MAX: Final = 65_536
"""So many rows more than there are replicas, and the file is written anew."""


class ReplicaList:
    """The list of one data directory.  May be called from several threads."""

    def __init__(self, files: FileSystem, path: str, identity: LogIdentity) -> None:
        """Read the list at ``path``; one that is missing, or no list any more, is empty.

        Raises:
            ForeignDirectoryError: it is of another directory.
            NewerFormatError: a later version wrote it.
            OSError: the disk failed.
        """
        self._files = files
        self._path = path
        self._identity = identity
        self._writing = threading.Lock()
        self._waiting: deque[_Change] = deque()
        """To be written by whoever has the lock next."""
        self._noted: dict[GroupId, None] = {}
        self._rows = 0
        self._is_written = False
        if files.exists(path + UNFINISHED_SUFFIX):
            files.remove(path + UNFINISHED_SUFFIX)
        if files.exists(path):
            self._read()

    def __contains__(self, group: GroupId) -> bool:
        return group in self._noted

    @property
    def groups(self) -> list[GroupId]:
        """All that are noted, in order."""
        return sorted(self._noted)

    def note(self, *groups: GroupId) -> None:
        """These replicas are here: durable when this returns.

        Raises:
            OSError: the disk failed.
        """
        self._change([(group, 0) for group in groups if group not in self._noted])

    def note_gone(self, group: GroupId) -> None:
        """This one is about to go: durable when this returns.

        Raises:
            OSError: the disk failed.
        """
        self._change([(group, _GONE)] if group in self._noted else [])

    def _change(self, changes: list[_Change]) -> None:
        if not changes:
            return
        self._waiting.extend(changes)
        with self._writing:
            together: list[_Change] = []
            while self._waiting:
                together.append(self._waiting.popleft())
            if not together:
                return  # Whoever had the lock has written ours, too.
            try:
                self._write(together)
            except BaseException:
                # Nobody goes on as if his were there.
                self._waiting.extendleft(reversed(together))
                raise

    def _write(self, changes: list[_Change]) -> None:
        noted = dict(self._noted)
        _carry_out(noted, changes)
        if self._is_written and self._rows < len(self._noted) + STALE_ROWS_MAX:
            self._write_rows(changes)
        else:
            self._write_all(noted)
        self._noted = noted

    def _write_rows(self, changes: list[_Change]) -> None:
        rows = b"".join(map(_row, changes))
        file = self._files.open(self._path)
        try:
            file.pwritev([rows], FILE_HEADER_BYTES + self._rows * ROW_BYTES)
            file.sync()
        finally:
            file.close()
        self._rows += len(changes)

    def _write_all(self, noted: Iterable[GroupId]) -> None:
        header = encode_file_header(REPLICAS_MAGIC, FileHeader(self._identity))
        rows = [_row((group, 0)) for group in noted]
        self._is_written = False  # Until it is: what failed half-way is not built upon.
        write_new_file(self._files, self._path, [header, b"".join(rows)])
        self._rows = len(rows)
        self._is_written = True

    def _read(self) -> None:
        file = self._files.open(self._path, writable=False)
        try:
            content = file.pread(file.size(), 0)
        finally:
            file.close()
        try:
            header = decode_file_header(self._path, REPLICAS_MAGIC, content)
        except CorruptionError:
            return  # It is written anew.
        refuse_foreign(self._path, header.identity, self._identity)
        rows = content[FILE_HEADER_BYTES:]
        self._rows = -(-len(rows) // ROW_BYTES)
        for start in range(0, len(rows) - ROW_BYTES + 1, ROW_BYTES):
            row = bytes(rows[start : start + ROW_BYTES])
            if is_intact(row, METADATA_GROUP):
                _, value = _ROW.unpack(row)
                _carry_out(self._noted, [(GroupId(value & ~_GONE), value & _GONE)])
        self._is_written = True


def _carry_out(noted: dict[GroupId, None], changes: list[_Change]) -> None:
    for group, gone in changes:
        if gone:
            noted.pop(group, None)
        else:
            noted[group] = None


def _row(change: _Change) -> bytes:
    group, gone = change
    return with_checksum(_ROW.pack(0, group | gone), METADATA_GROUP)
