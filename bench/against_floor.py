"""The product's figures, each beside the floor of the same minutes.

A machine that does other things, or shares its cores with other machines, gives no figure
twice.  So floor and product are run in turns, round after round, with memory warmed before each
(``bench/memory.py``), and what is reported of each workload is the median of the rounds' ratios
besides the medians themselves.  A ratio of rates is product to floor (1 is the most one could hope
for), a ratio of times too (1 is the least).

    python -m bench.against_floor --runs 5
    python -m bench.against_floor produce latency --runs 3 --save bench/results/0.1.0.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bench.floor import FloorRun, run_once
from bench.memory import full_page_cache
from logd.cli.benchmark.settings import Durability
from logd.cli.measure import this_machine

TIMEOUT_S: Final = 300
RUNS_DEFAULT: Final = 5
HALF_RATE: Final = "half"
"""Stands for half of what the same round's `produce` reached: what a cluster that is busy but
not overloaded is offered."""


class Figure(NamedTuple):
    """One row: what the product is asked to do, and the floor's workload like it."""

    floor: str | None
    arguments: tuple[str, ...]
    is_time: bool = False
    """The figure is the median latency, else records per second."""


FIGURES: Final = {
    "produce": Figure("produce", ("produce", "--records", "4000000")),
    "produce-1k": Figure(
        "produce-1k", ("produce", "--records", "400000", "--record-bytes", "1024")
    ),
    "produce-nowait": Figure("produce", ("produce", "--records", "1000000", "--api", "nowait")),
    "latency": Figure("latency", ("latency", "--records", "3000"), is_time=True),
    "connections": Figure("connections", ("latency", "--producers", "256", "--records", "30000")),
    "consume": Figure(None, ("consume", "--records", "4000000")),
    "consume-records": Figure(None, ("consume", "--records", "1000000", "--as", "records")),
    "end-to-end": Figure(None, ("end-to-end", "--rate", HALF_RATE), is_time=True),
    "tailing-50": Figure(
        None,
        ("end-to-end", "--rate", "20000", "--consumers", "50", "--linger-ms", "10"),
        is_time=True,
    ),
}


class Round(NamedTuple):
    """One run of one row."""

    floor: FloorRun | None
    product: dict[str, Any]
    load: float


def product_once(figure: Figure, durability: Durability, brokers: int) -> dict[str, Any]:
    """Run ``logd bench`` on a cluster of its own; what it printed."""
    command = [
        *(sys.executable, "-m", "logd", "bench", *figure.arguments),
        *("--brokers", str(brokers), "--durability", durability, "--output", "json"),
    ]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode().strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(
    names: Sequence[str], durability: Durability, runs: int, before_each: Callable[[], None]
) -> dict[str, list[Round]]:
    """Whole rounds over all rows; within a row the floor goes first every other time."""
    found: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(runs):
        for name in names:
            figure = FIGURES[name]
            before_each()
            if HALF_RATE in figure.arguments:
                made = found["produce"][-1:] if "produce" in names else []
                figure = _at_half_rate(figure, durability, made)
            found[name].append(_round(figure, durability, floor_first=number % 2 == 0))
            last = found[name][-1]
            print(
                f"{number + 1}/{runs} {name}: {_figure(last.product, name):,.3f}"
                + (f", floor {_figure(last.floor, name):,.3f}" if last.floor else ""),
                file=sys.stderr,
            )
    return found


def _at_half_rate(figure: Figure, durability: Durability, made: Sequence[Round]) -> Figure:
    produce = made[0].product if made else product_once(FIGURES["produce"], durability, brokers=3)
    rate = str(round(produce["records_per_s"] / 2))
    return figure._replace(
        arguments=tuple(rate if word == HALF_RATE else word for word in figure.arguments)
    )


def _round(figure: Figure, durability: Durability, *, floor_first: bool) -> Round:
    load = os.getloadavg()[0]
    floor: FloorRun | None = None
    directory = Path(tempfile.gettempdir())
    if figure.floor is not None and floor_first:
        floor = run_once(figure.floor, durability, fresh=False, directory=directory)
    product = product_once(figure, durability, brokers=3)
    if figure.floor is not None and not floor_first:
        floor = run_once(figure.floor, durability, fresh=False, directory=directory)
    return Round(floor, product, load)


def _figure(run: dict[str, Any] | FloorRun | None, name: str) -> float:
    assert run is not None
    if isinstance(run, FloorRun):
        return run.latency_ms.p50 if FIGURES[name].is_time else run.records_per_s
    return float(run["latency_ms"]["p50"] if FIGURES[name].is_time else run["records_per_s"])


def row(name: str, durability: Durability, rounds: Sequence[Round]) -> dict[str, Any]:
    """What is reported of one row."""
    products = [_figure(one.product, name) for one in rounds]
    found: dict[str, Any] = {
        "name": name,
        "durability": durability,
        "unit": "ms p50" if FIGURES[name].is_time else "records/s",
        "product": _median(products),
        "product_runs": products,
        "p99_ms": _median(one.product["latency_ms"]["p99"] for one in rounds),
        "cpu_s_per_million": _median(one.product["cpu_s_per_million"] for one in rounds),
        "broker_mb_max": max(
            broker["anonymous_mb_max"] for one in rounds for broker in one.product["brokers"]
        ),
        "load": _median(one.load for one in rounds),
        "arguments": FIGURES[name].arguments,
    }
    floors = [one.floor for one in rounds if one.floor is not None]
    if floors:
        figures = [_figure(floor, name) for floor in floors]
        found["floor"] = _median(figures)
        found["floor_runs"] = figures
        found["floor_cpu_s_per_million"] = _median(floor.cpu_s_per_million for floor in floors)
        found["ratio"] = _median(ours / bare for ours, bare in zip(products, figures, strict=True))
    return found


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """A table for people."""
    print(
        f"{'':16}{'':11}{'product':>14}{'floor':>14}{'ratio':>8}"
        f"{'p99 ms':>10}{'CPU s/M':>10}{'floor':>9}{'load':>6}"
    )
    for one in rows:
        floor = f"{one['floor']:14,.3f}{one['ratio']:8.2f}" if "floor" in one else " " * 22
        floor_cpu = one.get("floor_cpu_s_per_million")
        print(
            f"{one['name']:16}{one['durability']:11}{one['product']:14,.3f}{floor}"
            f"{one['p99_ms']:10.2f}{one['cpu_s_per_million']:10.2f}"
            f"{'' if floor_cpu is None else f'{floor_cpu:.2f}':>9}{one['load']:6.1f}"
            f"  {one['unit']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--durability", choices=["synced", "replicated"], default="synced")
    parser.add_argument("--runs", type=int, default=RUNS_DEFAULT)
    parser.add_argument(
        "--cold", action="store_true", help="leave memory that is free as it is (bench/memory.py)"
    )
    parser.add_argument("--save", type=Path, help="write all of it here as JSON")
    asked = parser.parse_args()
    names = asked.names or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}, expected some of {', '.join(FIGURES)}")
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    with full_page_cache() as fill:
        before_each = _nothing if asked.cold else fill
        found = measure(names, asked.durability, asked.runs, before_each)
    rows = [row(name, asked.durability, rounds) for name, rounds in found.items()]
    if asked.save:
        asked.save.parent.mkdir(parents=True, exist_ok=True)
        document = {"began": began, "machine": this_machine(), "runs": asked.runs, "rows": rows}
        asked.save.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    print_rows(rows)


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
