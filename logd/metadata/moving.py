"""Moves, plans and the comings and goings of brokers: their commands, applied.

See ``moves.py`` for what they mean.  As everywhere in the metadata, a command is checked whole
before anything changes, and what was done already is not refused when it is asked again: a
leader or a controller that has just been elected repeats what its predecessor may have done.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from logd.errors import (
    BrokerInUseError,
    InvalidRequestError,
    NotEnoughBrokersError,
    RebalanceConflictError,
    UnavailableError,
    UnknownBrokerError,
    UnknownTopicError,
)
from logd.limits import PLAN_MOVES_MAX, REPLICAS_MAX
from logd.metadata.commands import (
    BeginMove,
    CancelMove,
    CancelPlan,
    DrainBroker,
    FinishMove,
    MovingCommand,
    RemoveBroker,
    ReplicasRetired,
    ResumeBroker,
    SetRebalancing,
    SkipMove,
    StartPlan,
)
from logd.metadata.features import KEEPING_LEVEL, NAMING_LEVEL, OUTCOME_LEVEL
from logd.metadata.layout import Broker, Layout, PartitionPlacement, Topic
from logd.metadata.moves import (
    CONCURRENCY_MAX,
    PLAN_MOVES_PER_COMMAND_MAX,
    REASON_CHARACTERS_MAX,
    THROTTLE_BYTES_PER_S_MAX,
    THROTTLE_BYTES_PER_S_MIN,
    Move,
    MoveState,
    Plan,
    PlannedMove,
    RebalanceSettings,
    RemovedBroker,
    cancelled,
    settled,
    with_state,
)
from logd.types import GroupId, NodeId, Offset
from logd.wording import are, count_of, listed, named


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerChanged:
    broker: Broker


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementChanged:
    placements: tuple[PartitionPlacement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChanged:
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalancingSet:
    settings: RebalanceSettings


MovingResult = BrokerChanged | PlacementChanged | PlanChanged | RebalancingSet


class MovingState(Layout):
    """A layout that changes while it is used."""

    def _apply_move(self, command: MovingCommand) -> MovingResult:
        match command:
            case DrainBroker():
                return self._drain_broker(command)
            case ResumeBroker():
                return self._resume_broker(command)
            case RemoveBroker():
                return self._remove_broker(command)
            case StartPlan():
                return self._start_plan(command)
            case CancelPlan():
                return self._cancel_plan(command)
            case BeginMove():
                return self._begin_move(command)
            case CancelMove():
                return self._cancel_move(command)
            case FinishMove():
                return self._finish_move(command)
            case SkipMove():
                return self._skip_move(command)
            case ReplicasRetired():
                return self._replicas_retired(command)
            case SetRebalancing():
                return self._set_rebalancing(command)

    # --- brokers ------------------------------------------------------------------------

    def _drain_broker(self, command: DrainBroker) -> BrokerChanged:
        broker = self._existing_broker(command.node)
        if not broker.is_draining:
            self._check_others_suffice(broker)
        return self._set_draining(broker, is_draining=True)

    def _resume_broker(self, command: ResumeBroker) -> BrokerChanged:
        return self._set_draining(self._existing_broker(command.node), is_draining=False)

    def _set_draining(self, broker: Broker, *, is_draining: bool) -> BrokerChanged:
        changed = msgspec.structs.replace(broker, is_draining=is_draining, keeps=())
        self._brokers[broker.node] = changed
        if broker.is_draining != is_draining:
            self._layout_changed()
        return BrokerChanged(broker=changed)

    def _check_others_suffice(self, broker: Broker) -> None:
        """Its replicas must find room elsewhere, and as far apart as they are."""
        others = [b for b in self.brokers if not b.is_draining and b.node != broker.node]
        domains = {other.failure_domain for other in others}
        now = domains | {broker.failure_domain}
        for placement in self.partitions_on(broker.node):
            wanted = len(placement.replicas)
            if wanted > len(others):
                raise NotEnoughBrokersError(
                    f"{placement.name} has {count_of(wanted, 'replica')}, and without broker "
                    f"{broker.node} there {are(len(others))} {count_of(len(others), 'broker')} for "
                    "that: add one first, or give the topic fewer replicas"
                )
            if len(domains) < min(wanted, len(now)):
                raise NotEnoughBrokersError(
                    f"{placement.name} has {count_of(wanted, 'replica')} in "
                    f"{count_of(len(now), 'failure domain')}, and broker {broker.node} is the last "
                    f"one of {broker.failure_domain!r}: without it two of them would fail together"
                )

    def _remove_broker(self, command: RemoveBroker) -> BrokerChanged:
        broker = self._existing_broker(command.node)
        held = len(self._held[broker.node])
        if held:
            raise BrokerInUseError(
                f"broker {broker.node} still holds replicas of {count_of(held, 'partition')}: "
                "drain it first"
            )

        del self._brokers[broker.node], self._held[broker.node], self._leader_counts[broker.node]
        self._removed[broker.node] = RemovedBroker(
            node=broker.node, directory_id=broker.directory_id, removed_ms=command.now_ms
        )
        for placement in self.leaving(broker.node):
            self._retire(placement, broker.node)
        self._layout_changed()
        return BrokerChanged(broker=broker)

    def _existing_broker(self, node: NodeId) -> Broker:
        broker = self._brokers.get(node)
        if broker is None:
            was = "; it was removed" if node in self._removed else ""
            raise UnknownBrokerError(f"no broker {node} is registered{was}")
        return broker

    # --- plans --------------------------------------------------------------------------

    def _start_plan(self, command: StartPlan) -> PlanChanged:
        plan: Plan | None = self._plan
        if command.first == 0:
            if plan is not None and plan.token == command.token:
                return PlanChanged(plan=plan)
            self._check_startable(command)
            plan = Plan(
                plan_id=self._next_plan_id,
                token=command.token,
                purpose=command.purpose,
                state="arriving",
                move_count=command.move_count,
                moves=(),
                states=(),
                begun_ms=command.now_ms,
            )
        if plan is None or plan.token != command.token:
            raise RebalanceConflictError("another plan has been started meanwhile")
        if command.first < len(plan.moves):
            return PlanChanged(plan=plan)
        if plan.state != "arriving":
            raise RebalanceConflictError(
                f"plan {plan.plan_id} is {plan.state}, with {len(plan.moves)} of its "
                f"{plan.move_count} moves: it takes no more"
            )
        self._check_moves(command, plan)

        if command.first == 0:
            self._next_plan_id += 1
        moves = plan.moves + command.moves
        pending: MoveState = "pending"
        # What was cancelled, or whose topic was deleted, stays so: below that level it did not.
        is_kept = self._feature_level >= KEEPING_LEVEL
        states = plan.states if is_kept else (pending,) * len(plan.moves)
        states += (pending,) * len(command.moves)
        plan = msgspec.structs.replace(plan, moves=moves, states=states)
        if len(moves) == plan.move_count:
            plan = settled(msgspec.structs.replace(plan, state="running"), command.now_ms)
        self._plan = plan
        return PlanChanged(plan=plan)

    def _check_startable(self, command: StartPlan) -> None:
        plan = self._plan
        if plan is not None and not plan.is_over and plan.state != "arriving":
            raise RebalanceConflictError(
                f"plan {plan.plan_id} ({plan.purpose}) is {plan.state}, "
                f"{plan.count('done')} of {count_of(plan.move_count, 'move')} done: wait for it, "
                "or cancel it"
            )
        under_way = [p for p in self.moving if p.move is not None and not p.move.is_left]
        if under_way:
            names = ", ".join(str(p.name) for p in under_way[:3])
            count = len(under_way)
            raise RebalanceConflictError(
                f"{count_of(count, 'move')} {are(count)} under way: {names}"
            )
        if not 0 < len(command.token) <= REASON_CHARACTERS_MAX:
            raise InvalidRequestError("a plan has a token")
        if len(command.purpose) > REASON_CHARACTERS_MAX:
            raise InvalidRequestError(f"a purpose has at most {REASON_CHARACTERS_MAX} characters")
        if not 1 <= command.move_count <= PLAN_MOVES_MAX:
            raise InvalidRequestError(
                f"{command.move_count} moves, a plan has 1 to {PLAN_MOVES_MAX}"
            )
        if command.layout_version != self._layout_version:
            raise RebalanceConflictError(
                f"the plan was made for layout {command.layout_version} of the cluster, which has "
                f"layout {self._layout_version} by now: plan again"
            )

    def _check_moves(self, command: StartPlan, plan: Plan) -> None:
        if command.first != len(plan.moves):
            raise InvalidRequestError(
                f"moves from {command.first} on, expected those from {len(plan.moves)} on"
            )
        if not 1 <= len(command.moves) <= PLAN_MOVES_PER_COMMAND_MAX:
            raise InvalidRequestError(
                f"{len(command.moves)} moves, one command has 1 to {PLAN_MOVES_PER_COMMAND_MAX}"
            )
        if command.first + len(command.moves) > plan.move_count:
            raise InvalidRequestError(f"more moves than the {plan.move_count} of the plan")
        known = {move.group for move in plan.moves}
        for move in command.moves:
            if move.group in known:
                raise InvalidRequestError(f"group {move.group} is in the plan twice")
            known.add(move.group)
            self._check_planned(move)

    def _check_planned(self, move: PlannedMove) -> None:
        placement = self._existing_placement(move.group)
        if placement.replicas != move.before:
            raise RebalanceConflictError(
                f"{placement.name} has replicas {listed(placement.replicas)}, "
                f"the plan was made for {listed(move.before)}: plan again"
            )
        self._check_target(placement, move.target)

    def _cancel_plan(self, command: CancelPlan) -> PlanChanged:
        plan = self._plan
        if plan is None or plan.plan_id != command.plan_id:
            raise InvalidRequestError(f"plan {command.plan_id} is not the last one")
        if plan.is_over:
            return PlanChanged(plan=plan)

        for move, state in zip(plan.moves, plan.states, strict=True):
            if state in ("pending", "running"):
                self._keep(move)
            if state == "running":
                self._mark_cancelled(self._placements[move.group])
        self._plan = cancelled(plan, command.now_ms)
        return PlanChanged(plan=self._plan)

    def _set_rebalancing(self, command: SetRebalancing) -> RebalancingSet:
        throttle, concurrency = command.throttle_bytes_per_s, command.concurrency
        if throttle is not None and not (
            THROTTLE_BYTES_PER_S_MIN <= throttle <= THROTTLE_BYTES_PER_S_MAX
        ):
            raise InvalidRequestError(
                f"a throttle of {throttle} bytes/s, expected {THROTTLE_BYTES_PER_S_MIN} "
                f"to {THROTTLE_BYTES_PER_S_MAX}"
            )
        if concurrency is not None and not 1 <= concurrency <= CONCURRENCY_MAX:
            raise InvalidRequestError(
                f"a concurrency of {concurrency}, expected 1 to {CONCURRENCY_MAX}"
            )

        old = self._settings
        self._settings = RebalanceSettings(
            throttle_bytes_per_s=old.throttle_bytes_per_s if throttle is None else throttle,
            concurrency=old.concurrency if concurrency is None else concurrency,
            is_autonomous=(
                old.is_autonomous if command.is_autonomous is None else command.is_autonomous
            ),
        )
        return RebalancingSet(settings=self._settings)

    # --- moves --------------------------------------------------------------------------

    def _begin_move(self, command: BeginMove) -> PlacementChanged:
        placement = self._existing_placement(command.group)
        under_way = placement.move
        if under_way is not None:
            if under_way.target == command.target and under_way.plan_id == command.plan_id:
                return PlacementChanged(placements=(placement,))
            if under_way.is_left:
                raise RebalanceConflictError(
                    f"an earlier move of {placement.name} to {listed(under_way.target)} has not "
                    "been taken back yet: nobody leads it"
                )
            raise RebalanceConflictError(
                f"{placement.name} is being moved to {listed(under_way.target)} already"
            )
        if placement.replicas != command.before:
            raise RebalanceConflictError(
                f"{placement.name} has replicas {listed(placement.replicas)}, "
                f"expected {listed(command.before)}"
            )
        self._check_target(placement, command.target)
        self._check_of_plan(command)
        back = [node for node in command.target if node in placement.leaving]
        if back:
            raise UnavailableError(
                f"{placement.name} has just left {named('broker', back)}: its copy there is "
                "not cleared away yet"
            )

        is_only_order = set(command.target) == set(placement.replicas)
        if is_only_order:
            moved = msgspec.structs.replace(placement, replicas=command.target)
            self._layout_changed()
        else:
            move = Move(
                target=command.target,
                reason=command.reason[:REASON_CHARACTERS_MAX],
                begun_ms=command.now_ms,
                begun_at=self._version_to_name(),
                plan_id=command.plan_id,
            )
            moved = msgspec.structs.replace(placement, move=move)
        self._replace_placement(moved)
        if command.plan_id is not None:
            progress: MoveState = "done" if is_only_order else "running"
            self._note_progress(command.group, progress, command.now_ms)
        return PlacementChanged(placements=(moved,))

    def _check_of_plan(self, command: BeginMove) -> None:
        """A move of a plan is begun only while the plan wants it."""
        plan = self._plan
        if command.plan_id is None:
            if plan is not None and not plan.is_over:
                raise RebalanceConflictError(
                    f"plan {plan.plan_id} ({plan.purpose}) is {plan.state}: "
                    "wait for it or cancel it"
                )
            return
        at = None if plan is None else plan.position_of(command.group)
        if (
            plan is None
            or plan.plan_id != command.plan_id
            or plan.state != "running"
            or at is None
            or plan.states[at] != "pending"
        ):
            raise RebalanceConflictError(
                f"plan {command.plan_id} does not move group {command.group} (any more)"
            )

    def _check_target(self, placement: PartitionPlacement, target: tuple[NodeId, ...]) -> None:
        if not 1 <= len(target) <= REPLICAS_MAX:
            raise InvalidRequestError(
                f"{len(target)} replicas of {placement.name}, a partition has 1 to {REPLICAS_MAX}"
            )
        if len(set(target)) < len(target):
            raise InvalidRequestError(
                f"{placement.name} to {listed(target)}: a broker holds one replica of it"
            )
        for node in target:
            broker = self._existing_broker(node)
            if broker.is_draining and node not in placement.replicas:
                raise RebalanceConflictError(
                    f"{placement.name} cannot go to broker {node}, which is draining"
                )

    def _cancel_move(self, command: CancelMove) -> PlacementChanged | PlanChanged:
        if command.plan_id is not None:
            return self._cancel_planned(command.plan_id, command.group, command.now_ms)
        placement = self._existing_placement(command.group)
        if placement.move is None:
            raise InvalidRequestError(f"{placement.name} is not being moved")
        if command.begun_at not in (None, placement.move.begun_at):
            raise _earlier_move(placement, placement.move)

        self._mark_cancelled(placement)
        return PlacementChanged(placements=(self._placements[command.group],))

    def _cancel_planned(self, plan_id: int, group: GroupId, now_ms: int) -> PlanChanged:
        plan, at = self._planned(plan_id, group)
        if plan.state == "arriving" and self._feature_level < KEEPING_LEVEL:
            raise RebalanceConflictError(
                f"plan {plan_id} has not arrived yet: wait for it, or cancel all of it"
            )

        if plan.states[at] in ("pending", "running"):
            self._keep(plan.moves[at])
        if plan.states[at] == "pending":
            self._plan = plan = with_state(plan, at, "cancelled", now_ms)
        elif plan.states[at] == "running":
            self._mark_cancelled(self._placements[group])
        return PlanChanged(plan=plan)

    def _keep(self, move: PlannedMove) -> None:
        """Let a drain go on without ``move``: whoever cancels it means it."""
        if self._feature_level < KEEPING_LEVEL:
            return
        for node in move.before:
            broker = self._brokers.get(node)
            if broker is not None and broker.is_draining and node not in move.target:
                # What was kept and is gone by now need not be known any more.
                kept = self._held[node].keys() & {*broker.keeps, move.group}
                self._brokers[node] = msgspec.structs.replace(broker, keeps=tuple(sorted(kept)))

    def _mark_cancelled(self, placement: PartitionPlacement) -> None:
        assert placement.move is not None
        move = msgspec.structs.replace(placement.move, is_cancelled=True)
        self._replace_placement(msgspec.structs.replace(placement, move=move))

    def _finish_move(self, command: FinishMove) -> PlacementChanged:
        placement = self._existing_placement(command.group)
        move = placement.move
        if move is None:
            if placement.replicas == command.replicas:
                return PlacementChanged(placements=(placement,))
            raise InvalidRequestError(f"{placement.name} is not being moved")
        if (command.begun_at or 0) != move.begun_at:
            raise _earlier_move(placement, move)
        has_arrived = command.replicas == move.target
        is_back = move.is_cancelled and command.replicas == placement.replicas
        if not has_arrived and not is_back:
            raise InvalidRequestError(
                f"{placement.name} is being moved to {listed(move.target)}, "
                f"not to {listed(command.replicas)}"
            )

        left = tuple(
            node
            for node in dict.fromkeys(placement.leaving + placement.holders)
            if node not in command.replicas and node in self._brokers
        )
        self._replace_placement(
            msgspec.structs.replace(
                placement,
                replicas=command.replicas,
                move=None,
                leaving=left,
                left_at=self._version_to_name(),
            )
        )
        if self._is_of_last_plan(move):
            self._note_progress(
                command.group, "done" if has_arrived else "cancelled", command.now_ms
            )
        self._layout_changed()
        return PlacementChanged(placements=(self._placements[command.group],))

    def _version_to_name(self) -> Offset:
        """What later commands may name this one by."""
        return self._version if self._feature_level >= NAMING_LEVEL else Offset(0)

    def _is_of_last_plan(self, move: Move) -> bool:
        """Whether there is a plan to be told how it ended: what was left behind may outlive its."""
        is_of_last = self._plan is not None and self._plan.plan_id == move.plan_id
        assert is_of_last or move.is_left or move.plan_id is None
        return is_of_last

    def _skip_move(self, command: SkipMove) -> PlanChanged:
        plan, at = self._planned(command.plan_id, command.group)

        if plan.states[at] == "pending":
            self._plan = plan = with_state(plan, at, "skipped", command.now_ms)
        elif plan.states[at] == "running" and command.is_begun:
            self._mark_left(self._placements[command.group])
            self._plan = plan = with_state(plan, at, "cancelled", command.now_ms)
        return PlanChanged(plan=plan)

    def _planned(self, plan_id: int, group: GroupId) -> tuple[Plan, int]:
        """The last plan, and where in it the move of ``group`` is."""
        plan = self._plan
        if plan is None or plan.plan_id != plan_id:
            raise InvalidRequestError(f"plan {plan_id} is not the last one")
        at = plan.position_of(group)
        if at is None:
            raise InvalidRequestError(f"plan {plan_id} has no group {group}")
        return plan, at

    def _mark_left(self, placement: PartitionPlacement) -> None:
        move = placement.move
        assert move is not None
        if not move.is_cancelled:
            raise InvalidRequestError(f"the move of {placement.name} was not cancelled")
        plan_id = move.plan_id if self._feature_level >= OUTCOME_LEVEL else None
        move = msgspec.structs.replace(move, is_left=True, plan_id=plan_id)
        self._replace_placement(msgspec.structs.replace(placement, move=move))

    def _skip_deleted(self, topic: Topic, now_ms: int | None) -> None:
        """The partitions of ``topic`` are gone, and with them what was planned for them."""
        groups = {placement.group for placement in topic.partitions}
        plan = self._plan
        if plan is None or plan.is_over:
            return
        states: tuple[MoveState, ...] = tuple(
            "skipped" if move.group in groups and state in ("pending", "running") else state
            for move, state in zip(plan.moves, plan.states, strict=True)
        )
        plan = msgspec.structs.replace(plan, states=states)
        self._plan = settled(plan, plan.begun_ms if now_ms is None else now_ms)

    def _note_progress(self, group: GroupId, state: MoveState, now_ms: int) -> None:
        plan = self._plan
        at = None if plan is None else plan.position_of(group)
        assert plan is not None
        assert at is not None
        self._plan = with_state(plan, at, state, now_ms)

    def _replicas_retired(self, command: ReplicasRetired) -> PlacementChanged:
        changed = []
        for group in command.groups:
            placement = self._placements.get(group)
            if placement is None or command.node not in placement.leaving:
                continue
            if (command.as_of or 0) >= placement.left_at:
                changed.append(self._retire(placement, command.node))
        return PlacementChanged(placements=tuple(changed))

    def _retire(self, placement: PartitionPlacement, node: NodeId) -> PartitionPlacement:
        left = tuple(other for other in placement.leaving if other != node)
        retired = msgspec.structs.replace(placement, leaving=left)
        self._replace_placement(retired)
        return retired

    def _existing_placement(self, group: GroupId) -> PartitionPlacement:
        placement = self._placements.get(group)
        if placement is None:
            raise UnknownTopicError(f"no partition has group {group}: it may have been deleted")
        return placement


def _earlier_move(placement: PartitionPlacement, move: Move) -> InvalidRequestError:
    return InvalidRequestError(
        f"that was an earlier move of {placement.name} than the one to {listed(move.target)}, "
        "which is under way"
    )
