"""Sections 5 to 9 of segment_format.md are what the code writes: tables and example values."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import msgspec
import pytest

from logd.limits import FENCE_CLASSES, PRODUCER_BATCHES_REMEMBERED
from logd.partition.state import PartitionState
from logd.record.control import ConfigurationChange
from logd.record.header import decode_header
from logd.storage import file_header, hard_state, successor_note, synced_mark
from logd.storage.checkpoint import CheckpointStore
from logd.storage.clean_note import CleanNote, write_clean_note
from logd.storage.directory import DataDirectory
from logd.storage.file_header import FILE_HEADER_BYTES, FORMAT_VERSION, Field
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogOptions
from logd.storage.segment import FIRST_POSITION
from logd.storage.segment_index import OFFSET_ROW, TIME_ROW
from logd.types import GroupId, NodeId, Offset, Term
from tests.docs.test_segment_format import rows, section
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import DIRECTORY, IDENTITY, append_some, batch_bytes, make_batch

TYPE_NAMES = {"Q": "u64", "q": "i64", "I": "u32", "8s": "8 bytes", "64s": "64 bytes"}


def tables(title: str) -> list[list[tuple[str, ...]]]:
    """The rows of each table of a section."""
    blocks = section(title).split("\n\n")
    return [rows(block) for block in blocks if block.startswith("|")]


def layout_rows(layout: Sequence[Field]) -> list[tuple[str, ...]]:
    expected: list[tuple[str, ...]] = []
    position = 0
    for field in layout:
        size = struct.calcsize("<" + field.format)
        expected.append(
            (str(position), str(size), TYPE_NAMES[field.format], field.name, field.meaning)
        )
        position += size
    return expected


def test_the_file_header_mark_and_note_tables_are_the_structs() -> None:
    _, header, mark, note = tables("Segment files")

    assert header == layout_rows(file_header.LAYOUT)
    assert mark == layout_rows(synced_mark.LAYOUT)
    assert note == layout_rows(successor_note.LAYOUT)


def test_the_places_in_a_segment_are_those_of_the_code() -> None:
    places, _, _, _ = tables("Segment files")

    assert [(at, size) for at, size, _ in places] == [
        ("0", str(FILE_HEADER_BYTES)),
        *((str(position), str(synced_mark.MARK_BYTES)) for position in synced_mark.SLOT_POSITIONS),
        (str(successor_note.NOTE_POSITION), str(successor_note.NOTE_BYTES)),
        (str(FIRST_POSITION), ""),
    ]


def test_the_hard_state_table_is_the_struct() -> None:
    assert tables("Hard state") == [layout_rows(hard_state.LAYOUT)]


def test_the_clean_note_is_what_the_page_says() -> None:
    files = SimulatedFileSystem(random.Random(1))
    files.make_directory(DIRECTORY)
    note = CleanNote(clean_to=Offset(9), since=((Offset(9), 5),))
    assert write_clean_note(files, DIRECTORY, IDENTITY, note, instead_of=None)

    content = files.content(f"{DIRECTORY}/clean")
    header = file_header.decode_file_header("clean", b"logd.cln", content)
    assert header.base_offset == 9
    assert msgspec.msgpack.decode(content[FILE_HEADER_BYTES:]) == {
        "clean_to": 9,
        "has_stale": False,
        "oldest_tombstone": -1,
        "since": [[9, 5]],
    }
    (table, *_) = tables("Compaction")
    assert [name for name, _ in table] == list(CleanNote.__struct_fields__)


def test_a_checkpoint_is_what_the_page_says() -> None:
    state = PartitionState()
    batch = make_batch(0, records=2, time_ms=9)
    state.note(decode_header(batch_bytes(batch))._replace(producer_id=5, producer_epoch=1))
    change = ConfigurationChange(voters=(NodeId(1),))
    snapshot = state.snapshot(term_rows=[(Term(1), Offset(0))], configuration=change)
    payload = snapshot.encode()

    name, number, content = payload[:15], payload[15:17], msgspec.msgpack.decode(payload[17:])

    (table,) = tables("Checkpoints")
    assert [key for key, _ in table] == list(content)
    assert (name, number) == (b"logd partition ", b"\1\0")
    assert f"modulo {FENCE_CLASSES}," in section("Checkpoints")
    assert f"at most {PRODUCER_BATCHES_REMEMBERED}," in section("Checkpoints")
    (((*producer, batches),),) = content["producers"]
    assert producer == [5, 1, 2, 9]
    assert struct.unpack("<QIIqq", batches) == (0, 2, 2, 0, 9)
    assert content["term_rows"] == [[1, 0]]
    assert content["configuration"]["type"] == "configuration"
    assert content["trim"] == [0, 0]


@pytest.mark.parametrize(("number", "row"), [(0, OFFSET_ROW), (1, TIME_ROW)])
def test_the_index_tables_are_the_structs(number: int, row: struct.Struct) -> None:
    types = [type_ for _, _, type_, _, _ in tables("Indexes")[number]]

    names = {"I": "u32", "q": "i64"}
    assert types == [names[letter] for letter in row.format.lstrip("<")]
    at, size, *_ = tables("Indexes")[number][-1]
    assert int(at) + int(size) == row.size


@pytest.mark.parametrize(
    ("title", "magic"),
    [
        ("Segment files", file_header.SEGMENT_MAGIC),
        ("Hard state", file_header.HARD_STATE_MAGIC),
        ("Checkpoints", file_header.CHECKPOINT_MAGIC),
        ("Data directory", file_header.META_MAGIC),
    ],
)
def test_the_magics_are_those_of_the_code(title: str, magic: bytes) -> None:
    assert f"magic `{magic.decode()}`" in " ".join(section(title).split())


def test_every_kind_of_file_lies_where_the_document_says_and_has_its_header() -> None:
    disk = SimulatedFileSystem(random.Random(1))
    directory = DataDirectory.open(disk, "/data", NodeId(3), lambda: "an-id")
    group = GroupId(5)
    identity = directory.identity(group)
    path = directory.group_path(group)
    log = Log.create(disk, path, identity, LogOptions())
    append_some(log, 1)
    log.close()
    HardStateFile.create(disk, f"{path}/hard_state", identity)
    CheckpointStore(disk, path, identity).save(Offset(1), b"state")
    directory.note_group(group)

    names = ["groups", "lock", "meta", "promises", "replicas", "trash"]
    assert disk.list_directory("/data") == names
    assert disk.list_directory("/data/replicas") == [f"{5:020}"]
    assert disk.content(f"/data/replicas/{5:020}") == b""
    assert disk.list_directory(f"/data/groups/{5:020}") == [
        f"{0:020}.log",
        f"{0:020}.log.index",
        f"{0:020}.log.timeindex",
        f"checkpoint-{1:020}",
        "hard_state",
    ]
    for name in ("meta", *(f"groups/{5:020}/{name}" for name in (f"{0:020}.log", "hard_state"))):
        content = disk.content(f"/data/{name}")
        assert struct.unpack_from("<II", content, 16) == (FORMAT_VERSION, 3)
        assert content[32:96].rstrip(b"\0") == b"an-id"
