"""``logd lock``: run a command while holding a lock; see who holds and who waits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from logd.cli.lazy import NounGroup
from logd.cli.options import (
    IntegerType,
    bootstrap_option,
    hold_option,
    namespace_option,
    output_option,
    protect_option,
    ttl_option,
    wait_option,
)
from logd.limits import PERMITS_MAX

if TYPE_CHECKING:
    from logd_client import Lease
    from logd_client.coordination.locks import Lock


@click.group(cls=NounGroup)
def lock() -> None:
    """Run a command while holding a lock; see who holds and who waits."""


@lock.command("run")
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@ttl_option
@wait_option
@click.option("--shared", is_flag=True, help="Beside others that share it.")
@click.option(
    "--capacity",
    type=IntegerType(1, PERMITS_MAX),
    help="A semaphore: so many permits there are, for all who name it.",
)
@click.option(
    "--permits", type=IntegerType(1, PERMITS_MAX), help="How many to take of it.  Default: 1."
)
@protect_option
@click.option("--data", default="", help="Shown to whoever lists the holders.")
@hold_option
@bootstrap_option
def run(
    name: str,
    command: tuple[str, ...],
    ttl_s: float,
    wait_s: float | None,
    shared: bool,
    capacity: int | None,
    permits: int | None,
    protects: tuple[str, ...],
    data: str,
    hold_s: float,
    bootstrap: str,
) -> None:
    """Run COMMAND while holding the lock NAME (or namespace/NAME).

    logd lock run nightly --wait 0 -- ./backup.sh

    COMMAND finds LOGD_FENCE_NAME, LOGD_FENCE_ID, LOGD_FENCE_TOKEN and the last two as LOGD_FENCE in
    its environment, for what it writes to: `logd produce TOPIC --fence "$LOGD_FENCE"` is refused
    once somebody else has the lock.  COMMAND is ended when the lock is lost.

    Exits with COMMAND's code; 4 if the lock was not obtained, or was lost.
    """
    if permits is not None and capacity is None:
        raise click.UsageError("--permits are those of a semaphore: say its --capacity too")
    if shared and (protects or capacity is not None):
        raise click.UsageError("--shared goes with neither --protect nor --capacity")
    if capacity is not None and protects:
        raise click.UsageError("a semaphore has many holders: it protects no topic")
    from logd.cli.holding import Job, client_name, leave_with, open_signals
    from logd.cli.session import connected, run_async
    from logd.cli.waiting import not_to_be_had, obtain_telling
    from logd.errors import WouldWaitError

    job = Job(command=command, bootstrap=bootstrap, ttl_s=ttl_s, hold_s=hold_s)

    async def hold() -> int:
        async with (
            connected(bootstrap, client_id=client_name()) as client,
            open_signals() as signals,
        ):
            wanted: Lock
            if capacity is not None:
                wanted = client.semaphore(
                    name, capacity, permits=permits or 1, ttl_s=ttl_s, data=data
                )
            else:
                wanted = client.lock(
                    name,
                    mode="shared" if shared else "exclusive",
                    protects=protects,
                    ttl_s=ttl_s,
                    data=data,
                )

            async def obtain() -> Lease | None:
                if wait_s == 0:
                    return await wanted.try_acquire()
                return await obtain_telling(
                    partial(wanted.acquire, wait_s), name, "held", wanted.holders
                )

            lease = await signals.obtain(obtain)
            if lease is None:
                raise WouldWaitError(not_to_be_had(name, "held", await wanted.holders()))
            try:
                return await job.run(lease, signals=signals)
            finally:
                await lease.release()

    leave_with(run_async(hold))


@lock.command("list")
@namespace_option
@click.option("--semaphores", is_flag=True, help="Semaphores instead of locks.")
@bootstrap_option
@output_option
def list_locks(namespace: str, semaphores: bool, bootstrap: str, output: str) -> None:
    """Locks of a namespace that somebody holds or waits for."""
    from logd.cli.holders import show_holders

    show_holders("semaphore" if semaphores else "lock", namespace, bootstrap, output)


@lock.command("describe")
@click.argument("name")
@click.option("--semaphore", is_flag=True, help="NAME is a semaphore.")
@bootstrap_option
@output_option
def describe(name: str, semaphore: bool, bootstrap: str, output: str) -> None:
    """Who holds NAME, since when, and who waits."""
    from logd.cli.holders import describe_holders

    describe_holders("semaphore" if semaphore else "lock", name, bootstrap, output)
