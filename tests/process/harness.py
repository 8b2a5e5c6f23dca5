"""Real brokers for tests: what the simulator leaves out, looked at from outside.

Everything here sees a broker as an operator does: as a process with a pid, memory,
descriptors, a log on stderr and files in a directory.  Nothing reaches into the process.

The scenarios (``failover.py``, ``memory.py``, ``intruders.py``) return figures and judge
nothing; the tests run them small, ``scripts/acceptance.py`` in full.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import msgspec

from logd.cli.local_cluster import LocalBroker, LocalCluster, free_ports, is_free, open_cluster
from logd.cli.ready import wait_until_ready
from logd.errors import LogdError
from logd.testing.peer_proxy import ProxiedCluster, proxied
from logd.types import GroupId, NodeId
from logd.wire.messages import MetadataResponse
from logd_client import Client, connect

BROKERS: Final = 3
COMMAND_TIMEOUT_S: Final = 60.0
CATCH_UP_TIMEOUT_S: Final = 120.0
HAND_OVER_TIMEOUT_S: Final = 30.0
LOG_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02


class StoredRecord(NamedTuple):
    """A record as a broker's own files hold it."""

    offset: int
    value: bytes | None


def fresh(what: str) -> str:
    """A name that nothing in the cluster has."""
    return f"{what}-{uuid.uuid4()}"


# --- processes --------------------------------------------------------------------------


def free_row(count: int) -> int:
    """The first of so many ports next to each other that nobody listens on."""
    while True:
        (first,) = free_ports(1, random.Random())
        if all(map(is_free, range(first + 1, first + count))):
            return first


def make_whole(cluster: LocalCluster) -> None:
    """Continue, start and await every broker, whatever the last test did to it."""
    for broker in cluster.brokers:
        if cluster.is_running(broker.node_id):
            os.kill(cluster.pid(broker.node_id), signal.SIGCONT)
        else:
            cluster.start(broker.node_id)
    anyio.run(wait_until_ready, cluster, backend="trio")


@contextmanager
def proxied_cluster(directory: Path, *, settings: Sequence[str] = ()) -> Iterator[ProxiedCluster]:
    """Brokers, not started, that reach each other by a proxy only; all is stopped at the end."""
    brokers = open_cluster(directory, broker_count=BROKERS, port=None).brokers
    cluster = proxied(brokers, settings=settings)
    with cluster.proxy:
        try:
            yield cluster
        finally:
            cluster.stop_all()


