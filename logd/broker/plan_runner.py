"""Begins the moves of the running plan, a few at a time.

Every broker runs this, and only the controller does anything: which moves are under way, which
are done and which are still to come stands in the metadata, so the next controller goes on where
the last one was lost.

A move whose partition has no majority of its replicas alive is not begun: nobody leads it, so
nobody could carry the move out, nor take it back when the plan is cancelled.

One that loses its majority while it is under way waits for it, and counts no more among those that
are under way at once: the others go on.  Once it is cancelled the plan does not wait for it either;
whoever will lead the partition takes it back.

A move to a disk that is full is not begun either, and if it is under way by then it counts no more
until there is room: nothing is sent there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.errors import LogdError, RefusedError
from logd.metadata.commands import BeginMove, SkipMove
from logd.metadata.features import LEAVING_LEVEL
from logd.metadata.rebalance.cluster import is_majority_alive
from logd.types import METADATA_GROUP

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.metadata.layout import PartitionPlacement
    from logd.metadata.moves import Plan, PlannedMove
    from logd.types import GroupId, NodeId

log = structlog.get_logger(__name__)

LOOK_AGAIN_S: Final = 0.5
COMMAND_TIMEOUT_MS: Final = 10_000


async def run_plans(broker: Broker) -> None:
    """Look at the plan whenever the metadata changes, until cancelled."""
    while True:
        plan = broker.metadata.state.plan
        if plan is not None and not plan.is_over and is_controller(broker):
            await _leave_some(broker, plan)
            await _begin_some(broker, plan)
        with trio.move_on_after(LOOK_AGAIN_S):
            await broker.metadata.changed()


def is_controller(broker: Broker) -> bool:
    group = broker.node.groups.get(METADATA_GROUP)
    return group is not None and group.is_ready


def is_stuck(broker: Broker, placement: PartitionPlacement) -> bool:
    """Whether a move waits for brokers to return: nobody leads the partition, nor can."""
    assert placement.move is not None
    if broker.node.leader_of(placement.group)[0] is not None:
        return False
    down = broker.metadata.brokers_down()
    sides = (placement.replicas, placement.move.target)
    return not all(is_majority_alive(side, down) for side in sides)


async def _leave_some(broker: Broker, plan: Plan) -> None:
    """Leave behind the moves of ``plan`` that were cancelled and that nobody can take back."""
    state = broker.metadata.state
    if state.feature_level < LEAVING_LEVEL:
        return
    for placement in state.moving:
        move = placement.move
        assert move is not None
        is_waited_for = move.is_cancelled and not move.is_left and move.plan_id == plan.plan_id
        if is_waited_for and is_stuck(broker, placement):
            log.warning(
                log_events.MOVE_LEFT, partition=str(placement.name), target=list(move.target)
            )
            await _skip(broker, plan, placement.group, is_begun=True)


async def _begin_some(broker: Broker, plan: Plan) -> None:
    down = broker.metadata.brokers_down()
    for at, move in enumerate(plan.moves):
        now = _running(broker, plan)
        if now is None:
            return
        if now.states[at] != "pending" or not is_majority_alive(move.before, down):
            continue
        if _lacks_room(broker, move.before, move.target):
            continue
        if not _has_room(broker) or not await _is_judged(broker, plan, move):
            return


def _has_room(broker: Broker) -> bool:
    """Whether another move may be under way."""
    state = broker.metadata.state
    moving = [p for p in state.moving if p.move is not None and not p.move.is_left]
    count = sum(not is_stuck(broker, p) and not _waits_for_room(broker, p) for p in moving)
    return count < state.rebalance_settings.concurrency


def _waits_for_room(broker: Broker, placement: PartitionPlacement) -> bool:
    """Whether a move waits for room on the disk of a broker that it goes to."""
    move = placement.move
    assert move is not None
    return not move.is_cancelled and _lacks_room(broker, placement.replicas, move.target)


def _lacks_room(broker: Broker, before: tuple[NodeId, ...], target: tuple[NodeId, ...]) -> bool:
    """Whether the disk of a broker that takes a copy is full."""
    full = broker.node.fitness.full_disks
    return any(node in full and node not in before for node in target)


def _running(broker: Broker, plan: Plan) -> Plan | None:
    """``plan`` as it is now; None: it does not run (any more), perhaps because it was cancelled."""
    now = broker.metadata.state.plan
    goes_on = now is not None and now.plan_id == plan.plan_id and now.state == "running"
    return now if goes_on else None


async def _is_judged(broker: Broker, plan: Plan, move: PlannedMove) -> bool:
    """Begin a move, if it can be begun (yet); False if it is not known what came of that.

    It may be under way then, or be so before long, though it does not count among those that are.
    So no other is begun before this one has been asked for again.
    """
    command = BeginMove(
        group=move.group,
        before=move.before,
        target=move.target,
        reason=move.reason,
        plan_id=plan.plan_id,
        now_ms=broker.env.wall_clock_ms(),
    )
    try:
        await broker.metadata.execute(command, timeout_ms=COMMAND_TIMEOUT_MS, safe_to_repeat=True)
    except RefusedError as error:
        await skip_move(broker, plan, move, str(error))
    except LogdError as error:
        # A copy that has not been cleared away, or no majority: it is tried again.
        log.info(log_events.MOVE_WAITS, group=move.group, reason=str(error))
        return not error.may_have_applied
    return True


async def skip_move(broker: Broker, plan: Plan, move: PlannedMove, reason: str) -> None:
    """Leave a pending move out, so that its plan can come to its end; tried again if that fails."""
    if _running(broker, plan) is None:
        return  # Cancelled meanwhile, which may be why it was refused.
    log.warning(log_events.MOVE_SKIPPED, group=move.group, reason=reason)
    await _skip(broker, plan, move.group, is_begun=False)


async def _skip(broker: Broker, plan: Plan, group: GroupId, *, is_begun: bool) -> None:
    command = SkipMove(
        plan_id=plan.plan_id, group=group, now_ms=broker.env.wall_clock_ms(), is_begun=is_begun
    )
    try:
        await broker.metadata.execute(command, timeout_ms=COMMAND_TIMEOUT_MS, safe_to_repeat=True)
    except LogdError as error:
        log.info(log_events.METADATA_REFUSED, reason=str(error))
