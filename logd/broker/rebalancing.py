"""What clients ask about plans, moves and brokers that come and go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from logd.broker import log_events
from logd.broker.broker import check_timeout
from logd.broker.giving_way import clear_the_way, give_way
from logd.broker.plan_runner import is_controller
from logd.errors import (
    BrokerInUseError,
    InvalidRequestError,
    NotLeaderError,
    RequestTimeoutError,
    UnavailableError,
)
from logd.limits import METADATA_VOTERS_MAX
from logd.metadata.commands import (
    CancelMove,
    CancelPlan,
    Command,
    DrainBroker,
    RaiseFeatureLevel,
    RemoveBroker,
    ResumeBroker,
    SetRebalancing,
    StartPlan,
)
from logd.metadata.features import registered_range
from logd.metadata.layout import Broker as KnownBroker
from logd.metadata.moves import PLAN_MOVES_PER_COMMAND_MAX, Plan, PlannedMove, fitting_purpose
from logd.metadata.moving import BrokerChanged, PlanChanged, RebalancingSet
from logd.metadata.rebalance.cluster import is_majority_alive
from logd.metadata.state import FeatureLevelRaised
from logd.types import METADATA_GROUP, GroupId, NodeId
from logd.wire.messages import (
    AlterBrokerRequest,
    AlterBrokerResponse,
    BrokerInfo,
    CancelMoveRequest,
    CancelMoveResponse,
    CancelPlanRequest,
    CancelPlanResponse,
    DescribeRebalanceRequest,
    DescribeRebalanceResponse,
    Kind,
    Message,
    PlanInfo,
    PlannedMoveInfo,
    RaiseFeatureLevelRequest,
    RaiseFeatureLevelResponse,
    SetRebalancingRequest,
    SetRebalancingResponse,
    StartPlanRequest,
    StartPlanResponse,
)
from logd.wording import are, count_of, named, them

if TYPE_CHECKING:
    from logd.broker.broker import Broker

log = structlog.get_logger(__name__)

GIVING_WAY_SHARE: Final = 0.5
"""Of the time that starting a plan may take, for one to be over that is in its way."""


def broker_info(broker: Broker, known: KnownBroker) -> BrokerInfo:
    """A registered broker, as this one sees it."""
    return BrokerInfo(
        node_id=known.node,
        host=known.address.host,
        port=known.address.port,
        rack=known.rack,
        failure_domain=known.failure_domain,
        alive=broker.node.is_up(known.node),
        draining=known.is_draining,
        version=known.version,
        feature_level_max=registered_range(known.features)[1],
    )


async def alter_broker(broker: Broker, request: AlterBrokerRequest) -> AlterBrokerResponse:
    """Drain a broker, take that back, or remove it from the cluster."""
    _check(broker, request.timeout_ms)
    node = NodeId(request.node_id)
    deadline_ms = broker.node.now_ms() + request.timeout_ms
    command: Command
    match request.action:
        case "drain":
            command = DrainBroker(node=node)
        case "resume":
            command = ResumeBroker(node=node)
        case "remove":
            with trio.move_on_after(request.timeout_ms / 1000) as waiting:
                await _leave_metadata_group(broker, node)
            if waiting.cancelled_caught:
                raise RequestTimeoutError(
                    f"broker {node} did not leave the metadata log within {request.timeout_ms} ms"
                )
            command = RemoveBroker(node=node, now_ms=broker.env.wall_clock_ms())
    result = await broker.metadata.execute(
        command,
        timeout_ms=max(1, deadline_ms - broker.node.now_ms()),
        safe_to_repeat=request.action != "remove",
    )
    assert isinstance(result, BrokerChanged)
    return AlterBrokerResponse(
        broker=broker_info(broker, result.broker), metadata_offset=broker.metadata.applied_offset
    )


async def _leave_metadata_group(broker: Broker, node: NodeId) -> None:
    """Have ``node`` out of the metadata log before it is out of the cluster.

    Its place as a voter goes to a broker that follows the log, if there is one that is alive.
    """
    state = broker.metadata.state
    if state.broker(node) is None:
        return  # The command says so.
    held = state.partitions_on(node)
    if held:
        raise BrokerInUseError(
            f"broker {node} still holds replicas of {count_of(len(held), 'partition')}: "
            f"drain it first (logd broker drain {node})"
        )
    if not is_controller(broker):
        raise NotLeaderError("only the controller removes a broker", broker.controller)
    group = broker.node.groups[METADATA_GROUP]
    configuration = group.configuration
    if node not in configuration.members:
        return
    voters = tuple(voter for voter in configuration.voters if voter != node)
    learners = tuple(learner for learner in configuration.learners if learner != node)
    if not voters:
        raise InvalidRequestError(f"broker {node} is the only voter of the metadata log")
    if node in configuration.voters and len(voters) < METADATA_VOTERS_MAX:
        heir = next(
            (n for n in learners if broker.node.is_up(n) and group.core.is_caught_up(n)), None
        )
        if heir is not None:
            voters = (*voters, heir)
            learners = tuple(learner for learner in learners if learner != heir)
    await group.members.change_configuration(voters, learners)
    if node == broker.node.node:
        raise NotLeaderError("the controller that is to be removed has handed over", None)


async def raise_feature_level(
    broker: Broker, request: RaiseFeatureLevelRequest
) -> RaiseFeatureLevelResponse:
    """Let the cluster use what its brokers' version brought."""
    _check(broker, request.timeout_ms)
    if not is_controller(broker):
        raise NotLeaderError("only the controller raises the feature level", broker.controller)
    level = request.level
    if level is None:
        level = broker.metadata.state.feature_level_available
    result = await broker.metadata.execute(
        RaiseFeatureLevel(level=level), timeout_ms=request.timeout_ms, safe_to_repeat=True
    )
    assert isinstance(result, FeatureLevelRaised)
    log.warning(log_events.FEATURE_LEVEL_RAISED, feature_level=result.level)
    return RaiseFeatureLevelResponse(
        level=result.level, metadata_offset=broker.metadata.applied_offset
    )


