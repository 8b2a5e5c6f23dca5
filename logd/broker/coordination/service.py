"""All partitions of the coordination log that this broker holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from logd.broker.coordination.partition import CoordinationPartition
from logd.errors import InvalidRequestError
from logd.types import GroupId
from logd.wire.coordination import COORDINATION_TOPIC, partition_of

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.metadata.state import PartitionPlacement
    from logd.replication.group import Group
    from logd.replication.node import Node

NAMESPACES_REMEMBERED: Final = 4_096
"""Where they live, so that not every request computes it."""


class CoordinationTotals(NamedTuple):
    """What a broker counts over all its partitions."""

    sessions: int
    """Now, of those it leads; so are the watches."""
    watches: int
    commands: int
    """Since the broker started; so are the rest."""
    sessions_expired: int
    events_pushed: int


class Coordination:
    """Finds the partition that a request is about."""

    def __init__(self, node: Node, trash_path: str) -> None:
        self._node = node
        self._trash_path = trash_path
        self._partitions: dict[GroupId, CoordinationPartition] = {}
        self._closed = CoordinationTotals(0, 0, 0, 0, 0)
        """Of partitions that have left."""
        self._home: dict[tuple[int, str], int] = {}

    def __iter__(self) -> Iterator[CoordinationPartition]:
        return iter(self._partitions.values())

    def totals(self) -> CoordinationTotals:
        totals = self._closed
        for partition in self._partitions.values():
            totals = _sum(totals, partition)
        return totals

    def fullest(self) -> tuple[float, str, str] | None:
        """As ``CoordinationState.fullest``, over the partitions that this broker leads."""
        led = (partition.state for partition in self if partition.is_serving)
        found = (fullest for state in led if (fullest := state.fullest()) is not None)
        return max(found, default=None)

    def attach(self, group: Group) -> None:
        """A replica of the coordination log was opened: feed it, until it is closed."""
        partition = CoordinationPartition(group, self._node, self._trash_path)
        partition.attach()
        self._partitions[group.group_id] = partition
        self._node.start_soon(self._run, partition)

    async def _run(self, partition: CoordinationPartition) -> None:
        group_id = partition.group.group_id
        try:
            await partition.run()
        finally:
            self._closed = _sum(self._closed, partition)._replace(sessions=0, watches=0)
            if self._partitions.get(group_id) is partition:
                del self._partitions[group_id]

    def find(self, broker: Broker, group_id: int) -> CoordinationPartition:
        """The partition behind a group; whether it serves is another question.

        Raises:
            RequestError: it is not here, or is no partition of the coordination log.
        """
        found = self._partitions.get(GroupId(group_id))
        if found is None:
            name = broker.group(group_id).name
            raise InvalidRequestError(f"{name} is not a partition of {COORDINATION_TOPIC}")
        return found

    def find_home(self, broker: Broker, group_id: int, namespace: str) -> CoordinationPartition:
        """As ``find``, of the partition that a namespace lives in.

        Raises:
            InvalidRequestError: it lives in another: else it would have two histories.
        """
        found = self.find(broker, group_id)
        placement = broker.metadata.state.placement(GroupId(group_id))
        if placement is not None and self._home_of(broker, placement, namespace) != (
            placement.partition
        ):
            raise InvalidRequestError(
                f"namespace {namespace[:80]!r} does not live in {placement.name}"
            )
        return found

    def _home_of(self, broker: Broker, placement: PartitionPlacement, namespace: str) -> int:
        topic = broker.metadata.state.topic(placement.topic)
        if topic is None:
            return placement.partition
        count = len(topic.partitions)
        home = self._home.get((count, namespace))
        if home is None:
            if len(self._home) >= NAMESPACES_REMEMBERED:
                self._home.clear()
            home = self._home[count, namespace] = partition_of(namespace, count)
        return home


def _sum(totals: CoordinationTotals, partition: CoordinationPartition) -> CoordinationTotals:
    return CoordinationTotals(
        sessions=totals.sessions + partition.session_count,
        watches=totals.watches + len(partition.watches),
        commands=totals.commands + partition.entries_applied,
        sessions_expired=totals.sessions_expired + partition.sessions_expired,
        events_pushed=totals.events_pushed + partition.watches.events_pushed,
    )
