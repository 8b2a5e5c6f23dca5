"""Moves, plans, and brokers that come and go: what the metadata allows, and what it remembers."""

import msgspec
import pytest

from logd.errors import (
    BrokerInUseError,
    InvalidPartitionError,
    InvalidRequestError,
    NotEnoughBrokersError,
    RebalanceConflictError,
    UnavailableError,
    UnknownBrokerError,
)
from logd.limits import PLAN_MOVES_AT_ONCE, PLAN_MOVES_MAX, REPLICAS_MAX
from logd.metadata.commands import (
    AddPartitions,
    BeginMove,
    CancelMove,
    CancelPlan,
    DeleteTopic,
    DrainBroker,
    FinishMove,
    RemoveBroker,
    ReplicasRetired,
    ResumeBroker,
    SetRebalancing,
    SkipMove,
    StartPlan,
    decode_command,
    encode_command,
)
from logd.metadata.features import KEEPING_LEVEL, NAMING_LEVEL, OUTCOME_LEVEL
from logd.metadata.moves import REASON_CHARACTERS_MAX, Plan, PlannedMove
from logd.metadata.state import MetadataState, PartitionPlacement
from logd.types import NODE_ID_MAX, GroupId, NodeId
from tests.unit.test_metadata_state import apply, cluster, create, register

GROUP = GroupId(1)


def nodes(*numbers: int) -> tuple[NodeId, ...]:
    return tuple(map(NodeId, numbers))


def five_brokers(partitions: int = 1) -> MetadataState:
    """Brokers 1 to 5; the topic's partitions are on 1, 2 and 3 first."""
    state = cluster(3)
    apply(state, create(partitions=partitions, replicas=3))
    apply(state, register(4))
    apply(state, register(5))
    return state


def placement(state: MetadataState, group: int = GROUP) -> PartitionPlacement:
    found = state.placement(GroupId(group))
    assert found is not None
    return found


def begin(*target: int, before: tuple[int, ...] = (1, 2, 3), **changes: object) -> BeginMove:
    command = BeginMove(
        group=GROUP, before=nodes(*before), target=nodes(*target), reason="asked", now_ms=5
    )
    return msgspec.structs.replace(command, **changes)


def end_of(state: MetadataState, *replicas: int, group: int = GROUP) -> FinishMove:
    """What a leader says of the move that is under way, or of none."""
    move = placement(state, group).move
    return FinishMove(
        group=GroupId(group),
        replicas=nodes(*replicas),
        now_ms=9,
        begun_at=None if move is None else move.begun_at or None,
    )


def finish(state: MetadataState, *replicas: int, group: int = GROUP) -> None:
    apply(state, end_of(state, *replicas, group=group))


def start_plan(
    state: MetadataState, targets: dict[int, tuple[int, ...]], **changes: object
) -> StartPlan:
    moves = tuple(
        PlannedMove(GroupId(g), placement(state, g).replicas, nodes(*target), "replica balance", 10)
        for g, target in targets.items()
    )
    command = StartPlan(
        token="token",
        purpose="rebalance",
        layout_version=state.layout_version,
        move_count=len(moves),
        moves=moves,
        now_ms=3,
    )
    return msgspec.structs.replace(command, **changes)


def plan_of(state: MetadataState) -> Plan:
    assert state.plan is not None
    return state.plan


def test_a_partition_under_way_is_held_by_its_old_and_its_new_brokers() -> None:
    state = five_brokers()

    apply(state, begin(1, 2, 4))

    assert placement(state).replicas == (1, 2, 3)
    assert placement(state).holders == (1, 2, 3, 4)
    assert [p.group for p in state.partitions_on(NodeId(4))] == [GROUP]
    assert state.moving == (placement(state),)


def test_a_finished_move_leaves_a_copy_behind_until_its_broker_has_cleared_it_away() -> None:
    state = five_brokers()
    apply(state, begin(1, 2, 4))

    finish(state, 1, 2, 4)

    assert placement(state).replicas == (1, 2, 4)
    assert placement(state).leaving == (3,)
    assert state.partitions_on(NodeId(3)) == ()
    with pytest.raises(UnavailableError, match="just left broker 3"):
        apply(state, begin(1, 2, 3, before=(1, 2, 4)))
    apply(state, ReplicasRetired(node=NodeId(3), groups=(GROUP, GroupId(99)), as_of=state.version))
    assert placement(state).leaving == ()
    apply(state, begin(1, 2, 3, before=(1, 2, 4)))


