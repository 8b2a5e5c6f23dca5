"""Watches: what changes, in order, each change once, from a revision on.

How events get here, and how they go on across leader changes and lost connections, is the
business of feeds (``feeds.py``).

What the brokers no longer have in memory cannot be told: ``CompactedError`` names the oldest
revision from which a watch can begin.  Whoever watches only to know when to look again is told of
a *gap* instead, and looks.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Final

import anyio

from logd.errors import LogdError, UnavailableError, UsageError
from logd.limits import NUMBER_MAX
from logd.wire.coordination import Event, Get, Kind, ReadKeys
from logd_client.arguments import NOT_OPEN, require_between
from logd_client.coordination.calls import Calls
from logd_client.coordination.feeds import CREDIT_BYTES, GAP, Feed, Push, Subject
from logd_client.coordination.names import Name
from logd_client.event_loop import Waker, new_waker

__all__ = ["GAP", "Watch", "watch_of"]


_ANY_KEY: Final = ReadKeys(get=Get(key=b"\0"))
"""A question of which only the revision is wanted."""


class Watch:
    """Events of one kind.  Use as ``async with … as watch`` and iterate.

    Iterating goes on across leader changes and lost connections for as long as it takes.
    Cancelled, it loses no event.  Only one task may iterate at a time.
    """

    def __init__(
        self,
        calls: Calls,
        namespace: str,
        kind: Kind,
        start: bytes,
        end: bytes | None,
        revision: int | None,
        *,
        tells_gaps: bool = False,
    ) -> None:
        if revision is not None:
            require_between("revision", revision, 0, NUMBER_MAX)
        self._calls = calls
        self._routing = calls.routing
        self._subject = Subject(namespace, kind, start, end, tells_gaps)
        self._revision = revision
        self._feed: Feed | None = None
        self._told_after = -1
        """Events up to this revision are of before this watch: others have shared its feed."""
        self._arrived: deque[Push] = deque()
        self._buffered_bytes = 0
        self._ready: deque[Event] = deque()
        self._waker: Waker | None = None
        """Of the task that iterates, once the watch is open."""
        self._is_waited_for = False
        self._is_open = False
        self._is_over = False
        self._failure: LogdError | None = None

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way of hearing more, if anything does; it is tried again."""
        return None if self._feed is None else self._feed.trouble

    # --- life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Watch:
        """Begin.  What changes from then on will be told.

        Raises:
            CompactedError: the revision is no longer kept; has ``oldest``.
            LogdError: it could not begin within the client's request timeout.
        """
        if self._is_open or self._is_over:
            raise UsageError("a watch is opened once; make another one")
        self._is_open = True
        self._waker = new_waker()
        self._routing.on_close[self] = self._close
        try:
            await self._begin()
        except BaseException:
            self._close()
            raise
        return self

    async def _begin(self) -> None:
        subject = self._subject
        is_shared = False
        if self._revision is None:
            feed, is_shared = Feed.of(self._calls, subject)
        else:
            feed = Feed(self._calls, subject, self._revision)
        self._feed = feed
        feed.join(self)
        with anyio.move_on_after(self._routing.request_timeout_s):
            await feed.attached.wait()
        if feed.failure is not None:
            raise feed.failure
        if not feed.attached.is_set():
            raise feed.trouble or UnavailableError(f"no broker serves {subject.namespace}")
        if is_shared:
            answer = await self._calls.query(subject.namespace, _ANY_KEY)
            self._told_after = answer.revision

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def aclose(self) -> None:
        """End the watch.  Iteration in progress stops."""
        self._close()

    def _close(self) -> None:
        self._is_over = True
        self._is_open = False
        self._routing.on_close.pop(self, None)
        self._arrived.clear()
        self._ready.clear()
        if self._feed is not None:
            self._feed.leave(self)
        self._wake()

    # --- iterating ----------------------------------------------------------------------

    def __aiter__(self) -> Watch:
        """Iterate over events, in order of their revisions.

        Raises, while iterating:
            CompactedError: this watch was away for so long that events were dropped; read the
                state and watch from its revision.
        """
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self) -> Event | None:
        """Wait for the next event; None when the watch is closed.

        Cancelled while it waits, it loses none.  Whatever has arrived is given at once, without a
        turn of the event loop: that is bounded, for more arrives only in such turns.
        """
        if not self._is_open and not self._is_over:
            raise UsageError(f"the watch is {NOT_OPEN}")
        while not self._is_over:
            event = self.take_arrived()
            if event is not None:
                return event
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            await self._wait_for_more()
        return None

    async def _wait_for_more(self) -> None:
        if self._is_waited_for:  # Only one is woken; the other would wait for ever.
            raise UsageError("another task is iterating over this: each needs one of its own")
        assert self._waker is not None
        self._is_waited_for = True
        try:
            await self._waker.wait()
        finally:
            self._is_waited_for = False

    def take_arrived(self) -> Event | None:
        """The next event if it has arrived already."""
        while not self._ready and self._arrived:
            push = self._arrived.popleft()
            self._buffered_bytes -= push.size
            push.feed.taken(push)
            if push.number and push.events[0].revision <= self._told_after:
                told_after = self._told_after
                self._ready.extend(e for e in push.events if e.revision > told_after)
            else:
                self._ready.extend(push.events)
        return self._ready.popleft() if self._ready else None

    def forget_arrived(self) -> None:
        """Drop what has arrived: one look at the whole follows any number of changes."""
        while self.take_arrived() is not None:
            pass

    async def wait_for_news(self, timeout_s: float) -> None:
        """Wait until something has changed, or the time is up: it is time to look again."""
        with anyio.move_on_after(timeout_s):
            await self.next()
        self.forget_arrived()

    def _wake(self) -> None:
        if self._waker is not None:
            self._waker.wake()

    # --- from the feed ------------------------------------------------------------------

    def on_pushed(self, push: Push) -> bool:
        self._arrived.append(push)
        self._buffered_bytes += push.size
        self._wake()
        return self._buffered_bytes <= CREDIT_BYTES

    def on_failed(self, error: LogdError) -> None:
        self._failure = error
        self._wake()

    def move_to(self, feed: Feed) -> None:
        self._feed = feed


def watch_of(
    calls: Calls,
    kind: Kind,
    name: Name,
    revision: int | None = None,
    *,
    tells_gaps: bool = False,
) -> Watch:
    """A watch of all that happens to one thing: an election, a group, a queue."""
    start = name.name.encode()
    return Watch(calls, name.namespace, kind, start, None, revision, tells_gaps=tells_gaps)
