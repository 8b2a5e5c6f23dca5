"""``logd broker``: the cluster's members."""

from __future__ import annotations

import click

from logd.cli.display import print_json, print_table
from logd.cli.options import bootstrap_option, output_option


@click.group()
def broker() -> None:
    """List the brokers."""


@broker.command("list")
@bootstrap_option
@output_option
def list_brokers(bootstrap: str, output: str) -> None:
    """Every registered broker, alive or not."""
    from logd.cli.overview import BROKER_COLUMNS, broker_rows, cells
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap, needs_controller=False) as client:
            rows = broker_rows(await client.admin.describe_cluster())
        if output == "json":
            print_json(rows)
        else:
            print_table(BROKER_COLUMNS, [cells(row) for row in rows])

    run_async(fetch)
