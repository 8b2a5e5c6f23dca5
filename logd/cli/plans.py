"""Plans on the command line: made from a picture of the cluster, shown, saved, started, followed.

The planner is a pure function and runs here, not on a broker: planning a large cluster takes
seconds of processor time that nobody who waits for records should pay.  What it must know it asks
the brokers: who they are, what they hold, how large it is and how fast it grows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import click
import msgspec

from logd.cli.display import count_of, print_json, print_table, say
from logd.errors import (
    DiskFullError,
    LogdError,
    NotEnoughBrokersError,
    RebalanceConflictError,
    UnavailableError,
    UsageError,
)
from logd.metadata.rebalance.cluster import BrokerLoad, Goals, PartitionLoad
from logd.metadata.rebalance.planner import (
    Balance,
    Move,
    Reason,
    RebalancePlan,
    make_plan,
    plan_only,
)
from logd.types import GroupId, NodeId, TopicPartition
from logd.wire.messages import PlannedMoveInfo

if TYPE_CHECKING:
    from logd.wire.messages import (
        DescribeBrokerResponse,
        DescribePartitionResponse,
        DescribeRebalanceResponse,
        MetadataResponse,
        PlanInfo,
    )
    from logd_client import Client

RATE_SAMPLE_S: Final = 1.0
"""Between two looks at what was appended: the rates that the traffic balance is made of."""

DISK_SHARE_MAX: Final = 0.9
"""Of a broker's free space that a plan may fill."""

FOLLOW_INTERVAL_S: Final = 0.5
FOLLOW_ATTEMPTS_MAX: Final = 60
"""Looks in a row that may fail before the command gives up watching."""

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


class Picture:
    """The cluster as a plan sees it."""

    def __init__(
        self,
        metadata: MetadataResponse,
        rebalance: DescribeRebalanceResponse,
        brokers: list[BrokerLoad],
        partitions: list[PartitionLoad],
    ) -> None:
        self.metadata = metadata
        self.rebalance = rebalance
        self.brokers = brokers
        self.partitions = partitions

    def plan(self, purpose: str, goals: Goals) -> SavedPlan:
        """Plan for ``goals``, ready to be shown, saved or started."""
        plan = make_plan(self.brokers, self.partitions, goals)
        return self.saved(purpose, plan, goals.throttle_bytes_per_s)

    def saved(self, purpose: str, plan: RebalancePlan, throttle_bytes_per_s: int) -> SavedPlan:
        return SavedPlan(
            cluster_id=self.metadata.cluster_id,
            layout_version=self.rebalance.layout_version,
            purpose=purpose,
            bytes=plan.bytes,
            estimated_s=round(plan.estimated_s, 3),
            throttle_bytes_per_s=throttle_bytes_per_s,
            balance_before=_rounded(plan.balance_before),
            balance_after=_rounded(plan.balance_after),
            left_out=plan.left_out,
            unplaced=[str(name) for name in plan.unplaced],
            stranded=[
                SavedStranded(
                    topic=each.name.topic,
                    partition=each.name.partition,
                    replicas=list(each.replicas),
                    down=list(each.dead),
                )
                for each in plan.stranded
            ],
            moves=[_saved_move(move) for move in plan.moves],
        )


def _saved_move(move: Move) -> SavedMove:
    return SavedMove(
        topic=move.name.topic,
        partition=move.name.partition,
        group=move.group,
        before=list(move.before),
        after=list(move.after),
        reason=move.reason.value,
        detail=move.detail,
        bytes=move.bytes,
        estimated_s=round(move.estimated_s, 3),
        balance_before=_rounded(move.balance_before),
        balance_after=_rounded(move.balance_after),
    )


def _rounded(balance: Balance) -> list[float]:
    return [round(share, 4) for share in balance]


