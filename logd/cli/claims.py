"""``logd queue claim``, ``complete``, ``release`` and ``renew``: items worked on by hand.

Each is a process of its own: the one that claims leaves its session open, and tells a CLAIM by
which the others find it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli.display import cells_of, print_json, print_table, say, text_or_base64
from logd.cli.exits import ExitCode
from logd.cli.options import IntegerType, SecondsType, bootstrap_option, output_option
from logd.limits import ITEMS_PER_COMMAND_MAX, VISIBILITY_MS_MAX

if TYPE_CHECKING:
    from logd_client import Client
    from logd_client.coordination.queues import Claim


@click.command("claim")
@click.argument("name")
@click.option(
    "--count",
    type=IntegerType(1, ITEMS_PER_COMMAND_MAX),
    default=1,
    show_default=True,
    help="At most so many.",
)
@click.option(
    "--visibility", "visibility_s", type=SecondsType(1, VISIBILITY_MS_MAX // 1000), default=60,
    show_default=True, metavar="SECONDS", help="How long the claim holds.",
)  # fmt: skip
@click.option(
    "--wait", "wait_s", type=SecondsType(min=0), default=0, metavar="SECONDS",
    help="Wait so long for an item.  Default: not at all.",
)  # fmt: skip
@bootstrap_option
@output_option
def claim(
    name: str, count: int, visibility_s: float, wait_s: float, bootstrap: str, output: str
) -> None:
    """Take items that are due, each told with a CLAIM to complete, release or renew it by.

    Exits with 3 if nothing is due, or there is no such queue.
    """
    from logd.cli.session import connected, run_async

    async def take() -> list[dict[str, Any]]:
        async with connected(
            bootstrap, client_id="logd queue claim", session_ttl_ms=int(visibility_s * 1000)
        ) as client:
            client.leave_sessions_open()
            wanted = client.queue(name)
            claims = await wanted.claim(count, visibility_s=visibility_s, wait_s=wait_s)
            if not claims:
                await wanted.statistics()  # Refused if there is no such queue: that is said then.
            return [_claim_row(one) for one in claims]

    rows = run_async(take)
    if output == "json":
        for row in rows:
            print_json(row)
    elif rows:
        columns = ("claim", "attempt", "key", "payload")
        print_table(columns, [cells_of(row, columns) for row in rows])
    if not rows:
        say(f"nothing is due in {name}")
        raise click.exceptions.Exit(ExitCode.NOT_FOUND)


def _claim_row(one: Claim) -> dict[str, Any]:
    return {
        "claim": f"{one.id}:{one.token}:{one.session.id}",
        "item": one.id,
        "token": one.token,
        "attempt": one.attempt,
        **text_or_base64("key", one.key),
        **text_or_base64("payload", one.payload),
    }


class ClaimType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """What ``queue claim`` told."""

    name = "claim"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        """Item, token and session."""
        if isinstance(value, tuple):
            return value
        parts = value.split(":")
        if len(parts) != 3 or not all(part.isdecimal() and len(part) < 20 for part in parts):
            self.fail(f"expected ITEM:TOKEN:SESSION as `queue claim` tells it, found {value!r}")
        item, token, session = map(int, parts)
        return item, token, session


CLAIM: Final = ClaimType()


@click.command("complete")
@click.argument("name")
@click.argument("claim", type=CLAIM)
@bootstrap_option
@output_option
def complete(name: str, claim: tuple[int, int, int], bootstrap: str, output: str) -> None:
    """The item of CLAIM is done: it is never handed out again.  Exits with 4 if the claim was
    lost."""
    from logd.cli.session import connected, run_async

    async def settle() -> None:
        async with connected(bootstrap) as client:
            await (await adopted(client, name, claim)).complete()

    run_async(settle)
    tell_done("completed", claim[0], output)


@click.command("release")
@click.argument("name")
@click.argument("claim", type=CLAIM)
@click.option("--reason", default="", help="Kept with the item if it dies.")
@click.option(
    "--delay", "delay_s", type=SecondsType(min=0), metavar="SECONDS",
    help="Before it is handed out again.  Default: the queue's back-off.",
)  # fmt: skip
@click.option("--dead", is_flag=True, help="To the dead letters at once.")
@click.option(
    "--uncounted", is_flag=True,
    help="CLAIM is none of the item's attempts; without back-off.",
)  # fmt: skip
@bootstrap_option
@output_option
def release(
    name: str,
    claim: tuple[int, int, int],
    reason: str,
    delay_s: float | None,
    dead: bool,
    uncounted: bool,
    bootstrap: str,
    output: str,
) -> None:
    """Give the item of CLAIM back."""
    from logd.cli.session import connected, run_async

    async def settle() -> None:
        async with connected(bootstrap) as client:
            held = await adopted(client, name, claim)
            await held.release(reason, delay_s=delay_s, dead=dead, uncounted=uncounted)

    run_async(settle)
    tell_done("released", claim[0], output)


@click.command("renew")
@click.argument("name")
@click.argument("claim", type=CLAIM)
@click.option(
    "--visibility", "visibility_s", type=SecondsType(1, VISIBILITY_MS_MAX // 1000), default=60,
    show_default=True, metavar="SECONDS", help="How long it holds from now.",
)  # fmt: skip
@bootstrap_option
@output_option
def renew(
    name: str, claim: tuple[int, int, int], visibility_s: float, bootstrap: str, output: str
) -> None:
    """Hold CLAIM for longer; not longer than `queue claim` was told at most."""
    from logd.cli.session import connected, run_async

    async def settle() -> None:
        async with connected(bootstrap) as client:
            await (await adopted(client, name, claim)).renew(visibility_s)

    run_async(settle)
    tell_done("renewed", claim[0], output)


def tell_done(done: str, what: int | str, output: str) -> None:
    """To a program; a person sees from the silence that all is well."""
    if output == "json":
        print_json({done: what})


async def adopted(client: Client, name: str, claim: tuple[int, int, int]) -> Claim:
    """What `queue claim` took, to be settled here."""
    item, token, session = claim
    # `queue claim` has ended: that is how CLAIM came to be told.
    return await client.queue(name).adopt(item, token, session, owner_is_gone=True)
