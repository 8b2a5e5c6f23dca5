"""``logd dev``: a whole cluster in one terminal.

Each broker is a process of its own, started exactly as ``logd serve`` would be by hand, so
what works here works there.  One that was removed from the cluster is left out.  One that ends is
reported and not started again: a person who killed it wants to see what happens without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from logd.cli.display import print_json, say
from logd.cli.exits import ExitCode
from logd.cli.options import IntegerType, output_option
from logd.limits import METADATA_VOTERS_MAX, PORT_MAX
from logd.types import NodeId

if TYPE_CHECKING:
    from logd.cli.local_cluster import LocalCluster

PORT_DEFAULT: Final = 7171
BROKERS_MAX: Final = METADATA_VOTERS_MAX
"""Every broker of a local cluster votes in the metadata log."""

LOOK_AGAIN_S: Final = 3.0
"""A cluster that is not ready by then is asked again who belongs to it."""


@click.command()
@click.option(
    "--brokers",
    type=IntegerType(1, BROKERS_MAX),
    help="How many.  Default: 3, or as many as the directory's cluster has.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("logd-data"),
    show_default=True,
    help="Where everything is kept; a cluster that is there already is resumed.",
)
@click.option(
    "--port",
    type=IntegerType(1, PORT_MAX - BROKERS_MAX),
    help="First client port; the next brokers take the next ones.  Between themselves they use "
    "those 1000 above, for status pages those 20 above, if they are free.  Default: 7171.",
)
@output_option
@click.pass_context
def dev(
    context: click.Context, brokers: int | None, data_dir: Path, port: int | None, output: str
) -> None:
    """Run a local cluster in the foreground; Ctrl-C stops it."""
    from logd.cli.local_cluster import open_cluster, stopping
    from logd.cli.session import run_async

    cluster = open_cluster(
        data_dir, broker_count=brokers, port=port, port_default=PORT_DEFAULT, http=True
    )

    with stopping(cluster):
        is_stopped = run_async(_run, cluster, data_dir, output)
    if not is_stopped:
        say("logd: no broker is left")
        context.exit(ExitCode.FAILED)
    if output == "table":
        say("stopped")


async def _run(cluster: LocalCluster, data_dir: Path, output: str) -> bool:
    """Run until a signal (True), or until no broker is left (False).

    Signals are caught before the first broker starts, so there is no moment at which
    Ctrl-C would leave one behind.
    """
    import signal

    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            signals_task = anyio.CancelScope()

            async def stop_on_signal() -> None:
                with signals_task:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()
                        return

            tasks.start_soon(stop_on_signal)
            cluster.start_all()
            registered_at = await _wait_until_ready(cluster, data_dir)
            _note(data_dir, registered_at=registered_at)
            _announce(cluster, output)
            async with anyio.create_task_group() as watches:
                for broker in cluster.brokers:
                    watches.start_soon(_report_end, cluster, broker.node_id)
            signals_task.cancel()
            return False
    return True


async def _wait_until_ready(cluster: LocalCluster, data_dir: Path) -> int:
    """As ``wait_until_ready``, without brokers that have been removed since it was founded."""
    import anyio

    from logd.cli.local_cluster import read_cluster_file
    from logd.cli.ready import READY_TIMEOUT_S, find_removed, wait_until_ready

    saved = read_cluster_file(data_dir)
    removed = [NodeId(node) for node in saved.removed]
    for node in removed:
        _say_left_out(node, data_dir)
    if not saved.registered_at:
        return await wait_until_ready(cluster)
    give_up = anyio.current_time() + READY_TIMEOUT_S
    while True:
        for node in await find_removed(cluster, saved.registered_at):
            cluster.leave_out(node)
            removed.append(node)
            _note(data_dir, removed=removed)
            _say_left_out(node, data_dir)
        left_s = give_up - anyio.current_time()
        if left_s < 2 * LOOK_AGAIN_S:
            return await wait_until_ready(cluster, LOOK_AGAIN_S)
        # Whoever was asked may not have come to the removal yet.
        with anyio.move_on_after(LOOK_AGAIN_S):
            return await wait_until_ready(cluster)


def _say_left_out(node: NodeId, data_dir: Path) -> None:
    say(
        f"broker {node} is left out: it was removed from the cluster, and its id is never used "
        f"again; its files are still in {data_dir / f'broker-{node}'}"
    )


def _note(data_dir: Path, **facts: object) -> None:
    from logd.cli.local_cluster import read_cluster_file, save_cluster_file

    save_cluster_file(data_dir, msgspec.structs.replace(read_cluster_file(data_dir), **facts))


async def _report_end(cluster: LocalCluster, node_id: NodeId) -> None:
    import anyio

    status = await anyio.to_thread.run_sync(cluster.wait, node_id, abandon_on_cancel=True)
    if status < 0:
        how = f"was killed by signal {-status}"
    else:
        how = f"ended with status {status}: {cluster.last_words(node_id)}"
    say(f"logd: broker {node_id} {how}; its log: {cluster.broker(node_id).log_path}")


def _announce(cluster: LocalCluster, output: str) -> None:
    if output == "json":
        print_json(
            {
                "bootstrap": cluster.bootstrap,
                "brokers": [
                    {
                        "id": broker.node_id,
                        "pid": cluster.pid(broker.node_id),
                        "address": str(broker.address),
                        "peer_address": str(broker.peer_address),
                        "http_address": str(broker.http_address),
                        "data_dir": str(broker.data_dir),
                    }
                    for broker in cluster.brokers
                ],
            }
        )
        return
    for broker in cluster.brokers:
        click.echo(
            f"broker {broker.node_id}  {broker.address}  "
            f"pid {cluster.pid(broker.node_id)}  {broker.directory}"
        )
    click.echo(
        "\nReady.  In another terminal:\n\n"
        # All of them: so that any one may be killed and the commands still find the others.
        f"  export LOGD_BOOTSTRAP={cluster.bootstrap}\n"
        "  logd topic create hello\n"
        "  echo 'hello, log' | logd produce hello\n"
        "  logd consume hello --from start\n"
        "  logd cluster status\n\n"
        f"In a browser: http://{cluster.brokers[0].http_address}/ shows it at work; "
        "every broker has such a page.\n\n"
        "Ctrl-C stops the cluster; the same command resumes it."
    )
