"""All replicas of one broker, and its links to the other brokers.

The node owns what groups share: the pump that groups appends, the sync pool, the timers,
the tail cache, the failure detector and the links.  It routes messages between links and
groups and contains no consensus logic; the groups contain no networking.

Shutdown order: the owner cancels ``run``; links end, then ``close`` syncs and closes the
logs.  Nothing is acknowledged after that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from logd.errors import CorruptionError, StorageFailedError
from logd.raft.messages import (
    AppendRequest,
    Event,
    PeerConnected,
    PeerDown,
    PeerUp,
    RaftMessage,
    Received,
)
from logd.raft.messages import Message as AnyRaftMessage
from logd.replication import log_events
from logd.replication.answering import PeerAnswers
from logd.replication.asking import PeerQuestions
from logd.replication.campaigns import Campaigns
from logd.replication.claims import LeaderClaims
from logd.replication.commit_notices import CommitNotices
from logd.replication.counts import GroupCounts, NodeCounts
from logd.replication.disk_waits import DiskWaits
from logd.replication.failure_detector import Change, FailureDetector
from logd.replication.fitness import Fitness
from logd.replication.group import Group
from logd.replication.peer_link import PeerLink
from logd.replication.peer_protocol import (
    PEER_PROTOCOL_VERSION,
    PEER_PROTOCOL_VERSION_MIN,
    TYPE_BY_KIND,
    AnyPeerMessage,
    Claims,
    ClusterView,
    Forward,
    ForwardResult,
    JoinRequest,
    JoinResponse,
    Lane,
    PeerHello,
    Ping,
    RepairRequest,
    RepairResponse,
    ReportRequest,
    ReportResponse,
    SnapshotChunk,
    StateRequest,
    StateResponse,
)
from logd.replication.received import check_append
from logd.replication.repairer import Repairer
from logd.replication.reports import Reports
from logd.replication.sync_pool import SyncPool
from logd.replication.tail_cache import TailCache
from logd.replication.timers import GroupTimers
from logd.replication.turn import Turn
from logd.types import METADATA_GROUP, GroupId, HostPort, NodeId, Term
from logd.wire.frame import Frame, decode_message

if TYPE_CHECKING:
    from logd.config import BrokerConfig
    from logd.env import Buffer, Env
    from logd.replication.membership import Membership, Refusal

log = structlog.get_logger(__name__)

CLAIMS_INTERVAL_S: Final = 0.02
"""All that a node leads is told to all peers, so it is not told more often than this."""

LANES: Final[tuple[Lane, ...]] = ("main", "bulk")

PASSING_REFUSAL_S: Final = 5.0
"""A peer that has not heard of this node yet hears of it from the metadata log before that: if not,
something keeps the two apart."""

EXPIRY_INTERVAL_S: Final = 0.25


class Shut(NamedTuple):
    """Why a replica is not taken up."""

    reason: str
    is_final: bool = False
    """Nobody can mend it; another one could take its place."""
    is_tried_again: bool = False
    """The disk is full, or there is no file descriptor for it: that may pass."""


class Node:
    """Groups, links and what they share.  Implements ``GroupHost`` and ``LinkOwner``."""

    def __init__(self, config: BrokerConfig, env: Env, membership: Membership) -> None:
        self.env = env
        self.node = config.node_id
        self.membership = membership
        self.tail_cache = TailCache(config.tail_cache_bytes)
        self.follower_cached_bytes = config.follower_cached_bytes
        self.counts = NodeCounts()
        self.group_counts: dict[GroupId, GroupCounts] = {}
        """Of all groups that were ever open here; whoever reads them forgets deleted ones."""
        self.groups: dict[GroupId, Group] = {}
        self.shut: dict[GroupId, Shut] = {}
        """Replicas on this node that could not be taken up."""
        self.fitness = Fitness(self.node, on_room=self.on_link_room)
        self.incarnation = env.rng("incarnation").getrandbits(48)
        self.on_forward: Callable[[NodeId, Forward], None] | None = None
        self.on_forward_result: Callable[[ForwardResult], None] | None = None
        self.on_join: Callable[[JoinRequest], Awaitable[JoinResponse]] | None = None
        self.on_segment_rolled: Callable[[Group], None] | None = None
        self._config = config
        self._addresses = {n: a for n, a in sorted(config.cluster.items()) if n != self.node}
        peers = tuple(self._addresses)
        self._syncs = SyncPool(env)
        self.turn = Turn(
            self._syncs.sync_here, flush=self._flush_dirty, leave=self._wake_pump_for_dirty
        )
        """Open while one piece of work is done: outboxes and syncs wait for its end."""
        self._detector = FailureDetector(peers, config.liveness_timeout_ms)
        self._links: dict[tuple[NodeId, Lane], PeerLink] = {
            (peer, lane): PeerLink(peer, address, lane, env, self, self.turn)
            for peer, address in self._addresses.items()
            for lane in LANES
        }
        self._link_scopes: dict[tuple[NodeId, Lane], trio.CancelScope] = {}
        self.accepted_links: dict[tuple[NodeId, Lane], trio.CancelScope] = {}
        """Those of the peer server, by who dialled; each ends with its scope."""
        self._refused_since: dict[NodeId, float] = {}
        """Peers that refuse the links of this node → since when."""
        self._interruptions: Counter[NodeId] = Counter()
        self.claims = LeaderClaims(self, peers)
        self._dirty: dict[GroupId, Group] = {}
        self._owing: dict[GroupId, Group] = {}
        """Groups that may owe somebody the answer to a proposal."""
        self._disk_waits = DiskWaits(self.node, self.is_up)
        self._pump_lot = trio.lowlevel.ParkingLot()
        self._timers = GroupTimers(self.now_ms, self._on_due)
        self._campaigns = Campaigns(begin=Group.tick)
        self._introductions: list[tuple[Group, tuple[NodeId, ...]]] = []
        self.commit_notices = CommitNotices(self.turn)
        self._leadership_news = trio.Event()
        self._claims_wanted = trio.Event()
        self.questions = PeerQuestions(self)
        self.answers = PeerAnswers(self)
        self.repairer = Repairer(self, config.scrub_bytes_per_s, config.scrub_interval_s)
        self.reports = Reports(self)
        self._nursery: trio.Nursery | None = None
        self._has_ended = False

    # --- life ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled.  Accepting links is the peer server's part."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.env.network.deliver, self.turn)
                nursery.start_soon(self._pump)
                nursery.start_soon(self._timers.run)
                nursery.start_soon(self._syncs.run)
                nursery.start_soon(self._tell_claims)
                nursery.start_soon(self.commit_notices.run)
                nursery.start_soon(self._expire)
                nursery.start_soon(self._watch_peers)
                nursery.start_soon(self.repairer.run)
                for peer in self._addresses:
                    self._start_links(peer)
                task_status.started()
        finally:
            self._has_ended = True

    def set_peer(self, node: NodeId, address: HostPort) -> None:
        """``node`` is a broker of this cluster, and listens there."""
        assert node != self.node
        if self._addresses.get(node) == address:
            return
        self.drop_peer(node)
        self._addresses[node] = address
        self._detector.add(node)
        self.claims.add_peer(node)
        for lane in LANES:
            self._links[node, lane] = PeerLink(node, address, lane, self.env, self, self.turn)
        if self._nursery is not None:
            self._start_links(node)

    def drop_peer(self, node: NodeId) -> None:
        """Dial ``node`` no more."""
        self._addresses.pop(node, None)
        self._refused_since.pop(node, None)
        for lane in LANES:
            self._links.pop((node, lane), None)
            scope = self._link_scopes.pop((node, lane), None)
            if scope is not None:
                scope.cancel()

    def shut_out(self, node: NodeId) -> None:
        """``node`` is a member no more: neither dial it nor listen to it.

        Its links were let in when it was one.  It dials again, and is told.
        """
        self.drop_peer(node)
        for lane in LANES:
            scope = self.accepted_links.get((node, lane))
            if scope is not None:
                scope.cancel()

    def addresses_by_life(self) -> list[HostPort]:
        """Where the other brokers listen for this one; those that are alive first."""
        nodes = sorted(self._addresses, key=lambda node: (not self._detector.is_up(node), node))
        return [self._addresses[node] for node in nodes]

    def _start_links(self, node: NodeId) -> None:
        for lane in LANES:
            scope = self._link_scopes[node, lane] = trio.CancelScope()
            self.start_soon(_run_link, self._links[node, lane], scope)

    def refusal(self, view: ClusterView) -> Refusal | None:
        """Why a node that greets is not let in; None if it is."""
        refused, node = self.membership.refusal(view), NodeId(view.node)
        if refused is None and not self.claims.knows(node):
            return self.membership.not_heard_of(node)
        return refused

    def add_group(self, group: Group) -> None:
        """Take up a group that was opened; peers that are alive are made known to it."""
        assert group.group_id not in self.groups
        self.groups[group.group_id] = group
        group.counts = self.group_counts.setdefault(group.group_id, group.counts)
        self._introduce(group, group.configuration.members)

    def _introduce(self, group: Group, members: tuple[NodeId, ...]) -> None:
        """Tell a group which of these members are alive."""
        for member in members:
            if member == self.node:
                continue
            if not self._detector.is_up(member):
                group.post(PeerDown(member))
                continue
            group.post(PeerUp(member))
            link = self._links.get((member, "main"))
            if link is not None and link.is_connected:
                group.post(PeerConnected(member))

    async def remove_group(self, group_id: GroupId) -> None:
        """Stop a group and close its files."""
        group = self.groups.pop(group_id, None)
        if group is not None:
            self._dirty.pop(group_id, None)
            self._owing.pop(group_id, None)
            self.commit_notices.forget(group_id)
            await group.close()
            self.tail_cache.forget(group_id)
            self.leadership_changed(group)

    async def close(self) -> None:
        """Sync and close all logs.  Called after ``run`` has ended."""
        async with trio.open_nursery() as nursery:
            for group in self.groups.values():
                nursery.start_soon(group.close)
        self.groups.clear()

    # --- for groups (GroupHost) -----------------------------------------------------------------

    def now_ms(self) -> int:
        turn = self.turn
        if not turn.is_open:
            return int(trio.current_time() * 1000)
        now_ms = turn.now_ms
        if now_ms is None:
            now_ms = turn.now_ms = int(trio.current_time() * 1000)
        return now_ms

    def send(
        self, message: AnyRaftMessage, buffers: tuple[Buffer, ...] = (), lane: Lane = "main"
    ) -> None:
        link = self._links.get((message.target, lane))
        if link is not None:
            link.send(message, buffers)

    def send_peer(
        self, target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
    ) -> bool:
        """Send what is not about one group's consensus; False if there is no connection."""
        link = self._links.get((target, "bulk" if buffers else "main"))
        if link is None or not link.is_connected:
            return False
        link.send(message, buffers)
        return True

    def has_room(self, target: NodeId, lane: Lane) -> bool:
        link = self._links.get((target, lane))
        return link is not None and link.is_connected and link.has_room

    def start_soon(self, function: Callable[..., object], *args: object) -> None:
        assert self._nursery is not None
        if self._has_ended:
            # Those that were cancelled with the node may still come back from a slow disk.  What
            # they begin now is given up, as it would have been a moment ago.
            return
        self._nursery.start_soon(function, *args)  # type: ignore[arg-type]

    def mark_dirty(self, group: Group) -> None:
        self._dirty[group.group_id] = group
        if not self.turn.is_open:  # Else its end sees to it.
            self._pump_lot.unpark()

    def flush_soon(self, group: Group) -> None:
        """Let ``group`` append what was proposed: now, or if a turn is open, at its end."""
        if self.turn.is_open:
            self.mark_dirty(group)
            return
        with self.turn:
            self.mark_dirty(group)

    def _flush_dirty(self) -> None:
        dirty, self._dirty = self._dirty, {}
        self._owing.update(dirty)
        for group in dirty.values():
            group.flush()

    def _wake_pump_for_dirty(self) -> None:
        if self._dirty:
            self._pump_lot.unpark()

    def request_sync(self, group: Group) -> None:
        self._syncs.request(group, is_noticed=self.turn.is_open)

    def mark_idle(self, group: Group) -> None:
        self._syncs.mark_idle(group)

    def set_deadline(self, group: Group, deadline_ms: int | None) -> None:
        self._timers.set(group, deadline_ms)
        if self._campaigns.are_any:
            is_due = deadline_ms is not None and deadline_ms <= self.now_ms()
            if self._campaigns.reconsider(group, is_due=is_due):
                self._timers.look_again()

    def introduce_later(self, group: Group, members: tuple[NodeId, ...]) -> None:
        self._introductions.append((group, members))
        self._pump_lot.unpark()

    def leadership_changed(self, group: Group) -> None:
        self.claims.changed()
        self._claims_wanted.set()
        self.tell_leadership_news()

    def group_held(self, group: Group) -> None:
        self._disk_waits.note_held(group)

    def damage_met(self, group: Group) -> None:
        self.repairer.report(group)

    def leader_learnt(self, group: Group) -> None:
        self.claims.leader_learnt(group.group_id)
        if group.core.leader is not None:
            group.counts.leader_changes += 1

    def group_failed(self, group: Group, error: BaseException) -> None:
        if isinstance(error, OSError | StorageFailedError):
            self.fitness.note_failure()
        self.leadership_changed(group)

    def segment_rolled(self, group: Group) -> None:
        if self.on_segment_rolled is not None:
            self.on_segment_rolled(group)

    # --- shared tasks ---------------------------------------------------------------------------

    async def _pump(self) -> None:
        """Append what gathered outside of turns, and what a turn left.

        A task that proposes wakes the pump, which runs after all tasks that were ready with
        it: whatever they proposed is one group.
        """
        while True:
            if not self._dirty and not self._introductions:
                await self._pump_lot.park()
            with self.turn:
                introductions, self._introductions = self._introductions, []
                for introduced, members in introductions:
                    self._introduce(introduced, members)
                self._flush_dirty()
            if self._dirty:
                await trio.lowlevel.checkpoint()

    async def _tell_claims(self) -> None:
        """Tell peers what this node leads: at once, and when hundreds of groups elect, now and
        then."""
        while True:
            await self._claims_wanted.wait()
            self._claims_wanted = trio.Event()
            self.claims.are_dirty = False
            with self.turn:
                self._send_claims()
            await trio.sleep(CLAIMS_INTERVAL_S)

    def _on_due(self, groups: list[Group]) -> int | None:
        """Have time pass for these groups; says when to look again if campaigns wait."""
        with self.turn:
            wanting: list[Group] = []
            for group in groups:
                # Without the metadata log nothing else is found: it does not wait.
                if group.core.is_leader or group.group_id == METADATA_GROUP:
                    group.tick()
                else:
                    wanting.append(group)
            now_ms = self.now_ms()
            self._campaigns.want(wanting, now_ms)
        return self._campaigns.next_place_ms

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRY_INTERVAL_S)
            now_ms = self.now_ms()
            for group_id, group in list(self._owing.items()):
                if group.proposals.has_waiting:
                    group.proposals.expire(now_ms)
                else:
                    del self._owing[group_id]
            self._disk_waits.look(self._syncs.under_way())
            self.answers.forget_old_state()

    async def _watch_peers(self) -> None:
        interval_s = self._config.liveness_interval_ms / 1000
        while True:
            view = None if self.membership.is_settled else self.membership.view()
            ping = self.fitness.ping(view, self.claims.digest_if_due())
            with self.turn:  # What is said in it leaves at its end, without a task per link.
                for (_, lane), link in self._links.items():
                    if lane == "main":
                        link.send(ping)
                for node in self._detector.expire(self.now_ms()):
                    self._peer_down(node)
                self.claims.check()
            await trio.sleep(interval_s)

    # --- peers ----------------------------------------------------------------------------------

    def queued_bytes(self) -> dict[NodeId, int]:
        """Bytes that wait to be sent, by peer."""
        queued: dict[NodeId, int] = {}
        for (peer, _), link in self._links.items():
            queued[peer] = queued.get(peer, 0) + link.queued_bytes
        return queued

    def peers_up(self) -> list[NodeId]:
        return self._detector.up()

    def is_up(self, node: NodeId) -> bool:
        return node == self.node or self._detector.is_up(node)

    def unheard_hosts(self) -> list[NodeId]:
        """Peers that let this node in and are not heard: they hang, or look for it where it was."""
        return [
            node
            for (node, lane), link in self._links.items()
            if lane == "main" and link.is_connected and not self._detector.is_up(node)
        ]

    def leader_of(self, group_id: GroupId) -> tuple[NodeId | None, Term]:
        """Who leads a group, as far as this node knows, and in which term."""
        group = self.groups.get(group_id)
        if group is not None and group.failure is None and group.core.leader is not None:
            return group.core.leader, group.core.term
        return self.claims.leader_of(group_id)

    async def leadership_news(self, timeout_s: float) -> None:
        """Wait until a leader may have changed, or the time is up."""
        news = self._leadership_news
        with trio.move_on_after(timeout_s):
            await news.wait()

    def tell_leadership_news(self) -> None:
        news, self._leadership_news = self._leadership_news, trio.Event()
        news.set()

    def interruptions(self, peer: NodeId) -> int:
        """How often frames to or from ``peer`` may have been lost on the way (on the main lane).

        Who waits for an answer compares: where this has changed, the question or the answer may
        have been lost with a connection, though the peer is alive.
        """
        return self._interruptions[peer]

    def on_accepted(self, hello: PeerHello) -> None:
        """A peer has connected to us."""
        node = NodeId(hello.view.node)
        if hello.lane == "main":
            self._interruptions[node] += 1  # What it sent before may not have got here.
        ours = self._links.get((node, hello.lane))
        if ours is not None:
            ours.hope()
        self.membership.learn(hello.view)
        match self._detector.accepted(node, hello.incarnation, self.now_ms()):
            case Change.RESTARTED:
                self._peer_down(node)
                self._peer_up(node)
            case Change.UP:
                self._peer_up(node)

    def on_closed(self, node: NodeId) -> None:
        self._detector.closed(node)

    def on_heard(self, node: NodeId) -> None:
        """Bytes have arrived from a peer."""
        if self._detector.heard(node, self.now_ms()) is not None:
            self._peer_up(node)

    def _peer_up(self, node: NodeId) -> None:
        log.info(log_events.PEER_UP, peer=node)
        self.repairer.hope()
        self._post_to_shared(node, PeerUp(node))

    def _peer_down(self, node: NodeId) -> None:
        self.counts.peers_lost += 1
        self.fitness.forget(node)
        log.warning(log_events.PEER_DOWN, peer=node)
        self.claims.forget(node)
        self._post_to_shared(node, PeerDown(node))

    def _post_to_shared(self, node: NodeId, event: Event) -> None:
        for group in list(self.groups.values()):
            if node in group.core.configuration.members:
                group.post(event)

    # --- links (LinkOwner) ------------------------------------------------------------------------

    def greeting(self, lane: Lane) -> PeerHello:
        return PeerHello(
            protocol=PEER_PROTOCOL_VERSION,
            protocol_min=PEER_PROTOCOL_VERSION_MIN,
            view=self.membership.view(),
            incarnation=self.incarnation,
            lane=lane,
        )

    def on_link_up(self, node: NodeId, lane: Lane, answer: PeerHello) -> None:
        self.membership.learn(answer.view)
        self._refused_since.pop(node, None)
        link = self._links.get((node, "main"))
        if lane == "main" and link is not None:
            link.send(self.claims.own())
            # Before any answer, or a leader might begin to fill a disk that is full.
            link.send(self.fitness.ping())
        self._post_to_shared(node, PeerConnected(node))

    def on_link_down(self, node: NodeId, lane: Lane) -> None:
        if lane == "main":
            self._interruptions[node] += 1
        log.info(log_events.PEER_DISCONNECTED, peer=node, lane=lane)

    def on_link_refused(self, node: NodeId, lane: Lane, refusal: Refusal) -> None:
        if lane != "main":
            return
        now = trio.current_time()
        since = self._refused_since.setdefault(node, now)
        is_passing = refusal.is_passing and now - since < PASSING_REFUSAL_S
        tell = log.info if is_passing else log.error
        tell(log_events.PEER_REFUSED, peer=node, reason=refusal.reason)

    def on_nobody_there(self, node: NodeId) -> None:
        self._refused_since.pop(node, None)
        if self._detector.nobody_there(node) is not None:
            self._peer_down(node)

    def on_unreachable(self, node: NodeId) -> None:
        if self._detector.is_up(node):
            self.membership.note_outdated()  # We hear it: it is elsewhere.

    def on_link_room(self, node: NodeId) -> None:
        for group in self.groups.values():
            if group.is_leader and node in group.core.configuration.members:
                self.mark_dirty(group)

    def _send_claims(self) -> None:
        claims = self.claims.own()
        for (_, lane), link in self._links.items():
            if lane == "main":
                link.send(claims)

    # --- frames from peers ------------------------------------------------------------------------

    def on_frame(self, source: NodeId, frame: Frame) -> None:
        """Take one frame of an accepted link.

        Raises:
            LogdError: the frame is not what a peer of ours would send; close the link.
        """
        message_type = TYPE_BY_KIND.get(frame.kind)
        if message_type is None:
            raise CorruptionError(f"unknown frame kind {frame.kind} from node {source}")
        message = decode_message(message_type, frame.header)
        if isinstance(message, RaftMessage):
            self._on_raft_message(source, message, frame.body)  # type: ignore[arg-type]
            return
        match message:
            case Ping():
                self._on_ping(source, message)
            case Claims():
                self.claims.take(source, dict(message.groups))
            case SnapshotChunk():
                group = self.groups.get(GroupId(message.group))
                if group is not None:
                    group.intake.post_chunk(source, message, frame.body)
            case Forward():
                assert self.on_forward is not None
                self.on_forward(source, message)
            case RepairRequest():
                self.answers.on_request(source, message)
            case RepairResponse() | StateResponse():
                self.questions.on_response(message, frame.body)
            case StateRequest():
                self.answers.on_state_request(source, message)
            case ReportRequest():
                self.reports.on_request(source, message)
            case ReportResponse():
                self.reports.on_response(message, frame.body)
            case ForwardResult():
                assert self.on_forward_result is not None
                self.on_forward_result(message)
            case _:
                raise CorruptionError(f"node {source} greeted twice")

    def _on_raft_message(self, source: NodeId, message: AnyRaftMessage, body: bytes) -> None:
        if message.source != source or message.target != self.node:
            raise CorruptionError(
                f"message from {message.source} to {message.target} on the link of {source}"
            )
        group = self.groups.get(message.group)
        if group is None:
            return  # Deleted, or not created yet; a message never creates a group.
        if isinstance(message, AppendRequest):
            group.post_append(message, check_append(message, body))
        else:
            group.post(Received(message))

    def _on_ping(self, source: NodeId, ping: Ping) -> None:
        if ping.view is not None:
            self.membership.learn(ping.view)
        self.fitness.take(source, ping)
        self.claims.compare(source, ping)


async def _run_link(link: PeerLink, scope: trio.CancelScope) -> None:
    with scope:
        await link.run()
