"""A thousand shards over ten workers: one more joins, another is killed.

    python scripts/assignments.py [--shards 1000] [--workers 10] [--ttl 3] [--rounds 3]

Each worker is a process that notes when it begins and when it has stopped with a shard.  Checked:
no more shards move than must, no two workers work on one shard at the same time, tokens grow, all
shards are owned again within the time to live and a second, and who owns a shard works on it.
Exits with 1 if one does not hold, or if a broker logged a traceback.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from logd.cli.local_cluster import open_cluster, stopping
from logd.cli.ready import wait_until_ready
from logd.wire.coordination import Assignment
from logd_client import Client, connect
from logd_client.coordination.assignments import Assignments, OwnedShard
from tests.process.scratch import scratch

LOOK_S: Final = 0.05
SPREAD_TIMEOUT_S: Final = 60
SLACK_S: Final = 1.0
"""Besides the time to live, until all shards of a worker that was killed are owned again."""


class Held(NamedTuple):
    """One worker's time with one shard, by the clock that all processes share."""

    token: int
    began: float
    ended: float
    worker: str


# --- the workers ------------------------------------------------------------------------


def work(bootstrap: str, group: str, worker: str, ttl_s: float, notes: Path) -> None:
    """Work on whatever shards there are, until killed."""
    anyio.run(_work, bootstrap, group, worker, ttl_s, notes, backend="trio")