def test_beginning_and_finishing_twice_is_as_good_as_once() -> None:
    state = five_brokers()

    for _ in range(2):
        apply(state, begin(1, 2, 4))
    ended = end_of(state, 1, 2, 4)
    for _ in range(2):
        apply(state, ended)

    assert placement(state).replicas == (1, 2, 4)


def test_the_end_of_a_move_that_is_told_late_does_not_end_another_that_goes_the_same_way() -> None:
    """By a leader that was deposed, or cut off from the controller, and told of it in the end.

    The replicas are not where that says by now: those that left would go to the trash.
    """
    state = five_brokers()
    apply(state, begin(1, 2, 4))
    late = end_of(state, 1, 2, 4)
    apply(state, late)
    apply(state, ReplicasRetired(node=NodeId(3), groups=(GROUP,), as_of=state.version))
    apply(state, begin(1, 2, 3, before=(1, 2, 4)))
    with pytest.raises(InvalidRequestError, match="earlier move of orders/0 than the one to 1,2,3"):
        apply(state, late)
    finish(state, 1, 2, 3)
    apply(state, ReplicasRetired(node=NodeId(4), groups=(GROUP,), as_of=state.version))
    apply(state, begin(1, 2, 4))

    with pytest.raises(InvalidRequestError, match="that was an earlier move of orders/0"):
        apply(state, late)

    assert placement(state).replicas == (1, 2, 3)
    assert placement(state).move is not None


def test_the_end_of_a_move_that_was_taken_back_does_not_take_back_the_next() -> None:
    state = five_brokers()
    apply(state, begin(1, 2, 4))
    apply(state, CancelMove(group=GROUP))
    late = end_of(state, 1, 2, 3)
    apply(state, late)
    apply(state, ReplicasRetired(node=NodeId(4), groups=(GROUP,), as_of=state.version))
    apply(state, begin(1, 2, 4))
    apply(state, CancelMove(group=GROUP))  # By now its leader may have brought it there.

    with pytest.raises(InvalidRequestError, match="that was an earlier move of orders/0"):
        apply(state, late)

    finish(state, 1, 2, 4)
    assert placement(state).replicas == (1, 2, 4)


def test_a_move_that_is_given_up_late_is_not_the_next_one() -> None:
    state = five_brokers()
    apply(state, begin(1, 2, 4))
    moving = placement(state).move
    assert moving is not None
    late = CancelMove(group=GROUP, begun_at=moving.begun_at)
    apply(state, late)
    apply(state, end_of(state, 1, 2, 3))
    apply(state, ReplicasRetired(node=NodeId(4), groups=(GROUP,), as_of=state.version))
    apply(state, begin(1, 2, 5))

    with pytest.raises(InvalidRequestError, match="earlier move of orders/0 than the one to 1,2,5"):
        apply(state, late)

    moving = placement(state).move
    assert moving is not None
    assert not moving.is_cancelled


def test_that_a_copy_was_cleared_away_says_nothing_of_one_that_was_left_later() -> None:
    state = five_brokers()
    apply(state, begin(1, 2, 4))
    finish(state, 1, 2, 4)
    late = ReplicasRetired(node=NodeId(3), groups=(GROUP,), as_of=state.version)
    apply(state, late)
    apply(state, begin(1, 2, 3, before=(1, 2, 4)))
    finish(state, 1, 2, 3)
    apply(state, ReplicasRetired(node=NodeId(4), groups=(GROUP,), as_of=state.version))
    apply(state, begin(1, 2, 4))
    finish(state, 1, 2, 4)

    apply(state, late)

    assert placement(state).leaving == (3,)
    apply(state, msgspec.structs.replace(late, as_of=state.version))
    assert placement(state).leaving == ()


def test_below_the_level_for_it_no_move_is_named() -> None:
    """As brokers of before apply it; and what was begun then ends like that later."""
    state = five_brokers()
    state._feature_level = NAMING_LEVEL - 1
    unnamed = FinishMove(group=GROUP, replicas=nodes(1, 2, 4), now_ms=9)
    apply(state, begin(1, 2, 4))
    assert end_of(state, 1, 2, 4) == unnamed
    state._feature_level = NAMING_LEVEL

    apply(state, unnamed)

    assert placement(state).replicas == (1, 2, 4)


