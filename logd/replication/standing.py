"""How one replica stands, in words for people: its role, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from logd.limits import DISK_PATIENCE_S
from logd.raft.messages import Role
from logd.raft.quorum import is_voter

if TYPE_CHECKING:
    from logd.replication.group import Group

RoleName = Literal["leader", "follower", "candidate", "pre_candidate", "learner", "stopped"]

_ROLE_NAMES: Final[dict[Role, RoleName]] = {
    Role.FOLLOWER: "follower",
    Role.PRE_CANDIDATE: "pre_candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}


def role_name(group: Group) -> RoleName:
    """The role, or why there is none."""
    if group.failure is not None:
        return "stopped"
    if not is_voter(group.core.configuration, group.core.node):
        return "learner"
    return _ROLE_NAMES[group.core.role]


def trouble_of(group: Group) -> str:
    """What is wrong with this replica; empty if nothing is."""
    if group.failure is not None or group.damage or group.possible_loss:
        return str(group.failure or group.damage or group.possible_loss)
    if group.disk_wait_s >= DISK_PATIENCE_S:
        then = "it takes no part" if group.is_held else "it syncs nothing more"
        return f"has waited for its disk for {group.disk_wait_s:.0f} s: until that answers {then}"
    if group.core.is_doubtful:
        return (
            "its machine lost power, and what it had not synced: it does not vote before a "
            "leader has caught it up"
        )
    return ""
