"""What a scrape says is what happened, in a form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from logd.broker.broker import Broker
from logd.coordination.quotas import KEY_BYTES
from logd.limits import KEY_BYTES_PER_NAMESPACE_MAX, METRIC_TOPICS_MAX
from logd.ops import metrics
from logd.ops.metrics import METRICS, Kind, Traffic, render, take_samples
from logd.replication.counts import SECONDS_BOUNDS, Histogram
from logd.types import NodeId
from logd_client import Client
from tests.sim.cluster import ClusterSettings, SimCluster, open_cluster
from tests.sim.run import run_deterministic

PATIENCE_S = 120.0
SETTLED_S = 15.0
"""Until counters of topics that were deleted are gone too."""

Values = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def play(story: Callable[[SimCluster, Client], Awaitable[None]], brokers: int = 3) -> None:
    async def main() -> None:
        async with open_cluster(1, ClusterSettings(brokers=brokers)) as cluster:
            await trio.sleep(5)
            with trio.fail_after(PATIENCE_S):
                async with cluster.client() as client:
                    await story(cluster, client)

    run_deterministic(main, seed=1)


def brokers_of(cluster: SimCluster) -> Iterator[Broker]:
    for node in cluster.alive():
        assert node.broker is not None
        yield node.broker


async def scrape(broker: Broker, traffic: Traffic | None = None) -> Values:
    """All values by name and labels, as a reader of the text format sees them."""
    text = render(await take_samples(broker, traffic or Traffic())).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def total(cluster: SimCluster, name: str, **labels: str) -> float:
    """A value summed over all brokers."""
    found = 0.0
    for broker in brokers_of(cluster):
        found += (await scrape(broker)).get((name, tuple(sorted(labels.items()))), 0.0)
    return found


def test_what_is_appended_and_read_is_counted_once_per_copy() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("orders", partitions=4, replicas=3)
        async with client.producer("orders") as producer:
            await producer.append_many([b"value"] * 1000)
        left = 1000
        async with client.consumer("orders", start="earliest") as consumer:
            async for batch in consumer.batches():
                left -= len(batch)
                if left == 0:
                    break

        elections = await total(cluster, "logd_elections_won_total", topic="orders")
        assert elections >= 4
        # A new leader's first batch takes an offset, and is delivered like any other.
        records_in = await total(cluster, "logd_records_in_total", topic="orders")
        assert records_in == 1000 + elections
        assert 1000 <= await total(cluster, "logd_records_out_total", topic="orders") <= records_in
        size = await total(cluster, "logd_bytes_in_total", topic="orders")
        assert size > 5000
        assert await total(cluster, "logd_replicated_bytes_total", topic="orders") == 2 * size
        assert await total(cluster, "logd_log_bytes", topic="orders") == 3 * size
        assert await total(cluster, "logd_commit_seconds_count") >= 4
        assert await total(cluster, "logd_sync_seconds_count") >= 4

    play(story)


def test_every_commit_rests_on_a_sync_that_was_timed() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("orders", partitions=1, replicas=1)
        before = await total(cluster, "logd_sync_seconds_count")
        commits = await total(cluster, "logd_commit_seconds_count")
        async with client.producer("orders") as producer:
            for _ in range(20):
                await producer.append(b"value")

        assert await total(cluster, "logd_sync_seconds_count") >= before + 20
        assert await total(cluster, "logd_commit_seconds_count") >= commits + 20

    play(story, brokers=1)


def test_a_dead_broker_shows_in_every_survivor() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("orders", partitions=6, replicas=3)
        await cluster.nodes[NodeId(3)].crash(power=False)
        await trio.sleep(10)
        async with client.producer("orders") as producer:
            for partition in range(6):  # Some were led before it died: how far it was is known.
                await producer.append(b"value", partition=partition)

        assert await total(cluster, "logd_peer_up", peer="3") == 0
        assert await total(cluster, "logd_peers_lost_total") == 2
        assert await total(cluster, "logd_partitions_under_replicated", topic="orders") == 6
        assert await total(cluster, "logd_follower_lag_records", topic="orders") > 0
        assert await total(cluster, "logd_partitions_offline") == 0
        assert await total(cluster, "logd_ready") == 2

        await cluster.nodes[NodeId(2)].crash(power=False)
        await trio.sleep(10)

        assert await total(cluster, "logd_partitions_offline") == 6
        assert await total(cluster, "logd_ready") == 0

    play(story)


def test_topics_beyond_the_bound_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRIC_TOPICS_MAX", 2)

    async def story(cluster: SimCluster, client: Client) -> None:
        for name in ("a", "b", "c", "d"):
            await client.admin.create_topic(name, partitions=1, replicas=1)
        (broker,) = brokers_of(cluster)

        values = await scrape(broker)

        led = {labels[0][1]: n for (name, labels), n in values.items() if name == "logd_partitions"}
        assert led == {"a": 1, "b": 1, "(others)": 2}

    play(story, brokers=1)
    assert METRIC_TOPICS_MAX > 2


def test_no_counter_falls_or_leaps_as_topics_get_a_label_of_their_own_and_lose_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "METRIC_TOPICS_MAX", 2)

    async def story(cluster: SimCluster, client: Client) -> None:
        (broker,) = brokers_of(cluster)
        traffic = Traffic()
        seen: list[dict[str, float]] = []

        async def look() -> None:
            await trio.sleep(SETTLED_S)
            values = await scrape(broker, traffic)
            seen.append(
                {
                    labels[0][1]: value
                    for (name, labels), value in values.items()
                    if name == "logd_records_in_total" and labels[0][1] != "(metadata)"
                }
            )

        async def append(topic: str, count: int) -> None:
            async with client.producer(topic) as producer:
                await producer.append_many([b"value"] * count)

        for topic in ("b", "c", "d"):
            await client.admin.create_topic(topic, partitions=1, replicas=1)
            await append(topic, 10)
        await look()
        await client.admin.create_topic("a", partitions=1, replicas=1)  # Before c, which
        await append("c", 100)  # counts among the others now.
        await look()
        await client.admin.delete_topic("a")
        await append("c", 1000)
        await look()
        await client.admin.delete_topic("b")
        await look()

        each = 11  # A new leader's first batch takes an offset.
        assert seen == [
            {"b": each, "c": each, "(others)": each},
            {"a": 1, "b": each, "(others)": each + 100},
            {"b": each, "c": each + 1000, "(others)": each + 100},
            {"c": each + 1000, "d": 0, "(others)": each + 100},
        ]

    play(story, brokers=1)


def test_every_name_is_in_every_scrape_with_its_kind_and_meaning() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        (broker,) = brokers_of(cluster)

        text = render(await take_samples(broker, Traffic())).decode()

        found = {
            family.name: (family.type, family.documentation)
            for family in text_string_to_metric_families(text)
            if family.name.startswith("logd_")
        }
        assert found == {
            metric.name.removesuffix("_total"): (metric.kind.value, metric.meaning)
            for metric in METRICS
        }

    play(story, brokers=1)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_carry_their_unit_and_their_kind(metric: metrics.Metric) -> None:
    assert metric.name.startswith("logd_")
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.meaning.endswith((".", "here.", "wait."))


def test_the_quota_that_is_used_most_is_told_by_who_leads_its_partition() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.kv("full").put("key", bytes(60_000))
        labels = {"namespace": "full", "quota": KEY_BYTES}
        used = await total(cluster, "logd_coordination_quota_ratio", **labels)

        assert used == pytest.approx(60_003 / KEY_BYTES_PER_NAMESPACE_MAX)
        described = [await client.admin.describe_broker(node) for node in (1, 2, 3)]
        told = [broker.fullest_quota for broker in described if broker.fullest_quota]
        assert [(quota.namespace, quota.quota) for quota in told] == [("full", KEY_BYTES)]
        assert told[0].used == used

    play(story)


def test_a_refused_request_is_counted_by_its_error() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("orders", partitions=1, replicas=1)
        with pytest.raises(Exception, match="exists"):
            await client.admin.create_topic("orders", partitions=1, replicas=1)

        assert await total(cluster, "logd_requests_refused_total", error="TopicExists") == 1

    play(story, brokers=1)


# --- histograms -------------------------------------------------------------------------


def test_an_observation_falls_into_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()

    histogram.observe(SECONDS_BOUNDS[0])
    histogram.observe(SECONDS_BOUNDS[0] * 1.01)
    histogram.observe(1e9)

    assert histogram.counts[:2] == [1, 1]
    assert histogram.counts[-1] == 1
    assert histogram.total_s > 1e9 - 1


def test_a_quantile_is_the_bound_that_is_not_exceeded() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.99) is None
    for _ in range(99):
        histogram.observe(0.0009)
    histogram.observe(0.3)

    assert histogram.quantile(0.5) == 0.001
    assert histogram.quantile(0.99) == 0.001
    assert histogram.quantile(1.0) == 0.5
