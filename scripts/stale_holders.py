"""Fifty rounds of a holder that is stopped beyond its time to live and continued.

    python scripts/stale_holders.py [--rounds 50] [--kind lock|election|shard]…

Each round: a process that was granted a lock (led, owned a shard) is stopped while it appends with
its fence, another one takes over, the first is continued.  Every append of it that comes late must
be refused, with certainty.  Exits with 1 if one was not.
"""

from __future__ import annotations

import argparse
import sys
import uuid

import anyio

from logd.cli.local_cluster import open_cluster, stopping
from logd.cli.ready import wait_until_ready
from logd_client import connect
from tests.process.scratch import scratch
from tests.process.stale_holders import KINDS, late_writes, play_round


async def play(bootstrap: str, kinds: list[str], rounds: int) -> int:
    """Play all rounds; how many late writes were found."""
    late = refused = 0
    async with connect(bootstrap) as client:
        for number in range(rounds):
            for kind in kinds:
                topic = f"stale-{uuid.uuid4()}"
                await client.admin.create_topic(topic, partitions=1, replicas=3)
                found = await play_round(client, bootstrap, kind, f"stale-{uuid.uuid4()}", topic)
                wrong = late_writes(found)
                late += len(wrong) + found.stopped.doubtful
                refused += found.stopped.refused
                await client.admin.delete_topic(topic)
                print(
                    f"round {number + 1:3} {kind:8} {found.stopped.token} then {found.token}: "
                    f"{len(found.stopped.acknowledged)} acknowledged before, "
                    f"{found.stopped.refused} late ones refused, {len(wrong)} written late",
                    flush=True,
                )
    print(f"{rounds} rounds of {', '.join(kinds)}: {refused} late appends refused, {late} not")
    return late


def main() -> int:
    """Run on a cluster of three brokers that is made for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kind", action="append", choices=KINDS)
    given = parser.parse_args()
    with scratch("stale-holders") as place:
        cluster = open_cluster(place.path, broker_count=3, port=None)
        with stopping(cluster):
            cluster.start_all()
            anyio.run(wait_until_ready, cluster, backend="trio")
            late = anyio.run(
                play, cluster.bootstrap, given.kind or list(KINDS), given.rounds, backend="trio"
            )
        place.is_kept = late > 0
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
