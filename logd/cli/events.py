"""Events of a watch as lines: what ``kv``, ``member`` and ``assign`` watch is shown alike."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import click

from logd.cli.display import cell_text, cells_of, print_json, text_or_base64

if TYPE_CHECKING:
    from logd.wire.coordination import Event
    from logd_client import Client
    from logd_client.coordination.watches import Watch


def show_watch(
    watch: Callable[[Client], Watch], count: int | None, bootstrap: str, output: str
) -> None:
    """Show what a watch of the cluster tells, until Ctrl-C or ``count``."""
    from logd.cli.session import connected, run_async

    async def follow() -> None:
        async with connected(bootstrap) as client:
            await show_events(watch(client), count, output)

    run_async(follow)


async def show_events(
    watch: AbstractAsyncContextManager[AsyncIterable[Event]], count: int | None, output: str
) -> None:
    """Show events as they come; ``count`` of them, if it is given."""
    told = 0
    async with watch as events:
        async for event in events:
            row = {
                "revision": event.revision,
                "change": event.change,
                **text_or_base64("name", event.name),
                **({"subject": event.subject} if event.subject else {}),
                **({"owner": event.owner} if event.owner else {}),
                **({"token": event.token} if event.token else {}),
                **text_or_base64("value", event.value),
            }
            if output == "json":
                print_json(row)
            else:
                columns = [name.removesuffix("_base64") for name in row]
                told_of = (value for value in cells_of(row, columns) if value != "")
                click.echo("  ".join(map(cell_text, told_of)))
            sys.stdout.flush()
            told += 1
            if told == count:
                return
