"""Moves of partitions between brokers, as part of the metadata.

A move is begun, carried out by the partition's leader, and finished or taken back; each of
these is a command, so that whoever leads knows from the metadata alone what is left to do.  While
it is under way the partition keeps its old ``replicas`` and has a ``target``; the brokers of both
hold it.  A broker that is left without is *leaving* until it has said that its copy is in the
trash: before that the partition may not come back to it, because a replica that returns to its
old data would not be the new one that its leader enrols.

A plan is a list of moves that the controller begins, a few at a time.  There is one at a time,
and the last one is kept, to be looked at and rolled back.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from logd.limits import MIB
from logd.types import GroupId, NodeId, Offset

REASON_CHARACTERS_MAX: Final = 200
PLAN_MOVES_PER_COMMAND_MAX: Final = 200
"""Longer plans come in several commands."""

THROTTLE_BYTES_PER_S_DEFAULT: Final = 50 * MIB
THROTTLE_BYTES_PER_S_MIN: Final = 64 * 1024
THROTTLE_BYTES_PER_S_MAX: Final = 2**40
CONCURRENCY_DEFAULT: Final = 4
CONCURRENCY_MAX: Final = 64

MoveState = Literal["pending", "running", "done", "cancelled", "skipped"]
PlanState = Literal["arriving", "running", "cancelling", "done", "cancelled"]

PLAN_IS_OVER: Final = frozenset({"done", "cancelled"})

BY_ITSELF: Final = "by itself: "
"""How the purpose of a plan begins that nobody has asked for."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A partition on its way to other brokers."""

    target: tuple[NodeId, ...]
    """The replicas it shall have, preferred leader first."""
    reason: str
    is_cancelled: bool = False
    """It goes back to where it was, unless it has arrived."""
    begun_ms: int
    begun_at: Offset = Offset(0)
    """Names it among the moves of its partition: the version at which it was begun.  0: below
    feature level 7."""
    plan_id: int | None = None
    is_left: bool = False
    """Cancelled, and its plan has gone on without it: nobody leads the partition, who could take it
    back.  Whoever will lead it does.  Below feature level 6 it has no plan from then on."""


class PlannedMove(msgspec.Struct, frozen=True, array_like=True):
    """One move of a plan."""

    group: GroupId
    before: tuple[NodeId, ...]
    target: tuple[NodeId, ...]
    reason: str
    size_bytes: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The moves of one plan, and how far they are."""

    plan_id: int
    token: str
    """Drawn by who asked, so that asking twice does not make two plans."""
    purpose: str
    state: PlanState
    move_count: int
    """Of the whole plan, also while it is still arriving."""
    moves: tuple[PlannedMove, ...]
    states: tuple[MoveState, ...]
    begun_ms: int
    ended_ms: int | None = None

    @property
    def is_over(self) -> bool:
        return self.state in PLAN_IS_OVER

    def position_of(self, group: GroupId) -> int | None:
        return next((at for at, move in enumerate(self.moves) if move.group == group), None)

    def count(self, state: MoveState) -> int:
        return self.states.count(state)


class RebalanceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How moves are carried out, in the whole cluster."""

    throttle_bytes_per_s: int = THROTTLE_BYTES_PER_S_DEFAULT
    """What all moves together copy at most."""
    concurrency: int = CONCURRENCY_DEFAULT
    """Moves under way at once."""
    is_autonomous: bool = True
    """The cluster replaces dead brokers, and evens itself out where that is configured."""


class RemovedBroker(msgspec.Struct, frozen=True, kw_only=True):
    """A broker that is no member any more.  Its id is never given to another."""

    node: NodeId
    directory_id: str
    removed_ms: int


def fitting_purpose(text: str) -> str:
    """``text`` as the purpose of a plan, cut if it is longer than one may be."""
    if len(text) <= REASON_CHARACTERS_MAX:
        return text
    return f"{text[: REASON_CHARACTERS_MAX - 1]}…"


def with_state(plan: Plan, at: int, state: MoveState, now_ms: int) -> Plan:
    """``plan`` with one move further; it ends with its last move."""
    states = (*plan.states[:at], state, *plan.states[at + 1 :])
    return settled(msgspec.structs.replace(plan, states=states), now_ms)


def settled(plan: Plan, now_ms: int) -> Plan:
    """``plan``, ended if nothing of it is left to do."""
    if plan.state not in ("running", "cancelling"):
        return plan
    if "running" in plan.states or "pending" in plan.states:
        return plan
    ended: PlanState = "cancelled" if plan.state == "cancelling" else "done"
    return msgspec.structs.replace(plan, state=ended, ended_ms=now_ms)


def cancelled(plan: Plan, now_ms: int) -> Plan:
    """``plan`` with nothing more begun."""
    states = tuple("cancelled" if state == "pending" else state for state in plan.states)
    return settled(msgspec.structs.replace(plan, state="cancelling", states=states), now_ms)
