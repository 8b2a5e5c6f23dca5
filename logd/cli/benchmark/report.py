"""A report of one or more runs: a page with plots, or the plots alone.

The page needs nothing but itself: plots are drawn into it, so it can be mailed or attached.
Drawing needs matplotlib, which only the extra ``report`` brings.  The first run is what the
others are compared with.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from logd.cli.measure import Measurement, Sample
from logd.errors import UsageError

FORMATS: Final = (".html", ".png")
PLOT_INCHES: Final = (7.5, 4.0)
COLOURS: Final = ("#3566b8", "#d9822b", "#2f9e62", "#b83560", "#6f4bb8", "#8a8a8a")
PERCENT_TICKS: Final = (0, 90, 99, 99.9, 99.99, 99.999)
PERCENT_HIGHEST: Final = 99.9995
"""Where 100 % stands on an axis that never reaches it."""


class Run(NamedTuple):
    """One result and the name it goes by in the report."""

    name: str
    found: Measurement


class Row(NamedTuple):
    """One line of the table."""

    title: str
    value: Callable[[Measurement], float | None]
    digits: int
    is_more_better: bool


ROWS: Final = (
    Row("records/s", lambda found: found.records_per_s, 0, True),
    Row("MB/s", lambda found: found.mb_per_s, 1, True),
    Row("latency p50, ms", lambda found: found.latency_ms.p50, 3, False),
    Row("latency p99, ms", lambda found: found.latency_ms.p99, 3, False),
    Row("latency p99.9, ms", lambda found: found.latency_ms.p999, 3, False),
    Row("latency max, ms", lambda found: found.latency_ms.max, 3, False),
    Row("CPU s per million records", lambda found: found.cpu_s_per_million, 2, False),
    Row("  of it the client", lambda found: found.client_cpu_s_per_million, 2, False),
    Row(
        "largest broker, MB",
        lambda found: max((broker.anonymous_mb_max for broker in found.brokers), default=None),
        0,
        False,
    ),
)


def write_report(files: Sequence[Path], output: Path) -> None:
    """Compare the results in ``files``.

    Raises:
        UsageError: a file holds something else, the format is unknown, or matplotlib is
            missing.
    """
    if output.suffix not in FORMATS:
        raise UsageError(f"a report is .html or .png, not {output.name!r}")
    runs = [run for path in files for run in read_runs(path)]
    plots = _drawn(runs, "png" if output.suffix == ".png" else "svg")
    output.write_bytes(plots if output.suffix == ".png" else _page(runs, plots))


def read_runs(path: Path) -> list[Run]:
    """The results of one file: a document, or one per line."""
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty, expected what logd bench --output json prints")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            result = msgspec.json.decode(line, type=Measurement)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(
                f"line {number} of {path} is not what logd bench --output json prints: {error}"
            ) from error
        found.append(Run(path.stem if len(lines) == 1 else f"{path.stem} {number}", result))
    return found


# --- plots ------------------------------------------------------------------------------


def _drawn(runs: Sequence[Run], image_format: str) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("a report needs matplotlib: pip install 'logd[report]'") from error
    width, height = PLOT_INCHES
    # Without pyplot: nothing global, no display is looked for.
    figure = Figure(figsize=(width, 3 * height), layout="constrained")
    throughput, latency, cpu = figure.subplots(3)
    _plot_throughput(throughput, runs)
    _plot_latency(latency, runs)
    _plot_cpu(cpu, runs)
    for axes in (throughput, latency, cpu):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format=image_format, dpi=130)
    return image.getvalue()


def _plot_throughput(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_title("Throughput over time", loc="left")
    axes.set_xlabel("seconds")
    axes.set_ylabel("records/s")
    for at, run in enumerate(runs):
        times, rates = throughput_of(run.found.samples)
        axes.plot(times, rates, color=COLOURS[at % len(COLOURS)], label=run.name, marker=".")
    axes.set_ylim(bottom=0)


def throughput_of(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """The middle of each interval between samples, and the rate in it."""
    times, rates = [], []
    for before, after in pairwise(samples):
        if (seconds := after.at_s - before.at_s) > 0:
            times.append((before.at_s + after.at_s) / 2)
            rates.append((after.records - before.records) / seconds)
    return times, rates


def _plot_latency(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_title("Latency by percentile", loc="left")
    axes.set_xlabel("percent of calls that took no longer")
    axes.set_ylabel("ms")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for at, run in enumerate(runs):
        positions = [_position(percent) for percent, _ in run.found.latency_percentiles]
        values = [milliseconds for _, milliseconds in run.found.latency_percentiles]
        axes.plot(positions, values, color=COLOURS[at % len(COLOURS)], label=run.name, marker=".")
    axes.set_xticks([_position(percent) for percent in PERCENT_TICKS])
    axes.set_xticklabels([f"{percent:g}" for percent in PERCENT_TICKS])
    axes.minorticks_off()


def _position(percent: float) -> float:
    """Each further nine takes as much room as the one before it."""
    return 100 / (100 - min(percent, PERCENT_HIGHEST))


def _plot_cpu(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_title("Processor seconds per million records", loc="left")
    named: set[str] = set()
    for row, run in enumerate(reversed(runs)):
        parts = [("client", run.found.client_cpu_s_per_million)]
        parts += [(f"broker {one.id}", one.cpu_s_per_million) for one in run.found.brokers]
        left = 0.0
        for at, (name, seconds) in enumerate(parts):
            label = None if name in named else name
            axes.barh(row, seconds, left=left, color=COLOURS[at % len(COLOURS)], label=label)
            named.add(name)
            left += seconds
        axes.text(left, row, f" {left:.2f}", va="center")
    axes.set_yticks(range(len(runs)), [run.name for run in reversed(runs)])
    axes.margins(x=0.1)


# --- the page ---------------------------------------------------------------------------

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; vertical-align: top }
th:first-child, td:first-child { text-align: left; white-space: pre }
.better { color: #2f7d4f } .worse { color: #b03030 } .note { color: #777; font-size: .85em }
img { max-width: 100% }
"""


