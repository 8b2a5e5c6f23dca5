"""Brokers on a network that is slow, one-way or half-open, as processes and sockets see it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anyio
import pytest

from logd.limits import KIB
from logd.testing.peer_proxy import ProxiedCluster, Shape
from logd.types import GroupId, NodeId
from logd_client import Client, connect
from tests.process.failover import CALM_S
from tests.process.harness import (
    BROKERS,
    acting_leader,
    dump_replicas,
    leader_of,
    make_whole,
    proxied_cluster,
    require_no_bug_reported,
    wait_until_caught_up,
)
from tests.process.load import Load, compare

pytestmark = pytest.mark.process

LEADERLESS_S_MAX = 4.0
"""Silence is noticed after one second; the rest is for the machine that tests."""

PATIENCE_S = 30.0
CUT_ON_S = 0.5
DELAY_S = 0.03


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedCluster]:
    directory = tmp_path_factory.mktemp("proxied")
    settings = directory / "settings.toml"
    # Leaders stay where a fault, or nothing, has put them: what moves them here is what is tested.
    settings.write_text("leader_balance_interval_ms = 0\n", encoding="utf-8")
    with proxied_cluster(directory / "cluster", settings=("--config", str(settings))) as cluster:
        make_whole(cluster)
        yield cluster
        require_no_bug_reported(cluster)


@pytest.fixture
def cluster(shared: ProxiedCluster) -> Iterator[ProxiedCluster]:
    make_whole(shared)
    yield shared
    shared.proxy.heal()


async def another_leader(client: Client, topic: str, before: NodeId) -> NodeId:
    while (leader := await leader_of(client, topic)) == before:
        await anyio.sleep(0.02)
    return leader


async def cut_off_its_leader(cluster: ProxiedCluster, topic: str, shape: Shape) -> None:
    """Under load, what the leader sends is shaped; another leads; healed, all agree."""
    proxy = cluster.proxy
    async with connect(cluster.bootstrap) as client:
        created = await client.admin.create_topic(topic, partitions=1, replicas=BROKERS)
        before = await acting_leader(client, topic)
        async with client.producer(topic) as producer:
            load = Load(producer, pause_s=0.002)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.append_one_by_one)
                await anyio.sleep(CALM_S)
                cut = time.monotonic()
                proxy.shape(proxy.pairs_from(before), shape)
                with anyio.fail_after(LEADERLESS_S_MAX):
                    after = await another_leader(client, topic, before)
                while await load.acks.one_more() < cut + CUT_ON_S:
                    pass
                proxy.heal()
                await anyio.sleep(CALM_S)
                load.stop()
        await wait_until_caught_up(client, topic, [0])
    replicas = await anyio.to_thread.run_sync(
        dump_replicas, cluster, GroupId(created.partitions[0].group)
    )
    differences = compare(load.acks.offsets, replicas)

    assert after != before
    assert load.acks.longest_gap_s <= LEADERLESS_S_MAX
    assert differences.count == 0, differences


def test_a_leader_that_is_no_longer_heard_is_replaced_and_nothing_is_lost(
    cluster: ProxiedCluster,
) -> None:
    anyio.run(cut_off_its_leader, cluster, "one-way", Shape(is_cut=True), backend="trio")


def test_a_leader_whose_bytes_vanish_on_open_connections_is_replaced(
    cluster: ProxiedCluster,
) -> None:
    anyio.run(cut_off_its_leader, cluster, "half-open", Shape(is_half_open=True), backend="trio")


def test_slow_paths_slow_acknowledgements_and_depose_nobody(cluster: ProxiedCluster) -> None:
    async def append_slowly() -> tuple[float, bool]:
        async with connect(cluster.bootstrap) as client:
            await client.admin.create_topic("slow", partitions=1, replicas=BROKERS)
            before = await client.admin.describe_partition("slow", 0)
            async with client.producer("slow") as producer:
                await producer.append(b"opens everything")
                cluster.proxy.shape(cluster.proxy.all_pairs, Shape(delay_s=DELAY_S))
                began = time.monotonic()
                for number in range(10):
                    await producer.append(b"%d" % number)
                took_s = time.monotonic() - began
            after = await client.admin.describe_partition("slow", 0)
            return took_s / 10, (before.term, before.leader) == (after.term, after.leader)

    each_s, is_same_leader = anyio.run(append_slowly, backend="trio")

    assert each_s >= 2 * DELAY_S
    assert is_same_leader


def test_connections_that_are_reset_are_made_again(cluster: ProxiedCluster) -> None:
    async def append_through_resets() -> int:
        async with connect(cluster.bootstrap) as client:
            await client.admin.create_topic("reset", partitions=1, replicas=BROKERS)
            async with client.producer("reset") as producer:
                for _ in range(3):
                    assert cluster.proxy.reset_all() > 0
                    await producer.append_many([bytes(KIB)] * 100)
            await wait_until_caught_up(client, "reset", [0])
            return (await client.admin.offsets("reset", 0)).data_end

    data_end = anyio.run(append_through_resets, backend="trio")

    assert data_end >= 300


def test_a_reader_waits_for_a_replica_that_knows_less_than_it_has_read(
    cluster: ProxiedCluster,
) -> None:
    async def read_behind_the_end() -> list[bytes | None]:
        async with connect(cluster.bootstrap) as client:
            await client.admin.create_topic("behind", partitions=1, replicas=BROKERS)
            leader = await acting_leader(client, "behind")
            behind = next(b.node_id for b in cluster.brokers if b.node_id != leader)
            async with client.producer("behind") as producer:
                await producer.append(b"on all replicas")
                await wait_until_caught_up(client, "behind", [0])
                cluster.proxy.shape(cluster.proxy.pairs_to(behind), Shape(is_cut=True))
                await producer.append(b"read elsewhere")
                ack = await producer.append(b"wanted")
                async with client.consumer(
                    "behind", start=ack.offset, partitions=[0], from_replica=behind
                ) as consumer:
                    with anyio.move_on_after(CUT_ON_S) as cut:
                        await consumer.next_record()
                    cluster.proxy.heal()
                    with anyio.fail_after(PATIENCE_S):
                        record = await consumer.next_record()
            return [b"waited" if cut.cancelled_caught else b"", record and record.value]

    assert anyio.run(read_behind_the_end, backend="trio") == [b"waited", b"wanted"]


def test_the_proxy_outlives_connections_that_break_while_it_sends(
    cluster: ProxiedCluster,
) -> None:
    node = cluster.brokers[0].node_id
    proxy = cluster.proxy

    proxy.shape(proxy.pairs_to(node), Shape(is_cut=True))
    time.sleep(CUT_ON_S)
    cluster.kill(node)
    proxy.heal()
    make_whole(cluster)

    assert proxy.reset_all() > 0
