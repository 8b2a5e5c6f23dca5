"""The offline tools read what is there, find what is damaged, and touch nothing they may not."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from logd.cli import root
from logd.errors import DirectoryLockedError
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.record.batch import seal_batch, seal_opaque
from logd.record.header import LEADER_PART_BYTES, BatchKind, Codec, leader_part
from logd.runtime.files import RealFileSystem
from logd.storage.directory import DataDirectory
from logd.storage.log import Log, LogBatch, LogOptions
from logd.types import Buffer, GroupId, NodeId, Offset, Term
from tests.support.logs import append_some, make_batch

GROUP = GroupId(7)
OPTIONS = LogOptions(segment_bytes=16 * KIB, index_interval_bytes=512)


class Broker:
    """A data directory with one log, and the tools pointed at it."""

    def __init__(self, path: Path) -> None:
        self.files = RealFileSystem()
        self.path = path
        self.directory = DataDirectory.open(self.files, str(path), NodeId(1), lambda: "dir")
        self.group_path = Path(self.directory.group_path(GROUP))
        self.log = Log.create(
            self.files, str(self.group_path), self.directory.identity(GROUP), OPTIONS
        )

    @property
    def first_segment(self) -> Path:
        return self.group_path / f"{0:020}.log"

    def fill(self, segments: int) -> None:
        for _ in range(segments):
            while not self.log.needs_roll:
                append_some(self.log, 1, value=b"v" * 300)
            self.log.roll()
        append_some(self.log, 5)
        self.log.sync(Offset(0))
        self.log.sync_mark(Offset(0))

    def append_sealed(self, sealed: Buffer, records: int, term: int = 1) -> None:
        base = self.log.end_offset
        part = leader_part(
            sealed, base_offset=base, term=Term(term), append_time_ms=1000, group=GROUP
        )
        end = Offset(base + records)
        buffers = (part, memoryview(sealed)[LEADER_PART_BYTES:])
        self.log.append([LogBatch(base, end, Term(term), 1000, True, len(sealed), buffers)])


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    return Broker(tmp_path / "data")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(root, ["segment", *map(str, arguments)])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- dump -------------------------------------------------------------------------------


def test_dump_lists_every_batch_of_a_running_broker(broker: Broker) -> None:
    broker.append_sealed(
        seal_batch(
            values=[b"a", b"b"],
            timestamps_ms=[50, 60],
            codec=Codec.ZSTD,
            producer_id=9,
            producer_epoch=2,
            base_sequence=40,
        ),
        records=2,
        term=3,
    )
    broker.append_sealed(seal_opaque(b"no-op", kind=BatchKind.CONTROL, timestamp_ms=1), 1, term=3)

    result = run("dump", broker.first_segment, "--output", "json")

    assert result.exit_code == 0, result.output
    data, control = lines(result)
    assert data == {
        "group": 7,
        "base_offset": 0,
        "end_offset": 2,
        "term": 3,
        "records": 2,
        "kind": "data",
        "producer_id": 9,
        "producer_epoch": 2,
        "base_sequence": 40,
        "bytes": data["bytes"],
        "codec": data["codec"],
        "append_time_ms": 1000,
        "first_timestamp_ms": 50,
        "max_timestamp_ms": 60,
        "fence_id": 0,
        "fence_token": 0,
        "position": SEGMENT_HEADER_BYTES,
    }
    assert (control["kind"], control["base_offset"]) == ("control", 2)


def test_dump_of_records_shows_text_as_text_and_bytes_as_base64(broker: Broker) -> None:
    broker.append_sealed(
        seal_batch(
            values=[b"text", b"\xff\xfe", None],
            keys=[None, b"key", b"\xff"],
            headers=[(), (), (("h", b"1"),)],
            timestamps_ms=[50, 60, 70],
        ),
        records=3,
    )

    result = run("dump", broker.first_segment, "--records", "--output", "json")

    assert lines(result) == [
        {"group": 7, "offset": 0, "timestamp_ms": 50, "key": None, "value": "text"},
        {
            "group": 7,
            "offset": 1,
            "timestamp_ms": 60,
            "key": "key",
            "value_base64": base64.b64encode(b"\xff\xfe").decode(),
        },
        {
            "group": 7,
            "offset": 2,
            "timestamp_ms": 70,
            "key_base64": base64.b64encode(b"\xff").decode(),
            "value": None,
            "headers": [{"name": "h", "value": "1"}],
        },
    ]


@pytest.mark.parametrize("level", ["group", "data directory"])
def test_dump_of_a_directory_shows_all_segments_in_order(broker: Broker, level: str) -> None:
    broker.fill(segments=3)

    path = broker.group_path if level == "group" else broker.path
    result = run("dump", path, "--records", "--output", "json")

    assert [row["offset"] for row in lines(result)] == list(range(broker.log.end_offset))


def test_dump_as_a_table_names_its_columns(broker: Broker) -> None:
    broker.fill(segments=0)

    result = run("dump", broker.first_segment)

    assert result.exit_code == 0
    assert "base_offset" in result.stdout
    assert len(result.stdout.splitlines()) == 2 + 5


def test_dump_stops_at_an_unfinished_end_and_says_so(broker: Broker) -> None:
    append_some(broker.log, 3)
    torn = b"".join(make_batch(3).buffers)[:-1] + b"?"
    file = broker.files.open(str(broker.first_segment))
    file.pwritev([torn], SEGMENT_HEADER_BYTES + 3 * len(torn))

    result = run("dump", broker.first_segment, "--output", "json")

    assert result.exit_code == 0
    assert len(lines(result)) == 3
    assert "unfinished end" in result.stderr


def test_dump_shows_what_is_before_damage_and_fails(broker: Broker) -> None:
    broker.fill(segments=1)
    flip(broker.first_segment, SEGMENT_HEADER_BYTES + 2000)

    result = run("dump", broker.first_segment, "--output", "json")

    assert result.exit_code == 1
    assert 0 < len(lines(result)) < 10
    assert "damaged" in result.stderr


def test_a_file_with_a_damaged_header_is_read_by_the_names_around_it(broker: Broker) -> None:
    broker.fill(segments=0)
    flip(broker.first_segment, 30)

    result = run("dump", broker.first_segment, "--output", "json")

    assert len(lines(result)) == 5
    assert "header checksum" in result.stderr


# --- verify -----------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_verify_finds_nothing_wrong_with_a_running_broker(broker: Broker) -> None:
    broker.fill(segments=2)

    result = run("verify", broker.path, "--output", "json")

    assert result.exit_code == 0, result.output
    (found,) = lines(result)
    assert found["damage"] == []
    assert [row["state"] for row in found["segments"]] == ["ok", "ok", "ok"]
    assert found["segments"][-1]["end_offset"] == broker.log.end_offset


def test_verify_names_every_damaged_place(broker: Broker) -> None:
    broker.fill(segments=3)
    rng = random.Random(1)
    bases = broker.log.segment_bases[:3]
    for base in bases:
        path = broker.group_path / f"{base:020}.log"
        flip(path, rng.randrange(SEGMENT_HEADER_BYTES, path.stat().st_size))

    result = run("verify", broker.path, "--output", "json")

    assert result.exit_code == 1
    (found,) = lines(result)
    assert [row["state"] for row in found["segments"]] == ["damaged"] * 3 + ["ok"]
    for base, text in zip(bases, found["damage"], strict=True):
        assert f"{base:020}.log, position" in text


def test_verify_finds_a_missing_segment_and_a_short_one(broker: Broker) -> None:
    broker.fill(segments=3)
    bases = broker.log.segment_bases
    (broker.group_path / f"{bases[1]:020}.log").unlink()
    with (broker.group_path / f"{bases[2]:020}.log").open("r+b") as file:
        file.truncate(SEGMENT_HEADER_BYTES + 1000)

    result = run("verify", broker.group_path)

    assert result.exit_code == 1
    assert f"the next segment begins at {bases[2]}" in result.stderr
    assert f"{bases[2]:020}.log, position" in result.stderr


def test_what_a_crash_left_above_the_mark_is_not_damage(broker: Broker) -> None:
    broker.fill(segments=0)
    file = broker.files.open(str(broker.first_segment))
    file.pwritev([b"half a batch"], 6000)

    result = run("verify", broker.path)

    assert result.exit_code == 0
    assert "unfinished end" in result.stdout


@pytest.mark.parametrize("content", [b"junk", bytes(64)], ids=["junk", "zeros"])
def test_bytes_behind_a_sealed_segment_are_surplus_and_not_damage(
    broker: Broker, content: bytes
) -> None:
    broker.fill(segments=1)
    end = broker.first_segment.stat().st_size
    with broker.first_segment.open("ab") as file:
        file.write(content)

    result = run("verify", broker.path)
    told = run("verify", broker.path, "--output", "json")
    alone = run("dump", broker.first_segment)

    (found,) = lines(told)
    assert (result.exit_code, told.exit_code, alone.exit_code) == (0, 0, 0)
    assert [row["state"] for row in found["segments"]] == ["surplus", "ok"]
    assert found["damage"] == []
    text = f"position {end}: {len(content)} bytes behind the last batch of a sealed segment"
    assert [text in surplus for surplus in found["surplus"]] == [True]
    for each in (result, alone):
        assert each.stderr.startswith("surplus: ")
        assert text in each.stderr


def test_what_lies_behind_a_sealed_segment_is_no_batch_of_the_log(broker: Broker) -> None:
    """Though it may look like the next one."""
    broker.fill(segments=1)
    sealed_end = broker.log.segment_bases[1]
    second = broker.group_path / f"{sealed_end:020}.log"
    with broker.first_segment.open("ab") as file:
        file.write(second.read_bytes()[SEGMENT_HEADER_BYTES:])

    (found,) = lines(run("verify", broker.path, "--output", "json"))
    dumped = lines(run("dump", broker.first_segment, "--output", "json"))

    assert found["segments"][0]["state"] == "surplus"
    assert found["segments"][0]["end_offset"] == dumped[-1]["end_offset"] == sealed_end


# --- reindex ----------------------------------------------------------------------------


def test_reindex_writes_the_same_indexes_that_the_broker_wrote(broker: Broker) -> None:
    options = LogOptions(segment_bytes=64 * KIB)
    path = str(broker.group_path)
    identity = broker.directory.identity(GROUP)
    broker.log.close()
    broker.log = Log.open(broker.files, path, identity, options)
    broker.fill(segments=2)
    broker.log.close()
    broker.directory.close()
    indexes = sorted(broker.group_path.glob("*index"))
    before = [index.read_bytes() for index in indexes]
    assert len(before) == 6
    for index in indexes[:3]:
        index.write_bytes(b"garbage")

    result = run("reindex", broker.path)

    assert result.exit_code == 0, result.output
    assert [index.read_bytes() for index in indexes] == before


def test_reindex_does_not_say_that_all_is_well_where_it_cannot_tell_what_to_index(
    broker: Broker,
) -> None:
    broker.fill(segments=1)
    broker.log.close()
    broker.directory.close()
    newest = max(broker.group_path.glob("*.log"))
    newest.write_bytes(b"")

    result = run("reindex", broker.path, "--output", "json")

    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [row["path"] for row in told["segments"]] == [str(broker.first_segment)]
    assert told["damage"] == [f"{newest}: both synced marks are unreadable"]


def test_reindex_refuses_the_directory_of_a_running_broker(broker: Broker) -> None:
    broker.fill(segments=1)
    index = broker.group_path / f"{0:020}.log.index"
    before = index.read_bytes()

    for path in (broker.path, broker.group_path):
        result = CliRunner(catch_exceptions=True).invoke(root, ["segment", "reindex", str(path)])

        assert result.exit_code == 1
        assert "held by process" in result.stderr or isinstance(
            result.exception, DirectoryLockedError
        )
    assert index.read_bytes() == before


# --- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["dump", "verify", "reindex"])
def test_a_path_that_is_not_there_is_not_found(command: str, tmp_path: Path) -> None:
    result = run(command, tmp_path / "nothing")

    assert result.exit_code == 3
    assert result.stderr.startswith("logd: ")
    assert "no such file" in result.stderr


@pytest.mark.parametrize("command", ["dump", "verify"])
def test_a_directory_without_segments_is_refused(command: str, tmp_path: Path) -> None:
    result = run(command, tmp_path)

    assert result.exit_code == 1
    assert "holds no segments" in result.stderr


def test_a_file_that_is_no_segment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    result = run("dump", tmp_path / "notes.txt")

    assert result.exit_code == 1
    assert "notes.txt" in result.stderr
