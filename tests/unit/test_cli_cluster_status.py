"""The cluster is well when nothing is missing; otherwise the status says what is."""

from __future__ import annotations

import io

import msgspec
import pytest
import trio
import trio.testing
from rich.console import Console

from logd.cli import watching
from logd.cli.cluster import Status, problem_lines, status_of
from logd.cli.overview import (
    PARTITION_COLUMNS,
    PARTITION_FACTS,
    BrokerNews,
    EventRow,
    broker_rows,
    lag_max,
    missing_brokers,
    partition_row,
    quota_line,
)
from logd.cli.watching import Pace, screen
from logd.coordination.quotas import STATE_BYTES
from logd.errors import ConnectionFailedError
from logd.wire.messages import (
    BrokerInfo,
    DescribePartitionResponse,
    MetadataResponse,
    PartitionInfo,
    QuotaInfo,
    ReplicaInfo,
    TopicInfo,
)


def metadata(*, controller: int | None = 1, alive: tuple[int, ...] = (1, 2, 3)) -> MetadataResponse:
    return MetadataResponse(
        cluster_id="c",
        controller=controller,
        brokers=[
            BrokerInfo(node_id=node, host="h", port=7170 + node, alive=node in alive)
            for node in (3, 1, 2)
        ],
        topics=[
            TopicInfo(
                name="t",
                topic_id=1,
                partitions=[
                    PartitionInfo(partition=0, group=1, replicas=[1, 2, 3], leader=1, term=4),
                    PartitionInfo(partition=1, group=2, replicas=[2, 3, 1], leader=2, term=4),
                ],
            )
        ],
    )


def described(*, behind: int | None = None) -> DescribePartitionResponse:
    return DescribePartitionResponse(
        group=1,
        leader=1,
        term=5,
        replicas=[
            ReplicaInfo(
                node_id=node,
                synced_end=90 if node == behind else 100,
                in_sync=node != behind,
                alive=True,
            )
            for node in (1, 2, 3)
        ],
        log_start=0,
        log_end=100,
        commit_offset=100,
        data_end=99,
    )


def test_a_broker_that_others_hear_and_that_answers_no_client_is_a_problem() -> None:
    """Of its replicas nothing is known, though their partitions may miss nothing.  It may have
    answered, too, with nothing but errors."""
    answers = {("t", 0): described(), ("t", 1): described()}

    news = BrokerNews([], [], [], [], silent=[(2, "Connection refused")])

    status = status_of(metadata(), answers, news)

    assert status.state == "degraded"
    (problem,) = status.problems
    assert problem.startswith("broker 2 is alive and has not told within 3 s how it is")
    assert problem.endswith("descriptors left (Connection refused)")


def test_a_cause_stands_before_what_comes_of_it_of_which_only_the_first_few_are_shown() -> None:
    """A broker whose disk is full falls behind with all that it holds."""
    behind = {("t", number): described(behind=3) for number in range(20)}
    news = BrokerNews(["broker 2, t/1: a hole"], [], [3], [])

    status = status_of(metadata(), behind, news)

    empty, full, hole, first, *_, more = problem_lines(status)
    assert empty == ""
    assert "broker 3 refuses appends" in full
    assert "a hole" in hole
    assert first == "! t/0 is under-replicated"
    assert more == "! and 14 more"


def test_nothing_missing_is_ok() -> None:
    status = status_of(metadata(), {("t", 0): described(), ("t", 1): described()})

    assert (status.state, status.problems, status.lag_max) == ("ok", [], 0)


def test_a_dead_broker_degrades() -> None:
    status = status_of(metadata(alive=(1, 3)), {("t", 0): described(), ("t", 1): described()})

    assert status.state == "degraded"
    assert status.problems == ["2 of 3 brokers are alive; missing: 2 (h:7172)"]


def test_a_replica_behind_degrades_and_shows_its_lag() -> None:
    status = status_of(metadata(), {("t", 0): described(behind=3), ("t", 1): described()})

    assert status.state == "degraded"
    assert (status.under_replicated, status.lag_max) == (["t/0"], 10)


def test_a_partition_that_nobody_answers_for_degrades() -> None:
    status = status_of(metadata(), {("t", 0): described(), ("t", 1): None})

    assert status.state == "degraded"
    assert status.offline == ["t/1"]


def test_without_a_controller_it_is_unavailable_and_says_who_is_missing() -> None:
    status = status_of(metadata(controller=None, alive=(3,)), {})

    assert status.state == "unavailable"
    assert status.problems[0] == (
        "the cluster has no controller: 1 of 3 brokers is alive; missing: 1 (h:7171), 2 (h:7172)"
    )


def test_an_ipv6_address_can_be_given_to_the_next_command() -> None:
    brokers = [BrokerInfo(node_id=1, host="::1", port=21500, alive=False)]
    found = MetadataResponse(cluster_id="c", controller=None, brokers=brokers, topics=[])

    assert [row.address for row in broker_rows(found)] == ["[::1]:21500"]
    assert missing_brokers(found).endswith("missing: 1 ([::1]:21500)")


def test_an_election_is_told_apart_from_a_missing_broker() -> None:
    assert "an election is under way" in missing_brokers(metadata(controller=None))


def test_brokers_are_listed_by_id_with_what_they_carry() -> None:
    rows = broker_rows(metadata())

    assert [(row.id, row.leaders, row.replicas) for row in rows] == [
        (1, 1, 2),
        (2, 1, 2),
        (3, 0, 2),
    ]


def test_a_partition_without_an_answer_shows_only_what_metadata_knows() -> None:
    partition = metadata().topics[0].partitions[0]

    row = partition_row("t", partition, None)

    assert (row.leader, row.replicas, row.commit) == (None, [1, 2, 3], None)


