"""Leader election: candidates with data, observers, resignation and hand-over.

    async with client.election("controller").campaign(b"host:port") as leadership:
        ...                                   # the body is the leader's work

    async with client.election("controller").observe() as leaders:
        async for leader in leaders: ...      # None: nobody leads

Each leadership is a grant with a fencing token, so what a leader writes to the log can carry it,
and what a deposed one writes is refused.  Observers see leaders in the order of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from logd.wire.coordination import Acquire, Done, Event, HandOver, Holders, Proclaim
from logd_client.arguments import require_int
from logd_client.coordination.leases import Lease, LeaseContext, Place, read_holders
from logd_client.coordination.names import Name, checked_bytes
from logd_client.coordination.sessions import Sessions
from logd_client.coordination.views import View
from logd_client.coordination.watches import watch_of


class Leader(NamedTuple):
    """Who leads."""

    token: int
    """Of its leadership; a later one's is larger."""
    data: bytes
    """What it campaigned with, or proclaimed since."""
    session: int
    ticket: int


class Leadership(Lease):
    """What a candidate that won holds."""

    async def proclaim(self, data: bytes | str) -> None:
        """Change what observers see.  Cancelled, it may have been changed."""
        self.check()
        proclaim = Proclaim(
            name=self._place.name, ticket=self.ticket, data=checked_bytes("data", data)
        )
        await self._session.call(proclaim, Done)

    async def resign(self) -> None:
        """Give leadership to who stands next.  The same as ``release``."""
        await self.release()

    async def hand_over(self, to: int | None = None) -> None:
        """Give leadership to the candidate with ticket ``to``, or to who stands next.

        This candidate stands no more then.

        Raises:
            ConflictError: that candidate, or any, does not wait; leadership is kept.
            LogdError: it could not be done, and leadership is kept unless ``may_have_applied``.

        Cancelled, it may have been handed over.
        """
        self.check()
        hand_over = HandOver(name=self._place.name, ticket=self.ticket, to=to)
        await self._session.call(hand_over, Done)
        self.end()


class Election:
    """An election.  Made by ``Client.election``."""

    def __init__(
        self, sessions: Sessions, name: Name, *, protects: Sequence[str], ttl_ms: int | None
    ) -> None:
        self._sessions = sessions
        self._name = name
        self._protects = protects
        self._ttl_ms = ttl_ms

    def campaign(self, data: bytes | str = b"", *, timeout_s: float | None = None) -> Campaign:
        """Stand for election: ``async with election.campaign(data) as leadership``.

        Entering waits until this candidate leads; the body is cancelled when leadership is
        lost, and ``LeaseLostError`` raised then.  Leaving resigns.  Entering raises as entering
        a lock does (``Client.lock``).

        Args:
            data: shown to observers.
            timeout_s: give up after so long (``AcquireTimeoutError``).

        Cancelled while waiting, the candidate stands no more: shielded, for a bounded time.
        """
        acquire = Acquire(kind="election", name=self._name.name, data=checked_bytes("data", data))
        place = Place(
            self._sessions,
            self._name,
            acquire,
            Leadership,
            protects=self._protects,
            ttl_ms=self._ttl_ms,
        )
        return Campaign(place, timeout_s)

    def observe(self) -> Observation:
        """Leaders as they come: ``async with election.observe() as leaders``."""
        return Observation(self._sessions, self._name)

    async def leader(self) -> Leader | None:
        """Who leads now.  Cancelling it changes nothing."""
        return leader_of(await self.candidates())

    async def candidates(self) -> Holders:
        """Who leads and who stands in line.  Cancelling it changes nothing."""
        return await read_holders(self._sessions, "election", self._name)

    async def verify(self, token: int) -> bool:
        """Whether ``token`` leads at this moment; see ``Place.verify``."""
        require_int("token", token)
        leader = await self.leader()
        return leader is not None and leader.token == token


class Campaign(LeaseContext[Leadership]):
    """One candidacy.  Made by ``Election.campaign``."""

    def __init__(self, place: Place[Leadership], timeout_s: float | None) -> None:
        super().__init__(self.win)
        self._place = place
        self._timeout_s = timeout_s

    async def win(self) -> Leadership:
        """Wait for leadership without a scope around what follows: watch for its loss, and
        ``release`` it.  Raises and is cancelled as ``Lock.acquire``."""
        return await self._place.obtain(self._timeout_s)

    async def win_now(self) -> Leadership | None:
        """Leadership if nobody has it, else None."""
        return await self._place.obtain_now()


class Observation(View[Leader | None]):
    """Leaders in the order of their tokens, the present one first.

    Gives None while nobody leads.  Leaders that came and went while this client was cut off
    are told too, as long as the brokers remember.  Cancelled, it loses none.
    """

    _noun = "observation"

    def __init__(self, sessions: Sessions, name: Name) -> None:
        super().__init__(watch_of(sessions.calls, "election", name, tells_gaps=True))
        self._sessions = sessions
        self._name = name
        self._current: Leader | None = None

    def _present(self) -> Leader | None:
        return self._current

    async def _read(self) -> bool:
        """Whether somebody else, or nobody, leads now."""
        holders = await read_holders(self._sessions, "election", self._name)
        self._read_at = holders.revision
        before, self._current = self._current, leader_of(holders)
        return before != self._current

    def _apply(self, event: Event) -> bool:
        current = self._current
        if event.change == "granted":
            assert current is None or current.token < event.token
            self._current = Leader(event.token, event.value, event.session, event.ticket)
            return True
        if current is None or event.ticket != current.ticket:
            return False
        if event.change == "released":
            self._current = None
            return True
        self._current = current._replace(data=event.value)
        return True


def leader_of(holders: Holders) -> Leader | None:
    """The one that holds an election."""
    for holder in holders.holders:
        assert holder.token is not None
        return Leader(holder.token, holder.data, holder.session, holder.ticket)
    return None
