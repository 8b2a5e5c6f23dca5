"""The 128 bytes that open every file logd writes, indexes apart.

Why one header for all: a file found under the wrong name, in the wrong directory or on the
wrong machine must be refused before anything in it is believed.  The checksum covers the
rest of the header and is verified first; magic, version and checksum keep their places in
every later version, so that an old program can tell "newer" from "damaged".

Why the directory's id and not the cluster's: group 0 is written before a cluster exists to
be named.  The directory is drawn an id at first use; which cluster it belongs to is said
once, in its ``meta`` file.

Format: segment_format.md, section 5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from logd.errors import CorruptionError, ForeignDirectoryError, NewerFormatError
from logd.types import Buffer, DirectoryId, GroupId, NodeId, Offset, Term


class Field(NamedTuple):
    """One row of a layout table."""

    name: str
    format: str
    meaning: str


LAYOUT: Final = (
    Field("checksum", "Q", "xxh3_64 of bytes [8, 128)"),
    Field("magic", "8s", "what kind of file this is"),
    Field("version", "I", "format version, 1"),
    Field("node", "I", "node that owns the data directory"),
    Field("group", "Q", "Raft group the file belongs to"),
    Field("directory", "64s", "id of the data directory, ASCII, padded with zeros"),
    Field("base_offset", "q", "first offset of a segment, offset of a checkpoint, else 0"),
    Field("prev_term", "Q", "term of the batch that ends at base_offset; 0 if none or no segment"),
    Field("payload_bytes", "Q", "bytes that follow, where the whole file is one payload; else 0"),
    Field("payload_checksum", "Q", "xxh3_64 of those bytes; else 0"),
)
_STRUCT: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT))

FILE_HEADER_BYTES: Final = 128
FORMAT_VERSION: Final = 1
DIRECTORY_ID_BYTES_MAX: Final = 64

SEGMENT_MAGIC: Final = b"logd.seg"
HARD_STATE_MAGIC: Final = b"logd.hst"
CHECKPOINT_MAGIC: Final = b"logd.ckp"
APPLICATION_MAGIC: Final = b"logd.app"
SNAPSHOT_MAGIC: Final = b"logd.snp"
META_MAGIC: Final = b"logd.met"
CLEAN_MAGIC: Final = b"logd.cln"

assert _STRUCT.size == FILE_HEADER_BYTES

_CHECKSUM: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Whose files these are.  Stamped into each, compared whenever one is opened."""

    directory: DirectoryId
    node: NodeId
    group: GroupId


class FileHeader(NamedTuple):
    """What a file says about itself, apart from its kind."""

    identity: LogIdentity
    base_offset: Offset = Offset(0)
    prev_term: Term = Term(0)
    payload_bytes: int = 0
    payload_checksum: int = 0


def encode_file_header(magic: bytes, header: FileHeader) -> bytes:
    """The 128 bytes that open the file."""
    directory = header.identity.directory.encode("ascii")
    assert len(magic) == 8
    assert 0 < len(directory) <= DIRECTORY_ID_BYTES_MAX
    packed = _STRUCT.pack(
        0,
        magic,
        FORMAT_VERSION,
        header.identity.node,
        header.identity.group,
        directory,
        header.base_offset,
        header.prev_term,
        header.payload_bytes,
        header.payload_checksum,
    )
    checksum = xxh3_64_intdigest(packed[_CHECKSUM.size :])
    return _CHECKSUM.pack(checksum) + packed[_CHECKSUM.size :]


def decode_file_header(path: str, magic: bytes, block: Buffer) -> FileHeader:
    """Decode the header at the start of ``block``.

    Raises:
        CorruptionError: cut short, damaged, or another kind of file.
        NewerFormatError: intact, and of a version after this one.
    """
    if len(block) < FILE_HEADER_BYTES:
        raise CorruptionError(f"{path}: {len(block)} bytes, a header has {FILE_HEADER_BYTES}")
    packed = bytes(memoryview(block)[:FILE_HEADER_BYTES])
    (
        checksum,
        found_magic,
        version,
        node,
        group,
        directory,
        base_offset,
        prev_term,
        payload_bytes,
        payload_checksum,
    ) = _STRUCT.unpack(packed)
    actual = xxh3_64_intdigest(packed[_CHECKSUM.size :])
    if actual != checksum:
        raise CorruptionError(f"{path}: header checksum {actual:#018x}, stored {checksum:#018x}")
    if found_magic != magic:
        raise CorruptionError(f"{path}: file magic {found_magic!r}, expected {magic!r}")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path} has format version {version}; this program reads up to {FORMAT_VERSION}"
        )
    name = directory.rstrip(b"\0")
    if not name or not name.isascii():
        raise CorruptionError(f"{path}: directory id {name!r}, expected ASCII characters")
    identity = LogIdentity(DirectoryId(name.decode("ascii")), NodeId(node), GroupId(group))
    return FileHeader(
        identity, Offset(base_offset), Term(prev_term), payload_bytes, payload_checksum
    )


def refuse_foreign(path: str, found: LogIdentity, expected: LogIdentity) -> None:
    """Raise ``ForeignDirectoryError`` unless the file is one of ours."""
    if found != expected:
        raise ForeignDirectoryError(
            f"{path} belongs to node {found.node}, group {found.group}, directory "
            f"{found.directory}; expected node {expected.node}, group {expected.group}, "
            f"directory {expected.directory}"
        )


def payload_checksum(payload: Buffer) -> int:
    return xxh3_64_intdigest(payload)
