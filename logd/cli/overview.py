"""What the cluster looks like: metadata joined with what each partition's leader knows.

``topic describe``, ``partition list`` and ``cluster status`` show the same rows, so they
are made once.  A partition whose leader does not answer gets a row too, with what the
metadata knows and nothing else: a gap in a table is information, an aborted command is not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import msgspec

from logd.errors import LogdError
from logd.metadata.rebalance.cluster import is_majority_alive
from logd.types import HostPort
from logd.wording import are, count_of

if TYPE_CHECKING:
    from logd.wire.messages import (
        DescribeBrokerResponse,
        DescribePartitionResponse,
        MetadataResponse,
        PartitionInfo,
        QuotaInfo,
        TopicInfo,
    )
    from logd_client import Client

DESCRIBES_UNDER_WAY_MAX: Final = 32
DESCRIBE_TIMEOUT_S: Final = 3.0
DESCRIBES_TIMEOUT_S: Final = 15.0
"""However many partitions there are, a person gets an answer in this time."""
DOUBTED_TIMEOUT_S: Final = 0.5
"""For what the cluster says is down: whoever said so may be cut off from it, and we are not."""
DOUBTED_ALL_TIMEOUT_S: Final = 2.0
EVENTS_MAX: Final = 50
QUOTA_NEARLY_USED: Final = 0.8
"""The alert of deploy/prometheus-alerts.yml has the same."""


class PartitionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One partition.  The field names are those of ``partition describe --output json``."""

    topic: str
    partition: int
    leader: int | None
    term: int
    replicas: list[int]
    in_sync: list[int]
    log_start: int | None
    log_end: int | None
    commit: int | None
    group: int
    """How logs of brokers and directories of replicas name it."""


class BrokerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One broker."""

    id: int
    address: str
    alive: bool
    leaders: int
    replicas: int
    draining: bool = False
    """Nothing is placed on it, and what it holds is to go."""


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on a broker."""

    at_ms: int
    broker: int
    level: str
    text: str


class BrokerNews(NamedTuple):
    """What brokers tell of themselves."""

    damaged: list[str]
    """Replicas that they have shut or found damaged, each with the reason."""
    events: list[EventRow]
    """The newest first."""
    full: list[int]
    """Brokers that refuse appends because their disks are full."""
    quotas: list[str]
    """What is soon refused because a quota of coordination is nearly used up."""
    silent: Sequence[tuple[int, str]] = ()
    """Brokers that others hear and that do not tell a client how they are, and what it met."""


PARTITION_FACTS: Final = PartitionRow.__struct_fields__
PARTITION_COLUMNS: Final = tuple(name for name in PARTITION_FACTS if name != "group")
"""What a table of partitions shows: 80 columns have no room for more."""
BROKER_COLUMNS: Final = BrokerRow.__struct_fields__


def cells(row: msgspec.Struct, columns: Sequence[str] | None = None) -> list[object]:
    """The values of a row, in the order of its columns, or of these of them."""
    return [getattr(row, name) for name in columns or row.__struct_fields__]


def partition_row(
    topic: str, partition: PartitionInfo, described: DescribePartitionResponse | None
) -> PartitionRow:
    """Join one partition's metadata with its leader's answer, if there was one."""
    if described is None:
        return PartitionRow(
            topic=topic,
            partition=partition.partition,
            leader=None,
            term=partition.term,
            replicas=partition.replicas,
            in_sync=[],
            log_start=None,
            log_end=None,
            commit=None,
            group=partition.group,
        )
    return described_row(topic, partition.partition, described)


def described_row(topic: str, partition: int, described: DescribePartitionResponse) -> PartitionRow:
    """One partition as its leader sees it."""
    return PartitionRow(
        topic=topic,
        partition=partition,
        leader=described.leader,
        term=described.term,
        replicas=[replica.node_id for replica in described.replicas],
        in_sync=[replica.node_id for replica in described.replicas if replica.in_sync],
        log_start=described.log_start,
        log_end=described.log_end,
        commit=described.commit_offset,
        group=described.group,
    )


