"""Groups and who is in them, for as long as their sessions live.

A member's name is its own while it is in the group: another session cannot take it, only the same
one may join again, to change its data.  A group is there while somebody is in it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping

import msgspec

from logd.coordination import quotas
from logd.coordination.names import quoted
from logd.coordination.quotas import Usage
from logd.coordination.sessions import Session
from logd.errors import ConflictError, NotHeldError, QuotaExceededError
from logd.limits import MEMBERS_PER_GROUP_MAX
from logd.wire.coordination import Event, Join, Leave, Member, Members


class MemberRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Replaced when the data change; also how a snapshot keeps it."""

    group: str
    member: str
    session: int
    joined: int
    data: bytes = b""


class Groups:
    """Those of one namespace."""

    def __init__(
        self,
        usage: Usage,
        sessions: Mapping[int, Session],
        emit: Callable[[Event], None],
        on_change: Callable[[str, list[str], int], None],
    ) -> None:
        """``on_change`` is told a group, its members in order of joining, and the revision."""
        self._usage = usage
        self._sessions = sessions
        self._emit = emit
        self._on_change = on_change
        self._groups: dict[str, dict[str, MemberRecord]] = {}

    # --- commands -----------------------------------------------------------------------

    def join(self, command: Join, session: Session, revision: int) -> None:
        known = self._groups.get(command.group, {}).get(command.member)
        if known is not None:
            self._change(known, command, session, revision)
            return
        if len(self._groups.get(command.group, ())) >= MEMBERS_PER_GROUP_MAX:
            raise QuotaExceededError(
                f"group {quoted(command.group)} has {MEMBERS_PER_GROUP_MAX:,} members already"
            )
        self._usage.require(quotas.MEMBERS, 1)
        self._usage.require(quotas.DATA_BYTES, len(command.data))
        record = MemberRecord(
            command.group, command.member, session.session, revision, command.data
        )
        self._add(record)
        self._tell(record, "joined", revision)
        self._on_change(command.group, self.members(command.group), revision)

    def leave(self, command: Leave, session: Session, revision: int) -> None:
        self.check_own(command.group, command.member, session)
        self._remove(command.group, command.member, revision)
        self._on_change(command.group, self.members(command.group), revision)

    def end_session(self, session: Session, revision: int) -> None:
        """All its members leave before shards are spread anew, once a group."""
        left = sorted(session.members)
        for group, member in left:
            self._remove(group, member, revision)
        for group in dict.fromkeys(group for group, _ in left):
            self._on_change(group, self.members(group), revision)

    # --- questions ----------------------------------------------------------------------

    def check_own(self, group: str, member: str, session: Session) -> None:
        """Raise NotHeldError unless the session is that member."""
        if (group, member) not in session.members:
            raise NotHeldError(
                f"member {quoted(member)} of group {quoted(group)} is not, or no longer, "
                "this session's"
            )

    def members(self, group: str) -> list[str]:
        """In order of joining."""
        return list(self._groups.get(group, ()))

    def session_of(self, group: str, member: str) -> int:
        return self._groups[group][member].session

    def described(self, group: str, revision: int) -> Members:
        return Members(
            revision=revision,
            members=[
                Member(
                    member=record.member,
                    session=record.session,
                    client=self._sessions[record.session].client,
                    joined=record.joined,
                    data=record.data,
                )
                for record in self._groups.get(group, {}).values()
            ],
        )

    def names(self, start: str, count: int) -> list[str]:
        return heapq.nsmallest(count, (name for name in self._groups if name >= start))

    # --- snapshots ----------------------------------------------------------------------

    def all(self) -> list[MemberRecord]:
        return [record for group in self._groups.values() for record in group.values()]

    def restore(self, records: Iterable[MemberRecord]) -> None:
        for record in records:
            self._add(record)

    def check_invariants(self) -> None:
        here = {(r.group, r.member, r.session) for r in self.all()}
        known = {(*at, s.session) for s in self._sessions.values() for at in s.members}
        assert here == known
        for group in self._groups.values():
            assert group
            joined = [record.joined for record in group.values()]
            assert joined == sorted(joined)

    # --- inside -------------------------------------------------------------------------

    def _change(self, known: MemberRecord, command: Join, session: Session, revision: int) -> None:
        if known.session != session.session:
            raise ConflictError(
                f"member {quoted(command.member)} of group {quoted(command.group)} is session "
                f"{known.session}, which lives"
            )
        if known.data != command.data:
            grown = len(command.data) - len(known.data)
            self._usage.require(quotas.DATA_BYTES, grown)
            self._usage.add(quotas.DATA_BYTES, grown)
            changed = msgspec.structs.replace(known, data=command.data)
            self._groups[known.group][known.member] = changed
            self._tell(changed, "changed", revision)

    def _add(self, record: MemberRecord) -> None:
        self._groups.setdefault(record.group, {})[record.member] = record
        self._sessions[record.session].members.add((record.group, record.member))
        self._usage.add(quotas.MEMBERS, 1)
        self._usage.add(quotas.DATA_BYTES, len(record.data))

    def _remove(self, group: str, member: str, revision: int) -> None:
        record = self._groups[group].pop(member)
        if not self._groups[group]:
            del self._groups[group]
        self._sessions[record.session].members.discard((group, member))
        self._usage.add(quotas.MEMBERS, -1)
        self._usage.add(quotas.DATA_BYTES, -len(record.data))
        self._tell(record, "left", revision)

    def _tell(self, record: MemberRecord, change: str, revision: int) -> None:
        self._emit(
            Event(
                revision=revision,
                kind="member",
                name=record.group.encode(),
                change=change,
                value=record.data,
                subject=record.member,
                session=record.session,
            )
        )
