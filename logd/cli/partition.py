"""``logd partition``: one log of a topic, its replicas and its leader."""

from __future__ import annotations

import click

from logd.cli.display import print_facts, print_json, print_table
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    BROKER_ID,
    BROKER_LIST,
    PARTITION_NAME,
    bootstrap_option,
    detach_option,
    output_option,
    throttle_option,
)


@click.group(cls=NounGroup)
def partition() -> None:
    """List, describe and move partitions and their leaders."""


@partition.command("list")
@click.argument("topic", required=False)
@bootstrap_option
@output_option
def list_partitions(topic: str | None, bootstrap: str, output: str) -> None:
    """Every partition, or those of TOPIC."""
    from logd.cli.overview import PARTITION_COLUMNS, cells, partition_rows
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            topics = [] if topic is None else [await client.admin.describe_topic(topic)]
            metadata = await client.admin.describe_cluster()
            if topic is None:
                topics = sorted(metadata.topics, key=lambda each: each.name)
            rows = await partition_rows(client, topics, metadata)
        if output == "json":
            print_json(rows)
        else:
            print_table(PARTITION_COLUMNS, [cells(row, PARTITION_COLUMNS) for row in rows])

    run_async(fetch)


@partition.command("describe")
@click.argument("name", type=PARTITION_NAME, metavar="TOPIC/N")
@bootstrap_option
@output_option
def describe_partition(name: tuple[str, int], bootstrap: str, output: str) -> None:
    """One partition: leader, term, replicas, offsets.

    Without a leader that answers it prints the replicas, and ends with exit code 5.
    """
    from logd.cli.overview import PARTITION_FACTS, PartitionRow, cells, described_row, partition_row
    from logd.cli.session import connected, require_partition, run_async
    from logd.errors import LogdError

    def show(row: PartitionRow) -> None:
        if output == "json":
            print_json(row)
        else:
            print_facts(list(zip(PARTITION_FACTS, cells(row), strict=True)))

    async def fetch() -> None:
        topic, number = name
        async with connected(bootstrap) as client:
            try:
                described = await client.admin.describe_partition(topic, number)
            except LogdError as error:
                if error.retriable:  # Who could answer is what matters then.
                    show(partition_row(topic, await require_partition(client, topic, number), None))
                raise
            show(described_row(topic, number, described))

    run_async(fetch)


@partition.command("move")
@click.argument("name", type=PARTITION_NAME, metavar="TOPIC/N")
@click.option(
    "--to",
    "targets",
    type=BROKER_LIST,
    metavar="ID,ID,…",
    help="The brokers that shall hold it, preferred leader first.",
)
@click.option(
    "--cancel",
    is_flag=True,
    help="Take back the move that is under way, of whichever plan, unless it has arrived.",
)
@throttle_option
@detach_option
@bootstrap_option
@output_option
def move(
    name: tuple[str, int],
    targets: tuple[int, ...] | None,
    cancel: bool,
    throttle: int | None,
    detach: bool,
    bootstrap: str,
    output: str,
) -> None:
    """Move a partition to other brokers, while it is written and read."""
    if cancel and (targets is not None or throttle is not None):
        raise click.UsageError(
            "--cancel takes a move back: it goes with neither --to nor --throttle"
        )
    if not cancel and targets is None:
        raise click.UsageError("nothing to do: give --to, or --cancel")
    from logd.cli.cancelling import cancel_move
    from logd.cli.plans import move_plan
    from logd.cli.running_plans import make_way, run_plan, set_pace
    from logd.cli.session import (
        connected,
        require_alive,
        require_majority_alive,
        require_partition,
        run_async,
    )

    async def carry_out() -> None:
        topic, number = name
        async with connected(bootstrap) as client:
            if targets is None:
                await cancel_move(client, topic, number, output, detach=detach)
                return
            info = await require_partition(client, topic, number)
            for node in targets:
                if node not in info.replicas:
                    await require_alive(client, node)
            await require_majority_alive(client, targets, f"{topic}/{number}")
            await make_way(client)
            made = await move_plan(client, topic, number, targets)
            await set_pace(client, throttle, None)
            await run_plan(client, made, output, detach=detach)

    run_async(carry_out)


@partition.command("transfer-leader")
@click.argument("name", type=PARTITION_NAME, metavar="TOPIC/N")
@click.option("--to", "target", type=BROKER_ID, help="Default: the most caught-up.")
@bootstrap_option
@output_option
def transfer_leader(name: tuple[str, int], target: int | None, bootstrap: str, output: str) -> None:
    """Hand the leadership of a partition to another replica."""
    from logd.cli.session import connected, run_async

    async def transfer() -> None:
        topic, number = name
        async with connected(bootstrap) as client:
            leader = await client.admin.transfer_leader(topic, number, target)
        if output == "json":
            print_json({"topic": topic, "partition": number, "leader": leader})
        else:
            click.echo(f"{topic}/{number} is led by broker {leader}")

    run_async(transfer)
