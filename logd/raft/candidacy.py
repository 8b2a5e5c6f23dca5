"""What only a candidate has and does; lives for one campaign.

Or for the question before it: a pre-candidate asks whether a campaign could be won, before any
term is disturbed by it (§9.6).  The difference is in the term that votes are asked for, and in
who counts: a doubtful replica answers a pre-vote by its log alone and says what it is, but would
not vote.  So a pre-candidate also finds out when there are so many of these that nobody can be
elected, and the group must be restarted with what is left.

When to campaign, and what follows from the count, is the core's.

Papers: Ongaro 2014, §3.4, §9.6.  Invariants R4, R18.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logd.raft.messages import VoteRequest, VoteResponse
from logd.raft.quorum import is_quorum, is_voter

if TYPE_CHECKING:
    from logd.raft.replica import Replica
    from logd.types import NodeId, Term


class Candidacy:
    """One node's attempt to be elected in one group, or its asking whether it would be."""

    __slots__ = (
        "_configurations",
        "_doubts",
        "_is_transfer",
        "_replica",
        "_term",
        "_votes",
        "is_pre_vote",
        "is_restart",
    )

    def __init__(
        self,
        replica: Replica,
        term: Term,
        *,
        is_pre_vote: bool = False,
        is_transfer: bool = False,
        is_restart: bool = False,
    ) -> None:
        """Ask all voters.

        Args:
            term: in which it would lead.
            is_transfer: the leader has asked for it.
            is_restart: so many have lost their memory that without them nobody can lead.
        """
        self.is_pre_vote = is_pre_vote
        self.is_restart = is_restart
        self._is_transfer = is_transfer
        self._replica = replica
        self._term = term
        self._configurations = replica.configurations
        self._votes = {replica.node: True}
        self._doubts = {replica.node: replica.standing.is_doubtful}
        """Voters that have lost their memory, by their answers."""
        for voter in self._configurations.current.electors:
            if voter != replica.node:
                self._ask(voter)

    def ask_again(self, node: NodeId) -> None:
        """What was sent to ``node`` may be lost."""
        if node not in self._votes and is_voter(self._configurations.current, node):
            self._ask(node)

    def ask_the_silent(self) -> None:
        """What was asked may be lost, or only late."""
        for voter in self.silent:
            self._ask(voter)

    def is_answered_by(self, response: VoteResponse) -> bool:
        """Whether ``response`` is about this attempt and no other."""
        if response.pre_vote != self.is_pre_vote:
            return False
        # Who would not vote answers in its own term.
        would_not = response.pre_vote and not response.granted
        return would_not or response.term == self._term

    def note(self, response: VoteResponse) -> None:
        """Somebody has answered.  A vote is not taken back."""
        self._votes[response.source] = response.granted or self._votes.get(response.source, False)
        self._doubts[response.source] = response.doubtful

    @property
    def is_won(self) -> bool:
        """Whether a quorum votes for this node, or would."""
        return is_quorum(self._configurations.current, self._counts_as_granted)

    @property
    def is_lost(self) -> bool:
        """Whether no quorum can, whoever may still answer."""
        return not is_quorum(self._configurations.current, lambda node: self._votes.get(node, True))

    @property
    def is_open(self) -> bool:
        """Whether votes are all that it lacks: nobody has refused, so they may only be late.

        A restart is not: whether there has to be one is found out anew.
        """
        return not self.is_pre_vote and not self.is_restart and all(self._votes.values())

    @property
    def needs_restart(self) -> bool:
        """Whether so many have lost their memory that no leader can be elected without them, and
        this log is the longest there is, as far as anybody has answered.

        A voter with a longer log refuses, and asks the same itself.
        """
        configuration = self._configurations.current
        if is_quorum(configuration, lambda node: not self._doubts.get(node, False)):
            return False
        return all(self._votes.values()) and is_quorum(
            configuration, lambda node: self._votes.get(node, False)
        )

    @property
    def silent(self) -> list[NodeId]:
        """Voters that have not answered."""
        return [
            voter for voter in self._configurations.current.electors if voter not in self._votes
        ]

    def _counts_as_granted(self, node: NodeId) -> bool:
        """Whether ``node`` would vote, or has voted, for this one."""
        if self.is_pre_vote and (
            self._replica.standing.is_doubtful or self._doubts.get(node, False)
        ):
            return False
        return self._votes.get(node, False)

    def _ask(self, voter: NodeId) -> None:
        replica, log = self._replica, self._replica.log
        replica.outbox.append(
            VoteRequest(
                group=replica.group,
                source=replica.node,
                target=voter,
                term=self._term,
                last_term=log.terms.last_term,
                end_offset=log.end,
                pre_vote=self.is_pre_vote,
                transfer=self._is_transfer,
                restart=self.is_restart,
            )
        )
