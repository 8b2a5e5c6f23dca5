"""``logd rebalance``: plan, run, watch, pace, cancel and undo moves of partitions."""

from __future__ import annotations

from pathlib import Path

import click

from logd.cli.display import print_facts, print_json, say
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    BYTE_RATE,
    IntegerType,
    NumberType,
    bootstrap_option,
    detach_option,
    output_option,
    throttle_option,
)
from logd.metadata.moves import CONCURRENCY_MAX
from logd.metadata.rebalance.cluster import TOLERANCE_DEFAULT
from logd.wording import count_of, listed

concurrency_option = click.option(
    "--concurrency",
    type=IntegerType(1, CONCURRENCY_MAX),
    help="Moves under way at once.  Default: as it is set.",
)
replace_dead_option = click.option(
    "--replace-dead", is_flag=True, help="Plan as if brokers that are down never came back."
)


@click.group(cls=NounGroup)
def rebalance() -> None:
    """Even out what the brokers hold."""


@rebalance.command("plan")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write it to FILE.")
@click.option(
    "--tolerance",
    type=NumberType(0, 1),
    default=TOLERANCE_DEFAULT,
    show_default=True,
    help="How far from even a broker may be.",
)
@click.option(
    "--throttle",
    type=BYTE_RATE,
    metavar="RATE",
    help="Tell the times that it takes at this rate: for example 50MB/s.  Default: as it is set.",
)
@replace_dead_option
@bootstrap_option
@output_option
def plan(
    save: Path | None,
    tolerance: float,
    throttle: int | None,
    replace_dead: bool,
    bootstrap: str,
    output: str,
) -> None:
    """Say what would be moved, why, and what comes of it.  Moves nothing."""
    from logd.cli.picture import take_picture
    from logd.cli.plans import save_plan, show_plan
    from logd.cli.session import connected, run_async
    from logd.metadata.rebalance.cluster import Goals

    async def make() -> None:
        async with connected(bootstrap) as client:
            picture = await take_picture(client, dead_are_lost=replace_dead)
        goals = Goals(
            tolerance=tolerance,
            throttle_bytes_per_s=throttle or picture.rebalance.throttle_bytes_per_s,
        )
        made = picture.plan(goals)
        show_plan(made, output)
        if save is not None:
            save_plan(made, save)
            say(f"saved; run it with: logd rebalance run --plan {save}")

    run_async(make)


@rebalance.command("run")
@click.option(
    "--plan",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A plan that was saved.  Refused if the cluster has changed since.",
)
@throttle_option
@concurrency_option
@replace_dead_option
@detach_option
@bootstrap_option
@output_option
def run(
    file: Path | None,
    throttle: int | None,
    concurrency: int | None,
    replace_dead: bool,
    detach: bool,
    bootstrap: str,
    output: str,
) -> None:
    """Carry out a plan.  The cluster goes on with it if this command ends."""
    from logd.cli.picture import take_picture
    from logd.cli.plans import load_plan
    from logd.cli.running_plans import make_way, run_plan, set_pace
    from logd.cli.session import connected, run_async
    from logd.metadata.rebalance.cluster import Goals

    async def carry_out() -> None:
        async with connected(bootstrap) as client:
            if file is None:
                await make_way(client)
                picture = await take_picture(client, dead_are_lost=replace_dead)
                rate = throttle or picture.rebalance.throttle_bytes_per_s
                made = picture.plan(Goals(throttle_bytes_per_s=rate))
            else:
                made = load_plan(file, (await client.admin.describe_cluster()).cluster_id)
            await set_pace(client, throttle, concurrency)
            await run_plan(client, made, output, detach=detach, shows=file is None)

    run_async(carry_out)


