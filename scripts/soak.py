"""Real brokers under load and fault after fault, and whether they kept their promises.

    python scripts/soak.py --minutes 20
    python scripts/soak.py --minutes 2 --fault "half-open a leader"   one kind; --list names them

Exit code 1 if a record was lost, duplicated or differs, if memory or descriptors grew, if the
cluster did not become whole again after a fault, or if a broker logged a traceback.  The
brokers' logs and data are kept then.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from logd.limits import MIB
from tests.process.harness import make_whole, proxied_cluster
from tests.process.scratch import scratch
from tests.process.soak import FAULTS, Round, SoakReport, run_soak

EVENTS_SHOWN = ("leader_elected", "log_truncated", "damage_found", "damage_repaired")
"""What brokers logged, counted in the report."""


def main() -> int:
    """Soak; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, help="of the order of faults; random if left out")
    parser.add_argument("--fault", action="append", choices=FAULTS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="names of the faults")
    parser.add_argument("--directory", type=Path, help="where the brokers keep their data")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(FAULTS))
        return 0
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    faults: Sequence[str] = arguments.fault or list(FAULTS)
    with scratch("soak", arguments.directory) as place:
        with proxied_cluster(place.path / "cluster") as cluster:
            make_whole(cluster)
            found = run_soak(cluster, 60 * arguments.minutes, seed, faults, tell)
        print_report(found)
        place.is_kept = bool(found.violations)
    return 1 if found.violations else 0


def tell(done: Round) -> None:
    """One line for each round, while it goes on."""
    print(
        f"  {done.fault}: longest gap {done.longest_gap_s:.2f} s, "
        f"whole after {done.whole_after_s:.2f} s",
        file=sys.stderr,
        flush=True,
    )


def print_report(report: SoakReport) -> None:
    """Tables of faults and of brokers, then the verdict."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(fault_table(report))
    console.print(broker_table(report))
    found = report.differences
    print(
        f"seed {report.seed}, {report.took_s / 60:.1f} minutes, {len(report.rounds)} faults, "
        f"{report.links:,} connections between brokers\n"
        f"{', '.join(f'{name} {report.events[name]:,}' for name in EVENTS_SHOWN)}\n"
        f"{report.acknowledged:,} records acknowledged "
        f"({report.acknowledged / report.took_s:,.0f}/s), {report.consumed:,} consumed\n"
        f"lost {found.lost}, duplicated {found.duplicated}, inconsistent {found.misplaced}"
    )
    for violation in report.violations:
        print(f"VIOLATION: {violation}")
    print("FAILED" if report.violations else "ok")


def fault_table(report: SoakReport) -> Table:
    """How long appends stood still, by fault."""
    rounds: dict[str, list[Round]] = defaultdict(list)
    for done in report.rounds:
        rounds[done.fault].append(done)
    table = Table("fault", "times", "longest gap", "whole after, worst", box=box.SIMPLE_HEAD)
    for fault, those in sorted(rounds.items()):
        table.add_row(
            fault,
            str(len(those)),
            f"{max(done.longest_gap_s for done in those):.2f} s",
            f"{max(done.whole_after_s for done in those):.2f} s",
        )
    return table


def broker_table(report: SoakReport) -> Table:
    """What each broker held in calm: medians of the first and last quarter, and the most."""
    table = Table("broker", "", "start", "end", "most", box=box.SIMPLE_HEAD)
    for node, samples in report.usage.items():
        if not samples:
            continue
        start, end = report.start_and_end(node)
        most = max(one.memory_bytes for one in samples)
        memory = [f"{size / MIB:.1f} MiB" for size in (start.memory_bytes, end.memory_bytes, most)]
        descriptors = [start.descriptors, end.descriptors, max(one.descriptors for one in samples)]
        table.add_row(str(node), "own memory", *memory)
        table.add_row("", "descriptors", *map(str, descriptors))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
