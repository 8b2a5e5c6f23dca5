"""What ``consume --output json`` prints of a record is read back as that record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.cli.consume import encode_json_lines
from logd.cli.json_records import NoRecordError, Record, RecordLane, parse_record
from logd.cli.lines import LineCutter
from logd.cli.produce import told_where
from logd.errors import UsageError
from logd_client import Ack, AckRange, Batch, Producer

RECORDS = st.builds(
    Record,
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=20),
    headers=st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=20)), max_size=3),
    timestamp_ms=st.integers(0, 2**53),
)


def printed(records: list[Record]) -> list[bytes]:
    batch = SimpleNamespace(
        topic="t",
        partition=3,
        offsets=range(7, 7 + len(records)),
        timestamps_ms=[record.timestamp_ms for record in records],
        keys=[record.key for record in records],
        values=[record.value for record in records],
        headers=[record.headers for record in records],
    )
    return encode_json_lines(cast(Batch, batch), slice(0, len(records))).splitlines()


@given(st.lists(RECORDS, min_size=1, max_size=3))
def test_what_consume_prints_is_read_back(records: list[Record]) -> None:
    assert [parse_record(line) for line in printed(records)] == records


def test_a_line_written_by_hand_needs_a_value_only() -> None:
    assert parse_record(b'{"value": "x"}') == Record(None, b"x", [], None)
    assert parse_record(b'{"key": "k", "value": null}') == Record(b"k", None, [], None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello", "JSON is malformed"),
        (b"", "no record: it is empty"),
        (b" \r", "no record: it is empty"),
        (b"{", "truncated"),
        (b"[1]", "Expected `object`"),
        (b'{"value": 3}', "got `int` - at `$.value`: {"),
        (b'{"key": "x"}', "value is missing"),
        (b'{"value": "x", "value_base64": "eA=="}', "value is there twice"),
        (b'{"value": "x", "key": "k", "key_base64": "eA=="}', "key is there twice"),
        (b'{"value_base64": "?"}', "base64"),
        (b'{"value": "x", "headers": [{"name": "h"}]}', "a header's value is missing"),
        (b'{"value": "\xff"}', r"\xff"),
        (b"[" * 100_000, "no record"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(line: bytes, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_record(line)

    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


class SlowProducer:
    """Acknowledges each record a moment later."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    async def enqueue(self, value: bytes | None, **_: object) -> SlowProducer.Ticket:
        self.values.append(value)
        return SlowProducer.Ticket(len(self.values))

    class Ticket:
        def __init__(self, offset: int) -> None:
            self._offset = offset

        def __await__(self):  # type: ignore[no-untyped-def]
            yield from anyio.sleep(0.001).__await__()
            return Ack("t", 0, self._offset, 0, "synced")


def test_what_came_before_a_line_that_is_no_record_is_acknowledged_and_counted() -> None:
    producer, acks = SlowProducer(), list[AckRange]()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            lane = RecordLane(
                cast(Producer, producer), tasks, acks.extend, partition=None, fence=None
            )
            await lane.append([b'{"value": "a"}', b'{"value": "b"}'])
            await lane.append([b'{"value": "c"}', b"nonsense", b'{"value": "d"}'])

    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(main, backend="trio")

    assert caught.group_contains(NoRecordError, match="nonsense")
    (error,) = caught.value.exceptions
    assert isinstance(error, NoRecordError)
    assert error.at == 1
    assert producer.values == [b"a", b"b", b"c"]
    assert sorted(ack.base_offset for ack in acks) == [1, 2, 3]


def test_a_line_that_is_no_record_is_told_by_its_place() -> None:
    cutter = LineCutter()
    cutter.feed(b"{}\n")
    cutter.feed(b"{}\n\n")

    with (
        pytest.raises(UsageError, match=r"^backup\.json, line 3: no record: it is empty$"),
        told_where("backup.json", cutter),
    ):
        raise NoRecordError("no record: it is empty", 1)
