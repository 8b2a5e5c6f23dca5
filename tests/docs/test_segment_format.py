"""segment_format.md cannot drift: its tables and its example are compared with the code."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Final

import msgspec

from logd.limits import BATCH_BYTES_MAX, HEADERS_PER_BATCH_MAX, RECORD_BYTES_MAX
from logd.record.batch import decode_batch
from logd.record.compacted import keep_rows, make_gap
from logd.record.control import ConfigurationChange, NoOp, RaiseFence, Trim
from logd.record.header import HEADER_BYTES, LAYOUT, decode_header, verify_header
from logd.record.payload import Columns
from logd.types import GroupId, Offset, Term

DOCUMENT: Final = Path(__file__).parents[2] / "segment_format.md"
TYPE_NAMES: Final = {"Q": "u64", "q": "i64", "I": "u32", "B": "u8"}


def section(title: str) -> str:
    """The text of one numbered section."""
    (found,) = re.findall(
        rf"^## \d+\. {title}\n(.*?)(?=^## |\Z)",
        DOCUMENT.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return str(found)


def rows(text: str) -> list[tuple[str, ...]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines[2:]]


def test_the_header_table_is_the_struct() -> None:
    expected = []
    position = 0
    for field in LAYOUT:
        size = struct.calcsize("<" + field.format)
        expected.append(
            (str(position), str(size), TYPE_NAMES[field.format], field.name, field.meaning)
        )
        position += size

    assert rows(section("Batch header")) == expected
    assert position == HEADER_BYTES


def test_the_columns_are_those_of_the_payload() -> None:
    found = [(position, name) for position, name, *_ in rows(section("Payload"))]

    fields = msgspec.structs.fields(Columns)
    assert found == [(str(index), field.name) for index, field in enumerate(fields)]


def test_the_limits_named_are_those_of_the_code() -> None:
    assert f"≤ {BATCH_BYTES_MAX - HEADER_BYTES:,} " in section("Batch header")
    assert f"≤ {HEADERS_PER_BATCH_MAX:,}." in section("Payload")
    assert f"({RECORD_BYTES_MAX:,} bytes)" in section("Payload")


def test_the_example_is_the_batch_it_says() -> None:
    lines = re.findall(r"^[0-9a-f]{4}  ([0-9a-f ]+)$", section("Payload"), re.MULTILINE)
    example = bytes.fromhex("".join(lines))

    verify_header(example, decode_header(example), GroupId(12))
    batch = decode_batch(example)

    assert (batch.base_offset, batch.header.end_offset, batch.header.term) == (1000, 1002, 3)
    assert batch.keys == [b"k1", b"k2"]
    assert batch.values == [b"hello", None]
    assert batch.headers == [(("lang", b"en"),), ()]
    assert batch.timestamps_ms[1] - batch.timestamps_ms[0] == 250


def test_the_example_of_compaction_is_what_compaction_makes() -> None:
    pattern = r"^[0-9a-f]{4}  ([0-9a-f ]+)$"
    whole = bytes.fromhex("".join(re.findall(pattern, section("Payload"), re.MULTILINE)))
    example = bytes.fromhex("".join(re.findall(pattern, section("Compaction"), re.MULTILINE)))
    group = GroupId(12)

    batch = decode_batch(whole)
    kept = keep_rows(batch, [1], group)
    time_ms = batch.header.append_time_ms
    gap = make_gap(Offset(1002), Offset(1010), term=Term(3), append_time_ms=time_ms, group=group)
    assert example == kept + gap
    assert list(decode_batch(kept).offsets) == [1001]


def test_the_control_payloads_are_those_of_the_code() -> None:
    found = [(type_, key) for type_, key, *_ in rows(section("Control batches"))]

    expected = []
    for cls in (NoOp, ConfigurationChange, RaiseFence, Trim):
        keys = [field.encode_name for field in msgspec.structs.fields(cls)]
        expected += [(str(cls.__struct_config__.tag), key) for key in keys or [""]]
    assert found == expected
