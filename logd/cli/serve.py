"""``logd serve``: one broker, until it is told to stop.

SIGTERM and SIGINT stop it cleanly: leadership handed over, everything synced, files closed.
A second one, from somebody who will not wait, ends the process at once; what was acknowledged
is on disk either way.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from logd.cli.options import HOST_PORT

if TYPE_CHECKING:
    import trio

    from logd.broker.recent_events import RecentEvents
    from logd.config import BrokerConfig
    from logd.ops.logging import LogLevel
    from logd.types import HostPort

FORCED_EXIT_CODE = 1


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML; the options below stand above it.",
)
@click.option("--node-id", type=int, help="Unique in the cluster, for ever.")
@click.option("--data-dir", help="Where this broker keeps its logs; made if missing.")
@click.option("--listen", type=HOST_PORT, help="Where clients connect.")
@click.option("--peer-listen", type=HOST_PORT, help="Where the other brokers connect.")
@click.option("--http-listen", type=HOST_PORT, help="Where metrics and the status page are.")
@click.option("--advertise", type=HOST_PORT, help="What clients are told, if not --listen.")
@click.option(
    "--cluster",
    metavar="ID=HOST:PORT,…",
    help="The brokers that form the cluster, each with its --peer-listen address; the same "
    "list for all.  Default: this one alone.",
)
@click.option("--failure-domain", help="What this broker fails together with.")
@click.option("--rack", help="Where it stands.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option("--exit-with-parent", is_flag=True, hidden=True)
def serve(
    config_file: Path | None,
    node_id: int | None,
    data_dir: str | None,
    listen: HostPort | None,
    peer_listen: HostPort | None,
    http_listen: HostPort | None,
    advertise: HostPort | None,
    cluster: str | None,
    failure_domain: str | None,
    rack: str | None,
    log_level: LogLevel,
    exit_with_parent: bool,
) -> None:
    """Run one broker in the foreground.

    From --config FILE, from the other options, or both.
    """
    from logd.broker.recent_events import RecentEvents
    from logd.config import build_config, load_config
    from logd.ops.logging import configure_logging

    given: dict[str, object] = {
        "node_id": node_id,
        "data_dir": data_dir,
        "listen": listen,
        "peer_listen": peer_listen,
        "http_listen": http_listen,
        "advertise": advertise,
        "cluster": cluster,
        "failure_domain": failure_domain,
        "rack": rack,
    }
    if config_file is None and (node_id is None or data_dir is None):
        raise click.UsageError("give --config FILE, or --node-id and --data-dir")
    if config_file is None:
        config = build_config({}, "command line", given)
    else:
        config = load_config(_text_of(config_file), str(config_file), given)
    events = RecentEvents()
    configure_logging(log_level, on_event=events.feed)
    if not config.failure_domain:
        config = dataclasses.replace(config, failure_domain=socket.gethostname())

    import trio

    trio.run(_serve, config, events, exit_with_parent)


def _text_of(path: Path) -> str:
    from logd.errors import UsageError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error}") from error


async def _serve(config: BrokerConfig, events: RecentEvents, exit_with_parent: bool) -> None:
    """Run the broker until a watcher asks it to stop, and then until it has."""
    import trio

    from logd.broker.server import run_broker
    from logd.ops.companion import make_visible
    from logd.runtime.env import open_real_env
    from logd.runtime.memory import keep_freed_memory

    keep_freed_memory()
    stop = trio.Event()
    async with open_real_env() as env, trio.open_nursery() as watchers:
        await watchers.start(_stop_on_signal, stop)
        if exit_with_parent:
            watchers.start_soon(_stop_with_parent, stop)
        await run_broker(config, env, stop=stop, events=events, companion=make_visible)
        watchers.cancel_scope.cancel()


async def _stop_on_signal(stop: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    """Stop on the first signal; the second ends the process where it stands."""
    import signal

    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                os._exit(FORCED_EXIT_CODE)
            stop.set()


async def _stop_with_parent(stop: trio.Event) -> None:
    """Stop when standard input ends: the kernel ends it with the process that holds it."""
    import trio

    descriptor = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        if not os.read(descriptor, 4096):
            stop.set()
            return
