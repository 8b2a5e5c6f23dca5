"""What the commands of coordination say of what is not there (yet)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from logd.cli import root
from logd.wire.coordination import Assignment, Holders, KeyValue, ShardOwner


class Cluster:
    """Of which one group has one shard, and nobody holds anything."""

    @asynccontextmanager
    async def connected(self, bootstrap: str, **options: Any) -> AsyncIterator[Cluster]:
        yield self

    async def read_holders(self, kind: str, name: str) -> Holders:
        return Holders(revision=1)

    def assignments(self, group: str, ttl_s: float) -> Group:
        return Group(group)

    def kv(self, namespace: str) -> Keys:
        return Keys()


class Keys:
    """Of which one hangs on a session."""

    async def get(self, key: bytes) -> KeyValue:
        session = 7 if key == b"mine" else 0
        return KeyValue(key=key, value=b"v", revision=2, created=1, session=session)


class Group:
    def __init__(self, name: str) -> None:
        self._shards = [ShardOwner(shard="0", owner=None, token=5)] if name == "spread" else []

    async def list(self) -> Assignment:
        return Assignment(revision=1, shards=self._shards)

    async def work(self, member: str, run_shard: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = Cluster().connected
    monkeypatch.setattr("logd.cli.session.connected", connected)
    monkeypatch.setattr("logd.cli.holders.connected", connected)


@pytest.mark.parametrize(
    ("noun", "told"),
    [
        ("lock", "nobody holds it, nobody waits"),
        ("elect", "nobody leads it, nobody stands for it"),
    ],
)
def test_of_what_nobody_has_it_is_told_in_its_own_words(noun: str, told: str) -> None:
    result = CliRunner().invoke(root, [noun, "describe", "nightly"])

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, told)


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ("spread", ""),
        ("sprad", "logd: sprad has no shards yet: `logd assign set sprad` names them\n"),
    ],
)
def test_who_works_for_a_group_without_shards_is_told_what_it_waits_for(
    group: str, told: str
) -> None:
    result = CliRunner().invoke(root, ["assign", "work", group, "me", "--", "true"])

    assert (result.exit_code, result.stderr) == (0, told)


@pytest.mark.parametrize(("key", "session"), [("mine", 7), ("anybodys", None)])
def test_a_key_is_told_with_its_session_or_that_it_has_none(key: str, session: int | None) -> None:
    result = CliRunner().invoke(root, ["kv", "get", key, "--output", "json"])

    assert msgspec.json.decode(result.stdout)["session"] == session
