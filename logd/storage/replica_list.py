"""Which replicas a data directory holds, so that one whose files are gone is missed.

A replica whose whole directory was taken away, by a hand or by a check of the file system, looks
like one that was not made yet.  It would be made, empty, and vote as if nothing had ever been
promised in its name.  So each one is noted here, in a file apart, when its directory is there for
good, and noted as gone before that goes to the trash.

Rows are appended and synced; now and then the file is written anew with what is left.  A row that
is damaged is passed over: what it said is found by looking, unless the directory is gone as well.

Format: segment_format.md, section 9.
"""

from __future__ import annotations

import struct
import threading
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
        self._append([group for group in groups if group not in self._noted], gone=0)

    def note_gone(self, group: GroupId) -> None:
        """This one is about to go: durable when this returns.

        Raises:
            OSError: the disk failed.
        """
        self._append([group] if group in self._noted else [], gone=_GONE)

    def _append(self, groups: list[GroupId], gone: int) -> None:
        with self._writing:
            if not groups:
                return
            if self._is_written and self._rows < len(self._noted) + STALE_ROWS_MAX:
                self._write_rows(b"".join(_row(group, gone) for group in groups))
                self._rows += len(groups)
                self._change(groups, gone)
            else:
                self._change(groups, gone)
                self._write_all()

    def _change(self, groups: list[GroupId], gone: int) -> None:
        for group in groups:
            if gone:
                self._noted.pop(group, None)
            else:
                self._noted[group] = None

    def _write_rows(self, rows: bytes) -> None:
        file = self._files.open(self._path)
        try:
            file.pwritev([rows], FILE_HEADER_BYTES + self._rows * ROW_BYTES)
            file.sync()
        finally:
            file.close()

    def _write_all(self) -> None:
        header = encode_file_header(REPLICAS_MAGIC, FileHeader(self._identity))
        rows = b"".join(_row(group, 0) for group in self._noted)
        self._is_written = False  # Until it is: what failed half-way is not built upon.
        write_new_file(self._files, self._path, [header, rows])
        self._rows = len(self._noted)
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
                self._change([GroupId(value & ~_GONE)], value & _GONE)
        self._is_written = True


def _row(group: GroupId, gone: int) -> bytes:
    return with_checksum(_ROW.pack(0, group | gone), METADATA_GROUP)
