"""What the client takes from its event loop directly is the same under asyncio and trio."""

from __future__ import annotations

import anyio
import pytest

from logd_client.event_loop import new_scope

pytestmark = pytest.mark.anyio


async def test_a_scope_that_is_cancelled_ends_what_waits_in_it_and_says_so(
    anyio_backend: object,
) -> None:
    scope = new_scope()
    with scope:
        scope.cancel()
        await anyio.sleep_forever()

    assert scope.cancelled_caught


async def test_a_scope_ends_what_waits_in_it_once_its_time_is_up(anyio_backend: object) -> None:
    began = anyio.current_time()
    with new_scope(timeout_s=0.01):
        await anyio.sleep_forever()

    assert 0.009 < anyio.current_time() - began < 5


async def test_nothing_around_a_scope_ends_what_it_shields(anyio_backend: object) -> None:
    steps: list[str] = []
    with anyio.CancelScope() as around:
        around.cancel()
        with new_scope(timeout_s=5, shield=True):
            await anyio.sleep(0.001)
            steps.append("shielded")
        await anyio.sleep(0.001)
        steps.append("not shielded")

    assert steps == ["shielded"]
