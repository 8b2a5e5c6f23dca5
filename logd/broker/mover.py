"""Carries out the moves of the partitions that this broker leads.

The metadata says where a partition shall go; its leader brings that about, one step at a time,
and each step is decided by comparing what is with what shall be.  So whoever leads after a crash
goes on where the last leader stopped, from the metadata and the group's own configuration alone:

    a broker of the target is no member     it becomes a learner, and is fed within the throttle
    all of them are caught up               the target votes in place of the old replicas
    the target is the configuration         it is told to the metadata, which ends the move

Whoever takes a move over first makes sure that its metadata are not those of the past: to a
broker that was cut off from the controller a move may seem to be under way that has ended.

A move that was cancelled goes back the same way, unless it has arrived.  A broker that has been
left out puts its copy into the trash when the end of the move is committed, and says so.

Where only the order of the replicas was changed nothing moves, and the metadata are done with it
at once: the leader has the group follow, so that who is named first is the first to campaign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.errors import LearnerBehindError, LogdError
from logd.limits import APPEND_BYTES_MAX
from logd.metadata.commands import FinishMove, ReplicasRetired
from logd.metadata.features import NAMING_LEVEL
from logd.replication.catch_up_budget import CatchUpBudget
from logd.types import GroupId, NodeId, Term

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.metadata.layout import PartitionPlacement
    from logd.metadata.moves import Move
    from logd.replication.group import Group

log = structlog.get_logger(__name__)

LOOK_AGAIN_S: Final = 0.5
"""News come as they happen; this is for those that do not."""

STEP_RETRY_S: Final = 0.1
CAUGHT_UP_POLL_S: Final = 0.05
REFILL_INTERVAL_S: Final = 0.05
SAVED_UP_S: Final = 2.0
"""Of the throttle, while moves are made ready or have just been finished."""

CATCHING_UP_FACTOR: Final = 1.5
"""Times the throttle, while there is something saved up: the rate holds on average."""

COMMAND_TIMEOUT_MS: Final = 10_000
RETIRED_PER_COMMAND_MAX: Final = 1_000
ORDER_INTERVAL_S: Final = 5.0
"""How often all partitions are looked at: their order matters only when the leader goes."""


class Mover:
    """The moves of one broker's partitions."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._driven: set[GroupId] = set()
        self._budgets: dict[GroupId, dict[NodeId, CatchUpBudget]] = {}
        self._is_telling = False
        self._saved_bytes = 0.0

    async def run(self) -> None:
        """Look at the moves whenever something has changed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refill)
            nursery.start_soon(self._keep_order)
            nursery.start_soon(self._take_over, nursery)
            while True:
                self._drive_what_is_led(nursery)
                if not self._is_telling and self._retired():
                    self._is_telling = True
                    nursery.start_soon(self._tell_retired)
                await self._news()

    async def _take_over(self, nursery: trio.Nursery) -> None:
        """Drive the moves of a partition as soon as it is led here.

        A learner of the leader before is not held back until its budget is made: a moment later
        it would have been sent all that it lacks.
        """
        while True:
            self._drive_what_is_led(nursery)
            await self._broker.node.leadership_news(LOOK_AGAIN_S)

    def _drive_what_is_led(self, nursery: trio.Nursery) -> None:
        for placement in self._broker.metadata.state.moving:
            if placement.group not in self._driven and self._led(placement.group) is not None:
                self._driven.add(placement.group)
                nursery.start_soon(self._drive, placement.group)

    def _placement(self, group_id: GroupId) -> PartitionPlacement | None:
        """As it is now: the state itself is another one once this broker was shipped state."""
        return self._broker.metadata.state.placement(group_id)

    async def _news(self) -> None:
        """Wait until the metadata changed, or the time is up."""
        with trio.move_on_after(LOOK_AGAIN_S):
            await self._broker.metadata.changed()

    def _led(self, group_id: GroupId) -> Group | None:
        group = self._broker.node.groups.get(group_id)
        return group if group is not None and group.is_leader else None

    # --- one move -----------------------------------------------------------------------------

    async def _drive(self, group_id: GroupId) -> None:
        """Bring one move to its end, or until another broker leads."""
        up_to_date_in = Term(0)
        """The term of this leader in which it has made sure that it knows of the move what those
        before it knew: one of them may have ended it, or been told to take it back."""
        try:
            while True:
                placement, group = self._placement(group_id), self._led(group_id)
                if placement is None or placement.move is None or group is None:
                    return
                term, learners = group.core.term, group.configuration.learners
                if learners and up_to_date_in != term:
                    self._make_budgets(group, learners)
                if not group.is_ready:
                    await trio.sleep(STEP_RETRY_S)
                    continue
                try:
                    if up_to_date_in != term:
                        await self._broker.metadata.catch_up(COMMAND_TIMEOUT_MS)
                        up_to_date_in = term
                        continue
                    await self._step(placement, placement.move, group)
                except LearnerBehindError:
                    await trio.sleep(STEP_RETRY_S)
                except LogdError as error:
                    log.info(
                        log_events.MOVE_WAITS, partition=str(placement.name), reason=str(error)
                    )
                    await trio.sleep(STEP_RETRY_S)
        finally:
            self._driven.discard(group_id)
            self._forget_budgets(group_id)

    async def _step(self, placement: PartitionPlacement, move: Move, group: Group) -> None:
        """One step towards where the partition shall be."""
        current = group.configuration
        target = move.target
        if move.is_cancelled and not (current.is_joint or set(current.voters) == set(target)):
            target = placement.replicas
        if current.is_joint:
            # Begun by a leader before this one; the group completes it by itself.
            await trio.sleep(STEP_RETRY_S)
            return
        if set(current.voters) == set(target):
            # Also where it is so already: this confirms that it is committed, and that we lead.
            await group.members.change_configuration(current.voters, ())
            await self._finish(placement, move, target)
            return
        newcomers = tuple(node for node in target if node not in current.voters)
        if set(newcomers) != set(current.learners):
            log.info(
                log_events.MOVE_BEGUN,
                partition=str(placement.name),
                replicas=list(placement.replicas),
                target=list(target),
                reason=move.reason,
            )
            self._make_budgets(group, newcomers)
            await group.members.change_configuration(current.voters, newcomers)
            return
        self._make_budgets(group, newcomers)
        if await self._are_caught_up(placement, move, group, newcomers):
            await group.members.change_configuration(target, ())

    async def _are_caught_up(
        self, placement: PartitionPlacement, move: Move, group: Group, newcomers: tuple[NodeId, ...]
    ) -> bool:
        """Wait for the newcomers; False if something else is to be done meanwhile."""
        while True:
            if all(group.core.is_caught_up(node) for node in newcomers):
                return True
            await trio.sleep(CAUGHT_UP_POLL_S)
            now = self._placement(placement.group)
            if now is None or now.move != move or not group.is_ready:
                return False

    async def _finish(
        self, placement: PartitionPlacement, move: Move, replicas: tuple[NodeId, ...]
    ) -> None:
        await self._broker.metadata.execute(
            FinishMove(
                group=placement.group,
                replicas=replicas,
                now_ms=self._broker.env.wall_clock_ms(),
                begun_at=move.begun_at or None,
            ),
            timeout_ms=COMMAND_TIMEOUT_MS,
            safe_to_repeat=True,
        )
        log.info(log_events.MOVE_FINISHED, partition=str(placement.name), replicas=list(replicas))

    # --- the order of preference --------------------------------------------------------------

    async def _keep_order(self) -> None:
        """Have the replicas of what is led here preferred as the metadata say."""
        while True:
            await trio.sleep(ORDER_INTERVAL_S)
            for group in list(self._broker.node.groups.values()):
                placement = self._placement(group.group_id)
                if placement is not None and _is_out_of_order(placement, group):
                    try:
                        await group.members.change_configuration(placement.replicas, ())
                    except LogdError as error:
                        log.info(
                            log_events.MOVE_WAITS, partition=str(placement.name), reason=str(error)
                        )

    # --- the throttle -------------------------------------------------------------------------

    def _make_budgets(self, group: Group, newcomers: tuple[NodeId, ...]) -> None:
        budgets = self._budgets.setdefault(group.group_id, {})
        for node in newcomers:
            if node not in budgets:
                budgets[node] = CatchUpBudget(group.log.end_offset)
                group.feeder.limit_catch_up(node, budgets[node])

    def _forget_budgets(self, group_id: GroupId) -> None:
        group = self._broker.node.groups.get(group_id)
        for node in self._budgets.pop(group_id, {}):
            if group is not None:
                group.feeder.limit_catch_up(node, None)

    async def _refill(self) -> None:
        """Share the throttle: each leader takes what its part of all moves is that are led."""
        before = trio.current_time()
        while True:
            if not self._budgets:
                self._saved_bytes = 0.0
                await self._news()
                before = trio.current_time()
                continue
            await trio.sleep(REFILL_INTERVAL_S)
            now = trio.current_time()
            if self._budgets:
                self._refill_all(now - before)
            before = now

    def _refill_all(self, elapsed_s: float) -> None:
        state = self._broker.metadata.state
        led = sum(self._broker.node.leader_of(p.group)[0] is not None for p in state.moving)
        moving = max(led, len(self._budgets))
        rate = state.rebalance_settings.throttle_bytes_per_s * len(self._budgets) / moving
        groups = self._broker.node.groups
        hungry = [
            (group, budget)
            for group_id, budgets in self._budgets.items()
            if (group := groups.get(group_id)) is not None and group.is_leader
            for node, budget in budgets.items()
            if node in group.configuration.learners
            and group.core.next_offset(node) < budget.end_offset
        ]
        saved_max = rate * SAVED_UP_S + APPEND_BYTES_MAX
        self._saved_bytes = min(self._saved_bytes + rate * elapsed_s, saved_max)
        for _, budget in hungry:
            grant = min(self._saved_bytes, rate * elapsed_s * CATCHING_UP_FACTOR) / len(hungry)
            before = budget.bytes_left
            budget.refill(grant, max(grant, APPEND_BYTES_MAX))
            self._saved_bytes -= budget.bytes_left - before
        for group_id in self._budgets:
            group = groups.get(group_id)
            if group is not None:
                group.feeder.send_on()

    # --- what has left ------------------------------------------------------------------------

    def _retired(self) -> list[GroupId]:
        """Partitions that have left this broker, and whose copies are gone."""
        broker = self._broker
        return [
            placement.group
            for placement in broker.metadata.state.leaving(broker.node.node)
            if placement.group not in broker.node.groups
            and not broker.membership.directory.has_group(placement.group)
        ]

    async def _tell_retired(self) -> None:
        state = self._broker.metadata.state
        command = ReplicasRetired(
            node=self._broker.node.node,
            groups=tuple(self._retired()[:RETIRED_PER_COMMAND_MAX]),
            as_of=state.version if state.feature_level >= NAMING_LEVEL else None,
        )
        try:
            await self._broker.metadata.execute(
                command,
                timeout_ms=COMMAND_TIMEOUT_MS,
                safe_to_repeat=True,
            )
        except LogdError as error:
            log.info(log_events.METADATA_REFUSED, reason=str(error))
            await trio.sleep(STEP_RETRY_S)
        finally:
            self._is_telling = False


def _is_out_of_order(placement: PartitionPlacement, group: Group) -> bool:
    """Whether this leads a group of the brokers that the metadata name, in another order."""
    current = group.configuration
    if current.voters == placement.replicas or placement.move is not None or not group.is_ready:
        return False
    is_changing = current.is_joint or current.learners
    return not is_changing and set(current.voters) == set(placement.replicas)
