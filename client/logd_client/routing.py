"""Finding the broker to talk to, and calling until one has answered.

Which brokers there are, and who leads what, is learned from any of them; the bootstrap list is
needed to meet the first one, and again if all that are known have gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, TypeVar

import anyio
import msgspec

from logd.errors import (
    ConnectionFailedError,
    InvalidPartitionError,
    LogdError,
    NotAReplicaError,
    NotLeaderError,
    ProtocolError,
    RetriableError,
    UnavailableError,
    UnknownBrokerError,
    UnknownTopicError,
)
from logd.limits import TOPIC_NAMES_PER_REQUEST
from logd.types import GroupId, HostPort, NodeId
from logd.wire.messages import Message, MetadataRequest, MetadataResponse, PartitionInfo, TopicInfo
from logd.wording import named
from logd_client.background import Background
from logd_client.backoff import Backoff
from logd_client.cluster import ClusterView
from logd_client.connection import Connection, Lane
from logd_client.connections import Connections
from logd_client.environment import Environment
from logd_client.shared_question import SharedQuestion

METADATA_TIMEOUT_S: Final = 2.0
"""How long one broker is waited for before the next is asked: any of them can answer."""

READ_TIMEOUT_S: Final = 5.0
"""How long one attempt of a request that changes nothing may take, for the same reason."""

FAILURES_BEFORE_DOUBTING_THE_TOPIC: Final = 5
"""After so many in a row it is worth asking whether the topic still exists."""

_LAGGING_ANSWERS_MAX: Final = 4
"""So often a broker that says it knows no such partition may only be behind."""

METADATA_AGE_S: Final = 60.0
"""A client that had no reason to ask this long asks who is there: brokers come and go, and it
has to know one of those that are left.  And topics get more partitions."""

DOUBTED_CONNECT_TIMEOUT_S: Final = 0.5
"""How long a broker that is said to be down is tried before others that answer at once; when
all have been tried, for as long as any other."""

_LAST_WORDS_S: Final = 0.5
"""After the time for meeting the cluster is over, how long those that tried may take to say how
far they came."""

_STAGGER_S: Final = 0.25
"""Head start of one bootstrap address before the next is tried beside it."""

R = TypeVar("R", bound=Message)
Effect = Literal["none", "repeatable", "once"]
"""What a request changes: nothing, something that a second one would not change any further, or
something each time."""

Target = Callable[[int], Awaitable[Connection]]
"""The connection to try on the given attempt, counted from 0."""


class Routing:
    """The connections of one client, and what it knows of the cluster."""

    def __init__(
        self,
        bootstrap: Sequence[HostPort],
        environment: Environment,
        tasks: Background,
        *,
        client_id: str,
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self.view = ClusterView()
        self.environment = environment
        self.tasks = tasks
        self.request_timeout_s = request_timeout_s
        self._bootstrap = bootstrap
        self._connect_timeout_s = connect_timeout_s
        self._connections = Connections(
            self.view,
            environment,
            tasks,
            client_id=client_id,
            connect_timeout_s=connect_timeout_s,
        )
        self._who_leads = SharedQuestion[bool](environment.clock)
        self._which_groups: dict[str, SharedQuestion[frozenset[GroupId]]] = {}
        """By the name of a topic that is doubted."""
        self._topics_of_interest: dict[str, None] = {}
        self._unled: dict[NodeId, None] = {}
        """Brokers that knew of no controller when they were asked last, the latest one last."""
        self._last_subscription = 0
        self.on_close: dict[object, Callable[[], None]] = {}
        """What has to end with the client: open producers and consumers."""
        self.on_learnt: dict[object, Callable[[], None]] = {}
        """Those who want to look at the view whenever topics have been described anew."""

    def next_subscription(self) -> int:
        """A subscription id that no connection of this client has used."""
        self._last_subscription += 1
        return self._last_subscription

    def close(self) -> None:
        """End everything that uses a connection, then all connections."""
        for close in list(self.on_close.values()):
            close()
        self._connections.close()

    def check_open(self) -> None:
        """Raise ``UsageError`` once the client has been closed."""
        self._connections.check_open()

    # --- meeting the cluster ------------------------------------------------------------

    async def bootstrap(self) -> None:
        """Meet one broker and learn about the cluster from it.

        Raises:
            ProtocolError: all that could be reached is not logd; says what was found.
            ConnectionFailedError: nobody was reached; names each address and its reason.
        """
        failures: dict[HostPort, LogdError] = {}
        addresses = list(self._bootstrap)
        self.environment.rng.shuffle(addresses)
        is_met = False
        clock = self.environment.clock
        deadline = clock() + self._connect_timeout_s

        async def meet(address: HostPort, tried: anyio.Event) -> None:
            nonlocal is_met
            backoff = Backoff(self.environment.rng)
            while not is_met and (left_s := deadline - clock()) > 0:
                try:
                    met = await self._connections.at(address, left_s)
                    await self._learn_from(met)
                    await self._reach_members(met)
                    is_met = True
                except LogdError as error:
                    failures[address] = error
                    tried.set()
                    if not isinstance(error, RetriableError):
                        return
                    # A broker that is just starting: it will be able to answer soon.
                    await anyio.sleep(backoff.next_delay_s())
            if is_met:
                race.cancel_scope.cancel()

        with anyio.move_on_after(self._connect_timeout_s + _LAST_WORDS_S):
            async with anyio.create_task_group() as race:
                for address in addresses:
                    tried = anyio.Event()
                    race.start_soon(meet, address, tried)
                    with anyio.move_on_after(_STAGGER_S):
                        await tried.wait()
        if not is_met:
            raise self._unreachable(failures)

    async def _reach_members(self, met: Connection) -> None:
        """Be connected to a member of the cluster, and not only to a broker that was one: what it
        knows is from when it was removed, and all that it tells of may be elsewhere since.

        Raises:
            ConnectionFailedError: none of them can be reached where it says.
        """
        nodes = self.view.nodes()
        if not nodes or met.node in nodes:
            return
        failures: dict[NodeId, LogdError] = {}
        is_reached = False

        async def reach(node: NodeId) -> None:
            nonlocal is_reached
            try:
                await self._learn_from(await self._connections.to(node, Lane.CONTROL))
            except LogdError as error:
                failures[node] = error
            else:
                is_reached = True
                race.cancel_scope.cancel()

        async with anyio.create_task_group() as race:
            for node in nodes:
                race.start_soon(reach, node)
        if not is_reached:
            raise ConnectionFailedError(
                f"{met.address} is node {met.node}, which is no member of the cluster: it was "
                "removed, or has not joined yet; and of those that it tells of nobody answers: "
                + "; ".join(str(failures[node]) for node in nodes)
            )

    def _unreachable(self, failures: dict[HostPort, LogdError]) -> ConnectionFailedError:
        limit = f"no answer within {self._connect_timeout_s:g} s"
        told = [(str(address), str(failures.get(address, limit))) for address in self._bootstrap]
        reasons = [
            reason if address in reason else f"{address}: {reason}" for address, reason in told
        ]
        text = f"cannot reach the cluster: {'; '.join(reasons)}"
        found = [failures.get(address) for address in self._bootstrap]
        if all(isinstance(error, ProtocolError) for error in found):
            return ProtocolError(text)
        return ConnectionFailedError(text)

    # --- connections --------------------------------------------------------------------

    async def connection(self, node: NodeId, lane: Lane) -> Connection:
        """The connection to ``node``, opened if there is none; a broker that is not known here
        may have joined since, so the cluster is asked for it.

        Raises:
            ConnectionFailedError: says which address could not be reached, and why.
            UnknownBrokerError: no broker of that id is known.
        """
        connection = self._connections.get(node, lane)
        if connection is not None:
            return connection
        self.check_open()
        if self.view.address(node) is None:
            await self.refresh()
        return await self._connections.to(node, lane)

    def open_connection(self, node: NodeId, lane: Lane) -> Connection | None:
        """The connection to ``node``, if there is one."""
        return self._connections.get(node, lane)

    async def any_connection(self, attempt: int) -> Connection:
        """A control connection to whoever can be reached, another one on each attempt.

        Those first who may hear more of the cluster than whoever knew of no controller: a broker
        that is cut off from all others, or was removed, answers as if they were down.
        """
        self.check_open()
        unled = {node: place for place, node in enumerate(self._unled)}
        nodes = sorted(
            self.view.nodes(), key=lambda node: (unled.get(node, -1), not self._is_connected(node))
        )
        if not nodes:
            return await self._connections.at(self._bootstrap[attempt % len(self._bootstrap)])
        node = nodes[attempt % len(nodes)]
        if attempt < len(nodes) and not self.view.is_alive(node):
            with anyio.move_on_after(DOUBTED_CONNECT_TIMEOUT_S):
                return await self.connection(node, Lane.CONTROL)
            raise ConnectionFailedError(f"node {node} is down, and does not answer")
        return await self.connection(node, Lane.CONTROL)

    async def leader_connection(self, group: GroupId, lane: Lane, attempt: int) -> Connection:
        """The connection to the leader of ``group``, or to a replica that may know it.

        Raises:
            NotLeaderError: nothing is known of the group.
            ConnectionFailedError: that broker cannot be reached.
        """
        node = self.view.likely_leader(group, attempt)
        if node is None:
            raise NotLeaderError(f"no leader of {self.view.name_of(group)} is known")
        try:
            return await self.connection(node, lane)
        except UnknownBrokerError as error:
            raise NotLeaderError(f"{self.view.name_of(group)}: {error}") from error

    # --- metadata -----------------------------------------------------------------------

    async def refresh(self, suspect: NodeId | None = None) -> None:
        """Learn anew who is there and who leads; ``suspect`` is asked last.

        Calls made while one is under way share its result.

        Raises:
            ConnectionFailedError: nobody answered.
        """

        async def ask() -> bool:
            await self._refresh(suspect)
            return True

        await self._who_leads.ask(ask)

    async def stay_current(self) -> None:
        """Refresh whenever nobody else did for a while, until cancelled."""
        while True:
            seen = self._who_leads.answers
            await anyio.sleep(METADATA_AGE_S)
            if self._who_leads.answers == seen:
                await self._refresh_if_possible(None)

    async def _refresh(self, suspect: NodeId | None) -> None:
        failures: list[str] = []
        for connect in self._sources(suspect):
            try:
                with anyio.fail_after(METADATA_TIMEOUT_S):
                    await self._learn_from(await connect())
            except TimeoutError:
                failures.append(f"no answer within {METADATA_TIMEOUT_S:g} s")
            except LogdError as error:
                failures.append(str(error))
            else:
                return
        raise ConnectionFailedError(f"no broker answers: {'; '.join(failures)}")

    def _sources(self, suspect: NodeId | None) -> list[Callable[[], Awaitable[Connection]]]:
        """Whom to ask: those we are connected to, other known brokers, the bootstrap list."""

        def known(node: NodeId) -> Callable[[], Awaitable[Connection]]:
            return lambda: self._connections.to(node, Lane.CONTROL)

        def listed(address: HostPort) -> Callable[[], Awaitable[Connection]]:
            return lambda: self._connections.at(address)

        nodes = self.view.nodes()
        self.environment.rng.shuffle(nodes)
        nodes.sort(key=lambda node: (node == suspect, not self._is_connected(node)))
        addresses = [self.view.address(node) for node in nodes]
        others = [address for address in self._bootstrap if address not in addresses]
        return [known(node) for node in nodes] + [listed(address) for address in others]

    def _is_connected(self, node: NodeId) -> bool:
        return self._connections.get(node, Lane.CONTROL) is not None

    async def _learn_from(self, connection: Connection) -> None:
        async def ask(request: MetadataRequest) -> MetadataResponse:
            response = await connection.request(request, MetadataResponse, self.request_timeout_s)
            self._note_standing(connection, response)
            return response

        await self._describe_by(ask, list(self._topics_of_interest), at_least=0)

    async def topic(self, name: str, *, as_it_is_now: bool = False) -> TopicInfo:
        """Describe a topic, asking the cluster if it is not known here.

        Args:
            as_it_is_now: ask in any case.  Partitions may have been added since, or it may be
                another topic of that name: who reads all of it, or spreads records over it, would
                go on without them for as long as it is open.

        Raises:
            UnknownTopicError: the cluster has no such topic.
            UnavailableError: whoever was asked knows of none, nor of a controller.
            ConnectionFailedError: nobody answered.
        """
        known = None if as_it_is_now else self.view.topic(name)
        if known is None:
            known = await self.describe_topic(name)
        # Only now: a topic that is refused would keep the client from learning of all others.
        self._topics_of_interest[name] = None
        return known

    async def describe_topic(self, name: str, target: Target | None = None) -> TopicInfo:
        """As ``topic``, but ask the cluster in any case; ``target`` or any broker of it."""
        response = await self.describe([name], target)
        if name in response.unknown:
            response = await self._describe_surely(name)
        for topic in response.topics:
            if topic.name == name:
                return topic
        self.view.forget_topic(name)
        self._topics_of_interest.pop(name, None)
        self._which_groups.pop(name, None)
        raise UnknownTopicError(f"no topic {name!r}")

    async def _describe_surely(self, name: str) -> MetadataResponse:
        """As the controller knows it: others may not have heard yet of what somebody has just
        created, nor, just after their start, of much that there has been for long.

        Raises:
            UnavailableError: there is no controller.
        """
        backoff = Backoff(self.environment.rng)
        deadline = self.environment.clock() + self.request_timeout_s
        while True:
            is_asked = self.view.controller is not None
            response = await self.describe([name], self.controller_connection)
            has_controller = response.controller is not None
            if name not in response.unknown or (is_asked and has_controller):
                return response
            if has_controller:
                continue  # This client knows it now.
            # Nobody is known to lead, or who was asked in its place has just been started.
            delay_s = backoff.next_delay_s()
            if self.environment.clock() + delay_s >= deadline:
                raise UnavailableError(
                    f"whether there is a topic {name!r} knows only the controller, "
                    "and there is none"
                )
            await anyio.sleep(delay_s)

    async def describe(
        self, topics: list[str] | None, target: Target | None = None
    ) -> MetadataResponse:
        """The cluster and ``topics`` (None: all), no older than what this client has seen."""

        asked: Connection | None = None

        async def whom(attempt: int) -> Connection:
            nonlocal asked
            asked = await (target or self.any_connection)(attempt)
            return asked

        async def ask(request: MetadataRequest) -> MetadataResponse:
            response = await self.call(whom, request, MetadataResponse)
            self._note_standing(asked, response)
            return response

        return await self._describe_by(ask, topics, at_least=self.view.metadata_offset)

    def _note_standing(self, asked: Connection | None, response: MetadataResponse) -> None:
        """Whether the broker that was asked hears a controller."""
        if asked is None or asked.node is None:
            return
        self._unled.pop(asked.node, None)
        if response.controller is None:
            self._unled[asked.node] = None

    def learn_topic(self, topic: TopicInfo) -> None:
        """Take over what a change has made of a topic."""
        self.view.learn_topic(topic)
        self._tell_what_was_learnt()

    def _tell_what_was_learnt(self) -> None:
        for look in list(self.on_learnt.values()):
            look()

    async def _describe_by(
        self,
        ask: Callable[[MetadataRequest], Awaitable[MetadataResponse]],
        topics: list[str] | None,
        at_least: int,
    ) -> MetadataResponse:
        """All of it in one, in however many requests it takes."""
        found: list[TopicInfo] = []
        unknown: list[str] = []
        response: MetadataResponse | None = None
        for names in _requestable(topics):
            following: str | None = ""
            while following is not None:
                response = await ask(
                    MetadataRequest(topics=names, at_least=at_least, start=following)
                )
                self.view.learn(response)
                found += response.topics
                unknown += response.unknown
                following = response.next
        self._tell_what_was_learnt()
        assert response is not None
        return msgspec.structs.replace(response, topics=found, unknown=unknown)

    async def look_again(
        self, topic: str, group: GroupId, failures: int, suspect: NodeId | None = None
    ) -> None:
        """Learn anew who leads ``group``, and whether it still exists: after some failures, or when
        whoever was asked did not know it.

        Each time somebody else is asked: a broker that hears no other may answer for ever what
        it knew last.

        Raises:
            UnknownTopicError: the topic was deleted, whether or not there is another of its
                name now.
            ConnectionFailedError: nobody answered.
        """
        if failures < FAILURES_BEFORE_DOUBTING_THE_TOPIC:
            await self.refresh(suspect)
            if not self.view.is_doubtful(topic, group):
                return

        async def another(attempt: int) -> Connection:
            if self.view.is_doubtful(topic, group):
                return await self.controller_connection(attempt)
            return await self.any_connection(failures + attempt)

        async def ask() -> frozenset[GroupId]:
            found = await self.describe_topic(topic, another)
            return frozenset(GroupId(partition.group) for partition in found.partitions)

        question = self._which_groups.setdefault(topic, SharedQuestion(self.environment.clock))
        if group not in await question.ask(ask):
            raise UnknownTopicError(
                f"topic {topic!r} was deleted and created again: what was opened on it before is "
                "over, open another producer or consumer"
            )

    async def partition(self, topic: str, partition: int) -> PartitionInfo:
        """One partition of a topic.

        Raises:
            UnknownTopicError, InvalidPartitionError: there is no such partition.
        """
        try:
            return partition_of(await self.topic(topic), partition)
        except InvalidPartitionError:
            # It may have been added since.
            return partition_of(await self.describe_topic(topic), partition)

    async def require_replica(self, topic: str, group: GroupId, node: NodeId) -> None:
        """Raise ``NotAReplicaError`` if ``node`` has no replica of ``group``."""
        if node not in self.view.replicas(group):
            # It may have moved since, and whoever was asked last may be behind.
            await self.describe_topic(topic, self.controller_connection)
        replicas = self.view.replicas(group)
        if node not in replicas:
            raise NotAReplicaError(
                f"broker {node} holds no replica of {self.view.name_of(group)}, which is on "
                f"{named('broker', replicas)}"
            )

    async def controller_connection(self, attempt: int) -> Connection:
        """The broker that creates topics; if it is not known, or after a failure, any: it
        refuses with a hint.  In a cluster that has just been formed it may not be registered yet,
        so that nobody can tell where it is."""
        controller = self.view.controller
        if controller is None or self.view.address(controller) is None or attempt % 2:
            return await self.any_connection(attempt)
        return await self.connection(controller, Lane.CONTROL)

    # --- calls --------------------------------------------------------------------------

    async def call(
        self,
        target: Target,
        message: Message,
        expected: type[R],
        *,
        effect: Effect = "none",
        group: GroupId | None = None,
        timeout_s: float | None = None,
    ) -> R:
        """Send a request where ``target`` says, again elsewhere if that may help.

        Args:
            target: picks the connection for each attempt.
            effect: what changes something ``once`` is not repeated when an attempt may have.
            group: whose leader is asked; None: the controller or any broker.

        Raises:
            LogdError: the refusal, or the last failure when time is up; or what a broker answered
                to the attempt before, if the last one only found another broker down.  Its
                ``may_have_applied`` is of all attempts.
        """
        backoff = Backoff(self.environment.rng)
        answered: LogdError | None = None
        told: LogdError | None = None
        is_in_doubt = False
        timeout_s = self.request_timeout_s if timeout_s is None else timeout_s
        deadline = self.environment.clock() + timeout_s
        while True:
            suspect: NodeId | None = None
            connection: Connection | None = None
            try:
                with anyio.move_on_after(deadline - self.environment.clock()):
                    connection = await target(backoff.failures)
                if connection is None:
                    limit = f"not connected within {timeout_s:.3g} s"
                    raise told or ConnectionFailedError(limit)
                suspect = connection.node
                left_s = deadline - self.environment.clock()
                attempt_s = left_s if effect == "once" else min(left_s, READ_TIMEOUT_S)
                return await connection.request(message, expected, max(attempt_s, 0.001))
            except LogdError as error:
                is_in_doubt = effect != "none" and (is_in_doubt or error.may_have_applied)
                error.may_have_applied = is_in_doubt
                is_behind = (
                    group is not None
                    and isinstance(error, UnknownTopicError)
                    and backoff.failures < _LAGGING_ANSWERS_MAX
                )
                may_repeat = effect != "once" or not is_in_doubt
                if not (may_repeat and (error.retriable or is_behind)):
                    raise
                delay_s = backoff.next_delay_s()
                is_answer = not isinstance(error, ConnectionFailedError)
                told = error if is_answer or answered is None else answered
                told.may_have_applied = is_in_doubt
                if self.environment.clock() + delay_s >= deadline:
                    raise told from None
                answered = error if is_answer else None
                has_hint = self._note_refusal(error, group)
            if not (has_hint and backoff.failures == 1):
                with anyio.move_on_after(deadline - self.environment.clock()) as until_deadline:
                    await anyio.sleep(delay_s)
                    await self._refresh_if_possible(suspect)
                if until_deadline.cancelled_caught:
                    raise told

    def _note_refusal(self, error: LogdError, group: GroupId | None) -> bool:
        """Learn from a refusal; whether it named another broker to go to."""
        if not isinstance(error, NotLeaderError):
            return False
        leader = None if error.leader is None else NodeId(error.leader)
        if group is not None:
            self.view.note_leader(group, leader)
        elif leader is not None and self.view.address(leader) is not None:
            self.view.controller = leader
        return leader is not None

    async def _refresh_if_possible(self, suspect: NodeId | None) -> None:
        try:
            await self.refresh(suspect)
        except ConnectionFailedError:
            return  # The next attempt will say what is wrong, in its own words.

    async def call_controller(
        self, message: Message, expected: type[R], *, effect: Effect = "none"
    ) -> R:
        """``call`` for the controller."""
        return await self.call(self.controller_connection, message, expected, effect=effect)

    async def call_leader(
        self,
        group: GroupId,
        message: Message,
        expected: type[R],
        *,
        effect: Effect = "none",
    ) -> R:
        """``call`` for the leader of ``group``."""

        async def target(attempt: int) -> Connection:
            return await self.leader_connection(group, Lane.CONTROL, attempt)

        return await self.call(
            target,
            message,
            expected,
            effect=effect,
            group=group,
        )

    async def call_node(
        self,
        node: NodeId,
        message: Message,
        expected: type[R],
        *,
        group: GroupId | None = None,
        timeout_s: float | None = None,
    ) -> R:
        """``call`` for this broker and no other."""

        async def target(attempt: int) -> Connection:
            return await self.connection(node, Lane.CONTROL)

        return await self.call(target, message, expected, group=group, timeout_s=timeout_s)


def partition_of(topic: TopicInfo, partition: int) -> PartitionInfo:
    """Find a partition by number.

    Raises:
        InvalidPartitionError: names the valid range.
    """
    for candidate in topic.partitions:
        if candidate.partition == partition:
            return candidate
    raise InvalidPartitionError(
        f"topic {topic.name!r} has no partition {partition!r}, "
        f"expected {partitions_text(len(topic.partitions))}"
    )


def partitions_text(count: int) -> str:
    """The numbers of ``count`` partitions, for a message."""
    return "0" if count == 1 else f"0 to {count - 1}"


def _requestable(names: list[str] | None) -> list[list[str] | None]:
    """As many lists of names as fit a request each; None stays alone, and so do no names."""
    if not names:
        return [names]
    starts = range(0, len(names), TOPIC_NAMES_PER_REQUEST)
    return [names[start : start + TOPIC_NAMES_PER_REQUEST] for start in starts]
