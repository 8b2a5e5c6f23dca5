"""How far a plan is that the cluster carries out, and what it waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import msgspec

from logd.cli.plans import NAMED_MAX, SavedStranded
from logd.errors import LogdError
from logd.wording import are, count_of, named

if TYPE_CHECKING:
    from logd.wire.messages import (
        DescribePartitionResponse,
        MetadataResponse,
        PlanInfo,
        PlannedMoveInfo,
    )
    from logd_client import Client

FOLLOW_INTERVAL_S: Final = 0.5
FOLLOW_ATTEMPTS_MAX: Final = 60
"""Looks in a row that may fail before the command gives up watching."""

T = TypeVar("T")


async def look_until(look: Callable[[], Awaitable[T | None]]) -> T:
    """Look again and again until there is a result.

    Raises:
        LogdError: nobody has answered for a while.
    """
    failures = 0
    while True:
        try:
            found = await look()
        except LogdError:
            failures += 1
            if failures >= FOLLOW_ATTEMPTS_MAX:
                raise
        else:
            failures = 0
            if found is not None:
                return found
        await anyio.sleep(FOLLOW_INTERVAL_S)


class MoveProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One move under way, as the partition's leader tells."""

    partition: str
    target: list[int]
    bytes_done: int
    bytes_total: int


class PlanProgress(msgspec.Struct, frozen=True, kw_only=True):
    """``rebalance status``."""

    plan_id: int
    purpose: str
    state: str
    moves: int
    done: int
    skipped: int
    cancelled: int
    bytes_done: int
    bytes_total: int
    running: list[MoveProgress]
    waiting: list[str] = []
    """Why moves do not get on, where that can be told: ``orders/1 has no leader; ...``."""
    stranded: list[SavedStranded] | None = None
    """What the plan left alone; None: only the command that made it can tell."""

    def moves_text(self, noun: str = "") -> str:
        """How many moves are done, and what became of those that will not be."""
        moves = count_of(self.moves, noun) if noun else str(self.moves)
        parts = [f"{self.done} of {moves} done"]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{self.cancelled} cancelled"] if self.cancelled else []
        return ", ".join(parts)


async def plan_progress(
    client: Client, plan: PlanInfo, names: dict[int, tuple[str, int]]
) -> PlanProgress:
    """Ask the leaders of the partitions that are being moved how far they are, and why not."""
    begun = [move for move in plan.moves if move.state == "running" and move.group in names]
    # If none is under way, the next ones may be what the plan waits for.
    due = [move for move in plan.moves if move.state == "pending" and move.group in names]
    asked = begun or due[:NAMED_MAX]
    found: dict[int, DescribePartitionResponse] = {}

    async def ask(move: PlannedMoveInfo) -> None:
        with suppress(LogdError), anyio.move_on_after(FOLLOW_INTERVAL_S * 4):
            found[move.group] = await client.admin.describe_partition(*names[move.group])

    async with anyio.create_task_group() as tasks:
        for move in asked:
            tasks.start_soon(ask, move)
    down = await _down(client, asked, found)
    receivers = {node for move in asked if move.group in found for node in _receivers(move)}
    full = await _full(client, receivers - down)
    reasons = {
        move.group: _reason_to_wait(move, found.get(move.group), down, full) for move in asked
    }
    running = {
        move.group: _move_progress(move, names[move.group], found.get(move.group)) for move in begun
    }
    states = [move.state for move in plan.moves]
    over = sum(move.size_bytes for move in plan.moves if move.state in ("done", "skipped"))
    return PlanProgress(
        plan_id=plan.plan_id,
        purpose=plan.purpose,
        state=plan.state,
        moves=plan.move_count,
        done=states.count("done"),
        skipped=states.count("skipped"),
        cancelled=states.count("cancelled"),
        bytes_done=over + sum(progress.bytes_done for progress in running.values()),
        bytes_total=sum(move.size_bytes for move in plan.moves),
        running=[running[group] for group in sorted(running)],
        waiting=[
            f"{topic}/{partition} {reason}"
            for group in sorted(reasons)
            if (reason := reasons[group])
            for topic, partition in [names[group]]
        ],
    )