@pytest.mark.parametrize("answer", [described(), None])
def test_a_partition_tells_the_number_that_logs_and_directories_name_it_by(
    answer: DescribePartitionResponse | None,
) -> None:
    row = partition_row("t", metadata().topics[0].partitions[0], answer)

    assert row.group == 1
    assert "group" in PARTITION_FACTS
    assert "group" not in PARTITION_COLUMNS


def test_a_damaged_replica_degrades_the_cluster_and_is_named() -> None:
    answers = {("t", 0): described(), ("t", 1): described()}

    status = status_of(metadata(), answers, BrokerNews(["broker 2, t/1: a hole"], [], [], []))

    assert status.state == "degraded"
    assert status.damaged == ["broker 2, t/1: a hole"]
    assert status.problems == ["broker 2, t/1: a hole"]


def test_a_full_disk_degrades_the_cluster_and_is_named() -> None:
    answers = {("t", 0): described(), ("t", 1): described()}

    status = status_of(metadata(), answers, BrokerNews([], [], [3], []))

    assert status.state == "degraded"
    assert status.problems == [
        "broker 3 refuses appends: its disk is full, or has less free than disk_free_bytes_min"
    ]


def test_a_quota_that_is_nearly_used_up_is_named_and_degrades_nothing() -> None:
    answers = {("t", 0): described(), ("t", 1): described()}
    line = quota_line(QuotaInfo(namespace="orders", quota="keys", used=0.914))

    status = status_of(metadata(), answers, BrokerNews([], [], [], [line]))

    assert line == "namespace orders has used 91% of the quota of keys"
    assert (status.state, status.problems, status.warnings) == ("ok", [], [line])
    assert problem_lines(status) == ["", f"! {line}"]


def test_what_namespaces_share_is_told_without_a_name() -> None:
    line = quota_line(QuotaInfo(namespace="", quota=STATE_BYTES, used=1.0))

    assert line == (
        "coordination has used 100% of the quota of bytes of all namespaces of a partition"
    )


def test_where_nobody_could_be_asked_brokers_that_are_alive_are_counted() -> None:
    without_majority = status_of(metadata(controller=None, alive=(3,)), {})
    with_majority = status_of(metadata(controller=None, alive=(2, 3)), {})

    assert without_majority.offline == ["t/0", "t/1"]
    assert with_majority.offline == []
    assert with_majority.under_replicated == ["t/0", "t/1"]


def test_a_newcomer_that_is_being_copied_to_takes_nothing_from_the_health() -> None:
    answer = described()
    newcomer = ReplicaInfo(node_id=4, synced_end=3, in_sync=False, alive=True, voter=False)
    moving = msgspec.structs.replace(answer, replicas=[*answer.replicas, newcomer])

    status = status_of(metadata(), {("t", 0): moving, ("t", 1): answer})

    assert (status.state, status.under_replicated, status.lag_max) == ("ok", [], 0)


def test_a_replica_that_was_not_heard_of_yet_is_not_said_to_lag() -> None:
    answer = msgspec.structs.replace(
        described(),
        replicas=[
            ReplicaInfo(node_id=1, synced_end=97, in_sync=True, alive=True),
            ReplicaInfo(node_id=2, synced_end=None, in_sync=False, alive=False),
        ],
    )

    assert lag_max(answer) == 3


# --- watching ---------------------------------------------------------------------------


def seen(status: Status, rate: float | None = None, height: int = 40) -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(screen(status, rate, height))
    return [line.rstrip() for line in console.export_text().splitlines()]


def troubled(events: int) -> Status:
    answers = {("t", 0): described(behind=2), ("t", 1): described()}
    happened = [
        EventRow(at_ms=at, broker=1, level="warning", text=f"event {at}") for at in range(events)
    ]
    return status_of(metadata(alive=(1, 2)), answers, BrokerNews([], happened, [], []))


def test_the_screen_has_health_brokers_problems_and_events() -> None:
    lines = seen(troubled(events=2), rate=1234.5)

    assert lines[0].startswith("cluster c  ● degraded")
    assert any("2 of 3 alive" in line for line in lines)
    assert any("records in" in line and "1,234/s" in line for line in lines)
    assert "! t/0 is under-replicated" in lines
    assert lines[-1].endswith("broker 1  event 1")


@pytest.mark.parametrize("height", [12, 24, 60])
def test_the_screen_is_never_longer_for_its_events_than_the_terminal(height: int) -> None:
    without_events = len(seen(troubled(events=0), height=height))

    lines = seen(troubled(events=50), height=height)

    assert len(lines) <= max(height, without_events)


def test_the_pace_is_known_from_the_second_look_on() -> None:
    pace, status = Pace(), troubled(events=0)

    first = pace.rate(status)
    second = pace.rate(msgspec.structs.replace(status, appended=status.appended + 10))
    fewer_partitions_answered = pace.rate(status)

    assert first is None
    assert second is not None
    assert second > 0
    assert fewer_partitions_answered is None


def test_a_watch_goes_on_while_the_cluster_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = status_of(metadata(), {("t", 0): described(), ("t", 1): described()})
    looks: list[Status | ConnectionFailedError] = [found, ConnectionFailedError("gone"), found]

    async def fetch_status(bootstrap: str) -> Status:
        if not looks:
            raise KeyboardInterrupt
        look = looks.pop(0)
        if isinstance(look, ConnectionFailedError):
            raise look
        return look

    monkeypatch.setattr(watching, "fetch_status", fetch_status)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with pytest.raises(KeyboardInterrupt):
        trio.run(watching.watch_status, "h:1", "json", clock=clock)

    told = capsys.readouterr()
    assert [msgspec.json.decode(line)["state"] for line in told.out.splitlines()] == ["ok", "ok"]
    assert told.err == "logd: gone\n"
