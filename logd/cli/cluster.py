"""``logd cluster``: is everything well, and if not, what is wrong.

The exit code says it too, for scripts and probes: 0 well, 6 degraded (still serving, but a
broker, a leader or a replica is missing), 5 without a majority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from logd.cli.display import print_facts, print_json, print_table, printable, say
from logd.cli.exits import ExitCode
from logd.cli.lazy import NounGroup
from logd.cli.options import IntegerType, bootstrap_option, output_option
from logd.wording import named

if TYPE_CHECKING:
    from logd.cli.overview import BrokerNews, BrokerRow, EventRow
    from logd.wire.messages import BrokerInfo, DescribePartitionResponse, MetadataResponse
    from logd_client import Client

PROBLEMS_SHOWN_MAX = 8
EVENTS_SHOWN_MAX = 8
LEVEL_MAX = 1_000
"""More than there will be; --dry-run tells of each level up to the one that is wanted."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster's health, as ``--output json`` has it."""

    cluster_id: str
    feature_level: int
    feature_level_available: int
    """The highest that all brokers support: `logd cluster upgrade` raises it there."""
    state: Literal["ok", "degraded", "unavailable"]
    controller: int | None
    brokers: list[BrokerRow]
    topics: int
    partitions: int
    under_replicated: list[str]
    offline: list[str]
    damaged: list[str]
    """Replicas with a hole that is being repaired, or shut for good; with the reason."""
    lag_max: int
    appended: int
    """Offsets handed out so far, in the partitions whose leaders answer."""
    problems: list[str]
    warnings: list[str]
    """Nothing is missing yet: quotas that are nearly used up."""
    rebalancing: list[str]
    """The plan that is carried out, and what the cluster does by itself, with the reason."""
    events: list[EventRow]
    """The last things that happened, on any broker, newest first."""


@click.group(cls=NounGroup)
def cluster() -> None:
    """The cluster's health and members."""


@cluster.command("status")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@bootstrap_option
@output_option
@click.pass_context
def status(context: click.Context, bootstrap: str, output: str, watch: bool) -> None:
    """Health in one screen.  Exit code 6 when degraded, 5 without a majority."""
    from logd.cli.session import run_async

    if watch:
        from logd.cli.watching import watch_status

        run_async(watch_status, bootstrap, output)
    found = run_async(fetch_status, bootstrap)
    if output == "json":
        print_json(found)
    else:
        _print_status(found)
    match found.state:
        case "degraded":
            context.exit(ExitCode.DEGRADED)
        case "unavailable":
            say(f"logd: {found.problems[0]}")
            context.exit(ExitCode.UNREACHABLE)
        case "ok":
            pass


@cluster.command("describe")
@bootstrap_option
@output_option
def describe(bootstrap: str, output: str) -> None:
    """Identity, controller, brokers and topics, from metadata alone."""
    from logd.cli.overview import BROKER_COLUMNS, broker_rows, cells
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap, needs_controller=False) as client:
            metadata = await client.admin.describe_cluster()
        rows = broker_rows(metadata)
        topics = sorted(topic.name for topic in metadata.topics)
        if output == "json":
            print_json(
                {
                    "cluster_id": metadata.cluster_id,
                    "controller": metadata.controller,
                    "brokers": rows,
                    "topics": topics,
                }
            )
            return
        print_facts(
            [
                ("cluster", metadata.cluster_id),
                ("controller", metadata.controller),
                ("topics", len(topics)),
            ]
        )
        click.echo()
        print_table(BROKER_COLUMNS, [cells(row) for row in rows])

    run_async(fetch)


