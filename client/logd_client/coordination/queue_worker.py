"""The worker of a queue: it claims items, runs a handler for each, and settles what comes of it.

While a handler runs its claim is renewed.  A claim that is lost, or that may be, ends its handler,
for by then the item may be another's.  What was claimed is settled in any case: completed, given
back as an attempt, or, if it was the worker that was stopped, given back as none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Final

import anyio

from logd.errors import (
    ClaimLostError,
    LogdError,
    SessionExpiredError,
    UnknownNameError,
    UsageError,
)
from logd.limits import DELAY_MS_MAX
from logd.wire.coordination import QueueOptions
from logd_client.arguments import milliseconds, require_bool
from logd_client.background import task_group
from logd_client.backoff import Backoff
from logd_client.coordination.calls import Calls
from logd_client.coordination.session import SAFE_SHARE
from logd_client.coordination.watches import Watch
from logd_client.event_loop import is_being_cancelled

if TYPE_CHECKING:
    from logd_client.coordination.queues import Claim, Queue

POLL_S: Final = 5.0
"""Whoever waits for items looks again this often, besides hearing that one is ready."""

STOPPED: Final = "the worker stopped"
IN_DOUBT: Final = "the claim could not be renewed in time"
NOT_ITS_OWN: Final = "what the handler waited for was cancelled"
RENEWALS_PER_VISIBILITY: Final = 3
LOOK_AGAIN_S: Final = 10.0
"""How soon a worker that goes by its queue's visibility heeds that it was changed."""

SETTLE_TIMEOUT_S: Final = 10.0
"""How long a worker that is cancelled waits until an item is given back."""


class ItemFailedError(Exception):
    """Raised by a handler to give its item back with a reason of its own."""

    def __init__(
        self,
        reason: str,
        *,
        delay_s: float | None = None,
        dead: bool = False,
        uncounted: bool = False,
    ) -> None:
        """All but ``reason`` as for ``Claim.release``."""
        check_release(delay_s, dead=dead, uncounted=uncounted)
        super().__init__(reason)
        self.delay_s = delay_s
        self.dead = dead
        self.uncounted = uncounted


class HandlerKindError(Exception):
    """The handler is of the other kind, async or not: nothing was done for the item."""

    def __init__(self, expected: str, returned: object) -> None:
        what = type(returned).__name__
        super().__init__(f"the handler must be {expected}: it returned {what}")


@dataclass(slots=True)
class WorkTally:
    """What has become of the claims that ``Queue.work`` has made: each is counted once."""

    completed: int = 0
    failed: int = 0
    """Given back as attempts: their handlers raised, or were cancelled because the claim was in
    doubt.  An item that is tried again may be among them more than once."""
    released: int = 0
    """Given back as no attempts: the worker was stopped."""
    unsettled: int = 0
    """None of these: the claim did not hold any more, or the cluster could not be reached.  The
    item may be handed out again."""


