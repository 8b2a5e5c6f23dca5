"""Tables for people, JSON for programs.

Data goes to stdout, everything said about it to stderr, so that a pipe carries only data.

Keys, values and names come from other clients, and a terminal does what it is sent.  So what is
shown to a person is shown with its control characters escaped (``printable``): it can neither
move the cursor nor look like a line of ours.  JSON escapes them by itself; raw bytes are what
``kv get`` and ``consume`` are for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import click

STYLED_ROWS_MAX: Final = 1000
"""Laying a table out costs a tenth of a millisecond a row."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\udc80-\udcff]")
"""C0, DEL and C1, and the bytes of an argument that were no text."""

_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def print_json(document: object) -> None:
    """One document, as one line."""
    import msgspec

    click.echo(msgspec.json.encode(document).decode())


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "(none)"
) -> None:
    """Columns of text; numbers are aligned right.  Nothing is wrapped into a pipe."""
    if not rows:
        click.echo(empty)
        return
    if not sys.stdout.isatty() or len(rows) > STYLED_ROWS_MAX:
        _print_plain(columns, rows)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, column in enumerate(columns):
        is_number = all(isinstance(row[at], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    Console(highlight=False).print(table)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The same table for a pipe, which has no edge to wrap at, and for very long ones."""
    texts = [list(columns), *([cell_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    is_number = [all(isinstance(value, int | float) for value in column)
                 for column in zip(*rows, strict=True)]  # fmt: skip
    lines = [
        "   ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in texts
    ]
    lines.insert(1, "─" * (sum(widths) + 3 * (len(widths) - 1)))
    click.echo("\n".join(lines))


def count_of(count: int, noun: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines, aligned."""
    width = max(len(name) for name, _ in facts)
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


def cells_of(row: Mapping[str, object], columns: Sequence[str]) -> list[object]:
    """Of a JSON object; what is no text, and so in base64 there, is shown so."""
    return [row[column] if column in row else row.get(f"{column}_base64") for column in columns]


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
        case _:
            return str(value)
