"""What a broker tells Prometheus.

``METRICS`` is the whole interface: docs/metrics.md is made from it, and the dashboard and the
alert rules may name nothing else (tests hold both).  Values are read from plain counters when
they are scraped; labels are bounded (``METRIC_TOPICS_MAX``), because every series costs its
reader for as long as it is kept.

Topics beyond the bound are added up as ``(others)``, the metadata log is ``(metadata)``:
neither can be the name of a topic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from logd import __version__
from logd.limits import METRIC_TOPICS_MAX
from logd.ops.health import unreadiness
from logd.ops.replicas import ReplicaFacts, look_at_replicas
from logd.replication.counts import SECONDS_BOUNDS, Histogram
from logd.types import METADATA_GROUP, GroupId

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from logd.broker.broker import Broker

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
METADATA_LABEL: Final = "(metadata)"
OTHERS_LABEL: Final = "(others)"


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One name that a scrape has, and what it means."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


_TOPIC: Final = ("topic",)
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

METRICS: Final = (
    Metric("logd_build_info", _G, ("node", "cluster", "version"), "1; says who this is."),
    Metric("logd_uptime_seconds", _G, (), "Since the broker was started."),
    Metric("logd_ready", _G, (), "1 while `/readyz` says yes."),
    Metric("logd_controller", _G, (), "1 on the broker that leads the metadata log."),
    Metric("logd_brokers", _G, (), "Brokers registered in the cluster, as known here."),
    Metric("logd_peer_up", _G, ("peer",), "1 while this broker hears that one."),
    Metric("logd_peers_lost_total", _C, (), "How often this broker gave another one up."),
    Metric("logd_peer_queue_bytes", _G, ("peer",), "Bytes waiting to be sent to that broker."),
    Metric("logd_partitions", _G, _TOPIC, "Partitions of the topic in the cluster, as known here."),
    Metric(
        "logd_partitions_offline",
        _G,
        (),
        "Partitions in the cluster for which this broker knows no leader.",
    ),
    Metric("logd_replicas", _G, ("role",), "Replicas on this broker, by role."),
    Metric(
        "logd_partitions_under_replicated",
        _G,
        _TOPIC,
        "Partitions led here that have a replica which is not in sync.",
    ),
    Metric(
        "logd_replicas_quarantined",
        _G,
        (),
        "Replicas on this broker that are shut, have failed, or have damage not repaired yet.",
    ),
    Metric("logd_holes_found_total", _C, (), "Damaged stretches found in logs on this broker."),
    Metric("logd_holes_repaired_total", _C, (), "Damaged stretches made whole from peers."),
    Metric("logd_leader_changes_total", _C, _TOPIC, "Leaders that replicas here came to know."),
    Metric("logd_elections_won_total", _C, _TOPIC, "Elections that this broker won."),
    Metric(
        "logd_restarts_with_loss_total",
        _C,
        _TOPIC,
        "Times that this broker began to lead a partition of which a majority had lost its memory: "
        "records acknowledged as replicated may be lost.",
    ),
    Metric("logd_leaderships_lost_total", _C, _TOPIC, "Leaderships this broker gave up or lost."),
    Metric("logd_records_in_total", _C, _TOPIC, "Records appended as the leader."),
    Metric("logd_bytes_in_total", _C, _TOPIC, "Bytes of batches appended as the leader."),
    Metric("logd_batches_in_total", _C, _TOPIC, "Batches appended as the leader."),
    Metric("logd_replicated_bytes_total", _C, _TOPIC, "Bytes of batches appended as a follower."),
    Metric("logd_replicated_batches_total", _C, _TOPIC, "Batches appended as a follower."),
    Metric("logd_records_out_total", _C, _TOPIC, "Records sent to consumers."),
    Metric("logd_bytes_out_total", _C, _TOPIC, "Bytes of batches sent to consumers."),
    Metric("logd_log_bytes", _G, _TOPIC, "Bytes of batches in the replicas on this broker."),
    Metric(
        "logd_uncommitted_records",
        _G,
        _TOPIC,
        "Records appended but not committed, over the partitions led here.",
    ),
    Metric(
        "logd_follower_lag_records",
        _G,
        _TOPIC,
        "Records that the furthest follower of any partition led here lacks on its disk.",
    ),
    Metric(
        "logd_reader_lag_records",
        _G,
        _TOPIC,
        "Committed records not sent yet to the slowest subscription to this broker.",
    ),
    Metric(
        "logd_commit_seconds",
        _H,
        (),
        "From a write by the leader to its commit, when its producers are acknowledged; one "
        "observation per write, which carries all batches that came together.",
    ),
    Metric(
        "logd_sync_seconds",
        _H,
        (),
        "Syncs of logs to the disk, with the wait for a thread if it takes one.",
    ),
    Metric("logd_produce_bytes", _G, (), "Bytes of produce requests not answered yet."),
    Metric("logd_produce_bytes_max", _G, (), "`produce_bytes_in_flight`: then producers wait."),
    Metric("logd_tail_cache_bytes", _G, (), "Memory that the newest batches take."),
    Metric("logd_tail_cache_bytes_max", _G, (), "`tail_cache_bytes`."),
    Metric("logd_client_connections", _G, (), "Clients connected."),
    Metric("logd_client_connections_total", _C, (), "Clients accepted so far."),
    Metric("logd_client_queue_bytes", _G, (), "Answers and deliveries that clients have to take."),
    Metric("logd_subscriptions", _G, (), "Partitions being tailed, over all connections."),
    Metric("logd_coordination_sessions", _G, (), "Sessions of coordination partitions led here."),
    Metric("logd_coordination_watches", _G, (), "Watches of coordination partitions led here."),
    Metric(
        "logd_coordination_quota_ratio",
        _G,
        ("namespace", "quota"),
        "The largest part of any quota that is used in the coordination partitions led here, and "
        "by which namespace; what would go beyond 1 is refused.",
    ),
    Metric(
        "logd_coordination_commands_total",
        _C,
        (),
        "Commands of the coordination log applied by replicas here, leading or not.",
    ),
    Metric(
        "logd_coordination_sessions_expired_total",
        _C,
        (),
        "Sessions of which nothing was heard here, as the leader, for their time to live.",
    ),
    Metric("logd_coordination_events_total", _C, (), "Events pushed to watches."),
    Metric(
        "logd_requests_refused_total",
        _C,
        ("error",),
        "Requests answered with an error, by its name in docs/wire_protocol.md.",
    ),
    Metric("logd_disk_free_bytes", _G, (), "Free space on the disk of `data_dir`."),
    Metric("logd_disk_full", _G, (), "1 while appends are refused for want of space."),
)
"""Everything but what ``prometheus_client`` adds about the process (``process_``)."""

_BY_NAME: Final = {metric.name: metric for metric in METRICS}
assert len(_BY_NAME) == len(METRICS)


class Sample(NamedTuple):
    """One value.  Of a histogram: the histogram."""

    name: str
    labels: tuple[str, ...]
    value: float | Histogram


async def take_samples(broker: Broker, traffic: Traffic) -> list[Sample]:
    """Read all values, letting others run in between.

    Args:
        traffic: the same one in all scrapes of this broker.
    """
    facts = await look_at_replicas(broker)
    labels = _TopicLabels(broker)
    await trio.lowlevel.checkpoint()
    return [
        *_of_broker(broker),
        *_of_cluster(broker, labels),
        *_of_replicas(broker, facts),
        *_of_topics(facts, labels),
        *traffic.take(broker, labels),
    ]


def render(samples: Iterable[Sample]) -> bytes:
    """The text format.  Takes milliseconds: to be called off the event loop."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Collector(samples))
    return generate_latest(registry)