def _move_progress(
    move: PlannedMoveInfo, name: tuple[str, int], found: DescribePartitionResponse | None
) -> MoveProgress:
    added = _receivers(move)
    partition = "/".join(map(str, name))
    if found is None:
        return MoveProgress(
            partition=partition, target=move.target, bytes_done=0, bytes_total=move.size_bytes
        )
    behind = {replica.node_id: replica.bytes_behind for replica in found.replicas}
    left = [behind.get(node) for node in added]
    return MoveProgress(
        partition=partition,
        target=move.target,
        bytes_done=sum(0 if each is None else max(0, found.size_bytes - each) for each in left),
        bytes_total=found.size_bytes * len(added),
    )


async def _down(
    client: Client,
    moves: Sequence[PlannedMoveInfo],
    found: dict[int, DescribePartitionResponse],
) -> set[int]:
    """The brokers that are down, as the leaders say, or the cluster where there is none."""
    down = {
        replica.node_id
        for answer in found.values()
        for replica in answer.replicas
        if not replica.alive
    }
    heard_of = {
        (group, replica.node_id) for group, answer in found.items() for replica in answer.replicas
    }
    if any((move.group, node) not in heard_of for move in moves for node in move.target):
        with suppress(LogdError):
            brokers = (await client.admin.describe_cluster()).brokers
            down |= {broker.node_id for broker in brokers if not broker.alive}
    return down


async def _full(client: Client, receivers: set[int]) -> set[int]:
    """Those whose disks are full: they are sent nothing until there is room."""
    full: set[int] = set()

    async def ask(node: int) -> None:
        with suppress(LogdError):
            told = await client.admin.describe_broker(node, timeout_s=FOLLOW_INTERVAL_S * 4)
            if told.disk_full:
                full.add(node)

    async with anyio.create_task_group() as tasks:
        for node in sorted(receivers):
            tasks.start_soon(ask, node)
    return full


def _receivers(move: PlannedMoveInfo) -> list[int]:
    return [node for node in move.target if node not in move.before]


def _reason_to_wait(
    move: PlannedMoveInfo,
    found: DescribePartitionResponse | None,
    down: set[int],
    full: set[int],
) -> str:
    """What a move waits for; empty: for nothing that is known."""
    if found is None:
        holders = sorted(down.intersection(move.before))
        return "has no leader" + (f": {_are_down(holders)}" if holders else " that answers")
    receivers = [node for node in _receivers(move) if node in down]
    if receivers:
        return f"waits for its target: {_are_down(receivers)}"
    receivers = [node for node in _receivers(move) if node in full]
    count = len(receivers)
    if receivers:
        disks = "disk is full" if count == 1 else "disks are full"
        return f"waits for its target: of {named('broker', receivers)} the {disks}"
    return ""


def _are_down(nodes: Sequence[int]) -> str:
    return f"{named('broker', nodes)} {are(len(nodes))} down"


def waiting_text(progress: PlanProgress) -> str:
    """Which moves are under way and why they wait, bounded; empty if there is none."""
    parts = []
    if progress.running:
        names = [move.partition for move in progress.running[:NAMED_MAX]]
        names += ["…"] if len(progress.running) > NAMED_MAX else []
        parts.append(f"under way: {', '.join(names)}")
    parts += progress.waiting[:NAMED_MAX]
    if len(progress.waiting) > NAMED_MAX:
        more = len(progress.waiting) - NAMED_MAX
        parts.append(f"{more} more {'waits' if more == 1 else 'wait'}")
    return "; ".join(parts)


def names_of(metadata: MetadataResponse) -> dict[int, tuple[str, int]]:
    """Group → topic and partition."""
    return {
        partition.group: (topic.name, partition.partition)
        for topic in metadata.topics
        for partition in topic.partitions
    }