def lag_max(described: DescribePartitionResponse) -> int:
    """Offsets by which the last replica's durable log is behind the leader's log.

    A replica that the leader has not heard of yet may have all of them: it is not counted, and
    stands among the under-replicated.
    """
    return max(
        (
            described.log_end - replica.synced_end
            for replica in described.replicas
            if replica.synced_end is not None and replica.voter
        ),
        default=0,
    )


def broker_rows(metadata: MetadataResponse) -> list[BrokerRow]:
    """Every registered broker with how much it carries."""
    leaders: dict[int, int] = {}
    replicas: dict[int, int] = {}
    for topic in metadata.topics:
        for partition in topic.partitions:
            if partition.leader is not None:
                leaders[partition.leader] = leaders.get(partition.leader, 0) + 1
            for node_id in partition.replicas:
                replicas[node_id] = replicas.get(node_id, 0) + 1
    return [
        BrokerRow(
            id=broker.node_id,
            address=str(HostPort(broker.host, broker.port)),
            draining=broker.draining,
            alive=broker.alive,
            leaders=leaders.get(broker.node_id, 0),
            replicas=replicas.get(broker.node_id, 0),
        )
        for broker in sorted(metadata.brokers, key=lambda broker: broker.node_id)
    ]


def missing_brokers(metadata: MetadataResponse) -> str:
    """Who does not answer, for a person."""
    missing = [broker for broker in metadata.brokers if not broker.alive]
    if not missing:
        return f"all {len(metadata.brokers)} known brokers answer, an election is under way"
    names = ", ".join(
        f"{broker.node_id} ({HostPort(broker.host, broker.port)})" for broker in missing
    )
    alive = len(metadata.brokers) - len(missing)
    brokers = count_of(len(metadata.brokers), "broker")
    return f"{alive} of {brokers} {are(alive)} alive; missing: {names}"


async def rebalancing_news(client: Client) -> list[str]:
    """The plan that is carried out, and what the cluster does by itself; lines for people."""
    with anyio.move_on_after(DESCRIBE_TIMEOUT_S):
        try:
            found = await client.admin.describe_rebalance()
        except LogdError:
            return []  # That the controller does not answer is shown already.
        plan, lines = found.plan, list(found.autonomy)
        if plan is not None and plan.state not in ("done", "cancelled"):
            done = sum(move.state == "done" for move in plan.moves)
            running = sum(move.state == "running" for move in plan.moves)
            lines.append(
                f"plan {plan.plan_id} ({plan.purpose}) is {plan.state}: {done} of "
                f"{count_of(plan.move_count, 'move')} done, {running} under way "
                "(logd rebalance status)"
            )
        return lines
    return []


async def describe_partitions(
    client: Client,
    names: Sequence[tuple[str, int]],
    doubted: Collection[tuple[str, int]] = (),
) -> list[DescribePartitionResponse | None]:
    """Ask each partition's leader, several at a time; None where none answered in time, which is
    short for those that are ``doubted`` to have one."""
    found: dict[tuple[str, int], DescribePartitionResponse] = {}

    async def describe(name: tuple[str, int], limit: anyio.CapacityLimiter, for_s: float) -> None:
        async with limit:
            with anyio.move_on_after(for_s):
                try:
                    found[name] = await client.admin.describe_partition(*name)
                except LogdError:
                    return  # The row shows that nobody answers for it.

    async def describe_all(some: Sequence[tuple[str, int]], for_s: float, for_all_s: float) -> None:
        limit = anyio.CapacityLimiter(DESCRIBES_UNDER_WAY_MAX)
        with anyio.move_on_after(for_all_s):
            async with anyio.create_task_group() as tasks:
                for name in some:
                    tasks.start_soon(describe, name, limit, for_s)

    likely = [name for name in names if name not in doubted]
    unlikely = [name for name in names if name in doubted]
    async with anyio.create_task_group() as both:
        both.start_soon(describe_all, likely, DESCRIBE_TIMEOUT_S, DESCRIBES_TIMEOUT_S)
        both.start_soon(describe_all, unlikely, DOUBTED_TIMEOUT_S, DOUBTED_ALL_TIMEOUT_S)
    return [found.get(name) for name in names]


