"""What a group asks of those around it: its node, what it feeds, and who follows it.

They are written down here, apart from the group, so that each side can be read, and played by a
test, without the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from logd.env import Env
    from logd.raft.messages import Message
    from logd.replication.commit_notices import CommitNotices
    from logd.replication.counts import NodeCounts
    from logd.replication.fitness import Fitness
    from logd.replication.group import Group
    from logd.replication.peer_protocol import AnyPeerMessage, Lane
    from logd.replication.proposal import Proposal
    from logd.replication.tail_cache import TailCache
    from logd.replication.turn import Turn
    from logd.types import Buffer, NodeId, Offset


class GroupHost(Protocol):
    """What a group needs of the node it runs on."""

    env: Env
    counts: NodeCounts
    tail_cache: TailCache
    commit_notices: CommitNotices
    follower_cached_bytes: int
    node: NodeId
    turn: Turn
    fitness: Fitness

    def now_ms(self) -> int: ...
    def send(
        self, message: Message, buffers: tuple[Buffer, ...] = (), lane: Lane = "main"
    ) -> None: ...
    def send_peer(
        self, target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
    ) -> bool: ...
    def has_room(self, target: NodeId, lane: Lane) -> bool: ...
    def start_soon(self, function: Callable[..., object], *args: object) -> None: ...
    def mark_dirty(self, group: Group) -> None: ...
    def flush_soon(self, group: Group) -> None: ...
    def request_sync(self, group: Group) -> None: ...
    def set_deadline(self, group: Group, deadline_ms: int | None) -> None: ...
    def introduce_later(self, group: Group, members: tuple[NodeId, ...]) -> None: ...
    def mark_idle(self, group: Group) -> None: ...
    def leadership_changed(self, group: Group) -> None: ...
    def leader_learnt(self, group: Group) -> None: ...
    def group_held(self, group: Group) -> None: ...
    def group_failed(self, group: Group, error: BaseException) -> None: ...
    def damage_met(self, group: Group) -> None: ...
    def segment_rolled(self, group: Group) -> None: ...


class Application(Protocol):
    """A state machine that is fed from a group's log, and whose state is shipped with it."""

    def on_installed(self, offset: Offset, payload: bytes) -> None: ...


class ProposalSource(Protocol):
    """Seals batches as late as can be: when the group is about to append."""

    @property
    def has_proposals(self) -> bool: ...

    def take_proposals(self) -> list[Proposal]: ...


class Watcher(Protocol):
    """Somebody who follows a group's commit offset: a subscription, an applier."""

    def on_commit(self, commit_offset: Offset) -> None: ...
    def on_leadership_lost(self) -> None: ...
