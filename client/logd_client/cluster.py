"""What this client knows of the cluster: brokers, topics, and who leads which group.

Pure.  Answers may come from a broker that is behind (cut off, or just started), so knowledge
of a leader is replaced only by knowledge of the same or a newer term.  A hint that came with
a refusal has no term: it is taken at once, and the next answer of that term or a newer one
may overrule it.  The metadata offset of an answer tells how old the rest of it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from logd.errors import ProtocolError
from logd.types import GroupId, HostPort, NodeId, Term
from logd.wire.messages import BrokerInfo, MetadataResponse, PartitionInfo, TopicInfo


class ClusterView:
    """Brokers, topics and leaders, as told so far."""

    def __init__(self) -> None:
        self.cluster_id: str | None = None
        self.controller: NodeId | None = None
        self.metadata_offset = 0
        """The most of the metadata log that an answer was known to rest on."""
        self._brokers: dict[NodeId, BrokerInfo] = {}
        self._topics: dict[str, TopicInfo] = {}
        self._missing: set[str] = set()
        """Topics that the broker did not know which was asked for them last."""
        self._partitions: dict[GroupId, PartitionInfo] = {}
        self._leaders: dict[GroupId, NodeId] = {}
        self._terms: dict[GroupId, Term] = {}

    # --- learning -----------------------------------------------------------------------

    def meet(self, broker: str, cluster_id: str | None) -> None:
        """A broker says which cluster it is of, if of any yet; the first that names one decides.

        Raises:
            ProtocolError: it is of another one, or may become so: there the numbers of groups,
                producers and sessions mean others'.
        """
        if self.cluster_id is None:
            self.cluster_id = cluster_id
        elif cluster_id != self.cluster_id:
            found = "no cluster yet" if cluster_id is None else f"cluster {cluster_id}"
            raise ProtocolError(f"{broker} belongs to {found}, expected {self.cluster_id}")

    def learn(self, response: MetadataResponse) -> None:
        """Take over one broker's answer; of one that is behind only who leads what.

        Raises:
            ProtocolError: it is of another cluster.
        """
        self.meet("the broker that answered", response.cluster_id)
        if response.controller is not None:
            self.controller = NodeId(response.controller)
        if response.metadata_offset < self.metadata_offset:
            for topic in response.topics:
                self._learn_leaders(topic)
            return
        self.metadata_offset = response.metadata_offset
        self._brokers = {NodeId(broker.node_id): broker for broker in response.brokers}
        self._missing.update(response.unknown)
        for topic in response.topics:
            self.learn_topic(topic)

    def reached(self, metadata_offset: int) -> None:
        """A change took effect below ``metadata_offset``."""
        self.metadata_offset = max(self.metadata_offset, metadata_offset)

    def learn_topic(self, topic: TopicInfo) -> None:
        known = self._topics.get(topic.name)
        if known is not None and known.topic_id > topic.topic_id:
            return  # Deleted and created again; the answer is of the earlier one.
        self._missing.discard(topic.name)
        self._topics[topic.name] = topic
        for partition in topic.partitions:
            self._partitions[GroupId(partition.group)] = partition
        self._learn_leaders(topic)

    def _learn_leaders(self, topic: TopicInfo) -> None:
        for partition in topic.partitions:
            if partition.group in self._partitions:
                self._learn_leader(partition)

    def _learn_leader(self, partition: PartitionInfo) -> None:
        group, term = GroupId(partition.group), Term(partition.term)
        if term < self._terms.get(group, Term(0)):
            return
        self._terms[group] = term
        if partition.leader is None:
            self._leaders.pop(group, None)
        else:
            self._leaders[group] = NodeId(partition.leader)

    def name_of(self, group: GroupId) -> str:
        """What people call a partition.  Looks through all of them: for errors only."""
        for topic in self._topics.values():
            for partition in topic.partitions:
                if partition.group == group:
                    return f"{topic.name}/{partition.partition}"
        return "a partition that is not known here"

    def forget_topic(self, name: str) -> None:
        """The topic does not exist (any more)."""
        self._missing.discard(name)
        topic = self._topics.pop(name, None)
        for partition in topic.partitions if topic is not None else ():
            group = GroupId(partition.group)
            self._partitions.pop(group, None)
            self._leaders.pop(group, None)
            self._terms.pop(group, None)

    def note_leader(self, group: GroupId, leader: NodeId | None) -> None:
        """A broker refused to lead ``group`` and named who does, or nobody."""
        if leader is not None and leader in self._brokers:
            self._leaders[group] = leader
        else:
            self._leaders.pop(group, None)

    # --- asking -------------------------------------------------------------------------

    def topic(self, name: str) -> TopicInfo | None:
        return self._topics.get(name)

    def grown_topic(self, name: str, groups: Collection[GroupId]) -> TopicInfo | None:
        """The topic, if it has more partitions than those of ``groups``; None also if that is
        another topic of the name, and theirs is gone."""
        topic = self._topics.get(name)
        if topic is None or len(topic.partitions) <= len(groups):
            return None
        there = {partition.group for partition in topic.partitions}
        return topic if there.issuperset(groups) else None

    def is_doubtful(self, name: str, group: GroupId) -> bool:
        """Whether the topic, or the one that ``group`` is of, may have been deleted: whoever was
        asked last knows nothing of it, and may only be behind."""
        topic = self._topics.get(name)
        is_another = topic is not None and all(each.group != group for each in topic.partitions)
        return name in self._missing or is_another

    def leader(self, group: GroupId) -> NodeId | None:
        return self._leaders.get(group)

    def replicas(self, group: GroupId) -> Sequence[NodeId]:
        partition = self._partitions.get(group)
        return () if partition is None else [NodeId(node) for node in partition.replicas]

    def likely_leader(self, group: GroupId, attempt: int) -> NodeId | None:
        """The leader; while nobody is known to lead, the replicas in turn: whoever is asked
        says who leads, or turns out to."""
        leader = self._leaders.get(group)
        if leader is not None:
            return leader
        replicas = self.replicas(group)
        return replicas[attempt % len(replicas)] if replicas else None

    def address(self, node: NodeId) -> HostPort | None:
        broker = self._brokers.get(node)
        return None if broker is None else HostPort(broker.host, broker.port)

    def is_alive(self, node: NodeId) -> bool:
        """As the broker saw it that answered last."""
        broker = self._brokers.get(node)
        return broker is not None and broker.alive

    def nodes(self) -> list[NodeId]:
        """All brokers, those believed alive first."""
        return sorted(self._brokers, key=lambda node: (not self._brokers[node].alive, node))
