"""What the process tests do small, in full size and with figures.

    python scripts/acceptance.py                     everything, some ten minutes
    python scripts/acceptance.py --only kill-leader  one check; --list names them

Each check starts its own three brokers, prints what it measured beside what is required,
and removes its data.  Exit code 1 if anything required does not hold.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from logd.limits import GIB, MIB
from tests.process.damage import flip_bits_and_start
from tests.process.failover import (
    Outcome,
    fill,
    freeze_the_leader,
    kill_everybody,
    kill_the_leader,
    restart_with_data,
    stop_the_leader,
)
from tests.process.harness import (
    BROKERS,
    descriptor_count,
    make_whole,
    require_no_bug_reported,
)
from tests.process.intruders import IDLERS, INTRUDERS, intrude
from tests.process.memory import GROWTH_BYTES_MAX, MemoryRun, push, push_past_a_frozen_follower

KILLS: Final = 10
KILLS_OF_ALL: Final = 3
STOPS: Final = 5
FREEZES: Final = 5
FROZEN_S: Final = 4.0
DATA_BYTES_PER_BROKER: Final = 2 * GIB
DISK_BYTES_NEEDED: Final = 4 * BROKERS * DATA_BYTES_PER_BROKER
PUSH_S: Final = 60.0
FOLLOWER_FROZEN_S: Final = 30.0
FLIPPED_RECORDS: Final = 200_000
FLIPPED_BITS: Final = 100


class Figure(NamedTuple):
    """One row of the table."""

    what: str
    measured: str
    required: str
    holds: bool


Check = Callable[[LocalCluster], list[Figure]]


def main() -> int:
    """Run the checks that were asked for; 0 if all that is required holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=CHECKS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="names of the checks")
    parser.add_argument("--directory", type=Path, help="where the brokers keep their data")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CHECKS))
        return 0
    figures = []
    for name in arguments.only or CHECKS:
        began = time.monotonic()
        try:
            with brokers(arguments.directory) as cluster:
                found = CHECKS[name](cluster)
        except Exception:  # It takes no other with it, nor what was measured before.
            traceback.print_exc()
            found = [Figure("the check itself", "failed, as said above", "", False)]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        figures += [(name, figure) for figure in found]
    report(figures)
    return 0 if all(figure.holds for _, figure in figures) else 1


@contextmanager
def brokers(parent: Path | None) -> Iterator[LocalCluster]:
    """Three of them, ready; their data is removed afterwards, their logs if all went well."""
    directory = Path(tempfile.mkdtemp(prefix="logd-acceptance-", dir=parent))
    cluster = open_cluster(directory / "cluster", broker_count=BROKERS, port=None)
    try:
        with stopping(cluster):
            cluster.start_all()
            make_whole(cluster)
            yield cluster
        require_no_bug_reported(cluster)
    except BaseException:
        print(f"the brokers' logs are kept in {directory}", file=sys.stderr)
        for broker in cluster.brokers:
            shutil.rmtree(broker.data_dir, ignore_errors=True)
        raise
    shutil.rmtree(directory)


def report(figures: Sequence[tuple[str, Figure]]) -> None:
    """Print the table."""
    table = Table("check", "", "measured", "required", "", box=box.SIMPLE_HEAD)
    for name, figure in figures:
        table.add_row(name, *figure[:3], "ok" if figure.holds else "FAILED")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


# --- checks -----------------------------------------------------------------------------


def check_kill_leader(cluster: LocalCluster) -> list[Figure]:
    """Ten kills of the leader under one producer that appends record by record."""
    outcomes = repeated(KILLS, kill_the_leader, cluster)
    gaps = [outcome.longest_gap_s for outcome in outcomes]
    return [
        Figure(f"median gap of {KILLS} kills", *at_most(statistics.median(gaps), 1.0)),
        Figure("longest gap", *at_most(max(gaps), 2.0)),
        nothing_lost(outcomes),
    ]


