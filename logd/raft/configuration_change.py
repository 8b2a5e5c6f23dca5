"""Which configuration comes next on the way to a wanted one (Ongaro 2014, §4.3).

A change of voters goes by way of joint consensus: C(old,new) is appended and, when it is
committed, C(new) by itself.  There is no special case for a single voter.  A change of
learners, or of the order in which voters are preferred, moves no quorum and takes one step.
"""

from __future__ import annotations

from logd.errors import InvalidRequestError
from logd.limits import LEARNERS_MAX, REPLICAS_MAX
from logd.raft.messages import Configuration
from logd.types import NodeId


def first_step(current: Configuration, wanted: Configuration) -> Configuration:
    """What to append first so that ``wanted`` comes into force after ``current``."""
    assert not current.is_joint
    assert not wanted.is_joint
    if sorted(current.voters) == sorted(wanted.voters):
        return wanted
    return Configuration(wanted.voters, wanted.learners, current.voters)


def check_step(current: Configuration, following: Configuration) -> None:
    """Assert R15: any quorum of one of two successive configurations meets any of the other."""
    if current.is_joint:
        assert following in (current.without_outgoing, current.taken_back)
    else:
        assert following == first_step(current, following.without_outgoing)


def new_voters(current: Configuration, wanted: Configuration) -> list[NodeId]:
    """Who does not vote yet, and would."""
    return [node for node in wanted.voters if node not in current.voters]


def check_wanted(wanted: Configuration) -> None:
    """Refuse what cannot be a configuration.

    Raises:
        InvalidRequestError: no voter, too many members, or one named twice.
    """
    named = wanted.voters + wanted.learners
    if not 1 <= len(wanted.voters) <= REPLICAS_MAX:
        raise InvalidRequestError(f"{len(wanted.voters)} voters, a group has 1 to {REPLICAS_MAX}")
    if len(wanted.learners) > LEARNERS_MAX:
        raise InvalidRequestError(
            f"{len(wanted.learners)} learners, a group has at most {LEARNERS_MAX}"
        )
    if len(set(named)) < len(named):
        raise InvalidRequestError(
            f"a node is named twice among the voters {wanted.voters} and "
            f"the learners {wanted.learners}"
        )