def test_a_cancelled_move_ends_where_it_began_or_where_it_was_to_go() -> None:
    for end in ((1, 2, 3), (1, 2, 4)):
        state = five_brokers()
        apply(state, begin(1, 2, 4))

        apply(state, CancelMove(group=GROUP))
        finish(state, *end)

        assert placement(state).replicas == end
        assert placement(state).move is None


def test_a_move_cannot_end_anywhere_else_nor_go_back_uncancelled() -> None:
    state = five_brokers()
    apply(state, begin(1, 2, 4))

    for end in ((1, 2, 3), (1, 2, 5), (1, 2)):
        with pytest.raises(InvalidRequestError, match="is being moved to 1,2,4"):
            finish(state, *end)


@pytest.mark.parametrize(
    ("target", "error", "reason"),
    [
        ((), InvalidRequestError, "0 replicas"),
        ((1, 2, 2), InvalidRequestError, "one replica"),
        ((1, 2, 9), UnknownBrokerError, "no broker 9"),
        ((1, 2, 3, 4, 5, 6, 7, 8), InvalidRequestError, "1 to 7"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    target: tuple[int, ...], error: type[Exception], reason: str
) -> None:
    state = five_brokers()

    with pytest.raises(error, match=reason):
        apply(state, begin(*target))

    assert placement(state).move is None


def test_a_move_of_what_is_moving_or_has_moved_is_refused() -> None:
    state = five_brokers()
    with pytest.raises(RebalanceConflictError, match="has replicas 1,2,3, expected 3,2,1"):
        apply(state, begin(1, 2, 4, before=(3, 2, 1)))

    apply(state, begin(1, 2, 4))
    with pytest.raises(RebalanceConflictError, match="being moved to 1,2,4 already"):
        apply(state, begin(1, 2, 5))


def test_another_preferred_leader_is_a_move_that_is_done_at_once() -> None:
    state = five_brokers()

    apply(state, begin(3, 1, 2))

    assert placement(state).replicas == (3, 1, 2)
    assert placement(state).move is None


def test_a_draining_broker_gets_nothing_new_until_it_is_resumed() -> None:
    state = five_brokers()

    apply(state, DrainBroker(node=NodeId(4)))
    apply(state, create("other", partitions=8, replicas=3))
    with pytest.raises(RebalanceConflictError, match="broker 4, which is draining"):
        apply(state, begin(1, 2, 4))
    with pytest.raises(NotEnoughBrokersError, match="4 are registered and not draining"):
        apply(state, create("wide", partitions=1, replicas=5))

    assert state.partitions_on(NodeId(4)) == ()
    apply(state, register(4, incarnation=2))
    assert state.brokers[3].is_draining
    apply(state, ResumeBroker(node=NodeId(4)))
    apply(state, begin(1, 2, 4))


def test_draining_what_the_replicas_need_is_refused() -> None:
    state = cluster(3)
    apply(state, create(partitions=1, replicas=3))
    with pytest.raises(NotEnoughBrokersError, match="3 replicas, and without broker 3 there are 2"):
        apply(state, DrainBroker(node=NodeId(3)))

    apply(state, register(4, failure_domain="host1"))
    with pytest.raises(NotEnoughBrokersError, match="the last one of 'host3'"):
        apply(state, DrainBroker(node=NodeId(3)))
    apply(state, DrainBroker(node=NodeId(1)))


def test_a_broker_is_removed_once_it_is_empty_and_never_returns() -> None:
    state = five_brokers()
    with pytest.raises(BrokerInUseError, match="replicas of 1 partition:"):
        apply(state, RemoveBroker(node=NodeId(3), now_ms=7))
    apply(state, begin(1, 2, 4))
    with pytest.raises(BrokerInUseError):
        apply(state, RemoveBroker(node=NodeId(4), now_ms=7))
    finish(state, 1, 2, 4)

    apply(state, RemoveBroker(node=NodeId(3), now_ms=7))

    assert state.broker(NodeId(3)) is None
    assert placement(state).leaving == ()
    with pytest.raises(InvalidRequestError, match="was removed from the cluster"):
        apply(state, register(3))
    with pytest.raises(UnknownBrokerError, match="it was removed"):
        apply(state, DrainBroker(node=NodeId(3)))


def test_a_plan_ends_with_its_last_move() -> None:
    state = five_brokers(partitions=3)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3), 3: (1, 3, 2)}))
    before = {group: placement(state, group).replicas for group in (1, 2, 3)}
    assert plan_of(state).state == "running"

    for group, target in ((1, (1, 2, 4)), (2, (5, 1, 3)), (3, (1, 3, 2))):
        apply(
            state,
            begin(*target, group=GroupId(group), before=before[group], plan_id=1),
        )
    assert plan_of(state).states == ("running", "running", "done")
    finish(state, 1, 2, 4)
    assert plan_of(state).state == "running"
    finish(state, 5, 1, 3, group=2)

    assert plan_of(state).state == "done"
    assert plan_of(state).ended_ms == 9


