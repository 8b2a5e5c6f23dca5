"""Any bytes, cut into lines and joined again, are the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.cli.lines import LineCutter

LIMIT = 10


def cut(blocks: list[bytes], limit: int = LIMIT) -> tuple[list[bytes], list[tuple[int, int]]]:
    cutter = LineCutter(limit)
    lines = [line for block in blocks for line in cutter.feed(block)]
    lines += cutter.finish()
    return lines, cutter.oversized


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"\n\n", [b"", b""]),
        (b"a\r\nb\r", [b"a\r", b"b\r"]),
        (b"\x00\xff\x0b\x85\n", [b"\x00\xff\x0b\x85"]),
    ],
)
def test_a_line_ends_at_a_newline_and_at_nothing_else(text: bytes, lines: list[bytes]) -> None:
    assert cut([text]) == (lines, [])


def test_a_line_is_found_again_by_its_number_in_the_file() -> None:
    cutter = LineCutter(3)
    numbers = []
    for block in (b"a\nlonger\n", b"b\n", b"c", b"\nlonger\nd\ne"):
        given_lines = cutter.feed(block)
        numbers.append([(line, cutter.number_of(at)) for at, line in enumerate(given_lines)])
    (last,) = cutter.finish()

    assert numbers == [[(b"a", 1)], [(b"b", 3)], [], [(b"c", 4), (b"d", 6)]]
    assert (last, cutter.number_of(0)) == (b"e", 7)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=8).map(lambda data: data.replace(b"a", b"\n")), max_size=20))
def test_where_the_blocks_are_cut_changes_nothing(blocks: list[bytes]) -> None:
    text = b"".join(blocks)

    lines, oversized = cut(blocks, limit=200)

    assert not oversized
    joined = b"".join(line + b"\n" for line in lines)
    assert joined == (text if text.endswith(b"\n") or not text else text + b"\n")


@pytest.mark.parametrize("block_bytes", [1, 3, 7, 100])
def test_a_line_over_the_limit_is_left_out_and_named_and_the_others_are_kept(
    block_bytes: int,
) -> None:
    text = b"first\n" + b"x" * 11 + b"\n" + b"y" * 10 + b"\nlast"
    blocks = [text[at : at + block_bytes] for at in range(0, len(text), block_bytes)]

    lines, oversized = cut(blocks)

    assert lines == [b"first", b"y" * 10, b"last"]
    assert oversized == [(2, 11)]


def test_an_oversized_last_line_without_a_newline_is_named_too() -> None:
    assert cut([b"a\n", b"x" * 8, b"x" * 8]) == ([b"a"], [(2, 16)])


def test_an_endless_line_does_not_grow_memory() -> None:
    cutter = LineCutter(LIMIT)

    for _ in range(1000):
        assert cutter.feed(b"x" * 100) == []
        assert sum(map(len, cutter._carried)) <= LIMIT

    assert cutter.feed(b"\nnext\n") == [b"next"]
    assert cutter.oversized == [(1, 100_000)]