async def _work(bootstrap: str, group: str, worker: str, ttl_s: float, notes: Path) -> None:
    file = os.open(notes / worker, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(what: str, shard: OwnedShard) -> None:
        # At once: a worker that is killed has said all it had to.
        os.write(file, f"{what} {shard.shard} {shard.token} {time.monotonic()}\n".encode())

    async def run_shard(shard: OwnedShard) -> None:
        note("began", shard)
        try:
            await anyio.sleep_forever()
        finally:
            note("ended", shard)

    async with connect(bootstrap) as client:
        await client.assignments(group, ttl_s=ttl_s).work(worker, run_shard)


class Workers:
    """The processes of one round."""

    def __init__(self, bootstrap: str, group: str, ttl_s: float, notes: Path) -> None:
        self._arguments = (bootstrap, group)
        self._ttl_s = ttl_s
        self._notes = notes
        self._spawn = multiprocessing.get_context("spawn")
        self._processes: dict[str, Any] = {}
        self._killed_at: dict[str, float] = {}

    @property
    def names(self) -> set[str]:
        return set(self._processes)

    def start(self, names: Iterable[str]) -> None:
        for name in names:
            arguments = (*self._arguments, name, self._ttl_s, self._notes)
            process = self._spawn.Process(target=work, args=arguments, daemon=True)
            process.start()
            self._processes[name] = process

    def kill(self, name: str) -> float:
        """Returns when."""
        process = self._processes.pop(name)
        process.kill()
        process.join()
        self._killed_at[name] = time.monotonic()
        return self._killed_at[name]

    def kill_all(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def held(self) -> dict[str, list[Held]]:
        """By shard, who worked on it when; all of them have been killed."""
        found: dict[str, list[Held]] = {}
        for worker, killed_at in self._killed_at.items():
            began: dict[str, tuple[int, float]] = {}
            for line in (self._notes / worker).read_text().splitlines():
                what, shard, token, at = line.split()
                if what == "began":
                    began[shard] = (int(token), float(at))
                else:
                    found.setdefault(shard, []).append(Held(*began.pop(shard), float(at), worker))
            for shard, (number, at_s) in began.items():
                found.setdefault(shard, []).append(Held(number, at_s, killed_at, worker))
        return found


# --- what is checked --------------------------------------------------------------------


async def joined_by(client: Client, group: str, count: int) -> None:
    """Wait until the group has so many members."""
    with anyio.fail_after(SPREAD_TIMEOUT_S):
        while True:
            if len((await client.members(group).list()).members) == count:
                return
            await anyio.sleep(LOOK_S)


async def spread(assignments: Assignments, workers: set[str]) -> dict[str, str]:
    """Wait until each shard is one of theirs, and none is to move; the owners."""
    with anyio.fail_after(SPREAD_TIMEOUT_S):
        while True:
            found: Assignment = await assignments.list()
            owners = {row.shard: row.owner for row in found.shards}
            is_settled = not any(row.revoked for row in found.shards)
            if is_settled and set(owners.values()) == workers:
                return {shard: owner for shard, owner in owners.items() if owner is not None}
            await anyio.sleep(LOOK_S)


def moved(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(before[shard] != after[shard] for shard in before)


def overlaps(held: dict[str, list[Held]]) -> list[str]:
    """Shards that two worked on at once, or that a smaller token came back to."""
    wrong = []
    for shard, times in held.items():
        times.sort(key=lambda one: one.began)
        for earlier, later in pairwise(times):
            if later.began < earlier.ended or later.token <= earlier.token:
                wrong.append(f"{shard}: {earlier} and {later}")
    return wrong


def strangers(held: dict[str, list[Held]], owners: dict[str, str]) -> list[str]:
    """Shards that were not worked on last by whom they belong to: the workers' word for it, without
    which nobody who did nothing would ever be found to have done something wrong."""
    last = {shard: max(times, key=lambda one: one.began).worker for shard, times in held.items()}
    return [
        f"{shard}: of {owner}, and {last.get(shard, 'nobody')} worked on it last"
        for shard, owner in owners.items()
        if last.get(shard) != owner
    ]


async def play(bootstrap: str, shard_count: int, count: int, ttl_s: float, notes: Path) -> bool:
    """One round; whether all of it held."""
    group = f"wide-{uuid.uuid4()}"
    workers = Workers(bootstrap, group, ttl_s, notes)
    names = [f"worker-{number}" for number in range(count + 1)]
    try:
        async with connect(bootstrap) as client:
            assignments = client.assignments(group)
            workers.start(names[:count])
            await joined_by(client, group, count)
            began = time.monotonic()
            await assignments.set([f"shard-{number}" for number in range(shard_count)])
            first = await spread(assignments, workers.names)
            spread_s = time.monotonic() - began

            workers.start(names[count:])
            second = await spread(assignments, workers.names)
            joined = moved(first, second)

            lost = sum(owner == names[0] for owner in second.values())
            killed_at = workers.kill(names[0])
            third = await spread(assignments, workers.names)
            taken_s = time.monotonic() - killed_at
            left = moved(second, third)
            await anyio.sleep(ttl_s / 3)  # The last to begin have noted it.
    finally:
        workers.kill_all()
    held = workers.held()
    wrong = overlaps(held) + strangers(held, third)
    fewest = shard_count // (count + 1)
    holds = joined == fewest and left == lost and taken_s <= ttl_s + SLACK_S and not wrong
    print(
        f"{shard_count} shards spread over {count} in {spread_s:.2f} s; one joined: {joined} moved "
        f"(fewest {fewest}); one of {lost} was killed: {left} moved, all owned again after "
        f"{taken_s:.2f} s (time to live {ttl_s:g} s); wrong: {len(wrong)}",
        flush=True,
    )
    for line in wrong[:10]:
        print(f"  {line}", flush=True)
    return holds


def main() -> int:
    """Run on a cluster of three brokers that is made for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--ttl", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    holds = True
    with scratch("assignments") as place:
        cluster = open_cluster(place.path / "cluster", broker_count=3, port=None)
        with stopping(cluster):
            cluster.start_all()
            anyio.run(wait_until_ready, cluster, backend="trio")
            for number in range(given.rounds):
                notes = place.path / f"notes-{number}"
                notes.mkdir()
                arguments = (cluster.bootstrap, given.shards, given.workers, given.ttl, notes)
                holds = anyio.run(play, *arguments, backend="trio") and holds
        place.is_kept = not holds
    print("ok" if holds else "does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
