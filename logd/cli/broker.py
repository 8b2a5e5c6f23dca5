"""``logd broker``: the cluster's members, and how they leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from logd.cli.display import print_json, print_table, say
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    BROKER_ID,
    bootstrap_option,
    detach_option,
    output_option,
    throttle_option,
)

if TYPE_CHECKING:
    from logd.cli.picture import Picture
    from logd.cli.plans import SavedPlan
    from logd_client import Client

node_argument = click.argument("node", type=BROKER_ID, metavar="ID")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be moved.")


@click.group(cls=NounGroup)
def broker() -> None:
    """List, drain, resume, remove and replace brokers."""


@broker.command("list")
@bootstrap_option
@output_option
def list_brokers(bootstrap: str, output: str) -> None:
    """Every registered broker, alive or not."""
    from logd.cli.overview import BROKER_COLUMNS, broker_rows, cells
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap, needs_controller=False) as client:
            rows = broker_rows(await client.admin.describe_cluster())
        if output == "json":
            print_json(rows)
        else:
            print_table(BROKER_COLUMNS, [cells(row) for row in rows])

    run_async(fetch)


@broker.command("drain")
@node_argument
@throttle_option
@dry_run_option
@detach_option
@bootstrap_option
@output_option
def drain(
    node: int, throttle: int | None, dry_run: bool, detach: bool, bootstrap: str, output: str
) -> None:
    """Move everything off a broker, leadership included, and put nothing new on it."""
    from logd.cli.picture import take_picture
    from logd.cli.running_plans import make_way, run_plan
    from logd.cli.session import connected, run_async

    async def empty() -> None:
        async with connected(bootstrap) as client:
            picture = await take_picture(client, dead_are_lost=True)
            made = _plan_without(picture, node, f"drain broker {node}", throttle)
            if not dry_run and await make_way(client):
                picture = await take_picture(client, dead_are_lost=True)
                made = _plan_without(picture, node, f"drain broker {node}", throttle)
            await _check_and_show(client, made, output, dry_run=dry_run)
            if dry_run:
                return
            plan = await _take_out_of_service(client, picture, node, made, throttle)
            await run_plan(client, plan, output, detach=detach)
        if not detach:
            say(f"broker {node} is empty: `logd broker remove {node}` ends its membership, "
                f"`logd broker resume {node}` makes it available again")  # fmt: skip

    run_async(empty)


@broker.command("resume")
@node_argument
@bootstrap_option
@output_option
def resume(node: int, bootstrap: str, output: str) -> None:
    """Take a drain back.  What has left returns with the next rebalancing."""
    from logd.cli.session import connected, run_async

    async def make_available() -> None:
        async with connected(bootstrap) as client:
            changed = await client.admin.alter_broker(node, "resume")
        if output == "json":
            print_json(changed)
        else:
            click.echo(f"broker {node} takes replicas again; `logd rebalance run` gives it some")

    run_async(make_available)


@broker.command("remove")
@node_argument
@bootstrap_option
@output_option
def remove(node: int, bootstrap: str, output: str) -> None:
    """End a broker's membership for ever.  It must be empty: drain it first."""
    from logd.cli.session import connected, run_async

    async def end_membership() -> None:
        async with connected(bootstrap) as client:
            removed = await client.admin.alter_broker(node, "remove")
        if output == "json":
            print_json(removed)
        else:
            click.echo(f"broker {node} is no member any more; its process can be stopped")

    run_async(end_membership)


