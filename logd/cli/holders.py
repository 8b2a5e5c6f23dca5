"""Who holds and who waits: locks, semaphores and elections are shown alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli.display import (
    cells_of,
    moment_text,
    print_facts,
    print_json,
    print_table,
    text_or_base64,
)
from logd.cli.session import connected, run_async

if TYPE_CHECKING:
    from logd.wire.coordination import Holder
    from logd_client.coordination.leases import LeaseKind

HOLDER_COLUMNS: Final = (
    "ticket",
    "token",
    "client",
    "session",
    "since",
    "mode",
    "permits",
    "data",
)


NOBODY: Final[Mapping[LeaseKind, str]] = {
    "lock": "nobody holds it, nobody waits",
    "semaphore": "nobody holds it, nobody waits",
    "election": "nobody leads it, nobody stands for it",
}


def show_holders(kind: LeaseKind, namespace: str, bootstrap: str, output: str) -> None:
    """One line per lock, semaphore or election of a namespace."""

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            names = await client.list_names(kind, namespace)
            found = [(one, await client.read_holders(kind, f"{namespace}/{one}")) for one in names]
        rows = [
            {
                "name": f"{namespace}/{one}",
                "holders": [holder.client for holder in holders.holders],
                "token": max((holder.token or 0 for holder in holders.holders), default=None),
                "since": moment_text(holders.holders[0].since_ms) if holders.holders else None,
                "waiting": len(holders.waiting),
            }
            for one, holders in found
        ]
        if output == "json":
            print_json(rows)
        else:
            columns = ("name", "holders", "token", "since", "waiting")
            cells = [list(row.values()) for row in rows]
            print_table(
                columns, cells, empty=f"no {kind}s in namespace {namespace}", whole=("name",)
            )

    run_async(fetch)


def describe_holders(kind: LeaseKind, name: str, bootstrap: str, output: str) -> None:
    """All that hold something and all that wait."""

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            found = await client.read_holders(kind, name)
        holders = [holder_row(holder) for holder in found.holders]
        waiting = [holder_row(holder) for holder in found.waiting]
        if output == "json":
            print_json(
                {
                    "name": name,
                    "revision": found.revision,
                    "capacity": found.capacity,
                    "holders": holders,
                    "waiting": waiting,
                }
            )
            return
        print_facts([(kind, name), ("capacity", found.capacity), ("waiting", len(waiting))])
        click.echo()
        rows = [cells_of(row, HOLDER_COLUMNS) for row in (*holders, *waiting)]
        print_table(HOLDER_COLUMNS, rows, empty=NOBODY[kind])

    run_async(fetch)


def holder_row(holder: Holder) -> dict[str, Any]:
    """One place, as it is shown."""
    return {
        "ticket": holder.ticket,
        "token": holder.token,
        "client": holder.client,
        "session": holder.session,
        "since": moment_text(holder.since_ms),
        "mode": holder.mode,
        "permits": holder.permits,
        **text_or_base64("data", holder.data),
    }
