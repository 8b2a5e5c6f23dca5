"""Progress with a rate: a bar on a terminal, nothing elsewhere.

The bar is drawn on stderr, so stdout stays data even while it moves.  It is redrawn a few
times a second however often it is told to advance: a benchmark that advances it per record
should not measure it.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from logd.cli.display import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REDRAW_INTERVAL_S: Final = 0.1


class RecordProgress:
    """Counts records, and shows the count where a person watches."""

    def __init__(
        self, title: str, records_total: int | None = None, *, is_shown: bool = True
    ) -> None:
        self.records = 0
        self._is_shown = is_shown and sys.stderr is not None and sys.stderr.isatty()
        self._title = title
        self._records_total = records_total
        self._began = time.monotonic()
        self._drawn = self._began
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> RecordProgress:
        if self._is_shown:
            self._bar = _record_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._records_total, rate=0.0)
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away; what is said from now on are plain lines."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def rate(self) -> float:
        """Records per second since the beginning."""
        elapsed = time.monotonic() - self._began
        return self.records / elapsed if elapsed > 0 else 0.0

    def advance(self, records: int) -> None:
        """``records`` more are done."""
        self.records += records
        now = time.monotonic()
        if self._bar is None or now - self._drawn < REDRAW_INTERVAL_S:
            return
        assert self._task is not None
        self._drawn = now
        self._bar.update(self._task, completed=self.records, rate=self.rate)

    def say(self, text: str) -> None:
        """Write a line on stderr without breaking the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, highlight=False, markup=False)


def _record_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} records"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
