"""Plans are shown, saved and read back, and what is no plan is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import click
import msgspec
import pytest
from click.testing import CliRunner

from logd.cli.broker import _plan_without, _say_if_alive
from logd.cli.display import bytes_text, time_text
from logd.cli.exits import ExitCode, exit_code_for
from logd.cli.moving import MoveBars
from logd.cli.options import BROKER_LIST, BYTE_RATE
from logd.cli.picture import Picture, take_picture
from logd.cli.plan_progress import (
    FOLLOW_INTERVAL_S,
    PlanProgress,
    plan_progress,
    waiting_text,
)
from logd.cli.plans import (
    SavedMove,
    SavedPlan,
    SavedStranded,
    load_plan,
    move_plan,
    require_all_placed,
    require_room,
    save_plan,
    show_plan,
)
from logd.cli.running_plans import finish, run_plan, set_replicas
from logd.cli.session import require_majority_alive
from logd.errors import (
    BrokerInUseError,
    NoRoomError,
    NotEnoughBrokersError,
    RebalanceConflictError,
    UnavailableError,
    UsageError,
)
from logd.limits import APPEND_BYTES_MAX
from logd.metadata.moves import THROTTLE_BYTES_PER_S_MIN
from logd.metadata.rebalance.cluster import BrokerLoad, PartitionLoad
from logd.types import GroupId, NodeId, TopicPartition
from logd.wire.messages import (
    BrokerInfo,
    DescribeBrokerResponse,
    DescribePartitionResponse,
    DescribeRebalanceResponse,
    LocalReplicaInfo,
    MetadataResponse,
    MoveState,
    PartitionInfo,
    PlanInfo,
    PlannedMoveInfo,
    ReplicaInfo,
    TopicInfo,
)
from logd_client import Client

PLAN = SavedPlan(
    cluster_id="cluster",
    layout_version=7,
    purpose="rebalance",
    bytes=0,
    estimated_s=0.0,
    throttle_bytes_per_s=1_000,
    balance_before=[0.1, 0.0, 0.2, 0.0],
    balance_after=[0.0, 0.0, 0.0, 0.0],
    left_out=0,
    unplaced=[],
    moves=[],
)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50MB/s", 50_000_000),
        ("64KiB", 65_536),
        ("1.5GB/s", 1_500_000_000),
        ("1000000", 1_000_000),
        ("200 kB/s", 200_000),
    ],
)
def test_a_rate_is_a_number_with_a_unit(text: str, rate: int) -> None:
    assert BYTE_RATE.convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["", "fast", "50MB/h", "-1MB", "5 apples", "1e9"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 50MB/s"):
        BYTE_RATE.convert(text, None, None)


def test_brokers_are_named_once_each() -> None:
    assert BROKER_LIST.convert("1, 2,4", None, None) == (1, 2, 4)
    for text in ("", "1,,2", "0", "a,b"):
        with pytest.raises(click.BadParameter, match="such as 1,2,4"):
            BROKER_LIST.convert(text, None, None)
    with pytest.raises(click.BadParameter, match="named twice"):
        BROKER_LIST.convert("1,1", None, None)


def test_a_plan_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    save_plan(PLAN, tmp_path / "plan.json")

    assert load_plan(tmp_path / "plan.json", "cluster") == PLAN


def test_a_file_that_is_no_plan_for_this_cluster_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(PLAN, path)
    with pytest.raises(UsageError, match="is for cluster cluster, this one is other"):
        load_plan(path, "other")

    for content in (b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="not a rebalance plan"):
            load_plan(path, "cluster")


def test_a_plan_without_moves_says_so() -> None:
    @click.command()
    def show() -> None:
        show_plan(PLAN, "table")

    assert CliRunner().invoke(show).output.strip() == "nothing to move"


def test_replicas_that_find_no_place_stop_a_plan() -> None:
    require_all_placed(PLAN)
    unplaced = SavedPlan(**{**{f: getattr(PLAN, f) for f in PLAN.__struct_fields__},
                            "unplaced": ["orders/1"]})  # fmt: skip

    with pytest.raises(NotEnoughBrokersError, match="orders/1; start another broker"):
        require_all_placed(unplaced)


@pytest.mark.parametrize("is_dead", [True, False])
def test_whoever_replaces_a_broker_that_is_alive_is_told_that_it_is(
    capsys: pytest.CaptureFixture[str], is_dead: bool
) -> None:
    """A number is mistyped easily, and what was removed does not come back."""
    brokers = [BrokerLoad(NodeId(1), "a"), BrokerLoad(NodeId(2), "b", is_dead=is_dead)]
    picture = Picture(cast(Any, None), cast(Any, None), brokers, [])

    assert _say_if_alive(picture, 2) is not is_dead

    told = capsys.readouterr().err
    assert ("broker 2 is alive" in told) is not is_dead


STRANDED = msgspec.structs.replace(
    PLAN, stranded=[SavedStranded(topic="orders", partition=1, replicas=[2, 4], down=[4])]
)


def test_what_a_plan_leaves_alone_because_nobody_leads_it_is_said_with_the_ways_out() -> None:
    @click.command()
    def show() -> None:
        show_plan(STRANDED, "table")

    told = CliRunner().invoke(show).output

    assert "1 partition: orders/1 (on 2,4, down: 4)" in told
    assert "start broker 4 again with its data directory" in told
    assert "logd topic delete" in told


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_plan_that_leaves_partitions_alone_ends_as_a_failure_and_names_them(output: str) -> None:
    @click.command()
    def run() -> None:
        client = cast(Client, None)  # Nothing is asked: nothing can be moved.
        anyio.run(lambda: run_plan(client, STRANDED, output, detach=False))

    result = CliRunner().invoke(run)

    assert result.exit_code == 1
    assert "orders" in result.output


def test_a_plan_is_told_in_json_by_whom_begins_it_if_that_is_part_of_more() -> None:
    told: list[object] = []
    nothing_to_do = msgspec.structs.replace(PLAN, moves=[])

    @click.command()
    def run() -> None:
        client = cast(Client, None)  # Nothing is asked: nothing is to be moved.
        anyio.run(lambda: run_plan(client, nothing_to_do, "json", detach=False, tell=told.append))

    assert CliRunner().invoke(run).output == ""
    assert told == [nothing_to_do]


FINISHED = PlanProgress(
    plan_id=1,
    purpose="rebalance",
    state="done",
    moves=1,
    done=1,
    skipped=0,
    cancelled=0,
    bytes_done=0,
    bytes_total=0,
    running=[],
)


@pytest.mark.parametrize(
    ("done", "skipped", "cancelled", "code"),
    [
        (2, 0, 0, ExitCode.OK),
        (1, 1, 0, ExitCode.DEGRADED),
        (1, 0, 1, ExitCode.DEGRADED),
        (0, 1, 1, ExitCode.DEGRADED),
        (0, 0, 2, ExitCode.FAILED),
    ],
)
def test_a_plan_of_which_moves_were_cancelled_did_not_end_as_planned(
    done: int, skipped: int, cancelled: int, code: ExitCode
) -> None:
    progress = msgspec.structs.replace(
        FINISHED, moves=2, done=done, skipped=skipped, cancelled=cancelled
    )

    @click.command()
    def end() -> None:
        finish(progress, "table")

    assert CliRunner().invoke(end).exit_code == code


def test_moves_that_will_not_be_made_are_told_beside_those_that_are_done() -> None:
    """Else a plan that is over with moves left would look as if it had forgotten them."""
    progress = msgspec.structs.replace(FINISHED, moves=4, done=1, skipped=1, cancelled=2)

    assert progress.moves_text() == "1 of 4 done, 1 skipped, 2 cancelled"
    assert FINISHED.moves_text("move") == "1 of 1 move done"


def test_a_finished_plan_tells_in_json_what_it_left_alone() -> None:
    @click.command()
    def end() -> None:
        finish(FINISHED, "json", STRANDED)

    told = msgspec.json.decode(CliRunner().invoke(end).output)
    assert told["stranded"] == [
        {"topic": "orders", "partition": 1, "replicas": [2, 4], "down": [4]}
    ]


def test_who_only_watched_a_plan_says_in_json_that_it_does_not_know_what_was_left_alone() -> None:
    @click.command()
    def end() -> None:
        finish(FINISHED, "json")

    assert msgspec.json.decode(CliRunner().invoke(end).output)["stranded"] is None


def test_a_successor_does_not_take_over_what_nobody_leads() -> None:
    brokers = [BrokerLoad(NodeId(node), f"host{node}", is_dead=node == 2) for node in (1, 2, 3, 4)]
    partitions = [
        PartitionLoad(
            GroupId(at + 1), TopicPartition("orders", at), tuple(map(NodeId, replicas)), 100
        )
        for at, replicas in enumerate([(2,), (1, 2, 3)])
    ]
    picture = Picture(
        MetadataResponse(cluster_id="c", controller=1, brokers=[], topics=[]),
        DescribeRebalanceResponse(
            layout_version=1, throttle_bytes_per_s=1_000, concurrency=1, autonomous=True
        ),
        brokers,
        partitions,
    )

    made = _plan_without(picture, 2, "replace broker 2", None, successor=4)

    assert [(move.partition, move.after) for move in made.moves] == [(1, [1, 4, 3])]
    assert [(each.partition, each.down) for each in made.stranded] == [(0, [2])]


def running_move(group: int, target: list[int]) -> PlannedMoveInfo:
    return PlannedMoveInfo(
        group=group, before=[1, 2, 4], target=target, size_bytes=100, state="running"
    )


class HalfALeader:
    """Of five brokers 2, 4 and 5 are down; orders/0 has a leader, the others have none."""

    def __init__(self) -> None:
        self.admin = self

    async def describe_partition(self, topic: str, partition: int) -> DescribePartitionResponse:
        if partition:
            raise UnavailableError("no leader")
        return DescribePartitionResponse(
            group=1,
            leader=1,
            term=1,
            replicas=[
                ReplicaInfo(node_id=1, synced_end=9, in_sync=True, alive=True),
                ReplicaInfo(node_id=5, synced_end=None, in_sync=False, alive=False, voter=False),
            ],
            log_start=0,
            log_end=9,
            commit_offset=9,
            data_end=9,
            size_bytes=100,
        )

    async def describe_cluster(self) -> MetadataResponse:
        return MetadataResponse(
            cluster_id="c",
            controller=1,
            brokers=[
                BrokerInfo(node_id=node, host="h", port=1, alive=node in (1, 3))
                for node in range(1, 6)
            ],
            topics=[],
        )

    async def describe_topic(self, name: str) -> TopicInfo:
        return TopicInfo(name=name, topic_id=1, partitions=[])

    async def describe_rebalance(self) -> DescribeRebalanceResponse:
        return DescribeRebalanceResponse(
            layout_version=1, throttle_bytes_per_s=1_000, concurrency=1, autonomous=True
        )


class Holder(HalfALeader):
    """Broker 1 has a copy of group 1, and what has come so far of group 2, which is on 3."""

    def __init__(self, **disk: Any) -> None:
        super().__init__()
        self._disk = {"disk_room_bytes": 1_000} | disk

    async def describe_cluster(self) -> MetadataResponse:
        return MetadataResponse(
            cluster_id="c",
            controller=1,
            brokers=[BrokerInfo(node_id=1, host="h", port=1, alive=True)],
            topics=[
                TopicInfo(
                    name="orders",
                    topic_id=1,
                    partitions=[
                        PartitionInfo(partition=0, group=1, replicas=[1], leader=1, term=1),
                        PartitionInfo(
                            partition=1, group=2, replicas=[3], target=[1], leader=None, term=1
                        ),
                    ],
                )
            ],
        )

    async def describe_broker(self, node_id: int) -> DescribeBrokerResponse:
        return DescribeBrokerResponse(
            node_id=node_id,
            version="",
            uptime_ms=0,
            replicas=[
                LocalReplicaInfo(
                    group=group,
                    role="leader",
                    term=1,
                    log_start=0,
                    log_end=1,
                    commit_offset=1,
                    size_bytes=size,
                )
                for group, size in ((0, 7), (1, 30), (2, 500))
            ],
            peers_alive=[],
            disk_free_bytes=5_000,
            **self._disk,
        )


@pytest.mark.parametrize(
    ("disk", "room_bytes"),
    [
        ({}, 900),
        ({"disk_failing": True}, 0),
        ({"disk_full": True}, 0),
    ],
)
def test_a_broker_has_room_for_what_is_free_and_for_what_is_its_own(
    monkeypatch: pytest.MonkeyPatch, disk: dict[str, Any], room_bytes: int
) -> None:
    monkeypatch.setattr("logd.cli.picture.RATE_SAMPLE_S", 0)

    picture = anyio.run(take_picture, cast(Client, Holder(**disk)))

    assert [broker.bytes_max for broker in picture.brokers] == [room_bytes + 30]


def test_what_is_advised_while_a_broker_is_down_is_something_the_command_can_do() -> None:
    client = cast(Client, HalfALeader())

    with pytest.raises(UnavailableError, match=r"or plan without it \(--replace-dead\)"):
        anyio.run(take_picture, client)
    with pytest.raises(UnavailableError, match="or replace it first"):
        anyio.run(set_replicas, client, "orders", 3, "table")


def test_a_move_to_brokers_too_few_of_which_are_alive_is_refused_at_once() -> None:
    client = cast(Client, HalfALeader())

    with pytest.raises(UnavailableError, match=r"broker 2 is not alive.* lead orders/0 on 2, 3"):
        anyio.run(require_majority_alive, client, [2, 3], "orders/0")
    anyio.run(require_majority_alive, client, [1, 2, 3], "orders/0")


NAMES = {group: ("orders", group - 1) for group in range(1, 10)}


def plan_info(*moves: PlannedMoveInfo) -> PlanInfo:
    return PlanInfo(
        plan_id=1,
        purpose="test",
        state="running",
        move_count=len(moves),
        moves=list(moves),
        begun_ms=0,
    )


def test_a_plan_that_waits_says_for_which_partitions_and_why() -> None:
    plan = plan_info(running_move(1, [1, 2, 5]), running_move(2, [1, 2, 3]))

    progress = anyio.run(plan_progress, cast(Client, HalfALeader()), plan, NAMES)

    assert [move.partition for move in progress.running] == ["orders/0", "orders/1"]
    assert progress.waiting == [
        "orders/0 waits for its target: broker 5 is down",
        "orders/1 has no leader: brokers 2, 4 are down",
    ]
    assert waiting_text(progress) == "; ".join(["under way: orders/0, orders/1", *progress.waiting])


def test_a_plan_of_which_nothing_is_begun_says_what_the_next_moves_wait_for() -> None:
    pending = msgspec.structs.replace(running_move(2, [1, 2, 3]), state="pending")

    progress = anyio.run(plan_progress, cast(Client, HalfALeader()), plan_info(pending), NAMES)

    assert progress.running == []
    assert waiting_text(progress) == "orders/1 has no leader: brokers 2, 4 are down"


def test_of_many_partitions_that_wait_a_few_are_named() -> None:
    plan = plan_info(*(running_move(group, [1, 2, 3]) for group in range(2, 10)))

    progress = anyio.run(plan_progress, cast(Client, HalfALeader()), plan, NAMES)

    assert waiting_text(progress).endswith("; 5 more wait")
    assert len(waiting_text(progress)) < 250


def test_a_line_of_a_plan_that_is_cancelled_and_waits_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = msgspec.structs.replace(plan_info(running_move(2, [1, 2, 3])), state="cancelling")
    progress = anyio.run(plan_progress, cast(Client, HalfALeader()), plan, NAMES)

    with MoveBars(is_shown=True) as bars:
        bars.show(progress)

    told = capsys.readouterr().err
    assert told.startswith("cancelling  0/1 moves")
    assert "(under way: orders/1; orders/1 has no leader: brokers 2, 4 are down)" in told


def paces_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bytes_at: list[int]
) -> list[str]:
    """What is said of a plan that is looked at every half second, every ten seconds."""
    now = [0.0]
    monkeypatch.setattr("logd.cli.moving.time", SimpleNamespace(monotonic=lambda: now[0]))
    begun = msgspec.structs.replace(FINISHED, state="running", done=0, bytes_total=10**12)
    with MoveBars(is_shown=True) as bars:
        for bytes_done in bytes_at:
            now[0] += FOLLOW_INTERVAL_S
            bars.show(msgspec.structs.replace(begun, bytes_done=bytes_done))
    return [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()]


def test_the_pace_of_moves_at_the_least_throttle_is_not_that_of_the_last_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piece_s = APPEND_BYTES_MAX / THROTTLE_BYTES_PER_S_MIN
    arrived = [int(at * FOLLOW_INTERVAL_S / piece_s) * APPEND_BYTES_MAX for at in range(600)]

    told = paces_told(monkeypatch, capsys, arrived)

    paces = [float(pace.removesuffix(" kB/s")) for pace in told[6:]]
    assert len(paces) > 20
    assert 50 < min(paces) <= max(paces) < 75


def test_moves_that_stand_still_are_seen_to_after_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrived = [at * 10**7 for at in range(60)] + [60 * 10**7] * 40

    told = paces_told(monkeypatch, capsys, arrived)

    assert (told[2], told[-1]) == ("20.0 MB/s", "0 B/s")


class SmallDisks:
    """Brokers with little space left: all that is asked of a client here."""

    def __init__(self, free_bytes: int, room_bytes: int) -> None:
        self.admin = self
        self._free_bytes = free_bytes
        self._room_bytes = room_bytes

    async def describe_broker(self, node: int) -> DescribeBrokerResponse:
        return DescribeBrokerResponse(
            node_id=node,
            version="0",
            uptime_ms=0,
            replicas=[],
            peers_alive=[],
            disk_free_bytes=self._free_bytes,
            disk_room_bytes=self._room_bytes,
        )


@pytest.mark.parametrize(
    ("free_bytes", "room_bytes"), [(5_000, 1_000), (1_000, 0)], ids=["above its minimum", "older"]
)
def test_a_plan_that_would_fill_a_disk_is_refused_before_it_is_shown(
    capsys: pytest.CaptureFixture[str], free_bytes: int, room_bytes: int
) -> None:
    move = SavedMove(
        topic="orders",
        partition=0,
        group=7,
        before=[1, 2],
        after=[1, 3],
        reason="replicas",
        detail="",
        bytes=950,
        estimated_s=1.0,
        balance_before=[],
        balance_after=[],
    )
    plan = msgspec.structs.replace(PLAN, moves=[move])

    small = cast(Client, SmallDisks(free_bytes, room_bytes))
    with pytest.raises(NoRoomError, match=r"broker 3 would get 950 B and has 1\.0 kB free"):
        anyio.run(lambda: run_plan(small, plan, "table", detach=False, shows=True))
    assert capsys.readouterr().out == ""  # What is refused looks like nothing that will happen.
    anyio.run(require_room, cast(Client, SmallDisks(5_000, 2_000)), plan)


def test_figures_are_for_people() -> None:
    assert bytes_text(999) == "999 B"
    assert bytes_text(1_500_000) == "1.5 MB"
    assert time_text(3.6) == "4 s"
    assert time_text(123) == "2 min 03 s"
    assert time_text(3_900) == "1 h 05 min"


def test_conflicts_have_their_exit_code() -> None:
    assert exit_code_for(RebalanceConflictError("two at once")) == 4
    assert exit_code_for(BrokerInUseError("not empty")) == 4


class Moving(HalfALeader):
    """orders/0 is on broker 1, and a plan moves it to broker 3 as well, or has yet to begin."""

    def __init__(self, state: MoveState) -> None:
        super().__init__()
        self._move = PlannedMoveInfo(group=1, before=[1], target=[1, 3], size_bytes=1, state=state)

    async def describe_topic(self, name: str) -> TopicInfo:
        target = self._move.target if self._move.state == "running" else None
        there = PartitionInfo(partition=0, group=1, replicas=[1], target=target, leader=1, term=1)
        return TopicInfo(name=name, topic_id=1, partitions=[there])

    async def describe_rebalance(self) -> DescribeRebalanceResponse:
        plan = PlanInfo(
            plan_id=1, purpose="p", state="running", move_count=1, moves=[self._move], begun_ms=0
        )
        return msgspec.structs.replace(await super().describe_rebalance(), plan=plan)


@pytest.mark.parametrize("state", ["pending", "running"])
def test_of_what_is_being_moved_away_nobody_is_told_that_there_is_nothing_to_move(
    state: MoveState,
) -> None:
    client = cast(Client, Moving(state))

    with pytest.raises(RebalanceConflictError, match=r"being moved to 1,3: .* orders/0 --cancel"):
        anyio.run(move_plan, client, "orders", 0, [1])


def test_what_is_there_and_stays_there_is_not_to_be_moved() -> None:
    client = cast(Client, Moving("done"))

    assert anyio.run(move_plan, client, "orders", 0, [1]).moves == []