def check_kill_all(cluster: LocalCluster) -> list[Figure]:
    """All brokers killed at once under load, and started again."""
    outcomes = repeated(KILLS_OF_ALL, kill_everybody, cluster)
    worst = max(outcome.disturbed_s for outcome in outcomes)
    return [
        Figure("start to first acknowledgement, worst", *at_most(worst, 3.0)),
        nothing_lost(outcomes),
    ]


def check_restart_with_data(cluster: LocalCluster) -> list[Figure]:
    """The same with 2 GiB per broker, with its files in the page cache and without."""
    free = shutil.disk_usage(cluster.brokers[0].directory).free
    if free < DISK_BYTES_NEEDED:
        needed = f"{DISK_BYTES_NEEDED / GIB:.0f} GiB"
        return [Figure("free space", f"{free / GIB:.0f} GiB", needed, False)]
    began = time.monotonic()
    record_count = fill(cluster, DATA_BYTES_PER_BROKER)
    filled = f"{record_count:,} records in {time.monotonic() - began:.0f} s"
    figures = [Figure(f"{DATA_BYTES_PER_BROKER / GIB:.0f} GiB per broker", filled, "", True)]
    for is_cold, state in ((False, "warm"), (True, "cold")):
        make_whole(cluster)
        restart = restart_with_data(cluster, is_cold=is_cold)
        figures += [
            Figure(f"{state}: start to first acknowledgement", *at_most(restart.first_ack_s, 3.0)),
            Figure(f"{state}: … of every partition", *at_most(restart.last_ack_s, 3.0)),
            Figure(
                f"{state}: every acknowledged record is there",
                "yes" if restart.is_complete else "no",
                "yes",
                restart.is_complete,
            ),
        ]
    return figures


def check_stop_leader(cluster: LocalCluster) -> list[Figure]:
    """SIGTERM of the leader under load."""
    outcomes = repeated(STOPS, stop_the_leader, cluster)
    return [
        Figure("signal to end, worst", *at_most(max(o.disturbed_s for o in outcomes), 2.0)),
        Figure("longest gap", *at_most(max(o.longest_gap_s for o in outcomes), 1.0)),
        leader_changed(outcomes),
        nothing_lost(outcomes),
    ]


def check_freeze_leader(cluster: LocalCluster) -> list[Figure]:
    """SIGSTOP of the leader for a few seconds."""
    outcomes = repeated(FREEZES, freeze_the_leader, cluster, FROZEN_S)
    gaps = [outcome.longest_gap_s for outcome in outcomes]
    return [
        Figure(f"median gap of {FREEZES} freezes", f"{statistics.median(gaps):.2f} s", "", True),
        Figure("longest gap", *at_most(max(gaps), 2.5)),
        leader_changed(outcomes),
        nothing_lost(outcomes),
    ]


def check_memory_push(cluster: LocalCluster) -> list[Figure]:
    """Producers push as fast as they can for a minute."""
    return memory_figures(push(cluster, PUSH_S))


def check_memory_frozen_follower(cluster: LocalCluster) -> list[Figure]:
    """The same with a follower that is frozen for half a minute."""
    run = push_past_a_frozen_follower(cluster, FOLLOWER_FROZEN_S)
    caught_up = Figure("caught up after waking", f"{run.caught_up_s:.1f} s", "", True)
    return [*memory_figures(run), caught_up]


def check_wrong_protocol(cluster: LocalCluster) -> list[Figure]:
    """Whoever speaks something else, or nothing at all, is shut out."""
    broker = cluster.brokers[0]
    pid = cluster.pid(broker.node_id)
    before = descriptor_count(pid)
    riddles = [
        str(intruder)
        for intruder in (*INTRUDERS, *IDLERS)
        if intruder.reason not in intrude(broker, intruder)
    ]
    make_whole(cluster)
    # One that stays between two looks is chance (a peer reconnects); a leak has one for each.
    kept = descriptor_count(pid) - before
    return [
        Figure("came", f"{len(INTRUDERS) + len(IDLERS)}", "", True),
        Figure(
            "not shut out with the right reason", ", ".join(riddles) or "none", "none", not riddles
        ),
        Figure("descriptors kept", f"{kept}", "none", kept <= 1),
    ]