class _Collector:
    """Samples as families, in the order of ``METRICS``."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {name: [] for name in _BY_NAME}
        for sample in samples:
            self._by_name[sample.name].append(sample)

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            yield _family(metric, self._by_name[metric.name])


def _family(metric: Metric, samples: Sequence[Sample]) -> Family:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for sample in samples:
            assert isinstance(sample.value, Histogram)
            histogram.add_metric(sample.labels, _buckets(sample.value), sample.value.total_s)
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for sample in samples:
        assert len(sample.labels) == len(metric.labels)
        assert not isinstance(sample.value, Histogram)
        family.add_metric(sample.labels, sample.value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts, as the format has them."""
    cumulative, buckets = 0, []
    for bound, count in zip((*map(str, SECONDS_BOUNDS), "+Inf"), histogram.counts, strict=True):
        cumulative += count
        buckets.append((bound, float(cumulative)))
    return buckets


# --- reading ----------------------------------------------------------------------------


def _one(name: str, value: float | Histogram, *labels: str) -> Sample:
    return Sample(name, labels, value)


def _of_broker(broker: Broker) -> Iterator[Sample]:
    node, counts, config = broker.node, broker.node.counts, broker.config
    cluster = broker.membership.cluster_id or ""
    yield _one("logd_build_info", 1, str(node.node), cluster, __version__)
    yield _one("logd_uptime_seconds", (node.now_ms() - broker.started_ms) / 1000)
    yield _one("logd_ready", unreadiness(broker) is None)
    yield _one("logd_controller", broker.controller == node.node)
    for peer, queued in node.queued_bytes().items():
        yield _one("logd_peer_up", node.is_up(peer), str(peer))
        yield _one("logd_peer_queue_bytes", queued, str(peer))
    yield _one("logd_peers_lost_total", counts.peers_lost)
    yield _one("logd_holes_found_total", counts.holes_found)
    yield _one("logd_holes_repaired_total", counts.holes_repaired)
    yield _one("logd_commit_seconds", counts.commit_s)
    yield _one("logd_sync_seconds", counts.sync_s)
    yield _one("logd_produce_bytes", broker.budget.bytes)
    yield _one("logd_produce_bytes_max", config.produce_bytes_in_flight)
    yield _one("logd_tail_cache_bytes", node.tail_cache.bytes)
    yield _one("logd_tail_cache_bytes_max", config.tail_cache_bytes)
    yield _one("logd_client_connections", len(broker.sessions))
    yield _one("logd_client_connections_total", broker.connections_accepted)
    yield _one("logd_client_queue_bytes", sum(s.queued_bytes for s in broker.sessions))
    coordination = broker.coordination.totals()
    yield _one("logd_coordination_sessions", coordination.sessions)
    yield _one("logd_coordination_watches", coordination.watches)
    fullest = broker.coordination.fullest()
    if fullest is not None:
        used, namespace, quota = fullest
        yield _one("logd_coordination_quota_ratio", used, namespace, quota)
    yield _one("logd_coordination_commands_total", coordination.commands)
    yield _one("logd_coordination_sessions_expired_total", coordination.sessions_expired)
    yield _one("logd_coordination_events_total", coordination.events_pushed)
    for error, count in broker.refusals.items():
        yield _one("logd_requests_refused_total", count, error.removesuffix("Error"))
    yield _one("logd_disk_free_bytes", broker.disk.free_bytes)
    yield _one("logd_disk_full", broker.disk.is_full)


