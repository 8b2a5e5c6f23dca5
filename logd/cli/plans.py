"""Plans on the command line: what they are, how they are kept in files, shown, and started.

How one is worked out is the matter of ``picture``, how it gets on of ``plan_progress``, and what a
command that runs one does of ``running_plans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from logd.cli.display import bytes_text, print_json, print_table, say, time_text
from logd.errors import (
    NoRoomError,
    NotEnoughBrokersError,
    RebalanceConflictError,
    UsageError,
)
from logd.metadata.rebalance.cluster import DISK_SHARE_MAX
from logd.metadata.rebalance.planner import Reason
from logd.wire.messages import PlannedMoveInfo
from logd.wording import are, count_of, each_with, listed, named

if TYPE_CHECKING:
    from logd.wire.messages import DescribeBrokerResponse, PlanInfo
    from logd_client import Client

MOVES_SHOWN_MAX: Final = 40
NAMED_MAX: Final = 3
"""Partitions that one line names."""


class SavedMove(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    topic: str
    partition: int
    group: int
    before: list[int]
    after: list[int]
    reason: str
    detail: str
    bytes: int
    estimated_s: float
    balance_before: list[float]
    balance_after: list[float]


class SavedStranded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A partition that no plan can move, because nobody can lead it."""

    topic: str
    partition: int
    replicas: list[int]
    down: list[int]


class SavedPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan as a file.  The balances are: replicas, leaders, bytes, traffic."""

    format: int = 1
    cluster_id: str
    layout_version: int
    purpose: str
    bytes: int
    estimated_s: float
    throttle_bytes_per_s: int
    balance_before: list[float]
    balance_after: list[float]
    left_out: int
    unplaced: list[str]
    stranded: list[SavedStranded] = []
    moves: list[SavedMove]


# --- files ------------------------------------------------------------------------------------


def save_plan(plan: SavedPlan, path: Path) -> None:
    document = msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"
    try:
        path.write_bytes(document)
    except OSError as error:
        # Opening names the file by itself, writing does not.
        raise OSError(error.errno, error.strerror, str(path)) from error


def load_plan(path: Path, cluster_id: str) -> SavedPlan:
    """Read a plan back.

    Raises:
        UsageError: the file is no plan, or one for another cluster.
    """
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=SavedPlan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a rebalance plan: {error}") from error
    if plan.format != 1:
        raise UsageError(f"{path}: plan of format {plan.format}, this version reads 1")
    if plan.cluster_id != cluster_id:
        raise UsageError(
            f"{path}: the plan is for cluster {plan.cluster_id}, this one is {cluster_id}"
        )
    return plan


# --- showing ----------------------------------------------------------------------------------


def show_plan(plan: SavedPlan, output: str) -> None:
    """The plan as a table with its sums, or as JSON."""
    if output == "json":
        print_json(plan)
        return
    print_table(
        ("partition", "from", "to", "bytes", "time", "reason"),
        [
            (
                f"{move.topic}/{move.partition}",
                move.before,
                move.after,
                bytes_text(move.bytes),
                time_text(move.estimated_s),
                f"{move.reason}: {move.detail}",
            )
            for move in plan.moves[:MOVES_SHOWN_MAX]
        ],
        empty="nothing to move",
    )
    if len(plan.moves) > MOVES_SHOWN_MAX:
        more = len(plan.moves) - MOVES_SHOWN_MAX
        say(f"… and {count_of(more, 'move')} more (--output json has all)")
    if plan.moves:
        names = ("replicas", "leaders", "bytes", "traffic")
        click.echo(
            f"{count_of(len(plan.moves), 'move')}, {bytes_text(plan.bytes)}, about "
            f"{time_text(plan.estimated_s)} at {bytes_text(plan.throttle_bytes_per_s)}/s"
        )
        click.echo(
            "furthest from even, before → after: "
            + ", ".join(
                f"{name} {before:.0%} → {after:.0%}"
                for name, before, after in zip(
                    names, plan.balance_before, plan.balance_after, strict=True
                )
            )
        )
    if plan.left_out:
        say(f"{count_of(plan.left_out, 'move')} {are(plan.left_out)} left for the next plan")
    if plan.unplaced:
        say(f"too few brokers for {_unplaced_text(plan)}")
    say_stranded(plan)


def _unplaced_text(plan: SavedPlan) -> str:
    more = ", …" if len(plan.unplaced) > NAMED_MAX else ""
    names = ", ".join(plan.unplaced[:NAMED_MAX])
    return f"{count_of(len(plan.unplaced), 'partition')}: {names}{more}"


def say_stranded(plan: SavedPlan) -> None:
    """Name what a plan leaves alone because nobody can lead it, and the ways out."""
    if not plan.stranded:
        return
    count = count_of(len(plan.stranded), "partition")
    some = "; ".join(
        f"{each.topic}/{each.partition} (on {listed(each.replicas)}, down: {listed(each.down)})"
        for each in plan.stranded[:NAMED_MAX]
    )
    more = len(plan.stranded) - NAMED_MAX
    say(
        f"left where they are, because too few of their replicas are alive to elect a leader: "
        f"{count}: {some}{f'; and {more} more' if more > 0 else ''}"
    )
    down = sorted({node for each in plan.stranded for node in each.down})
    say(
        f"start {named('broker', down)} again {each_with(down)} its data directory, or delete the "
        "topic with `logd topic delete`: what is only there is then lost"
    )


def end_incomplete(plan: SavedPlan, output: str) -> None:
    """Say what a plan could not be for, if anything, and end with the exit code of that.

    Raises:
        Exit: it left partitions alone.
    """
    from logd.cli.exits import ExitCode

    if plan.stranded:
        if output != "json":
            say_stranded(plan)
        raise click.exceptions.Exit(ExitCode.FAILED)


# --- starting ---------------------------------------------------------------------------------


def require_all_placed(plan: SavedPlan) -> None:
    """Refuse a plan that would leave replicas where they must not stay.

    Raises:
        NotEnoughBrokersError: names them.
    """
    if plan.unplaced:
        raise NotEnoughBrokersError(
            f"there are too few other brokers to hold {_unplaced_text(plan)}; start another broker "
            "with `logd serve --join`, or have fewer replicas: `logd topic alter NAME --replicas N`"
        )


async def require_room(client: Client, plan: SavedPlan) -> None:
    """Refuse a plan that would fill a disk.

    Raises:
        NoRoomError: names the broker, what would come and what is free.
    """
    coming: dict[int, int] = {}
    for move in plan.moves:
        added = [node for node in move.after if node not in move.before]
        for node in added:
            coming[node] = coming.get(node, 0) + move.bytes // len(added)
    for node, size in sorted(coming.items()):
        free = free_for_plans(await client.admin.describe_broker(node))
        if free and size > free * DISK_SHARE_MAX:
            raise NoRoomError(
                f"broker {node} would get {bytes_text(size)} and has {bytes_text(free)} free above "
                f"its disk_free_bytes_min, of which a plan may take {DISK_SHARE_MAX:.0%}"
            )


def free_for_plans(answer: DescribeBrokerResponse) -> int:
    """Bytes that a broker has free above its minimum, or in all if it is of a version that does not
    say; 0: it has not looked yet."""
    return answer.disk_room_bytes or answer.disk_free_bytes


async def start_plan(client: Client, plan: SavedPlan) -> int:
    """Have the cluster carry out a plan; returns its id."""
    await require_room(client, plan)
    moves = [
        PlannedMoveInfo(
            group=move.group,
            before=move.before,
            target=move.after,
            reason=f"{move.reason}: {move.detail}"[:200],
            size_bytes=move.bytes,
        )
        for move in plan.moves
    ]
    return await client.admin.start_plan(plan.purpose, plan.layout_version, moves)


# --- plans that are given, not worked out ----------------------------------------------------


async def move_plan(
    client: Client, topic: str, partition: int, targets: Sequence[int]
) -> SavedPlan:
    """A plan of one move that a person decided on.

    Raises:
        RebalanceConflictError: it is there already, and on its way to others.
    """
    rebalance = await client.admin.describe_rebalance()
    info = (await client.admin.describe_topic(topic)).partitions[partition]
    is_there = list(targets) == info.replicas
    goes_to = info.target or _planned_target(rebalance.plan, info.group)
    if is_there and goes_to:
        raise RebalanceConflictError(
            f"{topic}/{partition} is on {listed(targets)} and being moved to {listed(goes_to)}: "
            f"`logd partition move {topic}/{partition} --cancel` leaves it where it is"
        )
    size = (await client.admin.describe_partition(topic, partition)).size_bytes
    added = [node for node in targets if node not in info.replicas]
    move = SavedMove(
        topic=topic,
        partition=partition,
        group=info.group,
        before=info.replicas,
        after=list(targets),
        reason=Reason.ASKED.value,
        detail="by command",
        bytes=size * len(added),
        estimated_s=size * len(added) / rebalance.throttle_bytes_per_s,
        balance_before=[],
        balance_after=[],
    )
    return _plan_of(
        [] if is_there else [move],
        f"move {topic}/{partition}",
        rebalance.layout_version,
        rebalance.throttle_bytes_per_s,
    )


def _planned_target(plan: PlanInfo | None, group: int) -> list[int] | None:
    """Where a plan that is not over will have moved a partition; None: it leaves it alone."""
    moves = [] if plan is None else plan.moves
    of_group = (move for move in moves if move.group == group)
    return next((move.target for move in of_group if move.state in ("pending", "running")), None)


def rollback_plan(plan: PlanInfo, layout_version: int, throttle_bytes_per_s: int) -> SavedPlan:
    """A plan that moves back what ``plan`` has moved, last things first."""
    moves = [
        SavedMove(
            topic="",
            partition=0,
            group=move.group,
            before=move.target,
            after=move.before,
            reason="rollback",
            detail=f"undoes plan {plan.plan_id}",
            bytes=move.size_bytes,
            estimated_s=move.size_bytes / throttle_bytes_per_s,
            balance_before=[],
            balance_after=[],
        )
        for move in reversed(plan.moves)
        if move.state == "done"
    ]
    purpose = f"rollback of plan {plan.plan_id}"
    return _plan_of(moves, purpose, layout_version, throttle_bytes_per_s)


def _plan_of(
    moves: list[SavedMove], purpose: str, layout_version: int, throttle_bytes_per_s: int
) -> SavedPlan:
    """It is carried out at once, and says nothing of balance."""
    return SavedPlan(
        cluster_id="",
        layout_version=layout_version,
        purpose=purpose,
        bytes=sum(move.bytes for move in moves),
        estimated_s=sum(move.estimated_s for move in moves),
        throttle_bytes_per_s=throttle_bytes_per_s,
        balance_before=[],
        balance_after=[],
        left_out=0,
        unplaced=[],
        moves=moves,
    )
