"""What is printed can be pasted into the next command, and piped into the next program."""

from __future__ import annotations

import pytest

from logd.cli.display import count_of, print_facts, print_table


def test_offsets_are_printed_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("log_end", 2_717_072)])

    assert capsys.readouterr().out == "log_end  2717072\n"


def test_a_table_in_a_pipe_is_as_wide_as_it_has_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "count", "note"), [("x" * 300, 5, ""), ("y", 1234, None)])

    header, rule, first, second = capsys.readouterr().out.splitlines()
    assert header == f"{'name':<300}   count   note"
    assert set(rule) == {"─"}
    assert first == f"{'x' * 300}       5"  # Nothing follows the last word of a line.
    assert second == f"{'y':<300}    1234   -"


def test_a_table_without_rows_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [], empty="no topics")

    assert capsys.readouterr().out == "no topics\n"


def test_one_is_not_a_plural() -> None:
    assert [count_of(n, "record") for n in (0, 1, 2000)] == [
        "0 records",
        "1 record",
        "2,000 records",
    ]
