"""What is printed can be pasted into the next command, and piped into the next program."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import AsyncIterator, Sequence

import anyio
import msgspec
import pytest

from logd.cli.display import (
    cell_text,
    cells_of,
    fitted_widths,
    print_facts,
    print_json,
    print_table,
    printable,
    say,
)
from logd.cli.elect import show_leader
from logd.cli.events import show_events
from logd.cli.exits import describe
from logd.cli.holders import HOLDER_COLUMNS, holder_row
from logd.cli.overview import PARTITION_COLUMNS
from logd.errors import UnknownNameError
from logd.wire.coordination import Event, Holder, ShardOwner
from logd_client.coordination.elections import Leader


def test_offsets_are_printed_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("log_end", 2_717_072)])

    assert capsys.readouterr().out == "log_end  2717072\n"


def test_a_table_in_a_pipe_is_as_wide_as_it_has_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "count", "note"), [("x" * 150, 5, ""), ("y", 1234, None)])

    header, rule, first, second = capsys.readouterr().out.splitlines()
    assert header == f"{'name':<150}   count   note"
    assert set(rule) == {"─"}
    assert first == f"{'x' * 150}       5"  # Nothing follows the last word of a line.
    assert second == f"{'y':<150}    1234   -"


def test_a_table_without_rows_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [], empty="no topics")

    assert capsys.readouterr().out == "no topics\n"


# --- what other clients wrote --------------------------------------------------------------

HOSTILE = "\x1b[31mred\x07\r\nsecond\x7f\x9b2J"
ESCAPED = r"\x1b[31mred\x07\r\nsecond\x7f\x9b2J"


def test_a_value_in_a_table_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("key", "value"), [(HOSTILE, HOSTILE)])

    assert capsys.readouterr().out.splitlines()[2:] == [f"{ESCAPED}   {ESCAPED}"]


def test_a_fact_and_a_list_in_it_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("client", HOSTILE), ("holders", [HOSTILE, "b"])])

    assert capsys.readouterr().out.splitlines() == [
        f"client   {ESCAPED}",
        f"holders  {ESCAPED},b",
    ]


def test_what_is_said_keeps_its_own_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    say("first\nno key a\x1b]0;title\x07")

    assert capsys.readouterr().err == "first\nno key a\\x1b]0;title\\x07\n"


def test_text_is_not_escaped_and_bytes_of_an_argument_are() -> None:
    assert printable("Größe 5 \\ 日本") == "Größe 5 \\ 日本"
    assert printable(os.fsdecode(b"a\xff\x1b")) == r"a\xff\x1b"


def test_a_change_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event(revision=7, kind="key", change="put", name=HOSTILE.encode(), value=b"a\nb\x1b[2J")

    anyio.run(show_events, Told([event]), None, "table", backend="trio")

    assert capsys.readouterr().out == f"7  put  {ESCAPED}  a\\nb\\x1b[2J\n"


def test_what_is_no_text_is_marked_also_in_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event(revision=7, kind="key", change="put", name=b"\xff\xfe", value=b"//4=")

    anyio.run(show_events, Told([event]), None, "table", backend="trio")

    assert capsys.readouterr().out == "7  put  base64://4=  //4=\n"


class Told:
    """A watch that tells some events."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    async def __aenter__(self) -> AsyncIterator[Event]:
        return self._tell()

    async def __aexit__(self, *_: object) -> None:
        return

    async def _tell(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event


def test_what_a_leader_says_of_itself_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_leader(Leader(token=3, session=4, ticket=5, data=HOSTILE.encode()), "table")

    assert capsys.readouterr().out == f"token 3  {ESCAPED}\n"


def test_what_a_leader_says_of_itself_may_be_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_leader(Leader(token=3, session=4, ticket=5, data=b"\xff\xfe"), "table")

    assert capsys.readouterr().out == "token 3  base64://4=\n"


def test_who_holds_a_lock_is_shown_also_where_its_data_is_no_text() -> None:
    row = holder_row(Holder(ticket=1, token=1, session=2, client="c", since_ms=0, data=b"\xff\xfe"))

    assert cell_text(cells_of(row, HOLDER_COLUMNS)[-1]) == "base64://4="


def test_an_error_that_quotes_a_key_is_escaped() -> None:
    assert describe(UnknownNameError("no key a\x1b[31m")) == r"no key a\x1b[31m"


# --- what is too wide ----------------------------------------------------------------------


def test_a_cell_shows_the_beginning_of_a_large_value_and_its_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoded = base64.b64encode(bytes(9000)).decode()
    texts = [{"value": "ä" * 5000}, {"value_base64": encoded}, {"value": "x" * 200}]

    print_table(("value", "count"), [(*cells_of(text, ("value",)), 5) for text in texts])

    _, _, text, data, whole = capsys.readouterr().out.splitlines()
    assert text.startswith("ä" * 200 + "… (10,000 bytes)   ")
    assert data.startswith("base64:" + "A" * 193 + "… (9,000 bytes)   ")
    assert whole.startswith("x" * 200 + "   ")


def test_a_column_that_is_copied_from_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("path",), [("/x" * 300,)], whole=("path",))

    assert "/x" * 300 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "needed", "room", "expected"),
    [
        ([5, 9], [5, 9], 80, [5, 9]),
        ([5, 200], [5, 5], 80, [5, 75]),
        ([200, 200, 4], [3, 3, 4], 44, [20, 20, 4]),
        ([50, 20], [50, 3], 60, [50, 10]),
        ([50, 40], [50, 40], 60, [50, 40]),
    ],
)
def test_the_widest_columns_give_first_and_none_below_what_it_needs(
    wanted: list[int], needed: list[int], room: int, expected: list[int]
) -> None:
    assert fitted_widths(wanted, needed, room) == expected


