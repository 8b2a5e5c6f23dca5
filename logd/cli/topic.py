"""``logd topic``: create, list, describe, alter, trim, delete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from logd.cli.display import print_facts, print_json, print_table, say
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    SETTING,
    TOPIC_OR_PARTITION,
    IntegerType,
    bootstrap_option,
    output_option,
)
from logd.cli.start import FromOffset, parse_place
from logd.cli.streams import confirm, is_typed
from logd.errors import InvalidPartitionError, LogdError, UsageError
from logd.limits import PARTITIONS_PER_TOPIC_MAX, REPLICAS_MAX
from logd.metadata.topic_config import OPTIONS
from logd.wording import count_of, listed

if TYPE_CHECKING:
    from logd.wire.messages import TopicInfo
    from logd_client import Client


@click.group(cls=NounGroup)
def topic() -> None:
    """Create, list, describe, alter, trim, delete topics."""


@topic.command("create")
@click.argument("name")
@click.option(
    "--partitions",
    type=IntegerType(1, PARTITIONS_PER_TOPIC_MAX),
    default=1,
    show_default=True,
    help="Logs that the topic is divided into; order is kept within each.",
)
@click.option(
    "--replicas",
    type=IntegerType(1, REPLICAS_MAX),
    help="Copies of each partition.  Default: 3, or as many as there are brokers.",
)
@click.option(
    "--config",
    "settings",
    type=SETTING,
    multiple=True,
    help=f"A topic option: {', '.join(OPTIONS)}.  May be repeated.",
)
@bootstrap_option
@output_option
def create(
    name: str,
    partitions: int,
    replicas: int | None,
    settings: tuple[tuple[str, str], ...],
    bootstrap: str,
    output: str,
) -> None:
    """Create a topic."""
    from logd.cli.session import connected, run_async

    async def create_topic() -> None:
        async with connected(bootstrap) as client:
            with _count_is_an_argument():
                created = await client.admin.create_topic(
                    name, partitions=partitions, replicas=replicas, config=dict(settings)
                )
        if output == "json":
            print_json(created)
        else:
            partition_count, copies = len(created.partitions), len(created.partitions[0].replicas)
            click.echo(
                f"created topic {created.name}: {count_of(partition_count, 'partition')}, "
                f"{count_of(copies, 'replica')} each"
            )
        told = told_without_leaders(created)
        if told:
            say(told)

    run_async(create_topic)


def told_without_leaders(created: TopicInfo) -> str:
    """What there is to say of a new topic that cannot be used everywhere yet; mostly nothing."""
    without = [one for one in created.partitions if one.leader is None]
    if not without:
        return ""
    first = without[0]
    return (
        f"{count_of(len(without), 'partition')} of it without a leader yet, such as "
        f"{created.name}/{first.partition} on brokers {listed(first.replicas)}: "
        "`logd cluster status` says whether a broker is missing"
    )


@topic.command("list")
@bootstrap_option
@output_option
def list_topics(bootstrap: str, output: str) -> None:
    """Every topic.

    Where partitions have not all as many replicas, JSON has the smallest number.
    """
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            topics = await client.admin.list_topics()
        if output == "json":
            rows = [
                {
                    "name": one.name,
                    "partitions": len(one.partitions),
                    "replicas": min(replica_counts(one)),
                    "config": one.config,
                }
                for one in topics
            ]
            print_json(rows)
        else:
            columns = ("name", "partitions", "replicas", "config")
            shown = [
                (one.name, len(one.partitions), replicas_shown(one), _settings_text(one.config))
                for one in topics
            ]
            print_table(columns, shown, empty="no topics", whole=columns)

    run_async(fetch)


def replica_counts(topic: TopicInfo) -> list[int]:
    """Of each partition: they differ while replicas are added, and where one was moved by hand."""
    return [len(partition.replicas) for partition in topic.partitions]


def replicas_shown(topic: TopicInfo) -> int | str:
    """How many replicas the partitions have."""
    counts = replica_counts(topic)
    least, most = min(counts), max(counts)
    return least if least == most else f"{least} to {most}"


@topic.command("describe")
@click.argument("name")
@bootstrap_option
@output_option
def describe(name: str, bootstrap: str, output: str) -> None:
    """One topic with all its partitions."""
    from logd.cli.overview import PARTITION_COLUMNS, cells, partition_rows
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            info = await client.admin.describe_topic(name)
            rows = await partition_rows(client, [info], await client.admin.describe_cluster())
        if output == "json":
            print_json(
                {
                    "name": info.name,
                    "topic_id": info.topic_id,
                    "config": info.config,
                    "partitions": rows,
                }
            )
            return
        print_facts(
            [
                ("topic", info.name),
                ("id", info.topic_id),
                ("config", _settings_text(info.config) or None),
            ]
        )
        click.echo()
        columns = PARTITION_COLUMNS[1:]
        print_table(columns, [cells(row, columns) for row in rows])

    run_async(fetch)


@topic.command("alter")
@click.argument("name")
@click.option("--config", "settings", type=SETTING, multiple=True, help="Set a topic option.")
@click.option("--reset", "resets", multiple=True, metavar="NAME", help="Back to its default.")
@click.option(
    "--partitions",
    type=IntegerType(1, PARTITIONS_PER_TOPIC_MAX),
    help="Add partitions, up to this number.  Keys then go to other ones than before.",
)
@click.option(
    "--replicas",
    type=IntegerType(1, REPLICAS_MAX),
    help="Copies of each partition; new ones are built like any move.",
)
@bootstrap_option
@output_option
def alter(
    name: str,
    settings: tuple[tuple[str, str], ...],
    resets: tuple[str, ...],
    partitions: int | None,
    replicas: int | None,
    bootstrap: str,
    output: str,
) -> None:
    """Change a topic's options, partitions or replicas.

    With --output json it prints one document: the topic, or the plan that gives it other
    replicas, or with both the topic and in it that `plan`.
    """
    changes: dict[str, str | None] = {**dict(settings), **dict.fromkeys(resets)}
    if not changes and partitions is None and replicas is None:
        raise click.UsageError(
            "nothing to change: give --config NAME=VALUE, --reset NAME, --partitions or --replicas"
        )
    both = sorted(dict(settings).keys() & set(resets))
    if both:
        raise click.UsageError(f"both set and reset: {', '.join(both)}")

    from logd.cli.running_plans import set_replicas
    from logd.cli.session import connected, run_async

    async def alter_topic() -> None:
        altered = None
        async with connected(bootstrap) as client:
            if changes or partitions is not None:
                with _count_is_an_argument():
                    altered = await client.admin.alter_topic(name, changes, partitions=partitions)
                if output != "json":
                    text = _settings_text(altered.config) or "all defaults"
                    click.echo(f"topic {altered.name}: {text}")
                elif replicas is None:
                    print_json(altered)
            if partitions is not None:
                say(
                    f"{name} has {count_of(partitions, 'partition')}: a key may go to another one "
                    "than before, so its older and newer records are in order only among themselves"
                )
            if replicas is not None and altered is None:
                await set_replicas(client, name, replicas, output)
            elif replicas is not None and altered is not None:
                await set_replicas_too(client, altered, replicas, output)

    run_async(alter_topic)


async def set_replicas_too(client: Client, altered: TopicInfo, count: int, output: str) -> None:
    """What else was altered is told in the same document, even if this fails.

    The topic in it is as the plan has left it; as it was before, if nobody answers any more.
    """
    from msgspec.structs import asdict

    from logd.cli.running_plans import set_replicas

    plans: list[object] = []
    failure: LogdError | click.exceptions.Exit | None = None
    try:
        await set_replicas(client, altered.name, count, output, plans.append)
    except (LogdError, click.exceptions.Exit) as error:
        failure = error
    if output == "json":
        left = altered
        with suppress(LogdError):
            left = await client.admin.describe_topic(altered.name)
        print_json({**asdict(left), "plan": plans[0] if plans else None})
    if failure is not None:
        raise failure


@contextmanager
def _count_is_an_argument() -> Iterator[None]:
    """A number of partitions that cannot be is wrong usage; elsewhere the same error means that
    a partition was not found."""
    try:
        yield
    except InvalidPartitionError as error:
        raise UsageError(str(error)) from error


class BeforeType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """``--before``."""

    name = "offset|timestamp|-15m"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | datetime:
        """Parse, or say what was expected."""
        try:
            found = parse_place(value, datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return found.offset if isinstance(found, FromOffset) else found.time


@topic.command("trim")
@click.argument("name", type=TOPIC_OR_PARTITION, metavar="TOPIC[/N]")
@click.option(
    "--before",
    type=BeforeType(),
    metavar="OFFSET|TIMESTAMP|-15m",
    required=True,
    help="The first offset that stays, or a timestamp with zone, or an age (-15m): the first "
    "record that stays was appended then or later.",
)
@bootstrap_option
@output_option
def trim(name: tuple[str, int | None], before: int | datetime, bootstrap: str, output: str) -> None:
    """Remove the oldest records of a topic, or of one partition, for good."""
    from logd.cli.session import connected, run_async

    async def trim_topic() -> None:
        topic_name, only = name
        async with connected(bootstrap) as client:
            info = await client.admin.describe_topic(topic_name)
            numbers = [one.partition for one in info.partitions] if only is None else [only]
            if isinstance(before, int):
                await _check_committed(client, topic_name, numbers, before)
            starts = {
                number: await client.admin.trim_partition(topic_name, number, before)
                for number in numbers
            }
        rows = [
            {"topic": topic_name, "partition": number, "log_start": start}
            for number, start in starts.items()
        ]
        if output == "json":
            print_json(rows)
        else:
            cells = [(f"{topic_name}/{number}", start) for number, start in starts.items()]
            print_table(("partition", "log_start"), cells)

    run_async(trim_topic)


async def _check_committed(
    client: Client, topic_name: str, numbers: Sequence[int], before: int
) -> None:
    """All partitions must have come so far, or none is trimmed."""
    from logd.errors import OffsetOutOfRangeError

    for number in numbers:
        held = await client.admin.offsets(topic_name, number)
        if before > held.commit_offset:
            raise OffsetOutOfRangeError(
                f"cannot trim {topic_name}/{number} before offset {before}: committed are "
                f"{held.log_start} to {held.commit_offset}; nothing was removed",
                held.log_start,
                held.commit_offset,
            )


@topic.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.  Only whoever types is asked.")
@bootstrap_option
@output_option
def delete(name: str, yes: bool, bootstrap: str, output: str) -> None:
    """Delete a topic and all its records."""
    from logd.cli.session import connected, run_async

    async def look() -> int:
        async with connected(bootstrap) as client:
            return len((await client.admin.describe_topic(name)).partitions)

    if is_typed() and not yes:
        partitions = count_of(run_async(look), "partition")
        confirm(f"topic {name} has {partitions}, and all its records go for good; delete it?")

    async def delete_topic() -> None:
        async with connected(bootstrap) as client:
            await client.admin.delete_topic(name)
        if output == "json":
            print_json({"deleted": name})
        else:
            click.echo(f"deleted topic {name}")

    run_async(delete_topic)


def _settings_text(config: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(config.items()))
