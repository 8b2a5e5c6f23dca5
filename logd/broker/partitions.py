"""Keeps the replicas on this broker equal to what the metadata says it holds.

Level-triggered: it compares what should be here with what is, each time metadata changed,
so that a restart, a missed event or a half-done step all end the same way.

A directory is moved to the trash only because a committed command deleted the partition (its
group id was handed out by the metadata log, and is no longer there) or took it from this
broker.  An unknown directory with a higher id is left alone: we may simply not have caught up
(deletion is never inferred).

What comes back can mislead: a broker that starts replays the past, in which a replica of today
was not here yet, and one that has left still was.  So until its own registration of this start
has come by in the log, a broker opens what it has and neither makes nor removes replicas.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio

from logd.broker import log_events
from logd.broker.broker import METADATA_LOG
from logd.broker.compaction import Compaction
from logd.broker.retention import Retention
from logd.errors import BeyondRepairError, LogdError
from logd.limits import DESCRIPTORS_SPARE_OF_REPLICAS
from logd.metadata.state import PartitionPlacement
from logd.metadata.topic_config import TopicOptions
from logd.raft.core import RaftCore
from logd.raft.messages import Configuration
from logd.raft.options import RaftOptions
from logd.replication.group import Group
from logd.replication.node import Shut
from logd.replication.opening import OpenedGroup, open_group, start_core
from logd.storage.hard_state import boot_number
from logd.storage.log import LogOptions
from logd.storage.room import what_lacks
from logd.types import METADATA_GROUP, GroupId, NodeId
from logd.wire.coordination import COORDINATION_TOPIC

if TYPE_CHECKING:
    from logd.broker.coordination.service import Coordination
    from logd.broker.metadata_service import MetadataService
    from logd.config import BrokerConfig
    from logd.env import Env
    from logd.replication.membership import Membership
    from logd.replication.node import Node

log = structlog.get_logger(__name__)

FILES_AT_ONCE: Final = 8
"""Replicas that are opened, or removed, at one time."""

OPENED_PER_CALL_MAX: Final = 8
"""So many replicas of many are opened by one call of a thread: each call wakes a thread, and then
the event loop, and they take turns."""

RETRY_S: Final = 1.0
BEING_REPAIRED: Final = Shut("damaged, and being repaired from its peers")

T = TypeVar("T")


class Partitions:
    """Opens and removes this broker's replicas."""

    def __init__(
        self,
        config: BrokerConfig,
        env: Env,
        node: Node,
        membership: Membership,
        metadata: MetadataService,
        coordination: Coordination,
    ) -> None:
        self._config = config
        self._metadata = metadata
        self._coordination = coordination
        self._env = env
        self._node = node
        self._directory = membership.directory
        self._raft_options = RaftOptions(
            election_timeout_ms_min=config.election_timeout_ms,
            election_timeout_ms_max=2 * config.election_timeout_ms,
            check_quorum_ms=config.liveness_timeout_ms,
            restart_wait_ms=config.restart_wait_ms,
        )
        self._is_up_to_date = False
        self._opening = 0
        """Replicas that threads are opening now."""
        self._mending: dict[GroupId, trio.CancelScope] = {}
        """Damaged replicas that are being repaired; their files stay where they are meanwhile."""
        self.compaction = Compaction(config, node, self._directory)
        self.retention = Retention(node, self._directory, config.retention_interval_ms)

    async def open_metadata(
        self, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...]
    ) -> Group:
        """Open group 0, once there is room for what has to be written for that.

        Raises CorruptionError or StorageError: the broker cannot start.
        """
        options = self._log_options(TopicOptions())
        while True:
            try:
                opened = await self._env.run_blocking(self._open_whole, METADATA_GROUP, options)
                if opened is not None:
                    self._node.shut.pop(METADATA_GROUP, None)
                    return self._add(opened, Configuration(voters, learners), METADATA_LOG)
                self._node.shut[METADATA_GROUP] = BEING_REPAIRED
                members = voters + learners
                await self._repaired(METADATA_GROUP, members, options, has_application=True)
            except (OSError, LogdError) as error:
                if what_lacks(error) is None:
                    raise
                self._shut(METADATA_GROUP, METADATA_LOG, error)
            await trio.sleep(RETRY_S)  # Whole to the mender is not yet whole to the replay.

    def metadata_is_up_to_date(self) -> None:
        """Everything that was committed before this broker started has been applied."""
        self._is_up_to_date = True

    async def run(self) -> None:
        """Follow the metadata until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_options)
            await self._follow_placements()

    async def _follow_options(self) -> None:
        """A change of options holds at once: where many partitions are opened or closed, a round
        that compares what is here with what shall be takes long."""
        seen = self._metadata.state.options_version
        while True:
            await self._metadata.changed()
            if self._metadata.state.options_version != seen:
                seen = self._metadata.state.options_version
                self._apply_topic_options()

    async def _follow_placements(self) -> None:
        while True:
            wanted = self._wanted()
            may_change = self._is_up_to_date
            is_tidy = False
            missing = [
                placement
                for group, placement in wanted.items()
                if group not in self._node.groups and self._may_open(group)
                if may_change or self._directory.has_group(group)
            ]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._open_all, missing)
                if may_change:
                    self._forget_shut(wanted)
                    is_tidy = await self._remove_others(wanted)
            self._apply_topic_options()  # Of what was opened, by options from before.
            if self._wanted().keys() == wanted.keys():
                # One that is neither open nor shut was mended while this round went on.
                are_open = wanted.keys() <= self._node.groups.keys()
                is_settled = is_tidy and are_open and not self._node.shut
                with trio.move_on_after(math.inf if is_settled else RETRY_S):
                    await self._metadata.changed()

    def _wanted(self) -> dict[GroupId, PartitionPlacement]:
        """What shall be here."""
        return {p.group: p for p in self._metadata.state.partitions_on(self._node.node)}

    def _may_open(self, group_id: GroupId) -> bool:
        shut = self._node.shut.get(group_id)
        return shut is None or shut.is_tried_again

    def _forget_shut(self, wanted: dict[GroupId, PartitionPlacement]) -> None:
        """Nobody misses a replica that is shut once it is not to be here any more.

        If it is to be here again later, it is another one.  One that is being repaired is left
        until that has ended, which may take a while: a later round finds it.
        """
        for group_id in list(self._node.shut):
            if self._is_handed_out(group_id) and group_id not in wanted:
                mending = self._mending.get(group_id)
                if mending is None:
                    del self._node.shut[group_id]
                else:
                    mending.cancel()

    async def _remove_others(self, wanted: dict[GroupId, PartitionPlacement]) -> bool:
        """False if the disk refused: it is tried again, and what is wanted is served."""
        directory = self._directory
        refused: list[LogdError | OSError] = []

        async def remove(group_id: GroupId) -> None:
            placement = self._metadata.state.placement(group_id)
            try:
                if placement is None:
                    await self._env.run_blocking(directory.trash_group, group_id)
                    log.info(log_events.PARTITION_TRASHED, group=group_id)
                else:
                    await self._env.run_blocking(directory.retire_group, group_id)
                    log.info(log_events.REPLICA_RETIRED, partition=str(placement.name))
            except (OSError, LogdError) as error:
                refused.append(error)

        try:
            leaving = [group_id for group_id in self._node.groups if group_id not in wanted]
            await _for_each(
                self._node.remove_group, [group for group in leaving if group != METADATA_GROUP]
            )
            found = await self._env.run_blocking(directory.list_groups)
            await _for_each(
                remove,
                [
                    group_id
                    for group_id in found
                    if self._is_handed_out(group_id)
                    and group_id not in wanted
                    and group_id not in self._mending
                ],
            )
            for group_id in await self._env.run_blocking(directory.list_promises):
                if self._metadata.state.placement(group_id) is None:
                    await self._env.run_blocking(directory.forget_promises, group_id)
        except (OSError, LogdError) as error:
            refused.append(error)
        for reason in refused:
            log.error(log_events.TRASHING_FAILED, reason=str(reason))
        return not refused

    def _is_handed_out(self, group_id: GroupId) -> bool:
        return METADATA_GROUP < group_id < self._metadata.state.next_group

    def _apply_topic_options(self) -> None:
        """What may change while a partition runs."""
        state = self._metadata.state
        for placement in state.partitions_on(self._node.node):
            group, topic = self._node.groups.get(placement.group), state.topic(placement.topic)
            if group is not None and topic is not None:
                self._apply_options(group, topic.options)

    def _apply_options(self, group: Group, options: TopicOptions) -> None:
        group.fence_required = options.fence == "required"
        group.choose_durability(in_memory=options.durability == "replicated")
        group.log.set_options(self._log_options(options))
        self.retention.set_policy(group, options)
        self.compaction.set_policy(group, options)

    async def _open_all(self, missing: list[PartitionPlacement]) -> None:
        await _for_each(self._open_some, _shares(missing))
        if missing:
            opened = sum(placement.group in self._node.groups for placement in missing)
            log.info(log_events.PARTITIONS_OPENED, count=opened)

    async def _open_some(self, placements: list[PartitionPlacement]) -> None:
        """Open these replicas, with one call of a thread."""
        wanted: list[tuple[PartitionPlacement, TopicOptions]] = []
        for placement in placements:
            topic = self._metadata.state.topic(placement.topic)
            if topic is not None:  # Else deleted meanwhile; the next round sees it.
                wanted.append((placement, topic.options))
        held = len(self._node.groups) + self._opening
        self._opening += len(wanted)
        try:
            found = await self._env.run_blocking(
                self._open_each,
                [(p.group, self._log_options(options)) for p, options in wanted],
                held,
            )
        finally:
            self._opening -= len(wanted)
        for (placement, options), opened in zip(wanted, found, strict=True):
            if isinstance(opened, Exception):
                self._shut(placement.group, str(placement.name), opened)
            elif opened is None:
                # It is mended in the background; the others of this round are not held up.
                self._node.shut[placement.group] = BEING_REPAIRED
                self._node.start_soon(self._mend, placement, self._log_options(options))
            else:
                self._take_up(placement, options, opened)

    def _open_each(
        self, wanted: list[tuple[GroupId, LogOptions]], held: int
    ) -> list[OpenedGroup | Exception | None]:
        """As ``_open_whole``, of each; in place of what could not be opened, why.

        Those that are open need descriptors too, to vote and to begin another segment: a replica
        that would take the last ones stays shut.

        Args:
            held: replicas that are open, or being opened.
        """
        files = self._env.files
        found: list[OpenedGroup | Exception | None] = []
        for number, (group_id, options) in enumerate(wanted):
            try:
                files.require_spare(held + number, DESCRIPTORS_SPARE_OF_REPLICAS)
                found.append(self._open_whole(group_id, options))
            except (OSError, LogdError) as error:
                found.append(error)
        return found

    def _take_up(
        self, placement: PartitionPlacement, options: TopicOptions, opened: OpenedGroup
    ) -> None:
        try:
            group = self._add(
                opened,
                Configuration(placement.replicas),
                str(placement.name),
                is_coordination=placement.topic == COORDINATION_TOPIC,
            )
            # At once: it may lead, and be written to, long before the others are open.
            self._apply_options(group, options)
        except (OSError, LogdError) as error:
            self._shut(placement.group, str(placement.name), error)
        else:
            self._node.shut.pop(placement.group, None)  # It may have been tried before.
            log.debug(
                log_events.PARTITION_OPENED, partition=str(placement.name), group=placement.group
            )

    def _open_whole(self, group_id: GroupId, options: LogOptions) -> OpenedGroup | None:
        """The replica's files, open; None if they are damaged.  Blocking.

        A replica with a hole must neither vote, nor lead, nor serve it: it is not taken up.
        """
        opened = self._open_files(group_id, options)
        if opened.damage is None:
            return opened
        opened.close()
        return None

    def _open_files(self, group_id: GroupId, options: LogOptions) -> OpenedGroup:
        return open_group(
            self._env.files,
            self._directory,
            self._node.node,
            group_id,
            options,
            boot_number(self._env.boot_id),
        )

    async def _mend(self, placement: PartitionPlacement, options: LogOptions) -> None:
        """Have a damaged replica repaired, then take it up with the next round."""
        try:
            with trio.CancelScope() as self._mending[placement.group]:
                await self._repaired(
                    placement.group,
                    placement.replicas,
                    options,
                    has_application=placement.topic == COORDINATION_TOPIC,
                )
                self._node.shut.pop(placement.group, None)
        except (OSError, LogdError) as error:
            self._shut(placement.group, str(placement.name), error)
        finally:
            del self._mending[placement.group]

    def _shut(self, group_id: GroupId, name: str, error: Exception) -> None:
        """This replica stays shut; the others serve.

        A restart tries again; if there was no room or no descriptor, the next round does.
        """
        before = self._node.shut.get(group_id)
        shut = Shut(str(error), is_final=isinstance(error, BeyondRepairError))
        lack = what_lacks(error)
        if lack is not None:
            until = "there is room" if lack == "room" else "there are some"
            shut = Shut(f"{error}: tried again until {until}", is_tried_again=True)
        self._node.shut[group_id] = shut
        if before is not None and before.is_tried_again and shut.is_tried_again:
            return
        log.error(
            log_events.PARTITION_WAITS if shut.is_tried_again else log_events.PARTITION_DAMAGED,
            partition=name,
            group=group_id,
            reason=shut.reason,
        )

    async def _repaired(
        self,
        group_id: GroupId,
        members: tuple[NodeId, ...],
        options: LogOptions,
        *,
        has_application: bool,
    ) -> None:
        """Wait until the replica's files are whole.

        Raises:
            BeyondRepairError: no peer can give back what is missing.
        """
        opened = await self._env.run_blocking(self._open_files, group_id, options)
        if opened.damage is None:
            await self._env.run_blocking(opened.close)
        else:
            await self._node.repairer.mend(opened, members, has_application=has_application)

    def _add(
        self,
        opened: OpenedGroup,
        configuration: Configuration,
        name: str,
        *,
        is_coordination: bool = False,
    ) -> Group:
        group = Group(opened, self._core(opened, configuration), self._node, name)
        if is_coordination:
            self._coordination.attach(group)
        self._node.add_group(group)
        return group

    def _core(self, opened: OpenedGroup, configuration: Configuration) -> RaftCore:
        return start_core(
            opened,
            configuration,
            options=self._raft_options,
            draw=self._env.rng(f"raft:{opened.group_id}").random,
            now_ms=self._node.now_ms(),
        )

    def _log_options(self, options: TopicOptions) -> LogOptions:
        segment_bytes = options.segment_bytes_of(self._config.segment_bytes)
        return LogOptions(
            segment_bytes=segment_bytes,
            index_interval_bytes=self._config.index_interval_bytes,
            allocate_bytes=min(self._config.allocate_bytes, segment_bytes),
        )


def _shares(missing: list[PartitionPlacement]) -> list[list[PartitionPlacement]]:
    """What each call opens: several of many, and of few one, so that all threads have some."""
    count = max(1, min(OPENED_PER_CALL_MAX, len(missing) // (4 * FILES_AT_ONCE)))
    return [missing[i : i + count] for i in range(0, len(missing), count)]


async def _for_each(function: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
    """Call it for each, some at a time, and begin in their order.

    In order, not as the scheduler likes: all brokers then open the same replicas at about the same
    time, and who wants to be elected finds others there.
    """
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await function(item)

    async with trio.open_nursery() as nursery:
        for _ in range(min(FILES_AT_ONCE, len(items))):
            nursery.start_soon(work)
