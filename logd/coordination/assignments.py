"""Shards and their owners: spread over the members of a group, with one owner at most.

A shard has an *owner*, who may work on it, and a *target*, who is to have it.  Where they differ it
is revoked: the owner is to let go, and only when it has, or has left the group, the target becomes
the owner, with the revision as its token.  A shard that is taken off the list stays, revoked, for
as long as it has an owner, so that it cannot be given to two by being listed again.

Spreading (``spreading.py``) begins from the targets: a change that comes while another is under
way moves what the two together need.

Invariants, asserted by ``check_invariants``:

C4  Owners and targets are members.
C5  A shard without an owner has no target: whoever was to have it has it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from logd.coordination import quotas
from logd.coordination.names import quoted
from logd.coordination.quotas import Usage
from logd.coordination.spreading import Placed, spread
from logd.errors import QuotaExceededError, UnknownNameError
from logd.limits import SHARDS_PER_GROUP_MAX
from logd.wire.coordination import Assign, Assignment, Event, LetGo, ReportLoad, ShardOwner

_NOT_THERE_YET: Final = -(2**63)
"""Less reluctant to move than anything that somebody works on."""


class Shard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Replaced when it changes; also how a snapshot keeps it."""

    group: str
    shard: str
    weight: float | None = None
    owner: str | None = None
    token: int = 0
    target: str | None = None
    is_listed: bool = True

    @property
    def is_revoked(self) -> bool:
        return self.owner is not None and self.owner != self.target


