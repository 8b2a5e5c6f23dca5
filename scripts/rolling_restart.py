"""Restart every broker in turn under load, as an upgrade does, and measure what producers notice.

    python scripts/rolling_restart.py                  three brokers, 12 partitions
    python scripts/rolling_restart.py --rounds 5 --partitions 60

Each broker is told to stop (SIGTERM), started again, and waited for until ``logd cluster status``
is content, as docs/operations.md has it.  Exit code 1 if a record was lost, came twice or out of
order, if some partition went without acknowledgement for longer than the bound, or if a broker
logged a traceback.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Final

from logd.cli.local_cluster import open_cluster, stopping
from tests.process.rolling import Figures, restart_in_turn
from tests.process.scratch import scratch

GAP_S_MAX: Final = 0.3
PLANNED_S_MAX: Final = 0.05
"""The goal for a planned hand-over, at the median partition."""


def main() -> int:
    """Restart them; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pause-ms", type=float, default=20.0, help="between appends")
    parser.add_argument("--keep", action="store_true", help="the brokers' logs and data")
    arguments = parser.parse_args()
    with scratch("rolling") as place:
        cluster = open_cluster(place.path, broker_count=arguments.brokers, port=None)
        with stopping(cluster):
            cluster.start_all()
            figures = restart_in_turn(
                cluster,
                partitions=arguments.partitions,
                pause_s=arguments.pause_ms / 1000,
                rounds=arguments.rounds,
            )
        is_well = report(figures)
        place.is_kept = arguments.keep or not is_well
    return 0 if is_well else 1


def report(figures: Figures) -> bool:
    """Print what was measured; whether it holds."""
    print(f"calm: longest gap {figures.calm_gap_s * 1000:.0f} ms")
    found = sorted(figures.hand_overs_s)
    print(
        f"hand-over by command: median gap {statistics.median(found) * 1000:.0f} ms, "
        f"longest {found[-1] * 1000:.0f} ms, of {len(found)}; "
        f"the goal at the median is {PLANNED_S_MAX * 1000:.0f} ms"
    )
    print("broker   stopping   whole after   longest gap: stop   median   longest gap: start")
    for one in figures.restarts:
        print(
            f"{one.node:6}   {one.stopping_s:6.2f} s   {one.whole_after_s:9.2f} s   "
            f"{max(one.gaps_s) * 1000:14.0f} ms   {statistics.median(one.gaps_s) * 1000:3.0f} ms   "
            f"{max(one.gaps_starting_s) * 1000:15.0f} ms"
        )
    wrong = (figures.missing, figures.twice, figures.out_of_order)
    print(
        f"{figures.acknowledged} acknowledged, {wrong[0]} missing, {wrong[1]} twice, "
        f"{wrong[2]} out of order; longest gap of any partition {figures.longest_gap_s:.3f} s "
        f"(at most {GAP_S_MAX})"
    )
    return wrong == (0, 0, 0) and figures.longest_gap_s <= GAP_S_MAX


if __name__ == "__main__":
    sys.exit(main())
