"""Tables for people, JSON for programs.

Data goes to stdout, everything said about it to stderr, so that a pipe carries only data.
"""

from __future__ import annotations

from collections.abc import Sequence

import click


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
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, column in enumerate(columns):
        is_number = all(isinstance(row[at], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # A pipe has no edge to wrap at.
    console.print(table)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines, aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{name:<{width}}  {_cell(value)}")


def say(text: str) -> None:
    """Tell the person, on stderr."""
    click.echo(text, err=True)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ",".join(_cell(item) for item in value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case _:
            return str(value)
