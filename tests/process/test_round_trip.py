"""What goes in by the command line comes out of it: byte for byte, for everybody the same."""

from __future__ import annotations

import random
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

import anyio
import msgspec
import pytest

from logd.cli.local_cluster import LocalCluster
from logd.limits import RECORD_BYTES_MAX
from logd.types import GroupId, NodeId
from logd.wire.messages import ProduceRequest
from logd_client import connect, sync
from logd_client.connection import Lane
from tests.process.harness import BROKERS, acting_leader, hand_over, logd_command, run_logd
from tests.support.malformed import malformed_batch

pytestmark = pytest.mark.process

RECORDS_PER_LEADER: Final = 60
READ_TIMEOUT_S: Final = 30.0

EVERY_BYTE = bytes(set(range(256)) - {ord("\n")})
LINES: Final = (
    b"plain text",
    b"",
    b"",
    EVERY_BYTE,
    b"ends with a carriage return\r",
    b"\0",
    b"\0\0 with zeros inside \0",
    b"\xff\xfe no text in any encoding",
    "ünïcödé 日本語".encode(),
    b"x" * RECORD_BYTES_MAX,
    b" leading and trailing blanks ",
    b"\t",
)


def create(cluster: LocalCluster, topic: str) -> None:
    with sync.connect(cluster.bootstrap) as client:
        client.admin.create_topic(topic, partitions=1, replicas=BROKERS)


@pytest.mark.parametrize(
    ("name", "end"), [("with-newline", b"\n"), ("without-newline", b""), ("empty-end", b"\n\n\n")]
)
def test_a_file_comes_back_byte_for_byte(
    cluster: LocalCluster, tmp_path: Path, name: str, end: bytes
) -> None:
    noise = random.Random(name).randbytes(200_000)
    content = b"\n".join((*LINES, noise, b"last")) + end
    path = tmp_path / "input"
    path.write_bytes(content)
    topic = f"round-trip-{name}"
    create(cluster, topic)
    where = ("--bootstrap", cluster.bootstrap)

    produced = run_logd("produce", topic, path, "--output", "json", *where)
    assert produced.returncode == 0, produced.stderr
    count = msgspec.json.decode(produced.stdout)["records"]
    consumed = run_logd(
        *("consume", topic, "--from", "start", "--count", str(count), "--output", "value", *where)
    )

    assert consumed.returncode == 0, consumed.stderr
    assert count == content.count(b"\n") + (not end)
    # Every record ends a line, so a last line without a newline gains one.
    assert consumed.stdout == (content if end else content + b"\n")


def test_a_line_over_the_limit_is_named_and_the_others_are_kept(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"first\n" + b"x" * (RECORD_BYTES_MAX + 1) + b"\nthird\n")
    create(cluster, "too-long")
    where = ("--bootstrap", cluster.bootstrap)

    produced = run_logd("produce", "too-long", path, *where)
    consumed = run_logd("consume", "too-long", "--from", "start", *where)

    assert produced.returncode == 1
    assert b"line 2: 1048577 bytes are over the record limit" in produced.stderr
    assert consumed.stdout == b"first\nthird\n"


async def append_around_what_nobody_can_read(bootstrap: str, topic: str) -> None:
    """As a producer with a fault of its own does: the broker looks into no payload."""
    async with connect(bootstrap) as client, client.producer(topic) as producer:
        await producer.append(b"before")
        group = GroupId((await client.admin.describe_topic(topic)).partitions[0].group)
        routing = client._routing
        assert routing is not None
        leader = await routing.leader_connection(group, Lane.PRODUCE, 0)
        await leader.exchange(ProduceRequest(group=group), malformed_batch(), READ_TIMEOUT_S)
        await producer.append(b"behind")