async def start_plan(broker: Broker, request: StartPlanRequest) -> StartPlanResponse:
    """Take some moves of a plan, or all."""
    _check(broker, request.timeout_ms)
    if len(request.moves) > PLAN_MOVES_PER_COMMAND_MAX:
        raise InvalidRequestError(
            f"{len(request.moves)} moves, one request has 1 to {PLAN_MOVES_PER_COMMAND_MAX}"
        )
    _check_room(broker, request)
    began = trio.current_time()
    if request.first == 0:
        with trio.move_on_after(GIVING_WAY_SHARE * request.timeout_ms / 1000):
            await clear_the_way(broker)
    command = StartPlan(
        token=request.token,
        purpose=fitting_purpose(request.purpose),
        layout_version=request.layout_version,
        move_count=request.move_count,
        first=request.first,
        moves=tuple(
            PlannedMove(
                group=GroupId(move.group),
                before=tuple(map(NodeId, move.before)),
                target=tuple(map(NodeId, move.target)),
                reason=move.reason,
                size_bytes=move.size_bytes,
            )
            for move in request.moves
        ),
        now_ms=broker.env.wall_clock_ms(),
    )
    spent_ms = int((trio.current_time() - began) * 1000)
    result = await broker.metadata.execute(
        command, timeout_ms=max(1, request.timeout_ms - spent_ms), safe_to_repeat=True
    )
    assert isinstance(result, PlanChanged)
    return StartPlanResponse(plan_id=result.plan.plan_id)


def _check_room(broker: Broker, request: StartPlanRequest) -> None:
    """Refuse a plan that needs a broker which cannot take part now.

    What is no broker at all is refused with the command, for good: it would be waited for in vain.
    """
    registered = {known.node for known in broker.metadata.state.brokers}
    for move in request.moves:
        if not registered.issuperset(move.target):
            continue
        for node in move.target:
            if node not in move.before and not broker.node.is_up(NodeId(node)):
                raise UnavailableError(
                    f"broker {node}, to which group {move.group} is to go, is not alive"
                )
        away = [node for node in move.target if not broker.node.is_up(NodeId(node))]
        if away and not is_majority_alive(move.target, away):
            count = len(away)
            raise UnavailableError(
                f"{named('broker', away)} {are(count)} not alive: without {them(count)} nobody "
                f"could lead group {move.group} on {', '.join(map(str, move.target))}"
            )


