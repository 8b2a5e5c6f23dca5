"""Bits that flipped in one broker's files while it was down, and how it gets them back."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from logd.cli.local_cluster import LocalCluster
from logd.errors import LogdError
from logd.limits import KIB
from logd.types import NodeId
from logd_client import Client, connect
from tests.process.harness import POLL_S, make_whole, run_logd, wait_until_caught_up

TOPIC: Final = "damaged"
PARTITIONS: Final = 4
RECORD_BYTES: Final = 1 * KIB
RECORDS_PER_CALL: Final = 2_000
WHOLE_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Repair:
    """How a broker recovered from flipped bits."""

    flipped_bits: int
    record_count: int
    whole_after_s: float
    """From the start of the damaged broker until every record was read back from every broker
    and its files verified clean."""
    lost_count: int


def flip_bits_and_start(cluster: LocalCluster, record_count: int, bits: int, seed: int) -> Repair:
    """Fill a topic, stop all brokers, flip ``bits`` in the segments of one, start all again."""
    chance = random.Random(seed)
    expected = anyio.run(_fill, cluster, record_count, backend="trio")
    cluster.stop_all()
    victim = chance.choice(cluster.brokers)
    for _ in range(bits):
        _flip_one(victim.data_dir, chance)
    began = time.monotonic()
    make_whole(cluster)
    lost = anyio.run(_read_until_whole, cluster, expected, began + WHOLE_TIMEOUT_S, backend="trio")
    while run_logd("segment", "verify", victim.data_dir, timeout_s=120).returncode != 0:
        if time.monotonic() > began + WHOLE_TIMEOUT_S:
            raise AssertionError(f"{victim.data_dir} is still damaged after {WHOLE_TIMEOUT_S} s")
        time.sleep(0.5)
    return Repair(bits, record_count, time.monotonic() - began, lost)


def _flip_one(data_dir: Path, chance: random.Random) -> None:
    """One bit of one segment, each byte of all segments being as likely."""
    paths = sorted(data_dir.glob("groups/*/*.log"))
    (path,) = chance.choices(paths, [each.stat().st_size for each in paths])
    flip_bit(path, chance)


def flip_bit(path: Path, chance: random.Random) -> None:
    """Any one bit of a file."""
    position, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


async def _fill(cluster: LocalCluster, record_count: int) -> list[bytes]:
    """Per partition, a digest of its records in order."""
    digests = [hashlib.blake2b() for _ in range(PARTITIONS)]
    async with connect(cluster.bootstrap) as client:
        await client.admin.create_topic(
            TOPIC, partitions=PARTITIONS, replicas=3, config={"segment_bytes": "4MiB"}
        )
        async with client.producer(TOPIC) as producer:
            for first in range(0, record_count, RECORDS_PER_CALL):
                partition = first // RECORDS_PER_CALL % PARTITIONS
                values = [
                    b"%d " % number + bytes(RECORD_BYTES)
                    for number in range(first, min(first + RECORDS_PER_CALL, record_count))
                ]
                await producer.append_many(values, partition=partition)
                for value in values:
                    digests[partition].update(value)
        await wait_until_caught_up(client, TOPIC, range(PARTITIONS))
    return [digest.digest() for digest in digests]


async def _read_until_whole(cluster: LocalCluster, expected: list[bytes], deadline: float) -> int:
    """Read everything from each broker's own replica; how many partitions came out different."""
    different = 0
    async with connect(cluster.bootstrap) as client:
        for broker in cluster.brokers:
            for partition in range(PARTITIONS):
                found = None
                while found is None:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"broker {broker.node_id} does not serve all again")
                    found = await _digest_of(client, broker.node_id, partition)
                different += found != expected[partition]
    return different


async def _digest_of(client: Client, node: NodeId, partition: int) -> bytes | None:
    """A digest of one replica's records; None while it cannot be read to its end."""
    digest = hashlib.blake2b()
    try:
        end = (await client.admin.offsets(TOPIC, partition)).data_end
        async with client.consumer(
            TOPIC, start="earliest", partitions=[partition], from_replica=node
        ) as consumer:
            with anyio.fail_after(5):
                async for batch in consumer.batches():
                    for value in batch.values:
                        digest.update(value or b"")
                    if batch.last_offset + 1 >= end:
                        return digest.digest()
    except (LogdError, TimeoutError):
        await anyio.sleep(POLL_S)
    return None
