"""``logd serve``: one broker, or several of one machine, until it is told to stop.

SIGTERM and SIGINT stop it cleanly: leadership handed over, everything synced, files closed.
A second one, from somebody who will not wait, ends the process at once; what was acknowledged
is on disk either way.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logd.cli.broker_settings import broker_options, resolve_settings
from logd.cli.options import IntegerType

if TYPE_CHECKING:
    import trio

    from logd.broker.recent_events import RecentEvents
    from logd.config import BrokerConfig
    from logd.ops.logging import LogLevel

FORCED_EXIT_CODE = 1
PROCESSES_MAX = 64
"""Of one machine."""


@click.command()
@broker_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What less than this matters is not logged.",
)
@click.option(
    "--processes",
    type=IntegerType(1, PROCESSES_MAX),
    help="Run so many brokers, which compute on as many cores.  They take ids and ports from those "
    "given upwards, and directories in --data-dir.  Default: one broker, in --data-dir itself.",
)
@click.option("--exit-with-parent", is_flag=True, hidden=True)
def serve(
    config_file: Path | None,
    log_level: LogLevel,
    processes: int | None,
    exit_with_parent: bool,
    **given: Any,
) -> None:
    """Run one broker, or several, in the foreground.

    From --config FILE, from the other options, or both; `logd config show` says what they
    come to.
    """
    from logd.broker.recent_events import RecentEvents
    from logd.ops.logging import configure_logging

    config = resolve_settings(config_file, given).config
    if not config.failure_domain:
        config = dataclasses.replace(config, failure_domain=socket.gethostname())
    facts: dict[str, object] = {}
    if processes is not None:
        config = _one_of_several(config, processes, exit_with_parent)
        exit_with_parent = True
        facts = {"broker": config.node_id}
    events = RecentEvents()
    configure_logging(log_level, on_event=events.feed, facts=facts)

    import trio

    is_alone = processes is None
    trio.run(_serve, config, events, exit_with_parent, is_alone)


def _one_of_several(config: BrokerConfig, processes: int, exit_with_parent: bool) -> BrokerConfig:
    """Returns in each broker's process, with what that is configured with."""
    from logd.cli.machine import Supervisor, configurations

    by_node = {one.node_id: one for one in configurations(config, processes)}
    return by_node[Supervisor(list(by_node), stops_with_parent=exit_with_parent).become_one()]


async def _serve(
    config: BrokerConfig, events: RecentEvents, exit_with_parent: bool, is_alone: bool
) -> None:
    """Run the broker until a watcher asks it to stop, and then until it has."""
    import trio

    from logd.broker.server import run_broker
    from logd.ops.companion import make_visible
    from logd.runtime.descriptors import use_all_descriptors
    from logd.runtime.env import open_real_env
    from logd.runtime.memory import collect_seldom, keep_freed_memory

    use_all_descriptors()
    keep_freed_memory()
    collect_seldom()
    stop = trio.Event()
    async with open_real_env() as env, trio.open_nursery() as watchers:
        await watchers.start(_stop_on_signal, stop, is_alone)
        if exit_with_parent:
            watchers.start_soon(_stop_with_parent, stop)
        await run_broker(config, env, stop=stop, events=events, companion=make_visible)
        watchers.cancel_scope.cancel()


async def _stop_on_signal(
    stop: trio.Event, is_alone: bool, *, task_status: trio.TaskStatus[None]
) -> None:
    """Stop on the first signal; the second ends the process where it stands.

    Of several brokers that is done by who looks after them.  A terminal that is closed hangs up on
    its processes, more than once: that stops a broker as well, unless it was told to ignore it
    (``nohup``), and never ends it where it stands.
    """
    import signal

    import trio

    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # What the receiver leaves, too, when it ends.
    with trio.open_signal_receiver(*heeded) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set() and is_alone and number != signal.SIGHUP:
                os._exit(FORCED_EXIT_CODE)
            stop.set()


async def _stop_with_parent(stop: trio.Event) -> None:
    """Stop when standard input ends: the kernel ends it with the process that holds it."""
    import trio

    from logd.cli.machine import STANDARD_INPUT

    while True:
        await trio.lowlevel.wait_readable(STANDARD_INPUT)
        if not os.read(STANDARD_INPUT, 4096):
            stop.set()
            return
