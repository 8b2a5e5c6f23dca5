"""The status document tells of the whole cluster, whichever broker is asked."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio

from logd.broker.broker import Broker
from logd.ops import status as status_module
from logd.ops.health import unreadiness
from logd.ops.report import decode_report, encode_report, make_report
from logd.ops.sampler import INTERVAL_S, SAMPLES_KEPT, Sampler
from logd.ops.status import FRESH_S, ClusterStatus, StatusBoard
from logd.types import NodeId
from logd.wire.messages import PlannedMoveInfo
from logd_client import Client
from tests.sim.cluster import ClusterSettings, SimCluster, open_cluster
from tests.sim.run import run_deterministic

PATIENCE_S = 200.0


class Watched:
    """A simulated cluster whose brokers sample and report."""

    def __init__(self, cluster: SimCluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self.boards: dict[NodeId, StatusBoard] = {}

    def broker(self, node: int) -> Broker:
        broker = self.cluster.nodes[NodeId(node)].broker
        assert broker is not None
        return broker

    def begin(self, nursery: trio.Nursery) -> None:
        for node in self.cluster.nodes:
            broker = self.broker(node)
            sampler = Sampler(broker)
            nursery.start_soon(sampler.run)
            self.boards[node] = StatusBoard(broker, sampler)
            broker.node.reports.reporter = _reporter(broker, sampler)

    async def seen_by(self, node: int) -> ClusterStatus:
        document = await self.boards[NodeId(node)].document()
        return msgspec.json.decode(document, type=ClusterStatus)


def _reporter(broker: Broker, sampler: Sampler) -> Callable[[], Awaitable[bytes]]:
    async def report() -> bytes:
        return encode_report(await make_report(broker, sampler))

    return report


def play(story: Callable[[Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_cluster(1, ClusterSettings()) as cluster:
            await trio.sleep(5)
            with trio.fail_after(PATIENCE_S):
                async with cluster.client() as client, trio.open_nursery() as nursery:
                    watched = Watched(cluster, client)
                    watched.begin(nursery)
                    await story(watched)
                    nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1)


async def append(client: Client, topic: str, count: int) -> None:
    async with client.producer(topic) as producer:
        await producer.append_many([b"value"] * count)


def test_every_broker_tells_the_same_of_brokers_topics_and_lag() -> None:
    async def story(watched: Watched) -> None:
        await watched.client.admin.create_topic("orders", partitions=6, replicas=3)
        await append(watched.client, "orders", 600)
        await trio.sleep(2)

        seen = [await watched.seen_by(node) for node in (1, 2, 3)]

        for status in seen:
            assert (status.state, status.problems) == ("ok", [])
            assert [broker.id for broker in status.brokers] == [1, 2, 3]
            assert all(broker.report is not None for broker in status.brokers)
            (topic,) = status.topics
            assert (topic.name, topic.partition_count, topic.follower_lag) == ("orders", 6, 0)
            assert sum(row.commit or 0 for row in topic.partitions) >= 600
            assert {row.state for row in topic.partitions} == {"ok"}
        assert seen[0].topics == seen[1].topics == seen[2].topics

    play(story)


def test_a_dead_broker_is_named_and_what_it_held_is_under_replicated() -> None:
    async def story(watched: Watched) -> None:
        await watched.client.admin.create_topic("orders", partitions=3, replicas=3)
        await watched.cluster.nodes[NodeId(3)].crash(power=False)
        await trio.sleep(10)
        await append(watched.client, "orders", 100)

        status = await watched.seen_by(1)

        assert status.state == "degraded"
        assert status.problems[0] == "broker 3 at node3:7171 is not alive"
        assert status.problems[1].startswith("3 partitions are under-replicated: orders/0, ")
        assert [broker.alive for broker in status.brokers] == [True, True, False]
        assert status.under_replicated == 3
        assert all(row.in_sync != row.replicas for row in status.topics[0].partitions)

    play(story)


def test_a_broker_that_is_drained_is_marked_until_it_is_resumed() -> None:
    async def story(watched: Watched) -> None:
        admin = watched.client.admin
        await admin.create_topic("t", partitions=1, replicas=2)
        await admin.alter_broker(3, "drain")
        await trio.sleep(FRESH_S + 1)
        status = await watched.seen_by(1)
        assert [broker.id for broker in status.brokers if broker.is_draining] == [3]
        await admin.alter_broker(3, "resume")
        await trio.sleep(FRESH_S + 1)
        assert not any(broker.is_draining for broker in (await watched.seen_by(1)).brokers)

    play(story)


def test_without_a_majority_the_page_still_answers_and_says_so() -> None:
    async def story(watched: Watched) -> None:
        await watched.client.admin.create_topic("orders", partitions=3, replicas=3)
        for node in (2, 3):
            await watched.cluster.nodes[NodeId(node)].crash(power=False)
        await trio.sleep(10)

        status = await watched.seen_by(1)

        assert status.state == "unavailable"
        assert "the cluster has no controller" in status.problems
        assert status.offline == 3
        assert unreadiness(watched.broker(1)) is not None

    play(story)


def test_a_broker_that_was_removed_is_not_ready_and_says_where_to_look_for_the_reason() -> None:
    """It may not have heard of it: nobody talks to it any more."""

    async def story(watched: Watched) -> None:
        await watched.client.admin.alter_broker(3, "remove")
        await trio.sleep(10)

        reason = unreadiness(watched.broker(3))

        assert reason is not None
        assert "refused by the others: its log says why" in reason

    play(story)


def test_a_broker_that_does_not_report_in_time_is_said_to() -> None:
    async def story(watched: Watched) -> None:
        async def hangs() -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        watched.broker(2).node.reports.reporter = hangs
        watched.broker(3).node.reports.reporter = None
        began = trio.current_time()

        status = await watched.seen_by(1)

        assert trio.current_time() - began < 2 * status_module.REPORT_TIMEOUT_S
        assert status.problems == [
            "broker 2 is alive and does not report",
            "broker 3 is alive and does not report",
        ]

    play(story)


def test_however_many_look_the_brokers_are_asked_once_a_second() -> None:
    async def story(watched: Watched) -> None:
        asked = 0
        answer = watched.broker(2).node.reports.reporter
        assert answer is not None

        async def counted() -> bytes:
            nonlocal asked
            asked += 1
            return await answer()

        watched.broker(2).node.reports.reporter = counted
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(watched.seen_by, 1)
        assert asked == 1
        await trio.sleep(FRESH_S)
        await watched.seen_by(1)
        assert asked == 2

    play(story)


def test_partitions_in_trouble_are_shown_before_those_that_are_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_module, "STATUS_PARTITIONS_MAX", 4)

    async def story(watched: Watched) -> None:
        await watched.client.admin.create_topic("alone", partitions=12, replicas=1)
        await watched.cluster.nodes[NodeId(3)].crash(power=False)
        await trio.sleep(10)

        status = await watched.seen_by(1)

        (topic,) = status.topics
        assert (topic.partition_count, len(topic.partitions)) == (12, 4)
        assert status.partitions_left_out == 8
        assert {row.state for row in topic.partitions} == {"offline"}

    play(story)


def test_a_move_is_shown_with_what_has_been_copied_and_takes_nothing_from_the_health() -> None:
    async def story(watched: Watched) -> None:
        client = watched.client
        await client.admin.create_topic("orders", partitions=1, replicas=1)
        async with client.producer("orders") as producer:
            for _ in range(60):
                await producer.append(random.Random(1).randbytes(20_000))
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)
        layout = (await client.admin.describe_rebalance()).layout_version
        (partition,) = (await client.admin.describe_topic("orders")).partitions
        before = partition.replicas[0]
        target = before % 3 + 1
        move = PlannedMoveInfo(
            group=partition.group, before=[before], target=[target], reason="a test", size_bytes=1
        )
        await client.admin.start_plan("to try it", layout, [move])
        await trio.sleep(2)

        early = await watched.seen_by(1)
        later = early
        with trio.fail_after(5):  # It is fed a second's share at a time.
            while later.moves and later.moves[0].copied == early.moves[0].copied:
                await trio.sleep(0.1)
                later = await watched.seen_by(2)

        assert (early.state, early.problems) == ("ok", [])
        assert early.plan is not None
        assert (early.plan.purpose, early.plan.running) == ("to try it", 1)
        assert (early.plan.move_count, early.plan.throttle_bytes_per_s) == (1, 64 * 1024)
        (moving,) = early.moves
        assert (moving.partition, moving.before, moving.target) == ("orders/0", [before], [target])
        assert moving.copied is not None
        assert later.moves[0].copied is not None
        assert 0 < moving.copied < later.moves[0].copied < 1

        await trio.sleep(30)
        done = await watched.seen_by(3)
        assert (done.plan, done.moves, done.problems) == (None, [], [])
        assert done.topics[0].partitions[0].replicas == [target]

    play(story)


def test_rates_are_those_of_the_last_two_minutes() -> None:
    async def story(watched: Watched) -> None:
        await watched.client.admin.create_topic("orders", partitions=1, replicas=3)
        await trio.sleep(2 * INTERVAL_S)
        before = await watched.seen_by(2)
        await append(watched.client, "orders", 1000)
        await trio.sleep(2 * INTERVAL_S)

        after = await watched.seen_by(2)
        await trio.sleep(SAMPLES_KEPT * INTERVAL_S)
        later = await watched.seen_by(2)

        assert sum(after.history.records_in) * INTERVAL_S == pytest.approx(
            sum(before.history.records_in) * INTERVAL_S + 1000, rel=0.01
        )
        assert len(later.history.records_in) == SAMPLES_KEPT
        assert sum(later.history.records_in) == 0

    play(story)


def test_a_deleted_topic_is_not_counted_any_more() -> None:
    async def story(watched: Watched) -> None:
        await watched.client.admin.create_topic("orders", partitions=4, replicas=3)
        await trio.sleep(2 * INTERVAL_S)
        assert len(watched.broker(1).node.group_counts) == 5

        await watched.client.admin.delete_topic("orders")
        await trio.sleep(5 * INTERVAL_S)

        assert list(watched.broker(1).node.group_counts) == [0]

    play(story)


def test_a_report_that_does_not_say_how_much_may_be_filled_is_of_an_older_version_and_read() -> (
    None
):
    async def story(watched: Watched) -> None:
        reporter = watched.broker(1).node.reports.reporter
        assert reporter is not None
        fields = msgspec.msgpack.decode(await reporter())
        assert fields.pop("disk_room_bytes") > 0

        older = decode_report(msgspec.msgpack.encode(fields))

        assert older is not None
        assert older.disk_free_bytes > older.disk_room_bytes == 0

    play(story)


def test_a_report_of_another_version_is_no_report() -> None:
    assert decode_report(b"\x80") is None
    assert decode_report(b"\xc1") is None
    assert decode_report(b"\x91" * 5000) is None