async def take_picture(
    client: Client,
    *,
    dead_are_lost: bool = False,
    else_do: str = "plan without it (--replace-dead)",
) -> Picture:
    """Ask every broker what it holds.

    Args:
        dead_are_lost: plan as if brokers that are not alive never came back.
        else_do: what to advise whoever does not want to wait for one of those.

    Raises:
        UnavailableError: a broker is not alive, and may come back with what it holds.
    """
    rebalance = await client.admin.describe_rebalance()
    metadata = await client.admin.describe_cluster()
    missing = [broker.node_id for broker in metadata.brokers if not broker.alive]
    if missing and not dead_are_lost:
        raise UnavailableError(
            f"broker {', '.join(map(str, missing))} is not alive: wait until it is back, or "
            f"{else_do}"
        )
    first = await _describe_all(client, metadata)
    await anyio.sleep(RATE_SAMPLE_S)
    second = await _describe_all(client, metadata)
    sizes, rates = _weights(first, second)
    held: defaultdict[int, set[int]] = defaultdict(set)
    for topic in metadata.topics:
        for partition in topic.partitions:
            for node in partition.replicas:
                held[node].add(partition.group)
    brokers = [
        BrokerLoad(
            NodeId(broker.node_id),
            broker.failure_domain,
            broker.rack,
            is_draining=broker.draining,
            is_dead=not broker.alive,
            bytes_max=_room(second.get(broker.node_id), held[broker.node_id]),
        )
        for broker in metadata.brokers
    ]
    partitions = [
        PartitionLoad(
            GroupId(partition.group),
            TopicPartition(topic.name, partition.partition),
            tuple(map(NodeId, partition.replicas)),
            sizes.get(partition.group, 0),
            rates.get(partition.group, 0),
        )
        for topic in metadata.topics
        for partition in topic.partitions
    ]
    return Picture(metadata, rebalance, brokers, partitions)


async def _describe_all(
    client: Client, metadata: MetadataResponse
) -> dict[int, DescribeBrokerResponse]:
    found: dict[int, DescribeBrokerResponse] = {}

    async def ask(node_id: int) -> None:
        with suppress(LogdError):  # Its partitions are then weighed by their other replicas.
            found[node_id] = await client.admin.describe_broker(node_id)

    async with anyio.create_task_group() as tasks:
        for broker in metadata.brokers:
            if broker.alive:
                tasks.start_soon(ask, broker.node_id)
    return found


def _weights(
    first: dict[int, DescribeBrokerResponse], second: dict[int, DescribeBrokerResponse]
) -> tuple[dict[int, int], dict[int, int]]:
    """Bytes and bytes per second of each group."""
    before = {
        (node, replica.group): replica.bytes_in
        for node, answer in first.items()
        for replica in answer.replicas
    }
    sizes: dict[int, int] = {}
    rates: dict[int, int] = {}
    for node, answer in second.items():
        for replica in answer.replicas:
            sizes[replica.group] = max(sizes.get(replica.group, 0), replica.size_bytes)
            grown = replica.bytes_in - before.get((node, replica.group), replica.bytes_in)
            rates[replica.group] = max(rates.get(replica.group, 0), grown)
    return sizes, rates


def _room(answer: DescribeBrokerResponse | None, held: Collection[int]) -> int | None:
    """Bytes of partitions that a broker may hold; None: it does not say.

    Args:
        held: the groups that count as its own; what else is there takes room.
    """
    if answer is None or answer.disk_free_bytes == 0:
        return None
    held_bytes = sum(each.size_bytes for each in answer.replicas if each.group in held)
    return held_bytes + int(answer.disk_free_bytes * DISK_SHARE_MAX)


# --- files ------------------------------------------------------------------------------------


