"""Three brokers, real input, a killed leader, nothing lost: ``make demo``.

Every line of the ``.py`` files of the Python that runs this is appended with its file's name
as the key.  Half-way the broker that leads the most partitions is killed with SIGKILL, and
later started again.  One consumer reads along from the first record on; another reads all of
it afterwards.  What each has read must be the source, file by file, byte by byte and in
order; anything else is counted and ends with a non-zero exit code.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from logd.cli.overview import describe_partitions
from logd.cli.progress import RecordProgress
from logd.cli.ready import wait_until_ready
from logd.types import NodeId
from logd_client import connect
from tests.process.scratch import scratch

if TYPE_CHECKING:
    from logd_client import Client, Producer

BROKERS: Final = 3
PARTITIONS: Final = 6
TOPIC: Final = "python-source"
FILES_UNDER_WAY: Final = 16
LINES_PER_CALL: Final = 2_000
KILL_AT: Final = 0.5
RESTART_AT: Final = 0.75
POLL_S: Final = 0.01
READ_TIMEOUT_S: Final = 60.0
CATCH_UP_TIMEOUT_S: Final = 60.0
REPORT_INTERVAL_S: Final = 2.0
DIFFERENCES_SHOWN_MAX: Final = 10
NOT_A_LINE: Final = b"\n"
"""Stands for a record without a value; no line can be equal to it."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the source; its name is the key of its lines."""

    key: bytes
    path: Path
    line_count: int
    digest: bytes
    """Of its lines, as ``_digest`` has it."""

    def lines(self) -> list[bytes]:
        """Without their newlines."""
        lines = self.path.read_bytes().split(b"\n")
        return lines if lines[-1] else lines[:-1]


@dataclass
class Run:
    """What happened when."""

    sources: Sequence[SourceFile]
    progress: RecordProgress
    began: float = field(default_factory=time.monotonic)
    produced_s: float = 0.0
    longest_gap_s: float = 0.0
    """Nothing at all was acknowledged for this long."""
    longest_append_s: float = 0.0
    """The unluckiest append, one to a partition that lost its leader, took this long."""
    new_leaders_ms: float = 0.0
    _last_ack: float = field(default_factory=time.monotonic)
    _advanced: anyio.Event = field(default_factory=anyio.Event)
    _reported: float = field(default_factory=time.monotonic)

    @property
    def line_count(self) -> int:
        return sum(source.line_count for source in self.sources)

    @property
    def acknowledged(self) -> int:
        return self.progress.records

    def start_clock(self) -> float:
        """Producing begins: from now on a silence counts."""
        self._last_ack = time.monotonic()
        return self._last_ack

    def note(self, text: str) -> None:
        """One line of the timeline."""
        self.progress.say(f"{time.monotonic() - self.began:7.2f} s  {text}")

    def on_acknowledged(self, lines: int, appended_at: float) -> None:
        """The cluster has ``lines`` more, which were handed to the client at that time."""
        now = time.monotonic()
        self.longest_append_s = max(self.longest_append_s, now - appended_at)
        self.longest_gap_s = max(self.longest_gap_s, now - self._last_ack)
        self._last_ack = now
        self.progress.advance(lines)
        self._advanced.set()
        self._advanced = anyio.Event()
        if not sys.stderr.isatty() and now - self._reported >= REPORT_INTERVAL_S:
            self._reported = now
            rate = f"{self.progress.rate:,.0f}/s"
            self.note(f"{self.acknowledged:,} of {self.line_count:,} lines, {rate}")

    async def reaches(self, share: float) -> None:
        """Wait until that share of the lines is acknowledged."""
        while self.acknowledged < share * self.line_count:
            await self._advanced.wait()


