"""Administration: topics, and what the cluster says about itself.

Answers are the protocol's own messages, which are typed and immutable; there is nothing to
gain from copying their fields into others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeVar

from logd.errors import TopicExistsError, UsageError
from logd.limits import ADMIN_TIMEOUT_MS_MAX, PLAN_MOVES_AT_ONCE
from logd.types import GroupId, NodeId
from logd.wire.messages import (
    AlterBrokerRequest,
    AlterBrokerResponse,
    AlterTopicRequest,
    AlterTopicResponse,
    BrokerInfo,
    CancelMoveRequest,
    CancelMoveResponse,
    CancelPlanRequest,
    CancelPlanResponse,
    CreateTopicRequest,
    CreateTopicResponse,
    DeleteTopicRequest,
    DeleteTopicResponse,
    DescribeBrokerRequest,
    DescribeBrokerResponse,
    DescribePartitionRequest,
    DescribePartitionResponse,
    DescribeRebalanceRequest,
    DescribeRebalanceResponse,
    MetadataResponse,
    OffsetsResponse,
    PlannedMoveInfo,
    RaiseFeatureLevelRequest,
    RaiseFeatureLevelResponse,
    SetRebalancingRequest,
    SetRebalancingResponse,
    StartPlanRequest,
    StartPlanResponse,
    TopicInfo,
    TransferLeaderRequest,
    TransferLeaderResponse,
    TrimPartitionRequest,
    TrimPartitionResponse,
)
from logd_client.arguments import (
    require_bool,
    require_each,
    require_int,
    require_list,
    require_one_of,
    require_seconds,
    require_text,
)
from logd_client.consumer_options import start_of
from logd_client.extents import ask_offsets
from logd_client.routing import Routing

Text = TypeVar("Text", str, str | None)


class Admin:
    """``client.admin``.

    Every call raises ``ConnectionFailedError`` if nobody can be asked, and the broker's
    refusal if it refuses; requests are repeated, within the client's ``request_timeout_ms``,
    until somebody answers.  Not repeated is what would change something once more, when it may
    have taken effect.  An error has ``may_have_applied`` if an attempt may have changed something.
    Cancelled, such a request may still be carried out.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    # --- topics -------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replicas: int | None = None,
        config: Mapping[str, str] | None = None,
        exist_ok: bool = False,
    ) -> TopicInfo:
        """Create a topic.

        Args:
            name: 1 to 200 characters of ``A-Z a-z 0-9 . _ -``.
            partitions: how many logs it is spread over.
            replicas: copies of each; default: 3, or as many as there are brokers.
            config: topic options by name.
            exist_ok: one that exists is fine, and stays as it is, whatever else is given here.

        Returns:
            The topic, with its partitions and where their replicas are.

        Raises:
            TopicExistsError, InvalidNameError, InvalidPartitionError, InvalidConfigError,
            NotEnoughBrokersError: nothing was created.
        """
        require_text("a topic's name", name)
        require_int("partitions", partitions)
        if replicas is not None:
            require_int("replicas", replicas)
        request = CreateTopicRequest(
            name=name,
            partitions=partitions,
            replicas=replicas,
            config=_checked_config(config or {}),
            timeout_ms=self._timeout_ms,
        )
        try:
            response = await self._routing.call_controller(
                request,
                CreateTopicResponse,
                effect="once",
            )
        except TopicExistsError:
            if not exist_ok:
                raise
            return await self.describe_topic(name)
        return self._changed(response)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and its records.

        Another client's append may be acknowledged a moment later, by a leader that has not heard
        of it yet: that record is gone with the topic.

        Raises:
            UnknownTopicError: there is none of that name.
        """
        require_text("a topic's name", name)
        response = await self._routing.call_controller(
            DeleteTopicRequest(name=name, timeout_ms=self._timeout_ms),
            DeleteTopicResponse,
            effect="once",
        )
        self._routing.view.reached(response.metadata_offset)
        self._routing.view.forget_topic(name)

    async def alter_topic(
        self,
        name: str,
        config: Mapping[str, str | None] | None = None,
        *,
        partitions: int | None = None,
    ) -> TopicInfo:
        """Set options of a topic, or add partitions.

        Args:
            config: options by name; ``None`` resets one to its default.
            partitions: how many it shall have, if more than now.  Keys then go to other
                partitions than before, so that the order of one key's records is kept only
                within what was written before and within what is written after.

        Raises:
            UnknownTopicError, InvalidConfigError, InvalidPartitionError: nothing was changed.  If
                another client's options came in between, and ours do not go with them, the
                partitions are there: the error has ``may_have_applied`` then.
        """
        require_text("a topic's name", name)
        if partitions is not None:
            require_int("partitions", partitions)
        response = await self._routing.call_controller(
            AlterTopicRequest(
                name=name,
                config=_checked_config({} if config is None else config),
                partitions=partitions,
                timeout_ms=self._timeout_ms,
            ),
            AlterTopicResponse,
            effect="once",
        )
        return self._changed(response)

    def _changed(self, response: CreateTopicResponse | AlterTopicResponse) -> TopicInfo:
        self._routing.view.reached(response.metadata_offset)
        self._routing.learn_topic(response.topic)
        return response.topic

    async def list_topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        return sorted((await self.describe_cluster()).topics, key=lambda topic: topic.name)

    async def describe_topic(self, name: str) -> TopicInfo:
        """One topic, with its partitions and options.

        Raises:
            UnknownTopicError: there is none of that name.
        """
        require_text("a topic's name", name)
        return await self._routing.describe_topic(name)

    # --- the cluster --------------------------------------------------------------------

    async def describe_cluster(self) -> MetadataResponse:
        """Brokers, controller and all topics, as one broker sees them.

        It knows at least what this client has been told before, also by other brokers.
        """
        return await self._routing.describe(None)

    async def describe_broker(
        self, node: int, *, timeout_s: float | None = None
    ) -> DescribeBrokerResponse:
        """One broker as it sees itself: its replicas, and the peers it can reach.

        Args:
            timeout_s: how long it may take to answer, and nobody can in its place; default: the
                client's request timeout.

        Raises:
            UnknownBrokerError: no broker of that id is registered.
        """
        require_int("a broker's id", node)
        if timeout_s is not None:
            require_seconds("timeout_s", timeout_s)
        return await self._routing.call_node(
            NodeId(node), DescribeBrokerRequest(), DescribeBrokerResponse, timeout_s=timeout_s
        )

    async def alter_broker(
        self, node: int, action: Literal["drain", "resume", "remove"]
    ) -> BrokerInfo:
        """Drain a broker, take that back, or remove it from the cluster for ever.

        Draining only says that its replicas shall go; ``start_plan`` moves them.

        Raises:
            UnknownBrokerError: no broker of that id is registered.
            NotEnoughBrokersError: the others could not hold its replicas, or not as far apart.
            BrokerInUseError: a broker that still holds replicas is not removed.
        """
        require_int("a broker's id", node)
        require_one_of("action", action, ("drain", "resume", "remove"))
        response = await self._routing.call_controller(
            AlterBrokerRequest(node_id=node, action=action, timeout_ms=self._timeout_ms),
            AlterBrokerResponse,
            effect="once" if action == "remove" else "repeatable",
        )
        self._routing.view.reached(response.metadata_offset)
        return response.broker

    # --- rebalancing --------------------------------------------------------------------

    async def describe_rebalance(self) -> DescribeRebalanceResponse:
        """The plan that runs, or else the last one, and the settings of moves."""
        response = await self._routing.call_controller(
            DescribeRebalanceRequest(),
            DescribeRebalanceResponse,
        )
        self._routing.view.reached(response.metadata_offset)
        return response

    async def start_plan(
        self, purpose: str, layout_version: int, moves: Sequence[PlannedMoveInfo]
    ) -> int:
        """Have the cluster carry out moves; they go on without this client.

        Args:
            purpose: for people.
            layout_version: of ``describe_rebalance``, asked for before the moves were planned.

        Returns:
            The plan's id.

        Raises:
            RebalanceConflictError: a plan is running, or the cluster has changed.
            UnavailableError: a broker that is to receive something is not alive.
        """
        require_text("purpose", purpose)
        require_int("layout_version", layout_version)
        require_list("moves", moves)
        moves = list(moves)
        require_each("a move", moves, PlannedMoveInfo)
        token = f"{self._routing.environment.identities.getrandbits(128):032x}"
        response: StartPlanResponse | None = None
        for first in range(0, max(1, len(moves)), PLAN_MOVES_AT_ONCE):
            response = await self._routing.call_controller(
                StartPlanRequest(
                    token=token,
                    purpose=purpose,
                    layout_version=layout_version,
                    move_count=len(moves),
                    first=first,
                    moves=moves[first : first + PLAN_MOVES_AT_ONCE],
                    timeout_ms=self._timeout_ms,
                ),
                StartPlanResponse,
                effect="repeatable",
            )
        assert response is not None
        return response.plan_id

    async def cancel_plan(self, plan_id: int, *, gives_way: bool = False) -> str:
        """Begin no more moves and take back those under way; returns the plan's state.

        Args:
            gives_way: nobody minds the plan, which the cluster made by itself: it makes way for
                another one.  What is still to be done of it is done when that one is over.

        Raises:
            InvalidRequestError: it is not the last plan, or shall make way and was asked for.
            RebalanceConflictError: it shall make way, and makes replicas anew.
        """
        require_int("a plan's id", plan_id)
        response = await self._routing.call_controller(
            CancelPlanRequest(plan_id=plan_id, gives_way=gives_way, timeout_ms=self._timeout_ms),
            CancelPlanResponse,
            effect="repeatable",
        )
        return response.state

    async def cancel_move(self, plan_id: int, group: int) -> str:
        """Take back one move of a plan; the others go on.

        Args:
            plan_id: of the last plan, as ``describe_rebalance`` tells it.
            group: of the partition, as the plan and ``describe_topic`` tell it.

        Returns:
            The move's state: ``running`` while it is being taken back, unless it has arrived
            meanwhile, ``done`` if it had arrived, else ``cancelled`` or ``skipped``.

        Raises:
            InvalidRequestError: it is not the last plan, or does not move the partition.
            RebalanceConflictError: the plan has not arrived whole yet.
            UnsupportedVersionError: the cluster is at a feature level that does not have this.
        """
        require_int("a plan's id", plan_id)
        require_int("a group", group)
        response = await self._routing.call_controller(
            CancelMoveRequest(plan_id=plan_id, group=group, timeout_ms=self._timeout_ms),
            CancelMoveResponse,
            effect="repeatable",
        )
        return response.state

    async def raise_feature_level(self, level: int | None = None) -> int:
        """Let the cluster use what the version of its brokers brought.  Never taken back.

        Args:
            level: default: the highest that all registered brokers support.

        Returns:
            The level that the cluster is at now.

        Raises:
            InvalidRequestError: some broker does not support it, or it is lower than now.
        """
        if level is not None:
            require_int("level", level)
        response = await self._routing.call_controller(
            RaiseFeatureLevelRequest(level=level, timeout_ms=self._timeout_ms),
            RaiseFeatureLevelResponse,
            effect="repeatable",
        )
        self._routing.view.reached(response.metadata_offset)
        return response.level

    async def set_rebalancing(
        self,
        *,
        throttle_bytes_per_s: int | None = None,
        concurrency: int | None = None,
        autonomous: bool | None = None,
    ) -> SetRebalancingResponse:
        """Change how moves are carried out, also those under way; None leaves as it is."""
        if throttle_bytes_per_s is not None:
            require_int("throttle_bytes_per_s", throttle_bytes_per_s)
        if concurrency is not None:
            require_int("concurrency", concurrency)
        if autonomous is not None:
            require_bool("autonomous", autonomous)
        return await self._routing.call_controller(
            SetRebalancingRequest(
                throttle_bytes_per_s=throttle_bytes_per_s,
                concurrency=concurrency,
                autonomous=autonomous,
                timeout_ms=self._timeout_ms,
            ),
            SetRebalancingResponse,
            effect="repeatable",
        )

    # --- partitions ---------------------------------------------------------------------

    async def describe_partition(self, topic: str, partition: int) -> DescribePartitionResponse:
        """One partition as its leader sees it: term, offsets, and the state of each replica.

        Raises:
            UnknownTopicError, InvalidPartitionError: there is no such partition.
        """
        group = await self._group(topic, partition)
        return await self._routing.call_leader(
            group, DescribePartitionRequest(group=group), DescribePartitionResponse
        )

    async def transfer_leader(self, topic: str, partition: int, target: int | None = None) -> int:
        """Have another replica lead a partition.

        Args:
            target: the node that shall lead; default: the most caught-up other one.

        Returns:
            The node that leads now.

        Raises:
            NotAReplicaError: ``target`` holds no replica of it, or nobody else does.
            UnknownTopicError, InvalidPartitionError: there is no such partition.
        """
        if target is not None:
            require_int("target", target)
        group = await self._group(topic, partition)
        response = await self._routing.call_leader(
            group,
            TransferLeaderRequest(group=group, target=target),
            TransferLeaderResponse,
            effect="once",
        )
        self._routing.view.note_leader(group, NodeId(response.leader))
        return response.leader

    async def trim_partition(self, topic: str, partition: int, before: int | datetime) -> int:
        """Remove the records of a partition from its front, for good.

        Nobody reads them any more once this returns; the files go when whole segments do.

        Args:
            before: an offset, or an aware datetime: the first record that stays is the first
                one appended at or after it.

        Returns:
            Where the partition begins now.

        Raises:
            OffsetOutOfRangeError: the offset is above what is committed; nothing was removed.
            UsageError: ``before`` is neither, or has no time zone.
            UnknownTopicError, InvalidPartitionError: there is no such partition.
        """
        if not isinstance(before, (int, datetime)):
            raise UsageError(f"before must be an offset or an aware datetime, not {before!r}")
        kind, value = start_of(before)
        group = await self._group(topic, partition)
        response = await self._routing.call_leader(
            group,
            TrimPartitionRequest(
                group=group,
                before_offset=value if kind == "offset" else None,
                before_time_ms=value if kind == "time" else None,
                timeout_ms=self._timeout_ms,
            ),
            TrimPartitionResponse,
            effect="once",
        )
        return response.log_start

    async def offsets(
        self,
        topic: str,
        partition: int,
        *,
        at: datetime | None = None,
        from_replica: int | None = None,
    ) -> OffsetsResponse:
        """Where a partition begins and ends: log start, commit offset, end of its data.

        Args:
            at: an aware datetime; ``time_offset`` of the answer is then the first offset
                appended at or after it, or the commit offset if there is none yet.
            from_replica: ask the replica on this node instead of the leader.

        Raises:
            NotAReplicaError: ``from_replica`` holds no replica of the partition.
            UsageError: ``at`` has no time zone.
            UnknownTopicError, InvalidPartitionError: there is no such partition.
        """
        if at is not None and not isinstance(at, datetime):
            raise UsageError(f"at must be an aware datetime, not {at!r}")
        time_ms = None if at is None else start_of(at)[1]
        if from_replica is not None:
            require_int("from_replica", from_replica)
        group = await self._group(topic, partition)
        return await ask_offsets(
            self._routing, topic, group, time_ms=time_ms, from_replica=from_replica
        )

    async def _group(self, topic: str, partition: int) -> GroupId:
        require_text("a topic's name", topic)
        require_int("a partition", partition)
        return GroupId((await self._routing.partition(topic, partition)).group)

    @property
    def _timeout_ms(self) -> int:
        """How long brokers may take: they refuse requests that would wait for ever."""
        return min(int(self._routing.request_timeout_s * 1000), ADMIN_TIMEOUT_MS_MAX)


def _checked_config(config: Mapping[str, Text]) -> dict[str, Text]:
    """Topic options as they are sent: all are text, also numbers."""
    given: object = config
    if not isinstance(given, Mapping):
        raise UsageError(f"config must be a dict of topic options, not {given!r}")
    for name, value in config.items():
        require_text("a topic option's name", name)
        if value is not None:
            require_text(f"the topic option {name}", value)
    return dict(config)