def test_a_cancelled_plan_begins_nothing_and_waits_for_what_is_under_way() -> None:
    state = five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)}))
    apply(state, begin(1, 2, 4, plan_id=1))

    apply(state, CancelPlan(plan_id=1, now_ms=8))

    assert plan_of(state).states == ("running", "cancelled")
    assert plan_of(state).state == "cancelling"
    move = placement(state).move
    assert move is not None
    assert move.is_cancelled
    finish(state, 1, 2, 3)
    assert plan_of(state).states == ("cancelled", "cancelled")
    assert plan_of(state).state == "cancelled"


def cancel(state: MetadataState, group: int, plan_id: int = 1) -> None:
    apply(state, CancelMove(group=GroupId(group), plan_id=plan_id, now_ms=7))
    state.check_invariants()


def test_one_move_of_a_plan_is_taken_back_and_the_others_go_on() -> None:
    state = five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)}))
    apply(state, begin(1, 2, 4, plan_id=1))

    for _ in range(2):
        cancel(state, 1)
        move = placement(state).move
        assert move is not None
        assert move.is_cancelled
        assert (plan_of(state).state, plan_of(state).states) == ("running", ("running", "pending"))
    finish(state, 1, 2, 3)
    apply(state, begin(5, 1, 3, group=GroupId(2), before=placement(state, 2).replicas, plan_id=1))
    finish(state, 5, 1, 3, group=2)

    assert placement(state).replicas == (1, 2, 3)
    assert (plan_of(state).state, plan_of(state).states) == ("done", ("cancelled", "done"))


def test_one_move_of_a_plan_that_has_not_begun_is_not_begun() -> None:
    state = five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)}))

    cancel(state, 1)

    assert plan_of(state).states == ("cancelled", "pending")
    with pytest.raises(RebalanceConflictError, match="does not move group 1"):
        apply(state, begin(1, 2, 4, plan_id=1))
    cancel(state, 2)
    assert (plan_of(state).state, plan_of(state).ended_ms) == ("done", 7)


def test_cancelling_one_move_that_is_over_changes_nothing() -> None:
    state = five_brokers(partitions=3)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3), 3: (1, 3, 2)}))
    apply(state, begin(1, 2, 4, plan_id=1))
    finish(state, 1, 2, 4)
    apply(state, SkipMove(plan_id=1, group=GroupId(2), now_ms=4))
    before = plan_of(state)

    cancel(state, 1)
    cancel(state, 2)

    assert plan_of(state) == before
    assert placement(state).replicas == (1, 2, 4)


def test_a_move_of_another_plan_is_not_cancelled() -> None:
    state = five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4)}))
    cancel(state, 1)
    apply(state, start_plan(state, {1: (1, 2, 5)}, token="other"))
    apply(state, begin(1, 2, 5, plan_id=2))

    with pytest.raises(InvalidRequestError, match="plan 1 is not the last one"):
        cancel(state, 1)
    with pytest.raises(InvalidRequestError, match="plan 2 has no group 2"):
        cancel(state, 2, plan_id=2)

    move = placement(state).move
    assert move is not None
    assert not move.is_cancelled


def test_one_move_of_a_plan_that_is_still_arriving_is_not_begun_once_it_has() -> None:
    state = five_brokers(partitions=2)
    whole = start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)})
    apply(state, msgspec.structs.replace(whole, moves=whole.moves[:1]))

    cancel(state, 1)
    with pytest.raises(InvalidRequestError, match="plan 1 has no group 2"):
        cancel(state, 2)
    apply(state, msgspec.structs.replace(whole, first=1, moves=whole.moves[1:]))

    assert plan_of(state).state == "running"
    assert plan_of(state).states == ("cancelled", "pending")
    with pytest.raises(RebalanceConflictError, match="does not move group 1"):
        apply(state, begin(1, 2, 4, plan_id=1))


