"""Assignments: shards spread over the members of a group, each owned by one at a time.

    await client.assignments("indexers").set([f"shard-{n}" for n in range(64)])
    await client.assignments("indexers").work("host-1", run_shard)     # in each worker

``run_shard(shard)`` runs for each shard that this member owns, in a scope that is cancelled when
the shard is to move.  The new owner gets it once the old one has stopped (or its session is
gone), with a larger token: what the old one still writes with its fence is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import anyio
from anyio.abc import TaskGroup

from logd.errors import LogdError, RefusedError, SessionExpiredError, UsageError
from logd.wire.coordination import (
    Assign,
    Assignment,
    Done,
    LetGo,
    ReadAssignment,
    ReportLoad,
    fence_id_of,
)
from logd_client.arguments import require_function, require_list, require_number
from logd_client.backoff import Backoff
from logd_client.coordination.fences import Fence
from logd_client.coordination.members import Group
from logd_client.coordination.names import Name, checked_name
from logd_client.coordination.session import Session
from logd_client.coordination.sessions import Sessions
from logd_client.coordination.watches import Watch, watch_of
from logd_client.event_loop import is_being_cancelled

REVIEW_S: Final = 30.0
"""A worker looks at the whole assignment this often, besides hearing of changes."""


class OwnedShard:
    """A shard while this member owns it."""

    def __init__(self, session: Session, group: Name, shard: str, token: int) -> None:
        self.shard = shard
        self.token = token
        """The fencing token of this ownership: grows with every change of owner."""
        self._session = session
        self._group = group
        self.is_revoked = False
        """It is to move, or its worker to end: this member is to stop."""

    def __repr__(self) -> str:
        return f"<OwnedShard {self._group}/{self.shard} token={self.token}>"

    @property
    def fence(self) -> Fence:
        """What appends carry: ``producer.append(..., fence=shard)``."""
        return shard_fence(self._group, self.shard, self.token)

    @property
    def is_lost(self) -> bool:
        """Whether the session is lost, by the clock as it is now."""
        return self._session.is_lost()

    @property
    def must_stop(self) -> bool:
        """It is to move, or lost: for those who cannot be cancelled."""
        return self.is_revoked or self.is_lost

    def check(self) -> None:
        """Go on only if it is owned, as far as this process knows.

        Raises:
            SessionExpiredError: it is not.
        """
        self._session.check()


def shard_fence(group: Name, shard: str, token: int) -> Fence:
    """The fence of one ownership of one shard."""
    return Fence(fence_id_of(group.namespace, "assignment", f"{group.name}/{shard}"), token)


class Assignments:
    """The shards of one group.  Made by ``Client.assignments``."""

    def __init__(self, sessions: Sessions, name: Name, ttl_ms: int | None) -> None:
        self._sessions = sessions
        self._name = name
        self._ttl_ms = ttl_ms
        self._group = Group(sessions, name, ttl_ms)

    async def set(self, shards: Sequence[str], weights: Sequence[float] = ()) -> None:
        """Spread ``shards`` over the members of the group from now on; an empty list ends it.

        What need not move stays where it is.  Cancelled, it may have been set.

        Args:
            shards: their names; they replace those of before.
            weights: what each costs, or nothing: all alike.
        """
        require_list("shards", shards)
        require_list("weights", weights)
        for weight in weights:
            require_number("a weight", weight)
        assign = Assign(
            group=self._name.name,
            shards=[checked_name(shard) for shard in shards],
            weights=[float(weight) for weight in weights],
        )
        await self._sessions.call(self._name.namespace, assign, Done)

    async def list(self) -> Assignment:
        """Who owns what.  Cancelling it changes nothing."""
        answer = await self._sessions.calls.query(
            self._name.namespace, ReadAssignment(group=self._name.name)
        )
        assert isinstance(answer, Assignment)
        return answer

    def watch(self, revision: int | None = None, *, tells_gaps: bool = False) -> Watch:
        """Owners as they change: ``async with assignments.watch() as events``."""
        return watch_of(
            self._sessions.calls, "assignment", self._name, revision, tells_gaps=tells_gaps
        )

    async def verify(self, shard: str, token: int) -> bool:
        """Whether ``token`` owns ``shard`` at this moment; see ``Place.verify``."""
        found = await self.list()
        return any(row.shard == shard and row.token == token and row.owner for row in found.shards)

    async def report_load(self, member: str, loads: Mapping[str, float]) -> None:
        """Tell what the shards of ``member`` cost; the next spreading weighs by it."""
        session = await self._sessions.get(self._name.namespace, self._ttl_ms)
        report = ReportLoad(
            group=self._name.name,
            member=checked_name(member),
            loads={checked_name(shard): float(load) for shard, load in loads.items()},
        )
        await session.call(report, Done)

    def worker(self, member: str | None = None, data: bytes | str = b"") -> Worker:
        """A member that owns shards; ``await worker.run(run_shard)``."""
        return Worker(self._sessions, self._name, self._group, self, member, data)

    async def work(
        self,
        member: str | None,
        run_shard: Callable[[OwnedShard], Awaitable[None]],
        *,
        data: bytes | str = b"",
    ) -> None:
        """``worker(member, data).run(run_shard)``."""
        await self.worker(member, data).run(run_shard)


class Worker:
    """A member and the shards that it owns.  Made by ``Assignments.worker``."""

    def __init__(
        self,
        sessions: Sessions,
        name: Name,
        group: Group,
        assignments: Assignments,
        member: str | None,
        data: bytes | str,
    ) -> None:
        self._sessions = sessions
        self._name = name
        self._assignments = assignments
        self._membership = group.join(member, data)
        self.member = self._membership.member
        self.owned: dict[str, OwnedShard] = {}
        """What runs now."""
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._stopped: dict[str, None] = {}
        """Shards that are being let go.  Until it is known that they are none of them runs again:
        whatever lets it go then would give it to another while it runs here."""
        self._let_go_at = 0
        """The last revision at which some were."""
        self._changed = anyio.Event()
        self._wake_let_go = anyio.Event()

    async def run(self, run_shard: Callable[[OwnedShard], Awaitable[None]]) -> None:
        """Join, and run ``run_shard`` for each shard owned, until cancelled.

        A shard's task is cancelled when the shard is to move, and the shard is let go once it
        has ended: clean up in ``finally``, shielded if it must be.  One that returns by itself
        keeps its shard; it is not run again.  An exception of one ends the worker.

        Raises:
            LeaseLostError: the session was lost; all tasks were cancelled before.

        Cancelled, it ends the tasks and leaves the group.
        """
        require_function("run_shard", run_shard)
        async with self._membership:
            session = await self._sessions.get(self._name.namespace, self._membership.ttl_ms)
            async with (
                self._assignments.watch(tells_gaps=True) as watch,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._listen, watch)
                tasks.start_soon(self._let_go, session)
                try:
                    while True:
                        self._changed = anyio.Event()
                        found = await self._assignments.list()
                        self._follow(found, session, tasks, run_shard)
                        with anyio.move_on_after(REVIEW_S):
                            await self._changed.wait()
                finally:
                    # What runs in a thread is not cancelled, and has to see that it is to end.
                    for owned in self.owned.values():
                        owned.is_revoked = True

    async def report_load(self, loads: Mapping[str, float]) -> None:
        """Tell what shards cost; the next spreading weighs by it.  Cancelled, it may be told."""
        await self._assignments.report_load(self.member, loads)

    # --- inside -------------------------------------------------------------------------

    async def _listen(self, watch: Watch) -> None:
        async for _ in watch:
            watch.forget_arrived()
            self._changed.set()

    def _follow(
        self,
        found: Assignment,
        session: Session,
        tasks: TaskGroup,
        run_shard: Callable[[OwnedShard], Awaitable[None]],
    ) -> None:
        if found.revision < self._let_go_at:
            return  # It was read before, and tells of what has been let go since.
        mine = {row.shard: row for row in found.shards if row.owner == self.member}
        for shard, owned in self.owned.items():
            row = mine.get(shard)
            if row is None or row.revoked or row.token != owned.token:
                owned.is_revoked = True
                self._scopes[shard].cancel()
        for shard, row in mine.items():
            if shard in self.owned or shard in self._stopped:
                continue
            if row.revoked:
                self._stop(shard)  # Never begun here, or let go before the answer was lost.
                continue
            owned = OwnedShard(session, self._name, shard, row.token)
            self.owned[shard] = owned
            self._scopes[shard] = anyio.CancelScope()
            tasks.start_soon(self._run_one, owned, self._scopes[shard], run_shard)

    async def _run_one(
        self,
        owned: OwnedShard,
        scope: anyio.CancelScope,
        run_shard: Callable[[OwnedShard], Awaitable[None]],
    ) -> None:
        try:
            with scope:
                try:
                    await run_shard(owned)
                except anyio.get_cancelled_exc_class() as error:
                    if is_being_cancelled():
                        raise
                    # It would end this task in silence, and the shard would be run by nobody.
                    raise UsageError(
                        f"run_shard of {owned.shard!r} met the cancellation of what it waited for"
                    ) from error
                await anyio.sleep_forever()  # Done with it, and its owner still.
        finally:  # A scope of asyncio's may let its own cancellation out of it.
            if scope.cancel_called:
                del self.owned[owned.shard], self._scopes[owned.shard]
                self._stop(owned.shard)
                self._changed.set()

    def _stop(self, shard: str) -> None:
        self._stopped[shard] = None
        self._wake_let_go.set()

    async def _let_go(self, session: Session) -> None:
        """Tell the cluster which shards have stopped, so that their new owners can begin."""
        backoff = Backoff(self._sessions.calls.routing.environment.rng)
        while True:
            await self._wake_let_go.wait()
            self._wake_let_go = anyio.Event()
            stopped = list(self._stopped)
            if not stopped:
                continue
            try:
                await self._tell_let_go(session, stopped)
            except SessionExpiredError:
                return  # They are others' already.
            except LogdError:
                self._wake_let_go.set()
                await anyio.sleep(backoff.next_delay_s())
            else:
                backoff.reset()
                for shard in stopped:
                    del self._stopped[shard]
                self._changed.set()

    async def _tell_let_go(self, session: Session, shards: list[str]) -> None:
        let_go = LetGo(group=self._name.name, member=self.member, shards=shards)
        try:
            done = await session.call(let_go, Done)
        except RefusedError as error:
            if isinstance(error, SessionExpiredError):
                raise
            if len(shards) > 1:
                # One that is this member's no more spoils it for all: each by itself.
                for shard in shards:
                    await self._tell_let_go(session, [shard])
        else:
            self._let_go_at = done.revision