def _of_cluster(broker: Broker, labels: _TopicLabels) -> Iterator[Sample]:
    """What every broker knows of all."""
    partitions: dict[str, int] = {}
    offline = 0
    for topic in broker.metadata.state.topics:
        label = labels.of_topic(topic.name)
        partitions[label] = partitions.get(label, 0) + len(topic.partitions)
        offline += sum(broker.node.leader_of(p.group)[0] is None for p in topic.partitions)
    yield _one("logd_brokers", len(broker.metadata.state.brokers))
    yield _one("logd_partitions_offline", offline)
    for label, count in partitions.items():
        yield _one("logd_partitions", count, label)


def _of_replicas(broker: Broker, facts: Sequence[ReplicaFacts]) -> Iterator[Sample]:
    roles: dict[str, int] = {}
    for row in facts:
        roles[row.role] = roles.get(row.role, 0) + 1
    for role, count in roles.items():
        yield _one("logd_replicas", count, role)
    damaged = sum(row.is_quarantined for row in facts)
    yield _one("logd_replicas_quarantined", damaged + len(broker.node.shut))
    yield _one("logd_subscriptions", sum(row.readers for row in facts))


def _of_topics(facts: Sequence[ReplicaFacts], labels: _TopicLabels) -> Iterator[Sample]:
    by_label: dict[str, list[ReplicaFacts]] = {}
    for row in facts:
        by_label.setdefault(labels.of_group(row.group), []).append(row)
    for label, rows in by_label.items():
        led = [row for row in rows if row.is_leading]
        yield _one("logd_log_bytes", sum(row.log_bytes for row in rows), label)
        yield _one(
            "logd_partitions_under_replicated", sum(r.is_under_replicated for r in led), label
        )
        yield _one("logd_uncommitted_records", sum(r.log_end - r.commit for r in led), label)
        yield _one(
            "logd_follower_lag_records", max((r.follower_lag for r in led), default=0), label
        )
        yield _one("logd_reader_lag_records", max(r.reader_lag for r in rows), label)