# --- figures ----------------------------------------------------------------------------


def repeated(count: int, run: Callable[..., Outcome], *arguments: object) -> list[Outcome]:
    """Run a scenario on one cluster several times; everybody is whole before each."""
    outcomes = []
    for _ in range(count):
        outcome = run(*arguments)
        outcomes.append(outcome)
        print(
            f"  gap {outcome.longest_gap_s:.3f} s, disturbed {outcome.disturbed_s:.3f} s, "
            f"acknowledged {outcome.acknowledged:,}, leader {outcome.leader_before} to "
            f"{outcome.leader_after}",
            file=sys.stderr,
        )
    return outcomes


def at_most(measured_s: float, bound_s: float) -> tuple[str, str, bool]:
    """Measured, required, and whether it holds."""
    return f"{measured_s:.2f} s", f"≤ {bound_s:g} s", measured_s <= bound_s


def leader_changed(outcomes: Sequence[Outcome]) -> Figure:
    """Another broker leads afterwards."""
    changed = sum(outcome.leader_after != outcome.leader_before for outcome in outcomes)
    return Figure(
        "leader changed", f"{changed} of {len(outcomes)}", "all", changed == len(outcomes)
    )


def nothing_lost(outcomes: Sequence[Outcome]) -> Figure:
    """Every acknowledged record is there once, on each replica, where it was acknowledged."""
    acknowledged = sum(outcome.acknowledged for outcome in outcomes)
    lost = sum(outcome.differences.lost for outcome in outcomes)
    duplicated = sum(outcome.differences.duplicated for outcome in outcomes)
    misplaced = sum(outcome.differences.misplaced for outcome in outcomes)
    for outcome in outcomes:
        for example in outcome.differences.examples:
            print(f"  {example}", file=sys.stderr)
    return Figure(
        f"{acknowledged:,} acknowledged records, on each replica",
        f"lost {lost}, duplicated {duplicated}, misplaced {misplaced}",
        "none",
        lost + duplicated + misplaced == 0,
    )


def memory_figures(run: MemoryRun) -> list[Figure]:
    """What any broker held at most, and how much that grew."""
    growth = run.growth_bytes
    return [
        Figure("pushed", f"{run.pushed_bytes / GIB:.1f} GiB", "", True),
        Figure("rate", f"{run.rate_bytes_per_s / MIB:.0f} MiB/s", "", True),
        Figure("most anonymous memory of a broker", f"{run.peak_bytes / MIB:.0f} MiB", "", True),
        Figure(
            "growth after the warm-up",
            f"{growth / MIB:.0f} MiB",
            f"≤ {GROWTH_BYTES_MAX / MIB:.0f} MiB",
            growth <= GROWTH_BYTES_MAX,
        ),
        Figure("spread after the warm-up", f"{run.spread_bytes / MIB:.0f} MiB", "", True),
    ]


def check_flip_bits(cluster: LocalCluster) -> list[Figure]:
    """100 random bits flipped in the segments of one of three stopped brokers."""
    repair = flip_bits_and_start(cluster, FLIPPED_RECORDS, FLIPPED_BITS, seed=time.time_ns())
    return [
        Figure(
            "records, bits flipped", f"{repair.record_count:,}, {repair.flipped_bits}", "", True
        ),
        Figure("start to all read and verified", *at_most(repair.whole_after_s, 60.0)),
        Figure("replicas that differ", str(repair.lost_count), "0", repair.lost_count == 0),
    ]


CHECKS: Final[dict[str, Check]] = {
    "kill-leader": check_kill_leader,
    "kill-all": check_kill_all,
    "restart-with-data": check_restart_with_data,
    "stop-leader": check_stop_leader,
    "freeze-leader": check_freeze_leader,
    "memory-push": check_memory_push,
    "memory-frozen-follower": check_memory_frozen_follower,
    "wrong-protocol": check_wrong_protocol,
    "flip-bits": check_flip_bits,
}


if __name__ == "__main__":
    raise SystemExit(main())