def test_a_plan_of_which_all_was_cancelled_before_its_end_came_is_over_with_that() -> None:
    state = five_brokers(partitions=2)
    whole = start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)})
    first = msgspec.structs.replace(whole, moves=whole.moves[:1])
    apply(state, first)
    cancel(state, 1)

    apply(state, first)  # Whoever sends it had no answer.

    assert (plan_of(state).state, plan_of(state).states) == ("arriving", ("cancelled",))
    apply(state, msgspec.structs.replace(whole, first=1, moves=whole.moves[1:]))
    cancel(state, 2)
    assert plan_of(state).state == "done"


@pytest.mark.parametrize(
    ("level", "state_of_first"), [(KEEPING_LEVEL, "skipped"), (KEEPING_LEVEL - 1, "pending")]
)
def test_what_was_planned_for_a_topic_that_is_deleted_while_the_plan_arrives_is_skipped(
    level: int, state_of_first: str
) -> None:
    """Below the level for it as brokers of before apply it."""
    state = five_brokers()
    apply(state, create(name="other", partitions=2, replicas=3))
    state._feature_level = level
    targets = {
        group: tuple({1, 2, 3, 4, 5}.difference(placement(state, group).replicas))
        for group in (1, 2)
    }
    whole = start_plan(state, targets)
    apply(state, msgspec.structs.replace(whole, moves=whole.moves[:1]))
    apply(state, DeleteTopic(name="orders", now_ms=8))

    apply(state, msgspec.structs.replace(whole, first=1, moves=whole.moves[1:]))

    assert plan_of(state).states == (state_of_first, "pending")


def keeps(state: MetadataState, node: int) -> tuple[GroupId, ...]:
    broker = state.broker(NodeId(node))
    assert broker is not None
    return broker.keeps


def drained(state: MetadataState) -> MetadataState:
    """Broker 3 is, and a plan takes two partitions from it; the first is on its way."""
    apply(state, DrainBroker(node=NodeId(3)))
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 2)}))
    apply(state, begin(1, 2, 4, plan_id=1))
    return state


@pytest.mark.parametrize("group", [1, 2], ids=["under way", "not begun"])
def test_a_broker_that_is_drained_keeps_what_was_cancelled_alone_until_a_drain_is_asked_for_again(
    group: int,
) -> None:
    state = drained(five_brokers(partitions=2))

    for _ in range(2):
        cancel(state, group)
    apply(state, register(3, incarnation=2))

    assert keeps(state, 3) == (group,)
    assert [keeps(state, other) for other in (1, 2, 4, 5)] == [()] * 4  # They are not drained.
    assert keeps(MetadataState.restore(state.snapshot()), 3) == (group,)
    apply(state, DrainBroker(node=NodeId(3)))
    assert keeps(state, 3) == ()


def test_a_drain_that_was_cancelled_leaves_all_where_it_is_until_it_is_asked_for_again() -> None:
    """Another plan may come in the place of the one that says that it was cancelled."""
    state = drained(five_brokers(partitions=3))

    apply(state, CancelPlan(plan_id=1, now_ms=8))

    assert keeps(state, 3) == (1, 2)
    state.check_invariants()
    apply(state, ResumeBroker(node=NodeId(3)))
    assert keeps(state, 3) == ()


def test_a_broker_keeps_nothing_of_what_was_cancelled_by_itself_or_is_gone() -> None:
    state = drained(five_brokers(partitions=2))
    apply(state, CancelMove(group=GROUP))  # As the cluster does, to a broker that is lost.
    assert keeps(state, 3) == ()
    cancel(state, 1)
    finish(state, 1, 2, 4)  # Too late.

    cancel(state, 2)

    assert keeps(state, 3) == (2,)


def test_below_the_level_for_it_a_drain_keeps_nothing_and_no_plan_that_arrives_is_cut() -> None:
    """As brokers of before apply it."""
    state = five_brokers(partitions=2)
    state._feature_level = KEEPING_LEVEL - 1
    drained(state)
    cancel(state, 1)
    cancel(state, 2)
    assert keeps(state, 3) == ()

    finish(state, 1, 2, 3)
    whole = start_plan(state, {1: (1, 2, 4), 2: (5, 1, 2)}, token="other")
    apply(state, msgspec.structs.replace(whole, moves=whole.moves[:1]))
    with pytest.raises(RebalanceConflictError, match="plan 2 has not arrived yet"):
        cancel(state, 1, plan_id=2)
    assert plan_of(state).states == ("pending",)