class Reader:
    """Reads the topic from its first record and keeps what each file's lines were."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.record_count = 0
        self._lines: defaultdict[bytes | None, list[bytes]] = defaultdict(list)
        self._positions: dict[int, int] = {}
        self._advanced = anyio.Event()

    async def read(self, client: Client) -> None:
        """Read until cancelled."""
        async with client.consumer(TOPIC, start="earliest") as consumer:
            async for batch in consumer.batches():
                for key, value in zip(batch.keys, batch.values, strict=True):
                    self._lines[key].append(NOT_A_LINE if value is None else value)
                self.record_count += len(batch)
                self._positions[batch.partition] = batch.last_offset + 1
                self._advanced.set()
                self._advanced = anyio.Event()

    async def has_read(self, ends: dict[int, int]) -> None:
        """Wait until it has read every partition to its end; give up after a while: what is
        missing then is found by comparing."""
        with anyio.move_on_after(READ_TIMEOUT_S):
            while any(self._positions.get(number, 0) < end for number, end in ends.items()):
                await self._advanced.wait()

    def differences(self, sources: Sequence[SourceFile]) -> Differences:
        """Compare with the source."""
        found = Differences()
        known = {source.key for source in sources}
        for source in sources:
            found.compare(source, self._lines.get(source.key, []))
        for key in self._lines.keys() - known:
            found.unknown_files.append(repr(key))
        return found


@dataclass
class Differences:
    """How what was read differs from what was sent."""

    lost: int = 0
    duplicated: int = 0
    files: list[str] = field(default_factory=list)
    unknown_files: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files or self.unknown_files)

    def compare(self, source: SourceFile, read: list[bytes]) -> None:
        """Add the differences of one file; equal digests mean there are none."""
        if _digest(read) == source.digest:
            return
        sent = source.lines()
        sent_counts, read_counts = Counter(sent), Counter(read)
        self.lost += (sent_counts - read_counts).total()
        self.duplicated += (read_counts - sent_counts).total()
        self.files.append(source.key.decode(errors="replace"))


def main() -> int:
    """Run the demo; 0 when everything sent was read back exactly."""
    sources = collect_sources(Path(sysconfig.get_path("stdlib")))
    lines = sum(source.line_count for source in sources)
    if not lines:
        sys.exit(f"no .py files in {sysconfig.get_path('stdlib')}")
    with scratch("demo") as place:
        cluster = open_cluster(place.path / "cluster", broker_count=BROKERS, port=None)
        with RecordProgress("produce", lines) as progress, stopping(cluster):
            run = Run(sources, progress)
            run.note(f"the source: {len(sources):,} files, {lines:,} lines")
            cluster.start_all()
            is_equal = anyio.run(run_demo, cluster, run, backend="trio")
        place.is_kept = not is_equal
    return 0 if is_equal else 1


def collect_sources(directory: Path) -> list[SourceFile]:
    """Every ``.py`` file with at least one line, in a stable order."""
    found = []
    for path in sorted(directory.rglob("*.py")):
        relative = path.relative_to(directory)
        if "site-packages" in relative.parts or "dist-packages" in relative.parts:
            continue
        data = path.read_bytes()
        line_count = data.count(b"\n") + (not data.endswith(b"\n"))
        if data:
            digest = hashlib.sha256(data.removesuffix(b"\n")).digest()
            found.append(SourceFile(str(relative).encode(), path, line_count, digest))
    return found


async def run_demo(cluster: LocalCluster, run: Run) -> bool:
    """Produce, kill, restart, read back, compare."""
    await wait_until_ready(cluster)
    run.note(f"three brokers are ready: {cluster.bootstrap}")
    async with connect(cluster.bootstrap) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=BROKERS)
        along, afterwards = Reader("along the way"), Reader("afterwards")
        async with anyio.create_task_group() as reading:
            reading.start_soon(along.read, client)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce_all, client, run)
                tasks.start_soon(kill_and_restart, client, cluster, run)
            ends = await data_ends(client)
            await along.has_read(ends)
            run.note(f"the consumer that read along has {along.record_count:,} records")
            began = time.monotonic()
            reading.start_soon(afterwards.read, client)
            await afterwards.has_read(ends)
            read_s = time.monotonic() - began
            run.note(
                f"another consumer read all {afterwards.record_count:,} records "
                f"at {afterwards.record_count / read_s:,.0f}/s"
            )
            reading.cancel_scope.cancel()
    return report(run, [along, afterwards])


async def produce_all(client: Client, run: Run) -> None:
    """Append every file, several at a time; the lines of one file strictly in order."""
    began = run.start_clock()
    waiting = iter(run.sources)
    async with client.producer(TOPIC) as producer, anyio.create_task_group() as tasks:
        for _ in range(FILES_UNDER_WAY):
            tasks.start_soon(produce_files, producer, waiting, run)
    run.produced_s = time.monotonic() - began
    run.progress.stop()
    run.note(f"all lines are acknowledged after {run.produced_s:.1f} s")


async def produce_files(producer: Producer, waiting: Iterator[SourceFile], run: Run) -> None:
    """Take the next file, append it, and so on until none is left."""
    for source in waiting:
        lines = source.lines()
        for first in range(0, len(lines), LINES_PER_CALL):
            part = lines[first : first + LINES_PER_CALL]
            appended_at = time.monotonic()
            await producer.append_many(part, key=source.key)
            run.on_acknowledged(len(part), appended_at)


async def kill_and_restart(client: Client, cluster: LocalCluster, run: Run) -> None:
    """SIGKILL the busiest leader half-way, time its successors, start it again later."""
    await run.reaches(KILL_AT)
    leaders = await partition_leaders(client)
    victim, led = Counter(leaders.values()).most_common(1)[0]
    assert victim is not None, "a partition has no leader before anything was killed"
    orphans = [number for number, leader in leaders.items() if leader == victim]
    await anyio.to_thread.run_sync(cluster.kill, NodeId(victim))
    killed = time.monotonic()
    run.note(f"killed broker {victim}, the leader of {led} of {PARTITIONS} partitions (SIGKILL)")

    while orphans:
        leaders = await partition_leaders(client)
        orphans = [number for number in orphans if leaders[number] in (None, victim)]
        await anyio.sleep(POLL_S)
    run.new_leaders_ms = (time.monotonic() - killed) * 1000
    run.note(f"all its partitions have a new leader after {run.new_leaders_ms:.0f} ms")

    await run.reaches(RESTART_AT)
    restarted = time.monotonic()
    cluster.start(NodeId(victim))
    run.note(f"started broker {victim} again")
    with anyio.fail_after(CATCH_UP_TIMEOUT_S):
        await all_in_sync(client)
    run.note(f"it has caught up after {(time.monotonic() - restarted) * 1000:.0f} ms")


async def partition_leaders(client: Client) -> dict[int, int | None]:
    """Who leads each partition."""
    topic = await client.admin.describe_topic(TOPIC)
    return {partition.partition: partition.leader for partition in topic.partitions}


async def all_in_sync(client: Client) -> None:
    """Wait until every replica of every partition is in sync."""
    names = [(TOPIC, number) for number in range(PARTITIONS)]
    while True:
        answers = await describe_partitions(client, names)
        if all(answer and all(r.in_sync for r in answer.replicas) for answer in answers):
            return
        await anyio.sleep(POLL_S)


async def data_ends(client: Client) -> dict[int, int]:
    """Where each partition's committed records end."""
    return {
        number: (await client.admin.offsets(TOPIC, number)).data_end for number in range(PARTITIONS)
    }


def report(run: Run, readers: Sequence[Reader]) -> bool:
    """Print the result; whether everything was equal."""
    differences = {reader.name: reader.differences(run.sources) for reader in readers}
    lost = sum(found.lost for found in differences.values())
    duplicated = sum(found.duplicated for found in differences.values())
    print(f"new leaders after               {run.new_leaders_ms:,.0f} ms")
    print(f"longest without acknowledgement {run.longest_gap_s * 1000:,.0f} ms")
    print(f"longest single append           {run.longest_append_s * 1000:,.0f} ms")
    print(f"records                         {run.acknowledged:,}")
    print(f"rate                            {run.acknowledged / run.produced_s:,.0f}/s")
    print(f"lost                            {lost}")
    print(f"duplicated                      {duplicated}")
    for name, found in differences.items():
        if not found:
            print(f"read {name}: all {len(run.sources):,} files are equal, in order")
            continue
        print(f"read {name}: {len(found.files)} files differ")
        for file in (found.files + found.unknown_files)[:DIFFERENCES_SHOWN_MAX]:
            print(f"  {file}")
    return not any(differences.values())


def _digest(lines: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"\n".join(lines)).digest()


if __name__ == "__main__":
    raise SystemExit(main())