class QueueWorker:
    """One ``Queue.work``."""

    def __init__(
        self,
        queue: Queue,
        calls: Calls,
        handler: Callable[[Claim], Awaitable[None]],
        concurrency: int,
        batch: int,
        visibility_s: float | None,
        tally: WorkTally,
    ) -> None:
        self._queue = queue
        self._calls = calls
        self._handler = handler
        self._room = concurrency
        self._batch = batch
        self._follows_queue = visibility_s is None
        self._visibility_s = visibility_s
        """What claims name, so that they hold for as long as they are renewed by."""
        self._tally = tally
        self._look_again_at = 0.0
        self._wake = anyio.Event()
        self._backoff = self._new_backoff()

    def _new_backoff(self) -> Backoff:
        return Backoff(self._calls.routing.environment.rng)

    async def run(self, *, until_empty: bool) -> None:
        queue = self._queue
        await self._look_at_options()
        in_flight = self._room
        async with queue.watch(tells_gaps=True) as watch, task_group() as tasks:
            while True:
                while not self._room:
                    self._wake = anyio.Event()
                    await self._wake.wait()
                try:
                    await self._look_at_options()
                    claims = await queue.claim(
                        min(self._room, self._batch), visibility_s=self._visibility_s
                    )
                except LogdError as error:
                    if not (error.retriable or isinstance(error, SessionExpiredError)):
                        raise
                    await anyio.sleep(self._backoff.next_delay_s())
                    continue
                self._backoff.reset()
                for claim in claims:
                    self._room -= 1
                    tasks.start_soon(self._run_one, claim)
                if not claims:
                    if until_empty and self._room == in_flight:
                        return
                    await self._wait(watch, until_empty=until_empty)

    async def _look_at_options(self) -> None:
        """Now and then: the queue's visibility may be changed while we work."""
        clock = self._calls.clock
        if not self._follows_queue or clock() < self._look_again_at:
            return
        try:
            options = (await self._queue.statistics()).options
        except UnknownNameError:
            options = QueueOptions()
        self._visibility_s = options.visibility_ms / 1000
        self._look_again_at = clock() + LOOK_AGAIN_S

    async def _wait(self, watch: Watch, *, until_empty: bool) -> None:
        """Until there may be something to claim, or a handler has ended."""
        if until_empty:
            self._wake = anyio.Event()
            with anyio.move_on_after(POLL_S):
                await self._wake.wait()
        else:
            await watch.wait_for_news(POLL_S)

    async def _run_one(self, claim: Claim) -> None:
        failure: ItemFailedError | None = ItemFailedError(STOPPED, delay_s=0, uncounted=True)
        misused: HandlerKindError | None = None

        def doubt(_: object = None) -> None:
            nonlocal failure
            if not scope.cancel_called:
                # It may be the item's doing, so it counts, as it does when the claim runs out.
                failure = ItemFailedError(IN_DOUBT, delay_s=0)
                scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                scope = tasks.cancel_scope
                claim.session.call_on_loss(claim, doubt)
                tasks.start_soon(self._renew, claim, doubt)
                try:
                    # It may have come so late that the item is another's by now.
                    if self._left_s(claim) > 0 and not claim.session.is_lost():
                        handling: object = self._handler(claim)
                        if not isawaitable(handling):
                            raise HandlerKindError("an async function", handling)
                        await handling
                        failure = None
                except HandlerKindError as error:
                    misused = error
                except Exception as error:
                    failure = failure_of(error)
                except anyio.get_cancelled_exc_class():
                    if is_being_cancelled():
                        raise
                    failure = ItemFailedError(NOT_ITS_OWN)
                scope.cancel()
        finally:
            claim.session.forget_dependant(claim)
            with anyio.move_on_after(SETTLE_TIMEOUT_S, shield=True) as settling:
                await self._settle(claim, failure)
            if settling.cancelled_caught:
                self._tally.unsettled += 1
            if misused is not None:
                # Else the attempts of every item would be used up for no fault of its own.
                raise UsageError(str(misused))
            # Only now: what follows it, of its key, can be claimed.
            self._room += 1
            self._wake.set()

    def _left_s(self, claim: Claim) -> float:
        """How long ``claim`` certainly holds yet, if it is not renewed."""
        assert claim.visibility_s is not None
        return claim.asked_at + claim.visibility_s * SAFE_SHARE - self._calls.lease_clock()

    async def _renew(self, claim: Claim, doubt: Callable[[], None]) -> None:
        """Keep the claim while its handler runs.  ``doubt`` of a lost one, or one that may be,
        ends the handler: its item may be another's."""
        backoff = self._new_backoff()
        assert claim.visibility_s is not None
        delay_s = claim.visibility_s / RENEWALS_PER_VISIBILITY
        while (left_s := self._left_s(claim)) > 0:
            with anyio.move_on_after(left_s):
                await anyio.sleep(delay_s)
                try:
                    await claim.renew()
                except ClaimLostError:
                    break
                except LogdError:
                    delay_s = backoff.next_delay_s()
                else:
                    backoff.reset()
                    delay_s = claim.visibility_s / RENEWALS_PER_VISIBILITY
        doubt()

    async def _settle(self, claim: Claim, failure: ItemFailedError | None) -> None:
        try:
            if failure is None:
                await claim.complete()
                self._tally.completed += 1
            else:
                await claim.release(
                    str(failure),
                    delay_s=failure.delay_s,
                    dead=failure.dead,
                    uncounted=failure.uncounted,
                )
                if failure.uncounted:
                    self._tally.released += 1
                else:
                    self._tally.failed += 1
        except LogdError:
            # It was lost, or its time will run out: it is handed out again.
            self._tally.unsettled += 1


def failure_of(error: Exception) -> ItemFailedError:
    """What a handler meant by what it raised: task groups wrap even a single exception."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, ItemFailedError):
        return error
    return ItemFailedError(f"{type(error).__name__}: {error}")


def check_release(delay_s: float | None, *, dead: bool, uncounted: bool) -> int | None:
    """Refuse what says two things at once; the delay in milliseconds."""
    require_bool("dead", dead)
    require_bool("uncounted", uncounted)
    if dead and uncounted:
        raise UsageError("an item that dies of a claim was attempted: dead or uncounted")
    return milliseconds("delay_s", delay_s, DELAY_MS_MAX)