def left_behind(state: MetadataState | None = None) -> MetadataState:
    """Plan 1 was cancelled, and has ended without the move of its first partition."""
    state = state or five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)}))
    apply(state, begin(1, 2, 4, plan_id=1))
    apply(state, CancelPlan(plan_id=1, now_ms=8))
    apply(state, SkipMove(plan_id=1, group=GROUP, now_ms=9, is_begun=True))
    return state


def test_a_plan_can_end_without_a_move_that_was_cancelled_and_that_nobody_can_take_back() -> None:
    state = left_behind()

    assert plan_of(state).states == ("cancelled", "cancelled")
    assert (plan_of(state).state, plan_of(state).ended_ms) == ("cancelled", 9)
    move = placement(state).move
    assert move is not None
    assert (move.is_cancelled, move.is_left, move.plan_id) == (True, True, 1)
    assert placement(state).holders == (1, 2, 3, 4)
    state.check_invariants()
    assert MetadataState.restore(state.snapshot()).placement(GROUP) == placement(state)


def test_what_was_left_behind_keeps_no_other_plan_waiting_but_is_not_moved_again() -> None:
    state = left_behind()
    again: dict[int, tuple[int, ...]] = {1: (1, 2, 5), 2: (5, 1, 3)}

    apply(state, start_plan(state, again, token="other"))
    state.check_invariants()
    with pytest.raises(RebalanceConflictError, match=r"orders/0 to 1,2,4 has not been taken back"):
        apply(state, begin(1, 2, 5, plan_id=2))
    apply(state, SkipMove(plan_id=2, group=GROUP, now_ms=10))
    apply(state, begin(5, 1, 3, group=GroupId(2), before=placement(state, 2).replicas, plan_id=2))
    finish(state, 5, 1, 3, group=2)
    state.check_invariants()

    assert plan_of(state).states == ("skipped", "done")
    assert plan_of(state).state == "done"


@pytest.mark.parametrize(
    ("replicas", "told"), [((1, 2, 3), "cancelled"), ((1, 2, 4), "done")], ids=["back", "arrived"]
)
def test_what_was_left_behind_ends_like_any_move_that_was_cancelled(
    replicas: tuple[int, ...], told: str
) -> None:
    state = left_behind()
    plan = plan_of(state)

    finish(state, *replicas)

    assert placement(state).replicas == replicas
    assert placement(state).move is None
    assert plan_of(state) == msgspec.structs.replace(plan, states=(told, "cancelled"))
    state.check_invariants()


def test_what_one_plan_left_behind_is_not_told_to_another() -> None:
    state = left_behind()
    apply(state, start_plan(state, {1: (1, 2, 4)}, token="other"))
    plan = plan_of(state)

    finish(state, 1, 2, 4)

    assert placement(state).replicas == (1, 2, 4)
    assert plan_of(state) == plan
    assert plan.states == ("pending",)


def test_below_the_level_for_it_what_was_left_behind_has_no_plan() -> None:
    """As brokers of before apply it."""
    state = five_brokers(partitions=2)
    state._feature_level = OUTCOME_LEVEL - 1
    left_behind(state)
    plan = plan_of(state)
    move = placement(state).move
    assert move is not None
    assert move.plan_id is None

    finish(state, 1, 2, 4)

    assert plan_of(state) == plan


def test_a_move_that_was_not_cancelled_is_not_left_behind() -> None:
    state = five_brokers()
    apply(state, start_plan(state, {1: (1, 2, 4)}))
    apply(state, begin(1, 2, 4, plan_id=1))

    with pytest.raises(InvalidRequestError, match="was not cancelled"):
        apply(state, SkipMove(plan_id=1, group=GROUP, now_ms=9, is_begun=True))
    apply(state, SkipMove(plan_id=1, group=GROUP, now_ms=9))

    assert plan_of(state).states == ("running",)


