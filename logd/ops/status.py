"""The whole cluster in one document: what the status page draws, ``/api/status``.

The broker that is asked joins what all brokers know (metadata, who is alive, who leads) with
the reports of those that answer.  However many people look, the others are asked at most once
a second; while nobody looks, never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import trio

from logd import __version__
from logd.broker.peer_reports import ask_peers
from logd.limits import STATUS_PARTITIONS_MAX
from logd.ops.report import BrokerReport, LedPartition, decode_report, make_report
from logd.ops.sampler import INTERVAL_S, NO_RATES, Sampler
from logd.types import GroupId, NodeId

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.metadata.state import Broker as KnownBroker
    from logd.metadata.state import PartitionPlacement, Topic

REPORT_TIMEOUT_S: Final = 1.0
FRESH_S: Final = 1.0
EVENTS_SHOWN_MAX: Final = 60
MOVES_SHOWN_MAX: Final = 100
NAMES_IN_PROBLEM_MAX: Final = 3

PartitionState = Literal["ok", "under_replicated", "offline"]


class RatesInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Per second."""

    records_in: float
    bytes_in: float
    records_out: float
    bytes_out: float


class BrokerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One registered broker.  What only its report tells is None without one."""

    id: int
    address: str
    alive: bool
    rack: str
    failure_domain: str
    leaders: int
    replicas: int
    version: str
    is_controller: bool
    is_draining: bool
    """What it holds is to go."""
    rates: RatesInfo | None
    history: list[float]
    """Records in and out together, per second, newest last."""
    report: BrokerReportInfo | None


class BrokerReportInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker says of itself."""

    uptime_ms: int
    is_stopping: bool
    memory_bytes: int | None
    disk_free_bytes: int
    is_disk_full: bool
    connections: int
    subscriptions: int
    queued_bytes: int
    commit_p99_ms: float | None
    sync_p99_ms: float | None


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One partition; offsets and lags are None while nobody tells."""

    partition: int
    state: PartitionState
    leader: int | None
    term: int
    replicas: list[int]
    in_sync: list[int]
    log_start: int | None
    log_end: int | None
    commit: int | None
    log_bytes: int | None
    follower_lag: int | None
    readers: int
    reader_lag: int | None


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One topic; sums are of the partitions whose leaders report."""

    name: str
    partitions: list[PartitionStatus]
    partition_count: int
    rates: RatesInfo
    log_bytes: int
    follower_lag: int
    reader_lag: int
    readers: int


class MoveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A partition on its way to other brokers."""

    partition: str
    before: list[int]
    target: list[int]
    reason: str
    is_cancelled: bool
    copied: float | None
    """The share of the log that all newcomers have; None while nobody tells."""
    log_bytes: int | None
    begun_ms: int


class PlanStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The rebalance plan that is carried out."""

    plan_id: int
    purpose: str
    state: str
    move_count: int
    done: int
    running: int
    cancelled: int
    skipped: int
    throttle_bytes_per_s: int
    begun_ms: int


class EventStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on a broker."""

    at_ms: int
    node: int
    level: str
    name: str
    text: str


class HistoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Of the whole cluster, newest last; per second."""

    interval_s: float
    records_in: list[float]
    records_out: list[float]
    bytes_in: list[float]
    bytes_out: list[float]


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``/api/status``."""

    cluster_id: str | None
    state: Literal["ok", "degraded", "unavailable"]
    problems: list[str]
    controller: int | None
    node: int
    """Who answers."""
    version: str
    now_ms: int
    brokers: list[BrokerStatus]
    topics: list[TopicStatus]
    partitions: int
    partitions_left_out: int
    under_replicated: int
    offline: int
    rates: RatesInfo
    history: HistoryInfo
    plan: PlanStatus | None
    moves: list[MoveStatus]
    events: list[EventStatus]


class StatusBoard:
    """Makes the document, at most once a second."""

    def __init__(self, broker: Broker, sampler: Sampler) -> None:
        self._broker = broker
        self._sampler = sampler
        self._made: bytes | None = None
        self._made_at = -FRESH_S
        self._lock = trio.Lock()

    async def document(self) -> bytes:
        """The status as JSON, at most a second old."""
        async with self._lock:
            if self._made is None or trio.current_time() - self._made_at >= FRESH_S:
                self._made = msgspec.json.encode(await self._make())
                self._made_at = trio.current_time()
            return self._made

    async def _make(self) -> ClusterStatus:
        reports = await self._ask_all()
        await trio.lowlevel.checkpoint()
        return judge(self._broker, reports)

    async def _ask_all(self) -> dict[NodeId, BrokerReport]:
        """Ask every broker that is alive; those that do not answer in time are left out."""
        node = self._broker.node
        own = await make_report(self._broker, self._sampler)
        return {node.node: own, **await ask_peers(node, decode_report, REPORT_TIMEOUT_S)}


def judge(broker: Broker, reports: Mapping[NodeId, BrokerReport]) -> ClusterStatus:
    """Join what this broker knows with what the others told."""
    led = {GroupId(row.group): row for report in reports.values() for row in report.led}
    topics = [_topic_status(broker, topic, led) for topic in broker.metadata.state.topics]
    rows = [(topic.name, row) for topic in topics for row in topic.partitions]
    offline = [f"{name}/{row.partition}" for name, row in rows if row.state == "offline"]
    under = [f"{name}/{row.partition}" for name, row in rows if row.state == "under_replicated"]
    problems = [
        *_problems_of_brokers(broker, reports),
        *_counted(offline, "has no leader", "have no leader"),
        *_counted(under, "is under-replicated", "are under-replicated"),
        *_troubles(broker, reports),
    ]
    has_controller = broker.controller is not None
    totals = [_total_history(reports, at) for at in range(4)]
    shown, left_out = _bounded(topics)
    moving = broker.metadata.state.moving[:MOVES_SHOWN_MAX]
    return ClusterStatus(
        cluster_id=broker.membership.cluster_id,
        state="unavailable" if not has_controller else "degraded" if problems else "ok",
        problems=problems,
        controller=broker.controller,
        node=broker.node.node,
        version=__version__,
        now_ms=broker.env.wall_clock_ms(),
        brokers=_broker_rows(broker, reports),
        topics=shown,
        partitions=len(rows),
        partitions_left_out=left_out,
        under_replicated=len(under),
        offline=len(offline),
        rates=_rates([history[-1] if history else 0.0 for history in totals]),
        history=HistoryInfo(
            interval_s=INTERVAL_S,
            records_in=totals[0],
            bytes_in=totals[1],
            records_out=totals[2],
            bytes_out=totals[3],
        ),
        plan=_plan(broker),
        moves=[_move(placement, led.get(placement.group)) for placement in moving],
        events=_events(reports),
    )


# --- parts ------------------------------------------------------------------------------


def _broker_rows(broker: Broker, reports: Mapping[NodeId, BrokerReport]) -> list[BrokerStatus]:
    leaders = broker.leader_counts()
    return [
        _broker_row(broker, known, leaders.get(known.node, 0), reports.get(known.node))
        for known in broker.metadata.state.brokers
    ]


def _broker_row(
    broker: Broker, known: KnownBroker, leaders: int, report: BrokerReport | None
) -> BrokerStatus:
    history = [] if report is None else report.history
    return BrokerStatus(
        id=known.node,
        address=str(known.address),
        alive=broker.node.is_up(known.node),
        rack=known.rack,
        failure_domain=known.failure_domain,
        leaders=leaders,
        replicas=len(broker.metadata.state.partitions_on(known.node)),
        version=known.version,
        is_controller=broker.controller == known.node,
        is_draining=known.is_draining,
        rates=_rates(history[-1]) if history else None,
        history=[sample[0] + sample[2] for sample in history],
        report=None
        if report is None
        else BrokerReportInfo(
            uptime_ms=report.uptime_ms,
            is_stopping=report.is_stopping,
            memory_bytes=report.memory_bytes,
            disk_free_bytes=report.disk_free_bytes,
            is_disk_full=report.is_disk_full,
            connections=report.connections,
            subscriptions=report.subscriptions,
            queued_bytes=report.queued_bytes,
            commit_p99_ms=_ms(report.commit_p99_s),
            sync_p99_ms=_ms(report.sync_p99_s),
        ),
    )


def _topic_status(broker: Broker, topic: Topic, led: Mapping[GroupId, LedPartition]) -> TopicStatus:
    rows = [_partition_status(broker, p, led.get(p.group)) for p in topic.partitions]
    known = [row for p in topic.partitions if (row := led.get(p.group)) is not None]
    total = NO_RATES
    for row in known:
        total = total.plus(row.rates)
    return TopicStatus(
        name=topic.name,
        partitions=rows,
        partition_count=len(rows),
        rates=_rates(total),
        log_bytes=sum(row.log_bytes for row in known),
        follower_lag=max((row.follower_lag for row in known), default=0),
        reader_lag=max((row.reader_lag for row in known), default=0),
        readers=sum(row.readers for row in known),
    )


def _partition_status(
    broker: Broker, placement: PartitionPlacement, led: LedPartition | None
) -> PartitionStatus:
    leader, term = broker.node.leader_of(placement.group)
    if led is None:
        # Its leader has not reported: what is known is who holds it and who of them is alive.
        alive = [node for node in placement.replicas if broker.node.is_up(node)]
        state: PartitionState = (
            "ok" if len(alive) == len(placement.replicas) else "under_replicated"
        )
        return PartitionStatus(
            partition=placement.partition,
            state="offline" if leader is None else state,
            leader=leader,
            term=term,
            replicas=list(placement.replicas),
            in_sync=[],
            log_start=None,
            log_end=None,
            commit=None,
            log_bytes=None,
            follower_lag=None,
            readers=0,
            reader_lag=None,
        )
    return PartitionStatus(
        partition=placement.partition,
        state="ok" if len(led.in_sync) == len(led.voters) else "under_replicated",
        leader=leader,
        term=led.term,
        replicas=list(led.voters),
        in_sync=list(led.in_sync),
        log_start=led.log_start,
        log_end=led.log_end,
        commit=led.commit,
        log_bytes=led.log_bytes,
        follower_lag=led.follower_lag,
        readers=led.readers,
        reader_lag=led.reader_lag,
    )


def _plan(broker: Broker) -> PlanStatus | None:
    plan = broker.metadata.state.plan
    if plan is None or plan.is_over:
        return None
    return PlanStatus(
        plan_id=plan.plan_id,
        purpose=plan.purpose,
        state=plan.state,
        move_count=plan.move_count,
        done=plan.count("done"),
        running=plan.count("running"),
        cancelled=plan.count("cancelled"),
        skipped=plan.count("skipped"),
        throttle_bytes_per_s=broker.metadata.state.rebalance_settings.throttle_bytes_per_s,
        begun_ms=plan.begun_ms,
    )


def _move(placement: PartitionPlacement, led: LedPartition | None) -> MoveStatus:
    move = placement.move
    assert move is not None
    return MoveStatus(
        partition=str(placement.name),
        before=list(placement.replicas),
        target=list(move.target),
        reason=move.reason,
        is_cancelled=move.is_cancelled,
        copied=None if led is None else led.copied,
        log_bytes=None if led is None else led.log_bytes,
        begun_ms=move.begun_ms,
    )


def _problems_of_brokers(broker: Broker, reports: Mapping[NodeId, BrokerReport]) -> list[str]:
    problems = [] if broker.controller is not None else ["the cluster has no controller"]
    for known in broker.metadata.state.brokers:
        report = reports.get(known.node)
        if not broker.node.is_up(known.node):
            problems.append(f"broker {known.node} at {known.address} is not alive")
        elif report is None:
            problems.append(f"broker {known.node} is alive and does not report")
        elif report.is_disk_full:
            problems.append(
                f"broker {known.node} refuses appends: "
                "its disk is full, or has less free than disk_free_bytes_min"
            )
    return problems


def _troubles(broker: Broker, reports: Mapping[NodeId, BrokerReport]) -> list[str]:
    return [
        f"broker {node}, {broker.name_of(GroupId(trouble.group))}: {trouble.reason}"
        for node in sorted(reports)
        for trouble in reports[node].troubles
    ]


def _counted(names: Sequence[str], one: str, many: str) -> list[str]:
    """One sentence about any number of partitions."""
    if not names:
        return []
    if len(names) == 1:
        return [f"{names[0]} {one}"]
    shown = ", ".join(names[:NAMES_IN_PROBLEM_MAX])
    more = ", …" if len(names) > NAMES_IN_PROBLEM_MAX else ""
    return [f"{len(names)} partitions {many}: {shown}{more}"]


def _bounded(topics: list[TopicStatus]) -> tuple[list[TopicStatus], int]:
    """As many partitions as a page can show; those in trouble go first."""
    total = sum(topic.partition_count for topic in topics)
    if total <= STATUS_PARTITIONS_MAX:
        return topics, 0
    room = STATUS_PARTITIONS_MAX
    kept: dict[str, list[PartitionStatus]] = {topic.name: [] for topic in topics}
    for wants_trouble in (True, False):
        for topic in topics:
            rows = [row for row in topic.partitions if (row.state != "ok") == wants_trouble]
            kept[topic.name] += rows[:room]
            room -= min(room, len(rows))
    shown = [
        msgspec.structs.replace(
            topic, partitions=sorted(kept[topic.name], key=lambda row: row.partition)
        )
        for topic in topics
    ]
    return shown, total - STATUS_PARTITIONS_MAX


def _total_history(reports: Mapping[NodeId, BrokerReport], at: int) -> list[float]:
    """One rate added up over all brokers; the newest samples are taken as simultaneous."""
    length = max((len(report.history) for report in reports.values()), default=0)
    total = [0.0] * length
    for report in reports.values():
        for back, sample in enumerate(reversed(report.history), 1):
            total[-back] += sample[at]
    return total


def _events(reports: Mapping[NodeId, BrokerReport]) -> list[EventStatus]:
    events = [
        EventStatus(
            at_ms=event.at_ms, node=node, level=event.level, name=event.name, text=event.text
        )
        for node, report in reports.items()
        for event in report.events
    ]
    events.sort(key=lambda event: event.at_ms, reverse=True)
    return events[:EVENTS_SHOWN_MAX]


def _rates(values: Sequence[float]) -> RatesInfo:
    records_in, bytes_in, records_out, bytes_out = values
    return RatesInfo(
        records_in=records_in, bytes_in=bytes_in, records_out=records_out, bytes_out=bytes_out
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