def test_a_batch_that_nobody_can_read_ends_reading_unless_it_shall_be_skipped(
    cluster: LocalCluster,
) -> None:
    create(cluster, "malformed")
    where = ("--bootstrap", cluster.bootstrap)
    anyio.run(append_around_what_nobody_can_read, cluster.bootstrap, "malformed", backend="trio")

    failed = run_logd("consume", "malformed", *where)
    skipped = run_logd("consume", "malformed", "--on-malformed", "skip", *where)

    told = rb"malformed/0: malformed batch at offsets \[2, 3\): .+"
    assert (failed.returncode, failed.stdout) == (1, b"before\n")
    assert re.fullmatch(b"logd: %s; --on-malformed skip goes on behind it\n" % told, failed.stderr)
    assert (skipped.returncode, skipped.stdout) == (0, b"before\nbehind\n")
    assert re.fullmatch(b"logd: skipped: %s\n" % told, skipped.stderr)


def test_two_followers_see_the_same_records_while_the_leader_changes(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    create(cluster, "followed")
    count = 3 * RECORDS_PER_LEADER
    command = logd_command(
        *("consume", "followed", "--from", "start", "--follow", "--count", str(count)),
        *("--output", "json", "--bootstrap", cluster.bootstrap),
    )
    outputs = [tmp_path / "one", tmp_path / "two"]
    followers = []
    for output in outputs:
        with output.open("wb") as stream:
            followers.append(subprocess.Popen(command, stdout=stream))
    try:
        offsets = anyio.run(append_under_three_leaders, cluster, "followed", backend="trio")
        statuses = [follower.wait(READ_TIMEOUT_S) for follower in followers]
    finally:
        for follower in followers:
            follower.kill()
            follower.wait()

    first, second = (output.read_bytes() for output in outputs)
    seen = [msgspec.json.decode(line) for line in first.splitlines()]

    assert statuses == [0, 0]
    assert first == second
    assert {row["value"]: row["offset"] for row in seen} == offsets
    assert [row["value"] for row in seen] == list(offsets)


async def append_under_three_leaders(cluster: LocalCluster, topic: str) -> dict[str, int]:
    """The first leader hands over, the second is killed, the third finishes."""
    offsets: dict[str, int] = {}
    async with connect(cluster.bootstrap) as client, client.producer(topic) as producer:
        for turn in range(3):
            for number in range(RECORDS_PER_LEADER):
                value = f"{turn}.{number}"
                offsets[value] = (await producer.append(value.encode())).offset
            match turn:
                case 0:
                    first = await acting_leader(client, topic)
                    await hand_over(client, topic, 0, NodeId(first % BROKERS + 1))
                case 1:
                    second = await acting_leader(client, topic)
                    await anyio.to_thread.run_sync(cluster.kill, second)
    return offsets


def test_consuming_into_a_closed_pipe_ends_quietly(cluster: LocalCluster) -> None:
    create(cluster, "piped")
    with sync.connect(cluster.bootstrap) as client, client.producer("piped") as producer:
        producer.append_many([b"x" * 1000] * 5_000)
    command = logd_command("consume", "piped", "--bootstrap", cluster.bootstrap)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as consumer:
        assert consumer.stdout is not None
        assert consumer.stderr is not None
        consumer.stdout.read(10)
        consumer.stdout.close()
        said = consumer.stderr.read()

    assert consumer.returncode == 0
    assert said == b""


def test_a_producer_that_is_told_to_end_says_how_far_it_came(cluster: LocalCluster) -> None:
    create(cluster, "ended")
    command = logd_command("produce", "ended", "--bootstrap", cluster.bootstrap)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as producing, sync.connect(cluster.bootstrap) as client:  # fmt: skip
        assert producing.stdin is not None
        assert producing.stderr is not None
        producing.stdin.write(b"1\n2\n")
        producing.stdin.flush()
        with client.consumer("ended", start="earliest") as consumer:
            assert consumer.next_record(READ_TIMEOUT_S) is not None
        producing.terminate()
        told = producing.stderr.read().decode()

    assert producing.returncode == 128 + signal.SIGTERM
    # The consumer may have heard of them first.
    assert re.match(r"logd: ended early; [012] of 2 lines read are known to be in:\n", told)