@cluster.command("upgrade")
@click.option("--level", type=IntegerType(1, LEVEL_MAX), help="Default: what all brokers support.")
@click.option("--dry-run", is_flag=True, help="Only say what would be raised.")
@bootstrap_option
@output_option
@click.pass_context
def upgrade(
    context: click.Context, level: int | None, dry_run: bool, bootstrap: str, output: str
) -> None:
    """Let the cluster use what a newer version brought, once all brokers run it.

    There is no way back: a broker of an older version is not let in any more.

    Exits with 6, whether or not it has raised anything, while brokers of an older version keep the
    cluster below the highest level that this logd knows; it names them.  A --level that a broker
    does not support is refused.
    """
    from logd.cli.session import connected, run_async
    from logd.errors import InvalidRequestError
    from logd.metadata.features import LEVELS

    async def rise() -> ExitCode:
        async with connected(bootstrap) as client:
            metadata = await client.admin.describe_cluster()
            available = metadata.feature_level_available
            goal = max(*LEVELS, available) if level is None else level
            behind = [each for each in metadata.brokers if each.feature_level_max < goal]
            before = metadata.feature_level
            wanted = available if level is None else level
            now = before
            if not dry_run:
                now = await client.admin.raise_feature_level(level)
            elif behind and level is not None:
                raise InvalidRequestError(
                    f"feature level {level} is not supported by {_versions_text(behind)}"
                )
        if output == "json":
            ids = [each.node_id for each in behind]
            print_json({"before": before, "wanted": wanted, "level": now, "waits_for": ids})
        elif now > before or (dry_run and wanted > before):
            click.echo(f"feature level {before} → {wanted}" + (" (not yet)" if dry_run else ""))
            for number in range(before + 1, wanted + 1):
                click.echo(f"  {number}: {LEVELS.get(number, 'of a newer version')}")
        else:
            click.echo(f"feature level {now}: nothing to raise")
        if behind:
            say(f"logd: feature level {goal} waits for {_versions_text(behind)}")
        return ExitCode.DEGRADED if behind else ExitCode.OK

    context.exit(run_async(rise))


def _versions_text(brokers: Sequence[BrokerInfo]) -> str:
    """``broker 3 (logd 1.0, up to 6)``."""
    return named(
        "broker",
        [
            f"{each.node_id} (logd {each.version or '?'}, up to {each.feature_level_max})"
            for each in brokers
        ],
    )


async def fetch_status(bootstrap: str) -> Status:
    """Ask the cluster how it is.

    Raises:
        ConnectionFailedError: no broker answers.
    """
    from logd.cli.session import connected

    async with connected(bootstrap, needs_controller=False) as client:
        return await ask_status(client)


async def ask_status(client: Client) -> Status:
    """Ask the cluster that ``client`` has met how it is."""
    from logd.cli.overview import broker_news, describe_partitions, leaderless, rebalancing_news
    from logd.cli.session import look_for_controller

    metadata = await look_for_controller(client, waits_for_brokers=False)
    if metadata.controller is None:
        return status_of(metadata, {})
    names = [
        (topic.name, partition.partition)
        for topic in metadata.topics
        for partition in topic.partitions
    ]
    answers = await describe_partitions(client, names, leaderless(metadata))
    news = await broker_news(client, metadata)
    rebalancing = await rebalancing_news(client)
    described = dict(zip(names, answers, strict=True))
    return status_of(metadata, described, news, rebalancing)


def status_of(
    metadata: MetadataResponse,
    described: Mapping[tuple[str, int], DescribePartitionResponse | None],
    news: BrokerNews | None = None,
    rebalancing: Sequence[str] = (),
) -> Status:
    """Judge what was found.  A partition missing from ``described`` was not asked about."""
    from logd.cli.overview import (
        DESCRIBE_TIMEOUT_S,
        BrokerNews,
        broker_rows,
        lag_max,
        missing_brokers,
    )

    damaged, events, full, quotas, silent = news or BrokerNews([], [], [], [])
    problems = []
    if metadata.controller is None:
        problems.append(f"the cluster has no controller: {missing_brokers(metadata)}")
    elif any(not broker.alive for broker in metadata.brokers):
        problems.append(missing_brokers(metadata))
    offline = [f"{topic}/{number}" for (topic, number), answer in described.items() if not answer]
    under_replicated = [
        f"{topic}/{number}"
        for (topic, number), answer in described.items()
        if answer and not all(replica.in_sync for replica in answer.replicas if replica.voter)
    ]
    if not described:
        offline, under_replicated = _judged_by_brokers(metadata)
    # What a broker lacks before what its partitions do: only the first few are shown.
    problems += [
        f"broker {node} refuses appends: its disk is full, or has less free than "
        "disk_free_bytes_min"
        for node in full
    ]
    problems += [
        f"broker {node} is alive and has not told within {DESCRIBE_TIMEOUT_S:g} s how it is, so "
        "that what is wrong with its replicas is not known: see its log, and whether it has file "
        f"descriptors left ({error})"
        for node, error in silent
    ]
    problems += damaged
    problems += [f"{name} has no leader that answers" for name in offline]
    problems += [f"{name} is under-replicated" for name in under_replicated]
    state: Literal["ok", "degraded", "unavailable"] = "degraded" if problems else "ok"
    return Status(
        cluster_id=metadata.cluster_id,
        feature_level=metadata.feature_level,
        feature_level_available=metadata.feature_level_available,
        state="unavailable" if metadata.controller is None else state,
        controller=metadata.controller,
        brokers=broker_rows(metadata),
        topics=len(metadata.topics),
        partitions=sum(len(topic.partitions) for topic in metadata.topics),
        under_replicated=under_replicated,
        offline=offline,
        damaged=damaged,
        lag_max=max((lag_max(answer) for answer in described.values() if answer), default=0),
        appended=sum(answer.log_end for answer in described.values() if answer),
        problems=problems,
        warnings=quotas,
        rebalancing=list(rebalancing),
        events=events,
    )


