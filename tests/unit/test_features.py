"""A cluster of mixed versions uses only what all of its brokers know."""

from __future__ import annotations

import msgspec
import pytest

from logd.errors import InvalidRequestError, NewerFormatError, UnsupportedVersionError
from logd.limits import FEATURE_LEVEL
from logd.metadata.commands import (
    AddPartitions,
    AlterTopic,
    CancelMove,
    Command,
    CreateInternalTopic,
    CreateTopic,
    DeleteTopic,
    DrainBroker,
    FinishMove,
    FormCluster,
    RaiseFeatureLevel,
    RegisterBroker,
    ReplicasRetired,
    SkipMove,
    decode_command,
    encode_command,
)
from logd.metadata.features import LEVEL_MAX, LEVEL_MIN, level_of
from logd.metadata.state import FeatureLevelRaised, MetadataState
from logd.types import DirectoryId, GroupId, NodeId, Offset

REPLICATED = CreateTopic(name="t", partitions=1, config={"durability": "replicated"}, now_ms=0)
FENCED = CreateTopic(name="t", partitions=1, config={"fence": "required"}, now_ms=0)
COORDINATION = CreateInternalTopic(name="__coordination", partitions=1, now_ms=0)
DOWN = (NodeId(2), NodeId(7))


def apply(state: MetadataState, command: Command) -> object:
    if isinstance(command, RegisterBroker) and command.instead_of is None:
        command = state.in_order(command)
    return state.apply(decode_command(encode_command(command)), Offset(state.version))


def broker(node: int, highest: int | None, lowest: int = 1) -> RegisterBroker:
    """None: of a version that knows no levels."""
    features = {} if highest is None else {LEVEL_MIN: lowest, LEVEL_MAX: highest}
    return RegisterBroker(
        node=NodeId(node),
        directory_id=DirectoryId(f"directory-{node}"),
        incarnation=1,
        host="host",
        port=node,
        peer_host="host",
        peer_port=node,
        version="0.9",
        features=features,
    )


def formed(level: int, *highest: int | None) -> MetadataState:
    state = MetadataState()
    apply(
        state,
        FormCluster(
            cluster_id="cluster",
            voters={NodeId(1): DirectoryId("directory-1")},
            feature_level=level,
        ),
    )
    for number, supported in enumerate(highest, 1):
        apply(state, broker(number, supported))
    return state


def test_a_cluster_begins_at_the_level_of_those_who_founded_it() -> None:
    assert formed(1, 2, 2).feature_level == 1
    assert formed(2, 2, 2).feature_level == 2


def test_a_log_of_before_there_were_levels_is_at_the_first() -> None:
    assert b"level" not in encode_command(
        FormCluster(cluster_id="c", voters={NodeId(1): DirectoryId("d")})
    )
    assert formed(1, None, None).feature_level_available == 1


def test_the_level_is_raised_once_every_broker_supports_it_and_never_lowered() -> None:
    state = formed(1, 2, None)
    assert state.feature_level_available == 1
    with pytest.raises(InvalidRequestError, match=r"not supported by broker 2 \(logd 0.9, up to"):
        apply(state, RaiseFeatureLevel(level=2))
    assert state.feature_level == 1

    apply(state, broker(2, 2))
    assert state.feature_level_available == 2
    assert apply(state, RaiseFeatureLevel(level=2)) == FeatureLevelRaised(level=2)
    assert apply(state, RaiseFeatureLevel(level=2)) == FeatureLevelRaised(level=2)

    with pytest.raises(InvalidRequestError, match="never lowered"):
        apply(state, RaiseFeatureLevel(level=1))


def test_a_broker_that_does_not_support_the_level_is_not_let_in() -> None:
    state = formed(2, 2)

    for older in (broker(2, 1), broker(2, None), broker(1, 1)):
        with pytest.raises(InvalidRequestError, match="feature levels 1 to 1, the cluster is at 2"):
            apply(state, older)
    with pytest.raises(InvalidRequestError, match="feature levels 3 to 4, the cluster is at 2"):
        apply(state, broker(2, 4, lowest=3))
    assert [known.node for known in state.brokers] == [1]