def test_two_plans_at_once_are_refused_and_asking_twice_is_not_two_plans() -> None:
    state = five_brokers(partitions=2)
    first = start_plan(state, {1: (1, 2, 4)})

    apply(state, first)
    apply(state, first)

    assert plan_of(state).plan_id == 1
    with pytest.raises(RebalanceConflictError, match=r"plan 1 \(rebalance\) is running, 0 of 1"):
        apply(state, start_plan(state, {2: (5, 1, 3)}, token="other"))
    with pytest.raises(RebalanceConflictError, match="plan 1"):
        apply(state, begin(5, 1, 3, group=GroupId(2), before=placement(state, 2).replicas))


def test_a_plan_for_an_older_layout_is_refused() -> None:
    state = five_brokers()
    command = start_plan(state, {1: (1, 2, 4)})
    apply(state, register(1, incarnation=2))
    apply(state, start_plan(state, {1: (1, 2, 4)}, token="fits still"))
    apply(state, CancelPlan(plan_id=1, now_ms=4))
    apply(state, create("other", partitions=1))

    with pytest.raises(RebalanceConflictError, match="plan again"):
        apply(state, command)


def test_a_long_plan_arrives_in_pieces_and_runs_when_it_is_whole() -> None:
    state = five_brokers(partitions=2)
    whole = start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)})
    first = msgspec.structs.replace(whole, moves=whole.moves[:1])
    second = msgspec.structs.replace(whole, moves=whole.moves[1:], first=1)

    apply(state, first)
    assert plan_of(state).state == "arriving"
    with pytest.raises(RebalanceConflictError, match="does not move"):
        apply(state, begin(1, 2, 4, plan_id=1))
    apply(state, second)
    apply(state, second)

    assert plan_of(state).state == "running"
    assert len(plan_of(state).moves) == 2


def test_a_plan_that_never_arrived_whole_makes_way_for_another() -> None:
    state = five_brokers(partitions=2)
    whole = start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)})
    apply(state, msgspec.structs.replace(whole, moves=whole.moves[:1]))

    apply(state, start_plan(state, {2: (5, 1, 3)}, token="other"))

    assert plan_of(state).token == "other"
    with pytest.raises(RebalanceConflictError, match="another plan"):
        apply(state, msgspec.structs.replace(whole, moves=whole.moves[1:], first=1))


def test_a_plan_that_was_cancelled_before_it_was_whole_does_not_go_on_arriving() -> None:
    state = five_brokers(partitions=2)
    whole = start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)})
    apply(state, msgspec.structs.replace(whole, moves=whole.moves[:1]))
    apply(state, CancelPlan(plan_id=1, now_ms=8))

    with pytest.raises(RebalanceConflictError, match="plan 1 is cancelled"):
        apply(state, msgspec.structs.replace(whole, moves=whole.moves[1:], first=1))

    assert plan_of(state).state == "cancelled"
    assert plan_of(state).states == ("cancelled",)


def test_moves_that_cannot_be_begun_are_skipped() -> None:
    state = five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)}))

    apply(state, SkipMove(plan_id=1, group=GROUP, now_ms=4))
    apply(state, DeleteTopic(name="orders"))

    assert plan_of(state).states == ("skipped", "skipped")
    assert plan_of(state).state == "done"


@pytest.mark.parametrize(("now_ms", "ended_ms"), [(8, 8), (None, 3)], ids=["timed", "of before"])
def test_a_plan_that_ends_with_a_deleted_topic_ends_then(now_ms: int | None, ended_ms: int) -> None:
    state = five_brokers(partitions=2)
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (5, 1, 3)}))

    apply(state, DeleteTopic(name="orders", now_ms=now_ms))

    assert (plan_of(state).state, plan_of(state).ended_ms) == ("done", ended_ms)


def test_settings_change_one_at_a_time_and_within_bounds() -> None:
    state = five_brokers()

    apply(state, SetRebalancing(throttle_bytes_per_s=1_000_000))
    apply(state, SetRebalancing(concurrency=2, is_autonomous=False))

    assert state.rebalance_settings.throttle_bytes_per_s == 1_000_000
    assert state.rebalance_settings.concurrency == 2
    assert not state.rebalance_settings.is_autonomous
    for bad in (SetRebalancing(throttle_bytes_per_s=1), SetRebalancing(concurrency=0)):
        with pytest.raises(InvalidRequestError):
            apply(state, bad)


