"""``logd cluster status --watch``: the same screen, again and again.

Each look is a fresh one, with connections of its own: a screen that shows a cluster in trouble
must not be in that trouble itself.  Without a terminal it is one JSON object, or one plain
screen, per look; why there is none is said on standard error.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import anyio
import click

from logd.cli.cluster import Status, event_line, facts_of, fetch_status, problem_lines
from logd.cli.display import cell_text, print_json, say
from logd.cli.overview import BROKER_COLUMNS, cells
from logd.errors import LogdError
from logd.wording import count_of

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL_S: Final = 2.0
_COLOURS: Final = {"ok": "green", "degraded": "yellow", "unavailable": "red"}
_LEVELS: Final = {"info": "", "warning": "yellow", "error": "red"}


async def watch_status(bootstrap: str, output: str) -> None:
    """Look until cancelled."""
    if output == "json" or not sys.stdout.isatty():
        await _watch_plain(bootstrap, output)
    from rich.live import Live

    pace = Pace()
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            try:
                found = await fetch_status(bootstrap)
                view = screen(found, pace.rate(found), live.console.height)
            except LogdError as error:
                view = _unreachable(error)
            live.update(view, refresh=True)
            await anyio.sleep(INTERVAL_S)


async def _watch_plain(bootstrap: str, output: str) -> None:
    while True:
        try:
            found = await fetch_status(bootstrap)
        except LogdError as error:
            say(f"logd: {error}")
        else:
            if output == "json":
                print_json(found)
            else:
                click.echo("\n".join((*(f"{n}: {value}" for n, value in facts_of(found)), "")))
            sys.stdout.flush()
        await anyio.sleep(INTERVAL_S)


class Pace:
    """How fast records come, from two looks."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def rate(self, found: Status) -> float | None:
        """Per second since the last look; None at the first, and where partitions are missing."""
        now, last = time.monotonic(), self._last
        self._last = (now, found.appended)
        if last is None or found.appended < last[1] or now <= last[0]:
            return None
        return (found.appended - last[1]) / (now - last[0])


def screen(found: Status, rate: float | None, height: int) -> RenderableType:
    """Everything on one screen; as many events as fit."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 3))
    rows = [*facts_of(found)[1:], ("records in", "-" if rate is None else f"{rate:,.0f}/s")]
    for left, right in zip(rows[: len(rows) // 2 + 1], [*rows[len(rows) // 2 + 1 :], ("", "")],
                           strict=False):  # fmt: skip
        facts.add_row(*(Text(cell_text(cell)) for cell in (*left, *right)))
    brokers = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in BROKER_COLUMNS:
        brokers.add_column(column)
    for broker in found.brokers:
        style = "" if broker.alive else "red"
        brokers.add_row(*(Text(cell_text(cell), style) for cell in cells(broker)))
    title = Text.assemble(
        ("cluster ", "bold"),
        found.cluster_id,
        ("  ● ", _COLOURS[found.state]),
        (found.state, _COLOURS[found.state]),
        (f"   {time.strftime('%H:%M:%S')}, Ctrl-C ends", "dim"),
    )
    problems = [Text(line, _COLOURS[found.state]) for line in problem_lines(found)]
    above = 1 + 1 + len(rows) // 2 + 1 + 1 + len(found.brokers) + 2 + len(problems) + 2
    events = [
        Text(event_line(event), _LEVELS[event.level], no_wrap=True, overflow="ellipsis")
        for event in found.events[: max(0, height - above - 1)]
    ]
    heading = [Text(""), Text("recent events", "bold")] if events else []
    return Group(title, Text(""), facts, Text(""), brokers, *problems, *heading, *events)


def _unreachable(error: LogdError) -> RenderableType:
    from rich.text import Text

    return Text(
        f"{time.strftime('%H:%M:%S')}  {error}\n\nlooking again every "
        f"{count_of(int(INTERVAL_S), 'second')}; Ctrl-C ends",
        "red",
    )