def leaderless(metadata: MetadataResponse) -> set[tuple[str, int]]:
    """The partitions that nobody leads or could, as the broker that answered sees it."""
    down = {broker.node_id for broker in metadata.brokers if not broker.alive}
    return {
        (topic.name, partition.partition)
        for topic in metadata.topics
        for partition in topic.partitions
        if (partition.leader is None or partition.leader in down)
        and not is_majority_alive(partition.replicas, down)
    }


async def answering(client: Client, metadata: MetadataResponse) -> list[DescribeBrokerResponse]:
    """What those brokers tell that answer at once, whoever is said to be down."""
    answers: list[DescribeBrokerResponse] = []

    async def ask(node_id: int) -> None:
        try:
            answers.append(await client.admin.describe_broker(node_id))
        except LogdError:
            return  # It does not answer.

    with anyio.move_on_after(DOUBTED_TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            for broker in metadata.brokers:
                tasks.start_soon(ask, broker.node_id)
    return answers


async def broker_news(client: Client, metadata: MetadataResponse) -> BrokerNews:
    """What the brokers that are alive tell of themselves."""
    names = {
        partition.group: f"{topic.name}/{partition.partition}"
        for topic in metadata.topics
        for partition in topic.partitions
    }
    damaged: list[str] = []
    events: list[EventRow] = []
    full: list[int] = []
    quotas: list[str] = []
    silent: list[tuple[int, str]] = []

    async def ask(node_id: int) -> None:
        try:
            broker = await client.admin.describe_broker(node_id, timeout_s=DESCRIBE_TIMEOUT_S)
        except LogdError as error:
            silent.append((node_id, str(error)))
            return
        if broker.disk_full:
            full.append(node_id)
        if broker.fullest_quota is not None and broker.fullest_quota.used > QUOTA_NEARLY_USED:
            quotas.append(quota_line(broker.fullest_quota))
        for replica in broker.replicas:
            if replica.reason:
                name = names.get(replica.group, "the metadata log")
                damaged.append(f"broker {node_id}, {name}: {replica.reason}")
        events.extend(
            EventRow(at_ms=event.at_ms, broker=node_id, level=event.level, text=event.text)
            for event in broker.events
        )

    async with anyio.create_task_group() as tasks:
        for broker in metadata.brokers:
            if broker.alive:
                tasks.start_soon(ask, broker.node_id)
    events.sort(key=lambda event: event.at_ms, reverse=True)
    told = sorted(damaged), events[:EVENTS_MAX], sorted(full), sorted(quotas)
    return BrokerNews(*told, silent=sorted(silent))


def quota_line(quota: QuotaInfo) -> str:
    """How much of a quota is used, for a person."""
    whose = f"namespace {quota.namespace}" if quota.namespace else "coordination"
    return f"{whose} has used {quota.used:.0%} of the quota of {quota.quota}"


async def partition_rows(
    client: Client, topics: Sequence[TopicInfo], metadata: MetadataResponse
) -> list[PartitionRow]:
    """Every partition of ``topics``."""
    partitions = [(topic.name, partition) for topic in topics for partition in topic.partitions]
    names = [(topic, partition.partition) for topic, partition in partitions]
    described = await describe_partitions(client, names, leaderless(metadata))
    return [
        partition_row(topic, partition, answer)
        for (topic, partition), answer in zip(partitions, described, strict=True)
    ]