async def cancel_plan(broker: Broker, request: CancelPlanRequest) -> CancelPlanResponse:
    _check(broker, request.timeout_ms)
    if request.gives_way:
        with trio.move_on_after(request.timeout_ms / 1000):
            plan = await give_way(broker, request.plan_id)
            return CancelPlanResponse(state=plan.state)
        raise RequestTimeoutError(
            f"plan {request.plan_id} makes way, but not within {request.timeout_ms} ms"
        )
    result = await broker.metadata.execute(
        CancelPlan(plan_id=request.plan_id, now_ms=broker.env.wall_clock_ms()),
        timeout_ms=request.timeout_ms,
        safe_to_repeat=True,
    )
    assert isinstance(result, PlanChanged)
    return CancelPlanResponse(state=result.plan.state)


async def cancel_move(broker: Broker, request: CancelMoveRequest) -> CancelMoveResponse:
    """Take one move out of a plan, or back."""
    _check(broker, request.timeout_ms)
    group = GroupId(request.group)
    result = await broker.metadata.execute(
        CancelMove(group=group, plan_id=request.plan_id, now_ms=broker.env.wall_clock_ms()),
        timeout_ms=request.timeout_ms,
        safe_to_repeat=True,
    )
    assert isinstance(result, PlanChanged)
    at = result.plan.position_of(group)
    assert at is not None
    return CancelMoveResponse(state=result.plan.states[at])


async def set_rebalancing(broker: Broker, request: SetRebalancingRequest) -> SetRebalancingResponse:
    _check(broker, request.timeout_ms)
    result = await broker.metadata.execute(
        SetRebalancing(
            throttle_bytes_per_s=request.throttle_bytes_per_s,
            concurrency=request.concurrency,
            is_autonomous=request.autonomous,
        ),
        timeout_ms=request.timeout_ms,
        safe_to_repeat=True,
    )
    assert isinstance(result, RebalancingSet)
    return SetRebalancingResponse(
        throttle_bytes_per_s=result.settings.throttle_bytes_per_s,
        concurrency=result.settings.concurrency,
        autonomous=result.settings.is_autonomous,
    )


async def describe_rebalance(
    broker: Broker, request: DescribeRebalanceRequest
) -> DescribeRebalanceResponse:
    """The plan and the settings, as this broker has applied them."""
    broker.check_known()
    state = broker.metadata.state
    settings = state.rebalance_settings
    return DescribeRebalanceResponse(
        layout_version=state.layout_version,
        throttle_bytes_per_s=settings.throttle_bytes_per_s,
        concurrency=settings.concurrency,
        autonomous=settings.is_autonomous,
        plan=None if state.plan is None else _plan_info(state.plan),
        autonomy=broker.autonomy_notes,
        metadata_offset=broker.metadata.applied_offset,
    )


def _plan_info(plan: Plan) -> PlanInfo:
    return PlanInfo(
        plan_id=plan.plan_id,
        purpose=plan.purpose,
        state=plan.state,
        move_count=plan.move_count,
        moves=[
            PlannedMoveInfo(
                group=move.group,
                before=list(move.before),
                target=list(move.target),
                reason=move.reason,
                size_bytes=move.size_bytes,
                state=state,
            )
            for move, state in zip(plan.moves, plan.states, strict=True)
        ],
        begun_ms=plan.begun_ms,
        ended_ms=plan.ended_ms,
    )


def _check(broker: Broker, timeout_ms: int) -> None:
    broker.check_known()
    check_timeout(timeout_ms)


REBALANCING_HANDLERS: Final[dict[int, Callable[[Broker, Any], Awaitable[Message]]]] = {
    Kind.ALTER_BROKER: alter_broker,
    Kind.START_PLAN: start_plan,
    Kind.CANCEL_PLAN: cancel_plan,
    Kind.CANCEL_MOVE: cancel_move,
    Kind.SET_REBALANCING: set_rebalancing,
    Kind.DESCRIBE_REBALANCE: describe_rebalance,
    Kind.RAISE_FEATURE_LEVEL: raise_feature_level,
}
"""Request kind → handler."""
