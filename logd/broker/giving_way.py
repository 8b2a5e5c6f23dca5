"""What the cluster does by itself makes way for what a person asks for.

There is one plan at a time, and who drains a broker must not have to wait until loads are even.
So a plan that nobody has asked for is ended: what has not begun of it is skipped, what is under way
is taken back unless it has arrived.  That is done with the commands that end single moves, because
to cancel the plan would say that somebody did not want it: a drain leaves alone what was cancelled.
What is skipped is only put off.

For a while the controller begins nothing by itself, so that a plan can be made for the cluster as
it is then.  That is all that a change of the controller forgets; what was ended stands in the
metadata, and whoever asks again goes on with the rest.

Plans that make replicas anew give way to nothing: that such a replica is missing stands in the
plan, and apart from it only in the brokers' memories (``rebuilding.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.broker.plan_runner import is_controller
from logd.broker.rebuilding import MAKE_ANEW, TAKE_OUT
from logd.errors import (
    InvalidRequestError,
    LogdError,
    NotLeaderError,
    RebalanceConflictError,
    RefusedError,
)
from logd.metadata.commands import CancelMove, Command, SkipMove
from logd.metadata.features import GIVING_UP_LEVEL
from logd.metadata.moves import BY_ITSELF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logd.broker.broker import Broker
    from logd.metadata.moves import Plan

log = structlog.get_logger(__name__)

WAITING_S: Final = 30.0
"""Long enough to look at the cluster, to make a plan and to start it."""

LOOK_AGAIN_S: Final = 0.5
COMMAND_TIMEOUT_MS: Final = 10_000
COMMANDS_AT_ONCE: Final = 64


async def clear_the_way(broker: Broker) -> None:
    """Have a plan that nobody has asked for make way, and wait until it is over.

    Raises:
        NotLeaderError: there is one, and only the controller has it make way.
        RequestError: as ``give_way``.
    """
    while True:
        plan = broker.metadata.state.plan
        if plan is None or not _can_give_way(plan):
            return
        await give_way(broker, plan.plan_id)
        with trio.move_on_after(LOOK_AGAIN_S):
            await broker.metadata.changed()


async def give_way(broker: Broker, plan_id: int) -> Plan:
    """Have a plan begin nothing more and take back what is under way; returns what came of it.

    Raises:
        NotLeaderError: this is not the controller.
        InvalidRequestError: it is not the last plan, or somebody has asked for it.
        RebalanceConflictError: it makes replicas anew.
        RequestError: not all of it is known to be committed; the same may be asked for again.
    """
    if not is_controller(broker):
        raise NotLeaderError("only the controller has a plan make way", broker.controller)
    plan = broker.metadata.state.plan
    if plan is None or plan.plan_id != plan_id:
        raise InvalidRequestError(f"plan {plan_id} is not the last one")
    if plan.is_over:
        return plan
    if not plan.purpose.startswith(BY_ITSELF):
        raise InvalidRequestError(
            f"plan {plan_id} ({plan.purpose}) makes way for nothing: somebody has asked for it"
        )
    if not _can_give_way(plan):
        raise RebalanceConflictError(
            f"plan {plan_id} ({plan.purpose}) makes way for nothing: wait for it (`logd rebalance "
            "status --watch`)"
        )
    if trio.current_time() >= broker.autonomy_waits_until:
        log.warning(log_events.PLAN_GIVES_WAY, plan=plan_id, reason=plan.purpose)
    broker.autonomy_waits_until = trio.current_time() + WAITING_S
    # From the end: what is begun meanwhile is begun from the front.
    await _execute_all(broker, _skips(broker, plan)[::-1])
    await _execute_all(broker, _cancels(broker, plan))
    found = broker.metadata.state.plan
    assert found is not None
    return found


def _can_give_way(plan: Plan) -> bool:
    purpose = plan.purpose.removeprefix(BY_ITSELF)
    is_by_itself = purpose != plan.purpose and purpose not in (TAKE_OUT, MAKE_ANEW)
    return is_by_itself and plan.state == "running"


def _skips(broker: Broker, plan: Plan) -> list[Command]:
    now_ms = broker.env.wall_clock_ms()
    return [
        SkipMove(plan_id=plan.plan_id, group=move.group, now_ms=now_ms)
        for move, progress in zip(plan.moves, plan.states, strict=True)
        if progress == "pending"
    ]


def _cancels(broker: Broker, plan: Plan) -> list[Command]:
    state = broker.metadata.state
    named = state.feature_level >= GIVING_UP_LEVEL
    return [
        CancelMove(group=placement.group, begun_at=placement.move.begun_at if named else None)
        for placement in state.moving
        if placement.move is not None
        and placement.move.plan_id == plan.plan_id
        and not placement.move.is_cancelled
    ]


async def _execute_all(broker: Broker, commands: Sequence[Command]) -> None:
    """Some at once, so that they share their syncs; what was over meanwhile is refused."""
    failures: list[LogdError] = []

    async def execute(command: Command) -> None:
        try:
            await broker.metadata.execute(
                command, timeout_ms=COMMAND_TIMEOUT_MS, safe_to_repeat=True
            )
        except RefusedError as error:
            log.info(log_events.METADATA_REFUSED, reason=str(error))
        except LogdError as error:
            failures.append(error)

    for first in range(0, len(commands), COMMANDS_AT_ONCE):
        async with trio.open_nursery() as nursery:
            for command in commands[first : first + COMMANDS_AT_ONCE]:
                nursery.start_soon(execute, command)
        if failures:
            raise failures[0]
