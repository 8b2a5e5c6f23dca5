"""What the cluster does about itself, without a command: replace, rebuild, drain on, even out.

Only the controller acts, and it only starts plans: carrying them out, showing and cancelling
them is as with any other.  It counts from when it first saw a broker missing, so that a new
controller waits the whole time anew rather than act on what somebody else saw.  Whatever it does
or would do is said in ``autonomy_notes`` and in the log, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from logd.broker import log_events
from logd.broker.peer_reports import ask_peers, reader_of
from logd.broker.plan_runner import is_controller, is_stuck, skip_move
from logd.broker.rebuilding import MAKE_ANEW, TAKE_OUT, Rebuilding
from logd.errors import LogdError
from logd.limits import PLAN_MOVES_AT_ONCE
from logd.metadata.commands import CancelMove, Command, StartPlan
from logd.metadata.features import GIVING_UP_LEVEL, KEEPING_LEVEL, LEAVING_LEVEL
from logd.metadata.moves import BY_ITSELF, Plan, PlannedMove, fitting_purpose
from logd.metadata.rebalance.cluster import (
    DISK_SHARE_MAX,
    BrokerLoad,
    Goals,
    PartitionLoad,
    is_majority_alive,
)
from logd.metadata.rebalance.outlook import outlook
from logd.metadata.rebalance.planner import Move, RebalancePlan, make_plan, plan_only
from logd.types import GroupId, NodeId
from logd.wording import are, count_of, each_with, named

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.metadata.state import MetadataState
    from logd.types import TopicPartition

log = structlog.get_logger(__name__)

LOOK_INTERVAL_S: Final = 1.0
COMMAND_TIMEOUT_MS: Final = 10_000
DRAIN_GRACE_S: Final = 15.0
"""Whoever drains a broker starts the plan too; this is for the case that it died in between."""

ARRIVAL_PATIENCE_S: Final = 30.0
"""A long plan comes in pieces.  If the next one takes longer, whoever sent them has gone."""

TRY_AGAIN_S: Final = 30.0
"""After something that cannot be done now: too few brokers, or no room."""

GENTLE_MOVES_MAX: Final = 8
GENTLE_TOLERANCE: Final = 0.1
GENTLE_GAIN_MIN: Final = 0.05
"""Evening out goes on by itself in small plans, and leaves alone what is nearly even, or would
not be more even by much."""

GENTLE_EVALUATIONS_MAX: Final = 20_000
"""It costs the controller processor time that clients wait for."""

NAMED_MAX: Final = 3
"""Partitions that one note names."""


class _Led(msgspec.Struct, frozen=True):
    group: int
    log_bytes: int


class _Report(msgspec.Struct, frozen=True):
    """The part of a broker's report that planning needs."""

    disk_free_bytes: int
    led: list[_Led]
    disk_room_bytes: int = 0
    """0: of a version that tells only what is free."""


_read_report = reader_of(_Report)


class _Loads:
    """What the partitions weigh, and what the disks have left, as far as brokers answer."""

    def __init__(self) -> None:
        self.sizes: dict[GroupId, int] = {}
        self.free: dict[NodeId, int] = {}
        self.unfit: Collection[NodeId] = ()
        """Brokers whose disks are full or failing: they keep what they hold, and get no more."""