class Assignments:
    """Those of one namespace."""

    def __init__(
        self,
        usage: Usage,
        emit: Callable[[Event], None],
        session_of: Callable[[str, str], int],
    ) -> None:
        """``session_of`` tells whose session a member of a group is."""
        self._usage = usage
        self._emit = emit
        self._session_of = session_of
        self._groups: dict[str, dict[str, Shard]] = {}

    # --- commands -----------------------------------------------------------------------

    def assign(self, command: Assign, members: list[str], revision: int) -> None:
        shards = self._groups.get(command.group, {})
        new = [shard for shard in command.shards if shard not in shards]
        if len(shards) + len(new) > SHARDS_PER_GROUP_MAX:
            raise QuotaExceededError(
                f"group {quoted(command.group)} would have {len(shards) + len(new):,} shards, "
                f"those included that are no longer listed but not let go yet; at most "
                f"{SHARDS_PER_GROUP_MAX:,} are allowed"
            )
        self._usage.require(quotas.SHARDS, len(new))
        self._usage.add(quotas.SHARDS, len(new))
        self._groups[command.group] = shards
        listed = self._listed(command, shards)
        for shard in shards.values():
            if shard.shard not in listed:
                shards[shard.shard] = msgspec.structs.replace(shard, is_listed=False)
        shards.update(listed)
        self.spread(command.group, members, revision)

    def let_go(self, command: LetGo, revision: int) -> None:
        """Who was to have them has them now; names that are not the member's change nothing."""
        shards = self._groups.get(command.group)
        if shards is None:
            raise UnknownNameError(f"group {quoted(command.group)} has no assignment")
        for name in command.shards:
            shard = shards.get(name)
            if shard is not None and shard.owner == command.member:
                self._settle(shard, revision)
        self._forget_if_empty(command.group)

    def report(self, command: ReportLoad) -> None:
        """Owners know what their shards cost; others are not asked."""
        shards = self._groups.get(command.group, {})
        for name, load in command.loads.items():
            shard = shards.get(name)
            if shard is not None and shard.owner == command.member:
                shards[name] = msgspec.structs.replace(shard, weight=load)

    def spread(self, group: str, members: list[str], revision: int) -> None:
        """Who is in the group, or what is to be spread, has changed."""
        shards = self._groups.get(group)
        if shards is None:
            return
        present = set(members)
        placed = [_placed(shard, present) for shard in shards.values() if shard.is_listed]
        targets = spread(members, placed)
        for shard in list(shards.values()):
            self._aim(shard, targets.get(shard.shard), present, revision)
        self._forget_if_empty(group)

    # --- questions ----------------------------------------------------------------------

    def described(self, group: str, revision: int) -> Assignment:
        return Assignment(
            revision=revision,
            shards=[
                ShardOwner(
                    shard=shard.shard,
                    owner=shard.owner,
                    token=shard.token,
                    revoked=shard.is_revoked,
                )
                for shard in self._groups.get(group, {}).values()
            ],
        )

    def names(self, start: str, count: int) -> list[str]:
        return heapq.nsmallest(count, (name for name in self._groups if name >= start))

    # --- snapshots ----------------------------------------------------------------------

    def all(self) -> list[Shard]:
        return list(self._all())

    def restore(self, records: Iterable[Shard]) -> None:
        for shard in records:
            self._groups.setdefault(shard.group, {})[shard.shard] = shard
            self._usage.add(quotas.SHARDS, 1)

    def check_invariants(self, members: Callable[[str], list[str]]) -> None:
        assert self._usage.count(quotas.SHARDS) == sum(map(len, self._groups.values()))
        for shard in self._all():
            present = members(shard.group)
            assert shard.owner is None or shard.owner in present  # C4
            assert shard.target is None or shard.target in present  # C4
            if shard.owner is None:
                assert shard.target is None  # C5
                assert shard.is_listed
                assert not present

    # --- inside -------------------------------------------------------------------------

    def _all(self) -> Iterator[Shard]:
        return (shard for group in self._groups.values() for shard in group.values())

    def _listed(self, command: Assign, shards: dict[str, Shard]) -> dict[str, Shard]:
        """What is listed from now on; without new weights, what was reported stays."""
        weights: list[float | None] = [*command.weights] or [None] * len(command.shards)
        listed = {}
        for name, weight in zip(command.shards, weights, strict=True):
            known = shards.get(name) or Shard(command.group, name)
            weight = known.weight if weight is None else weight
            listed[name] = msgspec.structs.replace(known, weight=weight, is_listed=True)
        return listed

    def _aim(self, shard: Shard, target: str | None, present: set[str], revision: int) -> None:
        """``target`` is to have it: at once if nobody has it, else when its owner lets go."""
        aimed = msgspec.structs.replace(shard, target=target)
        if shard.owner is None or shard.owner not in present:
            self._settle(aimed, revision)
            return
        self._groups[shard.group][shard.shard] = aimed
        if aimed.is_revoked and not shard.is_revoked:
            self._tell(aimed, "revoked", revision)
        elif shard.is_revoked and not aimed.is_revoked:
            self._tell(aimed, "owner", revision)

    def _settle(self, shard: Shard, revision: int) -> None:
        """Nobody works on it any more: its target does from now on."""
        shards = self._groups[shard.group]
        if not shard.is_listed:
            del shards[shard.shard]
            self._usage.add(quotas.SHARDS, -1)
            self._tell(msgspec.structs.replace(shard, owner=None), "free", revision)
            return
        if shard.target is None and shard.owner is None:
            shards[shard.shard] = shard
            return
        token = shard.token if shard.target is None else revision
        settled = msgspec.structs.replace(shard, owner=shard.target, token=token)
        shards[shard.shard] = settled
        self._tell(settled, "free" if settled.owner is None else "owner", revision)

    def _forget_if_empty(self, group: str) -> None:
        if not self._groups[group]:
            del self._groups[group]

    def _tell(self, shard: Shard, change: str, revision: int) -> None:
        owner = shard.owner or ""
        self._emit(
            Event(
                revision=revision,
                kind="assignment",
                name=shard.group.encode(),
                change=change,
                subject=shard.shard,
                owner=owner,
                token=shard.token,
                session=self._session_of(shard.group, owner) if owner else 0,
            )
        )


def _placed(shard: Shard, present: set[str]) -> Placed:
    """Where it is, or is about to be.  What was got long ago is the last to move again."""
    member = shard.target if shard.target in present else shard.owner
    reluctance = -shard.token if shard.owner == member else _NOT_THERE_YET
    return Placed(shard.shard, member, shard.weight, reluctance)