def test_a_topic_gets_more_partitions_and_never_fewer() -> None:
    state = five_brokers(partitions=2)

    apply(state, AddPartitions(name="orders", partitions=5))

    topic = state.topic("orders")
    assert topic is not None
    assert [p.partition for p in topic.partitions] == [0, 1, 2, 3, 4]
    assert [p.group for p in topic.partitions] == [1, 2, 3, 4, 5]
    assert {len(p.replicas) for p in topic.partitions} == {3}
    for count in (5, 4, 0, 10**6):
        with pytest.raises(InvalidPartitionError, match="can only get more"):
            apply(state, AddPartitions(name="orders", partitions=count))


def test_added_partitions_have_as_many_replicas_as_the_command_says_or_else_as_partition_0() -> (
    None
):
    state = five_brokers(partitions=3)
    apply(state, begin(1, 2))
    finish(state, 1, 2)

    apply(state, AddPartitions(name="orders", partitions=4))  # As logs have it from before.
    apply(state, AddPartitions(name="orders", partitions=5, replicas=3))

    assert [len(placement(state, group).replicas) for group in range(1, 6)] == [2, 3, 3, 2, 3]


ADD = AddPartitions(name="orders", partitions=9)


def replicas_of_added(state: MetadataState) -> int | None:
    counted = state.counting(ADD)
    assert isinstance(counted, AddPartitions)
    return counted.replicas


def test_the_controller_asks_for_as_many_replicas_as_most_partitions_have() -> None:
    state = five_brokers(partitions=3)
    assert replicas_of_added(state) == 3

    apply(state, begin(1, 2))
    finish(state, 1, 2)

    assert replicas_of_added(state) == 3
    apply(state, state.counting(ADD))
    assert len(placement(state, 4).replicas) == 3


def test_of_two_counts_that_are_as_frequent_the_controller_asks_for_the_greater() -> None:
    state = five_brokers(partitions=2)
    apply(state, begin(1, 2))
    finish(state, 1, 2)

    assert replicas_of_added(state) == 3


def test_what_is_under_way_counts_as_done_when_replicas_are_counted() -> None:
    state = five_brokers(partitions=3)
    apply(state, start_plan(state, {1: (1, 2, 3, 4, 5), 2: (1, 2, 3, 4, 5)}))
    assert replicas_of_added(state) == 5  # Before anything has begun.

    apply(state, begin(1, 2, 3, 4, 5, plan_id=1))
    assert replicas_of_added(state) == 5

    apply(state, CancelPlan(plan_id=1, now_ms=4))
    assert placement(state).move is not None  # It goes back.
    assert replicas_of_added(state) == 3


def test_replicas_are_counted_only_for_partitions_that_are_added_to_a_topic_that_is() -> None:
    state = five_brokers()
    unknown = AddPartitions(name="nowhere", partitions=2)

    assert state.counting(unknown) == unknown
    assert state.counting(create()) == create()


def test_a_snapshot_holds_moves_plans_and_removed_brokers() -> None:
    state = five_brokers(partitions=2)
    apply(state, RemoveBroker(node=NodeId(5), now_ms=7))
    apply(state, start_plan(state, {1: (1, 2, 4), 2: (4, 1, 3)}))
    apply(state, begin(1, 2, 4, plan_id=1))
    apply(state, SetRebalancing(concurrency=2))

    restored = MetadataState.restore(state.snapshot())

    restored.check_invariants()
    assert restored.snapshot() == state.snapshot()
    assert restored.plan == state.plan
    assert restored.moving == state.moving
    assert restored.rebalance_settings == state.rebalance_settings
    assert restored.layout_version == state.layout_version
    with pytest.raises(InvalidRequestError, match="was removed"):
        apply(restored, register(5))


def test_as_many_moves_as_are_sent_at_once_fit_in_a_command() -> None:
    most = tuple(NodeId(NODE_ID_MAX - at) for at in range(REPLICAS_MAX))
    move = PlannedMove(
        group=GroupId(2**32),
        before=most,
        target=most,
        reason="r" * REASON_CHARACTERS_MAX,
        size_bytes=2**63,
    )
    command = StartPlan(
        token="t" * REASON_CHARACTERS_MAX,
        purpose="p" * REASON_CHARACTERS_MAX,
        layout_version=2**62,
        move_count=PLAN_MOVES_MAX,
        first=PLAN_MOVES_MAX,
        moves=(move,) * PLAN_MOVES_AT_ONCE,
        now_ms=2**62,
    )

    assert decode_command(encode_command(command)) == command
