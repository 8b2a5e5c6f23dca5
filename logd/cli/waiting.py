"""Whoever waits for what another holds is told who that is: silence looks like a hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from logd.cli.display import moment_text, say
from logd.errors import LogdError
from logd.wording import count_of
from logd_client.background import task_group

if TYPE_CHECKING:
    from logd.wire.coordination import Holder, Holders

T = TypeVar("T")

TOLD_AFTER_S: Final = 1.0
"""What is granted sooner has not been waited for."""

HOLDERS_NAMED_MAX: Final = 3


async def obtain_telling(
    obtain: Callable[[], Awaitable[T]],
    name: str,
    has: str,
    holders: Callable[[], Awaitable[Holders]],
) -> T:
    """What ``obtain`` gives; once it has taken a while, say who ``has`` it: ``held``, ``led``."""
    async with task_group() as tasks:
        tasks.start_soon(_tell, name, has, holders)
        obtained = await obtain()
        tasks.cancel_scope.cancel()
    return obtained


async def _tell(name: str, has: str, holders: Callable[[], Awaitable[Holders]]) -> None:
    await anyio.sleep(TOLD_AFTER_S)
    who = ""
    with suppress(LogdError):  # Whoever holds it, we wait.
        who = who_has(has, (await holders()).holders)
    say(f"logd: waiting for {name}{who and f', {who}'}")


def not_to_be_had(name: str, has: str, found: Holders) -> str:
    """Why whoever does not wait is refused."""
    return f"{name} is {who_has(has, found.holders) or f'{has} by somebody else'}"


def who_has(has: str, holders: Sequence[Holder]) -> str:
    """``held by a since 2026-01-31T08:15:00.250+00:00``; nothing if nobody does."""
    named = ", ".join(
        f"{holder.client or f'session {holder.session}'} since {moment_text(holder.since_ms)}"
        for holder in holders[:HOLDERS_NAMED_MAX]
    )
    more = len(holders) - HOLDERS_NAMED_MAX
    return (f"{has} by {named}" if named else "") + (
        f" and {count_of(more, 'other')}" if more > 0 else ""
    )
