"""Group membership: who is there, kept true by sessions.

    async with client.members("workers").join("host-1", b"10.0.0.1:80"):
        ...                                       # a member for as long as the body runs

    async with client.members("workers").follow() as views:
        async for members in views: ...           # the whole group, after each change

A member goes when it leaves or when its session is lost, so the list is a liveness view: a
crashed member is listed for its session's time to live at most.
"""

from __future__ import annotations

from types import TracebackType

import anyio

from logd.errors import LeaseLostError, LogdError, UsageError
from logd.wire.coordination import Done, Event, Join, Leave, Member, Members, ReadMembers
from logd_client.coordination.leases import settle, wait_until_settled
from logd_client.coordination.names import Name, checked_bytes, checked_name
from logd_client.coordination.session import Session
from logd_client.coordination.sessions import Sessions
from logd_client.coordination.views import View
from logd_client.coordination.watches import Watch, watch_of
from logd_client.event_loop import BodyScope


class Group:
    """A group of members.  Made by ``Client.members``."""

    def __init__(self, sessions: Sessions, name: Name, ttl_ms: int | None) -> None:
        self._sessions = sessions
        self._name = name
        self._ttl_ms = ttl_ms

    def join(self, member: str | None = None, data: bytes | str = b"") -> Membership:
        """Be a member: ``async with group.join(name, data) as membership``.

        The body is cancelled when the session is lost, and ``LeaseLostError`` raised then.

        Args:
            member: unique in the group; default: drawn at random.
            data: shown to whoever lists or watches.

        Raises, on entering:
            ConflictError: another client's session has a member of that name.

        Leaving leaves the group; cancelled too.
        """
        if member is None:
            member = self._sessions.calls.routing.environment.identities.randbytes(8).hex()
        return Membership(
            self._sessions,
            self._name,
            checked_name(member),
            checked_bytes("data", data),
            self._ttl_ms,
        )

    async def list(self) -> Members:
        """All members, in order of their names, and the revision that this is true of.
        Cancelling it changes nothing."""
        answer = await self._sessions.calls.query(
            self._name.namespace, ReadMembers(group=self._name.name)
        )
        assert isinstance(answer, Members)
        return answer

    def watch(self, revision: int | None = None) -> Watch:
        """Who joined, changed or left (``event.subject``): ``async with group.watch() as events``.

        Args:
            revision: the first whose events are wanted, for example one behind that of a list;
                default: from now on.
        """
        return watch_of(self._sessions.calls, "member", self._name, revision)

    def watch_for_gaps(self) -> Watch:
        """As ``watch``, from now on, and told what was missed instead of ending."""
        return watch_of(self._sessions.calls, "member", self._name, tells_gaps=True)

    def follow(self) -> GroupView:
        """The members as they are after each change, the present ones first."""
        return GroupView(self)


class Membership:
    """One member.  Made by ``Group.join``; use as a context manager."""

    def __init__(
        self, sessions: Sessions, group: Name, member: str, data: bytes, ttl_ms: int | None
    ) -> None:
        self.member = member
        self._sessions = sessions
        self._group = group
        self._data = data
        self.ttl_ms = ttl_ms
        self._session: Session | None = None
        self._scope: BodyScope | None = None
        self._error: LogdError | None = None
        self._is_over = anyio.Event()

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "joined" if self._session else "not joined"
        return f"<{type(self).__name__} {self.member} of {self._group} {state}>"

    async def join(self) -> Session:
        """Join, without a scope around what follows; the session that it hangs on.

        Cancelled, the member leaves again.
        """
        if self._session is not None:
            raise UsageError("a membership is entered once; make another one")
        session = await self._sessions.get(self._group.namespace, self.ttl_ms)
        join = Join(group=self._group.name, member=self.member, data=self._data)
        await wait_until_settled(session, self._leave_command())
        try:
            await session.call(join, Done)
        except LogdError as error:
            if error.may_have_applied:
                await settle(self._sessions, session, self._leave_command())
            raise
        except BaseException:
            await settle(self._sessions, session, self._leave_command())
            raise
        self._session = session
        session.call_on_loss(self, self._on_lost)
        return session

    async def update(self, data: bytes | str) -> None:
        """Change the data.  Cancelled, they may have been changed.

        Raises:
            SessionExpiredError: this is no member any more.
        """
        if self._session is None:
            raise UsageError("not a member: enter the context first")
        join = Join(group=self._group.name, member=self.member, data=checked_bytes("data", data))
        await self._session.call(join, Done)

    async def leave(self) -> None:
        """Leave the group.  Not a member any more, it does nothing.  Cancelled, it leaves all
        the same."""
        session, self._session = self._session, None
        if session is None:
            return
        session.forget_dependant(self)
        self._is_over.set()
        if not session.is_lost():
            await settle(self._sessions, session, self._leave_command())

    @property
    def is_lost(self) -> bool:
        """Whether its session is lost."""
        if self._session is not None:
            self._session.is_lost()
        return self._error is not None

    async def wait_until_over(self) -> None:
        """Wait until it is lost or was left.  Cancelling the wait changes nothing."""
        await self._is_over.wait()

    def lost_error(self) -> LeaseLostError:
        """What to raise for its loss."""
        error = LeaseLostError(f"member {self.member} of {self._group} is lost: {self._error}")
        error.__cause__ = self._error
        return error

    async def __aenter__(self) -> Membership:
        await self.join()
        self._scope = BodyScope()
        self._scope.__enter__()
        if self.is_lost:
            self._scope.cancel()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        scope, self._scope = self._scope, None
        assert scope is not None
        is_lost = self.is_lost
        try:
            is_swallowed = scope.__exit__(kind, error, traceback)
        finally:  # The event loop refuses a scope that another task leaves, or in another order.
            await self.leave()
        if is_lost and (error is None or is_swallowed):
            raise self.lost_error()
        return is_swallowed

    def _leave_command(self) -> Leave:
        return Leave(group=self._group.name, member=self.member)

    def _on_lost(self, error: LogdError) -> None:
        self._error = error
        self._is_over.set()
        if self._scope is not None:
            self._scope.cancel()


class GroupView(View[tuple[Member, ...]]):
    """A group as it is after each change.  Made by ``Group.follow``.  Cancelled, it misses none."""

    def __init__(self, group: Group) -> None:
        super().__init__(group.watch_for_gaps())
        self._group = group
        self._members: dict[str, Member] = {}

    def _present(self) -> tuple[Member, ...]:
        return tuple(self._members[name] for name in sorted(self._members))

    async def _read(self) -> bool:
        found = await self._group.list()
        self._read_at = found.revision
        self._members = {member.member: member for member in found.members}
        return True

    def _apply(self, event: Event) -> bool:
        if event.change == "left":
            self._members.pop(event.subject, None)
            return True
        known = self._members.get(event.subject)
        joined = event.revision if event.change == "joined" or known is None else known.joined
        client = "" if known is None else known.client
        self._members[event.subject] = Member(
            member=event.subject,
            session=event.session,
            client=client,
            joined=joined,
            data=event.value,
        )
        return True
