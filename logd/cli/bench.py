"""``logd bench``: how fast is it here.

With ``--brokers`` the cluster is a fresh one in a temporary directory, started as ``logd
dev`` starts it, and what it costs includes the brokers' processor time and memory; else only
this process is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli.benchmark.settings import Settings
from logd.cli.display import print_facts, print_json, say
from logd.cli.lazy import NounGroup
from logd.cli.options import IntegerType, bootstrap_option, output_option
from logd.errors import UsageError
from logd.limits import (
    DELIVERY_TIMEOUT_MS_MAX,
    METADATA_VOTERS_MAX,
    PARTITIONS_PER_TOPIC_MAX,
    RECORD_BYTES_MAX,
)

if TYPE_CHECKING:
    from logd.cli.benchmark.run import Measure
    from logd.cli.measure import Latency, Measurement

BROKERS_MAX: Final = METADATA_VOTERS_MAX
PRODUCERS_MAX: Final = 1024
CONSUMERS_MAX: Final = 1024
PRODUCE_RECORDS: Final = 2_000_000
CONSUME_RECORDS: Final = 2_000_000
LATENCY_RECORDS: Final = 5_000
RATE_MAX: Final = 10_000_000
RATE_DEFAULT_S: Final = 10
"""A run at a rate lasts this long, unless the number of records is given."""

_COMMON: Final = (
    click.option(
        "--brokers",
        type=IntegerType(1, BROKERS_MAX),
        help="Start a cluster of this many for the run.  Default: use --bootstrap.",
    ),
    click.option(
        "--record-bytes",
        type=IntegerType(1, RECORD_BYTES_MAX),
        default=100,
        show_default=True,
        help="Of the value of each record.",
    ),
    click.option("--batch-bytes", type=IntegerType(min=1), help="Default: the client's."),
    click.option(
        "--linger-ms",
        type=IntegerType(0, DELIVERY_TIMEOUT_MS_MAX),
        default=0,
        show_default=True,
        help="Let a batch wait so long for more records.",
    ),
    click.option(
        "--durability",
        type=click.Choice(["synced", "replicated"]),
        default="synced",
        show_default=True,
        help="Of the topic that the run makes.",
    ),
    click.option(
        "--producers",
        type=IntegerType(1, PRODUCERS_MAX),
        default=1,
        show_default=True,
        help="Independent producers, each with its own connection.",
    ),
    click.option(
        "--partitions",
        type=IntegerType(1, PARTITIONS_PER_TOPIC_MAX),
        default=1,
        show_default=True,
        help="Of the topic that the run makes.",
    ),
    bootstrap_option,
    output_option,
)


def _options(*own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed((*own, *_COMMON)):
            command = option(command)
        return command

    return decorate


def _records_option(default: int, *, has_rate: bool = False) -> Callable[[Any], Any]:
    return click.option(
        "--records",
        type=IntegerType(min=1),
        default=None if has_rate else default,
        show_default=not has_rate,
        help="How many are appended."
        + (f"  Default: {RATE_DEFAULT_S} s of --rate, else {default}." if has_rate else ""),
    )


_mixed_option = click.option(
    "--record-bytes-max",
    type=IntegerType(1, RECORD_BYTES_MAX),
    help="Mix sizes from --record-bytes to this, small ones more often.",
)
_rate_option = click.option(
    "--rate",
    type=IntegerType(1, RATE_MAX),
    help="Offer this many records a second, whatever the cluster does (open loop).",
)


@click.group(cls=NounGroup)
def bench() -> None:
    """Measure produce, consume, latency and end to end; compare runs in a report."""


@bench.command("produce")
@_options(
    _records_option(PRODUCE_RECORDS),
    _mixed_option,
    click.option(
        "--api",
        type=click.Choice(["many", "nowait"]),
        default="many",
        show_default=True,
        help="many: append_many, with lists; nowait: append_nowait, one call per record.",
    ),
    click.option(
        "--keys",
        type=IntegerType(min=1),
        help="Each record has one of so many keys, which decides its partition.  Default: no keys.",
    ),
)
def bench_produce(bootstrap: str, output: str, **settings: Any) -> None:
    """Append as fast as the cluster acknowledges."""
    from logd.cli.benchmark.workloads import produce

    _run(bootstrap, output, _checked(settings), produce)


@bench.command("consume")
@_options(
    _records_option(CONSUME_RECORDS),
    click.option(
        "--consumers",
        type=IntegerType(1, CONSUMERS_MAX),
        default=1,
        show_default=True,
        help="Each reads everything; all in one process.",
    ),
    click.option(
        "--as",
        "form",
        type=click.Choice(["batches", "records"]),
        default="batches",
        show_default=True,
        help="What is asked for in the loop.",
    ),
)
def bench_consume(bootstrap: str, output: str, **settings: Any) -> None:
    """Read what was appended before.  Latency: the wait for the next batch."""
    from logd.cli.benchmark.workloads import consume

    _run(bootstrap, output, _checked(settings), consume)


@bench.command("latency")
@_options(_records_option(LATENCY_RECORDS, has_rate=True), _mixed_option, _rate_option)
def bench_latency(bootstrap: str, output: str, **settings: Any) -> None:
    """Append one record, wait for its acknowledgement, again; or at a fixed --rate.

    Without --rate each producer appends one record at a time: with --producers 256 that is
    256 connections that wait.  With --rate the records are offered on time whether or not
    earlier ones were acknowledged, and a latency counts from when its record was due, so a
    pause of the cluster shows in full.
    """
    from logd.cli.benchmark.workloads import latency

    settings["records"] = _records(settings, LATENCY_RECORDS)
    _run(bootstrap, output, _checked(settings), latency)


@bench.command("end-to-end")
@_options(
    _records_option(PRODUCE_RECORDS, has_rate=True),
    _rate_option,
    click.option(
        "--consumers",
        type=IntegerType(1, CONSUMERS_MAX),
        default=1,
        show_default=True,
        help="Each reads everything, as it is committed; all in one process of their own.",
    ),
)
def bench_end_to_end(bootstrap: str, output: str, **settings: Any) -> None:
    """Append while consumers read the tail.  Latency: from append to consumer.

    Without --rate as fast as the cluster acknowledges.
    """
    from logd.cli.benchmark.values import STAMP
    from logd.cli.benchmark.workloads import end_to_end

    settings["records"] = _records(settings, PRODUCE_RECORDS)
    if settings["record_bytes"] < STAMP.size:
        raise click.BadParameter(
            f"a record carries the time it was due, which takes {STAMP.size} bytes",
            param_hint="--record-bytes",
        )
    _run(bootstrap, output, _checked(settings), end_to_end)


@bench.command("report")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="What to write; .html, or .png for the plots alone.",
)
def bench_report(files: tuple[Path, ...], output: Path) -> None:
    """Compare runs: FILES are what --output json printed, one result or one per line."""
    from logd.cli.benchmark.report import write_report

    write_report(files, output)
    say(f"wrote {output}")


def _records(settings: dict[str, Any], default: int) -> int:
    if settings["records"] is not None:
        return int(settings["records"])
    rate = settings["rate"]
    return default if rate is None else int(rate) * RATE_DEFAULT_S


def _checked(settings: dict[str, Any]) -> Settings:
    found = Settings(**settings)
    if found.record_bytes_max is not None and found.record_bytes_max < found.record_bytes:
        raise UsageError(
            f"--record-bytes-max must be at least --record-bytes, {found.record_bytes}, "
            f"not {found.record_bytes_max}"
        )
    return found


def _run(bootstrap: str, output: str, settings: Settings, measure: Measure) -> None:
    from logd.cli.benchmark.run import run

    found = run(bootstrap, settings, measure)
    if output == "json":
        print_json(found)
    else:
        _print(found)


def _print(found: Measurement) -> None:
    facts: list[tuple[str, object]] = [
        ("bench", found.bench),
        ("records", found.records),
        ("seconds", found.seconds),
        ("records/s", found.records_per_s),
        ("MB/s", found.mb_per_s),
        ("latency ms", _latency_text(found.latency_ms)),
    ]
    if found.append_latency_ms is not None:
        facts.append(("append ms", _latency_text(found.append_latency_ms)))
    if found.delivered_records is not None:
        facts.append(("delivered", found.delivered_records))
    facts += [
        ("CPU s per million", found.cpu_s_per_million),
        ("  client", found.client_cpu_s_per_million),
    ]
    facts += [
        (
            f"  broker {broker.id}",
            f"{broker.cpu_s_per_million:,}   peak {broker.anonymous_mb_max} MB",
        )
        for broker in found.brokers
    ]
    if found.machine is not None:
        facts.append(("machine", f"{found.machine.cores} cores, load {found.machine.load}"))
    chosen = {name: value for name, value in found.settings.items() if value is not None}
    facts.append(("settings", " ".join(f"{name}={value}" for name, value in chosen.items())))
    print_facts(facts)


def _latency_text(latency: Latency) -> str:
    return f"p50 {latency.p50}  p99 {latency.p99}  p99.9 {latency.p999}  max {latency.max}"
