"""Begins the moves of the running plan, a few at a time.

Every broker runs this, and only the controller does anything: which moves are under way, which
are done and which are still to come stands in the metadata, so the next controller goes on where
the last one was lost.

A move whose partition has no majority of its replicas alive is not begun: nobody leads it, so
nobody could carry the move out, nor take it back when the plan is cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.errors import LogdError, RefusedError
from logd.metadata.commands import BeginMove, SkipMove
from logd.metadata.rebalance.cluster import is_majority_alive
from logd.types import METADATA_GROUP

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.metadata.moves import Plan, PlannedMove

log = structlog.get_logger(__name__)

BY_ITSELF: Final = "by itself: "
"""How the purpose of a plan begins that nobody has asked for."""

LOOK_AGAIN_S: Final = 0.5
COMMAND_TIMEOUT_MS: Final = 10_000


async def run_plans(broker: Broker) -> None:
    """Look at the plan whenever the metadata changes, until cancelled."""
    while True:
        plan = broker.metadata.state.plan
        if plan is not None and plan.state == "running" and is_controller(broker):
            await _begin_some(broker, plan)
        with trio.move_on_after(LOOK_AGAIN_S):
            await broker.metadata.changed()


def is_controller(broker: Broker) -> bool:
    group = broker.node.groups.get(METADATA_GROUP)
    return group is not None and group.is_ready


async def _begin_some(broker: Broker, plan: Plan) -> None:
    state = broker.metadata.state
    room = state.rebalance_settings.concurrency - plan.count("running")
    down = broker.metadata.brokers_down()
    for move, progress in zip(plan.moves, plan.states, strict=True):
        if room <= 0 or not _goes_on(broker, plan):
            return
        if progress != "pending" or not is_majority_alive(move.before, down):
            continue
        if await _is_begun(broker, plan, move):
            room -= 1


def _goes_on(broker: Broker, plan: Plan) -> bool:
    """Whether nobody has cancelled ``plan`` since it was looked at."""
    current = broker.metadata.state.plan
    return current is not None and current.plan_id == plan.plan_id and current.state == "running"


async def _is_begun(broker: Broker, plan: Plan, move: PlannedMove) -> bool:
    """Begin a move; False if it could not be begun (yet)."""
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
        return False
    except LogdError as error:
        # A copy that has not been cleared away, or no majority: it is tried again.
        log.info(log_events.MOVE_WAITS, group=move.group, reason=str(error))
        return False
    return True


async def skip_move(broker: Broker, plan: Plan, move: PlannedMove, reason: str) -> None:
    """Leave a pending move out, so that its plan can come to its end; tried again if that fails."""
    if not _goes_on(broker, plan):
        return  # Cancelled meanwhile, which may be why it was refused.
    log.warning(log_events.MOVE_SKIPPED, group=move.group, reason=reason)
    command = SkipMove(plan_id=plan.plan_id, group=move.group, now_ms=broker.env.wall_clock_ms())
    try:
        await broker.metadata.execute(command, timeout_ms=COMMAND_TIMEOUT_MS, safe_to_repeat=True)
    except LogdError as error:
        log.info(log_events.METADATA_REFUSED, reason=str(error))
