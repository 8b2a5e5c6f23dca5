"""The command line: one module per noun, loaded when it is used.

This file holds the table of commands with their one-line help, so that ``logd --help``
imports none of them.  ``lazy.py`` turns the table into a click group and is the one place
where an error becomes an exit code and a line on stderr.
"""

from __future__ import annotations

from typing import Final

import click

from logd import __version__
from logd.cli.lazy import LazyCommand, RootGroup

COMMANDS: Final = (
    LazyCommand("dev", "logd.cli.dev:dev", "A local cluster in the foreground."),
    LazyCommand("serve", "logd.cli.serve:serve", "Run one broker."),
    LazyCommand(
        "topic", "logd.cli.topic:topic", "Create, list, describe, alter, trim, delete topics."
    ),
    LazyCommand("produce", "logd.cli.produce:produce", "Append lines to a topic."),
    LazyCommand("consume", "logd.cli.consume:consume", "Read a topic's records."),
    LazyCommand("lock", "logd.cli.lock:lock", "Run a command while holding a lock."),
    LazyCommand("elect", "logd.cli.elect:elect", "Run a command while leading; watch leaders."),
    LazyCommand("member", "logd.cli.member:member", "Join, list and watch groups of members."),
    LazyCommand("assign", "logd.cli.assign:assign", "Spread shards over the members of a group."),
    LazyCommand("queue", "logd.cli.queue:queue", "Put, claim and work on the items of queues."),
    LazyCommand("kv", "logd.cli.kv:kv", "Get, put, delete, compare and watch keys."),
    LazyCommand("cluster", "logd.cli.cluster:cluster", "The cluster's health and members."),
    LazyCommand("broker", "logd.cli.broker:broker", "List, drain, remove, replace brokers."),
    LazyCommand("rebalance", "logd.cli.rebalance:rebalance", "Even out what the brokers hold."),
    LazyCommand("partition", "logd.cli.partition:partition", "List, describe and move partitions."),
    LazyCommand("config", "logd.cli.config:config", "What a broker is configured with, and why."),
    LazyCommand("segment", "logd.cli.segment:segment", "Dump, verify, reindex files offline."),
    LazyCommand("bench", "logd.cli.bench:bench", "Measure produce, consume and latency."),
)


@click.group(
    cls=RootGroup,
    commands_lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="logd", message="%(prog)s %(version)s")
def root() -> None:
    """A replicated, append-only, distributed log.

    Start with `logd dev`: it runs three brokers here and says what to type next.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 fenced or conflict, 5 cannot reach
    the cluster, 6 degraded.
    """
