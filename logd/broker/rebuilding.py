"""Replicas that nobody can mend are made anew.

A replica that has lost its votes, the marks of its log or all of its files may have promised what
it no longer knows.  It stays shut, and its partition goes on without it, one failure away from
standing still.  The others need nothing from it: together they have all that was committed.  So it
is taken out of the partition by a committed change, its files go to the trash, and another one
comes in its place, where there is room: on the same broker, too, for there it neither votes nor
counts before it has caught up (ADR 8).

Two plans, one after the other, because a partition returns to a broker only once its old copy
there is gone.  The second follows from the first, which stands in the metadata: whoever is the
controller by then goes on with it.  Another plan may come in between, because there is no room for
the second, or somebody asks for something: so every broker keeps in mind what it saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from logd.broker.peer_reports import ask_peers, reader_of
from logd.metadata.moves import BY_ITSELF, PLAN_MOVES_PER_COMMAND_MAX, PlannedMove
from logd.types import GroupId, NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logd.broker.broker import Broker
    from logd.metadata.layout import PartitionPlacement
    from logd.metadata.moves import Plan

ASK_INTERVAL_S: Final = 15.0
"""Every broker is asked so often which replicas it has shut."""

GRACE_S: Final = 60.0
"""Who looks at such a replica at once still finds its files, and may put back what is missing."""

AGAIN_AFTER_S: Final = 3_600.0
"""A disk that destroys what was made anew at once is not given more to copy all the time."""

TAKE_OUT: Final = "take out replicas that nobody can mend"
MAKE_ANEW: Final = "make anew what was taken out"


class _Trouble(msgspec.Struct, frozen=True):
    group: int
    is_final: bool = False


class _Report(msgspec.Struct, frozen=True):
    """The part of a broker's report that says what it has shut."""

    troubles: list[_Trouble]


_read_report = reader_of(_Report)


class Rebuilding:
    """What the controller knows of such replicas."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._since: dict[tuple[GroupId, NodeId], float] = {}
        """When this broker first heard of each."""
        self._taken_out: dict[tuple[GroupId, NodeId], float] = {}
        """When this broker did that, of those that it may not be done to again yet."""
        self._short: dict[GroupId, int] = {}
        """Partitions that have a replica less, and how many they shall have."""
        self._asked_at = trio.current_time()

    def forget(self) -> None:
        """Another broker is the controller."""
        self._since.clear()
        self._asked_at = trio.current_time()

    async def look(self) -> None:
        """Ask all brokers now and then; of who does not answer what was known holds on."""
        now = trio.current_time()
        if now - self._asked_at < ASK_INTERVAL_S:
            return
        self._asked_at = now
        node = self._broker.node
        reports = await ask_peers(node, _read_report)
        found = {(group, node.node) for group, shut in node.shut.items() if shut.is_final}
        for peer, report in reports.items():
            found.update((GroupId(t.group), peer) for t in report.troubles if t.is_final)
        for group, holder in list(self._since):
            placement = self._broker.metadata.state.placement(group)
            is_here = placement is not None and holder in placement.replicas
            has_answered = holder == node.node or holder in reports
            if not is_here or (has_answered and (group, holder) not in found):
                del self._since[group, holder]
        for replica in found:
            self._since.setdefault(replica, now)

    def to_take_out(self) -> list[PlannedMove]:
        """Replicas that have been beyond repair for long enough, and that the others can spare."""
        now = trio.current_time()
        for replica in [r for r, at in self._taken_out.items() if now - at >= AGAIN_AFTER_S]:
            del self._taken_out[replica]
        moves: dict[GroupId, PlannedMove] = {}
        for (group, node), since in sorted(self._since.items()):
            if now - since < GRACE_S or (group, node) in self._taken_out or group in moves:
                continue
            placement = self._broker.metadata.state.placement(group)
            if placement is not None and self._can_spare(placement, node):
                moves[group] = PlannedMove(
                    group=group,
                    before=placement.replicas,
                    target=tuple(each for each in placement.replicas if each != node),
                    reason=f"beyond repair: the replica on broker {node}",
                    size_bytes=0,
                )
                if len(moves) == PLAN_MOVES_PER_COMMAND_MAX:
                    break
        return list(moves.values())

    def note_taken_out(self, moves: Sequence[PlannedMove]) -> None:
        """A plan with these moves was started.  It may soon be over, and another one the last."""
        self.note_plan()
        now = trio.current_time()
        for move in moves:
            for node in set(move.before) - set(move.target):
                self._taken_out[move.group, node] = now

    def note_plan(self) -> None:
        """See whether the last plan takes replicas out, or makes them anew: on every broker, so
        that the next controller knows of it.  Whoever cancels that plan means it."""
        state = self._broker.metadata.state
        plan = state.plan
        fewer = {} if plan is None else _with_a_replica_less(plan)
        if plan is not None and plan.state in ("cancelling", "cancelled"):
            self._short = {g: count for g, count in self._short.items() if g not in fewer}
        else:
            self._short |= {group: len(replicas) + 1 for group, replicas in fewer.items()}
        is_over = plan is None or plan.is_over
        for group, count in list(self._short.items()):
            placement = state.placement(group)
            is_decided = is_over or group not in fewer
            if placement is None or (is_decided and len(placement.replicas) != count - 1):
                del self._short[group]  # It has as many again, or a person wants other ones.

    def to_make_anew(self) -> dict[GroupId, int]:
        """Partitions that have a replica less since one was taken out, and how many they shall
        have."""
        self.note_plan()
        return dict(self._short)

    def _can_spare(self, placement: PartitionPlacement, holder: NodeId) -> bool:
        """Whether the others are enough without this replica.

        If one of them leads, a majority works in which this replica has no part; and what is a
        majority with it is one without it.
        """
        leader, _ = self._broker.node.leader_of(placement.group)
        return (
            holder in placement.replicas
            and self._broker.node.is_up(holder)
            and leader is not None
            and leader != holder
        )


def _with_a_replica_less(plan: Plan) -> dict[GroupId, tuple[NodeId, ...]]:
    """What a plan that takes replicas out leaves, or one that makes them anew begins with."""
    if plan.purpose == BY_ITSELF + TAKE_OUT:
        return {move.group: move.target for move in plan.moves}
    if plan.purpose == BY_ITSELF + MAKE_ANEW:
        return {move.group: move.before for move in plan.moves}
    return {}
