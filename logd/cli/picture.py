"""The cluster as a plan sees it, and the plan that is made from that.

The planner is a pure function and runs here, not on a broker: planning a large cluster takes
seconds of processor time that nobody who waits for records should pay.  What it must know it asks
the brokers: who they are, what they hold, how large it is and how fast it grows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from logd.cli.plans import (
    SavedMove,
    SavedPlan,
    SavedStranded,
    free_for_plans,
)
from logd.errors import LogdError, RebalanceConflictError, UnavailableError
from logd.metadata.moves import BY_ITSELF
from logd.metadata.rebalance.cluster import DISK_SHARE_MAX, BrokerLoad, Goals, PartitionLoad
from logd.metadata.rebalance.planner import Balance, Move, RebalancePlan, make_plan
from logd.types import GroupId, NodeId, TopicPartition
from logd.wording import are, named, them

if TYPE_CHECKING:
    from logd.wire.messages import (
        DescribeBrokerResponse,
        DescribeRebalanceResponse,
        MetadataResponse,
        PlanInfo,
    )
    from logd_client import Client

RATE_SAMPLE_S: Final = 1.0
"""Between two looks at what was appended: the rates that the traffic balance is made of."""


class Picture:
    """The cluster as a plan sees it."""

    def __init__(
        self,
        metadata: MetadataResponse,
        rebalance: DescribeRebalanceResponse,
        brokers: list[BrokerLoad],
        partitions: list[PartitionLoad],
    ) -> None:
        self.metadata = metadata
        self.rebalance = rebalance
        self.brokers = brokers
        self.partitions = partitions

    def plan(self, goals: Goals) -> SavedPlan:
        """Plan a rebalance for ``goals``, ready to be shown, saved or started."""
        plan = make_plan(self.brokers, self.partitions, goals)
        return self.saved("rebalance", plan, goals.throttle_bytes_per_s)

    def saved(self, purpose: str, plan: RebalancePlan, throttle_bytes_per_s: int) -> SavedPlan:
        return SavedPlan(
            cluster_id=self.metadata.cluster_id,
            layout_version=self.rebalance.layout_version,
            purpose=purpose,
            bytes=plan.bytes,
            estimated_s=round(plan.estimated_s, 3),
            throttle_bytes_per_s=throttle_bytes_per_s,
            balance_before=_rounded(plan.balance_before),
            balance_after=_rounded(plan.balance_after),
            left_out=plan.left_out,
            unplaced=[str(name) for name in plan.unplaced],
            stranded=[
                SavedStranded(
                    topic=each.name.topic,
                    partition=each.name.partition,
                    replicas=list(each.replicas),
                    down=list(each.dead),
                )
                for each in plan.stranded
            ],
            moves=[_saved_move(move) for move in plan.moves],
        )


def _saved_move(move: Move) -> SavedMove:
    return SavedMove(
        topic=move.name.topic,
        partition=move.name.partition,
        group=move.group,
        before=list(move.before),
        after=list(move.after),
        reason=move.reason.value,
        detail=move.detail,
        bytes=move.bytes,
        estimated_s=round(move.estimated_s, 3),
        balance_before=_rounded(move.balance_before),
        balance_after=_rounded(move.balance_after),
    )


def _rounded(balance: Balance) -> list[float]:
    return [round(share, 4) for share in balance]


async def take_picture(
    client: Client,
    *,
    dead_are_lost: bool = False,
    else_do: str = "plan without it (--replace-dead)",
) -> Picture:
    """Ask every broker what it holds.

    Args:
        dead_are_lost: plan as if brokers that are not alive never came back.
        else_do: what to advise whoever does not want to wait for one of those.

    Raises:
        UnavailableError: a broker is not alive, and may come back with what it holds.
    """
    rebalance = await client.admin.describe_rebalance()
    metadata = await client.admin.describe_cluster()
    missing = [broker.node_id for broker in metadata.brokers if not broker.alive]
    if missing and not dead_are_lost:
        raise UnavailableError(
            f"{named('broker', missing)} {are(len(missing))} not alive: "
            f"wait for {them(len(missing))}, or {else_do}"
        )
    first = await _describe_all(client, metadata)
    await anyio.sleep(RATE_SAMPLE_S)
    second = await _describe_all(client, metadata)
    sizes, rates = _weights(first, second)
    held: defaultdict[int, set[int]] = defaultdict(set)
    for topic in metadata.topics:
        for partition in topic.partitions:
            for node in partition.replicas:
                held[node].add(partition.group)
    brokers = [
        BrokerLoad(
            NodeId(broker.node_id),
            broker.failure_domain,
            broker.rack,
            is_draining=broker.draining,
            is_dead=not broker.alive,
            bytes_max=_room(second.get(broker.node_id), held[broker.node_id]),
        )
        for broker in metadata.brokers
    ]
    partitions = [
        PartitionLoad(
            GroupId(partition.group),
            TopicPartition(topic.name, partition.partition),
            tuple(map(NodeId, partition.replicas)),
            sizes.get(partition.group, 0),
            rates.get(partition.group, 0),
        )
        for topic in metadata.topics
        for partition in topic.partitions
    ]
    return Picture(metadata, rebalance, brokers, partitions)


async def _describe_all(
    client: Client, metadata: MetadataResponse
) -> dict[int, DescribeBrokerResponse]:
    found: dict[int, DescribeBrokerResponse] = {}

    async def ask(node_id: int) -> None:
        with suppress(LogdError):  # Its partitions are then weighed by their other replicas.
            found[node_id] = await client.admin.describe_broker(node_id)

    async with anyio.create_task_group() as tasks:
        for broker in metadata.brokers:
            if broker.alive:
                tasks.start_soon(ask, broker.node_id)
    return found


def _weights(
    first: dict[int, DescribeBrokerResponse], second: dict[int, DescribeBrokerResponse]
) -> tuple[dict[int, int], dict[int, int]]:
    """Bytes and bytes per second of each group."""
    before = {
        (node, replica.group): replica.bytes_in
        for node, answer in first.items()
        for replica in answer.replicas
    }
    sizes: dict[int, int] = {}
    rates: dict[int, int] = {}
    for node, answer in second.items():
        for replica in answer.replicas:
            sizes[replica.group] = max(sizes.get(replica.group, 0), replica.size_bytes)
            grown = replica.bytes_in - before.get((node, replica.group), replica.bytes_in)
            rates[replica.group] = max(rates.get(replica.group, 0), grown)
    return sizes, rates


def _room(answer: DescribeBrokerResponse | None, held: Collection[int]) -> int | None:
    """Bytes of partitions that a broker may hold; None: it does not say.

    Args:
        held: the groups that count as its own; what else is there takes room.
    """
    if answer is None:
        return None
    # As in the cluster's own plans: with such a disk it keeps what it holds, and gets no more.
    is_unfit = answer.disk_full or answer.disk_failing
    free = 0 if is_unfit else free_for_plans(answer)
    if not (free or is_unfit):
        return None
    held_bytes = sum(each.size_bytes for each in answer.replicas if each.group in held)
    return held_bytes + int(free * DISK_SHARE_MAX)


def makes_way(plan: PlanInfo) -> bool:
    """Whether nobody has asked for it, so that it is no hindrance to what a person wants."""
    return plan.purpose.startswith(BY_ITSELF) and plan.state == "running"


def require_none_running(picture: Picture) -> None:
    """Refuse while another plan is carried out that somebody has asked for.

    Raises:
        RebalanceConflictError: says which one, and how far it is.
    """
    plan = picture.rebalance.plan
    if plan is not None and plan.state in ("running", "cancelling") and not makes_way(plan):
        done = sum(move.state == "done" for move in plan.moves)
        raise RebalanceConflictError(
            f"plan {plan.plan_id} ({plan.purpose}) is {plan.state}, {done} of {plan.move_count} "
            "moves are done: wait for it (`logd rebalance status --watch`), or cancel it "
            "(`logd rebalance cancel`)"
        )
