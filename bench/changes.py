"""What became faster or slower, beyond noise.

The microbenchmarks (``bench/test_*_bench.py``) are run several times, each time in a new
process, and of each run the median counts.  Rounds within a process are no independent
samples: they share one layout of memory and one neighbour on the machine, and any test over
them calls everything significant.  With ``--base`` the other revision runs here too, in turns
with this one, so that a busy minute falls on both; that is the comparison to trust.  Without
it, what was saved before is compared with, which says something only on the machine and at
the load it was measured at.

A change is called one if no run of one side falls among the other's (the Mann-Whitney test at
its strictest: with five runs each, one pair in 126 differs so by chance) and the medians differ
by more than ``CHANGE_MIN``.

    python -m bench.changes --base v0.1.0
    python -m bench.changes --save bench/results/0.1.0-micro.json
    python -m bench.changes --against bench/results/0.1.0-micro.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from logd.cli.measure import Machine, this_machine

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "bench" / "results"
SUFFIX: Final = "-micro.json"
RUNS_DEFAULT: Final = 5
RUNS_MIN: Final = 4
"""One pair in 35 differs by chance then."""

SECONDS_PER_BENCHMARK: Final = 0.3
CHANGE_MIN: Final = 0.05
US_PER_S: Final = 1e6

Figures = dict[str, list[float]]
"""Benchmark to the median of each run, in microseconds."""


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A file of ``bench/results``."""

    revision: str
    began: str
    """UTC."""
    machine: Machine
    figures: Figures


class Change(NamedTuple):
    """One benchmark, then and now."""

    name: str
    before_us: float
    after_us: float
    is_beyond_noise: bool

    @property
    def ratio(self) -> float:
        """Above 1: slower now."""
        return self.after_us / self.before_us


def run_suite(tree: Path, choice: str) -> dict[str, float]:
    """The median of each benchmark of one tree, in microseconds."""
    with tempfile.TemporaryDirectory(prefix="logd-changes-") as directory:
        result = Path(directory) / "result.json"
        suites = sorted(str(path.relative_to(tree)) for path in (tree / "bench").glob("test_*.py"))
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", choice),
            *("--benchmark-enable", f"--benchmark-max-time={SECONDS_PER_BENCHMARK}"),
            *(f"--benchmark-json={result}", *suites),
        ]
        environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'client'}"}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            sys.exit(f"the benchmarks of {tree} failed:\n{said[-3000:]}")
        found = json.loads(result.read_bytes())
    return {one["fullname"]: one["stats"]["median"] * US_PER_S for one in found["benchmarks"]}


def measure(trees: Mapping[str, Path], runs: int, choice: str) -> dict[str, Figures]:
    """All trees in turns."""
    found: dict[str, Figures] = {name: {} for name in trees}
    for number in range(runs):
        for name, tree in trees.items():
            print(f"{number + 1}/{runs} {name}", file=sys.stderr)
            for benchmark, median_us in run_suite(tree, choice).items():
                found[name].setdefault(benchmark, []).append(median_us)
    return found


def compare(before: Figures, after: Figures) -> list[Change]:
    """The benchmarks that both have, in the order of the newer one."""
    return [_change(name, before[name], after[name]) for name in after if name in before]


def unmatched(before: Figures, after: Figures) -> list[str]:
    """What only one side has: a benchmark that was renamed is compared with nothing."""
    gone = [f"only before: {name}" for name in before if name not in after]
    return gone + [f"only here: {name}" for name in after if name not in before]


def _change(name: str, before: list[float], after: list[float]) -> Change:
    then, now = statistics.median(before), statistics.median(after)
    is_apart = max(before) < min(after) or max(after) < min(before)
    return Change(name, then, now, is_apart and abs(now / then - 1) > CHANGE_MIN)


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Another revision of this repository in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="logd-base-") as directory:
        tree = Path(directory) / "tree"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def print_changes(before: Figures, after: Figures) -> None:
    """Those beyond noise, the worst at the top; then what could not be compared."""
    changes = compare(before, after)
    certain = [change for change in changes if change.is_beyond_noise]
    for change in sorted(certain, key=lambda change: -change.ratio):
        word = "slower" if change.ratio > 1 else "faster"
        print(
            f"{change.ratio:6.2f}x {word}  {change.before_us:12,.1f} -> {change.after_us:12,.1f} us"
            f"  {change.name}"
        )
    print(f"{len(certain)} of {len(changes)} benchmarks changed beyond noise")
    for line in unmatched(before, after):
        print(line)


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def _newest_saved() -> Path:
    saved = list(RESULTS.glob(f"*{SUFFIX}"))
    if not saved:
        sys.exit(f"nothing saved in {RESULTS}: name a revision with --base, or --save first")
    return max(saved, key=lambda path: _read(path).began)


def _read(path: Path) -> Saved:
    return msgspec.json.decode(path.read_bytes(), type=Saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    aim = parser.add_mutually_exclusive_group()
    aim.add_argument("--base", metavar="REVISION", help="run this one too, in turns")
    aim.add_argument("--against", type=Path, help="a saved file; default: the newest")
    aim.add_argument("--save", type=Path, help="write the figures here; compares nothing")
    parser.add_argument("--runs", type=int, default=RUNS_DEFAULT)
    parser.add_argument("-k", dest="choice", default="", help="only these, as pytest's -k")
    asked = parser.parse_args()
    if asked.runs < RUNS_MIN:
        parser.error(
            f"--runs {asked.runs}: of fewer than {RUNS_MIN} nothing can be told from noise"
        )
    began = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    if asked.base:
        with checked_out(asked.base) as tree:
            both = measure({asked.base: tree, "here": ROOT}, asked.runs, asked.choice)
        print_changes(both[asked.base], both["here"])
        return
    path = None if asked.save else asked.against or _newest_saved()
    figures = measure({"here": ROOT}, asked.runs, asked.choice)["here"]
    if path is None:
        saved = Saved(revision=_revision(), began=began, machine=this_machine(), figures=figures)
        asked.save.parent.mkdir(parents=True, exist_ok=True)
        asked.save.write_bytes(msgspec.json.format(msgspec.json.encode(saved)) + b"\n")
        return
    before = _read(path)
    print(f"{path.name}: {before.revision}, {before.machine}\nhere: {this_machine()}\n")
    print_changes(before.figures, figures)


if __name__ == "__main__":
    main()