def _judged_by_brokers(metadata: MetadataResponse) -> tuple[list[str], list[str]]:
    """Partitions without a majority of brokers that are alive, and others that lack some."""
    alive = {broker.node_id for broker in metadata.brokers if broker.alive}
    offline, under_replicated = [], []
    for topic in metadata.topics:
        for partition in topic.partitions:
            present = sum(node in alive for node in partition.replicas)
            if 2 * present <= len(partition.replicas):
                offline.append(f"{topic.name}/{partition.partition}")
            elif present < len(partition.replicas):
                under_replicated.append(f"{topic.name}/{partition.partition}")
    return offline, under_replicated


def _print_status(found: Status) -> None:
    from logd.cli.overview import BROKER_COLUMNS, cells

    print_facts(facts_of(found))
    click.echo()
    print_table(BROKER_COLUMNS, [cells(broker) for broker in found.brokers])
    for line in problem_lines(found):
        click.echo(line)
    for line in rebalancing_lines(found):
        click.echo(line)
    if found.events:
        click.echo("\nrecent events")
    for event in found.events[:EVENTS_SHOWN_MAX]:
        click.echo(f"  {event_line(event)}")


def facts_of(found: Status) -> list[tuple[str, object]]:
    """What fits one line each."""
    alive = sum(broker.alive for broker in found.brokers)
    return [
        ("cluster", f"{found.cluster_id}  {found.state}"),
        ("controller", found.controller),
        ("feature level", _level_text(found)),
        ("brokers", f"{alive} of {len(found.brokers)} alive"),
        ("topics", found.topics),
        ("partitions", found.partitions),
        ("under-replicated", len(found.under_replicated)),
        ("offline", len(found.offline)),
        ("damaged replicas", len(found.damaged)),
        ("lag, at most", found.lag_max),
    ]


def _level_text(found: Status) -> str:
    if found.feature_level_available > found.feature_level:
        return (
            f"{found.feature_level}  ({found.feature_level_available} is available: "
            "logd cluster upgrade)"
        )
    return str(found.feature_level)


def problem_lines(found: Status) -> list[str]:
    """What is wrong, or soon may be, below an empty line; nothing if nothing is."""
    told = found.problems + found.warnings
    lines = [f"! {printable(problem)}" for problem in told[:PROBLEMS_SHOWN_MAX]]
    if len(told) > PROBLEMS_SHOWN_MAX:
        lines.append(f"! and {len(told) - PROBLEMS_SHOWN_MAX} more")
    return ["", *lines] if lines else []


def rebalancing_lines(found: Status) -> list[str]:
    """What is being moved, below an empty line; nothing if nothing is."""
    return ["", *found.rebalancing] if found.rebalancing else []


def event_line(event: EventRow) -> str:
    """One event, by this machine's clock and zone."""
    at = datetime.fromtimestamp(event.at_ms / 1000).astimezone()
    return f"{at:%H:%M:%S}  broker {event.broker}  {printable(event.text)}"