class Autonomy:
    """The controller's part in keeping the cluster whole."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._missing_since: dict[NodeId, float] = {}
        self._draining_since: dict[NodeId, float] = {}
        self._keeping: set[NodeId] = set()
        """Of these, who keeps something; until a drain is asked for again."""
        self._arrived: tuple[int, int] | None = None
        """The last plan that was seen incomplete, and how many of its moves there were."""
        self._arrived_at = 0.0
        self._evened_at = trio.current_time()
        self._not_before = 0.0
        self._lost_before: list[NodeId] = []
        self._rebuilding = Rebuilding(broker)
        self._problems: list[str] = []
        """What of it could not be done when it was last tried."""

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            self._rebuilding.note_plan()
            if not is_controller(self._broker):
                self._missing_since.clear()
                self._draining_since.clear()
                self._keeping.clear()
                self._arrived = None
                self._rebuilding.forget()
                self._problems = []
                self._broker.autonomy_notes = []
                self._broker.lost_brokers = []
                continue
            self._look()
            self._broker.autonomy_notes = self._notes()
            is_autonomous = self._broker.metadata.state.rebalance_settings.is_autonomous
            self._broker.lost_brokers = self._lost() if is_autonomous else []
            if is_autonomous:
                try:
                    await self._act()
                except LogdError as error:
                    log.info(log_events.METADATA_REFUSED, reason=str(error))

    # --- seeing -------------------------------------------------------------------------------

    def _look(self) -> None:
        now = trio.current_time()
        metadata = self._broker.metadata
        missing = metadata.brokers_down()
        draining = [b.node for b in metadata.state.brokers if b.is_draining]
        keeping = {b.node for b in metadata.state.brokers if b.keeps}
        for node in self._keeping - keeping:
            self._draining_since.pop(node, None)  # Whoever asks again starts the plan again too.
        self._keeping = keeping
        for seen, since in ((missing, self._missing_since), (draining, self._draining_since)):
            for node in [node for node in since if node not in seen]:
                del since[node]
            for node in seen:
                since.setdefault(node, now)
        lost = self._lost()
        if lost != self._lost_before:
            # What could not be done for others may be possible, or not needed any more.
            self._lost_before, self._problems, self._not_before = lost, [], 0.0

    def _lost(self) -> list[NodeId]:
        """Brokers that have been missing for too long."""
        replace_after_ms = self._broker.config.replace_after_ms
        if replace_after_ms == 0:
            return []
        now = trio.current_time()
        return [
            node
            for node, since in self._missing_since.items()
            if (now - since) * 1000 >= replace_after_ms
        ]

    def _notes(self) -> list[str]:
        state, config = self._broker.metadata.state, self._broker.config
        is_on = state.rebalance_settings.is_autonomous and config.replace_after_ms > 0
        notes: list[str] = []
        lost = self._lost()
        takers = [
            known.node
            for known in state.brokers
            if not known.is_draining and known.node not in self._missing_since
        ]
        now = trio.current_time()
        for node, since in sorted(self._missing_since.items()):
            # What is on its way there is not there yet.
            held = [p.replicas for p in state.partitions_on(node) if node in p.replicas]
            told = f"broker {node} has been missing for {now - since:.0f} s"
            if not held:
                if node in lost:
                    notes.append(
                        f"{told} and holds nothing: start it again, or have it forgotten with "
                        f"`logd broker remove {node}`"
                    )
                continue
            found = outlook(node, held, self._missing_since, takers)
            left_s = config.replace_after_ms / 1000 - (now - since)
            if not is_on:
                stays = "stays where it is" if len(held) == 1 else "stay where they are"
                stay = f"its {count_of(len(held), 'replica')} {stays}: autonomy is off"
                notes.append(f"{told}; {stay}")
            elif left_s > 0:
                notes.append(f"{told}; {found.text(f'rebuilt elsewhere in {left_s:.0f} s')}")
            elif state.plan is not None and not state.plan.is_over:
                notes.append(f"{told}; {found.text('being rebuilt elsewhere')}")
            else:
                notes.append(f"{told}; {found.text('to be rebuilt elsewhere')}")
        waits = self._broker.autonomy_waits_until - now
        if waits > 0 and state.rebalance_settings.is_autonomous:
            notes.append(
                f"nothing is begun by itself for {waits:.0f} s: somebody has asked for something"
            )
        return notes + self._kept_notes() + self._stuck_notes() + self._problems

    def _kept_notes(self) -> list[str]:
        """What drains leave where it is, because somebody has cancelled that move."""
        state = self._broker.metadata.state
        notes = []
        for broker in state.brokers:
            kept = [p.name for p in state.partitions_on(broker.node) if p.group in broker.keeps]
            if kept:
                notes.append(
                    f"broker {broker.node} is drained but for {_listed(kept)}: that was "
                    f"cancelled; `logd broker drain {broker.node}` moves it too, "
                    f"`logd broker resume {broker.node}` ends the drain"
                )
        return notes

    def _stuck_notes(self) -> list[str]:
        """Moves that nobody can carry out nor take back, and what becomes of them."""
        state = self._broker.metadata.state
        stuck = [p for p in state.moving if is_stuck(self._broker, p)]
        notes = []
        for placement in stuck[:NAMED_MAX]:
            assert placement.move is not None
            down = [node for node in placement.holders if node in self._missing_since]
            then = "the other moves go on"
            if placement.move.is_left:
                then = "plans go on without it, and it is taken back once there is a leader"
            elif state.feature_level >= LEAVING_LEVEL:
                then += ", and `logd rebalance cancel` does not wait for it"
            notes.append(
                f"{placement.name}, which moves to {', '.join(map(str, placement.move.target))}, "
                f"has no leader, because {named('broker', down)} {are(len(down))} missing: {then}"
            )
        if len(stuck) > NAMED_MAX:
            more = len(stuck) - NAMED_MAX
            notes.append(f"{count_of(more, 'more move')} without a leader")
        return notes

    # --- acting -------------------------------------------------------------------------------

    async def _act(self) -> None:
        lost = self._lost()
        await self._give_up_moves_to(lost)
        await self._give_up_moves_without(lost)
        state = self._broker.metadata.state
        plan = state.plan
        is_under_way = plan is not None and not plan.is_over and not self._never_arrived(plan)
        if is_under_way or any(p.move is not None and not p.move.is_left for p in state.moving):
            return
        now = trio.current_time()
        if now < max(self._not_before, self._broker.autonomy_waits_until):
            return
        told, self._problems = self._problems, []
        try:
            await self._begin_something(lost)
        finally:
            for problem in self._problems:
                if problem not in told:
                    log.warning(log_events.REPLACEMENT_IMPOSSIBLE, reason=problem)

    def _never_arrived(self, plan: Plan) -> bool:
        """Whether the rest of ``plan`` has been waited for long enough: nobody else would end it,
        and it makes way for another."""
        if plan.state != "arriving":
            return False
        arrived = (plan.plan_id, len(plan.moves))
        if arrived != self._arrived:
            self._arrived, self._arrived_at = arrived, trio.current_time()
        return trio.current_time() - self._arrived_at >= ARRIVAL_PATIENCE_S

    async def _begin_something(self, lost: list[NodeId]) -> None:
        """Start the first plan that is due.  What cannot be done keeps nothing else waiting."""
        state, now = self._broker.metadata.state, trio.current_time()
        plan = state.plan
        wanted = self._rebuilding.to_make_anew()
        if wanted and await self._plan_for(set(wanted), MAKE_ANEW, wanted):
            return  # Before any other plan takes the place of the one that says so.
        if any(state.partitions_on(node) for node in lost) and await self._replace(lost):
            return
        if self._broker.config.replace_after_ms:
            await self._rebuilding.look()
            out = self._rebuilding.to_take_out()
            if out:
                version = self._broker.metadata.state.layout_version
                if await self._start(out, TAKE_OUT, version):
                    self._rebuilding.note_taken_out(out)
                return
        # Below that level a broker does not know what was cancelled of its drain.
        is_told = state.feature_level >= KEEPING_LEVEL
        if is_told or plan is None or plan.state != "cancelled":
            due = [n for n, since in self._draining_since.items() if now - since >= DRAIN_GRACE_S]
            if any(map(self._to_go_from, due)) and await self._empty(due):
                return
        interval_ms = self._broker.config.rebalance_interval_ms
        if interval_ms and (now - self._evened_at) * 1000 >= interval_ms:
            self._evened_at = now
            if self._missing_since.keys() <= set(lost):  # Others may come back with what they had.
                await self._even_out()

    async def _give_up_moves_to(self, lost: list[NodeId]) -> None:
        """A newcomer that does not come back would be waited for for ever, and so would others
        without which the old replicas, or the target, have no majority."""
        for placement in self._broker.metadata.state.moving:
            move = placement.move
            assert move is not None
            gone = [node for node in placement.holders if node in lost]
            is_hopeless = (
                any(node not in placement.replicas for node in gone)
                or not is_majority_alive(placement.replicas, gone)
                or not is_majority_alive(move.target, gone)
            )
            if is_hopeless and not move.is_cancelled:
                log.warning(
                    log_events.MOVE_SKIPPED,
                    partition=str(placement.name),
                    reason=_lost_text(gone),
                )
                level = self._broker.metadata.state.feature_level
                begun_at = move.begun_at if level >= GIVING_UP_LEVEL else None
                await self._execute(CancelMove(group=placement.group, begun_at=begun_at))

    async def _give_up_moves_without(self, lost: list[NodeId]) -> None:
        """A move that cannot begin before a lost broker returns would keep its plan for ever, and
        with it what is to be done for all other partitions."""
        plan = self._broker.metadata.state.plan
        if not lost or plan is None or plan.state != "running":
            return
        for move, progress in zip(plan.moves, plan.states, strict=True):
            if progress == "pending" and not is_majority_alive(move.before, lost):
                away = [node for node in move.before if node in lost]
                await skip_move(self._broker, plan, move, _lost_text(away))

    async def _replace(self, lost: list[NodeId]) -> bool:
        groups = {p.group for node in lost for p in self._broker.metadata.state.partitions_on(node)}
        seconds = self._broker.config.replace_after_ms / 1000
        span = f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
        names = named("broker", sorted(lost))
        return await self._plan_for(groups, f"replace {names}, missing for {span}")

    def _to_go_from(self, node: NodeId) -> set[GroupId]:
        """What a broker that is drained still has to give away."""
        state = self._broker.metadata.state
        broker = state.broker(node)
        if broker is None:
            return set()  # It has been removed since.
        return {p.group for p in state.partitions_on(node)}.difference(broker.keeps)

    async def _empty(self, draining: list[NodeId]) -> bool:
        groups = {group for node in draining for group in self._to_go_from(node)}
        return await self._plan_for(groups, f"drain {named('broker', sorted(draining))}")

    async def _plan_for(
        self, groups: set[GroupId], purpose: str, wanted: Mapping[GroupId, int] | None = None
    ) -> bool:
        """Plan what must be, for these groups alone, and start it.

        Args:
            wanted: replicas that a partition shall have; default: as many as it has.

        Returns:
            Whether there was anything that could be done.
        """
        version = self._broker.metadata.state.layout_version
        loads = await self._ask_for_loads()
        brokers, partitions = self._picture(loads)
        if wanted:
            partitions = [p._replace(replica_count=wanted.get(p.group)) for p in partitions]
        goals = Goals(is_balancing=False)
        plan = await self._broker.env.run_computing(
            lambda: plan_only(brokers, partitions, groups, goals)
        )
        moves = self._with_room(plan, partitions, loads.free)
        problems = _problems_of(plan, len(plan.moves) - len(moves))
        moving = self._broker.metadata.state.moving
        # What has begun meanwhile is somebody else's, and no problem.
        left = [p for p in moving if p.group in groups and p.move is not None and p.move.is_left]
        if left:
            problems.append(f"an earlier move of {len(left)} has not been taken back yet")
        if problems:
            what = f"{purpose}, {count_of(len(groups), 'partition')}"
            self._problems.append(f"{what}: {'; '.join(problems)}")
            self._not_before = trio.current_time() + TRY_AGAIN_S
        await self._start(_planned(moves), purpose, version)
        return bool(moves)

    async def _even_out(self) -> None:
        state = self._broker.metadata.state
        version = state.layout_version
        kept = {group for broker in state.brokers for group in broker.keeps}
        brokers, partitions = self._picture(await self._ask_for_loads(), leaving_out=kept)
        goals = Goals(
            tolerance=GENTLE_TOLERANCE,
            moves_max=GENTLE_MOVES_MAX,
            evaluations_max=GENTLE_EVALUATIONS_MAX,
            gain_min=GENTLE_GAIN_MIN,
        )
        plan = await self._broker.env.run_computing(lambda: make_plan(brokers, partitions, goals))
        await self._start(_planned(plan.moves), "even out", version)

    async def _start(self, moves: Sequence[PlannedMove], purpose: str, layout_version: int) -> bool:
        """False if there is nothing to do, or a person has asked for something meanwhile."""
        if not moves or trio.current_time() < self._broker.autonomy_waits_until:
            return False
        log.warning(log_events.PLAN_STARTED, reason=purpose, moves=len(moves))
        token = f"autonomy {self._broker.env.rng('autonomy').getrandbits(64):016x}"
        for first in range(0, len(moves), PLAN_MOVES_AT_ONCE):
            await self._execute(
                StartPlan(
                    token=token,
                    purpose=fitting_purpose(f"{BY_ITSELF}{purpose}"),
                    layout_version=layout_version,
                    move_count=len(moves),
                    first=first,
                    moves=tuple(moves[first : first + PLAN_MOVES_AT_ONCE]),
                    now_ms=self._broker.env.wall_clock_ms(),
                )
            )
        return True

    async def _execute(self, command: Command) -> None:
        await self._broker.metadata.execute(
            command, timeout_ms=COMMAND_TIMEOUT_MS, safe_to_repeat=True
        )

    # --- what is known ------------------------------------------------------------------------

    async def _ask_for_loads(self) -> _Loads:
        """Ask all brokers that are alive; those that do not answer are planned for unseen."""
        loads, node = _Loads(), self._broker.node
        loads.unfit = self._broker.metadata.unfit_disks()
        loads.free[node.node] = self._broker.disk.room_bytes
        for group in node.groups.values():
            loads.sizes[group.group_id] = group.log.size_bytes
        for peer, report in (await ask_peers(node, _read_report)).items():
            loads.free[peer] = report.disk_room_bytes or report.disk_free_bytes
            loads.sizes.update((GroupId(row.group), row.log_bytes) for row in report.led)
        return loads

    def _picture(
        self, loads: _Loads, leaving_out: Collection[GroupId] = ()
    ) -> tuple[list[BrokerLoad], list[PartitionLoad]]:
        state = self._broker.metadata.state
        partitions = [
            PartitionLoad(
                placement.group,
                placement.name,
                placement.replicas,
                loads.sizes.get(placement.group, 0),
            )
            for topic in state.topics
            for placement in topic.partitions
            if placement.group not in leaving_out
            if placement.move is None  # Else an earlier plan has left it behind.
        ]
        brokers = [
            BrokerLoad(
                known.node,
                known.failure_domain,
                known.rack,
                is_draining=known.is_draining,
                # Also one that may come back: nothing can be put on it now.
                is_dead=known.node in self._missing_since,
                bytes_max=_room(state, known.node, loads, leaving_out),
            )
            for known in state.brokers
        ]
        return brokers, partitions

    def _with_room(
        self, plan: RebalancePlan, partitions: list[PartitionLoad], free: Mapping[NodeId, int]
    ) -> list[Move]:
        """The moves for which the disks have room."""
        sizes = {partition.group: partition.size_bytes for partition in partitions}
        left = {node: int(count * DISK_SHARE_MAX) for node, count in free.items() if count}
        fitting = []
        for move in plan.moves:
            size = sizes[move.group]
            if all(left.get(node, size) >= size for node in move.added):
                fitting.append(move)
                for node in move.added:
                    if node in left:
                        left[node] -= size
        return fitting


def _room(
    state: MetadataState, node: NodeId, loads: _Loads, leaving_out: Collection[GroupId] = ()
) -> int | None:
    """What ``node`` can hold of the partitions that are planned for; None: not known.

    What is left out, and what an earlier plan has left behind, stays where it is.
    """
    free = loads.free.get(node, 0)
    if node in loads.unfit:
        free = 0
    elif free == 0:
        return None
    planned = [
        p.group for p in state.partitions_on(node) if p.move is None and p.group not in leaving_out
    ]
    return int(free * DISK_SHARE_MAX) + sum(loads.sizes.get(group, 0) for group in planned)


def _lost_text(nodes: Sequence[NodeId]) -> str:
    return f"{named('broker', nodes)} {are(len(nodes))} lost"


def _listed(names: Sequence[TopicPartition]) -> str:
    listed = ", ".join(map(str, names[:NAMED_MAX]))
    return f"{listed}, …" if len(names) > NAMED_MAX else listed


def _problems_of(plan: RebalancePlan, without_room: int) -> list[str]:
    """Why a plan is not for everything that it should be for."""
    problems = []
    if plan.unplaced:
        problems.append(f"too few brokers for {len(plan.unplaced)}")
    if without_room:
        problems.append(f"no room on the other disks for {without_room}")
    if plan.stranded:
        names = _listed([each.name for each in plan.stranded])
        down = sorted({node for each in plan.stranded for node in each.dead})
        problems.append(
            f"too few replicas alive to elect a leader for {len(plan.stranded)} ({names}): "
            f"start {named('broker', down)} again {each_with(down)} its data directory, or delete "
            "the topic, and what is only there is lost"
        )
    return problems


def _planned(moves: Sequence[Move]) -> list[PlannedMove]:
    return [
        PlannedMove(
            group=move.group,
            before=move.before,
            target=move.after,
            reason=f"{move.reason}: {move.detail}",
            size_bytes=move.bytes,
        )
        for move in moves
    ]
