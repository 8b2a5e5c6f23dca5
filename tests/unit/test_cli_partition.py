"""`logd partition describe` tells who holds a partition, also when nobody leads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from click.testing import CliRunner

from logd.cli import root
from logd.errors import LogdError, NotAReplicaError, UnavailableError
from logd.wire.messages import PartitionInfo, TopicInfo

OFFLINE = UnavailableError("node 3 does not lead orders/0: no leader is known")


class Cluster:
    """Knows of one partition, whose leader answers with an error."""

    def __init__(self, error: LogdError) -> None:
        self.admin = self
        self._error = error

    @asynccontextmanager
    async def connected(self, bootstrap: str) -> AsyncIterator[Cluster]:
        yield self

    async def describe_topic(self, name: str) -> TopicInfo:
        partition = PartitionInfo(partition=0, group=7, replicas=[1, 2, 3], term=4)
        return TopicInfo(name=name, topic_id=1, partitions=[partition])

    async def describe_partition(self, topic: str, partition: int) -> None:
        raise self._error


def describe(monkeypatch: pytest.MonkeyPatch, error: LogdError) -> tuple[int, str, str]:
    monkeypatch.setattr("logd.cli.session.connected", Cluster(error).connected)
    arguments = ["partition", "describe", "orders/0", "--output", "json"]
    result = CliRunner().invoke(root, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_without_a_leader_it_prints_the_replicas_and_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, printed, said = describe(monkeypatch, OFFLINE)

    assert (code, said) == (5, f"logd: {OFFLINE}\n")
    assert msgspec.json.decode(printed) == {
        "topic": "orders",
        "partition": 0,
        "leader": None,
        "term": 4,
        "replicas": [1, 2, 3],
        "in_sync": [],
        "log_start": None,
        "log_end": None,
        "commit": None,
        "group": 7,
    }


def test_what_is_refused_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed, _ = describe(monkeypatch, NotAReplicaError("x"))

    assert (code, printed) == (3, "")