def kill_all(cluster: LocalCluster) -> None:
    """SIGKILL every broker before any of them can notice that another is gone."""
    pids = [cluster.pid(broker.node_id) for broker in cluster.brokers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for broker in cluster.brokers:
        cluster.wait(broker.node_id)


def send_signal(cluster: LocalCluster, node_id: NodeId, number: signal.Signals) -> None:
    """Signal one broker."""
    os.kill(cluster.pid(node_id), number)


async def stop(cluster: LocalCluster, node_id: NodeId) -> None:
    """SIGTERM, and the end of the process, which has to be a clean one."""
    send_signal(cluster, node_id, signal.SIGTERM)
    status = await anyio.to_thread.run_sync(cluster.wait, node_id)
    assert status == 0, f"broker {node_id} ended with status {status}"


def anonymous_bytes(pid: int) -> int:
    """Memory that is the process's own: neither files nor shared."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no RssAnon")


def descriptor_count(pid: int) -> int:
    """Open files, sockets and the like."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def logged_bytes(broker: LocalBroker) -> int:
    """How much the broker has logged so far: where what comes next will begin."""
    return broker.log_path.stat().st_size


def logged_events(broker: LocalBroker, after_bytes: int = 0) -> Iterator[dict[str, Any]]:
    """What the broker has logged from a position on; lines that are no events are left out, and
    one that is just being written."""
    with broker.log_path.open("rb") as file:
        file.seek(after_bytes)
        *lines, _ = file.read().split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                yield msgspec.json.decode(line)


def wait_for_event(broker: LocalBroker, after_bytes: int, **fields: object) -> dict[str, Any]:
    """The first event with these fields that was logged from a position on."""
    deadline = time.monotonic() + LOG_TIMEOUT_S
    while time.monotonic() < deadline:
        for event in logged_events(broker, after_bytes):
            if event.items() >= fields.items():
                return event
        time.sleep(POLL_S)
    raise AssertionError(f"broker {broker.node_id} logged no event with {fields}")


def require_no_bug_reported(cluster: LocalCluster) -> None:
    """A broker prints a traceback only for a bug of ours; whatever was done to it is no excuse."""
    require_no_traceback([broker.log_path for broker in cluster.brokers])


def require_no_traceback(logs: Iterable[Path]) -> None:
    """As above, of brokers that have left the cluster, too."""
    for path in logs:
        before, found, report = path.read_text(errors="replace").partition("Traceback")
        assert not found, f"{path}, {before[-500:]}{found}{report[:8000]}"


# --- commands ---------------------------------------------------------------------------


def logd_command(*arguments: str | Path) -> list[str]:
    """What a person would type, run by this Python."""
    return [sys.executable, "-m", "logd", *map(str, arguments)]


def run_logd(
    *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    return subprocess.run(
        logd_command(*arguments), capture_output=True, timeout=timeout_s, check=False
    )


def require_done(cluster: LocalCluster, *arguments: str) -> bytes:
    """Run a command that has to succeed; what it printed.  The next one finds what it did."""
    done = run_logd(*arguments, "--bootstrap", cluster.bootstrap)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    anyio.run(wait_until_agreed, cluster, backend="trio")
    return done.stdout


def require_refused(cluster: LocalCluster, code: int, words: str, *arguments: str) -> None:
    """Run a command that has to be refused, in these words among others."""
    refused = run_logd(*arguments, "--bootstrap", cluster.bootstrap)
    assert refused.returncode == code, (arguments, refused.stdout, refused.stderr)
    assert words in refused.stderr.decode(), (arguments, refused.stderr)


def told(cluster: LocalCluster, *arguments: str) -> Any:
    """The JSON that a command prints, which has to succeed."""
    return msgspec.json.decode(require_done(cluster, *arguments, "--output", "json"))


def brokers_of(cluster: LocalCluster) -> dict[int, dict[str, Any]]:
    """What `logd broker list` tells, by node id."""
    return {row["id"]: row for row in told(cluster, "broker", "list")}


def plan_of(cluster: LocalCluster) -> Any:
    """The last plan that was begun; None if there was none."""
    return told(cluster, "rebalance", "status")["plan"]


def wait_until_alive(cluster: LocalCluster, node_id: NodeId) -> None:
    """Return once all other brokers hear that one."""
    anyio.run(_wait_until_seen, cluster, node_id, True, backend="trio")


def wait_until_dead(cluster: LocalCluster, node_id: NodeId) -> None:
    """Return once no other broker hears that one any more."""
    anyio.run(_wait_until_seen, cluster, node_id, False, backend="trio")


async def _wait_until_seen(cluster: LocalCluster, node_id: NodeId, is_alive: bool) -> None:
    """Each notices by itself, and commands ask whichever they reach first."""

    def is_seen(metadata: MetadataResponse) -> bool:
        return any(b.node_id == node_id and b.alive is is_alive for b in metadata.brokers)

    with anyio.fail_after(CATCH_UP_TIMEOUT_S):
        for broker in cluster.brokers:
            if cluster.is_running(broker.node_id):
                await _wait_until_told(broker, is_seen)


async def wait_until_agreed(cluster: LocalCluster) -> None:
    """Return once every broker that runs has applied what any of them has: a command asks
    whichever it reaches first, and that one may be a moment behind."""
    reached = 0

    def is_there(metadata: MetadataResponse) -> bool:
        nonlocal reached
        is_behind = metadata.metadata_offset < reached
        reached = max(reached, metadata.metadata_offset)
        return not is_behind

    with anyio.fail_after(CATCH_UP_TIMEOUT_S):
        for _ in range(2):  # The first may have been behind the others.
            for broker in cluster.brokers:
                if cluster.is_running(broker.node_id):
                    await _wait_until_told(broker, is_there)


async def _wait_until_told(
    broker: LocalBroker, is_enough: Callable[[MetadataResponse], bool]
) -> None:
    """Ask this broker, and no other, how the cluster is."""
    while True:
        with suppress(LogdError):
            async with connect(str(broker.address)) as client:
                if is_enough(await client.admin.describe_cluster()):
                    return
        await anyio.sleep(POLL_S)


# --- replicas ---------------------------------------------------------------------------


def dump_replicas(cluster: LocalCluster, group: GroupId) -> dict[NodeId, list[StoredRecord]]:
    """What each broker's own files hold of a group, by ``logd segment dump``."""
    dumps = {
        broker.node_id: subprocess.Popen(
            logd_command(
                *("segment", "dump", broker.data_dir / "groups" / f"{group:020}"),
                *("--records", "--output", "json"),
            ),
            stdout=subprocess.PIPE,
        )
        for broker in cluster.brokers
    }
    found = {}
    for node_id, dump in dumps.items():
        output, _ = dump.communicate()
        assert dump.returncode == 0, f"the dump of broker {node_id} ended with {dump.returncode}"
        found[node_id] = [_stored(line) for line in output.splitlines()]
    return found


def _stored(line: bytes) -> StoredRecord:
    row = msgspec.json.decode(line)
    if "value_base64" in row:
        return StoredRecord(row["offset"], base64.b64decode(row["value_base64"]))
    value = row["value"]
    return StoredRecord(row["offset"], None if value is None else value.encode())


async def wait_until_caught_up(client: Client, topic: str, partitions: Sequence[int]) -> None:
    """Return once every replica holds, synced, all that its leader's log has."""
    with anyio.fail_after(CATCH_UP_TIMEOUT_S):
        for partition in partitions:
            while not await _has_caught_up(client, topic, partition):
                await anyio.sleep(POLL_S)


async def _has_caught_up(client: Client, topic: str, partition: int) -> bool:
    try:
        known = await client.admin.describe_partition(topic, partition)
    except LogdError:
        return False  # Between two leaders.
    return all(
        replica.alive and replica.in_sync and replica.synced_end == known.log_end
        for replica in known.replicas
    )


async def leader_of(client: Client, topic: str, partition: int = 0) -> NodeId:
    """Who leads the partition, once the broker that is asked has heard of somebody: it may be a
    moment behind."""
    while True:
        described = await client.admin.describe_topic(topic)
        leader = described.partitions[partition].leader
        if leader is not None:
            return NodeId(leader)
        await anyio.sleep(POLL_S)


async def acting_leader(client: Client, topic: str, partition: int = 0) -> NodeId:
    """Who leads the partition, as that broker says itself."""
    return NodeId((await client.admin.describe_partition(topic, partition)).leader)


async def hand_over(client: Client, topic: str, partition: int, target: NodeId) -> None:
    """Have ``target`` lead.  A broker that stands still for a moment takes nothing over: whoever
    leads says so, goes on, and can be asked again."""
    with anyio.fail_after(HAND_OVER_TIMEOUT_S):
        while True:
            try:
                await client.admin.transfer_leader(topic, partition, target)
                return
            except LogdError:
                await anyio.sleep(POLL_S)