def save_plan(plan: SavedPlan, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")


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


def bytes_text(count: float) -> str:
    """``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit takes all")


def time_text(seconds: float) -> str:
    """``1 h 05 min``, ``2 min 03 s``, ``4 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


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
        say(f"… and {len(plan.moves) - MOVES_SHOWN_MAX} moves more (--output json has all)")
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
        say(f"{plan.left_out} moves are left for the next plan")
    if plan.unplaced:
        say(f"too few brokers for {len(plan.unplaced)} partitions: {', '.join(plan.unplaced[:3])}")
    say_stranded(plan)


def say_stranded(plan: SavedPlan) -> None:
    """Name what a plan leaves alone because nobody can lead it, and the ways out."""
    if not plan.stranded:
        return
    count = count_of(len(plan.stranded), "partition")
    some = "; ".join(
        f"{each.topic}/{each.partition} (on {_listed(each.replicas)}, down: {_listed(each.down)})"
        for each in plan.stranded[:NAMED_MAX]
    )
    more = len(plan.stranded) - NAMED_MAX
    say(
        f"left where they are, because too few of their replicas are alive to elect a leader: "
        f"{count}: {some}{f'; and {more} more' if more > 0 else ''}"
    )
    down = _listed(sorted({node for each in plan.stranded for node in each.down}))
    say(
        f"start broker {down} again with its data directory, or delete the topic with "
        "`logd topic delete`: what is only on its disk is then lost"
    )


def _listed(nodes: Sequence[int]) -> str:
    return ",".join(map(str, nodes))


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


# --- running ----------------------------------------------------------------------------------


def require_all_placed(plan: SavedPlan) -> None:
    """Refuse a plan that would leave replicas where they must not stay.

    Raises:
        NotEnoughBrokersError: names them.
    """
    if plan.unplaced:
        raise NotEnoughBrokersError(
            f"there are too few other brokers to hold {len(plan.unplaced)} partitions, among them "
            f"{', '.join(plan.unplaced[:3])}"
        )


async def require_room(client: Client, plan: SavedPlan) -> None:
    """Refuse a plan that would fill a disk.

    Raises:
        DiskFullError: names the broker, what would come and what is free.
    """
    coming: dict[int, int] = {}
    for move in plan.moves:
        added = [node for node in move.after if node not in move.before]
        for node in added:
            coming[node] = coming.get(node, 0) + move.bytes // len(added)
    for node, size in sorted(coming.items()):
        free = (await client.admin.describe_broker(node)).disk_free_bytes
        if free and size > free * DISK_SHARE_MAX:
            raise DiskFullError(
                f"broker {node} would get {bytes_text(size)} and has {bytes_text(free)} free, of "
                f"which a plan may take {DISK_SHARE_MAX:.0%}"
            )


def require_none_running(picture: Picture) -> None:
    """Refuse while another plan is carried out.

    Raises:
        RebalanceConflictError: says which one, and how far it is.
    """
    plan = picture.rebalance.plan
    if plan is not None and plan.state in ("running", "cancelling"):
        done = sum(move.state == "done" for move in plan.moves)
        raise RebalanceConflictError(
            f"plan {plan.plan_id} ({plan.purpose}) is {plan.state}, {done} of {plan.move_count} "
            "moves are done: wait for it (`logd rebalance status --watch`), or cancel it "
            "(`logd rebalance cancel`)"
        )


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


async def move_plan(
    client: Client, topic: str, partition: int, targets: Sequence[int]
) -> SavedPlan:
    """A plan of one move that a person decided on."""
    rebalance = await client.admin.describe_rebalance()
    info = (await client.admin.describe_topic(topic)).partitions[partition]
    size = (await client.admin.describe_partition(topic, partition)).size_bytes
    added = [node for node in targets if node not in info.replicas]
    moves = [
        SavedMove(
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
    ]
    is_there = list(targets) == info.replicas
    return SavedPlan(
        cluster_id="",
        layout_version=rebalance.layout_version,
        purpose=f"move {topic}/{partition}",
        bytes=sum(move.bytes for move in moves),
        estimated_s=sum(move.estimated_s for move in moves),
        throttle_bytes_per_s=rebalance.throttle_bytes_per_s,
        balance_before=[],
        balance_after=[],
        left_out=0,
        unplaced=[],
        moves=[] if is_there else moves,
    )


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
    bytes_per_s: float | None
    eta_s: float | None
    running: list[MoveProgress]
    waiting: list[str] = []
    """Why moves do not get on, where that can be told: ``orders/1 has no leader; ...``."""
    stranded: list[SavedStranded] | msgspec.UnsetType = msgspec.UNSET
    """What the plan left alone; only the command that made it can tell."""

    def moves_text(self, noun: str = "") -> str:
        """How many moves are done, and what became of those that will not be."""
        parts = [f"{self.done} of {self.moves}{noun} done"]
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
    reasons = {move.group: _reason_to_wait(move, found.get(move.group), down) for move in asked}
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
        bytes_per_s=None,
        eta_s=None,
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
    added = [node for node in move.target if node not in move.before]
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


def _reason_to_wait(
    move: PlannedMoveInfo, found: DescribePartitionResponse | None, down: set[int]
) -> str:
    """What a move waits for; empty: for nothing that is known."""
    if found is None:
        holders = sorted(down.intersection(move.before))
        return "has no leader" + (f": {_are_down(holders)}" if holders else " that answers")
    receivers = [node for node in move.target if node not in move.before and node in down]
    return f"waits for its target: {_are_down(receivers)}" if receivers else ""


def _are_down(nodes: Sequence[int]) -> str:
    names = ", ".join(map(str, nodes))
    return f"broker {names} is down" if len(nodes) == 1 else f"brokers {names} are down"


def waiting_text(progress: PlanProgress) -> str:
    """Which moves are under way and why they wait, bounded; empty if there is none."""
    parts = []
    if progress.running:
        names = [move.partition for move in progress.running[:NAMED_MAX]]
        names += ["…"] if len(progress.running) > NAMED_MAX else []
        parts.append(f"under way: {', '.join(names)}")
    parts += progress.waiting[:NAMED_MAX]
    if len(progress.waiting) > NAMED_MAX:
        parts.append(f"{len(progress.waiting) - NAMED_MAX} more wait")
    return "; ".join(parts)


def names_of(metadata: MetadataResponse) -> dict[int, tuple[str, int]]:
    """Group → topic and partition."""
    return {
        partition.group: (topic.name, partition.partition)
        for topic in metadata.topics
        for partition in topic.partitions
    }


async def follow(client: Client, plan_id: int, output: str) -> PlanProgress:
    """Show how a plan goes on until it is over.  The plan does not need anybody to look.

    Raises:
        LogdError: nobody has answered for a while.
    """
    from logd.cli.moving import MoveBars

    names = names_of(await client.admin.describe_cluster())
    failures = 0
    with MoveBars(is_shown=output != "json") as bars:
        while True:
            try:
                plan = (await client.admin.describe_rebalance()).plan
                if plan is None or plan.plan_id != plan_id:
                    raise UnavailableError(f"plan {plan_id} is not known to the broker asked")
                progress = await plan_progress(client, plan, names)
            except LogdError:
                failures += 1
                if failures >= FOLLOW_ATTEMPTS_MAX:
                    raise
            else:
                failures = 0
                bars.show(progress)
                if progress.state in ("done", "cancelled"):
                    return progress
            await anyio.sleep(FOLLOW_INTERVAL_S)


Tell = Callable[[object], None]
"""How a document is printed, by whom prints no other."""


def finish(
    progress: PlanProgress, output: str, made: SavedPlan | None = None, tell: Tell = print_json
) -> None:
    """Say how a plan ended; the exit code too.

    Args:
        made: the plan, by whom made it: what it left alone is told as well.

    Raises:
        Exit: it did not end as planned.
    """
    from logd.cli.exits import ExitCode

    if output == "json":
        if made is not None:
            progress = msgspec.structs.replace(progress, stranded=made.stranded)
        tell(progress)
    else:
        click.echo(f"plan {progress.plan_id} ({progress.purpose}) is {progress.state}: "
                   + progress.moves_text(" moves"))  # fmt: skip
    if progress.state == "cancelled" or 0 < progress.moves == progress.cancelled:
        raise click.exceptions.Exit(ExitCode.FAILED)
    if progress.skipped or progress.cancelled:
        raise click.exceptions.Exit(ExitCode.DEGRADED)


async def run_plan(
    client: Client, plan: SavedPlan, output: str, *, detach: bool, tell: Tell = print_json
) -> None:
    """Start a plan and follow it.

    Raises:
        Exit: it did not end as planned, or left partitions alone.
    """
    if not plan.moves:
        if output == "json":
            tell(plan)
        else:
            click.echo("nothing to move")
        end_incomplete(plan, output)
        return
    plan_id = await start_plan(client, plan)
    if detach:
        shown: Any = {
            "plan_id": plan_id,
            "moves": len(plan.moves),
            "bytes": plan.bytes,
            "stranded": plan.stranded,
        }
        if output == "json":
            tell(shown)
        else:
            moves = count_of(len(plan.moves), "move")
            click.echo(f"plan {plan_id} runs: {moves}, {bytes_text(plan.bytes)}")
        end_incomplete(plan, output)
        return
    if output != "json":
        say(f"plan {plan_id} runs in the cluster, also without this command; Ctrl-C ends watching, "
            "`logd rebalance cancel` ends the plan")  # fmt: skip
    finish(await follow(client, plan_id, output), output, plan, tell)
    end_incomplete(plan, output)


async def set_pace(client: Client, throttle: int | None, concurrency: int | None) -> None:
    """Change throttle and concurrency if they are given."""
    if throttle is not None or concurrency is not None:
        await client.admin.set_rebalancing(throttle_bytes_per_s=throttle, concurrency=concurrency)


async def set_replicas(
    client: Client, topic: str, count: int, output: str, tell: Tell = print_json
) -> None:
    """Give every partition of ``topic`` as many replicas.

    Raises:
        UnknownTopicError: there is no such topic.
        NotEnoughBrokersError: there are fewer brokers.
    """
    await client.admin.describe_topic(topic)
    picture = await take_picture(
        client, else_do="replace it first (`logd broker replace` with its id)"
    )
    able = sum(broker.is_target for broker in picture.brokers)
    if count > able:
        raise NotEnoughBrokersError(
            f"{count} replicas need as many brokers that are alive and not draining, found {able}"
        )
    partitions = [
        partition._replace(replica_count=count) if partition.name.topic == topic else partition
        for partition in picture.partitions
    ]
    groups = {partition.group for partition in partitions if partition.name.topic == topic}
    goals = Goals(is_balancing=False, throttle_bytes_per_s=picture.rebalance.throttle_bytes_per_s)
    plan = plan_only(picture.brokers, partitions, groups, goals)
    made = picture.saved(f"{count} replicas of {topic}", plan, goals.throttle_bytes_per_s)
    require_all_placed(made)
    if output != "json" and made.moves:
        show_plan(made, output)
    await run_plan(client, made, output, detach=False, tell=tell)