_TRAFFIC: Final = (
    ("logd_leader_changes_total", "leader_changes"),
    ("logd_elections_won_total", "elections_won"),
    ("logd_restarts_with_loss_total", "restarts_with_loss"),
    ("logd_leaderships_lost_total", "leaderships_lost"),
    ("logd_records_in_total", "records_in"),
    ("logd_bytes_in_total", "bytes_in"),
    ("logd_batches_in_total", "batches_in"),
    ("logd_replicated_bytes_total", "bytes_replicated"),
    ("logd_replicated_batches_total", "batches_replicated"),
    ("logd_records_out_total", "records_out"),
    ("logd_bytes_out_total", "bytes_out"),
)
"""Metric → field of ``GroupCounts``."""


_read_traffic: Final = attrgetter(*(field for _, field in _TRAFFIC))


class Traffic:
    """What partitions counted, by the label that each had when it was counted.

    Topics come and go, and with them others get a label of their own or lose it: were each
    partition's count added to the label it has now, ``(others)`` would leap and fall.
    """

    def __init__(self) -> None:
        self._read: dict[GroupId, tuple[int, ...]] = {}
        """Per partition, as of the last scrape."""
        self._totals: dict[str, list[int]] = {}
        """Per label; topics that have none at present go on from here when they have."""

    def take(self, broker: Broker, labels: _TopicLabels) -> Iterator[Sample]:
        """The counters now."""
        nothing = (0,) * len(_TRAFFIC)
        before, self._read = self._read, {}
        for group_id, counts in broker.node.group_counts.items():
            now = _read_traffic(counts)
            self._read[group_id] = now
            total = self._totals.setdefault(labels.of_group(group_id), list(nothing))
            for at, (value, then) in enumerate(
                zip(now, before.get(group_id, nothing), strict=True)
            ):
                total[at] += value - then
        self._totals = {
            name: total for name, total in self._totals.items() if labels.is_of_use(name)
        }
        for label, total in self._totals.items():
            if labels.is_shown(label):
                for (name, _), value in zip(_TRAFFIC, total, strict=True):
                    yield _one(name, value, label)


class _TopicLabels:
    """Which label a topic has: its name, as long as there are not too many."""

    def __init__(self, broker: Broker) -> None:
        state = broker.metadata.state
        names = [topic.name for topic in state.topics]
        self._named = set(names[:METRIC_TOPICS_MAX])
        self._known = {*names, METADATA_LABEL, OTHERS_LABEL}
        self._placement = state.placement

    def of_topic(self, name: str) -> str:
        return name if name in self._named else OTHERS_LABEL

    def of_group(self, group_id: GroupId) -> str:
        if group_id == METADATA_GROUP:
            return METADATA_LABEL
        placement = self._placement(group_id)
        return OTHERS_LABEL if placement is None else self.of_topic(placement.topic)

    def is_shown(self, label: str) -> bool:
        return label in self._named or label in (METADATA_LABEL, OTHERS_LABEL)

    def is_of_use(self, label: str) -> bool:
        """It is shown, or may be again."""
        return label in self._known