@pytest.mark.parametrize(
    ("level", "command"),
    [
        (2, REPLICATED),
        (2, AlterTopic(name="t", config={"durability": "replicated"})),
        (3, FENCED),
        (3, AlterTopic(name="t", config={"fence": "required"})),
        (3, COORDINATION),
        (4, CreateTopic(name="t", partitions=1, now_ms=0, avoid=DOWN)),
        (4, CreateInternalTopic(name="__t", partitions=1, now_ms=0, avoid=DOWN)),
        (4, AddPartitions(name="t", partitions=2, avoid=DOWN)),
        (5, AddPartitions(name="t", partitions=2, avoid=DOWN, replicas=3)),
        (5, SkipMove(plan_id=1, group=GroupId(1), now_ms=0, is_begun=True)),
        (6, DeleteTopic(name="t", now_ms=0)),
        (6, CancelMove(group=GroupId(1), plan_id=1, now_ms=0)),
        (7, FinishMove(group=GroupId(1), replicas=(), now_ms=0, begun_at=Offset(1))),
        (7, ReplicasRetired(node=NodeId(1), groups=(), as_of=Offset(1))),
        (8, CancelMove(group=GroupId(1), begun_at=Offset(1))),
        (8, msgspec.structs.replace(broker(1, FEATURE_LEVEL), instead_of=1)),
    ],
)
def test_what_came_with_a_level_is_refused_below_it(level: int, command: Command) -> None:
    state = formed(level - 1, FEATURE_LEVEL)

    assert level_of(command) == level
    with pytest.raises(UnsupportedVersionError, match=f"needs feature level {level}, the cluster"):
        apply(state, command)
    assert state.topics == ()


def test_what_is_taken_back_needs_no_level() -> None:
    assert level_of(AlterTopic(name="t", config={"durability": None})) == 1


@pytest.mark.parametrize("command", [FENCED, COORDINATION, AddPartitions(name="t", partitions=2)])
def test_who_is_down_is_said_where_replicas_are_placed_from_the_level_on_that_has_it(
    command: CreateTopic | CreateInternalTopic | AddPartitions,
) -> None:
    state = formed(4, 4)

    said = state.avoiding(command, DOWN, ())

    assert isinstance(said, type(command))
    assert said.avoid == DOWN
    assert state.avoiding(said, (), ()) == command
    assert formed(3, 4).avoiding(command, DOWN, ()) == command


def test_who_is_down_is_not_said_where_nothing_is_placed() -> None:
    command = AlterTopic(name="t", config={"fence": "none"})

    assert formed(4, 4).avoiding(command, DOWN, ()) == command


@pytest.mark.parametrize(
    ("replicas", "is_avoided"), [(1, True), (3, True), (None, True), (4, False), (5, False)]
)
def test_who_has_no_room_is_avoided_where_the_others_are_a_majority_of_the_replicas(
    replicas: int | None, *, is_avoided: bool
) -> None:
    """Of five brokers one is down, and the disks of two are full."""
    state = formed(4, 4, 4, 4, 4, 4)
    command = CreateTopic(name="t", partitions=1, replicas=replicas, now_ms=0)

    said = state.avoiding(command, down=(NodeId(2),), unfit=(NodeId(3), NodeId(1)))

    avoid = (1, 2, 3) if is_avoided else (2,)
    assert said == msgspec.structs.replace(command, avoid=tuple(map(NodeId, avoid)))


def test_a_broker_that_is_drained_is_none_of_that_majority() -> None:
    state = formed(4, 4, 4, 4)
    apply(state, DrainBroker(node=NodeId(3)))
    command = CreateTopic(name="t", partitions=1, replicas=2, now_ms=0)

    assert state.avoiding(command, (), unfit=(NodeId(1),)) == command


def test_a_snapshot_keeps_the_level() -> None:
    state = formed(2, 2)

    assert MetadataState.restore(state.snapshot()).feature_level == 2


def test_a_snapshot_of_a_level_that_this_version_does_not_support_is_refused() -> None:
    state = formed(FEATURE_LEVEL + 1)

    with pytest.raises(NewerFormatError, match="this version supports 1 to"):
        MetadataState.restore(state.snapshot())
