"""A plan is run by a command: started, followed until it is over, and its end told.

The cluster carries it out, whether or not anybody looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import msgspec

from logd.cli.display import bytes_text, print_json, say
from logd.cli.moving import MoveBars
from logd.cli.picture import makes_way, take_picture
from logd.cli.plan_progress import (
    PlanProgress,
    look_until,
    names_of,
    plan_progress,
)
from logd.cli.plans import SavedPlan, end_incomplete, require_all_placed, show_plan, start_plan
from logd.errors import NotEnoughBrokersError, UnavailableError
from logd.metadata.moves import PLAN_IS_OVER
from logd.metadata.rebalance.cluster import Goals
from logd.metadata.rebalance.planner import plan_only
from logd.wording import count_of

if TYPE_CHECKING:
    from logd_client import Client


async def follow(client: Client, plan_id: int, output: str) -> PlanProgress:
    """Show how a plan goes on until it is over.  The plan does not need anybody to look.

    Raises:
        LogdError: nobody has answered for a while.
    """
    names = names_of(await client.admin.describe_cluster())
    with MoveBars(is_shown=output != "json") as bars:

        async def look() -> PlanProgress | None:
            plan = (await client.admin.describe_rebalance()).plan
            if plan is None or plan.plan_id != plan_id:
                raise UnavailableError(f"plan {plan_id} is not known to the broker asked")
            progress = await plan_progress(client, plan, names)
            bars.show(progress)
            return progress if progress.state in PLAN_IS_OVER else None

        return await look_until(look)


Tell = Callable[[object], None]
"""How a document is printed, by whom prints no other."""


def finish(
    progress: PlanProgress, output: str, made: SavedPlan | None = None, tell: Tell = print_json
) -> None:
    """Say how a plan ended; the exit code too.

    Args:
        made: the plan, by whom made it: what it left alone is told as well.

    Raises:
        Exit: it did not end as planned.
    """
    from logd.cli.exits import ExitCode

    if output == "json":
        if made is not None:
            progress = msgspec.structs.replace(progress, stranded=made.stranded)
        tell(progress)
    else:
        click.echo(f"plan {progress.plan_id} ({progress.purpose}) is {progress.state}: "
                   + progress.moves_text("move"))  # fmt: skip
    if progress.state == "cancelled" or 0 < progress.moves == progress.cancelled:
        raise click.exceptions.Exit(ExitCode.FAILED)
    if progress.skipped or progress.cancelled:
        raise click.exceptions.Exit(ExitCode.DEGRADED)


async def run_plan(
    client: Client,
    plan: SavedPlan,
    output: str,
    *,
    detach: bool,
    shows: bool = False,
    tell: Tell = print_json,
) -> None:
    """Start a plan and follow it.

    Args:
        shows: what would be moved, once that has not been refused.

    Raises:
        Exit: it did not end as planned, or left partitions alone.
    """
    if not plan.moves:
        if output == "json":
            tell(plan)
        else:
            click.echo("nothing to move")
        end_incomplete(plan, output)
        return
    plan_id = await start_plan(client, plan)
    if shows and output != "json":
        show_plan(plan, output)
    if detach:
        shown = {
            "plan_id": plan_id,
            "moves": len(plan.moves),
            "bytes": plan.bytes,
            "stranded": plan.stranded,
        }
        if output == "json":
            tell(shown)
        else:
            moves = count_of(len(plan.moves), "move")
            click.echo(f"plan {plan_id} runs: {moves}, {bytes_text(plan.bytes)}")
        end_incomplete(plan, output)
        return
    if output != "json":
        say(f"plan {plan_id} runs in the cluster, also without this command; Ctrl-C ends watching, "
            "`logd rebalance cancel` ends the plan")  # fmt: skip
    finish(await follow(client, plan_id, output), output, plan, tell)
    end_incomplete(plan, output)


async def make_way(client: Client) -> bool:
    """End a plan that the cluster made by itself: what a person wants goes before it.

    A plan is made afterwards: what is taken back changes the cluster that it is for.  One that the
    cluster begins meanwhile makes way when the plan is started.

    Returns:
        Whether there was one.

    Raises:
        RebalanceConflictError: it is one that makes way for nothing.
        LogdError: nobody has answered for a while.
    """
    plan = (await client.admin.describe_rebalance()).plan
    if plan is None or not makes_way(plan):
        return False
    plan_id = plan.plan_id
    say(f"plan {plan_id} ({plan.purpose}) makes way: what is under way of it is taken back")
    await client.admin.cancel_plan(plan_id, gives_way=True)

    async def is_over() -> bool | None:
        now = (await client.admin.describe_rebalance()).plan
        over = now is not None and (now.plan_id > plan_id or now.state in PLAN_IS_OVER)
        return over or None

    return await look_until(is_over)


async def set_pace(client: Client, throttle: int | None, concurrency: int | None) -> None:
    """Change throttle and concurrency if they are given."""
    if throttle is not None or concurrency is not None:
        await client.admin.set_rebalancing(throttle_bytes_per_s=throttle, concurrency=concurrency)


async def set_replicas(
    client: Client, topic: str, count: int, output: str, tell: Tell = print_json
) -> None:
    """Give every partition of ``topic`` as many replicas.

    Raises:
        UnknownTopicError: there is no such topic.
        NotEnoughBrokersError: there are fewer brokers.
    """
    await client.admin.describe_topic(topic)
    await make_way(client)
    picture = await take_picture(
        client, else_do="replace it first (`logd broker replace` with its id)"
    )
    able = sum(broker.is_target for broker in picture.brokers)
    if count > able:
        raise NotEnoughBrokersError(
            f"{count} replicas need as many brokers that are alive and not draining, found {able}"
        )
    partitions = [
        partition._replace(replica_count=count) if partition.name.topic == topic else partition
        for partition in picture.partitions
    ]
    groups = {partition.group for partition in partitions if partition.name.topic == topic}
    goals = Goals(is_balancing=False, throttle_bytes_per_s=picture.rebalance.throttle_bytes_per_s)
    plan = plan_only(picture.brokers, partitions, groups, goals)
    made = picture.saved(
        f"{count_of(count, 'replica')} of {topic}", plan, goals.throttle_bytes_per_s
    )
    require_all_placed(made)
    await run_plan(client, made, output, detach=False, shows=True, tell=tell)