class Terminal(io.StringIO):
    """Eighty columns, as rich takes it for."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: Sequence[str], *rows: Sequence[object]
) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    print_table(columns, rows)
    return terminal.getvalue().splitlines()


def test_no_header_breaks_in_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("orders-of-the-day", 0, 1, 7, [1, 2, 3], [1, 2, 3], 0, 271_707, None)

    lines = on_a_terminal(monkeypatch, PARTITION_COLUMNS, row)

    assert lines[0].split() == list(PARTITION_COLUMNS)
    assert all(len(line) <= 80 for line in lines)
    assert "1,2,3" in lines[2]
    assert "271707" in lines[2]


def test_no_number_is_folded_where_numbers_alone_are_too_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = [f"column_{number}" for number in range(8)]
    numbers = [10**11 + number for number in range(8)]

    lines = on_a_terminal(monkeypatch, [*columns, "value"], [*numbers, "word " * 30])

    assert lines[0].split() == [*columns, "value"]
    assert lines[2].split()[:8] == [str(number) for number in numbers]


def test_a_table_that_is_too_wide_all_the_same_has_no_name_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = [f"column_{number}" for number in range(8)]

    lines = on_a_terminal(monkeypatch, ["topic", *columns], ["orders-by-customer", *range(8)])

    assert [line.split()[0] for line in lines] == ["topic", lines[1].strip(), "orders-by-customer"]


def test_text_is_folded_into_what_numbers_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_a_terminal(monkeypatch, ("key", "value", "revision"), ["k", "v" * 150, 123_456_789])

    assert all(len(line) <= 80 for line in lines)
    assert "123456789" in lines[2]
    assert "".join(lines[2:]).count("v") == 150


def test_columns_stand_closer_before_a_name_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a list of partitions, where each column needs what it has in it."""
    row = ("__coordination", 0, 3, 12, [2, 1, 3], [2, 1, 3], 0, 45_553, 45_553)

    lines = on_a_terminal(monkeypatch, PARTITION_COLUMNS, row)

    assert len(lines) == 3
    assert lines[2].split() == [
        "__coordination",
        "0",
        "3",
        "12",
        "2,1,3",
        "2,1,3",
        "0",
        "45553",
        "45553",
    ]
    assert all(len(line) <= 80 for line in lines)


def test_in_json_nothing_is_left_out_because_it_is_as_usual(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The wire leaves it out; a table has it too."""
    free = ShardOwner(shard="0", owner=None, token=7)

    print_json({"shards": [free]})

    shards = msgspec.json.decode(capsys.readouterr().out)["shards"]
    assert shards == [{"shard": "0", "owner": None, "token": 7, "revoked": False}]
