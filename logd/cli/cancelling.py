"""One move of a plan is cancelled on the command line, and followed back to where it began.

The others of its plan go on.  Only the partition's leader can take a move back, and it may be too
late for that: what holds in the end is what the cluster says then, so that is asked for and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from logd.cli.display import print_json
from logd.cli.plan_progress import look_until
from logd.cli.session import require_partition
from logd.errors import RebalanceConflictError
from logd.metadata.commands import CancelMove
from logd.metadata.features import check_level
from logd.types import GroupId
from logd.wording import listed

if TYPE_CHECKING:
    from logd.wire.messages import PartitionInfo, PlanInfo, PlannedMoveInfo
    from logd_client import Client


async def cancel_move(
    client: Client, topic: str, partition: int, output: str, *, detach: bool
) -> None:
    """Take a partition's move back, or out of its plan if it has not begun.

    Raises:
        UnknownTopicError, InvalidPartitionError: there is no such partition.
        RebalanceConflictError: it is not being moved, or has arrived.
        UnsupportedVersionError: the cluster is at a feature level that does not have this.
    """
    group = (await require_partition(client, topic, partition)).group
    plan = (await client.admin.describe_rebalance()).plan
    move = None if plan is None else _move_of(plan, group)
    if plan is None or move is None or move.state not in ("pending", "running"):
        found = await require_partition(client, topic, partition)
        if found.target is None:
            raise RebalanceConflictError(f"{topic}/{partition} is not being moved")
        _tell(topic, partition, found, found.target, output)  # Its plan has gone on without it.
        return
    level = (await client.admin.describe_cluster()).feature_level
    check_level(CancelMove(group=GroupId(group), plan_id=plan.plan_id), level)
    state = await client.admin.cancel_move(plan.plan_id, group)
    if state == "running" and not detach:
        await _wait_until_over(client, plan.plan_id, group)
    found = await require_partition(client, topic, partition)
    if found.replicas == move.target:
        raise RebalanceConflictError(
            f"too late: {topic}/{partition} has arrived on {listed(found.replicas)}; `logd "
            f"partition move {topic}/{partition} --to {listed(move.before)}` moves it back"
        )
    _tell(topic, partition, found, move.target, output)


async def _wait_until_over(client: Client, plan_id: int, group: int) -> None:
    """Wait until a move that is being taken back is under way no more.

    Raises:
        LogdError: nobody has answered for a while.
    """

    async def is_over() -> bool | None:
        plan = (await client.admin.describe_rebalance()).plan
        if plan is not None and plan.plan_id > plan_id:
            return True  # Another plan has come in the place of one that is over.
        move = None if plan is None or plan.plan_id < plan_id else _move_of(plan, group)
        return (move is not None and move.state not in ("pending", "running")) or None

    await look_until(is_over)


def _tell(
    topic: str, partition: int, found: PartitionInfo, target: Sequence[int], output: str
) -> None:
    if output == "json":
        print_json(
            {
                "topic": topic,
                "partition": partition,
                "state": "cancelled" if found.target is None else "cancelling",
                "replicas": found.replicas,
                "target": found.target,
            }
        )
    elif found.target is None:
        click.echo(f"{topic}/{partition} stays on {listed(found.replicas)}")
    else:
        click.echo(
            f"the move of {topic}/{partition} to {listed(target)} is cancelled: its leader takes "
            f"it back to {listed(found.replicas)}, unless it has arrived"
        )


def _move_of(plan: PlanInfo, group: int) -> PlannedMoveInfo | None:
    return next((move for move in plan.moves if move.group == group), None)
