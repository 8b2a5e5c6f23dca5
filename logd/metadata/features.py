"""Feature levels: what a cluster may use while its brokers are of different versions.

A broker of an older version does not know what a newer one has learnt to write.  So every broker
registers the range of levels that it supports, the cluster has one level, and whatever came with a
level is refused until the cluster is at it.  It is raised by a committed command, to what all
registered brokers support, alive or not, and never lowered: from then on an older broker may meet
what it cannot read, and is not let in any more.

A broker that meets a command which it does not know at all stops applying there, rather than hold
another state than its peers.  So such a command must not get into the log: it is refused where it
is proposed, and once more when it is applied.  A level has to be asked for every new command, every
new field that is not at its default, and every new kind of record that follows from them.

Raising ``FEATURE_LEVEL`` (``limits.py``) is part of the change that adds to the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from logd.errors import InvalidRequestError, UnsupportedVersionError
from logd.limits import FEATURE_LEVEL, FEATURE_LEVEL_MIN
from logd.metadata.commands import (
    AddPartitions,
    AlterTopic,
    CancelMove,
    Command,
    CreateInternalTopic,
    CreateTopic,
    DeleteTopic,
    FinishMove,
    RaiseFeatureLevel,
    RegisterBroker,
    ReplicasRetired,
    SkipMove,
)
from logd.types import NodeId

LEVELS: Final = {
    1: "topics, partitions, moves, retention and compaction",
    2: "durability=replicated",
    3: "coordination: sessions, locks, elections, groups, queues, and topics that ask for a fence",
    4: "new partitions on brokers that are alive, as long as there are enough of them",
    5: "as many replicas for added partitions as most have; plans that leave behind what is stuck",
    6: "one move of a plan cancelled alone; plans that tell what became of what they left behind",
    7: "queue items given back uncounted; drains that leave alone what was cancelled; named moves",
    8: "registrations of brokers in order; moves named that the cluster gives up by itself",
    9: "options of a queue that are changed at the same time and keep both changes",
}
"""What came with each level, for people."""

LEVEL_MIN: Final = "level_min"
LEVEL_MAX: Final = "level_max"
"""Under these names a broker registers its range, among its features."""

COORDINATION_LEVEL: Final = 3
"""Its commands lie in a log of their own, that of the internal topic: there is none below this."""

AVOID_LEVEL: Final = 4
"""Commands that place replicas name the brokers that are down."""

REPLICA_COUNT_LEVEL: Final = 5
"""The command that adds partitions names how many replicas they get."""

LEAVING_LEVEL: Final = 5
"""A plan may leave behind a move that has begun."""

ONE_MOVE_LEVEL: Final = 6
"""One move of a plan can be cancelled."""

OUTCOME_LEVEL: Final = 6
"""A plan tells when it ended with a deleted topic, and what it left behind stays its own."""

UNCOUNTED_LEVEL: Final = 7
"""A claim of an item can be given back as no attempt."""

KEEPING_LEVEL: Final = 7
"""A broker that is drained keeps what was cancelled; one move may be while its plan arrives."""

NAMING_LEVEL: Final = 7
"""Who tells what became of a move says of which: of two that went the same way it may be either."""

ORDER_LEVEL: Final = 8
"""A registration names the one that it takes the place of."""

GIVING_UP_LEVEL: Final = 8
"""Who cancels a move, and no plan, says of which."""

CHANGED_OPTIONS_LEVEL: Final = 9
"""Who changes some options of a queue names them, and the others stay as they are."""

_LEVEL_BY_OPTION: Final = {
    ("durability", "replicated"): 2,
    ("fence", "required"): COORDINATION_LEVEL,
}
"""Values of topic options; a broker below that level would keep another promise."""

assert sorted(LEVELS) == list(range(FEATURE_LEVEL_MIN, FEATURE_LEVEL + 1))
assert {*_LEVEL_BY_OPTION.values(), COORDINATION_LEVEL, AVOID_LEVEL} <= LEVELS.keys()
assert {REPLICA_COUNT_LEVEL, LEAVING_LEVEL, ONE_MOVE_LEVEL, OUTCOME_LEVEL} <= LEVELS.keys()
assert {UNCOUNTED_LEVEL, KEEPING_LEVEL, NAMING_LEVEL} <= LEVELS.keys()
assert {ORDER_LEVEL, GIVING_UP_LEVEL, CHANGED_OPTIONS_LEVEL} <= LEVELS.keys()


def registered_range(features: dict[str, int]) -> tuple[int, int]:
    """The lowest and the highest level that a broker has registered."""
    return features.get(LEVEL_MIN, FEATURE_LEVEL_MIN), features.get(LEVEL_MAX, FEATURE_LEVEL_MIN)


def level_of(command: Command) -> int:
    """The level that a cluster must be at to take ``command``."""
    match command:
        case RegisterBroker():
            return FEATURE_LEVEL_MIN if command.instead_of is None else ORDER_LEVEL
        case CreateTopic():
            return max(_level_of_options(command.config), _level_of_placing(command.avoid))
        case AlterTopic():
            return _level_of_options(command.config)
        case CreateInternalTopic():
            return max(COORDINATION_LEVEL, _level_of_placing(command.avoid))
        case AddPartitions():
            counted = FEATURE_LEVEL_MIN if command.replicas is None else REPLICA_COUNT_LEVEL
            return max(counted, _level_of_placing(command.avoid))
        case DeleteTopic():
            return FEATURE_LEVEL_MIN if command.now_ms is None else OUTCOME_LEVEL
        case CancelMove():
            planned = FEATURE_LEVEL_MIN if command.plan_id is None else ONE_MOVE_LEVEL
            return planned if command.begun_at is None else GIVING_UP_LEVEL
        case FinishMove():
            return FEATURE_LEVEL_MIN if command.begun_at is None else NAMING_LEVEL
        case ReplicasRetired():
            return FEATURE_LEVEL_MIN if command.as_of is None else NAMING_LEVEL
        case SkipMove():
            return LEAVING_LEVEL if command.is_begun else FEATURE_LEVEL_MIN
        case RaiseFeatureLevel():
            return FEATURE_LEVEL_MIN  # Whoever does not know it supports no other level either.
        case _:
            return FEATURE_LEVEL_MIN


def _level_of_options(config: Mapping[str, str | None]) -> int:
    levels = [_LEVEL_BY_OPTION.get((name, text or ""), 1) for name, text in config.items()]
    return max(levels, default=FEATURE_LEVEL_MIN)


def _level_of_placing(avoid: tuple[NodeId, ...]) -> int:
    return AVOID_LEVEL if avoid else FEATURE_LEVEL_MIN


def check_supported(who: str, supported: tuple[int, int], level: int) -> None:
    """Refuse a broker that does not know all of what a cluster at ``level`` may do.

    Raises:
        InvalidRequestError: says what to start instead.
    """
    lowest, highest = supported
    if not lowest <= level <= highest:
        raise InvalidRequestError(
            f"{who} supports feature levels {lowest} to {highest}, the cluster is at {level}: "
            "start it with a version of logd that supports that level"
        )


def check_level(command: Command, level: int) -> None:
    """Refuse what some broker may not know.

    Raises:
        UnsupportedVersionError: says which level it takes, and how to get there.
    """
    wanted = level_of(command)
    if wanted > level:
        raise UnsupportedVersionError(
            f"{LEVELS[wanted]} needs feature level {wanted}, the cluster is at {level}: once all "
            "brokers run a version that supports it, `logd cluster upgrade` raises it"
        )