@rebalance.command("status")
@click.option("--watch", is_flag=True, help="Follow the plan until it is over.")
@bootstrap_option
@output_option
def status(watch: bool, bootstrap: str, output: str) -> None:
    """The plan that runs, or the last one, and how moves are paced."""
    from logd.cli.display import bytes_text
    from logd.cli.plan_progress import names_of, plan_progress
    from logd.cli.running_plans import finish, follow
    from logd.cli.session import connected, run_async

    async def show() -> None:
        async with connected(bootstrap) as client:
            found = await client.admin.describe_rebalance()
            if watch and found.plan is not None:
                finish(await follow(client, found.plan.plan_id, output), output)
                return
            names = names_of(await client.admin.describe_cluster())
            progress = None
            if found.plan is not None:
                progress = await plan_progress(client, found.plan, names)
        if output == "json":
            print_json(
                {
                    "throttle_bytes_per_s": found.throttle_bytes_per_s,
                    "concurrency": found.concurrency,
                    "autonomous": found.autonomous,
                    "autonomy": found.autonomy,
                    "plan": progress,
                }
            )
            return
        facts: list[tuple[str, object]] = [
            ("throttle", f"{bytes_text(found.throttle_bytes_per_s)}/s"),
            ("concurrency", found.concurrency),
            ("autonomy", "on" if found.autonomous else "off"),
        ]
        if progress is not None:
            facts += [
                ("plan", f"{progress.plan_id} ({progress.purpose}): {progress.state}"),
                ("moves", progress.moves_text()),
                (
                    "bytes",
                    f"{bytes_text(progress.bytes_done)} of {bytes_text(progress.bytes_total)}",
                ),
            ]
        print_facts(facts)
        for move in progress.running if progress is not None else []:
            click.echo(
                f"  {move.partition} to {listed(move.target)}: "
                f"{bytes_text(move.bytes_done)} of {bytes_text(move.bytes_total)}"
            )
        for reason in progress.waiting if progress is not None else []:
            click.echo(f"  {reason}")
        for note in found.autonomy:
            click.echo(f"  {note}")

    run_async(show)


@rebalance.command("set")
@throttle_option
@concurrency_option
@click.option("--autonomy", type=click.Choice(["on", "off"]), help="Whether dead brokers are "
              "replaced, and loads evened out, without a command.")  # fmt: skip
@bootstrap_option
@output_option
def set_rebalancing(
    throttle: int | None,
    concurrency: int | None,
    autonomy: str | None,
    bootstrap: str,
    output: str,
) -> None:
    """Change the pace of moves, also of those under way."""
    if throttle is None and concurrency is None and autonomy is None:
        raise click.UsageError("nothing to set: give --throttle, --concurrency or --autonomy")
    from logd.cli.display import bytes_text
    from logd.cli.session import connected, run_async

    async def change() -> None:
        async with connected(bootstrap) as client:
            now = await client.admin.set_rebalancing(
                throttle_bytes_per_s=throttle,
                concurrency=concurrency,
                autonomous=None if autonomy is None else autonomy == "on",
            )
        if output == "json":
            print_json(now)
        else:
            click.echo(
                f"throttle {bytes_text(now.throttle_bytes_per_s)}/s, "
                f"{count_of(now.concurrency, 'move')} at once, "
                f"autonomy {'on' if now.autonomous else 'off'}"
            )

    run_async(change)


@rebalance.command("cancel")
@bootstrap_option
@output_option
def cancel(bootstrap: str, output: str) -> None:
    """Begin no more moves; take back those under way, unless they have arrived."""
    from logd.cli.running_plans import follow
    from logd.cli.session import connected, run_async
    from logd.errors import RebalanceConflictError

    async def stop() -> None:
        async with connected(bootstrap) as client:
            plan = (await client.admin.describe_rebalance()).plan
            if plan is None or plan.state in ("done", "cancelled"):
                raise RebalanceConflictError("no plan is running")
            await client.admin.cancel_plan(plan.plan_id)
            progress = await follow(client, plan.plan_id, output)
        if output == "json":
            print_json(progress)
        else:
            click.echo(
                f"plan {progress.plan_id} is {progress.state}: "
                f"{count_of(progress.done, 'move')} done, {progress.cancelled} not"
            )

    run_async(stop)


@rebalance.command("rollback")
@throttle_option
@concurrency_option
@detach_option
@bootstrap_option
@output_option
def rollback(
    throttle: int | None, concurrency: int | None, detach: bool, bootstrap: str, output: str
) -> None:
    """Move back what the last plan has moved, last things first."""
    from logd.cli.plans import rollback_plan
    from logd.cli.running_plans import run_plan, set_pace
    from logd.cli.session import connected, run_async
    from logd.errors import RebalanceConflictError

    async def undo() -> None:
        async with connected(bootstrap) as client:
            found = await client.admin.describe_rebalance()
            plan = found.plan
            if plan is None or plan.state not in ("done", "cancelled"):
                raise RebalanceConflictError(
                    "there is no plan to undo"
                    if plan is None
                    else "the plan is not over: cancel it"
                )
            rate = throttle or found.throttle_bytes_per_s
            reverse = rollback_plan(plan, found.layout_version, rate)
            await set_pace(client, throttle, concurrency)
            await run_plan(client, reverse, output, detach=detach)

    run_async(undo)
