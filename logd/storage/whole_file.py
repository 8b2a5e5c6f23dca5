"""Small files that are written once, whole, and read whole: meta and checkpoints.

The order is always the same, and it is what makes the file atomic: write under another
name, sync the bytes, rename, sync the directory.  After a power cut the name leads either
to the old bytes or to all of the new ones.
"""

from __future__ import annotations

from typing import Final, Protocol

from logd.env import FileSystem
from logd.errors import CorruptionError
from logd.storage.file_header import (
    FILE_HEADER_BYTES,
    FileHeader,
    decode_file_header,
    encode_file_header,
    payload_checksum,
)
from logd.storage.room import is_no_room
from logd.types import Buffer

UNFINISHED_SUFFIX: Final = ".tmp"
"""A file of that name was being written when the power failed.  It holds nothing anybody
relied on and is removed."""


class WriteNew(Protocol):
    """How a new file is written: ``write_new_file``, or ``write_in_new_directory``."""

    def __call__(self, files: FileSystem, path: str, content: list[Buffer]) -> None: ...


def write_new_file(files: FileSystem, path: str, content: list[Buffer]) -> None:
    """Give ``path`` the bytes ``content``, durably and all at once."""
    unfinished = path + UNFINISHED_SUFFIX
    if files.exists(unfinished):
        files.remove(unfinished)
    try:
        write_in_new_directory(files, unfinished, content)
    except OSError as error:
        if is_no_room(error) and files.exists(unfinished):
            files.remove(unfinished)  # A part of it, which would keep what room there is.
        raise
    files.rename(unfinished, path)
    files.sync_directory(parent(path))


def write_in_new_directory(files: FileSystem, path: str, content: list[Buffer]) -> None:
    """Write a file into a directory that itself is unfinished: it is the caller who syncs that,
    and gives it its name, once all its files are there.  Only the bytes are synced here."""
    file = files.open(path, create=True)
    try:
        file.pwritev(content, 0)
        file.sync()
    finally:
        file.close()


def write_payload_file(
    files: FileSystem, path: str, magic: bytes, header: FileHeader, payload: bytes
) -> None:
    """Write a header and the one payload it describes."""
    header = header._replace(payload_bytes=len(payload), payload_checksum=payload_checksum(payload))
    write_new_file(files, path, [encode_file_header(magic, header), payload])


def read_payload_file(files: FileSystem, path: str, magic: bytes) -> tuple[FileHeader, bytes]:
    """Read and verify a file that ``write_payload_file`` wrote.

    Raises:
        CorruptionError: damaged or cut short.
        NewerFormatError: written by a later version.
    """
    file = files.open(path, writable=False)
    try:
        header = decode_file_header(path, magic, file.pread(FILE_HEADER_BYTES, 0))
        # Before it is read: a damaged length may be one that no memory holds.
        size = file.size() - FILE_HEADER_BYTES
        if size != header.payload_bytes:
            raise CorruptionError(
                f"{path}: {size} bytes behind the header, it says {header.payload_bytes}"
            )
        payload = file.pread(size, FILE_HEADER_BYTES)
    finally:
        file.close()
    if payload_checksum(payload) != header.payload_checksum:
        raise CorruptionError(f"{path}: the content is not what was written")
    return header, payload


def read_file(files: FileSystem, path: str, bytes_max: int) -> bytes:
    """The bytes of a small file: all that it should have, whatever its length says."""
    file = files.open(path, writable=False)
    try:
        return file.pread(bytes_max, 0)
    finally:
        file.close()


def make_directory_durably(files: FileSystem, path: str) -> None:
    """Make a directory durably: its name too, and those of the parents that were missing."""
    missing = []
    while not files.is_directory(path) and path != "/":
        missing.append(path)
        path = parent(path)
    if missing:
        files.make_directory(missing[0])
    for each in reversed(missing):
        files.sync_directory(parent(each))


def parent(path: str) -> str:
    """The directory that holds ``path``."""
    return path.rpartition("/")[0] or "/"
