"""Tables for people, JSON for programs.

Data goes to stdout, everything said about it to stderr, so that a pipe carries only data.

Keys, values and names come from other clients, and a terminal does what it is sent.  So what is
shown to a person is shown with its control characters escaped (``printable``): it can neither
move the cursor nor look like a line of ours.  JSON escapes them by itself; raw bytes are what
``kv get`` and ``consume`` are for.  What is no text at all is shown as ``base64:…``, as JSON
has it under a name of its own.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

import click

from logd.errors import UsageError
from logd.limits import NAME_CHARACTERS_MAX

STYLED_ROWS_MAX: Final = 1000
"""Laying a table out costs a tenth of a millisecond a row."""

CELL_CHARACTERS_MAX: Final = 200
"""What a cell of a table shows of a value, which may have 64 KiB."""

assert CELL_CHARACTERS_MAX >= NAME_CHARACTERS_MAX

BASE64_MARK: Final = "base64:"
"""Before bytes that are no text: as text they would pass for what was written."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\udc80-\udcff]")
"""C0, DEL and C1, and the bytes of an argument that were no text."""

_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


@contextmanager
def named_output() -> Iterator[None]:
    """What goes wrong with writing is about standard output: who reads ``No space left on device``
    alone looks at the brokers' disks."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def print_json(document: object) -> None:
    """One document, as one line.  Each object has all its fields: of what the wire leaves out
    because it is as usual, whoever reads JSON does not know what is usual.

    Raises:
        UsageError: there is a path in it that is no text.
    """
    import msgspec

    try:
        line = msgspec.json.encode(_with_defaults(document)).decode()
    except UnicodeEncodeError as error:
        raise UsageError(f"JSON is text, which {error.object!r} is not") from error
    with named_output():
        click.echo(line)


def _with_defaults(value: object) -> object:
    import msgspec

    match value:
        case msgspec.Struct():
            fields = value.__struct_fields__
            return {name: _with_defaults(getattr(value, name)) for name in fields}
        case dict():
            return {name: _with_defaults(one) for name, one in value.items()}
        case list() | tuple():
            return [_with_defaults(one) for one in value]
        case _:
            return value


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str = "(none)",
    whole: Collection[str] = (),
) -> None:
    """Columns of text; numbers are aligned right.  Nothing is wrapped into a pipe.

    A cell shows the beginning of a long value and its size, but all of it in the columns
    ``whole``: those that one copies from.
    """
    if not rows:
        click.echo(empty)
        return
    texts = [
        [cell_text(value) if column in whole else _cut(value)
         for column, value in zip(columns, row, strict=True)]
        for row in rows
    ]  # fmt: skip
    is_number = [all(isinstance(value, int | float) for value in column)
                 for column in zip(*rows, strict=True)]  # fmt: skip
    if not sys.stdout.isatty() or len(rows) > STYLED_ROWS_MAX:
        with named_output():
            _print_plain(columns, texts, is_number)
        return
    never_folded = [all(map(_is_of_numbers, column)) for column in zip(*rows, strict=True)]
    with named_output():
        _print_styled(columns, texts, is_number, never_folded)


def _cut(value: object) -> str:
    raw = _raw_text(value)
    if len(raw) <= CELL_CHARACTERS_MAX:
        return printable(raw)
    size = len(value if isinstance(value, bytes) else raw.encode(errors="surrogateescape"))
    return f"{printable(raw[:CELL_CHARACTERS_MAX])}… ({size:,} bytes)"


def _is_of_numbers(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_of_numbers, value))
    return value is None or isinstance(value, int | float)


def _print_plain(
    columns: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]
) -> None:
    """For a pipe, which has no edge to wrap at, and for very long tables."""
    texts = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "   ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in texts
    ]
    lines.insert(1, "─" * (sum(widths) + 3 * (len(widths) - 1)))
    click.echo("\n".join(lines))


def _print_styled(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    never_folded: Sequence[bool],
) -> None:
    """For a terminal: what is too wide is folded, but no number and no header.

    Where those alone are wider than the terminal, the table is too, and then nothing is folded: a
    line that the terminal wraps can still be read, and a number of which a part is missing is
    another number.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    wanted = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    needed = [
        width if whole else len(column)
        for column, width, whole in zip(columns, wanted, never_folded, strict=True)
    ]
    gaps = len(columns) - 1
    fits = [gap for gap in (3, 2, 1) if sum(wanted) + gap * gaps <= console.width]
    gap = fits[0] if fits else 2
    room = console.width - gap * gaps
    widths = fitted_widths(wanted, needed, room) if sum(needed) <= room else wanted
    # One cell of each gap is the box's own.
    padding = (0, max(gap - 2, 0), 0, min(gap - 1, 1))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding)
    for column, width, right in zip(columns, widths, is_number, strict=True):
        table.add_column(column, justify="right" if right else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    console.size = (max(console.width, sum(widths) + gap * gaps), console.height)
    console.print(table)


def fitted_widths(wanted: Sequence[int], needed: Sequence[int], room: int) -> list[int]:
    """Widths of columns that fit into ``room``, if what they need does: the widest give first."""
    assert all(least <= most for least, most in zip(needed, wanted, strict=True))
    low, high = 0, max(wanted)
    while low < high:
        level = (low + high + 1) // 2
        if sum(_widths_at(level, wanted, needed)) <= room:
            low = level
        else:
            high = level - 1
    return _widths_at(low, wanted, needed)


def _widths_at(level: int, wanted: Sequence[int], needed: Sequence[int]) -> list[int]:
    return [max(least, min(most, level)) for most, least in zip(wanted, needed, strict=True)]


def bytes_text(count: float) -> str:
    """``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit takes all")


def time_text(seconds: float) -> str:
    """``1 h 05 min``, ``2 min 03 s``, ``4 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def moment_text(at_ms: int) -> str:
    """``2026-01-31T08:15:00.250+00:00``: a time that the cluster tells, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines, aligned."""
    width = max(len(name) for name, _ in facts)
    with named_output():
        for name, value in facts:
            click.echo(f"{name:<{width}}  {cell_text(value)}")


def say(text: str) -> None:
    """Tell the person, on stderr.  That nobody can be told makes nothing fail."""
    with suppress(OSError):
        click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def printable(text: str) -> str:
    """``text`` on one line, as a terminal may get it: ``\\x1b[31m`` instead of red.

    A backslash stays one: paths and patterns are read more often than doubted, and JSON is exact.
    """
    return _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return _SHORT.get(character) or f"\\x{ord(character) & 0xFF:02x}"


def text_or_base64(name: str, data: bytes | None) -> dict[str, str | None]:
    """``name`` when the bytes are UTF-8 text, else ``name_base64``; null stays null."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode("ascii")}


def cells_of(row: Mapping[str, object], columns: Sequence[str]) -> list[object]:
    """Of a JSON object; what is no text, and so in base64 there, is shown so, and marked."""
    return [row[column] if column in row else _bytes_of(row, column) for column in columns]


def _bytes_of(row: Mapping[str, object], column: str) -> bytes | None:
    encoded = row.get(f"{column}_base64")
    return base64.b64decode(encoded) if isinstance(encoded, str) else None


def cell_text(value: object) -> str:
    """A value as people read it."""
    return printable(_raw_text(value))


def _raw_text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ",".join(_raw_text(item) for item in value)
        case float():
            return f"{value:,.1f}"
        case bytes():
            return BASE64_MARK + base64.b64encode(value).decode("ascii")
        case _:
            return str(value)
