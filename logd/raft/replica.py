"""What a replica is and has, whoever leads.

A replica is in turn a follower (``Following``), a candidate (``Candidacy``) and the leader
(``Leadership``).  Each of these lives for one term at most and is then forgotten; what they work
on, and leave to the next, is here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logd.raft.quorum import is_quorum, is_voter

if TYPE_CHECKING:
    from logd.raft.configurations import ConfigurationHistory
    from logd.raft.log_state import LogState
    from logd.raft.messages import Message, VoteRequest
    from logd.raft.options import RaftOptions
    from logd.raft.standing import Standing
    from logd.types import GroupId, NodeId


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Replica:
    """One replica of one group."""

    node: NodeId
    group: GroupId
    options: RaftOptions
    log: LogState
    configurations: ConfigurationHistory
    standing: Standing
    nodes_up: dict[NodeId, None] = field(default_factory=dict)
    """By the failure detector.  A set that iterates in one order."""
    outbox: list[Message] = field(default_factory=list)
    """What the present step sends, in order."""

    def is_up(self, node: NodeId) -> bool:
        return node == self.node or node in self.nodes_up

    def would_vote_for(self, request: VoteRequest) -> bool:
        """Whether it may vote for the candidate, if its vote is still free."""
        standing, log = self.standing, self.log
        # R16: a newcomer neither votes nor campaigns.
        if standing.is_newcomer:
            return False
        # R18: a doubtful replica does not vote, unless so many are that nobody else can.
        if standing.is_doubtful and not (request.pre_vote or request.restart):
            return False
        # The candidate's log holds everything that this one may have helped to commit.
        return (request.last_term, request.end_offset) >= (log.terms.last_term, log.end)

    @property
    def is_electable(self) -> bool:
        """Whether it may lead, as far as it knows."""
        if self.standing.is_newcomer or not self.standing.may_campaign:
            return False
        return self.configurations.may_need(self.node, self.log.commit_offset)

    @property
    def may_win(self) -> bool:
        """Whether there is anything to win: it may lead, and enough others live to elect it."""
        return self.is_electable and is_quorum(self.configurations.current, self.is_up)

    @property
    def rank(self) -> int:
        """How many live voters are preferred to this node."""
        rank = 0
        for voter in self.configurations.current.electors:
            if voter == self.node:
                break
            rank += voter in self.nodes_up
        return rank

    def prefers(self, candidate: NodeId) -> bool:
        """Whether ``candidate`` stands before this node in the replica list."""
        electors = self.configurations.current.electors
        before = itertools.takewhile(lambda voter: voter != self.node, electors)
        return candidate in before

    @property
    def is_left_out(self) -> bool:
        """Whether a committed change has taken it out of the voters."""
        configurations = self.configurations
        return configurations.is_settled(self.log.commit_offset) and not is_voter(
            configurations.current, self.node
        )
