"""Bars for a plan that runs: one for all of it, one for each move under way.

Drawn on stderr where a person watches; elsewhere a line now and then, so that a log of the
command tells the story too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

from logd.cli.display import bytes_text, say, time_text
from logd.cli.plan_progress import PlanProgress, waiting_text
from logd.limits import APPEND_BYTES_MAX
from logd.wording import listed

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_INTERVAL_S: Final = 10.0
RATE_WINDOW_S: Final = 10.0
SLOW_RATE_WINDOW_S: Final = 60.0
"""For moves so slow that a piece may take longer to come than the other window is."""
SLOW_BYTES_PER_S: Final = 4 * APPEND_BYTES_MAX / RATE_WINDOW_S
WAITING_DRAWN_MAX: Final = 1
"""The line of the plan has little room; the moves under way have theirs."""


class MoveBars:
    """Shows the progress of one plan."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._has_bars = is_shown and sys.stderr is not None and sys.stderr.isatty()
        self._bars: Progress | None = None
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._samples: list[tuple[float, int]] = []
        self._said_at = 0.0

    def __enter__(self) -> MoveBars:
        if self._has_bars:
            self._bars = _bars()
            self._bars.start()
            self._all = self._bars.add_task("plan", total=1, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, progress: PlanProgress) -> None:
        """Draw, or say, how far it is."""
        rate, eta_s = self._pace(progress)
        note = f"{progress.done}/{progress.moves} moves  {bytes_text(rate)}/s"
        if eta_s is not None:
            note += f"  {time_text(eta_s)} left"
        if progress.state == "cancelling":
            note = f"cancelling  {note}"
        if self._bars is not None:
            self._draw(progress, "  ".join([note, *progress.waiting[:WAITING_DRAWN_MAX]]))
        elif self._is_shown and time.monotonic() - self._said_at >= LINE_INTERVAL_S:
            self._said_at = time.monotonic()
            done, total = bytes_text(progress.bytes_done), bytes_text(progress.bytes_total)
            why = waiting_text(progress)
            say(f"{note}  {done} of {total}{f'  ({why})' if why else ''}")

    def _pace(self, progress: PlanProgress) -> tuple[float, float | None]:
        """Bytes per second of late, and the seconds that are left at that pace."""
        now = time.monotonic()
        self._samples.append((now, progress.bytes_done))
        self._samples = [s for s in self._samples if now - s[0] <= SLOW_RATE_WINDOW_S]
        rate = self._rate(self._samples)
        if rate >= SLOW_BYTES_PER_S:
            rate = self._rate([s for s in self._samples if now - s[0] <= RATE_WINDOW_S])
        left = max(0, progress.bytes_total - progress.bytes_done)
        return rate, left / rate if rate > 0 else None

    @staticmethod
    def _rate(samples: Sequence[tuple[float, int]]) -> float:
        (began, bytes_then), (now, bytes_now) = samples[0], samples[-1]
        return max(0.0, (bytes_now - bytes_then) / (now - began)) if now > began else 0.0

    def _draw(self, progress: PlanProgress, note: str) -> None:
        assert self._bars is not None
        assert self._all is not None
        self._bars.update(
            self._all,
            total=max(1, progress.bytes_total),
            completed=progress.bytes_done,
            note=note,
        )
        shown = {move.partition for move in progress.running}
        for name in [name for name in self._tasks if name not in shown]:
            self._bars.remove_task(self._tasks.pop(name))
        for move in progress.running:
            if move.partition not in self._tasks:
                self._tasks[move.partition] = self._bars.add_task(move.partition, note="")
            self._bars.update(
                self._tasks[move.partition],
                total=max(1, move.bytes_total),
                completed=move.bytes_done,
                note=f"to {listed(move.target)}  {bytes_text(move.bytes_total)}",
            )


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
