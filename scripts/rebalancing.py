"""Two brokers join a cluster of three and get their share; two others leave, one is replaced.

    python scripts/rebalancing.py                                        60 partitions, 3 GiB
    python scripts/rebalancing.py --fill 300MB --rounds 20 --kills 3     with SIGKILLs, many times

Prints what it measured beside what is required.  Exit code 1 if anything required does not hold,
or if a broker logged a traceback.
"""

from __future__ import annotations

import argparse
import sys

import click

from logd.cli.local_cluster import stopping
from logd.cli.options import BYTE_RATE
from logd.limits import GIB
from tests.process.elastic import found_cluster
from tests.process.rebalancing import Figures, Size, rebalance_under_load
from tests.process.scratch import scratch

THROTTLE_DEVIATION_MAX = 0.15
IMBALANCE_MAX = 0.10
SLOWDOWN_MAX = 3.0


def size_of(text: str) -> int:
    """Bytes, with a unit."""
    try:
        return BYTE_RATE.convert(text, None, None)
    except click.BadParameter as error:
        raise argparse.ArgumentTypeError(error.message) from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--partitions", type=int, default=60)
    parser.add_argument("--fill", type=size_of, default=3 * GIB)
    parser.add_argument("--throttle", type=size_of, default=50_000_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--first-round", type=int, default=1, help="its number is its seed")
    arguments = parser.parse_args()
    failures = 0
    for number in range(arguments.first_round, arguments.first_round + arguments.rounds):
        size = Size(
            partitions=arguments.partitions,
            fill_bytes=arguments.fill,
            throttle_bytes_per_s=arguments.throttle,
            kills=arguments.kills,
            seed=number,
        )
        with scratch("rebalancing") as place:
            cluster = found_cluster(place.path)
            with stopping(cluster):
                cluster.start_all()
                figures = rebalance_under_load(cluster, size)
            wrong = report(number, size, figures)
            place.is_kept = bool(wrong)
        failures += len(wrong)
    return 1 if failures else 0


def is_even(figures: Figures, partitions: int) -> bool:
    """Whether replicas, leaders and bytes are spread as evenly as whole partitions allow."""
    if not figures.balance_after:
        return False  # The plan did not run: what it said is reported beside this.
    replicas, leaders, size_bytes = figures.balance_after[:3]
    per_broker = partitions / len(figures.replicas)
    return max(replicas, size_bytes) <= max(IMBALANCE_MAX, 1 / (3 * per_broker)) and leaders <= max(
        IMBALANCE_MAX, 1 / per_broker
    )


def report(number: int, size: Size, figures: Figures) -> list[str]:
    """Print one round; returns what does not hold."""
    ideal_s = figures.planned_bytes / size.throttle_bytes_per_s
    checks = [
        ("the plan ends as planned", figures.run_outcome == "done", figures.run_outcome),
        (
            "every load is within 10 % of even, or one partition",
            is_even(figures, size.partitions),
            f"replicas, leaders, bytes: {figures.balance_after[:3]}",
        ),
        (
            "brokers are drained, removed and replaced",
            not figures.left,
            "; ".join(figures.left),
        ),
        (
            "nothing is lost, twice or out of order",
            (figures.missing, figures.twice, figures.out_of_order) == (0, 0, 0),
            f"{figures.acknowledged} acknowledged",
        ),
    ]
    if not size.kills:
        checks += [
            (
                "the throttle is kept within 15 %",
                abs(figures.run_s - ideal_s) <= THROTTLE_DEVIATION_MAX * ideal_s,
                f"{figures.run_s:.1f} s for {ideal_s:.1f} s",
            ),
            (
                "produce p99 is at most three times that of before",
                figures.p99_during_ms <= SLOWDOWN_MAX * figures.p99_before_ms,
                f"{figures.p99_before_ms:.1f} ms before, {figures.p99_during_ms:.1f} ms during",
            ),
        ]
    print(f"round {number}")
    for what, holds, found in checks:
        print(f"  {'ok  ' if holds else 'FAIL'}  {what}  {found}")
    return [what for what, holds, _ in checks if not holds]


if __name__ == "__main__":
    sys.exit(main())
