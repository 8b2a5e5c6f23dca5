"""Which nodes and which data directories make up this cluster.

What a cluster is founded with is a list; what becomes of it the metadata say, and this is told
of each broker that joined or was removed.

The first start of a cluster needs all listed nodes, all with empty directories: each waits
until it has seen every other, and only then writes down who they are.  From then on a node
is its directory: one that comes back with a wiped disk is somebody else, and may not vote
under the old name (it has forgotten its votes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import trio

from logd.errors import ForeignDirectoryError
from logd.replication.peer_protocol import ClusterView
from logd.replication.room_waits import when_there_is_room
from logd.types import METADATA_GROUP, DirectoryId, HostPort, NodeId

if TYPE_CHECKING:
    from logd.env import Env
    from logd.storage.directory import DataDirectory


def canonical_list(cluster: Mapping[NodeId, HostPort]) -> str:
    """The listed nodes as text that two nodes can compare."""
    return ",".join(f"{node}={address}" for node, address in sorted(cluster.items()))


class Refusal(NamedTuple):
    """Why a node is not talked to."""

    reason: str
    is_passing: bool = False
    """One of the two has not heard of the other yet, and is about to."""


class Membership:
    """This node's knowledge of the cluster, and the checks every greeting must pass."""

    def __init__(
        self,
        node: NodeId,
        directory: DataDirectory,
        cluster: Mapping[NodeId, HostPort],
        env: Env,
        join: HostPort | None = None,
    ) -> None:
        self.node = node
        self.directory = directory
        self._cluster_list = canonical_list(cluster)
        self._listed = sorted(cluster)
        self._join = join
        self._env = env
        self._views: dict[NodeId, ClusterView] = {}
        self._registered: dict[NodeId, DirectoryId] = {}
        self._removed: dict[NodeId, None] = {}
        self._changed = trio.Event()
        self._outdated = trio.Event()
        self._check_list()

    def _check_list(self) -> None:
        members = self.directory.members
        is_founder = members is not None and self.node in members
        if members is not None and is_founder and sorted(members) != self._listed:
            found = f"a cluster list of {', '.join(map(str, self._listed))}"
            if self._listed == [self.node]:
                found += ", which is the one without --cluster"
            raise ForeignDirectoryError(
                f"the data directory of node {self.node} belongs to a cluster of nodes "
                f"{', '.join(map(str, sorted(members)))}; it was started with {found}: give it "
                "the list it was formed with"
            )

    @property
    def cluster_id(self) -> str | None:
        return self.directory.cluster_id

    @property
    def is_settled(self) -> bool:
        """Nothing is left that others need to be told about us."""
        return self.directory.cluster_id is not None

    def view(self) -> ClusterView:
        return ClusterView(
            node=self.node,
            directory_id=self.directory.directory_id,
            cluster_list=self._cluster_list,
            cluster_id=self.directory.cluster_id,
            members=self.directory.members,
        )

    def refusal(self, view: ClusterView) -> Refusal | None:
        """Why we will not talk to the node of ``view``; None if we will."""
        node, members = NodeId(view.node), self.directory.members
        if node == self.node:
            return self._stranger(node)
        ours, theirs = self.cluster_id, view.cluster_id
        if ours is not None and theirs is not None and ours != theirs:
            return Refusal(f"node {node} belongs to cluster {theirs}, node {self.node} to {ours}")
        if node in self._removed:
            return Refusal(
                f"node {node} was removed from this cluster: to have the machine back, start it "
                "with an empty data directory, a node id that was never used, and --join"
            )
        if node in self._registered:
            return _refusal(self._wrong_directory({node: self._registered[node]}, view))
        if ours is None and self._join is not None and node not in (members or self._listed):
            # The others know who asks to join as soon as that is committed, before it is answered.
            reason = f"node {self.node} has not joined yet: it waits for the answer of {self._join}"
            return Refusal(reason, is_passing=True)
        if members is not None and node not in members:
            if ours is not None and ours == theirs:
                # Who has the cluster's id was registered: that has not come to be known here.
                self.note_outdated()
                return self.not_heard_of(node)
            return Refusal(
                f"node {node} is not a member of the cluster of node {self.node}: start it with an "
                "empty data directory and --join"
            )
        if members is None and node not in self._listed:
            return self._stranger(node)
        if view.cluster_list != self._cluster_list and node in self._listed:
            return Refusal(
                f"the cluster lists differ: node {node} was started with "
                f"{view.cluster_list}, node {self.node} with {self._cluster_list}"
            )
        return _refusal(self._wrong_directory(members, view))

    def _stranger(self, node: NodeId) -> Refusal:
        return Refusal(f"node {node} is not a peer of node {self.node} ({self._cluster_list})")

    def not_heard_of(self, node: NodeId) -> Refusal:
        """``node`` is a member, which is not known here yet."""
        return Refusal(f"node {self.node} has not heard of node {node} yet", is_passing=True)

    def register(self, node: NodeId, directory_id: DirectoryId) -> None:
        """``node`` is a member, with this data directory: the metadata say so."""
        self._registered[node] = directory_id

    def remove(self, node: NodeId) -> None:
        """``node`` is a member no more."""
        self._removed[node] = None

    def note_outdated(self) -> None:
        """There is a sign that what is known here of the members is of the past."""
        self._outdated.set()

    async def outdated(self) -> None:
        """Wait for such a sign: a broker of this cluster that is not known here was refused, one
        that is heard is not where it was, or none comes to where this one is now."""
        await self._outdated.wait()
        self._outdated = trio.Event()

    def _wrong_directory(self, members: dict[int, str] | None, view: ClusterView) -> str | None:
        if members is None or members.get(view.node) == view.directory_id:
            return None
        return (
            f"node {view.node} has data directory {view.directory_id}, but the cluster was "
            f"formed with {members.get(view.node)}: start it with its old data directory; "
            "a wiped replica cannot vote under its old name. If its disk is lost, start it "
            "under a node id that was never used, with --join"
        )

    def learn(self, view: ClusterView) -> None:
        """Take in what a peer says of itself."""
        self._views[NodeId(view.node)] = view
        self._changed.set()

    async def formed(self) -> dict[int, str]:
        """Wait until every listed node is known; write it down, once there is room for that;
        return node → directory id.

        Raises:
            ForeignDirectoryError: the cluster was formed with another directory of ours.
        """
        while True:
            self._changed = trio.Event()
            if await when_there_is_room(METADATA_GROUP, self._is_formed):
                break
            await self._changed.wait()
        assert self.directory.members is not None
        return self.directory.members

    async def _is_formed(self) -> bool:
        """Whether it is written down who the founders are: now, if they have just become known."""
        if self.directory.members is None:
            members = self._members_now()
            if members is None:
                return False
            await self._env.run_blocking(self.directory.form, members)
        return True

    def missing(self) -> list[NodeId]:
        """Listed nodes that have not been seen yet."""
        return [n for n in self._listed if n != self.node and n not in self._views]

    def _members_now(self) -> dict[int, str] | None:
        for node in sorted(self._views):
            members = self._views[node].members
            if members is not None:
                wrong = self._wrong_directory(members, self.view())
                if wrong is not None:
                    raise ForeignDirectoryError(wrong)
                return members
        if self.missing():
            return None
        members = {int(node): view.directory_id for node, view in self._views.items()}
        members[self.node] = self.directory.directory_id
        return dict(sorted(members.items()))


def _refusal(reason: str | None) -> Refusal | None:
    return None if reason is None else Refusal(reason)
