"""What ``logd topic`` tells of what it did."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import anyio
import click
import msgspec
import pytest
from click.testing import CliRunner

from logd.cli import root, running_plans
from logd.cli.topic import (
    replica_counts,
    replicas_shown,
    set_replicas_too,
    told_without_leaders,
)
from logd.errors import UnavailableError, UnknownTopicError
from logd.wire.messages import OffsetsResponse, PartitionInfo, TopicInfo
from logd_client import Client


def topic(*leaders: int | None) -> TopicInfo:
    partitions = [
        PartitionInfo(partition=number, group=7 + number, replicas=[1, 2], leader=leader)
        for number, leader in enumerate(leaders)
    ]
    return TopicInfo(name="orders", topic_id=1, partitions=partitions)


def test_a_topic_with_leaders_needs_no_word() -> None:
    assert told_without_leaders(topic(1, 2)) == ""


def test_a_partition_on_brokers_that_are_down_is_named() -> None:
    told = told_without_leaders(topic(1, None))

    assert "1 partition of it without a leader yet, such as orders/1 on brokers 1,2" in told
    assert "logd cluster status" in told


@pytest.mark.parametrize(
    ("replicas", "shown", "least"), [([3, 3], 3, 3), ([3, 1, 2], "1 to 3", 1), ([1], 1, 1)]
)
def test_partitions_with_fewer_replicas_are_not_hidden_by_the_first(
    replicas: list[int], shown: int | str, least: int
) -> None:
    partitions = [
        PartitionInfo(partition=number, group=7 + number, replicas=list(range(count)), leader=0)
        for number, count in enumerate(replicas)
    ]
    found = TopicInfo(name="orders", topic_id=1, partitions=partitions)

    assert replicas_shown(found) == shown
    assert min(replica_counts(found)) == least


class Moved:
    """A plan has given the topic other replicas."""

    def __init__(self) -> None:
        self.admin = self

    async def describe_topic(self, name: str) -> TopicInfo:
        return msgspec.structs.replace(topic(1), name=name, topic_id=2)


async def _plan_is_skipped(
    client: Client, topic: str, count: int, output: str, tell: Callable[[object], None]
) -> None:
    tell({"state": "done"})
    raise click.exceptions.Exit(6)


def test_what_was_altered_is_told_as_its_plan_has_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_plans, "set_replicas", _plan_is_skipped)

    @click.command()
    def alter() -> None:
        anyio.run(set_replicas_too, cast(Client, Moved()), topic(1), 3, "json")

    result = CliRunner().invoke(alter)

    told = msgspec.json.decode(result.stdout)
    assert (told["topic_id"], told["plan"]) == (2, {"state": "done"})
    assert result.exit_code == 6


class BrokerDown:
    """A broker is down: nothing can be planned."""

    def __init__(self) -> None:
        self.admin = self

    async def describe_topic(self, name: str) -> TopicInfo:
        raise UnavailableError("broker 2 is not alive")


@pytest.mark.parametrize(
    ("output", "documents"), [("json", [("orders", None)]), ("table", [])], ids=str
)
def test_what_was_altered_is_told_in_one_document_although_its_plan_could_not_be_made(
    output: str, documents: list[tuple[str, None]]
) -> None:
    @click.command()
    def alter() -> None:
        client = cast(Client, BrokerDown())
        anyio.run(set_replicas_too, client, topic(1), 3, output)

    result = CliRunner().invoke(alter)

    told = [msgspec.json.decode(line) for line in result.stdout.splitlines()]
    assert [(each["name"], each["plan"]) for each in told] == documents
    assert isinstance(result.exception, UnavailableError)


class Topics:
    """A cluster with the topic ``orders`` alone."""

    def __init__(self) -> None:
        self.admin = self
        self.deleted: list[str] = []

    @asynccontextmanager
    async def connected(self, bootstrap: str) -> AsyncIterator[Topics]:
        yield self

    async def describe_topic(self, name: str) -> TopicInfo:
        if name != "orders":
            raise UnknownTopicError(f"no topic {name!r}")
        return topic(1, 2)

    async def delete_topic(self, name: str) -> None:
        self.deleted.append(name)

    async def trim_partition(self, name: str, partition: int, before: int) -> int:
        return before + partition

    async def offsets(self, name: str, partition: int) -> OffsetsResponse:
        return OffsetsResponse(log_start=0, commit_offset=99, data_end=99)


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    topics = Topics()
    monkeypatch.setattr("logd.cli.session.connected", topics.connected)
    return topics


@pytest.mark.parametrize(("answer", "deleted"), [("y", ["orders"]), ("n", [])])
def test_whoever_types_is_asked_before_a_topic_is_deleted(
    topics: Topics, monkeypatch: pytest.MonkeyPatch, answer: str, deleted: list[str]
) -> None:
    monkeypatch.setattr("logd.cli.topic.is_typed", lambda: True)

    result = CliRunner().invoke(root, ["topic", "delete", "orders"], input=f"{answer}\n")

    assert "orders has 2 partitions, and all its records go for good; delete it?" in result.stderr
    assert topics.deleted == deleted


def test_whoever_mistypes_a_topic_is_asked_nothing(
    topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logd.cli.topic.is_typed", lambda: True)

    result = CliRunner().invoke(root, ["topic", "delete", "oders"], input="y\n")

    assert (result.exit_code, result.stderr) == (3, "logd: no topic 'oders'\n")


@pytest.mark.parametrize(("is_typed", "sure"), [(False, []), (True, ["--yes"])])
def test_no_script_is_asked_and_nobody_who_is_sure(
    topics: Topics, monkeypatch: pytest.MonkeyPatch, is_typed: bool, sure: list[str]
) -> None:
    monkeypatch.setattr("logd.cli.topic.is_typed", lambda: is_typed)

    result = CliRunner().invoke(root, ["topic", "delete", "orders", *sure])

    assert (result.exit_code, result.stderr, topics.deleted) == (0, "", ["orders"])


@pytest.mark.parametrize("trimmed", ["orders", "orders/1"])
def test_what_was_trimmed_is_told_as_other_commands_tell_of_partitions(
    topics: Topics, trimmed: str
) -> None:
    result = CliRunner().invoke(
        root, ["topic", "trim", trimmed, "--before", "10", "--output", "json"]
    )

    rows = [{"topic": "orders", "partition": number, "log_start": 10 + number} for number in (0, 1)]
    assert json.loads(result.stdout) == rows[-1 if "/" in trimmed else 0 :]
