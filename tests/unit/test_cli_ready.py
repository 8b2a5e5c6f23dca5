"""Waiting for a local cluster: whoever cannot tell holds nobody up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from logd.cli import ready

REGISTERED_AT = 6


def test_a_broker_that_looks_for_the_others_where_they_were_keeps_nobody_from_asking_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that was removed does, if the cluster has other addresses now."""
    brokers: list[Any] = [SimpleNamespace(node_id=node, address=node) for node in (4, 1, 2, 3)]
    cluster: Any = SimpleNamespace(brokers=brokers, is_running=lambda node: True)

    @asynccontextmanager
    async def connect(address: str) -> AsyncIterator[Any]:
        async def describe_cluster() -> Any:
            if address == "4":
                await anyio.sleep(30)
            members = [SimpleNamespace(node_id=node) for node in (1, 2, 3)]
            return SimpleNamespace(controller=1, metadata_offset=REGISTERED_AT, brokers=members)

        yield SimpleNamespace(admin=SimpleNamespace(describe_cluster=describe_cluster))

    monkeypatch.setattr(ready, "connect", connect)

    async def main() -> None:
        with trio.fail_after(5):
            assert await ready.find_removed(cluster, REGISTERED_AT) == [4]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