def _page(runs: Sequence[Run], plots_svg: bytes) -> bytes:
    image = base64.b64encode(plots_svg).decode("ascii")
    heads = "".join(
        f"<th>{html.escape(run.name)}<br>"
        f"<span class=note>{html.escape(run.found.bench)}</span></th>"
        for run in runs
    )
    lines = "".join(_table_line(row, runs) for row in ROWS)
    notes = "".join(f"<li>{html.escape(_described(run))}</li>" for run in runs)
    names = ", ".join(html.escape(run.name) for run in runs)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>logd bench: {names}</title>
<style>{_STYLE}</style>
<h1>logd bench</h1>
<table><tr><th></th>{heads}</tr>{lines}</table>
<img alt="Throughput over time, latency by percentile, processor time"
 src="data:image/svg+xml;base64,{image}">
<h2>What was run</h2>
<ul>{notes}</ul>
<p class=note>Percentages compare with the first run.  One run of each says little about small
differences: the machine's own noise is often larger.</p>
</html>
""".encode()


def _table_line(row: Row, runs: Sequence[Run]) -> str:
    first = row.value(runs[0].found)
    cells = []
    for at, run in enumerate(runs):
        value = row.value(run.found)
        text = "&ndash;" if value is None else f"{value:,.{row.digits}f}"
        cells.append(f"<td>{text}{'' if at == 0 else _change(row, first, value)}</td>")
    return f"<tr><td>{html.escape(row.title)}</td>{''.join(cells)}</tr>"


def _change(row: Row, first: float | None, value: float | None) -> str:
    if not first or value is None:
        return ""
    percent = 100 * (value / first - 1)
    kind = "better" if (percent > 0) == row.is_more_better else "worse"
    return f" <span class={kind}>{percent:+.0f}&nbsp;%</span>"


def _described(run: Run) -> str:
    settings = " ".join(
        f"{name}={value}" for name, value in run.found.settings.items() if value is not None
    )
    machine = run.found.machine
    where = "" if machine is None else (
        f" on {machine.cores} cores at load {machine.load}, Python {machine.python}, "
        f"{machine.system}"
    )  # fmt: skip
    return f"{run.name}: {run.found.bench}, {run.found.seconds} s{where}; {settings}"