@broker.command("replace")
@node_argument
@click.option(
    "--with",
    "successor",
    type=BROKER_ID,
    help="The broker that takes over.  Default: all others share.",
)
@throttle_option
@dry_run_option
@bootstrap_option
@output_option
def replace(
    node: int,
    successor: int | None,
    throttle: int | None,
    dry_run: bool,
    bootstrap: str,
    output: str,
) -> None:
    """Give everything that a broker holds to others, and remove it.

    For a broker whose disk is lost: start another one under a new id with --join, then replace
    the old one with it.

    A broker that is alive is emptied first, and is no member afterwards either: stop its process
    then.  One that shall stay is drained instead.
    """
    from logd.cli.display import bytes_text
    from logd.cli.picture import take_picture
    from logd.cli.plans import end_incomplete, start_plan
    from logd.cli.running_plans import finish, follow, make_way
    from logd.cli.session import connected, require_alive, run_async

    if successor == node:
        raise click.UsageError(
            f"broker {node} cannot take its own place: a wiped disk comes back as another broker, "
            "under an id that was never used"
        )

    async def take_over() -> None:
        async with connected(bootstrap) as client:
            if successor is not None:
                await require_alive(client, successor)
            picture = await take_picture(client, dead_are_lost=True)
            purpose = f"replace broker {node}" + (f" with {successor}" if successor else "")
            made = _plan_without(picture, node, purpose, throttle, successor)
            is_alive = _say_if_alive(picture, node)
            if not dry_run and await make_way(client):
                picture = await take_picture(client, dead_are_lost=True)
                made = _plan_without(picture, node, purpose, throttle, successor)
            await _check_and_show(client, made, output, dry_run=dry_run)
            if dry_run:
                return
            plan = await _take_out_of_service(client, picture, node, made, throttle)
            if plan.moves:
                plan_id = await start_plan(client, plan)
                finish(await follow(client, plan_id, output), output, made)
            if made.stranded:
                if output == "json" and not made.moves:
                    print_json(made)
                say(f"broker {node} stays a member until it holds nothing: `logd broker remove "
                    f"{node}` ends its membership then")  # fmt: skip
                end_incomplete(made, output)
            removed = await client.admin.alter_broker(node, "remove")
            if output == "json" and not made.moves:
                print_json(removed)
        runs_on = "; its process runs on: stop it" if is_alive else ""
        say(f"broker {node} is replaced and removed ({bytes_text(made.bytes)} copied){runs_on}")

    run_async(take_over)


def _say_if_alive(picture: Picture, node: int) -> bool:
    """Whether a broker is alive that is to be removed: its number may have been mistyped."""
    is_alive = any(each.node == node and not each.is_dead for each in picture.brokers)
    if is_alive:
        say(
            f"broker {node} is alive: it is emptied, and then removed for ever; "
            f"`logd broker drain {node}` only empties it"
        )
    return is_alive


def _plan_without(
    picture: Picture, node: int, purpose: str, throttle: int | None, successor: int | None = None
) -> SavedPlan:
    """A plan after which ``node`` holds nothing; ``successor`` takes what it can."""
    from logd.errors import RebalanceConflictError, UnknownBrokerError
    from logd.metadata.rebalance.cluster import Goals
    from logd.metadata.rebalance.planner import explain, plan_only
    from logd.types import NodeId

    known = {broker.node: broker for broker in picture.brokers}
    if node not in known:
        raise UnknownBrokerError(f"no broker {node} in the cluster")
    if successor is not None and known[NodeId(successor)].is_draining:
        raise RebalanceConflictError(
            f"broker {successor} is draining: `logd broker resume {successor}` lets it take over"
        )
    goals = Goals(
        is_balancing=False,
        throttle_bytes_per_s=throttle or picture.rebalance.throttle_bytes_per_s,
    )
    brokers = [
        broker._replace(is_draining=broker.is_draining or broker.node == node)
        for broker in picture.brokers
    ]
    # Only what this command is about: what other brokers should not hold either stays.
    affected = [p for p in picture.partitions if node in p.replicas]
    groups = {p.group for p in affected}
    plan = plan_only(brokers, picture.partitions, groups, goals)
    if successor is not None:
        heir = NodeId(successor)
        after = {move.group: move.after for move in plan.moves}
        stays = {each.name for each in plan.stranded}
        after |= {
            p.group: tuple(heir if holder == node else holder for holder in p.replicas)
            for p in affected
            if heir not in p.replicas and p.name not in stays
        }
        plan = explain(brokers, picture.partitions, after, goals)._replace(
            unplaced=plan.unplaced, stranded=plan.stranded
        )
    return picture.saved(purpose, plan, goals.throttle_bytes_per_s)


async def _check_and_show(client: Client, plan: SavedPlan, output: str, *, dry_run: bool) -> None:
    """Refuse a plan that cannot be carried out; else tell people what it will do."""
    from logd.cli.plans import require_all_placed, require_room, show_plan

    require_all_placed(plan)
    if dry_run or (output != "json" and plan.moves):
        show_plan(plan, output)
    await require_room(client, plan)


async def _take_out_of_service(
    client: Client, picture: Picture, node: int, plan: SavedPlan, throttle: int | None
) -> SavedPlan:
    """Let nothing new come to ``node``; the plan, for the cluster as it is with that."""
    import msgspec

    from logd.cli.picture import require_none_running
    from logd.cli.running_plans import set_pace

    require_none_running(picture)
    await client.admin.alter_broker(node, "drain")
    await set_pace(client, throttle, None)
    version = (await client.admin.describe_rebalance()).layout_version
    return msgspec.structs.replace(plan, layout_version=version)
